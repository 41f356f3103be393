#include "counters.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <random>
#include <thread>

namespace creto::metering {
namespace {

using namespace std::chrono_literals;

constexpr std::string_view org = "default";
const Instant start = from_rfc3339("2026-11-29T20:30:00Z").value();

Identity agent(std::uint8_t n) {
  ByteArray<32> key{};
  key[0] = n;
  return Identity::agent(key);
}
const Identity owner = Identity::human("ada@example.org").value();

Quota quota(std::string id, const Identity& subject, std::int64_t limit, WindowKind window = WindowKind::month) {
  Quota result;
  result.id = std::move(id);
  result.subject = subject.text();
  result.event_type = "calls";
  result.window = window;
  result.limit = limit;
  if (window == WindowKind::rolling) result.rolling_length = 1h;
  return result;
}

ReservationId reservation(std::uint64_t n) {
  ByteArray<16> bytes{};
  for (std::size_t i = 0; i < 8; ++i) bytes[15 - i] = static_cast<std::uint8_t>(n >> (8 * i));
  return ReservationId::from_bytes(bytes);
}

struct Caller {
  Identity self;
  DelegationChain chain;
  Use use(std::int64_t units = 1, NanoMoney cost = 0, std::string_view type = "calls",
          std::string_view action = {}) const {
    return {.org = org,
            .agent = self.text(),
            .chain = chain,
            .event_type = type,
            .action = action,
            .units = units,
            .cost = cost};
  }
};
Caller caller(std::uint8_t n) { return {agent(n), {owner, agent(n)}}; }

using Kind = Verdict::Kind;

TEST(Quota, RefusesTheUseThatWouldExceedItAndSaysWhenItResets) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 3), start));
  std::vector<Notice> notices;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(limits.check(a.use(), start).kind, Kind::granted);
    limits.add(a.use(), start, {}, notices);
  }
  const Verdict verdict = limits.check(a.use(), start);
  EXPECT_EQ(verdict.kind, Kind::quota_exceeded);
  EXPECT_EQ(limits.tell(verdict).id, "q");
  EXPECT_EQ(verdict.limit, 3);
  EXPECT_EQ(verdict.used, 3);
  EXPECT_EQ(verdict.reset_at, from_rfc3339("2026-12-01T00:00:00Z").value());
  EXPECT_EQ(limits.check(a.use(), *verdict.reset_at).kind, Kind::granted);
}

TEST(Quota, CountsWhatAllBelowItUse) {
  Limits limits;
  ASSERT_TRUE(limits.put_quota(org, quota("q", owner, 2), start));
  std::vector<Notice> notices;
  limits.add(caller(1).use(), start, {}, notices);
  EXPECT_EQ(limits.check(caller(2).use(), start).kind, Kind::granted);
  limits.add(caller(2).use(), start, {}, notices);
  EXPECT_EQ(limits.check(caller(3).use(), start).kind, Kind::quota_exceeded);
}

TEST(Quota, OfASubscriptionCountsAgentsBelowTheBoundOne) {
  Limits limits;
  const std::string subscription = SubscriptionId::fresh(start).to_string();
  Quota limited = quota("q", owner, 1);
  limited.subject = subscription;
  ASSERT_TRUE(limits.put_quota(org, limited, start));
  limits.bind(org, agent(1).text(), subscription);
  const Caller child{agent(2), {owner, agent(1), agent(2)}};
  EXPECT_EQ(limits.subscription_of(org, child.self.text(), child.chain), subscription);
  EXPECT_EQ(limits.reserve(reservation(1), child.use(), start, start + 1h).kind, Kind::granted);
  EXPECT_EQ(limits.check(caller(1).use(), start).kind, Kind::quota_exceeded);
  EXPECT_EQ(limits.check(caller(3).use(), start).kind, Kind::granted);
}

TEST(Quota, CountsAnActionUnderItsOwnName) {
  Limits limits;
  const Caller a = caller(1);
  Quota pay = quota("q", a.self, 1);
  pay.event_type = "payments.pay";
  ASSERT_TRUE(limits.put_quota(org, pay, start));
  std::vector<Notice> notices;
  limits.add(a.use(1, 0, "action", "payments.pay"), start, {}, notices);
  EXPECT_EQ(limits.check(a.use(1, 0, "action", "payments.pay"), start).kind, Kind::quota_exceeded);
  EXPECT_EQ(limits.check(a.use(1, 0, "action", "mail.send"), start).kind, Kind::granted);
}

