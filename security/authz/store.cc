#include "store.h"

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
)"}};

Policy policy_of(const sql::Row& row, std::size_t first) {
  return Policy{.id = row.text(first),
                .text = row.text(first + 1),
                .version = row.integer(first + 2),
                .updated_at = row.instant(first + 3),
                .updated_by = row.text(first + 4)};
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
  const auto entities = CRETO_TRY(tx.query("SELECT org, doc FROM authz_entities"));
  for (const sql::Row row : entities) {
    const Json doc = CRETO_TRY(parse_json(row.text(1)));
    Entity entity = CRETO_TRY(entity_from_json(doc));
    orgs[row.text(0)].entities.push_back(std::move(entity));
  }
  const auto revoked = CRETO_TRY(tx.query("SELECT org, request FROM authz_override_revocations"));
  for (const sql::Row row : revoked) {
    const RequestId request = CRETO_TRY(RequestId::parse(row.text(1)));
    orgs[row.text(0)].revoked.push_back(request);
  }
  return orgs;
}

Result<std::map<std::string, std::int64_t>> versions(sql::Tx& tx) {
  std::map<std::string, std::int64_t> all;
  const auto rows = CRETO_TRY(tx.query("SELECT org, version FROM authz_versions"));
  for (const sql::Row row : rows) all[row.text(0)] = row.integer(1);
  return all;
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

Result<std::int64_t> count_policies(sql::Tx& tx, const std::string& org) {
  const auto rows = CRETO_TRY(tx.query("SELECT count(*) FROM authz_policies WHERE org = $1", {org}));
  return rows.front().integer(0);
}

Result<> put_policy(sql::Tx& tx, const std::string& org, const Policy& policy) {
  CRETO_TRY(tx.exec(
      "INSERT INTO authz_policies (org, id, text, version, updated_at, updated_by) VALUES ($1, $2, $3, $4, $5, $6) "
      "ON CONFLICT (org, id) DO UPDATE SET text = excluded.text, version = excluded.version, "
      "updated_at = excluded.updated_at, updated_by = excluded.updated_by",
      {org, policy.id, policy.text, policy.version, policy.updated_at, policy.updated_by}));
  return {};
}

Result<bool> remove_policy(sql::Tx& tx, const std::string& org, const PolicyId& id) {
  const auto removed = CRETO_TRY(tx.exec("DELETE FROM authz_policies WHERE org = $1 AND id = $2", {org, id}));
  return removed > 0;
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

}  // namespace creto::authz::store
