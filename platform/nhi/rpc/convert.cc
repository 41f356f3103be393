#include "rpc/convert.h"

namespace creto::nhi {
namespace {

using proto::bad_field;

Result<Instant> end_of(bool has, const google::protobuf::Timestamp& time, std::string_view field) {
  if (!has) return Instant::max();
  return proto::from_time(time, field);
}

SignedPrekey from_proto(const v1::SignedPrekey& prekey) {
  return SignedPrekey{prekey.id(), to_bytes(prekey.key()), proto::from_signature(prekey.signature())};
}
void to_proto(const SignedPrekey& prekey, v1::SignedPrekey& out) {
  out.set_id(prekey.id);
  out.set_key(proto::to_text(prekey.key));
  proto::set_signature(out.mutable_signature(), prekey.signature);
}

Result<Succession> from_proto(const v1::Succession& succession) {
  auto signed_at = CRETO_TRY(proto::from_time(succession.signed_at(), "succession.signed_at"));
  return Succession{succession.previous_key_id(), signed_at, proto::from_signature(succession.signature())};
}
void to_proto(const Succession& succession, v1::Succession& out) {
  out.set_previous_key_id(succession.previous_key_id);
  proto::set_time(out.mutable_signed_at(), succession.signed_at);
  proto::set_signature(out.mutable_signature(), succession.signature);
}

Bytes joined(const std::string& first, const std::string& second) {
  Bytes bytes = to_bytes(first);
  bytes.insert(bytes.end(), second.begin(), second.end());
  return bytes;
}

}  // namespace

v1::AgentType to_proto(AgentType type) {
  switch (type) {
    case AgentType::autonomous:
      return v1::AGENT_TYPE_AUTONOMOUS;
    case AgentType::supervised:
      return v1::AGENT_TYPE_SUPERVISED;
    case AgentType::workflow:
      return v1::AGENT_TYPE_WORKFLOW;
    case AgentType::tool:
      return v1::AGENT_TYPE_TOOL;
    case AgentType::human:
      return v1::AGENT_TYPE_HUMAN;
    case AgentType::service:
      return v1::AGENT_TYPE_SERVICE;
  }
  std::unreachable();
}

Result<std::optional<AgentType>> from_proto(v1::AgentType type) {
  switch (type) {
    case v1::AGENT_TYPE_UNSPECIFIED:
      return std::optional<AgentType>();
    case v1::AGENT_TYPE_AUTONOMOUS:
      return std::optional(AgentType::autonomous);
    case v1::AGENT_TYPE_SUPERVISED:
      return std::optional(AgentType::supervised);
    case v1::AGENT_TYPE_WORKFLOW:
      return std::optional(AgentType::workflow);
    case v1::AGENT_TYPE_TOOL:
      return std::optional(AgentType::tool);
    case v1::AGENT_TYPE_HUMAN:
      return std::optional(AgentType::human);
    case v1::AGENT_TYPE_SERVICE:
      return std::optional(AgentType::service);
    default:
      return bad_field("type", "has an unknown value");
  }
}

v1::AgentStatus to_proto(AgentStatus status) {
  switch (status) {
    case AgentStatus::active:
      return v1::AGENT_STATUS_ACTIVE;
    case AgentStatus::suspended:
      return v1::AGENT_STATUS_SUSPENDED;
    case AgentStatus::revoked:
      return v1::AGENT_STATUS_REVOKED;
  }
  std::unreachable();
}

Result<std::optional<AgentStatus>> from_proto(v1::AgentStatus status) {
  switch (status) {
    case v1::AGENT_STATUS_UNSPECIFIED:
      return std::optional<AgentStatus>();
    case v1::AGENT_STATUS_ACTIVE:
      return std::optional(AgentStatus::active);
    case v1::AGENT_STATUS_SUSPENDED:
      return std::optional(AgentStatus::suspended);
    case v1::AGENT_STATUS_REVOKED:
      return std::optional(AgentStatus::revoked);
    default:
      return bad_field("status", "has an unknown value");
  }
}

void to_proto(const Agent& agent, v1::Agent& out) {
  out.set_identity(agent.identity.text());
  out.set_name(agent.name);
  out.set_type(to_proto(agent.type));
  out.set_owner(agent.owner.text());
  proto::set_time(out.mutable_created_at(), agent.created_at);
  if (agent.expires_at != Instant::max()) proto::set_time(out.mutable_expires_at(), agent.expires_at);
  out.set_status(to_proto(agent.status));
  for (const auto& [key, value] : agent.attributes) (*out.mutable_attributes())[key] = value;
  for (const std::string& role : agent.roles) out.add_roles(role);
}

Result<Agent> from_proto(const v1::Agent& agent) {
  auto identity = CRETO_TRY(proto::from_identity(agent.identity(), "identity"));
  auto owner = CRETO_TRY(proto::from_identity(agent.owner(), "owner"));
  auto type = CRETO_TRY(from_proto(agent.type()));
  auto status = CRETO_TRY(from_proto(agent.status()));
  if (!type) return bad_field("type", "is missing");
  if (!status) return bad_field("status", "is missing");
  auto created_at = CRETO_TRY(proto::from_time(agent.created_at(), "created_at"));
  auto expires_at = CRETO_TRY(end_of(agent.has_expires_at(), agent.expires_at(), "expires_at"));
  return Agent{identity,
               agent.name(),
               *type,
               owner,
               created_at,
               expires_at,
               *status,
               {agent.attributes().begin(), agent.attributes().end()},
               {agent.roles().begin(), agent.roles().end()}};
}

void to_proto(const NewAgent& agent, v1::RegisterAgentRequest& out) {
  out.set_name(agent.name);
  out.set_type(to_proto(agent.type));
  if (agent.owner) out.set_owner(agent.owner->text());
  if (agent.valid_for) proto::set_duration(out.mutable_valid_for(), *agent.valid_for);
  for (const auto& [key, value] : agent.attributes) (*out.mutable_attributes())[key] = value;
}

Result<NewAgent> from_proto(const v1::RegisterAgentRequest& request) {
  NewAgent agent;
  agent.name = request.name();
  auto type = CRETO_TRY(from_proto(request.type()));
  agent.type = type.value_or(AgentType::autonomous);
  if (!request.owner().empty()) agent.owner = CRETO_TRY(proto::from_identity(request.owner(), "owner"));
  if (request.has_valid_for()) agent.valid_for = CRETO_TRY(proto::from_duration(request.valid_for(), "valid_for"));
  agent.attributes = {request.attributes().begin(), request.attributes().end()};
  return agent;
}

void to_proto(const AgentChange& change, v1::UpdateAgentRequest& out) {
  if (change.name) out.set_name(*change.name);
  if (change.status) out.set_status(to_proto(*change.status));
  if (change.expires_at) proto::set_time(out.mutable_expires_at(), *change.expires_at);
  if (change.attributes) {
    out.set_replace_attributes(true);
    for (const auto& [key, value] : *change.attributes) (*out.mutable_attributes())[key] = value;
  }
}

Result<AgentChange> from_proto(const v1::UpdateAgentRequest& request) {
  AgentChange change;
  if (!request.name().empty()) change.name = request.name();
  change.status = CRETO_TRY(from_proto(request.status()));
  if (request.has_expires_at()) change.expires_at = CRETO_TRY(proto::from_time(request.expires_at(), "expires_at"));
  if (request.replace_attributes()) {
    change.attributes.emplace(request.attributes().begin(), request.attributes().end());
  } else if (!request.attributes().empty()) {
    return bad_field("attributes", "are only taken with `replace_attributes`");
  }
  return change;
}

void to_proto(const AgentFilter& filter, v1::ListAgentsRequest& out) {
  if (filter.owner) out.set_owner(filter.owner->text());
  if (filter.type) out.set_type(to_proto(*filter.type));
  if (filter.status) out.set_status(to_proto(*filter.status));
  out.set_name(filter.name);
  out.set_role(filter.role);
  out.mutable_page()->set_size(static_cast<std::int32_t>(std::min<std::size_t>(filter.limit, 1 << 20)));
  out.mutable_page()->set_token(filter.after);
}

Result<AgentFilter> from_proto(const v1::ListAgentsRequest& request) {
  AgentFilter filter;
  if (!request.owner().empty()) filter.owner = CRETO_TRY(proto::from_identity(request.owner(), "owner"));
  filter.type = CRETO_TRY(from_proto(request.type()));
  filter.status = CRETO_TRY(from_proto(request.status()));
  filter.name = request.name();
  filter.role = request.role();
  if (request.page().size() < 0) return bad_field("page.size", "must be 1 to 1000");
  if (request.page().size() > 0) filter.limit = static_cast<std::size_t>(request.page().size());
  filter.after = request.page().token();
  return filter;
}

void to_proto(const Delegation& delegation, v1::Delegation& out) {
  out.set_id(delegation.id.to_string());
  out.set_org(delegation.org);
  out.set_delegator(delegation.delegator.text());
  out.set_delegatee(delegation.delegatee.text());
  if (delegation.parent) out.set_parent(delegation.parent->to_string());
  for (const std::string& permission : delegation.permissions) out.add_permissions(permission);
  proto::set_time(out.mutable_created_at(), delegation.created_at);
  proto::set_time(out.mutable_expires_at(), delegation.expires_at);
  out.set_key_id(delegation.key_id);
  proto::set_signature(out.mutable_signature(), delegation.signature);
  out.set_revoked(delegation.revoked);
}

Result<Delegation> from_proto(const v1::Delegation& delegation) {
  auto id = CRETO_TRY(proto::from_id<DelegationId>(delegation.id(), "id"));
  auto delegator = CRETO_TRY(proto::from_identity(delegation.delegator(), "delegator"));
  auto delegatee = CRETO_TRY(proto::from_identity(delegation.delegatee(), "delegatee"));
  std::optional<DelegationId> parent;
  if (!delegation.parent().empty()) parent = CRETO_TRY(proto::from_id<DelegationId>(delegation.parent(), "parent"));
  auto created_at = CRETO_TRY(proto::from_time(delegation.created_at(), "created_at"));
  auto expires_at = CRETO_TRY(proto::from_time(delegation.expires_at(), "expires_at"));
  return Delegation{id,
                    delegation.org(),
                    delegator,
                    delegatee,
                    parent,
                    {delegation.permissions().begin(), delegation.permissions().end()},
                    created_at,
                    expires_at,
                    delegation.key_id(),
                    proto::from_signature(delegation.signature()),
                    delegation.revoked()};
}

void to_proto(const NewDelegation& delegation, v1::CreateDelegationRequest& out) {
  out.set_delegator(delegation.delegator.text());
  out.set_delegatee(delegation.delegatee.text());
  if (delegation.parent) out.set_parent(delegation.parent->to_string());
  for (const std::string& permission : delegation.permissions) out.add_permissions(permission);
  proto::set_time(out.mutable_expires_at(), delegation.expires_at);
  if (delegation.id) out.set_id(delegation.id->to_string());
  if (delegation.created_at) proto::set_time(out.mutable_created_at(), *delegation.created_at);
  out.set_key_id(delegation.key_id);
  if (delegation.signature) proto::set_signature(out.mutable_signature(), *delegation.signature);
}

Result<NewDelegation> from_proto(const v1::CreateDelegationRequest& request, const Context& ctx) {
  std::string by = request.delegator().empty() ? ctx.caller_text() : request.delegator();
  auto delegator = CRETO_TRY(proto::from_identity(by, "delegator"));
  auto delegatee = CRETO_TRY(proto::from_identity(request.delegatee(), "delegatee"));
  NewDelegation delegation{delegator, delegatee, {}, {}, {}, {}, {}, {}, {}};
  if (!request.parent().empty())
    delegation.parent = CRETO_TRY(proto::from_id<DelegationId>(request.parent(), "parent"));
  delegation.permissions = {request.permissions().begin(), request.permissions().end()};
  if (!request.has_expires_at()) return bad_field("expires_at", "is missing");
  delegation.expires_at = CRETO_TRY(proto::from_time(request.expires_at(), "expires_at"));
  if (!request.id().empty()) delegation.id = CRETO_TRY(proto::from_id<DelegationId>(request.id(), "id"));
  if (request.has_created_at()) delegation.created_at = CRETO_TRY(proto::from_time(request.created_at(), "created_at"));
  delegation.key_id = request.key_id();
  if (request.has_signature()) delegation.signature = proto::from_signature(request.signature());
  return delegation;
}

void to_proto(const Chain& chain, v1::DelegationChain& out) {
  to_proto(chain.root, *out.mutable_root());
  for (const Delegation& link : chain.delegations) to_proto(link, *out.add_delegations());
  if (chain.valid_until != Instant::max()) proto::set_time(out.mutable_chain_valid_until(), chain.valid_until);
}

Result<Chain> from_proto(const v1::DelegationChain& chain) {
  if (static_cast<std::size_t>(chain.delegations_size()) >= delegation_chain_max_depth)
    return Error(Product::platform, ErrorKind::permission_denied, "the chain is deeper than 10");
  auto root = CRETO_TRY(from_proto(chain.root()));
  auto valid_until = CRETO_TRY(end_of(chain.has_chain_valid_until(), chain.chain_valid_until(), "chain_valid_until"));
  Chain result{std::move(root), {}, valid_until};
  for (const v1::Delegation& link : chain.delegations()) {
    auto delegation = CRETO_TRY(from_proto(link));
    result.delegations.push_back(std::move(delegation));
  }
  return result;
}

void to_proto(const PastChain& past, v1::PastDelegationChain& out) {
  to_proto(past.chain, *out.mutable_chain());
  if (past.from != Instant::min()) proto::set_time(out.mutable_from(), past.from);
  if (past.until != Instant::max()) proto::set_time(out.mutable_until(), past.until);
}

Result<PastChain> from_proto(const v1::PastDelegationChain& past) {
  auto chain = CRETO_TRY(from_proto(past.chain()));
  Instant from = Instant::min();
  if (past.has_from()) from = CRETO_TRY(proto::from_time(past.from(), "from"));
  auto until = CRETO_TRY(end_of(past.has_until(), past.until(), "until"));
  return PastChain{std::move(chain), from, until};
}

void to_proto(const PublicKeys& keys, v1::AgentPublicKeys& out) {
  out.set_key_id(keys.key_id);
  out.set_signing_key_ed25519(proto::to_text(keys.ed25519()));
  out.set_signing_key_ml_dsa(proto::to_text(keys.ml_dsa_65()));
  out.set_key_agreement_x25519(proto::to_text(keys.x25519()));
  out.set_encapsulation_key_ml_kem(proto::to_text(keys.ml_kem_768()));
  proto::set_time(out.mutable_valid_from(), keys.valid_from);
  if (keys.valid_until != Instant::max()) proto::set_time(out.mutable_valid_until(), keys.valid_until);
  if (keys.succession) to_proto(*keys.succession, *out.mutable_succession());
  out.set_compromised(keys.compromised);
}

Result<PublicKeys> from_proto(const v1::AgentPublicKeys& keys) {
  auto signing = CRETO_TRY(crypto::VerifyingKey::parse(crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65,
                                                       joined(keys.signing_key_ml_dsa(), keys.signing_key_ed25519())));
  std::optional<crypto::KemPublicKey> kem;
  if (!keys.encapsulation_key_ml_kem().empty())
    kem = CRETO_TRY(crypto::KemPublicKey::parse(crypto::KemAlgorithm::x_wing,
                                                joined(keys.encapsulation_key_ml_kem(), keys.key_agreement_x25519())));
  auto valid_from = CRETO_TRY(proto::from_time(keys.valid_from(), "valid_from"));
  auto valid_until = CRETO_TRY(end_of(keys.has_valid_until(), keys.valid_until(), "valid_until"));
  PublicKeys result{keys.key_id(), std::move(signing), std::move(kem), valid_from, valid_until};
  if (keys.has_succession()) result.succession = CRETO_TRY(from_proto(keys.succession()));
  result.compromised = keys.compromised();
  return result;
}

void to_proto(const KeyRotation& rotation, v1::RotateKeysRequest& out) {
  proto::set_duration(out.mutable_overlap(), rotation.overlap);
  out.set_compromised(rotation.compromised);
  if (!rotation.next) return;
  out.set_signing_algorithm(std::string(crypto::to_string(rotation.next->signing.algorithm())));
  out.set_signing_key(proto::to_text(rotation.next->signing.bytes()));
  if (rotation.next->kem) {
    out.set_kem_algorithm(std::string(crypto::to_string(rotation.next->kem->algorithm())));
    out.set_kem_key(proto::to_text(rotation.next->kem->bytes()));
  }
  to_proto(rotation.next->succession, *out.mutable_succession());
}

Result<KeyRotation> from_proto(const v1::RotateKeysRequest& request) {
  KeyRotation rotation;
  if (request.has_overlap()) rotation.overlap = CRETO_TRY(proto::from_duration(request.overlap(), "overlap"));
  rotation.compromised = request.compromised();
  if (request.signing_algorithm().empty()) {
    if (!request.signing_key().empty() || !request.kem_algorithm().empty() || request.has_succession())
      return bad_field("signing_algorithm", "is missing");
    return rotation;
  }
  auto algorithm = CRETO_TRY(crypto::parse_signature_algorithm(request.signing_algorithm()));
  auto signing = CRETO_TRY(crypto::VerifyingKey::parse(algorithm, as_bytes(request.signing_key())));
  std::optional<crypto::KemPublicKey> kem;
  if (!request.kem_algorithm().empty()) {
    auto kem_algorithm = CRETO_TRY(crypto::parse_kem_algorithm(request.kem_algorithm()));
    kem = CRETO_TRY(crypto::KemPublicKey::parse(kem_algorithm, as_bytes(request.kem_key())));
  }
  if (!request.has_succession()) return bad_field("succession", "is missing");
  auto succession = CRETO_TRY(from_proto(request.succession()));
  rotation.next = NextKeys{std::move(signing), std::move(kem), std::move(succession)};
  return rotation;
}

void to_proto(const KeyBundleUpload& bundle, v1::PublishKeyBundleRequest& out) {
  out.set_identity_dh(proto::to_text(bundle.identity_dh));
  proto::set_signature(out.mutable_identity_dh_signature(), bundle.identity_dh_signature);
  to_proto(bundle.signed_prekey, *out.mutable_signed_prekey());
  to_proto(bundle.last_resort_kem, *out.mutable_last_resort_kem());
  for (const OneTimePrekey& prekey : bundle.one_time) {
    auto* added = out.add_one_time();
    added->set_id(prekey.id);
    added->set_key(proto::to_text(prekey.key));
  }
  for (const SignedPrekey& prekey : bundle.one_time_kem) to_proto(prekey, *out.add_one_time_kem());
}

KeyBundleUpload from_proto(const v1::PublishKeyBundleRequest& bundle) {
  KeyBundleUpload upload{to_bytes(bundle.identity_dh()),
                         proto::from_signature(bundle.identity_dh_signature()),
                         from_proto(bundle.signed_prekey()),
                         from_proto(bundle.last_resort_kem()),
                         {},
                         {}};
  for (const auto& prekey : bundle.one_time()) upload.one_time.push_back({prekey.id(), to_bytes(prekey.key())});
  for (const auto& prekey : bundle.one_time_kem()) upload.one_time_kem.push_back(from_proto(prekey));
  return upload;
}

void to_proto(const KeyBundle& bundle, v1::KeyBundle& out) {
  out.set_identity(bundle.identity.text());
  to_proto(bundle.keys, *out.mutable_keys());
  out.set_identity_dh(proto::to_text(bundle.identity_dh));
  proto::set_signature(out.mutable_identity_dh_signature(), bundle.identity_dh_signature);
  to_proto(bundle.signed_prekey, *out.mutable_signed_prekey());
  to_proto(bundle.kem, *out.mutable_kem());
  out.set_kem_is_last_resort(bundle.kem_is_last_resort);
  if (bundle.one_time) {
    out.mutable_one_time()->set_id(bundle.one_time->id);
    out.mutable_one_time()->set_key(proto::to_text(bundle.one_time->key));
  }
}

Result<KeyBundle> from_proto(const v1::KeyBundle& bundle) {
  auto identity = CRETO_TRY(proto::from_identity(bundle.identity(), "identity"));
  auto keys = CRETO_TRY(from_proto(bundle.keys()));
  KeyBundle result{identity,
                   std::move(keys),
                   to_bytes(bundle.identity_dh()),
                   proto::from_signature(bundle.identity_dh_signature()),
                   from_proto(bundle.signed_prekey()),
                   from_proto(bundle.kem()),
                   bundle.kem_is_last_resort(),
                   std::nullopt};
  if (bundle.has_one_time()) result.one_time = OneTimePrekey{bundle.one_time().id(), to_bytes(bundle.one_time().key())};
  return result;
}

}  // namespace creto::nhi
