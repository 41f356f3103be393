// What tokens of models cost, from the table that gateways share.

#include "billing/price_table.h"

#include <gtest/gtest.h>

namespace creto::metering {
namespace {

Decimal d(std::string_view text) { return Decimal::literal(text); }
Instant at(std::string_view text) { return from_rfc3339(text).value(); }

constexpr std::string_view table = R"({
  "sample_spec": {"input_cost_per_token": 0.0, "mode": "one of: chat, embedding"},
  "m-large": {"litellm_provider": "p", "mode": "chat", "max_tokens": 8192, "input_cost_per_token": 3e-06,
    "output_cost_per_token": 1.5e-05, "cache_read_input_token_cost": 3e-07, "cache_creation_input_token_cost": 3.75e-06,
    "output_cost_per_reasoning_token": 2e-05, "input_cost_per_token_above_200k_tokens": 6e-06,
    "output_cost_per_token_above_200k_tokens": 2.25e-05, "cache_read_input_token_cost_above_200k_tokens": 6e-07,
    "cache_creation_input_token_cost_above_1hr": 6e-06, "input_cost_per_token_priority": 1,
    "input_cost_per_token_batches": 1.5e-06, "output_cost_per_token_batches": 7.5e-06, "supports_vision": true},
  "p/m-small": {"litellm_provider": "p", "input_cost_per_token": 0.00000015, "output_cost_per_token": "0.0000006"},
  "painter": {"litellm_provider": "p", "output_cost_per_image": 0.04}
})";

PriceTable prices(std::string_view text = table) {
  return PriceTable(import_model_prices(text, at("2026-01-01T00:00:00Z")).value().prices);
}
std::string cost(const PriceTable& all, std::vector<PropertyView> properties,
                 std::string_view when = "2026-06-01T00:00:00Z", std::string_view type = "inference_tokens") {
  RecordView record{.bytes = {}, .agent = "service:a", .type = type, .key = "k"};
  record.time = at(when);
  record.properties = properties;
  const auto found = all.cost_of(record);
  if (!found) return found.error().message();
  return *found ? (*found)->amount.to_string() : "none";
}
std::string error_of(std::string_view text) {
  const auto imported = import_model_prices(text, at("2026-01-01T00:00:00Z"));
  return imported ? "taken" : imported.error().code() + " " + imported.error().message();
}

TEST(ModelPrices, AreReadFromThePublicTable) {
  const ImportedPrices imported = import_model_prices(table, at("2026-01-01T00:00:00Z")).value();
  EXPECT_EQ(imported.left_out, 1u);
  ASSERT_EQ(imported.prices.size(), 2u);
  const ModelPrice& large = imported.prices[0];
  EXPECT_EQ(large.model, "m-large");
  EXPECT_EQ(large.prices.input, d("0.000003"));
  EXPECT_EQ(large.prices.cache_write, d("0.00000375"));
  EXPECT_EQ(large.prices.reasoning, d("0.00002"));
  ASSERT_EQ(large.above.size(), 1u);
  EXPECT_EQ(large.above[0].tokens, 200'000);
  EXPECT_EQ(large.above[0].prices.cache_read, d("0.0000006"));
  EXPECT_EQ(large.above[0].prices.cache_write, std::nullopt);
  EXPECT_EQ(large.batch.output, d("0.0000075"));
  for (const ModelPrice& one : imported.prices) EXPECT_EQ(model_price_from_json(to_json(one).value()).value(), one);
}

TEST(ModelPrices, GiveTheExactCostOfAUse) {
  const PriceTable all = prices();
  EXPECT_EQ(cost(all, {{"model_id", "m-large"}, {"input_tokens", "1000"}, {"output_tokens", "200"}}), "0.006");
  // 300 read from the cache, 100 written to it, 50 of the output were reasoning.
  EXPECT_EQ(cost(all, {{"model_id", "m-large"},
                       {"input_tokens", "1000"},
                       {"cached_tokens", "300"},
                       {"cache_write_tokens", "100"},
                       {"output_tokens", "200"},
                       {"reasoning_tokens", "50"}}),
            "0.005515");
  EXPECT_EQ(cost(all, {{"model_id", "m-large"}, {"input_tokens", "200000"}, {"output_tokens", "1"}}), "0.600015");
  EXPECT_EQ(cost(all, {{"model_id", "m-large"}, {"input_tokens", "200001"}, {"output_tokens", "1"}}), "1.2000285");
  EXPECT_EQ(cost(all, {{"model_id", "m-large"}, {"input_tokens", "1000"}, {"output_tokens", "200"}, {"batch", "true"}}),
            "0.003");
  EXPECT_EQ(cost(all, {{"model_id", "m-small"}, {"provider", "p"}, {"input_tokens", "7"}, {"output_tokens", "1"}}),
            "0.00000165");
}

TEST(ModelPrices, AreFoundWhicheverWayAProviderCountsWhatWasCached) {
  const PriceTable all(import_model_prices(
                           R"({"m":{"input_cost_per_token":10,"cache_read_input_token_cost":1,"output_cost_per_token":5,
                               "input_cost_per_token_above_1k_tokens":20}})",
                           at("2026-01-01T00:00:00Z"))
                           .value()
                           .prices);
  EXPECT_EQ(cost(all, {{"model_id", "m"}, {"input_tokens", "30"}, {"cached_tokens", "20"}}), "120") << "within";
  EXPECT_EQ(cost(all, {{"model_id", "m"}, {"input_tokens", "10"}, {"cached_tokens", "20"}}), "120") << "beside";
  EXPECT_EQ(cost(all, {{"model_id", "m"}, {"output_tokens", "1"}, {"reasoning_tokens", "2"}}), "15");
  EXPECT_EQ(cost(all, {{"model_id", "m"}, {"input_tokens", "1"}, {"cached_tokens", "1000"}}), "1020")
      << "all that is read counts for the size";
}

