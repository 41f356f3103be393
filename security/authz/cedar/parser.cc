#include "cedar/parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>

#include "cedar/lexer.h"
#include "cedar/text.h"

namespace creto::authz::cedar {
namespace {

/// Recursive descent, one method for each level of Cedar's grammar; `Nesting` bounds the recursion.
class Parser : private TokenReader {
 public:
  Parser(const std::vector<Token>& tokens, ParseLimits limits) : TokenReader(tokens), limits_(limits) {}

  Parsed<std::vector<PolicyAst>> policies() {
    Parsed<std::vector<PolicyAst>> all;
    while (!at_end()) {
      if (all.value.size() + all.problems.size() == limits_.policies_max) {
        all.problems.push_back({peek().where, fmt::format("more than {} policies in one text", limits_.policies_max)});
        break;
      }
      const std::size_t begin = at();
      if (const auto parsed = policy(); !parsed) {
        all.problems.push_back(problem_of(parsed.error()));
        skip_policy(begin);
      } else {
        all.value.push_back(std::move(policy_));
      }
    }
    return all;
  }

  Parsed<std::vector<Node>> lone_expression() {
    Parsed<std::vector<Node>> result;
    const auto parsed = [&]() -> Result<> {
      CRETO_TRY(expression());
      if (!at_end()) return unexpected("an operator or the end of the text");
      return check_depth();
    }();
    if (!parsed) result.problems.push_back(problem_of(parsed.error()));
    result.value = std::move(policy_.nodes);
    return result;
  }

 private:
  /// To where the next policy seems to begin: behind a `;`, or at an annotation or `permit (` after the place where the
  /// broken one began.
  void skip_policy(std::size_t begin) {
    while (!at_end()) {
      const bool effect = (is_word("permit") || is_word("forbid")) && is_symbol("(", 1);
      if (at() > begin && (effect || is_symbol("@"))) return;
      if (take_symbol(";")) return;
      next();
    }
  }

  // --- names and entities
  // -----------------------------------------------------------------------------------------------

  struct PathOrEntity {
    std::string path;
    std::optional<EntityUid> entity;
    Position where;
  };

  /// `A::B` or `A::B::"id"`.
  Result<PathOrEntity> path_or_entity(std::string_view expected) {
    PathOrEntity result;
    result.where = peek().where;
    result.path = CRETO_TRY(identifier(expected));
    while (take_symbol("::")) {
      if (peek().kind == TokenKind::string) {
        std::string id = CRETO_TRY(unescape_string(next()));
        result.entity = EntityUid{result.path, std::move(id)};
        return result;
      }
      const std::string part = CRETO_TRY(identifier("a name or a quoted entity id after `::`"));
      result.path += "::" + part;
    }
    return result;
  }

  Result<std::string> type_path() {
    auto parsed = CRETO_TRY(path_or_entity("an entity type"));
    if (parsed.entity) {
      return error_at(parsed.where,
                      fmt::format("found the entity {}, expected an entity type", parsed.entity->to_string()));
    }
    return std::move(parsed.path);
  }

  Result<EntityUid> entity() {
    if (is_symbol("?")) return slot_out_of_place();
    auto parsed = CRETO_TRY(path_or_entity("an entity such as Type::\"id\""));
    if (!parsed.entity) {
      return error_at(parsed.where,
                      fmt::format("found `{}`, expected an entity such as {}::\"id\"", parsed.path, parsed.path));
    }
    return *std::move(parsed.entity);
  }

  Error slot_out_of_place() const {
    return error_at(peek().where, fmt::format("found the slot `?{}`: a slot may only stand after `==` or `in` of the "
                                              "principal (`?principal`) or the resource (`?resource`)",
                                              peek(1).text.substr(0, 60)));
  }

  // --- policies
  // ---------------------------------------------------------------------------------------------------------

  Result<> policy() {
    policy_ = PolicyAst{};
    policy_.where = peek().where;
    CRETO_TRY(annotations(policy_.annotations));

    if (take_word("permit")) {
      policy_.effect = Effect::permit;
    } else if (take_word("forbid")) {
      policy_.effect = Effect::forbid;
    } else {
      return unexpected("`permit`, `forbid` or an annotation");
    }
    CRETO_TRY(expect("("));
    policy_.principal = CRETO_TRY(scope("principal"));
    CRETO_TRY(expect(","));
    policy_.action = CRETO_TRY(action_scope());
    CRETO_TRY(expect(","));
    policy_.resource = CRETO_TRY(scope("resource"));
    take_symbol(",");
    CRETO_TRY(expect(")"));

    while (is_word("when") || is_word("unless")) {
      Condition condition;
      condition.unless = next().text == "unless";
      CRETO_TRY(expect("{"));
      condition.expression = CRETO_TRY(expression());
      CRETO_TRY(expect("}", "`}` or an operator"));
      policy_.conditions.push_back(condition);
    }
    CRETO_TRY(expect(";", "`when`, `unless` or `;`"));
    return check_depth();
  }

