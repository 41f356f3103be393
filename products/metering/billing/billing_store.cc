#include "billing/billing_store.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "creto/common/json.h"

namespace creto::metering::billing {
namespace {

// The first statements take over what the tables of module "metering" held, where there was something.
constexpr sql::Migration migrations[] = {{1, "billing", R"(
CREATE TABLE billing_subscriptions (
  org TEXT NOT NULL, id TEXT NOT NULL, agent TEXT NOT NULL, doc TEXT NOT NULL, started_ns BIGINT NOT NULL, ended_ns BIGINT,
  billed_ns BIGINT NOT NULL, log_segment BIGINT NOT NULL,
  log_offset BIGINT NOT NULL, opened BIGINT NOT NULL, watched BIGINT NOT NULL, due_ns BIGINT,
  PRIMARY KEY (org, id));
CREATE INDEX billing_subscriptions_agent ON billing_subscriptions (org, agent);
CREATE INDEX billing_subscriptions_due ON billing_subscriptions (due_ns);
CREATE TABLE billing_batches (
  org TEXT NOT NULL, id TEXT NOT NULL, size BIGINT NOT NULL, root BYTEA NOT NULL, algorithm TEXT NOT NULL,
  signature BYTEA NOT NULL,
  PRIMARY KEY (org, id));
CREATE TABLE billing_invoices (
  org TEXT NOT NULL, id TEXT NOT NULL, number BIGINT, subscription TEXT NOT NULL, kind TEXT NOT NULL, status TEXT NOT NULL,
  period_begin_ns BIGINT NOT NULL, period_end_ns BIGINT NOT NULL, finalize_ns BIGINT NOT NULL, log_segment BIGINT NOT NULL,
  log_offset BIGINT NOT NULL,
  doc TEXT NOT NULL, algorithm TEXT NOT NULL, signature BYTEA NOT NULL, batch TEXT NOT NULL, proof BYTEA NOT NULL,
  is_signed BIGINT NOT NULL, pdf_object TEXT NOT NULL, sent BIGINT NOT NULL, settlement TEXT NOT NULL,
  PRIMARY KEY (org, id), UNIQUE (org, number), UNIQUE (org, subscription, kind, period_end_ns),
  CHECK (period_begin_ns < period_end_ns), CHECK ((status = 'draft') = (number IS NULL)));
CREATE INDEX billing_invoices_drafts ON billing_invoices (status, finalize_ns);
CREATE INDEX billing_invoices_unsigned ON billing_invoices (is_signed, org, number);
CREATE TABLE billing_coupons (
  org TEXT NOT NULL, id TEXT NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY (org, id));
CREATE TABLE billing_applied_coupons (
  org TEXT NOT NULL, subscription TEXT NOT NULL, coupon TEXT NOT NULL, applied_ns BIGINT NOT NULL, doc TEXT NOT NULL,
  periods_left BIGINT,
  PRIMARY KEY (org, subscription, coupon));
CREATE TABLE billing_credits (
  org TEXT NOT NULL, id TEXT NOT NULL, agent TEXT NOT NULL, doc TEXT NOT NULL, reset_ns BIGINT,
  PRIMARY KEY (org, id));
CREATE INDEX billing_credits_agent ON billing_credits (org, agent);
CREATE TABLE billing_top_ups (
  org TEXT NOT NULL, agent TEXT NOT NULL, amount TEXT NOT NULL, currency TEXT NOT NULL, below TEXT NOT NULL,
  pending TEXT NOT NULL,
  PRIMARY KEY (org, agent));
CREATE TABLE billing_notes (
  org TEXT NOT NULL, id TEXT NOT NULL, number BIGINT NOT NULL, invoice TEXT NOT NULL, amount TEXT NOT NULL,
  reason TEXT NOT NULL, issued_ns BIGINT NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY (org, id), UNIQUE (org, number));
CREATE INDEX billing_notes_invoice ON billing_notes (org, invoice);
INSERT INTO billing_subscriptions (org, id, agent, doc, started_ns, ended_ns, billed_ns, log_segment, log_offset, opened,
    watched, due_ns)
  SELECT s.org, s.id, s.agent,
    '{"billing_time":"calendar","schema_version":1,"terms":[{"from_ns":"' || CAST(s.started_ns AS TEXT) ||
    '","overrides":"","plan_id":"' || s.plan_id || '","plan_version":"' || CAST(s.plan_version AS TEXT) ||
    '","quantity":"1"}],"time_zone":"UTC"}',
    s.started_ns, s.ended_ns, coalesce(i.billed_ns, s.started_ns), coalesce(i.log_segment, 0),
    coalesce(i.log_offset, 0), 1, 0,
    CASE WHEN coalesce(i.billed_ns, s.started_ns) >= coalesce(s.ended_ns, 9223372036854775807) THEN NULL ELSE 0 END
  FROM metering_subscriptions s LEFT JOIN
    (SELECT org, subscription, period_end_ns AS billed_ns, log_segment, log_offset FROM metering_invoices m
      WHERE period_end_ns = (SELECT max(period_end_ns) FROM metering_invoices n WHERE n.org = m.org AND
        n.subscription = m.subscription)) i
    ON i.org = s.org AND i.subscription = s.id;
INSERT INTO billing_invoices (org, id, number, subscription, kind, status, period_begin_ns, period_end_ns, finalize_ns,
    log_segment, log_offset, doc, algorithm, signature, batch, proof, is_signed, pdf_object, sent, settlement)
  SELECT org, id, number, subscription, 'period', 'finalized', period_begin_ns, period_end_ns, period_end_ns, 0, 0,
    doc, algorithm, signature, '', signature, CASE WHEN algorithm = '' THEN 0 ELSE 1 END, pdf_object, sent, ''
  FROM metering_invoices;
DROP TABLE metering_invoices;
DROP TABLE metering_subscriptions
)"},
                                         {2, "billing_profiles", R"(
CREATE TABLE billing_profiles (
  org TEXT NOT NULL, subject TEXT NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY (org, subject))
)"}};

// --- documents

Result<std::string> subscription_document(const Subscription& subscription) {
  Json terms = Json::array();
  for (const SubscriptionTerms& one : subscription.terms) {
    terms.push_back({{"plan_id", one.plan_id},
                     {"plan_version", std::to_string(one.plan_version)},
                     {"quantity", one.quantity.to_string()},
                     {"overrides", one.overrides},
                     {"from_ns", std::to_string(unix_ns(one.from))}});
  }
  return canonical_json({{"schema_version", 1},
                         {"billing_time", to_string(subscription.billing_time)},
                         {"time_zone", subscription.time_zone},
                         {"terms", std::move(terms)}});
}

Result<> read_document(const std::string& text, Subscription& subscription) {
  const Json json = CRETO_TRY(parse_json(text));
  JsonReader reader(json, "subscription");
  if (reader.integer("schema_version") != 1) reader.refuse("schema_version", "must be 1");
  subscription.billing_time = CRETO_TRY(billing_time_from_string(reader.text("billing_time")));
  subscription.time_zone = reader.text("time_zone");
  for (const Json& one : reader.array("terms")) {
    JsonReader terms_reader(one, "subscription.terms");
    SubscriptionTerms terms;
    terms.plan_id = terms_reader.text("plan_id");
    terms.plan_version = terms_reader.integer("plan_version");
    terms.quantity = CRETO_TRY(Decimal::parse(terms_reader.text("quantity")));
    terms.overrides = terms_reader.text("overrides");
    terms.from = from_unix_ns(terms_reader.integer("from_ns"));
    CRETO_TRY(terms_reader.finish());
    subscription.terms.push_back(std::move(terms));
  }
  return reader.finish();
}

Result<std::string> credit_document(const Credit& credit) {
  Json json = {{"schema_version", 1},
               {"description", credit.description},
               {"currency", credit.currency.code()},
               {"amount", credit.amount.to_string()},
               {"balance", credit.balance.to_string()},
               {"priority", credit.priority},
               {"effective_ns", std::to_string(unix_ns(credit.effective_at))}};
  if (credit.expires_at) json["expires_ns"] = std::to_string(unix_ns(*credit.expires_at));
  if (credit.voided_at) json["voided_ns"] = std::to_string(unix_ns(*credit.voided_at));
  if (credit.reset) {
    json["reset"] = {{"interval", to_string(credit.reset->interval)},
                     {"rollover_min", credit.reset->rollover_min.to_string()},
                     {"rollover_max", credit.reset->rollover_max.to_string()}};
  }
  return canonical_json(json);
}

constexpr std::string_view credit_columns = "id, agent, doc, reset_ns";
Result<StoredCredit> credit_of(const sql::Row& row, std::size_t at) {
  const CreditId id = CRETO_TRY(CreditId::parse(row.text(at)));
  StoredCredit stored{{.id = id, .agent = row.text(at + 1)}, row.optional_instant(at + 3)};
  const Json json = CRETO_TRY(parse_json(row.text(at + 2)));
  JsonReader reader(json, "credit");
  if (reader.integer("schema_version") != 1) reader.refuse("schema_version", "must be 1");
  Credit& credit = stored.credit;
  credit.description = reader.text("description");
  credit.currency = CRETO_TRY(Currency::parse(reader.text("currency")));
  credit.amount = CRETO_TRY(Decimal::parse(reader.text("amount")));
  credit.balance = CRETO_TRY(Decimal::parse(reader.text("balance")));
  credit.priority = static_cast<int>(reader.integer("priority"));
  credit.effective_at = from_unix_ns(reader.integer("effective_ns"));
  if (!reader.any("expires_ns").is_null()) credit.expires_at = from_unix_ns(reader.integer("expires_ns"));
  if (!reader.any("voided_ns").is_null()) credit.voided_at = from_unix_ns(reader.integer("voided_ns"));
  const Json& reset = reader.object("reset");
  CRETO_TRY(reader.finish());
  if (!reset.empty()) {
    JsonReader reset_reader(reset, "credit.reset");
    CreditReset rule;
    rule.interval = CRETO_TRY(interval_from_string(reset_reader.text("interval")));
    rule.rollover_min = CRETO_TRY(Decimal::parse(reset_reader.text("rollover_min")));
    rule.rollover_max = CRETO_TRY(Decimal::parse(reset_reader.text("rollover_max")));
    CRETO_TRY(reset_reader.finish());
    credit.reset = rule;
  }
  return stored;
}

/// index (u64, big endian) and the path.
Bytes proof_bytes(const InvoiceProof& proof) {
  Bytes bytes;
  for (int i = 7; i >= 0; --i) bytes.push_back(static_cast<std::uint8_t>(proof.index >> (8 * i)));
  for (const Hash256& hash : proof.path) bytes.insert(bytes.end(), hash.begin(), hash.end());
  return bytes;
}
InvoiceProof proof_of(const Bytes& bytes, std::int64_t size, const Bytes& root) {
  InvoiceProof proof;
  proof.size = static_cast<std::uint64_t>(size);
  CRETO_ASSERT(root.size() == proof.root.size() && bytes.size() % proof.root.size() == 8);
  std::ranges::copy(root, proof.root.begin());
  for (std::size_t i = 0; i < 8; ++i) proof.index = proof.index << 8 | bytes[i];
  for (std::size_t at = 8; at < bytes.size(); at += proof.root.size()) {
    std::ranges::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), proof.root.size(),
                        proof.path.emplace_back().begin());
  }
  return proof;
}

// --- rows

constexpr std::string_view subscription_columns =
    "org, id, agent, doc, started_ns, ended_ns, billed_ns, opened, watched, due_ns, log_segment, log_offset";
BlockAddress address_of(const sql::Row& row, std::size_t at) {
  return {static_cast<std::uint32_t>(row.integer(at)), static_cast<std::uint32_t>(row.integer(at + 1))};
}
Result<StoredSubscription> subscription_of(const sql::Row& row) {
  const SubscriptionId id = CRETO_TRY(SubscriptionId::parse(row.text(1)));
  StoredSubscription stored{.org = row.text(0), .subscription = {.id = id, .agent = row.text(2)}};
  CRETO_TRY(read_document(row.text(3), stored.subscription));
  stored.subscription.started_at = row.instant(4);
  stored.subscription.ended_at = row.optional_instant(5);
  stored.billed_until = row.instant(6);
  stored.opened = row.boolean(7);
  stored.watched = row.boolean(8);
  stored.due_at = row.optional_instant(9);
  stored.seen = address_of(row, 10);
  return stored;
}

constexpr std::string_view invoice_columns =
    "i.doc, i.status, i.finalize_ns, i.log_segment, i.log_offset, i.algorithm, i.signature, i.proof, b.size, b.root, "
    "b.algorithm, "
    "b.signature, i.pdf_object, i.sent, i.settlement "
    "FROM billing_invoices i LEFT JOIN billing_batches b ON b.org = i.org AND b.id = i.batch";
Result<StoredInvoice> invoice_of(const sql::Row& row) {
  Invoice read = CRETO_TRY(invoice_from_document(row.text(0)));
  StoredInvoice stored{std::move(read), row.instant(2), address_of(row, 3)};
  Invoice& invoice = stored.invoice;
  invoice.status = CRETO_TRY(invoice_status_from_string(row.text(1)));
  if (!row.text(5).empty()) invoice.signature = Signature{row.text(5), row.bytes(6)};
  if (!row.is_null(8)) {
    invoice.signature = Signature{row.text(10), row.bytes(11)};
    invoice.proof = proof_of(row.bytes(7), row.integer(8), row.bytes(9));
  }
  invoice.pdf_object = row.text(12);
  invoice.sent = row.boolean(13);
  invoice.settlement = row.text(14);
  return stored;
}

template <class T, class Read>
Result<std::vector<T>> read_all(const sql::Rows& rows, Read read) {
  std::vector<T> all;
  for (const sql::Row row : rows) {
    T one = CRETO_TRY(read(row));
    all.push_back(std::move(one));
  }
  return all;
}
template <class T, class Read>
Result<std::optional<T>> read_one(const sql::Rows& rows, Read read) {
  if (rows.empty()) return std::optional<T>();
  T one = CRETO_TRY(read(rows.front()));
  return std::optional<T>(std::move(one));
}

Result<Plan> plan_of(const sql::Row& row) { return plan_from_json(row.text(0)); }
Result<Coupon> coupon_of(const sql::Row& row) { return coupon_from_json(row.text(0)); }

}  // namespace

