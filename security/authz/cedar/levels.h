#pragma once

#include <vector>

#include "cedar/typecheck.h"

namespace creto::authz::cedar {

/// What in the policy is further than `max` steps from the entities of such a request. `types` are those that
/// `PolicyTypes` inferred for it without an error.
void check_levels(const Schema& schema, const PolicyAst& policy, const Environment& environment,
                  const std::vector<TypePtr>& types, unsigned max, std::vector<Problem>& errors);

}  // namespace creto::authz::cedar
