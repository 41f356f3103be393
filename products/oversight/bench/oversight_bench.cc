// 000 §9: ApprovalGate::check_approval_required < 1 ms (p99), for actions that nobody has asked about before: allowed,
// waiting for approval, and forbidden.

#include "creto/authz/authz.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/crypto/random.h"
#include "creto/io/bus.h"
#include "creto/nhi/nhi.h"
#include "creto/oversight/oversight.h"
#include "creto/testing/bench.h"
#include "creto/testing/databases.h"
#include "creto/testing/sealer.h"

namespace creto::oversight {
namespace {

constexpr std::pair<const char*, const char*> policies[] = {
    {"all", "permit (principal, action, resource);"},
    {"large", R"(@oversight("large-payments")
               forbid (principal, action == Action::"payments.pay", resource) when { context.amount > 10000 };)"},
    {"thief", R"(forbid (principal, action == Action::"payments.pay", resource) when { context.payee == "thief" };)"}};

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  creto::testing::TestDatabase database(creto::testing::DatabaseKind::sqlite);
  const auto db = database.open();
  creto::testing::TestSealer sealer;
  const Clock& clock = system_clock();
  const Context root = Context::of_service(*Identity::service("bench"));
  const auto nhi = nhi::create_nhi(*db, sealer, clock).value();
  nhi->ensure_service(root, *root.caller).value();
  const Identity agent = nhi->register_agent(root, {.name = "payer", .owner = *root.caller}).value().identity;
  const auto authz = authz::create_authz(*db, clock, no_telemetry(), {}, crypto::random_secret(32)).value();
  for (const auto& [id, text] : policies) authz->create_policy(root, id, text).value();
  const auto ceiling = consensus::create_ceiling_store(*db, "bench").value();
  const auto timestamps = consensus::create_timestamp_source(*ceiling, clock, no_telemetry()).value();
  const auto bus = bus::create_embedded_bus(*db, clock, no_telemetry()).value();
  const auto oversight = create_oversight({.database = *db,
                                           .bus = *bus,
                                           .nhi = *nhi,
                                           .authz = *authz,
                                           .timestamps = *timestamps,
                                           .clock = clock,
                                           .telemetry = no_telemetry(),
                                           .memory = nullptr,
                                           .webhook = nullptr})
                             .value();
  const Context ctx = Context::of(agent, {*root.caller, agent});

  std::uint64_t number = 0;
  const auto check = [&]<class Expected>(std::string_view payee, std::uint64_t amount) {
    const contracts::GatedAction action{agent,
                                        {*root.caller, agent},
                                        std::nullopt,
                                        "payments.pay",
                                        "Ledger",
                                        fmt::format("account-{}", ++number),
                                        fmt::format(R"({{"amount":{},"payee":"{}"}})", amount, payee)};
    // A benchmark of another path than the one it names would be worse than none.
    if (!std::holds_alternative<Expected>(oversight->check_approval_required(ctx, action).value())) std::abort();
  };
  const auto p99_ms = [](const std::vector<double>& took) { return 1e3 * creto::testing::percentile(took, 0.99); };
  using creto::testing::measure;
  report.add("check_approval_required, allowed, p99",
             p99_ms(measure(20'000, [&] { check.operator()<contracts::NotRequired>("Swift Courier", 100); })), "ms", 1,
             0.05);
  report.add("check_approval_required, needs approval, p99",
             p99_ms(measure(20'000, [&] { check.operator()<contracts::ApprovalRequired>("Swift Courier", 25'000); })),
             "ms", 1, 0.05);
  report.add("check_approval_required, forbidden, p99",
             p99_ms(measure(20'000, [&] { check.operator()<contracts::Prohibited>("thief", 100); })), "ms", 1, 0.05);
  return report.finish();
}

}  // namespace
}  // namespace creto::oversight

int main(int argc, char** argv) { return creto::oversight::run(argc, argv); }
