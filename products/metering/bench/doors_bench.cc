// Usage over gRPC: encoded records in signed batches of 1 000 from four callers, through the dispatcher and the whole
// service, client and server on the same machine. One thousand agents below one service.

#include <atomic>
#include <thread>

#include "creto/consensus/timestamp_source.h"
#include "creto/io/files.h"
#include "creto/metering/metering_rpc.h"
#include "creto/nhi/nhi.h"
#include "creto/testing/bench.h"
#include "creto/testing/sealer.h"
#include "creto/testing/wire.h"
#include "ledger/batch_proof.h"
#include "ledger/usage_record.h"

namespace creto::metering {
namespace {

constexpr std::size_t agents = 1'000;
constexpr std::size_t callers = 4;
constexpr std::size_t batches = 300;  // of each caller
constexpr std::size_t batch_size = 1'000;

class Nowhere final : public InvoiceDelivery {
 public:
  Result<std::string> keep(const Context&, const Invoice&, BytesView) override { return std::string("nowhere"); }
  Result<> send(const Context&, const Invoice&, BytesView) override { return {}; }
};

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  creto::testing::TempDir directory;
  creto::testing::TestDatabase database(creto::testing::DatabaseKind::sqlite);
  const auto db = database.open();
  creto::testing::TestSealer sealer;
  const Identity gateway = Identity::service("gateway").value();
  const Context ctx = Context::of_service(gateway);
  const auto nhi = nhi::create_nhi(*db, sealer, system_clock()).value();
  nhi->ensure_service(ctx, gateway).value();
  const auto ceiling = consensus::create_ceiling_store(*db, "bench").value();
  const auto timestamps =
      consensus::create_timestamp_source(*ceiling, system_clock(), no_telemetry(), {.node = "bench"}).value();
  Nowhere delivery;
  const auto metering = create_metering(*db, io::real_files(), directory.path(), *nhi, *timestamps, delivery,
                                        system_clock(), no_telemetry())
                            .value();
  std::vector<std::string> names;
  for (std::size_t i = 0; i < agents; ++i) {
    names.push_back(
        nhi->register_agent(ctx, {.name = "agent-" + std::to_string(i), .owner = gateway}).value().identity.text());
  }
  creto::testing::Wire wire(system_clock());
  register_metering(wire.dispatcher(), *metering);

  std::vector<std::vector<RecordBatch>> prepared(callers);
  for (std::size_t c = 0; c < callers; ++c) {
    for (std::size_t b = 0; b < batches; ++b) {
      RecordBatch batch;
      std::vector<Hash256> leaves;
      for (std::size_t i = 0; i < batch_size; ++i) {
        const std::string key = fmt::format("{}-{}-{}", c, b, i);
        const std::array<PropertyView, 8> properties{{{"model", "m-large"},
                                                      {"in", "1200"},
                                                      {"out", "310"},
                                                      {"region", "eu"},
                                                      {"project", "alpha"},
                                                      {"tier", "std"},
                                                      {"cached", "0"},
                                                      {"v", "1"}}};
        Bytes bytes;
        encode_record({.bytes = {},
                       .agent = names[(c * 7919 + b * 31 + i) % agents],
                       .type = "tokens",
                       .key = key,
                       .time = system_clock().now(),
                       .units = "1510",
                       .properties = properties},
                      bytes);
        leaves.push_back(record_leaf(bytes));
        batch.records.emplace_back(as_text(bytes));
      }
      const std::string bytes = batch_signed_bytes(leaves.size(), merkle_root(leaves));
      batch.reporter = gateway.text();
      batch.signature = nhi->sign(ctx, gateway, as_bytes(bytes), batch_signature_context).value();
      prepared[c].push_back(std::move(batch));
    }
  }

  const auto client = create_metering_client(wire.connect());
  std::atomic<std::size_t> taken{0};
  std::vector<std::thread> threads;
  const auto began = std::chrono::steady_clock::now();
  for (std::size_t c = 0; c < callers; ++c) {
    threads.emplace_back([&, c] {
      for (const RecordBatch& batch : prepared[c]) {
        const auto answers = client->ingest_records(ctx, batch).value();
        for (const auto& answer : answers) taken += answer.has_value() ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - began;
  if (taken != callers * batches * batch_size) std::abort();
  report.add("ingest over gRPC, signed batches of 1 000", static_cast<double>(taken) / spent.count(), "1/s", 100'000,
             300'000, creto::testing::BenchReport::Better::higher);
  return report.finish();
}

}  // namespace
}  // namespace creto::metering

int main(int argc, char** argv) { return creto::metering::run(argc, argv); }
