#include "creto/messaging/endpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "creto/common/assert.h"
#include "creto/crypto/aead.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/kdf.h"
#include "creto/nhi/nhi.h"
#include "ratchet.h"
#include "wire.h"

namespace creto::messaging {
namespace {

using contracts::SealedMessage;
using crypto::AeadAlgorithm;
using crypto::AeadKey;
using crypto::KemAlgorithm;
using crypto::KemPrivateKey;
using crypto::KemPublicKey;
using KeyUse = EndpointStore::KeyUse;

constexpr std::string_view wrap_info = "creto message key v1";
constexpr Nanos ttl_min = std::chrono::seconds(1);
constexpr Nanos ttl_max = std::chrono::days(30);

Error failure(ErrorKind kind, std::string message) { return Error(Product::messaging, kind, std::move(message)); }

class NhiKeys final : public EndpointKeys {
 public:
  NhiKeys(nhi::Nhi& nhi, Identity identity) : nhi_(nhi), identity_(std::move(identity)) {}
  const Identity& identity() const override { return identity_; }
  Result<Signature> sign(const Context& ctx, BytesView data, std::string_view context) override {
    return nhi_.sign(ctx, identity_, data, context);
  }
  Result<Secret> decapsulate(const Context& ctx, std::string_view key_id, BytesView ciphertext) override {
    return nhi_.decapsulate(ctx, identity_, key_id, ciphertext);
  }

 private:
  nhi::Nhi& nhi_;
  const Identity identity_;
};

class OwnKeys final : public EndpointKeys {
 public:
  OwnKeys(Identity identity, crypto::SigningKey signing, std::map<std::string, KemPrivateKey, std::less<>> kems)
      : identity_(std::move(identity)), signing_(std::move(signing)), kems_(std::move(kems)) {}
  const Identity& identity() const override { return identity_; }
  Result<Signature> sign(const Context&, BytesView data, std::string_view context) override {
    return signing_.sign(data, as_bytes(context));
  }
  Result<Secret> decapsulate(const Context&, std::string_view key_id, BytesView ciphertext) override {
    const auto kem = kems_.find(key_id);
    if (kem == kems_.end()) return failure(ErrorKind::not_found, fmt::format("no key set `{}` here", key_id));
    return kem->second.decapsulate(ciphertext);
  }

 private:
  const Identity identity_;
  const crypto::SigningKey signing_;
  const std::map<std::string, KemPrivateKey, std::less<>> kems_;  ///< by the id of their set
};

Result<ByteArray<32>> array_of(BytesView bytes) {
  if (bytes.size() != 32) return failure(ErrorKind::invalid_input, "an x25519 key has 32 bytes");
  ByteArray<32> out;
  std::ranges::copy(bytes, out.begin());
  return out;
}

ByteArray<32> public_of(const KemPrivateKey& key) {
  auto out = array_of(key.public_key().bytes());
  CRETO_ASSERT(out);
  return *out;
}

Result<AeadKey> wrapping_key(const Secret& shared) {
  Secret key = CRETO_TRY(crypto::hkdf_sha256(shared.reveal(), {}, as_bytes(wrap_info), crypto::aead_key_size));
  return AeadKey::create(AeadAlgorithm::aes_256_gcm, std::move(key));
}

/// What a wrapped key is bound to.
Bytes wrap_associated_data(BytesView header_bytes, const Identity& recipient, std::string_view key_id) {
  Writer out;
  out.raw(header_bytes);
  out.text16(recipient.text());
  out.text16(key_id);
  return std::move(out).take();
}

/// What is stored of a session: how it began, for as long as the peer may not know it, and its ratchet.
struct StoredSession {
  std::optional<StartBody> start;
  Ratchet ratchet;

  Secret serialize() const {
    Writer first;
    if (start) start->write(first);
    const Secret state = ratchet.serialize();
    Writer out;
    out.reserve(first.bytes().size() + state.size() + 16);
    out.bytes32(first.bytes());
    out.bytes32(state.reveal());
    return Secret(std::move(out).take());
  }

