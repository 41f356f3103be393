#pragma once

#include <memory>

#include "creto/authz/authz.h"

namespace creto::rpc {
class Channel;
class Dispatcher;
}  // namespace creto::rpc

namespace creto::authz {

/// Registers creto.authz.v1.AuthzService. Both must outlive the serving.
void register_authz(rpc::Dispatcher& dispatcher, Authz& authz);

/// The same interface over the wire. Where the service does not answer, checks deny (AZ5). `consume_override` asks the
/// service to verify and uses the token up in the caller's transaction, so both share one database; `database` gets the
/// tables. Extensions are registered where the service runs: `register_extension` is `invalid_input` here.
Result<std::unique_ptr<Authz>> create_authz_client(std::shared_ptr<rpc::Channel> channel, sql::Database& database,
                                                   const Clock& clock);

}  // namespace creto::authz
