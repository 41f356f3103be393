#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "creto/authz/authz.h"
#include "creto/io/files.h"
#include "creto/io/sql.h"
#include "decisions/decision_probe.h"

namespace creto::crypto {
class Hasher;
}

namespace creto::authz {

/// Brings the segments of the decision log to disk and into the audit log, and removes old ones. Thread-safe.
///
/// Whoever fills a segment hands over its blocks and goes on; one thread here writes them, syncs, seals and purges. So
/// a disk or a database that stalls holds up nobody before `behind_bytes_max` of blocks wait in memory. A block that
/// cannot be written, as where the disk is full, stays and is tried again.
class SegmentKeeper {
 public:
  /// One segment on its way. Made by who fills it.
  class Segment {
   public:
    explicit Segment(std::uint64_t sequence_) : sequence(sequence_) {}
    const std::uint64_t sequence;

    /// A sync failed: nobody knows what of it is on disk.
    bool is_doubtful() const { return doubtful_.load(std::memory_order_relaxed); }
    /// What was written is gone, so what follows is not written either: begin another.
    bool is_lost() const { return lost_.load(std::memory_order_relaxed); }

   private:
    friend SegmentKeeper;
    std::atomic<bool> doubtful_{false}, lost_{false};
    // The keeper's:
    std::unique_ptr<io::Journal> journal_;  ///< null: not open, or it failed
    std::uint64_t blocks_ = 0;              ///< in the file
    bool synced_ = true;
    bool renamed_ = false;  ///< to what a closed one is called
  };
  /// What the audit log is told at a segment's end.
  struct Summary {
    std::uint64_t decisions = 0, refused = 0;
    Instant first{}, last{};
    bool recovered = false;
  };
  struct Block {
    std::shared_ptr<Segment> segment;
    std::uint64_t number = 0;  ///< from 0, in its segment
    Bytes bytes;
    std::uint64_t decisions = 0;   ///< in it
    std::optional<Summary> end{};  ///< of the segment's last block
  };

  /// Finishes what a crash left. All references must outlive it. Errors: those of files and database.
  static Result<std::unique_ptr<SegmentKeeper>> open(sql::Database& database, io::FileSystem& files, const Clock& clock,
                                                     DecisionLogProbe& probe, const DecisionLogOptions& options);
  ~SegmentKeeper();  ///< writes nothing more: see `write_out`

  const ByteArray<16>& log() const { return log_; }  ///< names the directory
  /// The number of a new segment.
  std::uint64_t draw_sequence() { return next_sequence_.fetch_add(1); }

  /// Never fails and never waits. Blocks come in order.
  void take(Block block);
  /// So much waits already that nothing more should be handed over.
  bool is_full() const { return behind_bytes_.load(std::memory_order_relaxed) >= options_.behind_bytes_max; }
  /// The last write failed; it is tried again.
  bool is_stuck() const { return stuck_.load(std::memory_order_relaxed); }

  /// Everything that was handed over is on disk.
  Result<> write_out();
  /// And every closed segment is in the audit log, and old ones are removed.
  Result<> settle();

 private:
  /// A file that was closed and whose hash is still to be entered.
  struct Closed {
    std::uint64_t sequence = 0;
    std::uint64_t bytes = 0, hashed = 0;
    Summary summary;
    std::shared_ptr<crypto::Hasher> hasher;
  };

  SegmentKeeper(sql::Database& database, io::FileSystem& files, const Clock& clock, DecisionLogProbe& probe,
                const DecisionLogOptions& options);
  Result<> start();
  void run();

  // With `keeping_` held:
  Result<> write_waiting();
  Result<> write(const Block& block);
  Result<> open_journal(Segment& segment);
  Result<> sync(Segment& segment);
  Result<> close(Segment& segment, Summary summary);
  Result<> recover();
  Result<> seal(bool all);
  Result<> enter(const Closed& closed, const Hash256& hash);
  Result<> enter_damaged(std::uint64_t sequence, const Error& why);
  Result<> purge();
  Result<Closed> describe(std::uint64_t sequence);
  std::filesystem::path path(std::uint64_t sequence, bool open) const;
  Context own_context() const;

  sql::Database& database_;
  io::FileSystem& files_;
  const Clock& clock_;
  DecisionLogProbe& probe_;
  const DecisionLogOptions options_;
  ByteArray<16> log_{};
  std::atomic<std::uint64_t> next_sequence_{1};

  std::mutex keeping_;
  std::shared_ptr<Segment> current_;  ///< the last that was written to and not closed
  std::deque<Closed> closed_;
  Monotonic next_sync_{}, next_purge_{}, next_seal_{};

  mutable std::mutex waiting_mutex_;
  std::condition_variable wake_;
  std::deque<Block> waiting_;  ///< only the keeper removes, after writing
  bool stopping_ = false;
  std::atomic<std::uint64_t> behind_bytes_{0};
  std::atomic<bool> stuck_{false};
  std::thread thread_;
};

}  // namespace creto::authz
