#include "cedar/format.h"

#include <fmt/format.h>

#include <algorithm>

#include "cedar/lexer.h"
#include "cedar/text.h"
#include "creto/common/assert.h"

namespace creto::authz::cedar {
namespace {

// --- from the tree
// ----------------------------------------------------------------------------------------------------

/// How tightly an expression's outermost operator binds; the levels of the grammar.
enum Level : int { conditional, any_level, all_level, relation, sum, product, unary, member };

class Printer {
 public:
  explicit Printer(const std::vector<Node>& nodes) : nodes_(nodes) {}

  std::string out;

  /// In parentheses where the expression binds less tightly than `least`.
  void print(NodeId id, int least) {
    const bool enclosed = level(nodes_[id]) < least;
    if (enclosed) out += '(';
    print(nodes_[id]);
    if (enclosed) out += ')';
  }

 private:
  static int level(const Node& node) {
    switch (node.op) {
      case Op::if_then_else:
        return conditional;
      case Op::any_of:
        return any_level;
      case Op::all_of:
        return all_level;
      case Op::equal:
      case Op::not_equal:
      case Op::less:
      case Op::less_equal:
      case Op::greater:
      case Op::greater_equal:
      case Op::in:
      case Op::is:
      case Op::like:
      case Op::has:
        return relation;
      case Op::add:
      case Op::subtract:
        return sum;
      case Op::multiply:
        return product;
      case Op::logical_not:
      case Op::negate:
        return unary;
      case Op::literal:
        if (const auto* number = node.value->as<std::int64_t>(); number && *number < 0) return unary;
        return member;
      default:
        return member;
    }
  }

  void binary(const Node& node, std::string_view op, int left, int right) {
    print(node.operands[0], left);
    out += fmt::format(" {} ", op);
    print(node.operands[1], right);
  }
  void chain(const Node& node, std::string_view op, int least) {
    for (std::size_t i = 0; i < node.operands.size(); ++i) {
      if (i > 0) out += op;
      print(node.operands[i], least);
    }
  }
  void list(const Node& node, std::size_t first) {
    for (std::size_t i = first; i < node.operands.size(); ++i) {
      if (i > first) out += ", ";
      print(node.operands[i], conditional);
    }
  }
  void method(const Node& node, std::string_view name) {
    print(node.operands[0], member);
    out += fmt::format(".{}(", name);
    list(node, 1);
    out += ')';
  }
  static bool is_name(std::string_view text) { return is_identifier(text) && !is_reserved(text); }

  /// Up to four in a row stand without parentheses.
  void negation(const Node& node) {
    const Node* at = &node;
    int count = 1;
    out += '!';
    while (count < 4 && nodes_[at->operands[0]].op == Op::logical_not) {
      at = &nodes_[at->operands[0]];
      out += '!';
      ++count;
    }
    print(at->operands[0], member);
  }

  void pattern(const Pattern& pattern) {
    out += '"';
    for (std::size_t i = 0; i < pattern.size(); ++i) {
      if (i > 0) out += '*';
      const std::string quoted = quote(pattern[i]);
      for (const char c : std::string_view(quoted).substr(1, quoted.size() - 2)) {
        if (c == '*') out += '\\';
        out += c;
      }
    }
    out += '"';
  }

