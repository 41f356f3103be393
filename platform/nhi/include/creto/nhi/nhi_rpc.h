#pragma once

#include <memory>

#include "creto/nhi/nhi.h"

namespace creto::rpc {
class Channel;
class Dispatcher;
}  // namespace creto::rpc

namespace creto::nhi {

/// Registers creto.nhi.v1.NhiService. Both must outlive the serving.
void register_nhi(rpc::Dispatcher& dispatcher, Nhi& nhi);

/// The same interface over the wire. `decapsulate` is `unavailable` there: secrets do not travel.
std::unique_ptr<Nhi> create_nhi_client(std::shared_ptr<rpc::Channel> channel);

}  // namespace creto::nhi
