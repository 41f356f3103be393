// Snapshots and the cache under threads; runs under ThreadSanitizer too.

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>

#include "creto/authz/authz.h"
#include "creto/testing/databases.h"
#include "decision_cache.h"
#include "snapshot.h"

namespace creto::authz {
namespace {

const Identity agent = Identity::agent(ByteArray<32>{1});

CheckRequest request_number(std::int64_t n) {
  return {.principal = agent,
          .chain = {},
          .action = "act",
          .resource = {"Thing", std::to_string(n)},
          .context = {},
          .arguments_hash = {},
          .override_token = {}};
}

TEST(DecisionCache, RemembersUntilTheEndOfItsTime) {
  DecisionCache cache(64);
  const CacheKey key("org", 1, {}, request_number(1));
  const Monotonic start{std::chrono::seconds(100)};
  EXPECT_FALSE(cache.contains(key, start));
  cache.insert(key, start, std::chrono::seconds(60));
  EXPECT_TRUE(cache.contains(key, start + std::chrono::seconds(59)));
  EXPECT_FALSE(cache.contains(key, start + std::chrono::seconds(60)));
}

TEST(DecisionCache, KeepsWhatIsUsedAndStaysWithinItsSize) {
  DecisionCache cache(8);
  const Monotonic start{std::chrono::seconds(100)};
  const CacheKey used("org", 1, {}, request_number(0));
  cache.insert(used, start, std::chrono::hours(1));
  for (std::int64_t n = 1; n <= 1'000; ++n) {
    const Monotonic now = start + std::chrono::seconds(n);
    EXPECT_TRUE(cache.contains(used, now)) << n;
    cache.insert(CacheKey("org", 1, {}, request_number(n)), now, std::chrono::hours(1));
  }
  EXPECT_FALSE(cache.contains(CacheKey("org", 1, {}, request_number(1)), start + std::chrono::seconds(1'001)));
}

TEST(DecisionCache, TellsKeysApartInEveryPart) {
  std::vector<CacheKey> keys;
  auto request = request_number(1);
  keys.emplace_back("org", 1, std::span<const std::uint64_t>(), request);
  keys.emplace_back("or", 1, std::span<const std::uint64_t>(), request);
  keys.emplace_back("org", 2, std::span<const std::uint64_t>(), request);
  const std::uint64_t version = 1;
  keys.emplace_back("org", 1, std::span(&version, 1), request);
  request.chain = {agent};
  keys.emplace_back("org", 1, std::span<const std::uint64_t>(), request);
  request.context = {{"a", 1}};
  keys.emplace_back("org", 1, std::span<const std::uint64_t>(), request);
  request.context = {{"a", true}};
  keys.emplace_back("org", 1, std::span<const std::uint64_t>(), request);
  request.context = {{"a", Value::set({1})}};
  keys.emplace_back("org", 1, std::span<const std::uint64_t>(), request);
  request.context = {{"a", std::string(1'000, 'x')}};
  keys.emplace_back("org", 1, std::span<const std::uint64_t>(), request);
  request.context = {{"a", std::string(1'001, 'x')}};
  keys.emplace_back("org", 1, std::span<const std::uint64_t>(), request);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    DecisionCache cache(64);
    const Monotonic now{std::chrono::seconds(1)};
    cache.insert(keys[i], now, std::chrono::hours(1));
    for (std::size_t j = 0; j < keys.size(); ++j) EXPECT_EQ(cache.contains(keys[j], now), i == j) << i << " " << j;
  }
}

TEST(DecisionCache, ReadersNeverSeeHalfAnEntry) {
  DecisionCache cache(8);  // one set: everybody meets
  const Monotonic now{std::chrono::seconds(1)};
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::thread writer([&] {
    for (std::int64_t n = 0; n < 20'000; ++n) {
      cache.insert(CacheKey("org", 1, {}, request_number(n * 2)), now, std::chrono::hours(1));
    }
    stop = true;
  });
  std::vector<std::thread> readers;
  for (int r = 0; r < 2; ++r) {
    readers.emplace_back([&] {
      for (std::int64_t n = 0; !stop; n = (n + 1) % 20'000) {
        if (cache.contains(CacheKey("org", 1, {}, request_number(n * 2 + 1)), now)) ++wrong;
        (void)cache.contains(CacheKey("org", 1, {}, request_number(n * 2)), now);
      }
    });
  }
  writer.join();
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0) << "odd requests were never stored";
}

TEST(Snapshots, APinHoldsWhatItSawWhileOthersPublish) {
  SnapshotHolder holder;
  std::atomic<bool> stop{false};
  std::thread publisher([&] {
    for (int n = 1; n <= 2'000; ++n) {
      auto next = std::make_shared<Snapshot>();
      auto state = std::make_shared<OrgState>();
      state->version = n;
      next->orgs["org"] = std::move(state);
      holder.publish(std::move(next));
    }
    stop = true;
  });
  std::vector<std::thread> readers;
  for (int r = 0; r < 2; ++r) {
    readers.emplace_back([&] {
      std::int64_t last = 0;
      while (!stop) {
        const auto outer = holder.pin();
        const OrgState* state = outer->org("org");
        const std::int64_t version = state ? state->version : 0;
        EXPECT_GE(version, last) << "snapshots do not go back";
        last = version;
        SnapshotHolder other;
        const auto inner = other.pin();
        EXPECT_EQ(inner->org("org"), nullptr);
        const OrgState* same = outer->org("org");
        EXPECT_EQ(same ? same->version : 0, version);
      }
    });
  }
  publisher.join();
  for (auto& reader : readers) reader.join();
}

TEST(AuthzService, NoCheckSeesAnAllowThatAChangeHasTakenBack) {
  creto::testing::TestDatabase database(creto::testing::DatabaseKind::sqlite);
  const auto db = database.open();
  const auto authz = create_authz(*db, system_clock(), no_telemetry(), {}, Secret(Bytes(32, 7))).value();
  const Context ctx = Context::of_service(Identity::service("test").value());
  ASSERT_TRUE(authz->create_policy(ctx, "p", "permit(principal, action, resource);"));
  // Even while it permits, odd while it does not; unknown in between.
  std::atomic<int> epoch{0};
  std::atomic<bool> stop{false};
  std::atomic<int> stale{0};
  std::array<std::atomic<int>, 2> judged{};  // the epoch that each checker saw last, from a check's begin to its end
  std::vector<std::thread> checkers;
  for (auto& mine : judged) {
    checkers.emplace_back([&] {
      const CheckRequest request = request_number(1);
      while (!stop) {
        const int before = epoch.load();
        const bool allow = allowed(authz->check(ctx, request));
        if (epoch.load() != before) continue;
        if (before % 4 == 2 && allow) ++stale;
        if (before % 4 == 0 && !allow) ++stale;
        mine = before;
      }
    });
  }
  const auto wait_for_the_checkers = [&] {
    for (const auto& theirs : judged)
      while (theirs != epoch) std::this_thread::yield();
  };
  for (int round = 0; round < 30; ++round) {
    ++epoch;
    ASSERT_TRUE(authz->update_policy(ctx, "p", "forbid(principal, action, resource);", 0));
    ++epoch;
    wait_for_the_checkers();
    ++epoch;
    ASSERT_TRUE(authz->update_policy(ctx, "p", "permit(principal, action, resource);", 0));
    ++epoch;
    wait_for_the_checkers();
  }
  stop = true;
  for (auto& checker : checkers) checker.join();
  EXPECT_EQ(stale, 0);
}

}  // namespace
}  // namespace creto::authz
