#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "creto/common/time.h"

namespace creto::runtime {

/// A few threads that do what is due, once started. Thread-safe.
class Tasks {
 public:
  ~Tasks() { stop(); }

  /// What was posted before is done from now on.
  void start(std::size_t threads) {
    for (std::size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
  }

  /// Ends after the tasks that run; the rest is dropped. Idempotent.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      due_.clear();
    }
    join();
  }

  /// Ends when everything that is due has been done, with what that posts; what is due later is dropped.
  void finish() {
    {
      const std::lock_guard lock(mutex_);
      finishing_ = true;
    }
    join();
    stop();
  }

  void post(std::function<void()> task) { post_after(Nanos(0), std::move(task)); }
  void post_after(Nanos delay, std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
      due_.emplace(std::chrono::steady_clock::now() + delay, std::move(task));
    }
    changed_.notify_one();
  }

 private:
  void join() {
    changed_.notify_all();
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }

  void run() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      const bool idle = due_.empty() || due_.begin()->first > std::chrono::steady_clock::now();
      if (idle && finishing_) return;
      if (due_.empty()) {
        changed_.wait(lock);
        continue;
      }
      if (idle) {
        changed_.wait_until(lock, std::chrono::steady_clock::time_point(due_.begin()->first));
        continue;
      }
      auto task = std::move(due_.begin()->second);
      due_.erase(due_.begin());
      lock.unlock();
      task();
      task = nullptr;  // what it holds is let go outside the lock
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false, finishing_ = false;
  std::multimap<std::chrono::steady_clock::time_point, std::function<void()>> due_;
  std::vector<std::thread> threads_;
};

}  // namespace creto::runtime
