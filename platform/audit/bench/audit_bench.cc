// 001 §3.3: append < 5 ms, proof < 10 ms, query < 50 ms (p99), on a log of 20 000 entries; and how fast it is
// sequenced.

#include "creto/audit/audit_log.h"
#include "creto/testing/bench.h"
#include "creto/testing/databases.h"
#include "creto/testing/temp_dir.h"

namespace creto::audit {
namespace {

constexpr int entries = 20'000;

AuditRecord sample(int i) {
  AuditRecord record;
  record.who = fmt::format("agent:{}", i % 50);
  record.delegation_chain = {"human:ada@example.com", record.who};
  record.what = i % 3 == 0 ? "sandbox_spawned" : "egress_allowed";
  record.resource = fmt::format("runtime:sandbox:{}", i % 1'000);
  record.why = "policy `default` permits it";
  record.metadata = R"({"destination":"api.example.com:443","bytes":"1234"})";
  return record;
}

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  creto::testing::TempDir directory;
  creto::testing::TestDatabase database(creto::testing::DatabaseKind::sqlite);
  auto db = database.open();
  AuditKeys keys{crypto::SigningKey::generate(crypto::SignatureAlgorithm::ed25519),
                 crypto::SigningKey::generate(crypto::SignatureAlgorithm::ml_dsa_65)};
  auto log = create_audit_log(*db, io::real_files(), system_clock(), no_telemetry(), std::move(keys),
                              {.directory = directory / "tiles", .origin = "bench.example/audit"})
                 .value();
  const Context ctx = Context::of_service(Identity::service("bench").value());

  const auto began = std::chrono::steady_clock::now();
  std::vector<AuditId> ids;
  for (int i = 0; i < entries; i += 1'000) {
    std::vector<AuditRecord> batch;
    for (int k = i; k < i + 1'000; ++k) batch.push_back(sample(k));
    auto made = log->log_batch(ctx, batch).value();
    ids.insert(ids.end(), made.begin(), made.end());
  }
  log->flush(ctx).value();
  const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();

  const auto p99_ms = [](const std::vector<double>& took) { return 1'000 * creto::testing::percentile(took, 0.99); };
  using creto::testing::measure;
  int next = 0;
  report.add("append, durable, p99", p99_ms(measure(1'000, [&] { log->log(ctx, sample(next++)).value(); })), "ms", 5,
             5);
  std::size_t at = 0;
  report.add("inclusion proof, p99",
             p99_ms(measure(1'000, [&] { log->proof(ctx, ids[(at += 7'919) % ids.size()]).value(); })), "ms", 10, 10);
  report.add("query, one agent, newest 100, p99",
             p99_ms(measure(300, [&] { log->query(ctx, {.who = fmt::format("agent:{}", next++ % 50)}).value(); })),
             "ms", 50, 50);
  report.add("query, prefix and outcome, newest 100, p99",
             p99_ms(measure(300, [&] { log->query(ctx, {.what = "sandbox_*", .outcome = Outcome::success}).value(); })),
             "ms", 50, 50);
  report.add("recorded and sequenced, in batches", entries / took, "1/s", 200, 1'000,
             creto::testing::BenchReport::Better::higher);
  return report.finish();
}

}  // namespace
}  // namespace creto::audit

int main(int argc, char** argv) { return creto::audit::run(argc, argv); }
