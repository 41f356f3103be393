#include "cedar/typecheck.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <span>
#include <unordered_map>

#include "cedar/text.h"
#include "creto/common/assert.h"

namespace creto::authz::cedar {

/// Names expressions so that equal ones get equal numbers: a capability is about an expression, wherever it stands.
class ExpressionNames {
 public:
  explicit ExpressionNames(const PolicyAst& policy) {
    of_.reserve(policy.nodes.size());
    for (const Node& node : policy.nodes) {
      std::vector<std::uint32_t> operands;
      for (const NodeId operand : node.operands) operands.push_back(of_[operand]);
      of_.push_back(name(node, operands));
    }
  }

  std::uint32_t of(NodeId id) const { return of_[id]; }
  /// `of`.`attribute`, an expression that need not stand in the policy.
  std::uint32_t attribute(std::uint32_t of, std::string_view attribute) {
    return intern(key(Op::attribute, {&of, 1}) + std::string(attribute));
  }
  std::uint32_t text(std::string_view text) { return intern("\xff" + std::string(text)); }

 private:
  std::uint32_t name(const Node& node, const std::vector<std::uint32_t>& operands) {
    if (node.op == Op::attribute) return attribute(operands[0], node.name);
    std::string text = key(node.op, operands);
    text += static_cast<char>('0' + static_cast<int>(node.variable));
    if (node.value) text += node.value->to_string();
    text += quote(node.name);
    for (const std::string& part : node.path) text += quote(part);
    for (const std::string& part : node.pattern) text += quote(part);
    if (node.function) text += node.function->name;
    return intern(std::move(text));
  }
  static std::string key(Op op, std::span<const std::uint32_t> operands) {
    std::string text = fmt::format("{}", static_cast<int>(op));
    for (const std::uint32_t operand : operands) text += fmt::format(",{}", operand);
    return text + ";";
  }
  std::uint32_t intern(std::string text) {
    return numbers_.emplace(std::move(text), static_cast<std::uint32_t>(numbers_.size())).first->second;
  }

  std::vector<std::uint32_t> of_;
  std::unordered_map<std::string, std::uint32_t> numbers_;
};

namespace {

using Kind = Type::Kind;

/// What a true expression proves: which attributes and tags of which expressions are there.
class Capabilities {
 public:
  static std::uint64_t attribute(std::uint32_t of, std::uint32_t name) { return std::uint64_t{of} << 32 | name << 1; }
  static std::uint64_t tag(std::uint32_t of, std::uint32_t key) { return std::uint64_t{of} << 32 | key << 1 | 1; }

  Capabilities() = default;
  explicit Capabilities(std::uint64_t one) : sorted_{one} {}
  bool contains(std::uint64_t one) const { return std::binary_search(sorted_.begin(), sorted_.end(), one); }
  void add(const Capabilities& more) {
    if (more.sorted_.empty()) return;
    std::vector<std::uint64_t> both;
    std::set_union(sorted_.begin(), sorted_.end(), more.sorted_.begin(), more.sorted_.end(), std::back_inserter(both));
    sorted_ = std::move(both);
  }
  Capabilities both(const Capabilities& other) const {
    Capabilities result;
    std::set_intersection(sorted_.begin(), sorted_.end(), other.sorted_.begin(), other.sorted_.end(),
                          std::back_inserter(result.sorted_));
    return result;
  }

 private:
  std::vector<std::uint64_t> sorted_;
};

/// The type of an expression and what it proves where it is true. A null type: it has none, and why was said.
struct Typed {
  TypePtr type = nullptr;
  Capabilities proves = {};

