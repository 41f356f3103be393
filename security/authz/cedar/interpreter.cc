#include "cedar/interpreter.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>

#include "cedar/lexer.h"
#include "cedar/text.h"
#include "creto/common/assert.h"

namespace creto::authz::cedar {
namespace {

class Interpreter {
 public:
  Interpreter(const PolicyAst& policy, const Request& request, EntityView& entities)
      : policy_(policy), request_(request), entities_(entities) {}

  Result<bool> satisfied() {
    if (!CRETO_TRY(matches_scope(policy_.principal, request_.principal))) return false;
    if (!CRETO_TRY(matches_scope(policy_.action, request_.action))) return false;
    if (!CRETO_TRY(matches_scope(policy_.resource, request_.resource))) return false;
    for (const Condition& condition : policy_.conditions) {
      const bool holds = CRETO_TRY(boolean(condition.expression));
      if (holds == condition.unless) return false;
    }
    return true;
  }

  Result<Value> eval(NodeId id) {
    const Node& node = policy_.nodes[id];
    switch (node.op) {
      case Op::literal:
        return *node.value;
      case Op::variable:
        return variable(node.variable);
      case Op::all_of:
        return connective(node, false);
      case Op::any_of:
        return connective(node, true);
      case Op::logical_not: {
        const bool value = CRETO_TRY(boolean(node.operands[0]));
        return Value(!value);
      }
      case Op::negate: {
        const std::int64_t value = CRETO_TRY(integer(node.operands[0]));
        std::int64_t result = 0;
        if (__builtin_sub_overflow(std::int64_t{0}, value, &result)) return fail(node, "overflow in negation");
        return Value(result);
      }
      case Op::if_then_else: {
        const bool condition = CRETO_TRY(boolean(node.operands[0]));
        return eval(node.operands[condition ? 1 : 2]);
      }
      case Op::equal:
      case Op::not_equal: {
        const Value left = CRETO_TRY(eval(node.operands[0]));
        const Value right = CRETO_TRY(eval(node.operands[1]));
        return Value((left == right) == (node.op == Op::equal));
      }
      case Op::less:
      case Op::less_equal:
      case Op::greater:
      case Op::greater_equal:
        return compare(node);
      case Op::add:
      case Op::subtract:
      case Op::multiply:
        return arithmetic(node);
      case Op::in: {
        const EntityUid uid = CRETO_TRY(entity(node.operands[0]));
        return in(node, uid, node.operands[1]);
      }
      case Op::is: {
        const EntityUid uid = CRETO_TRY(entity(node.operands[0]));
        if (uid.type != node.name) return Value(false);
        if (node.operands.size() == 1) return Value(true);
        return in(node, uid, node.operands[1]);
      }
      case Op::like: {
        const Value text = CRETO_TRY(eval(node.operands[0]));
        const auto* string = text.as<std::string>();
        if (!string) return wrong_type(node, "string", text);
        return Value(matches(node.pattern, *string));
      }
      case Op::has:
        return has(node);
      case Op::attribute:
        return attribute(node);
      case Op::contains: {
        const Value set = CRETO_TRY(this->set(node.operands[0]));
        const Value element = CRETO_TRY(eval(node.operands[1]));
        return Value(set.contains(element));
      }
      case Op::contains_all:
      case Op::contains_any: {
        const Value left = CRETO_TRY(set(node.operands[0]));
        const Value right = CRETO_TRY(set(node.operands[1]));
        const auto contained = [&](const Value& element) { return left.contains(element); };
        const auto& wanted = *right.as_set();
        return Value(node.op == Op::contains_all ? std::all_of(wanted.begin(), wanted.end(), contained)
                                                 : std::any_of(wanted.begin(), wanted.end(), contained));
      }
      case Op::is_empty: {
        const Value value = CRETO_TRY(set(node.operands[0]));
        return Value(value.as_set()->empty());
      }
      case Op::has_tag:
      case Op::get_tag:
        return tag(node);
      case Op::set: {
        auto elements = CRETO_TRY(operands(node));
        return Value::set(std::move(elements));
      }
      case Op::record: {
        auto values = CRETO_TRY(operands(node));
        Attributes attributes;
        attributes.reserve(values.size());
        for (std::size_t i = 0; i < values.size(); ++i) attributes.emplace_back(node.path[i], std::move(values[i]));
        return Value::record(std::move(attributes));
      }
      case Op::call: {
        const auto values = CRETO_TRY(operands(node));
        if (values.size() != node.function->arity) {
          return fail(node, fmt::format("`{}` takes {} arguments, got {}", node.function->name, node.function->arity,
                                        values.size()));
        }
        auto result = node.function->call(values);
        if (!result) return fail(node, result.error().message());
        return result;
      }
    }
    CRETO_ASSERT(false);
    return fail(node, "unknown operation");
  }

 private:
  static Error fail(const Node& node, std::string what) { return error_at(node.where, std::move(what)); }
  static Error wrong_type(const Node& node, std::string_view wanted, const Value& got) {
    return fail(node, fmt::format("expected a {}, got a {}", wanted, got.type_name()));
  }

