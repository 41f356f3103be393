#include "creto/common/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "creto/common/event.h"

namespace creto {
namespace {

std::string canonical(std::string_view text) { return canonical_json(parse_json(text).value()).value(); }

TEST(CanonicalJson, SortsByUtf16AndWritesNumbersAsEcmaScriptDoes) {
  EXPECT_EQ(canonical(R"({"b":1,"a":[true,null,"\u20ac"]})"), "{\"a\":[true,null,\"\xE2\x82\xAC\"],\"b\":1}");
  EXPECT_EQ(canonical(R"({"\ufb33":1,"\ud83d\ude02":2})"), "{\"\xF0\x9F\x98\x82\":2,\"\xEF\xAC\xB3\":1}");
  EXPECT_EQ(canonical("[1e30,4.50,0.002,1e-27,333333333.33333329,-0.0,1e21,123456789012345680000]"),
            "[1e+30,4.5,0.002,1e-27,333333333.3333333,0,1e+21,123456789012345680000]");
}

TEST(CanonicalJson, ReadsBackAsItself) {
  for (const char* number : {"1e17", "9007199254740994.0", "1.8446744073709551615e19", "-1e18", "1152921504606846976.0",
                             "9.9e20", "5e-324", "1.7976931348623157e308", "0.1", "-0.0"}) {
    const std::string once = canonical(number);
    EXPECT_EQ(canonical(once), once) << number;
  }
}

TEST(CanonicalJson, RefusesIntegersThatADoubleDoesNotHold) {
  EXPECT_FALSE(canonical_json(Json(9007199254740993LL)));
  EXPECT_TRUE(canonical_json(Json(9007199254740992LL)));
  EXPECT_FALSE(canonical_json(Json(UINT64_MAX)));
  EXPECT_FALSE(canonical_json(Json(std::numeric_limits<double>::infinity())));
}

TEST(ParseJson, RefusesDuplicateKeysDepthSizeAndBadUtf8) {
  EXPECT_EQ(parse_json(R"({"a":1,"a":2})").error().message(), "json: duplicate key `a`");
  EXPECT_EQ(parse_json(std::string(100, '[') + std::string(100, ']')).error().kind(), ErrorKind::too_large);
  EXPECT_EQ(parse_json(std::string(2'000'000, ' ')).error().kind(), ErrorKind::too_large);
  EXPECT_FALSE(parse_json("\"\xFF\""));
  EXPECT_FALSE(parse_json("[1,]"));
  EXPECT_FALSE(parse_json(""));
  EXPECT_EQ(parse_json("{\n  \"a\": x\n}").error().message(), "json: syntax error at line 2, column 8");
}

TEST(JsonReader, NamesTheFieldAndTheRule) {
  const Json json = parse_json(R"({"name":3,"extra":1})").value();
  {
    JsonReader reader(json, "plan");
    reader.text("name");
    EXPECT_EQ(reader.finish().error().message(), "plan.name: must be a string");
  }
  {
    JsonReader reader(json, "plan");
    reader.integer("name");
    EXPECT_EQ(reader.finish().error().message(), "plan.extra: unknown field");
  }
  {
    JsonReader reader(json, "plan");
    reader.text("id");
    EXPECT_EQ(reader.finish().error().message(), "plan.id: is required");
  }
}

TEST(EventEnvelope, RoundTripsAndRefusesUnknownFields) {
  EventEnvelope event{"runtime_usage",
                      EventId::fresh(from_unix_ns(5)),
                      Identity::service("runtime").value(),
                      {Identity::human("a@b").value()},
                      Timestamp{1, 2, "n1", false},
                      R"({"units":"3"})",
                      Signature{"ed25519", {1, 2}}};
  const std::string json = event.to_json().value();
  const EventEnvelope again = EventEnvelope::from_json(json).value();
  EXPECT_EQ(again.to_json().value(), json);
  EXPECT_EQ(again.signed_bytes().value(), event.signed_bytes().value());
  EXPECT_TRUE(event.signed_bytes()->starts_with("creto.event.v1\n{"));
  std::string extra = json;
  extra.insert(1, R"("zzz":1,)");
  EXPECT_FALSE(EventEnvelope::from_json(extra));
}

TEST(EventEnvelope, IsNotTakenWhereItCouldNotBeWrittenAgain) {
  const EventEnvelope event{"runtime_usage",
                            EventId::fresh(from_unix_ns(5)),
                            Identity::service("runtime").value(),
                            {},
                            Timestamp{1, 2, "n1", false},
                            "{}",
                            {}};
  std::string json = event.to_json().value();
  json.replace(json.find(R"("logical":"1")"), 13, R"("logical":"-1")");
  EXPECT_EQ(EventEnvelope::from_json(json).error().message(), "event.timestamp.logical: must not be negative");
}

}  // namespace
}  // namespace creto
