#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cedar/interpreter.h"
#include "creto/authz/authz.h"
#include "decision_segment.h"
#include "snapshot.h"

namespace creto::authz {

/// Stored entities and those of the sources, as one. Where both know an entity, the source's attributes count and the
/// parents are those of both: so groups can be stored for agents that nhi owns.
class ServiceEntities : public cedar::EntityView {
 public:
  ServiceEntities(const std::string& org, const OrgState& state, const std::vector<const EntitySource*>& sources)
      : org_(org), state_(state), sources_(sources) {}

  /// What the sources gave. Nothing that this view returned is valid afterwards.
  SourceEntities take_loaded() { return std::move(loaded_); }

 protected:
  Result<const Entity*> load(const EntityUid& uid) override {
    const cedar::EntityId id = state_.entities.find(uid);
    const Entity* known = id == cedar::no_entity ? nullptr : state_.entities.node(id).entity.get();
    for (const EntitySource* source : sources_) {
      auto found = source->find(org_, uid);
      if (!found) return std::move(found).error();
      if (!*found) continue;
      Entity merged = **std::move(found);
      if (known) {
        merged.attributes.insert(merged.attributes.begin(), known->attributes.begin(), known->attributes.end());
        merged.tags.insert(merged.tags.begin(), known->tags.begin(), known->tags.end());
        merged.parents.insert(merged.parents.end(), known->parents.begin(), known->parents.end());
      }
      cedar::normalise(merged);
      loaded_.push_back(std::move(merged));
      return &loaded_.back();
    }
    return known;
  }

 private:
  const std::string& org_;
  const OrgState& state_;
  const std::vector<const EntitySource*>& sources_;
  SourceEntities loaded_;
};

}  // namespace creto::authz