  static Result<StoredSession> deserialize(BytesView bytes) {
    Reader in(bytes);
    const BytesView first = in.bytes32();
    const BytesView state = in.bytes32();
    std::optional<StartBody> start;
    if (in.ok() && !first.empty()) {
      Reader inner(first);
      start = read_start(inner);
      if (!inner.ok() || !inner.at_end()) in.fail();
    }
    if (!in.ok() || !in.at_end()) return failure(ErrorKind::internal, "a stored session does not read back");
    Ratchet ratchet = CRETO_TRY(Ratchet::deserialize(state));
    return StoredSession{std::move(start), std::move(ratchet)};
  }
};

/// What is kept of an opened message until it is acknowledged.
Secret kept_content(const Hash256& digest, const OpenedMessage& message) {
  Writer out;
  out.reserve(message.body.size() + 64);
  out.raw(digest);
  out.u8(message.protocol == Protocol::session ? 1 : 0);
  out.u8(message.session_established ? 1 : 0);
  out.bytes32(message.body.reveal());
  return Secret(std::move(out).take());
}

class SealingEndpoint final : public Endpoint {
 public:
  SealingEndpoint(EndpointStore& store, EndpointKeys& keys, nhi::Nhi& nhi, const Clock& clock, EndpointOptions options)
      : store_(store), keys_(keys), nhi_(nhi), clock_(clock), options_(options) {}

  Result<SealedMessage> seal(const Context& ctx, const Identity& recipient, const Draft& draft) override {
    Header header = CRETO_TRY(make_header(Kind::one_shot, draft));
    header.recipient = recipient;
    const std::vector<Identity> recipients = {recipient};
    return seal_one_shot(ctx, header, recipients, draft.body);
  }

  Result<SealedMessage> seal_for_topic(const Context& ctx, std::string_view topic,
                                       const std::vector<Identity>& subscribers, const Draft& draft) override {
    if (subscribers.empty() || subscribers.size() > topic_recipients_max) {
      return failure(ErrorKind::invalid_input, "a topic message is sealed for 1 to 256 subscribers");
    }
    Header header = CRETO_TRY(make_header(Kind::one_shot, draft));
    header.topic = topic;
    return seal_one_shot(ctx, header, subscribers, draft.body);
  }

  Result<SealedMessage> seal_in_session(const Context& ctx, const Identity& recipient, const Draft& draft) override {
    Header header = CRETO_TRY(make_header(Kind::ratchet, draft));
    header.recipient = recipient;
    std::optional<NewSession> fresh;
    std::optional<SealedMessage> sealed = CRETO_TRY(seal_with_session(ctx, header, draft.body, fresh));
    if (!sealed) {
      fresh = CRETO_TRY(begin_session(ctx, recipient));
      sealed = CRETO_TRY(seal_with_session(ctx, header, draft.body, fresh));
      CRETO_ASSERT(sealed);
    }
    return *std::move(sealed);
  }

