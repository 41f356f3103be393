// AZ4: a cached decision < 168 ns, an uncached one < 1 ms, validation of an override token < 500 ns (p99), with ten
// thousand distinct requests in the cache and a set of a hundred policies. As with a caller, each request was made just
// before: what is timed is the decision, not the reading of a request that the processor has forgotten.

#include "creto/authz/authz.h"
#include "creto/crypto/hash.h"
#include "creto/testing/bench.h"
#include "creto/testing/databases.h"

namespace creto::authz {
namespace {

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  creto::testing::TestDatabase database(creto::testing::DatabaseKind::sqlite);
  auto db = database.open();
  const Secret key(Bytes(32, 7));
  auto warm = create_authz(*db, system_clock(), no_telemetry(), {}, key.clone()).value();
  const Context ctx = Context::of_service(Identity::service("bench").value());
  for (int i = 0; i < 99; ++i) {
    warm->create_policy(ctx, fmt::format("p{}", i),
                        fmt::format("permit(principal is Agent, action == Action::\"act{}\", resource is Thing) "
                                    "when {{ context.amount < 10000 && context.payee like \"known*\" }};",
                                    i))
        .value();
  }
  warm->create_policy(ctx, "large",
                      "@oversight(\"large\") forbid(principal, action, resource) when { context.amount > 5000 };")
      .value();
  auto cold = create_authz(*db, system_clock(), no_telemetry(), {}, key.clone(), {.cache_entries = 0}).value();

  const Identity human = Identity::human("ada@example.com").value();
  const Identity agent = Identity::agent(ByteArray<32>{1});
  std::vector<CheckRequest> requests;
  for (int i = 0; i < 10'000; ++i) {
    requests.push_back({.principal = agent,
                        .chain = {human, agent},
                        .action = fmt::format("act{}", i % 99),
                        .resource = {"Thing", fmt::format("thing-{}", i)},
                        .context = {{"amount", i % 5'000}, {"payee", "known vendor"}},
                        .arguments_hash = crypto::sha3_256(as_bytes(fmt::format("{}", i))),
                        .override_token = {}});
  }
  for (const CheckRequest& request : requests) {
    if (!allowed(warm->check(ctx, request))) return 2;
  }

  using creto::testing::measure;
  using creto::testing::percentile;
  // Reading the clock twice is not the decision's time.
  const double timer = percentile(measure(100'000, [] {}), 0.5);
  const auto ns = [&](const std::vector<double>& took, double p) { return 1e9 * (percentile(took, p) - timer); };
  std::size_t at = 0;
  CheckRequest request = requests[0];
  const auto next = [&] { request = requests[at++ * 7'919 % requests.size()]; };

  const auto hits = measure(500'000, next, [&] { (void)warm->check(ctx, request); });
  report.add("decision, cached, 10 000 requests, median", ns(hits, 0.5), "ns", 168, 100);
  report.add("decision, cached, 10 000 requests, p99", ns(hits, 0.99), "ns", 168, 50);
  const auto same = measure(500'000, [&] { (void)warm->check(ctx, request); });
  report.add("decision, cached, the same request, median", ns(same, 0.5), "ns", 168, 50);
  const auto misses = measure(50'000, next, [&] { (void)cold->check(ctx, request); });
  report.add("decision, uncached, 100 policies, median", ns(misses, 0.5), "ns", 1'000'000, 20'000);
  report.add("decision, uncached, 100 policies, p99", ns(misses, 0.99), "ns", 1'000'000, 100'000);

  CheckRequest approved = requests[0];
  approved.context = {{"amount", 6'000}, {"payee", "known vendor"}};
  approved.override_token = warm->issue_override(ctx, {.request = RequestId::fresh(system_clock().now()),
                                                       .agent = agent,
                                                       .action = approved.action,
                                                       .resource = approved.resource,
                                                       .arguments_hash = approved.arguments_hash,
                                                       .lifts = {{"large", "large"}},
                                                       .expires_at = system_clock().now() + std::chrono::hours(1)})
                                .value();
  if (!allowed(warm->check(ctx, approved))) return 2;
  const auto tokens = measure(200'000, [&] { (void)warm->verify_override(ctx, approved).value(); });
  report.add("override token validation, median", ns(tokens, 0.5), "ns", 500, 200);
  report.add("override token validation, p99", ns(tokens, 0.99), "ns", 500, 200);
  return report.finish();
}

}  // namespace
}  // namespace creto::authz

int main(int argc, char** argv) { return creto::authz::run(argc, argv); }
