#include "ledger.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "batch_proof.h"
#include "block_reader.h"
#include "creto/common/assert.h"
#include "creto/crypto/hash.h"
#include "cut_off.h"
#include "layout.h"

namespace creto::metering {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t group_events_max = 64'000;
constexpr std::size_t group_bytes_max = 16 << 20;
constexpr std::uint32_t envelope_bit = 1U << 31;  ///< in KnownKey::index: the event has an id of its own
constexpr std::string_view checkpoint_magic = "CRETOS2\n";
constexpr std::string_view checkpoint_suffix = ".state";

void put_entry(Bytes& out, const NewEvent& event) {
  layout::put(out, event.attribution);
  layout::put(out, event.reporter);
  layout::put(out, event.content);
  const int flags =
      (event.id ? has_envelope : 0) | (event.target != nullptr ? is_correction : 0) | (event.priced ? is_priced : 0);
  layout::put(out, static_cast<std::uint8_t>(flags));
  if (event.id) layout::put(out, event.id->bytes());
  layout::put_sized(out, event.record.bytes);
  if (event.id) layout::put_sized(out, event.envelope);
  if (event.target != nullptr) {
    const Target& target = *event.target;
    layout::put(out, target.place.block.segment);
    layout::put(out, target.place.block.offset);
    layout::put(out, target.place.index);
    layout::put(out, unix_ns(target.counted_at));
    layout::put(out, target.attribution);
    layout::put_sized(out, target.record);
  }
  if (event.priced) {
    layout::put_sized(out, event.record.cost);
    layout::put_sized(out, event.record.currency);
  }
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
  Instant arrived{};
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

Ledger::~Ledger() { stop(); }

void Ledger::stop() {
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

// --- the start

Result<> Ledger::start(const Restore& restore, const Replay& replay) {
  CRETO_TRY(files_.create_directories(directory_));
  CRETO_TRY(begin_log());
  index_ = CRETO_TRY(KeyIndex::open(files_, directory_ / "keys"));
  position_.end = log_->end();
  const BlockAddress state_from = CRETO_TRY(load_checkpoint(restore));
  base_ = {};
  const BlockAddress keys_from = std::max(held_->from, {index_->covered() + 1, 0});
  CRETO_TRY(load(std::min(state_from, keys_from), state_from, replay));
  written_ = subjects_.mark();
  position_.end = log_->end();
  position_.head = log_->head();
  maintenance_ = std::thread([this] { maintain(); });
  return {};
}

/// The first block names the log and holds the key of its hashes: it goes where the log goes.
Result<> Ledger::begin_log() {
  const auto base = CRETO_TRY(log_->base());
  if (base) return read_base(*base);
  held_ = std::make_shared<const Held>(Held{.from = log_->begin()});
  if (log_->end() == log_->begin()) {
    key_hash_ = KeyHasher::fresh();
    return log_->append(key_hash_.beginning());
  }
  const Bytes block = CRETO_TRY(log_->read(log_->begin()));
  key_hash_ = CRETO_TRY(KeyHasher::of_beginning(log_->begin(), block));
  return {};
}

Result<> Ledger::read_base(const LogBase& base) {
  const CutOff cut = CRETO_TRY(read_cut_off(base));
  key_hash_ = CRETO_TRY(KeyHasher::of_beginning(log_->begin(), cut.beginning));
  base_ = to_bytes(cut.rest);
  held_ = std::make_shared<const Held>(Held{.from = {base.segment, log_->begin().offset},
                                            .events = cut.events,
                                            .until = cut.until,
                                            .defined = cut.defined,
                                            .base = base.hash});
  return {};
}

/// Where its state ends in the log. Without a usable checkpoint: where what is held begins.
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
    const bool good = reader.ok() && as_text(start) == checkpoint_magic && crypto::blake3(content) == hash &&
                      address <= log_->end() && address >= held_->from;
    if (!good) {
      telemetry_.log(LogLevel::warn, "metering", "checkpoint_unusable", nullptr, {{"path", path.string()}});
      CRETO_TRY(files_.remove(path));
      continue;
    }
    layout::Reader state(content);
    CRETO_TRY(subjects_.read(state));
    CRETO_TRY(corrections_.read(state));
    corrections_.forget_before(held_->from);
    position_.end = address;  // what comes after it is replayed
    auto restored = restore(*this, state.bytes(state.left()), Saved::checkpoint);
    if (restored) return address;
    if (restored.error().kind() != ErrorKind::invalid_input) return std::move(restored).error();
    corrections_.clear();
    position_.end = log_->end();
    telemetry_.log(LogLevel::warn, "metering", "checkpoint_unusable", nullptr,
                   {{"path", path.string()}, {"error", restored.error().to_string()}});
  }
  layout::Reader base(base_);
  if (!base_.empty()) CRETO_TRY(subjects_.read(base));
  CRETO_TRY(restore(*this, base.bytes(base.left()), Saved::base));
  return held_->from;
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
    segment_begun_ = {};
    return {};
  };
  CRETO_TRY(log_->scan(from, log_->end(), [&](BlockAddress address, BytesView content, const Hash256&) -> Result<> {
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
      if (++segment_events_ == 1) segment_begun_ = block.arrived();
      const KeyHash key = key_hash_(subjects_, entry.attribution, entry.record);
      if (segment > covered) {
        index_->insert({key, segment, address.offset, entry.index | (entry.id ? envelope_bit : 0),
                        seconds_of(block.arrived()), entry.content});
      }
      if (address < state_from) return {};
      ++position_.events;
      if (entry.corrects)
        corrections_.add({{address, entry.index}, entry.corrects->place, !entry.record.voids.empty()});
      return replay(StoredEvent{entry.id.value_or(id_of(key, seconds_of(block.arrived()))), address, entry.index,
                                block.arrived(), entry.attribution, entry.reporter, entry.record, entry.envelope,
                                entry.corrects});
    });
  }));
  return segment == 0 ? Result<>() : enter(log_->end().segment);
}

