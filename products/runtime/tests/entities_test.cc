// Sandboxes as policies see them.

#include <gtest/gtest.h>

#include "creto/authz/authz.h"
#include "creto/runtime/runtime_entities.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "store.h"

namespace creto::runtime {
namespace {

class SandboxEntities : public ::testing::TestWithParam<creto::testing::DatabaseKind> {
 protected:
  SandboxEntities() {
    EXPECT_TRUE(RuntimeStore::migrate(*db));
    EXPECT_TRUE(authz->register_source(*source));
  }
  void permit(const std::string& condition) {
    auto done = authz->create_policy(
        ctx, "p",
        "permit(principal, action == Action::\"sandbox.exec\", resource is Sandbox) when {" + condition + "};");
    ASSERT_TRUE(done) << done.error().to_string();
  }
  bool may(const Identity& who, const SandboxId& id) {
    return authz::allowed(authz->check(ctx, {.principal = who,
                                             .chain = {},
                                             .action = "sandbox.exec",
                                             .resource = {"Sandbox", id.to_string()},
                                             .context = {},
                                             .arguments_hash = {},
                                             .override_token = {}}));
  }
  Result<> write(const std::function<Result<>(sql::Tx&)>& fn) { return db->transaction(ctx, fn); }

  creto::testing::FakeClock clock;
  const Context ctx = Context::of_service(Identity::service("test").value());
  const Identity agent = Identity::agent(ByteArray<32>{1}), other = Identity::agent(ByteArray<32>{2});
  const Identity human = Identity::human("ada@example.com").value();
  creto::testing::TestDatabase database{GetParam(), clock};
  std::unique_ptr<sql::Database> db = database.open();
  std::unique_ptr<authz::ResourceSource> source = sandbox_entities(*db);
  std::unique_ptr<authz::Authz> authz = authz::create_authz(*db, clock, no_telemetry(), {}, Secret(32)).value();
};

INSTANTIATE_TEST_SUITE_P(, SandboxEntities, both_databases(), database_name);

TEST_P(SandboxEntities, ItsOwnerMayUntilItEnds) {
  permit("resource.owner == principal && resource.state == \"running\"");
  SandboxRecord record{ctx.org, Sandbox{SandboxId::fresh(clock.now()), agent}, {}, {}, {}, {}, 0, {}};
  record.sandbox.state = SandboxState::running;
  EXPECT_FALSE(may(agent, record.sandbox.id)) << "it is not there yet";
  ASSERT_TRUE(write([&](sql::Tx& tx) { return RuntimeStore::insert(tx, record); }));
  EXPECT_TRUE(may(agent, record.sandbox.id));
  EXPECT_FALSE(may(other, record.sandbox.id));
  record.sandbox.state = SandboxState::terminated;
  ASSERT_TRUE(write([&](sql::Tx& tx) { return RuntimeStore::update(tx, record); }));
  EXPECT_FALSE(may(agent, record.sandbox.id));
}

TEST_P(SandboxEntities, TellWhoMadeThemAndWhatTheyAreBelow) {
  SandboxRecord parent{ctx.org, Sandbox{SandboxId::fresh(clock.now()), agent}, {}, {}, {}, {}, 0, {}};
  SandboxRecord child{ctx.org, Sandbox{SandboxId::fresh(clock.now()), other}, {}, {}, {}, {}, 0, {}};
  parent.creator = human;
  parent.sandbox.delegation_chain = {human, agent};
  parent.sandbox.runtime_class = "runsc";
  child.sandbox.parent = parent.sandbox.id;
  ASSERT_TRUE(write([&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(RuntimeStore::insert(tx, parent));
    return RuntimeStore::insert(tx, child);
  }));
  permit(
      "resource in principal && (!(resource has creator) || resource.creator == resource.root && "
      "resource.runtime_class == \"runsc\")");
  EXPECT_TRUE(may(agent, parent.sandbox.id));
  EXPECT_TRUE(may(agent, child.sandbox.id)) << "it is below a sandbox of the agent's";
  EXPECT_TRUE(may(other, child.sandbox.id));
  EXPECT_FALSE(may(other, parent.sandbox.id));
}

}  // namespace
}  // namespace creto::runtime
