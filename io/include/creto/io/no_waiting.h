#pragma once

#include <utility>

namespace creto::io {

/// While one lives, its thread must not wait, because connections of others hang on it. Who would have to wait for a
/// disk, a database or another process asks `forbids()` first, and where that is true gives up with a refusal, having
/// changed nothing. Who made the scope sees that in `given_up()`, drops the answer and has it made on a thread that may
/// wait. Of several on one thread the innermost counts: a transport may begin a call while it sends another's answer.
class NoWaiting {
 public:
  NoWaiting() : outer_(std::exchange(current_, this)) {}
  ~NoWaiting() { current_ = outer_; }
  NoWaiting(const NoWaiting&) = delete;
  NoWaiting& operator=(const NoWaiting&) = delete;

  bool given_up() const { return given_up_; }

  /// Whether this thread must not wait. Where it is true, the caller gives up.
  static bool forbids() {
    if (current_ == nullptr) return false;
    current_->given_up_ = true;
    return true;
  }

 private:
  static inline thread_local NoWaiting* current_ = nullptr;
  NoWaiting* const outer_;
  bool given_up_ = false;
};

}  // namespace creto::io
