#include "usage.h"

#include <nlohmann/json.hpp>

#include "creto/common/assert.h"
#include "creto/common/json.h"

namespace creto::messaging {

using contracts::MessageBillableEvent;
using contracts::MessageEventType;

std::string encode_usage(const MessageBillableEvent& event) {
  Json chain = Json::array();
  for (const Identity& identity : event.delegation_chain) chain.push_back(identity.text());
  const Json json = {{"key", event.idempotency_key},
                     {"agent", event.agent.text()},
                     {"chain", std::move(chain)},
                     {"type", static_cast<int>(event.event_type)},
                     {"logical", std::to_string(event.timestamp.logical)},
                     {"physical_ns", std::to_string(event.timestamp.physical_ns)},
                     {"node", event.timestamp.node},
                     {"degraded", event.timestamp.degraded},
                     {"size", std::to_string(event.message_size_bytes)},
                     {"recipients", std::to_string(event.recipient_count)},
                     {"priority", std::string(contracts::to_string(event.priority))}};
  auto text = canonical_json(json);
  CRETO_ASSERT(text);
  return *std::move(text);
}

Result<MessageBillableEvent> decode_usage(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  JsonReader reader(json, "usage");
  const std::string key = reader.text("key");
  const std::string agent_text = reader.text("agent");
  const Json& chain = reader.array("chain");
  const std::int64_t type = reader.integer("type");
  const std::int64_t logical = reader.integer("logical");
  const std::int64_t physical = reader.integer("physical_ns");
  const std::string node = reader.text("node");
  const bool degraded = reader.boolean_or("degraded", false);
  const std::int64_t size = reader.integer("size");
  const std::int64_t recipients = reader.integer("recipients");
  const std::string priority_text = reader.text("priority");
  if (type < 0 || type > static_cast<int>(MessageEventType::subscription_created))
    reader.refuse("type", "is not known");
  if (size < 0 || recipients < 0 || logical < 0) reader.refuse("size", "must not be negative");
  CRETO_TRY(reader.finish());
  Identity agent = CRETO_TRY(Identity::parse(agent_text));
  const auto priority = CRETO_TRY(contracts::message_priority_from_string(priority_text));
  MessageBillableEvent out{.idempotency_key = key, .agent = std::move(agent), .delegation_chain = {}, .timestamp = {}};
  for (const Json& element : chain) {
    if (!element.is_string())
      return Error(Product::messaging, ErrorKind::invalid_input, "usage.chain: must hold texts");
    Identity identity = CRETO_TRY(Identity::parse(element.get<std::string>()));
    out.delegation_chain.push_back(std::move(identity));
  }
  out.event_type = static_cast<MessageEventType>(type);
  out.timestamp = {static_cast<std::uint64_t>(logical), physical, node, degraded};
  out.message_size_bytes = static_cast<std::uint64_t>(size);
  out.recipient_count = static_cast<std::uint64_t>(recipients);
  out.priority = priority;
  return out;
}

}  // namespace creto::messaging
