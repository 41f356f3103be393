#include "usage/usage_event.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>

#include "creto/common/json.h"
#include "creto/contracts/events.h"

namespace creto::metering {
namespace {

const Identity agent = Identity::agent(ByteArray<32>{7});

EventEnvelope envelope(std::string type, std::string properties, std::string units = "1") {
  const contracts::RuntimeUsageEvent usage{std::move(type), "key-1", std::move(properties), Decimal::literal(units),
                                           Money{Decimal::literal("0.25"), Currency::usd()}};
  return {"runtime_usage",
          EventId::fresh(from_unix_ns(1)),
          agent,
          {Identity::human("ada@example.org").value(), agent},
          {1, 1'800'000'000'000'000'000, "n", false},
          usage.to_json().value(),
          Signature{"ml-dsa-65", {1, 2, 3}}};
}
std::string text(const EventEnvelope& event) { return event.to_json().value(); }

const std::string tokens =
    R"({"input_tokens":100,"model_id":"m","output_tokens":"200","provider":"p","reservation_id":")" +
    ReservationId::fresh(from_unix_ns(1)).to_string() + R"("})";

/// The keywords of JSON Schema that the schemas of properties use.
bool valid(const Json& schema, const Json& value) {
  if (schema.contains("anyOf")) {
    return std::ranges::any_of(schema["anyOf"], [&](const Json& one) { return valid(one, value); });
  }
  if (schema.contains("type")) {
    const std::string type = schema["type"];
    if (type == "string" && !value.is_string()) return false;
    if (type == "integer" && !value.is_number_integer()) return false;
    if (type == "boolean" && !value.is_boolean()) return false;
    if (type == "object" && !value.is_object()) return false;
  }
  if (schema.contains("minimum") && value < schema["minimum"]) return false;
  if (schema.contains("minLength") && value.get<std::string>().size() < schema["minLength"]) return false;
  if (schema.contains("maxLength") && value.get<std::string>().size() > schema["maxLength"]) return false;
  if (schema.contains("pattern") &&
      !std::regex_search(value.get<std::string>(), std::regex(schema["pattern"].get<std::string>())))
    return false;
  if (!value.is_object()) return true;
  if (value.size() > schema.value("maxProperties", std::size_t{SIZE_MAX})) return false;
  for (const Json& required : schema.value("required", Json::array())) {
    if (!value.contains(required.get<std::string>())) return false;
  }
  for (const auto& [name, member] : value.items()) {
    if (schema.contains("propertyNames") && !valid(schema["propertyNames"], Json(name))) return false;
    const bool known = schema["properties"].contains(name);
    if (!valid(known ? schema["properties"][name] : schema["additionalProperties"], member)) return false;
  }
  return true;
}

TEST(UsageEvent, IsReadFromItsCanonicalForm) {
  const UsageEvent event = parse_usage_event(text(envelope("inference_tokens", tokens, "300"))).value();
  EXPECT_EQ(event.usage_type, "inference_tokens");
  EXPECT_EQ(event.idempotency_key, "key-1");
  EXPECT_EQ(event.units, Decimal(300));
  EXPECT_EQ(event.properties.at("input_tokens"), "100");
  EXPECT_TRUE(event.settles.has_value());
  EXPECT_TRUE(event.signed_bytes.starts_with("creto.event.v1\n"));
}

TEST(UsageEvent, IsRefusedInAnyOtherForm) {
  const std::string good = text(envelope("inference_tokens", tokens));
  EXPECT_FALSE(parse_usage_event(" " + good));
  EXPECT_FALSE(parse_usage_event(good + "\n"));
  EXPECT_FALSE(parse_usage_event(Json::parse(good).dump(1)));
  EXPECT_FALSE(parse_usage_event(""));
  EXPECT_FALSE(parse_usage_event(std::string(event_bytes_max + 1, ' ')));
  for (std::size_t i = 0; i < good.size(); i += 7) EXPECT_FALSE(parse_usage_event(good.substr(0, i)));
}

