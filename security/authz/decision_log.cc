#include "decision_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "creto/audit/audit_log.h"
#include "creto/common/assert.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/random.h"
#include "creto/io/sql.h"
#include "decision_files.h"

namespace creto::authz {
namespace {

/// Between two writes; a block is what a crash loses whole.
constexpr std::size_t block_bytes = 256 << 10;
/// Of those that determined one decision.
constexpr std::size_t policies_max = 1'000;
/// Hashed at once, so that what waits in the rings does not wait long.
constexpr std::size_t hash_bytes = 1 << 20;
constexpr Nanos purge_interval = std::chrono::minutes(1);
constexpr Nanos retry_interval = std::chrono::seconds(1);

constexpr sql::Migration migrations[] = {{1, "segments", R"(
CREATE TABLE authz_decision_segments (
  log TEXT NOT NULL, sequence BIGINT NOT NULL, sha3_256 TEXT NOT NULL, bytes BIGINT NOT NULL, decisions BIGINT NOT NULL,
  last_at BIGINT NOT NULL, purged BIGINT NOT NULL CHECK (purged IN (0, 1)), PRIMARY KEY (log, sequence))
)"}};

Error error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

/// What lies in a ring: this, the key, the arguments' hash, `more_bytes` of further things, and zeros up to a word.
struct Head {
  std::uint32_t size;
  std::uint32_t key_bytes;
  std::int64_t at;
  std::uint64_t entities;
  const SourceEntities* loaded;        ///< the record's own
  const cedar::PlannedPolicy* policy;  ///< lives as long as the state that the key names is kept
  std::uint32_t more_bytes;
  std::uint32_t more_policies;
  std::uint8_t outcome, said, by, flags;
};
static_assert(sizeof(Head) == 56);
constexpr std::uint8_t cached_flag = 1, left_out_flag = 2, arguments_flag = 4;

template <class T>
  requires std::is_trivially_copyable_v<T>
void put(Bytes& out, T value) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(&value);
  out.insert(out.end(), bytes, bytes + sizeof(value));
}
void put_text(Bytes& out, std::string_view text) {
  put(out, static_cast<std::uint32_t>(text.size()));
  out.insert(out.end(), text.begin(), text.end());
}
template <class T>
T take(BytesView& from) {
  T value{};
  CRETO_ASSERT(from.size() >= sizeof(value));
  std::memcpy(&value, from.data(), sizeof(value));
  from = from.subspan(sizeof(value));
  return value;
}
std::string_view take_text(BytesView& from) {
  const auto size = take<std::uint32_t>(from);
  CRETO_ASSERT(from.size() >= size);
  const std::string_view text = as_text(from.first(size));
  from = from.subspan(size);
  return text;
}

std::uint64_t hash_value(const Value& value, std::uint64_t seed);
std::uint64_t hash_members(const Attributes& members, std::uint64_t seed) {
  seed = fold(seed ^ members.size(), 0xe7037ed1a0b428dbu);
  for (const auto& [name, member] : members) seed = hash_value(member, hash_text(name, seed));
  return seed;
}
std::uint64_t hash_uid(const EntityUid& uid, std::uint64_t seed) {
  return hash_text(uid.id, hash_text(uid.type, seed));
}
std::uint64_t hash_value(const Value& value, std::uint64_t seed) {
  seed = fold(seed ^ value.rep().index(), 0xa0761d6478bd642fu);
  if (const auto* v = value.as<std::string>()) return hash_text(*v, seed);
  if (const auto* v = value.as<EntityUid>()) return hash_uid(*v, seed);
  if (const auto* v = value.as_record()) return hash_members(*v, seed);
  if (const auto* elements = value.as_set()) {
    seed = fold(seed ^ elements->size(), 0xe7037ed1a0b428dbu);
    for (const Value& element : *elements) seed = hash_value(element, seed);
    return seed;
  }
  std::uint64_t word = 0;
  if (const auto* v = value.as<bool>()) word = *v;
  if (const auto* v = value.as<std::int64_t>()) word = static_cast<std::uint64_t>(*v);
  if (const auto* v = value.as<DecimalValue>()) word = static_cast<std::uint64_t>(v->ten_thousandths);
  if (const auto* v = value.as<DatetimeValue>()) word = static_cast<std::uint64_t>(v->unix_ms);
  if (const auto* v = value.as<DurationValue>()) word = static_cast<std::uint64_t>(v->ms);
  if (const auto* v = value.as<IpValue>()) {
    word = static_cast<std::uint64_t>(v->v6) << 8 | v->prefix;
    seed = hash_text({reinterpret_cast<const char*>(v->address.data()), v->address.size()}, seed);
  }
  return fold(seed ^ word, 0xd6e8feb86659fd93u);
}

/// The rings of one thread, one for each log it has checked with.
struct ThreadRings {
  struct One {
    std::uint64_t log;
    std::shared_ptr<DecisionRing> ring;
  };
  std::vector<One> all;
  ~ThreadRings() {
    for (const One& one : all) one.ring->abandon();
  }
};
thread_local ThreadRings thread_rings;
struct LastRing {
  std::uint64_t log = 0;
  DecisionRing* ring = nullptr;
};
thread_local LastRing last_ring;

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

Result<> append_all(io::Journal& journal, const std::vector<Bytes>& blocks) {
  for (const Bytes& block : blocks) CRETO_TRY(journal.append(block));
  return {};
}

crypto::Hasher& hasher_of(const std::shared_ptr<void>& hasher) { return *static_cast<crypto::Hasher*>(hasher.get()); }

}  // namespace

std::uint64_t name_of(const SourceEntities& entities) {
  // Drawn anew by each process: whoever chooses attributes cannot choose two sets of one name.
  static const auto seed = [] {
    std::uint64_t drawn = 0;
    const auto bytes = crypto::random_array<sizeof(drawn)>();
    std::memcpy(&drawn, bytes.data(), sizeof(drawn));
    return drawn;
  }();
  std::uint64_t name = seed;
  for (const Entity& entity : entities) {
    name = hash_members(entity.tags, hash_members(entity.attributes, hash_uid(entity.uid, name)));
    for (const EntityUid& parent : entity.parents) name = hash_uid(parent, name);
    name = fold(name ^ entity.parents.size(), 0x8ebc6af09c88c6e3u);
  }
  return name == 0 ? 1 : name;
}

void Trail::add_entities(SourceEntities given) {
  if (given.empty()) return;
  entities = name_of(given);
  make_further().loaded = std::make_unique<const SourceEntities>(std::move(given));
}

void Trail::add_policies(const cedar::Evaluation& evaluation, const PolicyDecision& result) {
  const auto add = [&](const cedar::PlannedPolicy* one) {
    (policy ? make_further().policies.emplace_back() : policy) = one;
  };
  const auto add_named = [&](const PolicyId& id) {
    for (const auto* forbid : evaluation.forbids)
      if (forbid->id == id) return add(forbid);
    for (const auto& [failed, error] : evaluation.errors)
      if (failed->id == id) return add(failed);
  };
  if (const auto* deny = std::get_if<Deny>(&result.decision)) {
    if (!deny->policy.empty()) add_named(deny->policy);
  } else if (const auto* oversight = std::get_if<RequiresOversight>(&result.decision)) {
    for (const auto& requirement : oversight->requirements) add_named(requirement.forbid);
  } else {
    add(determining_permit(evaluation));
  }
  for (const PolicyId& id : result.lifted) add_named(id);
}

/// The names and units of what is measured.
class DecisionLog::Probe {
 public:
  explicit Probe(Telemetry& telemetry)
      : telemetry_(telemetry),
        decisions_(telemetry.counter("authz_decision_log_decisions_total", "decisions written to the decision log")),
        bytes_(telemetry.counter("authz_decision_log_bytes_total", "bytes written to the decision log")),
        segments_(
            telemetry.counter("authz_decision_log_segments_total", "segments sealed and entered in the audit log")),
        purged_(telemetry.counter("authz_decision_log_purged_total", "segments removed for age or size")),
        refused_(telemetry.counter("authz_decision_log_refused_total",
                                   "checks denied because the decision log could not take their decision")),
        failures_(telemetry.counter("authz_decision_log_failures_total", "writes to the decision log that failed")) {}

