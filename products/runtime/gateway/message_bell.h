#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "creto/io/sql.h"
#include "tasks.h"

namespace creto::runtime {

/// Tells who waits for a message to look again: one thread for all of them. Thread-safe.
class MessageBell {
 public:
  /// `signal` is raised when a message was queued. Both must outlive it.
  MessageBell(sql::Signal& signal, Tasks& tasks);
  ~MessageBell();
  MessageBell(const MessageBell&) = delete;
  MessageBell& operator=(const MessageBell&) = delete;

  std::uint64_t rung() const { return signal_.count(); }
  /// Posts `look` when `rung()` differs from `seen`. After a second in any case, because what another process queued
  /// rings no bell here.
  void when_rung(std::uint64_t seen, std::function<void()> look);

 private:
  void run();

  sql::Signal& signal_;
  Tasks& tasks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  std::uint64_t seen_ = 0;  ///< by the first of those who wait
  std::vector<std::function<void()>> waiting_;
  std::thread thread_;
};

}  // namespace creto::runtime
