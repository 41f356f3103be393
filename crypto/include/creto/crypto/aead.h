#pragma once

#include "creto/common/bytes.h"
#include "creto/common/secret.h"
#include "creto/crypto/algorithm.h"

namespace creto::crypto {

inline constexpr std::size_t aead_key_size = 32;
inline constexpr std::size_t aead_nonce_size = 12;
inline constexpr std::size_t aead_tag_size = 16;

/// What an AEAD made. Names its algorithm.
struct Ciphertext {
  AeadAlgorithm algorithm = AeadAlgorithm::aes_256_gcm;
  ByteArray<aead_nonce_size> nonce{};
  Bytes bytes;  ///< as long as the plaintext, then the tag of 16 bytes

  /// One byte for the algorithm (1 AES-256-GCM, 2 ChaCha20-Poly1305), the nonce, the bytes.
  Bytes encode() const;
  /// Errors: unsupported_algorithm; invalid_input where it is shorter than algorithm, nonce and tag.
  static Result<Ciphertext> parse(BytesView encoded);

  friend bool operator==(const Ciphertext&, const Ciphertext&) = default;
};

/// A key for one algorithm. Thread-safe.
///
/// `seal` draws a random nonce of 96 bits: one key seals at most 2^32 messages. Whoever seals more takes a new key.
class AeadKey {
 public:
  static AeadKey generate(AeadAlgorithm algorithm = AeadAlgorithm::aes_256_gcm);
  /// Errors: invalid_input unless `key` has 32 bytes.
  static Result<AeadKey> create(AeadAlgorithm algorithm, Secret key);

  AeadAlgorithm algorithm() const { return algorithm_; }
  const Secret& key() const { return key_; }

  /// `associated_data` is authenticated and not kept: `open` needs the same.
  Ciphertext seal(BytesView plaintext, BytesView associated_data = {}) const;
  /// For protocols that derive key and nonce together and use them once. Never the same nonce twice.
  Ciphertext seal_with_nonce(BytesView plaintext, BytesView associated_data,
                             const ByteArray<aead_nonce_size>& nonce) const;
  /// Errors: unsupported_algorithm where the ciphertext names another one; decryption_failed where key, nonce,
  /// associated data or a byte differ, without saying which.
  Result<Secret> open(const Ciphertext& ciphertext, BytesView associated_data = {}) const;

 private:
  AeadKey(AeadAlgorithm algorithm, Secret key) : algorithm_(algorithm), key_(std::move(key)) {}
  AeadAlgorithm algorithm_;
  Secret key_;
};

}  // namespace creto::crypto