  Result<OpenedMessage> open(const Context& ctx, const SealedMessage& message) override {
    const Envelope envelope = CRETO_TRY(parse_envelope(message.envelope));
    const Header& header = envelope.header;
    CRETO_TRY(check_fields(message, header));
    const Identity& me = keys_.identity();
    if (header.recipient && *header.recipient != me) {
      return failure(ErrorKind::invalid_input, fmt::format("message `{}` is for somebody else", header.id.to_string()));
    }
    const Hash256 digest = crypto::sha3_256(message.envelope);
    OpenedMessage out = describe(header);
    // What was opened before is answered before its time is looked at: it may have expired since.
    bool known = false;
    CRETO_TRY(store_.transaction(ctx, [&](EndpointStore::Tx& tx) -> Result<> {
      known = CRETO_TRY(recall(tx, digest, out));
      return {};
    }));
    if (known) return out;
    const Instant now = clock_.now();
    if (now >= header.sent_at + header.ttl) {
      return failure(ErrorKind::expired, fmt::format("message `{}` has expired", header.id.to_string()));
    }
    if (header.sent_at > now + options_.clock_skew) {
      return failure(ErrorKind::invalid_input,
                     fmt::format("message `{}` comes from the future", header.id.to_string()));
    }
    if (envelope.signature) {
      const Hash256 signed_hash = signed_digest(envelope.signed_bytes);
      auto verified = nhi_.verify(ctx, header.sender, signed_hash, *envelope.signature, signature_context);
      if (!verified) {
        return failure(ErrorKind::signature_invalid,
                       fmt::format("message `{}` is not signed by `{}`", header.id.to_string(), header.sender.text()))
            .with_cause(std::move(verified).error());
      }
    }
    if (envelope.one_shot) out.body = CRETO_TRY(open_one_shot(ctx, envelope));
    CRETO_TRY(store_.transaction(ctx, [&](EndpointStore::Tx& tx) -> Result<> {
      out.session_established = false;
      // Again, for who opened it meanwhile.
      const bool meanwhile = CRETO_TRY(recall(tx, digest, out));
      if (meanwhile) return {};
      if (envelope.ratchet) CRETO_TRY(open_in_session(tx, envelope, out));
      return tx.put_opened({header.id, kept_content(digest, out)}, header.sent_at + header.ttl + options_.clock_skew);
    }));
    return out;
  }

  Result<> acknowledge(const Context& ctx, const MessageId& message) override {
    return store_.transaction(ctx, [&](EndpointStore::Tx& tx) -> Result<> {
      const auto opened = CRETO_TRY(tx.opened(message));
      if (!opened) return {};
      return tx.put_opened({message, {}}, Instant{});
    });
  }

  Result<> publish_keys(const Context& ctx) override {
    const Instant now = clock_.now();
    const nhi::PrekeyCount count = CRETO_TRY(on_offer(ctx));
    std::vector<EndpointStore::PrivateKey> made;
    Secret identity_dh;
    EndpointStore::PrivateKey signed_prekey{};
    EndpointStore::PrivateKey last_resort{};
    CRETO_TRY(store_.transaction(ctx, [&](EndpointStore::Tx& tx) -> Result<> {
      made.clear();
      identity_dh = CRETO_TRY(own_identity_dh(tx));
      signed_prekey = CRETO_TRY(fresh_enough(tx, KeyUse::signed_prekey, now));
      last_resort = CRETO_TRY(fresh_enough(tx, KeyUse::last_resort_kem, now));
      for (std::int64_t n = count.one_time; n < options_.one_time_prekeys; ++n) {
        auto key = CRETO_TRY(make_key(tx, KeyUse::one_time, now));
        made.push_back(std::move(key));
      }
      for (std::int64_t n = count.one_time_kem; n < options_.one_time_prekeys; ++n) {
        auto key = CRETO_TRY(make_key(tx, KeyUse::one_time_kem, now));
        made.push_back(std::move(key));
      }
      // A message that begins a session lives 30 days at most, so older private keys open nothing any more.
      const Instant useless = now - ttl_max - options_.signed_prekey_age - options_.clock_skew;
      for (const KeyUse use : {KeyUse::signed_prekey, KeyUse::last_resort_kem}) {
        CRETO_TRY(tx.drop_keys_before(use, useless));
      }
      return {};
    }));
    // Signing may leave the process, so it happens outside the transaction. Where it fails, the private halves made
    // above stay unused.
    nhi::KeyBundleUpload upload;
    upload.identity_dh = public_bytes(KeyUse::identity_dh, identity_dh);
    upload.identity_dh_signature = CRETO_TRY(sign_prekey(ctx, nhi::PrekeyUse::identity_dh, 0, upload.identity_dh));
    upload.signed_prekey = CRETO_TRY(signed_half(ctx, signed_prekey));
    upload.last_resort_kem = CRETO_TRY(signed_half(ctx, last_resort));
    for (const auto& key : made) {
      if (key.use == KeyUse::one_time) {
        upload.one_time.push_back({key.id, public_bytes(key.use, key.seed)});
      } else {
        auto half = CRETO_TRY(signed_half(ctx, key));
        upload.one_time_kem.push_back(std::move(half));
      }
    }
    CRETO_TRY(nhi_.publish_key_bundle(ctx, keys_.identity(), upload));
    return store_.forget_expired(ctx, now);
  }