Result<> migrate(sql::Database& database) { return sql::migrate(database, "billing", migrations); }

// --- plans

Result<std::optional<Plan>> find_plan(sql::Tx& tx, const std::string& org, std::string_view id, std::int64_t version) {
  const sql::Rows rows =
      CRETO_TRY(tx.query("SELECT doc FROM metering_plans WHERE org = $1 AND id = $2 AND ($3 = 0 OR version = $3) ORDER "
                         "BY version DESC LIMIT 1",
                         {org, id, version}));
  return read_one<Plan>(rows, plan_of);
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
  return read_all<Plan>(rows, plan_of);
}

// --- subscriptions

Result<std::optional<StoredSubscription>> find_subscription(sql::Tx& tx, const std::string& org,
                                                            const SubscriptionId& id) {
  const sql::Rows rows = CRETO_TRY(
      tx.query(fmt::format("SELECT {} FROM billing_subscriptions WHERE org = $1 AND id = $2", subscription_columns),
               {org, id.to_string()}));
  return read_one<StoredSubscription>(rows, subscription_of);
}

Result<std::vector<Subscription>> list_subscriptions(sql::Tx& tx, const std::string& org, std::string_view agent) {
  const sql::Rows rows = CRETO_TRY(tx.query(fmt::format("SELECT {} FROM billing_subscriptions WHERE org = $1 AND ($2 = "
                                                        "'' OR agent = $2) ORDER BY id DESC LIMIT 1000",
                                                        subscription_columns),
                                            {org, agent}));
  std::vector<Subscription> all;
  for (const sql::Row row : rows) {
    StoredSubscription one = CRETO_TRY(subscription_of(row));
    all.push_back(std::move(one.subscription));
  }
  return all;
}