  void print(const Node& node) {
    switch (node.op) {
      case Op::literal:
        out += node.value->to_string();
        return;
      case Op::variable: {
        static constexpr std::string_view names[] = {"principal", "action", "resource", "context"};
        out += names[static_cast<int>(node.variable)];
        return;
      }
      case Op::all_of:
        return chain(node, " && ", relation);
      case Op::any_of:
        return chain(node, " || ", all_level);
      case Op::logical_not:
        return negation(node);
      case Op::negate: {
        // A number right behind the sign would be read as one negative number.
        const Node& operand = nodes_[node.operands[0]];
        const bool number = operand.op == Op::literal && operand.value->as<std::int64_t>();
        out += number ? "-(" : "-";
        print(node.operands[0], number ? conditional : member);
        if (number) out += ')';
        return;
      }
      case Op::if_then_else:
        out += "if ";
        print(node.operands[0], conditional);
        out += " then ";
        print(node.operands[1], conditional);
        out += " else ";
        return print(node.operands[2], conditional);
      case Op::equal:
        return binary(node, "==", sum, sum);
      case Op::not_equal:
        return binary(node, "!=", sum, sum);
      case Op::less:
        return binary(node, "<", sum, sum);
      case Op::less_equal:
        return binary(node, "<=", sum, sum);
      case Op::greater:
        return binary(node, ">", sum, sum);
      case Op::greater_equal:
        return binary(node, ">=", sum, sum);
      case Op::in:
        return binary(node, "in", sum, sum);
      case Op::add:
        return binary(node, "+", sum, product);
      case Op::subtract:
        return binary(node, "-", sum, product);
      case Op::multiply:
        return binary(node, "*", product, unary);
      case Op::is:
        print(node.operands[0], sum);
        out += " is " + node.name;
        if (node.operands.size() == 1) return;
        out += " in ";
        return print(node.operands[1], sum);
      case Op::like:
        print(node.operands[0], sum);
        out += " like ";
        return pattern(node.pattern);
      case Op::has:
        print(node.operands[0], sum);
        out += " has ";
        for (std::size_t i = 0; i < node.path.size(); ++i) {
          if (i > 0) out += '.';
          out += is_name(node.path[i]) ? node.path[i] : quote(node.path[i]);
        }
        return;
      case Op::attribute:
        print(node.operands[0], member);
        out += is_name(node.name) ? "." + node.name : "[" + quote(node.name) + "]";
        return;
      case Op::contains:
        return method(node, "contains");
      case Op::contains_all:
        return method(node, "containsAll");
      case Op::contains_any:
        return method(node, "containsAny");
      case Op::is_empty:
        return method(node, "isEmpty");
      case Op::has_tag:
        return method(node, "hasTag");
      case Op::get_tag:
        return method(node, "getTag");
      case Op::set:
        out += '[';
        list(node, 0);
        out += ']';
        return;
      case Op::record:
        out += '{';
        for (std::size_t i = 0; i < node.operands.size(); ++i) {
          if (i > 0) out += ", ";
          out += is_name(node.path[i]) ? node.path[i] : quote(node.path[i]);
          out += ": ";
          print(node.operands[i], conditional);
        }
        out += '}';
        return;
      case Op::call:
        if (node.function->is_method) return method(node, node.function->name);
        out += node.function->name;
        out += '(';
        list(node, 0);
        out += ')';
        return;
    }
    CRETO_ASSERT(false);
  }

  const std::vector<Node>& nodes_;
};

// --- layout
// -----------------------------------------------------------------------------------------------------------

/// Text with places where a line may break: all breaks of a group, or none.
class Layout {
 public:
  explicit Layout(FormatOptions options) : options_(options) {}

  void text(std::string_view text) { parts_.push_back({Part::Kind::text, std::string(text)}); }
  void space() { parts_.push_back({Part::Kind::space, " "}); }
  /// A line break, or else a space or nothing.
  void line(bool spaced = true) { parts_.push_back({Part::Kind::line, spaced ? " " : ""}); }
  /// A line break, whatever the width; it breaks all groups around it.
  void hard_line() {
    parts_.push_back({Part::Kind::hard_line, ""});
    for (const std::size_t group : open_) parts_[group].broken = true;
  }
  void blank_line() {
    hard_line();
    parts_.push_back({Part::Kind::blank_line, ""});
  }
  void open() {
    open_.push_back(parts_.size());
    parts_.push_back({Part::Kind::open, ""});
  }
  void close() {
    parts_[open_.back()].end = parts_.size();
    open_.pop_back();
    parts_.push_back({Part::Kind::close, ""});
  }
  void indent() { parts_.push_back({Part::Kind::indent, ""}); }
  void dedent() { parts_.push_back({Part::Kind::dedent, ""}); }

  std::string print() const {
    std::string out;
    std::size_t column = 0;
    std::size_t depth = 0;
    std::vector<bool> broken{true};
    bool fresh = true;  // nothing stands on the current line yet, not even its indentation
    bool begun = false;
    const auto put = [&](std::string_view text) {
      if (std::exchange(fresh, false) && begun) {
        out += '\n';
        out.append(depth * options_.indent, ' ');
        column = depth * options_.indent;
      }
      begun = true;
      out += text;
      const auto newline = text.rfind('\n');
      column = newline == std::string_view::npos ? column + text.size() : text.size() - newline - 1;
    };
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const Part& part = parts_[i];
      switch (part.kind) {
        case Part::Kind::text:
          put(part.text);
          break;
        case Part::Kind::space:
          if (!fresh) put(part.text);
          break;
        case Part::Kind::line:
          if (broken.back()) {
            fresh = true;
          } else if (!fresh && !part.text.empty()) {
            put(part.text);
          }
          break;
        case Part::Kind::hard_line:
          fresh = true;
          break;
        case Part::Kind::blank_line:
          if (begun && !out.ends_with('\n')) out += '\n';
          break;
        case Part::Kind::open:
          broken.push_back(part.broken || !fits(i, fresh ? depth * options_.indent : column));
          break;
        case Part::Kind::close:
          broken.pop_back();
          break;
        case Part::Kind::indent:
          ++depth;
          break;
        case Part::Kind::dedent:
          --depth;
          break;
      }
    }
    if (begun) out += '\n';
    return out;
  }

