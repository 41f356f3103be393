#include "creto/common/circuit_breaker.h"

#include <fmt/format.h>

namespace creto {

CircuitBreaker::CircuitBreaker(std::string dependency, CircuitBreakerOptions options, const Clock& clock)
    : dependency_(std::move(dependency)), options_(options), clock_(clock) {}

CircuitBreaker::State CircuitBreaker::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

Result<> CircuitBreaker::admit() {
  const std::lock_guard lock(mutex_);
  const Monotonic now = clock_.monotonic();
  if (state_ == State::open && now >= open_until_) {
    state_ = State::half_open;
    trials_ = successes_ = 0;
  }
  if (state_ == State::closed) return {};
  if (state_ == State::half_open && trials_ < options_.half_open_requests) {
    ++trials_;
    return {};
  }
  const Nanos wait = state_ == State::open ? open_until_ - now : Nanos(0);
  return Error(Product::platform, ErrorKind::unavailable,
               fmt::format("`{}` is not called: its circuit is open", dependency_))
      .with_retry_after(wait);
}

void CircuitBreaker::settle(bool failed) {
  const std::lock_guard lock(mutex_);
  if (state_ == State::half_open && !failed) {
    if (++successes_ >= options_.half_open_requests) {
      state_ = State::closed;
      failures_ = 0;
    }
  } else if (!failed) {
    failures_ = 0;
  } else if (state_ == State::half_open || ++failures_ >= options_.failure_threshold) {
    state_ = State::open;
    open_until_ = clock_.monotonic() + options_.reset_timeout;
  }
}

}  // namespace creto
