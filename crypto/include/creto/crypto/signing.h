#pragma once

#include <memory>
#include <string>

#include "creto/common/bytes.h"
#include "creto/common/secret.h"
#include "creto/common/signature.h"
#include "creto/crypto/algorithm.h"

namespace creto::crypto {

/// Sizes in bytes. The hybrid's public key, seed and signature are ML-DSA-65's, then Ed25519's.
struct SignatureSizes {
  std::size_t public_key;  ///< 32, 1952, 1984
  std::size_t seed;        ///< 32, 32, 64
  std::size_t signature;   ///< 64, 3309, 3373
};
SignatureSizes sizes_of(SignatureAlgorithm algorithm);

/// A public key of one algorithm. A value that is cheap to copy; parsed once, used often. Thread-safe.
class VerifyingKey {
 public:
  /// Errors: invalid_input for a wrong length a key the algorithm refuses, or an Ed25519 key of small order.
  static Result<VerifyingKey> parse(SignatureAlgorithm algorithm, BytesView bytes);
  /// "ed25519:<base64>".
  /// Errors: as `parse`, and unsupported_algorithm.
  static Result<VerifyingKey> from_text(std::string_view text);

  SignatureAlgorithm algorithm() const;
  const Bytes& bytes() const;
  std::string text() const;

  /// Holds if `signature` is this key's over `message` under `context`; of a hybrid both halves must hold (CR3).
  /// `context` separates uses of one key (FIPS 204): at most 255 bytes, and empty for plain Ed25519, which has none.
  /// Ed25519 is checked without the cofactor, with S below the order and R compared as bytes (RFC 8032 §5.1.7, strict).
  /// Errors: unsupported_algorithm where the signature names another algorithm than the key; signature_invalid;
  /// invalid_input for a context that cannot be.
  Result<> verify(BytesView message, const Signature& signature, BytesView context = {}) const;

  /// The halves of a hybrid key. Requires: algorithm() is the hybrid.
  BytesView ml_dsa_half() const;
  BytesView ed25519_half() const;

  friend bool operator==(const VerifyingKey& a, const VerifyingKey& b) {
    return a.algorithm() == b.algorithm() && a.bytes() == b.bytes();
  }

 private:
  friend class SigningKey;
  struct Rep;
  explicit VerifyingKey(std::shared_ptr<const Rep> rep) : rep_(std::move(rep)) {}
  std::shared_ptr<const Rep> rep_;
};

/// A private signing key. Moves, does not copy. Thread-safe.
class SigningKey {
 public:
  static SigningKey generate(SignatureAlgorithm algorithm);
  /// The seed is the private key: everything else follows from it.
  /// Errors: invalid_input for a wrong length.
  static Result<SigningKey> from_seed(SignatureAlgorithm algorithm, BytesView seed);

  SigningKey(SigningKey&&) noexcept;
  SigningKey& operator=(SigningKey&&) noexcept;
  ~SigningKey();

  SignatureAlgorithm algorithm() const;
  const VerifyingKey& verifying_key() const;
  /// To be kept sealed.
  const Secret& seed() const;

  /// ML-DSA is hedged: two signatures over one message differ.
  /// Errors: invalid_input for a context over 255 bytes, or a non-empty one with plain Ed25519.
  Result<Signature> sign(BytesView message, BytesView context = {}) const;
  /// The deterministic variant of FIPS 204; for test vectors and reproducible documents.
  Result<Signature> sign_deterministic(BytesView message, BytesView context = {}) const;

  /// PKCS #8 DER, for certificates.
  /// Errors: unsupported_algorithm for the hybrid.
  Result<Secret> pkcs8() const;

 private:
  struct Rep;
  explicit SigningKey(std::unique_ptr<Rep> rep);
  std::unique_ptr<Rep> rep_;
};

}  // namespace creto::crypto
