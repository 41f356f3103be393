#pragma once

#include <optional>
#include <vector>

#include "creto/io/sql.h"
#include "creto/nhi/nhi.h"

/// nhi's tables. Every function is one or two statements inside the caller's transaction.
namespace creto::nhi::store {

Result<> migrate(sql::Database& database);

/// How often anything that is cached was changed, by whichever process: each change counts itself.
Result<> count_change(sql::Tx& tx);
Result<std::int64_t> changes(sql::Tx& tx);

Result<> insert_agent(sql::Tx& tx, const std::string& org, const Agent& agent);  ///< already_exists: name or identity
Result<> update_agent(sql::Tx& tx, const std::string& org, const Agent& agent);
Result<std::optional<Agent>> find_agent(sql::Tx& tx, const std::string& org, const Identity& identity);
Result<std::optional<Agent>> find_agent_by_name(sql::Tx& tx, const std::string& org, const std::string& name);
Result<std::vector<Agent>> list_agents(sql::Tx& tx, const std::string& org, const AgentFilter& filter);

Result<> insert_keys(sql::Tx& tx, const std::string& org, const Identity& identity, const PublicKeys& keys,
                     const std::optional<Bytes>& sealed);
/// Newest first.
Result<std::vector<PublicKeys>> list_keys(sql::Tx& tx, const std::string& org, const Identity& identity);
Result<std::optional<Bytes>> sealed_key(sql::Tx& tx, const std::string& org, const Identity& identity,
                                        const std::string& key_id);

/// False where a delegation of that id is there.
Result<bool> insert_delegation(sql::Tx& tx, const Delegation& delegation);
Result<std::optional<Delegation>> find_delegation(sql::Tx& tx, const std::string& org, const DelegationId& id);
/// Not revoked and not ended, newest first, at most 64.
Result<std::vector<Delegation>> delegations_to(sql::Tx& tx, const std::string& org, const Identity& delegatee,
                                               Instant now);
Result<> revoke_delegation(sql::Tx& tx, const std::string& org, const DelegationId& id, Instant now);

/// A delegation, whether or not it still holds, and when it ended or will: it expires or was revoked.
struct PastDelegation {
  Delegation link;
  Instant ends_at{};
};
/// Made until `when`, newest first, at most 64; before them the next one after it, if there is one.
Result<std::vector<PastDelegation>> past_delegations_to(sql::Tx& tx, const std::string& org, const Identity& delegatee,
                                                        Instant when);
Result<std::optional<PastDelegation>> find_past_delegation(sql::Tx& tx, const std::string& org, const DelegationId& id);

Result<> put_bundle(sql::Tx& tx, const std::string& org, const Identity& identity, const KeyBundleUpload& bundle);
/// Without keys, kem and one_time.
Result<std::optional<KeyBundle>> find_bundle(sql::Tx& tx, const std::string& org, const Identity& identity);
/// Takes the oldest one-time prekey of each kind out of the store; the KEM one falls back on the last resort in
/// `bundle.kem`.
Result<> take_prekeys(sql::Tx& tx, const std::string& org, const Identity& identity, KeyBundle& bundle);
Result<PrekeyCount> count_prekeys(sql::Tx& tx, const std::string& org, const Identity& identity);

}  // namespace creto::nhi::store
