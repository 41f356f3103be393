#include "creto/crypto/kem.h"

#include <fmt/format.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/params.h>

#include <algorithm>
#include <array>
#include <optional>

#include "creto/common/assert.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/kdf.h"
#include "creto/crypto/random.h"
#include "kem_testing.h"
#include "openssl.h"

namespace creto::crypto {
namespace {

constexpr std::size_t shared_size = 32;
constexpr KemSizes x25519_sizes = {32, 32, 32};
constexpr KemSizes ml_kem_sizes = {1184, 64, 1088};
constexpr KemSizes x_wing_sizes = {1216, 32, 1120};

bool has_ml_kem(KemAlgorithm algorithm) { return algorithm != KemAlgorithm::x25519; }
bool has_x25519(KemAlgorithm algorithm) { return algorithm != KemAlgorithm::ml_kem_768; }

Bytes joined(std::initializer_list<BytesView> parts) {
  Bytes out;
  for (const BytesView part : parts) out.insert(out.end(), part.begin(), part.end());
  return out;
}

Error small_order() { return crypto_error(ErrorKind::invalid_input, "x25519: the point is of small order"); }

Result<Secret> x25519(const PKey& own, const PKey& peer) {
  const PKeyCtx ctx(EVP_PKEY_CTX_new_from_pkey(nullptr, own.get(), nullptr));
  Secret out(shared_size);
  std::size_t size = out.size();
  CRETO_ASSERT(ctx && EVP_PKEY_derive_init(ctx.get()) == 1);
  // Validation of the peer is about key types here; an all-zero result is
  // refused by the derivation itself.
  if (EVP_PKEY_derive_set_peer_ex(ctx.get(), peer.get(), 0) != 1 ||
      EVP_PKEY_derive(ctx.get(), out.writable().data(), &size) != 1 || size != shared_size) {
    ERR_clear_error();
    return small_order();
  }
  return out;
}

struct MlKemOutput {
  Bytes ciphertext;
  Secret shared;
};

MlKemOutput ml_kem_encapsulate(const PKey& key, BytesView randomness) {
  const PKeyCtx ctx(EVP_PKEY_CTX_new_from_pkey(nullptr, key.get(), nullptr));
  std::array<OSSL_PARAM, 2> params = {OSSL_PARAM_construct_end(), OSSL_PARAM_construct_end()};
  if (!randomness.empty()) {
    params[0] = OSSL_PARAM_construct_octet_string(OSSL_KEM_PARAM_IKME, const_cast<std::uint8_t*>(randomness.data()),
                                                  randomness.size());
  }
  MlKemOutput out{Bytes(ml_kem_sizes.ciphertext), Secret(shared_size)};
  std::size_t ciphertext_size = out.ciphertext.size();
  std::size_t shared = shared_size;
  CRETO_ASSERT(ctx && EVP_PKEY_encapsulate_init(ctx.get(), params.data()) == 1 &&
               EVP_PKEY_encapsulate(ctx.get(), out.ciphertext.data(), &ciphertext_size, out.shared.writable().data(),
                                    &shared) == 1 &&
               ciphertext_size == out.ciphertext.size() && shared == shared_size);
  return out;
}

Secret ml_kem_decapsulate(const PKey& key, BytesView ciphertext) {
  const PKeyCtx ctx(EVP_PKEY_CTX_new_from_pkey(nullptr, key.get(), nullptr));
  Secret out(shared_size);
  std::size_t size = shared_size;
  CRETO_ASSERT(ctx && EVP_PKEY_decapsulate_init(ctx.get(), nullptr) == 1 &&
               EVP_PKEY_decapsulate(ctx.get(), out.writable().data(), &size, ciphertext.data(), ciphertext.size()) ==
                   1 &&
               size == shared_size);
  return out;
}

/// RFC 9180 §4.1 with the suite DHKEM(X25519, HKDF-SHA256).
Secret dhkem_secret(const Secret& agreed, BytesView ephemeral, BytesView recipient) {
  constexpr std::array<std::uint8_t, 5> suite = {'K', 'E', 'M', 0x00, 0x20};
  constexpr std::array<std::uint8_t, 2> length = {0, shared_size};
  const std::string_view version = "HPKE-v1";
  const Secret input(joined({as_bytes(version), suite, as_bytes("eae_prk"), agreed.reveal()}));
  const Secret key = hkdf_sha256_extract(input.reveal(), {});
  auto shared = hkdf_sha256_expand(
      key.reveal(), joined({length, as_bytes(version), suite, as_bytes("shared_secret"), ephemeral, recipient}),
      shared_size);
  CRETO_ASSERT(shared);
  return *std::move(shared);
}

/// draft-connolly-cfrg-xwing-kem §5.3.
Secret x_wing_secret(const Secret& ml_kem, const Secret& x25519, BytesView ephemeral, BytesView recipient) {
  constexpr std::array<std::uint8_t, 6> label = {0x5c, 0x2e, 0x2f, 0x2f, 0x5e, 0x5c};
  Hash256 digest = sha3_256({ml_kem.reveal(), x25519.reveal(), ephemeral, recipient, label});
  Secret out = Secret::copy_of(BytesView(digest));
  wipe(digest.data(), digest.size());
  return out;
}

}  // namespace

KemSizes sizes_of(KemAlgorithm algorithm) {
  switch (algorithm) {
    case KemAlgorithm::x25519:
      return x25519_sizes;
    case KemAlgorithm::ml_kem_768:
      return ml_kem_sizes;
    case KemAlgorithm::x_wing:
      return x_wing_sizes;
  }
  CRETO_ASSERT(!"unknown key encapsulation algorithm");
  return {};
}

struct KemPublicKey::Rep {
  KemAlgorithm algorithm;
  Bytes bytes;
  PKey ml_kem;
  PKey x25519;