  bool is(Kind kind) const { return type && type->kind == kind; }
};

struct FunctionType {
  std::string_view name;
  Kind result;
  std::array<Kind, 2> arguments;  ///< `never` where it takes fewer
  bool constructor = false;       ///< strict mode lets it take a literal alone
};

const FunctionType& function_type(std::string_view name) {
  static constexpr FunctionType types[] = {
      {"decimal", Kind::decimal, {Kind::string, Kind::never}, true},
      {"ip", Kind::ipaddr, {Kind::string, Kind::never}, true},
      {"datetime", Kind::datetime, {Kind::string, Kind::never}, true},
      {"duration", Kind::duration, {Kind::string, Kind::never}, true},
      {"lessThan", Kind::boolean, {Kind::decimal, Kind::decimal}},
      {"lessThanOrEqual", Kind::boolean, {Kind::decimal, Kind::decimal}},
      {"greaterThan", Kind::boolean, {Kind::decimal, Kind::decimal}},
      {"greaterThanOrEqual", Kind::boolean, {Kind::decimal, Kind::decimal}},
      {"isIpv4", Kind::boolean, {Kind::ipaddr, Kind::never}},
      {"isIpv6", Kind::boolean, {Kind::ipaddr, Kind::never}},
      {"isLoopback", Kind::boolean, {Kind::ipaddr, Kind::never}},
      {"isMulticast", Kind::boolean, {Kind::ipaddr, Kind::never}},
      {"isInRange", Kind::boolean, {Kind::ipaddr, Kind::ipaddr}},
      {"offset", Kind::datetime, {Kind::datetime, Kind::duration}},
      {"durationSince", Kind::duration, {Kind::datetime, Kind::datetime}},
      {"toDate", Kind::datetime, {Kind::datetime, Kind::never}},
      {"toTime", Kind::duration, {Kind::datetime, Kind::never}},
      {"toMilliseconds", Kind::integer, {Kind::duration, Kind::never}},
      {"toSeconds", Kind::integer, {Kind::duration, Kind::never}},
      {"toMinutes", Kind::integer, {Kind::duration, Kind::never}},
      {"toHours", Kind::integer, {Kind::duration, Kind::never}},
      {"toDays", Kind::integer, {Kind::duration, Kind::never}},
  };
  const auto* at =
      std::find_if(std::begin(types), std::end(types), [&](const auto& type) { return type.name == name; });
  CRETO_ASSERT(at != std::end(types));
  return *at;
}

bool is_comparable(Kind kind) { return kind == Kind::integer || kind == Kind::datetime || kind == Kind::duration; }

/// Infers types from the leaves up, as Cedar's specification reads: what is known to be false is not looked behind.
class Typechecker {
 public:
  Typechecker(const Schema& schema, const PolicyAst& policy, ExpressionNames& names, const Environment& environment,
              ValidationMode mode, std::vector<Problem>& errors)
      : schema_(schema), policy_(policy), names_(names), environment_(environment), mode_(mode), errors_(errors) {
    types_.resize(policy.nodes.size());
  }

  /// Whether the policy may apply to such a request.
  bool may_apply() {
    if (scope(policy_.principal, environment_.principal)->kind == Kind::always_false) return false;
    if (action_scope()->kind == Kind::always_false) return false;
    if (scope(policy_.resource, environment_.resource)->kind == Kind::always_false) return false;
    Capabilities known;
    for (const Condition& condition : policy_.conditions) {
      const Typed result = expect(condition.expression, known, Kind::boolean, "a condition is a Bool");
      if (result.is(condition.unless ? Kind::always_true : Kind::always_false)) return false;
      if (!condition.unless) known.add(result.proves);
    }
    return true;
  }

  /// The type of each node that was looked at; null for the others.
  std::vector<TypePtr> take_types() { return std::move(types_); }

 private:
  bool strict() const { return mode_ == ValidationMode::strict; }

  void error(Position where, std::string what, std::string hint = {}) {
    errors_.push_back({where, std::move(what), std::move(hint)});
  }

  // --- scopes

  TypePtr scope(const ScopeConstraint& constraint, const std::string& type) const {
    const bool is = constraint.kind == ScopeConstraint::Kind::is || constraint.kind == ScopeConstraint::Kind::is_in;
    if (is && constraint.type != type) return boolean_type(false);
    if (constraint.kind == ScopeConstraint::Kind::any || constraint.kind == ScopeConstraint::Kind::is) {
      return boolean_type(true);
    }
    if (constraint.slot) return simple_type(Kind::boolean);
    const std::string& wanted = constraint.entities[0].type;
    const bool possible =
        constraint.kind == ScopeConstraint::Kind::equal ? wanted == type : schema_.may_be_in(type, wanted);
    return possible ? simple_type(Kind::boolean) : boolean_type(false);
  }

