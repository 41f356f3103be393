#include "rpc/usage_records.h"

#include <fmt/format.h>

#include <cmath>
#include <deque>

#include "creto/io/proto.h"
#include "ledger/usage_record.h"
#include "names.h"

namespace creto::metering {
namespace {

using google::protobuf::Struct;
using google::protobuf::Value;

constexpr double exact_max = 9'007'199'254'740'992;  // 2^53: beyond it JSON's numbers are not all whole

Error invalid(std::string_view field, std::string_view rule) {
  return Error(Product::metering, ErrorKind::invalid_input, fmt::format("{}: {}", field, rule));
}

/// Checked as it will be when it is taken, so that the error names what the caller wrote.
Result<std::string> encoded(const RecordView& record) {
  Bytes bytes;
  encode_record(record, bytes);
  RecordScratch scratch;
  CRETO_TRY(parse_record(bytes, scratch));
  return std::string(as_text(bytes));
}

Result<std::string> text_of(const std::string& name, const Value& value) {
  switch (value.kind_case()) {
    case Value::kStringValue:
      return value.string_value();
    case Value::kBoolValue:
      return std::string(value.bool_value() ? "true" : "false");
    case Value::kNumberValue: {
      const double number = value.number_value();
      if (!std::isfinite(number) || std::abs(number) > exact_max) {
        return invalid("data." + name, "is beyond 2^53: write it as a string");
      }
      return fmt::format("{}", number);
    }
    default:
      return invalid("data." + name, "must be a string, a number or a boolean");
  }
}

Result<std::string> attribute(const Struct& event, const char* name) {
  const auto found = event.fields().find(name);
  if (found == event.fields().end() || found->second.kind_case() != Value::kStringValue ||
      found->second.string_value().empty()) {
    return invalid(name, "is required");
  }
  return found->second.string_value();
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
  return encoded({.bytes = {},
                  .agent = report.agent(),
                  .source = report.source(),
                  .type = report.usage_type(),
                  .key = report.idempotency_key(),
                  .time = time,
                  .units = report.units().empty() ? std::string_view("1") : std::string_view(report.units()),
                  .cost = report.cost(),
                  .currency = report.currency(),
                  .replaces = report.replaces(),
                  .properties = properties});
}

Result<std::string> record_of(const Struct& event) {
  const std::string version = CRETO_TRY(attribute(event, "specversion"));
  if (version != "1.0") return invalid("specversion", "must be 1.0");
  const std::string id = CRETO_TRY(attribute(event, "id"));
  const std::string source = CRETO_TRY(attribute(event, "source"));
  const std::string type = CRETO_TRY(attribute(event, "type"));
  const std::string subject = CRETO_TRY(attribute(event, "subject"));
  // Without it a repetition would be another event: the server would have to make a time up.
  const std::string when = CRETO_TRY(attribute(event, "time"));
  const auto time = from_rfc3339(when);
  if (!time) return invalid("time", "must be RFC 3339");

  std::string units = "1";
  std::string cost;
  std::string currency;
  std::map<std::string, std::string> properties;
  if (const auto data = event.fields().find("data"); data != event.fields().end()) {
    if (data->second.kind_case() != Value::kStructValue) return invalid("data", "must be an object");
    for (const auto& [name, value] : data->second.struct_value().fields()) {
      if (!is_name(name)) return invalid("data." + name.substr(0, 64), name_rule);
      std::string text = CRETO_TRY(text_of(name, value));
      if (name == "units") {
        units = std::move(text);
      } else if (name == "cost") {
        cost = std::move(text);
      } else if (name == "currency") {
        currency = std::move(text);
      } else {
        properties.emplace(name, std::move(text));
      }
    }
  }
  if (properties.size() > record_properties_max)
    return invalid("data", fmt::format("must have at most {} members", record_properties_max));
  const std::vector<PropertyView> views(properties.begin(), properties.end());
  return encoded({.bytes = {},
                  .agent = subject,
                  .source = source,
                  .type = type,
                  .key = id,
                  .time = *time,
                  .units = units,
                  .cost = cost,
                  .currency = currency,
                  .properties = views});
}

}  // namespace creto::metering
