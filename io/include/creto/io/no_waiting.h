#pragma once

#include <utility>

namespace creto::io {

/// While one lives, its thread must not wait, because connections of others hang on it. Who would have to wait for a
/// disk, a database or another process asks `forbids()` first, and where that is true gives up with a refusal, having
/// changed nothing: every Database does so. Who made the scope sees that in `given_up()`, drops the answer and has it
/// made on a thread that may wait. Of several on one thread the innermost counts.
class NoWaiting {
 public:
  NoWaiting() : outer_(std::exchange(current_, this)) {}
  ~NoWaiting() { end(); }
  NoWaiting(const NoWaiting&) = delete;
  NoWaiting& operator=(const NoWaiting&) = delete;

  /// From now on the thread may wait again, or as the scope around this one says.
  void end() {
    if (current_ == this) current_ = outer_;
  }
  bool given_up() const { return given_up_; }

  /// Whether this thread must not wait. Where it is true, the caller gives up.
  static bool forbids() {
    if (current_ == nullptr) return false;
    current_->given_up_ = true;
    return true;
  }
  /// Whether somebody gave up on this thread, so that what it comes to is no answer.
  static bool gave_up() { return current_ != nullptr && current_->given_up_; }

 private:
  static inline thread_local NoWaiting* current_ = nullptr;
  NoWaiting* const outer_;
  bool given_up_ = false;
};

}  // namespace creto::io
