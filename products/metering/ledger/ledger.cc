#include "ledger.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "creto/common/assert.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/random.h"
#include "layout.h"

namespace creto::metering {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t format_version = 1;
constexpr std::size_t group_events_max = 64'000;
constexpr std::size_t group_bytes_max = 16 << 20;
constexpr std::uint32_t envelope_bit = 1U << 31;  ///< in KnownKey::index: the event has an id of its own
constexpr std::string_view checkpoint_magic = "CRETOS1\n";
constexpr std::string_view checkpoint_suffix = ".state";

enum class BlockKind : std::uint8_t { beginning = 0, events = 1 };
enum class EntryKind : std::uint8_t { record = 0, envelope = 1 };

std::uint32_t seconds_of(Instant when) {
  const std::int64_t seconds = unix_ns(when) / 1'000'000'000;
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(seconds, 0, UINT32_MAX));
}

/// An id that follows from key and arrival (UUIDv8): sorts by the second, and is the same whenever it is asked for.
EventId id_of(const KeyHash& key, std::uint32_t arrived_s) {
  ByteArray<16> id{};
  for (std::size_t i = 0; i < 4; ++i) id[i] = static_cast<std::uint8_t>(arrived_s >> (24 - 8 * i));
  std::memcpy(id.data() + 4, &key.low, 8);
  std::memcpy(id.data() + 12, &key.high, 4);
  id[6] = static_cast<std::uint8_t>(0x80 | (id[6] & 0x0F));
  id[8] = static_cast<std::uint8_t>(0x80 | (id[8] & 0x3F));
  return EventId::from_bytes(id);
}

Error damaged(BlockAddress block) {
  return Error(Product::metering, ErrorKind::hash_mismatch,
               fmt::format("usage log: block {} of segment {} cannot be read", block.offset, block.segment));
}

/// Reads a block of events (docs/formats.md, "Usage log").
class BlockReader {
 public:
  BlockReader(BlockAddress address, BytesView content) : address_(address), reader_(content) {}

  Result<> head() {
    const auto kind = reader_.get<BlockKind>();
    const auto arrived = reader_.get<std::int64_t>();
    if (!reader_.ok() || kind != BlockKind::events || arrived < 0) return damaged(address_);
    arrived_ = from_unix_ns(arrived);
    return {};
  }
  Result<> definitions(Subjects& subjects) { return subjects.read(reader_); }
  Result<> skip_definitions() {
    Subjects::skip(reader_);
    return reader_.ok() ? Result<>() : damaged(address_);
  }

  struct Entry {
    std::uint32_t index = 0;
    AttributionNumber attribution = 0;
    std::uint64_t content = 0;
    std::optional<EventId> id{};
    RecordView record;
    std::string_view envelope{};
  };
  /// Calls `visit` for each entry. Requires: head and definitions were read.
  template <class Visit>
  Result<> entries(RecordScratch& scratch, Visit&& visit) {
    const std::size_t count = reader_.count(17);
    for (std::size_t i = 0; i < count; ++i) {
      Entry entry;
      entry.index = static_cast<std::uint32_t>(i);
      entry.attribution = reader_.get<AttributionNumber>();
      entry.content = reader_.get<std::uint64_t>();
      const auto kind = reader_.get<EntryKind>();
      if (kind == EntryKind::envelope) entry.id = EventId::from_bytes(reader_.get<ByteArray<16>>());
      const BytesView bytes = reader_.sized();
      if (kind == EntryKind::envelope) entry.envelope = reader_.text();
      if (!reader_.ok()) return damaged(address_);
      scratch.clear();
      auto record = parse_record(bytes, scratch);
      if (!record) return damaged(address_);
      entry.record = *std::move(record);
      CRETO_TRY(visit(entry));
    }
    skip_proofs();
    return reader_.done() ? Result<>() : damaged(address_);
  }

  Instant arrived() const { return arrived_; }

 private:
  void skip_proofs() {
    for (std::size_t proofs = reader_.count(16); proofs > 0; --proofs) {
      for (int part = 0; part < 3; ++part) reader_.sized();
      for (std::size_t leaves = reader_.count(4); leaves > 0; --leaves) {
        if (reader_.get<std::uint32_t>() == BatchProof::not_taken) reader_.bytes(sizeof(Hash256));
      }
    }
  }

  const BlockAddress address_;
  layout::Reader reader_;
  Instant arrived_{};
};

