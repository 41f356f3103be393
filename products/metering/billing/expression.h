#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "creto/common/money.h"
#include "creto/common/result.h"

namespace creto::metering {

/// Arithmetic over an event's properties: "ceil(duration_ms / 1000) * memory_gb" (docs/formats.md, "Expression").
/// Numbers, properties, + - * /, parentheses, abs ceil floor round min max. At most 512 bytes, 32 levels deep.
/// Exact: only `/` (28 places, half even) and the named roundings round. Immutable; thread-safe.
class Expression {
 public:
  /// The value of a property, none where it is absent.
  using Lookup = std::function<const std::string*(std::string_view property)>;

  /// Errors: invalid_input naming the column.
  static Result<Expression> parse(std::string_view text);

  /// Errors: invalid_input where a property is absent or no decimal, on division by zero, or where an exact result does
  /// not fit 38 digits.
  Result<Decimal> evaluate(const Lookup& lookup) const;

  struct Node;

 private:
  explicit Expression(std::shared_ptr<const Node> root) : root_(std::move(root)) {}
  std::shared_ptr<const Node> root_;
};

}  // namespace creto::metering
