// Uncached decisions of the engine alone, on the workloads of the Cedar paper (CRETO_CEDAR_OOPSLA): every request of
// every hierarchy of one size, shuffled, all hierarchies loaded at once. A request is what a caller holds: strings for
// types and ids, a parsed context, made just before.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <latch>
#include <memory>
#include <random>
#include <sstream>
#include <thread>

#include "cedar/engine.h"
#include "cedar/parser.h"
#include "creto/testing/bench.h"
#include "tools/conformance.h"

namespace creto::authz {
namespace {

using namespace cedar;  // NOLINT: this file speaks of nothing else
using creto::testing::measure;
using creto::testing::percentile;

/// One hierarchy with its engine.
struct Loaded {
  explicit Loaded(const Workload& workload) {
    std::vector<std::shared_ptr<const Entity>> shared;
    for (Entity entity : workload.entities) {
      normalise(entity);
      shared.push_back(std::make_shared<const Entity>(std::move(entity)));
    }
    store.put(std::move(shared));
    engine = Engine(workload.policies, store);
  }
  EntityStore store;
  Engine engine;
};

Error no_error(const PlannedPolicy&) { return Error(Product::platform, ErrorKind::internal, "not asked for"); }

bool decide(const Loaded& loaded, Engine::Scratch& scratch, const Request& request, Detail detail) {
  const RequestView view{request.principal, request.action, request.resource, *request.context.as_record()};
  return loaded.engine.evaluate(scratch, loaded.store, nullptr, view, detail, no_error) && scratch.result.allows();
}

struct Size {
  std::vector<std::unique_ptr<Loaded>> hierarchies;
  std::vector<std::pair<const Loaded*, Request>> requests;
};

/// Empty where a decision is wrong.
Size load(const std::vector<Workload>& workloads, const std::string& app, int n) {
  Size size;
  const std::string prefix = fmt::format("{}-n{}-", app, n);
  Engine::Scratch scratch;
  for (const Workload& workload : workloads) {
    if (!workload.name.starts_with(prefix)) continue;
    size.hierarchies.push_back(std::make_unique<Loaded>(workload));
    for (std::size_t i = 0; i < workload.requests.size(); ++i) {
      const Loaded& loaded = *size.hierarchies.back();
      if (decide(loaded, scratch, workload.requests[i], Detail::decision) != (workload.decisions.at(i) == '1'))
        return {};
      size.requests.emplace_back(&loaded, workload.requests[i]);
    }
  }
  std::mt19937 random(1);  // tidy(random-engine): the same order every time
  std::shuffle(size.requests.begin(), size.requests.end(), random);
  return size;
}

std::vector<double> decisions(const Size& size, Detail detail) {
  Engine::Scratch scratch;
  std::size_t at = 0;
  const Loaded* loaded = nullptr;
  Request request = size.requests[0].second;
  return measure(
      200'000,
      [&] {
        const auto& next = size.requests[at++ % size.requests.size()];
        loaded = next.first;
        request = next.second;
      },
      [&] { (void)decide(*loaded, scratch, request, detail); });
}

/// How often a second so many threads do what `made_for(thread)` gives, while all of them run: none waits for the last
/// one to be done.
template <class F>
double throughput(unsigned threads, const F& made_for) {
  std::latch ready(threads + 1);
  alignas(64) std::atomic<bool> stop{false};
  alignas(64) std::atomic<std::size_t> done{0};
  std::vector<std::jthread> all;
  for (unsigned thread = 0; thread < threads; ++thread) {
    all.emplace_back([&, thread] {
      auto once = made_for(thread);
      ready.arrive_and_wait();
      std::size_t count = 0;
      for (; !stop.load(std::memory_order_relaxed); ++count) once(count);
      done += count;
    });
  }
  ready.arrive_and_wait();
  const auto began = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  stop = true;
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  all.clear();
  return static_cast<double>(done) / took.count();
}

/// What two threads do more than one: each round measures both, so that what else the machine does befalls both.
template <class F>
double scaling(const F& made_for) {
  std::vector<double> rounds;
  for (int round = 0; round < 15; ++round) {
    const double one = throughput(1, made_for);
    rounds.push_back(throughput(2, made_for) / one);
  }
  std::sort(rounds.begin(), rounds.end());
  return percentile(rounds, 0.5);
}

double scaling_of(const Size& size) {
  return scaling([&](unsigned thread) {
    // Its own requests, as a thread has that reads them from its own connections.
    return [thread, requests = size.requests, scratch = Engine::Scratch()](std::size_t count) mutable {
      const auto& [loaded, request] = requests[(count + thread * 101) % requests.size()];
      (void)decide(*loaded, scratch, request, Detail::decision);
    };
  });
}

/// Of what touches no memory: more than that the machine does not give.
double scaling_of_the_machine() {
  return scaling([](unsigned thread) {
    return [state = std::uint64_t{thread} + 1](std::size_t) mutable {
      for (int i = 0; i < 50; ++i) state = state * 6'364'136'223'846'793'005u + 1'442'695'040'888'963'407u;
      asm volatile("" : "+r"(state));  // which is needed, for all the compiler knows
    };
  });
}

/// Ten thousand policies over a hundred types.
void many_policies(creto::testing::BenchReport& report, double timer) {
  std::vector<std::shared_ptr<const PlannedPolicy>> policies;
  for (int i = 0; i < 10'000; ++i) {
    auto parsed = parse_policies(fmt::format(
        "permit(principal is U{0}, action == Action::\"act{1}\", resource is R{0}) when {{ context.amount < {2} && "
        "resource.owner == principal }};",
        i % 100, i / 100, i));
    policies.push_back(std::make_shared<PlannedPolicy>(fmt::format("p{}", i), std::move(parsed.value()[0])));
  }
  Loaded loaded({"many", PolicySet(policies), Schema(), {}, {}, {}});
  std::vector<std::shared_ptr<const Entity>> resources;
  for (int i = 0; i < 10'000; ++i)
    resources.push_back(std::make_shared<const Entity>(
        Entity{{fmt::format("R{}", i % 100), fmt::format("r{}", i)},
               {{"owner", Value(EntityUid{fmt::format("U{}", i % 100), fmt::format("u{}", i / 100)})}},
               {},
               {}}));
  loaded.store.put(std::move(resources));
  std::vector<Request> requests;
  for (int i = 0; i < 10'000; ++i)
    requests.push_back({{fmt::format("U{}", i % 100), fmt::format("u{}", i / 100)},
                        {"Action", fmt::format("act{}", i * 7 % 100)},
                        {fmt::format("R{}", i % 100), fmt::format("r{}", i)},
                        Value::record({{"amount", 0}})});
  Engine::Scratch scratch;
  std::size_t at = 0;
  Request request = requests[0];
  const auto took = measure(
      200'000, [&] { request = requests[at++ * 7'919 % requests.size()]; },
      [&] { (void)decide(loaded, scratch, request, Detail::decision); });
  report.add("10 000 policies over 100 types, uncached, median", 1e9 * (percentile(took, 0.5) - timer), "ns", 1'000,
             200);
}

/// Cedar's own engine on the same hierarchies and requests, where ./dev found it (CRETO_CEDAR_WASM). Each of its calls
/// carries the entities as JSON, which it parses: that is most of the time, and there is no other way in.
bool compare_with_cedar(creto::testing::BenchReport& report, const std::string& workloads) {
  const char* package = std::getenv("CRETO_CEDAR_WASM");
  if (package == nullptr) {
    fmt::print("no Cedar to compare with: ./dev deps fetches it where there are node and npm\n");
    return true;
  }
  const std::string command =
      fmt::format("node '{}' '{}' '{}' gdrive github tinytodo", CRETO_CEDAR_WASM_BENCH, package, workloads);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> answers(popen(command.c_str(), "r"), pclose);
  std::array<char, 256> line{};
  int apps = 0;
  while (answers && std::fgets(line.data(), line.size(), answers.get())) {
    std::istringstream words(line.data());
    std::string app;
    double whole = 0, bare = 0;
    if (!(words >> app >> whole >> bare)) break;
    report.compare(fmt::format("Cedar (wasm), {}, n = 50, entities in the call, median", app), whole, "ns");
    report.compare(fmt::format("Cedar (wasm), {}, a call without entities, median", app), bare, "ns");
    ++apps;
  }
  return apps == 3;
}

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  const char* folder = std::getenv("CRETO_CEDAR_OOPSLA");
  if (folder == nullptr) {
    fmt::print(stderr, "CRETO_CEDAR_OOPSLA names no folder with the workloads\n");
    return 2;
  }
  const auto workloads = read_workloads(folder);
  if (!workloads) {
    fmt::print(stderr, "{}\n", workloads.error().message());
    return 2;
  }
  // Reading the clock twice is not the decision's time.
  const double timer = percentile(measure(100'000, [] {}), 0.5);
  const auto ns = [&](const std::vector<double>& took, double p) { return 1e9 * (percentile(took, p) - timer); };
  for (const std::string app : {"gdrive", "github", "tinytodo"}) {
    const Size small = load(*workloads, app, 5);
    const Size middle = load(*workloads, app, 50);
    const Size large = load(*workloads, app, 200);
    if (small.requests.empty() || middle.requests.empty() || large.requests.empty()) {
      fmt::print(stderr, "{}: a decision is wrong, or there is no workload\n", app);
      return 2;
    }
    const auto took = decisions(middle, Detail::decision);
    report.add(fmt::format("uncached decision, {}, n = 50, median", app), ns(took, 0.5), "ns", 400, 100);
    report.add(fmt::format("uncached decision, {}, n = 50, p99", app), ns(took, 0.99), "ns", 1'000, 168);
    report.add(fmt::format("with full diagnostics, {}, median", app), ns(decisions(middle, Detail::all), 0.5), "ns",
               800, 250);
    const double growth = ns(decisions(large, Detail::decision), 0.5) / ns(decisions(small, Detail::decision), 0.5);
    report.add(fmt::format("growth from n = 5 to n = 200, {}", app), growth, "x", 1.5, 1.1);
    report.add(fmt::format("throughput on 2 threads against 1, {}", app), scaling_of(middle), "x", 1.8, 2.0,
               creto::testing::BenchReport::Better::higher);
  }
  report.compare("throughput on 2 threads against 1, of what touches no memory", scaling_of_the_machine(), "x");
  many_policies(report, timer);
  if (!compare_with_cedar(report, folder)) {
    fmt::print(stderr, "Cedar's own engine did not answer\n");
    return 2;
  }
  return report.finish();
}

}  // namespace
}  // namespace creto::authz

int main(int argc, char** argv) { return creto::authz::run(argc, argv); }
