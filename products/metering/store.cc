#include "store.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "invoicing.h"

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
)"}};

std::string_view level_of(Notice::Kind kind) {
  switch (kind) {
    case Notice::Kind::soft:
      return "soft";
    case Notice::Kind::hard:
      return "hard";
    case Notice::Kind::cost:
      return "cost";
  }
  return "";
}

Result<Subscription> subscription_of(const sql::Row& row, std::size_t at) {
  const SubscriptionId id = CRETO_TRY(SubscriptionId::parse(row.text(at)));
  return Subscription{
      id, row.text(at + 1), row.text(at + 2), row.integer(at + 3), row.instant(at + 4), row.optional_instant(at + 5)};
}

constexpr std::string_view invoice_columns = "doc, algorithm, signature, pdf_object, sent";

Result<Invoice> invoice_of(const sql::Row& row) {
  Invoice invoice = CRETO_TRY(invoice_from_document(row.text(0)));
  if (!row.text(1).empty()) invoice.signature = Signature{row.text(1), row.bytes(2)};
  invoice.pdf_object = row.text(3);
  invoice.sent = row.boolean(4);
  return invoice;
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
              {org, notice.id, level_of(notice.kind), notice.window_begin, notice.limit}));
  return inserted == 1;
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

Result<std::optional<Plan>> find_plan(sql::Tx& tx, const std::string& org, std::string_view id, std::int64_t version) {
  const sql::Rows rows =
      CRETO_TRY(tx.query("SELECT doc FROM metering_plans WHERE org = $1 AND id = $2 AND ($3 = 0 OR version = $3) ORDER "
                         "BY version DESC LIMIT 1",
                         {org, id, version}));
  if (rows.empty()) return std::optional<Plan>();
  Plan plan = CRETO_TRY(plan_from_json(rows.front().text(0)));
  return std::optional(std::move(plan));
}

Result<> insert_plan(sql::Tx& tx, const std::string& org, const Plan& plan) {
  const std::string doc = CRETO_TRY(to_json(plan));
  CRETO_TRY(tx.exec("INSERT INTO metering_plans (org, id, version, doc) VALUES ($1, $2, $3, $4)",
                    {org, plan.id, plan.version, doc}));
  return {};
}

Result<std::vector<Plan>> newest_plans(sql::Tx& tx, const std::string& org) {
  const sql::Rows rows = CRETO_TRY(tx.query(
      "SELECT doc FROM metering_plans p WHERE org = $1 AND version = (SELECT max(version) FROM metering_plans n "
      "WHERE n.org = p.org AND n.id = p.id) ORDER BY id LIMIT 10000",
      {org}));
  return parse_all<Plan>(rows, plan_from_json);
}

constexpr std::string_view subscription_columns = "id, agent, plan_id, plan_version, started_ns, ended_ns";

Result<std::optional<Subscription>> find_subscription(sql::Tx& tx, const std::string& org, const SubscriptionId& id) {
  const sql::Rows rows = CRETO_TRY(
      tx.query(fmt::format("SELECT {} FROM metering_subscriptions WHERE org = $1 AND id = $2", subscription_columns),
               {org, id.to_string()}));
  if (rows.empty()) return std::optional<Subscription>();
  Subscription subscription = CRETO_TRY(subscription_of(rows.front(), 0));
  return std::optional(std::move(subscription));
}

Result<std::vector<Subscription>> list_subscriptions(sql::Tx& tx, const std::string& org, std::string_view agent) {
  const sql::Rows rows = CRETO_TRY(tx.query(fmt::format("SELECT {} FROM metering_subscriptions WHERE org = $1 AND ($2 "
                                                        "= '' OR agent = $2) ORDER BY id DESC LIMIT 1000",
                                                        subscription_columns),
                                            {org, agent}));
  std::vector<Subscription> all;
  for (const sql::Row row : rows) {
    Subscription one = CRETO_TRY(subscription_of(row, 0));
    all.push_back(std::move(one));
  }
  return all;
}

