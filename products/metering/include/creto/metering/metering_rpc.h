#pragma once

#include <memory>

#include "creto/metering/metering.h"

namespace creto::rpc {
class Channel;
class Dispatcher;
}  // namespace creto::rpc

namespace creto::metering {

/// Registers creto.metering.v1.MeteringService. Both must outlive the serving.
void register_metering(rpc::Dispatcher& dispatcher, Metering& metering);

/// The same interface over the wire.
std::unique_ptr<Metering> create_metering_client(std::shared_ptr<rpc::Channel> channel);

}  // namespace creto::metering
