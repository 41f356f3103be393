#pragma once

#include <cstdint>
#include <mutex>

#include "creto/common/clock.h"
#include "creto/common/result.h"

namespace creto {

struct CircuitBreakerOptions {
  std::uint32_t failure_threshold = 5;             ///< consecutive failures that open it
  Nanos reset_timeout = std::chrono::seconds(30);  ///< how long it stays open
  std::uint32_t half_open_requests = 3;            ///< trial calls at once; as many successes close it
};

/// Keeps a failing dependency from being called (001 §11.3, 003 §13.2). One per dependency. Thread-safe.
class CircuitBreaker {
 public:
  enum class State { closed, open, half_open };

  CircuitBreaker(std::string dependency, CircuitBreakerOptions options, const Clock& clock);

  /// Runs `call` (returning a Result) unless the circuit is open; only transient errors count as failures.
  /// Errors: unavailable, naming the dependency and when it will be tried again; else what `call` returns.
  template <class F>
  auto run(F&& call) -> decltype(call()) {
    return run(call, [](const Error& error) { return error.category() == ErrorCategory::transient; });
  }

  /// The same for a caller who knows better which errors speak of the dependency: those for which `failed` is true
  /// count.
  template <class F, class P>
  auto run(F&& call, P&& failed) -> decltype(call()) {
    if (auto admitted = admit(); !admitted) return std::move(admitted).error();
    auto result = call();
    settle(!result && failed(result.error()));
    return result;
  }

  State state() const;

 private:
  Result<> admit();
  void settle(bool failed);

  const std::string dependency_;
  const CircuitBreakerOptions options_;
  const Clock& clock_;
  mutable std::mutex mutex_;
  State state_ = State::closed;
  std::uint32_t failures_ = 0;
  std::uint32_t trials_ = 0;
  std::uint32_t successes_ = 0;
  Monotonic open_until_{};
};

}  // namespace creto
