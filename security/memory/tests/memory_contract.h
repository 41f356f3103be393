#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "creto/common/access.h"
#include "creto/io/sql.h"
#include "creto/memory/memory.h"
#include "creto/testing/fake_clock.h"

namespace creto::memory {

/// Permits what a test lists: "<caller> <action> <resource id>".
class ListedAccess final : public AccessControl {
 public:
  Result<> require(const Context& ctx, std::string_view action, std::string_view, std::string_view id) override {
    const std::lock_guard lock(mutex_);
    if (permits_.contains(ctx.caller_text() + " " + std::string(action) + " " + std::string(id))) return {};
    return Error(Product::platform, ErrorKind::permission_denied, "denied by policy");
  }
  /// Also while the server at the other end of a connection still runs.
  void permit(std::string what) {
    const std::lock_guard lock(mutex_);
    permits_.insert(std::move(what));
  }

 private:
  std::mutex mutex_;
  std::set<std::string> permits_;
};

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
