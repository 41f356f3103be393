// 001 §3.1: key lookup < 5 ms, signature verification < 2 ms, delegation validation < 10 ms (p99), each without and
// with the cache.

#include "creto/nhi/nhi.h"
#include "creto/testing/bench.h"
#include "creto/testing/databases.h"
#include "creto/testing/sealer.h"

namespace creto::nhi {
namespace {

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  creto::testing::TestDatabase database(creto::testing::DatabaseKind::sqlite);
  auto db = database.open();
  creto::testing::TestSealer sealer;
  Context root = Context::of_service(Identity::service("bench").value());
  auto warm = create_nhi(*db, sealer, system_clock()).value();
  auto cold = create_nhi(*db, sealer, system_clock(), {.cache_ttl = Nanos(0)}).value();
  warm->ensure_service(root, *root.caller).value();

  // A chain of depth ten: the service, then nine agents.
  std::vector<Identity> chain = {*root.caller};
  Instant end = system_clock().now() + std::chrono::hours(1);
  for (int i = 1; i <= 9; ++i) {
    auto agent = warm->register_agent(root, {.name = fmt::format("agent-{}", i), .owner = *root.caller}).value();
    warm->create_delegation(root, {chain.back(), agent.identity, {}, {"*"}, end, {}, {}, {}, {}}).value();
    chain.push_back(agent.identity);
  }
  const Identity& leaf = chain.back();
  Bytes data(1024, 7);
  Signature signature = warm->sign(root, leaf, data).value();

  auto p99_ms = [](const std::vector<double>& took) { return 1000 * creto::testing::percentile(took, 0.99); };
  using creto::testing::measure;
  report.add("key lookup, from the store, p99",
             p99_ms(measure(2000, [&] { cold->get_public_keys(root, leaf).value(); })), "ms", 5, 5);
  report.add("key lookup, cached, p99", p99_ms(measure(20000, [&] { warm->get_public_keys(root, leaf).value(); })),
             "ms", 5, 0.01);
  report.add("signature verification, 1 KiB, hybrid, p99",
             p99_ms(measure(2000, [&] { (void)warm->verify(root, leaf, data, signature); })), "ms", 2, 2);
  report.add("delegation validation, depth 10, nothing cached, p99",
             p99_ms(measure(300, [&] { cold->get_delegation_chain(root, leaf).value(); })), "ms", 10, 10);
  report.add("delegation validation, depth 10, cached, p99",
             p99_ms(measure(20000, [&] { warm->get_delegation_chain(root, leaf).value(); })), "ms", 10, 0.05);
  std::string token = warm->issue_token(root, leaf, std::chrono::hours(1)).value();
  report.add("token resolution, cached, p99", p99_ms(measure(20000, [&] { warm->resolve_token(root, token).value(); })),
             "ms", 5, 0.05);
  return report.finish();
}

}  // namespace
}  // namespace creto::nhi

int main(int argc, char** argv) { return creto::nhi::run(argc, argv); }