  /// Long chains of operators nest without recursion here, but with recursion in whoever walks them.
  Result<> check_depth() const {
    std::vector<std::size_t> depth(policy_.nodes.size(), 1);
    for (std::size_t i = 0; i < depth.size(); ++i) {
      for (const NodeId operand : policy_.nodes[i].operands) depth[i] = std::max(depth[i], depth[operand] + 1);
      if (depth[i] <= limits_.depth_max * 5) continue;
      return error_at(policy_.nodes[i].where,
                      fmt::format("operators are nested more than {} deep", limits_.depth_max * 5));
    }
    return {};
  }

  /// The entity of a scope, or the slot that stands for it.
  Result<> scope_entity(std::string_view variable, ScopeConstraint& constraint) {
    constraint.where = constraint.type.empty() ? peek().where : constraint.where;
    if (is_symbol("?") && is_word(variable, 1)) {
      next();
      next();
      constraint.slot = true;
      return {};
    }
    EntityUid uid = CRETO_TRY(entity());
    constraint.entities.push_back(std::move(uid));
    return {};
  }

  Result<ScopeConstraint> scope(std::string_view variable) {
    if (!take_word(variable)) return unexpected(fmt::format("`{}`", variable));
    ScopeConstraint constraint;
    if (take_symbol("==")) {
      constraint.kind = ScopeConstraint::Kind::equal;
      CRETO_TRY(scope_entity(variable, constraint));
    } else if (take_word("in")) {
      constraint.kind = ScopeConstraint::Kind::in;
      CRETO_TRY(scope_entity(variable, constraint));
    } else if (take_word("is")) {
      constraint.kind = ScopeConstraint::Kind::is;
      constraint.where = peek().where;
      constraint.type = CRETO_TRY(type_path());
      if (take_word("in")) {
        constraint.kind = ScopeConstraint::Kind::is_in;
        CRETO_TRY(scope_entity(variable, constraint));
      }
    }
    return constraint;
  }

  Result<ScopeConstraint> action_scope() {
    if (!take_word("action")) return unexpected("`action`");
    ScopeConstraint constraint;
    const auto action = [&]() -> Result<> {
      const Position where = peek().where;
      EntityUid uid = CRETO_TRY(entity());
      constraint.entities.push_back(std::move(uid));
      const std::string& type = constraint.entities.back().type;
      if (type != "Action" && !type.ends_with("::Action")) {
        return error_at(where, fmt::format("found an entity of type `{}`, expected an Action", type));
      }
      return {};
    };
    if (take_symbol("==")) {
      constraint.kind = ScopeConstraint::Kind::equal;
      constraint.where = peek().where;
      CRETO_TRY(action());
    } else if (take_word("in")) {
      constraint.where = peek().where;
      if (take_symbol("[")) {
        constraint.kind = ScopeConstraint::Kind::in_any;
        CRETO_TRY(list("]", "an action", action));
      } else {
        constraint.kind = ScopeConstraint::Kind::in;
        CRETO_TRY(action());
      }
    }
    return constraint;
  }

  // --- expressions
  // ------------------------------------------------------------------------------------------------------

  NodeId add(Node node) {
    policy_.nodes.push_back(std::move(node));
    return static_cast<NodeId>(policy_.nodes.size() - 1);
  }
  NodeId add(Op op, Position where, std::vector<NodeId> operands) {
    Node node{.op = op, .where = where, .operands = std::move(operands)};
    return add(std::move(node));
  }

  class Nesting {
   public:
    explicit Nesting(Parser& parser) : parser_(parser) { ++parser_.depth_; }
    ~Nesting() { --parser_.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;
    bool too_deep() const { return parser_.depth_ > parser_.limits_.depth_max; }

   private:
    Parser& parser_;
  };

