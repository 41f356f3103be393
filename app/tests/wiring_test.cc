#include "wiring.h"

#include <gtest/gtest.h>

#include "creto/crypto/signing.h"
#include "creto/io/files.h"
#include "creto/testing/databases.h"
#include "creto/testing/sealer.h"
#include "creto/testing/temp_dir.h"
#include "creto/vault/vault.h"

namespace creto::app {
namespace {

TEST(LogAuditor, RecordsARefusedCallWhateverTheCallerNamed) {
  creto::testing::TempDir directory;
  creto::testing::TestDatabase store{creto::testing::DatabaseKind::sqlite};
  const auto database = store.open();
  using crypto::SignatureAlgorithm;
  audit::AuditKeys keys{crypto::SigningKey::generate(SignatureAlgorithm::ed25519),
                        crypto::SigningKey::generate(SignatureAlgorithm::ml_dsa_65)};
  const auto log = audit::create_audit_log(*database, io::real_files(), system_clock(), no_telemetry(), std::move(keys),
                                           {.directory = directory / "log", .origin = "creto.local/audit/default"})
                       .value();
  const auto auditor = audit_with(*log);
  const auto ctx = Context::of_service(Identity::service("eve").value());
  // No text of a request may keep its refusal from being recorded.
  const std::vector<std::string> ids = {"plain", std::string("a\0b", 3), std::string(1023, 'x') + "\xC3\xBC",
                                        std::string(1 << 20, 'y'), "\xFF"};
  for (const std::string& id : ids) {
    const Error refused(Product::platform, ErrorKind::permission_denied, "no policy permits it on `" + id + "`");
    const auto recorded = auditor->record(ctx, {"/s/M", "vault.get_secret", {"Secret", id}, &refused, "peer"});
    EXPECT_TRUE(recorded) << recorded.error().to_string();
  }
  ASSERT_TRUE(log->flush(ctx));
  EXPECT_EQ(log->query(ctx, {}).value().entries.size(), ids.size());
}

class SecretsOnBoth : public ::testing::TestWithParam<creto::testing::DatabaseKind> {};

INSTANTIATE_TEST_SUITE_P(, SecretsOnBoth, both_databases(), database_name);

TEST_P(SecretsOnBoth, AreReadByWhomPolicySeesAsEntitled) {
  creto::testing::TestDatabase store{GetParam()};
  const auto database = store.open();
  creto::testing::TestSealer sealer;
  const auto resources = secret_entities(*database);
  const auto authz = authz::create_authz(*database, system_clock(), no_telemetry(), {}, Secret(32)).value();
  ASSERT_TRUE(authz->register_source(*resources));
  const auto access = access_through(*authz);
  const auto vault = vault::create_vault(*database, sealer, *access, system_clock()).value();
  const Identity owner = Identity::agent(ByteArray<32>{1}), other = Identity::agent(ByteArray<32>{2});
  const Context ctx = Context::of_service(Identity::service("test").value());
  ASSERT_TRUE(authz->create_policy(ctx, "team", R"(
      permit(principal, action == Action::"secret.read", resource is Secret)
        when { resource.path like "agents/*" && resource.hasTag("team") && resource.getTag("team") == "finance" };)"));
  ASSERT_TRUE(authz->create_policy(ctx, "write", R"(
      permit(principal, action == Action::"secret.write", resource is Secret) when { resource.owner == principal };)"));

  const vault::SecretRef ref{"agents/invoice", "TOKEN"};
  const auto create = [&](const std::string& team) {
    return vault->create_secret(Context::of(owner, {owner}),
                                {ref, Secret::copy_of("s3cret"), {vault::SecretType::token, "", {{"team", team}}}, {}});
  };
  ASSERT_TRUE(create("finance"));
  EXPECT_TRUE(vault->get_secret(Context::of(other, {other}), ref));
  EXPECT_EQ(vault->delete_secret(Context::of(other, {other}), ref).error().kind(), ErrorKind::permission_denied);
  ASSERT_TRUE(vault->delete_secret(Context::of(owner, {owner}), ref));
  ASSERT_TRUE(create("legal"));
  EXPECT_EQ(vault->get_secret(Context::of(other, {other}), ref).error().kind(), ErrorKind::permission_denied)
      << "it is another secret now";
}

}  // namespace
}  // namespace creto::app
