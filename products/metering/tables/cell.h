#pragma once

#include <atomic>

namespace creto::metering {

/// A value that one thread writes under a lock and others read without. Acquire and release on every access keep the
/// version of the seqlock around them in its place, without fences.
template <class T>
class Cell {
 public:
  Cell() = default;
  explicit Cell(T value) : value_(value) {}
  T get() const { return value_.load(std::memory_order_acquire); }
  void set(T value) { value_.store(value, std::memory_order_release); }

 private:
  std::atomic<T> value_{};
};

}  // namespace creto::metering
