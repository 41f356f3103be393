#pragma once

#include <optional>

#include "creto/io/proto.h"
#include "creto/vault/v1/vault.pb.h"
#include "creto/vault/vault.h"

/// `to_proto` is total; `from_proto` refuses what a domain type cannot hold, with invalid_input naming the field.
namespace creto::vault {

void to_proto(const SecretRef& from, v1::SecretRef& to);
void to_proto(const SecretInfo& from, v1::SecretInfo& to);
void to_proto(const SecretVersion& from, v1::Secret& to);
void to_proto(const SecretMetadata& from, v1::SecretMetadata& to);
void to_proto(const DelegationRestrictions& from, v1::DelegationRestrictions& to);
void to_proto(const SecretDelegation& from, v1::Delegation& to);
void to_proto(const DelegatedSecrets& from, v1::DelegatedSecrets& to);
void to_proto(const SecretAccess& from, v1::AccessLogEntry& to);

SecretRef from_proto(const v1::SecretRef& from);
Result<SecretMetadata> from_proto(const v1::SecretMetadata& from);
Result<SecretInfo> from_proto(const v1::SecretInfo& from);
Result<SecretVersion> from_proto(const v1::Secret& from);
Result<DelegationRestrictions> from_proto(const v1::DelegationRestrictions& from);
Result<SecretDelegation> from_proto(const v1::Delegation& from);
Result<DelegatedSecrets> from_proto(const v1::DelegatedSecrets& from);
Result<SecretAccess> from_proto(const v1::AccessLogEntry& from);

template <class Message>
Result<std::optional<Instant>> expiry_of(const Message& message) {
  if (!message.has_expires_at()) return std::optional<Instant>();
  const auto at = CRETO_TRY(proto::from_time(message.expires_at(), "expires_at"));
  return std::optional<Instant>(at);
}

}  // namespace creto::vault