Result<> put_subscription(sql::Tx& tx, const StoredSubscription& stored) {
  const Subscription& subscription = stored.subscription;
  const std::string doc = CRETO_TRY(subscription_document(subscription));
  CRETO_TRY(tx.exec(
      "INSERT INTO billing_subscriptions (org, id, agent, doc, started_ns, ended_ns, billed_ns, opened, watched, "
      "due_ns, "
      "log_segment, log_offset) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (org, id) DO "
      "UPDATE SET doc = excluded.doc, ended_ns = excluded.ended_ns, opened = excluded.opened, watched = "
      "excluded.watched, due_ns = excluded.due_ns",
      {stored.org, subscription.id.to_string(), subscription.agent, doc, subscription.started_at, subscription.ended_at,
       stored.billed_until, stored.opened ? 1 : 0, stored.watched ? 1 : 0, stored.due_at, stored.seen.segment,
       stored.seen.offset}));
  return {};
}

Result<> put_progress(sql::Tx& tx, const StoredSubscription& stored) {
  CRETO_TRY(
      tx.exec("UPDATE billing_subscriptions SET billed_ns = $3, opened = $4, watched = $5, due_ns = $6, "
              "log_segment = $7, log_offset = $8 WHERE org = $1 AND id = $2",
              {stored.org, stored.subscription.id.to_string(), stored.billed_until, stored.opened ? 1 : 0,
               stored.watched ? 1 : 0, stored.due_at, stored.seen.segment, stored.seen.offset}));
  return {};
}

