#pragma once

#include <deque>
#include <functional>
#include <mutex>
#include <string>

#include "creto/common/result.h"
#include "creto/common/telemetry.h"
#include "tasks.h"

namespace creto::runtime {

/// Writes down what has happened, however long the database takes to come back: what cannot be written now is tried
/// again, in order, until it can. Thread-safe.
class Backlog {
 public:
  /// What waits at most; beyond it facts are lost, and that is logged.
  static constexpr std::size_t entries_max = 10'000;

  /// Both must outlive it.
  Backlog(Tasks& tasks, Telemetry& telemetry) : tasks_(tasks), telemetry_(telemetry) {}

  /// Calls `write` now, and later again where it fails in a way that may pass. It makes its own context, with a
  /// deadline of seconds, and may be called again after it has succeeded. `what` is for the log.
  void record(std::string what, std::function<Result<>()> write) {
    Entry entry{std::move(what), std::move(write)};
    {
      // Behind those that wait, it would only wait too.
      const std::lock_guard lock(mutex_);
      if (!waiting_.empty()) return keep(std::move(entry));
    }
    if (written(entry)) return;
    const std::lock_guard lock(mutex_);
    keep(std::move(entry));
  }

  /// One last try. Requires: nothing is recorded any more, and the tasks have ended.
  void finish() {
    const std::lock_guard lock(mutex_);
    while (!waiting_.empty() && written(waiting_.front())) waiting_.pop_front();
    for (const Entry& entry : waiting_) telemetry_.error("runtime", "fact_lost", {{"what", entry.what}});
    waiting_.clear();
  }

 private:
  struct Entry {
    std::string what;
    std::function<Result<>()> write;
  };

  /// True also where no later try would do better.
  bool written(const Entry& entry) {
    const auto done = entry.write();
    if (done) return true;
    const bool again = done.error().retryable();
    telemetry_.error("runtime", again ? "fact_not_yet_recorded" : "fact_lost",
                     {{"what", entry.what}, {"error", done.error().to_string()}});
    return !again;
  }

  /// Requires: mutex_ held.
  void keep(Entry entry) {
    if (waiting_.size() >= entries_max)
      return telemetry_.error("runtime", "fact_lost", {{"what", entry.what}, {"error", "too many wait"}});
    waiting_.push_back(std::move(entry));
    if (waiting_.size() == 1) try_after(std::chrono::seconds(1));
  }

  void try_after(Nanos pause) {
    tasks_.post_after(pause, [this, pause] { try_again(pause); });
  }

  /// The one task there is while anything waits: so the front is its own.
  void try_again(Nanos pause) {
    std::unique_lock lock(mutex_);
    while (!waiting_.empty()) {
      const Entry entry = waiting_.front();
      lock.unlock();
      const bool done = written(entry);
      lock.lock();
      if (!done) return try_after(std::min<Nanos>(pause * 2, std::chrono::minutes(1)));
      pause = std::chrono::seconds(1);
      waiting_.pop_front();
    }
  }

  Tasks& tasks_;
  Telemetry& telemetry_;
  std::mutex mutex_;
  std::deque<Entry> waiting_;
};

}  // namespace creto::runtime
