#include "window.h"

#include "creto/common/assert.h"

namespace creto::metering {

Period calendar_window(WindowKind kind, Instant when) {
  using namespace std::chrono;
  const auto day = floor<days>(when);
  switch (kind) {
    case WindowKind::hour: {
      const auto begin = floor<hours>(when);
      return {begin, begin + hours(1)};
    }
    case WindowKind::day:
      return {day, day + days(1)};
    case WindowKind::week: {
      const auto begin = day - (weekday(day) - Monday);
      return {begin, begin + days(7)};
    }
    case WindowKind::month: {
      const year_month_day date(day);
      const year_month month(date.year(), date.month());
      return {sys_days(month / 1), sys_days((month + months(1)) / 1)};
    }
    case WindowKind::lifetime:
      return {Instant::min(), Instant::max()};
    case WindowKind::rolling:
      break;
  }
  CRETO_ASSERT(!"a rolling window is no calendar window");
  return {};
}

}  // namespace creto::metering
