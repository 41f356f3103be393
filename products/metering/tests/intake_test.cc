// The way of an event from its bytes to the counters: whom it counts for, and what happens to the rest of a batch.

#include "usage/intake.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "billing/facts.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/fault_files.h"
#include "ledger/batch_proof.h"
#include "tables/number_table.h"

namespace creto::metering {
namespace {

using namespace std::chrono_literals;

Identity agent(std::uint8_t number) {
  ByteArray<32> key{};
  key[0] = number;
  return Identity::agent(key);
}

/// Says of an agent what a test has written down.
class Registry final : public Attributor {
 public:
  std::map<std::string, Attributed, std::less<>> known;
  std::atomic<std::uint64_t> current{1};
  std::atomic<std::size_t> asked{0};

  Result<Attributed> attribute(const Context&, const Identity& who, Instant) override {
    ++asked;
    const auto found = known.find(who.text());
    if (found == known.end()) return Error(Product::metering, ErrorKind::not_found, "no such agent");
    return found->second;
  }
  std::uint64_t version() const override { return current; }
};

class IntakeTest : public ::testing::Test {
 protected:
  IntakeTest() {
    ledger_ =
        Ledger::open(
            open_block_files(files_, "/usage/log").value(), files_, "/usage", clock_, no_telemetry(), {},
            [](Ledger&, BytesView, Ledger::Saved) { return Result<>(); }, [](const StoredEvent&) { return Result<>(); })
            .value();
    intake_ = std::make_unique<Intake>(*ledger_, limits_, registry_, clock_, IntakeOptions{});
  }

  Intake::Answers send(const std::vector<Identity>& agents, Nanos age = {}) {
    std::vector<Bytes> bytes(agents.size());
    std::vector<BytesView> records;
    std::vector<Hash256> leaves;
    for (std::size_t i = 0; i < agents.size(); ++i) {
      encode_record({.bytes = {},
                     .agent = agents[i].text(),
                     .type = "tokens",
                     .key = std::to_string(next_key_++),
                     .time = clock_.now() - age,
                     .units = "7"},
                    bytes[i]);
      records.emplace_back(bytes[i]);
      leaves.push_back(record_leaf(bytes[i]));
    }
    std::vector<Intake::Reached> reached;
    return intake_->take(ctx_, {.records = records, .reporter = "service:s", .leaves = leaves}, reached).value();
  }
  /// What a quota on `subject` has seen since it was put.
  void watch(const std::string& subject) {
    Quota quota;
    quota.id = subject;
    quota.subject = subject;
    quota.event_type = "tokens";
    quota.limit = 1'000'000;
    quota.window = WindowKind::lifetime;
    ASSERT_TRUE(limits_.put_quota(ctx_.org, quota, clock_.now()));
    watched_[subject] = quota;
  }
  std::int64_t used(const std::string& subject) {
    return limits_.state(ctx_.org, watched_.at(subject), clock_.now()).value().used;
  }