TEST(Quota, OverflowDecidesWhatBeyondTheLimitMeets) {
  Limits limits;
  const Caller a = caller(1);
  Quota limited = quota("q", a.self, 0);
  limited.overflow = Overflow::allow_with_notification;
  ASSERT_TRUE(limits.put_quota(org, limited, start));
  EXPECT_EQ(limits.check(a.use(), start).kind, Kind::granted);
  limited.overflow = Overflow::oversight;
  ASSERT_TRUE(limits.put_quota(org, limited, start));
  EXPECT_EQ(limits.check(a.use(), start).kind, Kind::oversight_required);
  ASSERT_TRUE(limits.put_quota(org, quota("hard", a.self, 0), start));
  EXPECT_EQ(limits.check(a.use(), start).kind, Kind::quota_exceeded);
}

TEST(Quota, NoticesSoftAndHardLimitOncePerWindow) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 100, WindowKind::hour), start));
  const auto notices_of = [&](std::int64_t units, Instant when) {
    std::vector<Notice> notices;
    limits.add(a.use(units), when, {}, notices);
    return notices;
  };
  EXPECT_TRUE(notices_of(94, start).empty());
  const auto soft = notices_of(1, start);
  ASSERT_EQ(soft.size(), 1u);
  EXPECT_EQ(soft[0].kind, Notice::Kind::soft);
  EXPECT_EQ(soft[0].used, 95);
  EXPECT_TRUE(notices_of(5, start).empty());
  const auto hard = notices_of(1, start);
  ASSERT_EQ(hard.size(), 1u);
  EXPECT_EQ(hard[0].kind, Notice::Kind::hard);
  EXPECT_TRUE(notices_of(1, start).empty());
  EXPECT_EQ(notices_of(99, start + 1h).size(), 1u);
}

TEST(Quota, NoticesALifetimeLimitOnce) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 10, WindowKind::lifetime), start));
  std::vector<Notice> notices;
  for (int i = 0; i < 10; ++i) limits.add(a.use(), start, {}, notices);
  EXPECT_EQ(notices.size(), 1u);
  EXPECT_FALSE(limits.state(org, quota("q", a.self, 10, WindowKind::lifetime), start)->reset_at);
}

TEST(Quota, KeepsItsUseWhenTheLimitIsRaised) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 1), start));
  std::vector<Notice> notices;
  limits.add(a.use(), start, {}, notices);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 2), start));
  EXPECT_EQ(limits.state(org, quota("q", a.self, 2), start)->used, 1);
  EXPECT_EQ(limits.check(a.use(), start).kind, Kind::granted);
  limits.remove_quota(org, quota("q", a.self, 2));
  EXPECT_FALSE(limits.check(a.use(1'000), start).limited);
}

TEST(Quota, DoesNotReopenAWindowWhenTheClockGoesBack) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 1, WindowKind::hour), start));
  std::vector<Notice> notices;
  limits.add(a.use(), start + 1h, {}, notices);
  EXPECT_EQ(limits.check(a.use(), start).kind, Kind::quota_exceeded);
  EXPECT_EQ(limits.check(a.use(), start - 48h).kind, Kind::quota_exceeded);
}

TEST(RollingQuota, NeverHoldsMoreThanItsLimitWithinItsLength) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 20, WindowKind::rolling), start));
  std::mt19937_64 random(3);
  std::vector<std::pair<Instant, std::int64_t>> granted;
  Instant now = start;
  std::vector<Notice> notices;
  for (int i = 0; i < 1'000; ++i) {
    now += Nanos(static_cast<std::int64_t>(random() % Nanos(4min).count()));
    const auto units = 1 + static_cast<std::int64_t>(random() % 5);
    const bool ok = limits.check(a.use(units), now).kind == Kind::granted;
    std::int64_t within = 0;
    std::int64_t within_more = 0;
    for (const auto& [when, amount] : granted) {
      if (when > now - 1h) within += amount;
      if (when > now - 1h - 2min) within_more += amount;
    }
    if (ok) {
      EXPECT_LE(within + units, 20);
      limits.add(a.use(units), now, {}, notices);
      granted.emplace_back(now, units);
    } else {
      EXPECT_GT(within_more + units, 20) << "refused although even two steps more would have had room";
      EXPECT_GT(limits.check(a.use(units), now).reset_at, now);
    }
  }
}

