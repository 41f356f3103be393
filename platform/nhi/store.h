#pragma once

#include <optional>
#include <vector>

#include "creto/io/sql.h"
#include "creto/nhi/enrolment.h"
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

/// `number` counts an identity's sets from 1. already_exists: that one is there.
Result<> insert_keys(sql::Tx& tx, const std::string& org, const Identity& identity, const PublicKeys& keys,
                     const std::optional<Bytes>& sealed, std::size_t number);
Result<> end_keys(sql::Tx& tx, const std::string& org, const Identity& identity, const std::string& key_id,
                  Instant valid_until, bool compromised);
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

/// What `key_id` signed; drops what another set did.
Result<> put_bundle(sql::Tx& tx, const std::string& org, const Identity& identity, const KeyBundleUpload& bundle,
                    const std::string& key_id);
/// Which set signed the bundle that is there.
Result<std::optional<std::string>> bundle_key_id(sql::Tx& tx, const std::string& org, const Identity& identity);
/// The bundle that `keys` signed, with the oldest one-time prekey of each kind, which is taken out of the store; where
/// none is left of the KEM ones, the last resort stands for it. Requires: `keys` is that of `bundle_key_id`.
Result<KeyBundle> take_bundle(sql::Tx& tx, const std::string& org, const Identity& identity, const PublicKeys& keys);
/// The KEM ones are those that `key_id` signed; nothing signs the others.
Result<PrekeyCount> count_prekeys(sql::Tx& tx, const std::string& org, const Identity& identity,
                                  const std::string& key_id);

/// An invitation as stored: never `expired`, which follows from the time.
struct StoredInvitation {
  Invitation invitation;
  Bytes hash;          ///< of the secret
  std::string key_id;  ///< who used it; empty where nobody did
};
/// The first 8 bytes of the secret's hash, in hex.
std::string invitation_id(const Hash256& hash);
Result<> insert_invitation(sql::Tx& tx, const std::string& org, const Invitation& invitation, const Hash256& hash);
Result<std::optional<StoredInvitation>> find_invitation(sql::Tx& tx, const std::string& org, std::string_view id);
/// That ended after `since`, newest first, at most 1 000.
Result<std::vector<StoredInvitation>> list_invitations(sql::Tx& tx, const std::string& org, Instant since);
/// Writes `invitation.state`, and with which keys it was used. False where it was not open any more.
Result<bool> end_invitation(sql::Tx& tx, const std::string& org, const Invitation& invitation,
                            const std::string& key_id);
Result<> forget_invitations(sql::Tx& tx, const std::string& org, Instant before);

}  // namespace creto::nhi::store
