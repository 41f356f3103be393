#include "reach.h"

#include <fmt/format.h>

#include <algorithm>

namespace creto::authz {
namespace {

using cedar::PolicyAst;
using cedar::ScopeConstraint;
using Kind = cedar::ScopeConstraint::Kind;

/// More pairs than these are not compared: the check is quick or not at all.
constexpr std::size_t pairs_max = 1'000'000;

/// Whether `wide` holds whenever `narrow` does, whatever the hierarchy.
bool covers(const ScopeConstraint& wide, const ScopeConstraint& narrow) {
  const auto has = [](const ScopeConstraint& scope, const EntityUid& uid) {
    return std::find(scope.entities.begin(), scope.entities.end(), uid) != scope.entities.end();
  };
  const auto all_in = [&] {
    return !narrow.entities.empty() && std::all_of(narrow.entities.begin(), narrow.entities.end(),
                                                   [&](const EntityUid& uid) { return has(wide, uid); });
  };
  switch (wide.kind) {
    case Kind::any:
      return true;
    case Kind::equal:
      return narrow.kind == Kind::equal && all_in();
    case Kind::in:
    case Kind::in_any:
      return (narrow.kind == Kind::equal || narrow.kind == Kind::in || narrow.kind == Kind::in_any ||
              narrow.kind == Kind::is_in) &&
             all_in();
    case Kind::is:
      if (narrow.kind == Kind::equal) return narrow.entities[0].type == wide.type;
      return (narrow.kind == Kind::is || narrow.kind == Kind::is_in) && narrow.type == wide.type;
    case Kind::is_in:
      if (narrow.kind == Kind::equal) return narrow.entities[0].type == wide.type && all_in();
      return narrow.kind == Kind::is_in && narrow.type == wide.type && all_in();
  }
  return false;
}

/// Whether something may be in both, as far as can be told without the hierarchy.
bool may_meet(const ScopeConstraint& a, const ScopeConstraint& b) {
  if (a.kind == Kind::equal && b.kind == Kind::equal) return a.entities[0] == b.entities[0];
  const auto type_of = [](const ScopeConstraint& scope) -> const std::string* {
    if (scope.kind == Kind::equal) return &scope.entities[0].type;
    return scope.kind == Kind::is || scope.kind == Kind::is_in ? &scope.type : nullptr;
  };
  const std::string *one = type_of(a), *other = type_of(b);
  return !one || !other || *one == *other;
}

bool same(const PolicyAst& a, cedar::NodeId x, const PolicyAst& b, cedar::NodeId y) {
  const cedar::Node &m = a.nodes[x], &n = b.nodes[y];
  if (m.op != n.op || m.variable != n.variable || m.name != n.name || m.path != n.path || m.pattern != n.pattern ||
      m.value != n.value || m.function != n.function) {
    return false;
  }
  return std::equal(m.operands.begin(), m.operands.end(), n.operands.begin(), n.operands.end(),
                    [&](cedar::NodeId p, cedar::NodeId q) { return same(a, p, b, q); });
}

/// Whether `other` applies, or errs, whenever `policy` applies: it asks for no more, and each of its conditions is one
/// of the policy's too.
bool hides(const PolicyAst& other, const PolicyAst& policy) {
  if (!covers(other.principal, policy.principal) || !covers(other.action, policy.action) ||
      !covers(other.resource, policy.resource)) {
    return false;
  }
  return std::all_of(other.conditions.begin(), other.conditions.end(), [&](const cedar::Condition& asked) {
    return std::any_of(policy.conditions.begin(), policy.conditions.end(), [&](const cedar::Condition& own) {
      return asked.unless == own.unless && same(other, asked.expression, policy, own.expression);
    });
  });
}

}  // namespace

std::string Unreachable::to_string() const {
  if (because_of.empty())
    return fmt::format("the oversight of `{}` is never reached: no policy permits any of it", oversight);
  return fmt::format("the oversight of `{}` is never reached: `{}` forbids all of it", oversight, because_of);
}

std::vector<Unreachable> unreachable_oversight(std::span<const PolicyView> policies, std::span<const PolicyId> among,
                                               bool with_permits) {
  std::vector<const PolicyView*> asking, plain, permits;
  for (const PolicyView& policy : policies) {
    const bool asks = policy.ast.annotations.contains("oversight");
    (policy.ast.effect == cedar::Effect::permit ? permits : asks ? asking : plain).push_back(&policy);
  }
  const auto chosen = [&](const PolicyView* policy) {
    return among.empty() || std::find(among.begin(), among.end(), policy->id) != among.end();
  };
  std::vector<Unreachable> found;
  std::size_t pairs = 0;
  for (const PolicyView* policy : asking) {
    const bool own = chosen(policy);
    const auto hiding = std::find_if(plain.begin(), plain.end(), [&](const PolicyView* other) {
      return (own || chosen(other)) && ++pairs <= pairs_max && hides(other->ast, policy->ast);
    });
    if (hiding != plain.end()) {
      found.push_back({policy->id, (*hiding)->id});
      continue;
    }
    if (!with_permits || !own) continue;
    const bool reached = std::any_of(permits.begin(), permits.end(), [&](const PolicyView* permit) {
      return ++pairs > pairs_max ||
             (may_meet(permit->ast.principal, policy->ast.principal) &&
              may_meet(permit->ast.action, policy->ast.action) && may_meet(permit->ast.resource, policy->ast.resource));
    });
    if (!reached) found.push_back({policy->id, ""});
  }
  return found;
}

}  // namespace creto::authz
