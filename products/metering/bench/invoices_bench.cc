// "Invoices for 100 000 subscriptions x 10 charges, signed as one Merkle batch, without PDFs": 120 s required, 20 s
// wanted.
//
// $CRETO_BENCH_SUBSCRIPTIONS (100 000 unless said) use each of ten things once in November; what is timed is the run of
// the first of December, from the usage log to signed invoices in SQLite on disk. The usage log is written beforehand.

#include <cstdlib>

#include "billing/billing_store.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/io/files.h"
#include "creto/metering/metering.h"
#include "creto/nhi/nhi.h"
#include "creto/testing/bench.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/sealer.h"
#include "creto/testing/temp_dir.h"
#include "ledger/ledger.h"

namespace creto::metering {
namespace {

constexpr std::size_t charges = 10;
constexpr std::size_t batch = 1'000;

class Nowhere final : public InvoiceDelivery {
 public:
  Result<std::string> keep(const Context&, const Invoice&, BytesView) override { return std::string("nowhere"); }
  Result<> send(const Context&, const Invoice&, BytesView) override { return {}; }
};

Instant at(std::string_view text) { return from_rfc3339(text).value(); }
std::string agent_of(std::size_t i) { return "service:agent-" + std::to_string(i); }

/// Ten charges by different models.
Plan plan() {
  std::string text = R"({"id":"p","name":"Plan","base_fee":"19","taxes":[{"id":"vat","rate":"19"}],"charges":[)";
  for (std::size_t i = 0; i < charges; ++i) {
    const bool tiers = i % 2 == 0;
    text += fmt::format(
        R"({}{{"id":"c{}","model":"{}","metric":{{"event_type":"type-{}","aggregation":"sum","property":"units"}},"price":{}}})",
        i == 0 ? "" : ",", i, tiers ? "graduated" : "package", i,
        tiers ? R"({"tiers":[{"up_to":"1000","per_unit":"0.01"},{"per_unit":"0.001"}]})"
              : R"({"amount":"0.5","size":"100","free_units":"50"})");
  }
  return plan_from_json(text + "]}").value();
}

/// Every subscription's ten events.
void write_log(const std::filesystem::path& directory, const Clock& clock, std::span<const std::string> subscriptions,
               std::string_view org) {
  auto log = open_block_files(io::real_files(), directory / "log").value();
  const auto ledger =
      Ledger::open(
          std::move(log), io::real_files(), directory, clock, no_telemetry(), {},
          [](Ledger&, BytesView, Ledger::Saved) { return Result<>(); }, [](const StoredEvent&) { return Result<>(); })
          .value();
  Subjects& subjects = ledger->subjects();
  std::vector<AttributionNumber> attributions;
  for (std::size_t i = 0; i < subscriptions.size(); ++i) {
    attributions.push_back(
        subjects.number(Attribution{subjects.number(org, agent_of(i)), subjects.number(org, subscriptions[i]), {}}));
  }
  for (std::size_t from = 0; from < subscriptions.size() * charges; from += batch) {
    std::vector<Bytes> bytes(batch);
    std::vector<NewEvent> events;
    RecordScratch scratch;
    for (std::size_t j = 0; j < batch && from + j < subscriptions.size() * charges; ++j) {
      const std::size_t i = (from + j) % subscriptions.size();
      const std::string agent = agent_of(i);
      const std::string type = fmt::format("type-{}", (from + j) / subscriptions.size());
      const std::string key = std::to_string(from + j);
      const std::string units = std::to_string(1 + (from + j) * 7919 % 3'000);
      const std::array<PropertyView, 4> properties{
          {{"model", "m-large"}, {"region", "eu"}, {"project", "alpha"}, {"tier", "standard"}}};
      encode_record({.bytes = {},
                     .agent = agent,
                     .type = type,
                     .key = key,
                     .time = clock.now(),
                     .units = units,
                     .properties = properties},
                    bytes[j]);
      events.push_back({.record = parse_record(bytes[j], scratch).value(),
                        .attribution = attributions[i],
                        .key = ledger->key_hash(org, agent, key)});
    }
    ledger->append(events, nullptr, {}).value();
  }
}

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  const char* asked = std::getenv("CRETO_BENCH_SUBSCRIPTIONS");
  const std::size_t count = asked == nullptr ? 100'000 : static_cast<std::size_t>(std::atoll(asked));
  creto::testing::TempDir directory;
  creto::testing::FakeClock clock{at("2026-11-01T00:00:00Z")};
  creto::testing::TestDatabase database(creto::testing::DatabaseKind::sqlite, clock);
  const auto db = database.open();
  creto::testing::TestSealer sealer;
  Nowhere delivery;
  const Context ctx = Context::of_service(Identity::service("bench").value());
  const auto registry = nhi::create_nhi(*db, sealer, clock).value();
  const auto ceiling = consensus::create_ceiling_store(*db, "bench").value();
  const auto timestamps = consensus::create_timestamp_source(*ceiling, clock, no_telemetry(),
                                                             {.node = "bench", .renew_in_background = false})
                              .value();
  const auto start = [&] {
    return create_metering(*db, io::real_files(), directory.path(), *registry, *timestamps, delivery, clock,
                           no_telemetry())
        .value();
  };
  start()->put_plan(ctx, plan()).value();

  std::vector<std::string> subscriptions;
  db->transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      for (std::size_t i = 0; i < count; ++i) {
        StoredSubscription stored{.org = ctx.org,
                                  .subscription = {.id = SubscriptionId::fresh(clock.now()), .agent = agent_of(i)}};
        stored.subscription.started_at = stored.billed_until = clock.now();
        stored.subscription.terms = {{"p", 1, Decimal(1), {}, clock.now()}};
        stored.opened = true;
        stored.due_at = at("2026-12-01T00:00:00Z");
        CRETO_TRY(billing::put_subscription(tx, stored));
        subscriptions.push_back(stored.subscription.id.to_string());
      }
      return {};
    }).value();
  clock.set(at("2026-11-20T12:00:00Z"));
  write_log(directory.path(), clock, subscriptions, ctx.org);
  const auto metering = start();
  metering->tick().value();
  clock.set(at("2026-12-01T00:00:01Z"));
  const auto began = std::chrono::steady_clock::now();
  metering->tick().value();
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - began;

  const auto made = metering->list_invoices(ctx, {}).value();
  if (made.empty() || !made.front().proof || made.front().proof->size != count ||
      made.front().lines.size() != charges + 1)
    std::abort();
  const double share = static_cast<double>(count) / 100'000;
  report.add(fmt::format("invoices of {} subscriptions x {} charges", count, charges), spent.count(), "s", 120 * share,
             20 * share);
  return report.finish();
}

}  // namespace
}  // namespace creto::metering

int main(int argc, char** argv) { return creto::metering::run(argc, argv); }
