#include "usage/usage_records.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "creto/common/json.h"
#include "creto/io/http_server.h"
#include "creto/io/proto.h"
#include "ledger/usage_record.h"
#include "names.h"

namespace creto::metering {
namespace {

using google::protobuf::Struct;
using google::protobuf::Value;

constexpr double exact_max = 9'007'199'254'740'992;  // 2^53: beyond it JSON's numbers are not all whole
constexpr std::size_t json_depth_max = 64;
constexpr std::size_t members_max = record_properties_max + 3;

Error invalid(std::string_view field, std::string_view rule) {
  return Error(Product::metering, ErrorKind::invalid_input, fmt::format("{}: {}", field, rule));
}

/// A record that takes another one out has no room for units.
Result<> check_void(std::string_view voids, std::string_view units) {
  if (!voids.empty() && !units.empty()) return invalid("voids", "must stand without units and cost");
  return {};
}

/// Encodes one record after another.
class Encoder {
 public:
  /// Checked as it will be when it is taken, so that the error names what the caller wrote.
  Result<std::string> encode(const RecordView& record) {
    bytes_.clear();
    scratch_.clear();
    encode_record(record, bytes_);
    CRETO_TRY(parse_record(bytes_, scratch_));
    return std::string(as_text(bytes_));
  }

 private:
  Bytes bytes_;
  RecordScratch scratch_;
};

/// A CloudEvent, whatever it was read from, which it borrows. The members of `data` are text.
class CloudEvent {
 public:
  enum Attribute : std::size_t { specversion, id, source, type, subject, time, replaces, voids };

  void clear() {
    attributes_ = {};
    given_ = {};
    members_ = 0;
  }
  /// Others than those of usage are nothing to us. `value`: none where it is not a text.
  Result<> set(std::string_view name, std::optional<std::string_view> value) {
    if (name == "data_base64") return invalid(name, "is not read: `data` must be an object");
    const auto found = std::ranges::find(names, name);
    if (found == names.end()) return {};
    const auto which = static_cast<std::size_t>(found - names.begin());
    if (!value) return invalid(name, "must be a string");
    if (value->empty()) return invalid(name, "must not be empty");
    if (std::exchange(given_[which], true)) return invalid(name, "must be given once");
    attributes_[which] = *value;
    return {};
  }
  Result<> add(std::string_view name, std::string_view value) {
    if (!is_name(name)) return invalid(fmt::format("data.{}", name.substr(0, 64)), name_rule);
    if (members_ == members_max)
      return invalid("data", fmt::format("must have at most {} members", record_properties_max));
    data_[members_++] = {name, value};
    return {};
  }
  Result<> add(std::string_view name, double number) {
    if (!std::isfinite(number) || std::abs(number) > exact_max)
      return invalid(fmt::format("data.{}", name.substr(0, 64)), "is beyond 2^53: write it as a string");
    auto& room = numbers_[std::min(members_, members_max - 1)];
    const auto end = fmt::format_to_n(room.data(), room.size(), "{}", number);
    return add(name, {room.data(), end.size});
  }
  static Error no_text(std::string_view name) {
    return invalid(fmt::format("data.{}", name.substr(0, 64)), "must be a string, a number or a boolean");
  }

