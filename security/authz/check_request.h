#pragma once

#include <optional>
#include <string>

#include "cedar/interpreter.h"
#include "creto/authz/authz.h"

namespace creto::authz {

/// `context.delegation`: root, depth and chain. An empty chain is the principal alone.
Value delegation_of(const Identity& principal, const DelegationChain& chain);

/// How large a request's context may be: 16 bytes count for each value, and what its names and texts have.
inline constexpr std::size_t context_bytes_max = 256 << 10;
/// Whether it is larger; looks no further than that.
bool is_larger(const Attributes& context, std::size_t bytes_max);

/// What is wrong with a request, whatever the policies; none where it is sound.
std::optional<std::string> fault_in(const CheckRequest& request);
/// The whole of it, for who needs it as one value: schema and interpreter.
cedar::Request cedar_request(const CheckRequest& request);

}  // namespace creto::authz
