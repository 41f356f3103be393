#include "cedar/validate.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "cedar/confusable.h"
#include "cedar/levels.h"
#include "cedar/text.h"
#include "cedar/typecheck.h"

namespace creto::authz::cedar {
namespace {

/// Entity types, ids of enumerated types and actions that the policy names.
class NameChecker {
 public:
  NameChecker(const Schema& schema, std::vector<Problem>& errors) : schema_(schema), errors_(errors) {}

  void check(const PolicyAst& policy) {
    for (const ScopeConstraint* scope : {&policy.principal, &policy.action, &policy.resource}) {
      if (!scope->type.empty()) type(scope->type, scope->where);
      for (const EntityUid& uid : scope->entities) entity(uid, scope->where);
    }
    for (const Node& node : policy.nodes) {
      if (node.op == Op::is) type(node.name, node.where);
      if (node.op != Op::literal) continue;
      if (const auto* uid = node.value->as<EntityUid>()) entity(*uid, node.where);
    }
  }

 private:
  void type(const std::string& name, Position where) {
    if (is_action_type(name) || schema_.entity_type(name)) return;
    errors_.push_back(
        {where, fmt::format("there is no entity type `{}`", name), did_you_mean(name, schema_.entity_type_names())});
  }

  void entity(const EntityUid& uid, Position where) {
    if (is_action_type(uid.type)) {
      if (!schema_.action(uid)) unknown_action(uid, where);
      return;
    }
    type(uid.type, where);
    const EntityTypeDef* def = schema_.entity_type(uid.type);
    if (!def || !def->enumerated() || std::binary_search(def->choices.begin(), def->choices.end(), uid.id)) return;
    errors_.push_back(
        {where, fmt::format("{} is none of the entities that the schema lists for `{}`", uid.to_string(), uid.type),
         did_you_mean(uid.id, def->choices)});
  }

  void unknown_action(const EntityUid& uid, Position where) {
    std::vector<std::string> known;
    std::vector<std::string> elsewhere;
    for (const auto& [action, def] : schema_.actions()) {
      if (action.id == uid.id) elsewhere.push_back(action.to_string());
      known.push_back(action.to_string());
    }
    errors_.push_back(
        {where, fmt::format("there is no action {}", uid.to_string()),
         elsewhere.empty() ? did_you_mean(uid.to_string(), known) : fmt::format("did you mean `{}`?", elsewhere[0])});
  }