  Result<NodeId> expression() {
    const Nesting nesting(*this);
    const Position where = peek().where;
    if (nesting.too_deep()) {
      return error_at(where, fmt::format("expressions are nested more than {} deep", limits_.depth_max));
    }
    if (!take_word("if")) return any_of();
    const NodeId condition = CRETO_TRY(expression());
    if (!take_word("then")) return unexpected("`then`");
    const NodeId then = CRETO_TRY(expression());
    if (!take_word("else")) return unexpected("`else`");
    const NodeId otherwise = CRETO_TRY(expression());
    return add(Op::if_then_else, where, {condition, then, otherwise});
  }

  Result<NodeId> any_of() {
    const Position where = peek().where;
    const NodeId first = CRETO_TRY(all_of());
    std::vector<NodeId> operands = {first};
    while (take_symbol("||")) {
      const NodeId operand = CRETO_TRY(all_of());
      operands.push_back(operand);
    }
    return operands.size() == 1 ? operands[0] : add(Op::any_of, where, std::move(operands));
  }

  Result<NodeId> all_of() {
    const Position where = peek().where;
    const NodeId first = CRETO_TRY(relation());
    std::vector<NodeId> operands = {first};
    while (take_symbol("&&")) {
      const NodeId operand = CRETO_TRY(relation());
      operands.push_back(operand);
    }
    return operands.size() == 1 ? operands[0] : add(Op::all_of, where, std::move(operands));
  }

  Result<NodeId> relation() {
    const NodeId left = CRETO_TRY(sum());
    const Position where = peek().where;
    static constexpr std::pair<std::string_view, Op> comparisons[] = {{"==", Op::equal},      {"!=", Op::not_equal},
                                                                      {"<=", Op::less_equal}, {">=", Op::greater_equal},
                                                                      {"<", Op::less},        {">", Op::greater}};
    for (const auto& [symbol, op] : comparisons) {
      if (!take_symbol(symbol)) continue;
      const NodeId right = CRETO_TRY(sum());
      return add(op, where, {left, right});
    }
    if (take_symbol("=")) return error_at(where, "found `=`, expected an operator: equality is `==`");
    if (take_word("in")) {
      const NodeId right = CRETO_TRY(sum());
      return add(Op::in, where, {left, right});
    }
    if (take_word("is")) {
      Node node{.op = Op::is, .where = where, .operands = {left}};
      node.name = CRETO_TRY(type_path());
      if (take_word("in")) {
        const NodeId parent = CRETO_TRY(sum());
        node.operands.push_back(parent);
      }
      return add(std::move(node));
    }
    if (take_word("like")) {
      if (peek().kind != TokenKind::string) return unexpected("a pattern in quotes");
      Node node{.op = Op::like, .where = where, .operands = {left}};
      node.pattern = CRETO_TRY(unescape_pattern(next()));
      return add(std::move(node));
    }
    if (take_word("has")) {
      Node node{.op = Op::has, .where = where, .operands = {left}};
      if (peek().kind == TokenKind::string) {
        std::string name = CRETO_TRY(unescape_string(next()));
        node.path.push_back(std::move(name));
      } else {
        do {
          std::string name = CRETO_TRY(identifier("the name of an attribute"));
          node.path.push_back(std::move(name));
        } while (take_symbol("."));
      }
      return add(std::move(node));
    }
    return left;
  }

  Result<NodeId> sum() {
    NodeId left = CRETO_TRY(product());
    while (is_symbol("+") || is_symbol("-")) {
      const Token& op = next();
      const NodeId right = CRETO_TRY(product());
      left = add(op.text == "+" ? Op::add : Op::subtract, op.where, {left, right});
    }
    return left;
  }

  Result<NodeId> product() {
    NodeId left = CRETO_TRY(unary());
    while (is_symbol("*")) {
      const Position where = next().where;
      const NodeId right = CRETO_TRY(unary());
      left = add(Op::multiply, where, {left, right});
    }
    if (is_symbol("/") || is_symbol("%")) return error_at(peek().where, "Cedar has no division");
    return left;
  }

  Result<NodeId> unary() {
    const Position where = peek().where;
    std::size_t count = 0;
    if (is_symbol("!")) {
      while (take_symbol("!")) ++count;
      if (count > 4) return error_at(where, "more than four `!` in a row");
      NodeId node = CRETO_TRY(member());
      for (; count > 0; --count) node = add(Op::logical_not, where, {node});
      return node;
    }
    while (take_symbol("-")) ++count;
    if (count > 4) return error_at(where, "more than four `-` in a row");
    NodeId node;
    const bool is_plain_number = peek().kind == TokenKind::integer && !is_symbol(".", 1) && !is_symbol("[", 1);
    if (count > 0 && is_plain_number) {
      // The sign belongs to the number: that is how the smallest integer is written.
      node = CRETO_TRY(integer(true));
      --count;
    } else {
      node = CRETO_TRY(member());
    }
    for (; count > 0; --count) node = add(Op::negate, where, {node});
    return node;
  }

