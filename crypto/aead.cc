#include "creto/crypto/aead.h"

#include <openssl/err.h>
#include <openssl/evp.h>

#include <algorithm>

#include "creto/common/assert.h"
#include "creto/crypto/random.h"
#include "openssl.h"

namespace creto::crypto {
namespace {

constexpr std::uint8_t aes_256_gcm_byte = 1;
constexpr std::uint8_t chacha20_poly1305_byte = 2;

const EVP_CIPHER* cipher_of(AeadAlgorithm algorithm) {
  static const EVP_CIPHER* const aes = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
  static const EVP_CIPHER* const chacha = EVP_CIPHER_fetch(nullptr, "ChaCha20-Poly1305", nullptr);
  CRETO_ASSERT(aes != nullptr && chacha != nullptr);
  return algorithm == AeadAlgorithm::aes_256_gcm ? aes : chacha;
}

// OpenSSL counts in int.
constexpr std::size_t piece_max = std::size_t{1} << 30;

bool feed(EVP_CIPHER_CTX* ctx, BytesView in, std::uint8_t* out) {
  while (!in.empty()) {
    const BytesView piece = in.first(std::min(in.size(), piece_max));
    int size = 0;
    if (EVP_CipherUpdate(ctx, out, &size, piece.data(), static_cast<int>(piece.size())) != 1) return false;
    if (out != nullptr) out += size;
    in = in.subspan(piece.size());
  }
  return true;
}

}  // namespace

Bytes Ciphertext::encode() const {
  Bytes out;
  out.reserve(1 + nonce.size() + bytes.size());
  out.push_back(algorithm == AeadAlgorithm::aes_256_gcm ? aes_256_gcm_byte : chacha20_poly1305_byte);
  out.insert(out.end(), nonce.begin(), nonce.end());
  out.insert(out.end(), bytes.begin(), bytes.end());
  return out;
}

Result<Ciphertext> Ciphertext::parse(BytesView encoded) {
  if (encoded.size() < 1 + aead_nonce_size + aead_tag_size) {
    return crypto_error(ErrorKind::invalid_input, "ciphertext is shorter than its nonce and tag");
  }
  Ciphertext out;
  if (encoded[0] == aes_256_gcm_byte) {
    out.algorithm = AeadAlgorithm::aes_256_gcm;
  } else if (encoded[0] == chacha20_poly1305_byte) {
    out.algorithm = AeadAlgorithm::chacha20_poly1305;
  } else {
    return crypto_error(ErrorKind::unsupported_algorithm,
                        "ciphertext names the unknown algorithm " + std::to_string(encoded[0]));
  }
  std::copy_n(encoded.begin() + 1, aead_nonce_size, out.nonce.begin());
  const BytesView rest = encoded.subspan(1 + aead_nonce_size);
  out.bytes.assign(rest.begin(), rest.end());
  return out;
}

AeadKey AeadKey::generate(AeadAlgorithm algorithm) { return AeadKey(algorithm, random_secret(aead_key_size)); }

Result<AeadKey> AeadKey::create(AeadAlgorithm algorithm, Secret key) {
  if (key.size() != aead_key_size) return crypto_error(ErrorKind::invalid_input, "an encryption key has 32 bytes");
  return AeadKey(algorithm, std::move(key));
}

Ciphertext AeadKey::seal(BytesView plaintext, BytesView associated_data) const {
  return seal_with_nonce(plaintext, associated_data, random_array<aead_nonce_size>());
}

Ciphertext AeadKey::seal_with_nonce(BytesView plaintext, BytesView associated_data,
                                    const ByteArray<aead_nonce_size>& nonce) const {
  Ciphertext out;
  out.algorithm = algorithm_;
  out.nonce = nonce;
  out.bytes.resize(plaintext.size() + aead_tag_size);
  std::uint8_t* const tag = out.bytes.data() + plaintext.size();
  const CipherCtx ctx(EVP_CIPHER_CTX_new());
  int size = 0;
  const bool ok =
      ctx &&
      EVP_CipherInit_ex2(ctx.get(), cipher_of(algorithm_), key_.reveal().data(), nonce.data(), 1, nullptr) == 1 &&
      feed(ctx.get(), associated_data, nullptr) && feed(ctx.get(), plaintext, out.bytes.data()) &&
      EVP_CipherFinal_ex(ctx.get(), tag, &size) == 1 && size == 0 &&
      EVP_CIPHER_CTX_ctrl(ctx.get(), EVP_CTRL_AEAD_GET_TAG, aead_tag_size, tag) == 1;
  CRETO_ASSERT(ok);
  return out;
}

Result<Secret> AeadKey::open(const Ciphertext& ciphertext, BytesView associated_data) const {
  if (ciphertext.algorithm != algorithm_) {
    return crypto_error(ErrorKind::unsupported_algorithm, std::string("ciphertext names ")
                                                              .append(to_string(ciphertext.algorithm))
                                                              .append(", the key is for ")
                                                              .append(to_string(algorithm_)));
  }
  const auto failed = [] { return crypto_error(ErrorKind::decryption_failed, "ciphertext does not open"); };
  if (ciphertext.bytes.size() < aead_tag_size) return failed();
  const BytesView body = BytesView(ciphertext.bytes).first(ciphertext.bytes.size() - aead_tag_size);
  ByteArray<aead_tag_size> tag;
  std::ranges::copy(BytesView(ciphertext.bytes).last(aead_tag_size), tag.begin());
  Secret plaintext(body.size());
  const CipherCtx ctx(EVP_CIPHER_CTX_new());
  CRETO_ASSERT(ctx && EVP_CipherInit_ex2(ctx.get(), cipher_of(algorithm_), key_.reveal().data(),
                                         ciphertext.nonce.data(), 0, nullptr) == 1);
  int size = 0;
  ByteArray<16> nothing;
  const bool ok = feed(ctx.get(), associated_data, nullptr) && feed(ctx.get(), body, plaintext.writable().data()) &&
                  EVP_CIPHER_CTX_ctrl(ctx.get(), EVP_CTRL_AEAD_SET_TAG, aead_tag_size, tag.data()) == 1 &&
                  EVP_CipherFinal_ex(ctx.get(), nothing.data(), &size) == 1;
  if (!ok) {
    ERR_clear_error();
    return failed();
  }
  return plaintext;
}

}  // namespace creto::crypto
