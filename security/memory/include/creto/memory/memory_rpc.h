#pragma once

#include <memory>

#include "creto/memory/memory.h"

namespace creto::rpc {
class Channel;
class Dispatcher;
}  // namespace creto::rpc

namespace creto::memory {

/// Registers creto.memory.v1.MemoryService. Both must outlive the serving.
void register_memory(rpc::Dispatcher& dispatcher, Memory& memory);

/// The same interface over the wire. `sweep` is `unavailable` there: it belongs to the service itself.
std::unique_ptr<Memory> create_memory_client(std::shared_ptr<rpc::Channel> channel);

}  // namespace creto::memory
