#include "gateway/message_bell.h"

#include <utility>

namespace creto::runtime {

MessageBell::MessageBell(sql::Signal& signal, Tasks& tasks)
    : signal_(signal), tasks_(tasks), thread_([this] { run(); }) {}

MessageBell::~MessageBell() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  signal_.raise();  // the thread may be waiting for it
  thread_.join();
}

void MessageBell::when_rung(std::uint64_t seen, std::function<void()> look) {
  const std::lock_guard lock(mutex_);
  if (signal_.count() != seen) return tasks_.post(std::move(look));
  if (waiting_.empty()) seen_ = seen;
  waiting_.push_back(std::move(look));
  changed_.notify_all();
}

void MessageBell::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (waiting_.empty()) {
      changed_.wait(lock);
      continue;
    }
    const auto seen = seen_;
    lock.unlock();
    signal_.wait(seen, std::chrono::seconds(1));
    lock.lock();
    for (auto& look : std::exchange(waiting_, {})) tasks_.post(std::move(look));
  }
}

}  // namespace creto::runtime
