#pragma once

#include <memory>

#include "creto/runtime/runtime.h"

namespace creto::rpc {
class Channel;
class Dispatcher;
}  // namespace creto::rpc

namespace creto::runtime {

/// Registers creto.runtime.v1.RuntimeService. Both must outlive the serving.
void register_runtime(rpc::Dispatcher& dispatcher, Runtime& runtime);

/// The same interface over the wire. `sweep` is `unavailable` there: it belongs to the runtime itself.
std::unique_ptr<Runtime> create_runtime_client(std::shared_ptr<rpc::Channel> channel);

}  // namespace creto::runtime