 private:
  struct Part {
    enum class Kind : std::uint8_t { text, space, line, hard_line, blank_line, open, close, indent, dedent };
    Kind kind;
    std::string text;
    bool broken = false;  ///< open: a hard line is in it
    std::size_t end = 0;  ///< open: its `close`
  };

  /// Whether the group at `open` goes on one line from `column` on, with what follows it up to the next break.
  bool fits(std::size_t open, std::size_t column) const {
    for (std::size_t i = open; i < parts_.size() && column <= options_.width; ++i) {
      const Part& part = parts_[i];
      const bool inside = i < parts_[open].end;
      if (part.kind == Part::Kind::hard_line || (!inside && part.kind == Part::Kind::line)) return true;
      column += part.text.size();
    }
    return column <= options_.width;
  }

  const FormatOptions options_;
  std::vector<Part> parts_;
  std::vector<std::size_t> open_;
};

/// Lays tokens out, each with the comments around it. The text was parsed before: what is expected is there.
class TokenLayout : protected TokenReader {
 public:
  TokenLayout(const Lexed& lexed, FormatOptions options)
      : TokenReader(lexed.tokens), layout_(options), comments_(lexed.comments) {}

  std::string print() const { return layout_.print(); }

 protected:
  void token(bool with_trailing_comments = true) {
    leading_comments(false);
    const Token& token = next();
    if (token.kind == TokenKind::string) {
      layout_.text(fmt::format("\"{}\"", token.text));
    } else {
      layout_.text(token.text);
    }
    last_line_ = token.where.line + static_cast<std::uint32_t>(std::count(token.text.begin(), token.text.end(), '\n'));
    if (with_trailing_comments) trailing_comments();
  }
  bool token_if(std::string_view symbol) { return is_symbol(symbol) && (token(), true); }
  bool word_if(std::string_view word) { return is_word(word) && (token(), true); }

  /// Comments on lines of their own before the next token; between statements the blank lines around them stay.
  void leading_comments(bool keep_gaps) {
    for (; next_comment_ < comments_.size() && comments_[next_comment_].before <= at(); ++next_comment_) {
      const Comment& comment = comments_[next_comment_];
      layout_.hard_line();
      if (keep_gaps && last_line_ > 0 && comment.where.line > last_line_ + 1) layout_.blank_line();
      layout_.text(trimmed(comment.text));
      layout_.hard_line();
      last_line_ = comment.where.line;
      after_comment_ = true;
    }
    if (keep_gaps && std::exchange(after_comment_, false) && !at_end() && peek().where.line > last_line_ + 1) {
      layout_.blank_line();
    }
    if (!keep_gaps) after_comment_ = false;
  }
  /// Comments behind the last token, on its line.
  void trailing_comments() {
    for (; next_comment_ < comments_.size() && comments_[next_comment_].before <= at() &&
           comments_[next_comment_].where.line == last_line_;
         ++next_comment_) {
      layout_.space();
      layout_.text(trimmed(comments_[next_comment_].text));
      layout_.hard_line();
    }
  }

  /// Items with commas between two brackets, on one line or each on its own.
  template <class Item>
  void bracketed(std::string_view close, bool padded, Item item) {
    layout_.open();
    token();
    if (!is_symbol(close)) {
      layout_.indent();
      layout_.line(padded);
      while (!is_symbol(close)) {
        item();
        if (!token_if(",") || is_symbol(close)) continue;
        layout_.line();
      }
      layout_.dedent();
      layout_.line(padded);
    }
    token(false);
    layout_.close();
    trailing_comments();  // behind the group, which they need not break
  }

  void annotations() {
    while (is_symbol("@")) {
      token();
      token();
      if (is_symbol("(")) {
        token();
        token();
        token();
      }
      layout_.hard_line();
    }
  }
  /// Names and a quoted id joined by `::`.
  void path() {
    token();
    while (token_if("::")) token();
  }

  Layout layout_;

