#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "authz_probe.h"
#include "creto/io/sql.h"
#include "decisions/decision_log.h"
#include "policy_editor.h"
#include "snapshot.h"

namespace creto::authz {

/// What is in force: the snapshot that checks see, how it follows from the tables, and how long that is known to be so.
/// Thread-safe; checks take no lock.
class InForce {
 public:
  /// All references must outlive it. `fresh_for` is that of AuthzOptions.
  InForce(sql::Database& database, const Clock& clock, AuthzProbe& probe, const PolicyEditor& editor, Nanos fresh_for)
      : database_(database), clock_(clock), probe_(probe), editor_(editor), fresh_for_(fresh_for) {}

  /// Reads everything. `log`, unless null, is told of each state before any check can refer to it.
  Result<> start(DecisionLog* log);

  SnapshotHolder::Pin pin() const { return snapshots_.pin(); }
  std::shared_ptr<const Snapshot> current() const { return snapshots_.current(); }
  /// Whether nobody knows any more what is in force.
  bool is_stale(const Snapshot& snapshot) const;
  /// What is in force may be older then than is permitted.
  Monotonic fresh_until() const { return fresh_until_.load(std::memory_order_relaxed); }

  /// False: nothing was changed, it was only answered again.
  using Change = std::function<Result<bool>(sql::Tx& tx, OrgState& state)>;
  /// Runs `fn` in a transaction on a copy of what is in force, which carries the organization's next version; after the
  /// commit the copy is in force. Where it is not certain what is stored, takes everything from there.
  Result<> change(const Context& ctx, const Change& fn);
  /// Changes what is stored nowhere: extensions and sources.
  Result<> amend(const std::function<Result<>(Snapshot& next)>& fn);
  /// Takes over what another process stored.
  Result<> refresh(const Context& ctx);

 private:
  /// Requires of these: `writing_` is held. `reload` changes nothing where it fails.
  Result<> reload(const Context& ctx);
  Result<> reload_or_deny(const Context& ctx);
  /// What was stored before there was a history becomes its first version.
  Result<> begin_histories();
  void put_in_force(std::shared_ptr<const Snapshot> next);
  void publish(const std::string& org, std::shared_ptr<const OrgState> state);
  void is_fresh_as_of(Monotonic begin);

  sql::Database& database_;
  const Clock& clock_;
  AuthzProbe& probe_;
  const PolicyEditor& editor_;
  const Nanos fresh_for_;
  DecisionLog* log_ = nullptr;
  SnapshotHolder snapshots_;
  std::atomic<Monotonic> fresh_until_{Monotonic::max()};
  std::mutex writing_;  ///< one change at a time, so that snapshots follow the versions
};

}  // namespace creto::authz
