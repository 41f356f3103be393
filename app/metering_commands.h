#pragma once

#include "cli/call.h"
#include "policy_commands.h"

namespace creto::app {

/// `creto metering import|report|void|verify`, which ask a server, and `creto metering dump`, which reads this home's
/// usage log. `options` are read when a command runs.
void add_metering_commands(const MakeCommand& command, std::function<Result<cli::CallOptions>()> options);

}  // namespace creto::app
