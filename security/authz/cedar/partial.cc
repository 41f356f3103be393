#include "cedar/partial.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "cedar/lexer.h"
#include "cedar/parser.h"
#include "cedar/text.h"
#include "creto/common/assert.h"

namespace creto::authz::cedar {
namespace {

/// More above an entity, and `entity in unknown` stays as it is instead of becoming a list.
constexpr std::size_t listed_max = 1'000;

/// Of values: in the order of `Value::Rep`.
enum class Kind : std::uint8_t {
  boolean,
  integer,
  string,
  entity,
  set,
  record,
  decimal,
  ip,
  datetime,
  duration,
  any,  ///< nothing is known
};
static_assert(std::variant_size_v<Value::Rep> == static_cast<std::size_t>(Kind::any));
static_assert(std::is_same_v<std::variant_alternative_t<static_cast<std::size_t>(Kind::ip), Value::Rep>, IpValue>);

/// What is known of an expression.
struct Part {
  enum class State : std::uint8_t {
    value,
    residual,
    error,  ///< it errs, whatever the unknowns
  };
  State state = State::value;
  std::optional<Value> value = {};
  std::optional<Error> error = {};
  NodeId node = 0;  ///< of a residual, or of an expression that errs

  // Of a residual:
  bool may_err = true;
  Kind kind = Kind::any;                            ///< what it is where it does not err
  std::string entity_type = {};                     ///< where it is an entity; empty: nothing is known
  bool can_be_true = true, can_be_false = true;     ///< as a bool
  std::optional<Variable> variable = std::nullopt;  ///< it is this one

  bool is_value() const { return state == State::value; }
  bool is_residual() const { return state == State::residual; }
  bool is_error() const { return state == State::error; }
  const bool* truth() const { return value ? value->as<bool>() : nullptr; }
  const EntityUid* uid() const { return value ? value->as<EntityUid>() : nullptr; }

  Kind known_kind() const { return value ? static_cast<Kind>(value->rep().index()) : kind; }
  std::string known_type() const { return uid() ? uid()->type : entity_type; }
  bool total() const { return is_value() || (is_residual() && !may_err); }
  bool total_as(Kind wanted) const { return total() && known_kind() == wanted; }
};

Part of(Value value) {
  Part part;
  part.value = std::move(value);
  return part;
}

std::string_view name_of(Kind kind) {
  static constexpr std::string_view names[] = {"bool",    "long",   "string",   "entity",   "set",  "record",
                                               "decimal", "ipaddr", "datetime", "duration", "value"};
  return names[static_cast<std::size_t>(kind)];
}

/// Whether `op` can take a value of this kind there; otherwise it errs.
bool takes(Op op, std::size_t operand, Kind kind) {
  if (kind == Kind::any) return true;
  switch (op) {
    case Op::logical_not:
      return kind == Kind::boolean;
    case Op::negate:
    case Op::add:
    case Op::subtract:
    case Op::multiply:
      return kind == Kind::integer;
    case Op::less:
    case Op::less_equal:
    case Op::greater:
    case Op::greater_equal:
      return kind == Kind::integer || kind == Kind::datetime || kind == Kind::duration;
    case Op::in:
      return kind == Kind::entity || (operand == 1 && kind == Kind::set);
    case Op::like:
      return kind == Kind::string;
    case Op::has:
    case Op::attribute:
      return kind == Kind::record || kind == Kind::entity;
    case Op::contains:
      return operand == 1 || kind == Kind::set;
    case Op::contains_all:
    case Op::contains_any:
    case Op::is_empty:
      return kind == Kind::set;
    case Op::has_tag:
    case Op::get_tag:
      return kind == (operand == 0 ? Kind::entity : Kind::string);
    default:
      return true;
  }
}

bool is_comparison(Op op) {
  return op == Op::less || op == Op::less_equal || op == Op::greater || op == Op::greater_equal;
}

bool all_entities(const std::vector<Value>& elements) {
  return std::all_of(elements.begin(), elements.end(),
                     [](const Value& element) { return element.as<EntityUid>() != nullptr; });
}

/// Copies what is reachable, with values written as a policy would write them.
class Writer {
 public:
  Writer(const std::vector<Node>& from, std::size_t& nodes_left) : from_(from), nodes_left_(nodes_left) {}