 private:
  static std::string_view trimmed(std::string_view comment) {
    const auto end = comment.find_last_not_of(" \t\r\f\v");
    return comment.substr(0, end + 1);
  }

  const std::vector<Comment>& comments_;
  std::size_t next_comment_ = 0;
  std::uint32_t last_line_ = 0;
  bool after_comment_ = false;
};

class PolicyLayout : public TokenLayout {
 public:
  using TokenLayout::TokenLayout;

  void run() {
    for (bool first = true; !at_end(); first = false) {
      if (!first) layout_.blank_line();
      leading_comments(true);
      policy();
    }
    leading_comments(true);
  }

 private:
  void policy() {
    annotations();
    token();
    layout_.space();
    bracketed(")", false, [&] { scope(); });
    while (is_word("when") || is_word("unless")) {
      layout_.hard_line();
      layout_.open();
      token();
      layout_.space();
      token();
      layout_.indent();
      layout_.line();
      expression();
      layout_.dedent();
      layout_.line();
      token();
      layout_.close();
    }
    token();
    layout_.hard_line();
  }

  void scope() {
    token();
    while (!is_symbol(",") && !is_symbol(")")) {
      layout_.space();
      if (is_symbol("[")) {
        bracketed("]", false, [&] { path(); });
      } else if (is_symbol("?")) {
        token();
        token();
      } else {
        path();
      }
    }
  }

  void expression() {
    if (!is_word("if")) return any_of();
    layout_.open();
    token();
    layout_.space();
    expression();
    layout_.indent();
    for (int branch = 0; branch < 2; ++branch) {
      layout_.line();
      token();
      layout_.space();
      expression();
    }
    layout_.dedent();
    layout_.close();
  }

  void any_of() {
    layout_.open();
    all_of();
    while (is_symbol("||")) {
      layout_.line();
      token();
      layout_.space();
      all_of();
    }
    layout_.close();
  }

  void all_of() {
    layout_.open();
    relation();
    while (is_symbol("&&")) {
      layout_.line();
      token();
      layout_.space();
      relation();
    }
    layout_.close();
  }

  static bool is_operator(const Token& token) {
    static constexpr std::string_view symbols[] = {"==", "!=", "<=", ">=", "<", ">", "+", "-", "*"};
    static constexpr std::string_view words[] = {"in", "is", "has", "like"};
    const auto one_of = [&](const auto& all) {
      return std::find(std::begin(all), std::end(all), token.text) != std::end(all);
    };
    return token.kind == TokenKind::symbol ? one_of(symbols) : token.kind == TokenKind::identifier && one_of(words);
  }

  /// Operands with the operators between them, of relations and arithmetic.
  void relation() {
    operand();
    while (is_operator(peek())) {
      layout_.space();
      token();
      layout_.space();
      operand();
    }
  }

  void operand() {
    while (is_symbol("!") || is_symbol("-")) token();
    primary();
    while (is_symbol(".") || is_symbol("[") || is_symbol("(")) {
      if (is_symbol("(")) {
        bracketed(")", false, [&] { expression(); });
      } else if (is_symbol("[")) {
        token();
        token();
        token();
      } else {
        token();
        token();
      }
    }
  }

  void primary() {
    if (is_symbol("(")) return bracketed(")", false, [&] { expression(); });
    if (is_symbol("[")) return bracketed("]", false, [&] { expression(); });
    if (is_symbol("{")) {
      return bracketed("}", true, [&] {
        token();
        token();
        layout_.space();
        expression();
      });
    }
    path();
  }
};

class SchemaLayout : public TokenLayout {
 public:
  using TokenLayout::TokenLayout;

  void run() {
    declarations();
    leading_comments(true);
  }

 private:
  void declarations() {
    bool first = true;
    while (!at_end() && !is_symbol("}")) {
      if (!std::exchange(first, false)) layout_.blank_line();
      leading_comments(true);
      annotations();
      if (is_word("namespace")) {
        token();
        layout_.space();
        path();
        layout_.space();
        token();
        layout_.indent();
        layout_.hard_line();
        declarations();
        leading_comments(true);
        layout_.dedent();
        layout_.hard_line();
        token();
        layout_.hard_line();
      } else {
        declaration();
      }
    }
  }

  /// Up to its `;`: words with spaces between, and lists and types in brackets.
  void declaration() {
    token();
    while (!is_symbol(";")) {
      if (!is_symbol(",") && !is_symbol("}")) layout_.space();
      part();
    }
    token();
    layout_.hard_line();
  }

