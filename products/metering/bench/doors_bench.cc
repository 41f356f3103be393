// Usage through the doors of a server, through the dispatcher and the whole service, clients and server on the same
// machine. One thousand agents below one service.

#include <atomic>
#include <thread>

#include "creto/consensus/timestamp_source.h"
#include "creto/io/files.h"
#include "creto/io/http_client.h"
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
constexpr std::size_t rest_callers = 8;
constexpr std::size_t rest_batches = 1'000;
constexpr std::size_t rest_batch_size = 100;

class Nowhere final : public InvoiceDelivery {
 public:
  Result<std::string> keep(const Context&, const Invoice&, BytesView) override { return std::string("nowhere"); }
  Result<> send(const Context&, const Invoice&, BytesView) override { return {}; }
};

constexpr std::array<PropertyView, 8> properties{{{"cached", "0"},
                                                  {"in", "1200"},
                                                  {"model", "m-large"},
                                                  {"out", "310"},
                                                  {"project", "alpha"},
                                                  {"region", "eu"},
                                                  {"tier", "std"},
                                                  {"v", "1"}}};

/// A service with its callers.
struct Server {
  creto::testing::TempDir directory;
  creto::testing::TestDatabase database{creto::testing::DatabaseKind::sqlite};
  std::unique_ptr<sql::Database> db = database.open();
  creto::testing::TestSealer sealer;
  Identity gateway = Identity::service("gateway").value();
  Context ctx = Context::of_service(gateway);
  std::unique_ptr<nhi::Nhi> nhi = nhi::create_nhi(*db, sealer, system_clock()).value();
  std::unique_ptr<consensus::CeilingStore> ceiling = consensus::create_ceiling_store(*db, "bench").value();
  std::unique_ptr<consensus::TimestampSource> timestamps =
      consensus::create_timestamp_source(*ceiling, system_clock(), no_telemetry(), {.node = "bench"}).value();
  Nowhere delivery;
  std::unique_ptr<LocalMetering> metering = create_metering(*db, io::real_files(), directory.path(), *nhi, *timestamps,
                                                            delivery, system_clock(), no_telemetry())
                                                .value();
  creto::testing::Wire wire{system_clock()};
  std::vector<std::string> names;

  Server() {
    nhi->ensure_service(ctx, gateway).value();
    for (std::size_t i = 0; i < agents; ++i) {
      names.push_back(
          nhi->register_agent(ctx, {.name = "agent-" + std::to_string(i), .owner = gateway}).value().identity.text());
    }
    register_metering(wire.dispatcher(), *metering);
  }
  const std::string& agent(std::size_t c, std::size_t b, std::size_t i) const {
    return names[(c * 7919 + b * 31 + i) % agents];
  }

