#include "creto/crypto/algorithm.h"

#include <fmt/format.h>

#include <array>

#include "creto/common/names.h"

namespace creto::crypto {
namespace {

constexpr auto aead_names = std::to_array<Named<AeadAlgorithm>>(
    {{AeadAlgorithm::aes_256_gcm, "aes-256-gcm"}, {AeadAlgorithm::chacha20_poly1305, "chacha20-poly1305"}});
constexpr auto signature_names = std::to_array<Named<SignatureAlgorithm>>(
    {{SignatureAlgorithm::ed25519, "ed25519"},
     {SignatureAlgorithm::ml_dsa_65, "ml-dsa-65"},
     {SignatureAlgorithm::hybrid_ed25519_ml_dsa_65, "hybrid-ed25519-ml-dsa-65"}});
constexpr auto kem_names = std::to_array<Named<KemAlgorithm>>(
    {{KemAlgorithm::x25519, "x25519"}, {KemAlgorithm::ml_kem_768, "ml-kem-768"}, {KemAlgorithm::x_wing, "x-wing"}});
constexpr auto hash_names = std::to_array<Named<HashAlgorithm>>(
    {{HashAlgorithm::sha256, "sha-256"}, {HashAlgorithm::sha3_256, "sha3-256"}, {HashAlgorithm::blake3, "blake3"}});

template <class Enum, std::size_t N>
Result<Enum> find(const std::array<Named<Enum>, N>& names, std::string_view purpose, std::string_view asked) {
  for (const auto& [value, name] : names) {
    if (name == asked) return value;
  }
  std::string shown;
  for (const char c : asked.substr(0, 64)) shown += c > ' ' && c < 0x7f && c != '`' ? c : '?';
  return Error(Product::platform, ErrorKind::unsupported_algorithm,
               fmt::format("{} algorithm `{}` is not known", purpose, shown));
}

}  // namespace

std::string_view to_string(AeadAlgorithm algorithm) { return name_of(aead_names, algorithm); }
std::string_view to_string(SignatureAlgorithm algorithm) { return name_of(signature_names, algorithm); }
std::string_view to_string(KemAlgorithm algorithm) { return name_of(kem_names, algorithm); }
std::string_view to_string(HashAlgorithm algorithm) { return name_of(hash_names, algorithm); }

Result<AeadAlgorithm> parse_aead_algorithm(std::string_view name) { return find(aead_names, "encryption", name); }
Result<SignatureAlgorithm> parse_signature_algorithm(std::string_view name) {
  return find(signature_names, "signature", name);
}
Result<KemAlgorithm> parse_kem_algorithm(std::string_view name) { return find(kem_names, "key encapsulation", name); }
Result<HashAlgorithm> parse_hash_algorithm(std::string_view name) { return find(hash_names, "hash", name); }

}  // namespace creto::crypto
