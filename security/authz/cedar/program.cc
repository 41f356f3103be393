#include "cedar/program.h"

#include <algorithm>
#include <type_traits>
#include <variant>

#include "cedar/interpreter.h"
#include "creto/common/assert.h"
#include "hash.h"

namespace creto::authz::cedar {

// --- compiling

class Compiler {
 public:
  explicit Compiler(const PolicyAst& policy) : policy_(policy) {}

  Program compile() {
    program_.principal_ = scope(policy_.principal);
    program_.action_ = scope(policy_.action);
    program_.resource_ = scope(policy_.resource);
    // `when` and `unless` in turn are one conjunction.
    std::vector<std::uint32_t> conditions;
    for (const Condition& condition : policy_.conditions) {
      std::uint32_t holds = expression(condition.expression);
      if (condition.unless) holds = emit(instruction(Code::logical_not), {holds});
      conditions.push_back(holds);
    }
    if (!conditions.empty()) emit(instruction(Code::all_of), conditions);
    return std::move(program_);
  }

 private:
  using Code = Program::Code;

  Program::Scope scope(const ScopeConstraint& constraint) {
    Program::Scope scope{constraint.kind, &constraint.type, static_cast<std::uint32_t>(program_.literals_.size()),
                         static_cast<std::uint32_t>(constraint.entities.size())};
    for (const EntityUid& uid : constraint.entities) program_.literals_.push_back(&uid);
    return scope;
  }

  static Program::Instruction instruction(Code code, const Node* node = nullptr) {
    Program::Instruction made;
    made.code = code;
    made.node = node;
    return made;
  }
  static Program::Name name(const std::string& text) { return {hash_text(text), &text}; }

  std::uint32_t emit(Program::Instruction made, const std::vector<std::uint32_t>& operands) {
    made.count = static_cast<std::uint32_t>(operands.size());
    if (operands.size() <= made.operands.size()) {
      std::copy(operands.begin(), operands.end(), made.operands.begin());
    } else {
      made.operands[0] = static_cast<std::uint32_t>(program_.operands_.size());
      program_.operands_.insert(program_.operands_.end(), operands.begin(), operands.end());
    }
    program_.code_.push_back(made);
    return static_cast<std::uint32_t>(program_.code_.size() - 1);
  }

  std::uint32_t literal(const EntityUid& uid) {
    program_.literals_.push_back(&uid);
    return static_cast<std::uint32_t>(program_.literals_.size() - 1);
  }

  const EntityUid* entity_literal(NodeId id) const {
    const Node& node = policy_.nodes[id];
    return node.op == Op::literal ? node.value->as<EntityUid>() : nullptr;
  }

  std::uint32_t expression(NodeId id) {
    const Node& node = policy_.nodes[id];
    Program::Instruction made = instruction(code_of(node), &node);
    std::vector<NodeId> operands = node.operands;
    switch (node.op) {
      case Op::literal:
        if (const auto* uid = node.value->as<EntityUid>()) {
          made.code = Code::name;
          made.a = literal(*uid);
          made.uid = uid;
        } else {
          // Scalars alone: the parser makes no literal of a set or a record.
          made.constant = EntityStore().cell(*node.value);
        }
        break;
      case Op::in:
        if (in_names(node.operands[1], made)) {
          made.code = Code::in_names;
          operands.resize(1);
        }
        break;
      case Op::contains:
        // The elements need not become a set.
        if (policy_.nodes[operands[0]].op == Op::set) {
          made.code = Code::contains_element;
          const NodeId element = operands[1];
          operands = policy_.nodes[operands[0]].operands;
          operands.push_back(element);
        }
        break;
      case Op::is:
      case Op::attribute:
        made.name = name(node.name);
        break;
      case Op::has:
        made.a = static_cast<std::uint32_t>(program_.names_.size());
        for (const std::string& part : node.path) program_.names_.push_back(name(part));
        made.b = static_cast<std::uint32_t>(node.path.size());
        break;
      default:
        break;
    }
    std::vector<std::uint32_t> compiled;
    compiled.reserve(operands.size());
    for (const NodeId operand : operands) compiled.push_back(expression(operand));
    return emit(made, compiled);
  }