TEST(UsageEvent, NamesTheMemberThatIsWrong) {
  const auto refused = [](std::string type, std::string properties) {
    const auto event = parse_usage_event(text(envelope(std::move(type), std::move(properties))));
    return event ? std::string("accepted") : event.error().code() + " " + event.error().message();
  };
  EXPECT_NE(
      refused("network_egress", R"({"destination":"x","sandbox_id":"sb"})").find("MT-400 properties.bytes_transferred"),
      std::string::npos);
  EXPECT_NE(refused("network_egress", R"({"bytes_transferred":"-1","destination":"x","sandbox_id":"sb"})")
                .find("bytes_transferred"),
            std::string::npos);
  EXPECT_NE(refused("network_egress", R"({"bytes_transferred":"NaN","destination":"x","sandbox_id":"sb"})")
                .find("bytes_transferred"),
            std::string::npos);
  EXPECT_NE(refused("action", R"({"action":"Pay Now"})").find("properties.action"), std::string::npos);
  EXPECT_NE(refused("action", R"({"action":"payments.pay","nested":{"a":1}})").find("properties.nested"),
            std::string::npos);
  EXPECT_NE(refused("action", R"({"action":"payments.pay","half":0.5})").find("properties.half"), std::string::npos);
  EXPECT_NE(refused("action", R"({"action":"payments.pay","reservation_id":"res-1"})"), "accepted");
}

TEST(UsageEvent, OfAnotherAgentThanItsChainIsRefused) {
  EventEnvelope event = envelope("inference_tokens", tokens);
  event.delegation_chain.pop_back();
  EXPECT_FALSE(parse_usage_event(text(event)));
}

TEST(UsageEvent, AgreesWithTheJsonSchemas) {
  const std::vector<std::string> values = {R"("5")", "-5", R"("")", "true", R"("1.5")", R"("1e999")"};
  std::size_t compared = 0;
  for (const auto& file : std::filesystem::directory_iterator(std::string(CRETO_SCHEMAS) + "/usage")) {
    const std::string type = file.path().stem();
    if (type.starts_with("message_") || type.ends_with("_created")) continue;
    std::ifstream stream(file.path());
    const Json schema = Json::parse(stream);
    Json good = Json::object();
    for (const Json& name : schema["required"]) good[name.get<std::string>()] = "5";
    ASSERT_TRUE(valid(schema, good)) << type;
    EXPECT_TRUE(parse_usage_event(text(envelope(type, good.dump())))) << type;
    for (const auto& [name, member] : schema["properties"].items()) {
      if (name == "action" || name == "reservation_id") continue;  // further rules than a schema says
      for (const std::string& value : values) {
        Json changed = good;
        changed[name] = Json::parse(value);
        EXPECT_EQ(parse_usage_event(text(envelope(type, changed.dump()))).has_value(), valid(schema, changed))
            << type << " " << changed.dump();
        ++compared;
      }
      Json missing = good;
      missing.erase(name);
      EXPECT_EQ(parse_usage_event(text(envelope(type, missing.dump()))).has_value(), valid(schema, missing))
          << type << " without " << name;
    }
  }
  EXPECT_GT(compared, 100u);
}

TEST(MessageUsage, IsReadFromItsPayload) {
  const std::string payload = message_usage_payload("message_sent", "msg-1", 512, 1, "normal").value();
  const auto event =
      usage_event_of({"message_usage", EventId::fresh(from_unix_ns(1)), agent, {}, {1, 1, "n", false}, payload, {}});
  ASSERT_TRUE(event) << event.error().to_string();
  EXPECT_EQ(event->usage_type, "message_sent");
  EXPECT_EQ(event->units, Decimal(1));
}

TEST(QuotaRaise, ComesFromTheApproversAnswer) {
  const auto raise = quota_raise_of("quota.raise", R"({"threshold_id":"q1","limit":"3"})", R"({"new_limit":"5"})");
  ASSERT_TRUE(raise);
  EXPECT_EQ(raise->quota_id, "q1");
  EXPECT_EQ(raise->new_limit, 5);
  EXPECT_FALSE(quota_raise_of("quota.raise", R"({"threshold_id":"q1","limit":"3"})", "{}"));
  EXPECT_FALSE(quota_raise_of("cost.continue", R"({"threshold_id":"q1"})", R"({"new_limit":"5"})"));
  EXPECT_FALSE(quota_raise_of("quota.raise", "not json", R"({"new_limit":"5"})"));
  EXPECT_FALSE(quota_raise_of("quota.raise", R"({"threshold_id":"q1"})", R"({"new_limit":"-5"})"));
  EXPECT_FALSE(quota_raise_of("quota.raise", R"({"threshold_id":"q1"})", R"({"new_limit":"1.5"})"));
}

}  // namespace
}  // namespace creto::metering
