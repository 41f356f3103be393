#pragma once

#include <span>

#include "creto/nhi/nhi.h"

/// The rules of delegation, without I/O, clock or lock.
namespace creto::nhi {

inline Error refuse(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

/// 1 to 64 well-formed permissions, sorted and without repetition.
Result<> check_permissions(const std::vector<std::string>& permissions);

/// That `child` grants nothing that `parent` does not cover, and no longer. Errors: permission_denied.
Result<> check_narrows(const Delegation& parent, const Delegation& child);

/// That `chain` hangs together and holds at `now`: links, permissions, expiry, depth, nobody twice. Signatures and what
/// the store knows (revocation, status) are not its business. Errors: permission_denied, expired, invalid_input.
Result<> check_structure(const Identity& root, std::span<const Delegation> delegations, Instant now);

}  // namespace creto::nhi
