// A quota that is put while events come: it counts each of them once, whenever it arrived.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "creto/consensus/timestamp_source.h"
#include "creto/metering/metering.h"
#include "creto/nhi/nhi.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/fault_files.h"
#include "creto/testing/sealer.h"
#include "ledger/usage_record.h"

namespace creto::metering {
namespace {

using namespace std::chrono_literals;

class NoMailbox final : public InvoiceDelivery {
 public:
  Result<std::string> keep(const Context&, const Invoice&, BytesView) override { return std::string("nowhere"); }
  Result<> send(const Context&, const Invoice&, BytesView) override { return {}; }
};

std::string record_of(const Identity& who, std::string_view key, Instant when, std::string_view replaces) {
  Bytes bytes;
  encode_record({.bytes = {},
                 .agent = who.text(),
                 .type = "pages",
                 .key = key,
                 .time = when,
                 .units = "3",
                 .replaces = replaces,
                 .properties = {}},
                bytes);
  return std::string(as_text(bytes));
}

TEST(Seeding, OfAQuotaThatIsPutWhileEventsComeCountsEachOnce) {
  creto::testing::FakeClock clock{from_rfc3339("2026-11-10T12:00:00Z").value()};
  creto::testing::TestDatabase database{creto::testing::DatabaseKind::sqlite, clock};
  creto::testing::TestSealer sealer;
  creto::testing::FaultFiles files;
  NoMailbox mailbox;
  const Context ctx = Context::of_service(Identity::service("test").value());
  const auto db = database.open();
  const auto registry = nhi::create_nhi(*db, sealer, clock).value();
  const auto ceiling = consensus::create_ceiling_store(*db, "test").value();
  const auto time = consensus::create_timestamp_source(*ceiling, clock, no_telemetry(),
                                                       {.node = "test", .renew_in_background = false})
                        .value();
  ASSERT_TRUE(registry->ensure_service(ctx, *ctx.caller));
  const Identity agent = registry->register_agent(ctx, {.name = "reader"}).value().identity;
  const auto metering = create_metering(*db, files, "/usage", *registry, *time, mailbox, clock, no_telemetry()).value();

  constexpr int threads = 4;
  constexpr int batches = 30;
  constexpr int quotas = 12;
  std::atomic<int> refused = 0;
  std::vector<std::thread> reporters;
  for (int thread = 0; thread < threads; ++thread) {
    reporters.emplace_back([&, thread] {
      // Each batch also replaces an event of the one before: what a seed has counted is taken out again.
      for (int batch = 0; batch < batches; ++batch) {
        std::vector<std::string> records;
        for (int i = 0; i < 8; ++i)
          records.push_back(record_of(agent, fmt::format("{}-{}-{}", thread, batch, i), clock.now(), {}));
        if (batch > 0)
          records.push_back(record_of(agent, fmt::format("{}-{}-r", thread, batch), clock.now(),
                                      fmt::format("key:{}-{}-0", thread, batch - 1)));
        const auto taken = metering->ingest_records(ctx, {.records = records});
        if (!taken || !std::ranges::all_of(*taken, [](const auto& one) { return one.has_value(); })) ++refused;
      }
    });
  }
  for (int i = 0; i < quotas; ++i) {
    Quota quota;
    quota.id = fmt::format("q{}", i);
    quota.subject = agent.text();
    quota.event_type = "pages";
    quota.limit = 1'000'000;
    quota.window = i % 2 == 0 ? WindowKind::month : WindowKind::rolling;
    if (quota.window == WindowKind::rolling) quota.rolling_length = 24h;
    const auto put = metering->set_quota(ctx, quota);
    EXPECT_TRUE(put) << put.error().to_string();
  }
  for (std::thread& reporter : reporters) reporter.join();
  EXPECT_EQ(refused, 0);
  for (int i = 0; i < quotas; ++i)
    EXPECT_EQ(metering->quota_state(ctx, fmt::format("q{}", i))->used, 3 * 8 * threads * batches) << i;
  EXPECT_EQ(metering->verify_usage(ctx)->problems, std::vector<std::string>());
}

}  // namespace
}  // namespace creto::metering