  TypePtr action_scope() const {
    const ScopeConstraint& constraint = policy_.action;
    if (constraint.kind == ScopeConstraint::Kind::any) return boolean_type(true);
    if (constraint.kind == ScopeConstraint::Kind::equal) {
      return boolean_type(constraint.entities[0] == environment_.action.uid);
    }
    return boolean_type(std::any_of(constraint.entities.begin(), constraint.entities.end(), [&](const EntityUid& uid) {
      return uid == environment_.action.uid || environment_.action.ancestors.contains(uid);
    }));
  }

  // --- expressions

  /// The type of the expression where everything in `known` holds.
  Typed infer(NodeId id, const Capabilities& known) {
    Typed result = infer(id, policy_.nodes[id], known);
    types_[id] = result.type;
    return result;
  }

  Typed infer(NodeId id, const Node& node, const Capabilities& known) {
    switch (node.op) {
      case Op::literal:
        return {literal(*node.value)};
      case Op::variable:
        return {variable(node.variable)};
      case Op::all_of:
        return all_of(node, known);
      case Op::any_of:
        return any_of(node, known);
      case Op::logical_not: {
        const Typed operand = expect(node.operands[0], known, Kind::boolean);
        if (operand.is(Kind::boolean) || !operand.type) return {operand.type};
        return {boolean_type(operand.is(Kind::always_false))};
      }
      case Op::negate:
        return {expect(node.operands[0], known, Kind::integer).type ? simple_type(Kind::integer) : nullptr};
      case Op::if_then_else:
        return if_then_else(node, known);
      case Op::equal:
      case Op::not_equal:
        return {equality(node, known)};
      case Op::less:
      case Op::less_equal:
      case Op::greater:
      case Op::greater_equal:
        return {comparison(node, known)};
      case Op::add:
      case Op::subtract:
      case Op::multiply:
        return {arithmetic(node, known)};
      case Op::in: {
        const TypePtr left =
            entity_operand(node.operands[0], known, "if the left is a set, `contains` asks for a member");
        return {in(node, left, node.operands[1], known)};
      }
      case Op::is:
        return {is(node, known)};
      case Op::like: {
        const Typed text = expect(node.operands[0], known, Kind::string, "`is` asks for the type of an entity");
        return {text.type ? simple_type(Kind::boolean) : nullptr};
      }
      case Op::has:
        return has(node, known);
      case Op::attribute:
        return {attribute(node, known)};
      case Op::contains:
      case Op::contains_all:
      case Op::contains_any:
        return {contains(node, known)};
      case Op::is_empty: {
        const Typed set = expect(node.operands[0], known, Kind::set, "an empty string is compared by `== \"\"`");
        return {set.type ? simple_type(Kind::boolean) : nullptr};
      }
      case Op::has_tag:
      case Op::get_tag:
        return tag(node, known);
      case Op::set:
        return {set(node, known)};
      case Op::record: {
        AttributeTypes attributes;
        bool whole = true;
        for (std::size_t i = 0; i < node.operands.size(); ++i) {
          const TypePtr type = infer(node.operands[i], known).type;
          whole = whole && type;
          attributes.emplace(node.path[i], AttributeType{type, true});
        }
        return {whole ? record_type(std::move(attributes)) : nullptr};
      }
      case Op::call:
        return {call(node, known)};
    }
    CRETO_ASSERT(false);
    (void)id;
    return {};
  }

  TypePtr literal(const Value& value) const {
    if (const bool* truth = value.as<bool>()) return boolean_type(*truth);
    if (value.as<std::int64_t>()) return simple_type(Kind::integer);
    if (value.as<std::string>()) return simple_type(Kind::string);
    const EntityUid* uid = value.as<EntityUid>();
    CRETO_ASSERT(uid);  // nothing else is written as a literal
    const bool known =
        is_action_type(uid->type) ? schema_.action(*uid) != nullptr : schema_.entity_type(uid->type) != nullptr;
    return known ? entity_type(uid->type) : nullptr;  // that it is unknown was said before any environment
  }

