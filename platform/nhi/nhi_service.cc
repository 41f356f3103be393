#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <nlohmann/json.hpp>
#include <shared_mutex>
#include <unordered_map>

#include "creto/audit/audit_log.h"
#include "creto/common/assert.h"
#include "creto/common/event.h"
#include "creto/common/json.h"
#include "creto/common/names.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/random.h"
#include "creto/io/idempotency.h"
#include "delegation.h"
#include "store.h"
#include "token.h"

namespace creto::nhi {
namespace {

using std::chrono::seconds;

constexpr auto agent_types = std::to_array<Named<AgentType>>({{AgentType::autonomous, "autonomous"},
                                                              {AgentType::supervised, "supervised"},
                                                              {AgentType::workflow, "workflow"},
                                                              {AgentType::tool, "tool"},
                                                              {AgentType::human, "human"},
                                                              {AgentType::service, "service"}});
constexpr auto agent_statuses = std::to_array<Named<AgentStatus>>(
    {{AgentStatus::active, "active"}, {AgentStatus::suspended, "suspended"}, {AgentStatus::revoked, "revoked"}});

constexpr auto hybrid = crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65;
constexpr Nanos idempotency_window = std::chrono::hours(24);
constexpr Nanos agent_valid_for_max = std::chrono::days(3653);
constexpr std::size_t sign_bytes_max = 4 << 20;
constexpr std::int64_t prekeys_max = 1000;
constexpr std::size_t key_sets_max = 256;
constexpr Nanos overlap_max = std::chrono::days(366);

std::string seal_label(const std::string& org, const Identity& identity, const std::string& key_id) {
  return fmt::format("nhi/key:{}/{}/{}", org, identity.text(), key_id);
}

Result<> check_algorithms(const crypto::VerifyingKey& signing, const std::optional<crypto::KemPublicKey>& kem) {
  if (signing.algorithm() != hybrid)
    return refuse(ErrorKind::unsupported_algorithm, "`signing_key` must be hybrid-ed25519-ml-dsa-65");
  if (kem && kem->algorithm() != crypto::KemAlgorithm::x_wing)
    return refuse(ErrorKind::unsupported_algorithm, "`kem_key` must be x-wing");
  return {};
}

Result<> check_name(const std::string& name) {
  std::size_t characters =
      static_cast<std::size_t>(std::ranges::count_if(name, [](char c) { return (c & 0xc0) != 0x80; }));
  bool printable = std::ranges::none_of(name, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
  if (characters < 1 || characters > 128 || !printable || !is_valid_utf8(name))
    return refuse(ErrorKind::invalid_input, "`name` must be 1 to 128 printable characters");
  if (name.starts_with("agent:") || name.starts_with("human:") || name.starts_with("service:"))
    return refuse(ErrorKind::invalid_input, "`name` must not look like an identity");
  return {};
}

Result<> check_attributes(const std::map<std::string, std::string>& attributes) {
  if (attributes.size() > 64) return refuse(ErrorKind::invalid_input, "`attributes` must be at most 64");
  for (const auto& [key, value] : attributes)
    if (key.empty() || key.size() > 64 || value.size() > 1024 || !is_valid_utf8(key) || !is_valid_utf8(value))
      return refuse(ErrorKind::invalid_input,
                    fmt::format("`attributes.{}`: keys are 1 to 64 and values up to 1024 bytes of text",
                                is_valid_utf8(key) ? key.substr(0, 64) : "?"));
  return {};
}

bool is_role(std::string_view role) {
  return !role.empty() && role.size() <= 64 &&
         std::ranges::all_of(role, [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; });
}

Error unknown(const Identity& identity) {
  return refuse(ErrorKind::not_found, fmt::format("there is no identity `{}`", identity.text()));
}

/// Why an identity may not act now; success where it may.
Result<> check_acting(const Agent& agent, Instant now) {
  if (agent.status != AgentStatus::active)
    return refuse(ErrorKind::permission_denied,
                  fmt::format("`{}` is {}", agent.identity.text(), to_string(agent.status)));
  if (agent.expires_at <= now)
    return refuse(ErrorKind::expired,
                  fmt::format("`{}` ended {}", agent.identity.text(), to_rfc3339(agent.expires_at)));
  return {};
}

audit::AuditRecord record_of(const Context& ctx, std::string what, const Identity& about) {
  return audit::AuditRecord::of(ctx, std::move(what), "nhi:agent:" + about.text());
}

/// Values by text key, each for a time. A value read before `clear` is never put after it.
template <class T>
class Cache {
 public:
  Cache(std::size_t entries_max, Nanos ttl, const Clock& clock) : entries_max_(entries_max), ttl_(ttl), clock_(clock) {}

  std::shared_ptr<const T> find(const std::string& key) const {
    std::shared_lock lock(mutex_);
    auto found = entries_.find(key);
    if (found == entries_.end() || found->second.until <= clock_.monotonic()) return nullptr;
    return found->second.value;
  }
  std::uint64_t generation() const {
    std::shared_lock lock(mutex_);
    return generation_;
  }
  std::shared_ptr<const T> put(const std::string& key, T value, std::uint64_t generation) {
    auto shared = std::make_shared<const T>(std::move(value));
    std::unique_lock lock(mutex_);
    if (generation == generation_) {
      if (entries_.size() >= entries_max_) entries_.clear();
      entries_[key] = {shared, clock_.monotonic() + ttl_};
    }
    return shared;
  }
  void clear() {
    std::unique_lock lock(mutex_);
    ++generation_;
    entries_.clear();
  }

 private:
  struct Entry {
    std::shared_ptr<const T> value;
    Monotonic until;
  };
  const std::size_t entries_max_;
  const Nanos ttl_;
  const Clock& clock_;
  mutable std::shared_mutex mutex_;
  std::uint64_t generation_ = 0;
  std::unordered_map<std::string, Entry> entries_;
};

/// An identity with all its key sets, newest first.
struct Known {
  Agent agent;
  std::vector<PublicKeys> keys;

  const PublicKeys* find(std::string_view key_id) const {
    for (const PublicKeys& set : keys)
      if (set.key_id == key_id) return &set;
    return nullptr;
  }
};

struct PrivateKeys {
  crypto::SigningKey signing;
  crypto::KemPrivateKey kem;
};

class NhiService final : public Nhi {
 public:
  NhiService(sql::Database& database, crypto::KeySealer& sealer, const Clock& clock, NhiOptions options)
      : database_(database),
        sealer_(sealer),
        clock_(clock),
        options_(options),
        known_(options.cache_entries, options.cache_ttl, clock),
        chains_(options.cache_entries, options.cache_ttl, clock),
        tokens_(options.cache_entries, options.cache_ttl, clock),
        private_(1000, options.cache_ttl, clock) {}

  Result<Agent> register_agent(const Context& ctx, const NewAgent& wanted) override;
  Result<Agent> register_human(const Context& ctx, const Identity& human, const std::string& name,
                               const crypto::VerifyingKey& signing,
                               const std::optional<crypto::KemPublicKey>& kem) override;
  Result<Agent> ensure_service(const Context& ctx, const Identity& service) override;
  Result<Agent> update_agent(const Context& ctx, const Identity& identity, const AgentChange& change) override;
  Result<Agent> set_roles(const Context& ctx, const Identity& human, std::vector<std::string> roles) override;
  Result<Agent> revoke_agent(const Context& ctx, const Identity& identity, const std::string& reason) override;
  Result<Agent> get_agent(const Context& ctx, const Identity& identity) override {
    auto found = CRETO_TRY(known(ctx, identity));
    return found->agent;
  }
  Result<std::vector<Agent>> list_agents(const Context& ctx, const AgentFilter& filter) override;
  Result<Agent> find_agent(const Context& ctx, const std::string& identity_or_name) override;
  Result<bool> is_registered(const Context& ctx, const Identity& identity) override;
  Result<bool> is_revoked(const Context& ctx, const Identity& identity) override;

  Result<ResolvedToken> resolve_token(const Context& ctx, const std::string& token) override;
  Result<std::string> issue_token(const Context& ctx, const Identity& identity, Nanos valid_for) override;

  Result<Delegation> create_delegation(const Context& ctx, const NewDelegation& wanted) override;
  Result<Chain> get_delegation_chain(const Context& ctx, const Identity& identity,
                                     const std::optional<DelegationId>& leaf) override;
  Result<PastChain> get_past_delegation_chain(const Context& ctx, const Identity& identity, Instant when) override;
  Result<> verify_delegation(const Context& ctx, const Chain& chain) override;
  Result<> revoke_delegation(const Context& ctx, const DelegationId& id) override;

  Result<PublicKeys> get_public_keys(const Context& ctx, const Identity& identity) override;
  Result<std::vector<PublicKeys>> key_sets(const Context& ctx, const Identity& identity) override {
    auto found = CRETO_TRY(known(ctx, identity));
    return found->keys;
  }
  Result<PublicKeys> rotate_keys(const Context& ctx, const Identity& identity, const KeyRotation& rotation) override;
  Result<Signature> sign(const Context& ctx, const Identity& identity, BytesView data,
                         std::string_view context) override;
  Result<> verify(const Context& ctx, const Identity& identity, BytesView data, const Signature& signature,
                  std::string_view context) override;
  Result<> verify_past(const Context& ctx, const Identity& identity, BytesView data, const Signature& signature,
                       std::string_view context, Instant when, std::optional<Instant> told) override;
  Result<Secret> decapsulate(const Context& ctx, const Identity& identity, std::string_view key_id,
                             BytesView ciphertext) override;

  Result<PrekeyCount> publish_key_bundle(const Context& ctx, const Identity& identity,
                                         const KeyBundleUpload& bundle) override;
  Result<KeyBundle> take_key_bundle(const Context& ctx, const Identity& identity) override;
  Result<PrekeyCount> prekey_count(const Context& ctx, const Identity& identity) override;

  Result<> refresh(const Context& ctx) override {
    const std::int64_t changes = CRETO_TRY(sql::read(database_, ctx, [](sql::Tx& tx) { return store::changes(tx); }));
    if (changes_seen_.exchange(changes) == changes) return {};
    forget_all();
    database_.signal("nhi.changed").raise();
    return {};
  }

  HealthStatus health() override {
    auto answered = database_.read(Context(), [](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.query("SELECT 1 FROM nhi_agents LIMIT 1"));
      return {};
    });
    if (answered) return {};
    return {Health::unhealthy, answered.error().to_string()};
  }

 private:
  static std::string cache_key(const Context& ctx, std::string_view text) {
    return fmt::format("{}\n{}", ctx.org, text);
  }

  void forget_all() {
    known_.clear();
    chains_.clear();
    tokens_.clear();
    private_.clear();
  }
  /// After what `tx` changes has been committed nothing read before is used, also not by others who `refresh`.
  Result<> forget_after(sql::Tx& tx) {
    CRETO_TRY(store::count_change(tx));
    tx.after_commit([this] {
      forget_all();
      database_.signal("nhi.changed").raise();
    });
    return {};
  }

  /// Errors: not_found.
  Result<std::shared_ptr<const Known>> known(const Context& ctx, const Identity& identity) {
    std::string key = cache_key(ctx, identity.text());
    if (auto found = known_.find(key)) return found;
    std::uint64_t generation = known_.generation();
    auto loaded = sql::read(database_, ctx, [&](sql::Tx& tx) -> Result<std::optional<Known>> {
      auto agent = CRETO_TRY(store::find_agent(tx, ctx.org, identity));
      if (!agent) return std::optional<Known>();
      auto keys = CRETO_TRY(store::list_keys(tx, ctx.org, identity));
      return std::optional(Known{*std::move(agent), std::move(keys)});
    });
    if (!loaded) return std::move(loaded).error();
    if (!*loaded) return unknown(identity);
    // Who can write into the database cannot give an identity keys of his own.
    if (auto follows = check_succession(ctx.org, identity, (*loaded)->keys); !follows)
      return refuse(ErrorKind::internal, fmt::format("the stored keys of `{}` are damaged", identity.text()))
          .with_cause(std::move(follows).error());
    return known_.put(key, **std::move(loaded), generation);
  }

  Result<std::shared_ptr<const Known>> acting(const Context& ctx, const Identity& identity) {
    auto found = CRETO_TRY(known(ctx, identity));
    CRETO_TRY(check_acting(found->agent, clock_.now()));
    return found;
  }

  /// The caller itself, or a service, which acts for others on its own responsibility.
  Result<> check_speaks_for(const Context& ctx, const Identity& identity) const {
    if (ctx.caller && (*ctx.caller == identity || ctx.caller->kind() == Identity::Kind::service)) return {};
    return refuse(ErrorKind::permission_denied,
                  fmt::format("`{}` may not speak for `{}`", ctx.caller_text(), identity.text()));
  }

  Result<std::pair<PublicKeys, Bytes>> make_keys(const Context& ctx, std::optional<Identity>& identity,
                                                 Instant valid_until);
  Result<std::shared_ptr<const PrivateKeys>> private_keys(const Context& ctx, const Known& known,
                                                          const std::string& key_id);
  Result<> insert_managed(sql::Tx& tx, const Context& ctx, const Agent& agent, const PublicKeys& keys,
                          const Bytes& sealed, std::string what);
  Result<std::pair<PublicKeys, std::optional<Bytes>>> next_keys(const Context& ctx, const Known& known,
                                                                const KeyRotation& rotation);
  Result<> verify_link(const Context& ctx, const Delegation& link);
  Result<Chain> load_chain(const Context& ctx, const Agent& agent, const std::optional<DelegationId>& leaf);
  Result<Chain> chain_from(const Context& ctx, Delegation last);
  Result<PastChain> past_chain_from(const Context& ctx, store::PastDelegation last);

  sql::Database& database_;
  crypto::KeySealer& sealer_;
  const Clock& clock_;
  const NhiOptions options_;
  std::atomic<std::int64_t> changes_seen_{0};  ///< as `store::changes` counts them
  Cache<Known> known_;
  Cache<Chain> chains_;
  Cache<ResolvedToken> tokens_;
  Cache<PrivateKeys> private_;
};

/// Fresh keys, sealed. For an agent `identity` is what its Ed25519 key makes it.
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

Result<> NhiService::insert_managed(sql::Tx& tx, const Context& ctx, const Agent& agent, const PublicKeys& keys,
                                    const Bytes& sealed, std::string what) {
  CRETO_TRY(store::insert_agent(tx, ctx.org, agent));
  CRETO_TRY(store::insert_keys(tx, ctx.org, agent.identity, keys, sealed, 1));
  CRETO_TRY(audit::record(tx, ctx, record_of(ctx, std::move(what), agent.identity)));
  return forget_after(tx);
}

Result<Agent> NhiService::register_agent(const Context& ctx, const NewAgent& wanted) {
  CRETO_TRY(check_name(wanted.name));
  CRETO_TRY(check_attributes(wanted.attributes));
  if (wanted.type == AgentType::human || wanted.type == AgentType::service)
    return refuse(ErrorKind::invalid_input, "`type` must be one of an agent's");
  Nanos valid_for = wanted.valid_for.value_or(options_.agent_valid_for);
  if (valid_for <= Nanos(0) || valid_for > agent_valid_for_max)
    return refuse(ErrorKind::invalid_input, "`valid_for` must be over 0 and at most ten years");
  if (!ctx.caller || ctx.chain.empty()) return refuse(ErrorKind::unauthenticated, "the caller is not known");

  // An agent registers children for its own owner; only a service may name somebody else.
  Identity owner = wanted.owner.value_or(ctx.chain.front());
  if (owner.is_agent()) return refuse(ErrorKind::invalid_input, "`owner` must be a human or a service");
  if (owner != ctx.chain.front() && ctx.caller->kind() != Identity::Kind::service)
    return refuse(ErrorKind::permission_denied,
                  fmt::format("`{}` may not register agents for `{}`", ctx.caller_text(), owner.text()));
  CRETO_TRY(acting(ctx, owner));

  Instant expires_at = clock_.now() + valid_for;
  std::optional<Identity> identity;
  auto [keys, sealed] = CRETO_TRY(make_keys(ctx, identity, expires_at));
  Agent agent{*identity,       wanted.name, wanted.type,         owner,
              keys.valid_from, expires_at,  AgentStatus::active, wanted.attributes};
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Agent> {
    return io::once(
        tx, ctx, "nhi.register_agent", idempotency_window,
        [&]() -> Result<Agent> {
          CRETO_TRY(insert_managed(tx, ctx, agent, keys, sealed, "agent_registered"));
          return agent;
        },
        [](const Agent& registered) { return registered.identity.text(); },
        [&](std::string_view text) -> Result<Agent> {
          Identity first = CRETO_TRY(Identity::parse(text));
          auto found = CRETO_TRY(store::find_agent(tx, ctx.org, first));
          if (!found) return unknown(first);
          return *std::move(found);
        });
  });
}

Result<Agent> NhiService::register_human(const Context& ctx, const Identity& human, const std::string& name,
                                         const crypto::VerifyingKey& signing,
                                         const std::optional<crypto::KemPublicKey>& kem) {
  CRETO_TRY(check_name(name));
  if (human.kind() != Identity::Kind::human) return refuse(ErrorKind::invalid_input, "`identity` must be a human's");
  CRETO_TRY(check_algorithms(signing, kem));
  PublicKeys keys{key_id_of(signing, kem), signing, kem, clock_.now(), Instant::max()};
  Agent agent{human, name, AgentType::human, human, keys.valid_from, Instant::max(), AgentStatus::active, {}};
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Agent> {
    auto there = CRETO_TRY(store::find_agent(tx, ctx.org, human));
    if (there) {
      auto all = CRETO_TRY(store::list_keys(tx, ctx.org, human));
      bool same = std::ranges::any_of(all, [&](const PublicKeys& set) { return set.key_id == keys.key_id; });
      if (same) return *std::move(there);
      return refuse(ErrorKind::already_exists, fmt::format("`{}` is registered with other keys", human.text()));
    }
    CRETO_TRY(store::insert_agent(tx, ctx.org, agent));
    CRETO_TRY(store::insert_keys(tx, ctx.org, human, keys, std::nullopt, 1));
    CRETO_TRY(audit::record(tx, ctx, record_of(ctx, "human_registered", human)));
    CRETO_TRY(forget_after(tx));
    return agent;
  });
}

