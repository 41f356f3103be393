#include "billing/pricing.h"

#include <gtest/gtest.h>

#include <random>

namespace creto::metering {
namespace {

Decimal d(std::string_view text) { return Decimal::literal(text); }

Usage units(std::string_view text) {
  Usage usage;
  usage.units = d(text);
  return usage;
}

Usage values(std::initializer_list<std::string_view> texts) {
  Usage usage;
  for (const auto text : texts) {
    usage.values.push_back(d(text));
    usage.units = Decimal::add(usage.units, usage.values.back()).value();
    ++usage.events;
  }
  return usage;
}

std::string amount(const Price& price, const Usage& usage) { return exact_amount(price, usage).value().to_string(); }

const std::vector<Tier> tiers{{d("10"), d("10"), d("2")}, {d("20"), d("5"), d("3")}, {std::nullopt, d("1"), d("4")}};

TEST(Graduated, PricesEveryUnitInTheTierItLiesIn) {
  const Price price = GraduatedPrice{tiers};
  EXPECT_EQ(amount(price, units("0")), "2");
  EXPECT_EQ(amount(price, units("10")), "102");
  EXPECT_EQ(amount(price, units("10.5")), "107.5");
  EXPECT_EQ(amount(price, units("20")), "155");
  EXPECT_EQ(amount(price, units("21")), "160");
}

TEST(Volume, PricesAllUnitsByTheTierOfTheTotal) {
  const Price price = VolumePrice{tiers};
  EXPECT_EQ(amount(price, units("10")), "102");
  EXPECT_EQ(amount(price, units("11")), "58");
  EXPECT_EQ(amount(price, units("100")), "104");
}

TEST(Package, ChargesBegunPackagesOnly) {
  const Price price = PackagePrice{d("15"), d("10"), d("5")};
  EXPECT_EQ(amount(price, units("5")), "0");
  EXPECT_EQ(amount(price, units("5.0001")), "15");
  EXPECT_EQ(amount(price, units("15")), "15");
  EXPECT_EQ(amount(price, units("15.0000000000000000000001")), "30");
}

TEST(Package, DecidesExactlyWhereTheQuotientHasNoEnd) {
  const Price price = PackagePrice{d("1"), d("3"), d("0")};
  EXPECT_EQ(amount(price, units("9")), "3");
  EXPECT_EQ(amount(price, units("10")), "4");
}

TEST(Percentage, BoundsWhatOneEventPays) {
  PercentagePrice price{.rate = d("2.99"), .fixed = d("2"), .event_min = d("1.75"), .event_max = d("12")};
  EXPECT_EQ(amount(price, values({"10", "80", "10000"})), "18.691");
}

TEST(Percentage, OfCountedValuesIsThatOfEach) {
  const PercentagePrice price{.rate = d("2.99"), .fixed = d("2"), .event_min = d("1.75"), .event_max = d("12")};
  Usage counted;
  counted.counted_values = {{d("10"), 2}, {d("80"), 1}, {d("10000"), 3}};
  EXPECT_EQ(amount(price, counted), amount(price, values({"10", "10000", "80", "10", "10000", "10000"})));
  EXPECT_EQ(values_wanted(price), ValuesWanted::counted);
  EXPECT_EQ(values_wanted(PercentagePrice{.free_events = 1}), ValuesWanted::in_order);
  EXPECT_EQ(amount(DynamicPrice{d("0.5")}, counted), "15050");
}

TEST(Percentage, LeavesFreeWhatBothAllowancesLeaveFree) {
  PercentagePrice price{.rate = d("1.3"), .fixed = d("2"), .free_events = 3, .free_value = d("250")};
  EXPECT_EQ(amount(price, values({"50", "100", "250", "400"})), "11.15");
}

TEST(Fee, RoundsOnceHalfUpToTheCurrency) {
  const Charge charge{.id = "c", .price = StandardPrice{d("0.005")}};
  const Currency yen = Currency::parse("JPY").value();
  EXPECT_EQ(price_usage(charge, units("1"), Currency::usd())->amount, d("0.01"));
  EXPECT_EQ(price_usage(charge, units("3"), Currency::usd())->amount, d("0.02"));
  EXPECT_EQ(price_usage(charge, units("3"), yen)->amount, d("0"));
}

TEST(Fee, IsLoweredByFreeUnitsThenDiscountThenMaximum) {
  Charge charge{.id = "c", .price = StandardPrice{d("2")}, .free_units = d("10"), .discount_percent = d("25")};
  EXPECT_EQ(price_usage(charge, units("9"), Currency::usd())->amount, d("0"));
  EXPECT_EQ(price_usage(charge, units("30"), Currency::usd())->amount, d("30"));
  charge.maximum = d("20");
  const Fee fee = price_usage(charge, units("30"), Currency::usd()).value();
  EXPECT_EQ(fee.gross, d("40"));
  EXPECT_EQ(fee.amount, d("20"));
}

TEST(Graduated, PricesCorrectionsBelowZeroByTheFirstTier) {
  EXPECT_EQ(amount(GraduatedPrice{tiers}, units("-3")), "-28");
}

TEST(Fee, FailsRatherThanApproximate) {
  const Charge charge{.id = "c", .price = StandardPrice{d("0.1234567890123456789")}};
  EXPECT_FALSE(price_usage(charge, units("98765432109876543210987"), Currency::usd()));
}

TEST(Pricing, NeverFallsWithMoreUseUnlessByVolume) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 300; ++round) {
    std::vector<Tier> some;
    std::int64_t bound = 0;
    const auto count = random() % 4;
    for (std::uint64_t i = 0; i < count; ++i) {
      bound += 1 + static_cast<std::int64_t>(random() % 50);
      some.push_back({Decimal(bound), Decimal(static_cast<std::int64_t>(random() % 9)),
                      Decimal(static_cast<std::int64_t>(random() % 9))});
    }
    some.push_back({std::nullopt, Decimal(static_cast<std::int64_t>(random() % 9)),
                    Decimal(static_cast<std::int64_t>(random() % 9))});
    for (const Price& price : {Price(GraduatedPrice{some}), Price(GraduatedPercentagePrice{some}),
                               Price(PackagePrice{d("3"), d("7"), Decimal(bound)})}) {
      Decimal before;
      for (std::int64_t used = 0; used < 220; used += 1 + static_cast<std::int64_t>(random() % 7)) {
        Usage usage;
        usage.units = Decimal(used);
        const Decimal now = exact_amount(price, usage).value();
        EXPECT_GE(now, before);
        before = now;
      }
    }
  }
}