  void part() {
    if (is_symbol("[")) return bracketed("]", false, [&] { path(); });
    if (is_symbol("{")) return record();
    if (is_symbol("=") || is_symbol(",")) return token();
    type();
  }

  void type() {
    if (is_symbol("{")) return record();
    path();
    if (!token_if("<")) return;
    type();
    token();
  }

  /// Each attribute on its own line; those of `appliesTo` likewise.
  void record() {
    token();
    if (!is_symbol("}")) {
      layout_.indent();
      layout_.hard_line();
      while (!is_symbol("}")) {
        annotations();
        token();
        token_if("?");
        token();
        layout_.space();
        if (is_symbol("[")) {
          bracketed("]", false, [&] { path(); });
        } else {
          type();
        }
        token_if(",");
        layout_.hard_line();
      }
      leading_comments(false);
      layout_.dedent();
      layout_.hard_line();
    }
    token();
  }
};

/// The tokens and comments must be those of the text that was formatted: a formatter that loses something is worse than
/// none.
Result<std::string> unchanged(const Lexed& before, std::string text) {
  const auto after = lex(text);
  const auto same = [](const auto& a, const auto& b) { return a.text == b.text; };
  const auto same_comment = [](const Comment& a, const Comment& b) { return a.text.starts_with(b.text); };
  const bool kept =
      after &&
      std::equal(before.tokens.begin(), before.tokens.end(), after->tokens.begin(), after->tokens.end(), same) &&
      std::equal(before.comments.begin(), before.comments.end(), after->comments.begin(), after->comments.end(),
                 same_comment);
  if (!kept) return Error(Product::platform, ErrorKind::internal, "the formatter would change the meaning of the text");
  return text;
}

}  // namespace

std::string to_text(std::string_view variable, const ScopeConstraint& scope) {
  const std::string target = scope.slot               ? fmt::format("?{}", variable)
                             : scope.entities.empty() ? std::string()
                                                      : scope.entities[0].to_string();
  switch (scope.kind) {
    case ScopeConstraint::Kind::any:
      return std::string(variable);
    case ScopeConstraint::Kind::equal:
      return fmt::format("{} == {}", variable, target);
    case ScopeConstraint::Kind::in:
      return fmt::format("{} in {}", variable, target);
    case ScopeConstraint::Kind::is:
      return fmt::format("{} is {}", variable, scope.type);
    case ScopeConstraint::Kind::is_in:
      return fmt::format("{} is {} in {}", variable, scope.type, target);
    case ScopeConstraint::Kind::in_any: {
      std::string list;
      for (const EntityUid& uid : scope.entities) list += (list.empty() ? "" : ", ") + uid.to_string();
      return fmt::format("{} in [{}]", variable, list);
    }
  }
  CRETO_ASSERT(false);
  return {};
}

std::string to_text(const std::vector<Node>& nodes, NodeId expression) {
  Printer printer(nodes);
  printer.print(expression, conditional);
  return std::move(printer.out);
}

std::string to_text(const PolicyAst& policy) {
  std::string text;
  for (const auto& [key, value] : policy.annotations) {
    text += value.empty() ? fmt::format("@{}\n", key) : fmt::format("@{}({})\n", key, quote(value));
  }
  text += fmt::format("{} ({}, {}, {})", policy.effect == Effect::permit ? "permit" : "forbid",
                      to_text("principal", policy.principal), to_text("action", policy.action),
                      to_text("resource", policy.resource));
  for (const Condition& condition : policy.conditions) {
    text +=
        fmt::format("\n{} {{ {} }}", condition.unless ? "unless" : "when", to_text(policy.nodes, condition.expression));
  }
  return text + ";\n";
}

Result<std::string> format_policies(std::string_view text, FormatOptions options, ParseLimits limits) {
  if (const auto parsed = parse_policies_and_templates(text, limits); !parsed.ok()) return to_error(parsed.problems);
  const Lexed lexed = CRETO_TRY(lex(text));
  PolicyLayout layout(lexed, options);
  layout.run();
  return unchanged(lexed, layout.print());
}

Result<std::string> format_schema(std::string_view text, FormatOptions options, SchemaLimits limits) {
  if (const auto parsed = parse_schema(text, limits); !parsed.ok()) return to_error(parsed.problems);
  const Lexed lexed = CRETO_TRY(lex(text));
  SchemaLayout layout(lexed, options);
  layout.run();
  return unchanged(lexed, layout.print());
}

}  // namespace creto::authz::cedar
