// 000 §9: CostTrigger::check_cost_threshold and MessageCostTracker::check_message_quota < 10 us (p99); MT3: quota < 10
// us. Over 100 000 agents below one owner whose limits every check looks at too.

#include <random>

#include "counters.h"
#include "creto/testing/bench.h"

namespace creto::metering {
namespace {

constexpr std::size_t agents = 100'000;

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  const Instant now = from_rfc3339("2026-11-10T12:00:00Z").value();
  const Identity owner = Identity::human("owner@example.org").value();
  Limits limits;
  std::vector<Identity> all;
  std::vector<DelegationChain> chains;
  for (std::size_t i = 0; i < agents; ++i) {
    ByteArray<32> key{};
    for (std::size_t b = 0; b < 4; ++b) key[b] = static_cast<std::uint8_t>(i >> (8 * b));
    all.push_back(Identity::agent(key));
    chains.push_back({owner, all.back()});
  }
  const auto limit = [&](const std::string& id, const Identity& subject, WindowKind window) {
    Quota quota;
    quota.id = id;
    quota.subject = subject.text();
    quota.event_type = "message_sent";
    quota.window = window;
    quota.limit = limit_max;
    if (!limits.put_quota("default", quota, now)) std::abort();
  };
  for (std::size_t i = 0; i < agents; ++i) {
    const std::string id = std::to_string(i);
    for (const WindowKind window : {WindowKind::hour, WindowKind::day, WindowKind::month, WindowKind::lifetime}) {
      limit(std::string(to_string(window)) + id, all[i], window);
    }
  }
  limit("owner", owner, WindowKind::month);
  for (const Identity& who : {owner, all[0], all[1]}) {
    const SubjectThreshold threshold{who.text(),
                                     {"t",
                                      contracts::BillingPeriod::month,
                                      {Decimal(1'000'000'000), Currency::usd()},
                                      contracts::ThresholdAction::require_approval,
                                      {}}};
    if (!limits.put_threshold("default", threshold)) std::abort();
  }
  std::vector<Notice> notices;
  for (std::size_t i = 0; i < agents; ++i) {
    limits.add({.org = "default",
                .agent = all[i].text(),
                .chain = chains[i],
                .event_type = "message_sent",
                .units = 1,
                .cost = 1},
               now, {}, notices);
  }

  std::mt19937_64 random(1);
  std::size_t next = 0;
  const auto use = [&](std::size_t among) {
    next = random() % among;
    return Use{.org = "default",
               .agent = all[next].text(),
               .chain = chains[next],
               .event_type = "message_sent",
               .units = 1,
               .cost = 1'000};
  };
  const auto p99_us = [](const std::vector<double>& took) { return 1e6 * creto::testing::percentile(took, 0.99); };
  using creto::testing::measure;
  for (const auto& [name, among] :
       {std::pair{"uniform over 100 000 agents", agents}, std::pair{"hot 1 000 agents", std::size_t{1'000}}}) {
    report.add(fmt::format("MessageCostTracker quota check, {}, p99", name),
               p99_us(measure(200'000, [&] { limits.check(use(among), now); })), "us", 10, 1);
    report.add(fmt::format("CostTrigger threshold check, {}, p99", name),
               p99_us(measure(200'000, [&] { limits.check_cost(use(among), contracts::BillingPeriod::month, now); })),
               "us", 10, 1);
  }
  std::uint64_t id = 0;
  report.add("reserve and settle, p99",
             p99_us(measure(50'000,
                            [&] {
                              ByteArray<16> bytes{};
                              ++id;
                              for (std::size_t b = 0; b < 8; ++b)
                                bytes[8 + b] = static_cast<std::uint8_t>(id >> (8 * b));
                              const ReservationId reservation = ReservationId::from_bytes(bytes);
                              const Use asked = use(agents);
                              limits.reserve(reservation, asked, now, now + std::chrono::minutes(1));
                              limits.add(asked, now, reservation, notices);
                            })),
             "us", 20, 5);
  return report.finish();
}

}  // namespace
}  // namespace creto::metering

int main(int argc, char** argv) { return creto::metering::run(argc, argv); }