Result<> put_seen(sql::Tx& tx, const std::string& org, const SubscriptionId& id, BlockAddress seen) {
  CRETO_TRY(tx.exec("UPDATE billing_subscriptions SET log_segment = $3, log_offset = $4 WHERE org = $1 AND id = $2",
                    {org, id.to_string(), seen.segment, seen.offset}));
  return {};
}

Result<std::vector<StoredSubscription>> all_subscriptions(sql::Tx& tx) {
  const sql::Rows rows =
      CRETO_TRY(tx.query(fmt::format("SELECT {} FROM billing_subscriptions ORDER BY org, id", subscription_columns)));
  return read_all<StoredSubscription>(rows, subscription_of);
}

Result<std::vector<StoredSubscription>> due_subscriptions(sql::Tx& tx, Instant now, std::size_t limit) {
  const sql::Rows rows = CRETO_TRY(
      tx.query(fmt::format("SELECT {} FROM billing_subscriptions WHERE due_ns <= $1 ORDER BY due_ns, org, id LIMIT $2",
                           subscription_columns),
               {now, static_cast<std::int64_t>(limit)}));
  std::vector<StoredSubscription> all = CRETO_TRY(read_all<StoredSubscription>(rows, subscription_of));
  std::erase_if(all, [&](const StoredSubscription& one) { return one.org != all.front().org; });
  return all;
}

Result<std::vector<StoredSubscription>> watched_subscriptions(sql::Tx& tx) {
  const sql::Rows rows =
      CRETO_TRY(tx.query(fmt::format("SELECT {} FROM billing_subscriptions WHERE watched = 1 AND due_ns IS NOT NULL "
                                     "ORDER BY org, id",
                                     subscription_columns)));
  return read_all<StoredSubscription>(rows, subscription_of);
}

Result<> postpone(sql::Tx& tx, const std::string& org, const SubscriptionId& id, Instant until) {
  CRETO_TRY(
      tx.exec("UPDATE billing_subscriptions SET due_ns = $3 WHERE org = $1 AND id = $2", {org, id.to_string(), until}));
  return {};
}

// --- invoices

