#include "store.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace creto::authz::store {
namespace {

constexpr sql::Migration migrations[] = {{1, "authz", R"(
CREATE TABLE authz_versions (org TEXT NOT NULL, version BIGINT NOT NULL, PRIMARY KEY (org));
CREATE TABLE authz_policies (
  org TEXT NOT NULL, id TEXT NOT NULL, text TEXT NOT NULL, version BIGINT NOT NULL CHECK (version > 0),
  updated_at BIGINT NOT NULL, updated_by TEXT NOT NULL, PRIMARY KEY (org, id));
CREATE TABLE authz_entities (
  org TEXT NOT NULL, type TEXT NOT NULL, id TEXT NOT NULL, doc TEXT NOT NULL, PRIMARY KEY (org, type, id));
CREATE TABLE authz_override_uses (
  org TEXT NOT NULL, request TEXT NOT NULL, operation TEXT NOT NULL, used_at BIGINT NOT NULL, PRIMARY KEY (org, request));
CREATE TABLE authz_override_revocations (
  org TEXT NOT NULL, request TEXT NOT NULL, revoked_at BIGINT NOT NULL, PRIMARY KEY (org, request))
)"},
                                         {2, "versions", R"(
ALTER TABLE authz_policies ADD COLUMN since BIGINT NOT NULL DEFAULT 0;
CREATE TABLE authz_policy_revisions (
  org TEXT NOT NULL, id TEXT NOT NULL, since BIGINT NOT NULL, until BIGINT NOT NULL CHECK (until > since),
  text TEXT NOT NULL, version BIGINT NOT NULL, updated_at BIGINT NOT NULL, updated_by TEXT NOT NULL,
  PRIMARY KEY (org, id, since));
CREATE INDEX authz_policy_revisions_until ON authz_policy_revisions (org, until);
CREATE TABLE authz_schemas (
  org TEXT NOT NULL, since BIGINT NOT NULL, text TEXT NOT NULL, updated_at BIGINT NOT NULL, updated_by TEXT NOT NULL,
  PRIMARY KEY (org, since));
CREATE TABLE authz_policy_versions (
  org TEXT NOT NULL, version BIGINT NOT NULL, made_at BIGINT NOT NULL, made_by TEXT NOT NULL, what TEXT NOT NULL,
  policies BIGINT NOT NULL, added BIGINT NOT NULL, changed BIGINT NOT NULL, removed BIGINT NOT NULL,
  hash BYTEA NOT NULL, PRIMARY KEY (org, version))
)"}};

Policy policy_of(const sql::Row& row, std::size_t first) {
  return Policy{.id = row.text(first),
                .text = row.text(first + 1),
                .version = row.integer(first + 2),
                .updated_at = row.instant(first + 3),
                .updated_by = row.text(first + 4)};
}

constexpr std::string_view version_columns = "version, made_at, made_by, what, policies, added, changed, removed, hash";

PolicyVersion version_of(const sql::Row& row) {
  PolicyVersion version{.version = row.integer(0),
                        .made_at = row.instant(1),
                        .made_by = row.text(2),
                        .what = row.text(3),
                        .policies = row.integer(4),
                        .added = row.integer(5),
                        .changed = row.integer(6),
                        .removed = row.integer(7)};
  const Bytes& hash = row.bytes(8);
  if (hash.size() == version.hash.size()) std::copy(hash.begin(), hash.end(), version.hash.begin());
  return version;
}

/// Keeps what is in force of a policy as what was in force until `until`.
Result<> keep_revision(sql::Tx& tx, const std::string& org, const PolicyId& id, std::int64_t until) {
  CRETO_TRY(
      tx.exec("INSERT INTO authz_policy_revisions (org, id, since, until, text, version, updated_at, updated_by) "
              "SELECT org, id, since, $3, text, version, updated_at, updated_by FROM authz_policies "
              "WHERE org = $1 AND id = $2",
              {org, id, until}));
  return {};
}

// PostgreSQL's TEXT holds no NUL, Cedar's ids do: keys are escaped, the document is JSON.
std::string key(const std::string& id) {
  std::string escaped;
  for (const char c : id) {
    if (c == '\0' || c == '\\') escaped += '\\';
    escaped += c == '\0' ? '0' : c;
  }
  return escaped;
}

}  // namespace

Result<> migrate(sql::Database& database) { return sql::migrate(database, "authz", migrations); }

Result<std::map<std::string, OrgRows>> load_all(sql::Tx& tx) {
  std::map<std::string, OrgRows> orgs;
  const auto all_versions = CRETO_TRY(versions(tx));
  for (const auto& [org, version] : all_versions) orgs[org].version = version;
  const auto policies =
      CRETO_TRY(tx.query("SELECT org, id, text, version, updated_at, updated_by FROM authz_policies"));
  for (const sql::Row row : policies) orgs[row.text(0)].policies.push_back(policy_of(row, 1));
  const auto newest = CRETO_TRY(tx.query("SELECT org, max(version) FROM authz_policy_versions GROUP BY org"));
  for (const sql::Row row : newest) orgs[row.text(0)].policies_version = row.integer(1);
  const auto schemas = CRETO_TRY(
      tx.query("SELECT org, text, updated_at, updated_by FROM authz_schemas a WHERE text <> '' AND NOT EXISTS "
               "(SELECT 1 FROM authz_schemas b WHERE b.org = a.org AND b.since > a.since)"));
  for (const sql::Row row : schemas) orgs[row.text(0)].schema = PolicySchema{row.text(1), row.instant(2), row.text(3)};
  const auto entities = CRETO_TRY(tx.query("SELECT org, doc FROM authz_entities"));
  for (const sql::Row row : entities) {
    const Json doc = CRETO_TRY(parse_json(row.text(1)));
    Entity entity = CRETO_TRY(entity_from_json(doc));
    orgs[row.text(0)].entities.push_back(std::move(entity));
  }
  const auto revoked = CRETO_TRY(tx.query("SELECT org, request, revoked_at FROM authz_override_revocations"));
  for (const sql::Row row : revoked) {
    const RequestId request = CRETO_TRY(RequestId::parse(row.text(1)));
    orgs[row.text(0)].revoked.emplace(request, row.instant(2));
  }
  return orgs;
}

Result<std::map<std::string, std::int64_t>> versions(sql::Tx& tx) {
  std::map<std::string, std::int64_t> all;
  const auto rows = CRETO_TRY(tx.query("SELECT org, version FROM authz_versions"));
  for (const sql::Row row : rows) all[row.text(0)] = row.integer(1);
  return all;
}

Result<std::int64_t> version(sql::Tx& tx, const std::string& org) {
  const auto rows = CRETO_TRY(tx.query("SELECT version FROM authz_versions WHERE org = $1", {org}));
  return rows.empty() ? 0 : rows.front().integer(0);
}

Result<std::int64_t> bump(sql::Tx& tx, const std::string& org) {
  const auto rows =
      CRETO_TRY(tx.query("INSERT INTO authz_versions (org, version) VALUES ($1, 1) ON CONFLICT (org) "
                         "DO UPDATE SET version = authz_versions.version + 1 RETURNING version",
                         {org}));
  return rows.front().integer(0);
}

Result<std::optional<Policy>> find_policy(sql::Tx& tx, const std::string& org, const PolicyId& id) {
  const auto rows = CRETO_TRY(tx.query(
      "SELECT id, text, version, updated_at, updated_by FROM authz_policies WHERE org = $1 AND id = $2", {org, id}));
  if (rows.empty()) return std::nullopt;
  return std::optional(policy_of(rows.front(), 0));
}

Result<> put_policy(sql::Tx& tx, const std::string& org, const Policy& policy, std::int64_t since) {
  CRETO_TRY(keep_revision(tx, org, policy.id, since));
  CRETO_TRY(
      tx.exec("INSERT INTO authz_policies (org, id, text, version, updated_at, updated_by, since) "
              "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (org, id) DO UPDATE SET text = excluded.text, "
              "version = excluded.version, updated_at = excluded.updated_at, updated_by = excluded.updated_by, "
              "since = excluded.since",
              {org, policy.id, policy.text, policy.version, policy.updated_at, policy.updated_by, since}));
  return {};
}

Result<bool> remove_policy(sql::Tx& tx, const std::string& org, const PolicyId& id, std::int64_t until) {
  CRETO_TRY(keep_revision(tx, org, id, until));
  const auto removed = CRETO_TRY(tx.exec("DELETE FROM authz_policies WHERE org = $1 AND id = $2", {org, id}));
  return removed > 0;
}

Result<> put_schema(sql::Tx& tx, const std::string& org, const PolicySchema& schema, std::int64_t since) {
  CRETO_TRY(tx.exec("INSERT INTO authz_schemas (org, since, text, updated_at, updated_by) VALUES ($1, $2, $3, $4, $5)",
                    {org, since, schema.text, schema.updated_at, schema.updated_by}));
  return {};
}

Result<> put_version(sql::Tx& tx, const std::string& org, const PolicyVersion& version) {
  CRETO_TRY(tx.exec(
      fmt::format("INSERT INTO authz_policy_versions (org, {}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) "
                  "ON CONFLICT (org, version) DO NOTHING",
                  version_columns),
      {org, version.version, version.made_at, version.made_by, version.what, version.policies, version.added,
       version.changed, version.removed, version.hash}));
  return {};
}

Result<std::vector<PolicyVersion>> list_versions(sql::Tx& tx, const std::string& org, std::int64_t before,
                                                 std::size_t limit) {
  const auto rows =
      CRETO_TRY(tx.query(fmt::format("SELECT {} FROM authz_policy_versions WHERE org = $1 AND version < $2 "
                                     "ORDER BY version DESC LIMIT $3",
                                     version_columns),
                         {org, before, static_cast<std::int64_t>(limit)}));
  std::vector<PolicyVersion> versions;
  for (const sql::Row row : rows) versions.push_back(version_of(row));
  return versions;
}

Result<std::optional<VersionedPolicies>> policies_at(sql::Tx& tx, const std::string& org, std::int64_t version) {
  auto made = CRETO_TRY(list_versions(tx, org, version + 1, 1));
  if (made.empty()) return std::nullopt;
  VersionedPolicies set{.version = std::move(made.front()), .policies = {}, .schema = {}};
  const auto rows = CRETO_TRY(
      tx.query("SELECT id, text, version, updated_at, updated_by FROM authz_policies WHERE org = $1 AND since <= $2 "
               "UNION ALL SELECT id, text, version, updated_at, updated_by FROM authz_policy_revisions "
               "WHERE org = $1 AND since <= $2 AND until > $2",
               {org, version}));
  for (const sql::Row row : rows) set.policies.push_back(policy_of(row, 0));
  // Not in SQL: the databases order text differently.
  std::sort(set.policies.begin(), set.policies.end(), [](const Policy& a, const Policy& b) { return a.id < b.id; });
  const auto schema = CRETO_TRY(tx.query(
      "SELECT text FROM authz_schemas WHERE org = $1 AND since <= $2 ORDER BY since DESC LIMIT 1", {org, version}));
  if (!schema.empty()) set.schema = schema.front().text(0);
  return std::optional(std::move(set));
}

Result<> forget_versions(sql::Tx& tx, const std::string& org, std::size_t kept) {
  const auto rows = CRETO_TRY(
      tx.query("SELECT version FROM authz_policy_versions WHERE org = $1 ORDER BY version DESC LIMIT 1 OFFSET $2",
               {org, static_cast<std::int64_t>(kept - 1)}));
  if (rows.empty()) return {};
  const std::int64_t oldest = rows.front().integer(0);
  const auto gone =
      CRETO_TRY(tx.exec("DELETE FROM authz_policy_versions WHERE org = $1 AND version < $2", {org, oldest}));
  if (gone == 0) return {};
  CRETO_TRY(tx.exec("DELETE FROM authz_policy_revisions WHERE org = $1 AND until <= $2", {org, oldest}));
  CRETO_TRY(
      tx.exec("DELETE FROM authz_schemas WHERE org = $1 AND since < "
              "(SELECT max(since) FROM authz_schemas WHERE org = $1 AND since <= $2)",
              {org, oldest}));
  return {};
}

Result<std::vector<Entity>> list_entities(sql::Tx& tx, const std::string& org) {
  const auto rows = CRETO_TRY(tx.query("SELECT doc FROM authz_entities WHERE org = $1", {org}));
  std::vector<Entity> entities;
  for (const sql::Row row : rows) {
    const Json doc = CRETO_TRY(parse_json(row.text(0)));
    Entity entity = CRETO_TRY(entity_from_json(doc));
    entities.push_back(std::move(entity));
  }
  return entities;
}

Result<std::string> document_of(const Entity& entity) {
  try {
    return entity_to_json(entity).dump();
  } catch (const Json::exception&) {
    return Error(Product::platform, ErrorKind::invalid_input, "a string of the entity is not UTF-8");
  }
}

Result<> put_entity(sql::Tx& tx, const std::string& org, const Entity& entity) {
  std::string document = CRETO_TRY(document_of(entity));
  CRETO_TRY(
      tx.exec("INSERT INTO authz_entities (org, type, id, doc) VALUES ($1, $2, $3, $4) "
              "ON CONFLICT (org, type, id) DO UPDATE SET doc = excluded.doc",
              {org, entity.uid.type, key(entity.uid.id), std::move(document)}));
  return {};
}

Result<> remove_entity(sql::Tx& tx, const std::string& org, const EntityUid& uid) {
  CRETO_TRY(
      tx.exec("DELETE FROM authz_entities WHERE org = $1 AND type = $2 AND id = $3", {org, uid.type, key(uid.id)}));
  return {};
}

Result<std::optional<std::string>> override_use(sql::Tx& tx, const std::string& org, const RequestId& request) {
  const auto rows = CRETO_TRY(tx.query("SELECT operation FROM authz_override_uses WHERE org = $1 AND request = $2",
                                       {org, request.to_string()}));
  if (rows.empty()) return std::nullopt;
  return std::optional(rows.front().text(0));
}

Result<bool> is_override_revoked(sql::Tx& tx, const std::string& org, const RequestId& request) {
  const auto rows = CRETO_TRY(
      tx.query("SELECT 1 FROM authz_override_revocations WHERE org = $1 AND request = $2", {org, request.to_string()}));
  return !rows.empty();
}

Result<bool> use_override(sql::Tx& tx, const std::string& org, const RequestId& request, std::string_view operation) {
  const auto changed =
      CRETO_TRY(tx.exec("INSERT INTO authz_override_uses (org, request, operation, used_at) "
                        "VALUES ($1, $2, $3, $4) ON CONFLICT (org, request) DO NOTHING",
                        {org, request.to_string(), operation, tx.now()}));
  return changed == 1;
}

Result<> revoke_override(sql::Tx& tx, const std::string& org, const RequestId& request) {
  CRETO_TRY(
      tx.exec("INSERT INTO authz_override_revocations (org, request, revoked_at) VALUES ($1, $2, $3) "
              "ON CONFLICT (org, request) DO NOTHING",
              {org, request.to_string(), tx.now()}));
  return {};
}

Result<> forget_overrides(sql::Tx& tx, Instant before) {
  CRETO_TRY(tx.exec("DELETE FROM authz_override_uses WHERE used_at < $1", {before}));
  CRETO_TRY(tx.exec("DELETE FROM authz_override_revocations WHERE revoked_at < $1", {before}));
  return {};
}

}  // namespace creto::authz::store