  /// Whether `id` is a set of entities written out, or one; then `made` has them.
  bool in_names(NodeId id, Program::Instruction& made) {
    const Node& node = policy_.nodes[id];
    std::vector<const EntityUid*> uids;
    if (const auto* uid = entity_literal(id)) uids.push_back(uid);
    if (node.op == Op::set)
      for (const NodeId operand : node.operands) uids.push_back(entity_literal(operand));
    if (uids.empty() || std::find(uids.begin(), uids.end(), nullptr) != uids.end()) return false;
    made.a = static_cast<std::uint32_t>(program_.literals_.size());
    made.b = static_cast<std::uint32_t>(uids.size());
    program_.literals_.insert(program_.literals_.end(), uids.begin(), uids.end());
    return true;
  }

  static Code code_of(const Node& node) {
    switch (node.op) {
      case Op::literal:
        return Code::constant;
      case Op::variable:
        switch (node.variable) {
          case Variable::principal:
            return Code::principal;
          case Variable::action:
            return Code::action;
          case Variable::resource:
            return Code::resource;
          case Variable::context:
            return Code::context;
        }
        break;
      case Op::all_of:
        return Code::all_of;
      case Op::any_of:
        return Code::any_of;
      case Op::logical_not:
        return Code::logical_not;
      case Op::negate:
        return Code::negate;
      case Op::if_then_else:
        return Code::if_then_else;
      case Op::equal:
        return Code::equal;
      case Op::not_equal:
        return Code::not_equal;
      case Op::less:
        return Code::less;
      case Op::less_equal:
        return Code::less_equal;
      case Op::greater:
        return Code::greater;
      case Op::greater_equal:
        return Code::greater_equal;
      case Op::add:
        return Code::add;
      case Op::subtract:
        return Code::subtract;
      case Op::multiply:
        return Code::multiply;
      case Op::in:
        return Code::in;
      case Op::is:
        return Code::is;
      case Op::like:
        return Code::like;
      case Op::has:
        return Code::has;
      case Op::attribute:
        return Code::attribute;
      case Op::contains:
        return Code::contains;
      case Op::contains_all:
        return Code::contains_all;
      case Op::contains_any:
        return Code::contains_any;
      case Op::is_empty:
        return Code::is_empty;
      case Op::has_tag:
        return Code::has_tag;
      case Op::get_tag:
        return Code::get_tag;
      case Op::set:
        return Code::set;
      case Op::record:
        return Code::record;
      case Op::call:
        return Code::call;
    }
    CRETO_ASSERT(false);
    return Code::constant;
  }

  const PolicyAst& policy_;
  Program program_;
};

Program Program::compile(const PolicyAst& policy) { return Compiler(policy).compile(); }

// --- running

void ContextView::assign(const Attributes& attributes, const Attributes::value_type* more) {
  using Entry = const Attributes::value_type*;
  by_name_.clear();
  by_name_.reserve(attributes.size() + 1);
  for (const auto& attribute : attributes) by_name_.push_back(&attribute);
  const auto ascends = [](Entry a, Entry b) { return a->first < b->first; };
  const auto not_ascending = [&](Entry a, Entry b) { return !ascends(a, b); };
  if (std::adjacent_find(by_name_.begin(), by_name_.end(), not_ascending) != by_name_.end()) {
    // The later of two with one name comes first, and stays. All lie in one array, so their order is that of addresses.
    std::sort(by_name_.begin(), by_name_.end(), [](Entry a, Entry b) {
      const int order = a->first.compare(b->first);
      return order != 0 ? order < 0 : a > b;
    });
    by_name_.erase(std::unique(by_name_.begin(), by_name_.end(), [](Entry a, Entry b) { return a->first == b->first; }),
                   by_name_.end());
  }
  if (!more) return;
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), more, ascends);
  if (at != by_name_.end() && (*at)->first == more->first) {
    *at = more;
  } else {
    by_name_.insert(at, more);
  }
}

const Value* ContextView::find(const std::string& name) const {
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                   [](const auto* entry, const std::string& wanted) { return entry->first < wanted; });
  return at == by_name_.end() || (*at)->first != name ? nullptr : &(*at)->second;
}

Value ContextView::to_record() const {
  Attributes attributes;
  attributes.reserve(by_name_.size());
  for (const auto* entry : by_name_) attributes.push_back(*entry);
  return Value::record(std::move(attributes));
}

/// Where a type stands among those that a value may have.
template <class T, class... Types>
constexpr std::size_t place_of(const std::variant<Types...>*) {
  std::size_t place = 0;
  (void)((std::is_same_v<T, Types> || (++place, false)) || ...);
  return place;
}

