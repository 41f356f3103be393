#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "block_log.h"
#include "block_reader.h"
#include "corrections.h"
#include "creto/common/clock.h"
#include "creto/common/id.h"
#include "creto/common/signature.h"
#include "creto/common/telemetry.h"
#include "key_index.h"
#include "subjects.h"
#include "usage_record.h"

namespace creto::metering {

/// What a new event wants to take out: as the event names it, and once it was found, what the log has of it.
struct Target {
  std::optional<EventId> id{};  ///< else by its key
  KeyHash key{};
  bool found = false;
  RowPlace place{};
  Instant counted_at{};  ///< see Corrected
  AttributionNumber attribution = 0;
  SubjectNumber reporter = 0;
  bool voids = false;  ///< it takes another one out itself
  Bytes record{};      ///< with its cost
};

/// An event that shall be taken. Everything is borrowed until `append` returns.
struct NewEvent {
  RecordView record;
  AttributionNumber attribution = 0;
  SubjectNumber reporter = 0;  ///< who brought it
  KeyHash key;
  std::uint64_t content = 0;        ///< from the hash of what was signed: the same in a repetition
  std::optional<EventId> id{};      ///< an envelope's own; else it follows from the key and the time of arrival
  std::string_view envelope{};      ///< as received, where the record was made from one
  bool priced = false;              ///< the record's cost is not in its bytes: we gave it
  Target* target = nullptr;         ///< of a correction; one that was not found may still be in the same batch
  bool may_correct_others = false;  ///< also what somebody else reported
};

/// The signature over a batch of records: who reported them, and every record's leaf, also of those that were not
/// taken, so that anyone can compute the root again.
struct BatchProof {
  std::string_view reporter;
  Signature signature;
  struct Leaf {
    Hash256 hash{};
    std::uint32_t event = not_taken;  ///< which of the batch's events it is
  };
  static constexpr std::uint32_t not_taken = UINT32_MAX;
  std::vector<Leaf> leaves;
};

struct Outcome {
  enum class Kind : std::uint8_t {
    accepted,
    duplicate,  ///< `id` is the first event's
    conflict,   ///< the key was used with other content, by `id`
    // Of corrections:
    unknown_target,            ///< nothing is known by what it names
    target_voids,              ///< that only takes another one out; `id` is its own
    target_of_other,           ///< that is another agent's; likewise
    target_taken,              ///< that was taken out before, by `id`
    target_reported_by_other,  ///< somebody else reported that, `id`, and it may not be corrected by others
  };
  Kind kind = Kind::accepted;
  EventId id;
};

/// An event as the log has it. Everything is borrowed for the duration of the visit.
struct StoredEvent {
  EventId id;
  BlockAddress block;
  std::uint32_t index = 0;
  Instant arrived{};
  AttributionNumber attribution = 0;
  SubjectNumber reporter = 0;
  RecordView record;
  std::string_view envelope{};
  std::optional<Corrected> corrects{};
  RowPlace place() const { return {block, index}; }
};

struct LedgerOptions {
  Nanos idempotency_window = std::chrono::hours(24 * 7);  ///< from arrival
  std::uint32_t segment_events_max = 1'000'000;
  std::uint64_t segment_bytes_max = 256 << 20;
  /// A segment whose first event came longer ago takes no more, so that all of it can be cut off soon.
  Nanos segment_age_max = Nanos::max();
  /// Called on the maintenance thread when a segment is full and its keys are in a run; again, a while later, where it
  /// fails. What is still due at a stop is not called any more.
  std::function<Result<>(std::uint32_t segment)> sealed{};
  Nanos sealed_again_after = std::chrono::seconds(10);
};

/// Every event once: takes batches from many threads, tells repetitions apart, and makes what is new durable, many
/// batches with one sync.
///
/// Thread-safe. Invariant 1: an event whose `append` succeeded is in the log, also after a power loss. Invariant 2: no
/// two events in the log have the same key within the window. Invariant 3: everything else here follows from the log.
/// Invariant 4: an event is taken out at most once, by a later one of the same agent.
class Ledger {
 public:
  using Replay = std::function<Result<>(const StoredEvent&)>;
  /// What a state was saved for: a checkpoint; or the base of what was cut off, or of a whole log nothing. After the
  /// latter every event that is held is replayed.
  enum class Saved : std::uint8_t { checkpoint, base };
  /// Called before any replay with what the newest checkpoint holds. Where that answers invalid_input, and where there
  /// is none, it is called with what the base holds.
  using Restore = std::function<Result<>(Ledger&, BytesView, Saved)>;

