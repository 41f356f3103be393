#pragma once

#include <memory>

#include "creto/common/secret.h"
#include "creto/crypto/key_sealer.h"

namespace creto::vault {

/// Seals under keys derived from `root_key` (32 bytes). Format: docs/formats.md, "Sealed value".
///
/// Every value gets a data key of its own; the root key wraps only those, so that its limit of 2^32 uses is the number
/// of values ever sealed and not their size.
Result<std::unique_ptr<crypto::KeySealer>> make_sealer(const Secret& root_key);

}  // namespace creto::vault