  std::vector<Node> nodes;

  Result<NodeId> write(NodeId id, std::size_t depth = 1) {
    const Node& node = from_[id];
    if (node.op == Op::literal) return write(*node.value, node.where, depth);
    Node copy = node;
    for (NodeId& operand : copy.operands) operand = CRETO_TRY(write(operand, depth + 1));
    return add(std::move(copy), depth);
  }

  Result<NodeId> write(const Value& value, Position where, std::size_t depth = 1) {
    if (const auto* elements = value.as_set()) {
      Node node{.op = Op::set, .where = where};
      for (const Value& element : *elements) {
        const NodeId operand = CRETO_TRY(write(element, where, depth + 1));
        node.operands.push_back(operand);
      }
      return add(std::move(node), depth);
    }
    if (const auto* attributes = value.as_record()) {
      Node node{.op = Op::record, .where = where};
      for (const auto& [name, member] : *attributes) {
        const NodeId operand = CRETO_TRY(write(member, where, depth + 1));
        node.operands.push_back(operand);
        node.path.push_back(name);
      }
      return add(std::move(node), depth);
    }
    if (const auto* decimal = value.as<DecimalValue>()) return call("decimal", {format(*decimal)}, where, depth);
    if (const auto* ip = value.as<IpValue>()) return call("ip", {format(*ip)}, where, depth);
    if (const auto* duration = value.as<DurationValue>()) return call("duration", {format(*duration)}, where, depth);
    if (const auto* datetime = value.as<DatetimeValue>()) {
      const std::string text = format(*datetime);
      if (parse_datetime(text)) return call("datetime", {text}, where, depth);
      // No literal names it.
      Node node{.op = Op::call, .where = where};
      const NodeId epoch = CRETO_TRY(write(Value(DatetimeValue{0}), where, depth + 1));
      const NodeId offset = CRETO_TRY(write(Value(DurationValue{datetime->unix_ms}), where, depth + 1));
      node.operands = {epoch, offset};
      node.function = find_extension_function("offset");
      return add(std::move(node), depth);
    }
    Node node{.op = Op::literal, .where = where};
    node.value = value;
    return add(std::move(node), depth);
  }

 private:
  Result<NodeId> call(std::string_view name, const Value& argument, Position where, std::size_t depth) {
    Node node{.op = Op::call, .where = where};
    const NodeId operand = CRETO_TRY(write(argument, where, depth + 1));
    node.operands = {operand};
    node.function = find_extension_function(name);
    return add(std::move(node), depth);
  }

  Result<NodeId> add(Node node, std::size_t depth) {
    const std::size_t depth_max = ParseLimits().depth_max * 5;
    if (depth > depth_max) {
      return Error(Product::platform, ErrorKind::too_large,
                   fmt::format("what is left of it is nested more than {} deep", depth_max));
    }
    if (nodes_left_ == 0) {
      return Error(Product::platform, ErrorKind::too_large,
                   fmt::format("what is left of the policies is larger than {} operators", residual_nodes_max));
    }
    --nodes_left_;
    nodes.push_back(std::move(node));
    return static_cast<NodeId>(nodes.size() - 1);
  }

  const std::vector<Node>& from_;
  std::size_t& nodes_left_;
};

/// Which entities of the view may have more to them than the view knows.
class OpenEntities {
 public:
  OpenEntities(const PartialRequest& request, EntityView& entities) : request_(request), entities_(entities) {}

  bool open(const EntityUid& uid) const {
    if (!request_.may_be_unknown(uid)) return false;
    const auto found = entities_.find(uid);
    return found && *found == nullptr;
  }
  /// Whether it or one above it is open: then more may be above it.
  bool open_above(const EntityUid& uid) {
    const auto [known, fresh] = above_.try_emplace(uid, false);
    if (!fresh) return known->second;
    bool result = open(uid);
    if (const auto all = entities_.ancestors(uid); all && !result) {
      result = std::any_of((*all)->begin(), (*all)->end(), [this](const EntityUid& above) { return open(above); });
    }
    above_[uid] = result;
    return result;
  }