  TypePtr variable(Variable variable) const {
    switch (variable) {
      case Variable::principal:
        return entity_type(environment_.principal);
      case Variable::action:
        return entity_type(environment_.action.uid.type);
      case Variable::resource:
        return entity_type(environment_.resource);
      case Variable::context:
        break;
    }
    return environment_.action.context;
  }

  static std::string kind_name(Kind kind) {
    switch (kind) {
      case Kind::set:
        return "a set";
      case Kind::record:
        return "a record";
      case Kind::any_entity:
        return "an entity";
      default:
        return to_string(*simple_type(kind));
    }
  }

  /// The operand's type where it is of the kind, else an error and no type.
  Typed expect(NodeId id, const Capabilities& known, Kind kind, std::string_view hint = {}) {
    Typed result = infer(id, known);
    if (!result.type || result.is(Kind::never)) return result;
    const bool fits = kind == Kind::boolean      ? result.type->is_boolean()
                      : kind == Kind::any_entity ? result.type->is_entity()
                                                 : result.type->kind == kind;
    if (fits) return result;
    mismatch(id, kind_name(kind), *result.type, hint);
    return {};
  }

  void mismatch(NodeId id, std::string_view expected, const Type& got, std::string_view hint = {}) {
    error(policy_.nodes[id].where, fmt::format("expected {}, got `{}`", expected, to_string(got)), std::string(hint));
  }

  Typed all_of(const Node& node, const Capabilities& before) {
    Capabilities known = before;
    Typed result{boolean_type(true)};
    bool failed = false;
    for (const NodeId id : node.operands) {
      const Typed operand = expect(id, known, Kind::boolean);
      if (!operand.type) {
        failed = true;
        continue;
      }
      if (operand.is(Kind::always_false)) return {failed ? nullptr : operand.type};
      if (!operand.is(Kind::always_true)) result.type = simple_type(Kind::boolean);
      known.add(operand.proves);
      result.proves.add(operand.proves);
    }
    if (failed) return {};
    return result;
  }

  Typed any_of(const Node& node, const Capabilities& known) {
    Typed result{boolean_type(false)};
    bool failed = false;
    for (const NodeId id : node.operands) {
      Typed operand = expect(id, known, Kind::boolean);
      if (!operand.type) {
        failed = true;
        continue;
      }
      if (operand.is(Kind::always_true)) {
        if (failed) return {};
        return operand;
      }
      if (operand.is(Kind::always_false)) continue;
      if (result.is(Kind::always_false)) {
        result = std::move(operand);
      } else {
        result.proves = result.proves.both(operand.proves);
      }
    }
    if (failed) return {};
    return result;
  }

  Typed if_then_else(const Node& node, const Capabilities& known) {
    const Typed condition = expect(node.operands[0], known, Kind::boolean);
    Capabilities then_known = known;
    then_known.add(condition.proves);
    if (condition.is(Kind::always_true)) {
      Typed result = infer(node.operands[1], then_known);
      result.proves.add(condition.proves);
      return result;
    }
    if (condition.is(Kind::always_false)) return infer(node.operands[2], known);
    Typed then = infer(node.operands[1], then_known);
    const Typed otherwise = infer(node.operands[2], known);
    if (!condition.type || !then.type || !otherwise.type) return {};
    TypePtr type = least_upper_bound(then.type, otherwise.type, mode_);
    if (!type) {
      error(node.where, fmt::format("the branches of this `if` are of different types: `{}` and `{}`",
                                    to_string(*then.type), to_string(*otherwise.type)));
      return {};
    }
    then.proves.add(condition.proves);
    return {std::move(type), then.proves.both(otherwise.proves)};
  }

  /// The value of a literal, or the action of this kind of request; null for any other expression.
  std::optional<Value> constant(NodeId id) const {
    const Node& node = policy_.nodes[id];
    if (node.op == Op::literal) return node.value;
    if (node.op == Op::variable && node.variable == Variable::action) return Value(environment_.action.uid);
    return {};
  }
  std::optional<EntityUid> constant_entity(NodeId id) const {
    const auto value = constant(id);
    const EntityUid* uid = value ? value->as<EntityUid>() : nullptr;
    if (!uid) return {};
    return *uid;
  }

