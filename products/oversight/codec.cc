#include "codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "creto/common/json.h"
#include "creto/common/names.h"
#include "creto/crypto/hash.h"

namespace creto::oversight {
namespace {

constexpr std::int64_t schema_version = 1;
constexpr std::size_t document_bytes_max = 64 << 10;

Error invalid(std::string message) { return Error(Product::oversight, ErrorKind::invalid_input, std::move(message)); }

constexpr auto final_actions = std::to_array<Named<FinalAction>>(
    {{FinalAction::auto_deny, "auto_deny"}, {FinalAction::auto_approve, "auto_approve"}});
constexpr auto trigger_words = std::to_array<Named<Trigger>>({{Trigger::authorization, "authorization"},
                                                              {Trigger::cost_threshold, "cost_threshold"},
                                                              {Trigger::quota_breach, "quota_breach"}});

Json to_json(const std::vector<Identity>& identities) {
  Json list = Json::array();
  for (const Identity& identity : identities) list.push_back(identity.text());
  return list;
}

Result<std::vector<Identity>> identities_from(const Json& list, std::string_view path) {
  std::vector<Identity> identities;
  for (const Json& element : list) {
    if (!element.is_string()) return invalid(fmt::format("{}: must hold identity strings", path));
    Identity identity = CRETO_TRY(Identity::parse(element.get<std::string>()));
    identities.push_back(std::move(identity));
  }
  return identities;
}

std::vector<std::string> texts_from(const Json& list) {
  std::vector<std::string> texts;
  for (const Json& element : list)
    if (element.is_string()) texts.push_back(element.get<std::string>());
  return texts;
}

Json to_json(const Policy& policy) {
  Json tiers = Json::array();
  for (const Tier& tier : policy.tiers)
    tiers.push_back({{"approvers", to_json(tier.approvers)},
                     {"quorum", tier.quorum},
                     {"timeout_ns", std::to_string(tier.timeout.count())}});
  Json triggers = Json::array();
  for (const Trigger trigger : policy.triggers) triggers.push_back(std::string(to_string(trigger)));
  return {{"id", policy.id},
          {"description", policy.description},
          {"triggers", std::move(triggers)},
          {"tiers", std::move(tiers)},
          {"final_action", std::string(to_string(policy.final_action))},
          {"allow_self_approval", policy.allow_self_approval},
          {"channels", policy.channels}};
}

Result<Policy> policy_from(const Json& json) {
  JsonReader reader(json, "policy");
  Policy policy;
  policy.id = reader.text("id");
  policy.description = reader.text_or("description", "");
  const Json& triggers = reader.array("triggers");
  const Json& tiers = reader.array("tiers");
  const std::string final_action = reader.text("final_action");
  policy.allow_self_approval = reader.boolean_or("allow_self_approval", false);
  policy.channels = texts_from(reader.array("channels"));
  CRETO_TRY(reader.finish());
  policy.final_action = CRETO_TRY(final_action_from_string(final_action));
  policy.triggers.clear();
  for (const std::string& word : texts_from(triggers)) {
    const Trigger trigger = CRETO_TRY(trigger_from_string(word));
    policy.triggers.push_back(trigger);
  }
  for (const Json& element : tiers) {
    JsonReader tier_reader(element, "policy.tiers[]");
    Tier tier;
    const Json& approvers = tier_reader.array("approvers");
    tier.quorum = static_cast<std::uint32_t>(std::clamp<std::int64_t>(tier_reader.integer("quorum"), 0, UINT32_MAX));
    tier.timeout = Nanos(tier_reader.integer("timeout_ns"));
    CRETO_TRY(tier_reader.finish());
    tier.approvers = CRETO_TRY(identities_from(approvers, "policy.tiers[].approvers"));
    policy.tiers.push_back(std::move(tier));
  }
  return policy;
}

Json to_json(const Signature& signature) {
  return {{"algorithm", signature.algorithm}, {"value", base64(signature.value)}};
}

Result<Signature> signature_from(const Json& json) {
  JsonReader reader(json, "signature");
  std::string algorithm = reader.text("algorithm");
  const std::string value = reader.text("value");
  CRETO_TRY(reader.finish());
  Bytes bytes = CRETO_TRY(from_base64(value));
  return Signature{std::move(algorithm), std::move(bytes)};
}

std::string ns_text(Instant instant) { return std::to_string(unix_ns(instant)); }

}  // namespace

std::string_view to_string(FinalAction action) { return name_of(final_actions, action); }
Result<FinalAction> final_action_from_string(std::string_view text) {
  return value_of(final_actions, text, "final action", Product::oversight);
}
std::string_view to_string(Trigger trigger) { return name_of(trigger_words, trigger); }
Result<Trigger> trigger_from_string(std::string_view text) {
  return value_of(trigger_words, text, "trigger", Product::oversight);
}

Hash256 Request::arguments_hash() const { return crypto::sha3_256(as_bytes(action.arguments)); }

Result<> validate(const Policy& policy) {
  const auto id_character = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  };
  if (policy.id.empty() || policy.id.size() > 128 || !std::ranges::all_of(policy.id, id_character))
    return invalid("policy.id: must be 1 to 128 of a-z, A-Z, 0-9, `.`, `_` and `-`");
  if (policy.description.size() > 1000) return invalid("policy.description: must have at most 1000 characters");
  if (policy.triggers.empty()) return invalid("policy.triggers: must name at least one");
  if (policy.tiers.empty() || policy.tiers.size() > 8) return invalid("policy.tiers: must be 1 to 8");
  for (std::size_t i = 0; i < policy.tiers.size(); ++i) {
    const Tier& tier = policy.tiers[i];
    const std::string path = fmt::format("policy.tiers[{}]", i);
    if (tier.approvers.empty() || tier.approvers.size() > 64) return invalid(path + ".approvers: must be 1 to 64");
    for (const Identity& approver : tier.approvers) {
      if (!approver.is_human()) return invalid(fmt::format("{}.approvers: `{}` is not a human", path, approver.text()));
      if (std::ranges::count(tier.approvers, approver) != 1)
        return invalid(fmt::format("{}.approvers: `{}` is named twice", path, approver.text()));
    }
    if (tier.quorum < 1 || tier.quorum > tier.approvers.size())
      return invalid(path + ".quorum: must be 1 to the number of approvers");
    if (tier.timeout < std::chrono::seconds(1) || tier.timeout > std::chrono::days(30))
      return invalid(path + ".timeout: must be 1s to 30d");
  }
  if (policy.channels.size() > 8) return invalid("policy.channels: must be at most 8");
  for (const std::string& channel : policy.channels)
    if (channel != "cli" && channel != "webhook")
      return invalid(fmt::format("policy.channels: `{}` is neither `cli` nor `webhook`", channel.substr(0, 64)));
  return {};
}