  Result<> end_sessions(const Context& ctx, const Identity& peer) override {
    return store_.transaction(ctx, [&](EndpointStore::Tx& tx) { return tx.drop_sessions(peer); });
  }

 private:
  struct NewSession {
    SessionId id;
    StoredSession session;
  };

  Result<Header> make_header(Kind kind, const Draft& draft) const {
    if (draft.ttl < ttl_min || draft.ttl > ttl_max) {
      return failure(ErrorKind::invalid_input, "ttl: must be 1 second to 30 days");
    }
    if (draft.body.size() > envelope_bytes_max) {
      return failure(ErrorKind::too_large, fmt::format("a message has at most {} bytes", envelope_bytes_max));
    }
    const Instant now = clock_.now();
    return Header{.kind = kind,
                  .id = draft.id ? *draft.id : MessageId::fresh(now),
                  .sent_at = now,
                  .ttl = draft.ttl,
                  .priority = draft.priority,
                  .sender = keys_.identity()};
  }

  OpenedMessage describe(const Header& header) const {
    return {.id = header.id,
            .sender = header.sender,
            .topic = header.topic,
            .priority = header.priority,
            .sent_at = header.sent_at,
            .protocol = header.kind == Kind::one_shot ? Protocol::envelope : Protocol::session};
  }

  Result<SealedMessage> finished(const Header& header, Bytes envelope) const {
    if (envelope.size() > envelope_bytes_max) {
      return failure(ErrorKind::too_large, fmt::format("the sealed message has {} bytes, at most {} are carried",
                                                       envelope.size(), envelope_bytes_max));
    }
    return to_sealed_message(header, std::move(envelope));
  }

  Result<Signature> sign_bytes(const Context& ctx, BytesView bytes) {
    const Hash256 digest = signed_digest(bytes);
    return keys_.sign(ctx, digest, signature_context);
  }

  // --- one-shot

  Result<SealedMessage> seal_one_shot(const Context& ctx, const Header& header, const std::vector<Identity>& recipients,
                                      BytesView body) {
    Writer out;
    header.write(out);
    const Bytes header_bytes = out.bytes();
    const AeadKey data_key = AeadKey::generate();
    OneShotBody sealed;
    for (const Identity& recipient : recipients) {
      WrappedKey key = CRETO_TRY(wrap(ctx, header_bytes, recipient, data_key));
      sealed.keys.push_back(std::move(key));
    }
    sealed.payload = data_key.seal(body, header_bytes).encode();
    write_one_shot(out, sealed);
    const Signature signature = CRETO_TRY(sign_bytes(ctx, out.bytes()));
    write_signature(out, signature);
    return finished(header, std::move(out).take());
  }

  Result<WrappedKey> wrap(const Context& ctx, BytesView header_bytes, const Identity& recipient,
                          const AeadKey& data_key) {
    const auto keys = nhi_.get_public_keys(ctx, recipient);
    if (!keys) {
      if (keys.error().kind() != ErrorKind::not_found) return Error(keys.error());
      return failure(ErrorKind::recipient_not_found, fmt::format("recipient `{}` is not registered", recipient.text()))
          .with_cause(Error(keys.error()));
    }
    if (!keys->kem) {
      return failure(ErrorKind::recipient_not_found,
                     fmt::format("recipient `{}` has registered no key to encrypt to", recipient.text()));
    }
    const auto made = CRETO_TRY(keys->kem->encapsulate());
    const AeadKey wrapping = CRETO_TRY(wrapping_key(made.shared_secret));
    const Bytes bound = wrap_associated_data(header_bytes, recipient, keys->key_id);
    return WrappedKey{recipient, keys->key_id, std::string(crypto::to_string(keys->kem->algorithm())), made.ciphertext,
                      wrapping.seal(data_key.key().reveal(), bound).encode()};
  }

