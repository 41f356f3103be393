#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/secret.h"
#include "creto/common/signature.h"
#include "creto/contracts/sandbox_messenger.h"
#include "creto/crypto/kem.h"
#include "creto/crypto/key_sealer.h"
#include "creto/crypto/signing.h"

namespace creto::sql {
class Database;
}
namespace creto::nhi {
class Nhi;
}

/// The ends of a conversation: where messages are sealed and opened (architecture, "Messages"). The runtime has one
/// endpoint for each agent it runs, the command line one for its human. The messaging service in between sees sealed
/// bytes.
namespace creto::messaging {

/// The keys that speak for one identity.
class EndpointKeys {
 public:
  virtual ~EndpointKeys() = default;
  virtual const Identity& identity() const = 0;
  virtual Result<Signature> sign(const Context& ctx, BytesView data, std::string_view context) = 0;
  /// The secret in a ciphertext for the published key set `key_id`.
  virtual Result<Secret> decapsulate(const Context& ctx, std::string_view key_id, BytesView ciphertext) = 0;
};

/// An agent's or service's, which nhi keeps and uses. `nhi` must outlive it.
std::unique_ptr<EndpointKeys> keys_held_by_nhi(nhi::Nhi& nhi, Identity identity);
/// A human's own. `key_id` is that of the set as registered with nhi; `earlier` are the keys of other sets, by id: what
/// was sealed to them still opens.
std::unique_ptr<EndpointKeys> keys_held_here(Identity identity, crypto::SigningKey signing, crypto::KemPrivateKey kem,
                                             std::string key_id,
                                             std::map<std::string, crypto::KemPrivateKey, std::less<>> earlier = {});

/// Where an endpoint keeps its private prekeys, sessions and what it has opened. One call is one transaction: all of it
/// is durable when it returns success, or nothing of it was done.
class EndpointStore {
 public:
  enum class KeyUse : std::uint8_t { identity_dh, signed_prekey, last_resort_kem, one_time, one_time_kem };
  struct PrivateKey {
    KeyUse use;
    std::uint32_t id;
    Secret seed;
    Instant created_at{};
  };
  struct Session {
    ByteArray<16> id{};
    Secret state;
  };
  struct Opened {
    MessageId message;
    Secret content;  ///< with what the endpoint wants to know of it; empty once acknowledged
  };

  class Tx {
   public:
    virtual ~Tx() = default;
    virtual Result<std::optional<PrivateKey>> key(KeyUse use, std::uint32_t id) = 0;
    virtual Result<std::optional<PrivateKey>> newest_key(KeyUse use) = 0;
    virtual Result<> put_key(const PrivateKey& key) = 0;
    virtual Result<> drop_key(KeyUse use, std::uint32_t id) = 0;
    virtual Result<> drop_keys_before(KeyUse use, Instant created) = 0;
    virtual Result<std::uint32_t> fresh_key_id() = 0;  ///< from 1

    /// With `peer`, last used first.
    virtual Result<std::optional<Session>> newest_session(const Identity& peer) = 0;
    virtual Result<std::optional<Session>> session(const Identity& peer, const ByteArray<16>& id) = 0;
    /// Makes it the newest; of one peer the five newest are kept.
    virtual Result<> put_session(const Identity& peer, const Session& session) = 0;
    virtual Result<> drop_sessions(const Identity& peer) = 0;

    /// False where it was noted before.
    virtual Result<bool> note_start(const Hash256& triple) = 0;

    virtual Result<std::optional<Opened>> opened(const MessageId& message) = 0;
    virtual Result<> put_opened(const Opened& opened, Instant expires_at) = 0;
  };

