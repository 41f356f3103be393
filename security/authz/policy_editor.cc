#include "policy_editor.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "creto/audit/audit_log.h"
#include "creto/common/lines.h"
#include "entity_rules.h"
#include "reach.h"
#include "store.h"

namespace creto::authz {
namespace {

constexpr std::size_t problems_max = 100;

Error error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

}  // namespace

std::vector<std::string> PolicyEditor::warnings_of(const OrgState& state, std::span<const PolicyId> ids) {
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

Result<> PolicyEditor::put_schema(sql::Tx& tx, const Context& ctx, OrgState& state, std::string text) const {
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

Result<LoadedPolicy> PolicyEditor::load(const OrgState& state, Policy policy, const LoadedPolicy* before) const {
  LoadedPolicy loaded = CRETO_TRY(load_any_policy(std::move(policy), options_.policy_bytes_max, before, rate_memory_,
                                                  [&](const PolicyId& id) { return state.policies.find(id); }));
  if (!state.schema) return loaded;
  const auto findings = state.schema->validate(loaded.planned->ast);
  if (findings.passed()) return loaded;
  return cedar::to_error(findings.errors);
}

Result<> PolicyEditor::relink(OrgState& state, const std::set<PolicyId>& changed) const {
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

Result<> PolicyEditor::remove(sql::Tx& tx, const Context& ctx, OrgState& state,
                              const PolicyTable::Entry& policy) const {
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

void PolicyEditor::stamp(sql::Tx& tx, const Context& ctx, Policy& policy, const LoadedPolicy* before) {
  policy.version = before ? before->stored.version + 1 : 1;
  policy.updated_at = tx.now();
  policy.updated_by = ctx.caller_text();
}

Result<AppliedPolicies> PolicyEditor::put_in_place(sql::Tx* tx, const Context& ctx, OrgState& state,
                                                   const std::map<PolicyId, std::string>& wanted,
                                                   std::string_view prefix) const {
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

Result<PolicyVersion> PolicyEditor::keep_version(sql::Tx& tx, const Context& ctx, OrgState& state,
                                                 PolicyVersion version, std::string resource,
                                                 const Json& further) const {
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

Result<> PolicyEditor::expect_version(const OrgState& state, std::int64_t expected) {
  if (expected == 0 || expected == state.policies_version) return {};
  return error(ErrorKind::conflict,
               fmt::format("the policies are at version {}, not {}", state.policies_version, expected));
}

Result<VersionedPolicies> PolicyEditor::policies_at(sql::Tx& tx, const std::string& org, std::int64_t version) {
  const std::int64_t last = CRETO_TRY(store::version(tx, org));
  if (version >= 0 && version <= last) {
    auto set = CRETO_TRY(store::policies_at(tx, org, version == 0 ? last : version));
    if (set) return *std::move(set);
  }
  if (version == 0) return VersionedPolicies();
  return error(ErrorKind::not_found,
               fmt::format("version {} of the policies is not kept; the newest is {}", version, last));
}

Result<PolicyVersion> PolicyEditor::newest(sql::Tx& tx, const std::string& org) {
  auto versions = CRETO_TRY(store::list_versions(tx, org, std::numeric_limits<std::int64_t>::max(), 1));
  if (versions.empty()) return PolicyVersion();
  return std::move(versions.front());
}

Result<PolicyTable> PolicyEditor::reload(std::vector<Policy> stored, const OrgState* old) const {
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

PolicyVersion PolicyEditor::version_of(const AppliedPolicies& applied, std::string what) {
  return {.what = std::move(what),
          .added = static_cast<std::int64_t>(applied.added.size()),
          .changed = static_cast<std::int64_t>(applied.changed.size()),
          .removed = static_cast<std::int64_t>(applied.removed.size())};
}

}  // namespace creto::authz
