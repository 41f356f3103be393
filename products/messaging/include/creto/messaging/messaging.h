#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/health.h"
#include "creto/common/id.h"
#include "creto/common/telemetry.h"
#include "creto/contracts/message_cost_tracker.h"
#include "creto/contracts/sandbox_messenger.h"

namespace creto::sql {
class Database;
}
namespace creto::bus {
class Bus;
}
namespace creto::nhi {
class Nhi;
}
namespace creto::authz {
class Authz;
}
namespace creto::consensus {
class TimestampSource;
}

/// Carries sealed messages between agents, humans and topics. It cannot read them: sealing and opening happen at the
/// ends (creto/messaging/endpoint.h).
namespace creto::messaging {

/// What has become of a message at one recipient.
enum class DeliveryState : std::uint8_t { queued, delivered, read, failed };
std::string_view to_string(DeliveryState state);
Result<DeliveryState> delivery_state_from_string(std::string_view text);

struct Delivery {
  Identity recipient;
  std::optional<SandboxId> sandbox = {};  ///< whose subscription it was for; none: any of the recipient's
  DeliveryState state = DeliveryState::queued;
  std::string reason;  ///< of a failure
  Instant updated_at{};
};

struct MessageStatus {
  MessageId id;
  Identity sender;
  std::string topic;
  Instant accepted_at{};
  Instant expires_at{};
  std::vector<Delivery> deliveries = {};  ///< by recipient
};

struct Topic {
  std::string name;  ///< 1 to 128 of [a-z0-9._-]
  Identity owner;
  Instant created_at{};
};

struct Subscription {
  TopicSubscriptionId id;
  std::string topic;
  Identity subscriber;
  std::optional<SandboxId> sandbox = {};
  Instant created_at{};
};

struct ReceiveRequest {
  std::size_t messages_max = 100;         ///< 1 to 1 000
  Nanos wait{};                           ///< how long to wait for the first one; at most 30 s
  std::optional<SandboxId> sandbox = {};  ///< with what its own subscriptions brought
};

/// Thread-safe. Every change is audited in its transaction.
///
/// Invariant 1: a message id is accepted once in 30 days; repeating it with the same bytes returns it again and
/// delivers nothing. Invariant 2: who acknowledged a message is not given it again. Invariant 3: what is stored is what
/// was sent, byte for byte.
///
/// Errors of every call: invalid_input naming the field; unavailable.
class Messaging : public contracts::SandboxMessenger {
 public:
  /// Queues `message` for its recipient, or for every subscriber of its topic. The caller is its sender. A topic
  /// message must be sealed for all subscribers; who has left meanwhile gets nothing. Repeating with the same
  /// idempotency key returns the first message's id, also where it was sealed anew. Where policy asks for a human,
  /// `override_token` is of his approval of these very bytes (`contracts::approval_arguments`), and is used up.
  ///
  /// Errors:
  ///   too_large             over 1 MiB
  ///   signature_invalid     it is not the sender's
  ///   expired               its time to live is over; a message from the future is invalid_input
  ///   permission_denied     somebody else is its sender
  ///   recipient_not_found   unknown, revoked or suspended; topic_not_found
  ///   delivery_denied       policy, named in the cause; oversight_required, where policy asks for a human
  ///   quota_exceeded        caused by MT-429
  ///   conflict              the id was used with other bytes; a subscriber is missing from a topic message (retryable)
  virtual Result<MessageId> send(const Context& ctx, const contracts::SealedMessage& message,
                                 const std::string& override_token = {}) = 0;

  /// What waits for the caller: urgent before low, then oldest first. It stays until acknowledged.
  virtual Result<std::vector<contracts::ReceivedMessage>> receive(const Context& ctx,
                                                                  const ReceiveRequest& request) = 0;

  /// The caller's receipt: delivered, then read; or failed with a reason. Going back or repeating changes nothing.
  /// Errors: not_found where the message was not for the caller; conflict after it failed.
  virtual Result<> acknowledge(const Context& ctx, const MessageId& message, DeliveryState receipt,
                               const std::string& reason, const std::optional<SandboxId>& sandbox) = 0;

  /// For sender and recipients. Errors: not_found, for everybody else too.
  virtual Result<MessageStatus> status(const Context& ctx, const MessageId& message) = 0;

  /// Repeating it as the same owner returns the topic. Errors: already_exists (another's); delivery_denied (policy).
  virtual Result<Topic> create_topic(const Context& ctx, const std::string& name) = 0;
  virtual Result<std::vector<Topic>> list_topics(const Context& ctx) = 0;  ///< by name; at most 1 000
  /// The caller's. Repeating it returns the first. Errors: topic_not_found; delivery_denied; resource_exhausted over
  /// 256.
  virtual Result<Subscription> subscribe(const Context& ctx, const std::string& topic,
                                         const std::optional<SandboxId>& sandbox) = 0;
  /// The caller's own, or any of a topic it owns. Unknown ones are fine.
  virtual Result<> unsubscribe(const Context& ctx, const TopicSubscriptionId& subscription) = 0;
  /// Whom a message to `topic` must be sealed for. Needs the same permission as sending there; where a human has to
  /// approve that, this goes before.
  virtual Result<std::vector<Identity>> subscribers(const Context& ctx, const std::string& topic) = 0;

  /// A sandbox is gone: its subscriptions end, what waited for it alone fails. Also called for lifecycle events.
  virtual Result<> sandbox_terminated(const Context& ctx, const SandboxId& sandbox) = 0;

  /// Fails what has expired and forgets what is older than the 30 days. Returns how many rows changed. For a periodic
  /// task.
  virtual Result<std::int64_t> clean_up(const Context& ctx) = 0;

  virtual HealthStatus health() = 0;
};

struct MessagingOptions {
  Nanos ttl_max = std::chrono::days(30);
  Nanos clock_skew = std::chrono::minutes(5);  ///< how far in the future a message may say it was sent
  std::int64_t queue_max = 100'000;            ///< messages waiting for one recipient
};

struct MessagingParts {
  sql::Database& database;
  bus::Bus& bus;
  nhi::Nhi& nhi;
  authz::Authz& authz;
  contracts::MessageCostTracker& costs;
  consensus::TimestampSource& timestamps;
  const Clock& clock;
  Telemetry& telemetry;
};

/// Runs its migrations, makes `service:messaging` known to nhi, and consumes `runtime.lifecycle` and its own usage from
/// the bus. All parts must outlive it.
Result<std::unique_ptr<Messaging>> create_messaging(const MessagingParts& parts, MessagingOptions options = {});

}  // namespace creto::messaging
