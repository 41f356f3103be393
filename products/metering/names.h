#pragma once

#include <algorithm>
#include <string_view>
#include <utility>

#include "creto/common/assert.h"
#include "creto/common/result.h"

namespace creto::metering {

inline constexpr std::string_view name_rule = "must be 1 to 64 of a-z, 0-9, '_', '.', '-'";

/// Ids of plans, charges, quotas; event types and property names.
inline bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= 64 && std::ranges::all_of(text, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
  });
}

/// The two directions of an enum's spelling, from one table.
template <class Table, class Enum>
std::string_view name_of(const Table& table, Enum value) {
  for (const auto& [known, name] : table) {
    if (known == value) return name;
  }
  CRETO_ASSERT(!"every value has a name");
  return {};
}
template <class Table>
auto value_of(const Table& table, std::string_view text, std::string_view what)
    -> Result<typename Table::value_type::first_type> {
  for (const auto& [value, name] : table) {
    if (name == text) return value;
  }
  std::string message(what);
  message += " `";
  message += text.substr(0, 64);
  message += "` is none of";
  for (const auto& entry : table) message.append(&entry == &*table.begin() ? " " : ", ").append(entry.second);
  return Error(Product::metering, ErrorKind::invalid_input, std::move(message));
}

}  // namespace creto::metering