  Result<std::string> encode(Encoder& encoder) {
    for (const Attribute attribute : {specversion, id, source, type, subject}) {
      if (attributes_[attribute].empty()) return invalid(names[attribute], "is required");
      if (attribute == specversion && attributes_[attribute] != "1.0") return invalid("specversion", "must be 1.0");
    }
    // Without it a repetition would be another event: the server would have to make a time up.
    if (attributes_[time].empty()) return invalid("time", "is required");
    const auto when = from_rfc3339(attributes_[time]);
    if (!when) return invalid("time", "must be RFC 3339");
    RecordView record{.bytes = {},
                      .agent = attributes_[subject],
                      .source = attributes_[source],
                      .type = attributes_[type],
                      .key = attributes_[id],
                      .time = *when,
                      .replaces = attributes_[replaces],
                      .voids = attributes_[voids],
                      .properties = {}};
    // Sorted, so that the same event is the same record to the last bit.
    const std::span<PropertyView> data(data_.data(), members_);
    std::ranges::sort(data);
    std::size_t kept = 0;
    for (std::size_t i = 0; i < data.size(); ++i) {
      const auto [name, value] = data[i];
      if (i > 0 && data[i - 1].first == name) return invalid(fmt::format("data.{}", name), "must be given once");
      if (name == "units") {
        CRETO_TRY(check_void(record.voids, value));
        record.units = value;
      } else if (name == "cost") {
        record.cost = value;
      } else if (name == "currency") {
        record.currency = value;
      } else {
        properties_[kept++] = data[i];
      }
    }
    if (kept > record_properties_max)
      return invalid("data", fmt::format("must have at most {} members", record_properties_max));
    record.properties = std::span(properties_.data(), kept);
    return encoder.encode(record);
  }

