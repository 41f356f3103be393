#include "creto/memory/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "creto/audit/audit_log.h"
#include "creto/io/idempotency.h"
#include "creto/io/sql.h"
#include "index.h"
#include "memory_codec.h"
#include "memory_store.h"
#include "vectors.h"

namespace creto::memory {
namespace {

constexpr std::size_t batch_max = 256;
constexpr std::string_view store_operation = "memory.store";
constexpr Nanos idempotency_window = std::chrono::hours(24);
constexpr std::size_t related_max = 5;
constexpr std::size_t sweep_batch = 500;
constexpr std::size_t index_bytes_max = 512u << 20;

Error memory_error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }
Error no_memory(const MemoryId& id) {
  return memory_error(ErrorKind::not_found, fmt::format("there is no memory `{}`", id.to_string()));
}

std::string encode_ids(const std::vector<MemoryId>& ids) {
  std::string text;
  for (const auto& id : ids) text += id.to_string() + "\n";
  return text;
}
Result<std::vector<MemoryId>> decode_ids(std::string_view text) {
  std::vector<MemoryId> ids;
  for (auto end = text.find('\n'); end != text.npos; end = text.find('\n')) {
    const auto id = CRETO_TRY(MemoryId::parse(text.substr(0, end)));
    ids.push_back(id);
    text.remove_prefix(end + 1);
  }
  return ids;
}

/// How much an approver may lean on a reasoning: that there is one, how well the agent's other memories bear it out,
/// and how fresh it is (README.md, "Confidence").
float confidence_of(const std::vector<ScoredEntry>& related, Nanos age) {
  float support = 0;
  for (const auto& one : related) support += one.relevance;
  if (!related.empty()) support /= static_cast<float>(related.size());
  const auto days = std::max(0.0, std::chrono::duration<double, std::ratio<86'400>>(age).count());
  const auto freshness = static_cast<float>(std::exp2(-days));
  return 0.5F + 0.3F * support + 0.2F * freshness;
}

struct Probe {
  explicit Probe(Telemetry& telemetry)
      : stored(telemetry.counter("creto_memory_entries_stored_total", "Memories stored")),
        queries(telemetry.counter("creto_memory_queries_total", "Queries answered")),
        embed_failures(telemetry.counter("creto_memory_embedding_failures_total", "Texts that could not be embedded")),
        seconds(telemetry.histogram("creto_memory_query_seconds", "Duration of queries")) {}
  Counter& stored;
  Counter& queries;
  Counter& embed_failures;
  Histogram& seconds;
};

class MemoryService final : public Memory {
 public:
  MemoryService(sql::Database& database, Embedder& embedder, AccessControl& access, const Clock& clock,
                Telemetry& telemetry, MemoryOptions options)
      : database_(database),
        embedder_(embedder),
        access_(access),
        clock_(clock),
        probe_(telemetry),
        options_(options),
        indexes_(embedder.model(), embedder.dimension(), index_bytes_max) {}

  Result<MemoryId> store(const Context& ctx, const NewEntry& entry) override {
    const auto ids = CRETO_TRY(store_batch(ctx, {entry}));
    return ids.front();
  }

  Result<std::vector<MemoryId>> store_batch(const Context& ctx, const std::vector<NewEntry>& entries) override {
    if (entries.empty() || entries.size() > batch_max) {
      return memory_error(ErrorKind::invalid_input, fmt::format("a batch must hold 1 to {} memories", batch_max));
    }
    const auto& agent = entries.front().agent;
    std::vector<std::string> texts;
    for (const auto& entry : entries) {
      if (entry.agent != agent) return memory_error(ErrorKind::invalid_input, "a batch must be of one agent");
      CRETO_TRY(check(entry, embedder_));
      if (entry.embedding.empty()) texts.push_back(entry.content);
    }
    CRETO_TRY(permitted(ctx, agent, "memory.write"));
    // A repeat is answered before anything is embedded again.
    const auto first =
        CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return io::earlier(tx, ctx, store_operation); }));
    if (first) return decode_ids(*first);
    std::vector<std::vector<float>> made;
    if (!texts.empty()) made = CRETO_TRY(embed(ctx, texts));
    const auto now = clock_.now();
    std::vector<StoredEntry> stored;
    std::vector<MemoryId> ids;
    auto next = made.begin();
    for (const auto& entry : entries) {
      const auto id = MemoryId::fresh(now);
      std::optional<Instant> expires_at;
      if (entry.ttl) expires_at = now + *entry.ttl;
      std::vector<float> vector = entry.embedding;
      if (vector.empty()) vector = std::move(*next++);
      normalize(vector);
      ids.push_back(id);
      stored.push_back(
          StoredEntry{Entry{id, agent, entry.content, entry.type, entry.metadata, embedder_.model(), now, expires_at},
                      std::move(vector)});
    }
    using Ids = std::vector<MemoryId>;
    auto kept = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Ids> {
      return io::once(
          tx, ctx, store_operation, idempotency_window,
          [&]() -> Result<Ids> {
            CRETO_TRY(store::insert(tx, ctx, agent, stored, options_.entries_per_agent_max));
            CRETO_TRY(record(tx, ctx, "memory.store", agent,
                             fmt::format(R"({{"count":"{}","first":"{}"}})", ids.size(), ids.front().to_string())));
            return ids;
          },
          encode_ids, decode_ids);
    }));
    if (kept == ids) probe_.stored.add(ids.size());
    return kept;
  }

  Result<std::vector<ScoredEntry>> query(const Context& ctx, const Query& query) override {
    CRETO_TRY(check(query));
    CRETO_TRY(permitted_read(ctx, query.agent));
    return search(ctx, query, nullptr);
  }

  Result<Entry> get(const Context& ctx, const Identity& agent, const MemoryId& id) override {
    CRETO_TRY(permitted_read(ctx, agent));
    auto entry = CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find(tx, ctx, agent, id); }));
    if (!entry || (entry->expires_at && *entry->expires_at <= clock_.now())) return no_memory(id);
    return std::move(*entry);
  }

  Result<> remove(const Context& ctx, const Identity& agent, const MemoryId& id) override {
    CRETO_TRY(permitted(ctx, agent, "memory.write"));
    return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      const bool erased = CRETO_TRY(store::erase(tx, ctx, agent, id));
      if (!erased) return no_memory(id);
      return record(tx, ctx, "memory.delete", agent, fmt::format(R"({{"memory_id":"{}"}})", id.to_string()));
    });
  }

  Result<std::optional<Reasoning>> get_reasoning(const Context& ctx, const Identity& agent,
                                                 std::string_view action_id) override {
    if (action_id.empty() || action_id.size() > 4096 || !is_valid_utf8(action_id)) {
      return memory_error(ErrorKind::invalid_input, "`action_id` must be 1 byte to 4 KiB of UTF-8");
    }
    CRETO_TRY(permitted_read(ctx, agent));
    const auto found = CRETO_TRY(sql::read(
        database_, ctx, [&](sql::Tx& tx) { return store::find_reasoning(tx, ctx, agent, action_id, clock_.now()); }));
    if (!found) return std::optional<Reasoning>();
    Query query{agent, found->content, related_max, {}, {}, {}, {}};
    auto related = CRETO_TRY(search(ctx, query, &found->id));
    Reasoning reasoning{found->content, {}, confidence_of(related, clock_.now() - found->created_at)};
    for (auto& one : related) reasoning.related.push_back(std::move(one.entry));
    return std::optional<Reasoning>(std::move(reasoning));
  }

  Result<std::size_t> sweep(const Context& ctx) override {
    std::size_t erased = 0;
    while (true) {
      const auto batch = CRETO_TRY(
          sql::write(database_, ctx, [&](sql::Tx& tx) { return store::erase_expired(tx, clock_.now(), sweep_batch); }));
      erased += batch;
      if (batch < sweep_batch) return erased;
    }
  }

  HealthStatus health() override {
    auto answered = database_.read(Context(), [](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.query("SELECT 1 FROM memory_agents LIMIT 1"));
      return {};
    });
    if (!answered) return {Health::unhealthy, "the database does not answer"};
    return {};
  }

 private:
  static Result<> record(sql::Tx& tx, const Context& ctx, std::string what, const Identity& agent, std::string metadata,
                         const Error* refusal = nullptr) {
    auto entry = audit::AuditRecord::of(ctx, std::move(what), "memory:" + agent.text(),
                                        refusal == nullptr ? audit::Outcome::success : audit::Outcome::denied);
    if (refusal != nullptr) entry.outcome_detail = refusal->to_string();
    entry.metadata = std::move(metadata);
    CRETO_TRY(audit::record(tx, ctx, std::move(entry)));
    return {};
  }

  /// The agent itself, or whom policy permits; refusals are written down.
  Result<> permitted(const Context& ctx, const Identity& agent, std::string_view action) {
    if (!ctx.caller) return memory_error(ErrorKind::unauthenticated, "no caller");
    if (*ctx.caller == agent) return {};
    auto allowed = access_.require(ctx, action, "Agent", agent.text());
    if (allowed) return {};
    if (allowed.error().category() != ErrorCategory::transient) {
      CRETO_TRY(database_.transaction(
          ctx, [&](sql::Tx& tx) { return record(tx, ctx, std::string(action), agent, "{}", &allowed.error()); }));
    }
    return std::move(allowed).error();
  }

  /// As `permitted`; reading somebody else's memory is written down too.
  Result<> permitted_read(const Context& ctx, const Identity& agent) {
    CRETO_TRY(permitted(ctx, agent, "memory.read"));
    if (*ctx.caller == agent) return {};
    return database_.transaction(ctx, [&](sql::Tx& tx) { return record(tx, ctx, "memory.read", agent, "{}"); });
  }

  Result<std::vector<std::vector<float>>> embed(const Context& ctx, const std::vector<std::string>& texts) {
    auto made = embedder_.embed(ctx, texts);
    if (!made) {
      probe_.embed_failures.add();
      return std::move(made).error();
    }
    CRETO_ASSERT(made->size() == texts.size());
    return std::move(*made);
  }

  /// Without asking who may. `but` is left out.
  Result<std::vector<ScoredEntry>> search(const Context& ctx, const Query& query, const MemoryId* but) {
    const auto began = clock_.monotonic();
    const auto vectors = CRETO_TRY(embed(ctx, {query.text}));
    const auto threshold = query.relevance_threshold.value_or(embedder_.default_threshold());
    const auto now = clock_.now();
    const auto slot = indexes_.slot(ctx, query.agent);
    std::size_t bytes = 0;
    auto found = sql::read(database_, ctx, [&](sql::Tx& tx) -> Result<std::vector<ScoredEntry>> {
      std::vector<Hit> hits;
      {
        const std::scoped_lock lock(slot->mutex);
        CRETO_TRY(slot->index.catch_up(tx, ctx, query.agent));
        hits = slot->index.search(vectors.front(), query, threshold, query.limit + (but == nullptr ? 0 : 1), now);
        bytes = slot->index.bytes();
      }
      std::vector<ScoredEntry> scored;
      for (const auto& hit : hits) {
        if ((but != nullptr && hit.id == *but) || scored.size() == query.limit) continue;
        auto entry = CRETO_TRY(store::find(tx, ctx, query.agent, hit.id));
        if (entry) scored.push_back(ScoredEntry{std::move(*entry), hit.relevance});
      }
      return scored;
    });
    indexes_.used(ctx, query.agent, bytes);
    probe_.queries.add();
    probe_.seconds.observe(std::chrono::duration<double>(clock_.monotonic() - began).count());
    return found;
  }

  sql::Database& database_;
  Embedder& embedder_;
  AccessControl& access_;
  const Clock& clock_;
  Probe probe_;
  const MemoryOptions options_;
  IndexCache indexes_;
};

}  // namespace

Result<std::unique_ptr<Memory>> create_memory(sql::Database& database, Embedder& embedder, AccessControl& access,
                                              const Clock& clock, Telemetry& telemetry, MemoryOptions options) {
  CRETO_TRY(audit::prepare(database));
  CRETO_TRY(store::migrate(database));
  return std::make_unique<MemoryService>(database, embedder, access, clock, telemetry, options);
}

}  // namespace creto::memory
