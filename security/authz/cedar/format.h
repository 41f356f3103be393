#pragma once

#include <string>
#include <string_view>

#include "cedar/ast.h"
#include "cedar/parser.h"
#include "cedar/schema.h"
#include "creto/common/result.h"

namespace creto::authz::cedar {

/// A policy or template as text that reads back as the same, positions aside. Parentheses stand where they must.
std::string to_text(const PolicyAst& policy);
/// One part of its scope: "principal is User in Group::\"staff\"".
std::string to_text(std::string_view variable, const ScopeConstraint& scope);
/// One expression of it.
std::string to_text(const std::vector<Node>& nodes, NodeId expression);

struct FormatOptions {
  std::size_t width = 100;
  std::size_t indent = 2;
};

/// The text laid out anew: the same tokens and the same comments, in the same order. Formatting twice changes nothing.
/// Errors: as the parser's; what cannot be read is not touched.
Result<std::string> format_policies(std::string_view text, FormatOptions options = {}, ParseLimits limits = {});
Result<std::string> format_schema(std::string_view text, FormatOptions options = {}, SchemaLimits limits = {});

}  // namespace creto::authz::cedar