Result<std::int64_t> next_numbers(sql::Tx& tx, const std::string& org, std::string_view name, std::int64_t count) {
  const sql::Rows rows =
      CRETO_TRY(tx.query("INSERT INTO metering_numbers (org, name, value) VALUES ($1, $2, $3) "
                         "ON CONFLICT (org, name) DO UPDATE SET value = metering_numbers.value + $3 RETURNING value",
                         {org, name, count}));
  return rows.front().integer(0) - count + 1;
}

Result<> insert_invoice(sql::Tx& tx, const std::string& org, const StoredInvoice& stored) {
  const Invoice& invoice = stored.invoice;
  const auto number = invoice.number == 0 ? std::nullopt : std::optional(invoice.number);
  CRETO_TRY(tx.exec(
      "INSERT INTO billing_invoices (org, id, number, subscription, kind, status, period_begin_ns, period_end_ns, "
      "finalize_ns, log_segment, log_offset, doc, algorithm, signature, batch, proof, is_signed, pdf_object, sent, "
      "settlement) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, '', $13, '', $13, 0, '', 0, '')",
      {org, invoice.id.to_string(), number, invoice.subscription.to_string(), to_string(invoice.kind),
       to_string(invoice.status), invoice.period.begin, invoice.period.end, stored.finalize_at, stored.log_end.segment,
       stored.log_end.offset, invoice.document, Bytes()}));
  return {};
}

Result<> finalize(sql::Tx& tx, const std::string& org, const StoredInvoice& stored) {
  CRETO_TRY(
      tx.exec("UPDATE billing_invoices SET number = $3, status = $4, log_segment = $5, log_offset = $6, doc = $7 "
              "WHERE org = $1 AND id = $2 AND status = 'draft'",
              {org, stored.invoice.id.to_string(), stored.invoice.number, to_string(stored.invoice.status),
               stored.log_end.segment, stored.log_end.offset, stored.invoice.document}));
  return {};
}

Result<> set_settlement(sql::Tx& tx, const std::string& org, const Invoice& invoice) {
  CRETO_TRY(tx.exec("UPDATE billing_invoices SET status = $3, settlement = $4 WHERE org = $1 AND id = $2",
                    {org, invoice.id.to_string(), to_string(invoice.status), invoice.settlement}));
  return {};
}

Result<> set_delivery(sql::Tx& tx, const std::string& org, const Invoice& invoice) {
  CRETO_TRY(tx.exec("UPDATE billing_invoices SET pdf_object = $3, sent = $4 WHERE org = $1 AND id = $2",
                    {org, invoice.id.to_string(), invoice.pdf_object, invoice.sent ? 1 : 0}));
  return {};
}

Result<std::optional<StoredInvoice>> find_invoice(sql::Tx& tx, const std::string& org, const InvoiceId& id) {
  const sql::Rows rows = CRETO_TRY(
      tx.query(fmt::format("SELECT {} WHERE i.org = $1 AND i.id = $2", invoice_columns), {org, id.to_string()}));
  return read_one<StoredInvoice>(rows, invoice_of);
}

Result<std::vector<StoredInvoice>> list_invoices(sql::Tx& tx, const std::string& org,
                                                 const std::optional<SubscriptionId>& subscription) {
  const std::string wanted = subscription ? subscription->to_string() : "";
  const sql::Rows rows = CRETO_TRY(
      tx.query(fmt::format("SELECT {} WHERE i.org = $1 AND ($2 = '' OR i.subscription = $2) "
                           "ORDER BY CASE WHEN i.number IS NULL THEN 0 ELSE 1 END, i.number DESC, i.id DESC LIMIT 1000",
                           invoice_columns),
               {org, wanted}));
  return read_all<StoredInvoice>(rows, invoice_of);
}

Result<std::vector<StoredInvoice>> invoices_between(sql::Tx& tx, const std::string& org, const SubscriptionId& id,
                                                    InvoiceKind kind, Instant after, Instant until) {
  const sql::Rows rows = CRETO_TRY(tx.query(
      fmt::format("SELECT {} WHERE i.org = $1 AND i.subscription = $2 AND i.kind = $3 AND i.period_end_ns > $4 AND "
                  "i.period_end_ns <= $5 ORDER BY i.period_end_ns",
                  invoice_columns),
      {org, id.to_string(), to_string(kind), after, until}));
  return read_all<StoredInvoice>(rows, invoice_of);
}

Result<std::optional<StoredInvoice>> find_invoice_until(sql::Tx& tx, const std::string& org, const SubscriptionId& id,
                                                        Instant until) {
  const sql::Rows rows =
      CRETO_TRY(tx.query(fmt::format("SELECT {} WHERE i.org = $1 AND i.subscription = $2 AND i.period_end_ns = $3 AND "
                                     "i.kind IN ('period', 'interim') ORDER BY i.kind DESC LIMIT 1",
                                     invoice_columns),
                         {org, id.to_string(), until}));
  return read_one<StoredInvoice>(rows, invoice_of);
}

