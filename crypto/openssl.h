#pragma once

#include <openssl/evp.h>
#include <openssl/kdf.h>

#include <memory>
#include <string_view>

#include "creto/common/bytes.h"
#include "creto/common/secret.h"

/// What the module's sources share about OpenSSL. Not a public header.
namespace creto::crypto {

template <auto free_function>
struct OpensslDeleter {
  template <class T>
  void operator()(T* object) const {
    free_function(object);
  }
};
using PKey = std::unique_ptr<EVP_PKEY, OpensslDeleter<EVP_PKEY_free>>;
using PKeyCtx = std::unique_ptr<EVP_PKEY_CTX, OpensslDeleter<EVP_PKEY_CTX_free>>;
using MdCtx = std::unique_ptr<EVP_MD_CTX, OpensslDeleter<EVP_MD_CTX_free>>;
using CipherCtx = std::unique_ptr<EVP_CIPHER_CTX, OpensslDeleter<EVP_CIPHER_CTX_free>>;
using MacCtx = std::unique_ptr<EVP_MAC_CTX, OpensslDeleter<EVP_MAC_CTX_free>>;
using KdfCtx = std::unique_ptr<EVP_KDF_CTX, OpensslDeleter<EVP_KDF_CTX_free>>;

/// OpenSSL's names of the key types. Their private form is a seed or, for the X and Ed curves, the raw key.
inline constexpr const char* ed25519_name = "ED25519";
inline constexpr const char* x25519_name = "X25519";
inline constexpr const char* ml_dsa_65_name = "ML-DSA-65";
inline constexpr const char* ml_kem_768_name = "ML-KEM-768";

/// Null where OpenSSL refuses; its error queue is left empty.
PKey private_key_from_seed(const char* type, BytesView seed);
/// FIPS 203 and 204's expanded form; OpenSSL checks its consistency. For test vectors.
PKey private_key_from_expanded(const char* type, BytesView bytes);
PKey public_key_from_bytes(const char* type, BytesView bytes);
Bytes public_bytes_of(const PKey& key);

/// How ML-DSA signs: FIPS 204's external interface with a context, or Sign_internal over a ready-made M'.
struct MessageForm {
  BytesView context;
  bool deterministic = false;
  bool internal = false;        ///< for test vectors
  bool external_mu = false;     ///< for test vectors: the message is mu, 64 bytes
  BytesView test_entropy = {};  ///< for test vectors
};

/// Empty where OpenSSL refuses.
Bytes sign_message(const PKey& key, const char* type, BytesView message, const MessageForm& form);
bool verify_message(const PKey& key, const char* type, BytesView message, BytesView signature, const MessageForm& form);

/// Null pointers make OpenSSL skip a step, so an empty view points somewhere.
const std::uint8_t* not_null(BytesView bytes);

Error crypto_error(ErrorKind kind, std::string message);

/// A public key as text, "algorithm:base64", taken apart. Errors: invalid_input.
struct KeyText {
  std::string_view algorithm;
  std::string_view encoded;
  Result<Bytes> bytes() const { return from_base64(encoded); }
};
Result<KeyText> key_text(std::string_view text);

}  // namespace creto::crypto
