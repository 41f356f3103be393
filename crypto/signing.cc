#include "creto/crypto/signing.h"

#include <fmt/format.h>
#include <openssl/x509.h>

#include <algorithm>
#include <array>

#include "creto/common/assert.h"
#include "creto/crypto/random.h"
#include "openssl.h"

namespace creto::crypto {
namespace {

constexpr std::size_t context_max = 255;
constexpr SignatureSizes ed25519_sizes = {32, 32, 64};
constexpr SignatureSizes ml_dsa_sizes = {1952, 32, 3309};
constexpr SignatureSizes hybrid_sizes = {1984, 64, 3373};

// draft-ietf-lamps-pq-composite-sigs §4.2 and §6.
constexpr std::string_view composite_prefix = "CompositeAlgorithmSignatures2025";
constexpr std::string_view composite_label = "COMPSIG-MLDSA65-Ed25519-SHA512";

/// Under a key of small order one signature holds for many messages, so nobody may own such a key. The y coordinates of
/// the eight points, and of the ones that a decoder reduces to them; the sign bit does not matter.
bool is_small_order(BytesView key) {
  static const std::array<Bytes, 7> ys = [] {
    const auto y = [](std::string_view text) { return *from_hex(text); };
    return std::array<Bytes, 7>{y("0000000000000000000000000000000000000000000000000000000000000000"),
                                y("0100000000000000000000000000000000000000000000000000000000000000"),
                                y("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
                                y("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
                                y("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
                                y("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
                                y("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")};
  }();
  Bytes unsigned_key = to_bytes(key);
  unsigned_key.back() &= 0x7f;
  return std::ranges::find(ys, unsigned_key) != ys.end();
}

bool has_ml_dsa(SignatureAlgorithm algorithm) { return algorithm != SignatureAlgorithm::ed25519; }
bool has_ed25519(SignatureAlgorithm algorithm) { return algorithm != SignatureAlgorithm::ml_dsa_65; }

Result<> check_context(SignatureAlgorithm algorithm, BytesView context) {
  if (context.size() > context_max) {
    return crypto_error(ErrorKind::invalid_input, "a signature context has at most 255 bytes");
  }
  if (algorithm == SignatureAlgorithm::ed25519 && !context.empty()) {
    return crypto_error(ErrorKind::invalid_input, "ed25519 has no signature context");
  }
  return {};
}

/// M' = prefix ‖ label ‖ len(ctx) ‖ ctx ‖ SHA-512(M)
Bytes composite_message(BytesView message, BytesView context) {
  ByteArray<64> digest;
  CRETO_ASSERT(EVP_Digest(not_null(message), message.size(), digest.data(), nullptr, EVP_sha512(), nullptr) == 1);
  Bytes out = to_bytes(composite_prefix);
  out.insert(out.end(), composite_label.begin(), composite_label.end());
  out.push_back(static_cast<std::uint8_t>(context.size()));
  out.insert(out.end(), context.begin(), context.end());
  out.insert(out.end(), digest.begin(), digest.end());
  return out;
}

}  // namespace

SignatureSizes sizes_of(SignatureAlgorithm algorithm) {
  switch (algorithm) {
    case SignatureAlgorithm::ed25519:
      return ed25519_sizes;
    case SignatureAlgorithm::ml_dsa_65:
      return ml_dsa_sizes;
    case SignatureAlgorithm::hybrid_ed25519_ml_dsa_65:
      return hybrid_sizes;
  }
  CRETO_ASSERT(!"unknown signature algorithm");
  return {};
}

struct VerifyingKey::Rep {
  SignatureAlgorithm algorithm;
  Bytes bytes;
  PKey ml_dsa;   ///< where the algorithm has it
  PKey ed25519;  ///< where the algorithm has it
};

Result<VerifyingKey> VerifyingKey::parse(SignatureAlgorithm algorithm, BytesView bytes) {
  const SignatureSizes sizes = sizes_of(algorithm);
  if (bytes.size() != sizes.public_key) {
    return crypto_error(ErrorKind::invalid_input, fmt::format("a public key of {} has {} bytes, not {}",
                                                              to_string(algorithm), sizes.public_key, bytes.size()));
  }
  auto rep = std::make_shared<Rep>();
  rep->algorithm = algorithm;
  rep->bytes = to_bytes(bytes);
  if (has_ml_dsa(algorithm)) {
    rep->ml_dsa = public_key_from_bytes(ml_dsa_65_name, bytes.first(ml_dsa_sizes.public_key));
    if (!rep->ml_dsa) return crypto_error(ErrorKind::invalid_input, "not a public key of ml-dsa-65");
  }
  if (has_ed25519(algorithm)) {
    const BytesView half = bytes.last(ed25519_sizes.public_key);
    if (is_small_order(half)) return crypto_error(ErrorKind::invalid_input, "an ed25519 key of small order");
    rep->ed25519 = public_key_from_bytes(ed25519_name, half);
    if (!rep->ed25519) return crypto_error(ErrorKind::invalid_input, "not a public key of ed25519");
  }
  return VerifyingKey(std::move(rep));
}

Result<VerifyingKey> VerifyingKey::from_text(std::string_view text) {
  const KeyText key = CRETO_TRY(key_text(text));
  const auto algorithm = CRETO_TRY(parse_signature_algorithm(key.algorithm));
  const Bytes bytes = CRETO_TRY(key.bytes());
  return parse(algorithm, bytes);
}

SignatureAlgorithm VerifyingKey::algorithm() const { return rep_->algorithm; }
const Bytes& VerifyingKey::bytes() const { return rep_->bytes; }
std::string VerifyingKey::text() const { return fmt::format("{}:{}", to_string(algorithm()), base64(bytes())); }

BytesView VerifyingKey::ml_dsa_half() const {
  CRETO_ASSERT(algorithm() == SignatureAlgorithm::hybrid_ed25519_ml_dsa_65);
  return BytesView(bytes()).first(ml_dsa_sizes.public_key);
}

BytesView VerifyingKey::ed25519_half() const {
  CRETO_ASSERT(algorithm() == SignatureAlgorithm::hybrid_ed25519_ml_dsa_65);
  return BytesView(bytes()).last(ed25519_sizes.public_key);
}

Result<> VerifyingKey::verify(BytesView message, const Signature& signature, BytesView context) const {
  const auto named = CRETO_TRY(parse_signature_algorithm(signature.algorithm));
  if (named != algorithm()) {
    return crypto_error(ErrorKind::unsupported_algorithm, fmt::format("the signature names {}, the key is for {}",
                                                                      to_string(named), to_string(algorithm())));
  }
  CRETO_TRY(check_context(algorithm(), context));
  const BytesView value = signature.value;
  const auto invalid = [] { return crypto_error(ErrorKind::signature_invalid, "the signature does not verify"); };
  if (value.size() != sizes_of(algorithm()).signature) return invalid();
  bool ok = false;
  switch (algorithm()) {
    case SignatureAlgorithm::ed25519:
      ok = verify_message(rep_->ed25519, ed25519_name, message, value, {});
      break;
    case SignatureAlgorithm::ml_dsa_65:
      ok = verify_message(rep_->ml_dsa, ml_dsa_65_name, message, value, {.context = context});
      break;
    case SignatureAlgorithm::hybrid_ed25519_ml_dsa_65: {
      const Bytes composite = composite_message(message, context);
      const bool classical =
          verify_message(rep_->ed25519, ed25519_name, composite, value.last(ed25519_sizes.signature), {});
      ok = classical && verify_message(rep_->ml_dsa, ml_dsa_65_name, composite, value.first(ml_dsa_sizes.signature),
                                       {.context = as_bytes(composite_label)});
      break;
    }
  }
  if (!ok) return invalid();
  return {};
}

struct SigningKey::Rep {
  Secret seed;
  PKey ml_dsa;
  PKey ed25519;
  VerifyingKey verifying;

  Result<Signature> sign(BytesView message, BytesView context, bool deterministic) const {
    const SignatureAlgorithm algorithm = verifying.algorithm();
    CRETO_TRY(check_context(algorithm, context));
    Signature out;
    out.algorithm = to_string(algorithm);
    switch (algorithm) {
      case SignatureAlgorithm::ed25519:
        out.value = sign_message(ed25519, ed25519_name, message, {});
        break;
      case SignatureAlgorithm::ml_dsa_65:
        out.value = sign_message(ml_dsa, ml_dsa_65_name, message, {.context = context, .deterministic = deterministic});
        break;
      case SignatureAlgorithm::hybrid_ed25519_ml_dsa_65: {
        const Bytes composite = composite_message(message, context);
        out.value = sign_message(ml_dsa, ml_dsa_65_name, composite,
                                 {.context = as_bytes(composite_label), .deterministic = deterministic});
        const Bytes classical = sign_message(ed25519, ed25519_name, composite, {});
        out.value.insert(out.value.end(), classical.begin(), classical.end());
        break;
      }
    }
    // With a key that was made here and a context that was checked, only a
    // broken OpenSSL refuses.
    CRETO_ASSERT(out.value.size() == sizes_of(algorithm).signature);
    return out;
  }
};

SigningKey::SigningKey(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}
SigningKey::SigningKey(SigningKey&&) noexcept = default;
SigningKey& SigningKey::operator=(SigningKey&&) noexcept = default;
SigningKey::~SigningKey() = default;

SigningKey SigningKey::generate(SignatureAlgorithm algorithm) {
  const Secret seed = random_secret(sizes_of(algorithm).seed);
  auto key = from_seed(algorithm, seed.reveal());
  CRETO_ASSERT(key);
  return *std::move(key);
}

Result<SigningKey> SigningKey::from_seed(SignatureAlgorithm algorithm, BytesView seed) {
  const SignatureSizes sizes = sizes_of(algorithm);
  if (seed.size() != sizes.seed) {
    return crypto_error(ErrorKind::invalid_input, fmt::format("a private key of {} has {} bytes, not {}",
                                                              to_string(algorithm), sizes.seed, seed.size()));
  }
  PKey ml_dsa;
  PKey ed25519;
  Bytes public_bytes;
  if (has_ml_dsa(algorithm)) {
    ml_dsa = private_key_from_seed(ml_dsa_65_name, seed.first(ml_dsa_sizes.seed));
    CRETO_ASSERT(ml_dsa);
    public_bytes = public_bytes_of(ml_dsa);
  }
  if (has_ed25519(algorithm)) {
    ed25519 = private_key_from_seed(ed25519_name, seed.last(ed25519_sizes.seed));
    CRETO_ASSERT(ed25519);
    const Bytes half = public_bytes_of(ed25519);
    public_bytes.insert(public_bytes.end(), half.begin(), half.end());
  }
  VerifyingKey verifying = CRETO_TRY(VerifyingKey::parse(algorithm, public_bytes));
  return SigningKey(std::unique_ptr<Rep>(
      new Rep{Secret::copy_of(seed), std::move(ml_dsa), std::move(ed25519), std::move(verifying)}));
}

SignatureAlgorithm SigningKey::algorithm() const { return rep_->verifying.algorithm(); }
const VerifyingKey& SigningKey::verifying_key() const { return rep_->verifying; }
const Secret& SigningKey::seed() const { return rep_->seed; }

Result<Signature> SigningKey::sign(BytesView message, BytesView context) const {
  return rep_->sign(message, context, false);
}

Result<Signature> SigningKey::sign_deterministic(BytesView message, BytesView context) const {
  return rep_->sign(message, context, true);
}

Result<Secret> SigningKey::pkcs8() const {
  if (algorithm() == SignatureAlgorithm::hybrid_ed25519_ml_dsa_65) {
    return crypto_error(ErrorKind::unsupported_algorithm, "certificates take one algorithm, not a hybrid key");
  }
  EVP_PKEY* const key = has_ml_dsa(algorithm()) ? rep_->ml_dsa.get() : rep_->ed25519.get();
  const std::unique_ptr<PKCS8_PRIV_KEY_INFO, OpensslDeleter<PKCS8_PRIV_KEY_INFO_free>> info(EVP_PKEY2PKCS8(key));
  CRETO_ASSERT(info);
  const int size = i2d_PKCS8_PRIV_KEY_INFO(info.get(), nullptr);
  CRETO_ASSERT(size > 0);
  Secret out(static_cast<std::size_t>(size));
  std::uint8_t* at = out.writable().data();
  CRETO_ASSERT(i2d_PKCS8_PRIV_KEY_INFO(info.get(), &at) == size);
  return out;
}

}  // namespace creto::crypto
