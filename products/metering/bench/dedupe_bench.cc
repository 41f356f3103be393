// "Dedupe window prefilled with 100 million random keys, bounded by disk: memory / added latency p99": 4 GiB and 1 ms
// required, 1 GiB and 50 us wanted.
//
// The runs are made once, of $CRETO_BENCH_KEYS keys (10 million unless said), in $CRETO_BENCH_DATA or
// ~/.cache/creto/bench: 40 bytes a key. What a key adds to an event is what the index takes to find it, one at a time:
// keys never seen, as nearly all are, and keys seen once, whose page is read from the disk.

#include <cstdlib>
#include <filesystem>
#include <random>

#include "creto/testing/bench.h"
#include "creto/testing/bench_data.h"
#include "ledger/key_index.h"

namespace creto::metering {
namespace {

namespace fs = std::filesystem;
using creto::testing::bench_data;
using creto::testing::forget_cached;
using creto::testing::must;
using creto::testing::percentile;

constexpr std::size_t segment_keys = 1'000'000;
constexpr std::uint32_t arrived_s = 1'790'000'000;
constexpr std::size_t asked = 200'000;

std::uint64_t mixed(std::uint64_t value) {
  value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9ull;
  value = (value ^ value >> 27) * 0x94D049BB133111EBull;
  return value ^ value >> 31;
}
/// The key with that number: as good as random, and found again.
KeyHash key_of(std::uint64_t number) { return {mixed(number * 2 + 1), mixed(~number * 2)}; }

/// What the maintenance of a ledger does with one segment after the other.
void fill(KeyIndex& index, std::size_t keys) {
  for (std::uint32_t segment = index.covered() + 1; std::size_t{segment} * segment_keys <= keys; ++segment) {
    for (std::size_t i = 0; i < segment_keys; ++i) {
      const std::uint64_t number = (segment - 1) * segment_keys + i;
      index.insert({key_of(number), segment, 0, static_cast<std::uint32_t>(i), arrived_s, number});
    }
    const auto frozen = index.freeze(segment);
    must(index.adopt(must(index.write_run(segment, *frozen))));
    for (auto parts = index.mergeable(); !parts.empty(); parts = index.mergeable())
      must(index.adopt(must(index.merge(parts, 0))));
    if (segment % 10 == 0) fmt::print("  {} million keys in {} runs\n", segment, index.runs());
    std::fflush(stdout);
  }
}

std::vector<double> ask(const KeyIndex& index, std::uint64_t first, std::uint64_t numbers, bool known) {
  std::mt19937_64 random(first + numbers);
  std::uint64_t number = 0;
  std::size_t wrong = 0;
  auto took = creto::testing::measure(
      asked, [&] { number = first + random() % numbers; },
      [&] {
        const KeyHash key = key_of(number);
        index.prefetch(key);
        wrong += must(index.find(key, 0)).has_value() != known ? 1 : 0;
      });
  if (wrong > 0) {
    fmt::print(stderr, "dedupe_bench: {} keys were not told apart\n", wrong);
    std::exit(1);
  }
  return took;
}

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  const char* given_keys = std::getenv("CRETO_BENCH_KEYS");
  const std::size_t keys = given_keys == nullptr ? 10'000'000 : std::strtoull(given_keys, nullptr, 10);
  const fs::path data = bench_data(fmt::format("usage-keys-1-{}", keys));
  auto index = must(KeyIndex::open(io::real_files(), data));
  fill(*index, keys);

  const auto empty = must(KeyIndex::open(io::real_files(), data / "none"));
  forget_cached(data);
  const auto began = std::chrono::steady_clock::now();
  index = must(KeyIndex::open(io::real_files(), data));
  const std::chrono::duration<double> opened = std::chrono::steady_clock::now() - began;
  const std::string of = fmt::format("of {} million keys", keys / 1'000'000);
  report.add("memory of the index " + of, static_cast<double>(index->memory_bytes()) / (1 << 30), "GiB", 4, 1);
  report.compare("index opened, nothing cached", opened.count(), "s");
  const auto without = ask(*empty, keys, keys, false);
  const auto fresh = ask(*index, keys, keys, false);
  forget_cached(data);
  const auto repeated = ask(*index, 0, keys, true);
  report.compare("a key in an empty index, p99", 1e6 * percentile(without, 0.99), "us");
  report.compare("a new key, median", 1e6 * percentile(fresh, 0.5), "us");
  report.add("a new key adds to an event, p99", 1e6 * (percentile(fresh, 0.99) - percentile(without, 0.99)), "us",
             1'000, 50);
  report.compare("a repeated key, from disk, median", 1e6 * percentile(repeated, 0.5), "us");
  report.add("a repeated key adds to an event, from disk, p99", 1e6 * percentile(repeated, 0.99), "us", 1'000, 50);
  return report.finish();
}

}  // namespace
}  // namespace creto::metering

int main(int argc, char** argv) { return creto::metering::run(argc, argv); }
