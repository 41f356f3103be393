#pragma once

#include <algorithm>
#include <string_view>

#include "creto/common/names.h"

namespace creto::metering {

inline constexpr std::string_view name_rule = "must be 1 to 64 of a-z, 0-9, '_', '.', '-'";

/// Ids of plans, charges, quotas; event types and property names.
inline bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= 64 && std::ranges::all_of(text, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
  });
}

template <class Enum, std::size_t N>
Result<Enum> value_of(const std::array<Named<Enum>, N>& names, std::string_view text, std::string_view what) {
  return creto::value_of(names, text, what, Product::metering);
}

}  // namespace creto::metering
