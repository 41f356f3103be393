#include "store.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>

#include "creto/common/assert.h"
#include "creto/common/json.h"

namespace creto::nhi::store {
namespace {

constexpr sql::Migration migrations[] = {{1, "identities", R"sql(
CREATE TABLE nhi_agents (
  org TEXT NOT NULL, identity TEXT NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL, owner TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('active', 'suspended', 'revoked')),
  created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, attributes TEXT NOT NULL,
  PRIMARY KEY (org, identity));
CREATE UNIQUE INDEX nhi_agents_name ON nhi_agents (org, name) WHERE status <> 'revoked';
CREATE TABLE nhi_keys (
  org TEXT NOT NULL, identity TEXT NOT NULL, key_id TEXT NOT NULL, signing BYTEA NOT NULL, kem BYTEA, sealed BYTEA,
  valid_from BIGINT NOT NULL, valid_until BIGINT NOT NULL CHECK (valid_until > valid_from),
  PRIMARY KEY (org, identity, key_id));
CREATE TABLE nhi_delegations (
  org TEXT NOT NULL, id TEXT NOT NULL, delegator TEXT NOT NULL, delegatee TEXT NOT NULL, parent TEXT,
  permissions TEXT NOT NULL, created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, key_id TEXT NOT NULL,
  algorithm TEXT NOT NULL, signature BYTEA NOT NULL, revoked BIGINT NOT NULL CHECK (revoked IN (0, 1)),
  PRIMARY KEY (org, id));
CREATE INDEX nhi_delegations_to ON nhi_delegations (org, delegatee, created_at);
CREATE TABLE nhi_bundles (
  org TEXT NOT NULL, identity TEXT NOT NULL,
  dh_key BYTEA NOT NULL, dh_algorithm TEXT NOT NULL, dh_signature BYTEA NOT NULL,
  signed_id BIGINT NOT NULL, signed_key BYTEA NOT NULL, signed_algorithm TEXT NOT NULL, signed_signature BYTEA NOT NULL,
  kem_id BIGINT NOT NULL, kem_key BYTEA NOT NULL, kem_algorithm TEXT NOT NULL, kem_signature BYTEA NOT NULL,
  PRIMARY KEY (org, identity));
CREATE TABLE nhi_prekeys (
  org TEXT NOT NULL, identity TEXT NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('dh', 'kem')), id BIGINT NOT NULL,
  key BYTEA NOT NULL, algorithm TEXT NOT NULL, signature BYTEA NOT NULL,
  PRIMARY KEY (org, identity, kind, id))
)sql"},
                                         {2, "roles", R"sql(
ALTER TABLE nhi_agents ADD COLUMN roles TEXT NOT NULL DEFAULT '[]'
)sql"},
                                         {3, "changes", R"sql(
CREATE TABLE nhi_changes (counter BIGINT NOT NULL, count BIGINT NOT NULL, PRIMARY KEY (counter))
)sql"},
                                         {4, "ends of delegations", R"sql(
ALTER TABLE nhi_delegations ADD COLUMN revoked_at BIGINT
)sql"},
                                         {5, "successions of keys", R"sql(
ALTER TABLE nhi_keys ADD COLUMN number BIGINT NOT NULL DEFAULT 1;
ALTER TABLE nhi_keys ADD COLUMN compromised BIGINT NOT NULL DEFAULT 0;
ALTER TABLE nhi_keys ADD COLUMN previous TEXT;
ALTER TABLE nhi_keys ADD COLUMN signed_at BIGINT;
ALTER TABLE nhi_keys ADD COLUMN algorithm TEXT;
ALTER TABLE nhi_keys ADD COLUMN signature BYTEA;
CREATE UNIQUE INDEX nhi_keys_number ON nhi_keys (org, identity, number);
ALTER TABLE nhi_bundles ADD COLUMN key_id TEXT NOT NULL DEFAULT '';
ALTER TABLE nhi_prekeys ADD COLUMN key_id TEXT NOT NULL DEFAULT '';
UPDATE nhi_bundles SET key_id = (SELECT k.key_id FROM nhi_keys k WHERE k.org = nhi_bundles.org
  AND k.identity = nhi_bundles.identity);
UPDATE nhi_prekeys SET key_id = (SELECT k.key_id FROM nhi_keys k WHERE k.org = nhi_prekeys.org
  AND k.identity = nhi_prekeys.identity) WHERE kind = 'kem'
)sql"},
                                         {6, "invitations", R"sql(
CREATE TABLE nhi_invitations (
  org TEXT NOT NULL, id TEXT NOT NULL, hash BYTEA NOT NULL, human TEXT NOT NULL, invited_by TEXT NOT NULL,
  created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open', 'used', 'withdrawn')), key_id TEXT NOT NULL,
  PRIMARY KEY (org, id))
)sql"}};

constexpr std::string_view agent_columns =
    "identity, name, type, owner, status, created_at, expires_at, attributes, roles";
constexpr std::string_view delegation_columns =
    "org, id, delegator, delegatee, parent, permissions, created_at, expires_at, key_id, algorithm, signature, revoked";

Error damaged(std::string_view what) {
  return Error(Product::platform, ErrorKind::internal, fmt::format("the stored {} is damaged", what));
}

Result<Agent> agent_of(const sql::Row& row) {
  auto identity = Identity::parse(row.text(0));
  auto type = agent_type_from_string(row.text(2));
  auto owner = Identity::parse(row.text(3));
  auto status = agent_status_from_string(row.text(4));
  auto attributes = parse_json(row.text(7));
  auto roles = parse_json(row.text(8));
  if (!identity || !type || !owner || !status || !attributes || !roles) return damaged("agent");
  Agent agent{*identity, row.text(1), *type, *owner, row.instant(5), row.instant(6), *status, {}};
  for (const auto& [key, value] : attributes->items()) agent.attributes[key] = value.get<std::string>();
  agent.roles = roles->get<std::vector<std::string>>();
  return agent;
}

std::string attributes_json(const Agent& agent) { return Json(agent.attributes).dump(); }

Result<Delegation> delegation_of(const sql::Row& row) {
  auto id = DelegationId::parse(row.text(1));
  auto delegator = Identity::parse(row.text(2));
  auto delegatee = Identity::parse(row.text(3));
  auto permissions = parse_json(row.text(5));
  if (!id || !delegator || !delegatee || !permissions) return damaged("delegation");
  std::optional<DelegationId> parent;
  if (auto text = row.optional_text(4)) {
    auto parsed = DelegationId::parse(*text);
    if (!parsed) return damaged("delegation");
    parent = *parsed;
  }
  return Delegation{*id,
                    row.text(0),
                    *delegator,
                    *delegatee,
                    parent,
                    permissions->get<std::vector<std::string>>(),
                    row.instant(6),
                    row.instant(7),
                    row.text(8),
                    Signature{row.text(9), row.bytes(10)},
                    row.boolean(11)};
}

}  // namespace