class Machine {
 public:
  Machine(const Program& program, Frame& frame, const EntityId* numbers)
      : program_(program), frame_(frame), numbers_(numbers) {}

  Program::Outcome run() {
    using Outcome = Program::Outcome;
    if (!matches(program_.action_, frame_.action) || !matches(program_.principal_, frame_.principal) ||
        !matches(program_.resource_, frame_.resource))
      return frame_.trouble ? Outcome::failed : Outcome::no;
    if (program_.code_.empty()) return Outcome::yes;
    const Cell holds = eval(static_cast<std::uint32_t>(program_.code_.size() - 1));
    if (holds.kind != Kind::boolean) return Outcome::failed;
    return holds.boolean ? Outcome::yes : Outcome::no;
  }

 private:
  using Code = Program::Code;
  using Kind = Cell::Kind;

  Cell name(std::uint32_t literal) const { return Cell::of(*program_.literals_.data()[literal], numbers_[literal]); }
  std::uint32_t operand_at(const Program::Instruction& at, std::uint32_t index) const {
    return at.count <= at.operands.size() ? at.operands.data()[index] : program_.operands_[at.operands[0] + index];
  }
  Cell operand(const Program::Instruction& at, std::uint32_t index) { return eval(operand_at(at, index)); }

  bool matches(const Program::Scope& scope, const Cell& entity) {
    using Scope = ScopeConstraint::Kind;
    switch (scope.kind) {
      case Scope::any:
        return true;
      case Scope::equal:
        return entity.id == numbers_[scope.first];
      case Scope::is:
        return entity.uid->type == *scope.type;
      case Scope::is_in:
        if (entity.uid->type != *scope.type) return false;
        [[fallthrough]];
      case Scope::in:
      case Scope::in_any:
        return in_names(entity, scope.first, scope.count);
    }
    CRETO_ASSERT(false);
    return false;
  }

  Cell eval(std::uint32_t index) {
    const Program::Instruction& at = program_.code_.data()[index];
    switch (at.code) {
      case Code::constant:
        return at.constant;
      case Code::name:
        return Cell::of(*at.uid, numbers_[at.a]);
      case Code::principal:
        return frame_.principal;
      case Code::action:
        return frame_.action;
      case Code::resource:
        return frame_.resource;
      case Code::context:
        return keep(frame_.context.to_record());
      case Code::all_of:
      case Code::any_of: {
        const bool decisive = at.code == Code::any_of;
        for (std::uint32_t i = 0; i < at.count; ++i) {
          const Cell value = operand(at, i);
          if (value.kind != Kind::boolean) return {};
          if (value.boolean == decisive) return value;
        }
        return Cell::of(!decisive);
      }
      case Code::logical_not: {
        const Cell value = operand(at, 0);
        return value.kind == Kind::boolean ? Cell::of(!value.boolean) : Cell();
      }
      case Code::negate: {
        const Cell value = operand(at, 0);
        std::int64_t result = 0;
        if (value.kind != Kind::integer || __builtin_sub_overflow(std::int64_t{0}, value.integer, &result)) return {};
        return Cell::of(result);
      }
      case Code::if_then_else: {
        const Cell condition = operand(at, 0);
        if (condition.kind != Kind::boolean) return {};
        return operand(at, condition.boolean ? 1 : 2);
      }
      case Code::equal:
      case Code::not_equal: {
        const Cell left = operand(at, 0);
        if (left.kind == Kind::failed) return {};
        const Cell right = operand(at, 1);
        if (right.kind == Kind::failed) return {};
        return Cell::of(equal(left, right) == (at.code == Code::equal));
      }
      case Code::less:
      case Code::less_equal:
      case Code::greater:
      case Code::greater_equal:
        return compare(at);
      case Code::add:
      case Code::subtract:
      case Code::multiply:
        return arithmetic(at);
      case Code::in: {
        const Cell entity = operand(at, 0);
        if (entity.kind != Kind::entity) return {};
        return in(entity, operand(at, 1));
      }
      case Code::in_names: {
        const Cell entity = operand(at, 0);
        if (entity.kind != Kind::entity) return {};
        return decided(in_names(entity, at.a, at.b));
      }
      case Code::is: {
        const Cell entity = operand(at, 0);
        if (entity.kind != Kind::entity) return {};
        if (entity.uid->type != *at.name.text) return Cell::of(false);
        return at.count == 1 ? Cell::of(true) : in(entity, operand(at, 1));
      }
      case Code::like: {
        const Cell text = operand(at, 0);
        if (text.kind != Kind::string) return {};
        return Cell::of(cedar::matches(at.node->pattern, *text.string));
      }
      case Code::has:
        return has(at);
      case Code::attribute: {
        const Cell of = variable_or(at);
        return attribute(of, at.name);
      }
      case Code::contains: {
        const Cell set = operand(at, 0);
        if (!is_set(set)) return {};
        const Cell element = operand(at, 1);
        if (element.kind == Kind::failed) return {};
        return Cell::of(contains(set, element));
      }
      case Code::contains_element:
        return contains_element(at);
      case Code::contains_all:
      case Code::contains_any: {
        const Cell left = operand(at, 0);
        if (!is_set(left)) return {};
        const Cell right = operand(at, 1);
        if (!is_set(right)) return {};
        return Cell::of(at.code == Code::contains_all ? contains_all(left, right) : contains_any(left, right));
      }
      case Code::is_empty: {
        const Cell set = operand(at, 0);
        return is_set(set) ? Cell::of(size_of(set) == 0) : Cell();
      }
      case Code::has_tag:
      case Code::get_tag:
        return tag(at);
      case Code::set:
      case Code::record:
      case Code::call:
        return make(at);
    }
    CRETO_ASSERT(false);
    return {};
  }

