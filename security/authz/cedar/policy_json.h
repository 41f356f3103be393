#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cedar/ast.h"
#include "cedar/parser.h"
#include "creto/common/json.h"
#include "creto/common/result.h"

/// Templates, and policies in Cedar's JSON form. A tree survives the way through JSON and back, positions aside; what
/// JSON cannot tell apart reads back as one of the two: `(a && b) && c` as `a && b && c`, and `x has a.b` as
/// `x has a && x.a has b`. So does Cedar up to 4.9; later versions write a path as an array, which is read too.
namespace creto::authz::cedar {

/// What the slots of a template stand for.
struct SlotValues {
  std::optional<EntityUid> principal, resource;
};

/// The policy that a template becomes. Errors: invalid_input for a slot without a value, and for a value without a
/// slot.
Result<PolicyAst> link(const PolicyAst& policy_template, const SlotValues& values);

struct TemplateLink {
  std::string template_id;
  std::string id;  ///< of the policy that it makes
  SlotValues values;
};

/// Policies, templates and links, each under its id.
struct PolicySetDecl {
  std::map<std::string, PolicyAst> policies, templates;
  std::vector<TemplateLink> links;

  /// All policies with those the links make. Errors: invalid_input for an unknown template, an id that is used twice.
  Result<std::map<std::string, PolicyAst>> linked() const;
};

/// As it stands among the links of a set. Errors: invalid_input.
Result<TemplateLink> link_from_json(const Json& json);
Json to_json(const TemplateLink& link);

/// Errors: too_large where expressions are nested more deeply than a reader would accept.
Result<Json> to_json(const PolicyAst& policy);
Result<Json> to_json(const PolicySetDecl& set);

/// Errors: invalid_input that begins with the path of the member: "conditions[0].body.==.left: …"; too_large.
Result<PolicyAst> policy_from_json(const Json& json, ParseLimits limits = {});
Result<PolicySetDecl> policy_set_from_json(const Json& json, ParseLimits limits = {});
/// The same of a text, with every problem, up to one for each policy and link, and its place; policies have theirs as
/// `where`.
Parsed<PolicySetDecl> read_policies_json(std::string_view text, ParseLimits limits = {});
/// JSON text of a policy (it has an `effect`) or a policy set. The one policy of the former is `policy0`.
Result<PolicySetDecl> parse_policies_json(std::string_view text, ParseLimits limits = {});

}  // namespace creto::authz::cedar