Result<Agent> NhiService::ensure_service(const Context& ctx, const Identity& service) {
  if (service.kind() != Identity::Kind::service)
    return refuse(ErrorKind::invalid_input, "`identity` must be a service's");
  if (auto found = known(ctx, service)) return (*found)->agent;
  std::optional<Identity> identity = service;
  auto [keys, sealed] = CRETO_TRY(make_keys(ctx, identity, Instant::max()));
  Agent agent{service,
              std::string(service.name()) + " service",
              AgentType::service,
              service,
              keys.valid_from,
              Instant::max(),
              AgentStatus::active,
              {}};
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Agent> {
    auto there = CRETO_TRY(store::find_agent(tx, ctx.org, service));
    if (there) return *std::move(there);
    CRETO_TRY(insert_managed(tx, ctx, agent, keys, sealed, "service_registered"));
    return agent;
  });
}

Result<Agent> NhiService::update_agent(const Context& ctx, const Identity& identity, const AgentChange& change) {
  if (change.name) CRETO_TRY(check_name(*change.name));
  if (change.attributes) CRETO_TRY(check_attributes(*change.attributes));
  if (change.status == AgentStatus::revoked)
    return refuse(ErrorKind::invalid_input, "`status` must be active or suspended; revoking has its own call");
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Agent> {
    auto agent = CRETO_TRY(store::find_agent(tx, ctx.org, identity));
    if (!agent) return unknown(identity);
    if (agent->status == AgentStatus::revoked)
      return refuse(ErrorKind::conflict, fmt::format("`{}` is revoked", identity.text()));
    if (change.name && *change.name != agent->name) {
      auto other = CRETO_TRY(store::find_agent_by_name(tx, ctx.org, *change.name));
      if (other) return refuse(ErrorKind::already_exists, fmt::format("the name `{}` is taken", *change.name));
      agent->name = *change.name;
    }
    if (change.expires_at) {
      if (*change.expires_at > agent->expires_at)
        return refuse(ErrorKind::invalid_input, "`expires_at` can only come earlier");
      agent->expires_at = *change.expires_at;
    }
    if (change.status) agent->status = *change.status;
    if (change.attributes) agent->attributes = *change.attributes;
    CRETO_TRY(store::update_agent(tx, ctx.org, *agent));
    CRETO_TRY(audit::record(tx, ctx, record_of(ctx, "agent_updated", identity)));
    CRETO_TRY(forget_after(tx));
    return *std::move(agent);
  });
}