// --- taking events

Result<std::vector<Outcome>> Ledger::append(std::span<const NewEvent> events, const BatchProof* proof,
                                            const std::function<void(std::span<const Outcome>, Instant)>& counted) {
  std::size_t bytes = 0;
  for (const NewEvent& event : events) bytes += event.record.bytes.size() + event.envelope.size();
  if (events.size() > group_events_max || bytes > group_bytes_max) {
    return Error(Product::metering, ErrorKind::too_large,
                 fmt::format("batch: must be at most {} events and {} bytes", group_events_max, group_bytes_max));
  }
  Waiting mine{.events = events, .proof = proof, .bytes = bytes};
  std::unique_lock lock(queue_mutex_);
  changed_.wait(lock, [&] { return !paused_; });
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
  if (!mine.failed && counted) counted(mine.outcomes, mine.arrived);
  lock.lock();
  if (--inside_ == 0) changed_.notify_all();
  if (mine.failed) return *std::move(mine.failed);
  return std::move(mine.outcomes);
}

Result<> Ledger::write(std::span<Waiting* const> group) {
  const std::scoped_lock lock(index_mutex_);
  const Instant arrived = clock_.now();
  CRETO_TRY(seal_if_full(arrived));
  const BlockAddress address = log_->end();
  std::vector<KeyHash> inserted;
  auto done = decide(group, arrived, inserted);
  if (done && !inserted.empty()) {
    done = log_->append(block_);
    if (done) {
      written_ = defined_;
      if (segment_events_ == 0) segment_begun_ = arrived;
      segment_events_ += inserted.size();
    }
  }
  if (!done) {
    for (auto key = inserted.rbegin(); key != inserted.rend(); ++key) index_->erase_last(*key);
    corrections_.drop_from({address, 0});
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
  block_events_.clear();
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
    waiting->arrived = arrived;
    index_of_event_.assign(waiting->events.size(), BatchProof::not_taken);
    waiting->outcomes.clear();
    waiting->outcomes.reserve(waiting->events.size());
    for (std::size_t i = 0; i < waiting->events.size(); ++i) {
      const NewEvent& event = waiting->events[i];
      const auto known = CRETO_TRY(find_known(event.key, since_s));
      if (known) {
        const bool same = known->content == event.content;
        const EventId first = CRETO_TRY(id_of_known(*known));
        waiting->outcomes.push_back({same ? Outcome::Kind::duplicate : Outcome::Kind::conflict, first});
        continue;
      }
      const auto index = static_cast<std::uint32_t>(inserted.size());
      if (event.target != nullptr) {
        const auto refused = CRETO_TRY(check_target(event, arrived, since_s));
        if (refused) {
          waiting->outcomes.push_back(*refused);
          continue;
        }
        corrections_.add({{address, index}, event.target->place, !event.record.voids.empty()});
      }
      index_->insert({event.key, address.segment, address.offset, index | (event.id ? envelope_bit : 0), arrived_s,
                      event.content});
      inserted.push_back(event.key);
      index_of_event_[i] = index;
      put_entry(block_, event);
      block_ids_.push_back(event.id.value_or(id_of(event.key, arrived_s)));
      block_events_.push_back(&event);
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

/// What speaks against a correction. None: its target is found, and still counts.
Result<std::optional<Outcome>> Ledger::check_target(const NewEvent& event, Instant arrived, std::uint32_t since_s) {
  Target& target = *event.target;
  bool found = target.found;
  if (!found) found = CRETO_TRY(find_target(target, arrived, since_s));
  const auto refuse = [](Outcome::Kind kind, EventId id) { return std::optional(Outcome{kind, id}); };
  if (!found) return refuse(Outcome::Kind::unknown_target, EventId::from_bytes({}));
  // Numbers of subjects are those of one organization.
  if (subjects_.attribution(target.attribution).agent != subjects_.attribution(event.attribution).agent) {
    const EventId id = CRETO_TRY(id_at(target.place));
    return refuse(Outcome::Kind::target_of_other, id);
  }
  if (target.reporter != event.reporter && !event.may_correct_others) {
    const EventId id = CRETO_TRY(id_at(target.place));
    return refuse(Outcome::Kind::target_reported_by_other, id);
  }
  if (target.voids) {
    const EventId id = CRETO_TRY(id_at(target.place));
    return refuse(Outcome::Kind::target_voids, id);
  }
  if (const auto by = corrections_.by(target.place)) {
    const EventId id = CRETO_TRY(id_at(*by));
    return refuse(Outcome::Kind::target_taken, id);
  }
  return std::optional<Outcome>();
}

/// Of the block that is being made, or what came since it was looked for.
Result<bool> Ledger::find_target(Target& target, Instant arrived, std::uint32_t since_s) const {
  const BlockAddress address = log_->end();
  std::optional<std::uint32_t> index;
  if (target.id) {
    const auto known = std::ranges::find(block_ids_, *target.id);
    if (known != block_ids_.end()) index = static_cast<std::uint32_t>(known - block_ids_.begin());
  } else {
    const auto known = CRETO_TRY(find_known(target.key, since_s));
    if (!known) return false;
    const RowPlace place{{known->segment, known->offset}, known->index & ~envelope_bit};
    if (place.block != address) {
      CRETO_TRY(visit(std::span(&place, 1), [&](const StoredEvent& event) -> Result<> {
        fill(target, event);
        return {};
      }));
      return target.found;
    }
    index = place.index;
  }
  if (!index) return false;
  const NewEvent& event = *block_events_[*index];
  std::optional<Corrected> corrects;
  if (event.target != nullptr) corrects.emplace().counted_at = event.target->counted_at;
  fill(target,
       {block_ids_[*index], address, *index, arrived, event.attribution, event.reporter, event.record, {}, corrects});
  return true;
}

void Ledger::fill(Target& target, const StoredEvent& event) {
  target.found = true;
  target.place = event.place();
  target.counted_at = event.corrects ? event.corrects->counted_at : event.arrived;
  target.attribution = event.attribution;
  target.reporter = event.reporter;
  target.voids = !event.record.voids.empty();
  target.record.clear();
  encode_record(event.record, target.record);
}

Result<EventId> Ledger::id_at(const RowPlace& place) const {
  if (place.block == log_->end()) return block_ids_[place.index];
  std::optional<EventId> id;
  CRETO_TRY(visit(std::span(&place, 1), [&](const StoredEvent& event) -> Result<> {
    id = event.id;
    return {};
  }));
  if (!id) return Error(Product::metering, ErrorKind::unavailable, "usage log: was cut off meanwhile; ask again");
  return *id;
}

/// What is remembered within the window. A window that was made longer reaches no further than what is held.
Result<std::optional<KnownKey>> Ledger::find_known(const KeyHash& key, std::uint32_t since_s) const {
  auto known = CRETO_TRY(index_->find(key, since_s));
  if (known && known->segment < held()->from.segment) known.reset();
  return known;
}

/// The id of an event whose key is known. Those with an id of their own keep it in the log alone.
Result<EventId> Ledger::id_of_known(const KnownKey& known) {
  if ((known.index & envelope_bit) == 0) return id_of(known.key, known.arrived_s);
  return id_at({{known.segment, known.offset}, known.index & ~envelope_bit});
}

Result<> Ledger::seal_if_full(Instant now) {
  const BlockAddress end = log_->end();
  const bool old = segment_events_ > 0 && now - segment_begun_ >= options_.segment_age_max;
  if (segment_events_ < options_.segment_events_max && end.offset < options_.segment_bytes_max && !old) return {};
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

BlockAddress Ledger::pause(const std::function<void()>& fn) {
  BlockAddress end;
  {
    std::unique_lock lock(queue_mutex_);
    changed_.wait(lock, [&] { return !paused_; });
    paused_ = true;
    changed_.wait(lock, [&] { return inside_ == 0; });
    end = position_.end;
    fn();
    paused_ = false;
  }
  changed_.notify_all();
  return end;
}

Result<> Ledger::checkpoint(const std::function<bool(Bytes&)>& begin, const std::function<bool(Bytes&)>& more) {
  Bytes content;
  Bytes state;
  Subjects::Mark mark;
  bool begun = false;
  const BlockAddress address = pause([&] {
    mark = written_;
    begun = begin(state);
  });
  if (!begun) return {};
  subjects_.write({}, mark, content);
  corrections_.write(address, content);
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

std::shared_ptr<const Ledger::Held> Ledger::held() const {
  const std::scoped_lock lock(held_mutex_);
  return held_;
}

Result<> Ledger::scan_blocks(BlockAddress from, BlockAddress until,
                             const std::function<Result<>(BlockAddress, BlockReader&)>& visit, const Held* held) const {
  const auto now = this->held();
  if (held == nullptr) held = now.get();
  return log_->scan(std::max(from, held->from), until,
                    [&](BlockAddress address, BytesView content, const Hash256&) -> Result<> {
                      if (address == log_->begin()) return {};
                      BlockReader block(address, content);
                      CRETO_TRY(block.head());
                      CRETO_TRY(block.skip_definitions());
                      return visit(address, block);
                    });
}

Result<> Ledger::scan(BlockAddress from, BlockAddress until, const Replay& visit, const Held* held) const {
  RecordScratch scratch;
  const auto each = [&](BlockAddress address, BlockReader& block) {
    return block.entries(
        scratch, [&](const BlockReader::Entry& entry) { return visit(stored(address, block.arrived(), entry)); });
  };
  return scan_blocks(from, until, each, held);
}

Result<> Ledger::scan_heads(BlockAddress until, const std::function<void(const Hash256&)>& visit) const {
  const auto held = this->held();
  return log_->scan(held->from, until, [&](BlockAddress, BytesView, const Hash256& head) -> Result<> {
    visit(head);
    return {};
  });
}

StoredEvent Ledger::stored(BlockAddress address, Instant arrived, const BlockReader::Entry& entry) const {
  const EventId id =
      entry.id ? *entry.id : id_of(key_hash_(subjects_, entry.attribution, entry.record), seconds_of(arrived));
  return {id,           address,        entry.index,   arrived, entry.attribution, entry.reporter,
          entry.record, entry.envelope, entry.corrects};
}

Result<> Ledger::visit(std::span<const RowPlace> places, const Replay& each) const {
  RecordScratch scratch;
  const auto held = this->held();
  for (auto next = std::ranges::lower_bound(places, RowPlace{held->from, 0}); next != places.end();) {
    const BlockAddress address = next->block;
    const Bytes content = CRETO_TRY(log_->read(address));
    BlockReader block(address, content);
    CRETO_TRY(block.head());
    CRETO_TRY(block.skip_definitions());
    CRETO_TRY(block.entries(scratch, [&](const BlockReader::Entry& entry) -> Result<> {
      if (next == places.end() || next->block != address || next->index != entry.index) return {};
      ++next;
      return each(stored(address, block.arrived(), entry));
    }));
    if (next != places.end() && next->block == address) return unreadable(address);
  }
  return {};
}

Result<std::optional<RowPlace>> Ledger::find(const KeyHash& key) const {
  const std::uint32_t since_s = seconds_of(clock_.now() - options_.idempotency_window);
  const std::scoped_lock lock(index_mutex_);
  const auto known = CRETO_TRY(find_known(key, since_s));
  if (!known) return std::optional<RowPlace>();
  return std::optional(RowPlace{{known->segment, known->offset}, known->index & ~envelope_bit});
}

Result<> Ledger::scan_proofs(BlockAddress until, const std::function<Result<>(const StoredBatch&)>& visit) const {
  RecordScratch scratch;
  std::vector<Hash256> taken;
  std::vector<AttributionNumber> whose;
  std::vector<Hash256> leaves;
  return scan_blocks({}, until, [&](BlockAddress address, BlockReader& block) -> Result<> {
    taken.clear();
    whose.clear();
    CRETO_TRY(block.entries(scratch, [&](const BlockReader::Entry& entry) -> Result<> {
      taken.push_back(record_leaf(entry.record.bytes));
      whose.push_back(entry.attribution);
      return {};
    }));
    const auto proofs = CRETO_TRY(block.proofs());
    for (const BlockReader::Proof& proof : proofs) {
      leaves.clear();
      std::optional<AttributionNumber> one;
      for (const auto& leaf : proof.leaves) {
        if (leaf.index != UINT32_MAX && leaf.index >= taken.size()) return unreadable(address);
        leaves.push_back(leaf.index == UINT32_MAX ? leaf.hash : taken[leaf.index]);
        if (leaf.index != UINT32_MAX) one = whose[leaf.index];
      }
      if (one) CRETO_TRY(visit({proof, leaves, subjects_.org_of(*one), block.arrived()}));
    }
    return {};
  });
}

Result<bool> Ledger::begins_block(BlockAddress address) const {
  const auto held = this->held();
  if (address == log_->begin() || address < held->from) return false;
  const auto content = log_->read(address);
  if (content) return true;
  const bool elsewhere = content.error().category() != ErrorCategory::transient;
  return elsewhere ? Result<bool>(false) : Result<bool>(content.error());
}

Result<BlockAddress> Ledger::first_at(Instant when) const {
  const auto held = this->held();
  const BlockAddress end = position().end;
  const std::uint32_t place = log_->begin().offset;
  // The last segment whose first block arrived before `when`. The log's first block has no time: it is before all.
  std::uint32_t low = held->from.segment;
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

Result<> Ledger::cut(std::uint32_t segment, BytesView state, const std::function<Result<>(const Held&)>& vouch) {
  const auto before = held();
  CRETO_ASSERT(segment > before->from.segment && segment <= position().end.segment);
  auto next = std::make_shared<Held>(*before);
  next->from.segment = segment;
  LogBase base{.segment = segment};
  CRETO_TRY(log_->scan(
      before->from, next->from, [&](BlockAddress address, BytesView content, const Hash256& hash) -> Result<> {
        base.before = hash;
        if (address == log_->begin()) return {};
        BlockReader block(address, content);
        CRETO_TRY(block.head());
        CRETO_TRY(block.skip_definitions());
        next->events += block.count();
        next->until = std::max(next->until, block.arrived());
        next->defined.subjects = std::max(next->defined.subjects, block.defined().subjects);
        next->defined.attributions = std::max(next->defined.attributions, block.defined().attributions);
        return {};
      }));
  const Bytes beginning = key_hash_.beginning();
  Bytes rest;
  subjects_.write({}, next->defined, rest);
  layout::put_bytes(rest, state);
  base.content = write_cut_off({next->events, next->until, next->defined, beginning, rest});
  CRETO_TRY(log_->cut(base, [&](const Hash256& hash) {
    next->base = hash;
    return vouch(*next);
  }));
  const std::scoped_lock lock(held_mutex_);
  held_before_.push_back(std::exchange(held_, std::move(next)));
  return {};
}

Result<bool> Ledger::remove_cut() {
  BlockAddress from;
  {
    const std::scoped_lock lock(held_mutex_);
    std::erase_if(held_before_, [](const auto& one) { return one.expired(); });
    if (!held_before_.empty()) return false;
    from = held_->from;
  }
  CRETO_TRY(log_->remove_cut());
  corrections_.forget_before(from);
  return true;
}

Result<Bytes> Ledger::base_state() const {
  const auto base = CRETO_TRY(log_->base());
  if (!base) return Bytes();
  const CutOff cut = CRETO_TRY(read_cut_off(*base));
  layout::Reader reader(cut.rest);
  Subjects::skip(reader);
  return to_bytes(reader.bytes(reader.left()));
}

void Ledger::settle() {
  std::unique_lock lock(maintenance_mutex_);
  work_.wait(lock, [&] { return (frozen_.empty() && due_.empty() && !busy_) || stopping_; });
}

std::size_t Ledger::memory_bytes() const {
  const std::scoped_lock lock(index_mutex_);
  return index_->memory_bytes();
}

/// Turns full tables of keys into runs and runs into larger ones, and tells who waits for full segments.
void Ledger::maintain() {
  std::unique_lock lock(maintenance_mutex_);
  // Runs `work` without the lock; logs why it failed.
  const auto succeeds = [&](const char* event, const auto& work) {
    busy_ = true;
    lock.unlock();
    const Result<> done = work();
    if (!done) telemetry_.log(LogLevel::error, "metering", event, nullptr, {{"error", done.error().to_string()}});
    lock.lock();
    busy_ = false;
    return done.has_value();
  };
  while (!stopping_) {
    work_.wait(lock, [&] { return stopping_ || !frozen_.empty() || !due_.empty(); });
    bool good = true;
    if (!stopping_ && !frozen_.empty()) {
      const Frozen frozen = frozen_.front();
      // Where it fails, the keys stay in memory, and at the next start in the log.
      good = succeeds("key_run_failed", [&] { return make_runs(frozen); });
      if (good) {
        frozen_.erase(frozen_.begin());
        if (options_.sealed) due_.push_back(frozen.segment);
      }
    }
    while (good && !stopping_ && !due_.empty()) {
      good = succeeds("segment_follow_up_failed", [&, segment = due_.front()] { return options_.sealed(segment); });
      if (good) due_.erase(due_.begin());
    }
    work_.notify_all();
    if (!good) work_.wait_for(lock, options_.sealed_again_after, [&] { return stopping_; });
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
