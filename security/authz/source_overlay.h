#pragma once

#include <algorithm>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "asked_resources.h"
#include "cedar/interpreter.h"
#include "cedar/program.h"
#include "creto/authz/authz.h"
#include "hash.h"

namespace creto::authz {

/// What sources and products add to the stored entities, for the engine. Without `sources`, they may know everything.
class SourceOverlay final : public cedar::EntityOverlay {
 public:
  SourceOverlay(cedar::EntityView& view, const cedar::EntityStore& store,
                const std::vector<const EntitySource*>* sources, cedar::Frame& frame,
                const AskedResources* resources = nullptr)
      : view_(view), store_(store), sources_(sources), resources_(resources), frame_(frame) {}

  const cedar::EntityNode* find(const cedar::Cell& cell) override {
    if (is_stored_alone(*cell.uid)) {
      if (cell.id == cedar::no_entity) return nullptr;
      const cedar::EntityNode& node = store_.node(cell.id);
      return node.entity ? &node : nullptr;
    }
    const auto entity = view_.find(*cell.uid);
    if (!entity) {
      frame_.trouble = true;
      return nullptr;
    }
    if (!*entity) return nullptr;
    if (cell.id != cedar::no_entity && store_.node(cell.id).entity.get() == *entity) return &store_.node(cell.id);
    for (const auto& [known, node] : made_)
      if (known == *entity) return &node;
    cedar::EntityNode& node = made_.emplace_back(*entity, cedar::EntityNode()).second;
    node.uid = (*entity)->uid;
    node.entity = std::shared_ptr<const Entity>(std::shared_ptr<const Entity>(), *entity);  // the view's own
    for (const auto& [name, value] : (*entity)->attributes)
      node.attributes.push_back({hash_text(name), &name, store_.cell(value)});
    for (const auto& [name, value] : (*entity)->tags) node.tags.push_back({hash_text(name), &name, store_.cell(value)});
    return &node;
  }

  bool is_below(const cedar::Cell& entity, const cedar::Cell& ancestor) override {
    if (is_at_the_top(entity)) return false;
    const auto below = view_.is_in(*entity.uid, *ancestor.uid);
    if (!below) frame_.trouble = true;
    return below && *below;
  }

  std::vector<cedar::EntityId> ancestors(const cedar::Cell& entity) override {
    std::vector<cedar::EntityId> ids;
    if (is_at_the_top(entity)) return ids;
    const auto all = view_.ancestors(*entity.uid);
    if (!all) frame_.trouble = true;
    if (!all) return ids;
    for (const EntityUid& uid : **all)
      if (const cedar::EntityId id = store_.find(uid); id != cedar::no_entity) ids.push_back(id);
    return ids;
  }

 private:
  /// Nobody has to be asked.
  bool is_stored_alone(const EntityUid& uid) const {
    return sources_ && !(resources_ && resources_->may_know(uid.type)) &&
           std::none_of(sources_->begin(), sources_->end(),
                        [&](const EntitySource* source) { return source->may_know(uid.type); });
  }
  bool is_at_the_top(const cedar::Cell& entity) const {
    return is_stored_alone(*entity.uid) && (entity.id == cedar::no_entity || store_.node(entity.id).parents.empty());
  }

  cedar::EntityView& view_;
  const cedar::EntityStore& store_;
  const std::vector<const EntitySource*>* sources_;
  const AskedResources* const resources_;
  cedar::Frame& frame_;
  std::list<std::pair<const Entity*, cedar::EntityNode>> made_;
};

}  // namespace creto::authz