  virtual ~EndpointStore() = default;
  virtual Result<> transaction(const Context& ctx, const std::function<Result<>(Tx&)>& fn) = 0;
  /// Forgets opened messages whose time has passed.
  virtual Result<> forget_expired(const Context& ctx, Instant now) = 0;
};

/// Rows of `database`, every secret sealed by `sealer` for its own place. Runs its migrations. Both must outlive it.
Result<std::unique_ptr<EndpointStore>> create_endpoint_store(sql::Database& database, crypto::KeySealer& sealer,
                                                             std::string org, Identity identity);

struct Draft {
  BytesView body = {};  ///< up to about 1 MiB less the envelope's own 10 KiB
  contracts::MessagePriority priority = contracts::MessagePriority::normal;
  Nanos ttl = std::chrono::hours(24);  ///< 1 s to 30 days
  std::optional<MessageId> id = {};    ///< default: a fresh one
};

enum class Protocol : std::uint8_t { envelope, session };

struct OpenedMessage {
  MessageId id;
  Identity sender;
  std::string topic;  ///< empty for a direct message
  contracts::MessagePriority priority = contracts::MessagePriority::normal;
  Instant sent_at{};
  Protocol protocol = Protocol::envelope;
  bool session_established = false;  ///< this message began a session
  Secret body = {};
};

struct EndpointOptions {
  std::uint32_t one_time_prekeys = 50;  ///< of each kind, kept on offer
  Nanos signed_prekey_age =
      std::chrono::days(7);                    ///< then a new one is made; the old ones still open what is under way
  Nanos clock_skew = std::chrono::minutes(5);  ///< how far in the future a message may say it was sent
};

/// Thread-safe. Works for one identity; `ctx.caller` is that identity.
///
/// Invariant 1: a message that fails to open changes nothing. Invariant 2: a message is opened once; asked again before
/// `acknowledge`, the endpoint gives the content it kept, after that it refuses.
class Endpoint {
 public:
  virtual ~Endpoint() = default;

  /// A message of its own for one recipient: AES-256-GCM under a fresh key, the key wrapped by X-Wing for the
  /// recipient's published one, all of it signed. Errors: recipient_not_found; invalid_input for a ttl outside its
  /// range; too_large.
  virtual Result<contracts::SealedMessage> seal(const Context& ctx, const Identity& recipient, const Draft& draft) = 0;
  /// For the subscribers of a topic, at most 256; their identities as `Messaging::subscribers` gives them.
  virtual Result<contracts::SealedMessage> seal_for_topic(const Context& ctx, std::string_view topic,
                                                          const std::vector<Identity>& subscribers,
                                                          const Draft& draft) = 0;
  /// In a Double Ratchet session, which the first message begins with PQXDH from the recipient's key bundle.
  /// Errors: as `seal`; not_found where the recipient has published no bundle; signature_invalid where it is not his.
  virtual Result<contracts::SealedMessage> seal_in_session(const Context& ctx, const Identity& recipient,
                                                           const Draft& draft) = 0;

  /// Checks sender, signature, time and recipient, and decrypts.
  /// Errors: signature_invalid; expired; decryption_failed; conflict for one that was opened and acknowledged before;
  /// invalid_input for what is no message, or none for us.
  virtual Result<OpenedMessage> open(const Context& ctx, const contracts::SealedMessage& message) = 0;
  /// The content was dealt with: it is forgotten. Unknown messages are fine.
  virtual Result<> acknowledge(const Context& ctx, const MessageId& message) = 0;

  /// Makes what private keys are missing or too old, and publishes their public halves. Also forgets what has
  /// expired. For the start and every day or so.
  virtual Result<> publish_keys(const Context& ctx) = 0;
  /// Ends all sessions with `peer`; the next message begins a new one.
  virtual Result<> end_sessions(const Context& ctx, const Identity& peer) = 0;
};

/// All references must outlive it.
std::unique_ptr<Endpoint> create_endpoint(EndpointStore& store, EndpointKeys& keys, nhi::Nhi& nhi, const Clock& clock,
                                          EndpointOptions options = {});

}  // namespace creto::messaging
