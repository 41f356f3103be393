#pragma once

#include <array>
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
  const Attributes& context;                     ///< of two with one name the later counts
  const Attributes::value_type* more = nullptr;  ///< one attribute besides, which counts before these
};

enum class Detail : std::uint8_t {
  decision,  ///< every forbid, and permits up to the first that is satisfied and sufficient
  all,       ///< every policy that could matter
};

/// A policy set compiled for an entity store: an index from request to the few policies that can matter, and their
/// programs. Gives what `PolicySet::evaluate` gives, which stays as the reference. A value: a copy shares everything
/// with its original, and neither sees the other's changes. Reading is thread-safe.
class Engine {
  struct Linked;  // a policy and the numbers of what it names
  struct Candidate {
    std::uint32_t order = 0;
    bool forbids = false;
    const Linked* linked = nullptr;
  };

 public:
  Engine() = default;
  /// Numbers in `store` what the policies name. Runs with that store and with later copies of it.
  Engine(const PolicySet& policies, EntityStore& store);

  /// Puts `added` where `removed` was; either may be null. Costs what it changes, not what there is. `store` is the
  /// constructor's or a later copy of it. Requires: `removed` is one of these.
  void replace(const PlannedPolicy* removed, std::shared_ptr<const PlannedPolicy> added, EntityStore& store);

  /// What one check needs, reused so that the next allocates nothing. One thread.
  struct Scratch {
    Frame frame;
    std::vector<Candidate> candidates;
    Evaluation result;
  };

  /// The result, which lives in `scratch`; policies in the set's order, each in the place of the one it replaced.
  /// `explain` gives the error of a policy that erred. False where `overlay` or the hierarchy failed: then nothing was
  /// decided.
  bool evaluate(Scratch& scratch, const EntityStore& store, EntityOverlay* overlay, const RequestView& request,
                Detail detail, const std::function<Error(const PlannedPolicy&)>& explain) const;

 private:
  /// How the audience of a policy says what principal or resource it is for.
  enum Aspect : std::uint8_t { any, type, one };
  struct Shape {
    bool action;
    Aspect principal, resource;
    std::size_t index() const { return (action * 3u + principal) * 3u + resource; }
  };
  static constexpr std::size_t shapes = 18;

  struct Linked {
    std::shared_ptr<const PlannedPolicy> policy;
    std::array<EntityId, 8> few = {};  ///< the numbers, where that is room enough: then they lie with the rest
    std::vector<EntityId> many;

    const EntityId* numbers() const { return many.empty() ? few.data() : many.data(); }
  };
  struct Member {
    std::uint32_t order = 0;  ///< its place among all policies
    bool forbids = false;     ///< its effect, here so that only who runs it fetches the policy
    std::shared_ptr<const Linked> linked;
  };
  /// What the index files a policy under: one shape, and a key for each action it names.
  struct Filing {
    Shape shape;
    std::vector<std::uint64_t> keys;  ///< sorted, each once
  };
  struct Bucket {
    std::uint64_t key = 0;
    std::uint32_t first = 0, count = 0;  ///< in `members`
    bool used = false;
  };
  /// The policies of some of the keys. Immutable once an engine has it.
  struct Part {
    std::vector<Bucket> buckets;  ///< open addressing
    std::vector<Member> members;  ///< those of one bucket lie together
    std::size_t used = 0;

    const Bucket* find(std::uint64_t key) const;
    void add(std::uint64_t key, Member member);
    /// Returns its order.
    std::uint32_t remove(std::uint64_t key, const PlannedPolicy* policy);
    void resize(std::size_t buckets);
  };

  static std::uint64_t key(Shape shape, std::uint64_t action, std::uint64_t principal, std::uint64_t resource);
  static Filing filing(const Linked& linked);
  static Member link(std::uint32_t order, std::shared_ptr<const PlannedPolicy> policy, EntityStore& store);
  /// The upper half of a key chooses the part, the lower the bucket.
  std::size_t part_of(std::uint64_t key) const { return (key >> 32) & (parts_.size() - 1); }
  void count(const Filing& filed);
  void rebuild(const std::vector<Member>& members);
  std::vector<Member> members() const;  ///< by their order
  void collect(std::vector<Candidate>& out, const Frame& frame, const IdSet& groups) const;
  void collect(std::vector<Candidate>& out, std::uint64_t key) const;

  std::vector<std::shared_ptr<const Part>> parts_;
  std::size_t entries_ = 0;  ///< in all parts
  std::uint32_t next_order_ = 0;
  std::array<std::uint32_t, shapes> of_shape_ = {};  ///< how many policies
  std::uint32_t shapes_present_ = 0;
};

}  // namespace creto::authz::cedar
