#pragma once

#include <span>

#include "creto/common/bytes.h"
#include "creto/common/secret.h"

namespace creto::crypto {

/// From OpenSSL's generator, seeded by the kernel. A machine that has no randomness ends the process: nothing that
/// follows would be safe.
void random_fill(std::span<std::uint8_t> out);
Bytes random_bytes(std::size_t size);
Secret random_secret(std::size_t size);

template <std::size_t N>
ByteArray<N> random_array() {
  ByteArray<N> bytes;
  random_fill(bytes);
  return bytes;
}

}  // namespace creto::crypto
