#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "authz_probe.h"
#include "creto/authz/authz.h"
#include "creto/common/tick_time.h"
#include "decision_cache.h"
#include "decisions/decision_log.h"
#include "in_force.h"
#include "override_token.h"
#include "snapshot.h"

namespace creto::authz {

/// How many versions of sources a key has room for.
inline constexpr std::size_t sources_max = 8;

/// Decides requests by one snapshot: cache, policies, rates and extensions, and the log of it all. Thread-safe.
class Decider {
 public:
  /// All references must outlive it.
  Decider(const Clock& clock, AuthzProbe& probe, const std::vector<const EntitySource*>& sources,
          const OverrideTokens& tokens, const InForce& in_force, const AuthzOptions& options)
      : clock_(clock),
        ticks_(clock),
        probe_(probe),
        sources_(sources),
        tokens_(tokens),
        in_force_(in_force),
        options_(options),
        cache_(options.cache_entries) {}

  /// From now on each answer is logged or not given. Before the first.
  void log_to(DecisionLog& log) { log_ = &log; }

  /// `counts`: an Allow takes its room in the rate. `matched`, unless null, is told which policies determined Cedar's
  /// own answer; a cache does not know.
  Decision answer(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot, bool counts,
                  std::vector<PolicyId>* matched = nullptr);
  Explanation explain(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot);

 private:
  /// Writes the request down. The sources' versions come before what they are asked: an answer can only be filed as
  /// older than it is.
  void begin(Trail& trail, const Context& ctx, const CheckRequest& request, const OrgState* state);
  PolicyDecision evaluate(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot,
                          Explanation* explanation, Trail* trail, std::vector<PolicyId>* matched = nullptr);
  /// Makes it RateLimited where none of its rates has room. `counts` takes the room of the first that has.
  void limit(const CheckRequest& request, PolicyDecision& decided, bool counts);
  /// Lets the extensions make `decision` stricter. The last that did; empty where none did.
  std::string_view restrict(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot,
                            Decision& decision);
  /// `decision`, once it is sure to be in the log.
  Decision logged(Trail& trail, const CheckRequest& request, std::size_t said, Decision decision);

  const Clock& clock_;
  const TickTime ticks_;
  AuthzProbe& probe_;
  const std::vector<const EntitySource*>& sources_;
  const OverrideTokens& tokens_;
  const InForce& in_force_;
  const AuthzOptions& options_;
  DecisionCache cache_;
  DecisionLog* log_ = nullptr;  ///< null: decisions are not logged
};

}  // namespace creto::authz
