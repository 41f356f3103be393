#pragma once

#include <cstdint>
#include <string_view>

#include "creto/common/result.h"

namespace creto::crypto {

/// Every key, signature and ciphertext names its algorithm (CR2). A name that is not listed here is an error
/// (unsupported_algorithm), never a reason to fall back on another one. One enum per purpose, so that a cipher cannot
/// be passed where a signature scheme is meant.

enum class AeadAlgorithm : std::uint8_t {
  aes_256_gcm,        ///< "aes-256-gcm"
  chacha20_poly1305,  ///< "chacha20-poly1305"
};

enum class SignatureAlgorithm : std::uint8_t {
  ed25519,                   ///< "ed25519", RFC 8032
  ml_dsa_65,                 ///< "ml-dsa-65", FIPS 204, pure, external interface
  hybrid_ed25519_ml_dsa_65,  ///< "hybrid-ed25519-ml-dsa-65": composite, draft-ietf-lamps-pq-composite-sigs
};

enum class KemAlgorithm : std::uint8_t {
  x25519,      ///< "x25519": DHKEM(X25519, HKDF-SHA256) of RFC 9180; keys also agree directly
  ml_kem_768,  ///< "ml-kem-768", FIPS 203
  x_wing,      ///< "x-wing": ML-KEM-768 with X25519, draft-connolly-cfrg-xwing-kem
};

enum class HashAlgorithm : std::uint8_t {
  sha256,    ///< "sha-256"
  sha3_256,  ///< "sha3-256"
  blake3,    ///< "blake3", 32 bytes
};

std::string_view to_string(AeadAlgorithm algorithm);
std::string_view to_string(SignatureAlgorithm algorithm);
std::string_view to_string(KemAlgorithm algorithm);
std::string_view to_string(HashAlgorithm algorithm);

/// Errors: unsupported_algorithm, naming what was asked (cut to 64 characters).
Result<AeadAlgorithm> parse_aead_algorithm(std::string_view name);
Result<SignatureAlgorithm> parse_signature_algorithm(std::string_view name);
Result<KemAlgorithm> parse_kem_algorithm(std::string_view name);
Result<HashAlgorithm> parse_hash_algorithm(std::string_view name);

}  // namespace creto::crypto