void put_entry(Bytes& out, const NewEvent& event) {
  layout::put(out, event.attribution);
  layout::put(out, event.content);
  layout::put(out, event.id ? EntryKind::envelope : EntryKind::record);
  if (event.id) layout::put(out, event.id->bytes());
  layout::put_sized(out, event.record.bytes);
  if (event.id) layout::put_sized(out, event.envelope);
}

void put_proof(Bytes& out, const BatchProof& proof, std::span<const std::uint32_t> index_of_event) {
  layout::put_sized(out, proof.reporter);
  layout::put_sized(out, proof.signature.algorithm);
  layout::put_sized(out, proof.signature.value);
  layout::put(out, static_cast<std::uint32_t>(proof.leaves.size()));
  for (const BatchProof::Leaf& leaf : proof.leaves) {
    const std::uint32_t index = leaf.event == BatchProof::not_taken ? leaf.event : index_of_event[leaf.event];
    layout::put(out, index);
    if (index == BatchProof::not_taken) layout::put(out, leaf.hash);
  }
}

std::optional<BlockAddress> checkpoint_of(std::string_view name) {
  if (!name.ends_with(checkpoint_suffix)) return std::nullopt;
  name.remove_suffix(checkpoint_suffix.size());
  BlockAddress address;
  const char* end = name.data() + name.size();
  const auto segment = std::from_chars(name.data(), end, address.segment);
  if (segment.ec != std::errc() || segment.ptr == end || *segment.ptr != '-') return std::nullopt;
  const auto offset = std::from_chars(segment.ptr + 1, end, address.offset);
  if (offset.ec != std::errc() || offset.ptr != end) return std::nullopt;
  return address;
}

}  // namespace

struct Ledger::Waiting {
  std::span<const NewEvent> events;
  const BatchProof* proof;
  std::size_t bytes;
  std::vector<Outcome> outcomes{};
  std::optional<Error> failed{};
  bool done = false;
};

Ledger::Ledger(std::unique_ptr<BlockLog> log, io::FileSystem& files, fs::path directory, const Clock& clock,
               Telemetry& telemetry, LedgerOptions options)
    : log_(std::move(log)),
      files_(files),
      directory_(std::move(directory)),
      clock_(clock),
      telemetry_(telemetry),
      options_(options) {}

