#include "store.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "billing/invoicing.h"
#include "creto/common/json.h"

namespace creto::metering::store {
namespace {

constexpr sql::Migration migrations[] = {{1, "metering", R"(
CREATE TABLE metering_events (
  org TEXT NOT NULL, id TEXT NOT NULL, agent TEXT NOT NULL, event_type TEXT NOT NULL, action TEXT NOT NULL,
  subscription TEXT NOT NULL, event_ns BIGINT NOT NULL, arrived_ns BIGINT NOT NULL,
  units BIGINT NOT NULL CHECK (units >= 0), cost_nanos BIGINT NOT NULL CHECK (cost_nanos >= 0),
  invoice TEXT NOT NULL, properties TEXT NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY (org, id));
CREATE INDEX metering_events_unbilled ON metering_events (org, subscription, invoice, event_ns, id);
CREATE TABLE metering_keys (
  org TEXT NOT NULL, source TEXT NOT NULL, key TEXT NOT NULL, event_id TEXT NOT NULL, content BYTEA NOT NULL,
  arrived_ns BIGINT NOT NULL,
  PRIMARY KEY (org, source, key));
CREATE INDEX metering_keys_age ON metering_keys (arrived_ns);
CREATE TABLE metering_attributions (
  org TEXT NOT NULL, subject TEXT NOT NULL, event_id TEXT NOT NULL, event_type TEXT NOT NULL, action TEXT NOT NULL,
  event_ns BIGINT NOT NULL, arrived_ns BIGINT NOT NULL, units BIGINT NOT NULL, cost_nanos BIGINT NOT NULL,
  PRIMARY KEY (org, subject, event_id));
CREATE INDEX metering_attributions_arrival ON metering_attributions (arrived_ns, subject, event_id);
CREATE INDEX metering_attributions_time ON metering_attributions (org, subject, event_ns);
CREATE TABLE metering_notices (
  org TEXT NOT NULL, limit_id TEXT NOT NULL, level TEXT NOT NULL, window_ns BIGINT NOT NULL, limit_value BIGINT NOT NULL,
  PRIMARY KEY (org, limit_id, level, window_ns, limit_value));
CREATE TABLE metering_rejected (
  org TEXT NOT NULL, id TEXT NOT NULL, error TEXT NOT NULL, body TEXT NOT NULL, when_ns BIGINT NOT NULL,
  PRIMARY KEY (org, id));
CREATE TABLE metering_plans (
  org TEXT NOT NULL, id TEXT NOT NULL, version BIGINT NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY (org, id, version));
CREATE TABLE metering_subscriptions (
  org TEXT NOT NULL, id TEXT NOT NULL, agent TEXT NOT NULL, plan_id TEXT NOT NULL, plan_version BIGINT NOT NULL,
  started_ns BIGINT NOT NULL, ended_ns BIGINT,
  PRIMARY KEY (org, id));
CREATE INDEX metering_subscriptions_agent ON metering_subscriptions (org, agent);
CREATE TABLE metering_quotas (
  org TEXT NOT NULL, id TEXT NOT NULL, subject TEXT NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY (org, id));
CREATE TABLE metering_thresholds (
  org TEXT NOT NULL, id TEXT NOT NULL, subject TEXT NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY (org, id));
CREATE TABLE metering_numbers (
  org TEXT NOT NULL, name TEXT NOT NULL, value BIGINT NOT NULL,
  PRIMARY KEY (org, name));
CREATE TABLE metering_invoices (
  org TEXT NOT NULL, id TEXT NOT NULL, number BIGINT NOT NULL, subscription TEXT NOT NULL,
  period_begin_ns BIGINT NOT NULL, period_end_ns BIGINT NOT NULL, doc TEXT NOT NULL,
  algorithm TEXT NOT NULL, signature BYTEA NOT NULL, pdf_object TEXT NOT NULL, sent BIGINT NOT NULL,
  PRIMARY KEY (org, id), UNIQUE (org, number), UNIQUE (org, subscription, period_end_ns),
  CHECK (period_begin_ns < period_end_ns))
)"},
                                         {2, "usage_log", R"(
DROP TABLE metering_attributions;
DROP TABLE metering_keys;
DROP TABLE metering_events;
ALTER TABLE metering_invoices ADD COLUMN log_segment BIGINT NOT NULL DEFAULT 0;
ALTER TABLE metering_invoices ADD COLUMN log_offset BIGINT NOT NULL DEFAULT 0
)"},
                                         {3, "model_prices", R"(
CREATE TABLE metering_prices (
  org TEXT NOT NULL, model TEXT NOT NULL, from_ns BIGINT NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY (org, model, from_ns))
)"}};

std::string_view level_of(Notice::Kind kind) {
  switch (kind) {
    case Notice::Kind::soft:
      return "soft";
    case Notice::Kind::hard:
      return "hard";
    case Notice::Kind::cost:
      return "cost";
    case Notice::Kind::anomaly:
      return "anomaly";
  }
  return "";
}

template <class T, class Parse>
Result<std::vector<T>> parse_all(const sql::Rows& rows, Parse parse) {
  std::vector<T> all;
  for (const sql::Row row : rows) {
    T one = CRETO_TRY(parse(row.text(0)));
    all.push_back(std::move(one));
  }
  return all;
}

}  // namespace

Result<> migrate(sql::Database& database) { return sql::migrate(database, "metering", migrations); }

Result<bool> insert_notice(sql::Tx& tx, const std::string& org, const Notice& notice) {
  const std::int64_t inserted = CRETO_TRY(
      tx.exec("INSERT INTO metering_notices (org, limit_id, level, window_ns, limit_value) VALUES ($1, $2, $3, $4, $5) "
              "ON CONFLICT (org, limit_id, level, window_ns, limit_value) DO NOTHING",
              {org, fmt::format("{} {}", notice.id, notice.subject), level_of(notice.kind), notice.window_begin,
               notice.limit}));
  return inserted == 1;
}

Result<> purge_notices(sql::Tx& tx, Instant before) {
  CRETO_TRY(tx.exec("DELETE FROM metering_notices WHERE window_ns >= 0 AND window_ns < $1", {before}));
  return {};
}

Result<> insert_rejected(sql::Tx& tx, const std::string& org, const RejectedEvent& event) {
  CRETO_TRY(
      tx.exec("INSERT INTO metering_rejected (org, id, error, body, when_ns) VALUES ($1, $2, $3, $4, $5) "
              "ON CONFLICT (org, id) DO NOTHING",
              {org, event.id, event.error, event.body, event.when}));
  return {};
}

Result<std::vector<RejectedEvent>> list_rejected(sql::Tx& tx, const std::string& org, std::size_t limit) {
  const sql::Rows rows = CRETO_TRY(tx.query(
      "SELECT id, error, body, when_ns FROM metering_rejected WHERE org = $1 ORDER BY when_ns DESC, id LIMIT $2",
      {org, static_cast<std::int64_t>(limit)}));
  std::vector<RejectedEvent> all;
  for (const sql::Row row : rows) all.push_back({row.text(0), row.text(1), row.text(2), row.instant(3)});
  return all;
}

Result<std::optional<RejectedEvent>> find_rejected(sql::Tx& tx, const std::string& org, std::string_view id) {
  const sql::Rows rows = CRETO_TRY(
      tx.query("SELECT id, error, body, when_ns FROM metering_rejected WHERE org = $1 AND id = $2", {org, id}));
  if (rows.empty()) return std::optional<RejectedEvent>();
  const sql::Row row = rows.front();
  return std::optional(RejectedEvent{row.text(0), row.text(1), row.text(2), row.instant(3)});
}

Result<bool> delete_rejected(sql::Tx& tx, const std::string& org, std::string_view id) {
  const std::int64_t deleted =
      CRETO_TRY(tx.exec("DELETE FROM metering_rejected WHERE org = $1 AND id = $2", {org, id}));
  return deleted == 1;
}

Result<std::optional<Quota>> find_quota(sql::Tx& tx, const std::string& org, std::string_view id) {
  const sql::Rows rows = CRETO_TRY(tx.query("SELECT doc FROM metering_quotas WHERE org = $1 AND id = $2", {org, id}));
  if (rows.empty()) return std::optional<Quota>();
  Quota quota = CRETO_TRY(quota_from_json(rows.front().text(0)));
  return std::optional(std::move(quota));
}

Result<std::vector<Quota>> list_quotas(sql::Tx& tx, const std::string& org, std::string_view subject) {
  const sql::Rows rows = CRETO_TRY(
      tx.query("SELECT doc FROM metering_quotas WHERE org = $1 AND ($2 = '' OR subject = $2) ORDER BY id LIMIT 10000",
               {org, subject}));
  return parse_all<Quota>(rows, quota_from_json);
}

Result<> put_quota(sql::Tx& tx, const std::string& org, const Quota& quota) {
  const std::string doc = CRETO_TRY(to_json(quota));
  CRETO_TRY(
      tx.exec("INSERT INTO metering_quotas (org, id, subject, doc) VALUES ($1, $2, $3, $4) "
              "ON CONFLICT (org, id) DO UPDATE SET subject = excluded.subject, doc = excluded.doc",
              {org, quota.id, quota.subject, doc}));
  return {};
}

Result<> delete_quota(sql::Tx& tx, const std::string& org, std::string_view id) {
  CRETO_TRY(tx.exec("DELETE FROM metering_quotas WHERE org = $1 AND id = $2", {org, id}));
  return {};
}

Result<std::optional<SubjectThreshold>> find_threshold(sql::Tx& tx, const std::string& org, std::string_view id) {
  const sql::Rows rows =
      CRETO_TRY(tx.query("SELECT doc FROM metering_thresholds WHERE org = $1 AND id = $2", {org, id}));
  if (rows.empty()) return std::optional<SubjectThreshold>();
  SubjectThreshold threshold = CRETO_TRY(threshold_from_json(rows.front().text(0)));
  return std::optional(std::move(threshold));
}

Result<std::vector<SubjectThreshold>> list_thresholds(sql::Tx& tx, const std::string& org, std::string_view subject) {
  const sql::Rows rows = CRETO_TRY(tx.query(
      "SELECT doc FROM metering_thresholds WHERE org = $1 AND ($2 = '' OR subject = $2) ORDER BY id LIMIT 10000",
      {org, subject}));
  return parse_all<SubjectThreshold>(rows, threshold_from_json);
}

Result<> put_threshold(sql::Tx& tx, const std::string& org, const SubjectThreshold& threshold) {
  const std::string doc = CRETO_TRY(to_json(threshold));
  CRETO_TRY(
      tx.exec("INSERT INTO metering_thresholds (org, id, subject, doc) VALUES ($1, $2, $3, $4) "
              "ON CONFLICT (org, id) DO UPDATE SET subject = excluded.subject, doc = excluded.doc",
              {org, threshold.threshold.threshold_id, threshold.subject, doc}));
  return {};
}

Result<> delete_threshold(sql::Tx& tx, const std::string& org, std::string_view id) {
  CRETO_TRY(tx.exec("DELETE FROM metering_thresholds WHERE org = $1 AND id = $2", {org, id}));
  return {};
}

Result<> put_price(sql::Tx& tx, const std::string& org, const ModelPrice& price) {
  const std::string doc = CRETO_TRY(to_json(price));
  CRETO_TRY(
      tx.exec("INSERT INTO metering_prices (org, model, from_ns, doc) VALUES ($1, $2, $3, $4) "
              "ON CONFLICT (org, model, from_ns) DO UPDATE SET doc = excluded.doc",
              {org, price.model, price.from, doc}));
  return {};
}

Result<std::vector<std::pair<std::string, ModelPrice>>> all_prices(sql::Tx& tx) {
  const sql::Rows rows = CRETO_TRY(tx.query("SELECT org, doc FROM metering_prices ORDER BY org, model, from_ns"));
  std::vector<std::pair<std::string, ModelPrice>> all;
  for (const sql::Row row : rows) {
    ModelPrice price = CRETO_TRY(model_price_from_json(row.text(1)));
    all.emplace_back(row.text(0), std::move(price));
  }
  return all;
}

Result<std::vector<std::pair<std::string, Quota>>> all_quotas(sql::Tx& tx) {
  const sql::Rows rows = CRETO_TRY(tx.query("SELECT org, doc FROM metering_quotas ORDER BY org, id"));
  std::vector<std::pair<std::string, Quota>> all;
  for (const sql::Row row : rows) {
    Quota quota = CRETO_TRY(quota_from_json(row.text(1)));
    all.emplace_back(row.text(0), std::move(quota));
  }
  return all;
}

Result<std::vector<std::pair<std::string, SubjectThreshold>>> all_thresholds(sql::Tx& tx) {
  const sql::Rows rows = CRETO_TRY(tx.query("SELECT org, doc FROM metering_thresholds ORDER BY org, id"));
  std::vector<std::pair<std::string, SubjectThreshold>> all;
  for (const sql::Row row : rows) {
    SubjectThreshold threshold = CRETO_TRY(threshold_from_json(row.text(1)));
    all.emplace_back(row.text(0), std::move(threshold));
  }
  return all;
}

}  // namespace creto::metering::store