Result<std::vector<StoredInvoice>> due_drafts(sql::Tx& tx, Instant now, std::size_t limit, std::string& org) {
  const sql::Rows first =
      CRETO_TRY(tx.query("SELECT min(org) FROM billing_invoices WHERE status = 'draft' AND finalize_ns <= $1", {now}));
  if (first.front().is_null(0)) return std::vector<StoredInvoice>();
  org = first.front().text(0);
  const sql::Rows rows = CRETO_TRY(
      tx.query(fmt::format("SELECT {} WHERE i.org = $1 AND i.status = 'draft' AND i.finalize_ns <= $2 ORDER BY "
                           "i.period_end_ns, i.id LIMIT $3",
                           invoice_columns),
               {org, now, static_cast<std::int64_t>(limit)}));
  return read_all<StoredInvoice>(rows, invoice_of);
}

Result<std::vector<StoredInvoice>> drafts_until(sql::Tx& tx, const std::string& org, const SubscriptionId& id,
                                                Instant until) {
  const sql::Rows rows =
      CRETO_TRY(tx.query(fmt::format("SELECT {} WHERE i.org = $1 AND i.subscription = $2 AND i.status "
                                     "= 'draft' AND i.period_end_ns <= $3 ORDER BY i.period_end_ns",
                                     invoice_columns),
                         {org, id.to_string(), until}));
  return read_all<StoredInvoice>(rows, invoice_of);
}

Result<std::optional<Instant>> first_draft(sql::Tx& tx) {
  const sql::Rows rows =
      CRETO_TRY(tx.query("SELECT min(period_begin_ns) FROM billing_invoices WHERE status = 'draft'"));
  if (rows.front().is_null(0)) return std::optional<Instant>();
  return std::optional(from_unix_ns(rows.front().integer(0)));
}

Result<> postpone_draft(sql::Tx& tx, const std::string& org, const InvoiceId& id, Instant until) {
  CRETO_TRY(tx.exec("UPDATE billing_invoices SET finalize_ns = $3 WHERE org = $1 AND id = $2 AND status = 'draft'",
                    {org, id.to_string(), until}));
  return {};
}

// --- signatures

Result<std::vector<UnsignedInvoice>> unsigned_invoices(sql::Tx& tx, const std::string& org, std::int64_t after,
                                                       std::size_t limit) {
  const sql::Rows rows = CRETO_TRY(
      tx.query("SELECT id, number, doc FROM billing_invoices WHERE is_signed = 0 AND org = $1 AND number > $2 ORDER BY "
               "number LIMIT $3",
               {org, after, static_cast<std::int64_t>(limit)}));
  return read_all<UnsignedInvoice>(rows, [](const sql::Row& row) -> Result<UnsignedInvoice> {
    const InvoiceId id = CRETO_TRY(InvoiceId::parse(row.text(0)));
    return UnsignedInvoice{id, row.integer(1), row.text(2)};
  });
}

Result<std::vector<std::string>> orgs_with_unsigned(sql::Tx& tx) {
  const sql::Rows rows = CRETO_TRY(
      tx.query("SELECT DISTINCT org FROM billing_invoices WHERE is_signed = 0 AND number IS NOT NULL ORDER BY org"));
  std::vector<std::string> orgs;
  for (const sql::Row row : rows) orgs.push_back(row.text(0));
  return orgs;
}

Result<> sign_invoice(sql::Tx& tx, const std::string& org, const InvoiceId& id, const Signature& signature) {
  CRETO_TRY(
      tx.exec("UPDATE billing_invoices SET algorithm = $3, signature = $4, is_signed = 1 WHERE org = $1 AND id = $2 "
              "AND is_signed = 0",
              {org, id.to_string(), signature.algorithm, signature.value}));
  return {};
}

Result<> insert_batch(sql::Tx& tx, const std::string& org, std::string_view batch, std::uint64_t size,
                      const Hash256& root, const Signature& signature) {
  CRETO_TRY(
      tx.exec("INSERT INTO billing_batches (org, id, size, root, algorithm, signature) VALUES ($1, $2, $3, $4, $5, $6)",
              {org, batch, static_cast<std::int64_t>(size), root, signature.algorithm, signature.value}));
  return {};
}

Result<> sign_invoice_in(sql::Tx& tx, const std::string& org, const InvoiceId& id, std::string_view batch,
                         const InvoiceProof& proof) {
  CRETO_TRY(
      tx.exec("UPDATE billing_invoices SET batch = $3, proof = $4, is_signed = 1 WHERE org = $1 AND id = $2 AND "
              "is_signed = 0",
              {org, id.to_string(), batch, proof_bytes(proof)}));
  return {};
}

// --- coupons

Result<> put_profile(sql::Tx& tx, const std::string& org, const BillingProfile& profile) {
  const std::string doc = CRETO_TRY(to_json(profile));
  CRETO_TRY(
      tx.exec("INSERT INTO billing_profiles (org, subject, doc) VALUES ($1, $2, $3) ON CONFLICT (org, subject) DO "
              "UPDATE SET doc = excluded.doc",
              {org, profile.subject, doc}));
  return {};
}

