#pragma once

#include <string>

#include "creto/common/bytes.h"
#include "creto/common/result.h"
#include "creto/common/secret.h"

namespace creto::crypto {

/// Seals small things (keys, secrets, session state) under a root key that the
/// caller never sees. The vault makes one from a root key file; a PKCS#11 token
/// can stand behind the same port. Thread-safe.
class KeySealer {
 public:
  virtual ~KeySealer() = default;

  /// Authenticated encryption. `aad` says what the plaintext is and whose
  /// ("nhi/key:<org>/<agent>/<key>"); it is not stored, and `unseal` needs the
  /// same. The result names its format, algorithm and root key
  /// (docs/formats.md) and is 102 bytes longer than `plaintext`. Two seals of
  /// one plaintext differ.
  ///
  /// Errors: encryption_failed, too_large (over 1 MiB)
  virtual Result<Bytes> seal(std::string_view aad, BytesView plaintext) = 0;

  /// Errors: decryption_failed (changed, another `aad`, or another root key),
  /// unsupported_algorithm
  virtual Result<Secret> unseal(std::string_view aad, BytesView sealed) = 0;

  /// Names the root key in use: 16 hex digits, a hash of it.
  virtual std::string key_id() const = 0;
};

}  // namespace creto::crypto
