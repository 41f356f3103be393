#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <string_view>

#include "commands.h"

namespace creto::app {

/// Makes the subcommand of a path such as "authz check"; `action` runs when it is chosen.
using MakeCommand =
    std::function<CLI::App*(std::string_view path, std::string_view help, std::function<Result<Output>()> action)>;

/// `creto authz validate|format|check|explain|partial|query|test|conformance`: work on files alone, without a home or a
/// server; and `replay|what-if|decisions|verify-log` on the decision log, by default that of the home.
void add_policy_commands(const MakeCommand& command);

/// Those that ask a server: `creto policies apply|diff`. `options` are read when a command runs.
void add_policy_set_commands(const MakeCommand& command, std::function<Result<cli::CallOptions>()> options);

}  // namespace creto::app