Result<Agent> NhiService::set_roles(const Context& ctx, const Identity& human, std::vector<std::string> roles) {
  if (!human.is_human()) return refuse(ErrorKind::invalid_input, "`identity` must be a human's");
  if (roles.size() > 16) return refuse(ErrorKind::invalid_input, "`roles` must be at most 16");
  for (const std::string& role : roles)
    if (!is_role(role))
      return refuse(ErrorKind::invalid_input,
                    fmt::format("`roles`: `{}` is not 1 to 64 of a-z, 0-9 and `-`", legible(role, 64)));
  std::ranges::sort(roles);
  roles.erase(std::unique(roles.begin(), roles.end()), roles.end());
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Agent> {
    auto agent = CRETO_TRY(store::find_agent(tx, ctx.org, human));
    if (!agent) return unknown(human);
    if (agent->status == AgentStatus::revoked)
      return refuse(ErrorKind::conflict, fmt::format("`{}` is revoked", human.text()));
    if (agent->roles == roles) return *std::move(agent);
    auto record = record_of(ctx, "human_roles_set", human);
    record.metadata = Json{{"before", agent->roles}, {"after", roles}}.dump();
    agent->roles = roles;
    CRETO_TRY(store::update_agent(tx, ctx.org, *agent));
    CRETO_TRY(audit::record(tx, ctx, std::move(record)));
    CRETO_TRY(forget_after(tx));
    return *std::move(agent);
  });
}

