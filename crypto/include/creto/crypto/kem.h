#pragma once

#include <memory>
#include <string>

#include "creto/common/bytes.h"
#include "creto/common/secret.h"
#include "creto/crypto/algorithm.h"

namespace creto::crypto {

struct KemSizes {
  std::size_t public_key;  ///< x25519 32, ml-kem-768 1184, x-wing 1216
  std::size_t seed;        ///< 32, 64, 32
  std::size_t ciphertext;  ///< 32, 1088, 1120
};
KemSizes sizes_of(KemAlgorithm algorithm);

/// A ciphertext for the owner of the private key, and the secret of 32 bytes that it carries.
struct Encapsulation {
  Bytes ciphertext;
  Secret shared_secret;
};

/// A value that is cheap to copy; parsed once, used often. Thread-safe.
class KemPublicKey {
 public:
  /// Errors: invalid_input for a wrong length, or coefficients that are not reduced (FIPS 203 §7.2).
  static Result<KemPublicKey> parse(KemAlgorithm algorithm, BytesView bytes);
  /// "x-wing:<base64>".
  /// Errors: as `parse`, and unsupported_algorithm.
  static Result<KemPublicKey> from_text(std::string_view text);

  KemAlgorithm algorithm() const;
  const Bytes& bytes() const;
  std::string text() const;

  /// Errors: invalid_input for an X25519 key of small order.
  Result<Encapsulation> encapsulate() const;

  friend bool operator==(const KemPublicKey& a, const KemPublicKey& b) {
    return a.algorithm() == b.algorithm() && a.bytes() == b.bytes();
  }

 private:
  friend class KemPrivateKey;
  friend struct KemTesting;
  struct Rep;
  explicit KemPublicKey(std::shared_ptr<const Rep> rep) : rep_(std::move(rep)) {}
  std::shared_ptr<const Rep> rep_;
};

/// Moves, does not copy. Thread-safe.
class KemPrivateKey {
 public:
  static KemPrivateKey generate(KemAlgorithm algorithm);
  /// The seed is the private key.
  /// Errors: invalid_input for a wrong length.
  static Result<KemPrivateKey> from_seed(KemAlgorithm algorithm, BytesView seed);

  KemPrivateKey(KemPrivateKey&&) noexcept;
  KemPrivateKey& operator=(KemPrivateKey&&) noexcept;
  ~KemPrivateKey();

  KemAlgorithm algorithm() const;
  const KemPublicKey& public_key() const;
  /// To be kept sealed.
  const Secret& seed() const;

  /// The secret of 32 bytes. A changed ciphertext of ML-KEM gives another secret, not an error (implicit rejection):
  /// what is opened with it fails.
  /// Errors: invalid_input for a wrong length or an X25519 point of small order.
  Result<Secret> decapsulate(BytesView ciphertext) const;

  /// Plain X25519 (RFC 7748) between two x25519 keys, for protocols that mix several agreements.
  /// Errors: unsupported_algorithm for other keys; invalid_input for a point of small order.
  Result<Secret> agree(const KemPublicKey& peer) const;

 private:
  struct Rep;
  explicit KemPrivateKey(std::unique_ptr<Rep> rep);
  std::unique_ptr<Rep> rep_;
};

}  // namespace creto::crypto