 private:
  const PartialRequest& request_;
  EntityView& entities_;
  std::unordered_map<EntityUid, bool> above_;
};

class Evaluator {
 public:
  Evaluator(const PolicyAst& policy, const PartialRequest& request, EntityView& entities, OpenEntities& open)
      : policy_(policy), request_(request), entities_(entities), open_(open) {}

  Result<PartialPolicy> run(std::size_t& nodes_left) {
    PartialPolicy result;
    PolicyAst residual;
    bool in_scope = true;  // certainly
    for (const auto& [part, variable] : scope_parts) {
      const auto left = scope(policy_.*part, entity(variable));
      if (!left) return result;
      in_scope &= left->kind == ScopeConstraint::Kind::any;
      residual.*part = *left;
    }

    std::vector<std::pair<Condition, Part>> kept;
    for (const Condition& condition : policy_.conditions) {
      Part part = boolean(condition.expression);
      if (const bool* truth = part.truth(); truth && *truth != condition.unless) continue;
      if (part.is_value()) {
        // Nothing in front of a condition that fails matters unless it errs.
        while (!kept.empty() && kept.back().second.total_as(Kind::boolean)) kept.pop_back();
        if (kept.empty()) return result;
      }
      if (part.is_error() && kept.empty() && in_scope) {
        result.outcome = PartialPolicy::Outcome::error;
        result.error = std::move(part.error);
        return result;
      }
      const bool decided = !part.is_residual();
      result.can_apply &= !decided && (condition.unless ? part.can_be_false : part.can_be_true);
      kept.emplace_back(condition, std::move(part));
      if (decided) break;
    }
    if (kept.empty() && in_scope) {
      result.outcome = PartialPolicy::Outcome::yes;
      return result;
    }
    Writer writer(work_.nodes, nodes_left);
    for (auto& [condition, part] : kept) {
      Condition left{condition.unless, 0};
      left.expression = CRETO_TRY(part.is_value() ? writer.write(*part.value, policy_.nodes[condition.expression].where)
                                                  : writer.write(part.node));
      residual.conditions.push_back(left);
    }
    residual.effect = policy_.effect;
    residual.where = policy_.where;
    residual.annotations = policy_.annotations;
    residual.nodes = std::move(writer.nodes);
    result.outcome = PartialPolicy::Outcome::residual;
    result.residual = std::move(residual);
    return result;
  }

 private:
  /// First what most policies are not for.
  static constexpr std::pair<ScopeConstraint PolicyAst::*, Variable> scope_parts[] = {
      {&PolicyAst::action, Variable::action},
      {&PolicyAst::principal, Variable::principal},
      {&PolicyAst::resource, Variable::resource}};

  const PartialEntity& entity(Variable variable) const {
    return variable == Variable::principal ? request_.principal
           : variable == Variable::action  ? request_.action
                                           : request_.resource;
  }

  // --- scopes

  /// What is left of it: nothing where it fails, `any` where it holds.
  std::optional<ScopeConstraint> scope(const ScopeConstraint& constraint, const PartialEntity& entity) {
    using Kind = ScopeConstraint::Kind;
    const ScopeConstraint any;
    const auto decided = [&](bool holds) { return holds ? std::optional(any) : std::nullopt; };
    const std::string& type = entity.uid ? entity.uid->type : entity.type;
    switch (constraint.kind) {
      case Kind::any:
        return any;
      case Kind::equal:
        if (entity.uid) return decided(*entity.uid == constraint.entities[0]);
        if (!type.empty() && type != constraint.entities[0].type) return std::nullopt;
        return constraint;
      case Kind::is:
        if (type.empty()) return constraint;
        return decided(type == constraint.type);
      case Kind::is_in:
        if (!type.empty() && type != constraint.type) return std::nullopt;
        break;
      case Kind::in:
      case Kind::in_any:
        break;
    }
    if (constraint.entities.empty()) return std::nullopt;
    if (entity.uid) {
      const auto below = entities_.is_in_any(*entity.uid, constraint.entities);
      if (below && *below) return any;
      if (!open_.open_above(*entity.uid)) return std::nullopt;
    }
    ScopeConstraint left = constraint;
    if (constraint.kind == Kind::is_in && !type.empty()) {
      left.kind = Kind::in;
      left.type.clear();
    }
    return left;
  }

  // --- nodes of what is left

