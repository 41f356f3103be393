#include "creto/crypto/hash.h"

#include <blake3.h>
#include <openssl/core_names.h>
#include <openssl/params.h>

#include <string>
#include <variant>

#include "creto/common/assert.h"
#include "openssl.h"

namespace creto::crypto {
namespace {

const EVP_MD* fetched(const char* name) {
  const EVP_MD* const md = EVP_MD_fetch(nullptr, name, nullptr);
  CRETO_ASSERT(md != nullptr);
  return md;
}

const EVP_MD* md_of(HashAlgorithm algorithm) {
  static const EVP_MD* const sha2 = fetched("SHA2-256");
  static const EVP_MD* const sha3 = fetched("SHA3-256");
  return algorithm == HashAlgorithm::sha256 ? sha2 : sha3;
}

Hash256 digest(HashAlgorithm algorithm, std::initializer_list<BytesView> parts) {
  // Making a context costs more than hashing a tree node does.
  thread_local const MdCtx ctx(EVP_MD_CTX_new());
  CRETO_ASSERT(ctx && EVP_DigestInit_ex2(ctx.get(), md_of(algorithm), nullptr) == 1);
  for (const BytesView part : parts) {
    CRETO_ASSERT(part.empty() || EVP_DigestUpdate(ctx.get(), part.data(), part.size()) == 1);
  }
  Hash256 out;
  CRETO_ASSERT(EVP_DigestFinal_ex(ctx.get(), out.data(), nullptr) == 1);
  return out;
}

Hash256 finish_blake3(blake3_hasher& hasher, BytesView data) {
  blake3_hasher_update(&hasher, not_null(data), data.size());
  Hash256 out;
  blake3_hasher_finalize(&hasher, out.data(), out.size());
  return out;
}

}  // namespace

Hash256 sha256(BytesView data) { return digest(HashAlgorithm::sha256, {data}); }
Hash256 sha256(std::initializer_list<BytesView> parts) { return digest(HashAlgorithm::sha256, parts); }
Hash256 sha3_256(BytesView data) { return digest(HashAlgorithm::sha3_256, {data}); }
Hash256 sha3_256(std::initializer_list<BytesView> parts) { return digest(HashAlgorithm::sha3_256, parts); }

Hash256 blake3(BytesView data) {
  blake3_hasher hasher;
  blake3_hasher_init(&hasher);
  return finish_blake3(hasher, data);
}

Hash256 hash(HashAlgorithm algorithm, BytesView data) {
  return algorithm == HashAlgorithm::blake3 ? blake3(data) : digest(algorithm, {data});
}

Hash256 blake3_keyed(const ByteArray<32>& key, BytesView data) {
  blake3_hasher hasher;
  blake3_hasher_init_keyed(&hasher, key.data());
  const Hash256 out = finish_blake3(hasher, data);
  wipe(&hasher.key, sizeof hasher.key);
  wipe(&hasher.chunk, sizeof hasher.chunk);
  return out;
}

Secret blake3_derive(std::string_view context, BytesView material, std::size_t length) {
  CRETO_ASSERT(length > 0 && length <= 65536);
  blake3_hasher hasher;
  blake3_hasher_init_derive_key_raw(&hasher, context.data(), context.size());
  blake3_hasher_update(&hasher, not_null(material), material.size());
  Secret out(length);
  blake3_hasher_finalize(&hasher, out.writable().data(), length);
  wipe(&hasher, sizeof hasher);
  return out;
}

struct Hasher::State {
  HashAlgorithm algorithm;
  std::variant<MdCtx, blake3_hasher> at;

  void begin() {
    if (algorithm == HashAlgorithm::blake3) {
      blake3_hasher_init(&at.emplace<blake3_hasher>());
    } else {
      if (auto* const ctx = std::get_if<MdCtx>(&at); ctx == nullptr || !*ctx) at.emplace<MdCtx>(EVP_MD_CTX_new());
      CRETO_ASSERT(EVP_DigestInit_ex2(std::get<MdCtx>(at).get(), md_of(algorithm), nullptr) == 1);
    }
  }
};

Hasher::Hasher(HashAlgorithm algorithm) : state_(std::make_unique<State>()) {
  state_->algorithm = algorithm;
  state_->begin();
}
Hasher::Hasher(Hasher&&) noexcept = default;
Hasher& Hasher::operator=(Hasher&&) noexcept = default;
Hasher::~Hasher() = default;

void Hasher::update(BytesView data) {
  if (data.empty()) return;
  if (auto* const hasher = std::get_if<blake3_hasher>(&state_->at)) {
    blake3_hasher_update(hasher, data.data(), data.size());
  } else {
    CRETO_ASSERT(EVP_DigestUpdate(std::get<MdCtx>(state_->at).get(), data.data(), data.size()) == 1);
  }
}

Hash256 Hasher::finish() {
  Hash256 out;
  if (auto* const hasher = std::get_if<blake3_hasher>(&state_->at)) {
    blake3_hasher_finalize(hasher, out.data(), out.size());
  } else {
    CRETO_ASSERT(EVP_DigestFinal_ex(std::get<MdCtx>(state_->at).get(), out.data(), nullptr) == 1);
  }
  state_->begin();
  return out;
}

Hash256 hmac_sha256(BytesView key, BytesView data) {
  static EVP_MAC* const method = EVP_MAC_fetch(nullptr, "HMAC", nullptr);
  CRETO_ASSERT(method != nullptr);
  // A new context each time: it holds the key, and freeing it wipes it.
  const MacCtx ctx(EVP_MAC_CTX_new(method));
  std::string name = "SHA2-256";
  const std::array<OSSL_PARAM, 2> params = {
      OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, name.data(), name.size()), OSSL_PARAM_construct_end()};
  Hash256 out;
  std::size_t size = 0;
  CRETO_ASSERT(ctx && EVP_MAC_init(ctx.get(), not_null(key), key.size(), params.data()) == 1 &&
               EVP_MAC_update(ctx.get(), not_null(data), data.size()) == 1 &&
               EVP_MAC_final(ctx.get(), out.data(), &size, out.size()) == 1 && size == out.size());
  return out;
}

bool verify_hmac_sha256(BytesView key, BytesView data, BytesView mac) {
  const Hash256 expected = hmac_sha256(key, data);
  return equal_constant_time(expected, mac);
}

}  // namespace creto::crypto