  static bool are_disjoint(const Type& a, const Type& b) {
    if (a.kind != Kind::entity || b.kind != Kind::entity) return false;
    return std::none_of(a.entities.begin(), a.entities.end(), [&](const std::string& name) {
      return std::binary_search(b.entities.begin(), b.entities.end(), name);
    });
  }

  TypePtr equality(const Node& node, const Capabilities& known) {
    const TypePtr left = infer(node.operands[0], known).type;
    const TypePtr right = infer(node.operands[1], known).type;
    if (!left || !right) return nullptr;
    const bool negated = node.op == Op::not_equal;
    if (are_disjoint(*left, *right)) return boolean_type(negated);
    const auto a = constant(node.operands[0]);
    const auto b = constant(node.operands[1]);
    if (a && b) return boolean_type((*a == *b) != negated);
    if (strict() && !comparable(node, left, right)) return nullptr;
    return simple_type(Kind::boolean);
  }

  /// Whether strict mode compares the two; an error where not.
  bool comparable(const Node& node, const TypePtr& left, const TypePtr& right) {
    if (least_upper_bound(left, right, mode_)) return true;
    error(node.where,
          fmt::format("`{}` and `{}` are different types: they are never equal", to_string(*left), to_string(*right)));
    return false;
  }

  TypePtr comparison(const Node& node, const Capabilities& known) {
    const TypePtr left = infer(node.operands[0], known).type;
    const TypePtr right = infer(node.operands[1], known).type;
    if (!left || !right) return nullptr;
    constexpr std::string_view expected = "Long, datetime or duration";
    const bool left_fits = is_comparable(left->kind) || left->kind == Kind::never;
    const bool right_fits = is_comparable(right->kind) || right->kind == Kind::never;
    if (!left_fits) mismatch(node.operands[0], right_fits ? to_string(*right) : expected, *left);
    if (!right_fits) mismatch(node.operands[1], left_fits ? to_string(*left) : expected, *right);
    if (!left_fits || !right_fits) return nullptr;
    if (left->kind != right->kind && left->kind != Kind::never && right->kind != Kind::never) {
      mismatch(node.operands[1], to_string(*left), *right);
      return nullptr;
    }
    return simple_type(Kind::boolean);
  }

  TypePtr arithmetic(const Node& node, const Capabilities& known) {
    constexpr std::string_view hint = "Cedar adds, subtracts and multiplies numbers alone";
    const bool left = expect(node.operands[0], known, Kind::integer, hint).type != nullptr;
    const bool right = expect(node.operands[1], known, Kind::integer, hint).type != nullptr;
    return left && right ? simple_type(Kind::integer) : nullptr;
  }

  TypePtr entity_operand(NodeId id, const Capabilities& known, std::string_view hint = {}) {
    return expect(id, known, Kind::any_entity, hint).type;
  }

  TypePtr is(const Node& node, const Capabilities& known) {
    const TypePtr left = entity_operand(node.operands[0], known);
    if (!left) return nullptr;
    TypePtr type = simple_type(Kind::boolean);
    if (left->kind == Kind::entity) {
      if (!std::binary_search(left->entities.begin(), left->entities.end(), node.name)) return boolean_type(false);
      if (left->entities.size() == 1) type = boolean_type(true);
    }
    if (node.operands.size() == 1) return type;
    const TypePtr below = in(node, left, node.operands[1], known);
    return !below || below->kind != Kind::always_true ? below : type;
  }

  /// `left` is the type of the first operand; null where it has none.
  TypePtr in(const Node& node, const TypePtr& left, NodeId target, const Capabilities& known) {
    const TypePtr right = infer(target, known).type;
    if (!right) return nullptr;
    const bool set = right->kind == Kind::set;
    const TypePtr& ancestor = set ? right->element : right;
    if (!ancestor->is_entity() && ancestor->kind != Kind::never) {
      mismatch(target, "an entity or a set of entities", *right, "`contains` asks for a member of a set");
      return nullptr;
    }
    if (!left) return nullptr;
    if (const auto uid = constant_entity(node.operands[0]); uid && is_action_type(uid->type)) {
      if (const auto targets = constant_entities(target)) return action_in(*uid, *targets);
    }
    if (left->kind == Kind::entity && ancestor->kind == Kind::entity) {
      const bool possible = std::any_of(left->entities.begin(), left->entities.end(), [&](const std::string& below) {
        return std::any_of(ancestor->entities.begin(), ancestor->entities.end(),
                           [&](const std::string& above) { return schema_.may_be_in(below, above); });
      });
      if (!possible) return boolean_type(false);
    }
    return simple_type(Kind::boolean);
  }