TEST(Reservation, IsHeldByAllWindowsOrNone) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("wide", a.self, 100), start));
  ASSERT_TRUE(limits.put_quota(org, quota("narrow", owner, 5), start));
  EXPECT_EQ(limits.reserve(reservation(1), a.use(6), start, start + 1h).kind, Kind::quota_exceeded);
  EXPECT_EQ(limits.state(org, quota("wide", a.self, 100), start)->held, 0);
  EXPECT_EQ(limits.reserve(reservation(2), a.use(5), start, start + 1h).kind, Kind::granted);
  EXPECT_EQ(limits.state(org, quota("wide", a.self, 100), start)->held, 5);
  EXPECT_EQ(limits.state(org, quota("narrow", owner, 5), start)->held, 5);
}

TEST(Reservation, IsGrantedAgainForTheSameContentOnly) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 5), start));
  EXPECT_EQ(limits.reserve(reservation(1), a.use(5), start, start + 1h).kind, Kind::granted);
  EXPECT_EQ(limits.reserve(reservation(1), a.use(5), start, start + 1h).kind, Kind::granted);
  EXPECT_EQ(limits.reserve(reservation(1), a.use(4), start, start + 1h).kind, Kind::conflict);
  EXPECT_EQ(limits.state(org, quota("q", a.self, 5), start)->held, 5);
}

TEST(Reservation, BecomesWhatWasReallyUsed) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 10), start));
  ASSERT_EQ(limits.reserve(reservation(1), a.use(10), start, start + 1h).kind, Kind::granted);
  std::vector<Notice> notices;
  limits.add(a.use(3), start, reservation(1), notices);
  const QuotaState state = *limits.state(org, quota("q", a.self, 10), start);
  EXPECT_EQ(state.used, 3);
  EXPECT_EQ(state.held, 0);
  EXPECT_FALSE(limits.release(reservation(1)));
}

TEST(Reservation, EndsWhenItsTimeIsOver) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 1), start));
  ASSERT_EQ(limits.reserve(reservation(1), a.use(), start, start + 10s).kind, Kind::granted);
  EXPECT_EQ(limits.reserve(reservation(2), a.use(), start + 9s, start + 1h).kind, Kind::quota_exceeded);
  EXPECT_EQ(limits.reserve(reservation(2), a.use(), start + 10s, start + 1h).kind, Kind::granted);
  EXPECT_EQ(limits.holds(), 1u);
}

TEST(Reservation, OfAQuotaMadeMeanwhileLeavesItAlone) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_EQ(limits.reserve(reservation(1), a.use(7), start, start + 1h).kind, Kind::granted);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 5), start));
  EXPECT_TRUE(limits.release(reservation(1)));
  EXPECT_EQ(limits.state(org, quota("q", a.self, 5), start)->held, 0);
}