Result<bool> delete_profile(sql::Tx& tx, const std::string& org, std::string_view subject) {
  const std::int64_t gone =
      CRETO_TRY(tx.exec("DELETE FROM billing_profiles WHERE org = $1 AND subject = $2", {org, subject}));
  return gone == 1;
}

Result<std::vector<BillingProfile>> list_profiles(sql::Tx& tx, const std::string& org, std::string_view subject) {
  const sql::Rows rows = CRETO_TRY(
      subject.empty() ? tx.query("SELECT doc FROM billing_profiles WHERE org = $1 ORDER BY subject LIMIT 10000", {org})
                      : tx.query("SELECT doc FROM billing_profiles WHERE org = $1 AND subject = $2", {org, subject}));
  return read_all<BillingProfile>(rows, [](const sql::Row& row) { return billing_profile_from_json(row.text(0)); });
}

Result<> put_coupon(sql::Tx& tx, const std::string& org, const Coupon& coupon) {
  const std::string doc = CRETO_TRY(to_json(coupon));
  CRETO_TRY(
      tx.exec("INSERT INTO billing_coupons (org, id, doc) VALUES ($1, $2, $3) ON CONFLICT (org, id) DO UPDATE SET "
              "doc = excluded.doc",
              {org, coupon.id, doc}));
  return {};
}

Result<std::optional<Coupon>> find_coupon(sql::Tx& tx, const std::string& org, std::string_view id) {
  const sql::Rows rows = CRETO_TRY(tx.query("SELECT doc FROM billing_coupons WHERE org = $1 AND id = $2", {org, id}));
  return read_one<Coupon>(rows, coupon_of);
}

Result<std::vector<Coupon>> list_coupons(sql::Tx& tx, const std::string& org) {
  const sql::Rows rows =
      CRETO_TRY(tx.query("SELECT doc FROM billing_coupons WHERE org = $1 ORDER BY id LIMIT 10000", {org}));
  return read_all<Coupon>(rows, coupon_of);
}

Result<bool> apply_coupon(sql::Tx& tx, const std::string& org, const SubscriptionId& id, const Coupon& coupon,
                          Instant now) {
  const std::string doc = CRETO_TRY(to_json(coupon));
  const std::int64_t applied = CRETO_TRY(
      tx.exec("INSERT INTO billing_applied_coupons (org, subscription, coupon, applied_ns, doc, periods_left) "
              "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (org, subscription, coupon) DO NOTHING",
              {org, id.to_string(), coupon.id, now, doc, coupon.periods}));
  return applied == 1;
}

Result<std::vector<AppliedCoupon>> applied_coupons(sql::Tx& tx, const std::string& org, const SubscriptionId& id) {
  const sql::Rows rows = CRETO_TRY(
      tx.query("SELECT doc, periods_left FROM billing_applied_coupons WHERE org = $1 AND subscription = $2 AND "
               "(periods_left IS NULL OR periods_left > 0) ORDER BY applied_ns, coupon",
               {org, id.to_string()}));
  return read_all<AppliedCoupon>(rows, [](const sql::Row& row) -> Result<AppliedCoupon> {
    AppliedCoupon applied;
    applied.coupon = CRETO_TRY(coupon_of(row));
    if (const auto left = row.optional_integer(1)) applied.periods_left = static_cast<int>(*left);
    return applied;
  });
}

Result<> use_coupon(sql::Tx& tx, const std::string& org, const SubscriptionId& id, std::string_view coupon) {
  CRETO_TRY(
      tx.exec("UPDATE billing_applied_coupons SET periods_left = periods_left - 1 WHERE org = $1 AND subscription "
              "= $2 AND coupon = $3 AND periods_left > 0",
              {org, id.to_string(), coupon}));
  return {};
}

// --- credits

Result<> put_credit(sql::Tx& tx, const std::string& org, const StoredCredit& stored) {
  const std::string doc = CRETO_TRY(credit_document(stored.credit));
  CRETO_TRY(
      tx.exec("INSERT INTO billing_credits (org, id, agent, doc, reset_ns) VALUES ($1, $2, $3, $4, $5) ON CONFLICT "
              "(org, id) DO UPDATE SET doc = excluded.doc, reset_ns = excluded.reset_ns",
              {org, stored.credit.id.to_string(), stored.credit.agent, doc, stored.reset_at}));
  return {};
}

Result<std::optional<StoredCredit>> find_credit(sql::Tx& tx, const std::string& org, const CreditId& id) {
  const sql::Rows rows = CRETO_TRY(tx.query(
      fmt::format("SELECT {} FROM billing_credits WHERE org = $1 AND id = $2", credit_columns), {org, id.to_string()}));
  return read_one<StoredCredit>(rows, [](const sql::Row& row) { return credit_of(row, 0); });
}

