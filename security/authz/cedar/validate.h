#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cedar/ast.h"
#include "cedar/problem.h"
#include "cedar/schema.h"

/// Cedar's validator: a policy that passes cannot err at run time but for arithmetic overflow and entities that are
/// not there, as long as requests and entities conform to the schema.
namespace creto::authz::cedar {

struct ValidationOptions {
  ValidationMode mode = ValidationMode::strict;
  /// How many steps from the request's entities a policy may take (Cedar's RFC 76): `principal.manager.name` takes two.
  std::optional<unsigned> level_max = {};
  /// There are actions that the schema does not declare: what a policy for any action says may be of those.
  bool other_actions = false;
};

struct PolicyFindings {
  std::vector<Problem> errors;    ///< in the order of the text, each once
  std::vector<Problem> warnings;  ///< the policy can never apply; a text of it may be read as another (`confusables`)

  bool passed() const { return errors.empty(); }
};

/// Under every kind of request that the schema knows. `policy` may be a template: it is checked for all types of
/// entities its slots may be linked to.
PolicyFindings validate(const Schema& schema, const PolicyAst& policy, const ValidationOptions& options = {});

}  // namespace creto::authz::cedar