  Result<Secret> open_one_shot(const Context& ctx, const Envelope& envelope) {
    const auto& keys = envelope.one_shot->keys;
    const auto mine = std::ranges::find(keys, keys_.identity(), &WrappedKey::recipient);
    if (mine == keys.end()) {
      return failure(ErrorKind::invalid_input,
                     fmt::format("message `{}` is not sealed for us", envelope.header.id.to_string()));
    }
    const Secret shared = CRETO_TRY(keys_.decapsulate(ctx, mine->key_id, mine->kem_ciphertext));
    const AeadKey wrapping = CRETO_TRY(wrapping_key(shared));
    const auto wrapped = CRETO_TRY(crypto::Ciphertext::parse(mine->sealed_key));
    Secret key =
        CRETO_TRY(wrapping.open(wrapped, wrap_associated_data(envelope.header_bytes, keys_.identity(), mine->key_id)));
    const auto payload = CRETO_TRY(crypto::Ciphertext::parse(envelope.one_shot->payload));
    const AeadKey data_key = CRETO_TRY(AeadKey::create(payload.algorithm, std::move(key)));
    return data_key.open(payload, envelope.header_bytes);
  }

  // --- sessions

  /// None where there is no session and `fresh` holds none to begin with.
  Result<std::optional<SealedMessage>> seal_with_session(const Context& ctx, Header header, BytesView body,
                                                         std::optional<NewSession>& fresh) {
    const Identity& peer = *header.recipient;
    Writer out;
    bool found = false;
    bool starts = false;
    CRETO_TRY(store_.transaction(ctx, [&](EndpointStore::Tx& tx) -> Result<> {
      out = Writer();
      auto stored = CRETO_TRY(tx.newest_session(peer));
      if (!stored) {
        if (!fresh) return {};
        stored = EndpointStore::Session{fresh->id, fresh->session.serialize()};
      }
      found = true;
      StoredSession session = CRETO_TRY(StoredSession::deserialize(stored->state.reveal()));
      auto sealing = CRETO_TRY(session.ratchet.next_sending());
      sealing.header.session = stored->id;
      // Until the peer has answered, each message can begin the session: the first one may be lost.
      starts = session.start.has_value();
      header.kind = starts ? Kind::session_start : Kind::ratchet;
      header.write(out);
      if (starts) session.start->write(out);
      sealing.header.write(out);
      const Bytes authenticated = out.bytes();
      out.bytes32(session.ratchet.seal(sealing, authenticated, body));
      return tx.put_session(peer, {stored->id, session.serialize()});
    }));
    if (!found) return std::optional<SealedMessage>();
    if (starts) {
      const Signature signature = CRETO_TRY(sign_bytes(ctx, out.bytes()));
      write_signature(out, signature);
    }
    SealedMessage sealed = CRETO_TRY(finished(header, std::move(out).take()));
    return std::optional<SealedMessage>(std::move(sealed));
  }