  void wrote(std::uint64_t decisions, std::size_t bytes) {
    decisions_.add(decisions);
    bytes_.add(bytes);
  }
  void sealed() { segments_.add(); }
  void purged() { purged_.add(); }
  void refused() { refused_.add(); }
  void failed(std::string_view step, const Error& error) {
    failures_.add();
    telemetry_.error("authz", "decision_log_failed", {{"step", step}, {"error", error.to_string()}});
  }
  void recovered(const std::string& file) { telemetry_.warn("authz", "decision_log_recovered", {{"file", file}}); }
  void missing(const std::string& file) { telemetry_.error("authz", "decision_log_segment_missing", {{"file", file}}); }

 private:
  Telemetry& telemetry_;
  Counter& decisions_;
  Counter& bytes_;
  Counter& segments_;
  Counter& purged_;
  Counter& refused_;
  Counter& failures_;
};

struct DecisionLog::Segment {
  Segment(std::unique_ptr<io::Journal> journal_, const ByteArray<16>& log, std::uint64_t sequence_, Instant created,
          Monotonic began_)
      : journal(std::move(journal_)), writer(log, sequence_, created), sequence(sequence_), began(began_) {}

  std::unique_ptr<io::Journal> journal;
  SegmentWriter writer;
  const std::uint64_t sequence;
  const Monotonic began;
  std::uint64_t written = 0;  ///< decisions
  std::uint64_t refused = 0;
  Instant first = Instant::max(), last = Instant::min();
  bool synced = true;
};

DecisionLog::DecisionLog(sql::Database& database, io::FileSystem& files, const Clock& clock, Telemetry& telemetry,
                         DecisionLogOptions options, std::size_t source_versions, Nanos note_ttl)
    : database_(database),
      files_(files),
      clock_(clock),
      options_(std::move(options)),
      source_versions_(source_versions),
      note_ttl_(note_ttl),
      id_(next_id()),
      probe_(std::make_unique<Probe>(telemetry)) {}

Result<std::unique_ptr<DecisionLog>> DecisionLog::open(sql::Database& database, io::FileSystem& files,
                                                       const Clock& clock, Telemetry& telemetry,
                                                       DecisionLogOptions options, std::size_t source_versions,
                                                       Nanos note_ttl) {
  if (options.segment_bytes > 1 << 30)
    return error(ErrorKind::invalid_input, "decision_log.segment_bytes: at most 1 GiB");
  if (options.ring_bytes < 64 << 10 || options.ring_bytes > 256 << 20)
    return error(ErrorKind::invalid_input, "decision_log.ring_bytes: 64 KiB to 256 MiB");
  if (options.request_bytes_max > options.ring_bytes / 4)
    return error(ErrorKind::invalid_input, "decision_log.request_bytes_max: at most a quarter of ring_bytes");
  auto log = std::unique_ptr<DecisionLog>(
      new DecisionLog(database, files, clock, telemetry, std::move(options), source_versions, note_ttl));
  CRETO_TRY(log->start());
  return log;
}

Result<> DecisionLog::start() {
  CRETO_TRY(sql::migrate(database_, "authz_decisions", migrations));
  CRETO_TRY(audit::prepare(database_));
  CRETO_TRY(files_.create_directories(options_.directory));
  const auto name = options_.directory / decision_log_name_file;
  if (!CRETO_TRY(files_.exists(name))) {
    const auto drawn = crypto::random_array<16>();
    CRETO_TRY(io::write_durably(files_, name, as_bytes(hex(drawn) + "\n")));
  }
  log_ = CRETO_TRY(read_log_name(files_, options_.directory));
  const std::lock_guard lock(consuming_);
  CRETO_TRY(recover());
  CRETO_TRY(purge());
  const Monotonic now = clock_.monotonic();
  next_sync_ = now + options_.sync_interval;
  next_purge_ = now + purge_interval;
  next_seal_ = now;
  if (options_.write_in_background) thread_ = std::thread([this] { run(); });
  return {};
}

DecisionLog::~DecisionLog() {
  {
    const std::lock_guard lock(waiting_mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  room_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (const auto done = rotate(); !done) probe_->failed("close", done.error());
  // What could not be written still owns its entities.
  for (const auto& ring : rings_) {
    ring->rewind();
    for (auto record = ring->next(); !record.empty(); record = ring->next()) {
      Head head;
      std::memcpy(&head, record.data(), sizeof(head));
      const std::unique_ptr<const SourceEntities> own(head.loaded);
    }
    ring->release();
  }
}

void DecisionLog::publish(const std::string& org, std::shared_ptr<const OrgState> state) {
  const std::lock_guard lock(states_mutex_);
  const std::int64_t version = state->version;
  states_[org][version].push_back(std::move(state));
}

// --- the deciding thread
// ---------------------------------------------------------------------------------------------------------

DecisionRing& DecisionLog::ring() {
  if (last_ring.log == id_) return *last_ring.ring;
  auto& all = thread_rings.all;
  auto at = std::find_if(all.begin(), all.end(), [this](const auto& one) { return one.log == id_; });
  if (at == all.end()) {
    // Those of logs that are gone.
    std::erase_if(all, [](const auto& one) { return one.ring.use_count() == 1; });
    auto fresh = std::make_shared<DecisionRing>(options_.ring_bytes);
    {
      const std::lock_guard lock(rings_mutex_);
      rings_.push_back(fresh);
    }
    all.push_back({id_, std::move(fresh)});
    at = all.end() - 1;
  }
  last_ring = {id_, at->ring.get()};
  return *last_ring.ring;
}

std::byte* DecisionLog::wait_for_room(DecisionRing& ring, std::size_t bytes) {
  std::byte* place = nullptr;
  std::unique_lock lock(waiting_mutex_);
  ++waiting_;
  woken_ = true;
  wake_.notify_one();
  (void)room_.wait_for(lock, options_.wait_max, [&] {
    place = ring.reserve(bytes);
    return place != nullptr || stopping_ || stuck_.load(std::memory_order_relaxed);
  });
  --waiting_;
  return place;
}

bool DecisionLog::append(Trail& trail, const CheckRequest& request, std::size_t said, const Decision& decision) {
  const CacheKey* key = &*trail.key;
  std::optional<CacheKey> shorter;
  const bool left_out = key->written().size() > options_.request_bytes_max;
  if (left_out) {
    // So that a request that is long elsewhere too is logged by its beginning.
    const auto cut = [&](std::string& text) { text.resize(std::min(text.size(), options_.request_bytes_max / 16)); };
    CheckRequest part = request;
    part.context.clear();
    part.chain.resize(std::min(part.chain.size(), delegation_chain_max_depth), part.principal);
    cut(part.action);
    cut(part.resource.type);
    cut(part.resource.id);
    const DecodedKey decoded = DecodedKey::of(key->written(), source_versions_);
    const std::array<std::uint64_t, 8> versions{};
    shorter.emplace(decoded.org, decoded.state_version, std::span(versions).first(source_versions_), part);
    key = &*shorter;
  }

  const BytesView written = key->written();
  const bool has_arguments = request.arguments_hash != Hash256{};
  std::span<const cedar::PlannedPolicy* const> policies;
  if (trail.further)
    policies = std::span(trail.further->policies).first(std::min(policies_max, trail.further->policies.size()));
  // Only what did not come from the cache has more to say, so only that may allocate.
  thread_local Bytes more;
  more.clear();
  if (!trail.cached || trail.by != DecidedBy::policies) {
    for (const auto* policy : policies) put(more, policy);
    const std::span<const OverrideGrant::Lift> lifts =
        trail.further ? std::span(trail.further->lifts) : std::span<OverrideGrant::Lift>();
    put(more, static_cast<std::uint32_t>(lifts.size()));
    for (const auto& lift : lifts) {
      put_text(more, lift.forbid);
      put_text(more, lift.oversight_policy);
    }
    std::string reason;
    if (const auto* deny = std::get_if<Deny>(&decision)) {
      if (trail.by != DecidedBy::policies) reason = deny->reason.substr(0, 512);
    } else if (const auto* oversight = std::get_if<RequiresOversight>(&decision)) {
      reason = oversight_names(*oversight).substr(0, reason_bytes_max);
    } else if (const auto* quota = std::get_if<QuotaExceeded>(&decision)) {
      reason = quota->quota_id;
    }
    put_text(more, reason);
  }
  const std::size_t content = sizeof(Head) + written.size() + (has_arguments ? 32 : 0) + more.size();
  const std::size_t size = (content + 7) / 8 * 8;
  DecisionRing& ring = this->ring();
  std::byte* place = size <= ring.record_bytes_max() ? ring.reserve(size) : nullptr;
  if (!place && size <= ring.record_bytes_max()) place = wait_for_room(ring, size);
  if (!place) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    probe_->refused();
    return false;
  }
  const Head head{.size = static_cast<std::uint32_t>(size),
                  .key_bytes = static_cast<std::uint32_t>(written.size()),
                  .at = trail.at.time_since_epoch().count(),
                  .entities = trail.entities,
                  .loaded = trail.further ? trail.further->loaded.release() : nullptr,
                  .policy = trail.policy,
                  .more_bytes = static_cast<std::uint32_t>(more.size()),
                  .more_policies = static_cast<std::uint32_t>(policies.size()),
                  .outcome = static_cast<std::uint8_t>(decision.index()),
                  .said = static_cast<std::uint8_t>(said),
                  .by = static_cast<std::uint8_t>(trail.by),
                  .flags = static_cast<std::uint8_t>((trail.cached ? cached_flag : 0) | (left_out ? left_out_flag : 0) |
                                                     (has_arguments ? arguments_flag : 0))};
  std::memcpy(place, &head, sizeof(head));
  place += sizeof(head);
  std::memcpy(place, written.data(), written.size());
  place += written.size();
  if (has_arguments) {
    std::memcpy(place, request.arguments_hash.data(), 32);
    place += 32;
  }
  if (!more.empty()) std::memcpy(place, more.data(), more.size());
  ring.commit();
  if (ring.half_full() && asleep_.exchange(false, std::memory_order_relaxed)) {
    const std::lock_guard lock(waiting_mutex_);
    woken_ = true;
    wake_.notify_one();
  }
  return true;
}

// --- the writing thread
// ---------------------------------------------------------------------------------------------------------

void DecisionLog::run() {
  while (true) {
    bool busy = false;
    {
      const std::lock_guard lock(consuming_);
      const auto step = [&](std::string_view name, const Result<>& done) {
        if (!done) probe_->failed(name, done.error());
        return done.has_value();
      };
      const Monotonic now = clock_.monotonic();
      (void)step("write", drain());
      busy = busy_;
      if (now >= next_sync_) {
        next_sync_ = now + options_.sync_interval;
        if (segment_ && !segment_->synced) {
          const bool done = step("sync", segment_->journal->sync());
          segment_->synced = true;
          if (!done) segment_.reset();  // what is in the file is found again by `recover`
        }
      }
      const bool due = segment_ && (segment_->journal->size_bytes() >= options_.segment_bytes ||
                                    now - segment_->began >= options_.segment_age);
      if (due) (void)step("close", close_segment());
      if (now >= next_seal_ && !step("seal", seal(false))) {
        next_seal_ = now + retry_interval;
        const std::lock_guard waiting(waiting_mutex_);
        closed_pending_ = false;
      }
      if (now >= next_purge_) {
        next_purge_ = now + purge_interval;
        (void)step("purge", purge());
        std::erase_if(source_entities_,
                      [&](const auto& entry) { return now - entry.second.used > note_ttl_ + std::chrono::minutes(1); });
      }
    }
    std::unique_lock lock(waiting_mutex_);
    if (stopping_) return;
    if (stuck_.load(std::memory_order_relaxed)) {
      (void)wake_.wait_for(lock, retry_interval, [this] { return stopping_; });
      continue;
    }
    if (closed_pending_ || busy) continue;
    asleep_.store(true, std::memory_order_relaxed);
    (void)wake_.wait_for(lock, options_.write_interval, [this] { return woken_ || stopping_; });
    asleep_.store(false, std::memory_order_relaxed);
    woken_ = false;
  }
}

Result<> DecisionLog::flush() {
  const std::lock_guard lock(consuming_);
  CRETO_TRY(drain());
  if (!segment_ || segment_->synced) return {};
  auto synced = segment_->journal->sync();
  if (!synced) segment_.reset();
  if (segment_) segment_->synced = true;
  return synced;
}

Result<> DecisionLog::rotate() {
  const std::lock_guard lock(consuming_);
  CRETO_TRY(drain());
  CRETO_TRY(close_segment());
  CRETO_TRY(seal(true));
  return purge();
}

Result<> DecisionLog::drain() {
  // A state that nobody held before the rings were emptied is in no record that is still to come.
  std::vector<std::pair<std::string, std::int64_t>> unused;
  {
    const std::lock_guard lock(states_mutex_);
    for (const auto& [org, versions] : states_) {
      for (const auto& [version, states] : versions) {
        const bool held =
            std::any_of(states.begin(), states.end(), [](const auto& one) { return one.use_count() > 1; });
        if (version != versions.rbegin()->first && !held) unused.emplace_back(org, version);
      }
    }
  }
  std::vector<std::shared_ptr<DecisionRing>> rings;
  {
    const std::lock_guard lock(rings_mutex_);
    std::erase_if(rings_, [](const auto& ring) { return ring->abandoned() && ring->empty(); });
    rings = rings_;
  }
  const Monotonic now = clock_.monotonic();
  const Nanos to_wall = clock_.now().time_since_epoch() - now.time_since_epoch();
  std::vector<DecisionRing*> touched;
  Result<> outcome;
  busy_ = false;
  for (const auto& ring : rings) {
    // No more than what it can hold, so that a thread that decides without pause does not keep the others waiting.
    std::size_t seen = 0;
    for (auto record = ring->next(); !record.empty(); record = ring->next()) {
      seen += record.size();
      if (touched.empty() || touched.back() != ring.get()) touched.push_back(ring.get());
      if (!segment_) outcome = open_segment();
      if (!outcome) break;
      add(record, now, to_wall);
      if (segment_->writer.block_size() >= block_bytes) outcome = write_block(touched);
      if (!outcome) break;
      if (seen >= ring->capacity()) {
        busy_ = true;
        break;
      }
    }
    if (!outcome) break;
  }
  if (outcome && (!touched.empty() || refused_.load(std::memory_order_relaxed) > 0)) {
    if (!segment_) outcome = open_segment();
    if (outcome) outcome = write_block(touched);
  }
  for (DecisionRing* ring : touched) ring->rewind();
  last_state_ = {};
  stuck_.store(!outcome, std::memory_order_relaxed);
  if (!outcome) {
    segment_.reset();
    return outcome;
  }
  const std::lock_guard lock(states_mutex_);
  // Twice seen unused: the first time was before what has just been written.
  for (const auto& [org, version] : unused) {
    const auto seen = std::pair(org, version);
    if (std::find(unused_states_.begin(), unused_states_.end(), seen) != unused_states_.end())
      states_[org].erase(version);
  }
  unused_states_ = std::move(unused);
  return {};
}

void DecisionLog::add(std::span<std::byte> record, Monotonic now, Nanos to_wall) {
  Head head;
  std::memcpy(&head, record.data(), sizeof(head));
  BytesView rest(reinterpret_cast<const std::uint8_t*>(record.data()) + sizeof(head), record.size() - sizeof(head));
  const auto take_bytes = [&rest](std::size_t size) {
    const BytesView part = rest.first(size);
    rest = rest.subspan(size);
    return part;
  };
  LoggedDecision& decision = decision_;
  decision.policies.clear();
  decision.lifts.clear();
  decision.reason = {};
  decision.arguments_hash.reset();
  decision.entities = 0;
  decision.source_entities = nullptr;
  decision.at = Instant(Nanos(head.at) + to_wall);
  decision.outcome = static_cast<Outcome>(head.outcome);
  decision.said = static_cast<Outcome>(head.said);
  decision.by = static_cast<DecidedBy>(head.by);
  decision.cached = (head.flags & cached_flag) != 0;
  decision.context_left_out = (head.flags & left_out_flag) != 0;
  decision.source_versions = source_versions_;
  decision.key = take_bytes(head.key_bytes);
  if (head.flags & arguments_flag) {
    const BytesView hash = take_bytes(32);
    decision.arguments_hash.emplace();
    std::copy(hash.begin(), hash.end(), decision.arguments_hash->begin());
  }
  if (head.policy) decision.policies.push_back(head.policy);
  if (head.more_bytes > 0) {
    for (std::uint32_t i = 0; i < head.more_policies; ++i)
      decision.policies.push_back(take<const cedar::PlannedPolicy*>(rest));
    const auto lifts = take<std::uint32_t>(rest);
    for (std::uint32_t i = 0; i < lifts; ++i) {
      const std::string_view forbid = take_text(rest);
      decision.lifts.push_back({std::string(forbid), std::string(take_text(rest))});
    }
    decision.reason = take_text(rest);
  }

  if (head.entities != 0) {
    Known& known = source_entities_[head.entities];
    known.used = now;
    if (head.loaded) {
      std::shared_ptr<const SourceEntities> loaded(head.loaded);
      if (!known.entities) known.entities = std::move(loaded);
      // Ours now, also where this record has to be read again.
      head.loaded = nullptr;
      std::memcpy(record.data(), &head, sizeof(head));
    }
    decision.entities = head.entities;
    decision.source_entities = known.entities.get();
  }

  const auto [org, version] = DecodedKey::place_of(decision.key, source_versions_);
  decision.state = state_of(org, version);
  decision.state_unknown = (!decision.state && version != 0) || (head.entities != 0 && !decision.source_entities);
  segment_->writer.add(decision);
  segment_->first = std::min(segment_->first, decision.at);
  segment_->last = std::max(segment_->last, decision.at);
}

const OrgState* DecisionLog::state_of(std::string_view org, std::int64_t version) {
  if (last_state_.state && last_state_.state->version == version && last_state_.org == org)
    return last_state_.state.get();
  const std::lock_guard lock(states_mutex_);
  const auto versions = states_.find(org);
  if (versions == states_.end()) return nullptr;
  const auto states = versions->second.find(version);
  if (states == versions->second.end()) return nullptr;
  last_state_ = {std::string(org), states->second.back()};
  return last_state_.state.get();
}

Result<> DecisionLog::write_block(std::vector<DecisionRing*>& touched) {
  const std::uint64_t refused = refused_.load(std::memory_order_relaxed);
  if (refused > 0) segment_->writer.add_refused(refused);
  const std::vector<Bytes> blocks = segment_->writer.take();
  CRETO_TRY(append_all(*segment_->journal, blocks));
  std::size_t bytes = 0;
  for (const Bytes& block : blocks) bytes += block.size();
  segment_->synced = false;
  refused_.fetch_sub(refused, std::memory_order_relaxed);
  segment_->refused += refused;
  probe_->wrote(segment_->writer.decisions() - segment_->written, bytes);
  segment_->written = segment_->writer.decisions();
  for (DecisionRing* ring : touched) ring->release();
  touched.clear();
  const std::lock_guard lock(waiting_mutex_);
  if (waiting_ > 0) room_.notify_all();
  return {};
}

// --- files
// ---------------------------------------------------------------------------------------------------------------

std::filesystem::path DecisionLog::path(std::uint64_t sequence, bool open) const {
  return options_.directory / segment_name(sequence, open);
}

Result<> DecisionLog::open_segment() {
  // One may be left from a write that failed.
  CRETO_TRY(recover());
  auto journal = CRETO_TRY(io::Journal::open(files_, path(next_sequence_, true), [](BytesView) { return Result<>(); }));
  segment_ = std::make_unique<Segment>(std::move(journal), log_, next_sequence_, clock_.now(), clock_.monotonic());
  ++next_sequence_;
  // By itself, so that it is found without reading more.
  return append_all(*segment_->journal, segment_->writer.take());
}

Result<> DecisionLog::close_segment() {
  if (!segment_) return {};
  const std::unique_ptr<Segment> segment = std::move(segment_);
  segment->writer.add_end(false);
  CRETO_TRY(append_all(*segment->journal, segment->writer.take()));
  CRETO_TRY(segment->journal->sync());
  Closed closed{.sequence = segment->sequence,
                .bytes = segment->journal->size_bytes(),
                .decisions = segment->written,
                .refused = segment->refused,
                .first = segment->first,
                .last = segment->last,
                .hasher = {}};
  if (segment->written == 0) closed.first = closed.last = clock_.now();
  segment->journal.reset();
  CRETO_TRY(files_.rename(path(closed.sequence, true), path(closed.sequence, false)));
  CRETO_TRY(files_.sync_directory(options_.directory));
  closed_.push_back(std::move(closed));
  return {};
}

/// Finishes open files that nobody writes, and finds closed ones that were not entered.
Result<> DecisionLog::recover() {
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
    next_sequence_ = std::max(next_sequence_, static_cast<std::uint64_t>(entered.rbegin()->first) + 1);
  std::map<std::uint64_t, bool> present;
  for (const SegmentName& segment : segments) {
    next_sequence_ = std::max(next_sequence_, segment.sequence + 1);
    present[segment.sequence] = segment.open;
  }
  for (const auto& [sequence, purged] : entered) {
    const auto number = static_cast<std::uint64_t>(sequence);
    if (purged) {
      CRETO_TRY(files_.remove(path(number, false)));
      present.erase(number);
    } else if (!present.contains(number)) {
      probe_->missing(path(number, false).string());
    }
  }
  for (const auto& [sequence, open] : present) {
    const bool waits = std::any_of(closed_.begin(), closed_.end(),
                                   [&, number = sequence](const Closed& closed) { return closed.sequence == number; });
    if (waits || entered.contains(static_cast<std::int64_t>(sequence))) continue;
    Result<> whole;
    if (open) {
      whole = finish_open_segment(files_, options_.directory, log_, sequence, clock_.now());
      if (whole) probe_->recovered(path(sequence, true).string());
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
    probe_->failed("recover", whole.error());
    CRETO_TRY(enter_damaged(sequence, whole.error()));
    CRETO_TRY(files_.rename(path(sequence, open), options_.directory / fmt::format("{:010}.damaged", sequence)));
  }
  return {};
}

Result<DecisionLog::Closed> DecisionLog::describe(std::uint64_t sequence) {
  const SegmentFile file = CRETO_TRY(SegmentFile::read(files_, path(sequence, false)));
  SegmentReader reader;
  CRETO_TRY(file.each(reader, [](const SegmentReader::Decided&) { return Result<>(); }));
  Closed closed{.sequence = sequence,
                .bytes = file.size(),
                .decisions = reader.decisions(),
                .refused = reader.refused(),
                .first = reader.first_at(),
                .last = reader.last_at(),
                .recovered = reader.recovered(),
                .hasher = {}};
  if (closed.decisions == 0) closed.first = closed.last = clock_.now();
  return closed;
}

/// Enters closed segments: all of them, or goes on a little with the first.
Result<> DecisionLog::seal(bool all) {
  while (!closed_.empty()) {
    Closed& closed = closed_.front();
    if (!closed.hasher) closed.hasher = std::make_shared<crypto::Hasher>(crypto::HashAlgorithm::sha3_256);
    const Bytes part = CRETO_TRY(files_.read_at(path(closed.sequence, false), closed.hashed, hash_bytes));
    hasher_of(closed.hasher).update(part);
    closed.hashed += part.size();
    if (part.size() == hash_bytes) {
      if (all) continue;
      break;
    }
    const Hash256 hash = hasher_of(closed.hasher).finish();
    closed.hashed = 0;  // where entering fails, all of it again
    CRETO_TRY(enter(closed, hash));
    probe_->sealed();
    closed_.pop_front();
    if (!all) break;
  }
  const std::lock_guard lock(waiting_mutex_);
  closed_pending_ = !closed_.empty();
  return {};
}

Context DecisionLog::own_context() const {
  Context ctx = Context::of_service(Identity::service("authz").value());
  ctx.org = options_.org;
  return ctx;
}

Result<> DecisionLog::enter(const Closed& closed, const Hash256& hash) {
  const Context ctx = own_context();
  const std::string log = hex(log_);
  return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    const auto sequence = static_cast<std::int64_t>(closed.sequence);
    CRETO_TRY(
        tx.exec("INSERT INTO authz_decision_segments (log, sequence, sha3_256, bytes, decisions, last_at, purged) "
                "VALUES ($1, $2, $3, $4, $5, $6, 0)",
                {log, sequence, hex(hash), static_cast<std::int64_t>(closed.bytes),
                 static_cast<std::int64_t>(closed.decisions), unix_ns(closed.last)}));
    auto record =
        audit::AuditRecord::of(ctx, std::string(segment_sealed_event), segment_resource(log_, closed.sequence));
    record.metadata = Json{{"sha3_256", hex(hash)},
                           {"bytes", closed.bytes},
                           {"decisions", closed.decisions},
                           {"refused", closed.refused},
                           {"first", to_rfc3339(closed.first)},
                           {"last", to_rfc3339(closed.last)},
                           {"recovered", closed.recovered}}
                          .dump();
    CRETO_TRY(audit::record(tx, ctx, std::move(record)));
    return {};
  });
}

Result<> DecisionLog::enter_damaged(std::uint64_t sequence, const Error& why) {
  const Context ctx = own_context();
  return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    auto record = audit::AuditRecord::of(ctx, std::string(segment_damaged_event), segment_resource(log_, sequence),
                                         audit::Outcome::failure);
    record.outcome_detail = why.to_string().substr(0, 1024);
    CRETO_TRY(audit::record(tx, ctx, std::move(record)));
    return {};
  });
}

Result<> DecisionLog::purge() {
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
    probe_->purged();
  }
  return {};
}

}  // namespace creto::authz
