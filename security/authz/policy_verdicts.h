#pragma once

#include <cstddef>
#include <vector>

#include "cedar/interpreter.h"
#include "snapshot.h"

namespace creto::authz {

/// Of each policy whose scope the request is in, why it applies or not: at most `limit`, those first that apply, then
/// those that failed; `left_out` counts the others. Check `entities.trouble()` before using it.
std::vector<PolicyVerdict> verdicts_of(const OrgState& state, const cedar::Request& request,
                                       cedar::EntityView& entities, std::size_t limit, std::size_t& left_out);

}  // namespace creto::authz
