#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/json.h"
#include "creto/io/sql.h"
#include "snapshot.h"

namespace creto::authz {

/// Changes of an organization's policies and schema: what each does to the state that will be in force, to the tables,
/// to the history and to the audit log. `state` is a copy that nobody sees yet, and is of no use where a call fails.
class PolicyEditor {
 public:
  PolicyEditor(const AuthzOptions& options, std::shared_ptr<RateMemory> memory)
      : options_(options), rate_memory_(std::move(memory)) {}

  /// Parsed, and valid under the schema. Errors: invalid_input.
  Result<LoadedPolicy> load(const OrgState& state, Policy policy, const LoadedPolicy* before) const;
  /// Makes the links of templates in `changed` anew. Errors: invalid_input naming the link that no longer fits.
  Result<> relink(OrgState& state, const std::set<PolicyId>& changed) const;
  /// With its version. Errors: conflict for a template with links.
  Result<> remove(sql::Tx& tx, const Context& ctx, OrgState& state, const PolicyTable::Entry& policy) const;
  /// Gives the policies whose ids begin with `prefix` the texts in `wanted`, which all have such an id. Without `tx`
  /// nothing is stored. No version is kept.
  Result<AppliedPolicies> put_in_place(sql::Tx* tx, const Context& ctx, OrgState& state,
                                       const std::map<PolicyId, std::string>& wanted, std::string_view prefix) const;
  /// Takes `text` for the schema, none where it is empty. The policies are not looked at.
  Result<> put_schema(sql::Tx& tx, const Context& ctx, OrgState& state, std::string text) const;
  /// Writes down that `state` is a new version of the policies, in its history and in the audit log.
  Result<PolicyVersion> keep_version(sql::Tx& tx, const Context& ctx, OrgState& state, PolicyVersion version,
                                     std::string resource, const Json& further = Json::object()) const;
  /// The stored policies, and of `old` what is the same.
  Result<PolicyTable> reload(std::vector<Policy> stored, const OrgState* old) const;

  static void stamp(sql::Tx& tx, const Context& ctx, Policy& policy, const LoadedPolicy* before);
  static PolicyVersion version_of(const AppliedPolicies& applied, std::string what);
  static Result<> expect_version(const OrgState& state, std::int64_t expected);
  /// 0: the newest.
  static Result<VersionedPolicies> policies_at(sql::Tx& tx, const std::string& org, std::int64_t version);
  static Result<PolicyVersion> newest(sql::Tx& tx, const std::string& org);
  /// What a person should know of these policies, now that they are in force.
  static std::vector<std::string> warnings_of(const OrgState& state, std::span<const PolicyId> ids);

 private:
  const AuthzOptions& options_;
  const std::shared_ptr<RateMemory> rate_memory_;
};

}  // namespace creto::authz
