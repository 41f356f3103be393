#pragma once

#include "billing/aggregation.h"
#include "creto/metering/plan.h"

namespace creto::metering {

struct Fee {
  Decimal units;
  std::int64_t events = 0;
  Decimal gross;   ///< what the price gives for the units that are not free
  Decimal exact;   ///< less the discount, at most the maximum
  Decimal amount;  ///< rounded half up to the currency's places: the one rounding of a fee
};

/// The fee of one charge, without its minimum. Exact: a result that needs more than 38 digits is an error, never an
/// approximation; only prorated units, which are quotients, have 28 places. Requires: the plan was validated.
Result<Fee> price_usage(const Charge& charge, const Usage& usage, const Currency& currency);

/// `price` alone, not rounded.
Result<Decimal> exact_amount(const Price& price, const Usage& usage);

/// What a price looks at of single events.
ValuesWanted values_wanted(const Price& price);

}  // namespace creto::metering
