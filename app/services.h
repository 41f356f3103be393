#pragma once

#include "settings.h"

namespace creto::rpc {
class Dispatcher;
}

namespace creto::app {

struct System;

/// Registers the methods of every service that runs here.
void register_services(rpc::Dispatcher& dispatcher, System& system);

/// Takes over those settings that may change while the server runs: the log level. Errors: invalid_input, and nothing
/// changed; conflict where others differ from those the server runs with, which stay.
Result<> apply_reload(System& system, const Settings& settings);

}  // namespace creto::app
