#pragma once

#include <cstdint>
#include <string_view>

#include "creto/common/bytes.h"
#include "creto/common/secret.h"

namespace creto::crypto {

/// HKDF-SHA256, RFC 5869 (extract, then expand). An empty salt means 32 zeros.
/// Errors: invalid_input for a length of 0 or over 8160 bytes.
Result<Secret> hkdf_sha256(BytesView secret, BytesView salt, BytesView info, std::size_t length);
/// The two steps alone. `pseudorandom_key` is what extract returned: 32 bytes.
Secret hkdf_sha256_extract(BytesView secret, BytesView salt);
Result<Secret> hkdf_sha256_expand(BytesView pseudorandom_key, BytesView info, std::size_t length);

/// What it costs to try one passphrase. Argon2id, RFC 9106.
struct PassphraseCost {
  std::uint32_t memory_kib = 65536;  ///< 8 MiB to 1 GiB
  std::uint32_t passes = 3;          ///< 1 to 64
  std::uint32_t lanes = 1;           ///< 1 to 16; computed by one thread

  friend bool operator==(const PassphraseCost&, const PassphraseCost&) = default;
};

/// 32 bytes from a passphrase by Argon2id; takes the memory and about 0.2 s by default.
/// Errors: invalid_input for a cost outside its ranges, a salt outside 8 to 64 bytes, an empty passphrase.
Result<Secret> passphrase_key(const Secret& passphrase, BytesView salt, const PassphraseCost& cost = {});

}  // namespace creto::crypto
