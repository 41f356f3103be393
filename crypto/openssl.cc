#include "openssl.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/params.h>

#include <array>

#include "creto/common/assert.h"

namespace creto::crypto {
namespace {

PKey from_param(const char* type, const char* param, int selection, BytesView bytes) {
  PKeyCtx ctx(EVP_PKEY_CTX_new_from_name(nullptr, type, nullptr));
  CRETO_ASSERT(ctx);
  std::array<OSSL_PARAM, 2> params = {
      OSSL_PARAM_construct_octet_string(param, const_cast<std::uint8_t*>(not_null(bytes)), bytes.size()),
      OSSL_PARAM_construct_end()};
  EVP_PKEY* key = nullptr;
  if (EVP_PKEY_fromdata_init(ctx.get()) != 1 || EVP_PKEY_fromdata(ctx.get(), &key, selection, params.data()) != 1) {
    ERR_clear_error();
    return nullptr;
  }
  return PKey(key);
}

bool is_ml(const char* type) { return std::string_view(type).starts_with("ML-"); }

// Fetching by name takes locks and string comparisons; once per process is
// enough.
EVP_SIGNATURE* signature_method(const char* type) {
  static EVP_SIGNATURE* const ed25519 = EVP_SIGNATURE_fetch(nullptr, ed25519_name, nullptr);
  static EVP_SIGNATURE* const ml_dsa = EVP_SIGNATURE_fetch(nullptr, ml_dsa_65_name, nullptr);
  EVP_SIGNATURE* const method = is_ml(type) ? ml_dsa : ed25519;
  CRETO_ASSERT(method != nullptr);
  return method;
}

struct FormParams {
  FormParams(const char* type, const MessageForm& form) : deterministic(form.deterministic ? 1 : 0) {
    std::size_t n = 0;
    if (is_ml(type)) {
      if (form.internal) {
        params[n++] = OSSL_PARAM_construct_int(OSSL_SIGNATURE_PARAM_MESSAGE_ENCODING, &raw_encoding);
      } else if (!form.context.empty()) {
        params[n++] = OSSL_PARAM_construct_octet_string(
            OSSL_SIGNATURE_PARAM_CONTEXT_STRING, const_cast<std::uint8_t*>(form.context.data()), form.context.size());
      }
      params[n++] = OSSL_PARAM_construct_int(OSSL_SIGNATURE_PARAM_DETERMINISTIC, &deterministic);
      if (form.external_mu) params[n++] = OSSL_PARAM_construct_int(OSSL_SIGNATURE_PARAM_MU, &yes);
      if (!form.test_entropy.empty()) {
        params[n++] = OSSL_PARAM_construct_octet_string(OSSL_SIGNATURE_PARAM_TEST_ENTROPY,
                                                        const_cast<std::uint8_t*>(form.test_entropy.data()),
                                                        form.test_entropy.size());
      }
    }
    params[n] = OSSL_PARAM_construct_end();
  }
  int raw_encoding = 0;
  int yes = 1;
  int deterministic;
  std::array<OSSL_PARAM, 6> params;
};

}  // namespace

const std::uint8_t* not_null(BytesView bytes) {
  static const std::uint8_t nothing = 0;
  return bytes.empty() ? &nothing : bytes.data();
}

Error crypto_error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

PKey private_key_from_seed(const char* type, BytesView seed) {
  if (is_ml(type)) return from_param(type, "seed", EVP_PKEY_KEYPAIR, seed);
  PKey key(EVP_PKEY_new_raw_private_key_ex(nullptr, type, nullptr, not_null(seed), seed.size()));
  if (!key) ERR_clear_error();
  return key;
}

Result<KeyText> key_text(std::string_view text) {
  constexpr std::size_t encoded_max = 8192;  // the largest key has 1 984 bytes
  const std::size_t colon = text.find(':');
  if (colon == std::string_view::npos) {
    return crypto_error(ErrorKind::invalid_input, "a public key reads `algorithm:base64`");
  }
  const KeyText key{text.substr(0, colon), text.substr(colon + 1)};
  if (key.encoded.size() > encoded_max) {
    return crypto_error(ErrorKind::invalid_input, "a public key is longer than any can be");
  }
  return key;
}

PKey private_key_from_expanded(const char* type, BytesView bytes) {
  return from_param(type, OSSL_PKEY_PARAM_PRIV_KEY, EVP_PKEY_KEYPAIR, bytes);
}

PKey public_key_from_bytes(const char* type, BytesView bytes) {
  PKey key(EVP_PKEY_new_raw_public_key_ex(nullptr, type, nullptr, not_null(bytes), bytes.size()));
  if (!key) ERR_clear_error();
  return key;
}

Bytes public_bytes_of(const PKey& key) {
  std::size_t size = 0;
  CRETO_ASSERT(EVP_PKEY_get_raw_public_key(key.get(), nullptr, &size) == 1);
  Bytes bytes(size);
  CRETO_ASSERT(EVP_PKEY_get_raw_public_key(key.get(), bytes.data(), &size) == 1);
  bytes.resize(size);
  return bytes;
}

Bytes sign_message(const PKey& key, const char* type, BytesView message, const MessageForm& form) {
  PKeyCtx ctx(EVP_PKEY_CTX_new_from_pkey(nullptr, key.get(), nullptr));
  CRETO_ASSERT(ctx);
  FormParams with(type, form);
  Bytes signature;
  std::size_t size = 0;
  bool ok = EVP_PKEY_sign_message_init(ctx.get(), signature_method(type), with.params.data()) == 1 &&
            EVP_PKEY_sign(ctx.get(), nullptr, &size, not_null(message), message.size()) == 1;
  if (ok) {
    signature.resize(size);
    ok = EVP_PKEY_sign(ctx.get(), signature.data(), &size, not_null(message), message.size()) == 1;
    signature.resize(ok ? size : 0);
  }
  if (!ok) ERR_clear_error();
  return signature;
}

bool verify_message(const PKey& key, const char* type, BytesView message, BytesView signature,
                    const MessageForm& form) {
  PKeyCtx ctx(EVP_PKEY_CTX_new_from_pkey(nullptr, key.get(), nullptr));
  CRETO_ASSERT(ctx);
  FormParams with(type, form);
  const bool ok =
      EVP_PKEY_verify_message_init(ctx.get(), signature_method(type), with.params.data()) == 1 &&
      EVP_PKEY_verify(ctx.get(), not_null(signature), signature.size(), not_null(message), message.size()) == 1;
  if (!ok) ERR_clear_error();
  return ok;
}

}  // namespace creto::crypto
