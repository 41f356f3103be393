#include <fmt/format.h>

#include <array>

#include "audit_tables.h"
#include "creto/audit/audit_log.h"
#include "creto/common/names.h"
#include "record_json.h"

namespace creto::audit {
namespace {

constexpr auto outcome_names = std::to_array<Named<Outcome>>({{Outcome::success, "success"},
                                                              {Outcome::failure, "failure"},
                                                              {Outcome::denied, "denied"},
                                                              {Outcome::timeout, "timeout"}});

constexpr sql::Migration steps[] = {
    {1, "audit", R"sql(
-- Recorded with the change it tells of; the sequencer gives it its place in the log (idx) before it writes it there.
CREATE TABLE audit_pending (
  seq {{serial}},
  org TEXT NOT NULL,
  id TEXT NOT NULL,
  entry TEXT NOT NULL,
  idx BIGINT
);
-- size: entries that are signed and indexed. assigned: size, or the end of the batch that is being written.
CREATE TABLE audit_state (
  one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
  origin TEXT NOT NULL,
  size BIGINT NOT NULL CHECK (size >= 0),
  assigned BIGINT NOT NULL CHECK (assigned >= size)
);
-- The index for queries; made from the log and always to be made from it again.
CREATE TABLE audit_entries (
  org TEXT NOT NULL,
  idx BIGINT NOT NULL,
  id TEXT NOT NULL,
  what TEXT NOT NULL,
  resource TEXT NOT NULL,
  outcome TEXT NOT NULL,
  at_ns BIGINT NOT NULL,
  entry TEXT NOT NULL,
  PRIMARY KEY (org, idx)
);
CREATE UNIQUE INDEX audit_entries_id ON audit_entries (org, id);
CREATE INDEX audit_entries_what ON audit_entries (org, what, idx);
CREATE INDEX audit_entries_resource ON audit_entries (org, resource, idx);
CREATE INDEX audit_entries_outcome ON audit_entries (org, outcome, idx);
CREATE INDEX audit_entries_at ON audit_entries (org, at_ns, idx);
CREATE TABLE audit_who (
  org TEXT NOT NULL,
  who TEXT NOT NULL,
  idx BIGINT NOT NULL,
  PRIMARY KEY (org, who, idx)
);
)sql"},
    {2, "ids", R"sql(
-- Not unique: an entry that repeats an id must never keep the log from going on. record() refuses it before.
DROP INDEX audit_entries_id;
CREATE INDEX audit_entries_id ON audit_entries (org, id);
CREATE INDEX audit_pending_id ON audit_pending (org, id);
)sql"},
    {3, "first of an id", R"sql(
-- The first entry of an id: without idx here SQLite walks the whole log in its order instead.
DROP INDEX audit_entries_id;
CREATE INDEX audit_entries_id ON audit_entries (org, id, idx);
)sql"},
};

Error refusal(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

/// Whether the log has or will have an entry of that id.
Result<bool> is_known(sql::Tx& tx, const std::string& org, const std::string& id) {
  const auto rows =
      CRETO_TRY(tx.query("SELECT 1 FROM audit_pending WHERE org = $1 AND id = $2 "
                         "UNION ALL SELECT 1 FROM audit_entries WHERE org = $1 AND id = $2 LIMIT 1",
                         {org, id}));
  return !rows.empty();
}

}  // namespace

std::string_view to_string(Outcome outcome) { return name_of(outcome_names, outcome); }
Result<Outcome> outcome_from_string(std::string_view text) {
  return value_of(outcome_names, text, "outcome", Product::platform);
}

AuditRecord AuditRecord::of(const Context& ctx, std::string what, std::string resource, Outcome outcome) {
  AuditRecord record;
  record.who = ctx.caller_text();
  for (const Identity& link : ctx.chain) record.delegation_chain.push_back(link.text());
  record.what = std::move(what);
  record.resource = std::move(resource);
  record.outcome = outcome;
  record.trace_id = ctx.trace.trace_id;
  return record;
}

Result<> prepare(sql::Database& db) { return sql::migrate(db, "audit", steps); }

Result<AuditId> record(sql::Tx& tx, const Context& ctx, AuditRecord record) {
  if (record.id) {
    const std::string given = record.id->to_string();
    const bool known = CRETO_TRY(is_known(tx, ctx.org, given));
    if (known) {
      return refusal(ErrorKind::already_exists, fmt::format("there is an audit record `{}` already", given));
    }
  } else {
    record.id = AuditId::fresh(tx.now());
  }
  const AuditId id = *record.id;
  if (record.timestamp.physical_ns == 0) record.timestamp.physical_ns = unix_ns(tx.now());
  const std::string entry = CRETO_TRY(to_entry(ctx.org, record));
  // What could be written but not read back would stop the sequencer, and with it the whole log.
  if (auto parsed = parse_entry(entry); !parsed) {
    return refusal(ErrorKind::invalid_input, fmt::format("audit record: {}", parsed.error().message()));
  }
  CRETO_TRY(
      tx.exec("INSERT INTO audit_pending (org, id, entry) VALUES ($1, $2, $3)", {ctx.org, id.to_string(), entry}));
  tx.after_commit([&signal = tx.database().signal(pending_signal)] { signal.raise(); });
  return id;
}

}  // namespace creto::audit
