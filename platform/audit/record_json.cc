#include "record_json.h"

#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "creto/common/assert.h"
#include "creto/common/json.h"

namespace creto::audit {
namespace {

constexpr std::string_view type_name = "creto.audit.record";
constexpr std::int64_t schema_version = 1;
constexpr std::size_t who_bytes_max = 512;
constexpr std::size_t what_bytes_max = 256;
constexpr std::size_t resource_bytes_max = 2'048;
constexpr std::size_t chain_max = 32;

Error refusal(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

Result<> check_text(std::string_view field, std::string_view text, std::size_t bytes_min, std::size_t bytes_max) {
  if (text.size() < bytes_min || text.size() > bytes_max) {
    return refusal(ErrorKind::invalid_input,
                   fmt::format("audit record: {} must have {} to {} bytes", field, bytes_min, bytes_max));
  }
  if (!is_valid_utf8(text) || text.find('\0') != std::string_view::npos) {
    return refusal(ErrorKind::invalid_input, fmt::format("audit record: {} must be UTF-8 without NUL", field));
  }
  return {};
}

Result<> check(const AuditRecord& record) {
  CRETO_TRY(check_text("who", record.who, 0, who_bytes_max));
  CRETO_TRY(check_text("what", record.what, 1, what_bytes_max));
  CRETO_TRY(check_text("resource", record.resource, 0, resource_bytes_max));
  CRETO_TRY(check_text("why", record.why, 0, tlog::entry_bytes_max));
  CRETO_TRY(check_text("outcome_detail", record.outcome_detail, 0, tlog::entry_bytes_max));
  CRETO_TRY(check_text("trace_id", record.trace_id, 0, 64));
  CRETO_TRY(check_text("timestamp.node", record.timestamp.node, 0, 64));
  if (record.delegation_chain.size() > chain_max) {
    return refusal(ErrorKind::invalid_input,
                   fmt::format("audit record: delegation_chain is longer than {}", chain_max));
  }
  for (const auto& link : record.delegation_chain) CRETO_TRY(check_text("delegation_chain", link, 1, who_bytes_max));
  if (record.signature) CRETO_TRY(check_text("signature.algorithm", record.signature->algorithm, 1, 64));
  return {};
}

Result<std::uint64_t> parse_u64(const std::string& text) {
  std::uint64_t value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) {
    return refusal(ErrorKind::invalid_input, "audit record: timestamp.logical must be a decimal string");
  }
  return value;
}

}  // namespace

Result<std::string> to_entry(std::string_view org, const AuditRecord& record) {
  CRETO_ASSERT(record.id.has_value());
  CRETO_TRY(check(record));
  auto metadata = parse_json(record.metadata, {.bytes_max = tlog::entry_bytes_max});
  if (!metadata || !metadata->is_object()) {
    return refusal(ErrorKind::invalid_input, "audit record: metadata must be a JSON object");
  }
  Json json = Json::object();
  json["type"] = type_name;
  json["schema_version"] = schema_version;
  json["org"] = org;
  json["id"] = record.id->to_string();
  json["who"] = record.who;
  json["delegation_chain"] = record.delegation_chain;
  json["what"] = record.what;
  json["resource"] = record.resource;
  json["why"] = record.why;
  json["outcome"] = to_string(record.outcome);
  json["outcome_detail"] = record.outcome_detail;
  Json timestamp = Json::object();
  timestamp["logical"] = std::to_string(record.timestamp.logical);
  timestamp["physical_ns"] = std::to_string(record.timestamp.physical_ns);
  timestamp["node"] = record.timestamp.node;
  timestamp["degraded"] = record.timestamp.degraded;
  json["timestamp"] = std::move(timestamp);
  if (record.signature) {
    Json signature = Json::object();
    signature["algorithm"] = record.signature->algorithm;
    signature["value"] = base64(record.signature->value);
    json["signature"] = std::move(signature);
  }
  json["metadata"] = std::move(*metadata);
  json["trace_id"] = record.trace_id;
  auto entry = canonical_json(json);
  if (!entry) {
    return refusal(ErrorKind::invalid_input, fmt::format("audit record: metadata: {}", entry.error().message()));
  }
  if (entry->size() > tlog::entry_bytes_max) {
    return refusal(ErrorKind::too_large,
                   fmt::format("audit record: it has {} bytes, at most {} fit", entry->size(), tlog::entry_bytes_max));
  }
  return entry;
}

Result<ParsedEntry> parse_entry(std::string_view entry) {
  const Json json = CRETO_TRY(parse_json(entry, {.bytes_max = tlog::entry_bytes_max}));
  JsonReader reader(json, "entry");
  ParsedEntry parsed;
  AuditRecord& record = parsed.record;
  if (reader.text("type") != type_name) reader.refuse("type", "must be `creto.audit.record`");
  if (reader.integer("schema_version") != schema_version) reader.refuse("schema_version", "must be 1");
  parsed.org = reader.text("org");
  const std::string id = reader.text("id");
  record.who = reader.text("who");
  for (const Json& link : reader.array("delegation_chain")) {
    if (!link.is_string()) {
      reader.refuse("delegation_chain", "must hold strings");
      break;
    }
    record.delegation_chain.push_back(link.get<std::string>());
  }
  record.what = reader.text("what");
  record.resource = reader.text("resource");
  record.why = reader.text("why");
  const auto outcome = outcome_from_string(reader.text("outcome"));
  if (!outcome) reader.refuse("outcome", "must be success, failure, denied or timeout");
  record.outcome = outcome ? *outcome : Outcome::failure;
  record.outcome_detail = reader.text("outcome_detail");
  JsonReader timestamp(reader.object("timestamp"), "entry.timestamp");
  const std::string logical = timestamp.text("logical");
  record.timestamp.physical_ns = timestamp.integer("physical_ns");
  record.timestamp.node = timestamp.text("node");
  record.timestamp.degraded = timestamp.boolean_or("degraded", false);
  std::string signature_value;
  if (!reader.any("signature").is_null()) {
    JsonReader signature(reader.object("signature"), "entry.signature");
    record.signature.emplace();
    record.signature->algorithm = signature.text("algorithm");
    signature_value = signature.text("value");
    CRETO_TRY(signature.finish());
  }
  const Json& metadata = reader.object("metadata");
  record.trace_id = reader.text("trace_id");
  CRETO_TRY(timestamp.finish());
  CRETO_TRY(reader.finish());
  record.timestamp.logical = CRETO_TRY(parse_u64(logical));
  record.id = CRETO_TRY(AuditId::parse(id));
  if (record.signature) record.signature->value = CRETO_TRY(from_base64(signature_value));
  record.metadata = CRETO_TRY(canonical_json(metadata));
  CRETO_TRY(check(record));
  return parsed;
}

}  // namespace creto::audit
