#include <array>
#include <nlohmann/json.hpp>

#include "creto/common/assert.h"
#include "creto/common/json.h"
#include "creto/common/names.h"
#include "creto/contracts/approval_gate.h"
#include "creto/contracts/cost_trigger.h"
#include "creto/contracts/message_cost_tracker.h"
#include "creto/contracts/sandbox_messenger.h"

namespace creto::contracts {
namespace {

constexpr auto periods = std::to_array<Named<BillingPeriod>>({{BillingPeriod::transaction, "transaction"},
                                                              {BillingPeriod::hour, "hour"},
                                                              {BillingPeriod::day, "day"},
                                                              {BillingPeriod::month, "month"},
                                                              {BillingPeriod::lifetime, "lifetime"}});
constexpr auto actions = std::to_array<Named<ThresholdAction>>({{ThresholdAction::require_approval, "require_approval"},
                                                                {ThresholdAction::notify_only, "notify_only"},
                                                                {ThresholdAction::block, "block"}});
constexpr auto states = std::to_array<Named<ApprovalState>>({{ApprovalState::pending, "pending"},
                                                             {ApprovalState::escalated, "escalated"},
                                                             {ApprovalState::approved, "approved"},
                                                             {ApprovalState::denied, "denied"},
                                                             {ApprovalState::timed_out, "timed_out"},
                                                             {ApprovalState::cancelled, "cancelled"}});
constexpr auto priorities = std::to_array<Named<MessagePriority>>({{MessagePriority::low, "low"},
                                                                   {MessagePriority::normal, "normal"},
                                                                   {MessagePriority::high, "high"},
                                                                   {MessagePriority::urgent, "urgent"}});
constexpr auto message_events =
    std::to_array<Named<MessageEventType>>({{MessageEventType::message_sent, "message_sent"},
                                            {MessageEventType::message_received, "message_received"},
                                            {MessageEventType::topic_created, "topic_created"},
                                            {MessageEventType::subscription_created, "subscription_created"}});

}  // namespace

std::string_view to_string(BillingPeriod period) { return name_of(periods, period); }
Result<BillingPeriod> billing_period_from_string(std::string_view text) {
  return value_of(periods, text, "billing period", Product::platform);
}
std::string_view to_string(ThresholdAction action) { return name_of(actions, action); }
Result<ThresholdAction> threshold_action_from_string(std::string_view text) {
  return value_of(actions, text, "threshold action", Product::platform);
}
std::string_view to_string(ApprovalState state) { return name_of(states, state); }
Result<ApprovalState> approval_state_from_string(std::string_view text) {
  return value_of(states, text, "approval state", Product::platform);
}
std::string_view to_string(MessagePriority priority) { return name_of(priorities, priority); }
Result<MessagePriority> message_priority_from_string(std::string_view text) {
  return value_of(priorities, text, "priority", Product::platform);
}
std::string_view to_string(MessageEventType type) { return name_of(message_events, type); }

std::string approval_arguments(const SealedMessage& message, const Hash256& digest) {
  const Json json = {{"envelope_sha3_256", hex(digest)},
                     {"message_id", message.message_id.to_string()},
                     {"recipient", message.topic.empty() ? message.recipient.text() : ""},
                     {"topic", message.topic}};
  const auto canonical = canonical_json(json);
  CRETO_ASSERT(canonical.has_value());
  return *canonical;
}

}  // namespace creto::contracts
