// The whole service in a process of its own that is killed at any moment, again and again: nothing acknowledged is
// lost, nothing is there twice, and everything that was counted is what the events say.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "creto/common/assert.h"
#include "creto/common/event.h"
#include "creto/common/json.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/contracts/events.h"
#include "creto/io/files.h"
#include "creto/metering/metering.h"
#include "creto/nhi/nhi.h"
#include "creto/testing/databases.h"
#include "creto/testing/sealer.h"
#include "creto/testing/soak.h"
#include "creto/testing/temp_dir.h"
#include "ledger/batch_proof.h"
#include "ledger/usage_record.h"

namespace creto::metering {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t lives_of_a_house = 50;  // then a new one: a check reads everything there is

class NoMailbox final : public InvoiceDelivery {
 public:
  Result<std::string> keep(const Context&, const Invoice&, BytesView) override { return std::string("nowhere"); }
  Result<> send(const Context&, const Invoice&, BytesView) override { return {}; }
};

/// Whom the events are of.
struct People {
  std::string parent, child, subscription;
};

/// What one process has.
class House {
 public:
  House(creto::testing::TestDatabase& database, const std::filesystem::path& directory) {
    db = database.open();
    registry = nhi::create_nhi(*db, sealer_, system_clock()).value();
    ceiling_ = consensus::create_ceiling_store(*db, "test").value();
    time_ = consensus::create_timestamp_source(*ceiling_, system_clock(), no_telemetry(),
                                               {.node = "test", .renew_in_background = false})
                .value();
    auto made =
        create_metering(*db, io::real_files(), directory, *registry, *time_, mailbox_, system_clock(), no_telemetry());
    if (!made) fmt::print(stderr, "the service does not start: {}\n", made.error().to_string());
    metering = std::move(made).value();
  }

  People settle() {
    EXPECT_TRUE(registry->ensure_service(ctx, *ctx.caller));
    const Identity parent = agent("parent", *ctx.caller, 48h);
    const Identity child = agent("child", parent, 24h);
    Quota quota;
    quota.id = "events";
    quota.subject = parent.text();
    quota.measure = Measure::events;
    quota.window = WindowKind::lifetime;
    quota.limit = limit_max;
    EXPECT_TRUE(metering->set_quota(ctx, quota));
    quota.id = "each";
    quota.subject = "agent:*";
    quota.measure = Measure::units;
    quota.event_type = "t";
    EXPECT_TRUE(metering->set_quota(ctx, quota));
    EXPECT_TRUE(
        metering->put_plan(ctx, plan_from_json(R"({"id":"p","base_fee":"0","charges":[{"id":"t","model":"standard",
        "metric":{"event_type":"t","aggregation":"sum","property":"units"},"price":{"per_unit":"0.01"}}]})")
                                    .value()));
    const auto subscription = metering->subscribe(ctx, {.agent = parent.text(), .plan_id = "p"});
    EXPECT_TRUE(subscription) << subscription.error().to_string();
    return {parent.text(), child.text(), subscription->id.to_string()};
  }

  std::string envelope(const Identity& who, const DelegationChain& chain, std::string key) {
    const contracts::RuntimeUsageEvent usage{
        "inference_tokens",
        std::move(key),
        R"({"input_tokens":"6","model_id":"m","output_tokens":"4","provider":"p"})",
        Decimal(10),
        {}};
    EventEnvelope made{
        "runtime_usage", EventId::fresh(system_clock().now()), who, chain, time_->now(), usage.to_json().value(), {}};
    made.signature = registry->sign(ctx, who, as_bytes(made.signed_bytes().value()), event_signature_context).value();
    return made.to_json().value();
  }

  const Context ctx = Context::of_service(Identity::service("test").value());
  std::unique_ptr<sql::Database> db;
  std::unique_ptr<nhi::Nhi> registry;

 private:
  Identity agent(std::string name, const Identity& owner, Nanos valid_for) {
    const auto made = registry->register_agent(
        ctx,
        {.name = std::move(name), .type = nhi::AgentType::autonomous, .owner = {}, .valid_for = {}, .attributes = {}});
    EXPECT_TRUE(made) << made.error().to_string();
    EXPECT_TRUE(registry->create_delegation(
        Context::of(owner, {owner}),
        {owner, made->identity, {}, {"*"}, system_clock().now() + valid_for, {}, {}, {}, {}}));
    return made->identity;
  }

  creto::testing::TestSealer sealer_;
  NoMailbox mailbox_;
  std::unique_ptr<consensus::CeilingStore> ceiling_;
  std::unique_ptr<consensus::TimestampSource> time_;

 public:
  std::unique_ptr<LocalMetering> metering;
};

