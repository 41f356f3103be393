#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "creto/crypto/hash.h"
#include "delegation.h"

// The rules of key sets, without I/O, clock or lock.
namespace creto::nhi {

std::string key_id_of(const crypto::VerifyingKey& signing, const std::optional<crypto::KemPublicKey>& kem) {
  const Hash256 hash = crypto::sha3_256({signing.bytes(), kem ? BytesView(kem->bytes()) : BytesView()});
  return hex(BytesView(hash).first(8));
}

Result<std::string> succession_signed_bytes(std::string_view org, const Identity& identity, const PublicKeys& next,
                                            std::string_view previous_key_id, Instant signed_at) {
  const Json json = {{"schema_version", 1},
                     {"org", org},
                     {"identity", identity.text()},
                     {"key_id", next.key_id},
                     {"signing_key", next.signing.text()},
                     {"kem_key", next.kem ? Json(next.kem->text()) : Json(nullptr)},
                     {"previous_key_id", previous_key_id},
                     {"signed_at", std::to_string(unix_ns(signed_at))}};
  const std::string canonical = CRETO_TRY(canonical_json(json));
  return "creto.succession\n" + canonical;
}

Result<> check_succession(std::string_view org, const Identity& identity, std::span<const PublicKeys> sets) {
  const auto broken = [&](std::string_view why) {
    return refuse(ErrorKind::signature_invalid, fmt::format("the keys of `{}`: {}", identity.text(), why));
  };
  if (sets.empty()) return broken("there are none");
  const PublicKeys* before = nullptr;
  for (std::size_t i = sets.size(); i-- > 0; before = &sets[i]) {
    const PublicKeys& set = sets[i];
    if (set.key_id != key_id_of(set.signing, set.kem)) return broken("a set is not what its id says");
    if (before == nullptr) {
      if (set.succession) return broken("the first set is missing");
      if (identity.is_agent() && !std::ranges::equal(set.ed25519(), identity.pinned_key()))
        return broken("the first set is not the one that the identity is made of");
      continue;
    }
    if (!set.succession || set.succession->previous_key_id != before->key_id)
      return broken(fmt::format("`{}` does not follow from `{}`", set.key_id, before->key_id));
    const std::string bytes =
        CRETO_TRY(succession_signed_bytes(org, identity, set, before->key_id, set.succession->signed_at));
    if (!before->signing.verify(as_bytes(bytes), set.succession->signature, as_bytes(succession_context)))
      return broken(fmt::format("`{}` did not sign `{}`", before->key_id, set.key_id));
  }
  return {};
}

}  // namespace creto::nhi