Result<Agent> NhiService::revoke_agent(const Context& ctx, const Identity& identity, const std::string& reason) {
  if (reason.size() > 1024 || !is_valid_utf8(reason))
    return refuse(ErrorKind::invalid_input, "`reason` must be at most 1024 bytes of text");
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Agent> {
    auto agent = CRETO_TRY(store::find_agent(tx, ctx.org, identity));
    if (!agent) return unknown(identity);
    if (agent->status == AgentStatus::revoked) return *std::move(agent);
    agent->status = AgentStatus::revoked;
    agent->expires_at = std::min(agent->expires_at, clock_.now());
    CRETO_TRY(store::update_agent(tx, ctx.org, *agent));
    auto record = record_of(ctx, "agent_revoked", identity);
    record.why = reason;
    CRETO_TRY(audit::record(tx, ctx, std::move(record)));
    CRETO_TRY(forget_after(tx));
    return *std::move(agent);
  });
}

Result<std::vector<Agent>> NhiService::list_agents(const Context& ctx, const AgentFilter& filter) {
  if (filter.limit < 1 || filter.limit > 1000) return refuse(ErrorKind::invalid_input, "`page.size` must be 1 to 1000");
  if (!filter.role.empty() && !is_role(filter.role)) return std::vector<Agent>();
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::list_agents(tx, ctx.org, filter); });
}

