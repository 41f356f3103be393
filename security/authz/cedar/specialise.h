#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cedar/ast.h"

namespace creto::authz::cedar {

/// Whom a policy can matter to: what its scope says, and what its conditions say before anything in them can err. A
/// request that is not of the audience the policy neither satisfies nor errs on, whatever the entities are like.
/// Borrows from the policy.
struct Audience {
  struct Side {
    const EntityUid* uid = nullptr;     ///< it alone
    const std::string* type = nullptr;  ///< else those of this type; null: any
  };
  Side principal, resource;
  std::optional<std::vector<const EntityUid*>> actions;  ///< these and what is in them; none: any
};

/// Requires: `policy` has no slots.
Audience audience_of(const PolicyAst& policy);

}  // namespace creto::authz::cedar
