#pragma once

#include <optional>
#include <string>

#include "creto/authz/authz.h"

namespace creto::authz {

/// Who acts, as policies see it.
EntityUid entity_of(const Identity& identity);

/// `context.delegation`: root, depth and chain. An empty chain is the principal alone.
Value delegation_of(const Identity& principal, const DelegationChain& chain);

}  // namespace creto::authz
