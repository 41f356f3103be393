#include "billing/billing_store.h"
#include "creto/authz/authz.h"
#include "creto/metering/metering_entities.h"

namespace creto::metering {
namespace {

class SubscriptionEntities final : public authz::ResourceSource {
 public:
  explicit SubscriptionEntities(sql::Database& database) : database_(database) {}

  std::vector<std::string> types() const override { return {"Subscription"}; }

  Result<std::optional<authz::Entity>> find(const Context& ctx, const authz::EntityUid& uid) const override {
    const auto id = SubscriptionId::parse(uid.id);
    if (!id) return std::optional<authz::Entity>();
    const auto stored =
        CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return billing::find_subscription(tx, ctx.org, *id); }));
    if (!stored) return std::optional<authz::Entity>();
    const Subscription& subscription = stored->subscription;
    const Identity subject = CRETO_TRY(Identity::parse(subscription.agent));
    const authz::EntityUid owner = authz::entity_of(subject);
    const Instant now = database_.clock().now();
    return std::optional(authz::Entity{uid,
                                       {{"owner", owner},
                                        {"plan", subscription.terms_at(now).plan_id},
                                        {"active", subscription.active_at(now)},
                                        {"started_at", authz::datetime_of(subscription.started_at)}},
                                       {},
                                       {owner}});
  }

 private:
  sql::Database& database_;
};

}  // namespace

std::unique_ptr<authz::ResourceSource> subscription_entities(sql::Database& database) {
  return std::make_unique<SubscriptionEntities>(database);
}

}  // namespace creto::metering
