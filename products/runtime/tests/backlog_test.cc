#include "backlog.h"

#include <gtest/gtest.h>

#include <condition_variable>

namespace creto::runtime {
namespace {

Error down() { return Error(Product::runtime, ErrorKind::unavailable, "the database is away"); }

class BacklogTest : public ::testing::Test {
 protected:
  void record(const std::string& what, int failures) {
    backlog.record(what, [this, what, left = std::make_shared<int>(failures)]() -> Result<> {
      if ((*left)-- > 0) return down();
      const std::lock_guard lock(mutex);
      written.push_back(what);
      changed.notify_all();
      return {};
    });
  }
  std::vector<std::string> wait_for(std::size_t count) {
    std::unique_lock lock(mutex);
    changed.wait_for(lock, std::chrono::seconds(20), [&] { return written.size() >= count; });
    return written;
  }
  ~BacklogTest() override { tasks.stop(); }
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::string> written;
  Tasks tasks;
  Backlog backlog{tasks, no_telemetry()};
};

TEST_F(BacklogTest, WritesAtOnceWhereItCan) {
  record("a", 0);
  EXPECT_EQ(written, std::vector<std::string>{"a"});
}

TEST_F(BacklogTest, TriesAgainInOrderUntilEverythingIsWritten) {
  tasks.start(2);
  record("a", 1);
  record("b", 0);
  record("c", 1);
  EXPECT_EQ(wait_for(3), (std::vector<std::string>{"a", "b", "c"}));
}

TEST_F(BacklogTest, GoesOnPastWhatNoLaterTryWouldChange) {
  tasks.start(1);
  record("a", 1);
  backlog.record("bad", []() -> Result<> { return Error(Product::runtime, ErrorKind::invalid_input, "never"); });
  record("b", 0);
  EXPECT_EQ(wait_for(2), (std::vector<std::string>{"a", "b"}));
}

TEST_F(BacklogTest, TriesOnceMoreAtTheEnd) {
  record("a", 1);
  record("b", 0);
  tasks.finish();
  backlog.finish();
  EXPECT_EQ(written, (std::vector<std::string>{"a", "b"}));
}

TEST_F(BacklogTest, HoldsNoMoreThanItMay) {
  for (std::size_t i = 0; i < Backlog::entries_max + 10; ++i) record("x", 1'000'000);
  record("y", 0);
  backlog.finish();
  EXPECT_TRUE(written.empty());
}

}  // namespace
}  // namespace creto::runtime
