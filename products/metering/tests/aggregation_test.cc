#include "billing/aggregation.h"

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

const Period thirty_days{from_unix_ns(0), from_unix_ns(0) + std::chrono::days(30)};

Result<std::vector<Usage>> total(Metric metric, const std::vector<Event>& events,
                                 ValuesWanted values = ValuesWanted::none, Period part = thirty_days) {
  metric.event_type = "calls";
  const PeriodDays days(thirty_days, TimeZone());
  Aggregator aggregator(std::make_shared<Metric>(std::move(metric)), values,
                        {part, thirty_days, days.before(part.end), &days});
  for (const Event& event : events) CRETO_TRY(aggregator.add(event.fact()));
  return aggregator.finish();
}

TEST(Aggregation, DoesNotDependOnTheOrderOfArrival) {
  std::mt19937_64 random(11);
  for (const Aggregation kind :
       {Aggregation::count, Aggregation::sum, Aggregation::max, Aggregation::unique_count, Aggregation::latest}) {
    std::vector<Event> events = sample();
    const Metric metric{.event_type = "", .aggregation = kind, .property = "v"};
    const auto expected = total(metric, events, ValuesWanted::in_order).value();
    for (int i = 0; i < 20; ++i) {
      std::ranges::shuffle(events, random);
      const auto again = total(metric, events, ValuesWanted::in_order).value();
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

Event on(std::uint8_t id, double day, Properties properties) {
  return {id_of(id), thirty_days.begin + Nanos(static_cast<std::int64_t>(day * 86'400e9)), std::move(properties)};
}
Decimal one(const Metric& metric, const std::vector<Event>& events, Period part = thirty_days) {
  return total(metric, events, ValuesWanted::none, part).value().at(0).units;
}

TEST(Aggregation, WeighsALevelByTime) {
  const Metric metric{.aggregation = Aggregation::weighted_sum, .property = "v"};
  const std::vector<Event> events = {on(1, 0, {{"v", "10"}}), on(2, 15, {{"v", "6"}}), on(3, 24, {{"v", "-16"}})};
  EXPECT_EQ(one(metric, events), Decimal::literal("9.8"));  // 10 * 24 + 6 * 9 over 30 days
  Metric carried = metric;
  carried.carried = true;
  EXPECT_EQ(one(carried, {on(1, -40, {{"v", "10"}})}), Decimal(10));
  EXPECT_EQ(one(metric, {on(1, -40, {{"v", "10"}})}), Decimal(0));
  EXPECT_EQ(one(metric, {on(1, 0, {{"v", "10"}})}, {thirty_days.begin, thirty_days.begin + std::chrono::days(15)}),
            Decimal(5));
}

TEST(Aggregation, TakesPercentilesByRank) {
  std::vector<Event> events;
  for (std::uint8_t i = 1; i <= 20; ++i) events.push_back(on(i, 1, {{"v", std::to_string((i * 7) % 20 + 1)}}));
  const auto percentile = [&](const char* p) {
    return one({.aggregation = Aggregation::percentile, .property = "v", .percentile = Decimal::literal(p)}, events);
  };
  EXPECT_EQ(percentile("50"), Decimal(10));
  EXPECT_EQ(percentile("95"), Decimal(19));
  EXPECT_EQ(percentile("95.1"), Decimal(20));
  EXPECT_EQ(percentile("0.1"), Decimal(1));
}

/// Many events of few numbers, as a period of them has.
std::vector<Event> many(std::size_t count) {
  std::mt19937_64 random(3);
  std::vector<Event> events;
  for (std::size_t i = 0; i < count; ++i) {
    events.push_back({id_of(static_cast<std::uint8_t>(i)),
                      from_unix_ns(static_cast<std::int64_t>(i)),
                      {{"v", std::to_string(static_cast<int>(random() % 100) - 20)}}});
  }
  return events;
}

TEST(Aggregation, KeepsNoEventOfWhatCanBeAddedUp) {
  const PeriodDays days(thirty_days, TimeZone());
  const auto kept = [&](Metric metric, ValuesWanted values) {
    metric.event_type = "calls";
    metric.property = "v";
    Aggregator aggregator(std::make_shared<Metric>(std::move(metric)), values,
                          {thirty_days, thirty_days, days.before(thirty_days.end), &days});
    for (const Event& event : many(20'000)) EXPECT_TRUE(aggregator.add(event.fact()));
    return aggregator.kept();
  };
  using enum Aggregation;
  for (const Aggregation kind : {count, sum, max, latest, weighted_sum})
    EXPECT_EQ(kept({.aggregation = kind}, ValuesWanted::none), 0u) << to_string(kind);
  EXPECT_EQ(kept({.aggregation = unique_count}, ValuesWanted::none), 100u);
  EXPECT_LE(kept({.aggregation = percentile, .percentile = Decimal(50)}, ValuesWanted::none), 100u + 1'024);
  EXPECT_LE(kept({.aggregation = sum}, ValuesWanted::counted), 100u + 1'024);
}

TEST(Aggregation, OfCountedNumbersIsThatOfThemAll) {
  const std::vector<Event> events = many(5'000);
  std::vector<int> numbers;
  for (const Event& event : events) numbers.push_back(std::stoi(event.properties.at("v")));
  std::ranges::sort(numbers);
  for (const std::size_t percent : {std::size_t{1}, std::size_t{50}, std::size_t{99}, std::size_t{100}}) {
    const Metric metric{.aggregation = Aggregation::percentile,
                        .property = "v",
                        .percentile = Decimal(static_cast<std::int64_t>(percent))};
    EXPECT_EQ(one(metric, events), Decimal(numbers[numbers.size() * percent / 100 - 1])) << percent;
  }
  const Metric sum{.aggregation = Aggregation::sum, .property = "v"};
  const auto counted = total(sum, events, ValuesWanted::counted).value()[0].counted_values;
  std::vector<int> unfolded;
  for (const auto& [value, count] : counted)
    unfolded.insert(unfolded.end(), static_cast<std::size_t>(count), static_cast<int>(value.to_integer().value()));
  EXPECT_EQ(unfolded, numbers);
}

TEST(Aggregation, EvaluatesAnExpressionPerEvent) {
  const Metric metric{.aggregation = Aggregation::sum, .expression = "ceil(ms / 1000) * gb"};
  EXPECT_EQ(one(metric, {on(1, 1, {{"ms", "1500"}, {"gb", "0.5"}}), on(2, 2, {{"ms", "1000"}, {"gb", "2"}})}),
            Decimal(3));
  EXPECT_FALSE(total(metric, {on(1, 1, {{"ms", "1500"}})}));
}

TEST(Aggregation, CarriesSeatsOverAndTakesThemOutAgain) {
  Metric seats{.aggregation = Aggregation::unique_count, .property = "user", .carried = true};
  const std::vector<Event> events = {
      on(1, -10, {{"user", "a"}}), on(2, -5, {{"user", "b"}}), on(3, -4, {{"user", "b"}, {"operation", "remove"}}),
      on(4, 3, {{"user", "c"}}),   on(5, 4, {{"user", "c"}}),  on(6, 9, {{"user", "z"}, {"operation", "remove"}})};
  EXPECT_EQ(one(seats, events), Decimal(2));
  seats.prorated = true;
  seats.rounding = UnitRounding::half_up;
  seats.places = 4;
  EXPECT_EQ(one(seats, events), Decimal::literal("1.9"));  // a whole, c from the fourth day on
}

}  // namespace
}  // namespace creto::metering
