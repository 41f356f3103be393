#pragma once

#include <chrono>
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

#include "creto/common/result.h"

namespace creto {

using Nanos = std::chrono::nanoseconds;

/// A point of wall-clock time: UTC, nanoseconds since 1970.
using Instant = std::chrono::sys_time<Nanos>;

/// A point on a clock that never goes back; meaningless outside this process.
using Monotonic = std::chrono::time_point<std::chrono::steady_clock, Nanos>;

inline std::int64_t unix_ns(Instant instant) { return instant.time_since_epoch().count(); }
inline Instant from_unix_ns(std::int64_t ns) { return Instant(Nanos(ns)); }

/// RFC 3339 in UTC with as many fraction digits as needed (0, 3, 6 or 9): "2026-11-29T20:35:04.123Z".
std::string to_rfc3339(Instant instant);
/// Any RFC 3339 offset; years 1678 to 2261 (what nanoseconds hold).
Result<Instant> from_rfc3339(std::string_view text);

/// "250ms", "90s", "15m", "2h", "7d", or a sum such as "1h30m".
Result<Nanos> parse_duration(std::string_view text);
std::string to_string(Nanos duration);

/// Consensus time (003 §8.2): totally ordered by (physical, logical, node), unique, and increasing across restarts.
struct Timestamp {
  std::uint64_t logical = 0;     ///< orders timestamps of equal physical time
  std::int64_t physical_ns = 0;  ///< Unix nanoseconds; what is meant where one number is asked
  std::string node;              ///< who issued it
  bool degraded = false;         ///< taken from the local clock because consensus did not answer (003 §8.4)

  Instant instant() const { return from_unix_ns(physical_ns); }
  friend bool operator==(const Timestamp&, const Timestamp&) = default;
};
std::strong_ordering compare(const Timestamp& a, const Timestamp& b);

}  // namespace creto
