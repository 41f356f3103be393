#pragma once

#include <memory>

#include "creto/nhi/enrolment.h"
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

/// Registers creto.nhi.v1.EnrolmentService. Both must outlive the serving.
void register_enrolment(rpc::Dispatcher& dispatcher, Enrolment& enrolment);
std::unique_ptr<Enrolment> create_enrolment_client(std::shared_ptr<rpc::Channel> channel);

}  // namespace creto::nhi
