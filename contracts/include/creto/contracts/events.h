#pragma once

#include <optional>
#include <string>
#include <variant>

#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/money.h"
#include "creto/common/result.h"
#include "creto/contracts/approval_gate.h"
#include "creto/contracts/cost_trigger.h"

/// The payloads of cross-product events (000 §2, 001 §5.2). Each travels in an EventEnvelope under the subject stated
/// here; `to_json` gives canonical JSON valid under contracts/schemas/<event_type>.json, `from_json` refuses all else.
namespace creto::contracts {

/// Subject `metering.events.runtime`, event_type "runtime_usage" (001 §4.1).
struct RuntimeUsageEvent {
  static constexpr std::string_view event_type = "runtime_usage";
  static constexpr std::string_view subject = "metering.events.runtime";

  std::string usage_type;  ///< "sandbox_allocated", "sandbox_terminated", "inference_tokens", "network_egress",
                           ///< "action", "void"
  std::string idempotency_key;
  std::string properties;      ///< canonical JSON object; numbers as decimal strings or integers
  Decimal units = Decimal(1);  ///< what quotas of `usage_type` count: sandboxes, tokens, bytes, calls
  std::optional<Money> cost;   ///< where the producer knows it
  /// The event of the same agent that this one corrects: its id, or "key:" and its idempotency key; at most one of
  /// both.
  std::string replaces{};  ///< whose place this one takes
  std::string voids{};     ///< which counts no more; then `usage_type` is "void", and there are no units and no cost

  Result<std::string> to_json() const;
  static Result<RuntimeUsageEvent> from_json(std::string_view text);
};

/// Subject `metering.thresholds`, event_type "cost_threshold_exceeded" (000 §2.1); also quota notices (001 §7.3)
/// and hours in which an agent spends unusually much (001 §4.1).
struct CostThresholdExceededEvent {
  static constexpr std::string_view event_type = "cost_threshold_exceeded";
  static constexpr std::string_view subject = "metering.thresholds";

  std::string kind;              ///< "cost_threshold", "quota_breach" or "cost_anomaly"
  std::string threshold_id;      ///< of the threshold or quota; "anomaly"
  std::string triggering_event;  ///< its event id or type
  std::string current;           ///< decimal: money for a cost threshold, units for a quota
  std::string limit;
  std::string unit;  ///< currency code, or the quota's event type
  std::string period;
  ThresholdAction action = ThresholdAction::notify_only;
  std::vector<std::string> approvers;
  std::string expected{};    ///< only of an anomaly: what the hour usually costs, decimal, ...
  std::string confidence{};  ///< ... and how sure it is that this is none of the usual, decimal from 0 to 1

  Result<std::string> to_json() const;
  static Result<CostThresholdExceededEvent> from_json(std::string_view text);
};

/// Subject `oversight.decisions`, event_type "oversight_decision" (000 §2.2). Also carries quota raises: `arguments`
/// of an approved "quota.raise" request name quota and new limit.
struct OversightDecisionEvent {
  static constexpr std::string_view event_type = "oversight_decision";
  static constexpr std::string_view subject = "oversight.decisions";

  RequestId request;
  std::optional<SandboxId> sandbox;
  ApprovalState decision;  ///< approved, denied, escalated, timed_out or cancelled
  std::string approver;    ///< identity; empty on a timeout
  std::string notes;
  std::string action;
  std::string arguments;  ///< canonical JSON of the request's arguments
  std::string response;   ///< canonical JSON the approver may attach: {"new_limit":"200000"}

  Result<std::string> to_json() const;
  static Result<OversightDecisionEvent> from_json(std::string_view text);
};

/// Subject `runtime.lifecycle`, event_type "sandbox_lifecycle" (000 §2.3).
struct SandboxLifecycleEvent {
  static constexpr std::string_view event_type = "sandbox_lifecycle";
  static constexpr std::string_view subject = "runtime.lifecycle";

  SandboxId sandbox;
  std::string change;  ///< "created", "terminated", "checkpointed", "restored"
  std::string detail;  ///< attestation hash, termination reason or checkpoint id

  Result<std::string> to_json() const;
  static Result<SandboxLifecycleEvent> from_json(std::string_view text);
};

/// Subject `messaging.delivery_receipts`, event_type "delivery_receipt" (001 §5.2).
struct DeliveryReceiptEvent {
  static constexpr std::string_view event_type = "delivery_receipt";
  static constexpr std::string_view subject = "messaging.delivery_receipts";

  MessageId message;
  Identity recipient;
  std::string receipt;  ///< "delivered", "read", "failed"
  std::string failure_reason;

  Result<std::string> to_json() const;
  static Result<DeliveryReceiptEvent> from_json(std::string_view text);
};

/// Subject `oversight.notifications.<channel>`, event_type "oversight_notification" (001 §5.2).
struct OversightNotificationEvent {
  static constexpr std::string_view event_type = "oversight_notification";

  RequestId request;
  std::string channel;  ///< "webhook", "cli", "slack", "email"
  std::string approver;
  std::string description;
  std::string reasoning;

  Result<std::string> to_json() const;
  static Result<OversightNotificationEvent> from_json(std::string_view text);
};

}  // namespace creto::contracts
