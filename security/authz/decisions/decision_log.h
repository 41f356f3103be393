#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "cache_key.h"
#include "creto/authz/authz.h"
#include "creto/io/files.h"
#include "decisions/decision_keeper.h"
#include "decisions/decision_ring.h"
#include "decisions/decision_segment.h"

namespace creto::authz {

/// How a decision came about, gathered on the way to it. One check.
struct Trail {
  std::optional<CacheKey> key;  ///< the request
  Monotonic at{};
  DecidedBy by = DecidedBy::policies;
  bool cached = false;
  std::uint64_t entities = 0;  ///< names what the sources gave: equal names, equal entities; 0: nothing
  const cedar::PlannedPolicy* policy = nullptr;  ///< that determined it
  /// What there is only where policies were run: by itself, so that who finds an answer need not even clear it.
  struct Further {
    std::unique_ptr<const SourceEntities> loaded;       ///< what `entities` names
    std::vector<const cedar::PlannedPolicy*> policies;  ///< that determined it too
    std::vector<OverrideGrant::Lift> lifts;             ///< of the override token
  };
  std::optional<Further> further;

  /// Takes what the sources gave.
  void add_entities(SourceEntities given);
  /// Takes what determined `result`.
  void add_policies(const cedar::Evaluation& evaluation, const PolicyDecision& result);
  Further& make_further() { return further ? *further : further.emplace(); }
};

/// Every decision, in segments whose hashes are in the audit log. Thread-safe.
///
/// The deciding thread puts its record into a ring of its own; one thread here makes blocks of them all, which another
/// (`SegmentKeeper`) brings to disk. So a record is in memory alone for `write_interval` and on disk after
/// `sync_interval`; a crash may lose that much, and the log tells (`recovered`). While a disk stalls it is more, up to
/// `behind_bytes_max`. Otherwise none is lost: where a ring stays full, `append` waits and then says no, and the
/// decision must not be given.
class DecisionLog {
 public:
  /// `note_ttl` is how long a decision may come from a cache. Finishes what a crash left. All references must outlive
  /// it. Errors: those of files and database.
  static Result<std::unique_ptr<DecisionLog>> open(sql::Database& database, io::FileSystem& files, const Clock& clock,
                                                   Telemetry& telemetry, DecisionLogOptions options,
                                                   std::size_t source_versions, Nanos note_ttl);
  /// Writes what waits and seals the segment.
  ~DecisionLog();

  /// What checks may refer to from now on.
  void publish(const std::string& org, std::shared_ptr<const OrgState> state);

  /// Whether the decision will be in the log. No lock, no allocation and no system call where the ring has room and the
  /// decision was cached. `said` is what the policies alone decided. Requires: `trail.key`.
  [[nodiscard]] bool append(Trail& trail, const CheckRequest& request, std::size_t said, const Decision& decision);

  /// Everything appended before is on disk.
  Result<> flush();
  /// And its segment is sealed, in the audit log, and old ones are removed.
  Result<> rotate();

 private:
  struct Filling;
  struct Known {
    std::shared_ptr<const SourceEntities> entities;
    Monotonic used{};
  };

  DecisionLog(const Clock& clock, Telemetry& telemetry, DecisionLogOptions options, std::size_t source_versions,
              Nanos note_ttl);
  void run();

  DecisionRing& ring();
  std::byte* wait_for_room(DecisionRing& ring, std::size_t bytes);

  // With `consuming_` held:
  /// Hands over what the rings hold. False where so much waits for the disk that it could not take all.
  bool drain();
  void add(std::span<std::byte> record, Monotonic now, Nanos to_wall);
  const OrgState* state_of(std::string_view org, std::int64_t version);
  void open_segment();
  void close_segment();
  void hand_over(std::vector<DecisionRing*>& touched);

  const Clock& clock_;
  const DecisionLogOptions options_;
  const std::size_t source_versions_;
  const Nanos note_ttl_;
  const std::uint64_t id_;  ///< tells logs of this process apart
  DecisionLogProbe probe_;
  std::unique_ptr<SegmentKeeper> keeper_;

  std::mutex states_mutex_;
  /// More than one of a version where it was loaded again: they are equal, but their policies are other objects.
  using States = std::vector<std::shared_ptr<const OrgState>>;
  std::map<std::string, std::map<std::int64_t, States>, std::less<>> states_;

  std::mutex rings_mutex_;
  std::vector<std::shared_ptr<DecisionRing>> rings_;

  std::mutex consuming_;
  std::unique_ptr<Filling> filling_;
  std::unordered_map<std::uint64_t, Known> source_entities_;
  Monotonic next_forgetting_{};
  std::vector<std::pair<std::string, std::int64_t>> unused_states_;
  bool busy_ = false;        ///< the last `drain` left something
  LoggedDecision decision_;  ///< reused from record to record
  struct LastState {
    std::string org;
    std::shared_ptr<const OrgState> state;
  } last_state_;  ///< of the record before, during one `drain`

  std::atomic<std::uint64_t> refused_{0};
  std::atomic<bool> asleep_{false};  ///< the filling thread waits for `write_interval` to pass
  std::mutex waiting_mutex_;
  std::condition_variable wake_, room_;
  bool woken_ = false, stopping_ = false;
  std::size_t waiting_ = 0;
  std::thread thread_;
};

/// The name under which `entities` are known: equal ones have equal names, whatever their order is not. Never 0.
std::uint64_t name_of(const SourceEntities& entities);

}  // namespace creto::authz