/// Takes events by every door, until it is killed, and says on `out` which are acknowledged.
class Life {
 public:
  Life(House& house, const People& people, std::uint64_t seed, int out)
      : house_(house),
        parent_(Identity::parse(people.parent).value()),
        child_(Identity::parse(people.child).value()),
        seed_(seed),
        out_(out) {}

  [[noreturn]] void go_on() {
    std::vector<std::thread> threads;
    threads.emplace_back([this] { records(0, false); });
    threads.emplace_back([this] { records(1, true); });
    threads.emplace_back([this] { envelopes(); });
    threads.emplace_back([this] { rest(); });
    for (std::thread& thread : threads) thread.join();
    std::_Exit(1);
  }

 private:
  /// A whole line at once, so that none is torn.
  void say(std::string said) {
    if (!said.empty() && ::write(out_, said.data(), said.size()) != std::ssize(said)) std::_Exit(1);
  }

  /// Batches of new events, known ones and corrections; from the service on its word, or signed by the parent.
  void records(std::uint64_t thread, bool sign) {
    std::mt19937_64 random(seed_ * 4 + thread);
    struct Sent {
      std::string key, bytes;
      bool of_child;
    };
    std::vector<Sent> all;
    for (;;) {
      RecordBatch batch;
      std::vector<std::string> keys;
      std::vector<Hash256> leaves;
      for (std::size_t i = 0; i < 1 + random() % 30; ++i) {
        if (all.empty() || random() % 5 != 0) {
          const bool correct = !all.empty() && random() % 6 == 0;
          const Sent* target = correct ? &all[random() % all.size()] : nullptr;
          const bool of_child = target != nullptr ? target->of_child : random() % 2 == 0;
          const bool takes_out = target != nullptr && random() % 2 == 0;
          const std::string named = target != nullptr ? "key:" + target->key : "";
          std::string key = fmt::format("{}-{}-{}", seed_, thread, all.size());
          Bytes bytes;
          encode_record({.bytes = {},
                         .agent = of_child ? child_.text() : parent_.text(),
                         .type = takes_out ? void_type : std::string_view("t"),
                         .key = key,
                         .time = system_clock().now(),
                         .units = takes_out ? std::string_view("0") : std::string_view("3"),
                         .replaces = takes_out ? std::string_view() : std::string_view(named),
                         .voids = takes_out ? std::string_view(named) : std::string_view(),
                         .properties = {}},
                        bytes);
          all.push_back({std::move(key), std::string(as_text(bytes)), of_child});
          batch.records.push_back(all.back().bytes);
          keys.push_back(all.back().key);
        } else {
          const Sent& again = all[random() % all.size()];
          batch.records.push_back(again.bytes);
          keys.push_back(again.key);
        }
        leaves.push_back(record_leaf(as_bytes(batch.records.back())));
      }
      if (sign) {
        batch.reporter = parent_.text();
        const std::string bytes = batch_signed_bytes(leaves.size(), merkle_root(leaves));
        batch.signature = house_.registry->sign(house_.ctx, parent_, as_bytes(bytes), batch_signature_context).value();
      }
      const auto answers = house_.metering->ingest_records(house_.ctx, batch);
      if (!answers) refuse(answers.error());
      std::string said;
      for (std::size_t i = 0; i < keys.size(); ++i)
        if ((*answers)[i]) said += keys[i] + "\n";
      say(std::move(said));
    }
  }

  void envelopes() {
    for (std::uint64_t next = 0;; ++next) {
      const std::string key = fmt::format("{}-e-{}", seed_, next);
      const std::vector<std::string> batch{house_.envelope(child_, {*house_.ctx.caller, parent_, child_}, key)};
      const auto answers = house_.metering->ingest_batch(house_.ctx, batch);
      if (!answers) refuse(answers.error());
      if (!answers->front()) refuse(answers->front().error());
      say(key + "\n");
    }
  }

