#pragma once

#include <map>
#include <string>

#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/money.h"
#include "creto/common/result.h"

namespace creto::contracts {

struct SpendRequest {
  ReservationId id;  ///< the operation's own; repeating it returns the first hold
  Identity agent;
  DelegationChain delegation_chain;
  std::string event_type;  ///< which quotas apply: "sandbox_allocated", "inference_tokens", "payment"
  Decimal units = Decimal(1);
  Money cost;  ///< zero where only units count
  Nanos hold_for = std::chrono::minutes(10);
  /// What quotas may look at: `model_id`, `project`, ... as the usage event will say it. At most 32.
  std::map<std::string, std::string> properties{};
};

struct Hold {
  ReservationId id;
  Instant expires_at{};
};

/// Holds what an agent may spend, then turns it into usage (architecture, "Usage and limits"). A usage event whose
/// property `reservation_id` names the hold settles it in the step in which the use is counted. Thread-safe.
class SpendingLimits {
 public:
  virtual ~SpendingLimits() = default;

  /// Holds against every window of the agent and its ancestors at once, all or none.
  /// Errors: quota_exceeded (MT-429) names quota, limit, use and reset, with retry_after; nothing is held.
  ///         conflict where `id` was used with other content.
  virtual Result<Hold> reserve(const Context& ctx, const SpendRequest& request) = 0;
  /// The hold is over; what really happened arrives as a usage event. Unknown or expired holds are fine.
  virtual Result<> release(const Context& ctx, const ReservationId& id) = 0;
};

}  // namespace creto::contracts
