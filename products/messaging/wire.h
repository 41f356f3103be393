#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/common/id.h"
#include "creto/common/secret.h"
#include "creto/common/signature.h"
#include "creto/contracts/sandbox_messenger.h"

/// The bytes of messages (docs/formats.md, "Messages"). Integers are big-endian; lengths stand before what they
/// measure.
namespace creto::messaging {

inline constexpr std::size_t envelope_bytes_max = 1 << 20;
inline constexpr std::size_t topic_recipients_max = 256;
inline constexpr std::string_view signature_context = "creto.message";

/// Writes to the end of a buffer.
class Writer {
 public:
  /// With room for `size` bytes at once: secrets leave no copies behind in buffers that were outgrown.
  void reserve(std::size_t size) { out_.reserve(size); }
  void u8(std::uint8_t value) { out_.push_back(value); }
  void u16(std::size_t value) { integer(value, 2); }
  void u32(std::size_t value) { integer(value, 4); }
  void i64(std::int64_t value) { integer(static_cast<std::uint64_t>(value), 8); }
  void raw(BytesView bytes) { out_.insert(out_.end(), bytes.begin(), bytes.end()); }
  void text16(std::string_view text);  ///< Requires: at most 65 535 bytes
  void bytes32(BytesView bytes);
  const Bytes& bytes() const { return out_; }
  Bytes take() && { return std::move(out_); }

 private:
  void integer(std::uint64_t value, int size) {
    for (int shift = 8 * (size - 1); shift >= 0; shift -= 8) out_.push_back(static_cast<std::uint8_t>(value >> shift));
  }
  Bytes out_;
};

/// Reads from the start of a buffer. After the first mistake everything reads as empty and `ok()` is false.
class Reader {
 public:
  explicit Reader(BytesView in) : in_(in), rest_(in) {}

  std::uint8_t u8() { return static_cast<std::uint8_t>(integer(1)); }
  std::uint16_t u16() { return static_cast<std::uint16_t>(integer(2)); }
  std::uint32_t u32() { return static_cast<std::uint32_t>(integer(4)); }
  std::int64_t i64() { return static_cast<std::int64_t>(integer(8)); }
  BytesView raw(std::size_t size);
  template <std::size_t N>
  ByteArray<N> array() {
    ByteArray<N> out{};
    const BytesView bytes = raw(N);
    if (ok_) std::copy(bytes.begin(), bytes.end(), out.begin());
    return out;
  }
  std::string text16() { return std::string(as_text(raw(u16()))); }
  BytesView bytes32() { return raw(u32()); }

  void fail() { ok_ = false; }
  bool ok() const { return ok_; }
  bool at_end() const { return rest_.empty(); }
  /// What has been read so far.
  BytesView consumed() const { return in_.first(in_.size() - rest_.size()); }

 private:
  std::uint64_t integer(std::size_t size);
  BytesView in_;
  BytesView rest_;
  bool ok_ = true;
};

enum class Kind : std::uint8_t {
  one_shot = 1,       ///< sealed for each recipient's published key, signed
  session_start = 2,  ///< PQXDH and a ratchet message, signed
  ratchet = 3,        ///< authenticated by its session alone
};

/// What stands in clear at the front of every message and is authenticated with the rest.
struct Header {
  Kind kind = Kind::one_shot;
  MessageId id;
  Instant sent_at{};
  Nanos ttl{};
  contracts::MessagePriority priority = contracts::MessagePriority::normal;
  Identity sender;
  std::optional<Identity> recipient = {};  ///< none for a topic
  std::string topic = {};                  ///< empty for a direct message

  void write(Writer& out) const;
};

/// The data key, wrapped for one recipient.
struct WrappedKey {
  Identity recipient;
  std::string key_id;  ///< which of the recipient's key sets
  std::string kem;     ///< "x-wing" or "ml-kem-768"
  Bytes kem_ciphertext;
  Bytes sealed_key;  ///< crypto::Ciphertext, encoded
};

struct OneShotBody {
  std::vector<WrappedKey> keys;
  Bytes payload;  ///< crypto::Ciphertext, encoded
};

/// Sixteen bytes that name a session at both ends.
using SessionId = ByteArray<16>;

struct RatchetHeader {
  SessionId session{};
  ByteArray<32> key{};  ///< the sender's current ratchet key, X25519
  std::uint32_t previous_count = 0;
  std::uint32_t number = 0;

  void write(Writer& out) const;
};

struct RatchetBody {
  RatchetHeader header;
  Bytes ciphertext;
};

struct StartBody {
  ByteArray<32> identity_dh{};
  ByteArray<32> base_key{};
  std::uint32_t signed_prekey = 0;
  std::optional<std::uint32_t> one_time_prekey;
  std::uint32_t kem_prekey = 0;
  bool kem_is_last_resort = false;
  Bytes kem_ciphertext;

  void write(Writer& out) const;
};

/// A message taken apart. Views point into the bytes that were parsed.
struct Envelope {
  Header header;
  BytesView header_bytes = {};  ///< magic to the end of the header
  std::optional<OneShotBody> one_shot = {};
  std::optional<StartBody> start = {};
  std::optional<RatchetBody> ratchet = {};
  BytesView authenticated = {};  ///< what the ratchet's AEAD covers: everything before its ciphertext
  BytesView signed_bytes = {};   ///< everything before the signature; empty where there is none
  std::optional<Signature> signature = {};
};

/// Errors: invalid_input for anything that is not exactly one message of this format; too_large over 1 MiB;
/// unsupported_algorithm.
Result<Envelope> parse_envelope(BytesView bytes);

/// What is signed: SHA3-256 of the bytes, under `signature_context`.
Hash256 signed_digest(BytesView signed_bytes);

/// `in` fails on a malformed one.
StartBody read_start(Reader& in);
void write_one_shot(Writer& out, const OneShotBody& body);
void write_signature(Writer& out, const Signature& signature);

/// The message as the service carries it, its fields read from its own header. A topic's recipient is its sender until
/// it is delivered.
contracts::SealedMessage to_sealed_message(const Header& header, Bytes envelope);
/// That the fields are those of the envelope's header. Errors: invalid_input naming the field.
Result<> check_fields(const contracts::SealedMessage& message, const Header& header);

}  // namespace creto::messaging
