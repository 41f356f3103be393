#include "creto/crypto/kdf.h"

#include <fmt/format.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/params.h>

#include <algorithm>
#include <array>

#include "creto/common/assert.h"
#include "creto/crypto/hash.h"
#include "openssl.h"

namespace creto::crypto {
namespace {

constexpr std::size_t hash_size = 32;
constexpr std::size_t hkdf_length_max = 255 * hash_size;

Error refused(std::string_view field, std::string_view rule) {
  return crypto_error(ErrorKind::invalid_input, fmt::format("{} {}", field, rule));
}

}  // namespace

Secret hkdf_sha256_extract(BytesView secret, BytesView salt) {
  Hash256 key = hmac_sha256(salt, secret);
  Secret out = Secret::copy_of(BytesView(key));
  wipe(key.data(), key.size());
  return out;
}

Result<Secret> hkdf_sha256_expand(BytesView pseudorandom_key, BytesView info, std::size_t length) {
  if (length == 0 || length > hkdf_length_max) return refused("length", "must be 1 to 8160 bytes");
  Secret out(length);
  Secret block(0);
  std::uint8_t counter = 0;
  for (std::size_t done = 0; done < length;) {
    ++counter;
    Secret input(block.size() + info.size() + 1);
    const auto bytes = input.writable();
    std::ranges::copy(block.reveal(), bytes.begin());
    std::ranges::copy(info, bytes.begin() + static_cast<std::ptrdiff_t>(block.size()));
    bytes.back() = counter;
    Hash256 t = hmac_sha256(pseudorandom_key, input.reveal());
    block = Secret::copy_of(BytesView(t));
    wipe(t.data(), t.size());
    const std::size_t n = std::min(hash_size, length - done);
    std::copy_n(block.reveal().begin(), n, out.writable().begin() + static_cast<std::ptrdiff_t>(done));
    done += n;
  }
  return out;
}

Result<Secret> hkdf_sha256(BytesView secret, BytesView salt, BytesView info, std::size_t length) {
  const Secret key = hkdf_sha256_extract(secret, salt);
  return hkdf_sha256_expand(key.reveal(), info, length);
}

Result<Secret> passphrase_key(const Secret& passphrase, BytesView salt, const PassphraseCost& cost) {
  if (passphrase.empty()) return refused("passphrase", "must not be empty");
  if (salt.size() < 8 || salt.size() > 64) return refused("salt", "must be 8 to 64 bytes");
  if (cost.memory_kib < 8192 || cost.memory_kib > 1048576) return refused("memory_kib", "must be 8192 to 1048576");
  if (cost.passes < 1 || cost.passes > 64) return refused("passes", "must be 1 to 64");
  if (cost.lanes < 1 || cost.lanes > 16) return refused("lanes", "must be 1 to 16");

  static EVP_KDF* const method = EVP_KDF_fetch(nullptr, "ARGON2ID", nullptr);
  CRETO_ASSERT(method != nullptr);
  const KdfCtx ctx(EVP_KDF_CTX_new(method));
  CRETO_ASSERT(ctx);
  PassphraseCost in = cost;
  std::uint32_t threads = 1;
  const std::array<OSSL_PARAM, 7> params = {
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_PASSWORD, const_cast<std::uint8_t*>(passphrase.reveal().data()),
                                        passphrase.size()),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, const_cast<std::uint8_t*>(salt.data()), salt.size()),
      OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_ITER, &in.passes),
      OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_ARGON2_MEMCOST, &in.memory_kib),
      OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_ARGON2_LANES, &in.lanes),
      OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_THREADS, &threads),
      OSSL_PARAM_construct_end()};
  Secret key(hash_size);
  if (EVP_KDF_derive(ctx.get(), key.writable().data(), key.size(), params.data()) != 1) {
    ERR_clear_error();
    // With the ranges checked, memory is what can be missing.
    return crypto_error(ErrorKind::resource_exhausted,
                        fmt::format("not enough memory to derive a key from the passphrase ({} KiB)", cost.memory_kib));
  }
  return key;
}

}  // namespace creto::crypto
