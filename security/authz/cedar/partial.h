#pragma once

#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "cedar/policy_set.h"

/// Policies decided as far as a request is known, and what is left of them.
namespace creto::authz::cedar {

/// A principal, action or resource: one entity, or any of a type, or any.
struct PartialEntity {
  std::optional<EntityUid> uid;
  std::string type = {};  ///< where `uid` is empty: of this type alone; empty: of any
};

struct PartialRequest {
  PartialEntity principal, action, resource;
  Value context = Value::record({});  ///< what is known of it; a record
  /// Attributes of the context that may be anything, or absent; what `context` has under these names does not count.
  std::set<std::string, std::less<>> unknown_context = {};
  bool context_unknown = false;  ///< all of it

  /// Whether one of the unknown ones may be `uid`: then it may exist though the view does not know it.
  bool may_be_unknown(const EntityUid& uid) const;
};

/// What became of one policy.
struct PartialPolicy {
  enum class Outcome : std::uint8_t { no, yes, error, residual };
  const PlannedPolicy* policy = nullptr;
  Outcome outcome = Outcome::no;
  std::optional<Error> error;  ///< where it errs; which error may depend on what is unknown
  /// Satisfied, not satisfied and erring as the policy is, for every request that completes the partial one; what is
  /// known does not stand in it any more. Empty unless the outcome is `residual`.
  std::optional<PolicyAst> residual;
  bool can_apply = true;  ///< false where the residual is certain not to be satisfied: all it may do is to err
};

/// Cedar skips a forbid that errs; Creto's service denies.
enum class ErringForbid : std::uint8_t { skipped, denies };

enum class PartialDecision : std::uint8_t { allow, deny, undecided };

struct PartialEvaluation {
  PartialRequest request;
  std::vector<PartialPolicy> policies;  ///< all, in the order of their set; borrow from it

  /// Allow or Deny only where it is certain for every completion.
  PartialDecision decision(ErringForbid erring = ErringForbid::skipped) const;
};

/// Nodes of all residuals together.
inline constexpr std::size_t residual_nodes_max = 100'000;

/// Sound for every completion of the request: entities in place of the unknown ones, of their types, which `entities`
/// may know or not, with whatever attributes, tags and parents; and a context that has what is known of it. Not every
/// residual that could be decided is.
/// Requires: no templates among the policies.
/// Errors: the view's trouble; too_large where a residual grows beyond `residual_nodes_max` or is nested more deeply
/// than a policy may be, with the policy's id.
Result<PartialEvaluation> evaluate_partially(const PolicySet& policies, PartialRequest request, EntityView& entities);

/// Which of `candidates` are allowed, in their order. `evaluation` is of a request of which the resource alone is
/// unknown, and its type known, which is that of all candidates; what does not depend on the resource is in it already.
/// Errors: the view's trouble.
Result<std::vector<EntityUid>> query_resources(const PartialEvaluation& evaluation, ErringForbid erring,
                                               std::span<const EntityUid> candidates, EntityView& entities);

}  // namespace creto::authz::cedar
