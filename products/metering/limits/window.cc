#include "limits/window.h"

#include "creto/common/assert.h"

namespace creto::metering {

Period calendar_window(WindowKind kind, Instant when, const TimeZone& zone) {
  using namespace std::chrono;
  const auto between = [&](local_days begin, local_days end) {
    return Period{zone.day_begin(begin), zone.day_begin(end)};
  };
  switch (kind) {
    case WindowKind::hour: {
      const auto begin = floor<hours>(when);
      return {begin, begin + hours(1)};
    }
    case WindowKind::day: {
      const local_days day = zone.day_of(when);
      return between(day, day + days(1));
    }
    case WindowKind::week: {
      const local_days day = zone.day_of(when);
      const local_days monday = day - (weekday(day) - Monday);
      return between(monday, monday + days(7));
    }
    case WindowKind::month: {
      const year_month_day date(zone.day_of(when));
      const year_month month(date.year(), date.month());
      return between(local_days(month / 1), local_days((month + months(1)) / 1));
    }
    case WindowKind::lifetime:
      return {Instant::min(), Instant::max()};
    case WindowKind::rolling:
    case WindowKind::transaction:
    case WindowKind::concurrent:
      break;
  }
  CRETO_ASSERT(!"this window is in no calendar");
  return {};
}

std::optional<Instant> counted_from(const Quota& quota, Instant now) {
  switch (quota.window) {
    case WindowKind::rolling:  // with a step to spare
      return now - quota.rolling_length - quota.rolling_length / 30;
    case WindowKind::hour:
    case WindowKind::day:
    case WindowKind::week:
    case WindowKind::month:
    case WindowKind::lifetime: {
      auto zone = quota.time_zone.empty() ? Result<TimeZone>(TimeZone()) : TimeZone::load(quota.time_zone);
      return calendar_window(quota.window, now, zone ? *zone : TimeZone()).begin;
    }
    case WindowKind::transaction:
    case WindowKind::concurrent:
      return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace creto::metering