Result<Agent> NhiService::find_agent(const Context& ctx, const std::string& identity_or_name) {
  if (auto identity = Identity::parse(identity_or_name)) return get_agent(ctx, *identity);
  auto agent = CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) {
    return store::find_agent_by_name(tx, ctx.org, identity_or_name.substr(0, 512));
  }));
  if (!agent)
    return refuse(ErrorKind::not_found, fmt::format("there is no identity `{}`", identity_or_name.substr(0, 128)));
  return *std::move(agent);
}

Result<bool> NhiService::is_registered(const Context& ctx, const Identity& identity) {
  auto found = known(ctx, identity);
  if (found) return true;
  if (found.error().kind() == ErrorKind::not_found) return false;
  return std::move(found).error();
}

Result<bool> NhiService::is_revoked(const Context& ctx, const Identity& identity) {
  auto found = known(ctx, identity);
  if (found) return !check_acting((*found)->agent, clock_.now()).has_value();
  if (found.error().kind() == ErrorKind::not_found) return true;
  return std::move(found).error();
}

// --- tokens

Result<ResolvedToken> NhiService::resolve_token(const Context& ctx, const std::string& token) {
  ParsedToken parsed = CRETO_TRY(parse_token(token));
  CRETO_TRY(check_token_time(parsed, clock_.now(), options_.clock_skew));
  // The cache spares the signature; time and status are looked at each time. Its key is of the whole token, signature
  // included.
  Context own = ctx;
  own.org = parsed.org;
  Hash256 hash = crypto::blake3(as_bytes(token));
  std::string key = hex(hash);
  std::uint64_t generation = tokens_.generation();
  auto found = known(own, parsed.issuer);
  if (!found) {
    if (found.error().kind() != ErrorKind::not_found) return std::move(found).error();
    return refuse(ErrorKind::unauthenticated, "the token's identity is not registered");
  }
  const Known& issuer = **found;
  if (auto acts = check_acting(issuer.agent, clock_.now()); !acts)
    return refuse(ErrorKind::unauthenticated, "the token's identity may not act").with_cause(acts.error());
  if (auto resolved = tokens_.find(key)) return *resolved;
  bool holds = std::ranges::any_of(issuer.keys, [&](const PublicKeys& set) {
    return set.valid_from <= parsed.issued_at + options_.clock_skew && set.in_force(clock_.now()) &&
           set.signing.verify(as_bytes(parsed.signed_bytes), parsed.signature, as_bytes(token_context)).has_value();
  });
  if (!holds) return refuse(ErrorKind::unauthenticated, "the token's signature does not hold");
  return *tokens_.put(key, ResolvedToken{parsed.org, issuer.agent, parsed.id, parsed.expires_at}, generation);
}

