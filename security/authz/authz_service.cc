#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <list>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "asked_resources.h"
#include "authz_probe.h"
#include "check_request.h"
#include "creto/audit/audit_log.h"
#include "creto/authz/authz.h"
#include "creto/crypto/hash.h"
#include "creto/io/files.h"
#include "creto/io/idempotency.h"
#include "creto/io/sql.h"
#include "decider.h"
#include "decisions/decision_log.h"
#include "entity_rules.h"
#include "in_force.h"
#include "kept_answers.h"
#include "override_token.h"
#include "override_use.h"
#include "policy_editor.h"
#include "resource_filter.h"
#include "service_entities.h"
#include "snapshot.h"
#include "source_asker.h"
#include "store.h"

namespace creto::authz {
namespace {

constexpr std::size_t batch_max = 1'000;
constexpr std::size_t filter_max = 1'000;
constexpr Nanos grant_max = std::chrono::days(30);
constexpr Nanos overrides_kept = 2 * grant_max;
constexpr Nanos idempotency_window = std::chrono::hours(24);

Error error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

class AuthzService final : public Authz {
 public:
  AuthzService(sql::Database& database, const Clock& clock, Telemetry& telemetry,
               std::vector<const EntitySource*> sources, const Secret& override_key, AuthzOptions options)
      : database_(database),
        clock_(clock),
        telemetry_(telemetry),
        options_(std::move(options)),
        probe_(telemetry),
        sources_(std::move(sources)),
        tokens_(override_key),
        editor_(options_, std::make_shared<RateMemory>(static_cast<std::int64_t>(options_.rate_bytes_max))),
        in_force_(database, clock, probe_, editor_, options_.fresh_for),
        decider_(clock, probe_, sources_, tokens_, in_force_, options_) {}

  Result<> start() {
    CRETO_TRY(store::migrate(database_));
    CRETO_TRY(audit::prepare(database_));
    if (options_.decision_log) {
      log_ = CRETO_TRY(DecisionLog::open(database_, io::real_files(), clock_, telemetry_, *options_.decision_log,
                                         sources_.size(), options_.cache_ttl));
      decider_.log_to(*log_);
    }
    return in_force_.start(log_.get());
  }

  // --- checks
  // -----------------------------------------------------------------------------------------------------------

  Decision check(const Context& ctx, const CheckRequest& request) override {
    return decider_.answer(ctx, request, *in_force_.pin(), false);
  }
  Decision admit(const Context& ctx, const CheckRequest& request) override {
    return decider_.answer(ctx, request, *in_force_.pin(), true);
  }
  Decision check_naming(const Context& ctx, const CheckRequest& request, bool counts,
                        std::vector<PolicyId>& matched) override {
    matched.clear();
    return decider_.answer(ctx, request, *in_force_.pin(), counts, &matched);
  }

  std::vector<Decision> check_batch(const Context& ctx, std::span<const CheckRequest> requests) override {
    const auto snapshot = in_force_.pin();
    std::vector<Decision> decisions;
    decisions.reserve(requests.size());
    for (const CheckRequest& request : requests) {
      if (requests.size() > batch_max) {
        decisions.emplace_back(Deny{.reason = fmt::format("a batch has at most {} checks", batch_max), .policy = {}});
      } else {
        decisions.push_back(decider_.answer(ctx, request, *snapshot, false));
      }
    }
    return decisions;
  }

  Explanation explain(const Context& ctx, const CheckRequest& request) override {
    return decider_.explain(ctx, request, *in_force_.pin());
  }

