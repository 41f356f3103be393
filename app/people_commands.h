#pragma once

#include "cli/call.h"
#include "policy_commands.h"

namespace creto::app {

/// `creto humans invite|join|renew-certificate|rotate-keys`: how people come in, and how their keys and certificates
/// are renewed, all made on their own side. `options` are read when a command runs.
void add_people_commands(const MakeCommand& command, std::function<Result<cli::CallOptions>()> options);

}  // namespace creto::app
