#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "creto/crypto/kem.h"
#include "creto/io/files.h"
#include "creto/io/sql.h"
#include "creto/storage/storage.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/listed_access.h"

namespace creto::storage {

using creto::testing::ListedAccess;

/// Real key pairs, made when first asked for.
class MadeKeys final : public OwnerKeys {
 public:
  Result<WrappingKey> wrapping_key(const Context&, const Identity& owner) override {
    return WrappingKey{"key-1", "x-wing", of(owner).public_key().bytes()};
  }
  Result<Secret> decapsulate(const Context&, const Identity& owner, std::string_view, BytesView ciphertext) override {
    return of(owner).decapsulate(ciphertext);
  }

 private:
  const crypto::KemPrivateKey& of(const Identity& owner) {
    auto found = keys_.find(owner.text());
    if (found == keys_.end()) {
      found = keys_.emplace(owner.text(), crypto::KemPrivateKey::generate(crypto::KemAlgorithm::x_wing)).first;
    }
    return found->second;
  }
  std::map<std::string, crypto::KemPrivateKey> keys_;
};

struct StorageUnderTest {
  std::shared_ptr<void> keeps_alive;
  Storage* storage = nullptr;
  ListedAccess* access = nullptr;
  testing::FakeClock* clock = nullptr;
};

struct StorageFactory {
  std::string name;
  std::function<StorageUnderTest(const StorageOptions&)> make;
};
inline std::ostream& operator<<(std::ostream& out, const StorageFactory& factory) { return out << factory.name; }

class StorageContract : public ::testing::TestWithParam<StorageFactory> {
 protected:
  void SetUp() override { start({}); }
  void start(StorageOptions options) {
    options.chunk_bytes = 4096;
    under_test_ = {};
    under_test_ = GetParam().make(options);
  }

  Storage& storage() { return *under_test_.storage; }
  testing::FakeClock& clock() { return *under_test_.clock; }
  static Context as(const Identity& who) { return Context::of(who, {who}); }
  NewObject object(const std::string& key) const {
    return NewObject{"default", key, agent_, {}, "text/plain", {}, {}, {}};
  }
  Result<ObjectMetadata> put(const std::string& key, std::string_view data) {
    return storage().store(as(agent_), object(key), as_bytes(data));
  }
  Result<std::string> get(const std::string& key, const std::string& version = "") {
    auto got = CRETO_TRY(storage().retrieve(as(agent_), StorageRef{"default", key, version}));
    return std::string(as_text(got.data));
  }

  const Identity agent_ = Identity::agent(ByteArray<32>{1});
  const Identity other_ = Identity::agent(ByteArray<32>{2});
  StorageUnderTest under_test_;
};

}  // namespace creto::storage