  std::optional<std::vector<EntityUid>> constant_entities(NodeId id) const {
    if (const auto one = constant_entity(id)) return std::vector<EntityUid>{*one};
    const Node& node = policy_.nodes[id];
    if (node.op != Op::set) return {};
    std::vector<EntityUid> all;
    for (const NodeId operand : node.operands) {
      auto uid = constant_entity(operand);
      if (!uid) return {};
      all.push_back(*std::move(uid));
    }
    return all;
  }

  TypePtr action_in(const EntityUid& uid, const std::vector<EntityUid>& targets) const {
    const ActionDef* action = schema_.action(uid);
    if (!action) return nullptr;
    return boolean_type(std::any_of(targets.begin(), targets.end(), [&](const EntityUid& target) {
      return target == uid || action->ancestors.contains(target);
    }));
  }

  // --- attributes and tags

  /// The attribute of a record or entity. Of several entity types it is what all of them have.
  std::optional<AttributeType> find_attribute(const Type& type, std::string_view name) const {
    if (type.kind == Kind::record) {
      const auto at = type.attributes.find(name);
      if (at == type.attributes.end()) return {};
      return at->second;
    }
    if (type.kind != Kind::entity) return {};
    std::optional<AttributeType> result;
    for (const std::string& entity : type.entities) {
      const EntityTypeDef* def = schema_.entity_type(entity);
      if (!def) return {};
      const auto at = def->shape->attributes.find(name);
      if (at == def->shape->attributes.end()) return {};
      if (!result) {
        result = at->second;
        continue;
      }
      result->required = result->required && at->second.required;
      result->type = least_upper_bound(result->type, at->second.type, ValidationMode::permissive);
      if (!result->type) return {};
    }
    return result;
  }

  /// Whether a value of the type may have it, though `find_attribute` found none.
  bool may_have(const Type& type, std::string_view name) const {
    if (type.kind == Kind::never || type.kind == Kind::any_entity) return true;
    if (type.kind == Kind::record) return type.open;
    return std::any_of(type.entities.begin(), type.entities.end(), [&](const std::string& entity) {
      const EntityTypeDef* def = schema_.entity_type(entity);
      return def && def->shape->attributes.contains(name);
    });
  }

  std::vector<std::string> attribute_names(const Type& type) const {
    std::vector<std::string> names;
    for (const auto& [name, attribute] : type.attributes) names.push_back(name);
    for (const std::string& entity : type.entities) {
      const EntityTypeDef* def = schema_.entity_type(entity);
      if (!def) continue;
      for (const auto& [name, attribute] : def->shape->attributes) names.push_back(name);
    }
    return names;
  }

  /// `id` where it is a record or an entity.
  TypePtr holder(NodeId id, const Capabilities& known, std::string_view hint) {
    const TypePtr type = infer(id, known).type;
    if (!type) return nullptr;
    if (type->kind == Kind::record || type->is_entity() || type->kind == Kind::never) return type;
    mismatch(id, "a record or an entity", *type, hint);
    return nullptr;
  }

  std::string holder_name(const Type& type, NodeId id) const {
    if (type.kind != Kind::record) return fmt::format("entity type `{}`", to_string(type));
    const Node& node = policy_.nodes[id];
    if (node.op == Op::variable && node.variable == Variable::context) {
      return fmt::format("the context of {}", environment_.action.uid.to_string());
    }
    return fmt::format("the record `{}`", to_string(type));
  }

