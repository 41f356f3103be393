#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "creto/authz/value.h"

namespace creto::authz::cedar {

/// A Cedar string literal with its quotes.
std::string quote(std::string_view text);

/// Letter or underscore, then letters, digits, underscores; ASCII.
bool is_identifier(std::string_view text);
/// One of the words that are no identifier in Cedar: true, false, if, then, else, in, is, like, has, __cedar.
bool is_reserved(std::string_view word);
/// Identifiers joined by `::`.
bool is_path(std::string_view text);

void append_utf8(std::string& out, char32_t c);

/// Requires: `attributes` is sorted by name, as a record's are.
inline const Value* find_attribute(const Attributes& attributes, std::string_view name) {
  const auto at = std::lower_bound(attributes.begin(), attributes.end(), name,
                                   [](const auto& a, std::string_view b) { return a.first < b; });
  return at != attributes.end() && at->first == name ? &at->second : nullptr;
}

}  // namespace creto::authz::cedar
