#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "snapshot.h"

/// What entities have to be to be stored.
namespace creto::authz {

/// Its names and its size. Errors: invalid_input, too_large.
Result<> check_entity(const Entity& entity);

/// Errors: the one that `check` finds; where it finds several, invalid_input with up to 100 of them, one a line.
Result<> check_each(const std::vector<Entity>& entities, const std::function<Result<>(const Entity&)>& check);

/// What storing `added` would do to what is stored.
EntityChanges changes_by(const OrgState& state, const std::vector<Entity>& added);

/// That the stored hierarchy with `added` on top has no cycle, and not too many entities. Errors: invalid_input,
/// resource_exhausted.
Result<> check_hierarchy(const OrgState& state, const std::vector<Entity>& added, std::size_t entities_max);

/// What is stored, with the actions that the schema declares, which are entities as if they were.
void load_entities(OrgState& state, std::vector<Entity> entities);
/// Errors: resource_exhausted where the hierarchy becomes too large; `state` is of no use then.
Result<> add_entities(OrgState& state, const std::vector<Entity>& added, std::size_t ancestors_max);

}  // namespace creto::authz
