#include "billing/rating.h"

#include <gtest/gtest.h>

#include <random>

#include "billing/invoicing.h"

namespace creto::metering {
namespace {

using namespace std::chrono_literals;

Decimal d(std::string_view text) { return Decimal::literal(text); }
Instant at(std::string_view text) { return from_rfc3339(text).value(); }
TimeZone zone(const char* name) { return TimeZone::load(name).value(); }
bool has_zones() { return TimeZone::load("Europe/Berlin").has_value(); }

std::string text(Period period) { return to_rfc3339(period.begin) + " " + to_rfc3339(period.end); }
std::string period(Interval interval, const char* anchor, const char* when, BillingTime time = BillingTime::anniversary,
                   TimeZone in = {}) {
  return text(period_at({interval, time, at(anchor), std::move(in)}, at(when)));
}

TEST(BillingPeriod, FollowsTheCalendar) {
  const auto calendar = [](Interval interval, const char* when) {
    return period(interval, "2020-02-29T10:00:00Z", when, BillingTime::calendar);
  };
  EXPECT_EQ(calendar(Interval::weekly, "2026-11-29T10:00:00Z"), "2026-11-23T00:00:00Z 2026-11-30T00:00:00Z");
  EXPECT_EQ(calendar(Interval::monthly, "2024-02-29T10:00:00Z"), "2024-02-01T00:00:00Z 2024-03-01T00:00:00Z");
  EXPECT_EQ(calendar(Interval::quarterly, "2026-06-30T23:59:59Z"), "2026-04-01T00:00:00Z 2026-07-01T00:00:00Z");
  EXPECT_EQ(calendar(Interval::yearly, "2026-01-01T00:00:00Z"), "2026-01-01T00:00:00Z 2027-01-01T00:00:00Z");
}

TEST(BillingPeriod, CountsFromTheFirstDayAndClampsToShortMonths) {
  EXPECT_EQ(period(Interval::monthly, "2024-01-31T15:00:00Z", "2024-02-10T00:00:00Z"),
            "2024-01-31T00:00:00Z 2024-02-29T00:00:00Z");
  EXPECT_EQ(period(Interval::monthly, "2024-01-31T15:00:00Z", "2024-02-29T00:00:00Z"),
            "2024-02-29T00:00:00Z 2024-03-31T00:00:00Z");
  EXPECT_EQ(period(Interval::monthly, "2024-01-31T15:00:00Z", "2024-04-30T12:00:00Z"),
            "2024-04-30T00:00:00Z 2024-05-31T00:00:00Z");
  EXPECT_EQ(period(Interval::yearly, "2024-02-29T15:00:00Z", "2026-01-10T00:00:00Z"),
            "2025-02-28T00:00:00Z 2026-02-28T00:00:00Z");
  EXPECT_EQ(period(Interval::yearly, "2024-02-29T15:00:00Z", "2028-03-01T00:00:00Z"),
            "2028-02-29T00:00:00Z 2029-02-28T00:00:00Z");
  EXPECT_EQ(period(Interval::weekly, "2026-11-25T15:00:00Z", "2026-12-01T12:00:00Z"),
            "2026-11-25T00:00:00Z 2026-12-02T00:00:00Z");
  EXPECT_EQ(period(Interval::quarterly, "2025-11-30T15:00:00Z", "2026-02-27T12:00:00Z"),
            "2025-11-30T00:00:00Z 2026-02-28T00:00:00Z");
}

TEST(BillingPeriod, CoversTimeWithoutGapsInAnyZone) {
  if (!has_zones()) GTEST_SKIP() << "no time zone database here";
  std::mt19937_64 random(3);
  for (const char* name : {"UTC", "Europe/Berlin", "America/Santiago", "Pacific/Apia", "Asia/Kathmandu"}) {
    for (const Interval interval : {Interval::weekly, Interval::monthly, Interval::quarterly, Interval::yearly}) {
      for (const BillingTime time : {BillingTime::calendar, BillingTime::anniversary}) {
        const Cycle cycle{interval, time, at("2010-01-01T00:00:00Z") + std::chrono::hours(random() % 17'520),
                          zone(name)};
        Period current = period_at(cycle, cycle.anchor);
        for (int i = 0; i < 120; ++i) {
          ASSERT_LT(current.begin, current.end);
          const Period next = period_at(cycle, current.end);
          ASSERT_EQ(next.begin, current.end) << name << " " << text(next);
          ASSERT_EQ(period_at(cycle, current.end - Nanos(1)), current);
          current = next;
        }
      }
    }
  }
}

TEST(BillingPeriod, DaysAreTheAccountsDays) {
  if (!has_zones()) GTEST_SKIP() << "no time zone database here";
  const TimeZone berlin = zone("Europe/Berlin");
  // The month in which summer begins has an hour less and as many days.
  const Period march = period_at({Interval::monthly, BillingTime::calendar, {}, berlin}, at("2026-03-15T00:00:00Z"));
  EXPECT_EQ(march.end - march.begin, 31 * 24h - 1h);
  const PeriodDays days(march, berlin);
  EXPECT_EQ(days.total(), 31);
  EXPECT_EQ(days.before(at("2026-03-29T22:30:00Z")), 29);  // half past midnight of the 30th
  EXPECT_EQ(days.through(at("2026-03-29T22:00:00Z")), 29);
  EXPECT_EQ(days.through(at("2026-03-29T22:30:00Z")), 30);
}

Plan plan_of(const char* base_fee) {
  Plan plan;
  plan.id = "p";
  plan.name = "P";
  plan.base_fee = d(base_fee);
  return plan;
}
Charge seats() {
  return {.id = "seats",
          .description = "Seats",
          .metric = {.event_type = "seat",
                     .aggregation = Aggregation::sum,
                     .property = "v",
                     .carried = true,
                     .prorated = true},
          .price = StandardPrice{d("7")}};
}
const Period may{at("2026-05-01T00:00:00Z"), at("2026-06-01T00:00:00Z")};

Decimal total(const std::vector<InvoiceLine>& lines) {
  Decimal sum;
  for (const InvoiceLine& line : lines) sum = Decimal::add(sum, line.amount).value();
  return sum;
}
Decimal exact_total(const std::vector<InvoiceLine>& lines) {
  Decimal sum;
  for (const InvoiceLine& line : lines) sum = Decimal::add(sum, line.exact).value();
  return sum;
}

/// However a period is cut into phases of the same plan, the parts come to the whole.
TEST(Rating, ProrationSumsToTheWhole) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 200; ++round) {
    Plan plan = plan_of("100");
    plan.charges = {seats()};
    plan.minimum_commitment = d("31");
    RatedPeriod rated{.full = may, .phases = {}, .subscribed_at = may.begin};
    Instant from = may.begin;
    while (from < may.end) {
      const Instant until = std::min(may.end, from + std::chrono::minutes(1 + random() % 20'000));
      rated.phases.push_back({std::make_shared<Plan>(plan), Decimal(1), {from, until}});
      from = until;
    }
    const std::size_t phases = rated.phases.size();
    Rating rating(std::move(rated));
    const Properties ten{{"v", "10"}};
    ASSERT_TRUE(rating.add({EventId::from_bytes({1}), may.begin, "seat", &ten}));
    const auto lines = rating.finish().value();
    const Decimal off = Decimal::subtract(exact_total(lines), d("170")).value();
    EXPECT_LT(off.is_negative() ? off.negated() : off, d("0.000000000000000000000001"));
    // Each fee is rounded once: by less than a cent each.
    const Decimal rounding = Decimal::subtract(total(lines), d("170")).value();
    EXPECT_LE(rounding.is_negative() ? rounding.negated() : rounding,
              Decimal::multiply(d("0.01"), Decimal(static_cast<std::int64_t>(2 * phases))).value());
  }
}

TEST(Rating, InAdvanceAndInArrearsCostTheSame) {
  std::mt19937_64 random(6);
  for (int round = 0; round < 100; ++round) {
    const Instant started = may.begin + std::chrono::minutes(random() % 20'000);
    const Instant changed = started + std::chrono::minutes(1 + random() % 10'000);
    const Instant ended = changed + std::chrono::minutes(1 + random() % 10'000);
    std::vector<Decimal> totals;
    for (const bool in_advance : {false, true}) {
      const auto phase = [&](const char* fee, Period when) {
        Plan plan = plan_of(fee);
        plan.base_fee_in_advance = in_advance;
        plan.trial_days = static_cast<int>(round % 5);
        return Phase{std::make_shared<Plan>(plan), Decimal(2), when};
      };
      const std::vector<Phase> phases = {phase("31", {started, changed}), phase("62", {changed, ended})};
      Rating rating({.full = may, .phases = phases, .ends = true, .subscribed_at = started});
      auto lines = rating.finish().value();
      const auto opening = base_fee_in_advance(phases[0], may, started, TimeZone()).value();
      lines.insert(lines.end(), opening.begin(), opening.end());
      totals.push_back(total(lines));
    }
    EXPECT_EQ(totals[0], totals[1]);
  }
}

TEST(Rating, ATrialIsFreeOfBaseFeeOnly) {
  Plan plan = plan_of("31");
  plan.trial_days = 10;
  plan.charges = {seats()};
  Rating rating({.full = may, .phases = {{std::make_shared<Plan>(plan), Decimal(1), may}}, .subscribed_at = may.begin});
  const Properties one{{"v", "1"}};
  ASSERT_TRUE(rating.add({EventId::from_bytes({1}), may.begin, "seat", &one}));
  const auto lines = rating.finish().value();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].amount, d("21"));
  EXPECT_EQ(lines[1].amount, d("7"));
}

TEST(Rating, FeesOfOnePhaseKnowNothingOfAnother) {
  Plan cheap = plan_of("0");
  cheap.charges = {{.id = "c", .description = "C", .metric = {.event_type = "x"}, .price = StandardPrice{d("1")}}};
  Plan dear = cheap;
  dear.charges[0].price = StandardPrice{d("5")};
  const Instant changed = at("2026-05-10T12:00:00Z");
  Rating rating({.full = may,
                 .phases = {{std::make_shared<Plan>(cheap), Decimal(1), {may.begin, changed}},
                            {std::make_shared<Plan>(dear), Decimal(1), {changed, may.end}}},
                 .subscribed_at = may.begin});
  const Properties none;
  for (std::uint8_t i = 0; i < 10; ++i) {
    ASSERT_TRUE(rating.add({EventId::from_bytes({i}), changed - 7s + std::chrono::seconds(i), "x", &none}));
  }
  EXPECT_EQ(total(*rating.finish()), d("22"));  // 7 * 1 + 3 * 5
}

TEST(Rating, AnAdjustmentIsTheDifferenceOfTwoRatings) {
  const auto line = [](LineKind kind, const char* charge, const char* model, const char* amount) {
    return InvoiceLine{.kind = kind,
                       .charge = charge,
                       .model = model,
                       .period = may,
                       .units = d(amount),
                       .exact = d(amount),
                       .amount = d(amount)};
  };
  const std::vector<InvoiceLine> before = {line(LineKind::usage, "a", "standard", "10"),
                                           line(LineKind::minimum, "a", "minimum", "5"),
                                           line(LineKind::adjustment, "a", "standard", "2")};
  const std::vector<InvoiceLine> now = {line(LineKind::usage, "a", "standard", "14"),
                                        line(LineKind::minimum, "a", "minimum", "1"),
                                        line(LineKind::usage, "b", "standard", "3")};
  const auto changed = adjustments(before, now).value();
  ASSERT_EQ(changed.size(), 3u);
  EXPECT_EQ(changed[0].amount, d("2"));
  EXPECT_EQ(changed[1].amount, d("-4"));
  EXPECT_EQ(changed[2].amount, d("3"));
  for (const InvoiceLine& one : changed) EXPECT_EQ(one.kind, LineKind::adjustment);
  EXPECT_TRUE(adjustments(now, now)->empty());
}

TEST(Overrides, ChangeWhatTheyNameAndNothingElse) {
  Plan plan = plan_of("10");
  plan.charges = {seats()};
  const Plan own = with_overrides(plan, R"({"base_fee":"7","charges":{"seats":{"price":{"per_unit":"6"}}}})").value();
  EXPECT_EQ(own.base_fee, d("7"));
  EXPECT_EQ(std::get<StandardPrice>(own.charges[0].price).per_unit, d("6"));
  EXPECT_TRUE(own.charges[0].metric.carried);
  for (const char* wrong : {R"({"id":"q"})", R"({"currency":"EUR"})", R"({"charges":{"none":{}}})", R"([])",
                            R"({"base_fee":"-1"})", R"({"surprise":1})", R"({"charges":[]})"}) {
    EXPECT_FALSE(with_overrides(plan, wrong)) << wrong;
  }
}

TEST(Thresholds, AFarJumpIsBounded) {
  const std::vector<Decimal> one = {d("10")};
  EXPECT_EQ(thresholds_crossed(one, d("0.01"), d("5"), d("1000000000"))->size(), 1'000u);
  EXPECT_EQ(thresholds_crossed(one, d("5"), d("15"), d("20")).value(), std::vector<Decimal>{d("20")});
  EXPECT_TRUE(thresholds_crossed({}, d("5"), d("6"), d("9"))->empty());
}

TEST(Expression, ReadsArithmetic) {
  const Properties properties{{"a", "7"}, {"b.c", "-2.5"}, {"x-y", "4"}};
  const auto value = [&](const char* text) {
    const auto expression = Expression::parse(text);
    if (!expression) return std::string("wrong");
    const auto result = expression->evaluate([&](std::string_view name) -> const std::string* {
      const auto found = properties.find(name);
      return found == properties.end() ? nullptr : &found->second;
    });
    return result ? result->to_string() : std::string("failed");
  };
  EXPECT_EQ(value("1 + 2 * 3 - 4"), "3");
  EXPECT_EQ(value("-(a + b.c) * 2"), "-9");
  EXPECT_EQ(value("a / 2 / 7"), "0.5");
  EXPECT_EQ(value("max(a, \"x-y\") + min(1, 2)"), "8");
  EXPECT_EQ(value("ceil(b.c) + floor(b.c) + abs(b.c) + round(2.345, 2)"), "-0.15");
  EXPECT_EQ(value("a / 0"), "failed");
  EXPECT_EQ(value("missing"), "failed");
  for (const char* wrong : {"", "1 +", "(1", "1)", "1..2", "sqrt(2)", "max(1)", "a b", "\"\"", "--1", "A"}) {
    EXPECT_EQ(value(wrong), "wrong") << wrong;
  }
  EXPECT_FALSE(Expression::parse(std::string(200, '(') + "1" + std::string(200, ')')));
  EXPECT_FALSE(Expression::parse(std::string(600, '1')));
}

}  // namespace
}  // namespace creto::metering
