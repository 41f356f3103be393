#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace creto::io {

/// A fixed number of threads and a bounded queue.
class WorkerPool {
 public:
  WorkerPool(std::size_t threads, std::size_t queue_max);
  ~WorkerPool() { stop(); }

  /// False where the queue is full or the pool has stopped; then `job` does not run.
  bool submit(std::function<void()> job);
  /// Runs what is queued, then ends the threads. Idempotent; not from a worker.
  void stop();

 private:
  void work();

  const std::size_t queue_max_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace creto::io
