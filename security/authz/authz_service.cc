#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <nlohmann/json.hpp>
#include <set>

#include "cedar/text.h"
#include "creto/audit/audit_log.h"
#include "creto/authz/authz.h"
#include "creto/crypto/hash.h"
#include "creto/io/idempotency.h"
#include "creto/io/sql.h"
#include "decision_cache.h"
#include "hash.h"
#include "override_token.h"
#include "override_use.h"
#include "snapshot.h"
#include "store.h"

namespace creto::authz {
namespace {

constexpr std::size_t batch_max = 1'000;
constexpr std::size_t context_attributes_max = 1'000;
constexpr Nanos grant_max = std::chrono::days(30);
constexpr Nanos idempotency_window = std::chrono::hours(24);

Error error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

EntityUid entity_of(const Identity& identity) {
  switch (identity.kind()) {
    case Identity::Kind::agent:
      return {"Agent", identity.text()};
    case Identity::Kind::human:
      return {"Human", identity.text()};
    case Identity::Kind::service:
      break;
  }
  return {"Service", identity.text()};
}

/// Stored entities and those of the sources, as one. Where both know an entity, the source's attributes count and the
/// parents are those of both: so groups can be stored for agents that nhi owns.
class ServiceEntities : public cedar::EntityView {
 public:
  ServiceEntities(const std::string& org, const OrgState& state, const std::vector<const EntitySource*>& sources)
      : org_(org), state_(state), sources_(sources) {}

 protected:
  Result<const Entity*> load(const EntityUid& uid) override {
    const cedar::EntityId id = state_.entities.find(uid);
    const Entity* known = id == cedar::no_entity ? nullptr : state_.entities.node(id).entity.get();
    for (const EntitySource* source : sources_) {
      auto found = source->find(org_, uid);
      if (!found) return std::move(found).error();
      if (!*found) continue;
      Entity merged = **std::move(found);
      if (known) {
        merged.attributes.insert(merged.attributes.begin(), known->attributes.begin(), known->attributes.end());
        merged.tags.insert(merged.tags.begin(), known->tags.begin(), known->tags.end());
        merged.parents.insert(merged.parents.end(), known->parents.begin(), known->parents.end());
      }
      cedar::normalise(merged);
      loaded_.push_back(std::move(merged));
      return &loaded_.back();
    }
    return known;
  }

 private:
  const std::string& org_;
  const OrgState& state_;
  const std::vector<const EntitySource*>& sources_;
  std::deque<Entity> loaded_;
};

/// What the sources add to the stored entities, for the engine.
class SourceOverlay final : public cedar::EntityOverlay {
 public:
  SourceOverlay(cedar::EntityView& view, const cedar::EntityStore& store, cedar::Frame& frame)
      : view_(view), store_(store), frame_(frame) {}

  const cedar::EntityNode* find(const cedar::Cell& cell) override {
    const auto entity = view_.find(*cell.uid);
    if (!entity) {
      frame_.trouble = true;
      return nullptr;
    }
    if (!*entity) return nullptr;
    if (cell.id != cedar::no_entity && store_.node(cell.id).entity.get() == *entity) return &store_.node(cell.id);
    for (const auto& [known, node] : made_)
      if (known == *entity) return &node;
    cedar::EntityNode& node = made_.emplace_back(*entity, cedar::EntityNode()).second;
    node.uid = (*entity)->uid;
    node.entity = std::shared_ptr<const Entity>(std::shared_ptr<const Entity>(), *entity);  // the view's own
    for (const auto& [name, value] : (*entity)->attributes)
      node.attributes.push_back({hash_text(name), &name, store_.cell(value)});
    for (const auto& [name, value] : (*entity)->tags) node.tags.push_back({hash_text(name), &name, store_.cell(value)});
    return &node;
  }

  bool is_below(const cedar::Cell& entity, const cedar::Cell& ancestor) override {
    const auto below = view_.is_in(*entity.uid, *ancestor.uid);
    if (!below) frame_.trouble = true;
    return below && *below;
  }

  std::vector<cedar::EntityId> ancestors(const cedar::Cell& entity) override {
    std::vector<cedar::EntityId> ids;
    const auto all = view_.ancestors(*entity.uid);
    if (!all) frame_.trouble = true;
    if (!all) return ids;
    for (const EntityUid& uid : **all)
      if (const cedar::EntityId id = store_.find(uid); id != cedar::no_entity) ids.push_back(id);
    return ids;
  }