  /// What goes on beside: reservations, changed quotas, chores with their checkpoints.
  void rest() {
    for (std::uint64_t next = 0;; ++next) {
      const contracts::SpendRequest spend{
          ReservationId::fresh(system_clock().now()), child_, {*house_.ctx.caller, parent_, child_}, "t", Decimal(1),
          Money{Decimal(), Currency::usd()},          10min};
      const auto held = house_.metering->reserve(house_.ctx, spend);
      if (held && next % 2 == 0) (void)house_.metering->release(house_.ctx, spend.id);
      if (next % 16 == 3) {
        Quota quota;
        quota.id = fmt::format("late-{}", next % 48);
        quota.subject = child_.text();
        quota.event_type = "t";
        quota.window = WindowKind::lifetime;
        quota.limit = limit_max;
        if (auto set = house_.metering->set_quota(house_.ctx, quota); !set) refuse(set.error());
      }
      if (auto done = house_.metering->tick(); !done) refuse(done.error());
      std::this_thread::yield();
    }
  }

  [[noreturn]] static void refuse(const Error& error) {
    fmt::print(stderr, "refused: {}\n", error.to_string());
    std::_Exit(1);
  }

  House& house_;
  const Identity parent_, child_;
  const std::uint64_t seed_;
  const int out_;
};

/// What is wrong with what a killed process left behind; `keys` becomes what is there.
std::string check(House& house, const People& people, const std::set<std::string>& acknowledged,
                  std::set<std::string>& keys, bool bill) {
  const auto verified = house.metering->verify_usage(house.ctx);
  if (!verified) return verified.error().to_string();
  if (!verified->problems.empty()) return fmt::format("verify: {}", fmt::join(verified->problems, "; "));

  std::map<std::string, std::int64_t> counting;  // by agent and key: units of type t, or 0
  std::set<std::string> taken_out;
  UsageEventsQuery query{.limit = UsageEventsQuery::limit_max};
  do {
    const auto page = house.metering->usage_events(house.ctx, query);
    if (!page) return page.error().to_string();
    for (const std::string& line : page->events) {
      const Json event = parse_json(line).value();
      const std::string key = event["idempotency_key"];
      if (!keys.insert(key).second) return key + " is there twice";
      const std::string agent = event["agent"];
      for (const char* correction : {"voids", "replaces"}) {
        if (event.contains(correction))
          taken_out.insert(agent + event[correction].get<std::string>().substr(key_prefix.size()));
      }
      if (!event.contains("voids")) counting[agent + key] = event["usage_type"] == "t" ? 3 : 0;
    }
    query.after = page->next;
  } while (!query.after.empty());
  for (const std::string& key : acknowledged)
    if (!keys.contains(key)) return key + " is lost";

  std::erase_if(counting, [&](const auto& one) { return taken_out.contains(one.first); });
  std::int64_t units = 0;
  for (const auto& [name, of_t] : counting) units += of_t;
  const auto quota = house.metering->quota_state(house.ctx, "events");
  if (!quota || quota->used != std::ssize(counting))
    return fmt::format("the quota has {}, there are {}", quota ? quota->used : -1, counting.size());
  const auto used = house.metering->usage(house.ctx, {.subject = people.parent, .event_type = "t", .group_by = {}});
  if (!used) return used.error().to_string();
  const Decimal sum = used->rows.empty() ? Decimal() : used->rows.front().units;
  if (sum != Decimal(units)) return fmt::format("a query says {}, the events {}", sum.to_string(), units);
  if (!bill) return {};
  const auto invoice =
      house.metering->issue_invoice(house.ctx, SubscriptionId::parse(people.subscription).value(), std::nullopt);
  if (!invoice) return invoice.error().to_string();
  const auto line = std::ranges::find(invoice->lines, "t", &InvoiceLine::charge);
  const Decimal billed = line == invoice->lines.end() ? Decimal() : line->units;
  if (billed != Decimal(units)) return fmt::format("an invoice says {}, the events {}", billed.to_string(), units);
  return {};
}

