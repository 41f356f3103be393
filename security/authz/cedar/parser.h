#pragma once

#include <string_view>
#include <vector>

#include "cedar/ast.h"
#include "cedar/problem.h"
#include "creto/common/result.h"

namespace creto::authz::cedar {

struct ParseLimits {
  std::size_t bytes_max = 1 << 20;
  std::size_t policies_max = 10'000;
  std::size_t depth_max = 120;  ///< of nested expressions; chains of && and || are not nesting
};

/// The policies of a text in Cedar's syntax, in order. All or none; a template is an error, for it decides nothing
/// before it is linked.
/// Errors: invalid_input with every problem, one a line: "line 3, column 14: found `]`, expected an expression";
/// too_large over a limit.
Result<std::vector<PolicyAst>> parse_policies(std::string_view text, ParseLimits limits = {});

/// As above, but templates are welcome, and the problems come one by one. What follows a broken policy is read too:
/// each policy has at most one problem.
Parsed<std::vector<PolicyAst>> parse_policies_and_templates(std::string_view text, ParseLimits limits = {});

/// One expression, as it stands in a condition; its root is the last of the nodes.
Parsed<std::vector<Node>> parse_expression(std::string_view text, ParseLimits limits = {});

}  // namespace creto::authz::cedar
