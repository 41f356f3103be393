#include "decisions/decision_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "creto/common/assert.h"
#include "creto/crypto/random.h"

namespace creto::authz {
namespace {

/// Between two writes; a block is what a crash loses whole.
constexpr std::size_t block_bytes = 256 << 10;
/// Of those that determined one decision.
constexpr std::size_t policies_max = 1'000;

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

/// What is being filled.
struct DecisionLog::Filling {
  Filling(const ByteArray<16>& log, std::uint64_t sequence, Instant created, Monotonic began_)
      : segment(std::make_shared<SegmentKeeper::Segment>(sequence)), writer(log, sequence, created), began(began_) {}

  const std::shared_ptr<SegmentKeeper::Segment> segment;
  SegmentWriter writer;
  const Monotonic began;
  std::uint64_t bytes = 0, blocks = 0;  ///< handed over
  std::uint64_t decisions = 0;          ///< in these
  std::uint64_t refused = 0;
  Instant first = Instant::max(), last = Instant::min();
};

DecisionLog::DecisionLog(const Clock& clock, Telemetry& telemetry, DecisionLogOptions options,
                         std::size_t source_versions, Nanos note_ttl)
    : clock_(clock),
      options_(std::move(options)),
      source_versions_(source_versions),
      note_ttl_(note_ttl),
      id_(next_id()),
      probe_(telemetry) {}

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
  auto log =
      std::unique_ptr<DecisionLog>(new DecisionLog(clock, telemetry, std::move(options), source_versions, note_ttl));
  log->keeper_ = CRETO_TRY(SegmentKeeper::open(database, files, clock, log->probe_, log->options_));
  if (log->options_.write_in_background) log->thread_ = std::thread([&log = *log] { log.run(); });
  return log;
}

DecisionLog::~DecisionLog() {
  if (!keeper_) return;  // it could not be opened
  {
    const std::lock_guard lock(waiting_mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  room_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (const auto done = rotate(); !done) probe_.failed("close", done.error());
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
    return place != nullptr || stopping_ || keeper_->is_stuck();
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
    probe_.refused();
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

// --- the filling thread
// ---------------------------------------------------------------------------------------------------------

void DecisionLog::run() {
  while (true) {
    bool busy = false;
    {
      const std::lock_guard lock(consuming_);
      busy = drain() && busy_;
      const Monotonic now = clock_.monotonic();
      const bool due =
          filling_ && (filling_->bytes >= options_.segment_bytes || now - filling_->began >= options_.segment_age);
      if (due) close_segment();
      if (now >= next_forgetting_) {
        next_forgetting_ = now + std::chrono::minutes(1);
        std::erase_if(source_entities_,
                      [&](const auto& entry) { return now - entry.second.used > note_ttl_ + std::chrono::minutes(1); });
      }
    }
    std::unique_lock lock(waiting_mutex_);
    if (stopping_) return;
    if (busy) continue;
    asleep_.store(true, std::memory_order_relaxed);
    (void)wake_.wait_for(lock, options_.write_interval, [this] { return woken_ || stopping_; });
    asleep_.store(false, std::memory_order_relaxed);
    woken_ = false;
  }
}

Result<> DecisionLog::flush() {
  // What waits for the disk may be so much that the rest of the rings has room only behind it.
  for (bool all = false; !all;) {
    {
      const std::lock_guard lock(consuming_);
      all = drain();
    }
    CRETO_TRY(keeper_->write_out());
  }
  return {};
}

Result<> DecisionLog::rotate() {
  CRETO_TRY(flush());
  {
    const std::lock_guard lock(consuming_);
    close_segment();
  }
  return keeper_->settle();
}

bool DecisionLog::drain() {
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
  if (filling_ && filling_->segment->is_lost()) filling_.reset();
  std::vector<DecisionRing*> touched;
  busy_ = false;
  for (const auto& ring : rings) {
    // No more than what it can hold, so that a thread that decides without pause does not keep the others waiting.
    std::size_t seen = 0;
    while (!keeper_->is_full()) {
      const auto record = ring->next();
      if (record.empty()) break;
      seen += record.size();
      if (touched.empty() || touched.back() != ring.get()) touched.push_back(ring.get());
      if (!filling_) open_segment();
      add(record, now, to_wall);
      if (filling_->writer.block_size() >= block_bytes) hand_over(touched);
      if (seen < ring->capacity()) continue;
      busy_ = true;
      break;
    }
  }
  const bool all = !keeper_->is_full();
  if (!touched.empty() || (all && refused_.load(std::memory_order_relaxed) > 0)) {
    if (!filling_) open_segment();
    hand_over(touched);
  }
  last_state_ = {};
  if (!all) return false;
  const std::lock_guard lock(states_mutex_);
  // Twice seen unused: the first time was before what has just been handed over.
  for (const auto& [org, version] : unused) {
    const auto seen = std::pair(org, version);
    if (std::find(unused_states_.begin(), unused_states_.end(), seen) != unused_states_.end())
      states_[org].erase(version);
  }
  unused_states_ = std::move(unused);
  return true;
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
  filling_->writer.add(decision);
  filling_->first = std::min(filling_->first, decision.at);
  filling_->last = std::max(filling_->last, decision.at);
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

void DecisionLog::open_segment() {
  filling_ = std::make_unique<Filling>(keeper_->log(), keeper_->draw_sequence(), clock_.now(), clock_.monotonic());
  // By itself, so that it is found without reading more.
  std::vector<DecisionRing*> none;
  hand_over(none);
}

void DecisionLog::close_segment() {
  if (!filling_) return;
  const std::unique_ptr<Filling> filling = std::move(filling_);
  const bool doubtful = filling->segment->is_doubtful();
  filling->writer.add_end(doubtful);
  SegmentKeeper::Summary end{.decisions = filling->decisions,
                             .refused = filling->refused,
                             .first = filling->first,
                             .last = filling->last,
                             .recovered = doubtful};
  if (filling->decisions == 0) end.first = end.last = clock_.now();
  std::vector<Bytes> blocks = filling->writer.take();
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    SegmentKeeper::Block block{filling->segment, filling->blocks++, std::move(blocks[i])};
    if (i + 1 == blocks.size()) block.end = end;
    keeper_->take(std::move(block));
  }
}

/// What the segment's writer has; the rings have room again.
void DecisionLog::hand_over(std::vector<DecisionRing*>& touched) {
  Filling& filling = *filling_;
  const std::uint64_t refused = refused_.load(std::memory_order_relaxed);
  if (refused > 0) filling.writer.add_refused(refused);
  refused_.fetch_sub(refused, std::memory_order_relaxed);
  filling.refused += refused;
  std::uint64_t fresh = filling.writer.decisions() - std::exchange(filling.decisions, filling.writer.decisions());
  for (Bytes& block : filling.writer.take()) {
    filling.bytes += block.size();
    keeper_->take({filling.segment, filling.blocks++, std::move(block), std::exchange(fresh, 0)});
  }
  for (DecisionRing* ring : touched) ring->release();
  touched.clear();
  const std::lock_guard lock(waiting_mutex_);
  if (waiting_ > 0) room_.notify_all();
}

}  // namespace creto::authz