 private:
  static constexpr std::array<std::string_view, 8> names{"specversion", "id",   "source",   "type",
                                                         "subject",     "time", "replaces", "voids"};
  std::array<std::string_view, names.size()> attributes_{};
  std::array<bool, names.size()> given_{};
  std::array<PropertyView, members_max> data_{};
  std::array<PropertyView, members_max> properties_{};
  std::array<std::array<char, 32>, members_max> numbers_{};
  std::size_t members_ = 0;
};

namespace dom = simdjson::dom;

/// What reading JSON needs.
struct JsonRoom {
  dom::parser parser;
  std::vector<char> padded;
  CloudEvent event;
  Encoder encoder;
};

Result<std::string> record_of(const dom::element& element, CloudEvent& event, Encoder& encoder) {
  dom::object object;
  if (element.get(object) != simdjson::SUCCESS) return invalid("event", "must be an object");
  event.clear();
  bool has_data = false;
  for (const auto& [name, value] : object) {
    std::string_view text;
    if (name != "data") {
      // An attribute that is null is not there.
      if (value.is_null()) continue;
      const bool is_text = value.get(text) == simdjson::SUCCESS;
      CRETO_TRY(event.set(name, is_text ? std::optional(text) : std::nullopt));
      continue;
    }
    dom::object data;
    if (std::exchange(has_data, true)) return invalid("data", "must be given once");
    if (value.get(data) != simdjson::SUCCESS) return invalid("data", "must be an object");
    for (const auto& [member, member_value] : data) {
      double number = 0;
      bool yes = false;
      if (member_value.get(text) == simdjson::SUCCESS) {
        CRETO_TRY(event.add(member, text));
      } else if (member_value.get(number) == simdjson::SUCCESS) {
        CRETO_TRY(event.add(member, number));
      } else if (member_value.get(yes) == simdjson::SUCCESS) {
        CRETO_TRY(event.add(member, std::string_view(yes ? "true" : "false")));
      } else {
        return CloudEvent::no_text(member);
      }
    }
  }
  return event.encode(encoder);
}

}  // namespace

Result<std::string> record_of(const v1::UsageReport& report) {
  if (!report.has_time()) return invalid("time", "is required");
  const Instant time = CRETO_TRY(proto::from_time(report.time(), "time"));
  if (unix_ns(time) < 0) return invalid("time", "must not be before 1970");
  if (report.properties_size() > static_cast<int>(record_properties_max)) {
    return invalid("properties", fmt::format("must be at most {}", record_properties_max));
  }
  // Sorted, so that the same report is the same record to the last bit.
  std::vector<PropertyView> properties(report.properties().begin(), report.properties().end());
  std::ranges::sort(properties);
  CRETO_TRY(check_void(report.voids(), report.units()));
  Encoder encoder;
  return encoder.encode({.bytes = {},
                         .agent = report.agent(),
                         .source = report.source(),
                         .type = report.usage_type(),
                         .key = report.idempotency_key(),
                         .time = time,
                         .units = report.units().empty() ? std::string_view("1") : std::string_view(report.units()),
                         .cost = report.cost(),
                         .currency = report.currency(),
                         .replaces = report.replaces(),
                         .voids = report.voids(),
                         .properties = properties});
}

Result<std::string> record_of(const Struct& event) {
  CloudEvent cloud_event;
  for (const auto& [name, value] : event.fields()) {
    if (name == "data" || value.kind_case() == Value::kNullValue) continue;
    const bool is_text = value.kind_case() == Value::kStringValue;
    CRETO_TRY(cloud_event.set(name, is_text ? std::optional<std::string_view>(value.string_value()) : std::nullopt));
  }
  if (const auto data = event.fields().find("data"); data != event.fields().end()) {
    if (data->second.kind_case() != Value::kStructValue) return invalid("data", "must be an object");
    for (const auto& [name, value] : data->second.struct_value().fields()) {
      switch (value.kind_case()) {
        case Value::kStringValue:
          CRETO_TRY(cloud_event.add(name, value.string_value()));
          break;
        case Value::kNumberValue:
          CRETO_TRY(cloud_event.add(name, value.number_value()));
          break;
        case Value::kBoolValue:
          CRETO_TRY(cloud_event.add(name, std::string_view(value.bool_value() ? "true" : "false")));
          break;
        default:
          return CloudEvent::no_text(name);
      }
    }
  }
  Encoder encoder;
  return cloud_event.encode(encoder);
}

Result<std::string> event_of_headers(const std::vector<std::pair<std::string, std::string>>& headers,
                                     std::string_view data) {
  constexpr std::string_view prefix = "ce-";
  constexpr std::size_t attributes_max = 64;
  Json event = Json::object();
  for (const auto& [name, value] : headers) {
    if (!name.starts_with(prefix)) continue;
    if (event.size() == attributes_max)
      return invalid(name.substr(0, 64), fmt::format("is over {} attributes", attributes_max));
    const auto text = http::percent_decode(value, false);
    if (!text) return invalid(name.substr(0, 64), "must be percent-encoded");
    if (!event.emplace(name.substr(prefix.size()), *text).second)
      return invalid(name.substr(0, 64), "must be given once");
  }
  if (event.contains("data")) return invalid("ce-data", "is the body");
  if (!data.empty()) event["data"] = CRETO_TRY(parse_json(data, {.bytes_max = data.size()}));
  try {
    return event.dump();
  } catch (const Json::type_error&) {
    return invalid("headers", "must be UTF-8");
  }
}

Result<std::vector<Result<std::string>>> records_of_json(std::string_view cloud_events, std::size_t events_max) {
  // Its room is kept for the next, unless that would be much.
  constexpr std::size_t kept_bytes_max = 1 << 20;
  thread_local JsonRoom kept;
  JsonRoom large;
  auto& [parser, padded, event, encoder] = cloud_events.size() > kept_bytes_max ? large : kept;
  padded.resize(std::max(padded.size(), cloud_events.size() + simdjson::SIMDJSON_PADDING));
  std::ranges::copy(cloud_events, padded.begin());
  dom::element root;
  auto failed = parser.allocate(std::max(cloud_events.size(), kept_bytes_max), json_depth_max);
  if (failed == simdjson::SUCCESS) failed = parser.parse(padded.data(), cloud_events.size(), false).get(root);
  if (failed != simdjson::SUCCESS)
    return invalid("events", fmt::format("is no JSON: {}", simdjson::error_message(failed)));

  std::vector<Result<std::string>> records;
  dom::array list;
  if (root.get(list) != simdjson::SUCCESS) {
    records.push_back(record_of(root, event, encoder));
    return records;
  }
  for (const dom::element element : list) {
    if (records.size() == events_max)
      return Error(Product::metering, ErrorKind::too_large, fmt::format("events: must be at most {}", events_max));
    records.push_back(record_of(element, event, encoder));
  }
  return records;
}

}  // namespace creto::metering
