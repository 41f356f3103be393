#include "rpc/convert.h"

namespace creto::vault {
namespace {

v1::SecretType type_to_proto(SecretType type) {
  switch (type) {
    case SecretType::generic:
      return v1::SECRET_TYPE_GENERIC;
    case SecretType::api_key:
      return v1::SECRET_TYPE_API_KEY;
    case SecretType::password:
      return v1::SECRET_TYPE_PASSWORD;
    case SecretType::certificate:
      return v1::SECRET_TYPE_CERTIFICATE;
    case SecretType::private_key:
      return v1::SECRET_TYPE_PRIVATE_KEY;
    case SecretType::token:
      return v1::SECRET_TYPE_TOKEN;
    case SecretType::connection_string:
      return v1::SECRET_TYPE_CONNECTION_STRING;
  }
  return v1::SECRET_TYPE_UNSPECIFIED;
}

Result<SecretType> type_from_proto(v1::SecretType type) {
  switch (type) {
    case v1::SECRET_TYPE_UNSPECIFIED:
    case v1::SECRET_TYPE_GENERIC:
      return SecretType::generic;
    case v1::SECRET_TYPE_API_KEY:
      return SecretType::api_key;
    case v1::SECRET_TYPE_PASSWORD:
      return SecretType::password;
    case v1::SECRET_TYPE_CERTIFICATE:
      return SecretType::certificate;
    case v1::SECRET_TYPE_PRIVATE_KEY:
      return SecretType::private_key;
    case v1::SECRET_TYPE_TOKEN:
      return SecretType::token;
    case v1::SECRET_TYPE_CONNECTION_STRING:
      return SecretType::connection_string;
    default:
      return proto::bad_field("type", "is not a type of secret");
  }
}

}  // namespace

void to_proto(const SecretRef& from, v1::SecretRef& to) {
  to.set_path(from.path);
  to.set_name(from.name);
}

SecretRef from_proto(const v1::SecretRef& from) { return {from.path(), from.name()}; }

void to_proto(const SecretMetadata& from, v1::SecretMetadata& to) {
  to.set_type(type_to_proto(from.type));
  to.set_description(from.description);
  to.mutable_labels()->insert(from.labels.begin(), from.labels.end());
}

Result<SecretMetadata> from_proto(const v1::SecretMetadata& from) {
  SecretMetadata metadata;
  metadata.type = CRETO_TRY(type_from_proto(from.type()));
  metadata.description = from.description();
  metadata.labels.insert(from.labels().begin(), from.labels().end());
  return metadata;
}

void to_proto(const SecretInfo& from, v1::SecretInfo& to) {
  to_proto(from.ref, *to.mutable_reference());
  to.set_owner(from.owner.text());
  to.set_version(from.version);
  to_proto(from.metadata, *to.mutable_metadata());
  proto::set_time(to.mutable_created_at(), from.created_at);
  if (from.expires_at) proto::set_time(to.mutable_expires_at(), *from.expires_at);
}

Result<SecretInfo> from_proto(const v1::SecretInfo& from) {
  auto owner = CRETO_TRY(Identity::parse(from.owner()));
  auto metadata = CRETO_TRY(from_proto(from.metadata()));
  const auto created_at = CRETO_TRY(proto::from_time(from.created_at(), "created_at"));
  const auto expires_at = CRETO_TRY(expiry_of(from));
  return SecretInfo{from_proto(from.reference()), std::move(owner), from.version(),
                    std::move(metadata),          created_at,       expires_at};
}

void to_proto(const SecretVersion& from, v1::Secret& to) {
  to_proto(from.info, *to.mutable_info());
  to.set_value(std::string(from.value.reveal_text()));
}

Result<SecretVersion> from_proto(const v1::Secret& from) {
  auto info = CRETO_TRY(from_proto(from.info()));
  return SecretVersion{std::move(info), Secret::copy_of(from.value())};
}

void to_proto(const DelegationRestrictions& from, v1::DelegationRestrictions& to) {
  if (from.bound_sandbox) to.set_bound_sandbox(from.bound_sandbox->to_string());
  to.set_single_use(from.single_use);
  to.set_memory_only(from.memory_only);
  to.set_max_uses(from.max_uses);
}

Result<DelegationRestrictions> from_proto(const v1::DelegationRestrictions& from) {
  DelegationRestrictions restrictions;
  if (!from.bound_sandbox().empty()) restrictions.bound_sandbox = CRETO_TRY(SandboxId::parse(from.bound_sandbox()));
  restrictions.single_use = from.single_use();
  restrictions.memory_only = from.memory_only();
  restrictions.max_uses = from.max_uses();
  return restrictions;
}

void to_proto(const SecretDelegation& from, v1::Delegation& to) {
  to.set_id(from.id.to_string());
  to.set_delegator(from.delegator.text());
  to.set_delegatee(from.delegatee.text());
  for (const auto& ref : from.secrets) to_proto(ref, *to.add_secrets());
  proto::set_time(to.mutable_created_at(), from.created_at);
  proto::set_time(to.mutable_expires_at(), from.expires_at);
  to_proto(from.restrictions, *to.mutable_restrictions());
  to.set_status(static_cast<v1::DelegationStatus>(static_cast<int>(from.status) + 1));
  to.set_uses(from.uses);
}

Result<SecretDelegation> from_proto(const v1::Delegation& from) {
  const auto id = CRETO_TRY(SecretDelegationId::parse(from.id()));
  auto delegator = CRETO_TRY(Identity::parse(from.delegator()));
  auto delegatee = CRETO_TRY(Identity::parse(from.delegatee()));
  const auto created_at = CRETO_TRY(proto::from_time(from.created_at(), "created_at"));
  const auto expires_at = CRETO_TRY(proto::from_time(from.expires_at(), "expires_at"));
  const auto restrictions = CRETO_TRY(from_proto(from.restrictions()));
  if (from.status() < v1::DELEGATION_STATUS_ACTIVE || from.status() > v1::DELEGATION_STATUS_EXHAUSTED) {
    return proto::bad_field("status", "is not the status of a delegation");
  }
  std::vector<SecretRef> secrets;
  for (const auto& ref : from.secrets()) secrets.push_back(from_proto(ref));
  return SecretDelegation{id,
                          std::move(delegator),
                          std::move(delegatee),
                          std::move(secrets),
                          created_at,
                          expires_at,
                          restrictions,
                          from.uses(),
                          static_cast<DelegationStatus>(from.status() - 1)};
}

void to_proto(const DelegatedSecrets& from, v1::DelegatedSecrets& to) {
  to_proto(from.delegation, *to.mutable_delegation());
  for (const auto& secret : from.secrets) {
    auto& out = *to.add_secrets();
    to_proto(secret.ref, *out.mutable_reference());
    out.set_version(secret.version);
    out.set_value(std::string(secret.value.reveal_text()));
  }
}

Result<DelegatedSecrets> from_proto(const v1::DelegatedSecrets& from) {
  auto delegation = CRETO_TRY(from_proto(from.delegation()));
  DelegatedSecrets out{std::move(delegation), {}};
  for (const auto& secret : from.secrets()) {
    out.secrets.push_back(
        DelegatedSecret{from_proto(secret.reference()), secret.version(), Secret::copy_of(secret.value())});
  }
  return out;
}

void to_proto(const SecretAccess& from, v1::AccessLogEntry& to) {
  to.set_sequence(from.sequence);
  proto::set_time(to.mutable_at(), from.at);
  to.set_who(from.who.text());
  to.set_operation(from.operation);
  to_proto(from.ref, *to.mutable_reference());
  to.set_version(from.version);
  to.set_delegation_id(from.delegation_id);
  to.set_allowed(from.allowed);
}

Result<SecretAccess> from_proto(const v1::AccessLogEntry& from) {
  auto who = CRETO_TRY(Identity::parse(from.who()));
  const auto at = CRETO_TRY(proto::from_time(from.at(), "at"));
  return SecretAccess{from.sequence(),
                      at,
                      std::move(who),
                      from.operation(),
                      from_proto(from.reference()),
                      from.version(),
                      from.delegation_id(),
                      from.allowed()};
}

}  // namespace creto::vault
