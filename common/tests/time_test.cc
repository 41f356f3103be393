#include "creto/common/time.h"

#include <gtest/gtest.h>

#include <random>

namespace creto {
namespace {

using namespace std::chrono_literals;

TEST(Rfc3339, RoundTripsEveryPrecision) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 1000; ++i) {
    const Instant instant = from_unix_ns(static_cast<std::int64_t>(random() >> 2));
    EXPECT_EQ(from_rfc3339(to_rfc3339(instant)).value(), instant);
  }
  EXPECT_EQ(to_rfc3339(from_unix_ns(1'764'448'504'123'000'000)), "2025-11-29T20:35:04.123Z");
  EXPECT_EQ(from_rfc3339("2024-02-29T23:59:59+02:00").value(), from_rfc3339("2024-02-29T21:59:59Z").value());
}

TEST(Rfc3339, RefusesDatesThatDoNotExist) {
  for (const char* text : {"2023-02-29T00:00:00Z", "2024-13-01T00:00:00Z", "2024-01-01T24:00:00Z",
                           "2024-01-01T00:00:60Z", "2024-01-01T00:00:00", "2024-01-01", "", "1600-01-01T00:00:00Z",
                           "2024-01-01T00:00:00.Z", "2024-01-01T00:00:00Zx", "2024-01-01T00:00:00+25:00"})
    EXPECT_FALSE(from_rfc3339(text)) << text;
}

TEST(Rfc3339, CountsTheYearInUtc) {
  EXPECT_EQ(from_rfc3339("2262-01-01T00:30:00+01:00").value(), from_rfc3339("2261-12-31T23:30:00Z").value());
  EXPECT_FALSE(from_rfc3339("1678-01-01T00:30:00+01:00"));  // would be written as 1677
  EXPECT_FALSE(from_rfc3339("2261-12-31T23:30:00-01:00"));
}

TEST(Duration, ReadsWhatItWrites) {
  EXPECT_EQ(parse_duration("1h30m").value(), 90min);
  EXPECT_EQ(parse_duration("250ms").value(), 250ms);
  EXPECT_EQ(to_string(Nanos(26h + 3s)), "1d2h3s");
  EXPECT_EQ(to_string(Nanos(0)), "0s");
  for (const char* text : {"", "1", "h", "-1s", "1 s", "1y", "99999999999d"})
    EXPECT_FALSE(parse_duration(text)) << text;
}

TEST(Timestamp, OrdersByPhysicalThenLogicalThenNode) {
  EXPECT_TRUE(compare({9, 1, "b", false}, {0, 2, "a", false}) < 0);
  EXPECT_TRUE(compare({1, 2, "b", false}, {2, 2, "a", false}) < 0);
  EXPECT_TRUE(compare({1, 2, "a", false}, {1, 2, "b", false}) < 0);
}

}  // namespace
}  // namespace creto