Result<std::string> NhiService::issue_token(const Context& ctx, const Identity& identity, Nanos valid_for) {
  auto found = CRETO_TRY(acting(ctx, identity));
  if (!ctx.caller || *ctx.caller != found->agent.owner) CRETO_TRY(check_speaks_for(ctx, identity));
  CRETO_ASSERT(!found->keys.empty());
  auto keys = CRETO_TRY(private_keys(ctx, *found, found->keys.front().key_id));
  std::string token = CRETO_TRY(make_token(keys->signing, identity, ctx.org, clock_.now(), valid_for));
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(audit::record(tx, ctx, record_of(ctx, "token_issued", identity)));
    return {};
  }));
  return token;
}

// --- delegation

/// That the delegator's key signed `link`, which was valid then. Bytes are rebuilt from fields that admit one spelling
/// only.
Result<> NhiService::verify_link(const Context& ctx, const Delegation& link) {
  auto delegator = CRETO_TRY(known(ctx, link.delegator));
  const PublicKeys* keys = delegator->find(link.key_id);
  if (keys == nullptr)
    return refuse(ErrorKind::signature_invalid,
                  fmt::format("`{}` has no key `{}`", link.delegator.text(), link.key_id.substr(0, 64)));
  if (link.created_at + options_.clock_skew < keys->valid_from || link.created_at >= keys->valid_until)
    return refuse(ErrorKind::signature_invalid,
                  fmt::format("key `{}` was not valid at the delegation's time", link.key_id));
  std::string bytes = CRETO_TRY(link.signed_bytes());
  return keys->signing.verify(as_bytes(bytes), link.signature, as_bytes(delegation_context));
}

Result<Delegation> NhiService::create_delegation(const Context& ctx, const NewDelegation& wanted) {
  Instant now = clock_.now();
  if (!ctx.caller) return refuse(ErrorKind::unauthenticated, "the caller is not known");
  CRETO_TRY(check_speaks_for(ctx, wanted.delegator));
  auto delegator = CRETO_TRY(acting(ctx, wanted.delegator));
  auto delegatee = CRETO_TRY(acting(ctx, wanted.delegatee));
  if (delegatee->agent.type == AgentType::human)
    return refuse(ErrorKind::invalid_input, "`delegatee` must be an agent or a service");

  bool signed_elsewhere = wanted.signature.has_value();
  std::vector<std::string> permissions = wanted.permissions;
  if (!signed_elsewhere) {
    std::ranges::sort(permissions);
    permissions.erase(std::unique(permissions.begin(), permissions.end()), permissions.end());
  }
  CRETO_TRY(check_permissions(permissions));
  if (signed_elsewhere && (!wanted.id || !wanted.created_at || wanted.key_id.empty()))
    return refuse(ErrorKind::invalid_input, "a signed delegation needs `id`, `created_at` and `key_id`");
  if (!signed_elsewhere && delegator->agent.type == AgentType::human)
    return refuse(ErrorKind::invalid_input, "a human's delegation needs `signature`, made on his side");
  Instant created_at = wanted.created_at.value_or(now);
  if (created_at > now + options_.clock_skew || created_at < now - options_.clock_skew)
    return refuse(ErrorKind::invalid_input, "`created_at` is not within five minutes of the server's clock");
  if (wanted.expires_at <= now) return refuse(ErrorKind::invalid_input, "`expires_at` must lie ahead");

  Chain above{delegator->agent, {}, {}};
  std::optional<DelegationId> parent = wanted.parent;
  if (wanted.delegator.is_agent()) {
    above = CRETO_TRY(get_delegation_chain(ctx, wanted.delegator, wanted.parent));
    parent = above.delegations.back().id;
  } else if (wanted.parent) {
    return refuse(ErrorKind::invalid_input, "`parent` is for an agent's delegation");
  }

  Delegation delegation{wanted.id ? *wanted.id : DelegationId::fresh(now),
                        ctx.org,
                        wanted.delegator,
                        wanted.delegatee,
                        parent,
                        std::move(permissions),
                        created_at,
                        wanted.expires_at,
                        wanted.key_id,
                        wanted.signature.value_or(Signature()),
                        false};
  std::vector<Delegation> links = above.delegations;
  links.push_back(delegation);
  CRETO_TRY(check_structure(above.root.identity, links, now));
  if (signed_elsewhere) {
    CRETO_TRY(verify_link(ctx, delegation));
    // `created_at` is what he says: by it alone keys that have just ended would go on for the minutes of skew.
    if (const PublicKeys* keys = delegator->find(delegation.key_id); !keys || !keys->in_force(now))
      return refuse(ErrorKind::signature_invalid, fmt::format("key `{}` has ended", legible(delegation.key_id, 64)));
  } else {
    delegation.key_id = delegator->keys.front().key_id;
    auto keys = CRETO_TRY(private_keys(ctx, *delegator, delegation.key_id));
    std::string bytes = CRETO_TRY(delegation.signed_bytes());
    delegation.signature = CRETO_TRY(keys->signing.sign(as_bytes(bytes), as_bytes(delegation_context)));
  }

  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Delegation> {
    return io::once(
        tx, ctx, "nhi.create_delegation", idempotency_window,
        [&]() -> Result<Delegation> {
          bool inserted = CRETO_TRY(store::insert_delegation(tx, delegation));
          if (!inserted) {
            auto there = CRETO_TRY(store::find_delegation(tx, ctx.org, delegation.id));
            std::string ours = CRETO_TRY(delegation.signed_bytes());
            std::string theirs = CRETO_TRY(there->signed_bytes());
            if (ours == theirs) return *std::move(there);
            return refuse(ErrorKind::conflict,
                          fmt::format("delegation `{}` exists with other content", delegation.id.to_string()));
          }
          CRETO_TRY(audit::record(tx, ctx, record_of(ctx, "delegation_created", delegation.delegatee)));
          CRETO_TRY(forget_after(tx));
          return delegation;
        },
        [](const Delegation& made) { return made.id.to_string(); },
        [&](std::string_view text) -> Result<Delegation> {
          auto id = CRETO_TRY(DelegationId::parse(text));
          auto there = CRETO_TRY(store::find_delegation(tx, ctx.org, id));
          if (!there) return refuse(ErrorKind::not_found, fmt::format("there is no delegation `{}`", text));
          return *std::move(there);
        });
  });
}

