#pragma once

#include <cstdint>
#include <deque>
#include <optional>

#include "creto/common/bytes.h"
#include "creto/common/secret.h"
#include "creto/crypto/kem.h"
#include "wire.h"

/// PQXDH and the Double Ratchet as published by Signal, with X25519, ML-KEM-768, HKDF-SHA256 and AES-256-GCM. Pure: no
/// I/O, no clock.
namespace creto::messaging {

/// How many messages a sender may be ahead of what arrived, and how many keys are kept for those that may still come.
inline constexpr std::uint32_t forward_jump_max = 2000;
inline constexpr std::size_t skipped_keys_max = 2000;

/// The public keys a session begins with; all of them go into its associated data.
struct HandshakeKeys {
  Identity initiator;
  Identity responder;
  ByteArray<32> initiator_dh{};
  ByteArray<32> responder_dh{};
  ByteArray<32> base_key{};
  ByteArray<32> signed_prekey{};
  std::optional<ByteArray<32>> one_time_prekey = {};
  Bytes kem_prekey = {};

  Bytes associated_data() const;
  /// Names the session; a hash of the above.
  SessionId session_id() const;
};

/// What PQXDH agrees on: IKM = FF×32 ‖ DH1 ‖ DH2 ‖ DH3 [‖ DH4] ‖ KEM secret.
/// Errors: invalid_input for a point of small order.
Result<Secret> pqxdh_initiate(const HandshakeKeys& keys, const crypto::KemPrivateKey& identity_dh,
                              const crypto::KemPrivateKey& base_key, BytesView kem_secret);
Result<Secret> pqxdh_respond(const HandshakeKeys& keys, const crypto::KemPrivateKey& identity_dh,
                             const crypto::KemPrivateKey& signed_prekey, const crypto::KemPrivateKey* one_time_prekey,
                             BytesView kem_secret);

/// One end of a session.
///
/// Invariant: `decrypt` changes nothing unless it succeeds; a message key opens one message and is gone.
class Ratchet {
 public:
  static Result<Ratchet> initiate(Bytes associated_data, Secret shared, const ByteArray<32>& responder_prekey);
  static Ratchet respond(Bytes associated_data, Secret shared, crypto::KemPrivateKey signed_prekey);

  /// The header of the next message; then its ciphertext. `authenticated` is everything on the wire before the
  /// ciphertext, and differs from message to message (its id): so that no key and nonce serve twice even where the
  /// state went back to an older copy.
  struct Sealing {
    RatchetHeader header;
    Secret key;
  };
  /// Advances the sending chain. Errors: conflict where nothing was received yet and so there is none.
  Result<Sealing> next_sending();
  Bytes seal(const Sealing& sealing, BytesView authenticated, BytesView plaintext) const;

  /// Errors: decryption_failed (also for one that was opened before); invalid_input over the forward jump limit.
  Result<Secret> decrypt(const RatchetHeader& header, BytesView authenticated, BytesView ciphertext);

  Secret serialize() const;
  /// Errors: internal for anything that `serialize` did not make.
  static Result<Ratchet> deserialize(BytesView bytes);

 private:
  struct Skipped {
    ByteArray<32> chain;
    std::uint32_t number;
    Secret key;
  };

  Ratchet() = default;
  Ratchet clone() const;
  Result<> turn(const ByteArray<32>& peer_key);
  Result<> skip_until(std::uint32_t number);
  Result<Secret> open(const Secret& message_key, BytesView authenticated, BytesView ciphertext) const;

  Bytes associated_data_;
  Secret own_seed_;  ///< X25519, the current ratchet key
  std::optional<ByteArray<32>> peer_key_;
  Secret root_;
  Secret sending_;    ///< empty before the chain exists
  Secret receiving_;  ///< likewise
  std::uint32_t sent_ = 0;
  std::uint32_t received_ = 0;
  std::uint32_t previous_sent_ = 0;
  std::deque<Skipped> skipped_;  ///< oldest first
};

}  // namespace creto::messaging
