// Every parser of the module on arbitrary bytes: whatever it accepts must read back the same.
#include <cstdint>
#include <cstdlib>

#include "creto/common/assert.h"
#include "creto/crypto/aead.h"
#include "creto/crypto/kem.h"
#include "creto/crypto/sealed_file.h"
#include "creto/crypto/signing.h"

using namespace creto;          // NOLINT: a program of its own
using namespace creto::crypto;  // NOLINT: likewise

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const BytesView input(data + 1, size - 1);
  switch (data[0] % 8) {
    case 0:
      if (const auto parsed = Ciphertext::parse(input)) CRETO_ASSERT(parsed->encode() == to_bytes(input));
      break;
    case 1:
    case 2:
    case 3: {
      const auto algorithm = static_cast<SignatureAlgorithm>(data[0] % 8 - 1);
      if (const auto key = VerifyingKey::parse(algorithm, input)) {
        CRETO_ASSERT(*VerifyingKey::from_text(key->text()) == *key);
        CRETO_ASSERT(!key->verify(as_bytes("m"), {std::string(to_string(algorithm)), to_bytes(input)}));
      }
      break;
    }
    case 4:
      if (const auto key = VerifyingKey::from_text(as_text(input))) CRETO_ASSERT(key->text() == as_text(input));
      break;
    case 5:
      if (const auto key = KemPublicKey::from_text(as_text(input))) CRETO_ASSERT(key->text() == as_text(input));
      break;
    case 6:
      for (const auto algorithm : {KemAlgorithm::x25519, KemAlgorithm::ml_kem_768, KemAlgorithm::x_wing}) {
        if (const auto key = KemPublicKey::parse(algorithm, input)) CRETO_ASSERT(key->bytes() == to_bytes(input));
      }
      break;
    case 7: {
      // A real derivation per input would leave nothing but Argon2: only headers that are refused before it.
      static const Secret nobody;
      CRETO_ASSERT(!open_sealed_file("fuzz", input, nobody));
      break;
    }
  }
  return 0;
}
