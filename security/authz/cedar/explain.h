#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cedar/interpreter.h"

namespace creto::authz::cedar {

/// Why one policy did or did not apply to one request.
struct PolicyExplanation {
  enum class Outcome : std::uint8_t {
    satisfied,
    scope,      ///< the principal, action or resource is another; `because` is the part of the scope
    condition,  ///< a condition failed; `because` is the smallest part of it that decided
    error,      ///< its evaluation failed; `because` says how
  };
  Outcome outcome = Outcome::satisfied;
  Position where;       ///< of what decided
  std::string because;  ///< Cedar text, or the error
  /// What stands in `because`, and its value: {"context.amount", "500"}. At most 10.
  std::vector<std::pair<std::string, std::string>> saw;
};

/// Evaluates with the interpreter. Check `entities.trouble()` before using the result.
PolicyExplanation explain(const PolicyAst& policy, const Request& request, EntityView& entities);

}  // namespace creto::authz::cedar
