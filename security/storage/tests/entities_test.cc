// Stored objects as policies see them.

#include <gtest/gtest.h>

#include "creto/authz/authz.h"
#include "creto/storage/storage_entities.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "storage_store.h"

namespace creto::storage {
namespace {

class ObjectEntities : public ::testing::TestWithParam<creto::testing::DatabaseKind> {
 protected:
  ObjectEntities() {
    EXPECT_TRUE(store::migrate(*db));
    EXPECT_TRUE(authz->register_source(*source));
  }
  bool may(const Identity& who, const std::string& id) {
    return authz::allowed(authz->check(ctx, {.principal = who,
                                             .chain = {},
                                             .action = "storage.read",
                                             .resource = {"Object", id},
                                             .context = {},
                                             .arguments_hash = {},
                                             .override_token = {}}));
  }

  creto::testing::FakeClock clock;
  const Context ctx = Context::of_service(Identity::service("test").value());
  const Identity agent = Identity::agent(ByteArray<32>{1}), other = Identity::agent(ByteArray<32>{2});
  creto::testing::TestDatabase database{GetParam(), clock};
  std::unique_ptr<sql::Database> db = database.open();
  std::unique_ptr<authz::ResourceSource> source = object_entities(*db);
  std::unique_ptr<authz::Authz> authz = authz::create_authz(*db, clock, no_telemetry(), {}, Secret(32)).value();
};

INSTANTIATE_TEST_SUITE_P(, ObjectEntities, both_databases(), database_name);

TEST_P(ObjectEntities, TheNewestVersionSaysWhoMay) {
  ASSERT_TRUE(authz->create_policy(ctx, "own", R"(
      permit(principal, action == Action::"storage.read", resource in Bucket::"reports")
        when { resource.owner == principal && resource.getTag("stage") == "final"
               && resource.classification == "artifact" };)"));
  const auto store = [&](const std::string& stage) {
    const ObjectMetadata metadata{{"reports", "2026/q3.pdf", ObjectId::fresh(clock.now()).to_string()},
                                  agent,
                                  Classification::artifact,
                                  "application/pdf",
                                  {{"stage", stage}},
                                  7,
                                  {},
                                  clock.now(),
                                  clock.now() + std::chrono::hours(1),
                                  {}};
    clock.advance(std::chrono::seconds(1));
    return db->transaction(ctx, [&](sql::Tx& tx) { return store::insert(tx, ctx, {metadata, {}}); });
  };
  EXPECT_FALSE(may(agent, "reports/2026/q3.pdf"));
  ASSERT_TRUE(store("final"));
  EXPECT_TRUE(may(agent, "reports/2026/q3.pdf"));
  EXPECT_FALSE(may(other, "reports/2026/q3.pdf"));
  ASSERT_TRUE(store("draft"));
  EXPECT_FALSE(may(agent, "reports/2026/q3.pdf"));
  ASSERT_TRUE(store("final"));
  clock.advance(std::chrono::hours(2));
  EXPECT_FALSE(may(agent, "reports/2026/q3.pdf")) << "it has expired";
}

}  // namespace
}  // namespace creto::storage
