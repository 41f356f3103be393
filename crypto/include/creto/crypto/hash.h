#pragma once

#include <initializer_list>
#include <memory>

#include "creto/common/bytes.h"
#include "creto/common/secret.h"
#include "creto/crypto/algorithm.h"

namespace creto::crypto {

Hash256 sha256(BytesView data);
/// Of the parts one after the other, without joining them.
Hash256 sha256(std::initializer_list<BytesView> parts);
/// The default hash of documents that are signed (architecture, "Hash").
Hash256 sha3_256(BytesView data);
Hash256 sha3_256(std::initializer_list<BytesView> parts);
/// The hash of content: files, objects, chunks.
Hash256 blake3(BytesView data);
Hash256 hash(HashAlgorithm algorithm, BytesView data);

/// A hash of data that comes in pieces. Not thread-safe.
class Hasher {
 public:
  explicit Hasher(HashAlgorithm algorithm);
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;
  ~Hasher();

  void update(BytesView data);
  /// Ends the hash; the hasher starts anew.
  Hash256 finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// RFC 2104 with SHA-256; a key of any length.
Hash256 hmac_sha256(BytesView key, BytesView data);
/// Compares in constant time.
bool verify_hmac_sha256(BytesView key, BytesView data, BytesView mac);

/// BLAKE3 as a MAC: some 150 ns for short data, for checks on hot paths. Compare with equal_constant_time.
Hash256 blake3_keyed(const ByteArray<32>& key, BytesView data);

/// BLAKE3 derive_key. `context` is a constant of the program, "creto 2026-11 override token" say, never input.
/// Requires: 0 < length <= 65536.
Secret blake3_derive(std::string_view context, BytesView material, std::size_t length = 32);

}  // namespace creto::crypto
