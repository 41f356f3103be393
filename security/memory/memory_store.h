#pragma once

#include <optional>
#include <string>
#include <vector>

#include "creto/io/sql.h"
#include "creto/memory/memory.h"

namespace creto::memory {

/// How far an agent's memory has come: both only grow, so that who has a copy knows what it lacks.
struct Progress {
  std::int64_t inserted = 0;  ///< entries ever; the newest entry's `number`
  std::int64_t erased = 0;
};

struct StoredEntry {
  Entry entry;
  std::vector<float> vector;
};

/// What the index keeps of an entry.
struct IndexedEntry {
  MemoryId id;
  std::int64_t number = 0;
  MemoryType type{};
  Instant created_at{};
  std::optional<Instant> expires_at;
  std::vector<float> vector;
};

/// Memory's tables. Knows rows, not rules. Stateless.
namespace store {

Result<> migrate(sql::Database& database);

/// Errors: resource_exhausted where the agent would have more than `entries_max`
Result<> insert(sql::Tx& tx, const Context& ctx, const Identity& agent, const std::vector<StoredEntry>& entries,
                std::size_t entries_max);
Result<std::optional<Entry>> find(sql::Tx& tx, const Context& ctx, const Identity& agent, const MemoryId& id);
Result<bool> erase(sql::Tx& tx, const Context& ctx, const Identity& agent, const MemoryId& id);
/// Of all organizations, at most `limit`.
Result<std::size_t> erase_expired(sql::Tx& tx, Instant now, std::size_t limit);
/// The latest unexpired reasoning for the action.
Result<std::optional<Entry>> find_reasoning(sql::Tx& tx, const Context& ctx, const Identity& agent,
                                            std::string_view action_id, Instant now);

Result<Progress> progress(sql::Tx& tx, const Context& ctx, const Identity& agent);
/// Entries of `model` with a number over `after`, by number, at most `limit`.
Result<std::vector<IndexedEntry>> load(sql::Tx& tx, const Context& ctx, const Identity& agent, const std::string& model,
                                       std::size_t dimension, std::int64_t after, std::size_t limit);

}  // namespace store
}  // namespace creto::memory