  Result<ResourceFilter> filter_resources(const Context& ctx, const FilterQuestion& question) override {
    const CheckRequest& request = question.request;
    if (auto fault = fault_in(request)) return error(ErrorKind::invalid_input, "request: " + *fault);
    if (question.limit > filter_max)
      return error(ErrorKind::invalid_input, fmt::format("limit: must be at most {}", filter_max));
    const auto snapshot = in_force_.pin();
    if (in_force_.is_stale(*snapshot))
      return error(ErrorKind::unavailable, "the policies in force cannot be established");
    const OrgState* state = snapshot->org(ctx.org);
    if (!state) return ResourceFilter{};
    if (state->schema) CRETO_TRY(state->schema->check(cedar_request(request)));
    AskedResources resources(ctx, snapshot->sources);
    ServiceEntities entities(ctx.org, *state, sources_, &resources);
    auto filter = authz::filter_resources(*state, entities, question, cedar_request(request),
                                          [&] { return ctx.expired(clock_); });
    if (entities.trouble() && ctx.expired(clock_)) return error(ErrorKind::timeout, "the caller's deadline passed");
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
    return in_force_.change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      const auto before = state.policies.find(id);
      if (!before) return error(ErrorKind::not_found, fmt::format("there is no policy `{}`", id));
      CRETO_TRY(editor_.remove(tx, ctx, state, before));
      return true;
    });
  }

  Result<std::vector<Policy>> list_policies(const Context& ctx, const PolicyId& after, std::size_t limit) override {
    std::vector<Policy> page;
    const auto snapshot = in_force_.current();
    if (const OrgState* state = snapshot->org(ctx.org)) {
      for (const auto& policy : state->policies.page(after, limit)) page.push_back(policy->stored);
    }
    return page;
  }

  Result<Policy> link_policy(const Context& ctx, const PolicyLink& link) override {
    return create_policy(ctx, link.id, text_of(link));
  }