  /// Which events there still are. Who has one keeps them: none from `from` on is removed before it is let go.
  struct Held {
    BlockAddress from;  ///< where the first of them may lie
    // What was cut off before:
    std::uint64_t events = 0;
    Instant until{};           ///< when the last of it arrived
    Subjects::Mark defined{};  ///< what it defines
    Hash256 base{};            ///< names what stands for it
    bool everything() const { return from.segment <= 1; }
  };

  /// Opens what is in `directory` beside the log: runs of keys, a checkpoint. `replay` gets each event after the
  /// checkpoint. All references must outlive it.
  /// Errors: hash_mismatch where the log is damaged; those of files, `restore` and `replay`.
  static Result<std::unique_ptr<Ledger>> open(std::unique_ptr<BlockLog> log, io::FileSystem& files,
                                              std::filesystem::path directory, const Clock& clock, Telemetry& telemetry,
                                              LedgerOptions options, const Restore& restore, const Replay& replay);
  ~Ledger();
  /// Ends the maintenance thread, and with it the calls of `sealed`; the next start does what is left. Idempotent.
  void stop();

  Subjects& subjects() { return subjects_; }
  const Subjects& subjects() const { return subjects_; }
  const Corrections& corrections() const { return corrections_; }
  /// The hash under which this ledger knows a key.
  KeyHash key_hash(std::string_view org, std::string_view source, std::string_view key) const {
    return key_hash_(org, source, key);
  }
  /// A hash of a name under which tables in memory may know it.
  KeyHash name_hash(std::string_view org, std::string_view name) const { return key_hash_.of_name(org, name); }

  /// One outcome per event, in order. Calls `counted` on this thread when what was accepted is durable, before a
  /// checkpoint can be taken. Errors: nothing of the batch was taken: resource_exhausted (the disk is full),
  /// unavailable, conflict (another process owns the log), hash_mismatch (a run of keys is damaged).
  Result<std::vector<Outcome>> append(std::span<const NewEvent> events, const BatchProof* proof,
                                      const std::function<void(std::span<const Outcome>, Instant arrived)>& counted);

  /// Saves a state together with the place in the log that it stands for. `begin` runs while no event is between log
  /// and `counted`, and should take no time; where it returns false, nothing is saved. Then `more` is called until it
  /// returns false, while events go on. One at a time.
  Result<> checkpoint(const std::function<bool(Bytes&)>& begin, const std::function<bool(Bytes&)>& more);

  /// What came before, and its name: head and end of the log.
  struct Position {
    BlockAddress end;
    Hash256 head{};
    std::uint64_t events = 0;  ///< replayed and taken by this process
  };
  Position position() const;

  std::shared_ptr<const Held> held() const;
  /// Events from `from` on up to, not including, `until`, in the order of their arrival: those that are held now, or by
  /// `held`.
  Result<> scan(BlockAddress from, BlockAddress until, const Replay& visit, const Held* held = nullptr) const;
  /// Each hash that named the log's end once, of what is held, up to `until`.
  Result<> scan_heads(BlockAddress until, const std::function<void(const Hash256&)>& visit) const;
  /// The events at these places, which ascend; none of those that are not held any more.
  Result<> visit(std::span<const RowPlace> places, const Replay& each) const;
  /// What the log has of a target at its place.
  static void fill(Target& target, const StoredEvent& event);
  /// Where the event with this key lies, within the window.
  Result<std::optional<RowPlace>> find(const KeyHash& key) const;
  struct StoredBatch {
    const BlockReader::Proof& proof;
    std::span<const Hash256> leaves;  ///< all of them
    std::string_view org;
    Instant arrived;
  };
  /// Calls `visit` for each batch up to `until` of which an event was taken.
  Result<> scan_proofs(BlockAddress until, const std::function<Result<>(const StoredBatch&)>& visit) const;
  /// Runs `fn` while no event is between log and `counted`; returns where the log ends then.
  BlockAddress pause(const std::function<void()>& fn);
  /// Whether a block with events lies at `address`, which is before the log's end.
  Result<bool> begins_block(BlockAddress address) const;
  /// A block at or before the first one that is held and arrived at `when` or later.
  Result<BlockAddress> first_at(Instant when) const;

