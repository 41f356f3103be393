#pragma once

#include <string_view>
#include <vector>

#include "cedar/ast.h"
#include "cedar/problem.h"

/// Texts that a reader may take for others, such as `admin` with a Cyrillic `а`: what Cedar's validator warns of.
namespace creto::authz::cedar {

/// What is wrong with it, "mixes scripts"; empty: nothing. Requires: valid UTF-8.
std::string_view confusable_text(std::string_view text);
/// Likewise for what names something, where characters that Unicode's security profile keeps out of identifiers count
/// too.
std::string_view confusable_name(std::string_view name);

/// One for each such string, pattern, attribute and entity of the policy, in no order. A pattern counts as the text it
/// was written as, where Cedar does not see that one turns the direction of reading.
std::vector<Problem> confusables(const PolicyAst& policy);

}  // namespace creto::authz::cedar
