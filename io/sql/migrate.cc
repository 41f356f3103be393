#include <fmt/format.h>

#include "sql/base.h"

namespace creto::sql {
namespace {

// Finds an edited migration, not an attacker: FNV-1a.
std::string checksum(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<std::uint8_t>(c)) * 0x100000001b3;
  return fmt::format("{:016x}", hash);
}

std::string in_dialect(std::string_view sql, Dialect dialect) {
  constexpr std::string_view token = "{{serial}}";
  const std::string_view serial = dialect == Dialect::sqlite ? "INTEGER PRIMARY KEY AUTOINCREMENT"
                                                             : "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY";
  std::string text(sql);
  for (auto at = text.find(token); at != std::string::npos; at = text.find(token, at)) {
    text.replace(at, token.size(), serial);
  }
  return text;
}

/// Splits at `;` outside of quotes and comments.
std::vector<std::string> statements_of(std::string_view sql) {
  std::vector<std::string> statements;
  std::string current;
  char quote = 0;
  for (std::size_t i = 0; i < sql.size(); ++i) {
    const char c = sql[i];
    if (quote == 0 && c == '-' && i + 1 < sql.size() && sql[i + 1] == '-') {
      while (i < sql.size() && sql[i] != '\n') ++i;
      current.push_back('\n');
      continue;
    }
    if (quote != 0) {
      if (c == quote) quote = 0;
    } else if (c == '\'' || c == '"') {
      quote = c;
    } else if (c == ';') {
      statements.push_back(std::move(current));
      current.clear();
      continue;
    }
    current.push_back(c);
  }
  statements.push_back(std::move(current));
  std::erase_if(statements, [](const std::string& s) { return s.find_first_not_of(" \t\r\n") == std::string::npos; });
  return statements;
}

constexpr const char* create_table =
    "CREATE TABLE IF NOT EXISTS schema_migrations ("
    "  module TEXT NOT NULL, number BIGINT NOT NULL, name TEXT NOT NULL, checksum TEXT NOT NULL,"
    "  applied_at BIGINT NOT NULL, PRIMARY KEY (module, number))";

constexpr std::int64_t advisory_lock = 0x6372'6574'6f01;  // "creto", 1

}  // namespace

Result<> migrate(Database& db, std::string_view module, std::span<const Migration> steps) {
  for (std::size_t i = 0; i < steps.size(); ++i) CRETO_ASSERT(steps[i].number == static_cast<int>(i) + 1);
  const Context ctx;
  for (;;) {
    bool done = false;
    // One step in one transaction; read committed, so that who waited for the lock sees what the other did.
    auto result = db.transaction(
        ctx,
        [&](Tx& tx) -> Result<> {
          if (db.dialect() == Dialect::postgres)
            CRETO_TRY(tx.query("SELECT pg_advisory_xact_lock($1)", {advisory_lock}));
          CRETO_TRY(tx.exec(create_table));
          const Rows applied = CRETO_TRY(tx.query(
              "SELECT number, name, checksum FROM schema_migrations WHERE module = $1 ORDER BY number", {module}));
          if (applied.size() > steps.size()) {
            return detail::failure(
                ErrorKind::conflict,
                fmt::format("the database is newer than this program: `{}` is at step {}, we know {}", module,
                            applied.size(), steps.size()));
          }
          for (std::size_t i = 0; i < applied.size(); ++i) {
            if (applied[i].integer(0) != steps[i].number || applied[i].text(2) != checksum(steps[i].sql)) {
              return detail::failure(ErrorKind::conflict,
                                     fmt::format("migration {} `{}` of `{}` was changed after it had been applied",
                                                 steps[i].number, applied[i].text(1), module));
            }
          }
          done = applied.size() == steps.size();
          if (done) return {};
          const Migration& step = steps[applied.size()];
          for (const std::string& statement : statements_of(in_dialect(step.sql, db.dialect()))) {
            CRETO_TRY(tx.exec(statement));
          }
          CRETO_TRY(
              tx.exec("INSERT INTO schema_migrations (module, number, name, checksum, applied_at) "
                      "VALUES ($1, $2, $3, $4, $5)",
                      {module, step.number, step.name, checksum(step.sql), tx.now()}));
          return {};
        },
        {.isolation = Isolation::read_committed});
    if (!result) return result;
    if (done) return {};
  }
}

namespace detail {
namespace {

constexpr Migration io_steps[] = {
    {1, "idempotency", R"sql(
CREATE TABLE idempotency (
  org TEXT NOT NULL,
  caller TEXT NOT NULL,
  operation TEXT NOT NULL,
  key TEXT NOT NULL,
  request_hash BYTEA NOT NULL,
  result TEXT NOT NULL,
  expires_at BIGINT NOT NULL,
  PRIMARY KEY (org, caller, operation, key)
);
CREATE INDEX idempotency_expiry ON idempotency (expires_at);
)sql"},
    {2, "bus", R"sql(
-- Committed with the change it tells of; the relay moves it to the bus, which gives it its place.
CREATE TABLE outbox (
  id {{serial}},
  org TEXT NOT NULL,
  subject TEXT NOT NULL,
  message_id TEXT NOT NULL,
  body TEXT NOT NULL,
  trace TEXT NOT NULL,
  published_at BIGINT NOT NULL
);
-- The relay's turn: its row lock orders the relays of several processes, so that a lower sequence never appears later.
CREATE TABLE bus_relay (
  one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
  last_sequence BIGINT NOT NULL
);
INSERT INTO bus_relay (one, last_sequence) VALUES (1, 0);
CREATE TABLE bus_messages (
  sequence BIGINT NOT NULL PRIMARY KEY,
  org TEXT NOT NULL,
  subject TEXT NOT NULL,
  message_id TEXT NOT NULL,
  body TEXT NOT NULL,
  trace TEXT NOT NULL,
  published_at BIGINT NOT NULL,
  UNIQUE (org, message_id)
);
CREATE TABLE bus_consumers (
  name TEXT NOT NULL PRIMARY KEY,
  pattern TEXT NOT NULL,
  position BIGINT NOT NULL,
  failures BIGINT NOT NULL DEFAULT 0,
  retry_at BIGINT NOT NULL DEFAULT 0
);
CREATE TABLE bus_dead_letters (
  org TEXT NOT NULL,
  consumer TEXT NOT NULL,
  sequence BIGINT NOT NULL,
  subject TEXT NOT NULL,
  message_id TEXT NOT NULL,
  body TEXT NOT NULL,
  trace TEXT NOT NULL,
  published_at BIGINT NOT NULL,
  attempts BIGINT NOT NULL,
  error TEXT NOT NULL,
  failed_at BIGINT NOT NULL,
  PRIMARY KEY (org, consumer, sequence)
);
)sql"},
};

}  // namespace

Result<> migrate_io(Database& db) { return migrate(db, "io", io_steps); }

}  // namespace detail
}  // namespace creto::sql