  /// Its type where it is sure to be there; an error where not.
  TypePtr access(const Type& type, NodeId of, std::uint32_t name_of, std::string_view name, Position where,
                 const Capabilities& known) {
    if (type.kind == Kind::never) return simple_type(Kind::never);
    const auto attribute = find_attribute(type, name);
    const std::string spelled = is_identifier(name) ? std::string(name) : quote(name);
    if (!attribute) {
      const auto names = attribute_names(type);
      std::string hint = did_you_mean(name, names);
      if (std::find(names.begin(), names.end(), name) != names.end()) hint = "not every value of this type has it";
      error(where, fmt::format("there is no attribute `{}` on {}", spelled, holder_name(type, of)), std::move(hint));
      return nullptr;
    }
    if (!attribute->required && !known.contains(Capabilities::attribute(name_of, names_.text(name)))) {
      error(where, fmt::format("attribute `{}` on {} is optional", spelled, holder_name(type, of)),
            fmt::format("ask `… has {} &&` first", spelled));
      return nullptr;
    }
    return attribute->type;
  }

  TypePtr attribute(const Node& node, const Capabilities& known) {
    const TypePtr type = holder(node.operands[0], known, {});
    if (!type) return nullptr;
    return access(*type, node.operands[0], names_.of(node.operands[0]), node.name, node.where, known);
  }

  /// Whether one attribute is there, and what a yes proves.
  Typed has_one(const Type& type, std::uint32_t name_of, std::string_view name, const Capabilities& known) {
    const auto capability = Capabilities::attribute(name_of, names_.text(name));
    const auto attribute = find_attribute(type, name);
    if (!attribute) return {may_have(type, name) ? simple_type(Kind::boolean) : boolean_type(false)};
    // An entity may be missing, and then has nothing: only of a record is a required attribute sure to be there.
    const bool sure = known.contains(capability) || (attribute->required && type.kind == Kind::record);
    return {sure ? boolean_type(true) : simple_type(Kind::boolean), Capabilities(capability)};
  }

  /// `x has a.b.c` is `x has a && x.a has b && x.a.b has c`.
  Typed has(const Node& node, const Capabilities& before) {
    TypePtr type = holder(node.operands[0], before, "`contains` asks for a member of a set, `like` matches a string");
    if (!type) return {};
    std::uint32_t name_of = names_.of(node.operands[0]);
    Capabilities known = before;
    Typed result{boolean_type(true)};
    for (std::size_t i = 0; i < node.path.size(); ++i) {
      const Typed one = has_one(*type, name_of, node.path[i], known);
      if (one.is(Kind::always_false)) return {one.type};
      if (!one.is(Kind::always_true)) result.type = one.type;
      known.add(one.proves);
      result.proves.add(one.proves);
      if (i + 1 == node.path.size()) break;
      type = access(*type, node.operands[0], name_of, node.path[i], node.where, known);
      if (!type) return {};
      if (type->kind != Kind::record && !type->is_entity() && type->kind != Kind::never) {
        error(node.where,
              fmt::format("attribute `{}` is neither a record nor an entity but `{}`", node.path[i], to_string(*type)));
        return {};
      }
      name_of = names_.attribute(name_of, node.path[i]);
    }
    return result;
  }

  Typed tag(const Node& node, const Capabilities& known) {
    const TypePtr of = entity_operand(node.operands[0], known);
    const Typed key = expect(node.operands[1], known, Kind::string);
    if (!of || !key.type) return {};
    const auto capability = Capabilities::tag(names_.of(node.operands[0]), names_.of(node.operands[1]));
    std::vector<TypePtr> types;
    for (const auto& [name, def] : schema_.entity_types()) {
      const bool meant =
          of->kind == Kind::any_entity || std::binary_search(of->entities.begin(), of->entities.end(), name);
      if (meant && def.tags) types.push_back(def.tags);
    }
    if (node.op == Op::has_tag) {
      if (types.empty()) return {boolean_type(false)};
      return {known.contains(capability) ? boolean_type(true) : simple_type(Kind::boolean), Capabilities(capability)};
    }
    if (types.empty()) {
      error(node.where, fmt::format("entity type `{}` has no tags", to_string(*of)));
      return {};
    }
    if (!known.contains(capability)) {
      error(node.where, fmt::format("this tag of entity type `{}` may be missing", to_string(*of)),
            "ask `… .hasTag(…) &&` with the same expressions first");
      return {};
    }
    TypePtr type = types[0];
    for (const TypePtr& further : types) {
      type = least_upper_bound(type, further, mode_);
      if (type) continue;
      error(node.where, fmt::format("the tags of `{}` are of different types", to_string(*of)));
      return {};
    }
    return {type};
  }

