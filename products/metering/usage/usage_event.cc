#include "usage/usage_event.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "creto/contracts/events.h"
#include "names.h"

namespace creto::metering {
namespace {

constexpr std::size_t properties_max = 64;
constexpr std::size_t value_bytes_max = 1024;

enum class Kind : std::uint8_t { text, integer, decimal };
struct Property {
  std::string_view name;
  Kind kind = Kind::text;
  bool required = true;
};
struct Schema {
  std::string_view usage_type;
  std::vector<Property> properties;
};

/// The same rules as contracts/schemas/usage/*.json; a test compares them.
const std::vector<Schema>& schemas() {
  static const std::vector<Schema> all = {
      {"sandbox_allocated",
       {{"sandbox_id"},
        {"runtime_class"},
        {"cpu_millicores", Kind::integer, false},
        {"memory_bytes", Kind::integer, false},
        {"duration_seconds", Kind::decimal, false}}},
      {"sandbox_terminated",
       {{"sandbox_id"},
        {"reason", Kind::text, false},
        {"duration_seconds", Kind::decimal, false},
        {"cpu_seconds", Kind::decimal, false}}},
      {"inference_tokens",
       {{"sandbox_id", Kind::text, false},
        {"model_id"},
        {"provider"},
        {"input_tokens", Kind::integer},
        {"output_tokens", Kind::integer},
        {"cached_tokens", Kind::integer, false},
        {"cache_write_tokens", Kind::integer, false},
        {"reasoning_tokens", Kind::integer, false}}},
      {"network_egress", {{"sandbox_id"}, {"destination"}, {"bytes_transferred", Kind::integer}}},
      {"action",
       {{"action"},
        {"sandbox_id", Kind::text, false},
        {"resource", Kind::text, false},
        {"amount", Kind::decimal, false},
        {"currency", Kind::text, false},
        {"request_id", Kind::text, false}}},
      {"message_sent", {{"message_size_bytes", Kind::integer}, {"recipient_count", Kind::integer}, {"priority"}}},
      {"message_received", {{"message_size_bytes", Kind::integer}, {"recipient_count", Kind::integer}, {"priority"}}},
      {"topic_created", {}},
      {"subscription_created", {}},
  };
  return all;
}

Error invalid(std::string_view path, std::string_view rule) {
  return Error(Product::metering, ErrorKind::invalid_input, fmt::format("{}: {}", path, rule));
}

/// Errors of common are the platform's; what is wrong with an event is metering's to say.
Error as_metering(const Error& error) { return Error(Product::metering, error.kind(), error.message()); }

Result<Properties> read_properties(const Json& json) {
  if (json.size() > properties_max) return invalid("properties", fmt::format("must be at most {}", properties_max));
  Properties properties;
  for (const auto& [name, value] : json.items()) {
    const std::string path = "properties." + name.substr(0, 64);
    if (!is_name(name)) return invalid(path, name_rule);
    std::string text;
    if (value.is_string())
      text = value.get<std::string>();
    else if (value.is_number_integer())
      text = value.dump();
    else if (value.is_boolean())
      text = value.get<bool>() ? "true" : "false";
    else
      return invalid(path, "must be a string, an integer or a boolean; fractions are decimal strings");
    if (text.size() > value_bytes_max) return invalid(path, fmt::format("must be at most {} bytes", value_bytes_max));
    properties.emplace(name, std::move(text));
  }
  return properties;
}

const Schema* schema_of(std::string_view usage_type) {
  const auto found = std::ranges::find(schemas(), usage_type, &Schema::usage_type);
  return found == schemas().end() ? nullptr : &*found;
}

/// The payload of a "message_usage" event.
Result<> read_message_usage(const std::string& payload, UsageEvent& event) {
  const Json json = CRETO_TRY(parse_json(payload));
  JsonReader reader(json, "message_usage");
  if (reader.integer("schema_version") != 1) reader.refuse("schema_version", "must be 1");
  event.usage_type = reader.text("usage_type");
  event.idempotency_key = reader.text("idempotency_key");
  if (event.idempotency_key.empty() || event.idempotency_key.size() > 256) {
    reader.refuse("idempotency_key", "must have 1 to 256 characters");
  }
  const Json& properties = reader.object("properties");
  CRETO_TRY(reader.finish());
  event.properties = CRETO_TRY(read_properties(properties));
  return {};
}

Result<> read_runtime_usage(const std::string& payload, UsageEvent& event) {
  contracts::RuntimeUsageEvent runtime = CRETO_TRY(contracts::RuntimeUsageEvent::from_json(payload));
  event.usage_type = std::move(runtime.usage_type);
  event.idempotency_key = std::move(runtime.idempotency_key);
  event.units = runtime.units;
  event.cost = std::move(runtime.cost);
  event.replaces = std::move(runtime.replaces);
  event.voids = std::move(runtime.voids);
  const Json properties = CRETO_TRY(parse_json(runtime.properties));
  event.properties = CRETO_TRY(read_properties(properties));
  return {};
}

Result<UsageEvent> understand(EventEnvelope envelope) {
  UsageEvent event{.envelope = std::move(envelope),
                   .document = {},
                   .signed_bytes = {},
                   .usage_type = {},
                   .idempotency_key = {},
                   .action = {},
                   .properties = {},
                   .units = Decimal(1),
                   .cost = {},
                   .settles = {},
                   .replaces = {},
                   .voids = {}};
  const bool message = event.envelope.event_type == "message_usage";
  if (message) {
    CRETO_TRY(read_message_usage(event.envelope.payload, event));
  } else if (event.envelope.event_type == contracts::RuntimeUsageEvent::event_type) {
    CRETO_TRY(read_runtime_usage(event.envelope.payload, event));
  } else {
    return invalid("event.event_type", "must be runtime_usage or message_usage");
  }

  const bool of_message = event.usage_type.starts_with("message_") || event.usage_type.ends_with("_created");
  const bool known = schema_of(event.usage_type) != nullptr || event.usage_type == void_type;
  if (!known || message != of_message) {
    return invalid("usage_type", "is none that this event carries");
  }
  const std::vector<PropertyView> properties(event.properties.begin(), event.properties.end());
  CRETO_TRY(check_usage_properties(event.usage_type, properties));

  const DelegationChain& chain = event.envelope.delegation_chain;
  if (chain.size() > delegation_chain_max_depth) return invalid("event.delegation_chain", "is too deep");
  if (!chain.empty() && chain.back() != event.envelope.agent)
    return invalid("event.delegation_chain", "must end with the agent");
  if (event.usage_type == "action") event.action = event.properties.at("action");
  if (const auto hold = event.properties.find("reservation_id"); hold != event.properties.end()) {
    event.settles = CRETO_TRY(ReservationId::parse(hold->second));
  }
  event.signed_bytes = CRETO_TRY(event.envelope.signed_bytes());
  event.document = CRETO_TRY(event.envelope.to_json());
  return event;
}

}  // namespace

Result<> check_usage_properties(std::string_view usage_type, std::span<const PropertyView> properties) {
  const Schema* schema = schema_of(usage_type);
  if (schema == nullptr) return {};
  for (const Property& wanted : schema->properties) {
    const auto path = [&] { return fmt::format("properties.{}", wanted.name); };
    const auto found = std::ranges::find(properties, wanted.name, &PropertyView::first);
    if (found == properties.end()) {
      if (wanted.required) return invalid(path(), fmt::format("is required in `{}`", usage_type));
      continue;
    }
    if (wanted.kind == Kind::text) {
      if (found->second.empty()) return invalid(path(), "must not be empty");
      continue;
    }
    if (small_integer(found->second)) continue;
    const Result<Decimal> number = Decimal::parse(found->second);
    if (!number || number->is_negative()) return invalid(path(), "must be a number, not negative");
    if (wanted.kind == Kind::integer && !number->to_integer()) return invalid(path(), "must be a 64-bit integer");
  }
  if (usage_type == "action") {
    const auto action = std::ranges::find(properties, "action", &PropertyView::first);
    if (!is_name(action->second)) return invalid("properties.action", name_rule);
  }
  return {};
}

Result<UsageEvent> parse_usage_event(std::string_view text) {
  if (text.size() > event_bytes_max) {
    return Error(Product::metering, ErrorKind::too_large,
                 fmt::format("event: must be at most {} bytes", event_bytes_max));
  }
  auto envelope = EventEnvelope::from_json(text);
  if (!envelope) return as_metering(envelope.error());
  const auto canonical = envelope->to_json();
  if (!canonical) return as_metering(canonical.error());
  if (*canonical != text) return invalid("event", "must be canonical JSON (RFC 8785)");
  return usage_event_of(*std::move(envelope));
}

void encode_event(const UsageEvent& event, Bytes& out) {
  const std::vector<PropertyView> properties(event.properties.begin(), event.properties.end());
  const std::string units = event.units.to_string();
  const std::string cost = event.cost ? event.cost->amount.to_string() : std::string();
  encode_record({.bytes = {},
                 .agent = event.envelope.agent.text(),
                 .type = event.usage_type,
                 .key = event.idempotency_key,
                 .time = event.envelope.timestamp.instant(),
                 .units = units,
                 .cost = cost,
                 .currency = event.cost ? std::string_view(event.cost->currency.code()) : std::string_view(),
                 .replaces = event.replaces,
                 .voids = event.voids,
                 .properties = properties},
                out);
}

Result<UsageEvent> usage_event_of(EventEnvelope envelope) {
  auto event = understand(std::move(envelope));
  if (!event) return as_metering(event.error());
  return event;
}

Result<std::string> message_usage_payload(std::string_view usage_type, std::string_view idempotency_key,
                                          std::uint64_t message_size_bytes, std::uint64_t recipient_count,
                                          std::string_view priority) {
  return canonical_json({{"schema_version", 1},
                         {"usage_type", usage_type},
                         {"idempotency_key", idempotency_key},
                         {"properties",
                          {{"message_size_bytes", std::to_string(message_size_bytes)},
                           {"recipient_count", std::to_string(recipient_count)},
                           {"priority", priority}}}});
}

std::optional<QuotaRaise> quota_raise_of(std::string_view action, std::string_view arguments,
                                         std::string_view response) {
  if (action != "quota.raise" && action != "quota_breach" && action != "quota.breach") return std::nullopt;
  const auto asked = parse_json(arguments.empty() ? "{}" : arguments);
  const auto answered = parse_json(response.empty() ? "{}" : response);
  if (!asked || !asked->is_object()) return std::nullopt;
  QuotaRaise raise{{}, 0};
  for (const char* name : {"quota_id", "threshold_id"}) {
    if (raise.quota_id.empty() && asked->contains(name) && (*asked)[name].is_string())
      raise.quota_id = (*asked)[name].get<std::string>();
  }
  const auto limit_in = [](const Json& json) -> std::optional<std::int64_t> {
    if (!json.is_object() || !json.contains("new_limit")) return std::nullopt;
    const Json& value = json["new_limit"];
    const auto number = Decimal::parse(value.is_string() ? value.get<std::string>() : value.dump());
    const auto whole = number ? number->to_integer() : Result<std::int64_t>(number.error());
    if (!whole || *whole < 0) return std::nullopt;
    return *whole;
  };
  auto limit = answered ? limit_in(*answered) : std::nullopt;
  if (!limit) limit = limit_in(*asked);
  if (!limit || raise.quota_id.empty()) return std::nullopt;
  raise.new_limit = *limit;
  return raise;
}

std::optional<ThresholdRaise> threshold_raise_of(std::string_view action, std::string_view arguments,
                                                 std::string_view response) {
  if (action != "cost.continue") return std::nullopt;
  const auto asked = parse_json(arguments.empty() ? "{}" : arguments);
  const auto answered = parse_json(response.empty() ? "{}" : response);
  const auto text_in = [](const Result<Json>& json, const char* name) {
    const bool there = json && json->is_object() && json->contains(name) && (*json)[name].is_string();
    return there ? (*json)[name].get<std::string>() : std::string();
  };
  const auto limit = Decimal::parse(text_in(answered, "new_limit"));
  ThresholdRaise raise{text_in(asked, "threshold_id"), limit ? *limit : Decimal()};
  if (raise.threshold_id.empty() || raise.new_limit <= Decimal()) return std::nullopt;
  return raise;
}

}  // namespace creto::metering
