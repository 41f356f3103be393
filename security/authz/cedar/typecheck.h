#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cedar/ast.h"
#include "cedar/problem.h"
#include "cedar/schema.h"
#include "cedar/validate.h"

namespace creto::authz::cedar {

/// One kind of request.
struct Environment {
  const std::string& principal;
  const ActionDef& action;
  const std::string& resource;
};

class ExpressionNames;

/// The types of a policy's expressions, for one kind of request after another. All references must outlive it.
class PolicyTypes {
 public:
  PolicyTypes(const Schema& schema, const PolicyAst& policy, ValidationMode mode);
  ~PolicyTypes();
  PolicyTypes(const PolicyTypes&) = delete;
  PolicyTypes& operator=(const PolicyTypes&) = delete;

  /// Whether the policy may apply to such a request. `types` becomes the type of each node that was looked at, and null
  /// for the others.
  bool infer(const Environment& environment, std::vector<TypePtr>& types, std::vector<Problem>& errors);

 private:
  const Schema& schema_;
  const PolicyAst& policy_;
  const ValidationMode mode_;
  const std::unique_ptr<ExpressionNames> names_;
};

}  // namespace creto::authz::cedar