Result<> migrate(sql::Database& database) { return sql::migrate(database, "nhi", migrations); }

Result<> count_change(sql::Tx& tx) {
  // One counter would make every two changes at the same time wait for each other.
  constexpr std::size_t counters = 16;
  const auto counter = static_cast<std::int64_t>(std::hash<std::thread::id>()(std::this_thread::get_id()) % counters);
  CRETO_TRY(
      tx.exec("INSERT INTO nhi_changes (counter, count) VALUES ($1, 1) "
              "ON CONFLICT (counter) DO UPDATE SET count = nhi_changes.count + 1",
              {counter}));
  return {};
}

Result<std::int64_t> changes(sql::Tx& tx) {
  const auto rows = CRETO_TRY(tx.query("SELECT count FROM nhi_changes"));
  return std::accumulate(rows.begin(), rows.end(), std::int64_t{0},
                         [](std::int64_t sum, const sql::Row& row) { return sum + row.integer(0); });
}

Result<> insert_agent(sql::Tx& tx, const std::string& org, const Agent& agent) {
  auto changed = CRETO_TRY(
      tx.exec("INSERT INTO nhi_agents (org, identity, name, type, owner, status, created_at, expires_at, attributes) "
              "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
              {org, agent.identity.text(), agent.name, to_string(agent.type), agent.owner.text(),
               to_string(agent.status), agent.created_at, agent.expires_at, attributes_json(agent)}));
  if (changed == 0)
    return Error(Product::platform, ErrorKind::already_exists, fmt::format("the name `{}` is taken", agent.name));
  return {};
}

Result<> update_agent(sql::Tx& tx, const std::string& org, const Agent& agent) {
  CRETO_TRY(
      tx.exec("UPDATE nhi_agents SET name = $3, status = $4, expires_at = $5, attributes = $6, roles = $7 "
              "WHERE org = $1 AND identity = $2",
              {org, agent.identity.text(), agent.name, to_string(agent.status), agent.expires_at,
               attributes_json(agent), Json(agent.roles).dump()}));
  return {};
}