  const Schema& schema_;
  std::vector<Problem>& errors_;
};

/// Whether entities of the type can satisfy the scope of principal or resource.
bool admits(const Schema& schema, const ScopeConstraint& scope, const std::string& type) {
  switch (scope.kind) {
    case ScopeConstraint::Kind::any:
      return true;
    case ScopeConstraint::Kind::equal:
      return scope.slot || scope.entities[0].type == type;
    case ScopeConstraint::Kind::in:
    case ScopeConstraint::Kind::in_any:
      return scope.slot || schema.may_be_in(type, scope.entities[0].type);
    case ScopeConstraint::Kind::is:
      return scope.type == type;
    case ScopeConstraint::Kind::is_in:
      return scope.type == type && (scope.slot || schema.may_be_in(type, scope.entities[0].type));
  }
  return false;
}

/// The actions that satisfy the scope; none where it names one that does not exist.
std::vector<const ActionDef*> actions_of(const Schema& schema, const ScopeConstraint& scope) {
  std::vector<const ActionDef*> result;
  for (const EntityUid& uid : scope.entities) {
    if (!schema.action(uid)) return {};
  }
  for (const auto& [uid, def] : schema.actions()) {
    const bool chosen =
        scope.kind == ScopeConstraint::Kind::any ||
        std::any_of(scope.entities.begin(), scope.entities.end(), [&, &uid = uid, &def = def](const EntityUid& wanted) {
          return wanted == uid || (scope.kind != ScopeConstraint::Kind::equal && def.ancestors.contains(wanted));
        });
    if (chosen) result.push_back(&def);
  }
  return result;
}

/// The actions of a scope are a set, whose elements are of one type.
void check_action_types(const ScopeConstraint& scope, std::vector<Problem>& errors) {
  for (const EntityUid& uid : scope.entities) {
    const std::string& first = scope.entities[0].type;
    if (uid.type == first) continue;
    errors.push_back(
        {scope.where, fmt::format("the elements of this set are of different types: `{}` and `{}`", first, uid.type)});
    return;
  }
}

/// Some action of the scope must take a principal and a resource that the scopes admit.
void check_scopes(const Schema& schema, const PolicyAst& policy, std::vector<Problem>& errors) {
  const auto actions = actions_of(schema, policy.action);
  const auto any = [&](const ScopeConstraint& scope, const std::vector<std::string>& types) {
    return std::any_of(types.begin(), types.end(),
                       [&](const std::string& type) { return admits(schema, scope, type); });
  };
  const bool applies = std::any_of(actions.begin(), actions.end(), [&](const ActionDef* action) {
    return any(policy.principal, action->principals) && any(policy.resource, action->resources);
  });
  if (applies) return;
  std::string hint;
  for (const auto& [scope, name, types] : {std::tuple{&policy.principal, "principal", &ActionDef::principals},
                                           {&policy.resource, "resource", &ActionDef::resources}}) {
    if (scope->kind != ScopeConstraint::Kind::equal || scope->slot) continue;
    ScopeConstraint in = *scope;
    in.kind = ScopeConstraint::Kind::in;
    const bool equal =
        std::any_of(actions.begin(), actions.end(),
                    [&, scope = scope, types = types](const auto* action) { return any(*scope, action->*types); });
    const bool below = std::any_of(actions.begin(), actions.end(),
                                   [&, types = types](const auto* action) { return any(in, action->*types); });
    if (!equal && below) hint = fmt::format("write `{} in {}` for what is in it", name, scope->entities[0].to_string());
  }
  errors.push_back(
      {policy.where, "no action of this policy's scope takes such a principal and such a resource", std::move(hint)});
}

}  // namespace

PolicyFindings validate(const Schema& schema, const PolicyAst& policy, const ValidationOptions& options) {
  PolicyFindings findings;
  NameChecker(schema, findings.errors).check(policy);
  const bool for_other_actions = options.other_actions && policy.action.kind == ScopeConstraint::Kind::any;
  if (!for_other_actions) check_scopes(schema, policy, findings.errors);
  if (options.mode == ValidationMode::strict) check_action_types(policy.action, findings.errors);

  PolicyTypes of_policy(schema, policy, options.mode);
  std::vector<TypePtr> types;
  std::vector<Problem> levels;
  bool may_apply = false;
  for (const auto& [uid, action] : schema.actions()) {
    for (const std::string& principal : action.principals) {
      for (const std::string& resource : action.resources) {
        const Environment environment{principal, action, resource};
        const std::size_t before = findings.errors.size();
        may_apply = of_policy.infer(environment, types, findings.errors) || may_apply;
        if (options.level_max && findings.errors.size() == before)
          check_levels(schema, policy, environment, types, *options.level_max, levels);
      }
    }
  }
  if (findings.errors.empty()) findings.errors = std::move(levels);
  // What is false for every declared action may be true for another one, unless it is false for itself.
  const auto is_variable = [](const Node& node) { return node.op == Op::variable; };
  const bool may_apply_elsewhere =
      for_other_actions &&
      (policy.conditions.empty() || std::any_of(policy.nodes.begin(), policy.nodes.end(), is_variable));
  if (!may_apply && !may_apply_elsewhere) {
    findings.warnings.push_back(
        {policy.where, "this policy can never apply: its scope or its conditions are always false"});
  }
  for (Problem& problem : confusables(policy)) findings.warnings.push_back(std::move(problem));
  std::sort(findings.warnings.begin(), findings.warnings.end());
  findings.warnings.erase(std::unique(findings.warnings.begin(), findings.warnings.end()), findings.warnings.end());
  std::sort(findings.errors.begin(), findings.errors.end());
  findings.errors.erase(std::unique(findings.errors.begin(), findings.errors.end()), findings.errors.end());
  return findings;
}

}  // namespace creto::authz::cedar
