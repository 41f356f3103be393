#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cedar/extension_values.h"
#include "creto/authz/value.h"

namespace creto::authz {
namespace {

using cedar::parse_datetime;
using cedar::parse_decimal;
using cedar::parse_duration_value;
using cedar::parse_ip;

TEST(CedarValues, ReadsDecimals) {
  EXPECT_EQ(parse_decimal("1.5")->ten_thousandths, 15'000);
  EXPECT_EQ(parse_decimal("-0.0001")->ten_thousandths, -1);
  EXPECT_EQ(parse_decimal("-922337203685477.5808")->ten_thousandths, INT64_MIN);
  for (const char* text : {"", "1", "1.", ".5", "1.23456", "922337203685477.5808", "+1.0", "1.0 ", "--1.0", "1e5"}) {
    EXPECT_FALSE(parse_decimal(text)) << text;
  }
}

TEST(CedarValues, ReadsAddresses) {
  EXPECT_EQ(cedar::format(*parse_ip("10.0.0.0/8")), "10.0.0.0/8");
  EXPECT_TRUE(parse_ip("::1"));
  EXPECT_TRUE(parse_ip("::"));
  EXPECT_TRUE(parse_ip("1:2:3:4:5:6:7::"));
  for (const char* text :
       {"", "10.0.0", "10.0.0.256", "010.0.0.1", "1.1.1.1/33", "1.1.1.1/08", "1.1.1.1/", ":::", "1:2:3:4:5:6:7:8:9",
        "1::2::3", "12345::", "::ffff:1.2.3.4", "::1/129", "1:2:3:4:5:6:7:8::"}) {
    EXPECT_FALSE(parse_ip(text)) << text;
  }
}

TEST(CedarValues, ReadsDatesAndDurations) {
  EXPECT_EQ(parse_datetime("1970-01-02")->unix_ms, 86'400'000);
  EXPECT_EQ(parse_datetime("1970-01-01T00:00:01.500Z")->unix_ms, 1'500);
  EXPECT_EQ(parse_datetime("1970-01-01T01:00:00+0100")->unix_ms, 0);
  for (const char* text : {"", "2024-02-30", "2023-02-29", "1970-1-1", "1970-01-01T24:00:00Z", "1970-01-01T00:00:00",
                           "1970-01-01T00:00:00.5Z", "1970-01-01T00:00:00+2400", "1970-01-01T00:00:00+01:00",
                           "1970-01-01T00:00:60Z", "1970-01-01Z"}) {
    EXPECT_FALSE(parse_datetime(text)) << text;
  }
  EXPECT_EQ(parse_duration_value("1d2h3m4s5ms")->ms, 93'784'005);
  EXPECT_EQ(parse_duration_value("-1s")->ms, -1'000);
  EXPECT_EQ(parse_duration_value("-9223372036854775808ms")->ms, INT64_MIN);
  for (const char* text : {"", "-", "1", "1h1d", "1s1s", "1x", "9223372036854775808ms", "106751991168d", "1.5h"}) {
    EXPECT_FALSE(parse_duration_value(text)) << text;
  }
}

TEST(CedarValues, SurviveJson) {
  const auto original = Json::parse(R"({"uid": {"type": "A::B", "id": "x"}, "attrs": {"b": true, "n": -5, "s": "x",
      "e": {"__entity": {"type": "A", "id": "\u0000"}}, "set": [1, 2], "r": {"__extn": 1, "x": {}},
      "d": {"__extn": {"fn": "decimal", "arg": "1.5"}}, "ip": {"__extn": {"fn": "ip", "arg": "1.1.1.1/8"}},
      "t": {"__extn": {"fn": "offset", "args": [{"__extn": {"fn": "datetime", "arg": "1970-01-01"}},
           {"__extn": {"fn": "duration", "arg": "9000000000000000000ms"}}]}}}, "parents": [{"type": "A", "id": "p"}]})");
  auto entity = entity_from_json(original);
  ASSERT_TRUE(entity) << entity.error().message();
  EXPECT_EQ(entity_to_json(*entity), original);
}

TEST(CedarValues, RefuseWhatCedarHasNoWordFor) {
  for (const char* text :
       {"null", "1.5", "18446744073709551615", R"({"__entity": {"type": "if", "id": "x"}})", R"({"__entity": "x"})",
        R"({"__extn": {"fn": "nope", "arg": "x"}})", R"({"__extn": {"fn": "ip", "arg": "x"}})",
        R"({"__extn": {"fn": "ip", "args": []}})", R"({"__expr": "1 + 1"})"}) {
    EXPECT_FALSE(value_from_json(Json::parse(text))) << text;
  }
  Json deep = 1;
  for (int i = 0; i < 100; ++i) deep = Json::array({deep});
  EXPECT_FALSE(value_from_json(deep));
}

TEST(CedarValues, AnActionIsInActionsAlone) {
  const auto read = [](const char* parent) {
    return entity_from_json(Json::parse(fmt::format(
        R"({{"uid": {{"type": "N::Action", "id": "x"}}, "attrs": {{}}, "parents": [{{"type": "{}", "id": "p"}}]}})",
        parent)));
  };
  EXPECT_TRUE(read("Action"));
  EXPECT_EQ(read("User").error().message(), "N::Action::\"x\": an action can only be in actions, not in User::\"p\"");
}

}  // namespace
}  // namespace creto::authz
