#include "wiring.h"

#include <gtest/gtest.h>

#include "creto/crypto/signing.h"
#include "creto/io/files.h"
#include "creto/testing/databases.h"
#include "creto/testing/temp_dir.h"

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

}  // namespace
}  // namespace creto::app