/// Follows parents from `last` to the root, then checks everything that must hold.
Result<Chain> NhiService::chain_from(const Context& ctx, Delegation last) {
  std::vector<Delegation> links = {std::move(last)};
  while (links.back().parent) {
    if (links.size() >= delegation_chain_max_depth)
      return refuse(ErrorKind::permission_denied,
                    fmt::format("the chain is deeper than {}", delegation_chain_max_depth));
    auto parent = CRETO_TRY(sql::read(
        database_, ctx, [&](sql::Tx& tx) { return store::find_delegation(tx, ctx.org, *links.back().parent); }));
    if (!parent) return refuse(ErrorKind::permission_denied, "a delegation of the chain is missing");
    links.push_back(*std::move(parent));
  }
  std::ranges::reverse(links);
  auto root = CRETO_TRY(known(ctx, links.front().delegator));
  Chain chain{root->agent, std::move(links), root->agent.expires_at};
  CRETO_TRY(verify_delegation(ctx, chain));
  for (const Delegation& link : chain.delegations) {
    auto holder = CRETO_TRY(known(ctx, link.delegatee));
    chain.valid_until = std::min({chain.valid_until, link.expires_at, holder->agent.expires_at});
  }
  return chain;
}

Result<Chain> NhiService::load_chain(const Context& ctx, const Agent& agent, const std::optional<DelegationId>& leaf) {
  if (leaf) {
    auto link =
        CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_delegation(tx, ctx.org, *leaf); }));
    if (!link || link->delegatee != agent.identity)
      return refuse(ErrorKind::not_found,
                    fmt::format("there is no delegation `{}` to `{}`", leaf->to_string(), agent.identity.text()));
    return chain_from(ctx, *std::move(link));
  }
  // Only what leads back to the owner counts by default: otherwise anybody could change for whom an agent acts.
  auto candidates = CRETO_TRY(sql::read(
      database_, ctx, [&](sql::Tx& tx) { return store::delegations_to(tx, ctx.org, agent.identity, clock_.now()); }));
  std::optional<Error> reason;
  for (Delegation& candidate : candidates) {
    auto chain = chain_from(ctx, std::move(candidate));
    if (chain && chain->root.identity == agent.owner) return chain;
    if (!chain && category_of(chain.error().kind()) == ErrorCategory::transient) return chain;
    if (!chain && !reason) reason = chain.error();
  }
  Error refusal = refuse(ErrorKind::permission_denied,
                         fmt::format("`{}` has no valid delegation from its owner", agent.identity.text()));
  if (reason) refusal = std::move(refusal).with_cause(*std::move(reason));
  return refusal;
}

Result<Chain> NhiService::get_delegation_chain(const Context& ctx, const Identity& identity,
                                               const std::optional<DelegationId>& leaf) {
  std::string key = cache_key(ctx, identity.text() + "\n" + (leaf ? leaf->to_string() : ""));
  if (auto found = chains_.find(key); found && found->valid_until > clock_.now()) return *found;
  std::uint64_t generation = chains_.generation();
  auto agent = CRETO_TRY(acting(ctx, identity));
  if (!identity.is_agent()) {
    Chain self{agent->agent, {}, agent->agent.expires_at};
    return self;
  }
  Chain chain = CRETO_TRY(load_chain(ctx, agent->agent, leaf));
  return *chains_.put(key, std::move(chain), generation);
}

/// The chain that ended with `last`, between its beginning and its end: everything but what changed since must hold.
Result<PastChain> NhiService::past_chain_from(const Context& ctx, store::PastDelegation last) {
  const Instant made = last.link.created_at;
  Instant ends_at = last.ends_at;
  std::vector<Delegation> links = {std::move(last.link)};
  while (links.back().parent) {
    if (links.size() >= delegation_chain_max_depth)
      return refuse(ErrorKind::permission_denied,
                    fmt::format("the chain is deeper than {}", delegation_chain_max_depth));
    auto parent = CRETO_TRY(sql::read(
        database_, ctx, [&](sql::Tx& tx) { return store::find_past_delegation(tx, ctx.org, *links.back().parent); }));
    if (!parent) return refuse(ErrorKind::permission_denied, "a delegation of the chain is missing");
    ends_at = std::min(ends_at, parent->ends_at);
    links.push_back(std::move(parent->link));
  }
  std::ranges::reverse(links);
  auto root = CRETO_TRY(known(ctx, links.front().delegator));
  ends_at = std::min(ends_at, root->agent.expires_at);
  for (Delegation& link : links) {
    auto holder = CRETO_TRY(known(ctx, link.delegatee));
    ends_at = std::min(ends_at, holder->agent.expires_at);
    CRETO_TRY(verify_link(ctx, link));
    link.revoked = false;  // as it was
  }
  CRETO_TRY(check_structure(root->agent.identity, links, made));
  return PastChain{Chain{root->agent, std::move(links), ends_at}, made, ends_at};
}