  const Context ctx_ = Context::of_service(Identity::service("s").value());
  creto::testing::FakeClock clock_{from_rfc3339("2026-11-10T12:00:00.5Z").value()};
  creto::testing::FaultFiles files_;
  Limits limits_;
  Registry registry_;
  std::unique_ptr<Ledger> ledger_;
  std::unique_ptr<Intake> intake_;
  std::map<std::string, Quota> watched_;
  std::atomic<int> next_key_{0};
};

TEST_F(IntakeTest, AnEventCountsForEveryAncestorHoweverManyThereAre) {
  for (std::uint8_t depth = 1; depth <= delegation_chain_max_depth; ++depth) {
    Attributor::Attributed told;
    for (std::uint8_t i = 0; i < depth; ++i) told.chain.push_back(agent(static_cast<std::uint8_t>(100 + i)));
    told.chain.push_back(agent(depth));
    told.subscription = "sub";
    registry_.known[agent(depth).text()] = told;
  }
  watch("sub");
  for (std::uint8_t i = 0; i < delegation_chain_max_depth; ++i) watch(agent(static_cast<std::uint8_t>(100 + i)).text());
  std::vector<Identity> all;
  for (std::uint8_t depth = 1; depth <= delegation_chain_max_depth; ++depth) all.push_back(agent(depth));
  for (int round = 0; round < 3; ++round) {
    for (const auto& answer : send(all)) EXPECT_TRUE(answer);
  }
  EXPECT_EQ(registry_.asked, all.size()) << "what was told holds";
  EXPECT_EQ(used("sub"), 3 * 7 * static_cast<std::int64_t>(delegation_chain_max_depth));
  for (std::uint8_t i = 0; i < delegation_chain_max_depth; ++i) {
    EXPECT_EQ(used(agent(static_cast<std::uint8_t>(100 + i)).text()),
              3 * 7 * static_cast<std::int64_t>(delegation_chain_max_depth - i));
  }
}

TEST_F(IntakeTest, AnUnknownAgentIsRefusedAndTheRestOfTheBatchIsTaken) {
  registry_.known[agent(1).text()].chain = {agent(1)};
  registry_.known[agent(3).text()].chain = {agent(3)};
  watch(agent(1).text());
  watch(agent(3).text());
  for (int round = 0; round < 2; ++round) {
    const auto answers = send({agent(1), agent(2), agent(3), agent(2)});
    ASSERT_EQ(answers.size(), 4u);
    EXPECT_TRUE(answers[0]);
    EXPECT_TRUE(answers[2]);
    for (const std::size_t i : {1u, 3u}) {
      ASSERT_FALSE(answers[i]);
      EXPECT_EQ(answers[i].error().kind(), ErrorKind::not_found);
    }
  }
  EXPECT_EQ(used(agent(1).text()), 14);
  EXPECT_EQ(used(agent(3).text()), 14);
}

TEST_F(IntakeTest, ASubscriptionCountsInItsTimesOnly) {
  auto& told = registry_.known[agent(1).text()];
  told.chain = {agent(1)};
  told.subscription = "new";
  told.from = clock_.now() - 10s;  // in the middle of a second
  watch("old");
  watch("new");
  EXPECT_TRUE(send({agent(1)})[0]);
  EXPECT_TRUE(send({agent(1)}, 9s)[0]);
  EXPECT_EQ(registry_.asked, 1u);
  told.subscription = "old";
  told.until = told.from;
  told.from = Instant::min();
  EXPECT_TRUE(send({agent(1)}, 10s + 1ms)[0]);
  EXPECT_EQ(registry_.asked, 2u);
  EXPECT_EQ(used("new"), 14);
  EXPECT_EQ(used("old"), 7);
}

TEST_F(IntakeTest, AnAgentIsAskedForAgainWhenWhatWasToldMayHaveChanged) {
  auto& told = registry_.known[agent(1).text()];
  told.chain = {agent(50), agent(1)};
  watch(agent(50).text());
  EXPECT_TRUE(send({agent(1)})[0]);
  told.chain = {agent(1)};
  EXPECT_TRUE(send({agent(1)})[0]);
  EXPECT_EQ(used(agent(50).text()), 14) << "nobody said that it changed";
  ++registry_.current;
  EXPECT_TRUE(send({agent(1)})[0]);
  EXPECT_EQ(used(agent(50).text()), 14);
  clock_.advance(IntakeOptions{}.attribution_ttl + 1s);
  told.chain = {agent(50), agent(1)};
  told.until = clock_.now() + 5s;
  EXPECT_TRUE(send({agent(1)})[0]);
  EXPECT_EQ(used(agent(50).text()), 21) << "it is not believed for ever";
  clock_.advance(5s);
  registry_.known.erase(agent(1).text());
  EXPECT_FALSE(send({agent(1)})[0]) << "the chain has ended by itself";
}

TEST_F(IntakeTest, ManyThreadsCountEveryEventWhileAgentsBecomeKnownAndAreAskedForAgain) {
  constexpr std::size_t threads = 6;
  constexpr std::size_t rounds = 60;
  std::vector<Identity> agents;
  for (std::uint8_t i = 1; i <= 40; ++i) {
    agents.push_back(agent(i));
    registry_.known[agent(i).text()].chain = {agent(100), agent(i)};
  }
  watch(agent(100).text());
  std::vector<std::jthread> senders;
  for (std::size_t thread = 0; thread < threads; ++thread) {
    senders.emplace_back([&, thread] {
      std::mt19937_64 random(thread);
      for (std::size_t round = 0; round < rounds; ++round) {
        std::vector<Identity> some;
        for (std::size_t i = 0; i < 20; ++i) some.push_back(agents[random() % (1 + round % agents.size())]);
        for (const auto& answer : send(some)) EXPECT_TRUE(answer);
        if (random() % 8 == 0) ++registry_.current;
      }
    });
  }
  senders.clear();
  EXPECT_EQ(used(agent(100).text()), static_cast<std::int64_t>(threads * rounds * 20 * 7));
}

TEST_F(IntakeTest, WhatIsBilledGoesOnWithTheLogAsIfAllWasReadAnew) {
  const SubscriptionId subscription = SubscriptionId::fresh(clock_.now());
  registry_.known[agent(1).text()] = {.chain = {agent(1)}, .subscription = subscription.to_string()};
  registry_.known[agent(2).text()] = {.chain = {agent(2)}, .subscription = {}};
  const auto plan = std::make_shared<const Plan>(plan_from_json(
                                                     R"({"id":"p","charges":[
        {"id":"sum","model":"standard","metric":{"event_type":"tokens","aggregation":"sum","property":"units"},"price":{"per_unit":"1"}},
        {"id":"max","model":"standard","metric":{"event_type":"tokens","aggregation":"max","property":"units"},"price":{"per_unit":"1"}}]})")
                                                     .value());
  const Period period{clock_.now(), clock_.now() + 24h * 30};
  const FactRange range{
      subscription, period, Instant::min(), ledger_->position().end,
      RatedPeriod{.full = period, .phases = {{plan, Decimal(1), period}}, .subscribed_at = period.begin}};
  const auto told = [&](FactSource& source) {
    std::string text;
    const auto usage = with_facts(source, [&] { return source.read(ctx_.org, std::span(&range, 1)); });
    const auto lines = usage.value().front()->rating->usage_so_far().value();
    for (const InvoiceLine& line : lines)
      text += fmt::format("{}: {} in {}; ", line.charge, line.units.to_string(), line.events);
    return text;
  };
  std::mt19937_64 random(17);
  int keys = 0;
  std::set<int> standing;
  const auto report = [&](std::uint8_t who, const std::string& units, const std::string& replaces) {
    Bytes bytes;
    const std::string key = std::to_string(keys);
    encode_record({.bytes = {},
                   .agent = agent(who).text(),
                   .type = "tokens",
                   .key = key,
                   .time = clock_.now(),
                   .units = units,
                   .replaces = replaces},
                  bytes);
    const BytesView record(bytes);
    const Hash256 leaf = record_leaf(record);
    std::vector<Intake::Reached> reached;
    const auto answers = intake_->take(
        ctx_, {.records = std::span(&record, 1), .reporter = "service:s", .leaves = std::span(&leaf, 1)}, reached);
    ASSERT_TRUE(answers->front()) << answers->front().error().to_string();
    if (who == 1) standing.insert(keys);
    ++keys;
  };
  FactSource running(*ledger_, 1h);
  std::string last;
  int grew = 0;
  for (int round = 0; round < 60; ++round) {
    for (std::uint64_t i = 0; i < random() % 4; ++i) {
      clock_.advance(1min);
      const std::string units = std::to_string(random() % 100);
      if (random() % 4 == 0 && !standing.empty()) {
        const int target = *std::next(standing.begin(), static_cast<std::ptrdiff_t>(random() % standing.size()));
        standing.erase(target);
        report(1, units, fmt::format("key:{}", target));
      } else {
        report(random() % 5 == 0 ? 2 : 1, units, "");
      }
    }
    ASSERT_TRUE(running.go_on());
    FactSource anew(*ledger_, 1h);
    const std::string now = told(running);
    ASSERT_EQ(now, told(anew)) << "round " << round;
    grew += now == last ? 0 : 1;
    last = now;
  }
  EXPECT_GT(grew, 30);
  ASSERT_TRUE(running.go_on());
  EXPECT_GT(running.kept(), 0u);
  ASSERT_TRUE(running.go_on());
  EXPECT_EQ(running.kept(), 0u) << "nobody asks for it any more";
}

TEST(NumberTable, FindsWhatWasInsertedAndNotErasedWhateverMeets) {
  std::mt19937_64 random(7);
  NumberTable table;
  std::map<std::uint32_t, std::set<std::uint32_t>> expected;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> there;
  std::uint32_t next = 1;
  for (int step = 0; step < 6'000; ++step) {
    if (there.empty() || random() % 5 < 3) {
      // Few hashes close to each other, also around the end of the slots.
      const std::uint32_t hash = static_cast<std::uint32_t>(random() % 3'000) - 1'000;
      table.insert(hash, next);
      expected[hash].insert(next);
      there.emplace_back(hash, next++);
    } else {
      std::swap(there[random() % there.size()], there.back());
      const auto [hash, number] = there.back();
      there.pop_back();
      table.erase(hash, number);
      expected[hash].erase(number);
    }
    const std::uint32_t asked = static_cast<std::uint32_t>(random() % 3'000) - 1'000;
    std::set<std::uint32_t> found;
    table.find(asked, [&](std::uint32_t number) {
      found.insert(number);
      return false;
    });
    ASSERT_EQ(found, expected[asked]) << step;
  }
}

}  // namespace
}  // namespace creto::metering