  Result<bool> matches_scope(const ScopeConstraint& constraint, const EntityUid& uid) {
    switch (constraint.kind) {
      case ScopeConstraint::Kind::any:
        return true;
      case ScopeConstraint::Kind::equal:
        return uid == constraint.entities[0];
      case ScopeConstraint::Kind::in:
      case ScopeConstraint::Kind::in_any:
        return entities_.is_in_any(uid, constraint.entities);
      case ScopeConstraint::Kind::is:
        return uid.type == constraint.type;
      case ScopeConstraint::Kind::is_in:
        if (uid.type != constraint.type) return false;
        return entities_.is_in_any(uid, constraint.entities);
    }
    CRETO_ASSERT(false);
    return false;
  }

  Value variable(Variable which) const {
    switch (which) {
      case Variable::principal:
        return request_.principal;
      case Variable::action:
        return request_.action;
      case Variable::resource:
        return request_.resource;
      case Variable::context:
        break;
    }
    return request_.context;
  }

  Result<bool> boolean(NodeId id) {
    const Value value = CRETO_TRY(eval(id));
    const bool* result = value.as<bool>();
    if (!result) return wrong_type(policy_.nodes[id], "bool", value);
    return *result;
  }
  Result<std::int64_t> integer(NodeId id) {
    const Value value = CRETO_TRY(eval(id));
    const std::int64_t* result = value.as<std::int64_t>();
    if (!result) return wrong_type(policy_.nodes[id], "long", value);
    return *result;
  }
  Result<EntityUid> entity(NodeId id) {
    const Value value = CRETO_TRY(eval(id));
    const EntityUid* result = value.as<EntityUid>();
    if (!result) return wrong_type(policy_.nodes[id], "entity", value);
    return *result;
  }
  Result<Value> set(NodeId id) {
    const Value value = CRETO_TRY(eval(id));
    if (!value.as_set()) return wrong_type(policy_.nodes[id], "set", value);
    return value;
  }
  Result<std::vector<Value>> operands(const Node& node) {
    std::vector<Value> values;
    values.reserve(node.operands.size());
    for (const NodeId operand : node.operands) {
      Value value = CRETO_TRY(eval(operand));
      values.push_back(std::move(value));
    }
    return values;
  }

  Result<Value> connective(const Node& node, bool decisive) {
    for (const NodeId operand : node.operands) {
      const bool value = CRETO_TRY(boolean(operand));
      if (value == decisive) return Value(decisive);
    }
    return Value(!decisive);
  }

  Result<Value> compare(const Node& node) {
    const Value left = CRETO_TRY(eval(node.operands[0]));
    const Value right = CRETO_TRY(eval(node.operands[1]));
    const bool ordered = left.as<std::int64_t>() || left.as<DatetimeValue>() || left.as<DurationValue>();
    if (!ordered) return wrong_type(node, "long, datetime or duration", left);
    if (left.rep().index() != right.rep().index()) return wrong_type(node, left.type_name(), right);
    const auto order = left <=> right;
    switch (node.op) {
      case Op::less:
        return Value(order < 0);
      case Op::less_equal:
        return Value(order <= 0);
      case Op::greater:
        return Value(order > 0);
      default:
        return Value(order >= 0);
    }
  }

  Result<Value> arithmetic(const Node& node) {
    const std::int64_t left = CRETO_TRY(integer(node.operands[0]));
    const std::int64_t right = CRETO_TRY(integer(node.operands[1]));
    std::int64_t result = 0;
    bool overflow = false;
    switch (node.op) {
      case Op::add:
        overflow = __builtin_add_overflow(left, right, &result);
        break;
      case Op::subtract:
        overflow = __builtin_sub_overflow(left, right, &result);
        break;
      default:
        overflow = __builtin_mul_overflow(left, right, &result);
    }
    if (overflow) return fail(node, "overflow in arithmetic");
    return Value(result);
  }

  Result<Value> in(const Node& node, const EntityUid& uid, NodeId where) {
    const Value target = CRETO_TRY(eval(where));
    if (const auto* ancestor = target.as<EntityUid>()) {
      const bool below = CRETO_TRY(entities_.is_in(uid, *ancestor));
      return Value(below);
    }
    const auto* elements = target.as_set();
    if (!elements) return wrong_type(node, "entity or set of entities", target);
    std::vector<EntityUid> uids;
    for (const Value& element : *elements) {
      const auto* ancestor = element.as<EntityUid>();
      if (!ancestor) return wrong_type(node, "entity", element);
      uids.push_back(*ancestor);
    }
    const bool below = CRETO_TRY(entities_.is_in_any(uid, uids));
    return Value(below);
  }

  /// The attributes of a record or a known entity; null for an unknown entity.
  Result<const Attributes*> attributes_of(const Node& node, const Value& value) {
    if (const auto* record = value.as_record()) return record;
    const auto* uid = value.as<EntityUid>();
    if (!uid) return wrong_type(node, "record or entity", value);
    const Entity* entity = CRETO_TRY(entities_.find(*uid));
    return entity ? &entity->attributes : nullptr;
  }