Result<PastChain> NhiService::get_past_delegation_chain(const Context& ctx, const Identity& identity, Instant when) {
  auto agent = CRETO_TRY(known(ctx, identity));
  if (!identity.is_agent()) return PastChain{Chain{agent->agent, {}, agent->agent.expires_at}};
  auto candidates = CRETO_TRY(
      sql::read(database_, ctx, [&](sql::Tx& tx) { return store::past_delegations_to(tx, ctx.org, identity, when); }));
  std::optional<PastChain> found;
  // Nothing begins or ends between these.
  Instant from = Instant::min(), until = Instant::max();
  for (store::PastDelegation& candidate : candidates) {
    auto past = past_chain_from(ctx, std::move(candidate));
    if (!past && category_of(past.error().kind()) == ErrorCategory::transient) return past;
    if (!past || past->chain.root.identity != agent->agent.owner) continue;
    for (const Instant change : {past->from, past->until}) {
      if (change <= when) from = std::max(from, change);
      if (change > when) until = std::min(until, change);
    }
    // The newest that held then; else the last that did; else, of an event from before any, the first.
    const auto rank = [&](const PastChain& one) {
      if (one.from > when) return std::pair(0, Instant::min());
      return one.until > when ? std::pair(2, one.from) : std::pair(1, one.until);
    };
    if (!found || rank(*past) > rank(*found)) found = *std::move(past);
  }
  if (!found)
    return refuse(ErrorKind::permission_denied,
                  fmt::format("`{}` never had a delegation from its owner", identity.text()));
  found->from = from;
  found->until = until;
  return *std::move(found);
}

Result<> NhiService::verify_delegation(const Context& ctx, const Chain& chain) {
  Instant now = clock_.now();
  CRETO_TRY(check_structure(chain.root.identity, chain.delegations, now));
  auto root = CRETO_TRY(acting(ctx, chain.root.identity));
  for (const Delegation& link : chain.delegations) {
    if (link.org != ctx.org) return refuse(ErrorKind::permission_denied, "the chain is another organization's");
    CRETO_TRY(acting(ctx, link.delegatee));
    CRETO_TRY(verify_link(ctx, link));
    auto stored =
        CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_delegation(tx, ctx.org, link.id); }));
    if (!stored)
      return refuse(ErrorKind::permission_denied,
                    fmt::format("delegation `{}` is not registered", link.id.to_string()));
    if (stored->revoked)
      return refuse(ErrorKind::permission_denied, fmt::format("delegation `{}` is revoked", link.id.to_string()));
  }
  return {};
}

Result<> NhiService::revoke_delegation(const Context& ctx, const DelegationId& id) {
  return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    auto link = CRETO_TRY(store::find_delegation(tx, ctx.org, id));
    if (!link) return refuse(ErrorKind::not_found, fmt::format("there is no delegation `{}`", id.to_string()));
    bool may = ctx.caller && ctx.caller->kind() == Identity::Kind::service;
    std::optional<Delegation> above = link;
    for (std::size_t depth = 0; ctx.caller && !may && above && depth < delegation_chain_max_depth; ++depth) {
      may = above->delegator == *ctx.caller;
      if (!above->parent) break;
      above = CRETO_TRY(store::find_delegation(tx, ctx.org, *above->parent));
    }
    if (!may)
      return refuse(ErrorKind::permission_denied,
                    fmt::format("`{}` is not above delegation `{}`", ctx.caller_text(), id.to_string()));
    if (link->revoked) return {};
    CRETO_TRY(store::revoke_delegation(tx, ctx.org, id, clock_.now()));
    CRETO_TRY(audit::record(tx, ctx, record_of(ctx, "delegation_revoked", link->delegatee)));
    return forget_after(tx);
  });
}

// --- keys

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

// --- key bundles

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

}  // namespace

std::string_view to_string(AgentType type) { return name_of(agent_types, type); }
Result<AgentType> agent_type_from_string(std::string_view text) {
  return value_of(agent_types, text, "type", Product::platform);
}
std::string_view to_string(AgentStatus status) { return name_of(agent_statuses, status); }
Result<AgentStatus> agent_status_from_string(std::string_view text) {
  return value_of(agent_statuses, text, "status", Product::platform);
}

Result<std::unique_ptr<Nhi>> create_nhi(sql::Database& database, crypto::KeySealer& sealer, const Clock& clock,
                                        NhiOptions options) {
  CRETO_TRY(store::migrate(database));
  CRETO_TRY(audit::prepare(database));
  return std::unique_ptr<Nhi>(std::make_unique<NhiService>(database, sealer, clock, options));
}

}  // namespace creto::nhi