  Result<std::vector<PolicyLink>> list_policy_links(const Context& ctx, const PolicyId& template_id) override {
    std::vector<PolicyLink> all;
    const auto snapshot = in_force_.current();
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
    return in_force_.change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      const auto before = state.policies.find(id);
      if (!before || !before->link) return error(ErrorKind::not_found, fmt::format("there is no link `{}`", id));
      CRETO_TRY(editor_.remove(tx, ctx, state, before));
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
    auto done = in_force_.change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      const auto write = [&]() -> Result<AppliedPolicies> {
        CRETO_TRY(PolicyEditor::expect_version(state, application.expected_version));
        AppliedPolicies result =
            CRETO_TRY(editor_.put_in_place(application.dry_run ? nullptr : &tx, ctx, state, wanted, prefix));
        const bool same = result.added.empty() && result.changed.empty() && result.removed.empty();
        if (same || application.dry_run) {
          if (same) result.version = CRETO_TRY(PolicyEditor::newest(tx, ctx.org));
          return result;
        }
        result.version = CRETO_TRY(editor_.keep_version(
            tx, ctx, state, PolicyEditor::version_of(result, "policies_applied"), "authz:policies"));
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
    return sql::read(database_, ctx, [&](sql::Tx& tx) { return PolicyEditor::policies_at(tx, ctx.org, version); });
  }

  Result<std::vector<PolicyDifference>> diff_policy_versions(const Context& ctx, std::int64_t from,
                                                             std::int64_t to) override {
    return sql::read(database_, ctx, [&](sql::Tx& tx) -> Result<std::vector<PolicyDifference>> {
      const VersionedPolicies before = CRETO_TRY(PolicyEditor::policies_at(tx, ctx.org, from));
      const VersionedPolicies after = CRETO_TRY(PolicyEditor::policies_at(tx, ctx.org, to));
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
    auto done = in_force_.change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      bool fresh = false;
      const auto write = [&]() -> Result<PolicyVersion> {
        fresh = true;
        CRETO_TRY(PolicyEditor::expect_version(state, expected_version));
        const VersionedPolicies old = CRETO_TRY(PolicyEditor::policies_at(tx, ctx.org, version));
        std::map<PolicyId, std::string> wanted;
        for (const Policy& policy : old.policies) wanted.emplace(policy.id, policy.text);
        if (old.schema != (state.schema ? state.schema->stored.text : "")) {
          CRETO_TRY(editor_.put_schema(tx, ctx, state, old.schema));
        }
        const AppliedPolicies result = CRETO_TRY(editor_.put_in_place(&tx, ctx, state, wanted, ""));
        return editor_.keep_version(tx, ctx, state, PolicyEditor::version_of(result, "policies_rolled_back"),
                                    "authz:policies", Json{{"rolled_back_to", old.version.version}});
      };
      made = CRETO_TRY(io::once(tx, ctx, "authz.rollback", idempotency_window, write, encode_version, decode_version));
      return fresh;
    });
    if (!done) return std::move(done).error();
    return made;
  }

  Result<PolicySchema> set_schema(const Context& ctx, std::string text) override {
    PolicySchema result;
    auto done = in_force_.change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      const std::string before = state.schema ? state.schema->stored.text : "";
      if (before == text) {
        if (state.schema) result = state.schema->stored;
        return false;
      }
      CRETO_TRY(editor_.put_schema(tx, ctx, state, text));
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
      CRETO_TRY(editor_.keep_version(tx, ctx, state, {.what = "schema_set"}, "authz:schema"));
      return true;
    });
    if (!done) return std::move(done).error();
    return result;
  }

  Result<PolicySchema> get_schema(const Context& ctx) override {
    const auto snapshot = in_force_.current();
    const OrgState* state = snapshot->org(ctx.org);
    return state && state->schema ? state->schema->stored : PolicySchema();
  }

  // --- entities
  // ---------------------------------------------------------------------------------------------------------

  Result<EntityChanges> put_entities(const Context& ctx, std::vector<Entity> entities, bool dry_run) override {
    if (entities.size() > 1'000) return error(ErrorKind::too_large, "at most 1000 entities a call");
    CRETO_TRY(check_each(entities, check_entity));
    for (Entity& entity : entities) cedar::normalise(entity);
    EntityChanges changes;
    auto done = in_force_.change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      if (state.schema)
        CRETO_TRY(check_each(entities, [&](const Entity& entity) { return state.schema->check(entity); }));
      CRETO_TRY(check_hierarchy(state, entities, options_.entities_max));
      changes = changes_by(state, entities);
      if (changes.added + changes.changed == 0) return false;
      CRETO_TRY(add_entities(state, entities, options_.ancestors_max));
      if (dry_run) return false;
      for (const Entity& entity : entities) {
        CRETO_TRY(store::put_entity(tx, ctx.org, entity));
      }
      CRETO_TRY(record_entities(tx, ctx, "entities_stored", entities.size()));
      state.compact();
      return true;
    });
    if (!done) return std::move(done).error();
    return changes;
  }

  Result<> delete_entities(const Context& ctx, std::vector<EntityUid> uids) override {
    if (uids.size() > 1'000) return error(ErrorKind::too_large, "at most 1000 entities a call");
    return in_force_.change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
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

  Result<std::vector<Entity>> list_entities(const Context& ctx, const EntityUid& after, std::size_t limit) override {
    std::vector<Entity> page;
    const auto snapshot = in_force_.current();
    const OrgState* state = snapshot->org(ctx.org);
    if (!state) return page;
    for (auto of_type = state->ids.lower_bound(after.type); of_type != state->ids.end(); ++of_type) {
      const std::string& type = of_type->first;
      const auto add = [&](const std::string& id) {
        if (page.size() == limit) return false;
        const EntityUid uid{type, id};
        if (!is_of_schema(*state, uid)) page.push_back(*state->entities.node(state->entities.find(uid)).entity);
        return true;
      };
      if (!(type == after.type ? of_type->second.each_behind(after.id, add) : of_type->second.each(add))) break;
    }
    return page;
  }

  Result<PlacedEntity> get_entity(const Context& ctx, const EntityUid& uid) override {
    const auto snapshot = in_force_.current();
    static const OrgState nothing;
    const OrgState* state = snapshot->org(ctx.org);
    AskedResources resources(ctx, snapshot->sources);
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
    return in_force_.change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
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
    return in_force_.amend([&](Snapshot& next) -> Result<> {
      for (const auto& other : next.extensions) {
        if (other->extension.name() == extension.name())
          return error(ErrorKind::already_exists, fmt::format("extension `{}` is registered", extension.name()));
      }
      const AuthzProbe::OfExtension counters = probe_.of(extension);
      next.extensions.push_back(std::make_shared<RegisteredExtension>(extension, counters.failures, counters.late));
      std::stable_sort(next.extensions.begin(), next.extensions.end(),
                       [](const auto& a, const auto& b) { return a->extension.priority() < b->extension.priority(); });
      return {};
    });
  }

  Result<> register_source(const ResourceSource& source) override {
    auto asker = std::make_unique<SourceAsker>(source, clock_, probe_.of(source));
    CRETO_TRY(in_force_.amend([&](Snapshot& next) -> Result<> {
      for (std::string& type : source.types()) {
        const bool known = std::any_of(next.sources.begin(), next.sources.end(),
                                       [&](const RegisteredSource& other) { return other.type == type; });
        if (known)
          return error(ErrorKind::already_exists, fmt::format("somebody answers for entities of type `{}`", type));
        next.sources.push_back({std::move(type), asker.get()});
      }
      askers_.push_back(std::move(asker));
      return {};
    }));
    return {};
  }

  Result<std::vector<ExtensionStatus>> list_extensions(const Context&) override {
    std::vector<ExtensionStatus> all;
    for (const auto& one : in_force_.current()->extensions) {
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

  Result<> refresh(const Context& ctx) override { return in_force_.refresh(ctx); }

 private:
  using Admission = std::function<Result<>(const OrgState& state, const LoadedPolicy* before)>;
  Result<Policy> store_policy(const Context& ctx, const PolicyId& id, std::string text, const Admission& admit) {
    const Policy given{.id = id, .text = std::move(text), .version = 0, .updated_at = {}, .updated_by = {}};
    Policy result;
    auto done = in_force_.change(ctx, [&](sql::Tx& tx, OrgState& state) -> Result<bool> {
      bool fresh = false;
      const auto write = [&]() -> Result<Policy> {
        fresh = true;
        const auto before = state.policies.find(id);
        CRETO_TRY(admit(state, before.get()));
        LoadedPolicy loaded = CRETO_TRY(editor_.load(state, given, before.get()));
        PolicyEditor::stamp(tx, ctx, loaded.stored, before.get());
        Policy policy = loaded.stored;
        state.replace(before, std::make_shared<const LoadedPolicy>(std::move(loaded)));
        CRETO_TRY(editor_.relink(state, {id}));
        CRETO_TRY(store::put_policy(tx, ctx.org, policy, state.version));
        PolicyVersion version{.what = before ? "policy_updated" : "policy_created"};
        (before ? version.changed : version.added) = 1;
        CRETO_TRY(editor_.keep_version(
            tx, ctx, state, std::move(version), "authz:policy:" + id,
            Json{{"sha3_256", hex(crypto::sha3_256(as_bytes(policy.text)))}, {"policy_version", policy.version}}));
        return policy;
      };
      result = CRETO_TRY(io::once(tx, ctx, "authz.policy", idempotency_window, write, encode, decode));
      return fresh;
    });
    if (!done) return std::move(done).error();
    const std::vector<PolicyId> changed = {id};
    const auto snapshot = in_force_.current();
    if (const OrgState* state = snapshot->org(ctx.org)) result.warnings = PolicyEditor::warnings_of(*state, changed);
    return result;
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

  sql::Database& database_;
  const Clock& clock_;
  Telemetry& telemetry_;
  const AuthzOptions options_;
  AuthzProbe probe_;
  const std::vector<const EntitySource*> sources_;
  const OverrideTokens tokens_;
  std::vector<std::unique_ptr<SourceAsker>> askers_;  ///< changed as `in_force_` is
  const PolicyEditor editor_;
  InForce in_force_;
  Decider decider_;
  std::unique_ptr<DecisionLog> log_;  ///< null: decisions are not logged
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