  NodeId add(Node node) {
    work_.nodes.push_back(std::move(node));
    return static_cast<NodeId>(work_.nodes.size() - 1);
  }
  NodeId node_of(const Part& part, Position where) {
    if (!part.is_value()) return part.node;
    Node node{.op = Op::literal, .where = where};
    node.value = *part.value;
    return add(std::move(node));
  }
  /// `node` with what became of its operands.
  NodeId rebuild(const Node& node, const std::vector<Part>& parts) {
    Node copy = node;
    copy.operands.clear();
    for (const Part& part : parts) copy.operands.push_back(node_of(part, node.where));
    return add(std::move(copy));
  }
  static Part residual(NodeId node, Kind kind, bool may_err) {
    Part part{.state = Part::State::residual, .node = node};
    part.kind = kind;
    part.may_err = may_err;
    return part;
  }
  static Part failed(NodeId node, Error error) {
    Part part{.state = Part::State::error, .error = std::move(error), .node = node};
    return part;
  }

  // --- expressions

  /// `as_bool`: whoever asks errs where it is no bool, so it need not be made sure of here.
  Part eval(NodeId id, bool as_bool = false) {
    const Node& node = policy_.nodes[id];
    switch (node.op) {
      case Op::literal:
        return of(*node.value);
      case Op::variable:
        return variable(node);
      case Op::all_of:
        return connective(node, false, as_bool);
      case Op::any_of:
        return connective(node, true, as_bool);
      case Op::if_then_else:
        return if_then_else(node, as_bool);
      case Op::is:
        return is(node);
      case Op::in: {
        Part left = eval(node.operands[0]);
        Part right = eval(node.operands[1]);
        return in(node, std::move(left), std::move(right));
      }
      default: {
        std::vector<Part> parts;
        for (const NodeId operand : node.operands) parts.push_back(eval(operand, node.op == Op::logical_not));
        return strict(node, std::move(parts));
      }
    }
  }

  /// Where it is certainly no bool, an error.
  Part boolean(NodeId id) {
    Part part = eval(id, true);
    const Kind kind = part.known_kind();
    if (part.is_error() || kind == Kind::boolean || kind == Kind::any) return part;
    const Position where = policy_.nodes[id].where;
    const NodeId node = rebuild({.op = Op::logical_not, .where = where}, {part});
    return failed(node, error_at(where, fmt::format("expected a bool, got a {}", name_of(kind))));
  }

  Part variable(const Node& node) {
    if (node.variable == Variable::context) {
      if (!request_.context_unknown && request_.unknown_context.empty()) return of(request_.context);
      Part part = residual(add(node), Kind::record, false);
      part.variable = Variable::context;
      return part;
    }
    const PartialEntity& known = entity(node.variable);
    if (known.uid) return of(*known.uid);
    Part part = residual(add(node), Kind::entity, false);
    part.variable = node.variable;
    part.entity_type = known.type;
    return part;
  }

  /// && and ||; `decisive` is what ends them early.
  Part connective(const Node& node, bool decisive, bool as_bool) {
    std::vector<Part> kept;
    for (const NodeId operand : node.operands) {
      Part part = boolean(operand);
      if (const bool* truth = part.truth(); truth && *truth != decisive) continue;
      kept.push_back(std::move(part));
      if (!kept.back().is_residual()) break;
    }
    if (kept.empty()) return of(Value(!decisive));
    // What stands right in front of the end and cannot err does not matter.
    while (kept.size() > 1 && kept.back().is_value() && kept[kept.size() - 2].total_as(Kind::boolean)) {
      kept.erase(kept.end() - 2);
    }
    if (kept.size() == 1) {
      if (!kept[0].is_residual() || as_bool || kept[0].kind == Kind::boolean) return std::move(kept[0]);
      kept.insert(kept.begin(), of(Value(!decisive)));  // it must still err where it is no bool
    }
    Part part = residual(rebuild(node, kept), Kind::boolean, false);
    const auto can_be = [&](bool wanted) {
      const auto can = [wanted](const Part& one) {
        if (!one.is_residual()) return one.truth() && *one.truth() == wanted;
        return wanted ? one.can_be_true : one.can_be_false;
      };
      return wanted == decisive ? std::any_of(kept.begin(), kept.end(), can)
                                : std::all_of(kept.begin(), kept.end(), can);
    };
    part.can_be_true = can_be(true);
    part.can_be_false = can_be(false);
    part.may_err = !std::all_of(kept.begin(), kept.end(), [](const Part& one) { return one.total_as(Kind::boolean); });
    return part;
  }

