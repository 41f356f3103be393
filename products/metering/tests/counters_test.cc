#include "limits/counters.h"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <atomic>
#include <cstring>
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

TEST(Reservation, LastsLongerWhereItIsAskedForAgainAndNeverShorter) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("q", a.self, 1), start));
  ASSERT_EQ(limits.reserve(reservation(1), a.use(), start, start + 10s).kind, Kind::granted);
  EXPECT_EQ(limits.reserve(reservation(1), a.use(), start + 5s, start + 20s).kind, Kind::granted);
  EXPECT_EQ(limits.reserve(reservation(1), a.use(), start + 6s, start + 16s).kind, Kind::granted);
  EXPECT_EQ(limits.reserve(reservation(2), a.use(), start + 19s, start + 1h).kind, Kind::quota_exceeded);
  EXPECT_EQ(limits.reserve(reservation(2), a.use(), start + 20s, start + 1h).kind, Kind::granted);
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
  const AccountNumber number = limits.account(org, a.self.text());
  for (const WindowKind window : {WindowKind::hour, WindowKind::rolling, WindowKind::lifetime}) {
    const Quota limited = quota("q-" + std::string(to_string(window)), a.self, 10, window);
    ASSERT_TRUE(limits.put_quota(org, limited, start));
    std::vector<Notice> notices;
    const Fact fact{std::span(&number, 1), limits.words_of_fact(org, "calls"), 4, 7, {}};
    Receipt receipt;
    limits.add(std::span(&fact, 1), start, notices, &receipt);
    limits.add(a.use(2, 1), start + 70min, {}, notices);
    limits.take_back(std::span(&fact, 1), receipt);
    EXPECT_EQ(limits.state(org, limited, start + 70min)->used, 2) << to_string(window);
  }
  EXPECT_EQ(limits.costs(org, a.self.text(), contracts::BillingPeriod::lifetime, start)->total, 3);
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

TEST(Anomaly, IsToldOnceAnHourWhereItIsSureEnough) {
  const Caller a = caller(1);
  const auto told = [&](double confidence) {
    Limits limits({.confidence = confidence});
    std::vector<Notice> notices;
    Instant now = start;
    for (int hour = 0; hour < 40; ++hour, now += 1h)
      limits.add(a.use(1, (5 + 10 * (hour % 2)) * usd), now, {}, notices);
    EXPECT_TRUE(notices.empty());
    for (int use = 0; use < 10; ++use) limits.add(a.use(1, 10 * usd), now, {}, notices);
    return notices;
  };
  const auto notices = told(0.97);
  ASSERT_EQ(notices.size(), 1u) << "not of each ancestor, and not with every use";
  EXPECT_EQ(notices[0].kind, Notice::Kind::anomaly);
  EXPECT_EQ(notices[0].subject, a.self.text());
  EXPECT_EQ(notices[0].used, 50 * usd);
  EXPECT_NEAR(notices[0].expected, 10e9, 1e9);
  EXPECT_GT(notices[0].confidence, 0.97);
  const auto surer = told(0.99);
  ASSERT_EQ(surer.size(), 1u);
  EXPECT_EQ(surer[0].used, 60 * usd);
  EXPECT_TRUE(told(0.9999).empty());
}

TEST(Anomaly, OfAnAccountWithAThresholdIsJudgedByTheHourOfTheWeek) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_threshold(org, threshold("t", a.self, "1000000", contracts::BillingPeriod::month), start));
  std::vector<Notice> notices;
  const Instant monday = from_rfc3339("2026-08-03T00:00:00Z").value();
  // Mondays from 02:00 to 03:00 a job costs 100; any other hour 1 to 3.
  const int hours = 5 * 168;
  for (int hour = 0; hour < hours; ++hour)
    limits.add(a.use(1, (hour % 168 == 2 ? 100 : 1 + hour % 3) * usd), monday + hour * 1h, {}, notices);
  const Instant now = monday + hours * 1h;
  const auto at = [&](int hour, NanoMoney cost) {
    return limits.check_cost(a.use(1, cost), contracts::BillingPeriod::hour, now + hour * 1h);
  };
  EXPECT_TRUE(at(1, 100 * usd)) << "an hour early";
  EXPECT_FALSE(at(2, 100 * usd)) << "its hour";
  const auto late = at(3, 100 * usd);
  ASSERT_TRUE(late && late->anomaly);
  EXPECT_NEAR(late->anomaly->expected_per_hour, 2, 1);
  EXPECT_GT(late->anomaly->confidence, 0.9);
}

