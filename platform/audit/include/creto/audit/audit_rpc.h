#pragma once

#include <memory>

#include "creto/audit/audit_log.h"

namespace creto::rpc {
class Channel;
class Dispatcher;
}  // namespace creto::rpc

namespace creto::audit {

/// Registers creto.audit.v1.AuditService. Both must outlive the serving.
///
/// A caller may record for others only as a service: of anybody else `who` and the chain are those of the call.
void register_audit(rpc::Dispatcher& dispatcher, AuditLog& log);

/// The same interface over the wire.
std::unique_ptr<AuditLog> create_audit_client(std::shared_ptr<rpc::Channel> channel);

}  // namespace creto::audit