  Part if_then_else(const Node& node, bool as_bool) {
    Part condition = boolean(node.operands[0]);
    if (condition.is_error()) return condition;
    if (const bool* truth = condition.truth()) return eval(node.operands[*truth ? 1 : 2], as_bool);
    Part then = eval(node.operands[1], as_bool);
    Part otherwise = eval(node.operands[2], as_bool);
    if (then.is_error() && otherwise.is_error()) return then;
    const bool decides = condition.total_as(Kind::boolean);
    if (decides && then.is_value() && otherwise.is_value() && *then.value == *otherwise.value) return then;
    const bool same_kind = then.is_error() || otherwise.is_error() || then.known_kind() == otherwise.known_kind();
    const Part& whole = then.is_error() ? otherwise : then;
    Part part =
        residual(0, same_kind ? whole.known_kind() : Kind::any, !decides || !then.total() || !otherwise.total());
    if (then.known_type() == otherwise.known_type()) part.entity_type = then.known_type();
    const auto can_be = [&](bool wanted) {
      const auto can = [wanted](const Part& one) {
        if (one.is_error()) return false;
        if (one.is_value()) return one.truth() && *one.truth() == wanted;
        return wanted ? one.can_be_true : one.can_be_false;
      };
      return can(then) || can(otherwise);
    };
    part.can_be_true = can_be(true);
    part.can_be_false = can_be(false);
    part.node = rebuild(node, {std::move(condition), std::move(then), std::move(otherwise)});
    return part;
  }

  Part is(const Node& node) {
    Part left = eval(node.operands[0]);
    if (left.is_error()) return left;
    if (const Kind kind = left.known_kind(); kind != Kind::entity && kind != Kind::any) {
      Node alone = node;
      alone.operands.resize(1);
      return failed(rebuild(alone, {left}),
                    error_at(node.where, fmt::format("expected a entity, got a {}", name_of(kind))));
    }
    const std::string type = left.known_type();
    const bool decides = left.total_as(Kind::entity) && !type.empty();
    if (decides && type != node.name) return of(Value(false));
    if (node.operands.size() == 1) {
      if (decides) return of(Value(true));
      const bool may_err = !left.total_as(Kind::entity);
      return residual(rebuild(node, {std::move(left)}), Kind::boolean, may_err);
    }
    Part right = eval(node.operands[1]);
    if (decides) return in(node, std::move(left), std::move(right));
    const bool may_err = !left.total_as(Kind::entity) || !is_target(right);
    const bool can_be_true = !right.is_error();
    Part part = residual(rebuild(node, {std::move(left), std::move(right)}), Kind::boolean, may_err);
    part.can_be_true = can_be_true;
    return part;
  }

  /// Whether `x in part` cannot err for an entity `x`.
  static bool is_target(const Part& part) {
    if (part.total_as(Kind::entity)) return true;
    const auto* elements = part.value ? part.value->as_set() : nullptr;
    return elements && all_entities(*elements);
  }

  Part in(const Node& node, Part left, Part right) {
    if (left.uid() && right.is_residual() && right.variable && right.kind == Kind::entity) {
      if (auto listed = in_unknown(node, *left.uid(), right)) return *std::move(listed);
    }
    Node plain{.op = Op::in, .where = node.where};
    std::vector<Part> parts;
    parts.push_back(std::move(left));
    parts.push_back(std::move(right));
    return strict(plain, std::move(parts));
  }

