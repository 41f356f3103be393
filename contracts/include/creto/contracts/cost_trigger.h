#pragma once

#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/money.h"
#include "creto/common/result.h"

namespace creto::contracts {

/// What a period limit counts over; calendar periods are in the account's time zone.
enum class BillingPeriod : std::uint8_t { transaction, hour, day, month, lifetime };
std::string_view to_string(BillingPeriod period);
Result<BillingPeriod> billing_period_from_string(std::string_view text);

/// Something that costs, before or after it happened (000 §1.1). The cost is stated by who knows it.
struct BillableEvent {
  std::string event_type;  ///< "payment", "inference_tokens", ...
  Identity agent;
  DelegationChain delegation_chain;  ///< as the caller knows it; whose limits apply is what nhi says
  Money cost;
};

enum class ThresholdAction : std::uint8_t { require_approval, notify_only, block };
std::string_view to_string(ThresholdAction action);
Result<ThresholdAction> threshold_action_from_string(std::string_view text);

struct CostThreshold {
  std::string threshold_id;
  BillingPeriod period = BillingPeriod::month;
  Money limit;
  ThresholdAction action = ThresholdAction::require_approval;
  std::vector<std::string> approvers;  ///< for require_approval: identities or "role:…"
};

struct TransactionLimit {
  Money amount;
  Money limit;
};
struct PeriodLimit {
  Money accumulated;  ///< with the event in question
  Money limit;
  BillingPeriod period;
};
struct AnomalyDetected {
  double expected_rate;  ///< per hour
  double actual_rate;
  double confidence;  ///< 0..1
};
using CostThresholdReason = std::variant<TransactionLimit, PeriodLimit, AnomalyDetected>;

struct OversightTrigger {
  PolicyId policy_id;  ///< the threshold's id
  CostThresholdReason reason;
  Money current_cost;
  Money threshold;
  ThresholdAction action = ThresholdAction::require_approval;
  std::vector<std::string> approvers;
};

struct AccumulatedCost {
  Identity agent;
  BillingPeriod period;
  Money total;
  std::map<std::string, Money> by_event_type;
};

/// Metering tells whether spending asks for a human (000 §1.1; batch and multi-threshold are its V2, 000 §8.1).
///
/// Thread-safe. The checks consume nothing, and but for the first about an agent are memory only: < 10 us at p99.
class CostTrigger {
 public:
  virtual ~CostTrigger() = default;

  /// The first threshold of the agent or its ancestors that `event` would exceed in `period`; none within limits.
  virtual Result<std::optional<OversightTrigger>> check_cost_threshold(const Context& ctx, const BillableEvent& event,
                                                                       BillingPeriod period) = 0;
  /// Every one of `thresholds` that `event` would exceed, for the agent or for one above it, with all below him.
  virtual Result<std::vector<OversightTrigger>> check_multiple_thresholds(
      const Context& ctx, const BillableEvent& event, const std::vector<CostThreshold>& thresholds) = 0;
  /// One answer per event, in order; each event is judged as if the others did not happen.
  virtual Result<std::vector<std::optional<OversightTrigger>>> check_batch(const Context& ctx,
                                                                           const std::vector<BillableEvent>& events,
                                                                           BillingPeriod period) = 0;
  /// Errors: not_found where the agent has never been seen.
  virtual Result<AccumulatedCost> accumulated_cost(const Context& ctx, const Identity& agent, BillingPeriod period) = 0;
};

}  // namespace creto::contracts
