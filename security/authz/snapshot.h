#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "cedar/engine.h"
#include "creto/authz/authz.h"

namespace creto::authz {

/// The annotations `@oversight`, `@timeout` and `@approvers` of a forbid.
struct OversightTerms {
  PolicyId oversight_policy;
  std::optional<Nanos> timeout;
  std::vector<std::string> approvers;
};

/// A stored policy, parsed, with what the service reads from its annotations.
struct LoadedPolicy {
  Policy stored;
  std::shared_ptr<const cedar::PlannedPolicy> planned;
  std::optional<OversightTerms> oversight;
};

/// Errors: invalid_input with position; `id` and `text` are what a user gave.
Result<LoadedPolicy> load_policy(Policy stored, std::size_t bytes_max);

/// What is in force in one organization. Immutable.
struct OrgState {
  std::int64_t version = 0;
  std::map<PolicyId, std::shared_ptr<const LoadedPolicy>> policies;
  cedar::EntityStore entities;
  cedar::Engine engine;
  std::set<RequestId> revoked;  ///< requests whose override token was withdrawn

  /// Requires: called whenever `policies` changed, before the state is published.
  void plan();
  /// Forgets the names of what is long gone.
  void compact();
};

/// What one check sees. Immutable.
struct Snapshot {
  std::map<std::string, std::shared_ptr<const OrgState>, std::less<>> orgs;
  std::vector<Extension*> extensions;  ///< by priority
  bool stale = false;                  ///< a change may have been lost: nothing may be allowed

  const OrgState* org(std::string_view name) const {
    const auto at = orgs.find(name);
    return at == orgs.end() ? nullptr : at->second.get();
  }
};

/// The current snapshot, read without a lock: each thread keeps its own reference and renews it when the generation
/// has moved.
class SnapshotHolder {
 public:
  SnapshotHolder();

  class Pin {
   public:
    ~Pin();
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;
    const Snapshot& operator*() const { return *snapshot_; }
    const Snapshot* operator->() const { return snapshot_; }

   private:
    friend class SnapshotHolder;
    Pin(const Snapshot* borrowed, std::shared_ptr<const Snapshot> own) : snapshot_(borrowed), own_(std::move(own)) {}
    const Snapshot* snapshot_;
    std::shared_ptr<const Snapshot> own_;  ///< where the thread's own reference is in use by somebody else
  };
  /// Keeps the current snapshot alive on this thread.
  Pin pin() const;

  std::shared_ptr<const Snapshot> current() const;
  void publish(std::shared_ptr<const Snapshot> next);

 private:
  const std::uint64_t id_;
  std::atomic<std::uint64_t> generation_{1};
  mutable std::mutex mutex_;
  std::shared_ptr<const Snapshot> current_;
};

/// The service's answer to Cedar's: see "Decisions" in the architecture. Forbids in `lifts` count as lifted where they
/// still ask for the same oversight.
struct PolicyDecision {
  Decision decision;
  std::vector<PolicyId> lifted;
};
PolicyDecision decide(const cedar::Evaluation& evaluation, const OrgState& state,
                      std::span<const OverrideGrant::Lift> lifts);

/// Which of two refusals counts: Deny, QuotaExceeded, RateLimited, RequiresOversight, Allow.
bool outranks(const Decision& a, const Decision& b);

}  // namespace creto::authz
