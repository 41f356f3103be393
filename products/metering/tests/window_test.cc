#include "window.h"

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

}  // namespace
}  // namespace creto::metering
