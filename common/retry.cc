#include "creto/common/retry.h"

#include <algorithm>

#include "creto/common/assert.h"

namespace creto {

using namespace std::chrono_literals;

RetryStrategy retry_strategy(const Error& error) {
  if (error.retry_after()) return RetryAfter{*error.retry_after()};
  if (error.kind() == ErrorKind::quota_exceeded) return RetryAfter{1h};
  if (error.retryable()) return ExponentialBackoff{};
  return NeverRetry{};
}

std::optional<std::chrono::nanoseconds> delay_before(const RetryStrategy& strategy, std::uint32_t attempt,
                                                     double jitter) {
  CRETO_ASSERT(attempt >= 2 && jitter >= 0.0 && jitter < 1.0);
  if (const auto* backoff = std::get_if<ExponentialBackoff>(&strategy)) {
    if (attempt > backoff->attempts_max) return std::nullopt;
    const auto doublings = std::min(attempt - 2, 40U);
    const auto longest = std::min<std::chrono::duration<double, std::nano>>(
        std::chrono::duration<double, std::nano>(backoff->initial) * static_cast<double>(1ULL << doublings),
        backoff->max);
    return std::chrono::duration_cast<std::chrono::nanoseconds>(longest * (0.5 + jitter / 2));
  }
  if (const auto* fixed = std::get_if<FixedDelay>(&strategy))
    return attempt > fixed->attempts_max ? std::nullopt : std::optional(fixed->delay);
  if (const auto* after = std::get_if<RetryAfter>(&strategy))
    return attempt > 2 ? std::nullopt : std::optional(after->delay);
  return std::nullopt;
}

}  // namespace creto