Result<std::optional<Agent>> find_agent(sql::Tx& tx, const std::string& org, const Identity& identity) {
  auto rows =
      CRETO_TRY(tx.query(fmt::format("SELECT {} FROM nhi_agents WHERE org = $1 AND identity = $2", agent_columns),
                         {org, identity.text()}));
  if (rows.empty()) return std::optional<Agent>();
  Agent agent = CRETO_TRY(agent_of(rows.front()));
  return std::optional(std::move(agent));
}

Result<std::optional<Agent>> find_agent_by_name(sql::Tx& tx, const std::string& org, const std::string& name) {
  auto rows = CRETO_TRY(tx.query(
      fmt::format("SELECT {} FROM nhi_agents WHERE org = $1 AND name = $2 AND status <> 'revoked'", agent_columns),
      {org, name}));
  if (rows.empty()) return std::optional<Agent>();
  Agent agent = CRETO_TRY(agent_of(rows.front()));
  return std::optional(std::move(agent));
}

Result<std::vector<Agent>> list_agents(sql::Tx& tx, const std::string& org, const AgentFilter& filter) {
  std::string sql = fmt::format("SELECT {} FROM nhi_agents WHERE org = $1 AND identity > $2", agent_columns);
  std::vector<sql::Value> parameters = {org, filter.after};
  auto also = [&](std::string_view column, sql::Value value, std::string_view relation = "=") {
    parameters.push_back(std::move(value));
    sql += fmt::format(" AND {} {} ${}", column, relation, parameters.size());
  };
  if (filter.owner) also("owner", filter.owner->text());
  if (filter.type) also("type", to_string(*filter.type));
  if (filter.status) also("status", to_string(*filter.status));
  if (!filter.name.empty()) also("name", filter.name);
  // A role's name has neither quotes nor LIKE's own signs.
  if (!filter.role.empty()) also("roles", fmt::format("%\"{}\"%", filter.role), "LIKE");
  parameters.push_back(static_cast<std::int64_t>(filter.limit));
  sql += fmt::format(" ORDER BY identity LIMIT ${}", parameters.size());
  auto rows = CRETO_TRY(tx.query(sql, parameters));
  std::vector<Agent> agents;
  for (const sql::Row row : rows) {
    Agent agent = CRETO_TRY(agent_of(row));
    agents.push_back(std::move(agent));
  }
  return agents;
}

Result<> insert_keys(sql::Tx& tx, const std::string& org, const Identity& identity, const PublicKeys& keys,
                     const std::optional<Bytes>& sealed, std::size_t number) {
  std::optional<Bytes> kem, signature;
  std::optional<std::string> previous, algorithm;
  std::optional<Instant> signed_at;
  if (keys.kem) kem = keys.kem->bytes();
  if (keys.succession) {
    previous = keys.succession->previous_key_id;
    signed_at = keys.succession->signed_at;
    algorithm = keys.succession->signature.algorithm;
    signature = keys.succession->signature.value;
  }
  CRETO_TRY(
      tx.exec("INSERT INTO nhi_keys (org, identity, key_id, signing, kem, sealed, valid_from, valid_until, number, "
              "previous, signed_at, algorithm, signature) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, "
              "$13)",
              {org, identity.text(), keys.key_id, keys.signing.bytes(), kem, sealed, keys.valid_from, keys.valid_until,
               static_cast<std::int64_t>(number), previous, signed_at, algorithm, signature}));
  return {};
}

Result<> end_keys(sql::Tx& tx, const std::string& org, const Identity& identity, const std::string& key_id,
                  Instant valid_until, bool compromised) {
  CRETO_TRY(
      tx.exec("UPDATE nhi_keys SET valid_until = $4, compromised = $5 WHERE org = $1 AND identity = $2 AND key_id = $3",
              {org, identity.text(), key_id, valid_until, compromised}));
  return {};
}