TEST(Plan, SurvivesItsOwnJson) {
  Plan plan;
  plan.id = "agent-standard";
  plan.name = "Agent standard";
  plan.base_fee = d("10");
  plan.charges.push_back({.id = "tokens",
                          .description = "Tokens",
                          .metric = {.event_type = "inference_tokens",
                                     .aggregation = Aggregation::sum,
                                     .property = "total_tokens",
                                     .match = {{"model_id", {"a", "b"}}},
                                     .ignore = {{{"provider", {"test"}}}},
                                     .group_by = "model_id",
                                     .divide_by = d("1000"),
                                     .rounding = UnitRounding::ceil,
                                     .places = 0},
                          .price = GraduatedPrice{tiers},
                          .minimum = d("1")});
  plan.charges.push_back(
      {.id = "pay",
       .description = "Payments",
       .metric = {.event_type = "action", .aggregation = Aggregation::sum, .property = "amount"},
       .price = PercentagePrice{.rate = d("0.5"), .fixed = d("0.1"), .free_events = 2, .event_max = d("9")},
       .minimum = {}});
  const std::string json = to_json(plan).value();
  EXPECT_EQ(to_json(plan_from_json(json).value()).value(), json);
}

TEST(Plan, SaysByWhichConventionItsTiersAreWritten) {
  const std::string ranges =
      R"({"id":"p","tiers":"ranges","charges":[{"id":"c","model":"graduated","metric":{"event_type":"x"},"price":{"tiers":[
        {"from":"0","to":"10","per_unit":"10","flat":"2"},{"from":"11","to":"20","per_unit":"5","flat":"3"},{"from":"21","per_unit":"1","flat":"4"}]}}]})";
  const Plan plan = plan_from_json(ranges).value();
  for (const char* used : {"0", "10", "11", "20", "21"}) {
    EXPECT_EQ(amount(plan.charges[0].price, units(used)), amount(GraduatedPrice{tiers}, units(used)));
  }
  const std::string json = to_json(plan).value();
  EXPECT_NE(json.find(R"("from":"11")"), std::string::npos);
  EXPECT_EQ(to_json(plan_from_json(json).value()).value(), json);
  std::string gap = ranges;
  gap.replace(gap.find("\"11\""), 4, "\"12\"");
  EXPECT_FALSE(plan_from_json(gap));
  std::string broken = ranges;
  broken.replace(broken.find("\"10\""), 4, "\"9.5\"");
  EXPECT_FALSE(plan_from_json(broken));
}