TEST(Forecast, ToldByTheRhythmHoldsTheTruthMostOfTheTime) {
  std::mt19937_64 random(11);
  int held = 0;
  constexpr int trials = 60;
  for (int trial = 0; trial < trials; ++trial) {
    Limits limits;
    const Caller a = caller(1);
    std::vector<Notice> notices;
    const Instant begin = from_rfc3339("2026-11-01T00:00:00Z").value();
    NanoMoney total = 0;
    std::optional<Forecast> told;
    for (int hour = 0; hour < 30 * 24; ++hour) {
      if (hour == 10 * 24)
        told = limits.forecast(org, a.self.text(), contracts::BillingPeriod::month, begin + hour * 1h);
      const auto cost = static_cast<NanoMoney>(random() % 10) * usd;
      total += cost;
      limits.add(a.use(1, cost), begin + hour * 1h, {}, notices);
    }
    ASSERT_TRUE(told);
    EXPECT_LE(told->so_far, told->low);
    EXPECT_LE(told->low, told->expected);
    EXPECT_LE(told->expected, told->high);
    held += told->low <= total && total <= told->high;
  }
  EXPECT_GE(held, trials * 8 / 10);
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

TEST(EachQuota, LimitsEveryAgentByItself) {
  Limits limits;
  std::vector<Notice> notices;
  limits.add(caller(1).use(), start, {}, notices);
  Quota each = quota("each", owner, 2);
  each.subject = "agent:*";
  ASSERT_TRUE(limits.put_quota(org, each, start));
  EXPECT_EQ(limits.check(caller(9).use(3), start).kind, Kind::quota_exceeded) << "who used nothing yet, too";
  EXPECT_FALSE(limits.allows(caller(9).use(3), start));
  EXPECT_EQ(limits.tell(limits.check(caller(9).use(3), start)).id, "each");
  EXPECT_TRUE(limits.allows(caller(9).use(2), start));
  for (const std::uint8_t n : {std::uint8_t{1}, std::uint8_t{2}}) {
    limits.add(caller(n).use(2), start, {}, notices);
    const Verdict verdict = limits.check(caller(n).use(), start);
    EXPECT_EQ(verdict.kind, Kind::quota_exceeded);
    EXPECT_EQ(limits.tell(verdict).subject, agent(n).text());
    EXPECT_EQ(limits.state(org, each, start, agent(n).text())->used, 2);
  }
  EXPECT_TRUE(limits.allows(caller(3).use(), start));
  each.limit = 5;
  ASSERT_TRUE(limits.put_quota(org, each, start));
  EXPECT_TRUE(limits.allows(caller(1).use(3), start)) << "and keeps what was used when it changes";
  EXPECT_FALSE(limits.allows(caller(1).use(4), start));
  limits.remove_quota(org, each);
  EXPECT_TRUE(limits.allows(caller(1).use(100), start));
}

TEST(EachQuota, YieldsToAnAgentsOwn) {
  Limits limits;
  Quota each = quota("each", owner, 2);
  each.subject = "agent:*";
  ASSERT_TRUE(limits.put_quota(org, each, start));
  std::vector<Notice> notices;
  limits.add(caller(1).use(2), start, {}, notices);
  ASSERT_TRUE(limits.put_quota(org, quota("own", agent(1), 10), start));
  EXPECT_TRUE(limits.allows(caller(1).use(8), start));
  EXPECT_FALSE(limits.allows(caller(1).use(9), start));
  limits.remove_quota(org, quota("own", agent(1), 10));
  EXPECT_FALSE(limits.allows(caller(1).use(), start)) << "and comes back with what was used";
}

TEST(Quota, CountsRequestsAndMoneyOfAnyType) {
  Limits limits;
  const Caller a = caller(1);
  Quota requests = quota("rpm", a.self, 2, WindowKind::rolling);
  requests.event_type.clear();
  requests.measure = Measure::events;
  requests.rolling_length = 1min;
  Quota money = quota("money", a.self, 5'000'000'000, WindowKind::day);
  money.event_type.clear();
  money.measure = Measure::cost;
  ASSERT_TRUE(limits.put_quota(org, requests, start));
  ASSERT_TRUE(limits.put_quota(org, money, start));
  std::vector<Notice> notices;
  limits.add(a.use(1'000, 4'000'000'000, "tokens"), start, {}, notices);
  EXPECT_TRUE(limits.allows(a.use(500, 1'000'000'000, "calls"), start));
  EXPECT_EQ(limits.tell(limits.check(a.use(1, 1'000'000'001), start)).id, "money");
  limits.add(a.use(1, 0, "calls"), start, {}, notices);
  EXPECT_EQ(limits.tell(limits.check(a.use(), start)).id, "rpm");
  EXPECT_TRUE(limits.allows(a.use(), start + 62s));
}

TEST(Quota, CountsOnlyUseWithTheNamedProperties) {
  Limits limits;
  const Caller a = caller(1);
  Quota of_models = quota("models", a.self, 3);
  of_models.match = {{"model_id", {"large", "huge"}}, {"project", {"x"}}};
  ASSERT_TRUE(limits.put_quota(org, of_models, start));
  using Property = std::pair<std::string_view, std::string_view>;
  const std::vector<Property> counted{{"model_id", "huge"}, {"project", "x"}};
  const std::vector<Property> other{{"model_id", "small"}, {"project", "x"}};
  const std::vector<Property> half{{"model_id", "large"}};
  const auto with = [&](const std::vector<Property>& properties, std::int64_t units) {
    Use use = a.use(units);
    use.properties = properties;
    return use;
  };
  std::vector<Notice> notices;
  for (const auto& properties : {counted, other, half}) limits.add(with(properties, 2), start, {}, notices);
  EXPECT_EQ(limits.state(org, of_models, start)->used, 2);
  EXPECT_FALSE(limits.allows(with(counted, 2), start));
  EXPECT_TRUE(limits.allows(with(other, 2), start));
  EXPECT_TRUE(limits.allows(with(half, 2), start));
}

TEST(Quota, OfASingleUseAndOfWhatIsHeldAtOnce) {
  Limits limits;
  const Caller a = caller(1);
  ASSERT_TRUE(limits.put_quota(org, quota("each-call", a.self, 5, WindowKind::transaction), start));
  ASSERT_TRUE(limits.put_quota(org, quota("sessions", a.self, 6, WindowKind::concurrent), start));
  std::vector<Notice> notices;
  limits.add(a.use(100), start, {}, notices);
  EXPECT_FALSE(limits.allows(a.use(6), start));
  EXPECT_EQ(limits.reserve(reservation(1), a.use(5), start, start + 1h).kind, Kind::granted);
  EXPECT_EQ(limits.tell(limits.check(a.use(2), start)).id, "sessions");
  EXPECT_TRUE(limits.allows(a.use(1), start));
  limits.add(a.use(5), start, reservation(1), notices);
  EXPECT_TRUE(limits.allows(a.use(5), start));
}

TEST(Quota, FollowsTheCalendarOfItsTimeZone) {
  Limits limits;
  const Caller a = caller(1);
  Quota berlin = quota("berlin", a.self, 1, WindowKind::day);
  berlin.time_zone = "Europe/Berlin";
  ASSERT_TRUE(limits.put_quota(org, berlin, start));
  const auto at = [](std::string_view text) { return from_rfc3339(text).value(); };
  std::vector<Notice> notices;
  // The night in which summer time ends: a day of 25 hours.
  limits.add(a.use(), at("2026-10-24T22:30:00Z"), {}, notices);
  const Verdict refused = limits.check(a.use(), at("2026-10-25T22:59:59Z"));
  EXPECT_EQ(refused.kind, Kind::quota_exceeded);
  EXPECT_EQ(refused.reset_at, at("2026-10-25T23:00:00Z"));
  EXPECT_TRUE(limits.allows(a.use(), at("2026-10-25T23:00:00Z")));
  // And that in which it begins: one of 23.
  limits.add(a.use(), at("2027-03-27T23:30:00Z"), {}, notices);
  EXPECT_FALSE(limits.allows(a.use(), at("2027-03-28T21:59:59Z")));
  EXPECT_TRUE(limits.allows(a.use(), at("2027-03-28T22:00:00Z")));
}

TEST(Copy, ThatIsWrittenWhileFactsGoOnIsOfTheMomentItBegan) {
  const auto make = [](Limits& limits) {
    Quota each = quota("each", owner, 1'000);
    each.subject = "agent:*";
    ASSERT_TRUE(limits.put_quota(org, each, start));
    ASSERT_TRUE(limits.put_quota(org, quota("own", owner, 500'000, WindowKind::rolling), start));
    ASSERT_TRUE(limits.put_threshold(
        org, {owner.text(), {"t", contracts::BillingPeriod::day, {Decimal(1), Currency::usd()}, {}, {}}, {}}, start));
  };
  Limits before;
  make(before);
  std::vector<Notice> notices;
  constexpr int agents = 20'000;  // more than one slice
  const auto name = [](int n) {
    ByteArray<32> key{};
    std::memcpy(key.data(), &n, sizeof(n));
    return Identity::agent(key);
  };
  const auto fact = [&](Limits& limits, int n, Instant when) {
    const Identity self = name(n);
    const DelegationChain chain{owner, self};
    limits.add({.org = org, .agent = self.text(), .chain = chain, .event_type = "calls", .units = n % 7, .cost = n},
               when, {}, notices);
  };
  for (int n = 0; n < agents; ++n) fact(before, n, start + n * 50ms);
  const Instant until = start + agents * 50ms;
  Bytes copy;
  before.begin_copy(copy);
  for (int n = 0, more = 1; more != 0; n += 3'000) {
    fact(before, n % agents, until);  // some of their accounts are written, some are not
    fact(before, agents + n, until);
    more = before.write_copy(copy) ? 1 : 0;
  }
  fact(before, 7, until);

  Limits after;
  make(after);
  ASSERT_TRUE(after.put_quota(org, quota("younger", owner, 7), start));
  const auto younger = after.load(copy);
  ASSERT_TRUE(younger) << younger.error().to_string();
  ASSERT_EQ(younger->size(), 1u);
  EXPECT_EQ(younger->front().id, "younger");
  const std::array<Limits::Seed, 1> seeds{{{start, 41}}};
  ASSERT_TRUE(after.put_quota_anew(org, quota("younger", owner, 100), until, seeds));
  EXPECT_EQ(after.state(org, quota("younger", owner, 100), until)->used, 41);
  Limits expected;
  make(expected);
  for (int n = 0; n < agents; ++n) fact(expected, n, start + n * 50ms);
  Quota each = quota("each", owner, 1'000);
  each.subject = "agent:*";
  for (int n = 0; n < agents; n += 499) {
    EXPECT_EQ(after.state(org, each, until, name(n).text())->used, n % 7);
    EXPECT_EQ(after.costs(org, name(n).text(), contracts::BillingPeriod::month, until)->total, n);
  }
  const Quota own = quota("own", owner, 500'000, WindowKind::rolling);
  for (const Instant when : {until, until + 45min, until + 62min}) {
    EXPECT_EQ(after.state(org, own, when)->used, expected.state(org, own, when)->used);
    EXPECT_EQ(after.state(org, own, when)->reset_at, expected.state(org, own, when)->reset_at);
  }
  EXPECT_EQ(after.costs(org, owner.text(), contracts::BillingPeriod::day, until)->by_event_type,
            expected.costs(org, owner.text(), contracts::BillingPeriod::day, until)->by_event_type);
  for (const std::size_t size : {std::size_t{0}, std::size_t{9}, copy.size() / 2, copy.size() - 1}) {
    Limits damaged;
    EXPECT_FALSE(damaged.load(BytesView(copy).first(size)));
  }
}

/// Everything that happened, added up anew for every question.
class NaiveModel {
 public:
  struct Fact {
    std::size_t account;
    std::int64_t units;
    Instant when;
  };
  struct Held {
    std::size_t account;
    std::int64_t units;
    Instant until;
    std::vector<std::string> quotas;
  };
  std::map<std::string, std::pair<std::size_t, Quota>> quotas;
  std::vector<Fact> facts;
  std::map<std::uint64_t, Held> holds;
  Instant latest = start;

  static bool counts(std::size_t subject, std::size_t account) { return subject == account || subject == 0; }
  bool within(const Quota& q, Instant when) const {
    if (q.window != WindowKind::rolling) return calendar_window(q.window, latest).contains(when);
    const std::int64_t width = q.rolling_length.count() / 60;
    return unix_ns(when) / width >= unix_ns(latest) / width - 60;
  }
  std::int64_t used(const std::string& id) const {
    const auto& [subject, q] = quotas.at(id);
    std::int64_t sum = 0;
    for (const Fact& fact : facts) {
      if (counts(subject, fact.account) && within(q, fact.when)) sum += fact.units;
    }
    return sum;
  }
  std::int64_t held(const std::string& id) const {
    std::int64_t sum = 0;
    for (const auto& [number, hold] : holds) {
      if (std::ranges::find(hold.quotas, id) != hold.quotas.end()) sum += hold.units;
    }
    return sum;
  }
  bool grants(std::size_t account, std::int64_t units) const {
    return std::ranges::all_of(quotas, [&](const auto& one) {
      const auto& [id, quota] = one;
      return !counts(quota.first, account) || used(id) + held(id) + units <= quota.second.limit;
    });
  }
  void expire(Instant now) {
    std::erase_if(holds, [&](const auto& one) { return one.second.until <= now; });
  }
};

TEST(Counters, EqualANaiveModelWhateverHappens) {
  for (unsigned seed = 0; seed < 6; ++seed) {
    std::mt19937_64 random(seed);
    const auto below = [&](std::uint64_t n) { return static_cast<std::int64_t>(random() % n); };
    Limits limits;
    NaiveModel model;
    const std::array<Identity, 4> who{owner, agent(1), agent(2), agent(3)};
    const std::array windows{WindowKind::rolling, WindowKind::hour, WindowKind::day, WindowKind::month,
                             WindowKind::lifetime};
    const auto use = [&](const DelegationChain& chain, std::int64_t units) {
      return Use{.org = org, .agent = chain.back().text(), .chain = chain, .event_type = "calls", .units = units};
    };
    std::uint64_t ids = 1;
    std::vector<Notice> notices;
    Instant now = start;
    const auto look = [&] {  // at every account, so that the clock of each is the model's
      for (const Identity& one : who) limits.costs(org, one.text(), contracts::BillingPeriod::hour, now);
    };
    for (const Identity& one : who) limits.account(org, one.text());
    for (int step = 0; step < 250; ++step) {
      // The clock mostly goes on, sometimes far, and sometimes back.
      const std::int64_t jump = below(20);
      now += jump == 0 ? Nanos(26h) : jump == 1 ? -Nanos(below(3) * 50min) : Nanos(below(600) * 1s);
      model.latest = std::max(model.latest, now);
      look();
      const std::size_t account = 1 + random() % 3;
      const DelegationChain chain{owner, who[account]};
      const std::int64_t units = below(5);
      const ReservationId id = reservation(ids);
      switch (below(8)) {
        case 0: {  // a quota appears or changes
          const std::size_t subject = random() % 4;
          const WindowKind window = windows[random() % windows.size()];
          Quota made = quota(fmt::format("{}-{}", subject, to_string(window)), who[subject], 5 + below(40), window);
          std::vector<Limits::Seed> seeds;
          for (const NaiveModel::Fact& fact : model.facts) {
            if (NaiveModel::counts(subject, fact.account)) seeds.push_back({fact.when, fact.units});
          }
          ASSERT_TRUE(limits.put_quota(org, made, now, seeds));
          model.quotas[made.id] = {subject, made};
          break;
        }
        case 1:  // or goes
          if (!model.quotas.empty() && below(3) == 0) {
            const auto gone = std::next(model.quotas.begin(), below(model.quotas.size()));
            limits.remove_quota(org, gone->second.second);
            model.quotas.erase(gone);
          }
          break;
        case 2: {  // a fact that is taken back
          const std::array numbers{limits.account(org, who[account].text()), limits.account(org, owner.text())};
          const Fact fact{numbers, limits.words_of_fact(org, "calls"), units, 0, {}};
          Receipt receipt;
          limits.add(std::span(&fact, 1), now, notices, &receipt);
          limits.take_back(std::span(&fact, 1), receipt);
          break;
        }
        case 3:
        case 4: {
          const Instant until = now + Nanos((1 + below(90)) * 1min);
          const bool granted = limits.reserve(id, use(chain, units), now, until).kind == Kind::granted;
          if (!model.grants(account, units)) model.expire(now);
          ASSERT_EQ(granted, model.grants(account, units)) << "seed " << seed << " step " << step;
          if (!granted) break;
          NaiveModel::Held held{account, units, until, {}};
          for (const auto& [name, quota] : model.quotas) {
            if (NaiveModel::counts(quota.first, account)) held.quotas.push_back(name);
          }
          model.holds.emplace(ids++, held);
          break;
        }
        case 5:
        case 6: {  // a fact, which may settle a hold
          std::optional<ReservationId> settles;
          if (!model.holds.empty() && below(2) == 0) {
            const auto hold = std::next(model.holds.begin(), below(model.holds.size()));
            settles = reservation(hold->first);
            model.holds.erase(hold);
          }
          limits.add(use(chain, units), now, settles, notices);
          model.facts.push_back({account, units, model.latest});
          break;
        }
        default:
          if (!model.holds.empty()) {
            limits.release(reservation(model.holds.begin()->first));
            model.holds.erase(model.holds.begin());
          }
          limits.expire(now);
          model.expire(now);
      }
      const Use more = use(chain, below(9));
      if (!model.grants(account, more.units)) model.expire(now);  // as any question that is refused at first
      ASSERT_EQ(limits.allows(more, now), model.grants(account, more.units)) << "seed " << seed << " step " << step;
      ASSERT_EQ(limits.check(more, now).kind == Kind::granted, model.grants(account, more.units));
      for (const auto& [name, quota] : model.quotas) {
        const auto state = limits.state(org, quota.second, now);
        ASSERT_TRUE(state) << name;
        ASSERT_EQ(state->used, model.used(name)) << name << " seed " << seed << " step " << step;
        ASSERT_EQ(state->held, model.held(name)) << name << " seed " << seed << " step " << step;
      }
    }
  }
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
        if (i % 2 == 0) limits.check(me.use(units), start);
        if (limits.allows(me.use(budget + 1), start)) over = true;
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