TEST(ModelPrices, OfAModelWhoseProviderIsNotKnownYetAreTheDearestThereIs) {
  const PriceTable all(
      import_model_prices(
          R"({"p/m":{"input_cost_per_token":1},"q/m":{"input_cost_per_token":3},"q/n":{"input_cost_per_token":9}})",
          at("2026-01-01T00:00:00Z"))
          .value()
          .prices);
  RecordView record{
      .bytes = {}, .agent = {}, .type = "inference_tokens", .key = {}, .time = at("2026-06-01T00:00:00Z")};
  std::vector<PropertyView> properties{{"model_id", "m"}, {"input_tokens", "2"}};
  record.properties = properties;
  EXPECT_EQ(all.cost_of(record).value(), std::nullopt);
  EXPECT_EQ(all.highest_cost_of(record).value()->amount, Decimal(6));
  properties.emplace_back("provider", "p");
  record.properties = properties;
  EXPECT_EQ(all.highest_cost_of(record).value()->amount, Decimal(2));
}

TEST(ModelPrices, AreThoseOfTheTimeOfUse) {
  const ImportedPrices first =
      import_model_prices(R"({"m":{"input_cost_per_token":2}})", at("2026-01-01T00:00:00Z")).value();
  const ImportedPrices second =
      import_model_prices(R"({"m":{"input_cost_per_token":1}})", at("2026-07-01T00:00:00Z")).value();
  const PriceTable all({second.prices[0], first.prices[0]});
  const std::vector<PropertyView> one{{"model_id", "m"}, {"input_tokens", "1"}, {"output_tokens", "9"}};
  EXPECT_EQ(cost(all, one, "2025-12-31T23:59:59Z"), "none");
  EXPECT_EQ(cost(all, one, "2026-06-30T23:59:59Z"), "2");
  EXPECT_EQ(cost(all, one, "2026-07-01T00:00:00Z"), "1");
  EXPECT_EQ(cost(all, one, "2026-07-01T00:00:00Z", "tokens"), "none");
  EXPECT_EQ(cost(all, {{"model_id", "other"}}), "none");
}

TEST(ModelPrices, ThatCannotBeAreRefused) {
  EXPECT_EQ(error_of("[]"), "MT-400 prices: must be an object by model");
  EXPECT_EQ(error_of(R"({"m":1})"), "MT-400 prices.m: must be an object");
  EXPECT_EQ(error_of(R"({"m":{"input_cost_per_token":-1}})"),
            "MT-400 prices.m.input_cost_per_token: must be 0 to 1000000");
  EXPECT_EQ(error_of(R"({"m":{"input_cost_per_token":1e300}})"),
            "MT-400 prices.m.input_cost_per_token: must be a decimal number");
  EXPECT_EQ(error_of(R"({"m":{"input_cost_per_token":[1]}})"),
            "MT-400 prices.m.input_cost_per_token: must be a number");
  EXPECT_NE(error_of("{").find("line"), std::string::npos);
  const PriceTable all = prices();
  EXPECT_EQ(cost(all, {{"model_id", "m-large"}, {"input_tokens", "1.5"}}),
            "properties.input_tokens: must be a whole number below 10^17 for its price");
}

}  // namespace
}  // namespace creto::metering
