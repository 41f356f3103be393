#pragma once

#include <string>
#include <vector>

#include "creto/common/event.h"
#include "creto/contracts/events.h"
#include "creto/io/sql.h"
#include "creto/runtime/runtime.h"

namespace creto::runtime {

/// An event ready to leave: signed in the agent's name, before the transaction that it commits with.
struct OutgoingEvent {
  std::string subject, id, body;
};

/// Makes and publishes the runtime's events. Thread-safe.
class Events {
 public:
  explicit Events(RuntimeServices& services);

  Result<OutgoingEvent> usage(const std::string& org, const Identity& agent, const DelegationChain& chain,
                              const contracts::RuntimeUsageEvent& event);
  Result<OutgoingEvent> lifecycle(const std::string& org, const Identity& agent, const DelegationChain& chain,
                                  const contracts::SandboxLifecycleEvent& event);

  static Result<> publish(sql::Tx& tx, const Context& ctx, const std::vector<OutgoingEvent>& events);

  /// The runtime acting on its own account.
  Context service_context(const std::string& org) const;
  /// The runtime's own, for what it asks others because of `ctx`, and within its time.
  Context asking_for(const Context& ctx) const;
  const Identity& service() const { return service_; }

 private:
  Result<OutgoingEvent> envelope(std::string_view type, std::string_view subject, const std::string& org,
                                 const Identity& signer, const Identity& agent, const DelegationChain& chain,
                                 std::string payload);
  RuntimeServices& services_;
  const Identity service_;
};

}  // namespace creto::runtime
