// Subscriptions as policies see them.

#include <gtest/gtest.h>
#include "billing/billing_store.h"

#include "creto/authz/authz.h"
#include "creto/metering/metering_entities.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "store.h"

namespace creto::metering {
namespace {

class SubscriptionEntities : public ::testing::TestWithParam<creto::testing::DatabaseKind> {};

INSTANTIATE_TEST_SUITE_P(, SubscriptionEntities, both_databases(), database_name);

TEST_P(SubscriptionEntities, ItsOwnerMayUntilItEnds) {
  creto::testing::FakeClock clock;
  creto::testing::TestDatabase database(GetParam(), clock);
  const auto db = database.open();
  ASSERT_TRUE(store::migrate(*db));
  ASSERT_TRUE(billing::migrate(*db));
  const auto source = subscription_entities(*db);
  const auto authz = authz::create_authz(*db, clock, no_telemetry(), {}, Secret(32)).value();
  ASSERT_TRUE(authz->register_source(*source));
  const Context ctx = Context::of_service(Identity::service("test").value());
  const Identity agent = Identity::agent(ByteArray<32>{1}), other = Identity::agent(ByteArray<32>{2});
  ASSERT_TRUE(authz->create_policy(ctx, "own", R"(
      permit(principal, action == Action::"metering.change_subscription", resource is Subscription)
        when { resource.owner == principal && resource.active && resource.plan == "basic" };)"));
  StoredSubscription stored{.org = ctx.org, .subscription = {.id = SubscriptionId::fresh(clock.now())}};
  stored.subscription.agent = agent.text();
  stored.subscription.terms = {{.plan_id = "basic", .plan_version = 1, .from = clock.now()}};
  stored.subscription.started_at = stored.billed_until = clock.now();
  const auto put = [&] {
    return db->transaction(ctx, [&](sql::Tx& tx) { return billing::put_subscription(tx, stored); });
  };
  const auto may = [&](const Identity& who) {
    return authz::allowed(authz->check(ctx, {.principal = who,
                                             .chain = {},
                                             .action = "metering.change_subscription",
                                             .resource = {"Subscription", stored.subscription.id.to_string()},
                                             .context = {},
                                             .arguments_hash = {},
                                             .override_token = {}}));
  };
  EXPECT_FALSE(may(agent));
  ASSERT_TRUE(put());
  EXPECT_TRUE(may(agent));
  EXPECT_FALSE(may(other));
  stored.subscription.ended_at = clock.now();
  ASSERT_TRUE(put());
  EXPECT_FALSE(may(agent));
}

}  // namespace
}  // namespace creto::metering