  /// `uid in unknown`, as whether the unknown one is among those that `uid` is in.
  std::optional<Part> in_unknown(const Node& node, const EntityUid& uid, const Part& unknown) {
    const auto all = entities_.ancestors(uid);
    if (!all || (*all)->size() > listed_max) return std::nullopt;
    PartialRequest others = request_;
    PartialEntity& own = *unknown.variable == Variable::principal ? others.principal
                         : *unknown.variable == Variable::action  ? others.action
                                                                  : others.resource;
    own.uid = uid;  // for one that is known
    const OpenEntities open_to_others(others, entities_);
    std::vector<Value> listed;
    for (std::size_t i = 0; i <= (*all)->size(); ++i) {
      const EntityUid& above = i == 0 ? uid : (**all)[i - 1];
      if (open_to_others.open(above)) return std::nullopt;
      if (unknown.entity_type.empty() || above.type == unknown.entity_type) listed.emplace_back(above);
    }
    if (listed.empty()) return of(Value(false));
    Node found{.op = listed.size() == 1 ? Op::equal : Op::contains, .where = node.where};
    const bool one = listed.size() == 1;
    const Part list = of(one ? listed[0] : Value::set(std::move(listed)));
    const NodeId built = rebuild(found, one ? std::vector<Part>{unknown, list} : std::vector<Part>{list, unknown});
    return residual(built, Kind::boolean, false);
  }

  /// An operator that evaluates all its operands.
  Part strict(const Node& node, std::vector<Part> parts) {
    for (Part& part : parts) {
      if (part.is_error()) return std::move(part);
    }
    if (const auto own = context_member(node, parts)) return *own;
    if (std::all_of(parts.begin(), parts.end(), [](const Part& part) { return part.is_value(); })) {
      const NodeId built = rebuild(node, parts);
      static const Request none{{}, {}, {}, Value::record({})};
      auto value = evaluate(work_, built, none, entities_);
      if (reads_open(node, parts, value)) return shaped(node, parts, built);
      if (!value) return failed(built, std::move(value).error());
      return of(*std::move(value));
    }
    if (auto wrong = wrong_type(node, parts)) return failed(rebuild(node, parts), *std::move(wrong));
    if (const auto decided = decide(node, parts)) return of(Value(*decided));
    return shaped(node, parts, rebuild(node, parts));
  }

  /// A known attribute of a context of which others are not.
  std::optional<Part> context_member(const Node& node, const std::vector<Part>& parts) {
    if (node.op != Op::attribute && node.op != Op::has) return std::nullopt;
    if (parts[0].variable != Variable::context || request_.context_unknown) return std::nullopt;
    const std::string& name = node.op == Op::has ? node.path[0] : node.name;
    if (request_.unknown_context.contains(name)) return std::nullopt;
    const Value* value = request_.context.attribute(name);
    if (node.op == Op::attribute) {
      if (value) return of(*value);
      return failed(rebuild(node, parts), error_at(node.where, fmt::format("the record has no attribute `{}`", name)));
    }
    if (!value || node.path.size() == 1) return of(Value(value != nullptr));
    Node rest = node;
    rest.path.erase(rest.path.begin());
    return strict(rest, {of(*value)});
  }

  /// Whether what `node` gave for these values may be otherwise where an unknown one turns out to be among the entities
  /// it asked for.
  bool reads_open(const Node& node, const std::vector<Part>& parts, const Result<Value>& given) {
    const EntityUid* uid = parts.empty() ? nullptr : parts[0].uid();
    switch (node.op) {
      case Op::attribute:
      case Op::get_tag:
      case Op::has_tag:
        return uid && open_.open(*uid) && (node.op == Op::attribute || parts[1].value->as<std::string>());
      case Op::has: {
        Value at = *parts[0].value;
        for (const std::string& name : node.path) {
          const Attributes* attributes = at.as_record();
          if (const auto* entity = at.as<EntityUid>()) {
            if (open_.open(*entity)) return true;
            const auto found = entities_.find(*entity);
            attributes = found && *found ? &(*found)->attributes : nullptr;
          }
          const Value* next = attributes ? find_attribute(*attributes, name) : nullptr;
          if (!next) return false;
          at = Value(*next);  // a copy: `next` may lie in `at`
        }
        return false;
      }
      case Op::in:
        return uid && given && !*given->as<bool>() && open_.open_above(*uid);
      default:
        return false;
    }
  }

