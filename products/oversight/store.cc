#include "store.h"

#include <array>

#include "codec.h"
#include "request.h"

namespace creto::oversight::store {
namespace {

constexpr std::array migrations = {sql::Migration{1, "requests", R"(
CREATE TABLE oversight_policies (
  org TEXT NOT NULL, id TEXT NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY (org, id));
CREATE TABLE oversight_requests (
  org TEXT NOT NULL, id TEXT NOT NULL, version BIGINT NOT NULL,
  state TEXT NOT NULL, open BIGINT NOT NULL CHECK (open IN (0, 1)),
  agent TEXT NOT NULL, dedupe BYTEA NOT NULL,
  created_ns BIGINT NOT NULL, deadline_ns BIGINT NOT NULL,
  doc TEXT NOT NULL,
  PRIMARY KEY (org, id));
CREATE INDEX oversight_requests_same ON oversight_requests (org, dedupe, created_ns);
CREATE INDEX oversight_requests_due ON oversight_requests (open, deadline_ns);
CREATE TABLE oversight_asked (
  org TEXT NOT NULL, request TEXT NOT NULL, approver TEXT NOT NULL,
  PRIMARY KEY (org, request, approver));
CREATE INDEX oversight_asked_approver ON oversight_asked (org, approver, request)
)"}};

constexpr std::string_view select_doc = "SELECT doc FROM oversight_requests ";

Result<std::optional<Request>> first_request(const Result<sql::Rows>& rows) {
  if (!rows) return Error(rows.error());
  if (rows->empty()) return std::optional<Request>();
  Request request = CRETO_TRY(decode_request(rows->front().text(0)));
  return std::optional(std::move(request));
}

Result<> write_asked(sql::Tx& tx, const Context& ctx, const Request& request) {
  CRETO_TRY(tx.exec("DELETE FROM oversight_asked WHERE org = $1 AND request = $2", {ctx.org, request.id.to_string()}));
  for (const Identity& approver : asked_now(request))
    CRETO_TRY(tx.exec("INSERT INTO oversight_asked (org, request, approver) VALUES ($1, $2, $3)",
                      {ctx.org, request.id.to_string(), approver.text()}));
  return {};
}

}  // namespace

Result<> prepare(sql::Database& database) { return sql::migrate(database, "oversight", migrations); }

Result<> put_policy(sql::Tx& tx, const Context& ctx, const Policy& policy) {
  const std::string doc = CRETO_TRY(encode(policy));
  CRETO_TRY(
      tx.exec("INSERT INTO oversight_policies (org, id, doc) VALUES ($1, $2, $3) "
              "ON CONFLICT (org, id) DO UPDATE SET doc = excluded.doc",
              {ctx.org, policy.id, doc}));
  return {};
}

Result<std::optional<Policy>> find_policy(sql::Tx& tx, const Context& ctx, const PolicyId& id) {
  const sql::Rows rows =
      CRETO_TRY(tx.query("SELECT doc FROM oversight_policies WHERE org = $1 AND id = $2", {ctx.org, id}));
  if (rows.empty()) return std::optional<Policy>();
  Policy policy = CRETO_TRY(decode_policy(rows.front().text(0)));
  return std::optional(std::move(policy));
}

Result<std::vector<Policy>> list_policies(sql::Tx& tx, const Context& ctx) {
  const sql::Rows rows =
      CRETO_TRY(tx.query("SELECT doc FROM oversight_policies WHERE org = $1 ORDER BY id", {ctx.org}));
  std::vector<Policy> policies;
  for (const sql::Row row : rows) {
    Policy policy = CRETO_TRY(decode_policy(row.text(0)));
    policies.push_back(std::move(policy));
  }
  return policies;
}

Result<bool> delete_policy(sql::Tx& tx, const Context& ctx, const PolicyId& id) {
  const std::int64_t deleted =
      CRETO_TRY(tx.exec("DELETE FROM oversight_policies WHERE org = $1 AND id = $2", {ctx.org, id}));
  return deleted == 1;
}

Result<> insert(sql::Tx& tx, const Context& ctx, const Request& request, BytesView dedupe) {
  const std::string doc = CRETO_TRY(encode(request));
  CRETO_TRY(tx.exec(
      "INSERT INTO oversight_requests (org, id, version, state, open, agent, dedupe, created_ns, deadline_ns, doc) "
      "VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8, $9)",
      {ctx.org, request.id.to_string(), static_cast<std::int64_t>(request.version), contracts::to_string(request.state),
       request.action.agent.text(), dedupe, request.created_at, next_deadline(request), doc}));
  return write_asked(tx, ctx, request);
}

Result<bool> replace(sql::Tx& tx, const Context& ctx, const Request& request, std::uint64_t expected) {
  const std::string doc = CRETO_TRY(encode(request));
  const std::int64_t changed = CRETO_TRY(tx.exec(
      "UPDATE oversight_requests SET version = $3, state = $4, open = $5, deadline_ns = $6, doc = $7 "
      "WHERE org = $1 AND id = $2 AND version = $8 AND open = 1",
      {ctx.org, request.id.to_string(), static_cast<std::int64_t>(request.version), contracts::to_string(request.state),
       contracts::is_final(request.state) ? 0 : 1, next_deadline(request), doc, static_cast<std::int64_t>(expected)}));
  if (changed != 1) return false;
  CRETO_TRY(write_asked(tx, ctx, request));
  return true;
}

Result<std::optional<Request>> find(sql::Tx& tx, const Context& ctx, const RequestId& id) {
  return first_request(tx.query(std::string(select_doc) + "WHERE org = $1 AND id = $2", {ctx.org, id.to_string()}));
}

Result<std::optional<Request>> find_same(sql::Tx& tx, const Context& ctx, BytesView dedupe, Instant since) {
  return first_request(tx.query(
      std::string(select_doc) + "WHERE org = $1 AND dedupe = $2 AND created_ns >= $3 ORDER BY created_ns DESC LIMIT 1",
      {ctx.org, dedupe, since}));
}

Result<std::vector<Request>> list(sql::Tx& tx, const Context& ctx, const RequestFilter& filter) {
  std::string sql = std::string(select_doc) + "WHERE org = $1";
  std::vector<sql::Value> parameters = {ctx.org};
  const auto also = [&](std::string_view condition, sql::Value value) {
    parameters.push_back(std::move(value));
    sql += " AND " + std::string(condition) + "$" + std::to_string(parameters.size());
  };
  if (filter.state) also("state = ", contracts::to_string(*filter.state));
  if (filter.open_only) also("open = ", 1);
  if (filter.agent) also("agent = ", filter.agent->text());
  if (filter.before) also("id < ", filter.before->to_string());
  if (filter.approver) {
    also("id IN (SELECT request FROM oversight_asked WHERE org = $1 AND approver = ", filter.approver->text());
    sql += ")";
  }
  parameters.emplace_back(static_cast<std::int64_t>(filter.limit));
  sql += " ORDER BY id DESC LIMIT $" + std::to_string(parameters.size());
  const sql::Rows rows = CRETO_TRY(tx.query(sql, parameters));
  std::vector<Request> requests;
  for (const sql::Row row : rows) {
    Request request = CRETO_TRY(decode_request(row.text(0)));
    requests.push_back(std::move(request));
  }
  return requests;
}

Result<std::vector<Due>> due(sql::Tx& tx, Instant now) {
  const sql::Rows rows = CRETO_TRY(tx.query(
      "SELECT org, id FROM oversight_requests WHERE open = 1 AND deadline_ns <= $1 ORDER BY deadline_ns LIMIT 100",
      {now}));
  std::vector<Due> result;
  for (const sql::Row row : rows) {
    const RequestId id = CRETO_TRY(RequestId::parse(row.text(1)));
    result.push_back({row.text(0), id});
  }
  return result;
}

Result<std::optional<Instant>> earliest_deadline(sql::Tx& tx) {
  const sql::Rows rows = CRETO_TRY(tx.query("SELECT min(deadline_ns) FROM oversight_requests WHERE open = $1", {1}));
  return rows.front().optional_instant(0);
}

}  // namespace creto::oversight::store
