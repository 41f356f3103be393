#pragma once

#include <string_view>
#include <vector>

#include "cedar/ast.h"
#include "creto/common/result.h"

namespace creto::authz::cedar {

struct ParseLimits {
  std::size_t bytes_max = 1 << 20;
  std::size_t policies_max = 10'000;
  std::size_t depth_max = 120;  ///< of nested expressions; chains of && and || are not nesting
};

/// The policies of a text in Cedar's syntax, in order. All or none: what this engine does not know (templates) is an
/// error, never passed over.
/// Errors: invalid_input "line 3, column 14: found `]`, expected an expression"; too_large over a limit.
Result<std::vector<PolicyAst>> parse_policies(std::string_view text, ParseLimits limits = {});

}  // namespace creto::authz::cedar
