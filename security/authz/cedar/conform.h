#pragma once

#include <functional>
#include <vector>

#include "cedar/interpreter.h"
#include "cedar/partial.h"
#include "cedar/problem.h"
#include "cedar/schema.h"
#include "creto/authz/value.h"
#include "creto/common/json.h"

/// Entities and requests against a schema. Every error is an invalid_input that names what is wrong and where.
namespace creto::authz::cedar {

/// An entity's JSON where the schema supplies what the escapes would say: `{"type", "id"}` is an entity where one is
/// expected, `"10.0.0.1"` an address. Conforms, but for its parents' own ancestors.
Result<Entity> entity_from_json(const Schema& schema, const Json& json);
/// An array of them, with the schema's actions added. Those of which `declared`, unless empty, says no are as they are.
/// Errors: also an entity that stands twice, a cycle in the hierarchy.
Result<std::vector<Entity>> entities_from_json(const Schema& schema, const Json& json,
                                               const std::function<bool(const EntityUid&)>& declared = {});
/// The same of a text, with every problem, up to one for each entity, and its place. `schema` may be null.
Parsed<std::vector<Entity>> read_entities_json(const Schema* schema, std::string_view text, JsonLimits limits,
                                               const std::function<bool(const EntityUid&)>& declared = {});
/// The context of a request for `action`. Conforms, where those of `unknown` may be absent.
/// Errors: also one of `unknown` that the action's context cannot have.
Result<Attributes> context_from_json(const Schema& schema, const EntityUid& action, const Json& json,
                                     const std::set<std::string, std::less<>>& unknown = {});

/// Whether both say the same, in whatever order.
bool is_same(Entity a, Entity b);

/// Its type is declared, attributes and tags are of their types, parents of types it may be in; an action is as the
/// schema has it.
Result<> check_entity(const Schema& schema, const Entity& entity);
/// The action takes such a principal and resource, and the context is of its type.
Result<> check_request(const Schema& schema, const Request& request);
/// What is known of principal, action and resource goes together. The context was read with its types.
Result<> check_request(const Schema& schema, const PartialRequest& request);

}  // namespace creto::authz::cedar