Result<std::vector<PublicKeys>> list_keys(sql::Tx& tx, const std::string& org, const Identity& identity) {
  auto rows = CRETO_TRY(
      tx.query("SELECT key_id, signing, kem, valid_from, valid_until, compromised, previous, signed_at, algorithm, "
               "signature FROM nhi_keys WHERE org = $1 AND identity = $2 ORDER BY number DESC",
               {org, identity.text()}));
  std::vector<PublicKeys> all;
  for (const sql::Row row : rows) {
    auto signing = crypto::VerifyingKey::parse(crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65, row.bytes(1));
    if (!signing) return damaged("key");
    std::optional<crypto::KemPublicKey> kem;
    if (!row.is_null(2)) {
      auto parsed = crypto::KemPublicKey::parse(crypto::KemAlgorithm::x_wing, row.bytes(2));
      if (!parsed) return damaged("key");
      kem = *std::move(parsed);
    }
    PublicKeys keys{row.text(0), *std::move(signing), std::move(kem), row.instant(3), row.instant(4)};
    keys.compromised = row.boolean(5);
    if (!row.is_null(6))
      keys.succession = Succession{row.text(6), row.instant(7), Signature{row.text(8), row.bytes(9)}};
    all.push_back(std::move(keys));
  }
  return all;
}

Result<std::optional<Bytes>> sealed_key(sql::Tx& tx, const std::string& org, const Identity& identity,
                                        const std::string& key_id) {
  auto rows = CRETO_TRY(tx.query("SELECT sealed FROM nhi_keys WHERE org = $1 AND identity = $2 AND key_id = $3",
                                 {org, identity.text(), key_id}));
  if (rows.empty()) return std::optional<Bytes>();
  return rows.front().optional_bytes(0);
}

Result<bool> insert_delegation(sql::Tx& tx, const Delegation& d) {
  std::optional<std::string> parent;
  if (d.parent) parent = d.parent->to_string();
  auto changed = CRETO_TRY(
      tx.exec(fmt::format("INSERT INTO nhi_delegations ({}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0) "
                          "ON CONFLICT DO NOTHING",
                          delegation_columns),
              {d.org, d.id.to_string(), d.delegator.text(), d.delegatee.text(), parent, Json(d.permissions).dump(),
               d.created_at, d.expires_at, d.key_id, d.signature.algorithm, d.signature.value}));
  return changed == 1;
}

Result<std::optional<Delegation>> find_delegation(sql::Tx& tx, const std::string& org, const DelegationId& id) {
  auto rows =
      CRETO_TRY(tx.query(fmt::format("SELECT {} FROM nhi_delegations WHERE org = $1 AND id = $2", delegation_columns),
                         {org, id.to_string()}));
  if (rows.empty()) return std::optional<Delegation>();
  Delegation delegation = CRETO_TRY(delegation_of(rows.front()));
  return std::optional(std::move(delegation));
}

Result<std::vector<Delegation>> delegations_to(sql::Tx& tx, const std::string& org, const Identity& delegatee,
                                               Instant now) {
  auto rows =
      CRETO_TRY(tx.query(fmt::format("SELECT {} FROM nhi_delegations WHERE org = $1 AND delegatee = $2 "
                                     "AND revoked = 0 AND expires_at > $3 ORDER BY created_at DESC, id DESC LIMIT 64",
                                     delegation_columns),
                         {org, delegatee.text(), now}));
  std::vector<Delegation> all;
  for (const sql::Row row : rows) {
    Delegation delegation = CRETO_TRY(delegation_of(row));
    all.push_back(std::move(delegation));
  }
  return all;
}

Result<> revoke_delegation(sql::Tx& tx, const std::string& org, const DelegationId& id, Instant now) {
  CRETO_TRY(tx.exec("UPDATE nhi_delegations SET revoked = 1, revoked_at = $3 WHERE org = $1 AND id = $2",
                    {org, id.to_string(), now}));
  return {};
}

namespace {

Result<PastDelegation> past_delegation_of(const sql::Row& row) {
  Delegation link = CRETO_TRY(delegation_of(row));
  Instant ends_at = link.expires_at;
  if (!row.is_null(12)) ends_at = std::min(ends_at, row.instant(12));
  return PastDelegation{std::move(link), ends_at};
}

}  // namespace

Result<std::vector<PastDelegation>> past_delegations_to(sql::Tx& tx, const std::string& org, const Identity& delegatee,
                                                        Instant when) {
  std::vector<PastDelegation> all;
  for (const std::string_view part : {"created_at > $3 ORDER BY created_at, id LIMIT 1",
                                      "created_at <= $3 ORDER BY created_at DESC, id DESC LIMIT 64"}) {
    auto rows = CRETO_TRY(
        tx.query(fmt::format("SELECT {}, revoked_at FROM nhi_delegations WHERE org = $1 AND delegatee = $2 AND {}",
                             delegation_columns, part),
                 {org, delegatee.text(), when}));
    for (const sql::Row row : rows) {
      PastDelegation one = CRETO_TRY(past_delegation_of(row));
      all.push_back(std::move(one));
    }
  }
  return all;
}

