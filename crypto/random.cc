#include "creto/crypto/random.h"

#include <openssl/rand.h>

#include "creto/common/assert.h"

namespace creto::crypto {

void random_fill(std::span<std::uint8_t> out) {
  CRETO_ASSERT(out.empty() || RAND_priv_bytes_ex(nullptr, out.data(), out.size(), 256) == 1);
}

Bytes random_bytes(std::size_t size) {
  Bytes bytes(size);
  random_fill(bytes);
  return bytes;
}

Secret random_secret(std::size_t size) {
  Secret secret(size);
  random_fill(secret.writable());
  return secret;
}

}  // namespace creto::crypto