Result<std::string> encode(const Policy& policy) { return canonical_json(to_json(policy)); }

Result<Policy> decode_policy(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  return policy_from(json);
}

Result<std::string> encode(const Request& request) {
  Json requirements = Json::array();
  for (const Requirement& requirement : request.requirements)
    requirements.push_back({{"policy", to_json(requirement.policy)},
                            {"forbid", requirement.forbid},
                            {"tier", requirement.tier},
                            {"tier_ends_ns", ns_text(requirement.tier_ends)},
                            {"met", requirement.met},
                            {"met_by_timeout", requirement.met_by_timeout}});
  Json responses = Json::array();
  for (const Response& response : request.responses)
    responses.push_back({{"approver", response.approver.text()},
                         {"approve", response.approve},
                         {"notes", response.notes},
                         {"document", response.document},
                         {"signature", to_json(response.signature)},
                         {"received_ns", ns_text(response.received_at)}});
  return canonical_json(Json{{"schema_version", schema_version},
                             {"id", request.id.to_string()},
                             {"version", std::to_string(request.version)},
                             {"state", std::string(contracts::to_string(request.state))},
                             {"agent", request.action.agent.text()},
                             {"delegation_chain", to_json(request.action.delegation_chain)},
                             {"sandbox", request.action.sandbox ? request.action.sandbox->to_string() : ""},
                             {"action", request.action.action},
                             {"resource_type", request.action.resource_type},
                             {"resource_id", request.action.resource_id},
                             {"arguments", request.action.arguments},
                             {"description", request.description},
                             {"reasoning", request.reasoning},
                             {"related_memories", request.related_memories},
                             {"confidence", request.confidence},
                             {"risk_factors", request.risk_factors},
                             {"context_problem", request.context_problem},
                             {"requirements", std::move(requirements)},
                             {"responses", std::move(responses)},
                             {"decision_response", request.decision_response},
                             {"created_ns", ns_text(request.created_at)},
                             {"decided_ns", ns_text(request.decided_at)}});
}

