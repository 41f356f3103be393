#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "asked_resources.h"
#include "cedar/interpreter.h"
#include "creto/authz/authz.h"
#include "decisions/decision_segment.h"
#include "snapshot.h"

namespace creto::authz {

/// Stored entities, those of the sources and the products' resources, as one. Where both know an entity, the source's
/// attributes count and the parents are those of both: so groups can be stored for agents that nhi owns.
class ServiceEntities : public cedar::EntityView {
 public:
  /// Without `resources`, no product is asked.
  ServiceEntities(const std::string& org, const OrgState& state, const std::vector<const EntitySource*>& sources,
                  AskedResources* resources = nullptr)
      : org_(org), state_(state), sources_(sources), resources_(resources) {}

  /// What the sources gave. Nothing that this view returned is valid afterwards.
  SourceEntities take_loaded() { return std::move(loaded_); }

 protected:
  Result<const Entity*> load(const EntityUid& uid) override {
    const cedar::EntityId id = state_.entities.find(uid);
    const Entity* known = id == cedar::no_entity ? nullptr : state_.entities.node(id).entity.get();
    for (const EntitySource* source : sources_) {
      auto found = source->find(org_, uid);
      if (!found) return std::move(found).error();
      if (*found) return merge(known, **std::move(found));
    }
    if (resources_ == nullptr) return known;
    auto found = resources_->find(uid);
    if (!found) return std::move(found).error();
    return *found ? merge(known, **std::move(found)) : known;
  }

 private:
  const Entity* merge(const Entity* known, Entity merged) {
    if (known) {
      merged.attributes.insert(merged.attributes.begin(), known->attributes.begin(), known->attributes.end());
      merged.tags.insert(merged.tags.begin(), known->tags.begin(), known->tags.end());
      merged.parents.insert(merged.parents.end(), known->parents.begin(), known->parents.end());
    }
    cedar::normalise(merged);
    loaded_.push_back(std::move(merged));
    return &loaded_.back();
  }

  const std::string& org_;
  const OrgState& state_;
  const std::vector<const EntitySource*>& sources_;
  AskedResources* const resources_;
  SourceEntities loaded_;
};

}  // namespace creto::authz