  Result<NodeId> integer(bool negative) {
    const Token& token = next();
    std::int64_t value = 0;
    for (const char c : token.text) {
      const std::int64_t d = c - '0';
      if (__builtin_mul_overflow(value, std::int64_t{10}, &value) ||
          (negative ? __builtin_sub_overflow(value, d, &value) : __builtin_add_overflow(value, d, &value))) {
        return error_at(token.where, fmt::format("`{}` does not fit into 64 bits", token.text.substr(0, 60)));
      }
    }
    return literal(Value(value), token.where);
  }

  NodeId literal(Value value, Position where) {
    Node node{.op = Op::literal, .where = where};
    node.value = std::move(value);
    return add(std::move(node));
  }

  Result<NodeId> member() {
    NodeId node = CRETO_TRY(primary());
    while (is_symbol(".") || is_symbol("[")) {
      const Token& access = next();
      if (access.text == "[") {
        if (peek().kind != TokenKind::string) return unexpected("the name of an attribute in quotes");
        std::string name = CRETO_TRY(unescape_string(next()));
        CRETO_TRY(expect("]"));
        node = attribute(node, std::move(name), access.where);
        continue;
      }
      const Position where = peek().where;
      std::string name = CRETO_TRY(identifier("the name of an attribute or method"));
      if (is_symbol("(")) {
        node = CRETO_TRY(method(node, name, where));
      } else {
        node = attribute(node, std::move(name), where);
      }
    }
    return node;
  }

  NodeId attribute(NodeId of, std::string name, Position where) {
    Node node{.op = Op::attribute, .where = where, .operands = {of}};
    node.name = std::move(name);
    return add(std::move(node));
  }

  Result<std::vector<NodeId>> arguments() {
    std::vector<NodeId> operands;
    CRETO_TRY(expect("("));
    CRETO_TRY(list(")", "an argument", [&]() -> Result<> {
      const NodeId operand = CRETO_TRY(expression());
      operands.push_back(operand);
      return {};
    }));
    return operands;
  }

  Result<NodeId> method(NodeId receiver, const std::string& name, Position where) {
    struct Builtin {
      std::string_view name;
      Op op;
      std::size_t arguments;
    };
    static constexpr Builtin builtins[] = {{"contains", Op::contains, 1},        {"containsAll", Op::contains_all, 1},
                                           {"containsAny", Op::contains_any, 1}, {"isEmpty", Op::is_empty, 0},
                                           {"hasTag", Op::has_tag, 1},           {"getTag", Op::get_tag, 1}};
    std::vector<NodeId> operands = CRETO_TRY(arguments());
    for (const Builtin& builtin : builtins) {
      if (builtin.name != name) continue;
      if (operands.size() != builtin.arguments) {
        return error_at(where, fmt::format("`{}` takes {} argument{}, got {}", name, builtin.arguments,
                                           builtin.arguments == 1 ? "" : "s", operands.size()));
      }
      operands.insert(operands.begin(), receiver);
      return add(builtin.op, where, std::move(operands));
    }
    const ExtensionFunction* function = find_extension_function(name);
    if (!function) return error_at(where, fmt::format("there is no method `{}`", name));
    if (!function->is_method) {
      return error_at(where, fmt::format("`{}` is a function: write `{}(…)`", name, name));
    }
    operands.insert(operands.begin(), receiver);
    Node node{.op = Op::call, .where = where, .operands = std::move(operands)};
    node.function = function;
    return add(std::move(node));
  }

  Result<NodeId> primary() {
    const Token& token = peek();
    switch (token.kind) {
      case TokenKind::integer:
        return integer(false);
      case TokenKind::string: {
        std::string text = CRETO_TRY(unescape_string(next()));
        return literal(Value(std::move(text)), token.where);
      }
      case TokenKind::identifier:
        return name();
      case TokenKind::symbol:
        if (token.text == "(") return parenthesised();
        if (token.text == "[") return set();
        if (token.text == "{") return record();
        if (token.text == "?") return slot_out_of_place();
        break;
      default:
        break;
    }
    return unexpected("an expression");
  }

