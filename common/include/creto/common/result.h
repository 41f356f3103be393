#pragma once

#include <expected>
#include <utility>

#include "creto/common/error.h"

namespace creto {

/// A value or an Error. Own class rather than an alias, so that a dropped one is a warning.
template <class T = void>
class [[nodiscard]] Result : public std::expected<T, Error> {
  using Base = std::expected<T, Error>;

 public:
  using Base::Base;
  Result(Error error) : Base(std::unexpect, std::move(error)) {}  // NOLINT: implicit so that `return error;` reads well
};

}  // namespace creto

/// The value of a Result, or an early return of its error. Always a whole statement: right of `=`, after `return`, or
/// alone (inside a braced initialiser GCC 12 leaks what was already built; tools/tidy checks the shape).
#define CRETO_TRY(expression)                                                          \
  ({                                                                                   \
    auto&& creto_try_result = (expression);                                            \
    if (!creto_try_result) return ::creto::Error(std::move(creto_try_result).error()); \
    *std::move(creto_try_result);                                                      \
  })
