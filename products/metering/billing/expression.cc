#include "billing/expression.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "creto/common/assert.h"
#include "creto/common/bytes.h"

namespace creto::metering {
namespace {

constexpr std::size_t bytes_max = 512;
constexpr std::size_t depth_max = 32;

enum class Operation : std::uint8_t {
  number,
  property,
  negate,
  add,
  subtract,
  multiply,
  divide,
  abs,
  ceil,
  floor,
  round,
  min,
  max,
};

struct Function {
  std::string_view name;
  Operation operation;
  std::size_t arguments;
};
constexpr std::array functions{Function{"abs", Operation::abs, 1},     Function{"ceil", Operation::ceil, 1},
                               Function{"floor", Operation::floor, 1}, Function{"round", Operation::round, 2},
                               Function{"min", Operation::min, 2},     Function{"max", Operation::max, 2}};

Error invalid(std::string message) {
  return Error(Product::metering, ErrorKind::invalid_input, "expression: " + std::move(message));
}

}  // namespace

struct Expression::Node {
  Operation operation = Operation::number;
  Decimal number{};
  std::string property{};
  std::vector<std::unique_ptr<const Node>> arguments{};
};

namespace {

using Node = Expression::Node;
using NodePtr = std::unique_ptr<const Node>;

/// sum := product {(+|-) product}; product := sign {(*|/) sign}; sign := [-] primary
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<NodePtr> whole() {
    NodePtr root = CRETO_TRY(sum(0));
    skip_spaces();
    if (at_ != text_.size()) return wrong("is not expected here");
    return root;
  }

