#include "nhi_service.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "creto/common/assert.h"
#include "creto/common/event.h"
#include "creto/common/json.h"
#include "creto/io/idempotency.h"
#include "delegation.h"
#include "token.h"

namespace creto::nhi {
namespace {

using std::chrono::seconds;

constexpr std::size_t key_sets_max = 256;
constexpr Nanos overlap_max = std::chrono::days(366);

std::string seal_label(const std::string& org, const Identity& identity, const std::string& key_id) {
  return fmt::format("nhi/key:{}/{}/{}", org, identity.text(), key_id);
}

}  // namespace

Result<std::pair<PublicKeys, Bytes>> NhiService::make_keys(const Context& ctx, std::optional<Identity>& identity,
                                                           Instant valid_until) {
  auto signing = crypto::SigningKey::generate(hybrid);
  auto kem = crypto::KemPrivateKey::generate(crypto::KemAlgorithm::x_wing);
  PublicKeys keys{key_id_of(signing.verifying_key(), kem.public_key()), signing.verifying_key(), kem.public_key(),
                  clock_.now(), valid_until};
  if (!identity) {
    ByteArray<32> first;
    std::ranges::copy(keys.ed25519(), first.begin());
    identity = Identity::agent(first);
  }
  Secret seeds(signing.seed().size() + kem.seed().size());
  std::ranges::copy(signing.seed().reveal(), seeds.writable().begin());
  std::ranges::copy(kem.seed().reveal(), seeds.writable().begin() + static_cast<std::ptrdiff_t>(signing.seed().size()));
  Bytes sealed = CRETO_TRY(sealer_.seal(seal_label(ctx.org, *identity, keys.key_id), seeds.reveal()));
  return std::pair(std::move(keys), std::move(sealed));
}

Result<std::shared_ptr<const PrivateKeys>> NhiService::private_keys(const Context& ctx, const Known& known,
                                                                    const std::string& key_id) {
  const Identity& identity = known.agent.identity;
  std::string key = cache_key(ctx, identity.text() + "\n" + key_id);
  if (auto found = private_.find(key)) return found;
  std::uint64_t generation = private_.generation();
  auto sealed = CRETO_TRY(
      sql::read(database_, ctx, [&](sql::Tx& tx) { return store::sealed_key(tx, ctx.org, identity, key_id); }));
  if (!sealed)
    return refuse(ErrorKind::permission_denied,
                  fmt::format("the private keys of `{}` are not held here", identity.text()));
  Secret seeds = CRETO_TRY(sealer_.unseal(seal_label(ctx.org, identity, key_id), *sealed));
  constexpr std::size_t signing_size = 64, kem_size = 32;
  if (seeds.size() != signing_size + kem_size)
    return refuse(ErrorKind::internal, fmt::format("the sealed keys of `{}` are damaged", identity.text()));
  auto signing = CRETO_TRY(crypto::SigningKey::from_seed(hybrid, seeds.reveal().first(signing_size)));
  auto kem = CRETO_TRY(crypto::KemPrivateKey::from_seed(crypto::KemAlgorithm::x_wing, seeds.reveal().last(kem_size)));
  return private_.put(key, PrivateKeys{std::move(signing), std::move(kem)}, generation);
}

Result<PublicKeys> NhiService::get_public_keys(const Context& ctx, const Identity& identity) {
  auto found = CRETO_TRY(known(ctx, identity));
  if (found->keys.empty()) return unknown(identity);
  return found->keys.front();
}

/// What follows the newest set, and its private halves where they are held here.
Result<std::pair<PublicKeys, std::optional<Bytes>>> NhiService::next_keys(const Context& ctx, const Known& known,
                                                                          const KeyRotation& rotation) {
  const Identity& identity = known.agent.identity;
  const PublicKeys& before = known.keys.front();
  const Instant now = clock_.now();
  if (!rotation.next) {
    std::optional<Identity> own = identity;
    auto [keys, sealed] = CRETO_TRY(make_keys(ctx, own, known.agent.expires_at));
    keys.succession = Succession{before.key_id, now, {}};
    const std::string bytes = CRETO_TRY(succession_signed_bytes(ctx.org, identity, keys, before.key_id, now));
    auto signer = CRETO_TRY(private_keys(ctx, known, before.key_id));
    keys.succession->signature = CRETO_TRY(signer->signing.sign(as_bytes(bytes), as_bytes(succession_context)));
    return std::pair(std::move(keys), std::optional(std::move(sealed)));
  }
  const NextKeys& next = *rotation.next;
  CRETO_TRY(check_algorithms(next.signing, next.kem));
  PublicKeys keys{key_id_of(next.signing, next.kem), next.signing, next.kem, now, Instant::max(), next.succession};
  if (known.find(keys.key_id) != nullptr)
    return refuse(ErrorKind::conflict, fmt::format("key set `{}` was in use before", keys.key_id));
  const Instant signed_at = next.succession.signed_at;
  if (signed_at > now + options_.clock_skew || signed_at < now - options_.clock_skew)
    return refuse(ErrorKind::invalid_input, "`signed_at` is not within five minutes of the server's clock");
  if (next.succession.previous_key_id != before.key_id)
    return refuse(ErrorKind::signature_invalid, fmt::format("`previous_key_id` is not `{}`", before.key_id));
  const std::string bytes = CRETO_TRY(succession_signed_bytes(ctx.org, identity, keys, before.key_id, signed_at));
  CRETO_TRY(before.signing.verify(as_bytes(bytes), next.succession.signature, as_bytes(succession_context)));
  return std::pair(std::move(keys), std::optional<Bytes>());
}

Result<PublicKeys> NhiService::rotate_keys(const Context& ctx, const Identity& identity, const KeyRotation& rotation) {
  if (rotation.overlap < Nanos(0) || rotation.overlap > overlap_max)
    return refuse(ErrorKind::invalid_input, "`overlap` must be 0 to 366 days");
  if (identity.is_human() != rotation.next.has_value())
    return refuse(ErrorKind::invalid_input, identity.is_human() ? "a human's next keys are made and signed on his side"
                                                                : "the keys of agents and services are made here");
  if (identity.is_human()) CRETO_TRY(check_speaks_for(ctx, identity));
  CRETO_TRY(refresh(ctx));
  auto found = CRETO_TRY(acting(ctx, identity));
  const PublicKeys before = found->keys.front();
  const Instant now = clock_.now();
  if (!before.in_force(now))
    return refuse(ErrorKind::expired, fmt::format("the keys of `{}` have ended", identity.text()));
  if (rotation.next && key_id_of(rotation.next->signing, rotation.next->kem) == before.key_id) return before;
  if (found->keys.size() >= key_sets_max)
    return refuse(ErrorKind::resource_exhausted,
                  fmt::format("`{}` has had {} key sets: register it anew", identity.text(), key_sets_max));
  auto [keys, sealed] = CRETO_TRY(next_keys(ctx, *found, rotation));
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<PublicKeys> {
    return io::once(
        tx, ctx, "nhi.rotate_keys", idempotency_window,
        [&]() -> Result<PublicKeys> {
          const auto sets = CRETO_TRY(store::list_keys(tx, ctx.org, identity));
          if (sets.front().key_id != before.key_id)
            return refuse(ErrorKind::conflict, fmt::format("the keys of `{}` were rotated meanwhile", identity.text()));
          for (const PublicKeys& set : sets) {
            if (!set.in_force(now)) continue;
            const Instant end = rotation.compromised ? now : std::min(set.valid_until, now + rotation.overlap);
            CRETO_TRY(store::end_keys(tx, ctx.org, identity, set.key_id, std::max(end, set.valid_from + Nanos(1)),
                                      rotation.compromised));
          }
          CRETO_TRY(store::insert_keys(tx, ctx.org, identity, keys, sealed, sets.size() + 1));
          auto record = record_of(ctx, "keys_rotated", identity);
          record.metadata = Json{{"key_id", keys.key_id},
                                 {"previous_key_id", before.key_id},
                                 {"compromised", rotation.compromised},
                                 {"overlap_seconds", rotation.compromised ? 0 : rotation.overlap / seconds(1)}}
                                .dump();
          CRETO_TRY(audit::record(tx, ctx, std::move(record)));
          CRETO_TRY(forget_after(tx));
          return keys;
        },
        [](const PublicKeys& made) { return made.key_id; },
        [&](std::string_view key_id) -> Result<PublicKeys> {
          const auto sets = CRETO_TRY(store::list_keys(tx, ctx.org, identity));
          const auto made = std::ranges::find(sets, key_id, &PublicKeys::key_id);
          if (made == sets.end())
            return refuse(ErrorKind::not_found, fmt::format("`{}` has no key `{}`", identity.text(), key_id));
          return *made;
        });
  });
}

