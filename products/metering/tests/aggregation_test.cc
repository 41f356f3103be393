#include "aggregation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace creto::metering {
namespace {

struct Event {
  EventId id;
  Instant time;
  Properties properties;
  UsageFact fact() const { return {id, time, "calls", &properties}; }
};

EventId id_of(std::uint8_t n) {
  ByteArray<16> bytes{};
  bytes[15] = n;
  return EventId::from_bytes(bytes);
}

std::vector<Event> sample() {
  std::vector<Event> events;
  for (std::uint8_t i = 0; i < 20; ++i) {
    events.push_back({id_of(i),
                      from_unix_ns(1'000 * (i / 2)),
                      {{"v", std::to_string((i * 7) % 11)}, {"who", std::string(1, static_cast<char>('a' + i % 3))}}});
  }
  return events;
}

Result<std::vector<Usage>> total(Metric metric, const std::vector<Event>& events, bool keep = false) {
  metric.event_type = "calls";
  Aggregator aggregator(std::move(metric), keep);
  for (const Event& event : events) CRETO_TRY(aggregator.add(event.fact()));
  return aggregator.finish();
}

TEST(Aggregation, DoesNotDependOnTheOrderOfArrival) {
  std::mt19937_64 random(11);
  for (const Aggregation kind :
       {Aggregation::count, Aggregation::sum, Aggregation::max, Aggregation::unique_count, Aggregation::latest}) {
    std::vector<Event> events = sample();
    const Metric metric{.event_type = "", .aggregation = kind, .property = "v"};
    const auto expected = total(metric, events, true).value();
    for (int i = 0; i < 20; ++i) {
      std::ranges::shuffle(events, random);
      const auto again = total(metric, events, true).value();
      EXPECT_EQ(again[0].units, expected[0].units);
      EXPECT_EQ(again[0].values, expected[0].values);
    }
  }
}

TEST(Aggregation, LatestGoesByTimeThenId) {
  const Metric metric{.event_type = "", .aggregation = Aggregation::latest, .property = "v"};
  EXPECT_EQ(total(metric, sample()).value()[0].units, Decimal((19 * 7) % 11));
}

TEST(Aggregation, OfNothingIsZero) {
  for (const Aggregation kind :
       {Aggregation::count, Aggregation::sum, Aggregation::max, Aggregation::unique_count, Aggregation::latest}) {
    const auto usage = total({.event_type = "", .aggregation = kind, .property = "v"}, {}).value();
    ASSERT_EQ(usage.size(), 1u);
    EXPECT_TRUE(usage[0].units.is_zero());
  }
}

TEST(Aggregation, MaxOfNegativesIsNegative) {
  std::vector<Event> events = {{id_of(1), {}, {{"v", "-3"}}}, {id_of(2), {}, {{"v", "-7"}}}};
  EXPECT_EQ(total({.event_type = "", .aggregation = Aggregation::max, .property = "v"}, events).value()[0].units,
            Decimal(-3));
}

TEST(Aggregation, GroupsByAProperty) {
  const auto usage = total({.event_type = "", .aggregation = Aggregation::count, .group_by = "who"}, sample()).value();
  ASSERT_EQ(usage.size(), 3u);
  EXPECT_EQ(usage[0].group, "a");
  EXPECT_EQ(usage[0].events + usage[1].events + usage[2].events, 20);
}

TEST(Aggregation, RefusesAPropertyThatIsNoNumber) {
  std::vector<Event> events = {{id_of(1), {}, {{"v", "NaN"}}}};
  EXPECT_FALSE(total({.event_type = "", .aggregation = Aggregation::sum, .property = "v"}, events));
  events[0].properties.clear();
  EXPECT_FALSE(total({.event_type = "", .aggregation = Aggregation::sum, .property = "v"}, events));
}

}  // namespace
}  // namespace creto::metering