  Result<NewSession> begin_session(const Context& ctx, const Identity& peer) {
    const nhi::KeyBundle bundle = CRETO_TRY(nhi_.take_key_bundle(ctx, peer));
    CRETO_TRY(check_bundle(peer, bundle));
    Secret seed;
    CRETO_TRY(store_.transaction(ctx, [&](EndpointStore::Tx& tx) -> Result<> {
      seed = CRETO_TRY(own_identity_dh(tx));
      return {};
    }));
    const KemPrivateKey identity_dh = CRETO_TRY(KemPrivateKey::from_seed(KemAlgorithm::x25519, seed.reveal()));
    const KemPrivateKey base_key = KemPrivateKey::generate(KemAlgorithm::x25519);
    const KemPublicKey kem = CRETO_TRY(KemPublicKey::parse(KemAlgorithm::ml_kem_768, bundle.kem.key));
    const auto encapsulated = CRETO_TRY(kem.encapsulate());
    HandshakeKeys handshake{.initiator = keys_.identity(), .responder = peer};
    handshake.initiator_dh = public_of(identity_dh);
    handshake.responder_dh = CRETO_TRY(array_of(bundle.identity_dh));
    handshake.base_key = public_of(base_key);
    handshake.signed_prekey = CRETO_TRY(array_of(bundle.signed_prekey.key));
    if (bundle.one_time) handshake.one_time_prekey = CRETO_TRY(array_of(bundle.one_time->key));
    handshake.kem_prekey = bundle.kem.key;
    Secret shared = CRETO_TRY(pqxdh_initiate(handshake, identity_dh, base_key, encapsulated.shared_secret.reveal()));
    Ratchet ratchet =
        CRETO_TRY(Ratchet::initiate(handshake.associated_data(), std::move(shared), handshake.signed_prekey));
    StartBody start;
    start.identity_dh = handshake.initiator_dh;
    start.base_key = handshake.base_key;
    start.signed_prekey = bundle.signed_prekey.id;
    if (bundle.one_time) start.one_time_prekey = bundle.one_time->id;
    start.kem_prekey = bundle.kem.id;
    start.kem_is_last_resort = bundle.kem_is_last_resort;
    start.kem_ciphertext = encapsulated.ciphertext;
    return NewSession{handshake.session_id(), StoredSession{std::move(start), std::move(ratchet)}};
  }

  /// nhi checked these when they were published. They are checked here again, because whoever could swap a prekey on
  /// the way could read the session.
  static Result<> check_bundle(const Identity& peer, const nhi::KeyBundle& bundle) {
    const auto check = [&](nhi::PrekeyUse use, std::uint32_t id, BytesView key,
                           const Signature& signature) -> Result<> {
      const std::string bytes = nhi::prekey_signed_bytes(peer, use, id, key);
      return bundle.keys.signing.verify(as_bytes(bytes), signature, as_bytes(nhi::prekey_context));
    };
    if (bundle.identity != peer) return failure(ErrorKind::signature_invalid, "the key bundle is somebody else's");
    CRETO_TRY(check(nhi::PrekeyUse::identity_dh, 0, bundle.identity_dh, bundle.identity_dh_signature));
    CRETO_TRY(check(nhi::PrekeyUse::signed_prekey, bundle.signed_prekey.id, bundle.signed_prekey.key,
                    bundle.signed_prekey.signature));
    return check(nhi::PrekeyUse::kem, bundle.kem.id, bundle.kem.key, bundle.kem.signature);
  }

  Result<> open_in_session(EndpointStore::Tx& tx, const Envelope& envelope, OpenedMessage& out) {
    const Identity& peer = envelope.header.sender;
    const RatchetBody& body = *envelope.ratchet;
    auto stored = CRETO_TRY(tx.session(peer, body.header.session));
    std::optional<StoredSession> session;
    if (stored) {
      session = CRETO_TRY(StoredSession::deserialize(stored->state.reveal()));
    } else if (envelope.start) {
      session = CRETO_TRY(accept_session(tx, envelope));
      out.session_established = true;
    } else {
      return failure(ErrorKind::decryption_failed,
                     fmt::format("there is no such session with `{}`; it has to begin a new one", peer.text()));
    }
    out.body = CRETO_TRY(session->ratchet.decrypt(body.header, envelope.authenticated, body.ciphertext));
    session->start.reset();  // the peer has answered
    return tx.put_session(peer, {body.header.session, session->serialize()});
  }

