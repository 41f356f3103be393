#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <list>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "authz_probe.h"
#include "cedar/text.h"
#include "check_request.h"
#include "creto/audit/audit_log.h"
#include "creto/authz/authz.h"
#include "creto/common/assert.h"
#include "creto/common/tick_time.h"
#include "creto/crypto/hash.h"
#include "creto/io/files.h"
#include "creto/io/idempotency.h"
#include "creto/io/sql.h"
#include "decision_cache.h"
#include "decision_log.h"
#include "entity_rules.h"
#include "hash.h"
#include "kept_answers.h"
#include "override_token.h"
#include "override_use.h"
#include "policy_verdicts.h"
#include "reach.h"
#include "resource_filter.h"
#include "service_entities.h"
#include "snapshot.h"
#include "source_overlay.h"
#include "store.h"
#include "workplace.h"

namespace creto::authz {
namespace {

constexpr std::size_t batch_max = 1'000;
constexpr std::size_t filter_max = 1'000;
constexpr std::size_t sources_max = 8;
constexpr std::size_t verdicts_max = 100;
constexpr std::size_t problems_max = 100;
constexpr Nanos grant_max = std::chrono::days(30);
constexpr Nanos overrides_kept = 2 * grant_max;
constexpr Nanos idempotency_window = std::chrono::hours(24);

Error error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

/// None where the request is sound.
std::optional<std::string> fault_in(const CheckRequest& request) {
  if (request.action.empty() || request.action.size() > 256) return "the action has 1 to 256 characters";
  if (request.resource.type.size() > 256 || !cedar::is_path(request.resource.type))
    return "the resource's type is no Cedar type";
  if (request.resource.id.size() > 4'096) return "the resource's id is longer than 4096 bytes";
  if (is_larger(request.context, context_bytes_max)) return "the context is larger than 256 KiB";
  if (request.chain.size() > delegation_chain_max_depth) return "the delegation chain is too deep";
  if (!request.chain.empty() && request.chain.back() != request.principal) {
    return "the delegation chain does not end with the principal";
  }
  return std::nullopt;
}

/// The whole of it, for who needs it as one value: schema and interpreter.
cedar::Request cedar_request(const CheckRequest& request) {
  Attributes context = request.context;
  context.emplace_back("delegation", delegation_of(request.principal, request.chain));
  return {
      entity_of(request.principal), {"Action", request.action}, request.resource, Value::record(std::move(context))};
}

class AuthzService final : public Authz {
 public:
  AuthzService(sql::Database& database, const Clock& clock, Telemetry& telemetry,
               std::vector<const EntitySource*> sources, const Secret& override_key, AuthzOptions options)
      : database_(database),
        clock_(clock),
        ticks_(clock),
        probe_(telemetry),
        sources_(std::move(sources)),
        tokens_(override_key),
        options_(std::move(options)),
        telemetry_(telemetry),
        rate_memory_(std::make_shared<RateMemory>(static_cast<std::int64_t>(options_.rate_bytes_max))),
        cache_(options_.cache_entries) {}

  Result<> start() {
    CRETO_TRY(store::migrate(database_));
    CRETO_TRY(audit::prepare(database_));
    if (options_.decision_log)
      log_ = CRETO_TRY(DecisionLog::open(database_, io::real_files(), clock_, telemetry_, *options_.decision_log,
                                         sources_.size(), options_.cache_ttl));
    const std::lock_guard lock(writing_);
    const Monotonic begin = clock_.monotonic();
    CRETO_TRY(reload(Context{}));
    is_fresh_as_of(begin);
    return begin_histories();
  }

  // --- checks
  // -----------------------------------------------------------------------------------------------------------

  Decision check(const Context& ctx, const CheckRequest& request) override {
    return answer(ctx, request, *snapshots_.pin(), false);
  }
  Decision admit(const Context& ctx, const CheckRequest& request) override {
    return answer(ctx, request, *snapshots_.pin(), true);
  }
  Decision check_naming(const Context& ctx, const CheckRequest& request, bool counts,
                        std::vector<PolicyId>& matched) override {
    matched.clear();
    return answer(ctx, request, *snapshots_.pin(), counts, &matched);
  }

  std::vector<Decision> check_batch(const Context& ctx, std::span<const CheckRequest> requests) override {
    const auto snapshot = snapshots_.pin();
    std::vector<Decision> decisions;
    decisions.reserve(requests.size());
    for (const CheckRequest& request : requests) {
      if (requests.size() > batch_max) {
        decisions.emplace_back(Deny{.reason = fmt::format("a batch has at most {} checks", batch_max), .policy = {}});
      } else {
        decisions.push_back(answer(ctx, request, *snapshot, false));
      }
    }
    return decisions;
  }

  Explanation explain(const Context& ctx, const CheckRequest& request) override {
    const auto snapshot = snapshots_.pin();
    Explanation explanation;
    explanation.decided_by = to_string(DecidedBy::policies);
    PolicyDecision decided = evaluate(ctx, request, *snapshot, &explanation, nullptr);
    if (!std::holds_alternative<Deny>(decided.decision)) {
      const std::size_t before = decided.decision.index();
      limit(request, decided, false);
      if (decided.decision.index() != before) {
        explanation.decided_by = to_string(DecidedBy::rate);
        explanation.decided_by_name = permits_of(explanation);
      }
      const std::string_view extension = restrict(ctx, request, *snapshot, decided.decision);
      if (!extension.empty()) {
        explanation.decided_by = to_string(DecidedBy::extension);
        explanation.decided_by_name = extension;
      }
    }
    explanation.decision = std::move(decided.decision);
    return explanation;
  }

  Result<ResourceFilter> filter_resources(const Context& ctx, const FilterQuestion& question) override {
    const CheckRequest& request = question.request;
    if (auto fault = fault_in(request)) return error(ErrorKind::invalid_input, "request: " + *fault);
    if (question.limit > filter_max)
      return error(ErrorKind::invalid_input, fmt::format("limit: must be at most {}", filter_max));
    const auto snapshot = snapshots_.pin();
    if (is_stale(*snapshot)) return error(ErrorKind::unavailable, "the policies in force cannot be established");
    const OrgState* state = snapshot->org(ctx.org);
    if (!state) return ResourceFilter{};
    if (state->schema) CRETO_TRY(state->schema->check(cedar_request(request)));
    AskedResources resources(ctx, clock_, snapshot->sources);
    ServiceEntities entities(ctx.org, *state, sources_, &resources);
    auto filter = authz::filter_resources(*state, entities, question, cedar_request(request));
    if (entities.trouble())
      return error(ErrorKind::unavailable, "entities cannot be read: " + entities.trouble()->message());
    return filter;
  }

  // --- policies
  // ---------------------------------------------------------------------------------------------------------

  Result<Policy> create_policy(const Context& ctx, const PolicyId& id, std::string text) override {
    return store_policy(ctx, id, std::move(text), [&](const OrgState& state, const LoadedPolicy* before) -> Result<> {
      if (before) return error(ErrorKind::already_exists, fmt::format("policy `{}` exists", id));
      if (state.policies.size() < options_.policies_max) return {};
      return error(ErrorKind::resource_exhausted, fmt::format("there are {} policies already", state.policies.size()));
    });
  }

  Result<Policy> update_policy(const Context& ctx, const PolicyId& id, std::string text,
                               std::int64_t expected_version) override {
    return store_policy(ctx, id, std::move(text), [&](const OrgState&, const LoadedPolicy* before) -> Result<> {
      if (!before) return error(ErrorKind::not_found, fmt::format("there is no policy `{}`", id));
      if (expected_version == 0 || expected_version == before->stored.version) return {};
      return error(ErrorKind::conflict,
                   fmt::format("policy `{}` is at version {}, not {}", id, before->stored.version, expected_version));
    });
  }

  Result<> delete_policy(const Context& ctx, const PolicyId& id) override {
    return change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      const auto before = state.policies.find(id);
      if (!before) return error(ErrorKind::not_found, fmt::format("there is no policy `{}`", id));
      CRETO_TRY(remove(tx, ctx, state, before));
      return true;
    });
  }

