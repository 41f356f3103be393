#pragma once

#include <cstdint>

#include "creto/common/money.h"
#include "creto/common/result.h"

namespace creto::metering {

/// Money as the counters hold it: billionths of the accounting currency's unit, so up to 9.2 thousand million of it.
using NanoMoney = std::int64_t;
/// Half up at the ninth place. Errors: invalid_input where it does not fit.
Result<NanoMoney> to_nano_money(const Decimal& amount);
Decimal from_nano_money(NanoMoney amount);
/// Whole units, fractions rounded up. Errors: invalid_input where negative or over `limit_max`.
Result<std::int64_t> to_whole_units(const Decimal& units);

inline std::int64_t add_saturating(std::int64_t a, std::int64_t b) {
  std::int64_t sum = 0;
  if (!__builtin_add_overflow(a, b, &sum)) return sum;
  return b > 0 ? INT64_MAX : INT64_MIN;
}
inline std::int64_t subtract_saturating(std::int64_t a, std::int64_t b) {
  std::int64_t difference = 0;
  if (!__builtin_sub_overflow(a, b, &difference)) return difference;
  return b < 0 ? INT64_MAX : INT64_MIN;
}

}  // namespace creto::metering
