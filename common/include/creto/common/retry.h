#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <variant>

#include "creto/common/error.h"

namespace creto {

struct NeverRetry {};
struct ExponentialBackoff {
  std::chrono::nanoseconds initial = std::chrono::milliseconds(100);
  std::chrono::nanoseconds max = std::chrono::seconds(30);
  std::uint32_t attempts_max = 5;  ///< the first call included
};
struct FixedDelay {
  std::chrono::nanoseconds delay;
  std::uint32_t attempts_max;
};
struct RetryAfter {
  std::chrono::nanoseconds delay;
};
using RetryStrategy = std::variant<NeverRetry, ExponentialBackoff, FixedDelay, RetryAfter>;

/// 001 §8.4: transient errors back off, quota errors wait for the reset, everything else is not repeated.
RetryStrategy retry_strategy(const Error& error);

/// How long to wait before attempt `attempt` (the first repeat is 2), none where there shall be no further one.
/// `jitter` in [0, 1) spreads a backoff over [delay/2, delay).
std::optional<std::chrono::nanoseconds> delay_before(const RetryStrategy& strategy, std::uint32_t attempt,
                                                     double jitter);

}  // namespace creto
