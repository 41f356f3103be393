#pragma once

#include "aggregation.h"
#include "creto/metering/plan.h"

namespace creto::metering {

struct Fee {
  Decimal units;
  std::int64_t events = 0;
  Decimal exact;  ///< before rounding, the minimum not applied
  Money amount;   ///< max(exact, minimum) rounded half up to the currency's
                  ///< places: the one rounding of a fee
};

/// The fee of one charge. Exact: a result that needs more than 38 digits is an
/// error, never an approximation. Requires: the plan was validated.
Result<Fee> price_usage(const Charge& charge, const Usage& usage, const Currency& currency);

/// `price` alone, not rounded, without a minimum.
Result<Decimal> exact_amount(const Price& price, const Usage& usage);

}  // namespace creto::metering
