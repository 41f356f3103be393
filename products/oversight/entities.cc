#include "creto/authz/authz.h"
#include "creto/oversight/oversight_entities.h"
#include "request.h"
#include "store.h"

namespace creto::oversight {
namespace {

class RequestEntities final : public authz::ResourceSource {
 public:
  explicit RequestEntities(sql::Database& database) : database_(database) {}

  std::vector<std::string> types() const override { return {"OversightRequest"}; }

  Result<std::optional<authz::Entity>> find(const Context& ctx, const authz::EntityUid& uid) const override {
    const auto id = RequestId::parse(uid.id);
    if (!id) return std::optional<authz::Entity>();
    const auto request = CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find(tx, ctx, *id); }));
    if (!request) return std::optional<authz::Entity>();
    const contracts::GatedAction& action = request->action;
    const authz::EntityUid owner = authz::entity_of(action.agent);
    std::vector<authz::Value> approvers;
    for (const Identity& approver : asked_now(*request)) approvers.emplace_back(authz::entity_of(approver));
    return std::optional(authz::Entity{uid,
                                       {{"owner", owner},
                                        {"action", action.action},
                                        {"target", authz::EntityUid{action.resource_type, action.resource_id}},
                                        {"state", std::string(contracts::to_string(request->state))},
                                        {"approvers", authz::Value::set(std::move(approvers))},
                                        {"created_at", authz::datetime_of(request->created_at)}},
                                       {},
                                       {owner}});
  }

 private:
  sql::Database& database_;
};

}  // namespace

std::unique_ptr<authz::ResourceSource> request_entities(sql::Database& database) {
  return std::make_unique<RequestEntities>(database);
}

}  // namespace creto::oversight
