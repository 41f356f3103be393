#include "creto/vault/vault.h"
#include "creto/vault/vault_lookup.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <set>

#include "creto/audit/audit_log.h"
#include "creto/io/idempotency.h"
#include "creto/io/sql.h"
#include "secret_codec.h"
#include "vault_store.h"

namespace creto::vault {
namespace {

constexpr std::size_t batch_max = 64;
constexpr std::size_t page_max = 1000;
constexpr Nanos repeat_window = std::chrono::hours(24);

Error vault_error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }
Error no_secret(const SecretRef& ref) {
  return vault_error(ErrorKind::not_found, fmt::format("there is no secret `{}`", ref.text()));
}
Error no_delegation(const SecretDelegationId& id) {
  return vault_error(ErrorKind::not_found, fmt::format("there is no secret delegation `{}`", id.to_string()));
}

Result<> check_refs(const std::vector<SecretRef>& refs) {
  if (refs.empty() || refs.size() > batch_max) {
    return vault_error(ErrorKind::invalid_input, fmt::format("`secrets` must name 1 to {} secrets", batch_max));
  }
  for (const auto& ref : refs) CRETO_TRY(check(ref));
  if (std::set(refs.begin(), refs.end()).size() != refs.size()) {
    return vault_error(ErrorKind::invalid_input, "`secrets` names a secret twice");
  }
  return {};
}

class VaultService final : public Vault {
 public:
  VaultService(sql::Database& database, crypto::KeySealer& sealer, AccessControl& access, const Clock& clock,
               VaultOptions options)
      : database_(database), sealer_(sealer), access_(access), clock_(clock), options_(options) {}

  Result<SecretInfo> create_secret(const Context& ctx, NewSecret secret) override {
    CRETO_TRY(check(secret.ref));
    CRETO_TRY(check(secret.metadata));
    CRETO_TRY(check_value(secret.value));
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    const auto now = clock_.now();
    CRETO_TRY(check_expiry(secret.expires_at, now));
    const SecretHead head{SecretId::fresh(now).to_string(), secret.ref, caller, 1};
    StoredVersion version{SecretInfo{secret.ref, caller, 1, secret.metadata, now, secret.expires_at}, {}};
    version.sealed = CRETO_TRY(sealer_.seal(aad(ctx, head, 1), secret.value.reveal()));
    return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<SecretInfo> {
      return io::once(
          tx, ctx, "vault.create_secret", repeat_window,
          [&]() -> Result<SecretInfo> {
            const auto there = CRETO_TRY(store::find_head(tx, ctx, secret.ref));
            if (there) {
              return vault_error(ErrorKind::already_exists,
                                 fmt::format("secret `{}` is there already", secret.ref.text()));
            }
            CRETO_TRY(store::insert_head(tx, ctx, head));
            CRETO_TRY(store::insert_version(tx, ctx, head, version));
            CRETO_TRY(record(tx, ctx, "secret.create", secret.ref, 1, {}));
            return version.info;
          },
          encode_info, info_from_json);
    });
  }