Result<Signature> NhiService::sign(const Context& ctx, const Identity& identity, BytesView data,
                                   std::string_view context) {
  if (data.size() > sign_bytes_max) return refuse(ErrorKind::too_large, "`data` is over 4 MiB");
  if (context.size() > 255) return refuse(ErrorKind::invalid_input, "`context` is over 255 bytes");
  // These have calls of their own, with their own rules; prekeys an agent's endpoint signs here.
  if (context == delegation_context || context == token_context || context == succession_context)
    return refuse(ErrorKind::permission_denied, fmt::format("`{}` is not signed on demand", context));
  CRETO_TRY(check_speaks_for(ctx, identity));
  auto found = CRETO_TRY(known(ctx, identity));
  const bool told_by_another = context == event_signature_context && *ctx.caller != identity;
  if (!told_by_another) CRETO_TRY(check_acting(found->agent, clock_.now()));
  CRETO_ASSERT(!found->keys.empty());
  auto keys = CRETO_TRY(private_keys(ctx, *found, found->keys.front().key_id));
  return keys->signing.sign(data, as_bytes(context));
}

Result<> NhiService::verify(const Context& ctx, const Identity& identity, BytesView data, const Signature& signature,
                            std::string_view context) {
  if (data.size() > sign_bytes_max) return refuse(ErrorKind::too_large, "`data` is over 4 MiB");
  CRETO_TRY(crypto::parse_signature_algorithm(signature.algorithm));
  auto found = CRETO_TRY(known(ctx, identity));
  Instant now = clock_.now();
  Result<> last =
      refuse(ErrorKind::signature_invalid, fmt::format("`{}` has no key that is valid now", identity.text()));
  for (const PublicKeys& set : found->keys) {
    if (!set.in_force(now)) continue;
    last = set.signing.verify(data, signature, as_bytes(context));
    if (last) return last;
  }
  return last;
}

