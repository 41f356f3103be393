#include "creto/vault/vault.h"

#include <gtest/gtest.h>

#include "creto/testing/databases.h"
#include "creto/testing/temp_dir.h"
#include "creto/testing/wire.h"
#include "creto/vault/root_key.h"
#include "creto/vault/vault_rpc.h"
#include "vault_contract.h"

namespace creto::vault {
namespace {

struct Local {
  explicit Local(testing::DatabaseKind kind) : test_database(kind, clock), database(test_database.open()) {
    EXPECT_TRUE(create_root_key(directory / "root.key", Secret()));
    sealer = std::move(*open_root_key(directory / "root.key", Secret()));
    auto made = create_vault(*database, *sealer, access, clock);
    EXPECT_TRUE(made) << made.error().to_string();
    vault = std::move(*made);
  }
  testing::FakeClock clock;
  testing::TestDatabase test_database;
  std::unique_ptr<sql::Database> database;
  testing::TempDir directory;
  ListedAccess access;
  std::unique_ptr<crypto::KeySealer> sealer;
  std::unique_ptr<Vault> vault;
};

VaultFactory local(std::string name, testing::DatabaseKind kind) {
  return {std::move(name), [kind](VaultOptions) {
            auto all = std::make_shared<Local>(kind);
            return VaultUnderTest{all, all->vault.get(), &all->access, &all->clock, all->database.get()};
          }};
}

VaultFactory over_the_wire() {
  return {"client", [](VaultOptions) {
            struct Remote {
              Local local{testing::DatabaseKind::sqlite};
              testing::Wire wire{local.clock};
              std::unique_ptr<Vault> client;
            };
            auto all = std::make_shared<Remote>();
            register_vault(all->wire.dispatcher(), *all->local.vault);
            all->client = create_vault_client(all->wire.connect());
            auto& l = all->local;
            return VaultUnderTest{all,      all->client.get(), &l.access,
                                  &l.clock, l.database.get(),  create_vault_client(all->wire.connect("other"))};
          }};
}

INSTANTIATE_TEST_SUITE_P(, VaultContract,
                         ::testing::Values(local("sqlite", testing::DatabaseKind::sqlite),
                                           local("postgres", testing::DatabaseKind::postgres), over_the_wire()),
                         [](const auto& info) { return info.param.name; });

class VaultAtRest : public ::testing::Test {
 protected:
  Local all_{testing::DatabaseKind::sqlite};
  const Identity ada_ = *Identity::human("ada@example.org");
  const Context ctx_ = Context::of(ada_, {ada_});
};

TEST_F(VaultAtRest, KeepsNoValueInClearInTheDatabase) {
  ASSERT_TRUE(all_.vault->create_secret(ctx_, NewSecret{{"a", "B"}, Secret::copy_of("the-very-value"), {}, {}}));
  const auto rows =
      sql::read(*all_.database, ctx_, [](sql::Tx& tx) { return tx.query("SELECT sealed FROM vault_secret_versions"); });
  ASSERT_TRUE(rows);
  ASSERT_EQ(rows->size(), 1u);
  EXPECT_EQ(as_text(rows->front().bytes(0)).find("the-very-value"), std::string_view::npos);
}

TEST_F(VaultAtRest, AValueMovedToAnotherSecretDoesNotOpen) {
  ASSERT_TRUE(all_.vault->create_secret(ctx_, NewSecret{{"a", "B"}, Secret::copy_of("1"), {}, {}}));
  ASSERT_TRUE(all_.vault->create_secret(ctx_, NewSecret{{"a", "C"}, Secret::copy_of("2"), {}, {}}));
  ASSERT_TRUE(all_.database->transaction(ctx_, [](sql::Tx& tx) -> Result<> {
    CRETO_TRY(
        tx.exec("UPDATE vault_secret_versions SET sealed = (SELECT v.sealed FROM vault_secret_versions v"
                " JOIN vault_secrets s ON s.id = v.secret_id WHERE s.name = 'B')"));
    return {};
  }));
  EXPECT_TRUE(all_.vault->get_secret(ctx_, {"a", "B"}));
  EXPECT_EQ(all_.vault->get_secret(ctx_, {"a", "C"}).error().kind(), ErrorKind::decryption_failed);
}

}  // namespace
}  // namespace creto::vault
