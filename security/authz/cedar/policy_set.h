#pragma once

#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cedar/interpreter.h"
#include "cedar/program.h"
#include "creto/common/id.h"

namespace creto::authz::cedar {

/// A policy ready to run. Immutable and shared by all snapshots it is part of.
struct PlannedPolicy {
  PlannedPolicy(PolicyId id_, PolicyAst ast_, bool sufficient_ = true)
      : id(std::move(id_)), ast(std::move(ast_)), sufficient(sufficient_) {
    if (!ast.is_template()) program = Program::compile(ast);
  }
  PlannedPolicy(const PlannedPolicy&) = delete;  // the program borrows from the tree
  PlannedPolicy& operator=(const PlannedPolicy&) = delete;

  const PolicyId id;
  const PolicyAst ast;
  const bool
      sufficient;  ///< false: a permit of which Cedar does not know whether it holds, so others are looked at too
  Program program;
};

/// What became of each policy for one request.
struct Evaluation {
  std::vector<const PlannedPolicy*> permits;  ///< satisfied ones
  std::vector<const PlannedPolicy*> forbids;  ///< satisfied ones
  std::vector<std::pair<const PlannedPolicy*, Error>> errors;

  /// Cedar's decision: some permit, no forbid.
  bool allows() const { return !permits.empty() && forbids.empty(); }
  /// What determined it.
  const std::vector<const PlannedPolicy*>& reasons() const { return forbids.empty() ? permits : forbids; }
};

/// A set of policies, indexed by the action they name. Immutable.
class PolicySet {
 public:
  PolicySet() = default;
  explicit PolicySet(std::vector<std::shared_ptr<const PlannedPolicy>> policies);

  /// The reference: interprets every policy that can match the action. Check `entities.trouble()` before using the
  /// result.
  Evaluation evaluate(const Request& request, EntityView& entities) const;

  const std::vector<std::shared_ptr<const PlannedPolicy>>& policies() const { return policies_; }

 private:
  std::vector<std::shared_ptr<const PlannedPolicy>> policies_;
  std::unordered_map<EntityUid, std::vector<const PlannedPolicy*>> by_action_;  ///< `action == X` alone
  std::vector<const PlannedPolicy*> others_;
};

}  // namespace creto::authz::cedar
