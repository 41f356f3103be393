// 001 §3.5: a timestamp in < 1 ms (p99).

#include <thread>

#include "creto/consensus/timestamp_source.h"
#include "creto/testing/bench.h"
#include "creto/testing/databases.h"

namespace creto::consensus {
namespace {

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  creto::testing::TestDatabase database(creto::testing::DatabaseKind::sqlite);
  auto db = database.open();
  auto store = create_ceiling_store(*db, "bench").value();
  auto source = create_timestamp_source(*store, system_clock(), no_telemetry(), {.node = "bench"}).value();

  const auto p99_us = [](const std::vector<double>& took) { return 1e6 * creto::testing::percentile(took, 0.99); };
  report.add("timestamp, one thread, p99", p99_us(creto::testing::measure(200'000, [&] { source->now(); })), "us",
             1'000, 1);
  std::atomic<bool> stop = false;
  std::thread other([&] {
    while (!stop) source->now();
  });
  report.add("timestamp, two threads, p99", p99_us(creto::testing::measure(200'000, [&] { source->now(); })), "us",
             1'000, 5);
  stop = true;
  other.join();
  return report.finish();
}

}  // namespace
}  // namespace creto::consensus

int main(int argc, char** argv) { return creto::consensus::run(argc, argv); }
