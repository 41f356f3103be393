#pragma once

#include "creto/common/time_zone.h"
#include "creto/metering/billing.h"

namespace creto::metering {

/// How a subscription's time is cut into billing periods.
struct Cycle {
  Interval interval = Interval::monthly;
  BillingTime billing_time = BillingTime::calendar;
  Instant anchor{};  ///< the subscription's start; anniversaries count from its day
  TimeZone zone{};
};

/// The whole period that `when` lies in, from the first moment of a day to the first of another. Calendar: weeks from
/// Monday, months, quarters from January, years. Anniversary: on the anchor's day, or the month's last where the month
/// is shorter.
Period period_at(const Cycle& cycle, Instant when);

/// The days of a billing period, by which fees are prorated.
class PeriodDays {
 public:
  PeriodDays(Period full, TimeZone zone);
  std::int64_t total() const { return total_; }
  /// Days before the one of `when`; 0 before the period, `total()` after it.
  std::int64_t before(Instant when) const;
  /// As `before`, a day that has begun counting as whole: where a subscription ends within a day.
  std::int64_t through(Instant when) const;

 private:
  TimeZone zone_;
  std::chrono::local_days first_;
  std::int64_t total_;
};

}  // namespace creto::metering
