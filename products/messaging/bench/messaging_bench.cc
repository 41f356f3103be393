// 000 §9: sending from a sandbox within 5 ms (p99), durable in SQLite when it returns; and what sealing and opening add
// at the ends.

#include "creto/authz/authz.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/crypto/random.h"
#include "creto/io/bus.h"
#include "creto/messaging/endpoint.h"
#include "creto/messaging/messaging.h"
#include "creto/nhi/nhi.h"
#include "creto/testing/bench.h"
#include "creto/testing/databases.h"
#include "creto/testing/sealer.h"

namespace creto::messaging {
namespace {

class FreeOfCharge final : public contracts::MessageCostTracker {
 public:
  Result<EventId> track_message_event(const Context&, const contracts::MessageBillableEvent&) override {
    return EventId::fresh(system_clock().now());
  }
  Result<contracts::QuotaDecision> check_message_quota(const Context&, const Identity&,
                                                       contracts::MessageEventType) override {
    return contracts::QuotaDecision();
  }
};

struct Party {
  Party(sql::Database& db, crypto::KeySealer& sealer, nhi::Nhi& nhi, const std::string& name) {
    const Context root = Context::of_service(*Identity::service("bench"));
    identity = nhi.register_agent(root, {.name = name, .owner = *root.caller}).value().identity;
    ctx = Context::of(*identity, {*identity});
    store = create_endpoint_store(db, sealer, "default", *identity).value();
    keys = keys_held_by_nhi(nhi, *identity);
    endpoint = create_endpoint(*store, *keys, nhi, system_clock());
    endpoint->publish_keys(ctx).value();
  }
  std::optional<Identity> identity;
  Context ctx;
  std::unique_ptr<EndpointStore> store;
  std::unique_ptr<EndpointKeys> keys;
  std::unique_ptr<Endpoint> endpoint;
};

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  creto::testing::TestDatabase database(creto::testing::DatabaseKind::sqlite);
  const auto db = database.open();
  creto::testing::TestSealer sealer;
  FreeOfCharge costs;
  const Clock& clock = system_clock();
  const Context root = Context::of_service(*Identity::service("bench"));
  const auto nhi = nhi::create_nhi(*db, sealer, clock).value();
  nhi->ensure_service(root, *root.caller).value();
  const auto authz = authz::create_authz(*db, clock, no_telemetry(), {}, crypto::random_secret(32)).value();
  authz->create_policy(root, "all", "permit (principal, action, resource);").value();
  const auto ceiling = consensus::create_ceiling_store(*db, "bench").value();
  const auto timestamps = consensus::create_timestamp_source(*ceiling, clock, no_telemetry()).value();
  const auto bus = bus::create_embedded_bus(*db, clock, no_telemetry()).value();
  const auto messaging = create_messaging({*db, *bus, *nhi, *authz, costs, *timestamps, clock, no_telemetry()}).value();
  const Party alice(*db, sealer, *nhi, "alice");
  const Party bob(*db, sealer, *nhi, "bob");
  const Bytes body = crypto::random_bytes(1024);
  const auto p99_ms = [](const std::vector<double>& took) { return 1e3 * creto::testing::percentile(took, 0.99); };
  using creto::testing::measure;

  constexpr std::size_t calls = 300;
  std::vector<contracts::SealedMessage> sealed;
  const auto sealing =
      measure(calls, [&] { sealed.push_back(alice.endpoint->seal(alice.ctx, *bob.identity, {.body = body}).value()); });
  report.add("seal an envelope, 1 KiB, p99", p99_ms(sealing), "ms", 20, 3);
  std::size_t next = 0;
  const SandboxId sandbox = SandboxId::fresh(clock.now());
  const auto sending =
      measure(calls, [&] { messaging->send_from_sandbox(alice.ctx, sandbox, sealed.at(next++)).value(); });
  report.add("send from a sandbox, p99", p99_ms(sending), "ms", 5, 2);
  next = 0;
  const auto opening = measure(calls, [&] { bob.endpoint->open(bob.ctx, sealed.at(next++)).value(); });
  report.add("open an envelope, 1 KiB, p99", p99_ms(opening), "ms", 50, 5);

  // A session in which both sides have spoken.
  const auto first = alice.endpoint->seal_in_session(alice.ctx, *bob.identity, {.body = body}).value();
  bob.endpoint->open(bob.ctx, first).value();
  const auto answer = bob.endpoint->seal_in_session(bob.ctx, *alice.identity, {.body = body}).value();
  alice.endpoint->open(alice.ctx, answer).value();
  std::vector<contracts::SealedMessage> ratcheted;
  const auto ratcheting = measure(calls, [&] {
    ratcheted.push_back(alice.endpoint->seal_in_session(alice.ctx, *bob.identity, {.body = body}).value());
  });
  report.add("seal in a session, 1 KiB, durable, p99", p99_ms(ratcheting), "ms", 50, 5);
  next = 0;
  const auto unratcheting = measure(calls, [&] { bob.endpoint->open(bob.ctx, ratcheted.at(next++)).value(); });
  report.add("open in a session, 1 KiB, durable, p99", p99_ms(unratcheting), "ms", 50, 5);
  return report.finish();
}

}  // namespace
}  // namespace creto::messaging

int main(int argc, char** argv) { return creto::messaging::run(argc, argv); }
