#pragma once

#include <functional>

#include "cedar/partial.h"
#include "snapshot.h"

namespace creto::authz {

/// `request` is `question.request` as Cedar sees it, sound, with any resource of the type. `entities` see `state` and
/// what else there is. Gives up where `expired` says so. Errors: those of Authz::filter_resources.
Result<ResourceFilter> filter_resources(const OrgState& state, cedar::EntityView& entities,
                                        const FilterQuestion& question, cedar::Request request,
                                        const std::function<bool()>& expired);

}  // namespace creto::authz