  Result<StoredSession> accept_session(EndpointStore::Tx& tx, const Envelope& envelope) {
    const StartBody& start = *envelope.start;
    const auto no_key = [](std::string_view which) {
      return failure(ErrorKind::decryption_failed,
                     fmt::format("the session uses a {} that is not or no longer here", which));
    };
    const KeyUse kem_use = start.kem_is_last_resort ? KeyUse::last_resort_kem : KeyUse::one_time_kem;
    const auto signed_prekey = CRETO_TRY(tx.key(KeyUse::signed_prekey, start.signed_prekey));
    if (!signed_prekey) return no_key("signed prekey");
    const auto kem_prekey = CRETO_TRY(tx.key(kem_use, start.kem_prekey));
    if (!kem_prekey) return no_key("KEM prekey");
    std::optional<KemPrivateKey> one_time;
    if (start.one_time_prekey) {
      const auto found = CRETO_TRY(tx.key(KeyUse::one_time, *start.one_time_prekey));
      if (!found) return no_key("one-time prekey");
      one_time = CRETO_TRY(KemPrivateKey::from_seed(KemAlgorithm::x25519, found->seed.reveal()));
    }
    Writer triple;
    triple.u32(start.kem_prekey);
    triple.u32(start.signed_prekey);
    triple.raw(start.base_key);
    const bool first_time = CRETO_TRY(tx.note_start(crypto::sha3_256(triple.bytes())));
    if (!first_time) {
      return failure(ErrorKind::conflict, "this start of a session was used before");
    }
    const Secret seed = CRETO_TRY(own_identity_dh(tx));
    const KemPrivateKey identity_dh = CRETO_TRY(KemPrivateKey::from_seed(KemAlgorithm::x25519, seed.reveal()));
    KemPrivateKey prekey = CRETO_TRY(KemPrivateKey::from_seed(KemAlgorithm::x25519, signed_prekey->seed.reveal()));
    const KemPrivateKey kem = CRETO_TRY(KemPrivateKey::from_seed(KemAlgorithm::ml_kem_768, kem_prekey->seed.reveal()));
    HandshakeKeys handshake{.initiator = envelope.header.sender, .responder = keys_.identity()};
    handshake.initiator_dh = start.identity_dh;
    handshake.responder_dh = public_of(identity_dh);
    handshake.base_key = start.base_key;
    handshake.signed_prekey = public_of(prekey);
    if (one_time) handshake.one_time_prekey = public_of(*one_time);
    handshake.kem_prekey = kem.public_key().bytes();
    if (handshake.session_id() != envelope.ratchet->header.session) {
      return failure(ErrorKind::decryption_failed, "the session does not follow from these keys");
    }
    const Secret kem_secret = CRETO_TRY(kem.decapsulate(start.kem_ciphertext));
    Secret shared =
        CRETO_TRY(pqxdh_respond(handshake, identity_dh, prekey, one_time ? &*one_time : nullptr, kem_secret.reveal()));
    // One-time keys go with the transaction: should the message not open, it is undone and they stay.
    if (start.one_time_prekey) CRETO_TRY(tx.drop_key(KeyUse::one_time, *start.one_time_prekey));
    if (!start.kem_is_last_resort) CRETO_TRY(tx.drop_key(KeyUse::one_time_kem, start.kem_prekey));
    return StoredSession{std::nullopt,
                         Ratchet::respond(handshake.associated_data(), std::move(shared), std::move(prekey))};
  }

  /// True with `out` completed from what was kept. Errors: conflict where it was acknowledged or is another message.
  static Result<bool> recall(EndpointStore::Tx& tx, const Hash256& digest, OpenedMessage& out) {
    const auto opened = CRETO_TRY(tx.opened(out.id));
    if (!opened) return false;
    if (opened->content.empty()) {
      return failure(ErrorKind::conflict, fmt::format("message `{}` was opened before", out.id.to_string()));
    }
    Reader in(opened->content.reveal());
    const auto kept_digest = in.array<32>();
    const bool session = in.u8() == 1;
    const bool established = in.u8() == 1;
    const BytesView body = in.bytes32();
    CRETO_ASSERT(in.ok() && in.at_end());
    if (kept_digest != digest) {
      return failure(ErrorKind::conflict, fmt::format("another message was opened as `{}`", out.id.to_string()));
    }
    out.protocol = session ? Protocol::session : Protocol::envelope;
    out.session_established = established;
    out.body = Secret::copy_of(body);
    return true;
  }

  // --- keys