Ledger::~Ledger() {
  if (!maintenance_.joinable()) return;
  {
    const std::scoped_lock lock(maintenance_mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  maintenance_.join();
}

Result<std::unique_ptr<Ledger>> Ledger::open(std::unique_ptr<BlockLog> log, io::FileSystem& files, fs::path directory,
                                             const Clock& clock, Telemetry& telemetry, LedgerOptions options,
                                             const Restore& restore, const Replay& replay) {
  CRETO_ASSERT(options.segment_bytes_max <= BlockLog::segment_bytes_max);
  auto ledger =
      std::unique_ptr<Ledger>(new Ledger(std::move(log), files, std::move(directory), clock, telemetry, options));
  CRETO_TRY(ledger->start(restore, replay));
  return ledger;
}

KeyHash Ledger::key_hash(std::string_view org, std::string_view source, std::string_view key) const {
  // Sizes before texts: no two different triples have the same bytes.
  std::array<std::uint8_t, 1024> room;
  Bytes large;
  const std::size_t size = 8 + org.size() + source.size() + key.size();
  std::uint8_t* out = room.data();
  if (size > room.size()) {
    large.resize(size);
    out = large.data();
  }
  const auto sizes = std::array{static_cast<std::uint32_t>(org.size()), static_cast<std::uint32_t>(source.size())};
  std::uint8_t* at = out;
  const auto put = [&](const void* from, std::size_t bytes) {
    if (bytes > 0) std::memcpy(at, from, bytes);
    at += bytes;
  };
  put(sizes.data(), 8);
  put(org.data(), org.size());
  put(source.data(), source.size());
  put(key.data(), key.size());
  const Hash256 hash = crypto::blake3_keyed(hash_key_, {out, size});
  KeyHash result;
  std::memcpy(&result.high, hash.data(), 8);
  std::memcpy(&result.low, hash.data() + 8, 8);
  return result;
}

KeyHash Ledger::key_of(AttributionNumber attribution, const RecordView& record) const {
  const Subjects::Subject agent = subjects_.subject(subjects_.attribution(attribution).agent);
  return key_hash(agent.org, record.source.empty() ? record.agent : record.source, record.key);
}

// --- the start

Result<> Ledger::start(const Restore& restore, const Replay& replay) {
  CRETO_TRY(files_.create_directories(directory_));
  CRETO_TRY(begin_log());
  index_ = CRETO_TRY(KeyIndex::open(files_, directory_ / "keys"));
  position_.end = log_->end();
  const BlockAddress state_from = CRETO_TRY(load_checkpoint(restore));
  const BlockAddress keys_from{index_->covered() + 1, 0};
  CRETO_TRY(load(std::min(state_from, keys_from), state_from, replay));
  written_ = subjects_.mark();
  position_.end = log_->end();
  position_.head = log_->head();
  maintenance_ = std::thread([this] { maintain(); });
  return {};
}

/// The first block names the log and holds the key of its hashes: it goes where the log goes.
Result<> Ledger::begin_log() {
  if (log_->end() == log_->begin()) {
    crypto::random_fill(hash_key_);
    Bytes block;
    layout::put(block, BlockKind::beginning);
    layout::put(block, format_version);
    layout::put(block, hash_key_);
    return log_->append(block);
  }
  const Bytes block = CRETO_TRY(log_->read(log_->begin()));
  layout::Reader reader(block);
  const auto kind = reader.get<BlockKind>();
  const auto version = reader.get<std::uint32_t>();
  hash_key_ = reader.get<ByteArray<32>>();
  if (!reader.done() || kind != BlockKind::beginning) return damaged(log_->begin());
  if (version != format_version) {
    return Error(Product::metering, ErrorKind::invalid_input,
                 fmt::format("usage log: version {} is not known here", version));
  }
  return {};
}

/// Where its state ends in the log. Without a usable checkpoint: where the log begins.
Result<BlockAddress> Ledger::load_checkpoint(const Restore& restore) {
  std::vector<BlockAddress> there;
  const auto names = CRETO_TRY(files_.list(directory_));
  for (const std::string& name : names) {
    if (const auto address = checkpoint_of(name)) there.push_back(*address);
  }
  std::ranges::sort(there, std::greater<>());
  for (const BlockAddress& address : there) {
    const fs::path path = checkpoint_path(address);
    const std::uint64_t size = CRETO_TRY(files_.size(path));
    const Bytes bytes = CRETO_TRY(files_.read(path, size));
    layout::Reader reader(bytes);
    const BytesView start = reader.bytes(checkpoint_magic.size());
    const auto hash = reader.get<Hash256>();
    const BytesView content = reader.bytes(reader.left());
    // A log that ends before its checkpoint is another log, or has lost its end: then the log is what counts.
    const bool good =
        reader.ok() && as_text(start) == checkpoint_magic && crypto::blake3(content) == hash && address <= log_->end();
    if (!good) {
      telemetry_.log(LogLevel::warn, "metering", "checkpoint_unusable", nullptr, {{"path", path.string()}});
      CRETO_TRY(files_.remove(path));
      continue;
    }
    layout::Reader state(content);
    CRETO_TRY(subjects_.read(state));
    auto restored = restore(*this, state.bytes(state.left()));
    if (restored) return address;
    if (restored.error().kind() != ErrorKind::invalid_input) return std::move(restored).error();
    telemetry_.log(LogLevel::warn, "metering", "checkpoint_unusable", nullptr,
                   {{"path", path.string()}, {"error", restored.error().to_string()}});
  }
  CRETO_TRY(restore(*this, {}));
  return log_->begin();
}

/// Reads the log from `from` on: keys that no run has, and, from `state_from` on, definitions and events.
Result<> Ledger::load(BlockAddress from, BlockAddress state_from, const Replay& replay) {
  RecordScratch scratch;
  std::uint32_t segment = 0;
  const std::uint32_t covered = index_->covered();
  const auto enter = [&](std::uint32_t next) -> Result<> {
    if (next == segment) return {};
    if (segment > covered) {
      const auto keys = index_->freeze(segment);
      auto run = CRETO_TRY(index_->write_run(segment, *keys));
      CRETO_TRY(index_->adopt(std::move(run)));
    }
    segment = next;
    segment_events_ = 0;
    return {};
  };
  CRETO_TRY(log_->scan(from, [&](BlockAddress address, BytesView content) -> Result<> {
    CRETO_TRY(enter(address.segment));
    if (address == log_->begin()) return {};
    BlockReader block(address, content);
    CRETO_TRY(block.head());
    if (address >= state_from) {
      CRETO_TRY(block.definitions(subjects_));
    } else {
      CRETO_TRY(block.skip_definitions());
    }
    return block.entries(scratch, [&](const BlockReader::Entry& entry) -> Result<> {
      ++segment_events_;
      const KeyHash key = key_of(entry.attribution, entry.record);
      if (segment > covered) {
        index_->insert({key, segment, address.offset, entry.index | (entry.id ? envelope_bit : 0),
                        seconds_of(block.arrived()), entry.content});
      }
      if (address < state_from) return {};
      ++position_.events;
      return replay(StoredEvent{entry.id.value_or(id_of(key, seconds_of(block.arrived()))), address, entry.index,
                                block.arrived(), entry.attribution, entry.record, entry.envelope});
    });
  }));
  return segment == 0 ? Result<>() : enter(log_->end().segment);
}

// --- taking events

Result<std::vector<Outcome>> Ledger::append(std::span<const NewEvent> events, const BatchProof* proof,
                                            const std::function<void(std::span<const Outcome>)>& counted) {
  std::size_t bytes = 0;
  for (const NewEvent& event : events) bytes += event.record.bytes.size() + event.envelope.size();
  if (events.size() > group_events_max || bytes > group_bytes_max) {
    return Error(Product::metering, ErrorKind::too_large,
                 fmt::format("batch: must be at most {} events and {} bytes", group_events_max, group_bytes_max));
  }
  Waiting mine{.events = events, .proof = proof, .bytes = bytes};
  std::unique_lock lock(queue_mutex_);
  changed_.wait(lock, [&] { return !checkpoint_wanted_; });
  ++inside_;
  queue_.push_back(&mine);
  while (!mine.done) {
    if (writing_) {
      changed_.wait(lock);
      continue;
    }
    // Whoever comes first writes for all that wait; those that come meanwhile are the next group.
    std::vector<Waiting*> group;
    std::size_t group_events = 0;
    std::size_t group_bytes = 0;
    auto next = queue_.begin();
    for (; next != queue_.end(); ++next) {
      group_events += (*next)->events.size();
      group_bytes += (*next)->bytes;
      if (!group.empty() && (group_events > group_events_max || group_bytes > group_bytes_max)) break;
      group.push_back(*next);
    }
    queue_.erase(queue_.begin(), next);
    writing_ = true;
    lock.unlock();
    const auto written = write(group);
    lock.lock();
    writing_ = false;
    if (written) {
      position_.end = log_->end();
      position_.head = log_->head();
    }
    for (Waiting* waiting : group) {
      if (!written)
        waiting->failed = written.error();
      else
        position_.events +=
            static_cast<std::uint64_t>(std::ranges::count(waiting->outcomes, Outcome::Kind::accepted, &Outcome::kind));
      waiting->done = true;
    }
    changed_.notify_all();
  }
  lock.unlock();
  if (!mine.failed && counted) counted(mine.outcomes);
  lock.lock();
  if (--inside_ == 0) changed_.notify_all();
  if (mine.failed) return *std::move(mine.failed);
  return std::move(mine.outcomes);
}

Result<> Ledger::write(std::span<Waiting* const> group) {
  const std::scoped_lock lock(index_mutex_);
  CRETO_TRY(seal_if_full());
  const Instant arrived = clock_.now();
  std::vector<KeyHash> inserted;
  auto done = decide(group, arrived, inserted);
  if (done && !inserted.empty()) {
    done = log_->append(block_);
    if (done) {
      written_ = defined_;
      segment_events_ += inserted.size();
    }
  }
  if (!done) {
    for (const KeyHash& key : inserted) index_->erase(key);
  }
  return done;
}

/// Tells new events from known ones and makes the block of the new ones.
Result<> Ledger::decide(std::span<Waiting* const> group, Instant arrived, std::vector<KeyHash>& inserted) {
  const BlockAddress address = log_->end();
  const std::uint32_t arrived_s = seconds_of(arrived);
  const std::uint32_t since_s = seconds_of(arrived - options_.idempotency_window);
  proofs_.clear();
  block_ids_.clear();
  std::uint32_t proofs = 0;
  defined_ = subjects_.mark();
  block_.clear();
  layout::put(block_, BlockKind::events);
  layout::put(block_, unix_ns(arrived));
  subjects_.write(written_, defined_, block_);
  const std::size_t count_at = block_.size();
  layout::put(block_, std::uint32_t{0});
  for (Waiting* waiting : group) {
    for (const NewEvent& event : waiting->events) index_->prefetch(event.key);
    index_of_event_.assign(waiting->events.size(), BatchProof::not_taken);
    waiting->outcomes.clear();
    waiting->outcomes.reserve(waiting->events.size());
    for (std::size_t i = 0; i < waiting->events.size(); ++i) {
      const NewEvent& event = waiting->events[i];
      const auto known = CRETO_TRY(index_->find(event.key, since_s));
      if (known) {
        const bool same = known->content == event.content;
        const EventId first = CRETO_TRY(id_of_known(*known));
        waiting->outcomes.push_back({same ? Outcome::Kind::duplicate : Outcome::Kind::conflict, first});
        continue;
      }
      const auto index = static_cast<std::uint32_t>(inserted.size());
      index_->insert({event.key, address.segment, address.offset, index | (event.id ? envelope_bit : 0), arrived_s,
                      event.content});
      inserted.push_back(event.key);
      index_of_event_[i] = index;
      put_entry(block_, event);
      block_ids_.push_back(event.id.value_or(id_of(event.key, arrived_s)));
      waiting->outcomes.push_back({Outcome::Kind::accepted, block_ids_.back()});
    }
    if (waiting->proof != nullptr) {
      put_proof(proofs_, *waiting->proof, index_of_event_);
      ++proofs;
    }
  }
  const auto count = static_cast<std::uint32_t>(inserted.size());
  std::memcpy(block_.data() + count_at, &count, sizeof count);
  layout::put(block_, proofs);
  layout::put_bytes(block_, proofs_);
  return {};
}

/// The id of an event whose key is known. Those with an id of their own keep it in the log alone.
Result<EventId> Ledger::id_of_known(const KnownKey& known) {
  if ((known.index & envelope_bit) == 0) return id_of(known.key, known.arrived_s);
  const std::uint32_t index = known.index & ~envelope_bit;
  const BlockAddress address{known.segment, known.offset};
  if (address == log_->end()) return block_ids_[index];
  const Bytes content = CRETO_TRY(log_->read(address));
  BlockReader block(address, content);
  CRETO_TRY(block.head());
  CRETO_TRY(block.skip_definitions());
  std::optional<EventId> id;
  CRETO_TRY(block.entries(scratch_, [&](const BlockReader::Entry& entry) -> Result<> {
    if (entry.index == index) id = entry.id;
    return {};
  }));
  if (!id) return damaged(address);
  return *id;
}

Result<> Ledger::seal_if_full() {
  const BlockAddress end = log_->end();
  if (segment_events_ < options_.segment_events_max && end.offset < options_.segment_bytes_max) return {};
  CRETO_TRY(log_->seal());
  CRETO_ASSERT(log_->end().segment == end.segment + 1);
  segment_events_ = 0;
  {
    const std::scoped_lock lock(maintenance_mutex_);
    frozen_.push_back({end.segment, index_->freeze(end.segment)});
  }
  work_.notify_all();
  return {};
}

// --- beside it

Result<> Ledger::checkpoint(const std::function<void(Bytes&)>& begin, const std::function<bool(Bytes&)>& more) {
  Bytes content;
  BlockAddress address;
  Subjects::Mark mark;
  Bytes state;
  {
    std::unique_lock lock(queue_mutex_);
    changed_.wait(lock, [&] { return !checkpoint_wanted_; });
    checkpoint_wanted_ = true;
    changed_.wait(lock, [&] { return inside_ == 0; });
    address = position_.end;
    mark = written_;
    begin(state);
    checkpoint_wanted_ = false;
  }
  changed_.notify_all();
  subjects_.write({}, mark, content);
  while (more(state)) {
  }
  layout::put_bytes(content, state);
  Bytes file;
  file.reserve(content.size() + 40);
  layout::put_bytes(file, as_bytes(checkpoint_magic));
  layout::put(file, crypto::blake3(content));
  layout::put_bytes(file, content);
  CRETO_TRY(io::write_durably(files_, checkpoint_path(address), file));
  const auto names = CRETO_TRY(files_.list(directory_));
  for (const std::string& name : names) {
    const auto old = checkpoint_of(name);
    if (old && *old < address) CRETO_TRY(files_.remove(directory_ / name));
  }
  return {};
}

fs::path Ledger::checkpoint_path(BlockAddress address) const {
  return directory_ / fmt::format("{:08}-{:010}{}", address.segment, address.offset, checkpoint_suffix);
}

Ledger::Position Ledger::position() const {
  const std::scoped_lock lock(queue_mutex_);
  return position_;
}

Result<> Ledger::scan(BlockAddress from, BlockAddress until, const Replay& visit) const {
  RecordScratch scratch;
  // Nothing behind `until` is of interest, and the log has no way to stop but an error.
  bool past = false;
  auto scanned = log_->scan(from, [&](BlockAddress address, BytesView content) -> Result<> {
    if (address == log_->begin()) return {};
    if (address >= until) {
      past = true;
      return Error(Product::metering, ErrorKind::cancelled, "the end");
    }
    BlockReader block(address, content);
    CRETO_TRY(block.head());
    CRETO_TRY(block.skip_definitions());
    return block.entries(scratch, [&](const BlockReader::Entry& entry) -> Result<> {
      const EventId id =
          entry.id ? *entry.id : id_of(key_of(entry.attribution, entry.record), seconds_of(block.arrived()));
      return visit(
          StoredEvent{id, address, entry.index, block.arrived(), entry.attribution, entry.record, entry.envelope});
    });
  });
  return past ? Result<>() : scanned;
}

Result<BlockAddress> Ledger::first_at(Instant when) const {
  const BlockAddress end = position().end;
  const std::uint32_t place = log_->begin().offset;
  // The last segment whose first block arrived before `when`. The log's first block has no time: it is before all.
  std::uint32_t low = 1;
  for (std::uint32_t high = end.segment; low < high;) {
    const std::uint32_t middle = low + (high - low + 1) / 2;
    const BlockAddress address{middle, place};
    if (address >= end) {
      high = middle - 1;
      continue;
    }
    const Bytes content = CRETO_TRY(log_->read(address));
    BlockReader block(address, content);
    CRETO_TRY(block.head());
    if (block.arrived() < when) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return BlockAddress{low, place};
}

void Ledger::settle() {
  std::unique_lock lock(maintenance_mutex_);
  work_.wait(lock, [&] { return (frozen_.empty() && !busy_) || stopping_; });
}

std::size_t Ledger::memory_bytes() const {
  const std::scoped_lock lock(index_mutex_);
  return index_->memory_bytes();
}

/// Turns full tables of keys into runs and runs into larger ones.
void Ledger::maintain() {
  std::unique_lock lock(maintenance_mutex_);
  while (!stopping_) {
    work_.wait(lock, [&] { return stopping_ || !frozen_.empty(); });
    if (stopping_) return;
    busy_ = true;
    const Frozen frozen = frozen_.front();
    lock.unlock();
    const auto done = make_runs(frozen);
    lock.lock();
    busy_ = false;
    if (done) {
      frozen_.erase(frozen_.begin());
      if (options_.sealed) {
        busy_ = true;
        lock.unlock();
        options_.sealed(frozen.segment);
        lock.lock();
        busy_ = false;
      }
    } else {
      // The keys stay in memory, and at the next start in the log.
      telemetry_.log(LogLevel::error, "metering", "key_run_failed", nullptr, {{"error", done.error().to_string()}});
      work_.wait_for(lock, std::chrono::seconds(10), [&] { return stopping_; });
    }
    work_.notify_all();
  }
}

Result<> Ledger::make_runs(const Frozen& frozen) {
  auto run = CRETO_TRY(index_->write_run(frozen.segment, *frozen.keys));
  const std::uint32_t since_s = seconds_of(clock_.now() - options_.idempotency_window);
  KeyIndex::Runs parts;
  {
    const std::scoped_lock lock(index_mutex_);
    CRETO_TRY(index_->adopt(std::move(run)));
    CRETO_TRY(index_->forget_before(since_s));
    parts = index_->mergeable();
  }
  while (!parts.empty()) {
    auto merged = CRETO_TRY(index_->merge(parts, since_s));
    const std::scoped_lock lock(index_mutex_);
    CRETO_TRY(index_->adopt(std::move(merged)));
    parts = index_->mergeable();
  }
  return {};
}

}  // namespace creto::metering
