#include "cedar/policy_set.h"

namespace creto::authz::cedar {

PolicySet::PolicySet(std::vector<std::shared_ptr<const PlannedPolicy>> policies) : policies_(std::move(policies)) {
  for (const auto& policy : policies_) {
    const ScopeConstraint& action = policy->ast.action;
    if (action.kind == ScopeConstraint::Kind::equal) {
      by_action_[action.entities[0]].push_back(policy.get());
    } else {
      others_.push_back(policy.get());
    }
  }
}

Evaluation PolicySet::evaluate(const Request& request, EntityView& entities) const {
  Evaluation result;
  const auto run = [&](const std::vector<const PlannedPolicy*>& policies) {
    for (const PlannedPolicy* policy : policies) {
      auto satisfied = is_satisfied(policy->ast, request, entities);
      if (!satisfied) {
        result.errors.emplace_back(policy, std::move(satisfied).error());
      } else if (*satisfied) {
        (policy->ast.effect == Effect::permit ? result.permits : result.forbids).push_back(policy);
      }
    }
  };
  if (const auto named = by_action_.find(request.action); named != by_action_.end()) run(named->second);
  run(others_);
  return result;
}

}  // namespace creto::authz::cedar
