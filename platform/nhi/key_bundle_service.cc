#include "nhi_service.h"

#include <fmt/format.h>

#include "delegation.h"

namespace creto::nhi {
namespace {

constexpr std::int64_t prekeys_max = 1000;

}  // namespace

Result<PrekeyCount> NhiService::publish_key_bundle(const Context& ctx, const Identity& identity,
                                                   const KeyBundleUpload& bundle) {
  CRETO_TRY(check_speaks_for(ctx, identity));
  auto found = CRETO_TRY(acting(ctx, identity));
  constexpr std::size_t dh_size = 32, kem_size = 1184;
  if (bundle.one_time.size() > 100 || bundle.one_time_kem.size() > 100)
    return refuse(ErrorKind::invalid_input, "at most 100 one-time prekeys of each kind at once");
  auto check = [&](std::string_view field, PrekeyUse use, std::uint32_t id, const Bytes& key, std::size_t size,
                   const Signature& signature) -> Result<> {
    if (key.size() != size) return refuse(ErrorKind::invalid_input, fmt::format("`{}` must be {} bytes", field, size));
    auto holds = found->keys.front().signing.verify(as_bytes(prekey_signed_bytes(identity, use, id, key)), signature,
                                                    as_bytes(prekey_context));
    if (!holds) return refuse(holds.error().kind(), fmt::format("`{}`: {}", field, holds.error().message()));
    return {};
  };
  CRETO_TRY(check("identity_dh", PrekeyUse::identity_dh, 0, bundle.identity_dh, dh_size, bundle.identity_dh_signature));
  CRETO_TRY(check("signed_prekey", PrekeyUse::signed_prekey, bundle.signed_prekey.id, bundle.signed_prekey.key, dh_size,
                  bundle.signed_prekey.signature));
  CRETO_TRY(check("last_resort_kem", PrekeyUse::kem, bundle.last_resort_kem.id, bundle.last_resort_kem.key, kem_size,
                  bundle.last_resort_kem.signature));
  for (const SignedPrekey& prekey : bundle.one_time_kem)
    CRETO_TRY(check("one_time_kem", PrekeyUse::kem, prekey.id, prekey.key, kem_size, prekey.signature));
  for (const OneTimePrekey& prekey : bundle.one_time)
    if (prekey.key.size() != dh_size) return refuse(ErrorKind::invalid_input, "`one_time` keys must be 32 bytes");
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<PrekeyCount> {
    const std::string& key_id = found->keys.front().key_id;
    CRETO_TRY(store::put_bundle(tx, ctx.org, identity, bundle, key_id));
    auto count = CRETO_TRY(store::count_prekeys(tx, ctx.org, identity, key_id));
    if (count.one_time > prekeys_max || count.one_time_kem > prekeys_max)
      return refuse(ErrorKind::resource_exhausted,
                    fmt::format("`{}` has more than {} one-time prekeys", identity.text(), prekeys_max));
    CRETO_TRY(audit::record(tx, ctx, record_of(ctx, "key_bundle_published", identity)));
    return count;
  });
}

Result<KeyBundle> NhiService::take_key_bundle(const Context& ctx, const Identity& identity) {
  auto found = CRETO_TRY(acting(ctx, identity));
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<KeyBundle> {
    const auto key_id = CRETO_TRY(store::bundle_key_id(tx, ctx.org, identity));
    if (!key_id) return refuse(ErrorKind::not_found, fmt::format("`{}` has published no key bundle", identity.text()));
    const PublicKeys* keys = found->find(*key_id);
    if (keys == nullptr || !keys->in_force(clock_.now()))
      return refuse(ErrorKind::not_found,
                    fmt::format("`{}` has published no key bundle since its keys were rotated", identity.text()));
    return store::take_bundle(tx, ctx.org, identity, *keys);
  });
}

Result<PrekeyCount> NhiService::prekey_count(const Context& ctx, const Identity& identity) {
  auto found = CRETO_TRY(known(ctx, identity));
  return sql::read(database_, ctx, [&](sql::Tx& tx) {
    return store::count_prekeys(tx, ctx.org, identity, found->keys.front().key_id);
  });
}

}  // namespace creto::nhi