  /// The first operand, where `context` is not made into a value.
  Cell variable_or(const Program::Instruction& at) {
    const std::uint32_t index = operand_at(at, 0);
    if (program_.code_[index].code != Code::context) return eval(index);
    Cell context;
    context.kind = Kind::value;
    context.value = nullptr;
    return context;
  }

  Cell keep(Value value) {
    frame_.made.push_back(std::move(value));
    return frame_.store->cell(frame_.made.back());
  }

  Cell decided(bool answer) const { return frame_.trouble ? Cell() : Cell::of(answer); }

  // --- records and entities

  const EntityNode* node_of(const Cell& entity) {
    if (frame_.overlay) {
      const EntityNode* node = frame_.overlay->find(entity);
      return node && node->entity ? node : nullptr;
    }
    if (entity.id == no_entity) return nullptr;
    const EntityNode& node = frame_.store->node(entity.id);
    return node.entity ? &node : nullptr;
  }

  /// `absent` where there is none; failed where `of` has no attributes at all.
  enum class Found : std::uint8_t { no, yes, failed };
  Found look_up(const Cell& of, const Program::Name& name, Cell& out) {
    if (of.kind == Kind::entity) {
      const EntityNode* node = node_of(of);
      if (frame_.trouble) return Found::failed;
      if (!node) return Found::no;
      const Field* field = EntityNode::find(node->attributes, name.hash, *name.text);
      if (!field) return Found::no;
      out = field->value;
      return Found::yes;
    }
    if (of.kind != Kind::value) return Found::failed;
    if (of.value && !of.value->as_record()) return Found::failed;
    const Value* member = of.value ? of.value->attribute(*name.text) : frame_.context.find(*name.text);
    if (!member) return Found::no;
    out = frame_.store->cell(*member);
    return Found::yes;
  }

  Cell attribute(const Cell& of, const Program::Name& name) {
    Cell value;
    return look_up(of, name, value) == Found::yes ? value : Cell();
  }

  Cell has(const Program::Instruction& at) {
    Cell of = variable_or(at);
    for (std::uint32_t i = 0; i < at.b; ++i) {
      Cell next;
      const Found found = look_up(of, program_.names_[at.a + i], next);
      if (found == Found::failed) return {};
      if (found == Found::no) return Cell::of(false);
      of = next;
    }
    return Cell::of(true);
  }

  Cell tag(const Program::Instruction& at) {
    const Cell entity = operand(at, 0);
    if (entity.kind != Kind::entity) return {};
    const Cell name = operand(at, 1);
    if (name.kind != Kind::string) return {};
    const EntityNode* node = node_of(entity);
    if (frame_.trouble) return {};
    const Field* field = node ? EntityNode::find(node->tags, hash_text(*name.string), *name.string) : nullptr;
    if (at.code == Code::has_tag) return Cell::of(field != nullptr);
    return field ? field->value : Cell();
  }

  // --- the hierarchy

  static bool same(const Cell& a, const Cell& b) { return a.id == b.id && (a.id != no_entity || *a.uid == *b.uid); }