Result<> put_subscription(sql::Tx& tx, const std::string& org, const Subscription& subscription) {
  CRETO_TRY(
      tx.exec("INSERT INTO metering_subscriptions (org, id, agent, plan_id, plan_version, started_ns, ended_ns) "
              "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (org, id) DO UPDATE SET ended_ns = excluded.ended_ns",
              {org, subscription.id.to_string(), subscription.agent, subscription.plan_id, subscription.plan_version,
               subscription.started_at, subscription.ended_at}));
  return {};
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

Result<std::int64_t> next_number(sql::Tx& tx, const std::string& org) {
  const sql::Rows rows =
      CRETO_TRY(tx.query("INSERT INTO metering_numbers (org, name, value) VALUES ($1, 'invoice', 1) "
                         "ON CONFLICT (org, name) DO UPDATE SET value = metering_numbers.value + 1 RETURNING value",
                         {org}));
  return rows.front().integer(0);
}

Result<> insert_invoice(sql::Tx& tx, const std::string& org, const Invoice& invoice, BlockAddress log_end) {
  CRETO_TRY(
      tx.exec("INSERT INTO metering_invoices (org, id, number, subscription, period_begin_ns, period_end_ns, doc, "
              "algorithm, signature, pdf_object, sent, log_segment, log_offset) "
              "VALUES ($1, $2, $3, $4, $5, $6, $7, '', $8, '', 0, $9, $10)",
              {org, invoice.id.to_string(), invoice.number, invoice.subscription.to_string(), invoice.period.begin,
               invoice.period.end, invoice.document, Bytes(), static_cast<std::int64_t>(log_end.segment),
               static_cast<std::int64_t>(log_end.offset)}));
  return {};
}

Result<Seen> last_seen(sql::Tx& tx, const std::string& org, const std::string& subscription) {
  const sql::Rows rows =
      CRETO_TRY(tx.query("SELECT period_end_ns, log_segment, log_offset FROM metering_invoices WHERE org = $1 AND "
                         "subscription = $2 ORDER BY period_end_ns DESC LIMIT 1",
                         {org, subscription}));
  if (rows.empty()) return Seen();
  return Seen{
      rows.front().instant(0),
      {static_cast<std::uint32_t>(rows.front().integer(1)), static_cast<std::uint32_t>(rows.front().integer(2))}};
}

Result<> sign_invoice(sql::Tx& tx, const std::string& org, const Invoice& invoice) {
  CRETO_ASSERT(invoice.signature.has_value());
  CRETO_TRY(tx.exec(
      "UPDATE metering_invoices SET algorithm = $3, signature = $4 WHERE org = $1 AND id = $2 AND algorithm = ''",
      {org, invoice.id.to_string(), invoice.signature->algorithm, invoice.signature->value}));
  return {};
}

Result<> set_delivery(sql::Tx& tx, const std::string& org, const Invoice& invoice) {
  CRETO_TRY(tx.exec("UPDATE metering_invoices SET pdf_object = $3, sent = $4 WHERE org = $1 AND id = $2",
                    {org, invoice.id.to_string(), invoice.pdf_object, invoice.sent ? 1 : 0}));
  return {};
}

Result<std::optional<Invoice>> find_invoice(sql::Tx& tx, const std::string& org, const InvoiceId& id) {
  const sql::Rows rows =
      CRETO_TRY(tx.query(fmt::format("SELECT {} FROM metering_invoices WHERE org = $1 AND id = $2", invoice_columns),
                         {org, id.to_string()}));
  if (rows.empty()) return std::optional<Invoice>();
  Invoice invoice = CRETO_TRY(invoice_of(rows.front()));
  return std::optional(std::move(invoice));
}

Result<std::vector<Invoice>> list_invoices(sql::Tx& tx, const std::string& org,
                                           const std::optional<SubscriptionId>& subscription) {
  const std::string wanted = subscription ? subscription->to_string() : "";
  const sql::Rows rows = CRETO_TRY(tx.query(fmt::format("SELECT {} FROM metering_invoices WHERE org = $1 AND ($2 = '' "
                                                        "OR subscription = $2) ORDER BY number DESC LIMIT 1000",
                                                        invoice_columns),
                                            {org, wanted}));
  std::vector<Invoice> all;
  for (const sql::Row row : rows) {
    Invoice one = CRETO_TRY(invoice_of(row));
    all.push_back(std::move(one));
  }
  return all;
}

Result<std::vector<std::pair<std::string, InvoiceId>>> unfinished_invoices(sql::Tx& tx) {
  const sql::Rows rows = CRETO_TRY(tx.query("SELECT org, id FROM metering_invoices WHERE algorithm = '' LIMIT 1000"));
  std::vector<std::pair<std::string, InvoiceId>> all;
  for (const sql::Row row : rows) {
    const InvoiceId id = CRETO_TRY(InvoiceId::parse(row.text(1)));
    all.emplace_back(row.text(0), id);
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

Result<std::vector<LoadedSubscription>> all_subscriptions(sql::Tx& tx) {
  const sql::Rows rows = CRETO_TRY(
      tx.query(fmt::format("SELECT org, {} FROM metering_subscriptions ORDER BY org, id", subscription_columns)));
  std::vector<LoadedSubscription> all;
  for (const sql::Row row : rows) {
    Subscription subscription = CRETO_TRY(subscription_of(row, 1));
    all.push_back({row.text(0), std::move(subscription)});
  }
  return all;
}

}  // namespace creto::metering::store
