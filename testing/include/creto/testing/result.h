#pragma once

#include <string>

#include "creto/common/result.h"

namespace creto::testing {

/// "ok", or the name of the error's kind: `EXPECT_EQ(kind(vault.get_secret(ctx, ref)), "not_found")`.
template <class T>
std::string kind(const Result<T>& result) {
  return result ? "ok" : std::string(to_string(result.error().kind()));
}

}  // namespace creto::testing
