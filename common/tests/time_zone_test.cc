#include "creto/common/time_zone.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

namespace creto {
namespace {

using namespace std::chrono;
using namespace std::chrono_literals;

Instant at(std::string_view text) { return from_rfc3339(text).value(); }

/// A TZif file with these transitions (Unix second, index of the type), types (offset) and footer.
Bytes tzif(const std::vector<std::pair<std::int64_t, int>>& transitions, const std::vector<std::int32_t>& types,
           std::string_view footer) {
  Bytes bytes;
  const auto number = [&](std::int64_t value, int size) {
    for (int i = size - 1; i >= 0; --i) bytes.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
  };
  for (const int time_size : {4, 8}) {
    for (const char c : std::string_view("TZif2")) bytes.push_back(static_cast<std::uint8_t>(c));
    bytes.insert(bytes.end(), 15, 0);
    const auto count = time_size == 8 ? static_cast<std::int64_t>(transitions.size()) : 0;
    for (const std::int64_t n : {std::int64_t{0}, std::int64_t{0}, std::int64_t{0}, count,
                                 static_cast<std::int64_t>(types.size()), std::int64_t{1}}) {
      number(n, 4);
    }
    for (std::int64_t i = 0; i < count; ++i) number(transitions[static_cast<std::size_t>(i)].first, 8);
    for (std::int64_t i = 0; i < count; ++i) number(transitions[static_cast<std::size_t>(i)].second, 1);
    for (const std::int32_t offset : types) {
      number(offset, 4);
      number(0, 2);
    }
    bytes.push_back(0);
  }
  bytes.push_back('\n');
  for (const char c : footer) bytes.push_back(static_cast<std::uint8_t>(c));
  bytes.push_back('\n');
  return bytes;
}

TimeZone with_footer(std::string_view footer) { return TimeZone::parse("Test", tzif({}, {0}, footer)).value(); }
const TimeZone berlin = with_footer("CET-1CEST,M3.5.0,M10.5.0/3");

TEST(TimeZone, UtcIsThereWithoutADatabase) {
  const TimeZone utc;
  EXPECT_EQ(utc.name(), "UTC");
  EXPECT_EQ(utc, TimeZone::load("UTC").value());
  EXPECT_EQ(utc.offset_at(at("2026-07-01T00:00:00Z")), 0s);
  EXPECT_EQ(utc.day_begin(local_days(2024y / February / 29)), at("2024-02-29T00:00:00Z"));
}

TEST(TimeZone, SummerBeginsAndEndsWithTheSecond) {
  EXPECT_EQ(berlin.offset_at(at("2026-03-29T00:59:59.999Z")), 1h);
  EXPECT_EQ(berlin.offset_at(at("2026-03-29T01:00:00Z")), 2h);
  EXPECT_EQ(berlin.offset_at(at("2026-10-25T00:59:59Z")), 2h);
  EXPECT_EQ(berlin.offset_at(at("2026-10-25T01:00:00Z")), 1h);
}

TEST(TimeZone, DaysOfAChangeHave23And25Hours) {
  const auto length = [&](local_days day) { return berlin.day_begin(day + days(1)) - berlin.day_begin(day); };
  EXPECT_EQ(length(local_days(2026y / March / 28)), 24h);
  EXPECT_EQ(length(local_days(2026y / March / 29)), 23h);
  EXPECT_EQ(length(local_days(2026y / October / 25)), 25h);
  EXPECT_EQ(length(local_days(2024y / February / 29)), 24h);
}

TEST(TimeZone, ASkippedTimeIsTheMomentOfTheSkipAndARepeatedOneTheFirst) {
  const auto local = [](local_days day, Nanos time) { return TimeZone::LocalTime(day.time_since_epoch() + time); };
  EXPECT_EQ(berlin.instant(local(local_days(2026y / March / 29), 2h + 30min)), at("2026-03-29T01:00:00Z"));
  EXPECT_EQ(berlin.instant(local(local_days(2026y / March / 29), 3h)), at("2026-03-29T01:00:00Z"));
  EXPECT_EQ(berlin.instant(local(local_days(2026y / October / 25), 2h + 30min)), at("2026-10-25T00:30:00Z"));
}

TEST(TimeZone, ADayThatSkipsMidnightBeginsAfterTheGap) {
  // Santiago's clocks go from 23:59:59 to 01:00.
  const TimeZone santiago = with_footer("<-04>4<-03>,M9.1.6/24,M4.1.6/24");
  const local_days sunday(2026y / September / 6);
  EXPECT_EQ(santiago.day_begin(sunday), at("2026-09-06T04:00:00Z"));
  EXPECT_EQ(santiago.day_of(at("2026-09-06T03:59:59Z")), sunday - days(1));
  EXPECT_EQ(santiago.day_of(at("2026-09-06T04:00:00Z")), sunday);
}

TEST(TimeZone, ADayThatNeverWasBeginsWhereTheNextDoes) {
  const std::int64_t skip = unix_ns(at("2011-12-30T10:00:00Z")) / 1'000'000'000;
  const TimeZone apia = TimeZone::parse("Apia", tzif({{skip, 1}}, {-10 * 3600, 14 * 3600}, "<+14>-14")).value();
  EXPECT_EQ(apia.day_begin(local_days(2011y / December / 30)), at("2011-12-30T10:00:00Z"));
  EXPECT_EQ(apia.day_begin(local_days(2011y / December / 31)), at("2011-12-30T10:00:00Z"));
  EXPECT_EQ(apia.day_of(at("2011-12-30T09:59:59Z")), local_days(2011y / December / 29));
}

TEST(TimeZone, ReadsEveryFormOfAFooter) {
  EXPECT_EQ(with_footer("<+0545>-5:45").offset_at(at("2026-01-01T00:00:00Z")), 5h + 45min);
  // Dublin's winter is the exception, its summer the standard.
  const TimeZone dublin = with_footer("IST-1GMT0,M10.5.0,M3.5.0/1");
  EXPECT_EQ(dublin.offset_at(at("2026-01-01T00:00:00Z")), 0h);
  EXPECT_EQ(dublin.offset_at(at("2026-07-01T00:00:00Z")), 1h);
  const TimeZone julian = with_footer("AAA3BBB,J60/0,300/-1");
  EXPECT_EQ(julian.offset_at(at("2024-03-01T02:59:59Z")), -3h);  // day 60 is 1 March, also in a leap year
  EXPECT_EQ(julian.offset_at(at("2024-03-01T03:00:00Z")), -2h);
  EXPECT_EQ(julian.offset_at(at("2023-10-28T00:59:59Z")), -2h);  // the 301st day, an hour before it begins
  EXPECT_EQ(julian.offset_at(at("2023-10-28T01:00:00Z")), -3h);
  for (const char* wrong : {"X", "CET", "CET-1CEST", "CET-1CEST,M13.1.0,M10.5.0", "CET-25", "CET-1CEST,M3.5.0",
                            "CET-1CEST,M3.5.0,M10.5.0/3x", "CET-1CEST,J0,J1", "<CET-1"}) {
    EXPECT_FALSE(TimeZone::parse("Test", tzif({}, {0}, wrong))) << wrong;
  }
}

TEST(TimeZone, RefusesFilesThatAreNone) {
  const Bytes good = tzif({{0, 1}, {100, 0}}, {0, 3600}, "UTC0");
  ASSERT_TRUE(TimeZone::parse("Test", good));
  for (std::size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(TimeZone::parse("Test", BytesView(good).first(size))) << size;
  }
  EXPECT_FALSE(TimeZone::parse("Test", tzif({{100, 1}, {0, 0}}, {0, 3600}, "UTC0")));
  EXPECT_FALSE(TimeZone::parse("Test", tzif({{0, 2}}, {0, 3600}, "UTC0")));
  EXPECT_FALSE(TimeZone::parse("Test", tzif({}, {200'000}, "UTC0")));
  EXPECT_FALSE(TimeZone::parse("Test", Bytes((256 << 10) + 1)));
}

TEST(TimeZone, LoadsOnlyNamesOfTheDatabase) {
  for (const char* wrong : {"", "/etc/passwd", "../../../etc/passwd", "Europe/", "Mars/Olympus", "Europe/Ber lin"}) {
    const auto zone = TimeZone::load(wrong);
    ASSERT_FALSE(zone) << wrong;
    EXPECT_EQ(zone.error().kind(), ErrorKind::invalid_input);
  }
}

/// The C library reads the same files, by code of its own.
TEST(TimeZone, AgreesWithTheCLibraryInEveryZone) {
  const std::filesystem::path folder = "/usr/share/zoneinfo";
  if (!std::filesystem::exists(folder / "Europe/Berlin")) GTEST_SKIP() << "no time zone database here";
  const char* const before = std::getenv("TZ");
  const std::string kept = before != nullptr ? before : "";
  std::mt19937_64 random(1);
  std::uniform_int_distribution<std::int64_t> seconds_between(unix_ns(at("1900-01-01T00:00:00Z")) / 1'000'000'000,
                                                              unix_ns(at("2200-01-01T00:00:00Z")) / 1'000'000'000);
  std::size_t zones = 0;
  for (const char* area : {"Africa", "America", "Antarctica", "Asia", "Atlantic", "Australia", "Europe", "Pacific"}) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder / area)) {
      if (!entry.is_regular_file()) continue;
      const std::string name = std::filesystem::relative(entry.path(), folder).string();
      const auto zone = TimeZone::load(name);
      ASSERT_TRUE(zone) << zone.error().to_string();
      ++zones;
      setenv("TZ", name.c_str(), 1);
      tzset();
      for (int i = 0; i < 100; ++i) {
        const std::time_t second = seconds_between(random);
        std::tm fields{};
        localtime_r(&second, &fields);
        const Instant when = from_unix_ns(second * 1'000'000'000);
        ASSERT_EQ(zone->offset_at(when).count(), fields.tm_gmtoff) << name << " " << to_rfc3339(when);
        const Instant back = zone->instant(zone->local(when));
        ASSERT_EQ(zone->local(back), zone->local(when));
        ASSERT_LE(back, when);
        const Instant day = zone->day_begin(zone->day_of(when));
        ASSERT_LE(day, when);
        ASSERT_EQ(zone->day_of(day), zone->day_of(when));
        ASSERT_LT(zone->day_of(day - 1s), zone->day_of(when));
      }
    }
  }
  EXPECT_GT(zones, 100u);
  before != nullptr ? setenv("TZ", kept.c_str(), 1) : unsetenv("TZ");
  tzset();
}

}  // namespace
}  // namespace creto