/// Runs `work` in a process, which says something on a pipe and then leaves or is killed.
class Process {
 public:
  template <class Work>
  explicit Process(Work work) {
    std::array<int, 2> ends{};
    CRETO_ASSERT(::pipe(ends.data()) == 0);
    child_ = ::fork();
    CRETO_ASSERT(child_ >= 0);
    if (child_ == 0) {
      ::close(ends[0]);
      work(ends[1]);
      std::_Exit(0);
    }
    ::close(ends[1]);
    in_ = ends[0];
  }
  ~Process() { ::close(in_); }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  /// Reads until there are so many bytes, it has ended, or the time is over.
  void listen(std::size_t bytes, Nanos patience) {
    const Monotonic until = system_clock().monotonic() + patience;
    std::array<char, 4096> part{};
    while (said.size() < bytes) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - system_clock().monotonic());
      pollfd ready{in_, POLLIN, 0};
      if (left.count() <= 0 || ::poll(&ready, 1, static_cast<int>(left.count())) <= 0) return;
      const ssize_t got = ::read(in_, part.data(), part.size());
      if (got <= 0) return;
      said.append(part.data(), static_cast<std::size_t>(got));
    }
  }
  /// Whether it was still there.
  bool kill() {
    ::kill(child_, SIGKILL);
    return WIFSIGNALED(wait());
  }
  int wait() {
    listen(SIZE_MAX, 10min);
    int status = 0;
    CRETO_ASSERT(::waitpid(child_, &status, 0) == child_);
    return status;
  }
  std::vector<std::string> lines() const {
    std::vector<std::string> all;
    for (std::size_t begin = 0, end; (end = said.find('\n', begin)) != said.npos; begin = end + 1)
      all.push_back(said.substr(begin, end - begin));
    return all;
  }

  std::string said;

 private:
  pid_t child_ = 0;
  int in_ = -1;
};

void say_all(int out, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(out, text.data(), text.size());
    if (written <= 0) std::_Exit(1);
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

class Crash : public ::testing::TestWithParam<creto::testing::DatabaseKind> {};

TEST_P(Crash, LosesNothingAcknowledgedWhenTheServiceIsKilled) {
  const std::uint64_t kills = creto::testing::number_from("CRETO_KILLS", 20);
  std::mt19937_64 random(creto::testing::number_from("CRETO_SEED", 1));
  creto::testing::Progress progress("life", kills);
  for (std::uint64_t life = 0; life < kills;) {
    creto::testing::TestDatabase database(GetParam());
    creto::testing::TempDir directory;
    const auto usage = directory / "usage";
    Process first([&](int out) {
      const People people = House(database, usage).settle();
      say_all(out, fmt::format("{}\n{}\n{}\n", people.parent, people.child, people.subscription));
    });
    ASSERT_EQ(first.wait(), 0);
    const auto names = first.lines();
    ASSERT_EQ(names.size(), 3u);
    const People people{names[0], names[1], names[2]};
    std::set<std::string> acknowledged;
    for (std::uint64_t of_house = 0; of_house < lives_of_a_house && life < kills; ++of_house, ++life) {
      Process taking([&](int out) {
        House house(database, usage);
        Life(house, people, life, out).go_on();
      });
      // Mostly anywhere between two acknowledgements; sometimes before there is any, while it starts.
      const bool early = random() % 5 == 0;
      taking.listen(early ? SIZE_MAX : random() % 6'000, early ? Nanos(1ms * (random() % 1'000)) : Nanos(2min));
      ASSERT_TRUE(taking.kill()) << "it ended by itself, in life " << life;
      for (std::string& key : taking.lines()) acknowledged.insert(std::move(key));
      const bool last = of_house + 1 == lives_of_a_house || life + 1 == kills;
      Process checking([&](int out) {
        std::set<std::string> keys;
        std::string said;
        {
          House house(database, usage);
          said = check(house, people, acknowledged, keys, last);
        }
        if (said.empty()) said = "good";
        said += '\n';
        for (const std::string& key : keys) said += key + "\n";
        say_all(out, said);
      });
      ASSERT_EQ(checking.wait(), 0) << "the check of life " << life;
      auto there = checking.lines();
      ASSERT_FALSE(there.empty());
      ASSERT_EQ(there.front(), "good") << "in life " << life;
      acknowledged = std::set<std::string>(there.begin() + 1, there.end());
      progress.at(life + 1);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, Crash, both_databases(), database_name);

}  // namespace
}  // namespace creto::metering
