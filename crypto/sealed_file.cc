#include "creto/crypto/sealed_file.h"

#include <fmt/format.h>

#include <algorithm>

#include "creto/common/assert.h"
#include "creto/crypto/aead.h"
#include "creto/crypto/random.h"
#include "openssl.h"

namespace creto::crypto {
namespace {

// docs/formats.md, "Sealed file". Integers are big-endian.
constexpr std::string_view magic = "CRETOSF";
constexpr std::uint8_t version = 1;
constexpr std::uint8_t argon2id = 1;
constexpr std::size_t salt_size = 16;
constexpr std::size_t plaintext_max = 1 << 20;
constexpr std::size_t fixed_size = 7 + 1 + 1 + 4 + 4 + 4 + salt_size + 1;  // up to and with the purpose's length
constexpr std::size_t overhead = 1 + aead_nonce_size + aead_tag_size;

void put_u32(Bytes& out, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<std::uint8_t>(value >> shift));
}

std::uint32_t get_u32(BytesView bytes) {
  std::uint32_t value = 0;
  for (const std::uint8_t byte : bytes.first(4)) value = value << 8 | byte;
  return value;
}

Error refused(std::string_view why) {
  return crypto_error(ErrorKind::invalid_input, fmt::format("sealed file: {}", why));
}

}  // namespace

Result<Bytes> seal_file(std::string_view purpose, const Secret& plaintext, const Secret& passphrase,
                        const PassphraseCost& cost) {
  if (purpose.empty() || purpose.size() > 255) return refused("the purpose must be 1 to 255 bytes");
  if (plaintext.size() > plaintext_max) {
    return crypto_error(ErrorKind::too_large, "sealed file: the content is over 1 MiB");
  }
  const auto salt = random_array<salt_size>();
  Secret key = CRETO_TRY(passphrase_key(passphrase, salt, cost));
  const AeadKey aead = CRETO_TRY(AeadKey::create(AeadAlgorithm::aes_256_gcm, std::move(key)));
  Bytes out = to_bytes(magic);
  out.push_back(version);
  out.push_back(argon2id);
  put_u32(out, cost.memory_kib);
  put_u32(out, cost.passes);
  put_u32(out, cost.lanes);
  out.insert(out.end(), salt.begin(), salt.end());
  out.push_back(static_cast<std::uint8_t>(purpose.size()));
  out.insert(out.end(), purpose.begin(), purpose.end());
  // The whole header is authenticated, so nobody can lower the cost or change
  // the purpose.
  const Bytes sealed = aead.seal(plaintext.reveal(), out).encode();
  out.insert(out.end(), sealed.begin(), sealed.end());
  return out;
}

Result<Secret> open_sealed_file(std::string_view purpose, BytesView file, const Secret& passphrase) {
  if (file.size() < fixed_size || !std::ranges::equal(file.first(magic.size()), as_bytes(magic))) {
    return refused("this is not one");
  }
  if (file[7] != version) return refused(fmt::format("version {} is not known", file[7]));
  if (file[8] != argon2id) {
    return crypto_error(ErrorKind::unsupported_algorithm,
                        fmt::format("sealed file: key derivation {} is not known", file[8]));
  }
  const PassphraseCost cost = {get_u32(file.subspan(9)), get_u32(file.subspan(13)), get_u32(file.subspan(17))};
  const BytesView salt = file.subspan(21, salt_size);
  const std::size_t header_size = fixed_size + file[fixed_size - 1];
  if (file.size() < header_size + overhead) return refused("it is cut off");
  if (file.size() > header_size + overhead + plaintext_max) return refused("it is over 1 MiB");
  if (as_text(file.subspan(fixed_size, file[fixed_size - 1])) != purpose) {
    return refused(fmt::format("it was not made as `{}`", purpose));
  }
  const Ciphertext ciphertext = CRETO_TRY(Ciphertext::parse(file.subspan(header_size)));
  Secret key = CRETO_TRY(passphrase_key(passphrase, salt, cost));
  const AeadKey aead = CRETO_TRY(AeadKey::create(AeadAlgorithm::aes_256_gcm, std::move(key)));
  auto opened = aead.open(ciphertext, file.first(header_size));
  if (!opened && opened.error().kind() == ErrorKind::decryption_failed) {
    return crypto_error(ErrorKind::decryption_failed, "sealed file: wrong passphrase, or the file was changed");
  }
  return opened;
}

}  // namespace creto::crypto
