#include "decisions/decision_keeper.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "creto/audit/audit_log.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/random.h"
#include "decisions/decision_files.h"

namespace creto::authz {
namespace {

/// Hashed at once, so that blocks do not wait long.
constexpr std::size_t hash_bytes = 1 << 20;
constexpr Nanos purge_interval = std::chrono::minutes(1);
constexpr Nanos retry_interval = std::chrono::seconds(1);

constexpr sql::Migration migrations[] = {{1, "segments", R"(
CREATE TABLE authz_decision_segments (
  log TEXT NOT NULL, sequence BIGINT NOT NULL, sha3_256 TEXT NOT NULL, bytes BIGINT NOT NULL, decisions BIGINT NOT NULL,
  last_at BIGINT NOT NULL, purged BIGINT NOT NULL CHECK (purged IN (0, 1)), PRIMARY KEY (log, sequence))
)"}};

}  // namespace

SegmentKeeper::SegmentKeeper(sql::Database& database, io::FileSystem& files, const Clock& clock,
                             DecisionLogProbe& probe, const DecisionLogOptions& options)
    : database_(database), files_(files), clock_(clock), probe_(probe), options_(options) {}

Result<std::unique_ptr<SegmentKeeper>> SegmentKeeper::open(sql::Database& database, io::FileSystem& files,
                                                           const Clock& clock, DecisionLogProbe& probe,
                                                           const DecisionLogOptions& options) {
  auto keeper = std::unique_ptr<SegmentKeeper>(new SegmentKeeper(database, files, clock, probe, options));
  CRETO_TRY(keeper->start());
  return keeper;
}

Result<> SegmentKeeper::start() {
  CRETO_TRY(sql::migrate(database_, "authz_decisions", migrations));
  CRETO_TRY(audit::prepare(database_));
  CRETO_TRY(files_.create_directories(options_.directory));
  const auto name = options_.directory / decision_log_name_file;
  if (!CRETO_TRY(files_.exists(name))) {
    const auto drawn = crypto::random_array<16>();
    CRETO_TRY(io::write_durably(files_, name, as_bytes(hex(drawn) + "\n")));
  }
  log_ = CRETO_TRY(read_log_name(files_, options_.directory));
  const std::lock_guard lock(keeping_);
  CRETO_TRY(recover());
  CRETO_TRY(purge());
  const Monotonic now = clock_.monotonic();
  next_sync_ = now + options_.sync_interval;
  next_purge_ = now + purge_interval;
  next_seal_ = now;
  if (options_.write_in_background) thread_ = std::thread([this] { run(); });
  return {};
}

SegmentKeeper::~SegmentKeeper() {
  {
    const std::lock_guard lock(waiting_mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void SegmentKeeper::take(Block block) {
  behind_bytes_.fetch_add(block.bytes.size(), std::memory_order_relaxed);
  {
    const std::lock_guard lock(waiting_mutex_);
    waiting_.push_back(std::move(block));
  }
  wake_.notify_one();
}

void SegmentKeeper::run() {
  while (true) {
    Nanos rest{};
    {
      const std::lock_guard lock(keeping_);
      const auto step = [&](std::string_view name, const Result<>& done) {
        if (!done) probe_.failed(name, done.error());
        return done.has_value();
      };
      bool well = step("write", write_waiting());
      const Monotonic now = clock_.monotonic();
      if (well && now >= next_sync_) {
        next_sync_ = now + options_.sync_interval;
        if (current_) well = step("sync", sync(*current_));
      }
      stuck_.store(!well, std::memory_order_relaxed);
      if (now >= next_seal_ && !step("seal", seal(false))) next_seal_ = now + retry_interval;
      if (now >= next_purge_) {
        next_purge_ = now + purge_interval;
        (void)step("purge", purge());
      }
      const bool more_to_seal = !closed_.empty() && now >= next_seal_;
      if (!more_to_seal) rest = well ? std::min(options_.sync_interval, retry_interval) : retry_interval;
    }
    std::unique_lock lock(waiting_mutex_);
    if (stopping_) return;
    const bool stuck = is_stuck();
    (void)wake_.wait_for(lock, rest, [&] { return stopping_ || (!stuck && !waiting_.empty()); });
  }
}

Result<> SegmentKeeper::write_out() {
  const std::lock_guard lock(keeping_);
  auto done = write_waiting();
  if (done && current_) done = sync(*current_);
  stuck_.store(!done, std::memory_order_relaxed);
  return done;
}

Result<> SegmentKeeper::settle() {
  CRETO_TRY(write_out());
  const std::lock_guard lock(keeping_);
  CRETO_TRY(seal(true));
  return purge();
}

// --- one segment

Result<> SegmentKeeper::write_waiting() {
  while (true) {
    const Block* next = nullptr;
    {
      const std::lock_guard lock(waiting_mutex_);
      if (waiting_.empty()) return {};
      next = &waiting_.front();  // stays at its place while others are added
    }
    CRETO_TRY(write(*next));
    behind_bytes_.fetch_sub(next->bytes.size(), std::memory_order_relaxed);
    const std::lock_guard lock(waiting_mutex_);
    waiting_.pop_front();
  }
}

Result<> SegmentKeeper::write(const Block& block) {
  Segment& segment = *block.segment;
  current_ = block.segment;
  if (!segment.journal_ && !segment.renamed_ && !segment.is_lost()) CRETO_TRY(open_journal(segment));
  if (segment.is_lost()) {
    current_ = nullptr;
    probe_.failed("write",
                  Error(Product::platform, ErrorKind::hash_mismatch,
                        fmt::format("{} decisions are lost with what was written before them", block.decisions)));
    return {};
  }
  // Unless it was written whole by an append that then failed.
  if (block.number >= segment.blocks_) {
    if (auto done = segment.journal_->append(block.bytes); !done) {
      segment.journal_.reset();
      return done;
    }
    ++segment.blocks_;
    segment.synced_ = false;
    probe_.wrote(block.decisions, block.bytes.size());
  }
  return block.end ? close(segment, *block.end) : Result<>();
}

/// A new file, or after a failure the old one, with a torn tail cut off.
Result<> SegmentKeeper::open_journal(Segment& segment) {
  std::uint64_t blocks = 0;
  segment.journal_ = CRETO_TRY(io::Journal::open(files_, path(segment.sequence, true), [&](BytesView) {
    ++blocks;
    return Result<>();
  }));
  if (blocks >= segment.blocks_) {
    segment.blocks_ = blocks;
    return {};
  }
  // Nothing that follows can be read without what is gone: the file ends here, as after a crash.
  segment.journal_.reset();
  segment.lost_ = true;
  return recover();
}

Result<> SegmentKeeper::sync(Segment& segment) {
  if (segment.synced_ || segment.is_lost()) return {};
  if (!segment.journal_) CRETO_TRY(open_journal(segment));
  if (segment.is_lost()) return {};
  auto done = segment.journal_->sync();
  if (!done) {
    segment.doubtful_ = true;
    segment.journal_.reset();
    return done;
  }
  segment.synced_ = true;
  return {};
}

/// May be called again where it failed.
Result<> SegmentKeeper::close(Segment& segment, Summary summary) {
  if (!segment.renamed_) {
    CRETO_TRY(sync(segment));
    if (segment.is_lost()) return {};
    CRETO_TRY(files_.rename(path(segment.sequence, true), path(segment.sequence, false)));
    segment.renamed_ = true;
    segment.journal_.reset();
  }
  CRETO_TRY(files_.sync_directory(options_.directory));
  const std::uint64_t bytes = CRETO_TRY(files_.size(path(segment.sequence, false)));
  summary.recovered = summary.recovered || segment.is_doubtful();
  closed_.push_back({.sequence = segment.sequence, .bytes = bytes, .summary = summary, .hasher = {}});
  current_ = nullptr;
  return {};
}

// --- all segments

std::filesystem::path SegmentKeeper::path(std::uint64_t sequence, bool open) const {
  return options_.directory / segment_name(sequence, open);
}

/// Finishes open files that nobody writes, and finds closed ones that were not entered.
Result<> SegmentKeeper::recover() {
  const auto segments = CRETO_TRY(list_segments(files_, options_.directory));
  std::map<std::int64_t, bool> entered;  // and whether it was purged
  CRETO_TRY(database_.read(own_context(), [&](sql::Tx& tx) -> Result<> {
    const auto rows =
        CRETO_TRY(tx.query("SELECT sequence, purged FROM authz_decision_segments WHERE log = $1", {hex(log_)}));
    entered.clear();
    for (const sql::Row row : rows) entered[row.integer(0)] = row.integer(1) != 0;
    return {};
  }));
  if (!entered.empty())
    next_sequence_ = std::max(next_sequence_.load(), static_cast<std::uint64_t>(entered.rbegin()->first) + 1);
  std::map<std::uint64_t, bool> present;
  for (const SegmentName& segment : segments) {
    next_sequence_ = std::max(next_sequence_.load(), segment.sequence + 1);
    present[segment.sequence] = segment.open;
  }
  for (const auto& [sequence, purged] : entered) {
    const auto number = static_cast<std::uint64_t>(sequence);
    if (purged) {
      CRETO_TRY(files_.remove(path(number, false)));
      present.erase(number);
    } else if (!present.contains(number)) {
      probe_.missing(path(number, false).string());
    }
  }
  for (const auto& [sequence, open] : present) {
    const bool waits = std::any_of(closed_.begin(), closed_.end(),
                                   [&, number = sequence](const Closed& closed) { return closed.sequence == number; });
    if (waits || entered.contains(static_cast<std::int64_t>(sequence))) continue;
    Result<> whole;
    if (open) {
      whole = finish_open_segment(files_, options_.directory, log_, sequence, clock_.now());
      if (whole) probe_.recovered(path(sequence, true).string());
    }
    if (whole) {
      auto closed = describe(sequence);
      if (closed) closed_.push_back(*std::move(closed));
      if (!closed) whole = std::move(closed).error();
    }
    if (whole) continue;
    const ErrorKind kind = whole.error().kind();
    if (kind != ErrorKind::hash_mismatch && kind != ErrorKind::invalid_input) return whole;
    // No crash leaves this: it is kept for whoever looks into it, and the audit log says so.
    probe_.failed("recover", whole.error());
    CRETO_TRY(enter_damaged(sequence, whole.error()));
    CRETO_TRY(files_.rename(path(sequence, open), options_.directory / fmt::format("{:010}.damaged", sequence)));
  }
  return {};
}

Result<SegmentKeeper::Closed> SegmentKeeper::describe(std::uint64_t sequence) {
  const SegmentFile file = CRETO_TRY(SegmentFile::read(files_, path(sequence, false)));
  SegmentReader reader;
  CRETO_TRY(file.each(reader, [](const SegmentReader::Decided&) { return Result<>(); }));
  Summary summary{.decisions = reader.decisions(),
                  .refused = reader.refused(),
                  .first = reader.first_at(),
                  .last = reader.last_at(),
                  .recovered = reader.recovered()};
  if (summary.decisions == 0) summary.first = summary.last = clock_.now();
  return Closed{.sequence = sequence, .bytes = file.size(), .summary = summary, .hasher = {}};
}

/// Enters closed segments: all of them, or goes on a little with the first.
Result<> SegmentKeeper::seal(bool all) {
  while (!closed_.empty()) {
    Closed& closed = closed_.front();
    if (!closed.hasher) closed.hasher = std::make_shared<crypto::Hasher>(crypto::HashAlgorithm::sha3_256);
    const Bytes part = CRETO_TRY(files_.read_at(path(closed.sequence, false), closed.hashed, hash_bytes));
    closed.hasher->update(part);
    closed.hashed += part.size();
    if (part.size() == hash_bytes) {
      if (all) continue;
      break;
    }
    const Hash256 hash = closed.hasher->finish();
    closed.hashed = 0;  // where entering fails, all of it again
    CRETO_TRY(enter(closed, hash));
    probe_.sealed();
    closed_.pop_front();
    if (!all) break;
  }
  return {};
}

Context SegmentKeeper::own_context() const {
  Context ctx = Context::of_service(Identity::service("authz").value());
  ctx.org = options_.org;
  return ctx;
}

Result<> SegmentKeeper::enter(const Closed& closed, const Hash256& hash) {
  const Context ctx = own_context();
  const std::string log = hex(log_);
  return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    const auto sequence = static_cast<std::int64_t>(closed.sequence);
    CRETO_TRY(
        tx.exec("INSERT INTO authz_decision_segments (log, sequence, sha3_256, bytes, decisions, last_at, purged) "
                "VALUES ($1, $2, $3, $4, $5, $6, 0)",
                {log, sequence, hex(hash), static_cast<std::int64_t>(closed.bytes),
                 static_cast<std::int64_t>(closed.summary.decisions), unix_ns(closed.summary.last)}));
    auto record =
        audit::AuditRecord::of(ctx, std::string(segment_sealed_event), segment_resource(log_, closed.sequence));
    record.metadata = Json{{"sha3_256", hex(hash)},
                           {"bytes", closed.bytes},
                           {"decisions", closed.summary.decisions},
                           {"refused", closed.summary.refused},
                           {"first", to_rfc3339(closed.summary.first)},
                           {"last", to_rfc3339(closed.summary.last)},
                           {"recovered", closed.summary.recovered}}
                          .dump();
    CRETO_TRY(audit::record(tx, ctx, std::move(record)));
    return {};
  });
}

Result<> SegmentKeeper::enter_damaged(std::uint64_t sequence, const Error& why) {
  const Context ctx = own_context();
  return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    auto record = audit::AuditRecord::of(ctx, std::string(segment_damaged_event), segment_resource(log_, sequence),
                                         audit::Outcome::failure);
    record.outcome_detail = why.to_string().substr(0, 1024);
    CRETO_TRY(audit::record(tx, ctx, std::move(record)));
    return {};
  });
}

Result<> SegmentKeeper::purge() {
  struct Row {
    std::int64_t sequence, bytes, last_at;
    std::string hash;
  };
  const Context ctx = own_context();
  const std::string log = hex(log_);
  std::vector<Row> kept;
  CRETO_TRY(database_.read(ctx, [&](sql::Tx& tx) -> Result<> {
    const auto rows =
        CRETO_TRY(tx.query("SELECT sequence, bytes, last_at, sha3_256 FROM authz_decision_segments "
                           "WHERE log = $1 AND purged = 0 ORDER BY sequence",
                           {log}));
    kept.clear();
    for (const sql::Row row : rows) kept.push_back({row.integer(0), row.integer(1), row.integer(2), row.text(3)});
    return {};
  }));
  std::uint64_t total = 0;
  for (const Row& row : kept) total += static_cast<std::uint64_t>(row.bytes);
  const std::int64_t oldest = unix_ns(clock_.now() - options_.age_max);
  for (const Row& row : kept) {
    const bool too_old = row.last_at < oldest;
    if (!too_old && total <= options_.bytes_max) break;
    total -= static_cast<std::uint64_t>(row.bytes);
    CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec("UPDATE authz_decision_segments SET purged = 1 WHERE log = $1 AND sequence = $2",
                        {log, row.sequence}));
      auto record = audit::AuditRecord::of(ctx, std::string(segment_purged_event),
                                           segment_resource(log_, static_cast<std::uint64_t>(row.sequence)));
      record.metadata = Json{{"sha3_256", row.hash}, {"for", too_old ? "age" : "size"}}.dump();
      CRETO_TRY(audit::record(tx, ctx, std::move(record)));
      return {};
    }));
    // Where this fails, `recover` does it: the record stands.
    CRETO_TRY(files_.remove(path(static_cast<std::uint64_t>(row.sequence), false)));
    probe_.purged();
  }
  return {};
}

}  // namespace creto::authz