Result<std::optional<PastDelegation>> find_past_delegation(sql::Tx& tx, const std::string& org,
                                                           const DelegationId& id) {
  auto rows = CRETO_TRY(
      tx.query(fmt::format("SELECT {}, revoked_at FROM nhi_delegations WHERE org = $1 AND id = $2", delegation_columns),
               {org, id.to_string()}));
  if (rows.empty()) return std::optional<PastDelegation>();
  PastDelegation one = CRETO_TRY(past_delegation_of(rows.front()));
  return std::optional(std::move(one));
}

Result<> put_bundle(sql::Tx& tx, const std::string& org, const Identity& identity, const KeyBundleUpload& b,
                    const std::string& key_id) {
  CRETO_TRY(tx.exec(
      "INSERT INTO nhi_bundles (org, identity, dh_key, dh_algorithm, dh_signature, signed_id, signed_key, "
      "signed_algorithm, signed_signature, kem_id, kem_key, kem_algorithm, kem_signature, key_id) "
      "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) "
      "ON CONFLICT (org, identity) DO UPDATE SET dh_key = excluded.dh_key, dh_algorithm = excluded.dh_algorithm, "
      "dh_signature = excluded.dh_signature, signed_id = excluded.signed_id, signed_key = excluded.signed_key, "
      "signed_algorithm = excluded.signed_algorithm, signed_signature = excluded.signed_signature, "
      "kem_id = excluded.kem_id, kem_key = excluded.kem_key, kem_algorithm = excluded.kem_algorithm, "
      "kem_signature = excluded.kem_signature, key_id = excluded.key_id",
      {org, identity.text(), b.identity_dh, b.identity_dh_signature.algorithm, b.identity_dh_signature.value,
       b.signed_prekey.id, b.signed_prekey.key, b.signed_prekey.signature.algorithm, b.signed_prekey.signature.value,
       b.last_resort_kem.id, b.last_resort_kem.key, b.last_resort_kem.signature.algorithm,
       b.last_resort_kem.signature.value, key_id}));
  CRETO_TRY(tx.exec("DELETE FROM nhi_prekeys WHERE org = $1 AND identity = $2 AND kind = 'kem' AND key_id <> $3",
                    {org, identity.text(), key_id}));
  constexpr std::string_view insert =
      "INSERT INTO nhi_prekeys (org, identity, kind, id, key, algorithm, signature, key_id) "
      "VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";
  for (const OneTimePrekey& prekey : b.one_time)
    CRETO_TRY(tx.exec(insert, {org, identity.text(), "dh", prekey.id, prekey.key, "", Bytes(), ""}));
  for (const SignedPrekey& prekey : b.one_time_kem)
    CRETO_TRY(tx.exec(insert, {org, identity.text(), "kem", prekey.id, prekey.key, prekey.signature.algorithm,
                               prekey.signature.value, key_id}));
  return {};
}

Result<std::optional<std::string>> bundle_key_id(sql::Tx& tx, const std::string& org, const Identity& identity) {
  auto rows =
      CRETO_TRY(tx.query("SELECT key_id FROM nhi_bundles WHERE org = $1 AND identity = $2", {org, identity.text()}));
  if (rows.empty()) return std::optional<std::string>();
  return rows.front().optional_text(0);
}

Result<KeyBundle> take_bundle(sql::Tx& tx, const std::string& org, const Identity& identity, const PublicKeys& keys) {
  auto rows = CRETO_TRY(
      tx.query("SELECT dh_key, dh_algorithm, dh_signature, signed_id, signed_key, signed_algorithm, signed_signature, "
               "kem_id, kem_key, kem_algorithm, kem_signature FROM nhi_bundles WHERE org = $1 AND identity = $2",
               {org, identity.text()}));
  if (rows.empty()) return damaged("key bundle");
  auto row = rows.front();
  auto prekey = [&](std::size_t first) {
    return SignedPrekey{static_cast<std::uint32_t>(row.integer(first)), row.bytes(first + 1),
                        Signature{row.text(first + 2), row.bytes(first + 3)}};
  };
  KeyBundle bundle{identity,  keys,      row.bytes(0), Signature{row.text(1), row.bytes(2)},
                   prekey(3), prekey(7), true,         std::nullopt};
  // One statement finds and removes, so that two takers get different ones.
  constexpr std::string_view take =
      "DELETE FROM nhi_prekeys WHERE org = $1 AND identity = $2 AND kind = $3 AND id = (SELECT min(id) FROM "
      "nhi_prekeys WHERE org = $1 AND identity = $2 AND kind = $3 AND key_id = $4) "
      "RETURNING id, key, algorithm, signature";
  auto dh = CRETO_TRY(tx.query(take, {org, identity.text(), "dh", ""}));
  if (!dh.empty())
    bundle.one_time = OneTimePrekey{static_cast<std::uint32_t>(dh.front().integer(0)), dh.front().bytes(1)};
  auto kem = CRETO_TRY(tx.query(take, {org, identity.text(), "kem", keys.key_id}));
  if (!kem.empty()) {
    auto taken = kem.front();
    bundle.kem = SignedPrekey{static_cast<std::uint32_t>(taken.integer(0)), taken.bytes(1),
                              Signature{taken.text(2), taken.bytes(3)}};
    bundle.kem_is_last_resort = false;
  }
  return bundle;
}

