#pragma once

#include "creto/crypto/kem.h"

namespace creto::crypto {

/// Encapsulation with given randomness, for published vectors. Not a public header: nothing else has a use for it.
struct KemTesting {
  /// `randomness`: ml-kem-768 32 bytes; x25519 32 (the ephemeral private key); x-wing 64 (ML-KEM's, then X25519's).
  static Result<Encapsulation> encapsulate(const KemPublicKey& key, BytesView randomness);
};

}  // namespace creto::crypto
