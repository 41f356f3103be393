#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <thread>

#include "limits/counters.h"

// Sessions come by the million and go again; what is counted of them must not show it.
namespace creto::metering {
namespace {

using namespace std::chrono_literals;
using contracts::BillingPeriod;
using Kind = Verdict::Kind;

constexpr std::string_view org = "default";
constexpr std::string_view agent = "human:ada@example.org";
const Instant start = from_rfc3339("2026-11-29T20:30:00Z").value();

Quota quota(std::string id, std::string subject, WindowKind window, std::int64_t limit = 1'000'000) {
  Quota result;
  result.id = std::move(id);
  result.subject = std::move(subject);
  result.event_type = "calls";
  result.window = window;
  result.limit = limit;
  if (window == WindowKind::rolling) result.rolling_length = 40h;
  return result;
}

ReservationId reservation(std::uint64_t n) {
  ByteArray<16> bytes{};
  for (std::size_t i = 0; i < 8; ++i) bytes[15 - i] = static_cast<std::uint8_t>(n >> (8 * i));
  return ReservationId::from_bytes(bytes);
}

using Property = std::pair<std::string_view, std::string_view>;

/// A use of a session by the one agent there is.
void use(Limits& limits, std::string_view session, std::int64_t units, NanoMoney cost, Instant when, bool ends = false,
         std::optional<ReservationId> settles = {}) {
  const AccountNumber number = limits.session_account(org, session);
  const std::array accounts{limits.account(org, agent), number};
  const Fact fact{.accounts = accounts,
                  .words = limits.words_of_fact(org, "calls"),
                  .units = units,
                  .cost = cost,
                  .settles = settles,
                  .session = number,
                  .ends_session = ends};
  std::vector<Notice> notices;
  limits.add(std::span(&fact, 1), when, notices);
}

Verdict reserve(Limits& limits, std::uint64_t id, std::string_view session, std::int64_t units, Instant now) {
  const std::array properties{Property{"session", session}};
  return limits.reserve(reservation(id),
                        {.org = org, .agent = agent, .event_type = "calls", .properties = properties, .units = units},
                        now, now + 1h);
}

void forget(Limits& limits, Instant now) { limits.forget(limits.sessions_over(now), now); }

TEST(Sessions, ThatAreOverLeaveTheirMemoryToTheNext) {
  Limits limits;
  ASSERT_TRUE(limits.put_quota(org, quota("q", "session:*", WindowKind::lifetime), start));
  const std::string long_part(100, 'x');  // of names that are kept elsewhere
  Instant now = start;
  std::size_t most = 0;
  for (int round = 0; round < 50; ++round, now += 2h) {
    for (int i = 0; i < 100; ++i) {
      const std::string session = fmt::format("sb-{}-{}-{}", round, i, i % 3 == 0 ? long_part : "");
      use(limits, session, 1, 1'000, now);
      use(limits, session, 1, 0, now + 1min, true);
      EXPECT_EQ(limits.state(org, quota("q", "session:*", WindowKind::lifetime), now, "session:" + session)->used, 2);
    }
    forget(limits, now);
    most = std::max(most, limits.accounts());
  }
  EXPECT_LE(most, 301u) << "of two rounds at most, and the agent";
  forget(limits, now);
  EXPECT_EQ(limits.accounts(), 1u);
  EXPECT_EQ(limits.costs(org, agent, BillingPeriod::lifetime, now)->total, 50 * 100 * 1'000);
}

TEST(Sessions, BeginAnewAfterAMonthWithoutUse) {
  Limits limits;
  const Quota each = quota("q", "session:*", WindowKind::lifetime, 10);
  ASSERT_TRUE(limits.put_quota(org, each, start));
  use(limits, "run", 10, 0, start);
  EXPECT_EQ(reserve(limits, 1, "run", 1, start + 29 * 24h).kind, Kind::quota_exceeded);
  EXPECT_EQ(reserve(limits, 1, "run", 10, start + 31 * 24h).kind, Kind::granted) << "whether it was forgotten or not";
  EXPECT_EQ(limits.state(org, each, start + 31 * 24h, "session:run")->used, 0);
}

TEST(Sessions, AreEachToldOfTheirLimitOnce) {
  Limits limits;
  ASSERT_TRUE(limits.put_quota(org, quota("q", "session:*", WindowKind::lifetime, 10), start));
  std::vector<Instant> windows;
  const auto reach = [&](Instant when) {
    const AccountNumber number = limits.session_account(org, "run");
    const Fact fact{
        .accounts = std::span(&number, 1), .words = limits.words_of_fact(org, "calls"), .units = 11, .session = number};
    std::vector<Notice> notices;
    limits.add(std::span(&fact, 1), when, notices);
    for (const Notice& notice : notices) {
      if (notice.kind == Notice::Kind::hard) windows.push_back(notice.window_begin);
    }
  };
  reach(start);
  reach(start + 1h);
  ASSERT_EQ(windows.size(), 1u);
  reach(start + 40 * 24h);
  ASSERT_EQ(windows.size(), 2u);
  EXPECT_NE(windows[0], windows[1]) << "or the second would be taken for the first";
}

TEST(Sessions, ThatHoldSomethingAreNotForgotten) {
  Limits limits;
  const Quota each = quota("q", "session:*", WindowKind::lifetime, 10);
  ASSERT_TRUE(limits.put_quota(org, each, start));
  ASSERT_EQ(reserve(limits, 1, "run", 10, start).kind, Kind::granted);
  forget(limits, start);
  EXPECT_EQ(limits.state(org, each, start, "session:run")->held, 10);
  EXPECT_EQ(reserve(limits, 2, "run", 1, start).kind, Kind::quota_exceeded);
  use(limits, "run", 4, 0, start, true, reservation(1));
  EXPECT_EQ(limits.state(org, each, start, "session:run")->held, 0);
  forget(limits, start);
  EXPECT_EQ(limits.state(org, each, start, "session:run")->used, 4) << "what it used before may still arrive";
  forget(limits, start + 2h);
  EXPECT_EQ(limits.state(org, each, start + 2h, "session:run")->used, 0);
}

TEST(Sessions, ThatAreCorrectedAfterTheirEndStayEmpty) {
  Limits limits;
  const Quota each = quota("q", "session:*", WindowKind::month, 10);
  ASSERT_TRUE(limits.put_quota(org, each, start));
  use(limits, "run", 8, 5, start, true);
  const Instant later = start + 3h;
  forget(limits, later);
  const std::array accounts{limits.session_account(org, "run")};
  Fact out{.accounts = accounts, .words = limits.words_of_fact(org, "calls"), .units = 8, .cost = 5};
  out.session = accounts[0];
  Fact in = out;
  in.units = 3;
  std::vector<Notice> notices;
  limits.correct(out, &in, start, later, notices);
  EXPECT_EQ(limits.state(org, each, later, "session:run")->used, 0);
  use(limits, "run", 2, 0, later);
  limits.correct(out, nullptr, start, later, notices);
  EXPECT_EQ(limits.state(org, each, later, "session:run")->used, 2);
}

/// The same facts for one that forgets whatever is over and comes back from a copy now and then, and for one that
/// keeps everything.
TEST(Sessions, AreCountedAsIfNoneWasEverForgotten) {
  const std::array quotas{
      quota("month", "session:*", WindowKind::month), quota("life", "session:*", WindowKind::lifetime),
      quota("rolling", "session:*", WindowKind::rolling), quota("own", "session:s-3", WindowKind::lifetime),
      quota("all", std::string(agent), WindowKind::lifetime)};
  const auto make = [&] {
    auto limits = std::make_unique<Limits>();
    for (const Quota& one : quotas) EXPECT_TRUE(limits->put_quota(org, one, start));
    return limits;
  };
  for (unsigned seed = 0; seed < 4; ++seed) {
    std::mt19937_64 random(seed);
    const auto below = [&](std::uint64_t n) { return static_cast<std::int64_t>(random() % n); };
    auto forgetful = make();
    auto keeping = make();
    Instant now = start;
    for (int step = 0; step < 3'000; ++step) {
      const std::int64_t jump = below(300);
      now += jump == 0 ? Nanos(31 * 24h) : jump < 10 ? Nanos(5h) : Nanos(below(1200) * 1s);
      const std::string session = fmt::format("s-{}", below(30));
      const std::int64_t units = below(9);
      const bool ends = below(4) == 0;
      for (Limits* limits : {forgetful.get(), keeping.get()}) use(*limits, session, units, units * 7, now, ends);
      if (below(20) == 0) forget(*forgetful, now);
      if (below(500) == 0) {
        Bytes copy;
        forgetful->begin_copy(copy);
        while (forgetful->write_copy(copy)) {
          use(*forgetful, "s-1", 0, 0, now);
        }
        auto again = make();
        const auto loaded = again->load(copy);
        ASSERT_TRUE(loaded) << loaded.error().to_string();
        ASSERT_TRUE(loaded->empty());
        forgetful = std::move(again);
      }
      if (below(10) != 0) continue;
      // A question is no use: it must not make a session last longer.
      reserve(*forgetful, 1, session, 1, now);
      forgetful->release(reservation(1));
      for (int n = 0; n < 30; ++n) {
        const std::string subject = fmt::format("session:s-{}", n);
        for (const Quota& one : quotas) {
          if (one.subject != "session:*" && one.subject != subject && one.id != "all") continue;
          const auto is = forgetful->state(org, one, now, subject);
          const auto should = keeping->state(org, one, now, subject);
          ASSERT_EQ(is ? is->used : 0, should ? should->used : 0) << one.id << " of " << subject << " seed " << seed;
        }
        for (const BillingPeriod period : {BillingPeriod::hour, BillingPeriod::lifetime}) {
          const auto is = forgetful->costs(org, subject, period, now);
          const auto should = keeping->costs(org, subject, period, now);
          ASSERT_EQ(is ? is->total : 0, should ? should->total : 0) << subject << " seed " << seed;
        }
      }
    }
    EXPECT_EQ(forgetful->costs(org, agent, BillingPeriod::lifetime, now)->total,
              keeping->costs(org, agent, BillingPeriod::lifetime, now)->total);
    EXPECT_LE(forgetful->accounts(), 32u);
  }
}

TEST(Sessions, AreForgottenWhileOthersAskAndHold) {
  Limits limits;
  ASSERT_TRUE(limits.put_quota(org, quota("q", "session:*", WindowKind::lifetime, 100), start));
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> ids{1};
  std::atomic<std::int64_t> minutes{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      while (!stop) {
        const std::string session = fmt::format("s-{}", random() % 50);
        const Instant now = start + minutes.load() * 1min;
        const std::array properties{Property{"session", session}};
        const Use asked{.org = org, .agent = agent, .event_type = "calls", .properties = properties};
        limits.allows(asked, now);
        const Verdict verdict = limits.check(asked, now);
        if (verdict.limited) limits.tell(verdict);
        const std::uint64_t id = ids++;
        if (reserve(limits, id, session, 1, now).kind == Kind::granted) limits.release(reservation(id));
      }
    });
  }
  std::mt19937_64 random(99);
  std::vector<Notice> notices;
  for (int i = 0; i < 3'000; ++i, minutes += 7) {
    const Instant now = start + minutes.load() * 1min;
    use(limits, fmt::format("s-{}", random() % 50), 1, 1, now, random() % 2 == 0);
    forget(limits, now);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(limits.holds(), 0u);
  const Instant end = start + minutes.load() * 1min + 31 * 24h;
  forget(limits, end);
  EXPECT_EQ(limits.accounts(), 1u) << "nothing is held any more";
  EXPECT_EQ(limits.costs(org, agent, BillingPeriod::lifetime, end)->total, 3'000);
}

}  // namespace
}  // namespace creto::metering
