#pragma once

#include <utility>

#include "creto/common/result.h"

namespace creto::proto {

/// What a handler returns where the domain's value has a total conversion, `to_proto(const Domain&, Proto&)`, in the
/// namespace of `Domain`.
template <class Proto, class Domain>
Result<Proto> answer(Result<Domain> result) {
  if (!result) return std::move(result).error();
  Proto proto;
  to_proto(*result, proto);
  return proto;
}

}  // namespace creto::proto
