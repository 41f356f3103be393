#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "creto/io/sql.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/listed_access.h"
#include "creto/vault/vault.h"

namespace creto::vault {

using creto::testing::ListedAccess;

/// One vault to test, however it is reached.
struct VaultUnderTest {
  std::shared_ptr<void> keeps_alive;
  Vault* vault = nullptr;
  ListedAccess* access = nullptr;
  testing::FakeClock* clock = nullptr;
  sql::Database* database = nullptr;
  std::shared_ptr<Vault> elsewhere = {};  ///< for organization "other", where the connection decides the organization
};

struct VaultFactory {
  std::string name;
  std::function<VaultUnderTest(VaultOptions)> make;
};
inline std::ostream& operator<<(std::ostream& out, const VaultFactory& factory) { return out << factory.name; }

class VaultContract : public ::testing::TestWithParam<VaultFactory> {
 protected:
  void SetUp() override { under_test_ = GetParam().make({}); }

  Vault& vault() { return *under_test_.vault; }
  ListedAccess& access() { return *under_test_.access; }
  testing::FakeClock& clock() { return *under_test_.clock; }

  static Context as(const Identity& who) { return Context::of(who, {who}); }
  Result<SecretInfo> create(const std::string& ref, const std::string& value, const Identity& owner);
  /// How many audit records hold `text`.
  std::size_t audited(const std::string& text);

  const Identity ada_ = *Identity::human("ada@example.org");
  const Identity bob_ = *Identity::human("bob@example.org");
  const Identity agent_ = Identity::agent(ByteArray<32>{1});
  const SandboxId sandbox_ = SandboxId::fresh(from_unix_ns(1));
  const SandboxId other_sandbox_ = SandboxId::fresh(from_unix_ns(2));
  VaultUnderTest under_test_;
};

}  // namespace creto::vault
