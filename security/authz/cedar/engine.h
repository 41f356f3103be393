#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "cedar/policy_set.h"
#include "cedar/program.h"

namespace creto::authz::cedar {

/// What a caller holds; borrowed.
struct RequestView {
  const EntityUid& principal;
  const EntityUid& action;
  const EntityUid& resource;
  const Attributes& context;  ///< sorted by name
};

enum class Detail : std::uint8_t {
  decision,  ///< every forbid, and permits up to the first that is satisfied
  all,       ///< every policy that could matter
};

/// A policy set compiled for an entity store: an index from request to the few policies that can matter, and their
/// programs. Gives what `PolicySet::evaluate` gives, which stays as the reference. Immutable, thread-safe.
class Engine {
 public:
  Engine() = default;
  /// Numbers in `store` what the policies name. Runs with that store and with later copies of it.
  Engine(const PolicySet& policies, EntityStore& store);

  /// What one check needs, reused so that the next allocates nothing. One thread.
  struct Scratch {
    Frame frame;
    std::vector<std::uint32_t> candidates;
    Evaluation result;
  };

  /// The result, which lives in `scratch`; policies in the set's order. `explain` gives the error of a policy that
  /// erred. False where `overlay` or the hierarchy failed: then nothing was decided.
  bool evaluate(Scratch& scratch, const EntityStore& store, EntityOverlay* overlay, const RequestView& request,
                Detail detail, const std::function<Error(const PlannedPolicy&)>& explain) const;

 private:
  struct Linked {
    std::shared_ptr<const PlannedPolicy> policy;
    std::uint32_t first = 0, count = 0;  ///< in `numbers_`
  };
  /// How a policy says what principal or resource it is for.
  enum Aspect : std::uint8_t { any, type, one };
  struct Shape {
    bool action;
    Aspect principal, resource;
    std::size_t index() const { return (action * 3u + principal) * 3u + resource; }
  };
  static constexpr std::size_t shapes = 18;
  struct Bucket {
    std::uint64_t key = 0;
    std::uint32_t first = 0, count = 0;  ///< in `members_`; none: empty
  };

  static std::uint64_t key(Shape shape, std::uint64_t action, std::uint64_t principal, std::uint64_t resource);
  void build_index();
  /// `groups`: the numbered ones that the action is in.
  void collect(std::vector<std::uint32_t>& out, const Frame& frame, const IdSet& groups) const;
  void collect(std::vector<std::uint32_t>& out, std::uint64_t key) const;

  std::vector<Linked> policies_;
  std::vector<EntityId> numbers_;
  std::uint32_t shapes_present_ = 0;
  std::vector<Bucket> buckets_;  ///< open addressing
  std::vector<std::uint32_t> members_;
};

}  // namespace creto::authz::cedar
