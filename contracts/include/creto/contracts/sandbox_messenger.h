#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/result.h"

namespace creto::contracts {

enum class MessagePriority : std::uint8_t { low, normal, high, urgent };
std::string_view to_string(MessagePriority priority);
Result<MessagePriority> message_priority_from_string(std::string_view text);

/// A message as the service carries it: sealed by the sender's endpoint, opaque to the service.
struct SealedMessage {
  MessageId message_id;
  Identity sender;
  Identity recipient;
  std::string topic;  ///< empty for a direct message
  MessagePriority priority = MessagePriority::normal;
  Instant sent_at{};
  Nanos ttl = std::chrono::hours(24);
  Bytes envelope;  ///< docs/formats.md, "Messages"; at most 1 MiB, larger payloads go through storage
};

/// What a human's approval of sending it is bound to: canonical JSON that names the very bytes. `digest` is the
/// SHA3-256 of the envelope.
std::string approval_arguments(const SealedMessage& message, const Hash256& digest);

struct ReceivedMessage {
  SealedMessage message;
  Instant accepted_at{};
};

/// Messaging carries what sandboxes send (000 §1.3). Thread-safe.
class SandboxMessenger {
 public:
  /// The database's signal (creto/io/sql.h) that is raised when this process has queued a message for anybody.
  static constexpr std::string_view queue_signal = "messaging.queue";

  virtual ~SandboxMessenger() = default;

  /// Idempotent by message id for 30 days; < 5 ms at p99. `override_token` is of an approval of this very message.
  /// Errors: delivery_denied (policy), oversight_required, quota_exceeded, recipient_not_found, signature_invalid,
  /// expired, too_large.
  virtual Result<MessageId> send_from_sandbox(const Context& ctx, const SandboxId& sandbox,
                                              const SealedMessage& message, const std::string& override_token = {}) = 0;
  virtual Result<TopicSubscriptionId> subscribe_sandbox(const Context& ctx, const SandboxId& sandbox,
                                                        std::string_view topic) = 0;
  virtual Result<> unsubscribe_sandbox(const Context& ctx, const TopicSubscriptionId& subscription) = 0;
  /// Oldest first, priority before age; stays in the queue until acknowledged.
  virtual Result<std::vector<ReceivedMessage>> receive_for_sandbox(const Context& ctx, const SandboxId& sandbox,
                                                                   std::size_t messages_max) = 0;
  virtual Result<> acknowledge_for_sandbox(const Context& ctx, const SandboxId& sandbox, const MessageId& message) = 0;
  /// It cannot be opened and never will be: it leaves the queue, and its sender is told `reason` (up to 1 024 bytes).
  virtual Result<> refuse_for_sandbox(const Context& ctx, const SandboxId& sandbox, const MessageId& message,
                                      std::string_view reason) = 0;
};

}  // namespace creto::contracts
