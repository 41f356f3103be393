#pragma once

#include <map>
#include <string>

#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/money.h"
#include "creto/common/result.h"

namespace creto::contracts {

struct SpendRequest {
  ReservationId id;  ///< the operation's own; repeating it returns the first hold, and lets it last longer
  Identity agent;
  DelegationChain delegation_chain;  ///< as the caller knows it; whose limits apply is what nhi says
  std::string event_type;            ///< which quotas apply: "sandbox_allocated", "inference_tokens", "payment"
  Decimal units = Decimal(1);
  /// Zero where it is not known: then that of a model's call (`inference_tokens`) follows from its price, and where it
  /// has none, it is refused if a limit of money applies that blocks or asks. Any other request is refused only where
  /// such a limit has nothing left.
  Money cost;
  Nanos hold_for = std::chrono::minutes(10);
  /// What quotas may look at: `model_id`, `project`, ... as the usage event will say it; what prices of models look at:
  /// `input_tokens` and `output_tokens`, at most as many. At most 32.
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
  ///         invalid_input where a limit of money applies that cannot see the cost: it is not known, or in a currency
  ///         that is not limited there.
  virtual Result<Hold> reserve(const Context& ctx, const SpendRequest& request) = 0;
  /// The hold is over; what really happened arrives as a usage event. Unknown or expired holds are fine.
  /// Errors: permission_denied where the caller is an agent and it is no hold of it or of one below it.
  virtual Result<> release(const Context& ctx, const ReservationId& id) = 0;
};

}  // namespace creto::contracts