  // --- sets and calls

  TypePtr contains(const Node& node, const Capabilities& known) {
    const bool one = node.op == Op::contains;
    const TypePtr left = expect(node.operands[0], known, Kind::set,
                                "`in` asks for the groups of an entity, `has` for attributes, `like` matches a string")
                             .type;
    const TypePtr right = one ? infer(node.operands[1], known).type
                              : expect(node.operands[1], known, Kind::set, "`contains` asks for one member").type;
    if (!left || !right) return nullptr;
    if (strict() && left->kind == Kind::set && !comparable(node, one ? left->element : left, right)) return nullptr;
    return simple_type(Kind::boolean);
  }

  TypePtr set(const Node& node, const Capabilities& known) {
    TypePtr element = simple_type(Kind::never);
    bool whole = true;
    std::vector<TypePtr> types;
    for (const NodeId operand : node.operands) {
      types.push_back(infer(operand, known).type);
      whole = whole && types.back();
    }
    if (node.operands.empty() && strict()) {
      error(node.where, "an empty set has no type", "ask `.isEmpty()` instead of comparing with `[]`");
      return nullptr;
    }
    if (!whole) return nullptr;
    for (const TypePtr& type : types) {
      TypePtr bound = least_upper_bound(element, type, mode_);
      if (!bound) {
        error(node.where, fmt::format("the elements of this set are of different types: `{}` and `{}`",
                                      to_string(*element), to_string(*type)));
        return nullptr;
      }
      element = std::move(bound);
    }
    return set_type(std::move(element));
  }

  TypePtr call(const Node& node, const Capabilities& known) {
    const FunctionType& type = function_type(node.function->name);
    const std::size_t arity = type.arguments[1] == Kind::never ? 1 : 2;
    bool failed = false;
    if (node.operands.size() != arity) {
      error(node.where, fmt::format("`{}` takes {} argument{}, got {}", type.name, arity, arity == 1 ? "" : "s",
                                    node.operands.size()));
      failed = true;
    }
    if (type.constructor) failed = !constructor(node, type) || failed;
    if (failed) {
      for (const NodeId operand : node.operands) infer(operand, known);
      return nullptr;
    }
    for (std::size_t i = 0; i < arity; ++i) {
      failed = !expect(node.operands[i], known, type.arguments[i]).type || failed;
    }
    return failed ? nullptr : simple_type(type.result);
  }

  bool constructor(const Node& node, const FunctionType& type) {
    bool good = true;
    const auto literal = [&](NodeId id) { return policy_.nodes[id].op == Op::literal; };
    if (!node.operands.empty() && literal(node.operands[0])) {
      const Value& argument = *policy_.nodes[node.operands[0]].value;
      if (argument.as<std::string>()) {
        if (const auto made = node.function->call({&argument, 1}); !made) {
          error(node.where, made.error().message());
          good = false;
        }
      }
    }
    if (strict() && !std::all_of(node.operands.begin(), node.operands.end(), literal)) {
      error(node.where, fmt::format("`{}` takes a literal alone", type.name),
            "let the schema give the attribute this type instead of String");
      good = false;
    }
    return good;
  }

  const Schema& schema_;
  const PolicyAst& policy_;
  ExpressionNames& names_;
  const Environment& environment_;
  const ValidationMode mode_;
  std::vector<Problem>& errors_;
  std::vector<TypePtr> types_;
};

}  // namespace

PolicyTypes::PolicyTypes(const Schema& schema, const PolicyAst& policy, ValidationMode mode)
    : schema_(schema), policy_(policy), mode_(mode), names_(std::make_unique<ExpressionNames>(policy)) {}

PolicyTypes::~PolicyTypes() = default;

bool PolicyTypes::infer(const Environment& environment, std::vector<TypePtr>& types, std::vector<Problem>& errors) {
  Typechecker checker(schema_, policy_, *names_, environment, mode_, errors);
  const bool may_apply = checker.may_apply();
  types = checker.take_types();
  return may_apply;
}

}  // namespace creto::authz::cedar