TEST(Plan, SurvivesItsOwnJsonWithEverythingInIt) {
  const std::string json =
      R"({"base_fee":"10","base_fee_in_advance":true,"charges":[{"description":"Seats","discount_percent":"5","id":"seats","in_advance":true,"maximum":"100","metric":{"aggregation":"unique_count","carried":true,"divide_by":"1","event_type":"seat","multiply_by":"1","places":0,"property":"user","prorated":true,"rounding":"none"},"minimum":"2","model":"standard","price":{"per_unit":"3"}},{"description":"p99","free_units":"7","id":"p99","metric":{"aggregation":"percentile","divide_by":"1","event_type":"call","expression":"ms + 1","multiply_by":"1","percentile":"99","places":0,"rounding":"none"},"minimum":"0","model":"standard","price":{"per_unit":"3"}}],"currency":"EUR","grace_days":3,"id":"p","interval":"quarterly","minimum_commitment":"50","name":"P","payment_days":14,"progressive_step":"5","progressive_thresholds":["10","20"],"schema_version":2,"taxes":[{"id":"vat","name":"VAT","rate":"19"}],"trial_days":14,"version":0})";
  const auto plan = plan_from_json(json);
  ASSERT_TRUE(plan) << plan.error().to_string();
  EXPECT_EQ(to_json(*plan).value(), json);
}

TEST(Plan, NamesWhatIsWrongByItsPath) {
  const auto refused = [](std::string_view text) {
    const auto plan = plan_from_json(text);
    return plan ? std::string("accepted") : plan.error().message();
  };
  EXPECT_NE(
      refused(
          R"({"id":"p","charges":[{"id":"c","model":"standard","metric":{"event_type":"x"},"price":{"per_unit":"-1"}}]})")
          .find("plan.charges[0].price.per_unit"),
      std::string::npos);
  EXPECT_NE(
      refused(
          R"({"id":"p","charges":[{"id":"c","model":"graduated","metric":{"event_type":"x"},"price":{"tiers":[{"up_to":"1"}]}}]})")
          .find("tiers[0].up_to"),
      std::string::npos);
  EXPECT_NE(refused(R"({"id":"p","surprise":1})").find("surprise"), std::string::npos);
  EXPECT_NE(refused(R"({"id":"p","version":9007199254740993})").find("version"), std::string::npos);
  EXPECT_NE(
      refused(
          R"({"id":"p","charges":[{"id":"c","model":"percentage","metric":{"event_type":"x"},"price":{"rate":"1"}}]})")
          .find("metric.property"),
      std::string::npos);
}

}  // namespace
}  // namespace creto::metering
