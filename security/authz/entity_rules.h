#pragma once

#include <cstddef>
#include <vector>

#include "snapshot.h"

/// What entities have to be to be stored.
namespace creto::authz {

/// Its names and its size. Errors: invalid_input, too_large.
Result<> check_entity(const Entity& entity);

/// That the stored hierarchy with `added` on top has no cycle, and not too many entities. Errors: invalid_input,
/// resource_exhausted.
Result<> check_hierarchy(const OrgState& state, const std::vector<Entity>& added, std::size_t entities_max);

}  // namespace creto::authz
