#include "wire.h"

#include <fmt/format.h>

#include <algorithm>

#include "creto/common/assert.h"
#include "creto/crypto/algorithm.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/kem.h"
#include "creto/crypto/signing.h"

namespace creto::messaging {
namespace {

constexpr std::string_view magic = "CRMG";
constexpr std::uint8_t version = 1;
constexpr std::size_t topic_bytes_max = 128;
constexpr std::size_t key_id_bytes_max = 128;

Error malformed(std::string_view why) {
  return Error(Product::messaging, ErrorKind::invalid_input, fmt::format("message: {}", why));
}

bool read_header(Reader& in, Header& header) {
  const std::uint8_t kind = in.u8();
  if (kind < 1 || kind > 3) return false;
  header.kind = static_cast<Kind>(kind);
  header.id = MessageId::from_bytes(in.array<16>());
  header.sent_at = from_unix_ns(in.i64());
  header.ttl = Nanos(in.i64());
  const std::uint8_t priority = in.u8();
  if (priority > static_cast<std::uint8_t>(contracts::MessagePriority::urgent)) return false;
  header.priority = static_cast<contracts::MessagePriority>(priority);
  auto sender = Identity::parse(in.text16());
  if (!in.ok() || !sender) return false;
  header.sender = *std::move(sender);
  const std::string recipient = in.text16();
  if (!recipient.empty()) {
    auto parsed = Identity::parse(recipient);
    // The text must be the identity's own spelling, or two headers would mean the same.
    if (!parsed || parsed->text() != recipient) return false;
    header.recipient = *std::move(parsed);
  }
  header.topic = in.text16();
  if (header.topic.size() > topic_bytes_max || !is_valid_utf8(header.topic)) return false;
  // Exactly one of the two, and only one-shot messages go to topics.
  if (header.recipient.has_value() == !header.topic.empty()) return false;
  return in.ok() && (header.kind == Kind::one_shot || header.recipient.has_value());
}

Result<OneShotBody> read_one_shot(Reader& in) {
  OneShotBody body;
  const std::uint16_t count = in.u16();
  if (count < 1 || count > topic_recipients_max) return malformed("must be sealed for 1 to 256 recipients");
  for (std::uint16_t i = 0; i < count && in.ok(); ++i) {
    auto recipient = Identity::parse(in.text16());
    if (!recipient) return malformed("a wrapped key names no recipient");
    WrappedKey key{*std::move(recipient), in.text16(), in.text16(), {}, {}};
    if (key.key_id.size() > key_id_bytes_max) return malformed("a key id is too long");
    const auto kem = CRETO_TRY(crypto::parse_kem_algorithm(key.kem));
    if (kem == crypto::KemAlgorithm::x25519) return malformed("keys are wrapped by x-wing or ml-kem-768");
    key.kem_ciphertext = to_bytes(in.raw(crypto::sizes_of(kem).ciphertext));
    key.sealed_key = to_bytes(in.bytes32());
    body.keys.push_back(std::move(key));
  }
  body.payload = to_bytes(in.bytes32());
  if (!in.ok()) return malformed("it is cut off");
  return body;
}

RatchetHeader read_ratchet(Reader& in) {
  RatchetHeader header;
  header.session = in.array<16>();
  header.key = in.array<32>();
  header.previous_count = in.u32();
  header.number = in.u32();
  return header;
}

}  // namespace

void Writer::text16(std::string_view text) {
  CRETO_ASSERT(text.size() <= 0xffff);
  u16(text.size());
  raw(as_bytes(text));
}

void Writer::bytes32(BytesView bytes) {
  CRETO_ASSERT(bytes.size() <= 0xffffffff);
  u32(bytes.size());
  raw(bytes);
}

BytesView Reader::raw(std::size_t size) {
  if (!ok_ || size > rest_.size()) {
    ok_ = false;
    return {};
  }
  const BytesView out = rest_.first(size);
  rest_ = rest_.subspan(size);
  return out;
}

std::uint64_t Reader::integer(std::size_t size) {
  std::uint64_t value = 0;
  for (const std::uint8_t byte : raw(size)) value = value << 8 | byte;
  return value;
}

void Header::write(Writer& out) const {
  out.raw(as_bytes(magic));
  out.u8(version);
  out.u8(static_cast<std::uint8_t>(kind));
  out.raw(id.bytes());
  out.i64(unix_ns(sent_at));
  out.i64(ttl.count());
  out.u8(static_cast<std::uint8_t>(priority));
  out.text16(sender.text());
  out.text16(recipient ? recipient->text() : std::string());
  out.text16(topic);
}

void RatchetHeader::write(Writer& out) const {
  out.raw(session);
  out.raw(key);
  out.u32(previous_count);
  out.u32(number);
}

void StartBody::write(Writer& out) const {
  out.raw(identity_dh);
  out.raw(base_key);
  out.u32(signed_prekey);
  out.u8(one_time_prekey ? 1 : 0);
  out.u32(one_time_prekey.value_or(0));
  out.u32(kem_prekey);
  out.u8(kem_is_last_resort ? 1 : 0);
  out.raw(kem_ciphertext);
}

StartBody read_start(Reader& in) {
  StartBody body;
  body.identity_dh = in.array<32>();
  body.base_key = in.array<32>();
  body.signed_prekey = in.u32();
  const std::uint8_t has_one_time = in.u8();
  const std::uint32_t one_time = in.u32();
  if (has_one_time == 1) {
    body.one_time_prekey = one_time;
  } else if (has_one_time != 0 || one_time != 0) {
    in.fail();
  }
  body.kem_prekey = in.u32();
  const std::uint8_t last_resort = in.u8();
  if (last_resort > 1) in.fail();
  body.kem_is_last_resort = last_resort == 1;
  body.kem_ciphertext = to_bytes(in.raw(crypto::sizes_of(crypto::KemAlgorithm::ml_kem_768).ciphertext));
  return body;
}

void write_one_shot(Writer& out, const OneShotBody& body) {
  CRETO_ASSERT(!body.keys.empty() && body.keys.size() <= topic_recipients_max);
  out.u16(body.keys.size());
  for (const WrappedKey& key : body.keys) {
    out.text16(key.recipient.text());
    out.text16(key.key_id);
    out.text16(key.kem);
    out.raw(key.kem_ciphertext);
    out.bytes32(key.sealed_key);
  }
  out.bytes32(body.payload);
}

void write_signature(Writer& out, const Signature& signature) {
  out.text16(signature.algorithm);
  out.bytes32(signature.value);
}

Hash256 signed_digest(BytesView signed_bytes) { return crypto::sha3_256(signed_bytes); }

Result<Envelope> parse_envelope(BytesView bytes) {
  if (bytes.size() > envelope_bytes_max) {
    return Error(Product::messaging, ErrorKind::too_large,
                 fmt::format("message: {} bytes, at most {} are carried", bytes.size(), envelope_bytes_max));
  }
  Reader in(bytes);
  if (as_text(in.raw(magic.size())) != magic) return malformed("this is not one");
  if (const std::uint8_t read = in.u8(); read != version)
    return malformed(fmt::format("version {} is not known", read));
  Envelope out{.header = {.id = MessageId::from_bytes({}), .sender = *Identity::service("nobody")}};
  if (!read_header(in, out.header)) return malformed("the header is malformed");
  out.header_bytes = in.consumed();
  if (out.header.kind == Kind::one_shot) {
    out.one_shot = CRETO_TRY(read_one_shot(in));
  } else {
    if (out.header.kind == Kind::session_start) out.start = read_start(in);
    RatchetBody body{read_ratchet(in), {}};
    out.authenticated = in.consumed();
    body.ciphertext = to_bytes(in.bytes32());
    out.ratchet = std::move(body);
  }
  if (!in.ok()) return malformed("it is cut off");
  if (out.header.kind != Kind::ratchet) {
    out.signed_bytes = in.consumed();
    Signature signature;
    signature.algorithm = in.text16();
    signature.value = to_bytes(in.bytes32());
    if (!in.ok()) return malformed("it is cut off");
    const auto algorithm = CRETO_TRY(crypto::parse_signature_algorithm(signature.algorithm));
    if (algorithm != crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65) {
      return Error(Product::messaging, ErrorKind::unsupported_algorithm, "message: must carry a hybrid signature");
    }
    out.signature = std::move(signature);
  }
  if (!in.at_end()) return malformed("something follows its end");
  return out;
}

contracts::SealedMessage to_sealed_message(const Header& header, Bytes envelope) {
  return {.message_id = header.id,
          .sender = header.sender,
          .recipient = header.recipient.value_or(header.sender),
          .topic = header.topic,
          .priority = header.priority,
          .sent_at = header.sent_at,
          .ttl = header.ttl,
          .envelope = std::move(envelope)};
}

Result<> check_fields(const contracts::SealedMessage& message, const Header& header) {
  const auto differs = [](std::string_view field) {
    return malformed(fmt::format("`{}` is not what the envelope says", field));
  };
  if (message.message_id != header.id) return differs("message_id");
  if (message.sender != header.sender) return differs("sender");
  if (header.recipient && message.recipient != *header.recipient) return differs("recipient");
  if (message.topic != header.topic) return differs("topic");
  if (message.priority != header.priority) return differs("priority");
  if (message.sent_at != header.sent_at) return differs("sent_at");
  if (message.ttl != header.ttl) return differs("ttl");
  return {};
}

}  // namespace creto::messaging
