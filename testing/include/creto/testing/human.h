#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "creto/crypto/signing.h"
#include "creto/nhi/nhi.h"

namespace creto::testing {

/// A registered human with the key in his own hand, as `creto init` makes one. For tests that link creto::nhi.
struct Human {
  Human(nhi::Nhi& nhi, const std::string& email) : identity(Identity::human(email).value()) {
    const Context ctx = Context::of_service(Identity::service("test").value());
    nhi.register_human(ctx, identity, email, key.verifying_key(), std::nullopt).value();
    key_id = nhi.get_public_keys(ctx, identity).value().key_id;
  }

  /// What he asks nhi to write down, signed on his side.
  nhi::NewDelegation delegation(const Identity& to, const std::vector<std::string>& permissions, Instant now,
                                Nanos valid_for = std::chrono::hours(24)) const {
    const nhi::Delegation link{.id = DelegationId::fresh(now),
                               .org = "default",
                               .delegator = identity,
                               .delegatee = to,
                               .parent = std::nullopt,
                               .permissions = permissions,
                               .created_at = now,
                               .expires_at = now + valid_for,
                               .key_id = key_id,
                               .signature = {},
                               .revoked = false};
    const std::string document = link.signed_bytes().value();
    return {.delegator = identity,
            .delegatee = to,
            .parent = link.parent,
            .permissions = permissions,
            .expires_at = link.expires_at,
            .id = link.id,
            .created_at = now,
            .key_id = key_id,
            .signature = key.sign(as_bytes(document), as_bytes(nhi::delegation_context)).value()};
  }

  /// The set of `fresh` as what follows his own, signed on his side.
  nhi::NextKeys next(const crypto::SigningKey& fresh, Instant now) const {
    const nhi::PublicKeys made{nhi::key_id_of(fresh.verifying_key(), std::nullopt), fresh.verifying_key(),
                               std::nullopt};
    const std::string document = nhi::succession_signed_bytes("default", identity, made, key_id, now).value();
    return {.signing = fresh.verifying_key(),
            .succession = {key_id, now, key.sign(as_bytes(document), as_bytes(nhi::succession_context)).value()}};
  }

  Identity identity;
  crypto::SigningKey key = crypto::SigningKey::generate(crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65);
  std::string key_id;
};

}  // namespace creto::testing