  bool is_in(const Cell& entity, const Cell& ancestor) {
    if (same(entity, ancestor)) return true;
    if (frame_.overlay) return frame_.overlay->is_below(entity, ancestor);
    if (entity.id == no_entity) return false;
    const EntityNode& node = frame_.store->node(entity.id);
    if (node.too_many_ancestors) frame_.trouble = true;
    // An ancestor is mentioned by somebody, so it has a number.
    return ancestor.id != no_entity && node.ancestors.contains(ancestor.id);
  }

  bool in_names(const Cell& entity, std::uint32_t first, std::uint32_t count) {
    for (std::uint32_t i = 0; i < count && !frame_.trouble; ++i)
      if (is_in(entity, name(first + i))) return true;
    return false;
  }

  bool is_in_any(const Cell& entity, const std::vector<EntityId>& ancestors) {
    if (entity.id == no_entity) return false;
    if (std::binary_search(ancestors.begin(), ancestors.end(), entity.id)) return true;
    const EntityNode& node = frame_.store->node(entity.id);
    if (node.too_many_ancestors) frame_.trouble = true;
    return std::any_of(ancestors.begin(), ancestors.end(), [&](EntityId id) { return node.ancestors.contains(id); });
  }

  Cell in(const Cell& entity, const Cell& target) {
    if (target.kind == Kind::entity) return decided(is_in(entity, target));
    if (!is_set(target)) return {};
    if (target.kind == Kind::entities && !frame_.overlay) return decided(is_in_any(entity, target.entities->ids));
    const std::size_t count = size_of(target);
    for (std::size_t i = 0; i < count; ++i)
      if (element_of(target, i).kind != Kind::entity) return {};
    for (std::size_t i = 0; i < count && !frame_.trouble; ++i)
      if (is_in(entity, element_of(target, i))) return decided(true);
    return decided(false);
  }

  // --- sets

  static bool is_set(const Cell& cell) {
    return cell.kind == Kind::entities || (cell.kind == Kind::value && cell.value && cell.value->as_set());
  }
  static std::size_t size_of(const Cell& set) {
    return set.kind == Kind::entities ? set.entities->ids.size() : set.value->as_set()->size();
  }
  Cell element_of(const Cell& set, std::size_t index) const {
    if (set.kind != Kind::entities) return frame_.store->cell((*set.value->as_set())[index]);
    const EntityId id = set.entities->ids[index];
    return Cell::of(frame_.store->node(id).uid, id);
  }

  bool contains(const Cell& set, const Cell& element) const {
    if (set.kind == Kind::entities) {
      const auto& ids = set.entities->ids;
      return element.kind == Kind::entity && std::binary_search(ids.begin(), ids.end(), element.id);
    }
    const auto& elements = *set.value->as_set();
    const auto at = std::lower_bound(elements.begin(), elements.end(), element,
                                     [](const Value& one, const Cell& wanted) { return order(one, wanted) < 0; });
    return at != elements.end() && order(*at, element) == 0;
  }

  /// Both hold each element once.
  bool contains_all(const Cell& set, const Cell& wanted) const {
    const std::size_t count = size_of(wanted);
    if (count > size_of(set)) return false;
    for (std::size_t i = 0; i < count; ++i)
      if (!contains(set, element_of(wanted, i))) return false;
    return true;
  }

  bool contains_any(const Cell& a, const Cell& b) const {
    if (size_of(a) < size_of(b)) return contains_any(b, a);
    const std::size_t count = size_of(b);
    for (std::size_t i = 0; i < count; ++i)
      if (contains(a, element_of(b, i))) return true;
    return false;
  }

  /// By the order that values have, in which the elements of a set stand.
  static std::strong_ordering order(const Value& value, const Cell& cell) {
    const auto compare = [&]<class T>(const T& other) -> std::strong_ordering {
      const T* same = value.as<T>();
      return same ? *same <=> other : value.rep().index() <=> place_of<T>(&value.rep());
    };
    switch (cell.kind) {
      case Kind::boolean:
        return compare(cell.boolean);
      case Kind::integer:
        return compare(cell.integer);
      case Kind::string:
        return compare(*cell.string);
      case Kind::entity:
        return compare(*cell.uid);
      default:
        return value <=> value_of(cell);
    }
  }

