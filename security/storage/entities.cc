#include "creto/authz/authz.h"
#include "creto/storage/storage_entities.h"
#include "storage_store.h"

namespace creto::storage {
namespace {

class ObjectEntities final : public authz::ResourceSource {
 public:
  explicit ObjectEntities(sql::Database& database) : database_(database) {}

  std::vector<std::string> types() const override { return {"Object"}; }

  Result<std::optional<authz::Entity>> find(const Context& ctx, const authz::EntityUid& uid) const override {
    const auto slash = uid.id.find('/');
    if (slash == std::string::npos) return std::optional<authz::Entity>();
    const StorageRef ref{uid.id.substr(0, slash), uid.id.substr(slash + 1), ""};
    const auto stored = CRETO_TRY(
        sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find(tx, ctx, ref, database_.clock().now()); }));
    if (!stored) return std::optional<authz::Entity>();
    const ObjectMetadata& object = stored->metadata;
    const authz::EntityUid owner = authz::entity_of(object.owner);
    authz::Entity entity{uid,
                         {{"owner", owner},
                          {"classification", std::string(to_string(object.classification))},
                          {"content_type", object.content_type},
                          {"size_bytes", static_cast<std::int64_t>(object.size_bytes)},
                          {"created_at", authz::datetime_of(object.created_at)}},
                         {},
                         {owner, {"Bucket", ref.bucket}}};
    if (object.expires_at) entity.attributes.emplace_back("expires_at", authz::datetime_of(*object.expires_at));
    for (const auto& [name, value] : object.metadata) entity.tags.emplace_back(name, value);
    return std::optional(std::move(entity));
  }

 private:
  sql::Database& database_;
};

}  // namespace

std::unique_ptr<authz::ResourceSource> object_entities(sql::Database& database) {
  return std::make_unique<ObjectEntities>(database);
}

}  // namespace creto::storage
