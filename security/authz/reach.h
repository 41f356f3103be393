#pragma once

#include <span>
#include <string>
#include <vector>

#include "cedar/policy_set.h"

namespace creto::authz {

/// A forbid with `@oversight` for which nobody will ever be asked.
struct Unreachable {
  PolicyId oversight;
  PolicyId because_of;  ///< a forbid without `@oversight` that applies whenever it does; empty: no permit reaches it

  /// "the oversight of `large` is never reached: `none` forbids all of it".
  std::string to_string() const;
};

/// A policy as far as this goes.
struct PolicyView {
  const PolicyId& id;
  const cedar::PolicyAst& ast;
};

/// What scopes and equal conditions alone show, so by far not all; each oversight at most once. Only of `among` where
/// that is not empty: as the one or the other of the two. `with_permits`: `policies` are all there are.
std::vector<Unreachable> unreachable_oversight(std::span<const PolicyView> policies, std::span<const PolicyId> among,
                                               bool with_permits);

}  // namespace creto::authz