  Cell contains_element(const Program::Instruction& at) {
    // Every element is worth something, and then the one that is looked for: an error anywhere is an error.
    std::array<Cell, 16> few;
    std::vector<Cell> many;
    if (at.count > few.size()) many.resize(at.count);
    const std::span<Cell> cells = many.empty() ? std::span(few).first(at.count) : std::span(many);
    for (std::uint32_t i = 0; i < at.count; ++i) {
      cells[i] = operand(at, i);
      if (cells[i].kind == Kind::failed) return {};
    }
    const Cell& wanted = cells.back();
    return Cell::of(std::any_of(cells.begin(), cells.end() - 1, [&](const Cell& cell) { return equal(cell, wanted); }));
  }

  // --- values

  static const Value& value_of(const Cell& cell) {
    return cell.kind == Kind::entities ? *cell.entities->value : *cell.value;
  }

  static bool equal(const Cell& a, const Cell& b) {
    const auto boxed = [](const Cell& cell) { return cell.kind == Kind::value || cell.kind == Kind::entities; };
    if (boxed(a) && boxed(b)) return value_of(a) == value_of(b);
    if (a.kind != b.kind) return false;
    switch (a.kind) {
      case Kind::boolean:
        return a.boolean == b.boolean;
      case Kind::integer:
        return a.integer == b.integer;
      case Kind::string:
        return *a.string == *b.string;
      case Kind::entity:
        return same(a, b);
      default:
        return false;
    }
  }

  Cell compare(const Program::Instruction& at) {
    const Cell left = operand(at, 0);
    if (left.kind == Kind::failed) return {};
    const Cell right = operand(at, 1);
    std::strong_ordering order = std::strong_ordering::equal;
    if (left.kind == Kind::integer && right.kind == Kind::integer) {
      order = left.integer <=> right.integer;
    } else if (left.kind == Kind::value && right.kind == Kind::value) {
      const Value& a = *left.value;
      const Value& b = *right.value;
      const bool ordered = a.as<DatetimeValue>() || a.as<DurationValue>();
      if (!ordered || a.rep().index() != b.rep().index()) return {};
      order = a <=> b;
    } else {
      return {};
    }
    switch (at.code) {
      case Code::less:
        return Cell::of(order < 0);
      case Code::less_equal:
        return Cell::of(order <= 0);
      case Code::greater:
        return Cell::of(order > 0);
      default:
        return Cell::of(order >= 0);
    }
  }

  Cell arithmetic(const Program::Instruction& at) {
    const Cell left = operand(at, 0);
    if (left.kind != Kind::integer) return {};
    const Cell right = operand(at, 1);
    if (right.kind != Kind::integer) return {};
    std::int64_t result = 0;
    bool overflow = false;
    switch (at.code) {
      case Code::add:
        overflow = __builtin_add_overflow(left.integer, right.integer, &result);
        break;
      case Code::subtract:
        overflow = __builtin_sub_overflow(left.integer, right.integer, &result);
        break;
      default:
        overflow = __builtin_mul_overflow(left.integer, right.integer, &result);
    }
    return overflow ? Cell() : Cell::of(result);
  }

  static Value to_value(const Cell& cell) {
    switch (cell.kind) {
      case Kind::boolean:
        return cell.boolean;
      case Kind::integer:
        return cell.integer;
      case Kind::string:
        return *cell.string;
      case Kind::entity:
        return *cell.uid;
      default:
        return value_of(cell);
    }
  }

  /// What only a value can hold; the one place that allocates.
  Cell make(const Program::Instruction& at) {
    std::vector<Value> values;
    values.reserve(at.count);
    for (std::uint32_t i = 0; i < at.count; ++i) {
      const Cell cell = operand(at, i);
      if (cell.kind == Kind::failed) return {};
      values.push_back(to_value(cell));
    }
    if (at.code == Code::set) return keep(Value::set(std::move(values)));
    if (at.code == Code::record) {
      Attributes attributes;
      attributes.reserve(values.size());
      for (std::size_t i = 0; i < values.size(); ++i) attributes.emplace_back(at.node->path[i], std::move(values[i]));
      return keep(Value::record(std::move(attributes)));
    }
    if (values.size() != at.node->function->arity) return {};
    auto result = at.node->function->call(values);
    return result ? keep(*std::move(result)) : Cell();
  }

  const Program& program_;
  Frame& frame_;
  const EntityId* const numbers_;
};

Program::Outcome Program::run(Frame& frame, const EntityId* numbers) const {
  return Machine(*this, frame, numbers).run();
}

}  // namespace creto::authz::cedar
