#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>

#include "creto/authz/authz.h"

namespace creto::authz {

/// Entities that a test moves about: of every type but one, which it says it never knows.
class TestSource final : public EntitySource {
 public:
  explicit TestSource(std::string foreign_type) : foreign_type_(std::move(foreign_type)) {}

  std::uint64_t version() const override { return version_; }
  bool may_know(std::string_view type) const override { return type != foreign_type_; }
  Result<std::optional<Entity>> find(const std::string&, const EntityUid& uid) const override {
    if (failing) return Error(Product::platform, ErrorKind::unavailable, "the source is down");
    const auto at = entities_.find(uid);
    return at == entities_.end() ? std::optional<Entity>() : std::optional(at->second);
  }
  void put(Entity entity) {
    EntityUid uid = entity.uid;
    entities_.insert_or_assign(std::move(uid), std::move(entity));
    ++version_;
  }
  bool failing = false;

 private:
  std::string foreign_type_;
  std::map<EntityUid, Entity> entities_;
  std::uint64_t version_ = 1;
};

}  // namespace creto::authz
