#include "cedar/levels.h"

#include <fmt/format.h>

#include <algorithm>

namespace creto::authz::cedar {
namespace {

using Kind = Type::Kind;

/// Counts how far from the request's entities a policy goes, where the typechecker has looked. Requires: it found no
/// error.
class LevelChecker {
 public:
  LevelChecker(const Schema& schema, const PolicyAst& policy, const Environment& environment,
               const std::vector<TypePtr>& types, unsigned max, std::vector<Problem>& errors)
      : schema_(schema), policy_(policy), environment_(environment), types_(types), max_(max), errors_(errors) {}

  void check() {
    for (const Condition& condition : policy_.conditions) visit(condition.expression);
  }

 private:
  bool seen(NodeId id) const { return types_[id] != nullptr; }
  const Node& node(NodeId id) const { return policy_.nodes[id]; }

  void too_far(Position where, unsigned level) {
    errors_.push_back({where, fmt::format("this is {} step{} from the request; at most {} {} allowed", level,
                                          level == 1 ? "" : "s", max_, max_ == 1 ? "is" : "are")});
  }

  void visit(NodeId id) {
    if (!seen(id)) return;
    const Node& at = node(id);
    switch (at.op) {
      case Op::has_tag:
      case Op::get_tag:
      case Op::in:
        step(at, at.operands[0]);
        visit(at.operands[1]);
        return;
      case Op::is:
        if (at.operands.size() == 2 && seen(at.operands[1])) {
          step(at, at.operands[0]);
          visit(at.operands[1]);
        } else {
          visit(at.operands[0]);
        }
        return;
      case Op::attribute:
        if (types_[at.operands[0]]->is_entity()) {
          step(at, at.operands[0]);
        } else {
          visit(at.operands[0]);
        }
        return;
      case Op::has:
        has(at);
        return;
      default:
        for (const NodeId operand : at.operands) visit(operand);
    }
  }

  void step(const Node& at, NodeId from) {
    const unsigned level = depth(from, {}) + 1;
    if (level > max_) too_far(at.where, level);
  }

  /// Each name of the path that is asked of an entity is a step; which are entities the types of the schema say.
  void has(const Node& at) {
    TypePtr type = types_[at.operands[0]];
    if (!type->is_entity()) visit(at.operands[0]);
    unsigned level = type->is_entity() || at.path.size() > 1 ? depth(at.operands[0], at.path) : 0;
    for (const std::string& name : at.path) {
      if (type->is_entity() && ++level > max_) return too_far(at.where, level);
      type = attribute(*type, name);
      if (!type || (type->kind != Kind::record && !type->is_entity())) return;
    }
  }

  TypePtr attribute(const Type& type, const std::string& name) const {
    const AttributeTypes* attributes = type.kind == Kind::record ? &type.attributes : nullptr;
    if (type.kind == Kind::entity) {
      const EntityTypeDef* def = schema_.entity_type(type.entities[0]);
      if (def) attributes = &def->shape->attributes;
    }
    if (!attributes) return nullptr;
    const auto found = attributes->find(name);
    return found == attributes->end() ? nullptr : found->second.type;
  }

  /// How many steps the value of the expression is away. `path` are the attributes that are then read of it, the last
  /// read first: of a record literal only the one that is read counts.
  unsigned depth(NodeId id, std::vector<std::string> path) {
    const Node& at = node(id);
    switch (at.op) {
      case Op::literal: {
        // A literal may name any entity, which nobody who loads entities for the request can foresee.
        const EntityUid* uid = at.value->as<EntityUid>();
        if (uid && *uid != environment_.action.uid) {
          errors_.push_back({at.where, fmt::format("attributes, tags and groups of the literal {} are out of reach",
                                                   uid->to_string())});
        }
        return 0;
      }
      case Op::if_then_else: {
        visit(at.operands[0]);
        const unsigned then = seen(at.operands[1]) ? depth(at.operands[1], path) : 0;
        const unsigned otherwise = seen(at.operands[2]) ? depth(at.operands[2], std::move(path)) : 0;
        return std::max(then, otherwise);
      }
      case Op::attribute: {
        if (types_[at.operands[0]]->is_entity()) return depth(at.operands[0], std::move(path)) + 1;
        path.push_back(at.name);
        return depth(at.operands[0], std::move(path));
      }
      case Op::get_tag:
        visit(at.operands[1]);
        return depth(at.operands[0], std::move(path)) + 1;
      case Op::record: {
        unsigned level = 0;
        for (std::size_t i = 0; i < at.operands.size(); ++i) {
          if (!path.empty() && at.path[i] == path.back()) {
            auto rest = path;
            rest.pop_back();
            level = depth(at.operands[i], std::move(rest));
          } else {
            visit(at.operands[i]);
          }
        }
        return level;
      }
      default:
        return 0;
    }
  }

  const Schema& schema_;
  const PolicyAst& policy_;
  const Environment& environment_;
  const std::vector<TypePtr>& types_;
  const unsigned max_;
  std::vector<Problem>& errors_;
};

}  // namespace

void check_levels(const Schema& schema, const PolicyAst& policy, const Environment& environment,
                  const std::vector<TypePtr>& types, unsigned max, std::vector<Problem>& errors) {
  LevelChecker(schema, policy, environment, types, max, errors).check();
}

}  // namespace creto::authz::cedar
