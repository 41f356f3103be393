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
  std::int64_t policies_version = 0;
  std::vector<Policy> policies;
  std::optional<PolicySchema> schema;
  std::vector<Entity> entities;
  std::map<RequestId, Instant> revoked;  ///< and when
};
Result<std::map<std::string, OrgRows>> load_all(sql::Tx& tx);
Result<std::map<std::string, std::int64_t>> versions(sql::Tx& tx);

/// 0 before the first change.
Result<std::int64_t> version(sql::Tx& tx, const std::string& org);
/// Returns the organization's new version.
Result<std::int64_t> bump(sql::Tx& tx, const std::string& org);

Result<std::optional<Policy>> find_policy(sql::Tx& tx, const std::string& org, const PolicyId& id);
/// In force from version `since`; what was there before stays readable as of earlier versions.
Result<> put_policy(sql::Tx& tx, const std::string& org, const Policy& policy, std::int64_t since);
/// No longer in force from version `until`.
Result<bool> remove_policy(sql::Tx& tx, const std::string& org, const PolicyId& id, std::int64_t until);
/// As `put_policy`; an empty text removes it.
Result<> put_schema(sql::Tx& tx, const std::string& org, const PolicySchema& schema, std::int64_t since);

Result<> put_version(sql::Tx& tx, const std::string& org, const PolicyVersion& version);
/// Newest first, before version `before`.
Result<std::vector<PolicyVersion>> list_versions(sql::Tx& tx, const std::string& org, std::int64_t before,
                                                 std::size_t limit);
/// What was in force in version `version`. None where that was before the oldest one kept.
Result<std::optional<VersionedPolicies>> policies_at(sql::Tx& tx, const std::string& org, std::int64_t version);
/// Forgets all versions but the newest `kept`.
Result<> forget_versions(sql::Tx& tx, const std::string& org, std::size_t kept);

Result<std::vector<Entity>> list_entities(sql::Tx& tx, const std::string& org);
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
/// Uses and revocations before then, of all organizations.
Result<> forget_overrides(sql::Tx& tx, Instant before);

}  // namespace creto::authz::store
