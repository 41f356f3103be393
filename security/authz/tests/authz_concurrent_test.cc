// Snapshots and the cache under threads; runs under ThreadSanitizer too.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <map>
#include <random>
#include <thread>

#include "creto/authz/authz.h"
#include "creto/io/files.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/temp_dir.h"
#include "decision_cache.h"
#include "decisions/decision_replay.h"
#include "decisions/decision_ring.h"
#include "rate.h"
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

DecisionCache::Place place(const DecisionCache& cache, const CheckRequest& request) {
  return cache.look(CacheKey("org", 1, {}, request));
}

TEST(DecisionCache, RemembersUntilTheEndOfItsTime) {
  DecisionCache cache(64);
  const auto key = place(cache, request_number(1));
  const Monotonic start{std::chrono::seconds(100)};
  EXPECT_FALSE(cache.find(key, start));
  cache.insert(key, start, std::chrono::seconds(60));
  EXPECT_TRUE(cache.find(key, start + std::chrono::seconds(59)));
  EXPECT_FALSE(cache.find(key, start + std::chrono::seconds(60)));
}

TEST(DecisionCache, KeepsWhatIsUsedAndStaysWithinItsSize) {
  DecisionCache cache(8);
  const Monotonic start{std::chrono::seconds(100)};
  const auto number = [&](std::int64_t n) { return place(cache, request_number(n)); };
  const auto used = number(0);
  cache.insert(used, start, std::chrono::hours(1));
  for (std::int64_t n = 1; n <= 1'000; ++n) {
    const Monotonic now = start + std::chrono::seconds(n);
    EXPECT_TRUE(cache.find(used, now)) << n;
    cache.insert(number(n), now, std::chrono::hours(1));
  }
  EXPECT_FALSE(cache.find(number(1), start + std::chrono::seconds(1'001)));
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
    cache.insert(cache.look(keys[i]), now, std::chrono::hours(1));
    for (std::size_t j = 0; j < keys.size(); ++j)
      EXPECT_EQ(cache.find(cache.look(keys[j]), now).has_value(), i == j) << i << " " << j;
  }
}

TEST(DecisionCache, ReadersNeverSeeHalfAnEntry) {
  DecisionCache cache(8);  // two sets: everybody meets
  const Monotonic now{std::chrono::seconds(1)};
  const auto number = [&](std::int64_t n) { return place(cache, request_number(n)); };
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0}, hits{0};
  std::thread writer([&] {
    for (std::int64_t n = 0; n < 20'000; ++n) {
      const auto own = static_cast<std::uint64_t>(n * 2);
      cache.insert(number(n * 2), now, std::chrono::hours(1), {.rate = own, .entities = ~own});
    }
    stop = true;
  });
  std::vector<std::thread> readers;
  for (int r = 0; r < 2; ++r) {
    readers.emplace_back([&] {
      for (std::int64_t n = 0; !stop; n = (n + 1) % 20'000) {
        if (cache.find(number(n * 2 + 1), now)) ++wrong;
        const auto note = cache.find(number(n * 2), now);
        if (!note) continue;
        ++hits;
        if (note->rate != static_cast<std::uint64_t>(n * 2) || note->entities != ~note->rate) ++wrong;
      }
    });
  }
  writer.join();
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0) << "odd requests were never stored, and each has its own note";
}