  Result<NodeId> parenthesised() {
    next();
    const NodeId node = CRETO_TRY(expression());
    CRETO_TRY(expect(")", "`)` or an operator"));
    return node;
  }

  Result<NodeId> set() {
    const Position where = next().where;
    std::vector<NodeId> operands;
    CRETO_TRY(list("]", "an element", [&]() -> Result<> {
      const NodeId operand = CRETO_TRY(expression());
      operands.push_back(operand);
      return {};
    }));
    return add(Op::set, where, std::move(operands));
  }

  Result<NodeId> record() {
    Node node{.op = Op::record, .where = next().where};
    std::set<std::string, std::less<>> seen;
    CRETO_TRY(list("}", "an attribute", [&]() -> Result<> {
      const Token& key = peek();
      std::string name;
      if (key.kind == TokenKind::string) {
        name = CRETO_TRY(unescape_string(next()));
      } else {
        name = CRETO_TRY(identifier("the name of an attribute or `}`"));
      }
      if (!seen.insert(name).second) return error_at(key.where, fmt::format("attribute {} stands twice", quote(name)));
      CRETO_TRY(expect(":"));
      const NodeId value = CRETO_TRY(expression());
      node.operands.push_back(value);
      node.path.push_back(std::move(name));
      return {};
    }));
    return add(std::move(node));
  }

  Result<NodeId> name() {
    const Token& token = peek();
    if (token.text == "true" || token.text == "false") return literal(Value(next().text == "true"), token.where);
    static constexpr std::pair<std::string_view, Variable> variables[] = {{"principal", Variable::principal},
                                                                          {"action", Variable::action},
                                                                          {"resource", Variable::resource},
                                                                          {"context", Variable::context}};
    if (!is_symbol("::", 1) && !is_symbol("(", 1)) {
      for (const auto& [word, variable] : variables) {
        if (token.text != word) continue;
        next();
        return add(Node{.op = Op::variable, .variable = variable, .where = token.where});
      }
    }
    auto parsed = CRETO_TRY(path_or_entity("an expression"));
    if (parsed.entity) return literal(Value(*std::move(parsed.entity)), parsed.where);
    if (!is_symbol("(")) {
      return error_at(parsed.where,
                      fmt::format("`{}` is neither a variable (principal, action, resource, context) nor an "
                                  "entity ({}::\"id\") nor a call",
                                  parsed.path, parsed.path));
    }
    const ExtensionFunction* function = find_extension_function(parsed.path);
    if (!function) return error_at(parsed.where, fmt::format("there is no function `{}`", parsed.path));
    if (function->is_method) {
      return error_at(parsed.where, fmt::format("`{}` is a method: write `x.{}(…)`", parsed.path, parsed.path));
    }
    Node node{.op = Op::call, .where = parsed.where};
    node.operands = CRETO_TRY(arguments());
    node.function = function;
    return add(std::move(node));
  }

  const ParseLimits limits_;
  std::size_t depth_ = 0;
  PolicyAst policy_;
};

Result<Lexed> lex_within(std::string_view text, const ParseLimits& limits) {
  if (text.size() > limits.bytes_max) {
    return Error(Product::platform, ErrorKind::too_large,
                 fmt::format("the text of the policies is longer than {} bytes", limits.bytes_max));
  }
  return lex(text);
}

}  // namespace

Parsed<std::vector<PolicyAst>> parse_policies_and_templates(std::string_view text, ParseLimits limits) {
  const auto lexed = lex_within(text, limits);
  if (!lexed) return {{}, {{{0, 0}, std::string(lexed.error().message())}}};
  return Parser(lexed->tokens, limits).policies();
}

Result<std::vector<PolicyAst>> parse_policies(std::string_view text, ParseLimits limits) {
  const auto lexed = CRETO_TRY(lex_within(text, limits));
  auto parsed = Parser(lexed.tokens, limits).policies();
  for (const PolicyAst& policy : parsed.value) {
    if (!policy.is_template()) continue;
    parsed.problems.push_back({policy.where,
                               "this policy is a template (`?principal`, `?resource`) and decides nothing",
                               "link it to entities first"});
  }
  return std::move(parsed).result();
}

Parsed<std::vector<Node>> parse_expression(std::string_view text, ParseLimits limits) {
  const auto lexed = lex_within(text, limits);
  if (!lexed) return {{}, {{{0, 0}, std::string(lexed.error().message())}}};
  return Parser(lexed->tokens, limits).lone_expression();
}

}  // namespace creto::authz::cedar