TEST(Facts, AreCountedBeyondEveryLimit) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 1), start));
  std::vector<Notice> notices;
  limits.add(a.use(1'000), start, {}, notices);
  EXPECT_EQ(limits.state(org, quota("q", a.self, 1), start)->used, 1'000);
}

TEST(Facts, TakenBackLeaveNothing) {
  Limits limits;
  const Caller a = caller(1);
  for (const WindowKind window : {WindowKind::hour, WindowKind::rolling, WindowKind::lifetime}) {
    const Quota limited = quota("q-" + std::string(to_string(window)), a.self, 10, window);
    ASSERT_TRUE(limits.put_quota(org, limited, start));
    std::vector<Notice> notices;
    const auto added = limits.add(a.use(4, 7), start, {}, notices);
    limits.add(a.use(2, 1), start + 70min, {}, notices);
    limits.take_back(added);
    EXPECT_EQ(limits.state(org, limited, start + 70min)->used, 2) << to_string(window);
  }
  EXPECT_EQ(limits.costs(org, a.self.text(), contracts::BillingPeriod::lifetime, start)->total, 3);
}

TEST(Facts, ReplayedGiveTheSameCounters) {
  const Caller a = caller(1);
  std::mt19937_64 random(5);
  Limits before;
  std::vector<Quota> quotas;
  for (const WindowKind window : {WindowKind::rolling, WindowKind::hour, WindowKind::day, WindowKind::week,
                                  WindowKind::month, WindowKind::lifetime}) {
    quotas.push_back(quota("q-" + std::string(to_string(window)), a.self, 1'000, window));
    ASSERT_TRUE(before.put_quota(org, quotas.back(), start));
  }
  struct Fact {
    std::int64_t units;
    NanoMoney cost;
    Instant when;
  };
  std::vector<Fact> facts;
  Instant now = start;
  std::vector<Notice> notices;
  for (int i = 0; i < 400; ++i) {
    now += Nanos(static_cast<std::int64_t>(random() % Nanos(3h).count()));
    facts.push_back({static_cast<std::int64_t>(random() % 9), static_cast<NanoMoney>(random() % 1'000), now});
    before.add(a.use(facts.back().units, facts.back().cost), now, {}, notices);
  }
  Limits after;
  for (const Quota& one : quotas) ASSERT_TRUE(after.put_quota(org, one, now));
  for (const Fact& fact : facts) after.replay(org, a.self.text(), "calls", "", fact.units, fact.cost, fact.when);
  for (const Quota& one : quotas) {
    EXPECT_EQ(after.state(org, one, now)->used, before.state(org, one, now)->used) << one.id;
    EXPECT_EQ(after.state(org, one, now)->reset_at, before.state(org, one, now)->reset_at) << one.id;
  }
  for (const auto period : {contracts::BillingPeriod::hour, contracts::BillingPeriod::day,
                            contracts::BillingPeriod::month, contracts::BillingPeriod::lifetime}) {
    EXPECT_EQ(after.costs(org, a.self.text(), period, now)->total,
              before.costs(org, a.self.text(), period, now)->total);
  }
}

SubjectThreshold threshold(std::string id, const Identity& subject, std::string_view limit,
                           contracts::BillingPeriod period,
                           contracts::ThresholdAction action = contracts::ThresholdAction::require_approval) {
  return {subject.text(),
          {std::move(id), period, {Decimal::literal(limit), Currency::usd()}, action, {"human:cfo@example.org"}}};
}
constexpr NanoMoney usd = 1'000'000'000;

TEST(CostThreshold, TriggersOnOneTransactionAndOnThePeriod) {
  Limits limits;
  const Caller a = caller(1);
  using contracts::BillingPeriod;
  ASSERT_TRUE(limits.put_threshold(org, threshold("one", a.self, "10000", BillingPeriod::transaction), start));
  ASSERT_TRUE(limits.put_threshold(org, threshold("month", owner, "15000", BillingPeriod::month), start));
  EXPECT_FALSE(limits.check_cost(a.use(1, 10'000 * usd), BillingPeriod::month, start));
  const auto single = limits.check_cost(a.use(1, 10'001 * usd), BillingPeriod::month, start);
  ASSERT_TRUE(single);
  EXPECT_EQ(single->id, "one");
  std::vector<Notice> notices;
  limits.add(a.use(1, 9'000 * usd), start, {}, notices);
  EXPECT_TRUE(notices.empty());
  EXPECT_FALSE(limits.check_cost(caller(2).use(1, 6'000 * usd), BillingPeriod::month, start));
  const auto month = limits.check_cost(caller(2).use(1, 6'001 * usd), BillingPeriod::month, start);
  ASSERT_TRUE(month);
  EXPECT_EQ(month->id, "month");
  EXPECT_EQ(month->with_use, 15'001 * usd);
  EXPECT_FALSE(limits.check_cost(caller(2).use(1, 6'001 * usd), BillingPeriod::day, start));
  limits.add(a.use(1, 7'000 * usd), start, {}, notices);
  ASSERT_EQ(notices.size(), 1u);
  EXPECT_EQ(notices[0].kind, Notice::Kind::cost);
  limits.add(a.use(1, 7'000 * usd), start, {}, notices);
  EXPECT_EQ(notices.size(), 1u);
}

TEST(CostThreshold, ThatBlocksRefusesReservations) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_threshold(
      org, threshold("budget", owner, "10", contracts::BillingPeriod::day, contracts::ThresholdAction::block), start));
  EXPECT_EQ(limits.reserve(reservation(1), a.use(1, 6 * usd), start, start + 1h).kind, Kind::granted);
  EXPECT_EQ(limits.check(caller(2).use(1, 4 * usd), start).kind, Kind::granted);
  const Verdict refused = limits.reserve(reservation(2), caller(2).use(1, 5 * usd), start, start + 1h);
  EXPECT_EQ(refused.kind, Kind::budget_exceeded);
  EXPECT_EQ(refused.reset_at, from_rfc3339("2026-11-30T00:00:00Z").value());
  limits.release(reservation(1));
  EXPECT_EQ(limits.reserve(reservation(2), caller(2).use(1, 5 * usd), start, start + 1h).kind, Kind::granted);
}

TEST(Anomaly, IsAnHourFarAboveTheAgentsRhythm) {
  Limits limits;
  const Caller a = caller(1);
  std::vector<Notice> notices;
  Instant now = start;
  for (int hour = 0; hour < 40; ++hour) {
    EXPECT_FALSE(limits.check_cost(a.use(1, 12 * usd), contracts::BillingPeriod::hour, now));
    limits.add(a.use(1, (9 + hour % 3) * usd), now, {}, notices);
    now += 1h;
  }
  EXPECT_FALSE(limits.check_cost(a.use(1, 12 * usd), contracts::BillingPeriod::hour, now));
  const auto unusual = limits.check_cost(a.use(1, 200 * usd), contracts::BillingPeriod::hour, now);
  ASSERT_TRUE(unusual && unusual->anomaly);
  EXPECT_NEAR(unusual->anomaly->expected_per_hour, 10, 0.5);
  EXPECT_GT(unusual->anomaly->confidence, 0.97);
}

TEST(Limits, ConvertMoneyAndUnitsExactly) {
  EXPECT_EQ(to_nano_money(Decimal::literal("0.00000025")).value(), 250);
  EXPECT_EQ(to_nano_money(Decimal::literal("0.0000000005")).value(), 1);
  EXPECT_FALSE(to_nano_money(Decimal::literal("9300000000")));
  EXPECT_EQ(from_nano_money(1'500'000'000).to_string(), "1.5");
  EXPECT_EQ(to_whole_units(Decimal::literal("1.000001")).value(), 2);
  EXPECT_FALSE(to_whole_units(Decimal(-1)));
  EXPECT_FALSE(to_whole_units(Decimal::literal("1e19")));
}

TEST(ConcurrentReservations, NeverOverspendByOneUnit) {
  Limits limits;
  constexpr std::int64_t budget = 1'000;
  ASSERT_TRUE(limits.put_quota(org, quota("owner", owner, budget), start));
  for (std::uint8_t n = 1; n <= 8; ++n) {
    ASSERT_TRUE(limits.put_quota(
        org, quota("agent-" + std::to_string(n), agent(n), 200, n % 2 == 0 ? WindowKind::rolling : WindowKind::day),
        start));
  }
  std::atomic<std::int64_t> settled{0};
  std::atomic<std::int64_t> holding{0};
  std::atomic<std::uint64_t> ids{1};
  std::atomic<bool> over{false};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 64; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      const Caller me = caller(static_cast<std::uint8_t>(1 + t % 8));
      std::vector<Notice> notices;
      for (int i = 0; i < 150; ++i) {
        const auto units = 1 + static_cast<std::int64_t>(random() % 4);
        const ReservationId id = reservation(ids++);
        limits.check(me.use(units), start);
        if (limits.reserve(id, me.use(units), start, start + 1h).kind != Kind::granted) continue;
        if ((holding += units) + settled > budget) over = true;
        if (random() % 3 == 0) {
          holding -= units;
          limits.release(id);
        } else {
          const std::int64_t actual = 1 + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(units));
          holding -= units;  // first down, then up: what the test knows is never more than what is true
          settled += actual;
          limits.add(me.use(actual), start, id, notices);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(over);
  const QuotaState state = *limits.state(org, quota("owner", owner, budget), start);
  EXPECT_EQ(state.held, 0);
  EXPECT_EQ(state.used, settled);
  EXPECT_LE(state.used, budget);
  EXPECT_EQ(limits.holds(), 0u);
}

TEST(ConcurrentChecks, SeeEachQuotaWhole) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 0), start));
  std::atomic<bool> stop{false};
  std::atomic<bool> wrong{false};
  std::thread writer([&] {
    // Used and limit move together: there is never room for one more.
    std::vector<Notice> notices;
    for (int i = 0; i < 2'000; ++i) {
      limits.add(a.use(), start, {}, notices);
      if (!limits.put_quota(org, quota("q", a.self, i + 1), start)) wrong = true;
    }
    stop = true;
  });
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      while (!stop) {
        if (limits.check(a.use(), start).kind == Kind::granted) wrong = true;
      }
    });
  }
  writer.join();
  for (std::thread& reader : readers) reader.join();
  EXPECT_FALSE(wrong);
}

}  // namespace
}  // namespace creto::metering
