#pragma once

#include <memory>

#include "creto/audit/audit_log.h"
#include "creto/authz/authz.h"
#include "creto/common/access.h"
#include "creto/io/rpc.h"
#include "creto/nhi/nhi.h"

/// The ports that lower modules declare, filled with the modules above them.
namespace creto::app {

/// Client certificates and bearer tokens, through nhi. A human's certificate stands and falls with the keys that it
/// names: whose keys are compromised gets a new one. A service with a certificate of its own may act for whom it names.
std::unique_ptr<rpc::Authenticator> authenticate_with(nhi::Nhi& nhi, std::string org);

/// Cedar policies, then extensions.
std::unique_ptr<rpc::Authorizer> authorize_with(authz::Authz& authz);
std::unique_ptr<AccessControl> access_through(authz::Authz& authz);

/// An agent may do no more than its delegation chain permits, whatever the policies say.
std::unique_ptr<authz::Extension> delegation_limits(nhi::Nhi& nhi);

/// Refused calls and calls of audited methods become records of the log.
std::unique_ptr<rpc::Auditor> audit_with(audit::AuditLog& log);

/// Agents, humans and services as Cedar entities: attributes `name`, `type`, `status`, `owner` and those of the record;
/// an agent's parent is its owner.
std::unique_ptr<authz::EntitySource> entities_of(nhi::Nhi& nhi, sql::Database& database);

/// The vault's secrets as Cedar entities: `owner`, who is the parent too, `path`, `name`, `type`, `version`, where it
/// ends `expires_at`, and its labels as tags.
std::unique_ptr<authz::ResourceSource> secret_entities(sql::Database& database);

}  // namespace creto::app