  Result<Value> has(const Node& node) {
    Value at = CRETO_TRY(eval(node.operands[0]));
    for (std::size_t i = 0; i < node.path.size(); ++i) {
      const Attributes* attributes = CRETO_TRY(attributes_of(node, at));
      const Value* found = attributes ? find_attribute(*attributes, node.path[i]) : nullptr;
      if (!found) return Value(false);
      if (i + 1 < node.path.size()) at = Value(*found);
    }
    return Value(true);
  }

  Result<Value> attribute(const Node& node) {
    const Value of = CRETO_TRY(eval(node.operands[0]));
    const Attributes* attributes = CRETO_TRY(attributes_of(node, of));
    if (!attributes) return fail(node, fmt::format("entity {} is not known", of.to_string()));
    const Value* found = find_attribute(*attributes, node.name);
    if (!found) {
      const auto* uid = of.as<EntityUid>();
      return fail(node, fmt::format("{} has no attribute `{}`", uid ? uid->to_string() : "the record", node.name));
    }
    return *found;
  }

  Result<Value> tag(const Node& node) {
    const EntityUid uid = CRETO_TRY(entity(node.operands[0]));
    const Value name = CRETO_TRY(eval(node.operands[1]));
    const auto* text = name.as<std::string>();
    if (!text) return wrong_type(node, "string", name);
    const Entity* found = CRETO_TRY(entities_.find(uid));
    const Value* value = found ? find_attribute(found->tags, *text) : nullptr;
    if (node.op == Op::has_tag) return Value(value != nullptr);
    if (!value) {
      return fail(node, found ? fmt::format("{} has no tag {}", uid.to_string(), quote(*text))
                              : fmt::format("entity {} is not known", uid.to_string()));
    }
    return *value;
  }

  const PolicyAst& policy_;
  const Request& request_;
  EntityView& entities_;
};

}  // namespace

Result<const Entity*> EntityView::find(const EntityUid& uid) {
  if (trouble_) return *trouble_;
  const auto at = found_.find(uid);
  if (at != found_.end()) return at->second;
  auto loaded = load(uid);
  if (!loaded) {
    trouble_ = loaded.error();
    return loaded;
  }
  found_.emplace(uid, *loaded);
  return loaded;
}

Result<const std::vector<EntityUid>*> EntityView::ancestors(const EntityUid& uid) {
  const auto known = ancestors_.find(uid);
  if (known != ancestors_.end()) return &known->second;
  std::vector<EntityUid> all;
  std::unordered_map<EntityUid, bool> seen;
  std::deque<EntityUid> open{uid};
  while (!open.empty()) {
    const Entity* entity = CRETO_TRY(find(open.front()));
    open.pop_front();
    if (!entity) continue;
    for (const EntityUid& parent : entity->parents) {
      if (!seen.emplace(parent, true).second) continue;
      if (all.size() == ancestors_max) {
        trouble_ = Error(Product::platform, ErrorKind::too_large,
                         fmt::format("{} has more than {} ancestors", uid.to_string(), ancestors_max));
        return *trouble_;
      }
      all.push_back(parent);
      open.push_back(parent);
    }
  }
  std::sort(all.begin(), all.end());
  return &ancestors_.emplace(uid, std::move(all)).first->second;
}

Result<bool> EntityView::is_in(const EntityUid& uid, const EntityUid& ancestor) {
  if (uid == ancestor) return true;
  const auto* all = CRETO_TRY(ancestors(uid));
  return std::binary_search(all->begin(), all->end(), ancestor);
}

Result<bool> EntityView::is_in_any(const EntityUid& uid, const std::vector<EntityUid>& ancestors_wanted) {
  for (const EntityUid& ancestor : ancestors_wanted) {
    if (CRETO_TRY(is_in(uid, ancestor))) return true;
  }
  return false;
}

void normalise(Entity& entity) {
  entity.attributes = *Value::record(std::move(entity.attributes)).as_record();
  entity.tags = *Value::record(std::move(entity.tags)).as_record();
}

Result<bool> is_satisfied(const PolicyAst& policy, const Request& request, EntityView& entities) {
  return Interpreter(policy, request, entities).satisfied();
}

Result<Value> evaluate(const PolicyAst& policy, NodeId expression, const Request& request, EntityView& entities) {
  return Interpreter(policy, request, entities).eval(expression);
}

bool matches(const Pattern& pattern, std::string_view text) {
  if (pattern.size() == 1) return text == pattern[0];
  const std::string& first = pattern.front();
  const std::string& last = pattern.back();
  if (text.size() < first.size() + last.size() || !text.starts_with(first) || !text.ends_with(last)) return false;
  text.remove_prefix(first.size());
  text.remove_suffix(last.size());
  for (std::size_t i = 1; i + 1 < pattern.size(); ++i) {
    const auto at = text.find(pattern[i]);
    if (at == std::string_view::npos) return false;
    text.remove_prefix(at + pattern[i].size());
  }
  return true;
}

}  // namespace creto::authz::cedar
