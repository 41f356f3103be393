#pragma once

#include <optional>
#include <string>

#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/result.h"
#include "creto/contracts/sandbox_messenger.h"

namespace creto::contracts {

enum class MessageEventType : std::uint8_t { message_sent, message_received, topic_created, subscription_created };
std::string_view to_string(MessageEventType type);

struct MessageBillableEvent {
  std::string idempotency_key;
  Identity agent;
  DelegationChain delegation_chain;
  MessageEventType event_type = MessageEventType::message_sent;
  Timestamp timestamp;
  std::uint64_t message_size_bytes = 0;
  std::uint64_t recipient_count = 1;
  MessagePriority priority = MessagePriority::normal;
};

/// What is left before a request to spend is refused.
struct QuotaDecision {
  bool allowed = true;
  std::string quota_id;  ///< empty where no quota applies
  std::int64_t limit = 0;
  std::int64_t used = 0;
  std::optional<Instant> reset_at;  ///< none for a lifetime quota
};

/// Metering takes what messaging does (000 §1.4). Thread-safe.
class MessageCostTracker {
 public:
  virtual ~MessageCostTracker() = default;

  /// Records a fact; a repeated key with the same content returns the first id.
  virtual Result<EventId> track_message_event(const Context& ctx, const MessageBillableEvent& event) = 0;
  /// Consumes nothing; but for the first question about an agent memory only, < 10 us at p99.
  virtual Result<QuotaDecision> check_message_quota(const Context& ctx, const Identity& agent,
                                                    MessageEventType type) = 0;
};

}  // namespace creto::contracts
