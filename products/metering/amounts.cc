#include "amounts.h"

#include <fmt/format.h>

#include "creto/metering/quota.h"

namespace creto::metering {
namespace {

const Decimal billion = Decimal(1'000'000'000);
const Decimal billionth = Decimal::literal("0.000000001");

}  // namespace

Result<NanoMoney> to_nano_money(const Decimal& amount) {
  const Decimal rounded = CRETO_TRY(amount.round(9, Decimal::Rounding::half_up));
  const Decimal nanos = CRETO_TRY(Decimal::multiply(rounded, billion));
  return nanos.to_integer();
}

Decimal from_nano_money(NanoMoney amount) { return Decimal::multiply(Decimal(amount), billionth).value(); }

Result<std::int64_t> to_whole_units(const Decimal& units) {
  if (!units.is_negative()) {
    const auto whole = units.round(0, Decimal::Rounding::up);
    if (whole) {
      const auto number = whole->to_integer();
      if (number && *number <= limit_max) return *number;
    }
  }
  return Error(Product::metering, ErrorKind::invalid_input,
               fmt::format("units `{}`: must be 0 to 10^18", units.to_string()));
}

}  // namespace creto::metering
