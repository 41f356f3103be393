#include "policy_verdicts.h"

#include <algorithm>

#include "cedar/explain.h"

namespace creto::authz {

std::vector<PolicyVerdict> verdicts_of(const OrgState& state, const cedar::Request& request,
                                       cedar::EntityView& entities, std::size_t limit, std::size_t& left_out) {
  using Why = cedar::PolicyExplanation::Outcome;
  std::vector<PolicyVerdict> all;
  state.policies.for_each([&](const PolicyTable::Entry& policy) {
    if (!policy->decides()) return;
    const cedar::PolicyAst& ast = policy->planned->ast;
    cedar::PolicyExplanation why = cedar::explain(ast, request, entities);
    if (why.outcome == Why::scope) return;
    PolicyVerdict& verdict = all.emplace_back();
    verdict.policy = policy->stored.id;
    verdict.forbids = ast.effect == cedar::Effect::forbid;
    verdict.outcome = why.outcome == Why::satisfied ? PolicyVerdict::Outcome::applies
                      : why.outcome == Why::error   ? PolicyVerdict::Outcome::failed
                                                    : PolicyVerdict::Outcome::condition;
    verdict.because = std::move(why.because);
    verdict.line = why.where.line;
    verdict.column = why.where.column;
    verdict.saw = std::move(why.saw);
  });
  std::sort(all.begin(), all.end(), [](const PolicyVerdict& a, const PolicyVerdict& b) {
    return a.outcome != b.outcome ? a.outcome < b.outcome : a.policy < b.policy;
  });
  left_out = all.size() > limit ? all.size() - limit : 0;
  all.resize(all.size() - left_out);
  return all;
}

}  // namespace creto::authz