  BytesView x25519_bytes() const { return BytesView(bytes).last(x25519_sizes.public_key); }

  Result<Encapsulation> encapsulate(BytesView randomness) const {
    Encapsulation out;
    MlKemOutput ml;
    if (has_ml_kem(algorithm)) {
      ml = ml_kem_encapsulate(ml_kem, randomness.first(std::min<std::size_t>(randomness.size(), 32)));
      out.ciphertext = std::move(ml.ciphertext);
    }
    if (!has_x25519(algorithm)) {
      out.shared_secret = std::move(ml.shared);
      return out;
    }
    const Secret seed =
        randomness.empty() ? random_secret(x25519_sizes.seed) : Secret::copy_of(randomness.last(x25519_sizes.seed));
    const PKey ephemeral = private_key_from_seed(x25519_name, seed.reveal());
    CRETO_ASSERT(ephemeral);
    const Bytes ephemeral_public = public_bytes_of(ephemeral);
    const Secret agreed = CRETO_TRY(crypto::x25519(ephemeral, x25519));
    out.ciphertext.insert(out.ciphertext.end(), ephemeral_public.begin(), ephemeral_public.end());
    out.shared_secret = algorithm == KemAlgorithm::x25519
                            ? dhkem_secret(agreed, ephemeral_public, x25519_bytes())
                            : x_wing_secret(ml.shared, agreed, ephemeral_public, x25519_bytes());
    return out;
  }
};

Result<KemPublicKey> KemPublicKey::parse(KemAlgorithm algorithm, BytesView bytes) {
  const KemSizes sizes = sizes_of(algorithm);
  if (bytes.size() != sizes.public_key) {
    return crypto_error(ErrorKind::invalid_input, fmt::format("a public key of {} has {} bytes, not {}",
                                                              to_string(algorithm), sizes.public_key, bytes.size()));
  }
  auto rep = std::make_shared<Rep>();
  rep->algorithm = algorithm;
  rep->bytes = to_bytes(bytes);
  if (has_ml_kem(algorithm)) {
    rep->ml_kem = public_key_from_bytes(ml_kem_768_name, bytes.first(ml_kem_sizes.public_key));
    if (!rep->ml_kem) return crypto_error(ErrorKind::invalid_input, "not a public key of ml-kem-768");
  }
  if (has_x25519(algorithm)) {
    rep->x25519 = public_key_from_bytes(x25519_name, rep->x25519_bytes());
    if (!rep->x25519) return crypto_error(ErrorKind::invalid_input, "not a public key of x25519");
  }
  return KemPublicKey(std::move(rep));
}

Result<KemPublicKey> KemPublicKey::from_text(std::string_view text) {
  const KeyText key = CRETO_TRY(key_text(text));
  const auto algorithm = CRETO_TRY(parse_kem_algorithm(key.algorithm));
  const Bytes bytes = CRETO_TRY(key.bytes());
  return parse(algorithm, bytes);
}

KemAlgorithm KemPublicKey::algorithm() const { return rep_->algorithm; }
const Bytes& KemPublicKey::bytes() const { return rep_->bytes; }
std::string KemPublicKey::text() const { return fmt::format("{}:{}", to_string(algorithm()), base64(bytes())); }
Result<Encapsulation> KemPublicKey::encapsulate() const { return rep_->encapsulate({}); }

Result<Encapsulation> KemTesting::encapsulate(const KemPublicKey& key, BytesView randomness) {
  const std::size_t wanted = key.algorithm() == KemAlgorithm::x_wing ? 64 : 32;
  if (randomness.size() != wanted) {
    return crypto_error(ErrorKind::invalid_input, fmt::format("encapsulation takes {} random bytes", wanted));
  }
  return key.rep_->encapsulate(randomness);
}

struct KemPrivateKey::Rep {
  Secret seed;
  PKey ml_kem;
  PKey x25519;
  KemPublicKey public_key;
};

KemPrivateKey::KemPrivateKey(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}
KemPrivateKey::KemPrivateKey(KemPrivateKey&&) noexcept = default;
KemPrivateKey& KemPrivateKey::operator=(KemPrivateKey&&) noexcept = default;
KemPrivateKey::~KemPrivateKey() = default;

KemPrivateKey KemPrivateKey::generate(KemAlgorithm algorithm) {
  const Secret seed = random_secret(sizes_of(algorithm).seed);
  auto key = from_seed(algorithm, seed.reveal());
  CRETO_ASSERT(key);
  return *std::move(key);
}

Result<KemPrivateKey> KemPrivateKey::from_seed(KemAlgorithm algorithm, BytesView seed) {
  const KemSizes sizes = sizes_of(algorithm);
  if (seed.size() != sizes.seed) {
    return crypto_error(ErrorKind::invalid_input, fmt::format("a private key of {} has {} bytes, not {}",
                                                              to_string(algorithm), sizes.seed, seed.size()));
  }
  Secret expanded;
  BytesView ml_kem_seed = seed;
  BytesView x25519_seed = seed;
  if (algorithm == KemAlgorithm::x_wing) {
    expanded = Secret(ml_kem_sizes.seed + x25519_sizes.seed);
    const MdCtx ctx(EVP_MD_CTX_new());
    CRETO_ASSERT(ctx && EVP_DigestInit_ex(ctx.get(), EVP_shake256(), nullptr) == 1 &&
                 EVP_DigestUpdate(ctx.get(), seed.data(), seed.size()) == 1 &&
                 EVP_DigestFinalXOF(ctx.get(), expanded.writable().data(), expanded.size()) == 1);
    ml_kem_seed = expanded.reveal().first(ml_kem_sizes.seed);
    x25519_seed = expanded.reveal().last(x25519_sizes.seed);
  }
  PKey ml_kem;
  PKey x25519;
  Bytes public_bytes;
  if (has_ml_kem(algorithm)) {
    ml_kem = private_key_from_seed(ml_kem_768_name, ml_kem_seed);
    CRETO_ASSERT(ml_kem);
    public_bytes = public_bytes_of(ml_kem);
  }
  if (has_x25519(algorithm)) {
    x25519 = private_key_from_seed(x25519_name, x25519_seed);
    CRETO_ASSERT(x25519);
    const Bytes half = public_bytes_of(x25519);
    public_bytes.insert(public_bytes.end(), half.begin(), half.end());
  }
  KemPublicKey public_key = CRETO_TRY(KemPublicKey::parse(algorithm, public_bytes));
  return KemPrivateKey(std::unique_ptr<Rep>(
      new Rep{Secret::copy_of(seed), std::move(ml_kem), std::move(x25519), std::move(public_key)}));
}

KemAlgorithm KemPrivateKey::algorithm() const { return rep_->public_key.algorithm(); }
const KemPublicKey& KemPrivateKey::public_key() const { return rep_->public_key; }
const Secret& KemPrivateKey::seed() const { return rep_->seed; }

Result<Secret> KemPrivateKey::decapsulate(BytesView ciphertext) const {
  const KemSizes sizes = sizes_of(algorithm());
  if (ciphertext.size() != sizes.ciphertext) {
    return crypto_error(ErrorKind::invalid_input,
                        fmt::format("a ciphertext of {} has {} bytes, not {}", to_string(algorithm()), sizes.ciphertext,
                                    ciphertext.size()));
  }
  if (algorithm() == KemAlgorithm::ml_kem_768) return ml_kem_decapsulate(rep_->ml_kem, ciphertext);
  const BytesView ephemeral_bytes = ciphertext.last(x25519_sizes.public_key);
  const PKey ephemeral = public_key_from_bytes(x25519_name, ephemeral_bytes);
  CRETO_ASSERT(ephemeral);
  const Secret agreed = CRETO_TRY(x25519(rep_->x25519, ephemeral));
  const BytesView own = BytesView(rep_->public_key.bytes()).last(x25519_sizes.public_key);
  if (algorithm() == KemAlgorithm::x25519) return dhkem_secret(agreed, ephemeral_bytes, own);
  const Secret ml = ml_kem_decapsulate(rep_->ml_kem, ciphertext.first(ml_kem_sizes.ciphertext));
  return x_wing_secret(ml, agreed, ephemeral_bytes, own);
}

Result<Secret> KemPrivateKey::agree(const KemPublicKey& peer) const {
  if (algorithm() != KemAlgorithm::x25519 || peer.algorithm() != KemAlgorithm::x25519) {
    return crypto_error(ErrorKind::unsupported_algorithm, "only x25519 keys agree directly");
  }
  return x25519(rep_->x25519, peer.rep_->x25519);
}

}  // namespace creto::crypto
