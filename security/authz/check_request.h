#pragma once

#include <optional>
#include <string>

#include "creto/authz/authz.h"

namespace creto::authz {

/// `context.delegation`: root, depth and chain. An empty chain is the principal alone.
Value delegation_of(const Identity& principal, const DelegationChain& chain);

/// How large a request's context may be: 16 bytes count for each value, and what its names and texts have.
inline constexpr std::size_t context_bytes_max = 256 << 10;
/// Whether it is larger; looks no further than that.
bool is_larger(const Attributes& context, std::size_t bytes_max);

}  // namespace creto::authz