 private:
  cedar::EntityView& view_;
  const cedar::EntityStore& store_;
  cedar::Frame& frame_;
  std::deque<std::pair<const Entity*, cedar::EntityNode>> made_;
};

/// The thread's own, unless a check is made while another is under way: an entity source may ask.
class ScratchLease {
 public:
  ScratchLease() : own_(std::exchange(spare_, nullptr)) {
    if (!own_) own_ = std::make_unique<cedar::Engine::Scratch>();
  }
  ~ScratchLease() { spare_ = std::move(own_); }
  ScratchLease(const ScratchLease&) = delete;
  ScratchLease& operator=(const ScratchLease&) = delete;
  cedar::Engine::Scratch& operator*() const { return *own_; }

 private:
  static inline thread_local std::unique_ptr<cedar::Engine::Scratch> spare_;
  std::unique_ptr<cedar::Engine::Scratch> own_;
};

/// The names and units of what is measured.
class Probe {
 public:
  explicit Probe(Telemetry& telemetry)
      : telemetry_(telemetry),
        hits_(telemetry.counter("authz_cache_hits_total", "checks answered from the cache")),
        misses_(telemetry.counter("authz_cache_misses_total", "checks that ran the policies")),
        denied_(telemetry.counter("authz_denied_total", "checks that were not allowed")),
        extension_failures_(telemetry.counter("authz_extension_failures_total", "extensions that failed")) {}

  void hit() { hits_.add(); }
  void miss() { misses_.add(); }
  void refused() { denied_.add(); }
  void extension_failed(const Context& ctx, const Extension& extension, const Error& error) {
    extension_failures_.add();
    telemetry_.log(LogLevel::warn, "authz", "authz_extension_failed", &ctx,
                   {{"extension", extension.name()}, {"error", error.to_string()}});
  }
  void trouble(const Context& ctx, const Error& error) {
    telemetry_.log(LogLevel::error, "authz", "authz_entities_unavailable", &ctx, {{"error", error.to_string()}});
  }
  void policy_failed(const Context& ctx, const PolicyId& id, const Error& error) {
    telemetry_.log(LogLevel::warn, "authz", "authz_policy_failed", &ctx, {{"policy", id}, {"error", error.message()}});
  }
  void stale(const Context& ctx, const Error& error) {
    telemetry_.log(LogLevel::error, "authz", "authz_snapshot_stale", &ctx, {{"error", error.to_string()}});
  }