Result<std::vector<StoredCredit>> list_credits(sql::Tx& tx, const std::string& org, std::string_view agent) {
  const sql::Rows rows = CRETO_TRY(
      tx.query(fmt::format("SELECT {} FROM billing_credits WHERE org = $1 AND agent = $2 ORDER BY id LIMIT 1000",
                           credit_columns),
               {org, agent}));
  return read_all<StoredCredit>(rows, [](const sql::Row& row) { return credit_of(row, 0); });
}

Result<> put_top_up(sql::Tx& tx, const std::string& org, const TopUp& top_up) {
  CRETO_TRY(tx.exec(
      "INSERT INTO billing_top_ups (org, agent, amount, currency, below, pending) VALUES ($1, $2, $3, $4, "
      "$5, '') ON CONFLICT (org, agent) DO UPDATE SET amount = excluded.amount, currency = "
      "excluded.currency, below = excluded.below",
      {org, top_up.agent, top_up.amount.amount.to_string(), top_up.amount.currency.code(), top_up.below.to_string()}));
  return {};
}

static Result<TopUp> top_up_of(const sql::Row& row, std::string_view agent) {
  TopUp top_up{.agent = std::string(agent)};
  top_up.amount.amount = CRETO_TRY(Decimal::parse(row.text(0)));
  top_up.amount.currency = CRETO_TRY(Currency::parse(row.text(1)));
  top_up.below = CRETO_TRY(Decimal::parse(row.text(2)));
  return top_up;
}

Result<std::optional<StoredTopUp>> find_top_up(sql::Tx& tx, const std::string& org, std::string_view agent) {
  const sql::Rows rows = CRETO_TRY(tx.query(
      "SELECT amount, currency, below, pending FROM billing_top_ups WHERE org = $1 AND agent = $2", {org, agent}));
  return read_one<StoredTopUp>(rows, [&](const sql::Row& row) -> Result<StoredTopUp> {
    StoredTopUp stored{{}, row.text(3)};
    stored.top_up = CRETO_TRY(top_up_of(row, agent));
    return stored;
  });
}

Result<std::vector<OpenTopUp>> open_top_ups(sql::Tx& tx) {
  const sql::Rows rows = CRETO_TRY(tx.query(
      "SELECT amount, currency, below, org, agent FROM billing_top_ups WHERE pending = '' ORDER BY org, agent"));
  return read_all<OpenTopUp>(rows, [](const sql::Row& row) -> Result<OpenTopUp> {
    OpenTopUp open{row.text(3), {}};
    open.top_up = CRETO_TRY(top_up_of(row, row.text(4)));
    return open;
  });
}

Result<> set_top_up_pending(sql::Tx& tx, const std::string& org, std::string_view agent, std::string_view invoice) {
  CRETO_TRY(tx.exec("UPDATE billing_top_ups SET pending = $3 WHERE org = $1 AND agent = $2", {org, agent, invoice}));
  return {};
}

// --- credit notes

Result<> insert_note(sql::Tx& tx, const std::string& org, const CreditNote& note) {
  CRETO_TRY(
      tx.exec("INSERT INTO billing_notes (org, id, number, invoice, amount, reason, issued_ns, doc) VALUES ($1, $2, "
              "$3, $4, $5, $6, $7, $8)",
              {org, note.id.to_string(), note.number, note.invoice.to_string(), note.amount.to_string(), note.reason,
               note.issued_at, note.document}));
  return {};
}

Result<std::vector<CreditNote>> list_notes(sql::Tx& tx, const std::string& org, const InvoiceId& invoice) {
  const sql::Rows rows =
      CRETO_TRY(tx.query("SELECT id, number, amount, reason, issued_ns, doc FROM billing_notes WHERE org = $1 AND "
                         "invoice = $2 ORDER BY number",
                         {org, invoice.to_string()}));
  return read_all<CreditNote>(rows, [&](const sql::Row& row) -> Result<CreditNote> {
    const CreditNoteId id = CRETO_TRY(CreditNoteId::parse(row.text(0)));
    const Decimal amount = CRETO_TRY(Decimal::parse(row.text(2)));
    return CreditNote{id, row.integer(1), invoice, amount, row.text(3), row.instant(4), row.text(5)};
  });
}

Result<Extras> extras(sql::Tx& tx, const std::string& org) {
  const sql::Rows rows = CRETO_TRY(
      tx.query("SELECT CASE WHEN EXISTS (SELECT 1 FROM billing_applied_coupons WHERE org = $1) THEN 1 ELSE 0 END, "
               "CASE WHEN EXISTS (SELECT 1 FROM billing_credits WHERE org = $1) OR EXISTS (SELECT 1 FROM "
               "billing_top_ups WHERE org = $1) THEN 1 ELSE 0 END, CASE WHEN EXISTS (SELECT 1 FROM billing_profiles "
               "WHERE org = $1) THEN 1 ELSE 0 END",
               {org}));
  return Extras{rows.front().integer(0) != 0, rows.front().integer(1) != 0, rows.front().integer(2) != 0};
}

}  // namespace creto::metering::billing
