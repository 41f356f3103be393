// The compact form of usage, and what people and programs report as JSON.

#include "ledger/usage_record.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

#include "ledger/batch_proof.h"
#include "usage/usage_records.h"

namespace creto::metering {
namespace {

const Instant noon = from_rfc3339("2026-11-10T12:00:00Z").value();

struct Parsed {
  Bytes bytes;
  RecordScratch scratch;
  Result<RecordView> record = Error(Product::metering, ErrorKind::internal, "");
};
std::unique_ptr<Parsed> parse(const RecordView& record) {
  auto parsed = std::make_unique<Parsed>();
  encode_record(record, parsed->bytes);
  parsed->record = parse_record(parsed->bytes, parsed->scratch);
  return parsed;
}
RecordView good(std::span<const PropertyView> properties = {}) {
  return {.bytes = {}, .agent = "service:a", .type = "pages", .key = "k", .time = noon, .properties = properties};
}
std::string refusal(const RecordView& record) {
  const auto parsed = parse(record);
  return parsed->record ? "taken" : parsed->record.error().message();
}

TEST(UsageRecord, ComesBackAsItWasEncoded) {
  const std::array<PropertyView, 2> properties{{{"model_id", "m"}, {"city", "Zürich"}}};
  RecordView record = good(properties);
  record.source = "gateway-1";
  record.units = "2.5";
  record.cost = "0.0125";
  record.currency = "USD";
  const auto parsed = parse(record);
  ASSERT_TRUE(parsed->record) << parsed->record.error().to_string();
  EXPECT_EQ(parsed->record->agent, "service:a");
  EXPECT_EQ(parsed->record->source, "gateway-1");
  EXPECT_EQ(parsed->record->time, noon);
  EXPECT_EQ(parsed->record->whole_units, 3);
  EXPECT_EQ(parsed->record->cost, "0.0125");
  EXPECT_EQ(parsed->record->property("city"), "Zürich");
  EXPECT_EQ(parsed->record->property("none"), "");
}

TEST(UsageRecord, WhatIsWrongIsNamed) {
  const auto with = [](auto change) {
    RecordView record = good();
    change(record);
    return refusal(record);
  };
  EXPECT_EQ(with([](RecordView& r) { r.agent = ""; }), "agent: must have 1 to 300 characters");
  EXPECT_EQ(with([](RecordView& r) { r.key = ""; }), "idempotency_key: must have 1 to 256 characters");
  EXPECT_NE(with([](RecordView& r) { r.type = "Pages Read"; }).find("usage_type: must be"), std::string::npos);
  EXPECT_EQ(with([](RecordView& r) { r.units = "NaN"; }), "units: must be a decimal number");
  EXPECT_EQ(with([](RecordView& r) { r.units = "-1"; }), "units `-1`: must be 0 to 10^18");
  EXPECT_EQ(with([](RecordView& r) { r.units = "1e300"; }), "units: must be a decimal number");
  EXPECT_EQ(with([](RecordView& r) { r.cost = "1"; }), "currency: must be a code of ISO 4217 beside a cost");
  EXPECT_EQ(with([](RecordView& r) { r.cost = "-1", r.currency = "USD"; }), "cost: must not be negative");
  EXPECT_EQ(with([](RecordView& r) { r.currency = "USD"; }), "currency: must stand beside a cost");
  EXPECT_EQ(with([](RecordView& r) { r.key = "\xff"; }), "record: must be UTF-8");
  const std::string reference = ": must be the id of an event, or `key:` and its idempotency key";
  EXPECT_EQ(with([](RecordView& r) { r.replaces = "x"; }), "replaces" + reference);
  EXPECT_EQ(with([](RecordView& r) { r.voids = "key:", r.type = "void"; }), "voids" + reference);
  const std::string long_key = "key:" + std::string(257, 'x');
  EXPECT_EQ(with([&](RecordView& r) { r.voids = long_key, r.type = "void"; }), "voids" + reference);
  EXPECT_EQ(with([](RecordView& r) { r.voids = "key:a", r.replaces = "key:a"; }),
            "voids: must not stand beside replaces");
  EXPECT_EQ(with([](RecordView& r) { r.voids = "key:a"; }),
            "usage_type: must be `void` where the event only takes another one out");
  EXPECT_EQ(with([](RecordView& r) { r.replaces = "key:a", r.type = "void"; }),
            "usage_type: must be `void` where the event only takes another one out");
  EXPECT_EQ(with([](RecordView& r) { r.type = "void"; }), "voids: is required in `void`");
  EXPECT_EQ(with([](RecordView& r) { r.voids = "key:a", r.type = "void", r.units = "2"; }),
            "voids: must stand without units and cost");
  const std::string large(property_bytes_max + 1, 'x');
  const std::array<PropertyView, 1> too_large{{{"p", large}}};
  EXPECT_EQ(refusal(good(too_large)), "properties.p: must be at most 1024 bytes");
  const std::array<PropertyView, 2> twice{{{"p", "1"}, {"p", "2"}}};
  EXPECT_EQ(refusal(good(twice)), "properties.p: must be given once");
  const std::vector<PropertyView> many(record_properties_max + 1, PropertyView{"p", "1"});
  EXPECT_EQ(refusal(good(many)), "properties: must be at most 64");
  const Bytes huge(10 << 20, 'x');
  RecordScratch scratch;
  EXPECT_EQ(parse_record(huge, scratch).error().kind(), ErrorKind::too_large);
}

TEST(UsageRecord, ARootDependsOnEveryRecordAndItsPlace) {
  std::vector<Hash256> leaves;
  std::set<Hash256> roots;
  for (std::uint8_t i = 0; i < 20; ++i) {
    leaves.push_back(record_leaf(Bytes{i}));
    EXPECT_TRUE(roots.insert(merkle_root(leaves)).second);
  }
  std::swap(leaves[3], leaves[4]);
  EXPECT_TRUE(roots.insert(merkle_root(leaves)).second);
}

google::protobuf::Struct json(const std::string& text) {
  google::protobuf::Struct document;
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(text, &document).ok()) << text;
  return document;
}
std::string cloud_event(const std::string& rest) {
  return R"({"specversion":"1.0","id":"k","source":"gateway-1","type":"pages","subject":"service:a")" + rest + "}";
}

TEST(CloudEvents, AreRecords) {
  const std::string text = cloud_event(
      R"(,"time":"2026-11-10T12:00:00Z","data":{"units":2.5,"cost":"0.01","currency":"USD","model_id":"m","n":3,"b":true})");
  const auto encoded = record_of(json(text));
  ASSERT_TRUE(encoded) << encoded.error().to_string();
  EXPECT_EQ(records_of_json(text, 1).value().at(0).value(), *encoded) << "whichever way it comes";
  RecordScratch scratch;
  const auto record = parse_record(as_bytes(*encoded), scratch).value();
  EXPECT_EQ(record.agent, "service:a");
  EXPECT_EQ(record.source, "gateway-1");
  EXPECT_EQ(record.key, "k");
  EXPECT_EQ(record.time, noon);
  EXPECT_EQ(record.units, "2.5");
  EXPECT_EQ(record.cost, "0.01");
  EXPECT_EQ(record.property("model_id"), "m");
  EXPECT_EQ(record.property("n"), "3");
  EXPECT_EQ(record.property("b"), "true");
}

TEST(CloudEvents, WhatIsWrongIsNamed) {
  const auto refused = [](const std::string& text) {
    const auto encoded = record_of(json(text));
    const std::string said = encoded ? "taken" : encoded.error().message();
    const auto again = records_of_json(text, 1).value().at(0);
    EXPECT_EQ(again ? "taken" : again.error().message(), said);
    return said;
  };
  const std::string when = R"(,"time":"2026-11-10T12:00:00Z")";
  EXPECT_EQ(refused("{}"), "specversion: is required");
  EXPECT_EQ(refused(R"({"specversion":"0.3"})"), "specversion: must be 1.0");
  EXPECT_EQ(refused(cloud_event("")), "time: is required");
  EXPECT_EQ(refused(cloud_event(R"(,"time":"yesterday")")), "time: must be RFC 3339");
  EXPECT_EQ(refused(cloud_event(when + R"(,"data":[1])")), "data: must be an object");
  EXPECT_EQ(refused(cloud_event(when + R"(,"data":{"a":{"b":1}})")), "data.a: must be a string, a number or a boolean");
  EXPECT_EQ(refused(cloud_event(when + R"(,"data":{"n":18446744073709551615})")),
            "data.n: is beyond 2^53: write it as a string");
  EXPECT_EQ(refused(cloud_event(when + R"(,"data":{"units":"-3"})")), "units `-3`: must be 0 to 10^18");
}

TEST(CloudEvents, AttributesAreTextsAndGivenOnce) {
  const std::string when = R"(,"time":"2026-11-10T12:00:00Z")";
  const auto refused = [](const std::string& text) {
    const auto encoded = record_of(json(text));
    const auto again = records_of_json(text, 1).value().at(0);
    EXPECT_EQ(again ? "taken" : again.error().message(), encoded ? "taken" : encoded.error().message());
    return encoded ? "taken" : encoded.error().message();
  };
  EXPECT_EQ(refused(cloud_event(when + R"(,"replaces":5)")), "replaces: must be a string");
  EXPECT_EQ(refused(cloud_event(when + R"(,"voids":{"id":"x"})")), "voids: must be a string");
  EXPECT_EQ(refused(cloud_event(when + R"(,"replaces":"")")), "replaces: must not be empty");
  EXPECT_EQ(refused(cloud_event(when + R"(,"data_base64":"e30=")")),
            "data_base64: is not read: `data` must be an object");
  EXPECT_EQ(refused(cloud_event(when + R"(,"replaces":null,"sequence":7)")), "taken");
  const auto twice = records_of_json(cloud_event(when + R"(,"voids":"","voids":"key:a")"), 1).value();
  EXPECT_EQ(twice.at(0).error().message(), "voids: must not be empty");
}

TEST(CloudEvents, MayHaveTheirAttributesInHeaders) {
  std::vector<std::pair<std::string, std::string>> headers{
      {"content-type", "application/json"}, {"ce-specversion", "1.0"}, {"ce-id", "k"},
      {"ce-source", "gateway%201"},         {"ce-type", "pages"},      {"ce-subject", "service:a"},
      {"ce-time", "2026-11-10T12:00:00Z"}};
  const std::string event = event_of_headers(headers, R"({"units":3,"room":"south"})").value();
  const std::string encoded = records_of_json(event, 1).value().at(0).value();
  RecordScratch scratch;
  const auto record = parse_record(as_bytes(encoded), scratch).value();
  EXPECT_EQ(record.source, "gateway 1");
  EXPECT_EQ(record.units, "3");
  EXPECT_EQ(record.property("room"), "south");
  EXPECT_TRUE(records_of_json(event_of_headers(headers, "").value(), 1).value().at(0)) << "data may be absent";
  EXPECT_FALSE(event_of_headers(headers, R"({},"subject":"service:b")"));
  headers.emplace_back("ce-id", "other");
  EXPECT_EQ(event_of_headers(headers, "{}").error().message(), "ce-id: must be given once");
  headers.back() = {"ce-voids", "%"};
  EXPECT_EQ(event_of_headers(headers, "{}").error().message(), "ce-voids: must be percent-encoded");
  headers.back() = {"ce-voids", "%ff"};
  EXPECT_FALSE(event_of_headers(headers, "{}"));
}

TEST(CloudEvents, EachOfAListIsTakenOrRefusedByItself) {
  const std::string good = cloud_event(R"(,"time":"2026-11-10T12:00:00Z")");
  const std::string twice = cloud_event(R"(,"id":"k","time":"2026-11-10T12:00:00Z")");
  const std::string same = cloud_event(R"(,"time":"2026-11-10T12:00:00Z","data":{"a":1,"a":1})");
  const auto records = records_of_json(fmt::format("[{},7,{},{},{}]", good, twice, same, good), 5).value();
  ASSERT_EQ(records.size(), 5u);
  EXPECT_TRUE(records[0]);
  EXPECT_EQ(records[1].error().message(), "event: must be an object");
  EXPECT_EQ(records[2].error().message(), "id: must be given once");
  EXPECT_EQ(records[3].error().message(), "data.a: must be given once");
  EXPECT_EQ(records[4].value(), records[0].value());

  EXPECT_TRUE(records_of_json("[]", 1).value().empty());
  EXPECT_EQ(records_of_json(fmt::format("[{},{}]", good, good), 1).error().kind(), ErrorKind::too_large);
  for (const std::string& bad : {std::string(), std::string("["), good + good, std::string("[\"\xff\"]"),
                                 std::string(100, '[') + std::string(100, ']')}) {
    EXPECT_EQ(records_of_json(bad, 1).error().kind(), ErrorKind::invalid_input) << bad;
  }
}

TEST(UsageReport, IsARecordWhoseBytesDoNotDependOnTheOrderOfItsProperties) {
  v1::UsageReport report;
  report.set_agent("service:a");
  report.set_usage_type("pages");
  report.set_idempotency_key("k");
  EXPECT_EQ(record_of(report).error().message(), "time: is required");
  report.mutable_time()->set_seconds(1'794'312'000);
  (*report.mutable_properties())["b"] = "2";
  (*report.mutable_properties())["a"] = "1";
  v1::UsageReport other = report;
  other.mutable_properties()->clear();
  (*other.mutable_properties())["a"] = "1";
  (*other.mutable_properties())["b"] = "2";
  EXPECT_EQ(record_of(report).value(), record_of(other).value());
}

}  // namespace
}  // namespace creto::metering
