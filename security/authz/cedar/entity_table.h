#pragma once

#include <unordered_map>

#include "cedar/interpreter.h"

namespace creto::authz::cedar {

/// Entities that are all in memory from the start.
class EntityTable : public EntityView {
 public:
  EntityTable() = default;
  explicit EntityTable(std::vector<Entity> entities) {
    for (Entity& entity : entities) add(std::move(entity));
  }
  void add(Entity entity) {
    normalise(entity);
    EntityUid uid = entity.uid;
    entities_.insert_or_assign(std::move(uid), std::move(entity));
  }

 protected:
  Result<const Entity*> load(const EntityUid& uid) override {
    const auto at = entities_.find(uid);
    return at == entities_.end() ? nullptr : &at->second;
  }

 private:
  std::unordered_map<EntityUid, Entity> entities_;
};

}  // namespace creto::authz::cedar
