#pragma once

#include "cli/call.h"
#include "policy_commands.h"

namespace creto::app {

/// `creto metering simulate` and `creto invoices verify`: work on files, and ask a server only for what no file has.
/// `options` are read when a command runs.
void add_billing_commands(const MakeCommand& command, std::function<Result<cli::CallOptions>()> options);

}  // namespace creto::app
