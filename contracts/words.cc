#include <fmt/format.h>
#include <array>
#include <utility>

#include "creto/contracts/approval_gate.h"
#include "creto/contracts/cost_trigger.h"
#include "creto/contracts/message_cost_tracker.h"
#include "creto/contracts/sandbox_messenger.h"

namespace creto::contracts {
namespace {

template <class Enum>
struct Word {
  Enum value;
  std::string_view text;
};

template <class Enum, std::size_t N>
std::string_view spell(const std::array<Word<Enum>, N>& words, Enum value) {
  for (const auto& word : words)
    if (word.value == value) return word.text;
  std::unreachable();
}

template <class Enum, std::size_t N>
Result<Enum> read(const std::array<Word<Enum>, N>& words, std::string_view what, std::string_view text) {
  std::string allowed;
  for (const auto& word : words) {
    if (word.text == text) return word.value;
    allowed += fmt::format("{}`{}`", allowed.empty() ? "" : ", ", word.text);
  }
  return Error(Product::platform, ErrorKind::invalid_input,
               fmt::format("{} `{}`: must be one of {}", what, text.substr(0, 64), allowed));
}

constexpr std::array<Word<BillingPeriod>, 5> periods = {{{BillingPeriod::transaction, "transaction"},
                                                         {BillingPeriod::hour, "hour"},
                                                         {BillingPeriod::day, "day"},
                                                         {BillingPeriod::month, "month"},
                                                         {BillingPeriod::lifetime, "lifetime"}}};
constexpr std::array<Word<ThresholdAction>, 3> actions = {{{ThresholdAction::require_approval, "require_approval"},
                                                           {ThresholdAction::notify_only, "notify_only"},
                                                           {ThresholdAction::block, "block"}}};
constexpr std::array<Word<ApprovalState>, 6> states = {{{ApprovalState::pending, "pending"},
                                                        {ApprovalState::escalated, "escalated"},
                                                        {ApprovalState::approved, "approved"},
                                                        {ApprovalState::denied, "denied"},
                                                        {ApprovalState::timed_out, "timed_out"},
                                                        {ApprovalState::cancelled, "cancelled"}}};
constexpr std::array<Word<MessagePriority>, 4> priorities = {{{MessagePriority::low, "low"},
                                                              {MessagePriority::normal, "normal"},
                                                              {MessagePriority::high, "high"},
                                                              {MessagePriority::urgent, "urgent"}}};
constexpr std::array<Word<MessageEventType>, 4> message_events = {
    {{MessageEventType::message_sent, "message_sent"},
     {MessageEventType::message_received, "message_received"},
     {MessageEventType::topic_created, "topic_created"},
     {MessageEventType::subscription_created, "subscription_created"}}};

}  // namespace

std::string_view to_string(BillingPeriod period) { return spell(periods, period); }
Result<BillingPeriod> billing_period_from_string(std::string_view text) {
  return read(periods, "billing period", text);
}
std::string_view to_string(ThresholdAction action) { return spell(actions, action); }
Result<ThresholdAction> threshold_action_from_string(std::string_view text) {
  return read(actions, "threshold action", text);
}
std::string_view to_string(ApprovalState state) { return spell(states, state); }
Result<ApprovalState> approval_state_from_string(std::string_view text) { return read(states, "approval state", text); }
std::string_view to_string(MessagePriority priority) { return spell(priorities, priority); }
Result<MessagePriority> message_priority_from_string(std::string_view text) {
  return read(priorities, "priority", text);
}
std::string_view to_string(MessageEventType type) { return spell(message_events, type); }

}  // namespace creto::contracts