  static std::optional<Error> wrong_type(const Node& node, const std::vector<Part>& parts) {
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const Kind kind = parts[i].known_kind();
      if (!takes(node.op, i, kind)) return error_at(node.where, fmt::format("a {} cannot stand here", name_of(kind)));
    }
    if (node.op == Op::in && parts[1].value) {
      const auto* elements = parts[1].value->as_set();
      if (elements && !all_entities(*elements)) return error_at(node.where, "expected a entity");
    }
    if (is_comparison(node.op)) {
      const Kind left = parts[0].known_kind();
      const Kind right = parts[1].known_kind();
      if (left != Kind::any && right != Kind::any && left != right) {
        return error_at(node.where, fmt::format("expected a {}, got a {}", name_of(left), name_of(right)));
      }
    }
    if (node.op == Op::call && parts.size() != node.function->arity) {
      return error_at(node.where, fmt::format("`{}` takes {} arguments, got {}", node.function->name,
                                              node.function->arity, parts.size()));
    }
    return std::nullopt;
  }

  /// What can be said without the unknown value.
  static std::optional<bool> decide(const Node& node, const std::vector<Part>& parts) {
    const auto differ = [](const Part& a, const Part& b) {
      if (a.known_kind() == Kind::any || b.known_kind() == Kind::any) return false;
      if (a.known_kind() != b.known_kind()) return true;
      if (a.known_kind() != Kind::entity || a.known_type().empty() || b.known_type().empty()) return false;
      return a.known_type() != b.known_type();
    };
    const auto same = [&] { return parts[0].variable && parts[0].variable == parts[1].variable; };
    switch (node.op) {
      case Op::equal:
      case Op::not_equal: {
        if (!parts[0].total() || !parts[1].total()) return std::nullopt;
        if (same()) return node.op == Op::equal;
        if (differ(parts[0], parts[1])) return node.op == Op::not_equal;
        return std::nullopt;
      }
      case Op::in: {
        if (!parts[0].total_as(Kind::entity)) return std::nullopt;
        if (same()) return true;
        const auto* elements = parts[1].value ? parts[1].value->as_set() : nullptr;
        return elements && elements->empty() ? std::optional(false) : std::nullopt;
      }
      case Op::contains: {
        const auto* elements = parts[0].value ? parts[0].value->as_set() : nullptr;
        if (!elements || !parts[1].total()) return std::nullopt;
        const bool none = std::all_of(elements->begin(), elements->end(),
                                      [&](const Value& element) { return differ(of(element), parts[1]); });
        return none ? std::optional(false) : std::nullopt;
      }
      default:
        return std::nullopt;
    }
  }

  /// What is known of a residual beforehand.
  static Part shaped(const Node& node, const std::vector<Part>& parts, NodeId built) {
    const auto total = [&](Kind kind) {
      return std::all_of(parts.begin(), parts.end(), [kind](const Part& part) { return part.total_as(kind); });
    };
    const bool all_total = std::all_of(parts.begin(), parts.end(), [](const Part& part) { return part.total(); });
    switch (node.op) {
      case Op::logical_not: {
        Part part = residual(built, Kind::boolean, !total(Kind::boolean));
        part.can_be_true = parts[0].can_be_false;
        part.can_be_false = parts[0].can_be_true;
        return part;
      }
      case Op::equal:
      case Op::not_equal:
        return residual(built, Kind::boolean, !all_total);
      case Op::less:
      case Op::less_equal:
      case Op::greater:
      case Op::greater_equal: {
        const Kind kind = parts[0].known_kind();
        return residual(built, Kind::boolean, kind == Kind::any || !total(kind));
      }
      case Op::negate:
      case Op::add:
      case Op::subtract:
      case Op::multiply:
        return residual(built, Kind::integer, true);
      case Op::in:
        return residual(built, Kind::boolean, !parts[0].total_as(Kind::entity) || !is_target(parts[1]));
      case Op::like:
        return residual(built, Kind::boolean, !total(Kind::string));
      case Op::has: {
        const bool certain = parts[0].total_as(Kind::entity) || parts[0].total_as(Kind::record);
        return residual(built, Kind::boolean, !certain || node.path.size() > 1);
      }
      case Op::contains:
        return residual(built, Kind::boolean, !parts[0].total_as(Kind::set) || !parts[1].total());
      case Op::contains_all:
      case Op::contains_any:
      case Op::is_empty:
        return residual(built, Kind::boolean, !total(Kind::set));
      case Op::has_tag:
        return residual(built, Kind::boolean, !parts[0].total_as(Kind::entity) || !parts[1].total_as(Kind::string));
      case Op::set:
        return residual(built, Kind::set, !all_total);
      case Op::record:
        return residual(built, Kind::record, !all_total);
      default:
        return residual(built, Kind::any, true);
    }
  }

