#pragma once

#include "saga.h"

namespace creto::rpc {
class Dispatcher;
}

namespace creto::app {

struct System;

/// The saga that makes a registered agent ready to work (X4): identity, delegation, subscription, messaging keys,
/// policies, first sandbox, a welcome message. Memory and vault need nothing made: both go by the agent's identity and
/// by policies. `system` must outlive it.
Result<std::unique_ptr<Sagas>> create_provisioning(System& system);

/// Serves creto.provision.v1.ProvisionService. Who calls needs permission for each of the steps he asks for.
void register_provisioning(rpc::Dispatcher& dispatcher, System& system);

}  // namespace creto::app