  Result<SecretVersion> get_secret(const Context& ctx, const SecretRef& ref, std::uint64_t version) override {
    CRETO_TRY(check(ref));
    const auto head = CRETO_TRY(permitted(ctx, ref, "secret.read"));
    const auto stored = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<StoredVersion> {
      return read_version(tx, ctx, head.id, ref, version, {});
    }));
    return open(ctx, head, stored);
  }

  Result<std::vector<SecretVersion>> get_secrets(const Context& ctx, const std::vector<SecretRef>& refs) override {
    CRETO_TRY(check_refs(refs));
    std::vector<SecretHead> heads;
    for (const auto& ref : refs) {
      auto head = CRETO_TRY(permitted(ctx, ref, "secret.read"));
      heads.push_back(std::move(head));
    }
    const auto stored = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<std::vector<StoredVersion>> {
      std::vector<StoredVersion> all;
      for (const auto& head : heads) {
        auto one = CRETO_TRY(read_version(tx, ctx, head.id, head.ref, 0, {}));
        all.push_back(std::move(one));
      }
      return all;
    }));
    std::vector<SecretVersion> opened;
    for (std::size_t i = 0; i < stored.size(); ++i) {
      auto one = CRETO_TRY(open(ctx, heads[i], stored[i]));
      opened.push_back(std::move(one));
    }
    return opened;
  }

  Result<std::vector<SecretInfo>> list_secrets(const Context& ctx, std::string_view path_prefix, std::string_view after,
                                               std::size_t limit) override {
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    CRETO_TRY(check_limit(limit));
    if (path_prefix.size() > 256 || !is_valid_utf8(path_prefix)) {
      return vault_error(ErrorKind::invalid_input, "`path_prefix` must be at most 256 bytes of UTF-8");
    }
    std::optional<SecretRef> from;
    if (!after.empty()) from = CRETO_TRY(SecretRef::parse(after));
    std::vector<SecretInfo> found;
    while (found.size() < limit) {
      const auto page = CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) -> Result<std::vector<SecretInfo>> {
        const auto heads = CRETO_TRY(store::list_heads(tx, ctx, path_prefix, from, limit));
        std::vector<SecretInfo> infos;
        for (const auto& head : heads) {
          const auto version = CRETO_TRY(store::find_version(tx, ctx, head, head.latest));
          CRETO_ASSERT(version.has_value());
          infos.push_back(version->info);
        }
        return infos;
      }));
      for (const auto& info : page) {
        if (found.size() == limit) break;
        if (info.owner == caller || access_.require(ctx, "secret.read", "Secret", info.ref.text()))
          found.push_back(info);
      }
      if (page.size() < limit) break;
      from = page.back().ref;
    }
    return found;
  }

  Result<SecretInfo> update_secret(const Context& ctx, SecretUpdate update) override {
    CRETO_TRY(check(update.ref));
    CRETO_TRY(check_value(update.value));
    if (update.metadata) CRETO_TRY(check(*update.metadata));
    const auto now = clock_.now();
    CRETO_TRY(check_expiry(update.expires_at, now));
    const auto known = CRETO_TRY(permitted(ctx, update.ref, "secret.write"));
    return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<SecretInfo> {
      return io::once(
          tx, ctx, "vault.update_secret", repeat_window,
          [&]() -> Result<SecretInfo> {
            auto head = CRETO_TRY(same_secret(tx, ctx, known.id, update.ref));
            if (update.expected_version != 0 && update.expected_version != head.latest) {
              return vault_error(ErrorKind::conflict, fmt::format("`{}` is at version {}, not {}", update.ref.text(),
                                                                  head.latest, update.expected_version));
            }
            const auto latest = CRETO_TRY(store::find_version(tx, ctx, head, head.latest));
            CRETO_ASSERT(latest.has_value());
            StoredVersion next{latest->info, {}};
            next.info.version = ++head.latest;
            next.info.created_at = now;
            if (update.metadata) next.info.metadata = *update.metadata;
            if (update.expires_at) next.info.expires_at = update.expires_at;
            next.sealed = CRETO_TRY(sealer_.seal(aad(ctx, head, head.latest), update.value.reveal()));
            CRETO_TRY(store::insert_version(tx, ctx, head, next));
            CRETO_TRY(store::set_latest(tx, ctx, head));
            if (head.latest > options_.versions_kept) {
              CRETO_TRY(store::delete_versions(tx, ctx, head, head.latest - options_.versions_kept));
            }
            CRETO_TRY(record(tx, ctx, "secret.update", update.ref, head.latest, {}));
            return next.info;
          },
          encode_info, info_from_json);
    });
  }

  Result<> delete_secret(const Context& ctx, const SecretRef& ref) override {
    CRETO_TRY(check(ref));
    const auto known = CRETO_TRY(permitted(ctx, ref, "secret.write"));
    return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<> {
      const auto head = CRETO_TRY(same_secret(tx, ctx, known.id, ref));
      CRETO_TRY(store::delete_secret(tx, ctx, head));
      return record(tx, ctx, "secret.delete", ref, head.latest, {});
    });
  }

  Result<SecretDelegation> create_delegation(const Context& ctx, const DelegationRequest& request) override {
    CRETO_TRY(check_refs(request.secrets));
    CRETO_TRY(check_ttl(request.ttl));
    auto restrictions = request.restrictions;
    if (restrictions.single_use && restrictions.max_uses > 1) {
      return vault_error(ErrorKind::invalid_input, "`single_use` and `max_uses` above 1 contradict each other");
    }
    if (restrictions.single_use) restrictions.max_uses = 1;
    restrictions.single_use = restrictions.max_uses == 1;
    if (options_.require_memory_only && !restrictions.memory_only) {
      return vault_error(ErrorKind::invalid_input,
                         "`memory_only` must be set: secrets may not be written to disk here");
    }
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    std::vector<std::string> ids;
    for (const auto& ref : request.secrets) {
      const auto head = CRETO_TRY(permitted(ctx, ref, "secret.delegate"));
      ids.push_back(head.id);
    }
    const auto now = clock_.now();
    const StoredDelegation stored{
        SecretDelegation{SecretDelegationId::fresh(now), caller, request.delegatee, request.secrets, now,
                         now + request.ttl, restrictions, 0, DelegationStatus::active},
        ids};
    return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<SecretDelegation> {
      // Remembered is the id alone; a repeat reads the delegation as it is then.
      const auto id = CRETO_TRY(io::once(
          tx, ctx, "vault.create_delegation", repeat_window,
          [&]() -> Result<std::string> {
            for (std::size_t i = 0; i < ids.size(); ++i) CRETO_TRY(same_secret(tx, ctx, ids[i], request.secrets[i]));
            CRETO_TRY(store::insert_delegation(tx, ctx, stored));
            for (const auto& ref : request.secrets) {
              CRETO_TRY(record(tx, ctx, "secret.delegate", ref, 0, stored.delegation.id.to_string()));
            }
            return stored.delegation.id.to_string();
          },
          [](const std::string& text) { return text; },
          [](std::string_view text) -> Result<std::string> { return std::string(text); }));
      const auto made = CRETO_TRY(store::find_delegation(tx, ctx, id, now));
      CRETO_ASSERT(made.has_value());
      return made->delegation;
    });
  }

  Result<DelegatedSecrets> use_delegation(const Context& ctx, const SecretDelegationId& id,
                                          const std::optional<SandboxId>& sandbox) override {
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    auto used = sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Opened> {
      const auto now = clock_.now();
      auto stored = CRETO_TRY(store::find_delegation(tx, ctx, id.to_string(), now));
      // Whom it was not lent to does not learn that it is there.
      if (!stored || stored->delegation.delegatee != caller) return no_delegation(id);
      CRETO_TRY(usable(stored->delegation, sandbox));
      const bool counted = CRETO_TRY(store::count_use(tx, ctx, id.to_string(), now));
      CRETO_ASSERT(counted);
      ++stored->delegation.uses;
      Opened opened{std::move(stored->delegation), {}, {}};
      for (std::size_t i = 0; i < stored->secret_ids.size(); ++i) {
        CRETO_TRY(read_into(tx, ctx, stored->secret_ids[i], opened.delegation.secrets[i], id.to_string(), opened));
      }
      return opened;
    });
    if (!used) return refused(ctx, "secret.use", {}, id.to_string(), std::move(used).error());
    return hand_out(ctx, std::move(*used));
  }

  Result<DelegatedSecrets> get_delegated_secrets(const Context& ctx, const SandboxId& sandbox,
                                                 const std::vector<SecretRef>& refs, Nanos ttl) override {
    CRETO_TRY(check_refs(refs));
    CRETO_TRY(check_ttl(ttl));
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    // Policy is asked before the transaction: its answer may come from elsewhere. Ownership and leases are read again
    // inside.
    std::set<std::string> by_policy;
    std::vector<std::string> ids;
    for (const auto& ref : refs) {
      const auto now = clock_.now();
      bool lent = false;
      const auto head = CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) -> Result<std::optional<SecretHead>> {
        auto found = CRETO_TRY(store::find_head(tx, ctx, ref));
        if (found) {
          const auto lease = CRETO_TRY(store::find_lease(tx, ctx, found->id, caller, sandbox, now));
          lent = lease.has_value();
        }
        return found;
      }));
      if (!head || (head->owner != caller && !lent)) {
        auto allowed = access_.require(ctx, "secret.read", "Secret", ref.text());
        if (!allowed) return refused(ctx, "secret.read", ref, {}, std::move(allowed).error());
        if (!head) return no_secret(ref);
        by_policy.insert(head->id);
      }
      ids.push_back(head->id);
    }
    auto made = sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Opened> {
      const auto now = clock_.now();
      auto ends = now + ttl;
      std::set<std::string> counted;
      for (std::size_t i = 0; i < refs.size(); ++i) {
        const auto head = CRETO_TRY(same_secret(tx, ctx, ids[i], refs[i]));
        if (head.owner == caller || by_policy.contains(head.id)) continue;
        const auto lease = CRETO_TRY(store::find_lease(tx, ctx, head.id, caller, sandbox, now));
        if (!lease) {
          return vault_error(ErrorKind::permission_denied, fmt::format("`{}` is no longer lent", refs[i].text()));
        }
        ends = std::min(ends, lease->delegation.expires_at);
        const auto lease_id = lease->delegation.id.to_string();
        if (counted.insert(lease_id).second) {
          const bool one_more = CRETO_TRY(store::count_use(tx, ctx, lease_id, now));
          CRETO_ASSERT(one_more);
        }
      }
      const SecretDelegationId name = delegation_of(sandbox);
      if (CRETO_TRY(store::find_delegation(tx, ctx, name.to_string(), now)))
        return vault_error(ErrorKind::already_exists, fmt::format("`{}` was lent secrets before", sandbox.to_string()));
      const StoredDelegation stored{
          SecretDelegation{name, caller, caller, refs, now, ends, DelegationRestrictions{sandbox, false, true, 0}, 1,
                           DelegationStatus::active},
          ids};
      CRETO_TRY(store::insert_delegation(tx, ctx, stored));
      Opened opened{stored.delegation, {}, {}};
      const auto id = stored.delegation.id.to_string();
      for (std::size_t i = 0; i < refs.size(); ++i) CRETO_TRY(read_into(tx, ctx, ids[i], refs[i], id, opened));
      return opened;
    });
    if (!made) return refused(ctx, "secret.use", refs.front(), {}, std::move(made).error());
    return hand_out(ctx, std::move(*made));
  }

  Result<SecretDelegation> revoke_delegation(const Context& ctx, const SecretDelegationId& id) override {
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    const auto known = CRETO_TRY(find(ctx, id));
    if (known.delegator != caller && known.delegatee != caller) {
      for (const auto& ref : known.secrets) {
        auto allowed = access_.require(ctx, "secret.delegate", "Secret", ref.text());
        if (!allowed) return refused(ctx, "secret.revoke", ref, id.to_string(), std::move(allowed).error());
      }
    }
    return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<SecretDelegation> {
      const auto now = clock_.now();
      const auto before = CRETO_TRY(store::find_delegation(tx, ctx, id.to_string(), now));
      if (!before) return no_delegation(id);
      if (before->delegation.status == DelegationStatus::revoked) return before->delegation;
      CRETO_TRY(store::revoke(tx, ctx, id.to_string()));
      for (const auto& ref : before->delegation.secrets) {
        CRETO_TRY(record(tx, ctx, "secret.revoke", ref, 0, id.to_string()));
      }
      auto after = before->delegation;
      after.status = DelegationStatus::revoked;
      return after;
    });
  }

  Result<SecretDelegation> get_delegation(const Context& ctx, const SecretDelegationId& id) override {
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    auto found = CRETO_TRY(find(ctx, id));
    if (found.delegator != caller && found.delegatee != caller) return no_delegation(id);
    return found;
  }

  Result<std::vector<SecretAccess>> access_log(const Context& ctx, const SecretRef& ref, std::int64_t before,
                                               std::size_t limit) override {
    CRETO_TRY(check(ref));
    CRETO_TRY(check_limit(limit));
    if (before < 0) return vault_error(ErrorKind::invalid_input, "`before` is negative");
    CRETO_TRY(permitted(ctx, ref, "secret.audit"));
    return sql::read(database_, ctx, [&](sql::Tx& tx) -> Result<std::vector<SecretAccess>> {
      return store::list_access(tx, ctx, ref, before == 0 ? std::numeric_limits<std::int64_t>::max() : before, limit);
    });
  }

  HealthStatus health() override {
    auto probe = sealer_.seal("vault/health", as_bytes("probe"));
    if (!probe) return {Health::unhealthy, "the root key cannot be used"};
    auto reachable = database_.read(Context(), [](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.query("SELECT 1 FROM vault_secrets LIMIT 1"));
      return {};
    });
    if (!reachable) return {Health::unhealthy, "the database does not answer"};
    return {};
  }

 private:
  /// What a transaction granted, still sealed.
  struct Opened {
    SecretDelegation delegation;
    std::vector<SecretHead> heads;
    std::vector<StoredVersion> versions;
  };

  static Result<std::reference_wrapper<const Identity>> caller_of(const Context& ctx) {
    if (!ctx.caller) return vault_error(ErrorKind::unauthenticated, "no caller");
    return std::cref(*ctx.caller);
  }

  static std::string aad(const Context& ctx, const SecretHead& head, std::uint64_t version) {
    return fmt::format("vault/secret:{}/{}/{}", ctx.org, head.id, version);
  }

  static std::string encode_info(const SecretInfo& info) {
    auto text = to_json(info);
    CRETO_ASSERT(text.has_value());
    return *text;
  }

  static Result<> check_limit(std::size_t limit) {
    if (limit == 0 || limit > page_max) {
      return vault_error(ErrorKind::invalid_input, fmt::format("`limit` must be 1 to {}", page_max));
    }
    return {};
  }

  static Result<> check_expiry(const std::optional<Instant>& expires_at, Instant now) {
    if (expires_at && *expires_at <= now) return vault_error(ErrorKind::invalid_input, "`expires_at` is in the past");
    return {};
  }

  Result<> check_ttl(Nanos ttl) const {
    if (ttl <= Nanos::zero() || ttl > options_.delegation_ttl_max) {
      return vault_error(ErrorKind::invalid_input, fmt::format("`ttl` must be over 0 and at most {}",
                                                               creto::to_string(options_.delegation_ttl_max)));
    }
    return {};
  }

  /// The secret if the caller owns it or policy permits `action`. Without permission nobody learns whether it is there.
  Result<SecretHead> permitted(const Context& ctx, const SecretRef& ref, std::string_view action) {
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    auto head = CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_head(tx, ctx, ref); }));
    if (head && head->owner == caller) return std::move(*head);
    auto allowed = access_.require(ctx, action, "Secret", ref.text());
    if (!allowed) return refused(ctx, action, ref, {}, std::move(allowed).error());
    if (!head) return no_secret(ref);
    return std::move(*head);
  }

  /// The head again inside a transaction: it may have been deleted, and another made under its name, since it was
  /// permitted.
  static Result<SecretHead> same_secret(sql::Tx& tx, const Context& ctx, std::string_view id, const SecretRef& ref) {
    auto head = CRETO_TRY(store::find_head_by_id(tx, ctx, id));
    if (!head) return no_secret(ref);
    return std::move(*head);
  }

  Result<StoredVersion> read_version(sql::Tx& tx, const Context& ctx, std::string_view id, const SecretRef& ref,
                                     std::uint64_t version, const std::string& delegation) {
    const auto head = CRETO_TRY(same_secret(tx, ctx, id, ref));
    auto stored = CRETO_TRY(store::find_version(tx, ctx, head, version == 0 ? head.latest : version));
    if (!stored) {
      return vault_error(ErrorKind::not_found, fmt::format("secret `{}` has no version {}", ref.text(), version));
    }
    if (stored->info.expires_at && *stored->info.expires_at <= clock_.now()) {
      return vault_error(ErrorKind::expired, fmt::format("secret `{}` has expired", ref.text()));
    }
    CRETO_TRY(
        record(tx, ctx, delegation.empty() ? "secret.read" : "secret.use", ref, stored->info.version, delegation));
    return std::move(*stored);
  }

  Result<> read_into(sql::Tx& tx, const Context& ctx, std::string_view id, const SecretRef& ref,
                     const std::string& delegation, Opened& opened) {
    auto head = CRETO_TRY(same_secret(tx, ctx, id, ref));
    auto version = CRETO_TRY(read_version(tx, ctx, id, ref, 0, delegation));
    opened.heads.push_back(std::move(head));
    opened.versions.push_back(std::move(version));
    return {};
  }

  Result<SecretVersion> open(const Context& ctx, const SecretHead& head, const StoredVersion& stored) {
    auto value = CRETO_TRY(sealer_.unseal(aad(ctx, head, stored.info.version), stored.sealed));
    return SecretVersion{stored.info, std::move(value)};
  }

  Result<DelegatedSecrets> hand_out(const Context& ctx, Opened granted) {
    DelegatedSecrets out{std::move(granted.delegation), {}};
    for (std::size_t i = 0; i < granted.heads.size(); ++i) {
      auto version = CRETO_TRY(open(ctx, granted.heads[i], granted.versions[i]));
      out.secrets.push_back(DelegatedSecret{granted.heads[i].ref, version.info.version, std::move(version.value)});
    }
    return out;
  }

  static Result<> usable(const SecretDelegation& delegation, const std::optional<SandboxId>& sandbox) {
    const auto id = delegation.id.to_string();
    switch (delegation.status) {
      case DelegationStatus::active:
        break;
      case DelegationStatus::expired:
        return vault_error(ErrorKind::expired, fmt::format("secret delegation `{}` has expired", id));
      case DelegationStatus::revoked:
        return vault_error(ErrorKind::permission_denied, fmt::format("secret delegation `{}` was revoked", id));
      case DelegationStatus::exhausted:
        return vault_error(ErrorKind::resource_exhausted, fmt::format("secret delegation `{}` is used up", id));
    }
    const auto& bound = delegation.restrictions.bound_sandbox;
    if (bound && bound != sandbox) {
      return vault_error(ErrorKind::permission_denied,
                         fmt::format("secret delegation `{}` is for another sandbox", id));
    }
    return {};
  }

  Result<SecretDelegation> find(const Context& ctx, const SecretDelegationId& id) {
    auto found = CRETO_TRY(sql::read(
        database_, ctx, [&](sql::Tx& tx) { return store::find_delegation(tx, ctx, id.to_string(), clock_.now()); }));
    if (!found) return no_delegation(id);
    return std::move(found->delegation);
  }

  /// Access log and audit log, in the transaction of what they tell of.
  Result<> record(sql::Tx& tx, const Context& ctx, std::string_view operation, const SecretRef& ref,
                  std::uint64_t version, const std::string& delegation, const Error* refusal = nullptr) {
    if (!ref.name.empty()) {
      CRETO_TRY(store::insert_access(tx, ctx,
                                     SecretAccess{0, clock_.now(), *ctx.caller, std::string(operation), ref, version,
                                                  delegation, refusal == nullptr}));
    }
    auto entry = audit::AuditRecord::of(ctx, std::string(operation),
                                        ref.name.empty() ? "secret_delegation:" + delegation : "secret:" + ref.text(),
                                        refusal == nullptr ? audit::Outcome::success : audit::Outcome::denied);
    if (refusal != nullptr) entry.outcome_detail = refusal->to_string();
    if (refusal == nullptr) {
      entry.metadata = fmt::format(R"({{"delegation_id":"{}","version":"{}"}})", delegation, version);
    }
    CRETO_TRY(audit::record(tx, ctx, std::move(entry)));
    return {};
  }

  /// Writes a refusal down and returns it. What is no refusal (a database that is away) is passed on as it is.
  Error refused(const Context& ctx, std::string_view operation, const SecretRef& ref, const std::string& delegation,
                Error error) {
    if (error.category() == ErrorCategory::transient || error.kind() == ErrorKind::internal) return error;
    auto written =
        database_.transaction(ctx, [&](sql::Tx& tx) { return record(tx, ctx, operation, ref, 0, delegation, &error); });
    if (!written) return std::move(written).error();
    return error;
  }

  sql::Database& database_;
  crypto::KeySealer& sealer_;
  AccessControl& access_;
  const Clock& clock_;
  const VaultOptions options_;
};

}  // namespace

Result<std::optional<SecretInfo>> find_secret(sql::Database& database, const Context& ctx, const SecretRef& ref) {
  return sql::read(database, ctx, [&](sql::Tx& tx) -> Result<std::optional<SecretInfo>> {
    const auto head = CRETO_TRY(store::find_head(tx, ctx, ref));
    if (!head) return std::optional<SecretInfo>();
    auto version = CRETO_TRY(store::find_version(tx, ctx, *head, head->latest));
    if (!version) return std::optional<SecretInfo>();
    return std::optional(std::move(version->info));
  });
}

Result<std::unique_ptr<Vault>> create_vault(sql::Database& database, crypto::KeySealer& sealer, AccessControl& access,
                                            const Clock& clock, VaultOptions options) {
  if (options.versions_kept == 0) {
    return vault_error(ErrorKind::invalid_input, "`versions_kept` must be at least 1");
  }
  CRETO_TRY(audit::prepare(database));
  CRETO_TRY(store::migrate(database));
  return std::make_unique<VaultService>(database, sealer, access, clock, options);
}

}  // namespace creto::vault
