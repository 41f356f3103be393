// What limits cost: 1 million agents below 1 000 managers below one owner, four quotas for each agent, costs limited by
// month, while another thread counts facts as ingestion does. Every question is put by name, as requests put it.
//
// A figure is the median of its p99 over many rounds, without what reading the clock takes.

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <random>
#include <thread>

#include "creto/testing/bench.h"
#include "limits/counters.h"

namespace creto::metering {
namespace {

constexpr std::size_t agents = 1'000'000;
constexpr std::size_t managers = 1'000;
constexpr std::size_t hot = 10'000;
constexpr std::string_view org = "default";
constexpr std::string_view type = "message_sent";
const Instant now = from_rfc3339("2026-11-10T12:00:00Z").value();

double resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  double size = 0;
  double resident = 0;
  statm >> size >> resident;
  return resident * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

Identity agent(std::uint64_t number) {
  std::mt19937_64 random(number);
  ByteArray<32> key{};
  for (std::uint8_t& byte : key) byte = static_cast<std::uint8_t>(random());
  return Identity::agent(key);
}

Quota quota(std::string id, std::string subject, WindowKind window) {
  Quota made;
  made.id = std::move(id);
  made.subject = std::move(subject);
  made.event_type = type;
  made.window = window;
  made.limit = limit_max;
  return made;
}

SubjectThreshold threshold(std::string id, std::string subject, contracts::BillingPeriod period) {
  return {std::move(subject),
          {std::move(id),
           period,
           {Decimal(1'000'000'000), Currency::usd()},
           contracts::ThresholdAction::require_approval,
           {}},
          {}};
}

template <class T>
T must(Result<T> result) {
  if (!result) std::abort();
  return *std::move(result);
}
void must(const Result<>& result) {
  if (!result) std::abort();
}

constexpr std::array windows{WindowKind::hour, WindowKind::day, WindowKind::month, WindowKind::lifetime};

struct World {
  Identity owner = must(Identity::human("owner@example.org"));
  std::string subscription = SubscriptionId::fresh(now).to_string();
  std::vector<Identity> managing;
  std::vector<Identity> working;
  Limits limits;
  std::vector<AccountNumber> numbers;
  AccountNumber owner_number{};
  AccountNumber subscription_number{};
  std::vector<AccountNumber> manager_numbers;

  World() {
    for (std::size_t i = 0; i < managers; ++i) managing.push_back(agent(i));
    working.reserve(agents);
    for (std::size_t i = 0; i < agents; ++i) working.push_back(agent(managers + i));
    numbers.reserve(agents);
  }

  /// Everyone has used something of every window.
  void fill() {
    for (const WindowKind window : windows)
      must(limits.put_quota(org, quota(std::string(to_string(window)), "agent:*", window), now));
    must(limits.put_quota(org, quota("owner", owner.text(), WindowKind::month), now));
    owner_number = limits.account(org, owner.text());
    limits.bind(org, owner.text(), subscription);
    subscription_number = limits.account(org, subscription);
    for (const Identity& one : managing) manager_numbers.push_back(limits.account(org, one.text()));
    for (const Identity& one : working) numbers.push_back(limits.account(org, one.text()));
    count_all(0);
  }
  void count_all(NanoMoney cost) {
    std::vector<Notice> notices;
    const Words words = limits.words_of_fact(org, type);
    for (const AccountNumber number : numbers) {
      const Fact fact{std::span(&number, 1), words, 1, cost, {}};
      limits.add(std::span(&fact, 1), now, notices);
    }
  }
};

/// A batch as ingestion has it: each event counts for agent, manager, owner, organization's head and subscription.
struct Batch {
  static constexpr std::size_t size = 1'000;
  std::vector<std::array<AccountNumber, 5>> accounts{size};
  std::vector<Fact> facts{size};
  std::mt19937_64 random{7};

  void draw(const World& world, const Words& words, AccountNumber head) {
    for (std::size_t i = 0; i < size; ++i) {
      const std::size_t who = random() % agents;
      accounts[i] = {world.numbers[who], world.manager_numbers[who % managers], world.owner_number, head,
                     world.subscription_number};
      facts[i] = {accounts[i], words, 1, 1'000, {}};
    }
  }
};

/// What a caller has in hand: a use of one agent, all of whose text has just been read.
struct Asker {
  explicit Asker(const World& w) : world(w), chain{w.owner, w.managing[0], w.working[0]} {}
  const World& world;
  std::array<Identity, 3> chain;
  std::mt19937_64 random{1};

  void draw(std::size_t among) {
    const std::size_t who = random() % among;
    chain[1] = world.managing[who % managers];
    chain[2] = world.working[who];
  }
  Use use() const {
    return {.org = org, .agent = chain[2].text(), .chain = chain, .event_type = type, .units = 1, .cost = 1'000};
  }
};

/// Reports the p99 that is asked for, and the median beside it.
void add_latency(testing::BenchReport& report, const std::string& figure, double required, double wanted,
                 const auto& prepare, const auto& ask) {
  constexpr std::size_t rounds = 21;
  constexpr std::size_t calls = 50'000;
  std::vector<double> p99;
  std::vector<double> p50;
  for (std::size_t round = 0; round < rounds; ++round) {
    const double idle = testing::percentile(testing::measure(calls / 10, prepare, [] {}), 0.5);
    const auto took = testing::measure(calls, prepare, ask);
    p99.push_back(1e9 * (testing::percentile(took, 0.99) - idle));
    p50.push_back(1e9 * (testing::percentile(took, 0.5) - idle));
  }
  std::ranges::sort(p99);
  std::ranges::sort(p50);
  report.add(figure + ", p99", testing::percentile(p99, 0.5), "ns", required, wanted);
  report.compare(figure + ", median", testing::percentile(p50, 0.5), "ns");
}

void own_quotas(testing::BenchReport& report) {
  constexpr std::size_t few = 100'000;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < few; ++i) names.push_back(agent(i).text());
  const double before = resident_bytes();
  Limits limits;
  for (std::size_t i = 0; i < few; ++i) {
    for (const WindowKind window : windows)
      must(limits.put_quota(org, quota(fmt::format("{}-{}", to_string(window), i), names[i], window), now));
  }
  report.add("memory per agent with four quotas of its own", (resident_bytes() - before) / few, "B", 1'000, 500);
}

int run(int argc, char** argv) {
  testing::BenchReport report(argc, argv);
  own_quotas(report);
  auto world = std::make_unique<World>();
  Limits& limits = world->limits;
  const double before = resident_bytes();
  world->fill();
  report.add("memory per agent with quotas (4 windows, used)", (resident_bytes() - before) / agents, "B", 1'000, 200);
  must(limits.put_threshold(org, threshold("agent-month", "agent:*", contracts::BillingPeriod::month), now));
  must(limits.put_threshold(org, threshold("owner-month", world->owner.text(), contracts::BillingPeriod::month), now));
  world->count_all(1'000);
  report.compare("the same with a cost threshold and costs by type", (resident_bytes() - before) / agents, "B");

  const AccountNumber head = limits.account(org, "human:head@example.org");
  {
    const Words words = limits.words_of_fact(org, type);
    Batch batch;
    std::vector<Notice> notices;
    Receipt receipt;
    auto took = testing::measure(
        1'000, [&] { batch.draw(*world, words, head); }, [&] { limits.add(batch.facts, now, notices, &receipt); });
    report.add("fact counted for 5 accounts, in batches of 1 000", 1e9 * testing::percentile(took, 0.5) / Batch::size,
               "ns", 1'000, 300);
  }

  {
    Bytes copy;
    copy.reserve(std::size_t{400} << 20);
    const auto began = std::chrono::steady_clock::now();
    limits.begin_copy(copy);
    while (limits.write_copy(copy)) continue;
    const auto written = std::chrono::steady_clock::now();
    Limits after;
    for (const WindowKind window : windows)
      must(after.put_quota(org, quota(std::string(to_string(window)), "agent:*", window), now));
    must(after.put_threshold(org, threshold("agent-month", "agent:*", contracts::BillingPeriod::month), now));
    must(after.load(copy));
    const auto loaded = std::chrono::steady_clock::now();
    report.add("copy of all counters, written", std::chrono::duration<double>(written - began).count(), "s", 2, 1);
    report.add("copy of all counters, loaded", std::chrono::duration<double>(loaded - written).count(), "s", 2, 1);
    report.compare("copy of all counters, size", static_cast<double>(copy.size()) / 1e6, "MB");
  }

  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> counted{0};
  std::thread counting([&] {
    Batch batch;
    std::vector<Notice> notices;
    Receipt receipt;
    while (!stop) {
      batch.draw(*world, limits.words_of_fact(org, type), head);
      limits.add(batch.facts, now, notices, &receipt);
      counted += Batch::size;
    }
  });
  const auto began = std::chrono::steady_clock::now();

  Asker asker(*world);
  for (const auto& [name, among] : {std::pair{"uniform", agents}, std::pair{"hot 10 000", hot}}) {
    const bool uniform = among == agents;
    const auto draw = [&] { asker.draw(among); };
    add_latency(report, fmt::format("quota check while counting, {}", name), uniform ? 10'000 : 1'000,
                uniform ? 1'000 : 100, draw, [&] { limits.allows(asker.use(), now); });
    add_latency(report, fmt::format("cost threshold check while counting, {}", name), uniform ? 10'000 : 1'000,
                uniform ? 1'000 : 200, draw,
                [&] { limits.check_cost(asker.use(), contracts::BillingPeriod::month, now); });
  }
  std::uint64_t id = 0;
  std::vector<Notice> notices;
  add_latency(
      report, "reserve + settle while counting", 20'000, 1'000, [&] { asker.draw(agents); },
      [&] {
        ByteArray<16> bytes{};
        ++id;
        std::memcpy(bytes.data() + 8, &id, sizeof(id));
        const ReservationId reservation = ReservationId::from_bytes(bytes);
        limits.reserve(reservation, asker.use(), now, now + std::chrono::minutes(1));
        limits.add(asker.use(), now, reservation, notices);
      });
  stop = true;
  counting.join();
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - began;
  report.compare("facts counted meanwhile", static_cast<double>(counted.load()) / spent.count(), "/s");
  return report.finish();
}

}  // namespace
}  // namespace creto::metering

int main(int argc, char** argv) { return creto::metering::run(argc, argv); }
