#include "sealer.h"

#include <fmt/format.h>

#include <algorithm>

#include "creto/crypto/aead.h"
#include "creto/crypto/hash.h"

namespace creto::vault {
namespace {

constexpr std::string_view magic = "CRSL";
constexpr std::uint8_t version = 1;
constexpr std::uint8_t aes_256_gcm = 1;
constexpr std::size_t key_id_size = 8;
constexpr std::size_t header_size = magic.size() + 2 + key_id_size;
constexpr std::size_t nonce_size = crypto::aead_nonce_size;
constexpr std::size_t wrapped_size = crypto::aead_key_size + crypto::aead_tag_size;
constexpr std::size_t overhead = header_size + nonce_size + wrapped_size + nonce_size + crypto::aead_tag_size;
constexpr std::size_t plaintext_max = 1u << 20;
static_assert(overhead == 102);

Error cannot_open() {
  return Error(Product::platform, ErrorKind::decryption_failed,
               "the sealed value was changed, belongs to something else, or was sealed under another root key");
}

Bytes bound_to(BytesView header, std::string_view part, std::string_view aad) {
  Bytes all = to_bytes(header);
  all.insert(all.end(), part.begin(), part.end());
  all.push_back(0);
  all.insert(all.end(), aad.begin(), aad.end());
  return all;
}

void append(Bytes& out, const crypto::Ciphertext& part) {
  out.insert(out.end(), part.nonce.begin(), part.nonce.end());
  out.insert(out.end(), part.bytes.begin(), part.bytes.end());
}

crypto::Ciphertext take(BytesView bytes) {
  crypto::Ciphertext part;
  part.algorithm = crypto::AeadAlgorithm::aes_256_gcm;
  std::copy_n(bytes.begin(), nonce_size, part.nonce.begin());
  part.bytes = to_bytes(bytes.subspan(nonce_size));
  return part;
}

class Sealer final : public crypto::KeySealer {
 public:
  Sealer(crypto::AeadKey wrapping, Bytes id) : wrapping_(std::move(wrapping)), id_(std::move(id)) {
    header_ = to_bytes(magic);
    header_.push_back(version);
    header_.push_back(aes_256_gcm);
    header_.insert(header_.end(), id_.begin(), id_.end());
  }

  Result<Bytes> seal(std::string_view aad, BytesView plaintext) override {
    if (plaintext.size() > plaintext_max) {
      return Error(Product::platform, ErrorKind::too_large, "only up to 1 MiB can be sealed under the root key");
    }
    const auto data_key = crypto::AeadKey::generate();
    Bytes out = header_;
    out.reserve(plaintext.size() + overhead);
    append(out, wrapping_.seal(data_key.key().reveal(), bound_to(header_, "key", aad)));
    append(out, data_key.seal(plaintext, bound_to(header_, "data", aad)));
    return out;
  }

  Result<Secret> unseal(std::string_view aad, BytesView sealed) override {
    if (sealed.size() < overhead || sealed.size() > overhead + plaintext_max) return cannot_open();
    if (!as_text(sealed).starts_with(magic)) return cannot_open();
    if (sealed[magic.size()] != version || sealed[magic.size() + 1] != aes_256_gcm) {
      return Error(Product::platform, ErrorKind::unsupported_algorithm,
                   fmt::format("the sealed value is of version {}, algorithm {}", sealed[magic.size()],
                               sealed[magic.size() + 1]));
    }
    if (!std::equal(header_.begin(), header_.end(), sealed.begin())) return cannot_open();
    const auto wrapped = take(sealed.subspan(header_size, nonce_size + wrapped_size));
    auto key = wrapping_.open(wrapped, bound_to(header_, "key", aad));
    if (!key) return cannot_open();
    const auto data_key = CRETO_TRY(crypto::AeadKey::create(crypto::AeadAlgorithm::aes_256_gcm, std::move(*key)));
    auto plaintext =
        data_key.open(take(sealed.subspan(header_size + nonce_size + wrapped_size)), bound_to(header_, "data", aad));
    if (!plaintext) return cannot_open();
    return std::move(*plaintext);
  }

  std::string key_id() const override { return hex(id_); }

 private:
  const crypto::AeadKey wrapping_;
  const Bytes id_;
  Bytes header_;
};

}  // namespace

Result<std::unique_ptr<crypto::KeySealer>> make_sealer(const Secret& root_key) {
  auto wrapping =
      CRETO_TRY(crypto::AeadKey::create(crypto::AeadAlgorithm::aes_256_gcm,
                                        crypto::blake3_derive("creto 2026-11 root key: wrapping", root_key.reveal())));
  const auto id = crypto::blake3_derive("creto 2026-11 root key: id", root_key.reveal(), key_id_size);
  return std::make_unique<Sealer>(std::move(wrapping), to_bytes(id.reveal()));
}

}  // namespace creto::vault
