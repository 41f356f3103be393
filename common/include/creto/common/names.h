#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "creto/common/assert.h"
#include "creto/common/error.h"
#include "creto/common/result.h"

namespace creto {

/// A value of an enum and the word for it in documents, on wires and in queries. Both directions of the spelling come
/// from one table: `constexpr auto orders = std::to_array<Named<Order>>({{Order::first, "first"}, …});`
template <class Enum>
using Named = std::pair<Enum, std::string_view>;

/// Every value of the enum must be in the table.
template <class Enum, std::size_t N>
constexpr std::string_view name_of(const std::array<Named<Enum>, N>& names, Enum value) {
  for (const auto& [known, name] : names) {
    if (known == value) return name;
  }
  CRETO_ASSERT(!"a value that is in the enum and not in its table");
  return {};
}

namespace detail {
/// "what `text`: must be one of `a`, `b`".
Error no_such_name(Product product, std::string_view what, std::string_view text, const std::string& allowed);
}  // namespace detail

/// `what` says what is named, as "overflow". Errors: invalid_input with all the words there are.
template <class Enum, std::size_t N>
Result<Enum> value_of(const std::array<Named<Enum>, N>& names, std::string_view text, std::string_view what,
                      Product product) {
  for (const auto& [value, name] : names) {
    if (name == text) return value;
  }
  std::string allowed;
  for (const auto& [value, name] : names) allowed.append(allowed.empty() ? "`" : ", `").append(name).append("`");
  return detail::no_such_name(product, what, text, allowed);
}

}  // namespace creto