  /// Cuts off the segments before `segment`: from now on a base stands for them, with their names and `state`, which is
  /// what was counted in them and all before. `vouch` is called when the base is durable and before it is in force.
  /// Who reads them already goes on; `remove_cut` removes them. One at a time, beside all else. Errors: nothing is cut;
  /// or at the next start it is. Requires: `segment` has a block, and is later than that of `held`; their keys are all
  /// past the idempotency window; a checkpoint was taken after them.
  Result<> cut(std::uint32_t segment, BytesView state, const std::function<Result<>(const Held&)>& vouch);
  /// False where somebody still reads what was cut off: then later.
  Result<bool> remove_cut();
  /// What `cut` was given last; empty where nothing was cut.
  Result<Bytes> base_state() const;
  /// Waits until no run of keys is being written or merged and `sealed` has succeeded for every full segment.
  void settle();
  std::size_t memory_bytes() const;

 private:
  struct Waiting;
  Ledger(std::unique_ptr<BlockLog> log, io::FileSystem& files, std::filesystem::path directory, const Clock& clock,
         Telemetry& telemetry, LedgerOptions options);
  Result<> start(const Restore& restore, const Replay& replay);
  Result<BlockAddress> load_checkpoint(const Restore& restore);
  Result<> begin_log();
  Result<> read_base(const LogBase& base);
  Result<std::optional<KnownKey>> find_known(const KeyHash& key, std::uint32_t since_s) const;
  Result<> scan_blocks(BlockAddress from, BlockAddress until,
                       const std::function<Result<>(BlockAddress, BlockReader&)>& visit,
                       const Held* held = nullptr) const;
  Result<> load(BlockAddress from, BlockAddress state_from, const Replay& replay);
  Result<> write(std::span<Waiting* const> group);
  Result<> decide(std::span<Waiting* const> group, Instant arrived, std::vector<KeyHash>& inserted);
  Result<std::optional<Outcome>> check_target(const NewEvent& event, Instant arrived, std::uint32_t since_s);
  Result<bool> find_target(Target& target, Instant arrived, std::uint32_t since_s) const;
  Result<EventId> id_at(const RowPlace& place) const;
  StoredEvent stored(BlockAddress address, Instant arrived, const BlockReader::Entry& entry) const;
  Result<> seal_if_full(Instant now);
  Result<EventId> id_of_known(const KnownKey& known);
  void maintain();
  std::filesystem::path checkpoint_path(BlockAddress address) const;

  const std::unique_ptr<BlockLog> log_;
  io::FileSystem& files_;
  const std::filesystem::path directory_;
  const Clock& clock_;
  Telemetry& telemetry_;
  const LedgerOptions options_;
  KeyHasher key_hash_;
  Subjects subjects_;
  Corrections corrections_;
  Subjects::Mark written_;  ///< definitions that are in the log ...
  Subjects::Mark defined_;  ///< ... and with the block that is being written

  mutable std::mutex held_mutex_;
  std::shared_ptr<const Held> held_ = std::make_shared<const Held>();
  std::vector<std::weak_ptr<const Held>> held_before_;  ///< those that somebody may still have
  Bytes base_;                                          ///< of the start: what `base` holds after Held, while it lasts

  mutable std::mutex queue_mutex_;
  std::condition_variable changed_;
  std::vector<Waiting*> queue_;
  bool writing_ = false;
  bool paused_ = false;
  std::size_t inside_ = 0;  ///< calls of `append` that have begun
  Position position_;

  /// Of whoever writes, and of the maintenance thread for moments.
  mutable std::mutex index_mutex_;
  std::unique_ptr<KeyIndex> index_;
  std::uint64_t segment_events_ = 0;
  Instant segment_begun_{};  ///< where it has events: when the first came
  Bytes block_, proofs_;
  std::vector<EventId> block_ids_;             ///< of the entries in `block_`, ...
  std::vector<const NewEvent*> block_events_;  ///< ... and what they were made of
  std::vector<std::uint32_t> index_of_event_;

  std::mutex maintenance_mutex_;
  std::condition_variable work_;
  struct Frozen {
    std::uint32_t segment;
    std::shared_ptr<const KeyIndex::Table> keys;
  };
  Result<> make_runs(const Frozen& frozen);
  std::vector<Frozen> frozen_;
  std::vector<std::uint32_t> due_;  ///< full segments for which `sealed` has not succeeded
  bool busy_ = false;
  bool stopping_ = false;
  std::thread maintenance_;
};

}  // namespace creto::metering
