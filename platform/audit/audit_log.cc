#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "audit_tables.h"
#include "creto/audit/audit_log.h"
#include "creto/common/assert.h"
#include "record_json.h"

namespace creto::audit {
namespace {

constexpr std::uint32_t limit_max = 1'000;
constexpr std::size_t batch_records_max = 1'000;
constexpr Nanos trouble_pause = std::chrono::milliseconds(500);
constexpr Nanos poll_interval = std::chrono::milliseconds(250);
constexpr Nanos sequencing_soon = std::chrono::milliseconds(500);

Error refusal(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

struct Pending {
  std::int64_t seq;
  std::string entry;
};

/// The files at the right edge of a log of that size.
std::set<std::string> partial_files(std::uint64_t size) {
  std::set<std::string> paths;
  for (int level = 0; level < 8 && size >> (8 * level) > 0; ++level) {
    const std::uint64_t hashes = size >> (8 * level);
    const tlog::Tile tile{level, hashes / tlog::tile_width, static_cast<std::uint32_t>(hashes % tlog::tile_width)};
    if (tile.width == 0) continue;
    paths.insert(tlog::tile_path(tile));
    if (level == 0) paths.insert(tlog::bundle_path(tile));
  }
  return paths;
}

/// Entries that are put into the index in one transaction: who records something meanwhile waits for no more than
/// these.
constexpr std::size_t indexed_at_once = 20;

/// Does nothing where an earlier run came as far.
Result<> add_to_index(sql::Tx& tx, std::uint64_t index, std::string_view entry) {
  const ParsedEntry parsed = CRETO_TRY(parse_entry(entry));
  const AuditRecord& record = parsed.record;
  const auto idx = static_cast<std::int64_t>(index);
  CRETO_TRY(
      tx.exec("INSERT INTO audit_entries (org, idx, id, what, resource, outcome, at_ns, entry) VALUES ($1, $2, $3, $4, "
              "$5, $6, $7, $8) ON CONFLICT DO NOTHING",
              {parsed.org, idx, record.id->to_string(), record.what, record.resource, to_string(record.outcome),
               record.timestamp.physical_ns, entry}));
  std::set<std::string> identities(record.delegation_chain.begin(), record.delegation_chain.end());
  identities.insert(record.who);
  for (const std::string& who : identities) {
    if (who.empty()) continue;
    CRETO_TRY(tx.exec("INSERT INTO audit_who (org, who, idx) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                      {parsed.org, who, idx}));
  }
  return {};
}

class Log final : public AuditLog {
 public:
  Log(sql::Database& db, io::FileSystem& files, const Clock& clock, Telemetry& telemetry, AuditKeys keys,
      AuditOptions options)
      : db_(db),
        files_(files),
        clock_(clock),
        telemetry_(telemetry),
        keys_(std::move(keys)),
        options_(std::move(options)),
        verifiers_{tlog::VerifierKey::of(options_.origin, keys_.ed25519.verifying_key()),
                   tlog::VerifierKey::of(options_.origin, keys_.ml_dsa_65.verifying_key())},
        appended_(telemetry.counter("creto_audit_entries_total", "Entries put into the audit log")),
        failures_(telemetry.counter("creto_audit_sequencing_failures_total", "Batches that could not be written")) {}

  ~Log() override {
    stopping_ = true;
    db_.signal(pending_signal).raise();
    if (sequencer_.joinable()) sequencer_.join();
  }

  Result<> open() {
    CRETO_TRY(prepare(db_));
    CRETO_TRY(files_.create_directories(options_.directory));
    CRETO_TRY(load_state());
    CRETO_TRY(recover());
    if (options_.sequence_in_background) sequencer_ = std::thread([this] { keep_sequencing(); });
    return {};
  }

  Result<AuditId> log(const Context& ctx, const AuditRecord& entry) override {
    return sql::write(db_, ctx, [&](sql::Tx& tx) { return record(tx, ctx, entry); });
  }

  Result<std::vector<AuditId>> log_batch(const Context& ctx, const std::vector<AuditRecord>& records) override {
    if (records.size() > batch_records_max) {
      return refusal(ErrorKind::too_large, fmt::format("a batch has at most {} audit records", batch_records_max));
    }
    return sql::write(db_, ctx, [&](sql::Tx& tx) -> Result<std::vector<AuditId>> {
      std::vector<AuditId> ids;
      for (const AuditRecord& entry : records) {
        const AuditId id = CRETO_TRY(record(tx, ctx, entry));
        ids.push_back(id);
      }
      return ids;
    });
  }

  Result<AuditPage> query(const Context& ctx, const AuditFilter& filter) override;
  Result<AuditEntry> get(const Context& ctx, const AuditId& id) override;
  Result<InclusionProof> proof(const Context& ctx, const AuditId& id) override;

  Result<std::vector<Hash256>> consistency(const Context&, std::uint64_t old_size) override {
    const std::uint64_t size = signed_now().size;
    if (old_size > size) {
      return refusal(ErrorKind::invalid_input, fmt::format("the log has {} entries, not {}", size, old_size));
    }
    tlog::TileNodes nodes(reader(), size);
    return tlog::consistency_path(old_size, size, nodes.reader());
  }

  Result<bool> verify(const Context& ctx, const AuditId& id, const InclusionProof& proof,
                      const Hash256& root) override {
    auto entry = get(ctx, id);
    if (!entry) return std::move(entry).error();
    if (proof.id != id || proof.index != entry->index) return false;
    return tlog::verify_inclusion(proof.index, proof.tree_size, tlog::leaf_hash(as_bytes(entry->bytes)), proof.path,
                                  root)
        .has_value();
  }

  Result<std::string> checkpoint(const Context&) override { return signed_now().note; }

  Result<AuditStatus> status(const Context& ctx) override {
    AuditStatus status;
    status.size = signed_now().size;
    status.origin = options_.origin;
    for (const auto& key : verifiers_) status.verifier_keys += key.text() + "\n";
    const std::int64_t pending = CRETO_TRY(sql::read(db_, ctx, [](sql::Tx& tx) -> Result<std::int64_t> {
      return CRETO_TRY(tx.query("SELECT count(*) FROM audit_pending")).front().integer(0);
    }));
    status.pending = static_cast<std::uint64_t>(pending);
    std::lock_guard lock(signed_mutex_);
    status.problem = problem_;
    return status;
  }

  Result<std::string> flush(const Context& ctx) override {
    const auto last = CRETO_TRY(sql::read(db_, ctx, [](sql::Tx& tx) -> Result<std::int64_t> {
      return CRETO_TRY(tx.query("SELECT COALESCE(MAX(seq), 0) FROM audit_pending")).front().integer(0);
    }));
    for (;;) {
      if (ctx.expired(clock_)) return refusal(ErrorKind::timeout, "the audit log was not sequenced in time");
      CRETO_TRY(sequence_once());
      const auto left = CRETO_TRY(sql::read(db_, ctx, [&](sql::Tx& tx) -> Result<std::int64_t> {
        return CRETO_TRY(tx.query("SELECT count(*) FROM audit_pending WHERE seq <= $1", {last})).front().integer(0);
      }));
      if (left == 0) return signed_now().note;
    }
  }

 private:
  struct Signed {
    std::uint64_t size = 0;
    Hash256 root{};
    std::string note;
  };

  tlog::FileReader reader() { return tlog::files_below(files_, options_.directory); }

  Signed signed_now() {
    std::lock_guard lock(signed_mutex_);
    return signed_;
  }
  void set_signed(Signed now) {
    std::lock_guard lock(signed_mutex_);
    signed_ = std::move(now);
  }

  Result<> load_state();
  Result<> recover();
  Result<> rebuild_index(std::uint64_t from, const tlog::VerifiedLog& log);
  Result<std::vector<Pending>> batch_being_written(sql::Tx& tx);
  Result<std::vector<Pending>> take_batch();
  Result<bool> step_back();
  Result<> write_files(const tlog::Growth& growth);
  Result<std::string> sign(std::uint64_t size, const Hash256& root);
  Result<> finish_batch(const std::vector<Pending>& batch, std::uint64_t new_size);
  Result<bool> sequence_once();
  void keep_sequencing();
  Error not_here(sql::Tx& tx, const Context& ctx, const AuditId& id);

  sql::Database& db_;
  io::FileSystem& files_;
  const Clock& clock_;
  Telemetry& telemetry_;
  const AuditKeys keys_;
  const AuditOptions options_;
  const std::vector<tlog::VerifierKey> verifiers_;
  Counter& appended_;
  Counter& failures_;

  std::mutex sequencing_;            // one batch at a time
  std::uint64_t size_ = 0;           // guarded by sequencing_; as in audit_state
  std::uint64_t assigned_ = 0;       // guarded by sequencing_
  std::uint64_t previous_size_ = 0;  // guarded by sequencing_; of the checkpoint before the last

  std::mutex signed_mutex_;
  Signed signed_;
  std::string problem_;

  std::atomic<bool> stopping_ = false;
  std::thread sequencer_;
};

Result<> Log::load_state() {
  return sql::write(db_, Context(), [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec(
        "INSERT INTO audit_state (one, origin, size, assigned) VALUES (1, $1, 0, 0) ON CONFLICT (one) DO NOTHING",
        {options_.origin}));
    const auto rows = CRETO_TRY(tx.query("SELECT origin, size, assigned FROM audit_state WHERE one = 1"));
    if (rows.front().text(0) != options_.origin) {
      return refusal(ErrorKind::conflict, fmt::format("the database belongs to the audit log `{}`, not `{}`",
                                                      rows.front().text(0), options_.origin));
    }
    size_ = static_cast<std::uint64_t>(rows.front().integer(1));
    assigned_ = static_cast<std::uint64_t>(rows.front().integer(2));
    return {};
  });
}

Result<std::string> Log::sign(std::uint64_t size, const Hash256& root) {
  tlog::Checkpoint checkpoint;
  checkpoint.origin = options_.origin;
  checkpoint.size = size;
  checkpoint.root = root;
  return tlog::sign_note(checkpoint.text(), options_.origin, {&keys_.ed25519, &keys_.ml_dsa_65});
}

/// Brings files and database together after whatever ended the last process. What a checkpoint signs is never changed:
/// where the two cannot be reconciled without that, the log does not open.
Result<> Log::recover() {
  std::lock_guard lock(sequencing_);
  const auto note = CRETO_TRY(reader()("checkpoint"));
  if (!note) {
    if (size_ != 0) {
      return refusal(ErrorKind::conflict,
                     fmt::format("the audit log's files are gone: the database knows {} signed entries", size_));
    }
    const std::string first = CRETO_TRY(sign(0, tlog::empty_root()));
    CRETO_TRY(io::write_durably(files_, options_.directory / "checkpoint", as_bytes(first), 0644));
    set_signed({0, tlog::empty_root(), first});
    return {};
  }
  const std::string text = CRETO_TRY(tlog::verify_note(as_text(*note), verifiers_));
  const auto checkpoint = CRETO_TRY(tlog::Checkpoint::parse(text));
  if (checkpoint.origin != options_.origin) {
    return refusal(ErrorKind::conflict, fmt::format("the directory holds the audit log `{}`", checkpoint.origin));
  }
  if (checkpoint.size < size_) {
    return refusal(ErrorKind::conflict,
                   fmt::format("the audit log's files end at entry {}, but {} were signed", checkpoint.size, size_));
  }
  set_signed({checkpoint.size, checkpoint.root, std::string(as_text(*note))});
  if (checkpoint.size == size_) return {};

  // The checkpoint is ahead of the database. Usually by the very batch that was being written.
  const auto batch = CRETO_TRY(sql::read(db_, Context(), [&](sql::Tx& tx) { return batch_being_written(tx); }));
  if (checkpoint.size == assigned_ && batch.size() == assigned_ - size_) {
    std::vector<Bytes> entries;
    for (const Pending& pending : batch) entries.push_back(to_bytes(pending.entry));
    const auto growth = CRETO_TRY(tlog::grow(size_, reader(), entries));
    if (growth.root != checkpoint.root) {
      return refusal(ErrorKind::hash_mismatch, "the audit log's checkpoint does not cover the entries of the database");
    }
    return finish_batch(batch, checkpoint.size);
  }
  // Otherwise the database is an older one, from a backup: the log is what counts, and the index is made again from it.
  telemetry_.warn(
      "audit", "audit_index_behind",
      {{"indexed", static_cast<std::int64_t>(size_)}, {"signed", static_cast<std::int64_t>(checkpoint.size)}});
  const tlog::VerifiedLog verified = CRETO_TRY(tlog::verify_log(reader(), verifiers_));
  return rebuild_index(size_, verified);
}

Result<> Log::rebuild_index(std::uint64_t from, const tlog::VerifiedLog& log) {
  std::vector<std::string> entries;
  const auto flush_entries = [&]() -> Result<> {
    return sql::write(db_, Context(), [&](sql::Tx& tx) -> Result<> {
      for (std::size_t i = 0; i < entries.size(); ++i) {
        CRETO_TRY(add_to_index(tx, from + i, entries[i]));
        const auto parsed = CRETO_TRY(parse_entry(entries[i]));
        CRETO_TRY(tx.exec("DELETE FROM audit_pending WHERE org = $1 AND id = $2",
                          {parsed.org, parsed.record.id->to_string()}));
      }
      const auto size = static_cast<std::int64_t>(from + entries.size());
      CRETO_TRY(tx.exec("UPDATE audit_pending SET idx = NULL WHERE idx IS NOT NULL"));
      CRETO_TRY(tx.exec("UPDATE audit_state SET size = $1, assigned = $1 WHERE one = 1", {size}));
      return {};
    });
  };
  CRETO_TRY(tlog::verify_log(reader(), verifiers_, [&](std::uint64_t index, BytesView entry) -> Result<> {
    if (index < from + entries.size()) return {};
    entries.emplace_back(as_text(entry));
    if (entries.size() < 1'000) return {};
    CRETO_TRY(flush_entries());
    from += entries.size();
    entries.clear();
    return {};
  }));
  CRETO_TRY(flush_entries());
  size_ = assigned_ = log.size;
  return {};
}

/// The entries that have their place but are not yet signed and indexed, in order.
Result<std::vector<Pending>> Log::batch_being_written(sql::Tx& tx) {
  std::vector<Pending> batch;
  const auto rows = CRETO_TRY(
      tx.query("SELECT seq, entry FROM audit_pending WHERE idx IS NOT NULL AND idx >= $1 AND idx < $2 ORDER BY idx",
               {static_cast<std::int64_t>(size_), static_cast<std::int64_t>(assigned_)}));
  for (const auto row : rows) batch.push_back({row.integer(0), row.text(1)});
  return batch;
}

/// Gives pending entries their places, durably, before anything of them is written: so a second try after a crash
/// writes the same bytes to the same places, whatever else has been recorded since.
Result<std::vector<Pending>> Log::take_batch() {
  if (assigned_ > size_) {
    auto batch = CRETO_TRY(sql::read(db_, Context(), [&](sql::Tx& tx) { return batch_being_written(tx); }));
    if (batch.size() != assigned_ - size_) {
      return refusal(ErrorKind::internal, "entries that had their place in the audit log are gone from the database");
    }
    return batch;
  }
  std::vector<Pending> batch;
  CRETO_TRY(db_.transaction(
      Context(),
      [&](sql::Tx& tx) -> Result<> {
        batch.clear();
        const auto rows = CRETO_TRY(tx.query(
            "SELECT seq, entry FROM audit_pending WHERE idx IS NULL ORDER BY seq LIMIT $1", {options_.batch_max}));
        if (rows.empty()) return {};
        auto index = static_cast<std::int64_t>(size_);
        for (const auto row : rows) {
          batch.push_back({row.integer(0), row.text(1)});
          CRETO_TRY(tx.exec("UPDATE audit_pending SET idx = $2 WHERE seq = $1", {row.integer(0), index++}));
        }
        const auto moved =
            CRETO_TRY(tx.exec("UPDATE audit_state SET assigned = $1 WHERE one = 1 AND size = $2 AND assigned = $2",
                              {index, static_cast<std::int64_t>(size_)}));
        if (moved != 1) return refusal(ErrorKind::conflict, "another process writes this audit log");
        return {};
      },
      {.isolation = sql::Isolation::read_committed}));
  assigned_ = size_ + batch.size();
  return batch;
}

Result<> Log::write_files(const tlog::Growth& growth) {
  for (const tlog::LogFile& file : growth.files) {
    const auto path = options_.directory / file.path;
    CRETO_TRY(files_.create_directories(path.parent_path()));
    CRETO_TRY(io::write_durably(files_, path, file.content, 0644));
  }
  return {};
}

/// Database after files: the entries leave audit_pending only when the checkpoint over them is durable. What is lost
/// here with a power cut is done again, by `recover` or `step_back`: one batch at most, for the next one's places are
/// durable.
Result<> Log::finish_batch(const std::vector<Pending>& batch, std::uint64_t new_size) {
  constexpr sql::TransactionOptions with{sql::Isolation::read_committed, sql::Durability::ordered};
  for (std::size_t from = 0; from < batch.size(); from += indexed_at_once) {
    const std::size_t to = std::min(batch.size(), from + indexed_at_once);
    CRETO_TRY(db_.transaction(
        Context(),
        [&](sql::Tx& tx) -> Result<> {
          for (std::size_t i = from; i < to; ++i) CRETO_TRY(add_to_index(tx, size_ + i, batch[i].entry));
          return {};
        },
        with));
  }
  CRETO_TRY(db_.transaction(
      Context(),
      [&](sql::Tx& tx) -> Result<> {
        for (const Pending& entry : batch) CRETO_TRY(tx.exec("DELETE FROM audit_pending WHERE seq = $1", {entry.seq}));
        const auto moved =
            CRETO_TRY(tx.exec("UPDATE audit_state SET size = $1 WHERE one = 1 AND size = $2 AND assigned = $1",
                              {static_cast<std::int64_t>(new_size), static_cast<std::int64_t>(size_)}));
        if (moved != 1) return refusal(ErrorKind::conflict, "another process writes this audit log");
        return {};
      },
      with));
  size_ = assigned_ = new_size;
  appended_.add(batch.size());
  return {};
}

/// A database server that lost its power may have lost the end of our last batch with it: then it is written again, to
/// the same bytes. Whether it is so.
Result<bool> Log::step_back() {
  const auto stored =
      CRETO_TRY(sql::read(db_, Context(), [](sql::Tx& tx) -> Result<std::pair<std::uint64_t, std::uint64_t>> {
        const auto rows = CRETO_TRY(tx.query("SELECT size, assigned FROM audit_state WHERE one = 1"));
        return std::pair(static_cast<std::uint64_t>(rows.front().integer(0)),
                         static_cast<std::uint64_t>(rows.front().integer(1)));
      }));
  if (size_ == previous_size_ || assigned_ != size_ || stored != std::pair(previous_size_, size_)) return false;
  size_ = previous_size_;
  return true;
}

/// Moves one batch into the log; whether there was any.
Result<bool> Log::sequence_once() {
  std::lock_guard lock(sequencing_);
  auto taken = take_batch();
  if (!taken && taken.error().kind() == ErrorKind::conflict) {
    const bool again = CRETO_TRY(step_back());
    if (again) taken = take_batch();
  }
  const auto batch = CRETO_TRY(std::move(taken));
  if (batch.empty()) return false;
  std::vector<Bytes> entries;
  for (const Pending& pending : batch) entries.push_back(to_bytes(pending.entry));
  const std::uint64_t before = size_;
  const auto growth = CRETO_TRY(tlog::grow(before, reader(), entries));
  CRETO_TRY(write_files(growth));
  std::string note = CRETO_TRY(sign(growth.size, growth.root));
  const Signed now{growth.size, growth.root, std::move(note)};
  CRETO_TRY(io::write_durably(files_, options_.directory / "checkpoint", as_bytes(now.note), 0644));
  // First: what is found in the index can be proven.
  set_signed(now);
  CRETO_TRY(finish_batch(batch, now.size));

  // A reader of the checkpoint before this one still finds its partial files; those of the one before that go, unless
  // they are also of a later one.
  const auto keep = partial_files(before);
  const auto current = partial_files(size_);
  for (const std::string& path : partial_files(previous_size_)) {
    if (keep.contains(path) || current.contains(path)) continue;
    if (auto removed = files_.remove(options_.directory / path); !removed) break;
  }
  previous_size_ = before;
  return true;
}

void Log::keep_sequencing() {
  sql::Signal& signal = db_.signal(pending_signal);
  while (!stopping_) {
    const std::uint64_t seen = signal.count();
    auto more = sequence_once();
    {
      std::lock_guard lock(signed_mutex_);
      problem_ = more ? std::string() : more.error().to_string();
    }
    if (!more) {
      failures_.add();
      telemetry_.error("audit", "audit_sequencing_failed", {{"error", more.error().to_string()}});
      signal.wait(signal.count(), trouble_pause);
      continue;
    }
    if (*more) continue;
    signal.wait(seen, poll_interval);
    if (signal.count() == seen || stopping_) continue;
    // Others may follow: wait for them, but no longer than `interval`, nor once a batch is full.
    const Monotonic until = system_clock().monotonic() + options_.interval;
    while (!stopping_ && signal.count() - seen < options_.batch_max) {
      const Nanos left = until - system_clock().monotonic();
      if (left <= Nanos::zero()) break;
      signal.wait(signal.count(), left);
    }
  }
}

// --- reading
// ----------------------------------------------------------------------------------------------------------

Result<AuditPage> Log::query(const Context& ctx, const AuditFilter& filter) {
  if (filter.limit == 0 || filter.limit > limit_max) {
    return refusal(ErrorKind::invalid_input, fmt::format("limit must be 1 to {}", limit_max));
  }
  std::string sql = "SELECT e.idx, e.entry FROM audit_entries e WHERE e.org = $1";
  std::vector<sql::Value> parameters{ctx.org};
  const auto add = [&](sql::Value value) {
    parameters.push_back(std::move(value));
    return parameters.size();
  };
  const auto text_filter = [&](std::string_view column, const std::optional<std::string>& wanted) {
    if (!wanted) return;
    if (wanted->ends_with('*')) {
      const auto prefix = wanted->substr(0, wanted->size() - 1);
      if (prefix.empty()) return;
      sql += fmt::format(" AND substr({0}, 1, length(CAST(${1} AS TEXT))) = ${1}", column, add(prefix));
    } else {
      sql += fmt::format(" AND {} = ${}", column, add(*wanted));
    }
  };
  if (filter.who) {
    sql +=
        fmt::format(" AND e.idx IN (SELECT w.idx FROM audit_who w WHERE w.org = $1 AND w.who = ${})", add(*filter.who));
  }
  text_filter("e.what", filter.what);
  text_filter("e.resource", filter.resource);
  if (filter.outcome) sql += fmt::format(" AND e.outcome = ${}", add(to_string(*filter.outcome)));
  if (filter.from) sql += fmt::format(" AND e.at_ns >= ${}", add(*filter.from));
  if (filter.until) sql += fmt::format(" AND e.at_ns < ${}", add(*filter.until));
  if (!filter.cursor.empty()) {
    std::int64_t cursor = 0;
    const char* end = filter.cursor.data() + filter.cursor.size();
    const auto parsed = std::from_chars(filter.cursor.data(), end, cursor);
    if (parsed.ec != std::errc() || parsed.ptr != end || cursor < 0) {
      return refusal(ErrorKind::invalid_input, "cursor is not one that a page gave");
    }
    sql += fmt::format(" AND e.idx {} ${}", filter.newest_first ? '<' : '>', add(cursor));
  }
  sql += fmt::format(" ORDER BY e.idx {} LIMIT ${}", filter.newest_first ? "DESC" : "ASC", add(filter.limit + 1));

  const auto rows = CRETO_TRY(sql::read(db_, ctx, [&](sql::Tx& tx) { return tx.query(sql, parameters); }));
  AuditPage page;
  for (const auto row : rows) {
    if (page.entries.size() == filter.limit) {
      page.next_cursor = std::to_string(page.entries.back().index);
      break;
    }
    auto parsed = CRETO_TRY(parse_entry(row.text(1)));
    page.entries.push_back({static_cast<std::uint64_t>(row.integer(0)), std::move(parsed.record), row.text(1)});
  }
  return page;
}

Error Log::not_here(sql::Tx& tx, const Context& ctx, const AuditId& id) {
  const auto pending = tx.query("SELECT 1 FROM audit_pending WHERE org = $1 AND id = $2", {ctx.org, id.to_string()});
  if (!pending) return pending.error();
  if (pending->empty()) {
    return refusal(ErrorKind::not_found, fmt::format("there is no audit record `{}`", id.to_string()));
  }
  return refusal(ErrorKind::unavailable, fmt::format("audit record `{}` is not yet in the log", id.to_string()))
      .with_retry_after(sequencing_soon);
}

Result<AuditEntry> Log::get(const Context& ctx, const AuditId& id) {
  return sql::read(db_, ctx, [&](sql::Tx& tx) -> Result<AuditEntry> {
    const auto rows =
        CRETO_TRY(tx.query("SELECT idx, entry FROM audit_entries WHERE org = $1 AND id = $2 ORDER BY idx LIMIT 1",
                           {ctx.org, id.to_string()}));
    if (rows.empty()) return not_here(tx, ctx, id);
    auto parsed = CRETO_TRY(parse_entry(rows.front().text(1)));
    return AuditEntry{static_cast<std::uint64_t>(rows.front().integer(0)), std::move(parsed.record),
                      rows.front().text(1)};
  });
}

Result<InclusionProof> Log::proof(const Context& ctx, const AuditId& id) {
  const auto entry = CRETO_TRY(get(ctx, id));
  // Two tries: a batch that is signed meanwhile may remove the partial files of the checkpoint we hold.
  for (int attempt = 1;; ++attempt) {
    const Signed now = signed_now();
    if (entry.index >= now.size) return refusal(ErrorKind::unavailable, "the checkpoint over it is being written");
    tlog::TileNodes nodes(reader(), now.size);
    auto path = tlog::inclusion_path(entry.index, now.size, nodes.reader());
    if (!path && attempt == 1 && signed_now().size != now.size) continue;
    if (!path) return std::move(path).error();
    return InclusionProof{id,       entry.index,      now.size, tlog::leaf_hash(as_bytes(entry.bytes)),
                          now.root, std::move(*path), now.note};
  }
}

}  // namespace

Result<std::unique_ptr<AuditLog>> create_audit_log(sql::Database& db, io::FileSystem& files, const Clock& clock,
                                                   Telemetry& telemetry, AuditKeys keys, AuditOptions options) {
  const bool bad_origin = options.origin.empty() || options.origin.size() > 255 || !is_valid_utf8(options.origin) ||
                          std::any_of(options.origin.begin(), options.origin.end(),
                                      [](char c) { return c == '+' || static_cast<unsigned char>(c) <= ' '; });
  if (bad_origin)
    return refusal(ErrorKind::invalid_input, "the audit log's origin must be a name without space and plus");
  if (keys.ed25519.algorithm() != crypto::SignatureAlgorithm::ed25519 ||
      keys.ml_dsa_65.algorithm() != crypto::SignatureAlgorithm::ml_dsa_65) {
    return refusal(ErrorKind::invalid_input, "the audit log signs with an ed25519 and an ml-dsa-65 key");
  }
  CRETO_ASSERT(options.batch_max > 0);
  auto log = std::make_unique<Log>(db, files, clock, telemetry, std::move(keys), std::move(options));
  CRETO_TRY(log->open());
  return std::unique_ptr<AuditLog>(std::move(log));
}

Result<tlog::VerifiedLog> verify_directory(const std::filesystem::path& directory, std::string_view key_file,
                                           const std::function<Result<>(std::string_view)>& on_record) {
  const auto keys = CRETO_TRY(tlog::parse_key_file(key_file));
  return tlog::verify_log(
      tlog::files_below(io::real_files(), directory), keys, [&](std::uint64_t index, BytesView entry) -> Result<> {
        if (auto parsed = parse_entry(as_text(entry)); !parsed)
          return refusal(ErrorKind::invalid_input,
                         fmt::format("entry {} is not an audit record: {}", index, parsed.error().message()));
        return on_record ? on_record(as_text(entry)) : Result<>();
      });
}

}  // namespace creto::audit
