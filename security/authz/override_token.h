#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "creto/authz/authz.h"

namespace creto::authz {

/// What a token says of itself; all else it is bound to is recomputed from the request that shows it.
struct OverrideToken {
  RequestId request;
  Instant expires_at{};
  std::vector<OverrideGrant::Lift> lifts;
};

/// Makes and checks override tokens: `crov1.<base64url>` of request id, expiry, lifted forbids and a keyed BLAKE3 over
/// these and organization, agent, action, resource and arguments (docs/formats.md, "Override token"). Memory only.
class OverrideTokens {
 public:
  /// Requires: `key` has 32 bytes.
  explicit OverrideTokens(const Secret& key);

  /// Errors: invalid_input.
  Result<std::string> issue(std::string_view org, const OverrideGrant& grant) const;

  /// That `request.override_token` was issued for exactly this request. Does not look at the clock.
  /// Errors: permission_denied, without saying which part differs.
  Result<OverrideToken> verify(std::string_view org, const CheckRequest& request) const;

 private:
  Hash256 mac(std::string_view org, const Identity& agent, std::string_view action, const EntityUid& resource,
              const Hash256& arguments_hash, BytesView body) const;
  Secret key_;
};

/// The token's own words, unverified: for who asks the issuer over the wire. Errors: permission_denied.
Result<OverrideToken> read_override_token(std::string_view token);

}  // namespace creto::authz