  const PolicyAst& policy_;
  const PartialRequest& request_;
  EntityView& entities_;
  OpenEntities& open_;
  PolicyAst work_;  ///< its nodes are what is left, and more
};

}  // namespace

bool PartialRequest::may_be_unknown(const EntityUid& uid) const {
  const auto may_be = [&](const PartialEntity& entity) {
    return !entity.uid && (entity.type.empty() || entity.type == uid.type);
  };
  return may_be(principal) || may_be(action) || may_be(resource);
}

PartialDecision PartialEvaluation::decision(ErringForbid erring) const {
  using Outcome = PartialPolicy::Outcome;
  bool permitted = false, may_be_permitted = false, may_be_forbidden = false;
  for (const PartialPolicy& policy : policies) {
    const bool left = policy.outcome == Outcome::residual;
    if (policy.policy->ast.effect == Effect::permit) {
      permitted |= policy.outcome == Outcome::yes;
      may_be_permitted |= left && policy.can_apply;
      continue;
    }
    const bool errs_count = erring == ErringForbid::denies;
    if (policy.outcome == Outcome::yes || (policy.outcome == Outcome::error && errs_count)) {
      return PartialDecision::deny;
    }
    may_be_forbidden |= left && (policy.can_apply || errs_count);
  }
  if (!permitted && !may_be_permitted) return PartialDecision::deny;
  return permitted && !may_be_forbidden ? PartialDecision::allow : PartialDecision::undecided;
}

Result<PartialEvaluation> evaluate_partially(const PolicySet& policies, PartialRequest request, EntityView& entities) {
  PartialEvaluation result;
  result.request = std::move(request);
  OpenEntities open(result.request, entities);
  std::size_t nodes_left = residual_nodes_max;
  for (const auto& policy : policies.policies()) {
    CRETO_ASSERT(!policy->ast.is_template());
    auto partial = Evaluator(policy->ast, result.request, entities, open).run(nodes_left);
    if (entities.trouble()) return *entities.trouble();
    if (!partial) {
      return Error(Product::platform, partial.error().kind(),
                   fmt::format("policy `{}`: {}", policy->id, partial.error().message()));
    }
    partial->policy = policy.get();
    result.policies.push_back(*std::move(partial));
  }
  return result;
}

Result<std::vector<EntityUid>> query_resources(const PartialEvaluation& evaluation, ErringForbid erring,
                                               std::span<const EntityUid> candidates, EntityView& entities) {
  const PartialRequest& known = evaluation.request;
  CRETO_ASSERT(known.principal.uid && known.action.uid && !known.resource.uid && !known.context_unknown);
  const PartialDecision decision = evaluation.decision(erring);
  if (decision == PartialDecision::deny) return std::vector<EntityUid>();
  if (decision == PartialDecision::allow) return std::vector<EntityUid>(candidates.begin(), candidates.end());

  // Of the others it is known whether they apply: no forbid does, or nothing would be allowed.
  bool permitted_all = false;
  std::vector<const PartialPolicy*> left;
  for (const PartialPolicy& policy : evaluation.policies) {
    if (policy.residual) left.push_back(&policy);
    permitted_all |= policy.outcome == PartialPolicy::Outcome::yes;
  }
  const auto allowed = [&](const EntityUid& resource) {
    const Request whole{*known.principal.uid, *known.action.uid, resource, known.context};
    bool permitted = permitted_all;
    for (const PartialPolicy* policy : left) {
      const bool permit = policy->policy->ast.effect == Effect::permit;
      if (permit && permitted) continue;
      const Result<bool> satisfied = is_satisfied(*policy->residual, whole, entities);
      if (permit) {
        permitted = satisfied && *satisfied;
      } else if (satisfied ? *satisfied : erring == ErringForbid::denies) {
        return false;
      }
    }
    return permitted;
  };
  std::vector<EntityUid> result;
  for (const EntityUid& candidate : candidates) {
    CRETO_ASSERT(candidate.type == known.resource.type);
    if (allowed(candidate)) result.push_back(candidate);
    if (entities.trouble()) return *entities.trouble();
  }
  return result;
}

}  // namespace creto::authz::cedar
