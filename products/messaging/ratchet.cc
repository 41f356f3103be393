#include "ratchet.h"

#include <algorithm>
#include <array>

#include "creto/common/assert.h"
#include "creto/crypto/aead.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/kdf.h"

namespace creto::messaging {
namespace {

using crypto::KemAlgorithm;
using crypto::KemPrivateKey;
using crypto::KemPublicKey;

constexpr std::string_view pqxdh_info = "creto PQXDH v1: X25519, SHA-256, ML-KEM-768";
constexpr std::string_view root_info = "creto ratchet root v1";
constexpr std::string_view message_info = "creto ratchet message v1";
constexpr std::uint8_t state_version = 1;
constexpr std::size_t key_size = 32;

Error failed() {
  return Error(Product::messaging, ErrorKind::decryption_failed, "message: does not open in this session");
}

Result<Secret> agree(const KemPrivateKey& own, const ByteArray<32>& peer) {
  const auto key = CRETO_TRY(KemPublicKey::parse(KemAlgorithm::x25519, peer));
  return own.agree(key);
}

ByteArray<32> public_of(const KemPrivateKey& key) {
  ByteArray<32> out;
  CRETO_ASSERT(key.public_key().bytes().size() == out.size());
  std::ranges::copy(key.public_key().bytes(), out.begin());
  return out;
}

Secret half(const Secret& both, std::size_t index) {
  return Secret::copy_of(both.reveal().subspan(index * key_size, key_size));
}

/// Root and chain key that follow from a Diffie-Hellman output.
struct RootStep {
  Secret root;
  Secret chain;
};
RootStep root_step(const Secret& root, const Secret& agreed) {
  const auto both = crypto::hkdf_sha256(agreed.reveal(), root.reveal(), as_bytes(root_info), 2 * key_size);
  CRETO_ASSERT(both);
  return {half(*both, 0), half(*both, 1)};
}

Secret chain_output(const Secret& chain, std::uint8_t constant) {
  Hash256 out = crypto::hmac_sha256(chain.reveal(), {&constant, 1});
  Secret secret = Secret::copy_of(BytesView(out));
  wipe(out.data(), out.size());
  return secret;
}
Secret message_key_of(const Secret& chain) { return chain_output(chain, 1); }
Secret next_chain(const Secret& chain) { return chain_output(chain, 2); }

struct AeadParts {
  crypto::AeadKey key;
  ByteArray<crypto::aead_nonce_size> nonce;
};
/// Of one message of a chain. Who goes on from an older copy of his state seals another message with the same message
/// key: what stands before the ciphertext, with that message's own id and time, keeps key and nonce apart.
AeadParts aead_of(const Secret& message_key, BytesView authenticated) {
  const auto both = crypto::hkdf_sha256(message_key.reveal(), authenticated, as_bytes(message_info),
                                        crypto::aead_key_size + crypto::aead_nonce_size);
  CRETO_ASSERT(both);
  auto key = crypto::AeadKey::create(crypto::AeadAlgorithm::aes_256_gcm, half(*both, 0));
  CRETO_ASSERT(key);
  AeadParts out{*std::move(key), {}};
  std::ranges::copy(both->reveal().subspan(crypto::aead_key_size), out.nonce.begin());
  return out;
}

Bytes joined(BytesView a, BytesView b) {
  Bytes out(a.begin(), a.end());
  out.insert(out.end(), b.begin(), b.end());
  return out;
}

Result<Secret> pqxdh_secret(std::initializer_list<const Secret*> agreements, BytesView kem_secret) {
  Secret input(key_size * (2 + agreements.size()));
  auto at = input.writable().begin();
  at = std::fill_n(at, key_size, std::uint8_t{0xff});
  for (const Secret* const agreed : agreements) at = std::ranges::copy(agreed->reveal(), at).out;
  CRETO_ASSERT(kem_secret.size() == key_size);
  std::ranges::copy(kem_secret, at);
  return crypto::hkdf_sha256(input.reveal(), {}, as_bytes(pqxdh_info), key_size);
}

}  // namespace

Bytes HandshakeKeys::associated_data() const {
  Writer out;
  out.text16(initiator.text());
  out.text16(responder.text());
  out.raw(initiator_dh);
  out.raw(responder_dh);
  out.raw(base_key);
  out.raw(signed_prekey);
  out.u8(one_time_prekey ? 1 : 0);
  if (one_time_prekey) out.raw(*one_time_prekey);
  out.bytes32(kem_prekey);
  // Its hash binds the same and keeps the state small.
  const Hash256 digest = crypto::sha3_256(out.bytes());
  return to_bytes(BytesView(digest));
}

SessionId HandshakeKeys::session_id() const {
  const Hash256 digest = crypto::sha3_256({as_bytes("creto session v1"), associated_data()});
  SessionId id;
  std::copy_n(digest.begin(), id.size(), id.begin());
  return id;
}

Result<Secret> pqxdh_initiate(const HandshakeKeys& keys, const KemPrivateKey& identity_dh,
                              const KemPrivateKey& base_key, BytesView kem_secret) {
  const Secret dh1 = CRETO_TRY(agree(identity_dh, keys.signed_prekey));
  const Secret dh2 = CRETO_TRY(agree(base_key, keys.responder_dh));
  const Secret dh3 = CRETO_TRY(agree(base_key, keys.signed_prekey));
  if (!keys.one_time_prekey) return pqxdh_secret({&dh1, &dh2, &dh3}, kem_secret);
  const Secret dh4 = CRETO_TRY(agree(base_key, *keys.one_time_prekey));
  return pqxdh_secret({&dh1, &dh2, &dh3, &dh4}, kem_secret);
}

Result<Secret> pqxdh_respond(const HandshakeKeys& keys, const KemPrivateKey& identity_dh,
                             const KemPrivateKey& signed_prekey, const KemPrivateKey* one_time_prekey,
                             BytesView kem_secret) {
  CRETO_ASSERT((one_time_prekey != nullptr) == keys.one_time_prekey.has_value());
  const Secret dh1 = CRETO_TRY(agree(signed_prekey, keys.initiator_dh));
  const Secret dh2 = CRETO_TRY(agree(identity_dh, keys.base_key));
  const Secret dh3 = CRETO_TRY(agree(signed_prekey, keys.base_key));
  if (one_time_prekey == nullptr) return pqxdh_secret({&dh1, &dh2, &dh3}, kem_secret);
  const Secret dh4 = CRETO_TRY(agree(*one_time_prekey, keys.base_key));
  return pqxdh_secret({&dh1, &dh2, &dh3, &dh4}, kem_secret);
}

Result<Ratchet> Ratchet::initiate(Bytes associated_data, Secret shared, const ByteArray<32>& responder_prekey) {
  Ratchet out;
  out.associated_data_ = std::move(associated_data);
  const KemPrivateKey own = KemPrivateKey::generate(KemAlgorithm::x25519);
  const Secret agreed = CRETO_TRY(agree(own, responder_prekey));
  RootStep step = root_step(shared, agreed);
  out.own_seed_ = own.seed().clone();
  out.peer_key_ = responder_prekey;
  out.root_ = std::move(step.root);
  out.sending_ = std::move(step.chain);
  return out;
}

Ratchet Ratchet::respond(Bytes associated_data, Secret shared, KemPrivateKey signed_prekey) {
  Ratchet out;
  out.associated_data_ = std::move(associated_data);
  out.own_seed_ = signed_prekey.seed().clone();
  out.root_ = std::move(shared);
  return out;
}

Result<Ratchet::Sealing> Ratchet::next_sending() {
  if (sending_.empty()) {
    return Error(Product::messaging, ErrorKind::conflict, "the session has received nothing yet");
  }
  const auto own = KemPrivateKey::from_seed(KemAlgorithm::x25519, own_seed_.reveal());
  CRETO_ASSERT(own);
  Sealing out{.header = {.session = {}, .key = public_of(*own), .previous_count = previous_sent_, .number = sent_},
              .key = message_key_of(sending_)};
  sending_ = next_chain(sending_);
  ++sent_;
  return out;
}

Bytes Ratchet::seal(const Sealing& sealing, BytesView authenticated, BytesView plaintext) const {
  const AeadParts aead = aead_of(sealing.key, authenticated);
  return aead.key.seal_with_nonce(plaintext, joined(associated_data_, authenticated), aead.nonce).bytes;
}

Result<Secret> Ratchet::open(const Secret& message_key, BytesView authenticated, BytesView ciphertext) const {
  const AeadParts aead = aead_of(message_key, authenticated);
  const crypto::Ciphertext sealed = {crypto::AeadAlgorithm::aes_256_gcm, aead.nonce, to_bytes(ciphertext)};
  auto opened = aead.key.open(sealed, joined(associated_data_, authenticated));
  if (!opened) return failed();
  return opened;
}

Result<Secret> Ratchet::decrypt(const RatchetHeader& header, BytesView authenticated, BytesView ciphertext) {
  const auto kept = std::ranges::find_if(
      skipped_, [&](const Skipped& s) { return s.chain == header.key && s.number == header.number; });
  if (kept != skipped_.end()) {
    auto plaintext = CRETO_TRY(open(kept->key, authenticated, ciphertext));
    skipped_.erase(kept);
    return plaintext;
  }
  // On a copy: whatever goes wrong below, this state stays as it is.
  Ratchet next = clone();
  if (!next.peer_key_ || *next.peer_key_ != header.key || next.receiving_.empty()) {
    CRETO_TRY(next.skip_until(header.previous_count));
    CRETO_TRY(next.turn(header.key));
  }
  if (header.number < next.received_) return failed();
  CRETO_TRY(next.skip_until(header.number));
  const Secret key = message_key_of(next.receiving_);
  next.receiving_ = next_chain(next.receiving_);
  ++next.received_;
  auto plaintext = CRETO_TRY(next.open(key, authenticated, ciphertext));
  *this = std::move(next);
  return plaintext;
}

Result<> Ratchet::skip_until(std::uint32_t number) {
  if (receiving_.empty()) return {};
  if (number > received_ && number - received_ > forward_jump_max) {
    return Error(Product::messaging, ErrorKind::invalid_input, "message: too far ahead of what has arrived");
  }
  for (; received_ < number; ++received_) {
    skipped_.push_back({*peer_key_, received_, message_key_of(receiving_)});
    receiving_ = next_chain(receiving_);
    if (skipped_.size() > skipped_keys_max) skipped_.pop_front();
  }
  return {};
}

Result<> Ratchet::turn(const ByteArray<32>& peer_key) {
  const auto own = KemPrivateKey::from_seed(KemAlgorithm::x25519, own_seed_.reveal());
  CRETO_ASSERT(own);
  const Secret agreed = CRETO_TRY(agree(*own, peer_key));
  RootStep receiving = root_step(root_, agreed);
  const KemPrivateKey fresh = KemPrivateKey::generate(KemAlgorithm::x25519);
  const Secret answer = CRETO_TRY(agree(fresh, peer_key));
  RootStep sending = root_step(receiving.root, answer);
  previous_sent_ = sent_;
  sent_ = 0;
  received_ = 0;
  peer_key_ = peer_key;
  receiving_ = std::move(receiving.chain);
  sending_ = std::move(sending.chain);
  root_ = std::move(sending.root);
  own_seed_ = fresh.seed().clone();
  return {};
}

Ratchet Ratchet::clone() const {
  Ratchet out;
  out.associated_data_ = associated_data_;
  out.own_seed_ = own_seed_.clone();
  out.peer_key_ = peer_key_;
  out.root_ = root_.clone();
  out.sending_ = sending_.clone();
  out.receiving_ = receiving_.clone();
  out.sent_ = sent_;
  out.received_ = received_;
  out.previous_sent_ = previous_sent_;
  for (const Skipped& s : skipped_) out.skipped_.push_back({s.chain, s.number, s.key.clone()});
  return out;
}

Secret Ratchet::serialize() const {
  Writer out;
  out.reserve(512 + skipped_.size() * (2 * key_size + 4));
  out.u8(state_version);
  out.bytes32(associated_data_);
  out.bytes32(own_seed_.reveal());
  out.u8(peer_key_ ? 1 : 0);
  if (peer_key_) out.raw(*peer_key_);
  out.bytes32(root_.reveal());
  out.bytes32(sending_.reveal());
  out.bytes32(receiving_.reveal());
  out.u32(sent_);
  out.u32(received_);
  out.u32(previous_sent_);
  out.u32(skipped_.size());
  for (const Skipped& s : skipped_) {
    out.raw(s.chain);
    out.u32(s.number);
    out.raw(s.key.reveal());
  }
  return Secret(std::move(out).take());
}

Result<Ratchet> Ratchet::deserialize(BytesView bytes) {
  Reader in(bytes);
  const auto secret = [&] { return Secret::copy_of(in.bytes32()); };
  Ratchet out;
  const bool known = in.u8() == state_version;
  out.associated_data_ = to_bytes(in.bytes32());
  out.own_seed_ = secret();
  if (in.u8() == 1) out.peer_key_ = in.array<32>();
  out.root_ = secret();
  out.sending_ = secret();
  out.receiving_ = secret();
  out.sent_ = in.u32();
  out.received_ = in.u32();
  out.previous_sent_ = in.u32();
  const std::uint32_t count = in.u32();
  for (std::uint32_t i = 0; i < count && in.ok() && count <= skipped_keys_max; ++i) {
    const auto chain = in.array<32>();
    const std::uint32_t number = in.u32();
    out.skipped_.push_back({chain, number, Secret::copy_of(in.raw(key_size))});
  }
  const auto is_key = [](const Secret& s) { return s.size() == key_size; };
  const bool sound = known && in.ok() && in.at_end() && is_key(out.own_seed_) && is_key(out.root_) &&
                     (out.sending_.empty() || is_key(out.sending_)) &&
                     (out.receiving_.empty() || is_key(out.receiving_)) && (out.receiving_.empty() || out.peer_key_);
  if (!sound) return Error(Product::messaging, ErrorKind::internal, "a stored session does not read back");
  return out;
}

}  // namespace creto::messaging
