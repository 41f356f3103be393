#pragma once

#include <memory>

#include "creto/oversight/oversight.h"

namespace creto::rpc {
class Channel;
class Dispatcher;
}  // namespace creto::rpc

namespace creto::oversight {

/// Registers creto.oversight.v1.OversightService. Both must outlive the serving.
void register_oversight(rpc::Dispatcher& dispatcher, Oversight& oversight);

/// The same interface over the wire. `when_final` keeps one thread per subscription; `apply_timeouts` is the server's
/// own.
std::unique_ptr<Oversight> create_oversight_client(std::shared_ptr<rpc::Channel> channel, const Clock& clock);

}  // namespace creto::oversight