Result<> NhiService::verify_past(const Context& ctx, const Identity& identity, BytesView data,
                                 const Signature& signature, std::string_view context, Instant when,
                                 std::optional<Instant> told) {
  if (data.size() > sign_bytes_max) return refuse(ErrorKind::too_large, "`data` is over 4 MiB");
  CRETO_TRY(crypto::parse_signature_algorithm(signature.algorithm));
  auto found = CRETO_TRY(known(ctx, identity));
  // Whoever holds a stolen key can also write an earlier date.
  const auto counts = [&](const PublicKeys& set) { return !set.compromised || (told && *told < set.valid_until); };
  // Newer sets count too: a service may sign today what an agent used before its keys were rotated.
  const auto lasted = [&](const PublicKeys& set) { return counts(set) && set.valid_until > when; };
  const bool some = std::ranges::any_of(found->keys, lasted);
  Result<> last =
      refuse(ErrorKind::signature_invalid, fmt::format("`{}` has no key that counted then", identity.text()));
  for (const PublicKeys& set : found->keys) {
    if (!counts(set) || (some && !lasted(set))) continue;
    last = set.signing.verify(data, signature, as_bytes(context));
    if (last) return last;
  }
  return last;
}

Result<Secret> NhiService::decapsulate(const Context& ctx, const Identity& identity, std::string_view key_id,
                                       BytesView ciphertext) {
  CRETO_TRY(check_speaks_for(ctx, identity));
  auto found = CRETO_TRY(known(ctx, identity));
  // What must be kept for years outlives those who wrote it: a service opens it for whom policy permits.
  if (*ctx.caller == identity) CRETO_TRY(check_acting(found->agent, clock_.now()));
  if (found->find(key_id) == nullptr)
    return refuse(ErrorKind::not_found, fmt::format("`{}` has no key `{}`", identity.text(), key_id.substr(0, 64)));
  auto keys = CRETO_TRY(private_keys(ctx, *found, std::string(key_id)));
  return keys->kem.decapsulate(ciphertext);
}

}  // namespace creto::nhi
