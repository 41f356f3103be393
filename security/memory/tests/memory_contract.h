#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "creto/io/sql.h"
#include "creto/memory/memory.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/listed_access.h"

namespace creto::memory {

using creto::testing::ListedAccess;

struct MemoryUnderTest {
  std::shared_ptr<void> keeps_alive;
  Memory* memory = nullptr;
  ListedAccess* access = nullptr;
  testing::FakeClock* clock = nullptr;
  sql::Database* database = nullptr;
};

struct MemoryFactory {
  std::string name;
  std::function<MemoryUnderTest(MemoryOptions)> make;
};
inline std::ostream& operator<<(std::ostream& out, const MemoryFactory& factory) { return out << factory.name; }

class MemoryContract : public ::testing::TestWithParam<MemoryFactory> {
 protected:
  void SetUp() override { under_test_ = GetParam().make({}); }

  Memory& memory() { return *under_test_.memory; }
  testing::FakeClock& clock() { return *under_test_.clock; }
  static Context as(const Identity& who) { return Context::of(who, {who}); }
  NewEntry entry(const std::string& content, MemoryType type = MemoryType::observation) const {
    return NewEntry{agent_, content, type, {}, {}, {}};
  }
  MemoryId put(const NewEntry& entry) {
    const auto id = memory().store(as(entry.agent), entry);
    EXPECT_TRUE(id) << id.error().to_string();
    return *id;
  }
  Query query(const std::string& text) const { return Query{agent_, text, 10, {}, {}, {}, {}}; }
  std::vector<std::string> found(const Query& query);

  const Identity agent_ = Identity::agent(ByteArray<32>{1});
  const Identity other_ = Identity::agent(ByteArray<32>{2});
  MemoryUnderTest under_test_;
};

}  // namespace creto::memory