Result<PrekeyCount> count_prekeys(sql::Tx& tx, const std::string& org, const Identity& identity,
                                  const std::string& key_id) {
  PrekeyCount count;
  auto rows = CRETO_TRY(
      tx.query("SELECT kind, count(*) FROM nhi_prekeys WHERE org = $1 AND identity = $2 AND key_id IN ('', $3) "
               "GROUP BY kind",
               {org, identity.text(), key_id}));
  for (const sql::Row row : rows) (row.text(0) == "dh" ? count.one_time : count.one_time_kem) = row.integer(1);
  return count;
}

std::string invitation_id(const Hash256& hash) { return hex(BytesView(hash).first(8)); }

Result<> insert_invitation(sql::Tx& tx, const std::string& org, const Invitation& invitation, const Hash256& hash) {
  CRETO_TRY(
      tx.exec("INSERT INTO nhi_invitations (org, id, hash, human, invited_by, created_at, expires_at, state, key_id) "
              "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, '')",
              {org, invitation.id, to_bytes(BytesView(hash)), invitation.human.text(), invitation.invited_by.text(),
               invitation.created_at, invitation.expires_at, to_string(invitation.state)}));
  return {};
}

namespace {

constexpr std::string_view invitation_columns = "id, human, invited_by, created_at, expires_at, state, hash, key_id";

Result<StoredInvitation> invitation_of(const sql::Row& row) {
  auto human = Identity::parse(row.text(1));
  auto invited_by = Identity::parse(row.text(2));
  auto state = invitation_state_from_string(row.text(5));
  if (!human || !invited_by || !state) return damaged("invitation");
  return StoredInvitation{
      {row.text(0), *human, *invited_by, row.instant(3), row.instant(4), *state}, row.bytes(6), row.text(7)};
}

}  // namespace

Result<std::optional<StoredInvitation>> find_invitation(sql::Tx& tx, const std::string& org, std::string_view id) {
  auto rows = CRETO_TRY(tx.query(
      fmt::format("SELECT {} FROM nhi_invitations WHERE org = $1 AND id = $2", invitation_columns), {org, id}));
  if (rows.empty()) return std::optional<StoredInvitation>();
  StoredInvitation found = CRETO_TRY(invitation_of(rows.front()));
  return std::optional(std::move(found));
}

Result<std::vector<StoredInvitation>> list_invitations(sql::Tx& tx, const std::string& org, Instant since) {
  auto rows = CRETO_TRY(tx.query(fmt::format("SELECT {} FROM nhi_invitations WHERE org = $1 AND expires_at > $2 "
                                             "ORDER BY created_at DESC, id LIMIT 1000",
                                             invitation_columns),
                                 {org, since}));
  std::vector<StoredInvitation> out;
  for (const sql::Row row : rows) {
    StoredInvitation one = CRETO_TRY(invitation_of(row));
    out.push_back(std::move(one));
  }
  return out;
}

Result<bool> end_invitation(sql::Tx& tx, const std::string& org, const Invitation& invitation,
                            const std::string& key_id) {
  auto changed = CRETO_TRY(
      tx.exec("UPDATE nhi_invitations SET state = $3, key_id = $4 WHERE org = $1 AND id = $2 AND state = 'open'",
              {org, invitation.id, to_string(invitation.state), key_id}));
  return changed == 1;
}

Result<> forget_invitations(sql::Tx& tx, const std::string& org, Instant before) {
  CRETO_TRY(tx.exec("DELETE FROM nhi_invitations WHERE org = $1 AND expires_at < $2", {org, before}));
  return {};
}

}  // namespace creto::nhi::store
