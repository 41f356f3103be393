#include "cedar/sql_filter.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "cedar/format.h"
#include "cedar/sql_condition.h"
#include "creto/common/assert.h"

namespace creto::authz::cedar {
namespace {

constexpr std::size_t chain_max = 2'000;  // operands of one && or ||

Error bad(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

/// What can stand on a side of a comparison.
struct Scalar {
  enum class Kind : std::uint8_t { value, column, errs };
  Kind kind = Kind::errs;
  std::optional<Value> value = {};
  SqlColumn column = {};
};

bool is_truth(SqlType type) { return type == SqlType::boolean || type == SqlType::bit; }

Pred defined(const SqlColumn& column) {
  return column.nullable ? leaf({column.column + " IS NOT NULL"}) : constant(true);
}

Truth truth_of(const SqlColumn& column) {
  if (!is_truth(column.type)) return errs();
  const bool bit = column.type == SqlType::bit;
  return {leaf({column.column + (bit ? " = 1" : "")}), leaf({bit ? column.column + " = 0" : "NOT " + column.column}),
          defined(column)};
}

class Translator {
 public:
  Translator(const PartialPolicy& policy, const PartialRequest& request, const SqlMapping& mapping,
             EntityView& entities, const SqlOptions& options)
      : id_(policy.policy->id),
        policy_(*policy.residual),
        request_(request),
        mapping_(mapping),
        entities_(entities),
        options_(options) {
    for (const Node& node : policy_.nodes) {
      bool depends = node.op == Op::variable;
      bool reads = node.op == Op::attribute || node.op == Op::has || node.op == Op::has_tag || node.op == Op::get_tag ||
                   node.op == Op::in || (node.op == Op::is && node.operands.size() == 2);
      for (const NodeId operand : node.operands) {
        depends |= depends_[operand];
        reads |= reads_[operand];
      }
      depends_.push_back(depends);
      reads_.push_back(reads);
    }
  }

  Result<Truth> policy() {
    std::vector<Truth> parts = {always(true)};
    for (const auto& [scope, name] :
         {std::pair{&policy_.principal, "principal"}, std::pair{&policy_.action, "action"}}) {
      if (scope->kind == ScopeConstraint::Kind::any) continue;
      return cannot(to_text(name, *scope), "it does not depend on the resource alone");
    }
    Truth scope = CRETO_TRY(resource_scope(policy_.resource));
    parts.push_back(std::move(scope));
    for (const Condition& condition : policy_.conditions) {
      Truth part = CRETO_TRY(truth(condition.expression, 0));
      parts.push_back(condition.unless ? negated(std::move(part)) : std::move(part));
    }
    return chain(parts, true);
  }

 private:
  Error cannot(std::string text, std::string_view why) const {
    constexpr std::size_t text_max = 200;
    if (text.size() > text_max) {
      std::size_t end = text_max;
      while ((static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
      text = text.substr(0, end) + "…";
    }
    return bad(fmt::format("policy `{}`: `{}` cannot be said in SQL: {}", id_, text, why));
  }
  Error cannot(NodeId id, std::string_view why) const { return cannot(to_text(policy_.nodes, id), why); }

  SqlColumn resource() const { return {mapping_.id, SqlType::entity, request_.resource.type, false}; }

  Result<Truth> resource_scope(const ScopeConstraint& scope) {
    using Kind = ScopeConstraint::Kind;
    switch (scope.kind) {
      case Kind::any:
        return always(true);
      case Kind::equal: {
        auto equal = compared(resource(), "=", Value(scope.entities[0]));
        if (!equal) return cannot(to_text("resource", scope), equal.error().message());
        return equal;
      }
      case Kind::is:
        return always(scope.type == request_.resource.type);
      case Kind::is_in:
        if (scope.type != request_.resource.type) return always(false);
        break;
      case Kind::in:
      case Kind::in_any:
        break;
    }
    auto below = below_any(resource(), scope.entities);
    if (!below) return cannot(to_text("resource", scope), below.error().message());
    return below;
  }

  // --- values

  /// Whether an unknown entity may have a say in a value that names no variable.
  bool open(NodeId id) {
    const Node& node = policy_.nodes[id];
    if (node.op == Op::literal) {
      const auto* uid = node.value->as<EntityUid>();
      return uid && open_above(*uid);
    }
    return std::any_of(node.operands.begin(), node.operands.end(), [this](NodeId operand) { return open(operand); });
  }
  bool open_above(const EntityUid& uid) {
    const auto unknown = [this](const EntityUid& one) {
      if (!request_.may_be_unknown(one)) return false;
      const auto found = entities_.find(one);
      return found && *found == nullptr;
    };
    if (unknown(uid)) return true;
    const auto all = entities_.ancestors(uid);
    return all && std::any_of((*all)->begin(), (*all)->end(), unknown);
  }

  /// The value of what depends on no row.
  Result<Scalar> known(NodeId id) {
    if (reads_[id] && open(id)) return cannot(id, "it asks for an entity that is not known");
    static const Request none{{}, {}, {}, Value::record({})};
    auto value = evaluate(policy_, id, none, entities_);
    Scalar result;
    if (!value) return result;
    result.kind = Scalar::Kind::value;
    result.value = *std::move(value);
    return result;
  }

  /// The names of `resource.a.b`; nothing for anything else.
  std::optional<std::vector<std::string>> path_of(NodeId id) const {
    std::vector<std::string> path;
    const Node* node = &policy_.nodes[id];
    for (; node->op == Op::attribute; node = &policy_.nodes[node->operands[0]]) path.push_back(node->name);
    if (node->op != Op::variable || node->variable != Variable::resource) return std::nullopt;
    std::reverse(path.begin(), path.end());
    return path;
  }

  /// Null where nothing says where it lies. A path through what no resource has is none either.
  const SqlAttribute* lookup(const std::vector<std::string>& path) const {
    static const SqlAttribute none = SqlNone();
    std::vector<std::string> prefix;
    for (const std::string& name : path) {
      prefix.push_back(name);
      const auto found = mapping_.attributes.find(prefix);
      if (found == mapping_.attributes.end()) continue;
      if (prefix.size() == path.size()) return &found->second;
      if (std::holds_alternative<SqlNone>(found->second)) return &none;
    }
    return nullptr;
  }

  /// What the mapping says of an attribute or tag of the resource; null for any other expression.
  /// Errors: it says nothing.
  Result<const SqlAttribute*> mapped(NodeId id) const {
    const Node& node = policy_.nodes[id];
    const SqlAttribute* found = nullptr;
    if (!depends_[id]) return nullptr;
    if (node.op == Op::attribute) {
      const auto path = path_of(id);
      if (!path) return nullptr;
      found = lookup(*path);
    } else if (node.op == Op::get_tag) {
      found = CRETO_TRY(mapped_tag(id));
    } else {
      return nullptr;
    }
    if (!found) return cannot(id, "the mapping has no column for it");
    return found;
  }
  /// Of `getTag` and `hasTag`.
  Result<const SqlAttribute*> mapped_tag(NodeId id) const {
    const Node& node = policy_.nodes[id];
    const auto path = path_of(node.operands[0]);
    const Node& name = policy_.nodes[node.operands[1]];
    const auto* text = name.op == Op::literal ? name.value->as<std::string>() : nullptr;
    if (!path || !path->empty() || !text) return cannot(id, "only a named tag of the resource can");
    const auto tag = mapping_.tags.find(*text);
    if (tag == mapping_.tags.end()) return cannot(id, "the mapping has no column for this tag");
    return &tag->second;
  }

  Result<Scalar> scalar(NodeId id) {
    if (!depends_[id]) return known(id);
    const Node& node = policy_.nodes[id];
    Scalar result;
    if (node.op == Op::variable && node.variable == Variable::resource) {
      result.kind = Scalar::Kind::column;
      result.column = resource();
      return result;
    }
    const auto* attribute = CRETO_TRY(mapped(id));
    if (attribute && std::holds_alternative<SqlNone>(*attribute)) return result;
    const auto* column = attribute ? std::get_if<SqlColumn>(attribute) : nullptr;
    if (!column) return cannot(id, attribute ? "a set can be asked only for what it contains" : reason(node));
    result.kind = Scalar::Kind::column;
    result.column = *column;
    return result;
  }

  static std::string_view reason(const Node& node) {
    if (node.op == Op::variable || node.op == Op::attribute) return "it does not depend on the resource alone";
    return "a column can be compared, but not computed with";
  }

  /// As `column` would hold it; nothing where it is of another type. Errors: what is wrong with it, without its place.
  static Result<std::optional<SqlParameter>> parameter(const SqlColumn& column, const Value& value) {
    const auto text = [](const std::string& text) -> Result<std::optional<SqlParameter>> {
      if (text.find('\0') != std::string::npos) return bad("a text with a zero byte is none in SQL");
      return SqlParameter(text);
    };
    const auto number = [](std::int64_t number) { return std::optional(SqlParameter(number)); };
    switch (column.type) {
      case SqlType::boolean:
      case SqlType::bit:
        break;  // compared as conditions
      case SqlType::integer:
        if (const auto* integer = value.as<std::int64_t>()) return number(*integer);
        break;
      case SqlType::string:
        if (const auto* string = value.as<std::string>()) return text(*string);
        break;
      case SqlType::entity:
        if (const auto* uid = value.as<EntityUid>(); uid && uid->type == column.entity_type) return text(uid->id);
        break;
      case SqlType::datetime:
        if (const auto* datetime = value.as<DatetimeValue>()) return number(datetime->unix_ms);
        break;
      case SqlType::duration:
        if (const auto* duration = value.as<DurationValue>()) return number(duration->ms);
        break;
      case SqlType::decimal:
        if (const auto* decimal = value.as<DecimalValue>()) return number(decimal->ten_thousandths);
        break;
    }
    return std::nullopt;
  }

  /// Of all that are of the column's type. Errors: as above.
  template <class Values>
  static Result<std::vector<SqlParameter>> parameters(const SqlColumn& column, const Values& values) {
    std::vector<SqlParameter> all;
    for (const auto& value : values) {
      auto one = CRETO_TRY(parameter(column, Value(value)));
      if (one) all.push_back(*std::move(one));
    }
    return all;
  }

  /// `what` is one of `values`; nothing where there are none.
  static Pieces among(const std::string& what, const std::vector<SqlParameter>& values, bool among = true) {
    if (values.size() == 1) return {what + (among ? " = " : " <> "), values[0]};
    Pieces pieces = {what + (among ? " IN (" : " NOT IN (")};
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (i > 0) pieces.emplace_back(std::string(", "));
      pieces.emplace_back(values[i]);
    }
    pieces.emplace_back(std::string(")"));
    return pieces;
  }
  static Truth column_among(const SqlColumn& column, const std::vector<SqlParameter>& values) {
    if (values.empty()) return {constant(false), defined(column), defined(column)};
    return {leaf(among(column.column, values)), leaf(among(column.column, values, false)), defined(column)};
  }

  static std::string_view opposite(std::string_view op) {
    static constexpr std::pair<std::string_view, std::string_view> pairs[] = {{"=", "<>"}, {"<", ">="}, {"<=", ">"}};
    for (const auto& [one, other] : pairs) {
      if (op == one) return other;
      if (op == other) return one;
    }
    CRETO_ASSERT(false);
    return {};
  }

  /// A value of another type is not equal, and has no order. Errors: as above.
  static Result<Truth> compared(const SqlColumn& column, std::string_view op, const Value& value) {
    const auto bound = CRETO_TRY(parameter(column, value));
    if (!bound) return op == "=" ? Truth{constant(false), defined(column), defined(column)} : errs();
    return Truth{leaf({fmt::format("{} {} ", column.column, op), *bound}),
                 leaf({fmt::format("{} {} ", column.column, opposite(op)), *bound}), defined(column)};
  }
  static Truth compared(const SqlColumn& left, std::string_view op, const SqlColumn& right) {
    Pred both = all({defined(left), defined(right)});
    const bool same = left.type == right.type && left.entity_type == right.entity_type;
    if (!same) return op == "=" ? Truth{constant(false), both, both} : errs();
    return {leaf({fmt::format("{} {} {}", left.column, op, right.column)}),
            leaf({fmt::format("{} {} {}", left.column, opposite(op), right.column)}), std::move(both)};
  }

  // --- conditions

  /// Whether it is computed from the row, and a bool where it does not err.
  bool is_condition(NodeId id) const {
    if (!depends_[id]) return false;
    const auto is_bool = [this](NodeId branch) {
      const Node& node = policy_.nodes[branch];
      if (node.op == Op::literal) return node.value->as<bool>() != nullptr;
      const auto attribute = mapped(branch);
      const auto* column = attribute && *attribute ? std::get_if<SqlColumn>(*attribute) : nullptr;
      return (column && is_truth(column->type)) || is_condition(branch);
    };
    switch (policy_.nodes[id].op) {
      case Op::literal:
      case Op::variable:
      case Op::negate:
      case Op::add:
      case Op::subtract:
      case Op::multiply:
      case Op::attribute:
      case Op::get_tag:
      case Op::set:
      case Op::record:
        return false;
      case Op::if_then_else:
        return is_bool(policy_.nodes[id].operands[1]) && is_bool(policy_.nodes[id].operands[2]);
      case Op::call: {
        static constexpr std::string_view tests[] = {"lessThan",           "lessThanOrEqual", "greaterThan",
                                                     "greaterThanOrEqual", "isIpv4",          "isIpv6",
                                                     "isLoopback",         "isMulticast",     "isInRange"};
        return std::find(std::begin(tests), std::end(tests), policy_.nodes[id].function->name) != std::end(tests);
      }
      default:
        return true;
    }
  }

  Result<Truth> truth(NodeId id, std::size_t depth) {
    if (depth > sql_depth_max) return cannot(id, fmt::format("conditions are nested more than {} deep", sql_depth_max));
    const Node& node = policy_.nodes[id];
    if (!is_condition(id) && node.op != Op::if_then_else) return condition(CRETO_TRY(scalar(id)));
    switch (node.op) {
      case Op::all_of:
      case Op::any_of: {
        if (node.operands.size() > chain_max) return cannot(id, fmt::format("it is longer than {}", chain_max));
        std::vector<Truth> operands;
        for (const NodeId operand : node.operands) {
          Truth one = CRETO_TRY(truth(operand, depth + 1));
          operands.push_back(std::move(one));
        }
        return chain(operands, node.op == Op::all_of);
      }
      case Op::logical_not:
        return negated(CRETO_TRY(truth(node.operands[0], depth + 1)));
      case Op::if_then_else: {
        const Truth chosen = CRETO_TRY(truth(node.operands[0], depth + 1));
        const Truth then = CRETO_TRY(truth(node.operands[1], depth + 1));
        const Truth otherwise = CRETO_TRY(truth(node.operands[2], depth + 1));
        const auto either = [&](Pred Truth::* part) {
          return any({all({chosen.yes, then.*part}), all({chosen.no, otherwise.*part})});
        };
        const bool certain =
            is(then.defined, Predicate::Kind::always) && is(otherwise.defined, Predicate::Kind::always);
        return Truth{either(&Truth::yes), either(&Truth::no), certain ? chosen.defined : either(&Truth::defined)};
      }
      case Op::equal:
        return equal(node, depth);
      case Op::not_equal:
        return negated(CRETO_TRY(equal(node, depth)));
      case Op::less:
        return ordered(id, "<", false);
      case Op::less_equal:
        return ordered(id, "<=", false);
      case Op::greater:
        return ordered(id, ">", false);
      case Op::greater_equal:
        return ordered(id, ">=", false);
      case Op::in:
        return in(id);
      case Op::is:
        return is_type(id);
      case Op::like:
        return like(id);
      case Op::has:
        return has(id);
      case Op::has_tag: {
        const SqlAttribute* tag = CRETO_TRY(mapped_tag(id));
        return present(*tag);
      }
      case Op::contains:
      case Op::contains_all:
      case Op::contains_any:
        return contains(id);
      case Op::is_empty: {
        const auto* attribute = CRETO_TRY(mapped(node.operands[0]));
        const auto* set = attribute ? std::get_if<SqlSet>(attribute) : nullptr;
        if (!set) return cannot(id, "it is no set of the mapping");
        const Pred filled = leaf({fmt::format("{} IN (SELECT t.{} FROM {} AS t)", mapping_.id, set->key, set->table)});
        return Truth{not_true(filled), filled, constant(true)};
      }
      case Op::call:
        return call(id);
      default:
        return cannot(id, reason(node));
    }
  }

  /// A value or column as a condition.
  static Truth condition(const Scalar& scalar) {
    if (scalar.kind == Scalar::Kind::column) return truth_of(scalar.column);
    const bool* truth = scalar.value ? scalar.value->as<bool>() : nullptr;
    return truth ? always(*truth) : errs();
  }
  static bool is_bool(const Scalar& scalar) {
    if (scalar.kind == Scalar::Kind::column) return is_truth(scalar.column.type);
    return scalar.value && scalar.value->as<bool>();
  }

  Result<Truth> equal(const Node& node, std::size_t depth) {
    struct Side {
      Scalar scalar;
      std::optional<Truth> truth;  ///< of a bool
      Pred defined;
    };
    const auto side = [&](NodeId id) -> Result<Side> {
      Side side;
      if (is_condition(id)) {
        side.truth = CRETO_TRY(truth(id, depth + 1));
      } else {
        side.scalar = CRETO_TRY(scalar(id));
        if (is_bool(side.scalar)) side.truth = condition(side.scalar);
      }
      side.defined = side.truth                                 ? side.truth->defined
                     : side.scalar.kind == Scalar::Kind::column ? cedar::defined(side.scalar.column)
                                                                : constant(side.scalar.kind == Scalar::Kind::value);
      return side;
    };
    const Side left = CRETO_TRY(side(node.operands[0]));
    const Side right = CRETO_TRY(side(node.operands[1]));
    const Pred both = all({left.defined, right.defined});
    if (left.truth && right.truth) {
      return Truth{any({all({left.truth->yes, right.truth->yes}), all({left.truth->no, right.truth->no})}),
                   any({all({left.truth->yes, right.truth->no}), all({left.truth->no, right.truth->yes})}), both};
    }
    using Kind = Scalar::Kind;
    const bool columns = left.scalar.kind == Kind::column && right.scalar.kind == Kind::column;
    if (left.truth || right.truth || is(both, Predicate::Kind::never)) return Truth{constant(false), both, both};
    if (columns) return compared(left.scalar.column, "=", right.scalar.column);
    if (left.scalar.kind == Kind::value && right.scalar.kind == Kind::value) {
      return always(*left.scalar.value == *right.scalar.value);
    }
    const bool left_is_value = left.scalar.kind == Kind::value;
    auto result = compared(left_is_value ? right.scalar.column : left.scalar.column, "=",
                           left_is_value ? *left.scalar.value : *right.scalar.value);
    if (!result) return cannot(node.operands[left_is_value ? 0 : 1], result.error().message());
    return result;
  }

  /// `decimals`: of the methods of decimals, whose operands must be such; else of operators, which take none.
  Result<Truth> ordered(NodeId id, std::string_view op, bool decimals) {
    const Node& node = policy_.nodes[id];
    if (is_condition(node.operands[0]) || is_condition(node.operands[1])) return errs();
    const Scalar left = CRETO_TRY(scalar(node.operands[0]));
    const Scalar right = CRETO_TRY(scalar(node.operands[1]));
    using Kind = Scalar::Kind;
    if (left.kind == Kind::errs || right.kind == Kind::errs) return errs();
    for (const Scalar* side : {&left, &right}) {
      if (side->kind != Kind::column) continue;
      const SqlType type = side->column.type;
      const bool fits = decimals ? type == SqlType::decimal
                                 : type == SqlType::integer || type == SqlType::datetime || type == SqlType::duration;
      if (!fits) return errs();
    }
    if (left.kind == Kind::column && right.kind == Kind::column) return compared(left.column, op, right.column);
    if (left.kind == Kind::column) return compared(left.column, op, *right.value);
    if (right.kind != Kind::column) return cannot(id, reason(node));
    static constexpr std::pair<std::string_view, std::string_view> turned[] = {
        {"<", ">"}, {"<=", ">="}, {">", "<"}, {">=", "<="}};
    const auto* other =
        std::find_if(std::begin(turned), std::end(turned), [op](const auto& pair) { return pair.first == op; });
    return compared(right.column, other->second, *left.value);
  }

  Result<Truth> call(NodeId id) {
    static constexpr std::pair<std::string_view, std::string_view> comparisons[] = {
        {"lessThan", "<"}, {"lessThanOrEqual", "<="}, {"greaterThan", ">"}, {"greaterThanOrEqual", ">="}};
    const Node& node = policy_.nodes[id];
    for (const auto& [name, op] : comparisons) {
      if (node.function->name == name && node.operands.size() == 2) return ordered(id, op, true);
    }
    return cannot(id, reason(node));
  }

  Result<Truth> like(NodeId id) {
    const Node& node = policy_.nodes[id];
    if (is_condition(node.operands[0])) return errs();
    const Scalar of = CRETO_TRY(scalar(node.operands[0]));
    if (of.kind != Scalar::Kind::column || of.column.type != SqlType::string) return errs();
    // SQLite's LIKE takes `a` for `A`; its GLOB does not.
    const bool glob = options_.dialect == SqlDialect::sqlite;
    std::string pattern;
    for (std::size_t i = 0; i < node.pattern.size(); ++i) {
      if (i > 0) pattern += glob ? '*' : '%';
      for (const char c : node.pattern[i]) {
        if (c == '\0') return cannot(id, "a text with a zero byte is none in SQL");
        const bool special = glob ? c == '*' || c == '?' || c == '[' : c == '%' || c == '_' || c == '!';
        if (special && !glob) pattern += '!';
        pattern += special && glob ? fmt::format("[{}]", c) : std::string(1, c);
      }
    }
    const auto pieces = [&](std::string_view negation) {
      Pieces pieces = {fmt::format("{} {}{} ", of.column.column, negation, glob ? "GLOB" : "LIKE"),
                       SqlParameter(pattern)};
      if (!glob) pieces.emplace_back(std::string(" ESCAPE '!'"));
      return pieces;
    };
    return Truth{leaf(pieces("")), leaf(pieces("NOT ")), defined(of.column)};
  }

  Result<Truth> is_type(NodeId id) {
    const Node& node = policy_.nodes[id];
    if (is_condition(node.operands[0])) return errs();
    const Scalar of = CRETO_TRY(scalar(node.operands[0]));
    const EntityUid* uid = of.value ? of.value->as<EntityUid>() : nullptr;
    const bool column = of.kind == Scalar::Kind::column && of.column.type == SqlType::entity;
    if (!uid && !column) return errs();
    const Pred certain = column ? defined(of.column) : constant(true);
    const std::string& type = uid ? uid->type : of.column.entity_type;
    if (type != node.name) return Truth{constant(false), certain, certain};
    if (node.operands.size() == 1) return Truth{certain, constant(false), certain};
    return in(id);
  }

  /// Also of `is … in`.
  Result<Truth> in(NodeId id) {
    const Node& node = policy_.nodes[id];
    if (is_condition(node.operands[0]) || is_condition(node.operands[1])) return errs();
    const Scalar left = CRETO_TRY(scalar(node.operands[0]));
    const auto* target = CRETO_TRY(mapped(node.operands[1]));
    if (const auto* set = target ? std::get_if<SqlSet>(target) : nullptr) {
      const EntityUid* uid = left.value ? left.value->as<EntityUid>() : nullptr;
      if (left.kind == Scalar::Kind::column) return cannot(id, "both sides depend on the row");
      if (!uid) return errs();
      if (set->type != SqlType::entity) return cannot(id, "its set is mapped as one without entities");
      const auto above = CRETO_TRY(self_and_above(id, *uid));
      return holds(id, *set, above);
    }
    const Scalar right = CRETO_TRY(scalar(node.operands[1]));
    using Kind = Scalar::Kind;
    if (left.kind == Kind::errs || right.kind == Kind::errs) return errs();
    const bool entity =
        left.kind == Kind::column ? left.column.type == SqlType::entity : left.value->as<EntityUid>() != nullptr;
    if (!entity) return errs();
    if (left.kind == Kind::column && right.kind == Kind::column) return cannot(id, "both sides depend on the row");
    if (right.kind == Kind::column) {
      if (right.column.type != SqlType::entity) return errs();
      const auto above = CRETO_TRY(self_and_above(id, *left.value->as<EntityUid>()));
      auto bound = parameters(right.column, above);
      if (!bound) return cannot(id, bound.error().message());
      return column_among(right.column, *bound);
    }
    if (left.kind != Kind::column) return cannot(id, reason(node));
    std::vector<EntityUid> uids;
    if (const auto* uid = right.value->as<EntityUid>()) {
      uids.push_back(*uid);
    } else if (const auto* elements = right.value->as_set()) {
      for (const Value& element : *elements) {
        const auto* one = element.as<EntityUid>();
        if (!one) return errs();
        uids.push_back(*one);
      }
    } else {
      return errs();
    }
    auto below = below_any(left.column, uids);
    if (!below) return cannot(id, below.error().message());
    return below;
  }

  Result<std::vector<EntityUid>> self_and_above(NodeId id, const EntityUid& uid) {
    if (open_above(uid)) return cannot(id, fmt::format("not all that {} is in is known", uid.to_string()));
    std::vector<EntityUid> all = {uid};
    const auto* above = CRETO_TRY(entities_.ancestors(uid));
    all.insert(all.end(), above->begin(), above->end());
    return all;
  }

  /// Whether the entity of `column` is one of `uids` or below. Errors: what the mapping does not say, without its
  /// place.
  Result<Truth> below_any(const SqlColumn& column, const std::vector<EntityUid>& uids) const {
    std::map<std::string, std::vector<EntityUid>> by_type;
    for (const EntityUid& uid : uids) by_type[uid.type].push_back(uid);
    std::vector<Pred> ways;
    for (const auto& [type, targets] : by_type) {
      const auto texts = CRETO_TRY(parameters({"", SqlType::entity, type}, targets));
      if (type == column.entity_type) ways.push_back(leaf(among(column.column, texts)));
      const auto found = mapping_.ancestors.find({column.entity_type, type});
      if (found == mapping_.ancestors.end()) {
        return bad(fmt::format("the mapping does not say which `{}` a `{}` is in", type, column.entity_type));
      }
      if (const auto* tree = std::get_if<SqlTree>(&found->second)) {
        Pieces pieces = {
            fmt::format("{} IN (SELECT t.{} FROM {} AS t WHERE ", column.column, tree->descendant, tree->table)};
        for (auto& piece : among("t." + tree->ancestor, texts)) pieces.push_back(std::move(piece));
        pieces.emplace_back(std::string(")"));
        ways.push_back(leaf(std::move(pieces)));
      } else if (const auto* parent = std::get_if<SqlParent>(&found->second)) {
        if (column.column != mapping_.id) return bad("a column with the parent is for the resource alone");
        ways.push_back(leaf(among(parent->column, texts)));
      }
    }
    const Pred below = any(ways);
    return Truth{below, all({defined(column), not_true(below)}), defined(column)};
  }

  // --- sets

  /// Whether the row's set has one of `values`.
  template <class Values>
  Result<Truth> holds(NodeId id, const SqlSet& set, const Values& values) const {
    auto bound = parameters({"", set.type, set.entity_type}, values);
    if (!bound) return cannot(id, bound.error().message());
    if (bound->empty()) return always(false);
    Pieces pieces = {fmt::format("{} IN (SELECT t.{} FROM {} AS t WHERE ", mapping_.id, set.key, set.table)};
    for (auto& piece : among("t." + set.value, *bound)) pieces.push_back(std::move(piece));
    pieces.emplace_back(std::string(")"));
    const Pred found = leaf(std::move(pieces));
    return Truth{found, not_true(found), constant(true)};
  }

  Result<Truth> contains(NodeId id) {
    const Node& node = policy_.nodes[id];
    const NodeId left = node.operands[0], right = node.operands[1];
    const auto* of = CRETO_TRY(mapped(left));
    if (const auto* set = of ? std::get_if<SqlSet>(of) : nullptr) {
      if (depends_[right]) return cannot(id, "both sides depend on the row");
      const Scalar wanted = CRETO_TRY(known(right));
      if (!wanted.value) return errs();
      if (is_truth(set->type)) return cannot(id, "a set of bools cannot be mapped");
      if (node.op == Op::contains) return holds(id, *set, std::vector<Value>{*wanted.value});
      const auto* elements = wanted.value->as_set();
      if (!elements) return errs();
      if (node.op == Op::contains_any) return holds(id, *set, *elements);
      std::vector<Truth> each = {always(true)};
      for (const Value& element : *elements) {
        Truth one = CRETO_TRY(holds(id, *set, std::vector<Value>{element}));
        each.push_back(std::move(one));
      }
      return chain(each, true);
    }
    if (is_condition(left)) return errs();
    const Scalar listed = CRETO_TRY(scalar(left));
    const auto* elements = listed.value ? listed.value->as_set() : nullptr;
    if (!elements) return errs();
    if (node.op == Op::contains) {
      if (is_condition(right)) return cannot(id, "a condition cannot be an element");
      const Scalar wanted = CRETO_TRY(scalar(right));
      if (wanted.kind == Scalar::Kind::errs) return errs();
      if (wanted.kind == Scalar::Kind::value) return always(listed.value->contains(*wanted.value));
      if (is_truth(wanted.column.type)) {
        const Truth truth = truth_of(wanted.column);
        const bool yes = listed.value->contains(true);
        const bool no = listed.value->contains(false);
        return Truth{any({yes ? truth.yes : constant(false), no ? truth.no : constant(false)}),
                     any({yes ? constant(false) : truth.yes, no ? constant(false) : truth.no}), truth.defined};
      }
      auto bound = parameters(wanted.column, *elements);
      if (!bound) return cannot(id, bound.error().message());
      return column_among(wanted.column, *bound);
    }
    // One that contains any of the other is contained in it.
    const auto* other = CRETO_TRY(mapped(right));
    const auto* set = other ? std::get_if<SqlSet>(other) : nullptr;
    if (!set || node.op == Op::contains_all || is_truth(set->type)) {
      return cannot(id, "a set can be asked only for what it contains");
    }
    return holds(id, *set, *elements);
  }

  // --- has

  static Truth present(const SqlAttribute& attribute) {
    if (std::holds_alternative<SqlNone>(attribute)) return always(false);
    const auto* column = std::get_if<SqlColumn>(&attribute);
    if (!column || !column->nullable) return always(true);
    return {defined(*column), leaf({column->column + " IS NULL"}), constant(true)};
  }

  /// Nothing where the mapping does not say.
  std::optional<Truth> present(const std::vector<std::string>& path) const {
    if (const SqlAttribute* attribute = lookup(path)) return present(*attribute);
    // A record is there where one of its members always is.
    for (auto at = mapping_.attributes.lower_bound(path); at != mapping_.attributes.end(); ++at) {
      const auto& [below, attribute] = *at;
      if (below.size() < path.size() || !std::equal(path.begin(), path.end(), below.begin())) break;
      const auto* column = std::get_if<SqlColumn>(&attribute);
      if (column ? !column->nullable : std::holds_alternative<SqlSet>(attribute)) return always(true);
    }
    return std::nullopt;
  }

  Result<Truth> has(NodeId id) {
    const Node& node = policy_.nodes[id];
    auto path = path_of(node.operands[0]);
    if (!path) return cannot(id, reason(policy_.nodes[node.operands[0]]));
    std::optional<Truth> of = always(true);
    if (!path->empty()) of = present(*path);
    // What stands in the middle must be an entity or a record, or asking for more of it errs.
    const auto is_scalar = [&] {
      const auto found = mapping_.attributes.find(*path);
      if (found == mapping_.attributes.end()) return false;
      const auto* column = std::get_if<SqlColumn>(&found->second);
      return column ? column->type != SqlType::entity : std::holds_alternative<SqlSet>(found->second);
    };
    bool scalar = is_scalar();
    for (std::size_t i = 0; i < node.path.size(); ++i) {
      if (i > 0) scalar = scalar || is_scalar();
      path->push_back(node.path[i]);
    }
    if (scalar) return cannot(id, "what it asks for more of is mapped as a value");
    const auto whole = present(*path);
    if (!of || !whole) return cannot(id, "the mapping does not say whether it is there");
    return Truth{all({of->yes, whole->yes}), all({of->yes, whole->no}), of->yes};
  }

  const std::string& id_;
  const PolicyAst& policy_;
  const PartialRequest& request_;
  const SqlMapping& mapping_;
  EntityView& entities_;
  const SqlOptions& options_;
  std::vector<bool> depends_;  ///< by node: whether a variable stands in it
  std::vector<bool> reads_;    ///< by node: whether it asks for entities
};

}  // namespace

Result<SqlFilter> to_sql(const PartialEvaluation& evaluation, const SqlMapping& mapping, EntityView& entities,
                         SqlOptions options) {
  using Outcome = PartialPolicy::Outcome;
  const PartialEntity& resource = evaluation.request.resource;
  if (resource.uid || resource.type.empty()) return bad("resource: must be unknown, and its type known");
  CRETO_TRY(check(mapping));
  std::vector<Pred> permits, conditions;
  const PartialDecision decision = evaluation.decision(options.erring);
  if (decision == PartialDecision::undecided) {
    for (const PartialPolicy& policy : evaluation.policies) {
      const bool permit = policy.policy->ast.effect == Effect::permit;
      if (permit && policy.outcome == Outcome::yes) permits.push_back(constant(true));
      const bool erring_counts = !permit && options.erring == ErringForbid::denies;
      if (policy.outcome != Outcome::residual || (!policy.can_apply && !erring_counts)) continue;
      const Truth truth = CRETO_TRY(Translator(policy, evaluation.request, mapping, entities, options).policy());
      if (permit) {
        permits.push_back(truth.yes);
      } else {
        const bool exact = erring_counts || is(truth.defined, Predicate::Kind::always);
        conditions.push_back(exact ? truth.no : not_true(truth.yes));
      }
    }
    if (entities.trouble()) return *entities.trouble();
    conditions.insert(conditions.begin(), any(permits));
  } else {
    conditions.push_back(constant(decision == PartialDecision::allow));
  }
  return render(all(conditions), options);
}

}  // namespace creto::authz::cedar
