#include "memory_store.h"

#include <fmt/format.h>

#include <array>

#include "creto/common/json.h"
#include "memory_codec.h"
#include "vectors.h"

namespace creto::memory::store {
namespace {

constexpr std::array migrations{sql::Migration{1, "entries", R"(
CREATE TABLE memory_entries (
  org TEXT NOT NULL,
  agent TEXT NOT NULL,
  id TEXT NOT NULL,
  number BIGINT NOT NULL,
  type TEXT NOT NULL,
  content TEXT NOT NULL,
  metadata TEXT NOT NULL,
  action_id TEXT,
  model TEXT NOT NULL,
  vector BYTEA NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT,
  PRIMARY KEY (org, agent, id));
CREATE UNIQUE INDEX memory_entries_by_number ON memory_entries (org, agent, number);
CREATE INDEX memory_entries_by_action ON memory_entries (org, agent, action_id);
CREATE INDEX memory_entries_by_expiry ON memory_entries (expires_at);

CREATE TABLE memory_agents (
  org TEXT NOT NULL,
  agent TEXT NOT NULL,
  inserted BIGINT NOT NULL,
  erased BIGINT NOT NULL CHECK (erased <= inserted),
  PRIMARY KEY (org, agent));
)"}};

constexpr std::string_view entry_columns = "id, agent, content, type, metadata, model, created_at, expires_at";

Result<std::optional<Entry>> first(const sql::Rows& rows) {
  if (rows.empty()) return std::optional<Entry>();
  const auto row = rows.front();
  const auto id = CRETO_TRY(MemoryId::parse(row.text(0)));
  auto agent = CRETO_TRY(Identity::parse(row.text(1)));
  const auto type = CRETO_TRY(memory_type_from_string(row.text(3)));
  auto metadata = CRETO_TRY(texts_from_json(row.text(4)));
  return std::optional<Entry>(Entry{id, std::move(agent), row.text(2), type, std::move(metadata), row.text(5),
                                    row.instant(6), row.optional_instant(7)});
}

std::string select(std::string_view columns, std::string_view rest) {
  return std::string("SELECT ").append(columns).append(" ").append(rest);
}

}  // namespace

Result<> migrate(sql::Database& database) { return sql::migrate(database, "memory", migrations); }

Result<> insert(sql::Tx& tx, const Context& ctx, const Identity& agent, const std::vector<StoredEntry>& entries,
                std::size_t entries_max) {
  const auto rows = CRETO_TRY(tx.query(
      "INSERT INTO memory_agents (org, agent, inserted, erased) VALUES ($1, $2, $3, 0) ON CONFLICT (org, agent)"
      " DO UPDATE SET inserted = memory_agents.inserted + excluded.inserted RETURNING inserted, erased",
      {ctx.org, agent.text(), static_cast<std::int64_t>(entries.size())}));
  const auto inserted = rows.front().integer(0);
  const auto there = inserted - rows.front().integer(1);
  if (there > static_cast<std::int64_t>(entries_max)) {
    return Error(Product::platform, ErrorKind::resource_exhausted,
                 fmt::format("the agent would have {} memories, over {}", there, entries_max));
  }
  auto number = inserted - static_cast<std::int64_t>(entries.size());
  for (const auto& [entry, vector] : entries) {
    const auto metadata = CRETO_TRY(texts_to_json(entry.metadata));
    std::optional<std::string> action;
    if (const auto found = entry.metadata.find("action_id"); found != entry.metadata.end()) action = found->second;
    CRETO_TRY(
        tx.exec("INSERT INTO memory_entries (org, agent, id, number, type, content, metadata, action_id, model, vector,"
                " created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
                {ctx.org, agent.text(), entry.id.to_string(), ++number, to_string(entry.type), entry.content, metadata,
                 action, entry.embedding_model, encode_vector(vector), entry.created_at, entry.expires_at}));
  }
  return {};
}

Result<std::optional<Entry>> find(sql::Tx& tx, const Context& ctx, const Identity& agent, const MemoryId& id) {
  const auto rows =
      CRETO_TRY(tx.query(select(entry_columns, "FROM memory_entries WHERE org = $1 AND agent = $2 AND id = $3"),
                         {ctx.org, agent.text(), id.to_string()}));
  return first(rows);
}

Result<bool> erase(sql::Tx& tx, const Context& ctx, const Identity& agent, const MemoryId& id) {
  const auto erased = CRETO_TRY(tx.exec("DELETE FROM memory_entries WHERE org = $1 AND agent = $2 AND id = $3",
                                        {ctx.org, agent.text(), id.to_string()}));
  if (erased == 0) return false;
  CRETO_TRY(
      tx.exec("UPDATE memory_agents SET erased = erased + 1 WHERE org = $1 AND agent = $2", {ctx.org, agent.text()}));
  return true;
}

Result<std::size_t> erase_expired(sql::Tx& tx, Instant now, std::size_t limit) {
  const auto rows =
      CRETO_TRY(tx.query("SELECT org, agent, id FROM memory_entries WHERE expires_at <= $1"
                         " ORDER BY expires_at LIMIT $2",
                         {now, static_cast<std::int64_t>(limit)}));
  for (const auto& row : rows) {
    CRETO_TRY(tx.exec("DELETE FROM memory_entries WHERE org = $1 AND agent = $2 AND id = $3",
                      {row.text(0), row.text(1), row.text(2)}));
    CRETO_TRY(tx.exec("UPDATE memory_agents SET erased = erased + 1 WHERE org = $1 AND agent = $2",
                      {row.text(0), row.text(1)}));
  }
  return rows.size();
}

Result<std::optional<Entry>> find_reasoning(sql::Tx& tx, const Context& ctx, const Identity& agent,
                                            std::string_view action_id, Instant now) {
  const auto rows = CRETO_TRY(
      tx.query(select(entry_columns,
                      "FROM memory_entries WHERE org = $1 AND agent = $2 AND action_id = $3 AND type = 'reasoning'"
                      " AND (expires_at IS NULL OR expires_at > $4) ORDER BY number DESC LIMIT 1"),
               {ctx.org, agent.text(), action_id, now}));
  return first(rows);
}

Result<Progress> progress(sql::Tx& tx, const Context& ctx, const Identity& agent) {
  const auto rows = CRETO_TRY(
      tx.query("SELECT inserted, erased FROM memory_agents WHERE org = $1 AND agent = $2", {ctx.org, agent.text()}));
  if (rows.empty()) return Progress{};
  return Progress{rows.front().integer(0), rows.front().integer(1)};
}

Result<std::vector<IndexedEntry>> load(sql::Tx& tx, const Context& ctx, const Identity& agent, const std::string& model,
                                       std::size_t dimension, std::int64_t after, std::size_t limit) {
  const auto rows =
      CRETO_TRY(tx.query("SELECT id, number, type, created_at, expires_at, vector FROM memory_entries"
                         " WHERE org = $1 AND agent = $2 AND model = $3 AND number > $4"
                         " ORDER BY number LIMIT $5",
                         {ctx.org, agent.text(), model, after, static_cast<std::int64_t>(limit)}));
  std::vector<IndexedEntry> entries;
  entries.reserve(rows.size());
  for (const auto& row : rows) {
    const auto id = CRETO_TRY(MemoryId::parse(row.text(0)));
    const auto type = CRETO_TRY(memory_type_from_string(row.text(2)));
    auto vector = CRETO_TRY(decode_vector(row.bytes(5), dimension));
    entries.push_back(
        IndexedEntry{id, row.integer(1), type, row.instant(3), row.optional_instant(4), std::move(vector)});
  }
  return entries;
}

}  // namespace creto::memory::store
