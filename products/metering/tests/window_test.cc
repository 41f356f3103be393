#include "limits/window.h"

#include <gtest/gtest.h>

namespace creto::metering {
namespace {

Instant at(std::string_view text) { return from_rfc3339(text).value(); }

TEST(Window, HoldsTheInstantAndMeetsTheNext) {
  for (const WindowKind kind : {WindowKind::hour, WindowKind::day, WindowKind::week, WindowKind::month}) {
    Instant when = at("2023-12-30T23:59:59.999999999Z");
    for (int i = 0; i < 100; ++i) {
      const Period window = calendar_window(kind, when);
      EXPECT_TRUE(window.contains(when));
      EXPECT_EQ(calendar_window(kind, window.begin), window);
      EXPECT_EQ(calendar_window(kind, window.end).begin, window.end);
      EXPECT_EQ(calendar_window(kind, window.end - Nanos(1)), window);
      when = window.end + Nanos(1);
    }
  }
}

TEST(Window, KnowsLeapDaysAndMondays) {
  EXPECT_EQ(calendar_window(WindowKind::month, at("2024-02-29T12:00:00Z")).end, at("2024-03-01T00:00:00Z"));
  EXPECT_EQ(calendar_window(WindowKind::month, at("2026-12-31T23:00:00Z")).end, at("2027-01-01T00:00:00Z"));
  EXPECT_EQ(calendar_window(WindowKind::week, at("2026-11-29T20:00:00Z")).begin, at("2026-11-23T00:00:00Z"));
  EXPECT_EQ(calendar_window(WindowKind::hour, from_unix_ns(-1)).end, from_unix_ns(0));
}

TEST(Window, OfATimeZoneMeetsTheNextWhateverItsClocksDo) {
  // Half an hour of summer time; a day that never was; days that begin at one o'clock; none of it.
  for (const std::string_view name :
       {"Australia/Lord_Howe", "Pacific/Apia", "America/Sao_Paulo", "Europe/Berlin", "UTC"}) {
    const TimeZone zone = TimeZone::load(name).value();
    for (const WindowKind kind : {WindowKind::hour, WindowKind::day, WindowKind::week, WindowKind::month}) {
      Instant when = at("2011-12-20T11:00:00Z");
      for (int i = 0; i < 250; ++i) {
        const Period window = calendar_window(kind, when, zone);
        ASSERT_TRUE(window.contains(when)) << name << " " << to_rfc3339(when);
        ASSERT_EQ(calendar_window(kind, window.end, zone).begin, window.end) << name << " " << to_rfc3339(when);
        ASSERT_EQ(calendar_window(kind, window.end - Nanos(1), zone), window) << name << " " << to_rfc3339(when);
        when = window.end;
      }
    }
  }
}

TEST(Window, OfATimeZoneKnowsDaylightSavingAndLeapDays) {
  const TimeZone berlin = TimeZone::load("Europe/Berlin").value();
  const auto length = [&](WindowKind kind, std::string_view when) {
    const Period window = calendar_window(kind, at(when), berlin);
    return std::chrono::duration_cast<std::chrono::hours>(window.end - window.begin).count();
  };
  EXPECT_EQ(length(WindowKind::day, "2026-03-29T12:00:00Z"), 23);
  EXPECT_EQ(length(WindowKind::day, "2026-10-25T12:00:00Z"), 25);
  EXPECT_EQ(length(WindowKind::week, "2026-10-25T12:00:00Z"), 7 * 24 + 1);
  EXPECT_EQ(length(WindowKind::month, "2026-03-29T12:00:00Z"), 31 * 24 - 1);
  EXPECT_EQ(length(WindowKind::month, "2024-02-29T12:00:00Z"), 29 * 24);
  EXPECT_EQ(calendar_window(WindowKind::month, at("2024-02-29T23:30:00Z"), berlin).begin, at("2024-02-29T23:00:00Z"));
}

}  // namespace
}  // namespace creto::metering
