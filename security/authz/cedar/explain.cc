#include "cedar/explain.h"

#include <algorithm>

#include "cedar/format.h"
#include "cedar/problem.h"

namespace creto::authz::cedar {
namespace {

constexpr std::size_t saw_max = 10;
constexpr std::size_t text_max = 200;

std::string shortened(std::string text) {
  if (text.size() <= text_max) return text;
  std::size_t end = text_max;
  while ((static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end) + "…";
}

class Explainer {
 public:
  Explainer(const PolicyAst& policy, const Request& request, EntityView& entities)
      : policy_(policy), request_(request), entities_(entities) {}

  PolicyExplanation run() {
    using Outcome = PolicyExplanation::Outcome;
    if (auto part = failed_scope(); !part.empty()) return {Outcome::scope, policy_.where, std::move(part), {}};
    for (const Condition& condition : policy_.conditions) {
      const auto value = evaluate(policy_, condition.expression, request_, entities_);
      const bool* holds = value ? value->as<bool>() : nullptr;
      if (!holds) {
        const Problem problem = value ? Problem{policy_.nodes[condition.expression].where, "a condition is no bool"}
                                      : problem_of(value.error());
        return {Outcome::error, problem.where, problem.what, seen(condition.expression)};
      }
      if (*holds != condition.unless) continue;
      const NodeId part = decisive(condition.expression, *holds);
      return {Outcome::condition, policy_.nodes[part].where, shortened(to_text(policy_.nodes, part)), seen(part)};
    }
    return {Outcome::satisfied, policy_.where, {}, {}};
  }

 private:
  /// The first part of the scope that the request is not in; empty where it is in all.
  std::string failed_scope() {
    for (const auto part : {&PolicyAst::principal, &PolicyAst::action, &PolicyAst::resource}) {
      PolicyAst alone;
      alone.*part = policy_.*part;
      const auto satisfied = is_satisfied(alone, request_, entities_);
      if (satisfied && *satisfied) continue;
      const std::string_view name = part == &PolicyAst::principal ? "principal"
                                    : part == &PolicyAst::action  ? "action"
                                                                  : "resource";
      return shortened(to_text(name, policy_.*part));
    }
    return {};
  }

  /// The smallest part of an expression of that value which made it so.
  NodeId decisive(NodeId id, bool value) {
    while (true) {
      const Node& node = policy_.nodes[id];
      if (node.op == Op::logical_not) {
        id = node.operands[0];
        value = !value;
        continue;
      }
      if ((node.op != Op::all_of || value) && (node.op != Op::any_of || !value)) return id;
      const auto decided = std::find_if(node.operands.begin(), node.operands.end(), [&](NodeId operand) {
        const auto result = evaluate(policy_, operand, request_, entities_);
        const bool* truth = result ? result->as<bool>() : nullptr;
        return truth && *truth == value;
      });
      if (decided == node.operands.end()) return id;
      id = *decided;
    }
  }

  /// The values of the request that stand in the expression, as far as they can be had.
  std::vector<std::pair<std::string, std::string>> seen(NodeId root) {
    std::vector<std::pair<std::string, std::string>> saw;
    std::vector<NodeId> open{root};
    while (!open.empty() && saw.size() < saw_max) {
      const NodeId id = open.back();
      open.pop_back();
      const Node& node = policy_.nodes[id];
      const bool context = node.op == Op::variable && node.variable == Variable::context;
      const bool value = node.op == Op::attribute || node.op == Op::get_tag || (node.op == Op::variable && !context);
      if (value) {
        const auto result = evaluate(policy_, id, request_, entities_);
        if (result) {
          std::pair<std::string, std::string> one{shortened(to_text(policy_.nodes, id)),
                                                  shortened(result->to_string())};
          if (std::find(saw.begin(), saw.end(), one) == saw.end()) saw.push_back(std::move(one));
          continue;
        }
      }
      open.insert(open.end(), node.operands.rbegin(), node.operands.rend());
    }
    return saw;
  }

  const PolicyAst& policy_;
  const Request& request_;
  EntityView& entities_;
};

}  // namespace

PolicyExplanation explain(const PolicyAst& policy, const Request& request, EntityView& entities) {
  return Explainer(policy, request, entities).run();
}

}  // namespace creto::authz::cedar
