#pragma once

#include "cli/call.h"
#include "policy_commands.h"

namespace creto::app {

/// `creto messages send|list|read|ack|new-session`: this home's human writes and reads messages that are sealed and
/// opened here. `options` are read when a command runs.
void add_message_commands(const MakeCommand& command, std::function<Result<cli::CallOptions>()> options);

}  // namespace creto::app
