#include "creto/contracts/events.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "creto/common/json.h"

namespace creto::contracts {
namespace {

/// The part of JSON Schema that our schemas use; returns the path of the first violation.
std::string violation(const Json& schema, const Json& value, const std::string& path) {
  if (schema.contains("const") && value != schema["const"]) return path + ": const";
  if (schema.contains("enum") && std::ranges::find(schema["enum"], value) == schema["enum"].end())
    return path + ": enum";
  if (schema.contains("type")) {
    const std::string type = schema["type"];
    const bool fits = type == "object" ? value.is_object() : type == "array" ? value.is_array() : value.is_string();
    if (!fits) return path + ": type";
  }
  if (schema.contains("pattern") &&
      !std::regex_search(value.get<std::string>(), std::regex(schema["pattern"].get<std::string>())))
    return path + ": pattern";
  if (schema.contains("properties")) {
    for (const auto& [key, member] : value.items()) {
      if (!schema["properties"].contains(key)) return path + "." + key + ": unknown";
      if (auto inner = violation(schema["properties"][key], member, path + "." + key); !inner.empty()) return inner;
    }
    for (const Json& required : schema["required"])
      if (!value.contains(required.get<std::string>())) return path + "." + required.get<std::string>() + ": missing";
  }
  return {};
}

template <class Event>
void expect_round_trip_under_schema(const Event& event) {
  std::ifstream file(std::string(CRETO_SCHEMAS) + "/" + std::string(Event::event_type) + ".json");
  ASSERT_TRUE(file.good()) << Event::event_type;
  const Json schema = Json::parse(file);
  const std::string text = event.to_json().value();
  const Json json = Json::parse(text);
  EXPECT_EQ(violation(schema, json, std::string(Event::event_type)), "");
  const Result<Event> again = Event::from_json(text);
  ASSERT_TRUE(again) << again.error().to_string();
  EXPECT_EQ(again->to_json().value(), text);
  for (const auto& [key, member] : json.items()) {
    Json wrong_type = json;
    wrong_type[key] = Json::array({nullptr});
    EXPECT_FALSE(Event::from_json(wrong_type.dump())) << key;
    if (key != "approvers") {
      EXPECT_NE(violation(schema, wrong_type, ""), "") << key;
    }
    if (key == "cost" || key == "approvers" || key == "failure_reason" || key == "sandbox_id" || key == "properties" ||
        key == "arguments" || key == "response" || key == "replaces")
      continue;  // absent means empty
    Json missing = json;
    missing.erase(key);
    EXPECT_FALSE(Event::from_json(missing.dump())) << key;
  }
  Json extra = json;
  extra["surprise"] = 1;
  EXPECT_FALSE(Event::from_json(extra.dump()));
}

TEST(Events, RoundTripUnderTheirSchemas) {
  const Instant now = from_unix_ns(1);
  expect_round_trip_under_schema(RuntimeUsageEvent{"inference_tokens", "k1", R"({"model_id":"m"})",
                                                   Decimal::literal("300"),
                                                   Money{Decimal::literal("0.02"), Currency::usd()}, "key:k0"});
  expect_round_trip_under_schema(CostThresholdExceededEvent{"quota_breach",
                                                            "q1",
                                                            "evt",
                                                            "95",
                                                            "100",
                                                            "sandbox_allocated",
                                                            "month",
                                                            ThresholdAction::notify_only,
                                                            {"human:cfo@example.com"}});
  expect_round_trip_under_schema(CostThresholdExceededEvent{
      "cost_anomaly", "anomaly", "evt", "200", "30", "USD", "hour", ThresholdAction::notify_only, {}, "10", "0.9925"});
  expect_round_trip_under_schema(OversightDecisionEvent{RequestId::fresh(now), SandboxId::fresh(now),
                                                        ApprovalState::approved, "human:cfo@example.com", "verified",
                                                        "payments.pay", R"({"amount":"25000"})", "{}"});
  expect_round_trip_under_schema(SandboxLifecycleEvent{SandboxId::fresh(now), "terminated", "completed"});
  expect_round_trip_under_schema(
      DeliveryReceiptEvent{MessageId::fresh(now), Identity::service("x").value(), "read", ""});
  expect_round_trip_under_schema(
      OversightNotificationEvent{RequestId::fresh(now), "webhook", "human:cfo@example.com", "pay 25000", "due today"});
}

TEST(Events, RefuseNegativeUsage) {
  const auto event = RuntimeUsageEvent{"action", "k", "{}", Decimal::literal("-1"), std::nullopt};
  EXPECT_EQ(RuntimeUsageEvent::from_json(event.to_json().value()).error().message(),
            "runtime_usage.units: must not be negative");
}

TEST(Events, OnlyAVoidTakesAnotherOneOut) {
  RuntimeUsageEvent event{"void", "k", "{}", Decimal(1), {}, {}, "key:k0"};
  EXPECT_EQ(RuntimeUsageEvent::from_json(event.to_json().value())->voids, "key:k0");
  event.usage_type = "action";
  EXPECT_FALSE(RuntimeUsageEvent::from_json(event.to_json().value()));
  event.usage_type = "void";
  event.voids = "";
  EXPECT_FALSE(RuntimeUsageEvent::from_json(event.to_json().value()));
}

TEST(Words, AreRefusedWithTheListOfTheAllowedOnes) {
  EXPECT_EQ(billing_period_from_string("year").error().message(),
            "billing period `year`: must be one of `transaction`, `hour`, `day`, `month`, `lifetime`");
}

}  // namespace
}  // namespace creto::contracts
