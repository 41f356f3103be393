#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <thread>

#include "creto/consensus/consensus_rpc.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/wire.h"

namespace creto::consensus {
namespace {

using namespace std::chrono_literals;

class MemoryCeiling final : public CeilingStore {
 public:
  Result<std::int64_t> load() override { return saved; }
  Result<> save(std::int64_t expected, std::int64_t ceiling) override {
    if (failures > 0) {
      --failures;
      return Error(Product::platform, ErrorKind::unavailable, "no store");
    }
    if (expected != saved) return Error(Product::platform, ErrorKind::conflict, "other");
    saved = ceiling;
    return {};
  }
  std::int64_t saved = 0;
  int failures = 0;
};

class Embedded : public ::testing::Test {
 protected:
  std::unique_ptr<EmbeddedSource> open() {
    return std::move(
        *create_timestamp_source(store, clock, no_telemetry(), {.node = "n", .renew_in_background = false}));
  }
  testing::FakeClock clock;
  MemoryCeiling store;
};

TEST_F(Embedded, FollowsTheWallClock) {
  auto source = open();
  const auto a = source->now();
  EXPECT_EQ(a.physical_ns, unix_ns(clock.now()));
  clock.advance(1s);
  const auto b = source->now();
  EXPECT_EQ(b.physical_ns, unix_ns(clock.now()));
  EXPECT_EQ(b.node, "n");
  EXPECT_FALSE(b.degraded);
}

TEST_F(Embedded, GrowsWhileTheClockStandsOrGoesBack) {
  auto source = open();
  auto last = source->now();
  for (int i = 0; i < 10'000; ++i) {
    if (i == 5'000) clock.jump(-1h);
    const auto next = source->now();
    ASSERT_EQ(compare(last, next), std::strong_ordering::less);
    ASSERT_FALSE(next.degraded);
    last = next;
  }
}

TEST_F(Embedded, NeverHandsOutWhatIsNotBelowTheSavedCeiling) {
  auto source = open();
  clock.advance(1h);
  const auto early = source->now();
  EXPECT_FALSE(early.degraded);
  EXPECT_LT(early.physical_ns, store.saved);
  ASSERT_TRUE(source->renew());
  EXPECT_EQ(source->now().physical_ns, unix_ns(clock.now()));
}

TEST_F(Embedded, BeginsAboveEverythingBeforeARestartEvenIfTheClockWentBack) {
  Timestamp last;
  for (int restart = 0; restart < 20; ++restart) {
    auto source = open();
    for (int i = 0; i < 100; ++i) {
      const auto next = source->now();
      if (restart + i > 0) {
        ASSERT_EQ(compare(last, next), std::strong_ordering::less);
      }
      last = next;
    }
    clock.jump(restart % 3 == 0 ? -10min : 1s);
  }
}

TEST_F(Embedded, RetriesOnceAndThenGivesLocalTimeWithTheFlag) {
  auto source = open();
  store.failures = 1;
  ASSERT_TRUE(source->renew());
  store.failures = 2;
  EXPECT_FALSE(source->renew());
  EXPECT_FALSE(source->status().healthy);
  EXPECT_FALSE(source->now().degraded);  // still below the old ceiling
  clock.advance(1min);
  const auto degraded = source->now();
  EXPECT_TRUE(degraded.degraded);
  EXPECT_EQ(degraded.physical_ns, unix_ns(clock.now()));
  EXPECT_EQ(compare(degraded, source->now()), std::strong_ordering::less);
  ASSERT_TRUE(source->renew());
  const auto after = source->now();
  EXPECT_FALSE(after.degraded);
  EXPECT_EQ(compare(degraded, after), std::strong_ordering::less);
  EXPECT_TRUE(source->status().healthy);
}

TEST_F(Embedded, GivesUpWaitingForARenewalThatHangs) {
  auto source = open();
  clock.advance(1h);
  EXPECT_FALSE(source->now().degraded);
  clock.advance(1s);
  EXPECT_TRUE(source->now().degraded);
}

TEST_F(Embedded, GoesAboveAnotherProcessOfTheSameNode) {
  auto one = open();
  auto two = open();
  const auto theirs = two->now();
  ASSERT_TRUE(one->renew());
  const auto ours = one->now();
  EXPECT_EQ(compare(theirs, ours), std::strong_ordering::less);
  EXPECT_FALSE(ours.degraded);
}

TEST_F(Embedded, RefusesANodeWithoutName) {
  EXPECT_FALSE(create_timestamp_source(store, clock, no_telemetry(), {.node = ""}));
}

TEST(Order, SortsAndRefusesEqualTimestamps) {
  std::vector<Timestamp> events;
  for (std::uint64_t i = 0; i < 100; ++i) events.push_back({i % 10, static_cast<std::int64_t>(i / 10), "n", false});
  std::shuffle(events.begin(), events.end(), std::mt19937(1));
  const auto order = *order_events(events);
  for (std::size_t i = 1; i < order.size(); ++i) {
    EXPECT_EQ(compare(events[order[i - 1]], events[order[i]]), std::strong_ordering::less);
  }
  events.push_back(events.front());
  EXPECT_EQ(order_events(events).error().kind(), ErrorKind::conflict);
  EXPECT_TRUE(order_events({})->empty());
}

class SqlSource : public ::testing::TestWithParam<testing::DatabaseKind> {};

TEST_P(SqlSource, IsUniqueAndGrowsAcrossThreadsAndRestarts) {
  testing::TestDatabase database(GetParam());
  std::set<std::pair<std::int64_t, std::uint64_t>> seen;
  Timestamp newest;
  for (int restart = 0; restart < 3; ++restart) {
    auto db = database.open();
    auto store = std::move(*create_ceiling_store(*db, "local"));
    auto source = std::move(*create_timestamp_source(*store, system_clock(), no_telemetry(), {.ahead = 50ms}));
    std::vector<std::vector<Timestamp>> taken(4);
    std::vector<std::thread> threads;
    for (auto& mine : taken) {
      threads.emplace_back([&] {
        for (int i = 0; i < 2'000; ++i) mine.push_back(source->now());
        for (int renewals = 0; renewals < 2; ++renewals) {
          const auto ceiling = source->status().ceiling_ns;
          while (source->status().ceiling_ns == ceiling) std::this_thread::sleep_for(1ms);
        }
        for (int i = 0; i < 100; ++i) mine.push_back(source->now());
      });
    }
    for (auto& thread : threads) thread.join();
    Timestamp highest = newest;
    for (const auto& mine : taken) {
      for (std::size_t i = 0; i < mine.size(); ++i) {
        EXPECT_TRUE(seen.emplace(mine[i].physical_ns, mine[i].logical).second);
        if (i > 0) {
          EXPECT_EQ(compare(mine[i - 1], mine[i]), std::strong_ordering::less);
        }
        if (restart > 0) {
          EXPECT_EQ(compare(newest, mine[i]), std::strong_ordering::less);
        }
        if (compare(highest, mine[i]) == std::strong_ordering::less) highest = mine[i];
      }
    }
    newest = highest;
  }
}

INSTANTIATE_TEST_SUITE_P(, SqlSource, both_databases(), database_name);

TEST(TimestampClient, IsTheSameSourceAndFallsBackToLocalTimeWhenItIsGone) {
  testing::FakeClock clock;
  MemoryCeiling store;
  auto source = std::move(*create_timestamp_source(store, clock, no_telemetry(), {.renew_in_background = false}));
  std::optional<testing::Wire> wire(std::in_place, system_clock());
  register_consensus(wire->dispatcher(), *source);
  auto client = create_timestamp_client(wire->connect(), system_clock(),
                                        Context::of_service(Identity::service("test").value()), 5s);

  const auto before = source->now();
  const auto remote = client->now();
  const auto after = source->now();
  EXPECT_EQ(compare(before, remote), std::strong_ordering::less);
  EXPECT_EQ(compare(remote, after), std::strong_ordering::less);
  EXPECT_FALSE(remote.degraded);
  EXPECT_EQ(client->status().ceiling_ns, source->status().ceiling_ns);
  EXPECT_EQ(*client->order(std::vector{after, before, remote}), (std::vector<std::size_t>{1, 2, 0}));
  EXPECT_EQ(client->order(std::vector{after, after}).error().kind(), ErrorKind::conflict);

  wire.reset();
  const auto local = client->now();
  EXPECT_TRUE(local.degraded);
  EXPECT_EQ(compare(local, client->now()), std::strong_ordering::less);
  EXPECT_FALSE(client->status().healthy);
}

}  // namespace
}  // namespace creto::consensus
