#include "usage/usage_question.h"

#include <fmt/format.h>

namespace creto::metering::detail {

Instant period_begin(By by, const TimeZone& zone, Instant when) {
  if (by == By::hour) {
    // By the offset of the moment itself: the two hours that clocks show twice are two.
    const auto offset = zone.offset_at(when);
    return std::chrono::floor<std::chrono::hours>(when + offset) - offset;
  }
  std::chrono::local_days day = zone.day_of(when);
  if (by == By::week) day -= std::chrono::weekday(day) - std::chrono::Monday;
  if (by == By::month) {
    const std::chrono::year_month_day date(day);
    day = std::chrono::local_days(date.year() / date.month() / 1);
  }
  return zone.day_begin(day);
}

std::string period_text(By by, const TimeZone& zone, Instant begin) {
  const auto local = zone.local(begin);
  const std::chrono::year_month_day date(std::chrono::floor<std::chrono::days>(local));
  const auto year = static_cast<int>(date.year());
  const auto month = static_cast<unsigned>(date.month());
  if (by == By::month) return fmt::format("{:04}-{:02}", year, month);
  const std::string day = fmt::format("{:04}-{:02}-{:02}", year, month, static_cast<unsigned>(date.day()));
  if (by != By::hour) return day;
  const auto time = std::chrono::floor<std::chrono::seconds>(local - std::chrono::floor<std::chrono::days>(local));
  const auto offset = zone.offset_at(begin).count() / 60;
  const std::string zone_text =
      offset == 0 ? "Z"
                  : fmt::format("{}{:02}:{:02}", offset < 0 ? '-' : '+', std::abs(offset) / 60, std::abs(offset) % 60);
  return fmt::format("{}T{:02}:{:02}:{:02}{}", day, time.count() / 3600, time.count() / 60 % 60, time.count() % 60,
                     zone_text);
}

}  // namespace creto::metering::detail