  Result<std::vector<Policy>> list_policies(const Context& ctx) override {
    std::vector<Policy> all;
    const auto snapshot = snapshots_.current();
    if (const OrgState* state = snapshot->org(ctx.org)) {
      for (const auto& policy : state->policies.sorted()) all.push_back(policy->stored);
    }
    return all;
  }

  Result<Policy> link_policy(const Context& ctx, const PolicyLink& link) override {
    return create_policy(ctx, link.id, text_of(link));
  }

  Result<std::vector<PolicyLink>> list_policy_links(const Context& ctx, const PolicyId& template_id) override {
    std::vector<PolicyLink> all;
    const auto snapshot = snapshots_.current();
    const OrgState* state = snapshot->org(ctx.org);
    if (!state || !state->links) return all;
    for (const auto& [id, from] : *state->links) {
      if (!template_id.empty() && from != template_id) continue;
      const cedar::SlotValues& values = state->policies.find(id)->link->values;
      all.push_back({id, from, values.principal, values.resource});
    }
    return all;
  }

  Result<> unlink_policy(const Context& ctx, const PolicyId& id) override {
    return change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      const auto before = state.policies.find(id);
      if (!before || !before->link) return error(ErrorKind::not_found, fmt::format("there is no link `{}`", id));
      CRETO_TRY(remove(tx, ctx, state, before));
      return true;
    });
  }

  // --- versions
  // ---------------------------------------------------------------------------------------------------------

  Result<AppliedPolicies> apply_policies(const Context& ctx, const PolicyApplication& application) override {
    const std::string prefix = application.folder.empty() ? "" : application.folder + "/";
    std::map<PolicyId, std::string> wanted;
    for (const PolicyText& policy : application.policies) {
      if (!policy.id.starts_with(prefix))
        return error(ErrorKind::invalid_input, fmt::format("policy `{}` does not begin with `{}`", policy.id, prefix));
      if (!wanted.emplace(policy.id, policy.text).second)
        return error(ErrorKind::invalid_input, fmt::format("policy `{}` stands there twice", policy.id));
    }
    AppliedPolicies applied;
    auto done = change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      const auto write = [&]() -> Result<AppliedPolicies> {
        CRETO_TRY(expect_version(state, application.expected_version));
        AppliedPolicies result =
            CRETO_TRY(put_in_place(application.dry_run ? nullptr : &tx, ctx, state, wanted, prefix));
        const bool same = result.added.empty() && result.changed.empty() && result.removed.empty();
        if (same || application.dry_run) {
          if (same) result.version = CRETO_TRY(newest(tx, ctx.org));
          return result;
        }
        result.version =
            CRETO_TRY(keep_version(tx, ctx, state, version_of(result, "policies_applied"), "authz:policies"));
        return result;
      };
      const std::int64_t before = state.policies_version;
      applied = CRETO_TRY(application.dry_run ? write()
                                              : io::once(tx, ctx, "authz.policies", idempotency_window, write,
                                                         encode_applied, decode_applied));
      return state.policies_version != before;
    });
    if (!done) return std::move(done).error();
    return applied;
  }

  Result<std::vector<PolicyVersion>> list_policy_versions(const Context& ctx, std::int64_t before,
                                                          std::size_t limit) override {
    if (limit == 0 || limit > 1'000) return error(ErrorKind::invalid_input, "limit: must be 1 to 1000");
    return sql::read(database_, ctx, [&](sql::Tx& tx) {
      return store::list_versions(tx, ctx.org, before == 0 ? std::numeric_limits<std::int64_t>::max() : before, limit);
    });
  }

  Result<VersionedPolicies> get_policy_version(const Context& ctx, std::int64_t version) override {
    return sql::read(database_, ctx, [&](sql::Tx& tx) { return policies_at(tx, ctx.org, version); });
  }

  Result<std::vector<PolicyDifference>> diff_policy_versions(const Context& ctx, std::int64_t from,
                                                             std::int64_t to) override {
    return sql::read(database_, ctx, [&](sql::Tx& tx) -> Result<std::vector<PolicyDifference>> {
      const VersionedPolicies before = CRETO_TRY(policies_at(tx, ctx.org, from));
      const VersionedPolicies after = CRETO_TRY(policies_at(tx, ctx.org, to));
      std::map<PolicyId, PolicyDifference> all;
      for (const Policy& policy : before.policies) all[policy.id].before = policy.text;
      for (const Policy& policy : after.policies) all[policy.id].after = policy.text;
      std::vector<PolicyDifference> differences;
      for (auto& [id, difference] : all) {
        if (difference.before == difference.after) continue;
        difference.id = id;
        differences.push_back(std::move(difference));
      }
      return differences;
    });
  }

  Result<PolicyVersion> roll_back_policies(const Context& ctx, std::int64_t version,
                                           std::int64_t expected_version) override {
    PolicyVersion made;
    auto done = change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      bool fresh = false;
      const auto write = [&]() -> Result<PolicyVersion> {
        fresh = true;
        CRETO_TRY(expect_version(state, expected_version));
        const VersionedPolicies old = CRETO_TRY(policies_at(tx, ctx.org, version));
        std::map<PolicyId, std::string> wanted;
        for (const Policy& policy : old.policies) wanted.emplace(policy.id, policy.text);
        if (old.schema != (state.schema ? state.schema->stored.text : "")) {
          CRETO_TRY(put_schema_in_place(tx, ctx, state, old.schema));
        }
        const AppliedPolicies result = CRETO_TRY(put_in_place(&tx, ctx, state, wanted, ""));
        return keep_version(tx, ctx, state, version_of(result, "policies_rolled_back"), "authz:policies",
                            Json{{"rolled_back_to", old.version.version}});
      };
      made = CRETO_TRY(io::once(tx, ctx, "authz.rollback", idempotency_window, write, encode_version, decode_version));
      return fresh;
    });
    if (!done) return std::move(done).error();
    return made;
  }

  Result<PolicySchema> set_schema(const Context& ctx, std::string text) override {
    PolicySchema result;
    auto done = change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      const std::string before = state.schema ? state.schema->stored.text : "";
      if (before == text) {
        if (state.schema) result = state.schema->stored;
        return false;
      }
      CRETO_TRY(put_schema_in_place(tx, ctx, state, text));
      if (state.schema) {
        result = state.schema->stored;
        std::vector<std::string> problems;
        for (const auto& policy : state.policies.sorted()) {
          const auto findings = state.schema->validate(policy->planned->ast);
          for (const auto& problem : findings.errors)
            problems.push_back(fmt::format("policy `{}`: {}", policy->stored.id, cedar::to_string(problem)));
          if (problems.size() > 100) break;
        }
        if (!problems.empty())
          return error(ErrorKind::invalid_input,
                       fmt::format("policies do not fit the schema\n{}", fmt::join(problems, "\n")));
      }
      CRETO_TRY(keep_version(tx, ctx, state, {.what = "schema_set"}, "authz:schema"));
      return true;
    });
    if (!done) return std::move(done).error();
    return result;
  }

  Result<PolicySchema> get_schema(const Context& ctx) override {
    const auto snapshot = snapshots_.current();
    const OrgState* state = snapshot->org(ctx.org);
    return state && state->schema ? state->schema->stored : PolicySchema();
  }

  // --- entities
  // ---------------------------------------------------------------------------------------------------------

  Result<> put_entities(const Context& ctx, std::vector<Entity> entities) override {
    if (entities.size() > 1'000) return error(ErrorKind::too_large, "at most 1000 entities a call");
    for (Entity& entity : entities) {
      CRETO_TRY(check_entity(entity));
      cedar::normalise(entity);
    }
    return change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      for (const Entity& entity : entities) {
        if (state.schema) CRETO_TRY(state.schema->check(entity));
      }
      CRETO_TRY(check_hierarchy(state, entities, options_.entities_max));
      CRETO_TRY(add_entities(state, entities));
      for (const Entity& entity : entities) {
        CRETO_TRY(store::put_entity(tx, ctx.org, entity));
      }
      CRETO_TRY(record_entities(tx, ctx, "entities_stored", entities.size()));
      state.compact();
      return true;
    });
  }

  Result<> delete_entities(const Context& ctx, std::vector<EntityUid> uids) override {
    if (uids.size() > 1'000) return error(ErrorKind::too_large, "at most 1000 entities a call");
    return change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      for (const EntityUid& uid : uids) {
        CRETO_TRY(store::remove_entity(tx, ctx.org, uid));
      }
      CRETO_TRY(record_entities(tx, ctx, "entities_deleted", uids.size()));
      state.erase_entities(uids);
      if (state.schema) load_entities(state, {});
      state.compact();
      return true;
    });
  }

  Result<std::vector<Entity>> list_entities(const Context& ctx) override {
    std::vector<Entity> all;
    const auto snapshot = snapshots_.current();
    if (const OrgState* state = snapshot->org(ctx.org)) {
      for (cedar::EntityId id = 0; id < state->entities.names(); ++id)
        if (const auto& entity = state->entities.node(id).entity; entity && !is_of_schema(*state, entity->uid))
          all.push_back(*entity);
    }
    std::sort(all.begin(), all.end(), [](const Entity& a, const Entity& b) { return a.uid < b.uid; });
    return all;
  }

  Result<PlacedEntity> get_entity(const Context& ctx, const EntityUid& uid) override {
    const auto snapshot = snapshots_.current();
    static const OrgState nothing;
    const OrgState* state = snapshot->org(ctx.org);
    AskedResources resources(ctx, clock_, snapshot->sources);
    ServiceEntities entities(ctx.org, state ? *state : nothing, sources_, &resources);
    const auto found = entities.find(uid);
    const auto above = found ? entities.ancestors(uid) : Result<const std::vector<EntityUid>*>(nullptr);
    if (!found || !above)
      return error(ErrorKind::unavailable, "entities cannot be read: " + entities.trouble()->message());
    if (*found == nullptr) return error(ErrorKind::not_found, fmt::format("there is no entity {}", uid.to_string()));
    return PlacedEntity{**found, **above};
  }

  // --- override tokens
  // --------------------------------------------------------------------------------------------------

  Result<std::string> issue_override(const Context& ctx, const OverrideGrant& grant) override {
    if (grant.expires_at > clock_.now() + grant_max)
      return error(ErrorKind::invalid_input, "an override lasts at most 30 days");
    return tokens_.issue(ctx.org, grant);
  }

  Result<> revoke_override(const Context& ctx, const RequestId& request) override {
    return change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      const auto use = CRETO_TRY(store::override_use(tx, ctx.org, request));
      if (use) {
        return error(ErrorKind::conflict, fmt::format("the approval `{}` was used by `{}`", request.to_string(), *use));
      }
      CRETO_TRY(store::revoke_override(tx, ctx.org, request));
      CRETO_TRY(store::forget_overrides(tx, tx.now() - overrides_kept));
      auto record = audit::AuditRecord::of(ctx, "override_revoked", "oversight:request:" + request.to_string());
      CRETO_TRY(audit::record(tx, ctx, std::move(record)));
      auto revoked = state.revoked ? *state.revoked : std::map<RequestId, Instant>();
      std::erase_if(revoked, [&](const auto& one) { return one.second < tx.now() - overrides_kept; });
      revoked.emplace(request, tx.now());
      state.revoked = std::make_shared<const std::map<RequestId, Instant>>(std::move(revoked));
      return true;
    });
  }

  Result<bool> is_override_open(const Context& ctx, const RequestId& request) override {
    return sql::read(database_, ctx, [&](sql::Tx& tx) -> Result<bool> {
      const auto use = CRETO_TRY(store::override_use(tx, ctx.org, request));
      const bool revoked = CRETO_TRY(store::is_override_revoked(tx, ctx.org, request));
      return !use && !revoked;
    });
  }

  Result<VerifiedOverride> verify_override(const Context& ctx, const CheckRequest& request) override {
    OverrideToken token = CRETO_TRY(tokens_.verify(ctx.org, request));
    return VerifiedOverride{token.request, token.expires_at, std::move(token.lifts)};
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
    for (const auto& other : next->extensions) {
      if (other->extension.name() == extension.name()) {
        return error(ErrorKind::already_exists, fmt::format("extension `{}` is registered", extension.name()));
      }
    }
    const AuthzProbe::OfExtension counters = probe_.of(extension);
    next->extensions.push_back(std::make_shared<RegisteredExtension>(extension, counters.failures, counters.late));
    std::stable_sort(next->extensions.begin(), next->extensions.end(),
                     [](const auto& a, const auto& b) { return a->extension.priority() < b->extension.priority(); });
    put_in_force(std::move(next));
    return {};
  }

  Result<> register_source(const ResourceSource& source) override {
    const std::lock_guard lock(writing_);
    auto next = std::make_shared<Snapshot>(*snapshots_.current());
    for (std::string& type : source.types()) {
      const bool known = std::any_of(next->sources.begin(), next->sources.end(),
                                     [&](const RegisteredSource& other) { return other.type == type; });
      if (known)
        return error(ErrorKind::already_exists, fmt::format("somebody answers for entities of type `{}`", type));
      next->sources.push_back({std::move(type), &source});
    }
    put_in_force(std::move(next));
    return {};
  }

  Result<std::vector<ExtensionStatus>> list_extensions(const Context&) override {
    std::vector<ExtensionStatus> all;
    for (const auto& one : snapshots_.current()->extensions) {
      all.push_back({.name = std::string(one->extension.name()),
                     .priority = one->extension.priority(),
                     .budget = one->extension.budget(),
                     .denies_on_failure = one->extension.denies_on_failure(),
                     .calls = one->calls.load(std::memory_order_relaxed),
                     .failures = one->failures.load(std::memory_order_relaxed),
                     .late = one->late.load(std::memory_order_relaxed)});
    }
    return all;
  }

  Result<> refresh(const Context& ctx) override {
    const std::lock_guard lock(writing_);
    const auto snapshot = snapshots_.current();
    const Monotonic begin = clock_.monotonic();
    const auto stored = CRETO_TRY(sql::read(database_, ctx, [](sql::Tx& tx) { return store::versions(tx); }));
    const bool same = !snapshot->stale && std::all_of(stored.begin(), stored.end(), [&](const auto& entry) {
      const OrgState* state = snapshot->org(entry.first);
      return state && state->version == entry.second;
    });
    if (!same) CRETO_TRY(reload(ctx));
    is_fresh_as_of(begin);
    return {};
  }

 private:
  // --- deciding
  // ---------------------------------------------------------------------------------------------------------

  /// `matched`, unless null, is told which policies determined Cedar's own answer; a cache does not know.
  Decision answer(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot, bool counts,
                  std::vector<PolicyId>* matched = nullptr) {
    Trail trail;
    const OrgState* state = snapshot.org(ctx.org);
    const bool cacheable =
        state && !snapshot.stale && options_.cache_entries != 0 && request.override_token.empty() && matched == nullptr;
    DecisionCache::Place place;
    std::optional<CacheNote> note;
    if (cacheable || log_) {
      begin(trail, ctx, request, state);
      // What is likely to be found is fetched while the clock is read.
      if (cacheable) place = cache_.look(*trail.key);
      trail.at = log_ ? clock_.monotonic() : ticks_.now();  // the log tells the time
      if (cacheable && trail.at <= fresh_until_.load(std::memory_order_relaxed)) note = cache_.find(place, trail.at);
    }
    RateWindows* const rate = note && note->rate != 0 ? state->rate(note->rate) : nullptr;
    const bool known = note && (note->rate == 0 || rate != nullptr);
    if (known) {
      probe_.hit();
      trail.cached = true;
      trail.entities = note->entities;
      trail.policy = note->policy;
      // What nobody else has a say in is the way that has to be short.
      if (rate == nullptr && snapshot.extensions.empty()) return logged(trail, request, 0, Allow{});
    }
    PolicyDecision decided{Allow{}, {}, rate};
    if (!known) {
      decided = evaluate(ctx, request, snapshot, nullptr, log_ ? &trail : nullptr, matched);
      if (cacheable) {
        probe_.miss();
        // With the one rate that it depends on, if any: a choice of several is made anew each time.
        if (allowed(decided.decision) && decided.further_rates.empty() && !decided.fleeting)
          cache_.insert(place, trail.at, options_.cache_ttl,
                        {decided.rate == nullptr ? 0 : decided.rate->number(), trail.entities, trail.policy});
      }
    }
    Decision& decision = decided.decision;
    const std::size_t said = decision.index();
    if (!std::holds_alternative<Deny>(decision)) {
      const auto by = [&](DecidedBy who, auto&& step) {
        const std::size_t before = decision.index();
        step();
        if (decision.index() != before) trail.by = who;
      };
      by(DecidedBy::rate, [&] { limit(request, decided, false); });
      by(DecidedBy::extension, [&] { restrict(ctx, request, snapshot, decision); });
      if (counts && allowed(decision)) by(DecidedBy::rate, [&] { limit(request, decided, true); });
    }
    return logged(trail, request, said, std::move(decision));
  }

  /// Whether nobody knows any more what is in force.
  bool is_stale(const Snapshot& snapshot) const {
    if (snapshot.stale) return true;
    const Monotonic until = fresh_until_.load(std::memory_order_relaxed);
    return until != Monotonic::max() && clock_.monotonic() > until;
  }
  void is_fresh_as_of(Monotonic begin) {
    if (options_.fresh_for > Nanos(0)) fresh_until_.store(begin + options_.fresh_for, std::memory_order_relaxed);
  }

  /// Writes the request down. The sources' versions come before what they are asked: an answer can only be filed as
  /// older than it is.
  void begin(Trail& trail, const Context& ctx, const CheckRequest& request, const OrgState* state) {
    std::array<std::uint64_t, sources_max> versions;  // not cleared: most services have no source
    const std::size_t count = sources_.size();
    for (std::size_t i = 0; i < count; ++i) versions[i] = sources_[i]->version();
    trail.key.emplace(ctx.org, state ? state->version : 0, std::span(versions).first(count), request);
  }

  /// `decision`, once it is sure to be in the log.
  Decision logged(Trail& trail, const CheckRequest& request, std::size_t said, Decision decision) {
    if (log_ && !log_->append(trail, request, said, decision))
      decision = Deny{.reason = "the decision log cannot be written", .policy = {}, .transient = true};
    if (!allowed(decision)) probe_.refused();
    return decision;
  }

  /// Makes it RateLimited where none of its rates has room. `counts` takes the room of the first that has.
  void limit(const CheckRequest& request, PolicyDecision& decided, bool counts) {
    if (decided.rate == nullptr) return;
    const Monotonic now = clock_.monotonic();
    const Identity& root = request.chain.empty() ? request.principal : request.chain.front();
    const auto ask = [&](RateWindows& rate) {
      const std::string& who = (rate.rate().by_root ? root : request.principal).text();
      return counts ? rate.take(who, now) : rate.look(who, now);
    };
    auto soonest = ask(*decided.rate);
    for (RateWindows* rate : decided.further_rates) {
      if (soonest.kind == RateWindows::Verdict::room) break;
      const auto verdict = ask(*rate);
      if (verdict.kind == RateWindows::Verdict::room || verdict.retry_after < soonest.retry_after) soonest = verdict;
    }
    if (soonest.kind == RateWindows::Verdict::room) return;
    probe_.limited();
    Decision refused = RateLimited{soonest.retry_after, 0};
    if (soonest.kind == RateWindows::Verdict::no_memory)
      refused = Deny{.reason = "too many are counted for `@rate`", .policy = {}, .transient = true};
    if (outranks(refused, decided.decision)) decided.decision = std::move(refused);
  }

  PolicyDecision evaluate(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot,
                          Explanation* explanation, Trail* trail, std::vector<PolicyId>* matched = nullptr) {
    const auto denied = [&](DecidedBy by, std::string reason, bool transient) -> PolicyDecision {
      if (trail) trail->by = by;
      if (explanation) explanation->decided_by = to_string(by);
      return {Deny{.reason = std::move(reason), .policy = {}, .transient = transient}, {}};
    };
    if (is_stale(snapshot)) return denied(DecidedBy::trouble, "the policies in force cannot be established", true);
    if (auto fault = fault_in(request)) return denied(DecidedBy::request, "invalid request: " + *fault, false);
    const OrgState* state = snapshot.org(ctx.org);
    if (!state) return denied(DecidedBy::policies, "no policy permits this", false);

    std::vector<OverrideGrant::Lift> lifts;
    if (!request.override_token.empty()) {
      auto token = tokens_.verify(ctx.org, request);
      if (!token) return denied(DecidedBy::token, token.error().message(), false);
      if (clock_.now() >= token->expires_at) return denied(DecidedBy::token, "the approval has expired", false);
      if (state->revoked && state->revoked->contains(token->request))
        return denied(DecidedBy::token, "the approval was withdrawn", false);
      lifts = std::move(token->lifts);
    }

    if (state->schema) {
      const auto conforms = state->schema->check(cedar_request(request));
      if (!conforms) return denied(DecidedBy::request, "invalid request: " + conforms.error().message(), false);
    }
    AskedResources resources(ctx, clock_, snapshot.sources);
    ServiceEntities entities(ctx.org, *state, sources_, &resources);
    const WorkplaceLease at;
    const Workplace::Asker& asker = at->asker(request);
    at->action.id = request.action;
    cedar::Engine::Scratch& scratch = at->engine;
    SourceOverlay overlay(entities, state->entities, &sources_, scratch.frame, &resources);
    const bool stored_alone = sources_.empty() && resources.empty();
    const cedar::RequestView view{asker.entity, at->action, request.resource, request.context, &asker.delegation};
    const auto what_failed = [&](const cedar::PlannedPolicy& policy) {
      const auto again = cedar::is_satisfied(policy.ast, cedar_request(request), entities);
      return again ? Error(Product::platform, ErrorKind::internal, "it fails where it should not") : again.error();
    };
    const bool decided =
        state->engine.evaluate(scratch, state->entities, stored_alone ? nullptr : &overlay, view,
                               explanation || matched ? cedar::Detail::all : cedar::Detail::decision, what_failed);
    if (!decided) {
      const Error trouble = entities.trouble().value_or(
          error(ErrorKind::too_large, fmt::format("an entity has more than {} ancestors", cedar::ancestors_max)));
      probe_.trouble(ctx, trouble);
      return denied(DecidedBy::trouble, "entities cannot be read: " + trouble.message(), true);
    }
    const cedar::Evaluation& evaluation = scratch.result;
    for (const auto& [policy, failure] : evaluation.errors) probe_.policy_failed(ctx, policy->id, failure);
    PolicyDecision result = decide(evaluation, lifts);
    result.fleeting = resources.asked();
    if (matched) *matched = ids_of(evaluation.reasons());
    if (explanation) {
      explanation->snapshot = state->version;
      explanation->lifted = result.lifted;
      explanation->reasons = ids_of(evaluation.reasons());
      for (const auto& [policy, failure] : evaluation.errors)
        explanation->errors.emplace_back(policy->id, failure.message());
      std::sort(explanation->errors.begin(), explanation->errors.end());
      explanation->policies =
          verdicts_of(*state, cedar_request(request), entities, verdicts_max, explanation->policies_left_out);
      if (entities.trouble()) explanation->policies.clear();
    }
    if (trail) {
      trail->add_policies(evaluation, result);
      trail->add_entities(entities.take_loaded());
      if (!lifts.empty()) trail->make_further().lifts = std::move(lifts);
    }
    return result;
  }

  static std::vector<PolicyId> ids_of(const std::vector<const cedar::PlannedPolicy*>& policies) {
    std::vector<PolicyId> ids;
    for (const auto* policy : policies) ids.push_back(policy->id);
    std::sort(ids.begin(), ids.end());
    return ids;
  }

  static std::string permits_of(const Explanation& explanation) {
    std::string names;
    for (const PolicyVerdict& one : explanation.policies)
      if (!one.forbids && one.outcome == PolicyVerdict::Outcome::applies)
        names += (names.empty() ? "" : ", ") + one.policy;
    return names;
  }

  /// Lets the extensions make `decision` stricter. The last that did; empty where none did.
  std::string_view restrict(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot,
                            Decision& decision) {
    std::string_view by;
    if (snapshot.extensions.empty()) return by;
    Monotonic begin = clock_.monotonic();
    for (const auto& one : snapshot.extensions) {
      Extension& extension = one->extension;
      one->calls.fetch_add(1, std::memory_order_relaxed);
      auto opinion = extension.evaluate(ctx, request);
      const Monotonic end = clock_.monotonic();
      const Nanos took = end - std::exchange(begin, end);
      std::string failure;
      if (took > extension.budget()) {
        one->late.fetch_add(1, std::memory_order_relaxed);
        one->late_total.add();
        probe_.extension_late(ctx, extension, took);
        failure = "it took too long";
      }
      if (!opinion) {
        one->failures.fetch_add(1, std::memory_order_relaxed);
        one->failures_total.add();
        probe_.extension_failed(ctx, extension, opinion.error());
        failure = opinion.error().message();
      } else if (*opinion && !allowed(**opinion)) {
        // An objection is one, however late.
        if (outranks(**opinion, decision)) {
          decision = **std::move(opinion);
          by = extension.name();
        }
        failure.clear();
      }
      if (!failure.empty() && extension.denies_on_failure()) {
        decision =
            Deny{.reason = fmt::format("`{}` failed: {}", extension.name(), failure), .policy = {}, .transient = true};
        by = extension.name();
      }
      if (std::holds_alternative<Deny>(decision)) return by;
    }
    return by;
  }

  // --- changing
  // ---------------------------------------------------------------------------------------------------------

  /// False: nothing was changed, it was only answered again.
  using Change = std::function<Result<bool>(sql::Tx& tx, OrgState& state)>;

  /// Runs `fn` in a transaction on a copy of what is in force, which carries the organization's next version; after the
  /// commit the copy is in force. Where it is not certain what is stored, takes everything from there.
  Result<> change(const Context& ctx, const Change& fn) {
    const std::lock_guard lock(writing_);
    for (int attempt = 0; attempt < 3; ++attempt) {
      const auto snapshot = snapshots_.current();
      const OrgState* before = snapshot->org(ctx.org);
      std::shared_ptr<OrgState> state;
      bool behind = false, changed = true;
      auto done = database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
        state = before ? std::make_shared<OrgState>(*before) : std::make_shared<OrgState>();
        const std::int64_t stored = CRETO_TRY(store::version(tx, ctx.org));
        behind = snapshot->stale || stored != state->version;
        if (behind) return error(ErrorKind::conflict, "another process has changed the policies");
        state->version = stored + 1;
        changed = CRETO_TRY(fn(tx, *state));
        if (!changed) return {};
        const std::int64_t version = CRETO_TRY(store::bump(tx, ctx.org));
        CRETO_ASSERT(version == state->version);
        return {};
      });
      if (done) {
        if (changed) publish(ctx.org, std::move(state));
        return {};
      }
      if (behind) {
        CRETO_TRY(reload_or_deny(ctx));
        continue;
      }
      const ErrorKind kind = done.error().kind();
      if (kind == ErrorKind::unavailable || kind == ErrorKind::timeout || kind == ErrorKind::internal) {
        (void)reload_or_deny(ctx);
      }
      return done;
    }
    return error(ErrorKind::unavailable, "other processes change the policies all the time");
  }

  /// The log knows what is in force before any check can refer to it.
  void put_in_force(std::shared_ptr<const Snapshot> next) {
    if (log_) {
      const auto before = snapshots_.current();
      for (const auto& [org, state] : next->orgs)
        if (before->org(org) != state.get()) log_->publish(org, state);
    }
    snapshots_.publish(std::move(next));
  }

  void publish(const std::string& org, std::shared_ptr<const OrgState> state) {
    auto next = std::make_shared<Snapshot>(*snapshots_.current());
    next->orgs[org] = std::move(state);
    put_in_force(std::move(next));
  }

  using Admission = std::function<Result<>(const OrgState& state, const LoadedPolicy* before)>;
  Result<Policy> store_policy(const Context& ctx, const PolicyId& id, std::string text, const Admission& admit) {
    const Policy given{.id = id, .text = std::move(text), .version = 0, .updated_at = {}, .updated_by = {}};
    Policy result;
    auto done = change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      bool fresh = false;
      const auto write = [&]() -> Result<Policy> {
        fresh = true;
        const auto before = state.policies.find(id);
        CRETO_TRY(admit(state, before.get()));
        LoadedPolicy loaded = CRETO_TRY(load(state, given, before.get()));
        stamp(tx, ctx, loaded.stored, before.get());
        Policy policy = loaded.stored;
        state.replace(before, std::make_shared<const LoadedPolicy>(std::move(loaded)));
        CRETO_TRY(relink(state, {id}));
        CRETO_TRY(store::put_policy(tx, ctx.org, policy, state.version));
        PolicyVersion version{.what = before ? "policy_updated" : "policy_created"};
        (before ? version.changed : version.added) = 1;
        CRETO_TRY(keep_version(
            tx, ctx, state, std::move(version), "authz:policy:" + id,
            Json{{"sha3_256", hex(crypto::sha3_256(as_bytes(policy.text)))}, {"policy_version", policy.version}}));
        return policy;
      };
      result = CRETO_TRY(io::once(tx, ctx, "authz.policy", idempotency_window, write, encode, decode));
      return fresh;
    });
    if (!done) return std::move(done).error();
    const std::vector<PolicyId> changed = {id};
    result.warnings = warnings_of(ctx.org, changed);
    return result;
  }

  /// What a person should know of these policies, now that they are in force.
  std::vector<std::string> warnings_of(const std::string& org, std::span<const PolicyId> ids) const {
    const auto snapshot = snapshots_.current();
    const OrgState* state = snapshot->org(org);
    return state ? warnings_of(*state, ids) : std::vector<std::string>();
  }
  static std::vector<std::string> warnings_of(const OrgState& state, std::span<const PolicyId> ids) {
    bool forbids = false;
    std::vector<std::string> warnings;
    for (const PolicyId& id : ids) {
      const auto policy = state.policies.find(id);
      if (!policy || !policy->decides()) continue;
      forbids = forbids || policy->planned->ast.effect == cedar::Effect::forbid;
      if (!state.schema || warnings.size() >= problems_max) continue;
      for (const auto& problem : state.schema->validate(policy->planned->ast).warnings)
        warnings.push_back(fmt::format("policy `{}`: {}", id, cedar::to_string(problem)));
    }
    if (!forbids) return warnings;
    std::vector<PolicyTable::Entry> kept;
    state.policies.for_each([&](const PolicyTable::Entry& policy) {
      if (policy->decides() && policy->planned->ast.effect == cedar::Effect::forbid) kept.push_back(policy);
    });
    std::vector<PolicyView> views;
    views.reserve(kept.size());
    for (const auto& policy : kept) views.push_back({policy->stored.id, policy->planned->ast});
    for (const Unreachable& one : unreachable_oversight(views, ids, false)) warnings.push_back(one.to_string());
    std::sort(warnings.begin(), warnings.end());
    if (warnings.size() > problems_max) warnings.resize(problems_max);
    return warnings;
  }

  /// Takes `text` for the schema, none where it is empty. The policies are not looked at.
  Result<> put_schema_in_place(sql::Tx& tx, const Context& ctx, OrgState& state, std::string text) {
    PolicySchema stored{.text = std::move(text), .updated_at = tx.now(), .updated_by = ctx.caller_text()};
    CRETO_TRY(store::put_schema(tx, ctx.org, stored, state.version));
    state.schema = nullptr;
    if (!stored.text.empty()) state.schema = CRETO_TRY(load_schema(std::move(stored)));
    auto entities = CRETO_TRY(store::list_entities(tx, ctx.org));
    for (const Entity& entity : entities) {
      if (state.schema) CRETO_TRY(state.schema->check(entity));
    }
    state.clear_entities();
    load_entities(state, std::move(entities));
    state.plan();
    return {};
  }

  /// With the actions that the schema declares, which are entities as if they were stored.
  static void load_entities(OrgState& state, std::vector<Entity> entities) {
    if (state.schema) {
      auto actions = state.schema->schema.action_entities();
      std::move(actions.begin(), actions.end(), std::back_inserter(entities));
    }
    std::vector<std::shared_ptr<const Entity>> shared;
    shared.reserve(entities.size());
    for (Entity& entity : entities) {
      cedar::normalise(entity);
      shared.push_back(std::make_shared<const Entity>(std::move(entity)));
    }
    state.put_entities(std::move(shared));
  }

  /// Parsed, and valid under the schema. Errors: invalid_input.
  Result<LoadedPolicy> load(const OrgState& state, Policy policy, const LoadedPolicy* before) const {
    LoadedPolicy loaded = CRETO_TRY(load_any_policy(std::move(policy), options_.policy_bytes_max, before, rate_memory_,
                                                    [&](const PolicyId& id) { return state.policies.find(id); }));
    if (!state.schema) return loaded;
    const auto findings = state.schema->validate(loaded.planned->ast);
    if (findings.passed()) return loaded;
    return cedar::to_error(findings.errors);
  }

  /// Makes the links of templates in `changed` anew. Errors: invalid_input naming the link that no longer fits.
  Result<> relink(OrgState& state, const std::set<PolicyId>& changed) const {
    const auto links = state.links;  // each replacement makes another one
    if (!links) return {};
    for (const auto& [id, from] : *links) {
      if (!changed.contains(from)) continue;
      const auto before = state.policies.find(id);
      auto loaded = load(state, before->stored, before.get());
      if (!loaded)
        return error(loaded.error().kind(),
                     fmt::format("policy `{}`, a link of `{}`: {}", id, from, loaded.error().message()));
      state.replace(before, std::make_shared<const LoadedPolicy>(*std::move(loaded)));
    }
    return {};
  }

  Result<> remove(sql::Tx& tx, const Context& ctx, OrgState& state, const PolicyTable::Entry& policy) {
    const PolicyId& id = policy->stored.id;
    if (state.links) {
      const auto link =
          std::find_if(state.links->begin(), state.links->end(), [&](const auto& one) { return one.second == id; });
      if (link != state.links->end())
        return error(ErrorKind::conflict, fmt::format("policy `{}` is a link of template `{}`", link->first, id));
    }
    state.replace(policy, nullptr);
    CRETO_TRY(store::remove_policy(tx, ctx.org, id, state.version));
    CRETO_TRY(keep_version(tx, ctx, state, {.what = "policy_deleted", .removed = 1}, "authz:policy:" + id));
    return {};
  }

  static std::vector<std::string_view> lines_of(std::string_view text) {
    std::vector<std::string_view> lines;
    while (!text.empty()) {
      const auto end = std::min(text.find('\n'), text.size());
      lines.push_back(text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
    return lines;
  }

  static void stamp(sql::Tx& tx, const Context& ctx, Policy& policy, const LoadedPolicy* before) {
    policy.version = before ? before->stored.version + 1 : 1;
    policy.updated_at = tx.now();
    policy.updated_by = ctx.caller_text();
  }

  /// Gives the policies whose ids begin with `prefix` the texts in `wanted`, which all have such an id. Without `tx`
  /// nothing is stored.
  Result<AppliedPolicies> put_in_place(sql::Tx* tx, const Context& ctx, OrgState& state,
                                       const std::map<PolicyId, std::string>& wanted, std::string_view prefix) {
    AppliedPolicies result;
    std::vector<std::pair<PolicyTable::Entry, PolicyTable::Entry>> changes;
    std::set<PolicyId> touched;
    const auto replace = [&](const PolicyTable::Entry& before, const PolicyTable::Entry& after) {
      state.replace(before, after);
      touched.insert((before ? before : after)->stored.id);
      changes.emplace_back(before, after);
    };
    for (const auto& entry : state.policies.sorted()) {
      if (!entry->stored.id.starts_with(prefix) || wanted.contains(entry->stored.id)) continue;
      result.removed.push_back(entry->stored.id);
      replace(entry, nullptr);
    }
    std::string problems;
    std::size_t refused = 0;
    // Links after what they may link to.
    for (const bool links : {false, true}) {
      for (const auto& [id, text] : wanted) {
        const auto before = state.policies.find(id);
        if (is_link_text(text) != links || (before && before->stored.text == text)) continue;
        auto loaded =
            load(state, Policy{.id = id, .text = text, .version = 0, .updated_at = {}, .updated_by = {}}, before.get());
        if (!loaded) {
          for (const std::string_view line : lines_of(loaded.error().message()))
            problems += fmt::format("{}policy `{}`: {}", problems.empty() ? "" : "\n", id, line);
          if (++refused == problems_max) break;
          continue;
        }
        if (tx != nullptr) stamp(*tx, ctx, loaded->stored, before.get());
        (before ? result.changed : result.added).push_back(id);
        replace(before, std::make_shared<const LoadedPolicy>(*std::move(loaded)));
      }
      if (refused == problems_max) break;
    }
    if (refused > 0) return error(ErrorKind::invalid_input, std::move(problems));
    CRETO_TRY(relink(state, touched));
    std::sort(result.added.begin(), result.added.end());
    std::sort(result.changed.begin(), result.changed.end());
    if (state.policies.size() > options_.policies_max)
      return error(ErrorKind::resource_exhausted, fmt::format("at most {} policies", options_.policies_max));
    for (const auto& [before, after] : changes) {
      if (tx == nullptr) break;
      if (after) {
        CRETO_TRY(store::put_policy(*tx, ctx.org, after->stored, state.version));
      } else {
        CRETO_TRY(store::remove_policy(*tx, ctx.org, before->stored.id, state.version));
      }
    }
    std::vector<PolicyId> fresh = result.added;
    fresh.insert(fresh.end(), result.changed.begin(), result.changed.end());
    result.warnings = warnings_of(state, fresh);
    result.version = version_of(result, "");
    result.version.policies = static_cast<std::int64_t>(state.policies.size());
    return result;
  }

  static PolicyVersion version_of(const AppliedPolicies& applied, std::string what) {
    return {.what = std::move(what),
            .added = static_cast<std::int64_t>(applied.added.size()),
            .changed = static_cast<std::int64_t>(applied.changed.size()),
            .removed = static_cast<std::int64_t>(applied.removed.size())};
  }

  /// Writes down that `state` is a new version of the policies, in its history and in the audit log.
  Result<PolicyVersion> keep_version(sql::Tx& tx, const Context& ctx, OrgState& state, PolicyVersion version,
                                     std::string resource, const Json& further = Json::object()) {
    version.version = state.version;
    version.made_at = tx.now();
    version.made_by = ctx.caller_text();
    version.policies = static_cast<std::int64_t>(state.policies.size());
    version.hash = state.policies.hash(state.schema ? &state.schema->stored.text : nullptr);
    state.policies_version = state.version;
    CRETO_TRY(store::put_version(tx, ctx.org, version));
    CRETO_TRY(store::forget_versions(tx, ctx.org, std::max<std::size_t>(1, options_.versions_kept)));
    auto record = audit::AuditRecord::of(ctx, version.what, std::move(resource));
    Json metadata{{"version", version.version},
                  {"set_sha3_256", hex(version.hash)},
                  {"added", version.added},
                  {"changed", version.changed},
                  {"removed", version.removed}};
    metadata.update(further);
    record.metadata = metadata.dump();
    CRETO_TRY(audit::record(tx, ctx, std::move(record)));
    return version;
  }

  static Result<> expect_version(const OrgState& state, std::int64_t expected) {
    if (expected == 0 || expected == state.policies_version) return {};
    return error(ErrorKind::conflict,
                 fmt::format("the policies are at version {}, not {}", state.policies_version, expected));
  }

  /// 0: the newest.
  static Result<VersionedPolicies> policies_at(sql::Tx& tx, const std::string& org, std::int64_t version) {
    const std::int64_t last = CRETO_TRY(store::version(tx, org));
    if (version >= 0 && version <= last) {
      auto set = CRETO_TRY(store::policies_at(tx, org, version == 0 ? last : version));
      if (set) return *std::move(set);
    }
    if (version == 0) return VersionedPolicies();
    return error(ErrorKind::not_found,
                 fmt::format("version {} of the policies is not kept; the newest is {}", version, last));
  }

  static Result<PolicyVersion> newest(sql::Tx& tx, const std::string& org) {
    auto versions = CRETO_TRY(store::list_versions(tx, org, std::numeric_limits<std::int64_t>::max(), 1));
    if (versions.empty()) return PolicyVersion();
    return std::move(versions.front());
  }

  static bool is_of_schema(const OrgState& state, const EntityUid& uid) {
    return state.schema && state.schema->schema.action(uid) != nullptr;
  }

  Result<> record_entities(sql::Tx& tx, const Context& ctx, std::string what, std::size_t count) {
    auto record = audit::AuditRecord::of(ctx, std::move(what), "authz:entities");
    record.metadata = Json{{"count", count}}.dump();
    CRETO_TRY(audit::record(tx, ctx, std::move(record)));
    return {};
  }

  /// Errors: resource_exhausted where the hierarchy becomes too large.
  Result<> add_entities(OrgState& state, const std::vector<Entity>& added) const {
    std::vector<std::shared_ptr<const Entity>> shared;
    shared.reserve(added.size());
    for (const Entity& entity : added) shared.push_back(std::make_shared<const Entity>(entity));
    state.put_entities(std::move(shared));
    if (state.entities.ancestors() <= options_.ancestors_max) return {};
    return error(ErrorKind::resource_exhausted,
                 fmt::format("at most {} pairs of an entity and one above it", options_.ancestors_max));
  }

  // --- loading
  // ----------------------------------------------------------------------------------------------------------

  /// Requires: `writing_` is held. Changes nothing where it fails.
  Result<> reload(const Context& ctx) {
    const auto before = snapshots_.current();
    auto stored = CRETO_TRY(sql::read(database_, ctx, [](sql::Tx& tx) { return store::load_all(tx); }));
    auto next = std::make_shared<Snapshot>();
    next->extensions = before->extensions;
    next->sources = before->sources;
    for (auto& [org, rows] : stored) {
      const OrgState* old = before->org(org);
      auto state = std::make_shared<OrgState>();
      state->version = rows.version;
      state->policies_version = rows.policies_version;
      state->policies = CRETO_TRY(reload_policies(std::move(rows.policies), old));
      if (rows.schema) state->schema = CRETO_TRY(load_schema(*std::move(rows.schema)));
      load_entities(*state, std::move(rows.entities));
      state->revoked = std::make_shared<const std::map<RequestId, Instant>>(std::move(rows.revoked));
      state->plan();
      next->orgs.emplace(org, std::move(state));
    }
    put_in_force(std::move(next));
    return {};
  }

  Result<PolicyTable> reload_policies(std::vector<Policy> stored, const OrgState* old) const {
    std::map<PolicyId, PolicyTable::Entry> all;
    const auto find = [&](const PolicyId& id) {
      const auto at = all.find(id);
      return at == all.end() ? nullptr : at->second;
    };
    for (const bool links : {false, true}) {
      for (Policy& policy : stored) {
        if (is_link_text(policy.text) != links) continue;
        const auto known = old ? old->policies.find(policy.id) : nullptr;
        auto loaded = std::make_shared<LoadedPolicy>();
        const PolicyId id = policy.id;
        if (!links && known && known->stored.text == policy.text) {
          *loaded = *known;
          loaded->stored = std::move(policy);
        } else {
          *loaded =
              CRETO_TRY(load_any_policy(std::move(policy), options_.policy_bytes_max, known.get(), rate_memory_, find));
        }
        all[id] = std::move(loaded);
      }
    }
    std::vector<PolicyTable::Entry> policies;
    policies.reserve(all.size());
    for (auto& [id, policy] : all) policies.push_back(std::move(policy));
    return PolicyTable(std::move(policies));
  }

  /// What was stored before there was a history becomes its first version.
  Result<> begin_histories() {
    const auto snapshot = snapshots_.current();
    for (const auto& [org, state] : snapshot->orgs) {
      if (state->policies_version != 0 || state->version == 0) continue;
      PolicyVersion first{.version = state->version,
                          .what = "policies_found",
                          .policies = static_cast<std::int64_t>(state->policies.size()),
                          .hash = state->policies.hash(nullptr)};
      CRETO_TRY(database_.transaction(Context{}, [&](sql::Tx& tx) -> Result<> {
        first.made_at = tx.now();
        return store::put_version(tx, org, first);
      }));
      auto next = std::make_shared<OrgState>(*state);
      next->policies_version = state->version;
      publish(org, std::move(next));
    }
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
      put_in_force(std::move(next));
    }
    return done;
  }

  sql::Database& database_;
  const Clock& clock_;
  const TickTime ticks_;
  AuthzProbe probe_;
  const std::vector<const EntitySource*> sources_;
  const OverrideTokens tokens_;
  const AuthzOptions options_;
  Telemetry& telemetry_;
  const std::shared_ptr<RateMemory> rate_memory_;
  SnapshotHolder snapshots_;
  std::atomic<Monotonic> fresh_until_{Monotonic::max()};  ///< what is in force may be older then than is permitted
  DecisionCache cache_;
  std::unique_ptr<DecisionLog> log_;  ///< null: decisions are not logged
  std::mutex writing_;                ///< one change at a time, so that snapshots follow the versions
};

}  // namespace

Result<std::unique_ptr<Authz>> create_authz(sql::Database& database, const Clock& clock, Telemetry& telemetry,
                                            std::vector<const EntitySource*> sources, Secret override_key,
                                            AuthzOptions options) {
  if (override_key.size() != 32) return error(ErrorKind::invalid_input, "the override key has 32 bytes");
  if (sources.size() > sources_max) return error(ErrorKind::invalid_input, "at most 8 entity sources");
  auto service = std::make_unique<AuthzService>(database, clock, telemetry, std::move(sources), override_key, options);
  CRETO_TRY(service->start());
  return std::unique_ptr<Authz>(std::move(service));
}

}  // namespace creto::authz
