#include "entity_rules.h"

#include <fmt/format.h>

#include <optional>
#include <unordered_map>
#include <utility>

#include "cedar/conform.h"
#include "cedar/text.h"
#include "creto/common/bytes.h"
#include "store.h"

namespace creto::authz {
namespace {

Error error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

}  // namespace

Result<> check_entity(const Entity& entity) {
  const auto check_uid = [](const EntityUid& uid) -> Result<> {
    if (uid.type.size() > 256 || !cedar::is_path(uid.type)) {
      return error(ErrorKind::invalid_input,
                   fmt::format("{} is no entity type", cedar::quote(uid.type.substr(0, 100))));
    }
    if (uid.id.size() <= 4'096 && is_valid_utf8(uid.id)) return {};
    return error(ErrorKind::invalid_input, "the id of an entity is UTF-8 of up to 4096 bytes");
  };
  CRETO_TRY(check_uid(entity.uid));
  if (entity.parents.size() > 1'000) return error(ErrorKind::invalid_input, "an entity has at most 1000 parents");
  for (const EntityUid& parent : entity.parents) {
    CRETO_TRY(check_uid(parent));
  }
  const std::string document = CRETO_TRY(store::document_of(entity));
  if (document.size() <= 64 << 10) return {};
  return error(ErrorKind::too_large, fmt::format("{} is larger than 64 KiB", entity.uid.to_string()));
}

Result<> check_each(const std::vector<Entity>& entities, const std::function<Result<>(const Entity&)>& check) {
  constexpr std::size_t told_max = 100;
  std::optional<Error> first;
  std::vector<std::string> problems;
  for (const Entity& entity : entities) {
    auto checked = check(entity);
    if (checked) continue;
    problems.push_back(checked.error().message());
    if (!first) first = std::move(checked).error();
    if (problems.size() == told_max) break;
  }
  if (!first) return {};
  if (problems.size() == 1) return *std::move(first);
  return error(ErrorKind::invalid_input, fmt::format("{}", fmt::join(problems, "\n")));
}

EntityChanges changes_by(const OrgState& state, const std::vector<Entity>& added) {
  EntityChanges changes;
  for (const Entity& entity : added) {
    const cedar::EntityId id = state.entities.find(entity.uid);
    const Entity* stored = id == cedar::no_entity ? nullptr : state.entities.node(id).entity.get();
    ++(!stored ? changes.added : cedar::is_same(*stored, entity) ? changes.same : changes.changed);
  }
  return changes;
}

Result<> check_hierarchy(const OrgState& state, const std::vector<Entity>& added, std::size_t entities_max) {
  std::unordered_map<EntityUid, const Entity*> fresh;
  for (const Entity& entity : added) fresh[entity.uid] = &entity;
  if (state.entities.entities() + fresh.size() > entities_max) {
    return error(ErrorKind::resource_exhausted, fmt::format("at most {} entities are stored", entities_max));
  }
  const auto parents = [&](const EntityUid& uid) -> const std::vector<EntityUid>* {
    if (const auto at = fresh.find(uid); at != fresh.end()) return &at->second->parents;
    const cedar::EntityId id = state.entities.find(uid);
    if (id == cedar::no_entity || !state.entities.node(id).entity) return nullptr;
    return &state.entities.node(id).entity->parents;
  };
  // Depth first without recursion; an entity on the path that is met again closes a cycle.
  enum class Mark : std::uint8_t { open, done };
  std::unordered_map<EntityUid, Mark> marks;
  for (const Entity& entity : added) {
    std::vector<std::pair<EntityUid, std::size_t>> path{{entity.uid, 0}};
    if (!marks.emplace(entity.uid, Mark::open).second) continue;
    while (!path.empty()) {
      const EntityUid at = path.back().first;
      const auto* above = parents(at);
      if (!above || path.back().second == above->size()) {
        marks[at] = Mark::done;
        path.pop_back();
        continue;
      }
      const EntityUid& parent = (*above)[path.back().second++];
      const auto [mark, is_new] = marks.emplace(parent, Mark::open);
      if (is_new) {
        path.emplace_back(parent, 0);
      } else if (mark->second == Mark::open) {
        return error(ErrorKind::invalid_input, fmt::format("{} would be its own ancestor", parent.to_string()));
      }
    }
  }
  return {};
}

void load_entities(OrgState& state, std::vector<Entity> entities) {
  if (state.schema) {
    auto actions = state.schema->schema.action_entities();
    std::move(actions.begin(), actions.end(), std::back_inserter(entities));
  }
  std::vector<std::shared_ptr<const Entity>> shared;
  shared.reserve(entities.size());
  for (Entity& entity : entities) {
    cedar::normalise(entity);
    shared.push_back(std::make_shared<const Entity>(std::move(entity)));
  }
  state.put_entities(std::move(shared));
}

Result<> add_entities(OrgState& state, const std::vector<Entity>& added, std::size_t ancestors_max) {
  std::vector<std::shared_ptr<const Entity>> shared;
  shared.reserve(added.size());
  for (const Entity& entity : added) shared.push_back(std::make_shared<const Entity>(entity));
  state.put_entities(std::move(shared));
  if (state.entities.ancestors() <= ancestors_max) return {};
  return error(ErrorKind::resource_exhausted,
               fmt::format("at most {} pairs of an entity and one above it", ancestors_max));
}

}  // namespace creto::authz