 private:
  Telemetry& telemetry_;
  Counter& hits_;
  Counter& misses_;
  Counter& denied_;
  Counter& extension_failures_;
};

/// None where the request is sound.
std::optional<std::string> fault_in(const CheckRequest& request) {
  if (request.action.empty() || request.action.size() > 256) return "the action has 1 to 256 characters";
  if (request.resource.type.size() > 256 || !cedar::is_path(request.resource.type))
    return "the resource's type is no Cedar type";
  if (request.resource.id.size() > 4'096) return "the resource's id is longer than 4096 bytes";
  if (request.context.size() > context_attributes_max) return "the context has more than 1000 attributes";
  if (request.chain.size() > delegation_chain_max_depth) return "the delegation chain is too deep";
  if (!request.chain.empty() && request.chain.back() != request.principal) {
    return "the delegation chain does not end with the principal";
  }
  return std::nullopt;
}

cedar::Request cedar_request(const CheckRequest& request) {
  const Identity& root = request.chain.empty() ? request.principal : request.chain.front();
  std::vector<Value> links;
  for (const Identity& link : request.chain) links.emplace_back(entity_of(link));
  if (links.empty()) links.emplace_back(entity_of(request.principal));
  const auto depth = static_cast<std::int64_t>(std::max<std::size_t>(1, request.chain.size()));
  Attributes context = request.context;
  context.emplace_back("delegation", Value::record({{"root", Value(entity_of(root))},
                                                    {"depth", Value(depth)},
                                                    {"chain", Value::set(std::move(links))}}));
  return {
      entity_of(request.principal), {"Action", request.action}, request.resource, Value::record(std::move(context))};
}

std::string encode(const Policy& policy) {
  return Json{{"id", policy.id},
              {"text", policy.text},
              {"version", policy.version},
              {"updated_at", unix_ns(policy.updated_at)},
              {"updated_by", policy.updated_by}}
      .dump();
}

Result<Policy> decode(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  return Policy{.id = json.at("id").get<std::string>(),
                .text = json.at("text").get<std::string>(),
                .version = json.at("version").get<std::int64_t>(),
                .updated_at = from_unix_ns(json.at("updated_at").get<std::int64_t>()),
                .updated_by = json.at("updated_by").get<std::string>()};
}

class AuthzService final : public Authz {
 public:
  AuthzService(sql::Database& database, const Clock& clock, Telemetry& telemetry,
               std::vector<const EntitySource*> sources, const Secret& override_key, AuthzOptions options)
      : database_(database),
        clock_(clock),
        probe_(telemetry),
        sources_(std::move(sources)),
        tokens_(override_key),
        options_(options),
        cache_(options.cache_entries) {}

  Result<> start() {
    CRETO_TRY(store::migrate(database_));
    CRETO_TRY(audit::prepare(database_));
    const std::lock_guard lock(writing_);
    return reload(Context{});
  }

  // --- checks
  // -----------------------------------------------------------------------------------------------------------

  Decision check(const Context& ctx, const CheckRequest& request) override {
    const auto snapshot = snapshots_.pin();
    Decision decision = policies_say(ctx, request, *snapshot);
    if (!std::holds_alternative<Deny>(decision)) restrict(ctx, request, *snapshot, decision);
    if (!allowed(decision)) probe_.refused();
    return decision;
  }

  std::vector<Decision> check_batch(const Context& ctx, std::span<const CheckRequest> requests) override {
    std::vector<Decision> decisions;
    decisions.reserve(requests.size());
    for (const CheckRequest& request : requests) {
      if (requests.size() > batch_max) {
        decisions.emplace_back(Deny{.reason = fmt::format("a batch has at most {} checks", batch_max), .policy = {}});
      } else {
        decisions.push_back(check(ctx, request));
      }
    }
    return decisions;
  }

  Explanation explain(const Context& ctx, const CheckRequest& request) override {
    const auto snapshot = snapshots_.pin();
    Explanation explanation{.decision = Allow{}, .reasons = {}, .errors = {}, .lifted = {}};
    explanation.decision = evaluate(ctx, request, *snapshot, &explanation);
    if (!std::holds_alternative<Deny>(explanation.decision)) restrict(ctx, request, *snapshot, explanation.decision);
    return explanation;
  }

  // --- policies
  // ---------------------------------------------------------------------------------------------------------

  Result<Policy> create_policy(const Context& ctx, const PolicyId& id, std::string text) override {
    return store_policy(ctx, id, std::move(text), [&](sql::Tx& tx, const std::optional<Policy>& before) -> Result<> {
      if (before) return error(ErrorKind::already_exists, fmt::format("policy `{}` exists", id));
      const auto count = CRETO_TRY(store::count_policies(tx, ctx.org));
      if (static_cast<std::size_t>(count) < options_.policies_max) return {};
      return error(ErrorKind::resource_exhausted, fmt::format("there are {} policies already", count));
    });
  }

  Result<Policy> update_policy(const Context& ctx, const PolicyId& id, std::string text,
                               std::int64_t expected_version) override {
    return store_policy(ctx, id, std::move(text), [&](sql::Tx&, const std::optional<Policy>& before) -> Result<> {
      if (!before) return error(ErrorKind::not_found, fmt::format("there is no policy `{}`", id));
      if (expected_version == 0 || expected_version == before->version) return {};
      return error(ErrorKind::conflict,
                   fmt::format("policy `{}` is at version {}, not {}", id, before->version, expected_version));
    });
  }

  Result<> delete_policy(const Context& ctx, const PolicyId& id) override {
    return change(
        ctx,
        [&](sql::Tx& tx) -> Result<> {
          const bool removed = CRETO_TRY(store::remove_policy(tx, ctx.org, id));
          if (!removed) return error(ErrorKind::not_found, fmt::format("there is no policy `{}`", id));
          CRETO_TRY(audit::record(tx, ctx, audit::AuditRecord::of(ctx, "policy_deleted", "authz:policy:" + id)));
          return {};
        },
        [&](OrgState& state) {
          state.policies.erase(id);
          state.plan();
        });
  }

  Result<std::vector<Policy>> list_policies(const Context& ctx) override {
    std::vector<Policy> all;
    const auto snapshot = snapshots_.current();
    if (const OrgState* state = snapshot->org(ctx.org)) {
      for (const auto& [id, policy] : state->policies) all.push_back(policy->stored);
    }
    return all;
  }

  // --- entities
  // ---------------------------------------------------------------------------------------------------------

  Result<> put_entities(const Context& ctx, std::vector<Entity> entities) override {
    if (entities.size() > 1'000) return error(ErrorKind::too_large, "at most 1000 entities a call");
    for (Entity& entity : entities) {
      CRETO_TRY(check_entity(entity));
      cedar::normalise(entity);
    }
    std::optional<cedar::EntityStore> next;
    return change(
        ctx,
        [&](sql::Tx& tx) -> Result<> {
          CRETO_TRY(check_hierarchy(ctx.org, entities));
          next = CRETO_TRY(with_entities(ctx.org, entities));
          for (const Entity& entity : entities) {
            CRETO_TRY(store::put_entity(tx, ctx.org, entity));
          }
          return record_entities(tx, ctx, "entities_stored", entities.size());
        },
        [&](OrgState& state) {
          state.entities = *std::move(next);
          state.compact();
        });
  }

  Result<> delete_entities(const Context& ctx, std::vector<EntityUid> uids) override {
    if (uids.size() > 1'000) return error(ErrorKind::too_large, "at most 1000 entities a call");
    return change(
        ctx,
        [&](sql::Tx& tx) -> Result<> {
          for (const EntityUid& uid : uids) {
            CRETO_TRY(store::remove_entity(tx, ctx.org, uid));
          }
          return record_entities(tx, ctx, "entities_deleted", uids.size());
        },
        [&](OrgState& state) {
          state.entities.erase(uids);
          state.compact();
        });
  }

  Result<std::vector<Entity>> list_entities(const Context& ctx) override {
    std::vector<Entity> all;
    const auto snapshot = snapshots_.current();
    if (const OrgState* state = snapshot->org(ctx.org)) {
      for (cedar::EntityId id = 0; id < state->entities.names(); ++id)
        if (const auto& entity = state->entities.node(id).entity) all.push_back(*entity);
    }
    std::sort(all.begin(), all.end(), [](const Entity& a, const Entity& b) { return a.uid < b.uid; });
    return all;
  }

  // --- override tokens
  // --------------------------------------------------------------------------------------------------

  Result<std::string> issue_override(const Context& ctx, const OverrideGrant& grant) override {
    if (grant.expires_at > clock_.now() + grant_max)
      return error(ErrorKind::invalid_input, "an override lasts at most 30 days");
    return tokens_.issue(ctx.org, grant);
  }

  Result<> revoke_override(const Context& ctx, const RequestId& request) override {
    return change(
        ctx,
        [&](sql::Tx& tx) -> Result<> {
          const auto use = CRETO_TRY(store::override_use(tx, ctx.org, request));
          if (use) {
            return error(ErrorKind::conflict,
                         fmt::format("the approval `{}` was used by `{}`", request.to_string(), *use));
          }
          CRETO_TRY(store::revoke_override(tx, ctx.org, request));
          auto record = audit::AuditRecord::of(ctx, "override_revoked", "oversight:request:" + request.to_string());
          CRETO_TRY(audit::record(tx, ctx, std::move(record)));
          return {};
        },
        [&](OrgState& state) { state.revoked.insert(request); });
  }

  Result<bool> is_override_open(const Context& ctx, const RequestId& request) override {
    return sql::read(database_, ctx, [&](sql::Tx& tx) -> Result<bool> {
      const auto use = CRETO_TRY(store::override_use(tx, ctx.org, request));
      const bool revoked = CRETO_TRY(store::is_override_revoked(tx, ctx.org, request));
      return !use && !revoked;
    });
  }

  Result<RequestId> verify_override(const Context& ctx, const CheckRequest& request) override {
    const OverrideToken token = CRETO_TRY(tokens_.verify(ctx.org, request));
    return token.request;
  }

  Result<> consume_override(sql::Tx& tx, const Context& ctx, const CheckRequest& request,
                            std::string_view operation_id) override {
    const OverrideToken token = CRETO_TRY(tokens_.verify(ctx.org, request));
    return use_token(tx, ctx, token, request, operation_id, clock_.now());
  }

  // --- the rest
  // ---------------------------------------------------------------------------------------------------------

  Result<> register_extension(Extension& extension) override {
    const std::lock_guard lock(writing_);
    auto next = std::make_shared<Snapshot>(*snapshots_.current());
    for (const Extension* other : next->extensions) {
      if (other->name() == extension.name()) {
        return error(ErrorKind::already_exists, fmt::format("extension `{}` is registered", extension.name()));
      }
    }
    next->extensions.push_back(&extension);
    std::stable_sort(next->extensions.begin(), next->extensions.end(),
                     [](const Extension* a, const Extension* b) { return a->priority() < b->priority(); });
    snapshots_.publish(std::move(next));
    return {};
  }

  Result<> refresh(const Context& ctx) override {
    const std::lock_guard lock(writing_);
    const auto snapshot = snapshots_.current();
    const auto stored = CRETO_TRY(sql::read(database_, ctx, [](sql::Tx& tx) { return store::versions(tx); }));
    const bool same = !snapshot->stale && std::all_of(stored.begin(), stored.end(), [&](const auto& entry) {
      const OrgState* state = snapshot->org(entry.first);
      return state && state->version == entry.second;
    });
    if (same) return {};
    return reload(ctx);
  }

 private:
  // --- deciding
  // ---------------------------------------------------------------------------------------------------------

  Decision policies_say(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot) {
    const OrgState* state = snapshot.org(ctx.org);
    if (!state || snapshot.stale || options_.cache_entries == 0 || !request.override_token.empty()) {
      return evaluate(ctx, request, snapshot, nullptr);
    }
    // The sources' versions come before what they are asked: an answer can only be filed as older than it is.
    std::array<std::uint64_t, 8> versions{};
    const std::size_t count = std::min(versions.size(), sources_.size());
    for (std::size_t i = 0; i < count; ++i) versions[i] = sources_[i]->version();
    const CacheKey key(ctx.org, state->version, std::span(versions).first(count), request);
    const Monotonic now = clock_.monotonic();
    if (cache_.contains(key, now)) {
      probe_.hit();
      return Allow{};
    }
    probe_.miss();
    Decision decision = evaluate(ctx, request, snapshot, nullptr);
    if (allowed(decision)) cache_.insert(key, now, options_.cache_ttl);
    return decision;
  }

  Decision evaluate(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot,
                    Explanation* explanation) {
    const auto denied = [](std::string reason, bool transient) -> Decision {
      return Deny{.reason = std::move(reason), .policy = {}, .transient = transient};
    };
    if (snapshot.stale) return denied("the policies in force cannot be established", true);
    if (auto fault = fault_in(request)) return denied("invalid request: " + *fault, false);
    const OrgState* state = snapshot.org(ctx.org);
    if (!state) return denied("no policy permits this", false);

    std::vector<OverrideGrant::Lift> lifts;
    if (!request.override_token.empty()) {
      auto token = tokens_.verify(ctx.org, request);
      if (!token) return denied(token.error().message(), false);
      if (clock_.now() >= token->expires_at) return denied("the approval has expired", false);
      if (state->revoked.contains(token->request)) return denied("the approval was withdrawn", false);
      lifts = std::move(token->lifts);
    }

    const cedar::Request asked = cedar_request(request);
    ServiceEntities entities(ctx.org, *state, sources_);
    const ScratchLease lease;
    cedar::Engine::Scratch& scratch = *lease;
    SourceOverlay overlay(entities, state->entities, scratch.frame);
    const cedar::RequestView view{asked.principal, asked.action, asked.resource, *asked.context.as_record()};
    const auto what_failed = [&](const cedar::PlannedPolicy& policy) {
      const auto again = cedar::is_satisfied(policy.ast, asked, entities);
      return again ? Error(Product::platform, ErrorKind::internal, "it fails where it should not") : again.error();
    };
    const bool decided =
        state->engine.evaluate(scratch, state->entities, sources_.empty() ? nullptr : &overlay, view,
                               explanation ? cedar::Detail::all : cedar::Detail::decision, what_failed);
    if (!decided) {
      const Error trouble = entities.trouble().value_or(
          error(ErrorKind::too_large, fmt::format("an entity has more than {} ancestors", cedar::ancestors_max)));
      probe_.trouble(ctx, trouble);
      return denied("entities cannot be read: " + trouble.message(), true);
    }
    const cedar::Evaluation& evaluation = scratch.result;
    for (const auto& [policy, failure] : evaluation.errors) probe_.policy_failed(ctx, policy->id, failure);
    PolicyDecision result = decide(evaluation, *state, lifts);
    if (explanation) {
      explanation->snapshot = state->version;
      explanation->lifted = result.lifted;
      for (const auto* policy : evaluation.reasons()) explanation->reasons.push_back(policy->id);
      for (const auto& [policy, failure] : evaluation.errors) {
        explanation->errors.emplace_back(policy->id, failure.message());
      }
    }
    return std::move(result.decision);
  }

  /// Lets the extensions make `decision` stricter.
  void restrict(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot, Decision& decision) {
    for (Extension* extension : snapshot.extensions) {
      auto opinion = extension->evaluate(ctx, request);
      if (!opinion) {
        probe_.extension_failed(ctx, *extension, opinion.error());
        if (!extension->denies_on_failure()) continue;
        decision = Deny{.reason = fmt::format("`{}` failed: {}", extension->name(), opinion.error().message()),
                        .policy = {},
                        .transient = true};
        return;
      }
      if (*opinion && outranks(**opinion, decision)) decision = **std::move(opinion);
      if (std::holds_alternative<Deny>(decision)) return;
    }
  }

  // --- changing
  // ---------------------------------------------------------------------------------------------------------

  /// Runs `write` in a transaction that bumps the organization's version, then applies the same change to the snapshot.
  /// Where it is not certain what is stored, takes everything from there.
  Result<> change(const Context& ctx, const sql::TxFunction& write, const std::function<void(OrgState&)>& apply) {
    const std::lock_guard lock(writing_);
    std::int64_t version = 0;
    bool changed = true;
    auto done = database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      changed_nothing_ = false;
      CRETO_TRY(write(tx));
      changed = !changed_nothing_;
      if (!changed) return {};
      version = CRETO_TRY(store::bump(tx, ctx.org));
      return {};
    });
    if (!done) {
      const ErrorKind kind = done.error().kind();
      if (kind == ErrorKind::unavailable || kind == ErrorKind::timeout || kind == ErrorKind::internal) {
        (void)reload_or_deny(ctx);
      }
      return done;
    }
    if (!changed) return {};
    const auto snapshot = snapshots_.current();
    const OrgState* before = snapshot->org(ctx.org);
    if (snapshot->stale || version != (before ? before->version : 0) + 1) return reload_or_deny(ctx);
    auto state = before ? std::make_shared<OrgState>(*before) : std::make_shared<OrgState>();
    apply(*state);
    state->version = version;
    auto next = std::make_shared<Snapshot>(*snapshot);
    next->orgs[ctx.org] = std::move(state);
    snapshots_.publish(std::move(next));
    return {};
  }

  Result<Policy> store_policy(const Context& ctx, const PolicyId& id, std::string text,
                              const std::function<Result<>(sql::Tx&, const std::optional<Policy>&)>& admit) {
    LoadedPolicy loaded = CRETO_TRY(
        load_policy(Policy{.id = id, .text = std::move(text), .version = 0, .updated_at = {}, .updated_by = {}},
                    options_.policy_bytes_max));
    Policy result;
    auto done = change(
        ctx,
        [&](sql::Tx& tx) -> Result<> {
          bool fresh = false;
          const auto write = [&]() -> Result<Policy> {
            fresh = true;
            const auto before = CRETO_TRY(store::find_policy(tx, ctx.org, id));
            CRETO_TRY(admit(tx, before));
            Policy policy = loaded.stored;
            policy.version = before ? before->version + 1 : 1;
            policy.updated_at = tx.now();
            policy.updated_by = ctx.caller_text();
            CRETO_TRY(store::put_policy(tx, ctx.org, policy));
            auto record =
                audit::AuditRecord::of(ctx, before ? "policy_updated" : "policy_created", "authz:policy:" + id);
            record.metadata =
                Json{{"sha3_256", hex(crypto::sha3_256(as_bytes(policy.text)))}, {"version", policy.version}}.dump();
            CRETO_TRY(audit::record(tx, ctx, std::move(record)));
            return policy;
          };
          result = CRETO_TRY(io::once(tx, ctx, "authz.policy", idempotency_window, write, encode, decode));
          changed_nothing_ = !fresh;
          return {};
        },
        [&](OrgState& state) {
          auto policy = std::make_shared<LoadedPolicy>(loaded);
          policy->stored = result;
          state.policies[id] = std::move(policy);
          state.plan();
        });
    if (!done) return std::move(done).error();
    return result;
  }

  Result<> record_entities(sql::Tx& tx, const Context& ctx, std::string what, std::size_t count) {
    auto record = audit::AuditRecord::of(ctx, std::move(what), "authz:entities");
    record.metadata = Json{{"count", count}}.dump();
    CRETO_TRY(audit::record(tx, ctx, std::move(record)));
    return {};
  }

  static Result<> check_entity(const Entity& entity) {
    const auto check_uid = [](const EntityUid& uid) -> Result<> {
      if (uid.type.size() > 256 || !cedar::is_path(uid.type)) {
        return error(ErrorKind::invalid_input,
                     fmt::format("{} is no entity type", cedar::quote(uid.type.substr(0, 100))));
      }
      if (uid.id.size() <= 4'096 && is_valid_utf8(uid.id)) return {};
      return error(ErrorKind::invalid_input, "the id of an entity is UTF-8 of up to 4096 bytes");
    };
    CRETO_TRY(check_uid(entity.uid));
    if (entity.parents.size() > 1'000) return error(ErrorKind::invalid_input, "an entity has at most 1000 parents");
    for (const EntityUid& parent : entity.parents) {
      CRETO_TRY(check_uid(parent));
    }
    const std::string document = CRETO_TRY(store::document_of(entity));
    if (document.size() <= 64 << 10) return {};
    return error(ErrorKind::too_large, fmt::format("{} is larger than 64 KiB", entity.uid.to_string()));
  }

  /// The stored entities with `added`. Errors: resource_exhausted where the hierarchy becomes too large.
  Result<cedar::EntityStore> with_entities(const std::string& org, const std::vector<Entity>& added) const {
    const auto snapshot = snapshots_.current();
    const OrgState* state = snapshot->org(org);
    cedar::EntityStore store = state ? state->entities : cedar::EntityStore();
    std::vector<std::shared_ptr<const Entity>> shared;
    shared.reserve(added.size());
    for (const Entity& entity : added) shared.push_back(std::make_shared<const Entity>(entity));
    store.put(std::move(shared));
    if (store.ancestors() > options_.ancestors_max)
      return error(ErrorKind::resource_exhausted,
                   fmt::format("at most {} pairs of an entity and one above it", options_.ancestors_max));
    return store;
  }

  /// That the stored hierarchy with `added` on top has no cycle, and not too many entities.
  Result<> check_hierarchy(const std::string& org, const std::vector<Entity>& added) const {
    const auto snapshot = snapshots_.current();
    const OrgState* state = snapshot->org(org);
    std::unordered_map<EntityUid, const Entity*> fresh;
    for (const Entity& entity : added) fresh[entity.uid] = &entity;
    if ((state ? state->entities.entities() : 0) + fresh.size() > options_.entities_max) {
      return error(ErrorKind::resource_exhausted, fmt::format("at most {} entities are stored", options_.entities_max));
    }
    const auto parents = [&](const EntityUid& uid) -> const std::vector<EntityUid>* {
      if (const auto at = fresh.find(uid); at != fresh.end()) return &at->second->parents;
      const cedar::EntityId id = state ? state->entities.find(uid) : cedar::no_entity;
      if (id == cedar::no_entity || !state->entities.node(id).entity) return nullptr;
      return &state->entities.node(id).entity->parents;
    };
    // Depth first without recursion; an entity on the path that is met again closes a cycle.
    enum class Mark : std::uint8_t { open, done };
    std::unordered_map<EntityUid, Mark> marks;
    for (const Entity& entity : added) {
      std::vector<std::pair<EntityUid, std::size_t>> path{{entity.uid, 0}};
      if (!marks.emplace(entity.uid, Mark::open).second) continue;
      while (!path.empty()) {
        const EntityUid at = path.back().first;
        const auto* above = parents(at);
        if (!above || path.back().second == above->size()) {
          marks[at] = Mark::done;
          path.pop_back();
          continue;
        }
        const EntityUid& parent = (*above)[path.back().second++];
        const auto [mark, is_new] = marks.emplace(parent, Mark::open);
        if (is_new) {
          path.emplace_back(parent, 0);
        } else if (mark->second == Mark::open) {
          return error(ErrorKind::invalid_input, fmt::format("{} would be its own ancestor", parent.to_string()));
        }
      }
    }
    return {};
  }

  // --- loading
  // ----------------------------------------------------------------------------------------------------------

  /// Requires: `writing_` is held. Changes nothing where it fails.
  Result<> reload(const Context& ctx) {
    const auto before = snapshots_.current();
    auto stored = CRETO_TRY(sql::read(database_, ctx, [](sql::Tx& tx) { return store::load_all(tx); }));
    auto next = std::make_shared<Snapshot>();
    next->extensions = before->extensions;
    for (auto& [org, rows] : stored) {
      const OrgState* old = before->org(org);
      auto state = std::make_shared<OrgState>();
      state->version = rows.version;
      for (Policy& policy : rows.policies) {
        const auto known = old ? old->policies.find(policy.id)
                               : std::map<PolicyId, std::shared_ptr<const LoadedPolicy>>::const_iterator{};
        auto loaded = std::make_shared<LoadedPolicy>();
        if (old && known != old->policies.end() && known->second->stored.text == policy.text) {
          *loaded = *known->second;
          loaded->stored = std::move(policy);
        } else {
          *loaded = CRETO_TRY(load_policy(std::move(policy), options_.policy_bytes_max));
        }
        PolicyId id = loaded->stored.id;
        state->policies.emplace(std::move(id), std::move(loaded));
      }
      std::vector<std::shared_ptr<const Entity>> entities;
      for (Entity& entity : rows.entities) entities.push_back(std::make_shared<const Entity>(std::move(entity)));
      state->entities.put(std::move(entities));
      state->revoked.insert(rows.revoked.begin(), rows.revoked.end());
      state->plan();
      next->orgs.emplace(org, std::move(state));
    }
    snapshots_.publish(std::move(next));
    return {};
  }

  Result<> reload_or_deny(const Context& ctx) {
    Context fresh = ctx;
    fresh.deadline = Monotonic::max();
    auto done = reload(fresh);
    if (!done) {
      probe_.stale(ctx, done.error());
      auto next = std::make_shared<Snapshot>(*snapshots_.current());
      next->stale = true;
      snapshots_.publish(std::move(next));
    }
    return done;
  }

  sql::Database& database_;
  const Clock& clock_;
  Probe probe_;
  const std::vector<const EntitySource*> sources_;
  const OverrideTokens tokens_;
  const AuthzOptions options_;
  SnapshotHolder snapshots_;
  DecisionCache cache_;
  std::mutex writing_;            ///< one change at a time, so that snapshots follow the versions
  bool changed_nothing_ = false;  ///< guarded by `writing_`: the transaction only repeated an earlier answer
};

}  // namespace

Result<std::unique_ptr<Authz>> create_authz(sql::Database& database, const Clock& clock, Telemetry& telemetry,
                                            std::vector<const EntitySource*> sources, Secret override_key,
                                            AuthzOptions options) {
  if (override_key.size() != 32) return error(ErrorKind::invalid_input, "the override key has 32 bytes");
  if (sources.size() > 8) return error(ErrorKind::invalid_input, "at most 8 entity sources");
  auto service = std::make_unique<AuthzService>(database, clock, telemetry, std::move(sources), override_key, options);
  CRETO_TRY(service->start());
  return std::unique_ptr<Authz>(std::move(service));
}

}  // namespace creto::authz
