#pragma once

#include <memory>

#include "creto/messaging/messaging.h"

namespace creto::rpc {
class Channel;
class Dispatcher;
}  // namespace creto::rpc

namespace creto::messaging {

/// Registers creto.messaging.v1.MessagingService. Both must outlive the serving.
void register_messaging(rpc::Dispatcher& dispatcher, Messaging& messaging);

/// The same interface over the wire.
std::unique_ptr<Messaging> create_messaging_client(std::shared_ptr<rpc::Channel> channel);

}  // namespace creto::messaging
