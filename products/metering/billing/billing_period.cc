#include "billing/billing_period.h"

#include <algorithm>

#include "creto/common/assert.h"

namespace creto::metering {
namespace {

using namespace std::chrono;

int months_of(Interval interval) {
  switch (interval) {
    case Interval::monthly:
      return 1;
    case Interval::quarterly:
      return 3;
    case Interval::yearly:
      return 12;
    case Interval::weekly:
      break;
  }
  CRETO_ASSERT(!"weeks have no months");
  return 0;
}

/// The day of the month, or the month's last where it is shorter.
local_days on_day(year_month month, std::chrono::day wanted) {
  const year_month_day exact = month / wanted;
  return exact.ok() ? local_days(exact) : local_days(month / last);
}

}  // namespace

Period period_at(const Cycle& cycle, Instant when) {
  const local_days today = cycle.zone.day_of(when);
  const bool calendar = cycle.billing_time == BillingTime::calendar;
  const local_days anchor = cycle.zone.day_of(cycle.anchor);
  const auto between = [&](local_days begin, local_days end) {
    return Period{cycle.zone.day_begin(begin), cycle.zone.day_begin(end)};
  };
  if (cycle.interval == Interval::weekly) {
    const weekday first = calendar ? Monday : weekday(anchor);
    const local_days begin = today - (weekday(today) - first);
    return between(begin, begin + weeks(1));
  }
  const int length = months_of(cycle.interval);
  const year_month_day date(today);
  const year_month_day anchor_date(anchor);
  const std::chrono::day on = calendar ? std::chrono::day(1) : anchor_date.day();
  const year_month origin = calendar ? anchor_date.year() / January : anchor_date.year() / anchor_date.month();
  const auto whole_months = (date.year() / date.month() - origin).count();
  const auto intervals = (whole_months >= 0 ? whole_months : whole_months - length + 1) / length;
  year_month begin = origin + months(intervals * length);
  if (on_day(begin, on) > today) begin -= months(length);
  return between(on_day(begin, on), on_day(begin + months(length), on));
}

PeriodDays::PeriodDays(Period full, TimeZone zone)
    : zone_(std::move(zone)),
      first_(zone_.day_of(full.begin)),
      total_(std::max<std::int64_t>(1, (zone_.day_of(full.end) - first_).count())) {}

std::int64_t PeriodDays::before(Instant when) const {
  return std::clamp<std::int64_t>((zone_.day_of(when) - first_).count(), 0, total_);
}

std::int64_t PeriodDays::through(Instant when) const {
  const local_days day = zone_.day_of(when);
  const std::int64_t begun = zone_.day_begin(day) < when ? 1 : 0;
  return std::clamp<std::int64_t>((day - first_).count() + begun, 0, total_);
}

}  // namespace creto::metering
