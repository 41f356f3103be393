#include "vault_store.h"

#include <array>

#include "secret_codec.h"

namespace creto::vault::store {
namespace {

constexpr std::array migrations{sql::Migration{1, "secrets", R"(
CREATE TABLE vault_secrets (
  org TEXT NOT NULL,
  path TEXT NOT NULL,
  name TEXT NOT NULL,
  id TEXT NOT NULL,
  owner TEXT NOT NULL,
  latest BIGINT NOT NULL CHECK (latest >= 1),
  PRIMARY KEY (org, path, name));
CREATE UNIQUE INDEX vault_secrets_by_id ON vault_secrets (org, id);

CREATE TABLE vault_secret_versions (
  org TEXT NOT NULL,
  secret_id TEXT NOT NULL,
  version BIGINT NOT NULL CHECK (version >= 1),
  metadata TEXT NOT NULL,
  sealed BYTEA NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT,
  PRIMARY KEY (org, secret_id, version));

CREATE TABLE vault_delegations (
  org TEXT NOT NULL,
  id TEXT NOT NULL,
  delegator TEXT NOT NULL,
  delegatee TEXT NOT NULL,
  sandbox TEXT,
  memory_only BIGINT NOT NULL,
  max_uses BIGINT NOT NULL CHECK (max_uses >= 0),
  uses BIGINT NOT NULL CHECK (uses >= 0 AND (max_uses = 0 OR uses <= max_uses)),
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL CHECK (expires_at > created_at),
  revoked BIGINT NOT NULL,
  PRIMARY KEY (org, id));
CREATE INDEX vault_delegations_by_delegatee ON vault_delegations (org, delegatee, expires_at);

CREATE TABLE vault_delegation_secrets (
  org TEXT NOT NULL,
  delegation_id TEXT NOT NULL,
  position BIGINT NOT NULL,
  secret_id TEXT NOT NULL,
  path TEXT NOT NULL,
  name TEXT NOT NULL,
  PRIMARY KEY (org, delegation_id, position));
CREATE INDEX vault_delegation_secrets_by_secret ON vault_delegation_secrets (org, secret_id);

CREATE TABLE vault_access (
  sequence {{serial}},
  org TEXT NOT NULL,
  at BIGINT NOT NULL,
  who TEXT NOT NULL,
  operation TEXT NOT NULL,
  path TEXT NOT NULL,
  name TEXT NOT NULL,
  version BIGINT NOT NULL,
  delegation_id TEXT NOT NULL,
  allowed BIGINT NOT NULL);
CREATE INDEX vault_access_by_secret ON vault_access (org, path, name, sequence);
)"}};

constexpr std::string_view head_columns = "id, path, name, owner, latest";
constexpr std::string_view delegation_columns =
    "id, delegator, delegatee, sandbox, memory_only, max_uses, uses, created_at, expires_at, revoked";

Result<SecretHead> read_head(const sql::Row& row) {
  auto owner = CRETO_TRY(Identity::parse(row.text(3)));
  return SecretHead{row.text(0), SecretRef{row.text(1), row.text(2)}, std::move(owner),
                    static_cast<std::uint64_t>(row.integer(4))};
}

Result<std::optional<SecretHead>> first_head(const sql::Rows& rows) {
  if (rows.empty()) return std::optional<SecretHead>();
  auto head = CRETO_TRY(read_head(rows.front()));
  return std::optional<SecretHead>(std::move(head));
}

DelegationStatus status_of(const SecretDelegation& d, bool revoked, Instant now) {
  if (revoked) return DelegationStatus::revoked;
  if (d.expires_at <= now) return DelegationStatus::expired;
  if (d.restrictions.max_uses != 0 && d.uses >= d.restrictions.max_uses) return DelegationStatus::exhausted;
  return DelegationStatus::active;
}

Result<StoredDelegation> read_delegation(sql::Tx& tx, const Context& ctx, const sql::Row& row, Instant now) {
  auto id = CRETO_TRY(SecretDelegationId::parse(row.text(0)));
  auto delegator = CRETO_TRY(Identity::parse(row.text(1)));
  auto delegatee = CRETO_TRY(Identity::parse(row.text(2)));
  DelegationRestrictions restrictions;
  if (!row.is_null(3)) restrictions.bound_sandbox = CRETO_TRY(SandboxId::parse(row.text(3)));
  restrictions.memory_only = row.boolean(4);
  restrictions.max_uses = static_cast<std::uint32_t>(row.integer(5));
  restrictions.single_use = restrictions.max_uses == 1;
  StoredDelegation stored{SecretDelegation{id,
                                           std::move(delegator),
                                           std::move(delegatee),
                                           {},
                                           row.instant(7),
                                           row.instant(8),
                                           restrictions,
                                           static_cast<std::uint32_t>(row.integer(6)),
                                           DelegationStatus::active},
                          {}};
  stored.delegation.status = status_of(stored.delegation, row.boolean(9), now);
  const auto secrets =
      CRETO_TRY(tx.query("SELECT secret_id, path, name FROM vault_delegation_secrets"
                         " WHERE org = $1 AND delegation_id = $2 ORDER BY position",
                         {ctx.org, row.text(0)}));
  for (const auto& secret : secrets) {
    stored.secret_ids.push_back(secret.text(0));
    stored.delegation.secrets.push_back(SecretRef{secret.text(1), secret.text(2)});
  }
  return stored;
}

Result<std::optional<StoredDelegation>> first_delegation(sql::Tx& tx, const Context& ctx, const sql::Rows& rows,
                                                         Instant now) {
  if (rows.empty()) return std::optional<StoredDelegation>();
  auto found = CRETO_TRY(read_delegation(tx, ctx, rows.front(), now));
  return std::optional<StoredDelegation>(std::move(found));
}

std::string select(std::string_view columns, std::string_view rest) {
  return std::string("SELECT ").append(columns).append(" ").append(rest);
}

}  // namespace

Result<> migrate(sql::Database& database) { return sql::migrate(database, "vault", migrations); }

Result<std::optional<SecretHead>> find_head(sql::Tx& tx, const Context& ctx, const SecretRef& ref) {
  const auto rows =
      CRETO_TRY(tx.query(select(head_columns, "FROM vault_secrets WHERE org = $1 AND path = $2 AND name = $3"),
                         {ctx.org, ref.path, ref.name}));
  return first_head(rows);
}

Result<std::optional<SecretHead>> find_head_by_id(sql::Tx& tx, const Context& ctx, std::string_view id) {
  const auto rows =
      CRETO_TRY(tx.query(select(head_columns, "FROM vault_secrets WHERE org = $1 AND id = $2"), {ctx.org, id}));
  return first_head(rows);
}

Result<std::vector<SecretHead>> list_heads(sql::Tx& tx, const Context& ctx, std::string_view path_prefix,
                                           const std::optional<SecretRef>& after, std::size_t limit) {
  const SecretRef from = after.value_or(SecretRef{});
  const auto rows =
      CRETO_TRY(tx.query(select(head_columns,
                                "FROM vault_secrets WHERE org = $1 AND substr(path, 1, CAST($2 AS INTEGER)) = $3"
                                " AND (path > $4 OR (path = $4 AND name > $5)) ORDER BY path, name LIMIT $6"),
                         {ctx.org, static_cast<std::int64_t>(path_prefix.size()), path_prefix, from.path, from.name,
                          static_cast<std::int64_t>(limit)}));
  std::vector<SecretHead> heads;
  for (const auto& row : rows) {
    auto head = CRETO_TRY(read_head(row));
    heads.push_back(std::move(head));
  }
  return heads;
}

Result<> insert_head(sql::Tx& tx, const Context& ctx, const SecretHead& head) {
  CRETO_TRY(tx.exec(
      "INSERT INTO vault_secrets (org, path, name, id, owner, latest) VALUES ($1, $2, $3, $4, $5, $6)",
      {ctx.org, head.ref.path, head.ref.name, head.id, head.owner.text(), static_cast<std::int64_t>(head.latest)}));
  return {};
}

Result<> set_latest(sql::Tx& tx, const Context& ctx, const SecretHead& head) {
  CRETO_TRY(tx.exec("UPDATE vault_secrets SET latest = $3 WHERE org = $1 AND id = $2",
                    {ctx.org, head.id, static_cast<std::int64_t>(head.latest)}));
  return {};
}

Result<> delete_secret(sql::Tx& tx, const Context& ctx, const SecretHead& head) {
  CRETO_TRY(tx.exec("DELETE FROM vault_secret_versions WHERE org = $1 AND secret_id = $2", {ctx.org, head.id}));
  CRETO_TRY(tx.exec("DELETE FROM vault_secrets WHERE org = $1 AND id = $2", {ctx.org, head.id}));
  return {};
}

Result<> insert_version(sql::Tx& tx, const Context& ctx, const SecretHead& head, const StoredVersion& version) {
  const auto metadata = CRETO_TRY(to_json(version.info.metadata));
  CRETO_TRY(
      tx.exec("INSERT INTO vault_secret_versions (org, secret_id, version, metadata, sealed, created_at, expires_at)"
              " VALUES ($1, $2, $3, $4, $5, $6, $7)",
              {ctx.org, head.id, static_cast<std::int64_t>(version.info.version), metadata, version.sealed,
               version.info.created_at, version.info.expires_at}));
  return {};
}

Result<std::optional<StoredVersion>> find_version(sql::Tx& tx, const Context& ctx, const SecretHead& head,
                                                  std::uint64_t version) {
  const auto rows =
      CRETO_TRY(tx.query("SELECT metadata, sealed, created_at, expires_at FROM vault_secret_versions"
                         " WHERE org = $1 AND secret_id = $2 AND version = $3",
                         {ctx.org, head.id, static_cast<std::int64_t>(version)}));
  if (rows.empty()) return std::optional<StoredVersion>();
  const auto row = rows.front();
  auto metadata = CRETO_TRY(metadata_from_json(row.text(0)));
  return std::optional<StoredVersion>(StoredVersion{
      SecretInfo{head.ref, head.owner, version, std::move(metadata), row.instant(2), row.optional_instant(3)},
      row.bytes(1)});
}

Result<> delete_versions(sql::Tx& tx, const Context& ctx, const SecretHead& head, std::uint64_t last) {
  CRETO_TRY(tx.exec("DELETE FROM vault_secret_versions WHERE org = $1 AND secret_id = $2 AND version <= $3",
                    {ctx.org, head.id, static_cast<std::int64_t>(last)}));
  return {};
}

Result<> insert_delegation(sql::Tx& tx, const Context& ctx, const StoredDelegation& stored) {
  const auto& d = stored.delegation;
  const auto id = d.id.to_string();
  std::optional<std::string> sandbox;
  if (d.restrictions.bound_sandbox) sandbox = d.restrictions.bound_sandbox->to_string();
  CRETO_TRY(
      tx.exec("INSERT INTO vault_delegations (org, id, delegator, delegatee, sandbox, memory_only, max_uses, uses,"
              " created_at, expires_at, revoked) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0)",
              {ctx.org, id, d.delegator.text(), d.delegatee.text(), sandbox, d.restrictions.memory_only,
               d.restrictions.max_uses, d.uses, d.created_at, d.expires_at}));
  CRETO_ASSERT(d.secrets.size() == stored.secret_ids.size());
  for (std::size_t i = 0; i < d.secrets.size(); ++i) {
    CRETO_TRY(tx.exec(
        "INSERT INTO vault_delegation_secrets (org, delegation_id, position, secret_id, path, name)"
        " VALUES ($1, $2, $3, $4, $5, $6)",
        {ctx.org, id, static_cast<std::int64_t>(i), stored.secret_ids[i], d.secrets[i].path, d.secrets[i].name}));
  }
  return {};
}

Result<std::optional<StoredDelegation>> find_delegation(sql::Tx& tx, const Context& ctx, std::string_view id,
                                                        Instant now) {
  const auto rows = CRETO_TRY(
      tx.query(select(delegation_columns, "FROM vault_delegations WHERE org = $1 AND id = $2"), {ctx.org, id}));
  return first_delegation(tx, ctx, rows, now);
}

Result<std::optional<StoredDelegation>> find_lease(sql::Tx& tx, const Context& ctx, std::string_view secret_id,
                                                   const Identity& delegatee, const SandboxId& sandbox, Instant now) {
  const auto rows = CRETO_TRY(tx.query(
      select(delegation_columns,
             "FROM vault_delegations WHERE org = $1 AND delegatee = $2 AND revoked = 0 AND expires_at > $3"
             " AND (max_uses = 0 OR uses < max_uses) AND (sandbox IS NULL OR sandbox = $4)"
             " AND EXISTS (SELECT 1 FROM vault_delegation_secrets s"
             "  WHERE s.org = vault_delegations.org AND s.delegation_id = vault_delegations.id AND s.secret_id = $5)"
             " ORDER BY expires_at DESC, id LIMIT 1"),
      {ctx.org, delegatee.text(), now, sandbox.to_string(), secret_id}));
  return first_delegation(tx, ctx, rows, now);
}

Result<bool> count_use(sql::Tx& tx, const Context& ctx, std::string_view id, Instant now) {
  const auto changed =
      CRETO_TRY(tx.exec("UPDATE vault_delegations SET uses = uses + 1 WHERE org = $1 AND id = $2 AND revoked = 0"
                        " AND expires_at > $3 AND (max_uses = 0 OR uses < max_uses)",
                        {ctx.org, id, now}));
  return changed == 1;
}

Result<> revoke(sql::Tx& tx, const Context& ctx, std::string_view id) {
  CRETO_TRY(tx.exec("UPDATE vault_delegations SET revoked = 1 WHERE org = $1 AND id = $2", {ctx.org, id}));
  return {};
}

Result<> insert_access(sql::Tx& tx, const Context& ctx, const SecretAccess& access) {
  CRETO_TRY(
      tx.exec("INSERT INTO vault_access (org, at, who, operation, path, name, version, delegation_id, allowed)"
              " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
              {ctx.org, access.at, access.who.text(), access.operation, access.ref.path, access.ref.name,
               static_cast<std::int64_t>(access.version), access.delegation_id, access.allowed}));
  return {};
}

Result<std::vector<SecretAccess>> list_access(sql::Tx& tx, const Context& ctx, const SecretRef& ref,
                                              std::int64_t before, std::size_t limit) {
  const auto rows = CRETO_TRY(
      tx.query("SELECT sequence, at, who, operation, version, delegation_id, allowed FROM vault_access"
               " WHERE org = $1 AND path = $2 AND name = $3 AND sequence < $4 ORDER BY sequence DESC LIMIT $5",
               {ctx.org, ref.path, ref.name, before, static_cast<std::int64_t>(limit)}));
  std::vector<SecretAccess> found;
  for (const auto& row : rows) {
    auto who = CRETO_TRY(Identity::parse(row.text(2)));
    found.push_back(SecretAccess{row.integer(0), row.instant(1), std::move(who), row.text(3), ref,
                                 static_cast<std::uint64_t>(row.integer(4)), row.text(5), row.boolean(6)});
  }
  return found;
}

}  // namespace creto::vault::store
