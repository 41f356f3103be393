#include "cedar/specialise.h"

#include <algorithm>

namespace creto::authz::cedar {
namespace {

class Reader {
 public:
  explicit Reader(const PolicyAst& policy) : policy_(policy) {
    audience.principal = side_of(policy.principal);
    audience.resource = side_of(policy.resource);
    if (policy.action.kind != ScopeConstraint::Kind::any) {
      audience.actions.emplace();
      for (const EntityUid& uid : policy.action.entities) audience.actions->push_back(&uid);
    }
  }

  Audience audience;

  /// Takes in what must be true of the request. False where the expression is, or may be, more than that: then it may
  /// err, and what follows it is not reached.
  bool read(NodeId id) {
    const Node& node = policy_.nodes[id];
    switch (node.op) {
      case Op::all_of:
        return std::all_of(node.operands.begin(), node.operands.end(), [this](NodeId one) { return read(one); });
      case Op::is:
        return read_is(node);
      case Op::equal:
        return read_equal(node.operands[0], node.operands[1]) || read_equal(node.operands[1], node.operands[0]);
      case Op::in:
        return read_in(node);
      default:
        return false;
    }
  }

 private:
  static Audience::Side side_of(const ScopeConstraint& scope) {
    using Kind = ScopeConstraint::Kind;
    if (scope.kind == Kind::equal) return {.uid = &scope.entities[0]};
    if (scope.kind == Kind::is || scope.kind == Kind::is_in) return {.type = &scope.type};
    return {};
  }

  bool is_entity_variable(NodeId id) const {
    const Node& node = policy_.nodes[id];
    return node.op == Op::variable && node.variable != Variable::context;
  }
  /// Null for the action.
  Audience::Side* side_of(NodeId variable) {
    switch (policy_.nodes[variable].variable) {
      case Variable::principal:
        return &audience.principal;
      case Variable::resource:
        return &audience.resource;
      default:
        return nullptr;
    }
  }
  const EntityUid* literal(NodeId id) const {
    const Node& node = policy_.nodes[id];
    return node.op == Op::literal ? node.value->as<EntityUid>() : nullptr;
  }

  bool read_is(const Node& node) {
    if (!is_entity_variable(node.operands[0])) return false;
    Audience::Side* const side = side_of(node.operands[0]);
    if (side && !side->type) side->type = &node.name;
    return node.operands.size() == 1;  // what stands after `in` may err
  }

  bool read_equal(NodeId variable, NodeId entity) {
    const EntityUid* uid = literal(entity);
    if (!uid || !is_entity_variable(variable)) return false;
    if (Audience::Side* const side = side_of(variable)) {
      if (!side->uid) side->uid = uid;
    } else if (!audience.actions) {
      audience.actions = std::vector{uid};
    }
    return true;
  }

  bool read_in(const Node& node) {
    if (!is_entity_variable(node.operands[0])) return false;
    const Node& target = policy_.nodes[node.operands[1]];
    std::vector<const EntityUid*> uids;
    if (target.op == Op::set) {
      for (const NodeId one : target.operands) uids.push_back(literal(one));
    } else {
      uids.push_back(literal(node.operands[1]));
    }
    if (std::find(uids.begin(), uids.end(), nullptr) != uids.end()) return false;
    if (!side_of(node.operands[0]) && !audience.actions) audience.actions = std::move(uids);
    return true;
  }

  const PolicyAst& policy_;
};

}  // namespace

Audience audience_of(const PolicyAst& policy) {
  Reader reader(policy);
  for (const Condition& condition : policy.conditions)
    if (condition.unless || !reader.read(condition.expression)) break;
  return std::move(reader.audience);
}

}  // namespace creto::authz::cedar
