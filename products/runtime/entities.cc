#include "creto/authz/authz.h"
#include "creto/runtime/runtime_entities.h"
#include "store.h"

namespace creto::runtime {
namespace {

class SandboxEntities final : public authz::ResourceSource {
 public:
  explicit SandboxEntities(sql::Database& database) : database_(database) {}

  std::vector<std::string> types() const override { return {"Sandbox"}; }

  Result<std::optional<authz::Entity>> find(const Context& ctx, const authz::EntityUid& uid) const override {
    const auto id = SandboxId::parse(uid.id);
    if (!id) return std::optional<authz::Entity>();
    const auto record =
        CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return RuntimeStore::find(tx, ctx.org, *id); }));
    if (!record) return std::optional<authz::Entity>();
    const Sandbox& sandbox = record->sandbox;
    const authz::EntityUid owner = authz::entity_of(sandbox.agent);
    authz::Entity entity{
        uid,
        {{"owner", owner},
         {"root", sandbox.delegation_chain.empty() ? owner : authz::entity_of(sandbox.delegation_chain.front())},
         {"state", std::string(to_string(sandbox.state))},
         {"image", sandbox.image},
         {"image_digest", sandbox.image_digest},
         {"runtime_class", sandbox.runtime_class},
         {"isolation", sandbox.isolation},
         {"created_at", authz::datetime_of(sandbox.created_at)}},
        {},
        {owner}};
    if (record->creator) entity.attributes.emplace_back("creator", authz::entity_of(*record->creator));
    if (sandbox.parent) {
      const authz::EntityUid parent{"Sandbox", sandbox.parent->to_string()};
      entity.attributes.emplace_back("parent", parent);
      entity.parents.push_back(parent);
    }
    return std::optional(std::move(entity));
  }

 private:
  sql::Database& database_;
};

}  // namespace

std::unique_ptr<authz::ResourceSource> sandbox_entities(sql::Database& database) {
  return std::make_unique<SandboxEntities>(database);
}

}  // namespace creto::runtime