  static bool is_kem(KeyUse use) { return use == KeyUse::last_resort_kem || use == KeyUse::one_time_kem; }
  static KemAlgorithm algorithm_of(KeyUse use) { return is_kem(use) ? KemAlgorithm::ml_kem_768 : KemAlgorithm::x25519; }
  static Bytes public_bytes(KeyUse use, const Secret& seed) {
    const auto key = KemPrivateKey::from_seed(algorithm_of(use), seed.reveal());
    CRETO_ASSERT(key);
    return key->public_key().bytes();
  }

  Result<Secret> own_identity_dh(EndpointStore::Tx& tx) {
    auto found = CRETO_TRY(tx.key(KeyUse::identity_dh, 0));
    if (found) return std::move(found->seed);
    const KemPrivateKey fresh = KemPrivateKey::generate(KemAlgorithm::x25519);
    CRETO_TRY(tx.put_key({KeyUse::identity_dh, 0, fresh.seed().clone(), clock_.now()}));
    return fresh.seed().clone();
  }

  Result<EndpointStore::PrivateKey> make_key(EndpointStore::Tx& tx, KeyUse use, Instant now) {
    const std::uint32_t id = CRETO_TRY(tx.fresh_key_id());
    const KemPrivateKey fresh = KemPrivateKey::generate(algorithm_of(use));
    EndpointStore::PrivateKey key{use, id, fresh.seed().clone(), now};
    CRETO_TRY(tx.put_key(key));
    return key;
  }

  Result<EndpointStore::PrivateKey> fresh_enough(EndpointStore::Tx& tx, KeyUse use, Instant now) {
    auto newest = CRETO_TRY(tx.newest_key(use));
    if (newest && now - newest->created_at < options_.signed_prekey_age) return *std::move(newest);
    return make_key(tx, use, now);
  }

  Result<nhi::PrekeyCount> on_offer(const Context& ctx) {
    auto count = nhi_.prekey_count(ctx, keys_.identity());
    if (!count && count.error().kind() == ErrorKind::not_found) return nhi::PrekeyCount{};
    return count;
  }

  Result<Signature> sign_prekey(const Context& ctx, nhi::PrekeyUse use, std::uint32_t id, BytesView key) {
    const std::string bytes = nhi::prekey_signed_bytes(keys_.identity(), use, id, key);
    return keys_.sign(ctx, as_bytes(bytes), nhi::prekey_context);
  }

  Result<nhi::SignedPrekey> signed_half(const Context& ctx, const EndpointStore::PrivateKey& key) {
    nhi::SignedPrekey out;
    out.id = key.id;
    out.key = public_bytes(key.use, key.seed);
    out.signature = CRETO_TRY(
        sign_prekey(ctx, is_kem(key.use) ? nhi::PrekeyUse::kem : nhi::PrekeyUse::signed_prekey, key.id, out.key));
    return out;
  }

  EndpointStore& store_;
  EndpointKeys& keys_;
  nhi::Nhi& nhi_;
  const Clock& clock_;
  const EndpointOptions options_;
};

}  // namespace

std::unique_ptr<EndpointKeys> keys_held_by_nhi(nhi::Nhi& nhi, Identity identity) {
  return std::make_unique<NhiKeys>(nhi, std::move(identity));
}

std::unique_ptr<EndpointKeys> keys_held_here(Identity identity, crypto::SigningKey signing, KemPrivateKey kem,
                                             std::string key_id,
                                             std::map<std::string, KemPrivateKey, std::less<>> earlier) {
  earlier.insert_or_assign(std::move(key_id), std::move(kem));
  return std::make_unique<OwnKeys>(std::move(identity), std::move(signing), std::move(earlier));
}

std::unique_ptr<Endpoint> create_endpoint(EndpointStore& store, EndpointKeys& keys, nhi::Nhi& nhi, const Clock& clock,
                                          EndpointOptions options) {
  return std::make_unique<SealingEndpoint>(store, keys, nhi, clock, options);
}

}  // namespace creto::messaging
