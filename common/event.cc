#include "creto/common/event.h"

#include <nlohmann/json.hpp>

namespace creto {
namespace {

constexpr int schema_version = 1;
constexpr std::string_view type_name = "creto.event.v1";

Result<Json> unsigned_json(const EventEnvelope& event) {
  Json chain = Json::array();
  for (const Identity& identity : event.delegation_chain) chain.push_back(identity.text());
  Json payload = CRETO_TRY(parse_json(event.payload));
  return Json{{"schema_version", schema_version},
              {"event_type", event.event_type},
              {"event_id", event.event_id.to_string()},
              {"agent_nhi", event.agent.text()},
              {"delegation_chain", std::move(chain)},
              {"timestamp",
               {{"logical", std::to_string(event.timestamp.logical)},
                {"physical_ns", std::to_string(event.timestamp.physical_ns)},
                {"node", event.timestamp.node},
                {"degraded", event.timestamp.degraded}}},
              {"payload", std::move(payload)}};
}

}  // namespace

Result<std::string> EventEnvelope::signed_bytes() const {
  const Json json = CRETO_TRY(unsigned_json(*this));
  const std::string canonical = CRETO_TRY(canonical_json(json));
  return std::string(type_name) + "\n" + canonical;
}

Result<std::string> EventEnvelope::to_json() const {
  Json json = CRETO_TRY(unsigned_json(*this));
  if (signature) json["signature"] = {{"algorithm", signature->algorithm}, {"value", base64(signature->value)}};
  return canonical_json(json);
}

Result<EventEnvelope> EventEnvelope::from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  JsonReader reader(json, "event");
  if (reader.integer("schema_version") != schema_version) reader.refuse("schema_version", "must be 1");
  const std::string type = reader.text("event_type");
  const std::string id_text = reader.text("event_id");
  const std::string agent_text = reader.text("agent_nhi");
  const Json& chain_json = reader.array("delegation_chain");
  const Json& timestamp_json = reader.object("timestamp");
  const Json& payload = reader.object("payload");
  const Json& signature_json = reader.object("signature");
  CRETO_TRY(reader.finish());

  const EventId id = CRETO_TRY(EventId::parse(id_text));
  Identity agent = CRETO_TRY(Identity::parse(agent_text));
  DelegationChain chain;
  for (const Json& element : chain_json) {
    if (!element.is_string())
      return Error(Product::platform, ErrorKind::invalid_input, "event.delegation_chain: must hold identity strings");
    Identity identity = CRETO_TRY(Identity::parse(element.get<std::string>()));
    chain.push_back(std::move(identity));
  }

  JsonReader ts(timestamp_json, "event.timestamp");
  Timestamp timestamp;
  const std::int64_t logical = ts.integer("logical");
  if (logical < 0) ts.refuse("logical", "must not be negative");
  timestamp.logical = static_cast<std::uint64_t>(logical);
  timestamp.physical_ns = ts.integer("physical_ns");
  timestamp.node = ts.text("node");
  timestamp.degraded = ts.boolean_or("degraded", false);
  CRETO_TRY(ts.finish());

  std::optional<Signature> signature;
  if (!signature_json.empty()) {
    JsonReader sig(signature_json, "event.signature");
    const std::string algorithm = sig.text("algorithm");
    const std::string value = sig.text("value");
    CRETO_TRY(sig.finish());
    Bytes bytes = CRETO_TRY(from_base64(value));
    signature = Signature{algorithm, std::move(bytes)};
  }
  std::string canonical_payload = CRETO_TRY(canonical_json(payload));
  return EventEnvelope{type,
                       id,
                       std::move(agent),
                       std::move(chain),
                       std::move(timestamp),
                       std::move(canonical_payload),
                       std::move(signature)};
}

}  // namespace creto
