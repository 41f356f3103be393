#include "nhi_service.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "creto/common/assert.h"
#include "creto/common/json.h"
#include "creto/common/names.h"
#include "creto/crypto/hash.h"
#include "creto/io/idempotency.h"
#include "delegation.h"
#include "token.h"

namespace creto::nhi {
namespace {

constexpr auto agent_types = std::to_array<Named<AgentType>>({{AgentType::autonomous, "autonomous"},
                                                              {AgentType::supervised, "supervised"},
                                                              {AgentType::workflow, "workflow"},
                                                              {AgentType::tool, "tool"},
                                                              {AgentType::human, "human"},
                                                              {AgentType::service, "service"}});
constexpr auto agent_statuses = std::to_array<Named<AgentStatus>>(
    {{AgentStatus::active, "active"}, {AgentStatus::suspended, "suspended"}, {AgentStatus::revoked, "revoked"}});

constexpr Nanos agent_valid_for_max = std::chrono::days(3653);

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

}  // namespace

Error unknown(const Identity& identity) {
  return refuse(ErrorKind::not_found, fmt::format("there is no identity `{}`", identity.text()));
}

Result<> check_acting(const Agent& agent, Instant now) {
  if (agent.status != AgentStatus::active)
    return refuse(ErrorKind::permission_denied,
                  fmt::format("`{}` is {}", agent.identity.text(), to_string(agent.status)));
  if (agent.expires_at <= now)
    return refuse(ErrorKind::expired,
                  fmt::format("`{}` ended {}", agent.identity.text(), to_rfc3339(agent.expires_at)));
  return {};
}

Result<> check_algorithms(const crypto::VerifyingKey& signing, const std::optional<crypto::KemPublicKey>& kem) {
  if (signing.algorithm() != hybrid)
    return refuse(ErrorKind::unsupported_algorithm, "`signing_key` must be hybrid-ed25519-ml-dsa-65");
  if (kem && kem->algorithm() != crypto::KemAlgorithm::x_wing)
    return refuse(ErrorKind::unsupported_algorithm, "`kem_key` must be x-wing");
  return {};
}

audit::AuditRecord record_of(const Context& ctx, std::string what, const Identity& about) {
  return audit::AuditRecord::of(ctx, std::move(what), "nhi:agent:" + about.text());
}

Result<> NhiService::refresh(const Context& ctx) {
  const std::int64_t changes = CRETO_TRY(sql::read(database_, ctx, [](sql::Tx& tx) { return store::changes(tx); }));
  if (changes_seen_.exchange(changes) == changes) return {};
  forget_all();
  database_.signal("nhi.changed").raise();
  return {};
}

HealthStatus NhiService::health() {
  auto answered = database_.read(Context(), [](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.query("SELECT 1 FROM nhi_agents LIMIT 1"));
    return {};
  });
  if (answered) return {};
  return {Health::unhealthy, answered.error().to_string()};
}

void NhiService::forget_all() {
  known_.clear();
  chains_.clear();
  tokens_.clear();
  private_.clear();
}
Result<> NhiService::forget_after(sql::Tx& tx) {
  CRETO_TRY(store::count_change(tx));
  tx.after_commit([this] {
    forget_all();
    database_.signal("nhi.changed").raise();
  });
  return {};
}

Result<std::shared_ptr<const Known>> NhiService::known(const Context& ctx, const Identity& identity) {
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

Result<std::shared_ptr<const Known>> NhiService::acting(const Context& ctx, const Identity& identity) {
  auto found = CRETO_TRY(known(ctx, identity));
  CRETO_TRY(check_acting(found->agent, clock_.now()));
  return found;
}

Result<> NhiService::check_speaks_for(const Context& ctx, const Identity& identity) const {
  if (ctx.caller && (*ctx.caller == identity || ctx.caller->kind() == Identity::Kind::service)) return {};
  return refuse(ErrorKind::permission_denied,
                fmt::format("`{}` may not speak for `{}`", ctx.caller_text(), identity.text()));
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
