#include "creto/authz/authz.h"
#include "creto/messaging/messaging_entities.h"
#include "store.h"

namespace creto::messaging {
namespace {

class TopicEntities final : public authz::ResourceSource {
 public:
  explicit TopicEntities(sql::Database& database) : database_(database) {}

  std::vector<std::string> types() const override { return {"Topic"}; }

  Result<std::optional<authz::Entity>> find(const Context& ctx, const authz::EntityUid& uid) const override {
    const auto topic =
        CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_topic(tx, ctx.org, uid.id); }));
    if (!topic) return std::optional<authz::Entity>();
    const authz::EntityUid owner = authz::entity_of(topic->owner);
    return std::optional(
        authz::Entity{uid, {{"owner", owner}, {"created_at", authz::datetime_of(topic->created_at)}}, {}, {owner}});
  }

 private:
  sql::Database& database_;
};

}  // namespace

std::unique_ptr<authz::ResourceSource> topic_entities(sql::Database& database) {
  return std::make_unique<TopicEntities>(database);
}

}  // namespace creto::messaging
