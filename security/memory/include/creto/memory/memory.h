#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "creto/common/access.h"
#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/health.h"
#include "creto/common/id.h"
#include "creto/common/telemetry.h"

namespace creto::sql {
class Database;
}
namespace creto::inference {
class Provider;
}

namespace creto::memory {

enum class MemoryType : std::uint8_t { observation, reasoning, conversation, tool_result, context, long_term };
std::string_view to_string(MemoryType type);
Result<MemoryType> memory_type_from_string(std::string_view text);

struct NewEntry {
  Identity agent;       ///< whose memory
  std::string content;  ///< 1 byte to 64 KiB of UTF-8; this is embedded
  MemoryType type = MemoryType::observation;
  std::map<std::string, std::string> metadata;  ///< up to 64; "action_id" ties a reasoning to its action
  std::vector<float> embedding;                 ///< empty: made here. Else of the current model's dimension
  std::optional<Nanos> ttl;                     ///< none: no expiry
};

struct Entry {
  MemoryId id;
  Identity agent;
  std::string content;
  MemoryType type = MemoryType::observation;
  std::map<std::string, std::string> metadata;
  std::string embedding_model;  ///< which model made its vector; vectors of different models are never compared
  Instant created_at{};
  std::optional<Instant> expires_at;
};

struct Query {
  Identity agent;
  std::string text;
  std::size_t limit = 10;                    ///< 1 to 100
  std::optional<float> relevance_threshold;  ///< 0 to 1; none: the embedder's own default
  std::vector<MemoryType> types;             ///< empty: all
  std::optional<Instant> from;               ///< created_at in [from, to)
  std::optional<Instant> to;
};

struct ScoredEntry {
  Entry entry;
  float relevance = 0;  ///< cosine, clamped to [0, 1]
};

struct Reasoning {
  std::string text;            ///< of the latest reasoning with this action_id
  std::vector<Entry> related;  ///< up to 5 other entries of the agent, most relevant first
  float confidence = 0;        ///< 0 to 1; how it is made: the README of memory
};

/// Turns text into vectors. `model()` names vectors that may be compared. Thread-safe.
class Embedder {
 public:
  virtual ~Embedder() = default;
  virtual const std::string& model() const = 0;
  virtual std::size_t dimension() const = 0;
  /// What counts as relevant with this model when the query does not say.
  virtual float default_threshold() const = 0;
  /// One unit vector per text (a zero vector for text without a word).
  virtual Result<std::vector<std::vector<float>>> embed(const Context& ctx, const std::vector<std::string>& texts) = 0;
};

/// "creto-hash-384": hashed words and letter trigrams, weighted by log frequency. Knows no meaning, only shared words;
/// needs nothing and never fails.
std::unique_ptr<Embedder> create_hash_embedder();
/// Through an inference provider. `dimension` must be what `model` gives; another one is an error when it shows.
std::unique_ptr<Embedder> create_provider_embedder(inference::Provider& provider, std::string model,
                                                   std::size_t dimension, float default_threshold = 0.7f);

struct MemoryOptions {
  std::size_t entries_per_agent_max = 100'000;
};

/// What agents remember. Each agent has its own; `ctx.caller` is that agent, or needs policy's permission (memory.read,
/// memory.write on Agent::"…"). Reads by others are audited, as are changes, in their transaction. Thread-safe.
///
/// Errors of every call: permission_denied; invalid_input; unavailable (also where the embedder does not answer:
/// nothing is stored then); resource_exhausted (entries_per_agent_max)
class Memory {
 public:
  virtual ~Memory() = default;

  /// Repeating this or `store_batch` with the same idempotency key stores nothing and returns the first ids.
  /// Errors: conflict where the key was used with other content.
  virtual Result<MemoryId> store(const Context& ctx, const NewEntry& entry) = 0;
  /// All or none; 1 to 256.
  virtual Result<std::vector<MemoryId>> store_batch(const Context& ctx, const std::vector<NewEntry>& entries) = 0;
  /// Most relevant first; what has expired is never found. Brute force over the agent's vectors of the current model.
  virtual Result<std::vector<ScoredEntry>> query(const Context& ctx, const Query& query) = 0;
  /// Errors: not_found, also where the entry belongs to another agent
  virtual Result<Entry> get(const Context& ctx, const Identity& agent, const MemoryId& id) = 0;
  virtual Result<> remove(const Context& ctx, const Identity& agent, const MemoryId& id) = 0;
  /// Why the agent did (or wants to do) `action_id`; none where it left no reasoning.
  virtual Result<std::optional<Reasoning>> get_reasoning(const Context& ctx, const Identity& agent,
                                                         std::string_view action_id) = 0;
  /// Erases what has expired; the number. Call it now and then.
  virtual Result<std::size_t> sweep(const Context& ctx) = 0;

  virtual HealthStatus health() = 0;
};

/// Everything passed in must outlive the result. Runs its migrations.
Result<std::unique_ptr<Memory>> create_memory(sql::Database& database, Embedder& embedder, AccessControl& access,
                                              const Clock& clock, Telemetry& telemetry, MemoryOptions options = {});

}  // namespace creto::memory