  /// Signed, for each caller.
  std::vector<std::vector<RecordBatch>> batches_of(std::string_view name) {
    std::vector<std::vector<RecordBatch>> all(callers);
    for (std::size_t c = 0; c < callers; ++c) {
      for (std::size_t b = 0; b < batches; ++b) {
        RecordBatch batch;
        std::vector<Hash256> leaves;
        for (std::size_t i = 0; i < batch_size; ++i) {
          const std::string key = fmt::format("{}-{}-{}-{}", name, c, b, i);
          Bytes bytes;
          encode_record({.bytes = {},
                         .agent = agent(c, b, i),
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
        all[c].push_back(std::move(batch));
      }
    }
    return all;
  }
};

/// How many a second, where `call` of each caller returns how many events were taken.
template <class F>
double rate_of(std::size_t expected, std::size_t callers, F call) {
  std::atomic<std::size_t> taken{0};
  std::vector<std::thread> threads;
  const auto began = std::chrono::steady_clock::now();
  for (std::size_t c = 0; c < callers; ++c) threads.emplace_back([&, c] { taken += call(c); });
  for (std::thread& thread : threads) thread.join();
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - began;
  if (taken != expected) std::abort();
  return static_cast<double>(expected) / spent.count();
}

std::size_t taken_of(const Result<std::vector<Result<Ingested>>>& answers) {
  return static_cast<std::size_t>(
      std::ranges::count_if(answers.value(), [](const Result<Ingested>& one) { return one.has_value(); }));
}

double over_calls(Server& server) {
  const auto prepared = server.batches_of("call");
  const auto client = create_metering_client(server.wire.connect());
  return rate_of(callers * batches * batch_size, callers, [&](std::size_t c) {
    std::size_t taken = 0;
    for (const RecordBatch& batch : prepared[c]) taken += taken_of(client->ingest_records(server.ctx, batch));
    return taken;
  });
}

double over_streams(Server& server) {
  auto prepared = server.batches_of("stream");
  const auto client = create_metering_client(server.wire.connect());
  return rate_of(callers * batches * batch_size, callers, [&](std::size_t c) {
    std::size_t taken = 0;
    std::size_t next = 0;
    client
        ->ingest_stream(
            server.ctx, [&] { return next < batches ? std::optional(std::move(prepared[c][next++])) : std::nullopt; },
            [&](const Result<std::vector<Result<Ingested>>>& answers) { taken += taken_of(answers); })
        .value();
    return taken;
  });
}

double over_rest(Server& server) {
  std::vector<std::vector<std::string>> bodies(rest_callers);
  for (std::size_t c = 0; c < rest_callers; ++c) {
    for (std::size_t b = 0; b < rest_batches; ++b) {
      std::string body = "[";
      for (std::size_t i = 0; i < rest_batch_size; ++i) {
        body += fmt::format(
            R"({}{{"specversion":"1.0","id":"{}-{}-{}","source":"/gate/{}","type":"tokens","subject":"{}","time":"{}","data":{{"units":1510)",
            i == 0 ? "" : ",", c, b, i, c, server.agent(c, b, i), to_rfc3339(system_clock().now()));
        for (const auto& [name, value] : properties) body += fmt::format(R"(,"{}":"{}")", name, value);
        body += "}}";
      }
      bodies[c].push_back(body + "]");
    }
  }
  const auto rest = http::Server::start_async({.port = 0}, server.wire.dispatcher().rest(), no_telemetry()).value();
  const auto client = http::Client::create(system_clock());
  return rate_of(rest_callers * rest_batches * rest_batch_size, rest_callers, [&](std::size_t c) {
    std::size_t taken = 0;
    for (std::string& body : bodies[c]) {
      const auto response =
          client
              ->send(server.ctx, {.method = "POST",
                                  .url = fmt::format("http://127.0.0.1:{}/v1/cloudevents", rest->port()),
                                  .headers = {{"content-type", "application/cloudevents-batch+json"},
                                              {"authorization", "Bearer default"},
                                              {"creto-on-behalf-of", server.gateway.text()}},
                                  .body = std::move(body)})
              .value();
      if (response.status != 200 || response.body.find("\"error\"") != std::string::npos) std::abort();
      for (std::size_t at = 0; (at = response.body.find("\"event_id\"", at)) != std::string::npos; ++at) ++taken;
    }
    return taken;
  });
}

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  using enum creto::testing::BenchReport::Better;
  Server server;
  const double calls = over_calls(server);
  report.add("ingest over gRPC calls, signed batches of 1 000", calls, "1/s", 100'000, 300'000, higher);
  const double streams = over_streams(server);
  report.add("ingest over gRPC stream, signed batches of 1 000", streams, "1/s", 100'000, 300'000, higher);
  const double rest = over_rest(server);
  report.add("REST CloudEvents, batches of 100", rest, "1/s", 40'000, 100'000, higher);
  return report.finish();
}

}  // namespace
}  // namespace creto::metering

int main(int argc, char** argv) { return creto::metering::run(argc, argv); }