Result<Request> decode_request(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text, {.bytes_max = 16 << 20}));
  JsonReader reader(json, "request");
  if (reader.integer("schema_version") != schema_version) reader.refuse("schema_version", "must be 1");
  const std::string id = reader.text("id");
  const std::int64_t version = reader.integer("version");
  if (version < 0) reader.refuse("version", "must not be negative");
  const std::string state = reader.text("state");
  const std::string agent = reader.text("agent");
  const Json& chain = reader.array("delegation_chain");
  const std::string sandbox = reader.text("sandbox");
  const std::string action = reader.text("action");
  const std::string resource_type = reader.text("resource_type");
  const std::string resource_id = reader.text("resource_id");
  const std::string arguments = reader.text("arguments");
  const std::string description = reader.text("description");
  const std::string reasoning = reader.text("reasoning");
  const Json& memories = reader.array("related_memories");
  const Json& confidence = reader.any("confidence");
  const Json& risks = reader.array("risk_factors");
  const std::string context_problem = reader.text("context_problem");
  const Json& requirements = reader.array("requirements");
  const Json& responses = reader.array("responses");
  const std::string decision_response = reader.text("decision_response");
  const std::int64_t created = reader.integer("created_ns");
  const std::int64_t decided = reader.integer("decided_ns");
  CRETO_TRY(reader.finish());

  const RequestId request_id = CRETO_TRY(RequestId::parse(id));
  Identity agent_identity = CRETO_TRY(Identity::parse(agent));
  DelegationChain delegation_chain = CRETO_TRY(identities_from(chain, "request.delegation_chain"));
  std::optional<SandboxId> sandbox_id;
  if (!sandbox.empty()) sandbox_id = CRETO_TRY(SandboxId::parse(sandbox));
  Request request{.id = request_id,
                  .action = {std::move(agent_identity), std::move(delegation_chain), sandbox_id, action, resource_type,
                             resource_id, arguments}};
  request.version = static_cast<std::uint64_t>(version);
  request.state = CRETO_TRY(contracts::approval_state_from_string(state));
  request.description = description;
  request.reasoning = reasoning;
  request.related_memories = texts_from(memories);
  request.confidence = confidence.is_number() ? confidence.get<double>() : 0;
  request.risk_factors = texts_from(risks);
  request.context_problem = context_problem;
  request.decision_response = decision_response;
  request.created_at = from_unix_ns(created);
  request.decided_at = from_unix_ns(decided);
  for (const Json& element : requirements) {
    JsonReader r(element, "request.requirements[]");
    const Json& policy_json = r.object("policy");
    Requirement requirement;
    requirement.forbid = r.text("forbid");
    const std::int64_t tier = r.integer("tier");
    requirement.tier_ends = from_unix_ns(r.integer("tier_ends_ns"));
    requirement.met = r.boolean_or("met", false);
    requirement.met_by_timeout = r.boolean_or("met_by_timeout", false);
    CRETO_TRY(r.finish());
    requirement.policy = CRETO_TRY(policy_from(policy_json));
    if (tier < 0 || static_cast<std::size_t>(tier) >= requirement.policy.tiers.size())
      return invalid("request.requirements[].tier: does not exist");
    requirement.tier = static_cast<std::uint32_t>(tier);
    request.requirements.push_back(std::move(requirement));
  }
  for (const Json& element : responses) {
    JsonReader r(element, "request.responses[]");
    const std::string approver = r.text("approver");
    const bool approve = r.boolean_or("approve", false);
    const std::string notes = r.text("notes");
    const std::string document = r.text("document");
    const Json& signature_json = r.object("signature");
    const std::int64_t received = r.integer("received_ns");
    CRETO_TRY(r.finish());
    Identity identity = CRETO_TRY(Identity::parse(approver));
    Signature signature = CRETO_TRY(signature_from(signature_json));
    request.responses.push_back(
        Response{std::move(identity), approve, notes, document, std::move(signature), from_unix_ns(received)});
  }
  return request;
}

Result<std::string> ResponseDocument::signed_bytes() const {
  Json attached = CRETO_TRY(parse_json(response));
  if (!attached.is_object()) return invalid("response: must be a JSON object");
  const std::string canonical = CRETO_TRY(canonical_json(Json{{"schema_version", schema_version},
                                                              {"request_id", request.to_string()},
                                                              {"approver", approver.text()},
                                                              {"decision", approve ? "approve" : "deny"},
                                                              {"arguments_sha3_256", hex(arguments_hash)},
                                                              {"notes", notes},
                                                              {"response", std::move(attached)}}));
  return std::string(type_name) + "\n" + canonical;
}

Result<ResponseDocument> ResponseDocument::from_signed_bytes(std::string_view bytes) {
  if (bytes.size() > document_bytes_max)
    return Error(Product::oversight, ErrorKind::too_large,
                 fmt::format("response document: is over {} bytes", document_bytes_max));
  const std::string prefix = std::string(type_name) + "\n";
  if (!bytes.starts_with(prefix))
    return invalid(fmt::format("response document: must begin with `{}` and a newline", type_name));
  const Json json =
      CRETO_TRY(parse_json(bytes.substr(prefix.size()), {.bytes_max = document_bytes_max, .depth_max = 32}));
  JsonReader reader(json, "response document");
  if (reader.integer("schema_version") != schema_version) reader.refuse("schema_version", "must be 1");
  const std::string request = reader.text("request_id");
  const std::string approver = reader.text("approver");
  const std::string decision = reader.text("decision");
  const std::string hash_text = reader.text("arguments_sha3_256");
  const std::string notes = reader.text("notes");
  const Json& attached = reader.object("response");
  if (decision != "approve" && decision != "deny") reader.refuse("decision", "must be `approve` or `deny`");
  if (notes.size() > 4096) reader.refuse("notes", "must have at most 4096 characters");
  CRETO_TRY(reader.finish());

  const RequestId request_id = CRETO_TRY(RequestId::parse(request));
  Identity identity = CRETO_TRY(Identity::parse(approver));
  const Bytes hash = CRETO_TRY(from_hex(hash_text));
  ResponseDocument document{.request = request_id, .approver = std::move(identity)};
  if (hash.size() != document.arguments_hash.size())
    return invalid("response document.arguments_sha3_256: must be 64 hex digits");
  std::ranges::copy(hash, document.arguments_hash.begin());
  document.approve = decision == "approve";
  document.notes = notes;
  document.response = CRETO_TRY(canonical_json(attached));
  return document;
}

}  // namespace creto::oversight
