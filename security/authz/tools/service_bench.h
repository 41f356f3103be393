#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cedar/entity_table.h"
#include "snapshot.h"

namespace creto::authz {

/// What is taken as given where a request is decided without a server.
struct Assumptions {
  std::vector<PolicyId> approved;  ///< forbids with `@oversight` that a human has approved
  std::uint64_t admitted = 0;      ///< how often the same was admitted just before, for `@rate`
  bool quota_exceeded = false;     ///< an extension says so
};

/// The service's answer over policies and entities that are all in memory: for tools. One thread.
class ServiceBench {
 public:
  ServiceBench(std::vector<std::shared_ptr<const LoadedPolicy>> policies, std::vector<Entity> entities);

  struct Verdict {
    Decision decision;
    std::vector<PolicyId> reasons;                         ///< policies that determined Cedar's own answer, by id
    std::vector<std::pair<PolicyId, std::string>> errors;  ///< policies that erred, and how, by id
    std::vector<PolicyId> erring_forbids;                  ///< whose error denies

    std::vector<PolicyId> determining() const;  ///< reasons and erring forbids
  };
  /// `request` as `with_delegation` makes it. Errors: invalid_input where a hierarchy is too large, or one that is
  /// `approved` asks for no oversight.
  Result<Verdict> decide(const cedar::Request& request, const Assumptions& given = {});

  /// The decision alone, as a check makes it that is not in the cache; allocates nothing for an Allow without a rate.
  PolicyDecision decide_alone(const cedar::Request& request);

  cedar::EntityTable& entities() { return table_; }

 private:
  OrgState state_;
  cedar::EntityTable table_;
  cedar::Engine::Scratch scratch_;
};

/// With `context.delegation` as the service adds it for a principal that acts for itself, unless it is there.
cedar::Request with_delegation(cedar::Request request);

}  // namespace creto::authz