TEST(Fingerprint, IsOfTheWordsAndOfTheKey) {
  const FingerprintKey one, other;
  std::vector<std::uint64_t> words{1, 2, 3, 0};
  const auto of = [&](const FingerprintKey& key, std::size_t count) { return key.of(std::span(words).first(count)); };
  const Fingerprint three = of(one, 3);
  EXPECT_EQ(of(one, 3), three);
  EXPECT_NE(of(one, 4), three) << "a zero at the end counts";
  EXPECT_NE(of(other, 3), three);
  words[1] = 4;
  EXPECT_NE(of(one, 3), three);
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

TEST(Snapshots, WhatIsPlannedForFiltersIsKeptUntilAPolicyChanges) {
  const auto memory = std::make_shared<RateMemory>(std::int64_t{0});
  const auto load = [&](const PolicyId& id) {
    const Policy stored{
        .id = id, .text = "permit(principal, action, resource);", .version = 1, .updated_at = {}, .updated_by = {}};
    return std::make_shared<const LoadedPolicy>(load_policy(stored, 1 << 16, nullptr, memory).value());
  };
  OrgState first;
  first.replace(nullptr, load("a"));
  std::array<const cedar::PolicySet*, 4> seen{};
  {
    std::vector<std::jthread> threads;
    for (auto& set : seen) threads.emplace_back([&] { set = &first.deciding(); });
  }
  for (const auto* set : seen) EXPECT_EQ(set, seen[0]);
  EXPECT_EQ(seen[0]->policies().size(), 1u);
  OrgState second = first;
  second.put_entities({std::make_shared<const Entity>(Entity{{"Thing", "1"}, {}, {}, {}})});
  EXPECT_EQ(&second.deciding(), seen[0]) << "an entity is no policy";
  second.replace(nullptr, load("b"));
  EXPECT_EQ(second.deciding().policies().size(), 2u);
  EXPECT_EQ(&first.deciding(), seen[0]) << "who reads the old state sees the old policies";
}

constexpr Monotonic rate_start{std::chrono::hours(1)};

std::shared_ptr<RateMemory> memory_of(std::int64_t bytes) { return std::make_shared<RateMemory>(bytes); }

TEST(RateWindows, HaveRoomExactlyWhereNoSpanWouldHoldTooMany) {
  std::mt19937_64 random(1);  // tidy(random-engine): seeded, so that a failure can be repeated
  for (const std::uint32_t limit : {1u, 2u, 3u, 100u}) {
    const Nanos window = std::chrono::seconds(60);
    RateWindows windows({.limit = limit, .window = window}, memory_of(1 << 20));
    std::map<std::string, std::deque<Monotonic>> taken;
    Monotonic now = rate_start;
    std::size_t refused = 0;
    for (int step = 0; step < 20'000; ++step) {
      now += std::chrono::milliseconds(random() % (10'000 / limit));
      if (random() % 200 == 0) now += window;
      const std::string who(1, static_cast<char>('a' + random() % 4));
      auto& times = taken[who];
      while (!times.empty() && times.front() + window <= now) times.pop_front();
      const bool room = times.size() < limit;
      const bool counts = random() % 2 == 0;
      const auto verdict = counts ? windows.take(who, now) : windows.look(who, now);
      ASSERT_EQ(verdict.kind == RateWindows::Verdict::room, room) << "limit " << limit << ", step " << step;
      if (!room) ASSERT_EQ(verdict.retry_after, times.front() + window - now);
      if (room && counts) times.push_back(now);
      refused += room ? 0 : 1;
    }
    EXPECT_GT(refused, 100u) << limit;
  }
}

TEST(RateWindows, WorkFromTheMomentTheMachineHasStarted) {
  RateWindows windows({.limit = 2, .window = std::chrono::days(1)}, memory_of(1 << 20));
  EXPECT_EQ(windows.take("a", Monotonic{}).kind, RateWindows::Verdict::room);
  EXPECT_EQ(windows.take("a", Monotonic{}).kind, RateWindows::Verdict::room);
  EXPECT_EQ(windows.take("a", Monotonic{}).kind, RateWindows::Verdict::limited);
}

TEST(RateWindows, LetGoOfWhoDidNothingForAWindowAndNeverOfOthers) {
  const auto memory = memory_of(20'000);
  {
    RateWindows windows({.limit = 1, .window = std::chrono::seconds(60)}, memory);
    Monotonic now = rate_start;
    std::size_t known = 0;
    while (windows.take(std::to_string(1'000 + known), now).kind == RateWindows::Verdict::room) ++known;
    EXPECT_GT(known, 50u);
    EXPECT_EQ(windows.take("one too many", now).kind, RateWindows::Verdict::no_memory);
    for (std::size_t i = 0; i < known; ++i)
      EXPECT_EQ(windows.look(std::to_string(1'000 + i), now).kind, RateWindows::Verdict::limited);
    now += std::chrono::seconds(30);
    EXPECT_EQ(windows.take("one too many", now).kind, RateWindows::Verdict::no_memory);
    now += std::chrono::seconds(30);
    for (std::size_t i = 0; i < known; ++i)
      EXPECT_EQ(windows.take(std::to_string(2'000 + i), now).kind, RateWindows::Verdict::room) << i;
  }
  EXPECT_EQ(*memory, 20'000) << "all of it is given back";
}

TEST(RateWindows, ThreadsTogetherTakeWhatThereIsAndNoMore) {
  constexpr std::uint32_t limit = 50;
  constexpr int threads = 4, regulars = 3;
  const Nanos window = std::chrono::seconds(60);
  RateWindows windows({.limit = limit, .window = window}, memory_of(64 << 20));
  std::array<std::atomic<std::uint32_t>, regulars> taken{};
  Monotonic now = rate_start;
  // Passers-by make the table grow, and windows come and go, while the regulars are counted.
  const auto everybody_tries = [&](int round) {
    std::vector<std::jthread> all;
    for (int thread = 0; thread < threads; ++thread) {
      all.emplace_back([&, thread] {
        for (std::uint32_t i = 0; i < limit; ++i) {
          for (std::size_t who = 0; who < regulars; ++who)
            if (windows.take(std::to_string(who), now).kind == RateWindows::Verdict::room) ++taken[who];
          (void)windows.take(fmt::format("{} {} {}", round, thread, i), now);
        }
      });
    }
  };
  std::uint32_t expected = 0;
  for (int round = 0; round < 20; ++round) {
    everybody_tries(round);
    // Every second round comes half a window later, where all is still taken.
    if (round % 2 == 0) expected += limit;
    for (std::size_t who = 0; who < regulars; ++who) ASSERT_EQ(taken[who], expected) << "round " << round;
    now += window / 2;
  }
}

TEST(AuthzService, ThreadsTogetherAreAdmittedAsOftenAsTheRateSays) {
  creto::testing::TestDatabase database(creto::testing::DatabaseKind::sqlite);
  const auto db = database.open();
  const creto::testing::FakeClock clock;
  const auto authz = create_authz(*db, clock, no_telemetry(), {}, Secret(Bytes(32, 7))).value();
  const Context ctx = Context::of_service(Identity::service("test").value());
  ASSERT_TRUE(authz->create_policy(ctx, "p", "@rate(\"100/1m\") permit(principal, action, resource);"));
  std::atomic<int> admitted{0};
  std::atomic<bool> stop{false};
  std::thread changer([&] {
    for (int i = 0; !stop; ++i)
      ASSERT_TRUE(authz->update_policy(
          ctx, "p", fmt::format("@rate(\"100/1m\") permit(principal, action, resource) unless {{ {} == -1 }};", i), 0));
  });
  std::vector<std::thread> all;
  for (int thread = 0; thread < 3; ++thread) {
    all.emplace_back([&] {
      for (int i = 0; i < 500; ++i) admitted += allowed(authz->admit(ctx, request_number(i % 5))) ? 1 : 0;
    });
  }
  for (auto& thread : all) thread.join();
  stop = true;
  changer.join();
  EXPECT_EQ(admitted, 100) << "from the cache or not, while the policy changes";
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

TEST(DecisionLog, HoldsEveryDecisionOfEveryThreadAndWhatItWasDecidedBy) {
  creto::testing::TestDatabase database(creto::testing::DatabaseKind::sqlite);
  creto::testing::TempDir folder;
  const auto db = database.open();
  AuthzOptions options;
  // Small, so that rings fill and segments end all the time.
  options.decision_log = DecisionLogOptions{.directory = folder / "decisions",
                                            .segment_bytes = 20'000,
                                            .request_bytes_max = 4'096,
                                            .ring_bytes = 64 << 10,
                                            .sync_interval = std::chrono::milliseconds(20),
                                            .wait_max = std::chrono::minutes(1)};
  auto authz = create_authz(*db, system_clock(), no_telemetry(), {}, Secret(Bytes(32, 7)), options).value();
  const Context ctx = Context::of_service(Identity::service("test").value());
  ASSERT_TRUE(authz->create_policy(ctx, "p", "permit(principal, action, resource);"));
  std::atomic<std::uint64_t> checks{0}, allows{0};
  std::vector<std::thread> checkers;
  // Threads come and go, each with a ring of its own.
  for (int thread = 0; thread < 6; ++thread) {
    checkers.emplace_back([&, thread] {
      for (std::int64_t n = 0; n < 2'000; ++n) {
        const Decision decision = authz->check(ctx, request_number(n % (50 * (thread + 1))));
        ++checks;
        if (allowed(decision)) ++allows;
      }
    });
  }
  for (int round = 0; round < 10; ++round) {
    const std::string_view policy = round % 2 == 0 ? "forbid(principal, action, resource == Thing::\"7\");"
                                                   : "permit(principal, action, resource);";
    ASSERT_TRUE(authz->update_policy(ctx, "p", std::string(policy), 0));
  }
  for (auto& checker : checkers) checker.join();
  authz.reset();
  const ReplayReport report = replay(io::real_files(), {.log = folder / "decisions"}).value();
  EXPECT_EQ(report.read, checks);
  EXPECT_EQ(report.replayed, checks) << "each with what was in force";
  EXPECT_EQ(report.differ, 0u);
  EXPECT_EQ(report.otherwise_determined, 0u);
  EXPECT_GT(report.segments, 1u);
  const ReplayReport none = replay(io::real_files(), {.log = folder / "decisions",
                                                      .policies = std::vector<std::shared_ptr<const LoadedPolicy>>()})
                                .value();
  EXPECT_EQ(none.differ, allows);
}

TEST(DecisionRing, PassesEverythingFromOneThreadToAnother) {
  DecisionRing ring(4'096);
  constexpr std::uint64_t count = 10'000;
  std::thread writer([&] {
    for (std::uint64_t n = 0; n < count;) {
      const std::uint32_t size = 16 + 8 * static_cast<std::uint32_t>(n % 20);
      std::byte* place = ring.reserve(size);
      if (!place) {
        std::this_thread::yield();
        continue;
      }
      std::memset(place, 0, size);
      std::memcpy(place, &size, sizeof(size));
      std::memcpy(place + size - 8, &n, sizeof(n));
      ring.commit();
      ++n;
    }
  });
  std::uint64_t expected = 0;
  while (expected < count) {
    const auto record = ring.next();
    if (record.empty()) {
      ring.release();
      std::this_thread::yield();
      continue;
    }
    std::uint64_t n = 0;
    std::memcpy(&n, record.data() + record.size() - 8, sizeof(n));
    ASSERT_EQ(n, expected++);
  }
  writer.join();
}

}  // namespace
}  // namespace creto::authz
