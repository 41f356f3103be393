#pragma once

#include <map>
#include <string>
#include <vector>

#include "creto/authz/authz.h"
#include "creto/io/sql.h"

/// The tables of authorization. Functions on a transaction; whoever changes policies or entities also bumps the
/// version.
namespace creto::authz::store {

Result<> migrate(sql::Database& database);

/// All that one organization stores.
struct OrgRows {
  std::int64_t version = 0;
  std::vector<Policy> policies;
  std::vector<Entity> entities;
  std::vector<RequestId> revoked;
};
Result<std::map<std::string, OrgRows>> load_all(sql::Tx& tx);
Result<std::map<std::string, std::int64_t>> versions(sql::Tx& tx);

/// Returns the organization's new version.
Result<std::int64_t> bump(sql::Tx& tx, const std::string& org);

Result<std::optional<Policy>> find_policy(sql::Tx& tx, const std::string& org, const PolicyId& id);
Result<std::int64_t> count_policies(sql::Tx& tx, const std::string& org);
Result<> put_policy(sql::Tx& tx, const std::string& org, const Policy& policy);
Result<bool> remove_policy(sql::Tx& tx, const std::string& org, const PolicyId& id);

/// JSON as it is stored. Errors: invalid_input where a string is not UTF-8.
Result<std::string> document_of(const Entity& entity);
Result<> put_entity(sql::Tx& tx, const std::string& org, const Entity& entity);
Result<> remove_entity(sql::Tx& tx, const std::string& org, const EntityUid& uid);

/// The operation that used the request's token; none while it is unused.
Result<std::optional<std::string>> override_use(sql::Tx& tx, const std::string& org, const RequestId& request);
Result<bool> is_override_revoked(sql::Tx& tx, const std::string& org, const RequestId& request);
/// False where another operation was first.
Result<bool> use_override(sql::Tx& tx, const std::string& org, const RequestId& request, std::string_view operation);
Result<> revoke_override(sql::Tx& tx, const std::string& org, const RequestId& request);

}  // namespace creto::authz::store
