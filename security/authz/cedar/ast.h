#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "cedar/extension_values.h"
#include "creto/authz/value.h"

namespace creto::authz::cedar {

/// Where something stands in the text, from 1; columns count code points.
struct Position {
  std::uint32_t line = 1;
  std::uint32_t column = 1;
  friend auto operator<=>(const Position&, const Position&) = default;
};

enum class Variable : std::uint8_t { principal, action, resource, context };

enum class Op : std::uint8_t {
  literal,   ///< `value`
  variable,  ///< `variable`
  all_of,    ///< two or more operands of &&
  any_of,    ///< two or more operands of ||
  logical_not,
  negate,
  if_then_else,  ///< three operands
  equal,
  not_equal,
  less,
  less_equal,
  greater,
  greater_equal,
  add,
  subtract,
  multiply,
  in,
  is,         ///< `name` is the entity type; a second operand where `in` follows
  like,       ///< `pattern`
  has,        ///< `path`
  attribute,  ///< `name`
  contains,
  contains_all,
  contains_any,
  is_empty,
  has_tag,
  get_tag,
  set,
  record,  ///< `path` names the operands
  call,    ///< `function`
};

/// A pattern of `like`: pieces of literal bytes with a wildcard between each two.
using Pattern = std::vector<std::string>;

using NodeId = std::uint32_t;

/// One node of an expression. Nodes lie in their policy's pool, operands before the node that uses them.
struct Node {
  Op op = Op::literal;
  Variable variable = Variable::principal;
  Position where = {};
  std::vector<NodeId> operands = {};
  std::string name = {};
  std::vector<std::string> path = {};
  Pattern pattern = {};
  std::optional<Value> value = {};
  const ExtensionFunction* function = nullptr;
};

/// What the head of a policy asks of principal, action or resource.
struct ScopeConstraint {
  enum class Kind : std::uint8_t { any, equal, in, in_any, is, is_in };
  Kind kind = Kind::any;
  std::string type;                 ///< is, is_in
  std::vector<EntityUid> entities;  ///< one, but for in_any; none where a slot stands for it
  bool slot = false;                ///< `?principal` or `?resource`: the policy is a template
  Position where = {};              ///< of the type or the first entity
};

enum class Effect : std::uint8_t { permit, forbid };

struct Condition {
  bool unless = false;
  NodeId expression = 0;
};

/// One parsed policy or template. Immutable once it leaves the parser. Only one without slots can be evaluated.
struct PolicyAst {
  Effect effect = Effect::permit;
  Position where;
  std::map<std::string, std::string, std::less<>> annotations;
  ScopeConstraint principal, action, resource;
  std::vector<Condition> conditions;
  std::vector<Node> nodes;

  bool is_template() const { return principal.slot || resource.slot; }
};

}  // namespace creto::authz::cedar