 private:
  Error wrong(std::string_view rule) const {
    return invalid(fmt::format(
        "column {}: {}", at_ + 1,
        at_ < text_.size() ? fmt::format("`{}` {}", legible(text_.substr(at_, 1)), rule) : std::string("ends early")));
  }
  void skip_spaces() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }
  bool take(char c) {
    skip_spaces();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  static NodePtr node(Operation operation, NodePtr first, NodePtr second = nullptr) {
    auto made = std::make_unique<Node>();
    made->operation = operation;
    made->arguments.push_back(std::move(first));
    if (second) made->arguments.push_back(std::move(second));
    return made;
  }

  Result<NodePtr> sum(std::size_t depth) {
    if (depth > depth_max) return invalid(fmt::format("must be at most {} levels deep", depth_max));
    NodePtr left = CRETO_TRY(product(depth));
    for (;;) {
      const bool plus = take('+');
      if (!plus && !take('-')) return left;
      NodePtr right = CRETO_TRY(product(depth));
      left = node(plus ? Operation::add : Operation::subtract, std::move(left), std::move(right));
    }
  }
  Result<NodePtr> product(std::size_t depth) {
    NodePtr left = CRETO_TRY(sign(depth));
    for (;;) {
      const bool times = take('*');
      if (!times && !take('/')) return left;
      NodePtr right = CRETO_TRY(sign(depth));
      left = node(times ? Operation::multiply : Operation::divide, std::move(left), std::move(right));
    }
  }
  Result<NodePtr> sign(std::size_t depth) {
    if (!take('-')) return primary(depth);
    NodePtr value = CRETO_TRY(primary(depth));
    return node(Operation::negate, std::move(value));
  }
  Result<NodePtr> primary(std::size_t depth) {
    if (take('(')) {
      NodePtr inner = CRETO_TRY(sum(depth + 1));
      if (!take(')')) return wrong("must be `)`");
      return inner;
    }
    skip_spaces();
    if (at_ < text_.size() && (is_digit(text_[at_]) || text_[at_] == '.')) return number();
    return name(depth);
  }
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }
  static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || c == '_'; }

  Result<NodePtr> number() {
    const std::size_t begin = at_;
    while (at_ < text_.size() && (is_digit(text_[at_]) || text_[at_] == '.')) ++at_;
    auto made = std::make_unique<Node>();
    const auto value = Decimal::parse(text_.substr(begin, at_ - begin));
    if (!value) {
      at_ = begin;
      return wrong("begins no number");
    }
    made->number = *value;
    return NodePtr(std::move(made));
  }
  /// A property, plain or in double quotes, or a function.
  Result<NodePtr> name(std::size_t depth) {
    std::size_t begin = at_;
    const bool quoted = take('"');
    if (quoted) begin = at_;
    if (!quoted && (at_ >= text_.size() || !is_letter(text_[at_]))) return wrong("begins no value");
    while (at_ < text_.size() &&
           (quoted ? text_[at_] != '"' : is_letter(text_[at_]) || is_digit(text_[at_]) || text_[at_] == '.')) {
      ++at_;
    }
    const std::string_view word = text_.substr(begin, at_ - begin);
    if (word.empty() || word.size() > 64) return invalid(fmt::format("column {}: a name has 1 to 64 bytes", begin + 1));
    if (quoted && !take('"')) return wrong("must end the name");
    const bool called = !quoted && take('(');
    if (!called) {
      auto made = std::make_unique<Node>();
      made->operation = Operation::property;
      made->property = word;
      return NodePtr(std::move(made));
    }
    const auto function = std::ranges::find(functions, word, &Function::name);
    if (function == functions.end()) return invalid(fmt::format("column {}: `{}` is no function", begin + 1, word));
    NodePtr first = CRETO_TRY(sum(depth + 1));
    NodePtr second;
    if (function->arguments == 2) {
      if (!take(',')) return wrong("must be `,`");
      second = CRETO_TRY(sum(depth + 1));
    }
    if (!take(')')) return wrong("must be `)`");
    return node(function->operation, std::move(first), std::move(second));
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

Result<Decimal> value_of(const Node& node, const Expression::Lookup& lookup) {
  if (node.operation == Operation::number) return node.number;
  if (node.operation == Operation::property) {
    const std::string* text = lookup(node.property);
    if (text == nullptr) return invalid(fmt::format("there is no property `{}`", legible(node.property)));
    return Decimal::parse(*text);
  }
  const Decimal a = CRETO_TRY(value_of(*node.arguments[0], lookup));
  Decimal b;
  if (node.arguments.size() > 1) b = CRETO_TRY(value_of(*node.arguments[1], lookup));
  using enum Decimal::Rounding;
  switch (node.operation) {
    case Operation::negate:
      return a.negated();
    case Operation::add:
      return Decimal::add(a, b);
    case Operation::subtract:
      return Decimal::subtract(a, b);
    case Operation::multiply:
      return Decimal::multiply(a, b);
    case Operation::divide:
      return Decimal::divide(a, b);
    case Operation::abs:
      return a.is_negative() ? a.negated() : a;
    case Operation::ceil:
      return a.round(0, a.is_negative() ? down : up);
    case Operation::floor:
      return a.round(0, a.is_negative() ? up : down);
    case Operation::round: {
      const std::int64_t places = CRETO_TRY(b.to_integer());
      if (places < 0 || places > 28) return invalid("round: places must be 0 to 28");
      return a.round(static_cast<int>(places), half_up);
    }
    case Operation::min:
      return std::min(a, b);
    case Operation::max:
      return std::max(a, b);
    case Operation::number:
    case Operation::property:
      break;
  }
  CRETO_ASSERT(!"every operation has a value");
  return a;
}

}  // namespace

Result<Expression> Expression::parse(std::string_view text) {
  if (text.size() > bytes_max) return invalid(fmt::format("must be at most {} bytes", bytes_max));
  NodePtr root = CRETO_TRY(Parser(text).whole());
  return Expression(std::shared_ptr<const Node>(std::move(root)));
}

Result<Decimal> Expression::evaluate(const Lookup& lookup) const { return value_of(*root_, lookup); }

}  // namespace creto::metering
