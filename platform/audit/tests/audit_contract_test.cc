#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <set>
#include <thread>

#include "creto/audit/audit_rpc.h"
#include "creto/testing/databases.h"
#include "creto/testing/fault_files.h"
#include "creto/testing/temp_dir.h"
#include "creto/testing/wire.h"
#include "record_json.h"

namespace creto::audit {
namespace {

using namespace std::chrono_literals;
using testing::Where;
using testing::Wire;

constexpr const char* origin = "example.com/audit";

/// The same keys at each call, as a process has after a restart.
AuditKeys keys() {
  static const auto ed25519 = crypto::SigningKey::generate(crypto::SignatureAlgorithm::ed25519);
  static const auto ml_dsa = crypto::SigningKey::generate(crypto::SignatureAlgorithm::ml_dsa_65);
  return {*crypto::SigningKey::from_seed(ed25519.algorithm(), ed25519.seed().reveal()),
          *crypto::SigningKey::from_seed(ml_dsa.algorithm(), ml_dsa.seed().reveal())};
}
std::vector<tlog::VerifierKey> verifiers() {
  const auto k = keys();
  return {tlog::VerifierKey::of(origin, k.ed25519.verifying_key()),
          tlog::VerifierKey::of(origin, k.ml_dsa_65.verifying_key())};
}

AuditRecord sample(int i) {
  AuditRecord record;
  record.who = "agent:" + std::to_string(i % 3);
  record.delegation_chain = {"human:a@example.com", record.who};
  record.what = i % 2 == 0 ? "sandbox_spawned" : "egress_denied";
  record.resource = "runtime:sandbox:" + std::to_string(i);
  record.why = "because ü";
  record.outcome = static_cast<Outcome>(i % 4);
  record.outcome_detail = "RT-403: no";
  record.timestamp = {static_cast<std::uint64_t>(i), 1'000'000'000LL * i + 1, "n", false};
  record.metadata = R"({"bytes":"12345678901234567","n":)" + std::to_string(i) + "}";
  return record;
}

class AuditContract : public ::testing::TestWithParam<Where> {
 protected:
  ~AuditContract() override { close(); }

  void open(bool background = true) {
    auto opened =
        create_audit_log(*db, io::real_files(), system_clock(), no_telemetry(), keys(),
                         {.directory = tiles, .origin = origin, .interval = 5ms, .sequence_in_background = background});
    ASSERT_TRUE(opened) << opened.error().to_string();
    log = std::move(*opened);
    if (GetParam() != Where::grpc) return;
    service_ = std::move(log);
    wire.emplace(system_clock());
    register_audit(wire->dispatcher(), *service_);
    log = create_audit_client(wire->connect());
  }
  void close() {
    log.reset();
    wire.reset();
    service_.reset();
  }
  AuditId put(const AuditRecord& record) {
    auto id = log->log(ctx, record);
    EXPECT_TRUE(id) << id.error().to_string();
    return *id;
  }
  void flush() {
    auto done = log->flush(ctx);
    ASSERT_TRUE(done) << done.error().to_string();
  }
  std::vector<std::string> resources(const AuditFilter& filter) {
    auto page = log->query(ctx, filter);
    EXPECT_TRUE(page) << page.error().to_string();
    std::vector<std::string> found;
    if (page) {
      for (const auto& entry : page->entries) found.push_back(entry.record.resource.substr(16));
    }
    return found;
  }
  std::string key_file() { return log->status(ctx)->verifier_keys; }

  testing::TempDir directory;
  std::filesystem::path tiles = directory / "tiles";
  testing::TestDatabase store{database_of(GetParam())};
  std::unique_ptr<sql::Database> db = store.open();
  Context ctx = Context::of_service(*Identity::service("test"));
  std::unique_ptr<AuditLog> service_;
  std::optional<Wire> wire;
  std::unique_ptr<AuditLog> log;
};

TEST_P(AuditContract, KeepsTheWholeRecord) {
  open();
  AuditRecord record = sample(3);
  record.signature = Signature{"ed25519", {1, 2, 3}};
  record.trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
  const auto id = put(record);
  flush();
  const auto entry = *log->get(ctx, id);
  EXPECT_EQ(entry.index, 0u);
  EXPECT_EQ(*entry.record.id, id);
  EXPECT_EQ(entry.record.who, record.who);
  EXPECT_EQ(entry.record.delegation_chain, record.delegation_chain);
  EXPECT_EQ(entry.record.what, record.what);
  EXPECT_EQ(entry.record.resource, record.resource);
  EXPECT_EQ(entry.record.why, record.why);
  EXPECT_EQ(entry.record.outcome, record.outcome);
  EXPECT_EQ(entry.record.outcome_detail, record.outcome_detail);
  EXPECT_EQ(entry.record.timestamp, record.timestamp);
  EXPECT_EQ(entry.record.signature, record.signature);
  EXPECT_EQ(entry.record.metadata, R"({"bytes":"12345678901234567","n":3})");
  EXPECT_EQ(entry.record.trace_id, record.trace_id);
}

TEST_P(AuditContract, RecordsIfAndOnlyIfTheTransactionCommits) {
  open();
  std::optional<AuditId> lost;
  EXPECT_FALSE(sql::write(*db, ctx, [&](sql::Tx& tx) -> Result<> {
    lost = CRETO_TRY(record(tx, ctx, AuditRecord::of(ctx, "a", "r")));
    return Error(Product::platform, ErrorKind::conflict, "no");
  }));
  const auto kept = sql::write(*db, ctx, [&](sql::Tx& tx) { return record(tx, ctx, AuditRecord::of(ctx, "b", "r")); });
  flush();
  EXPECT_EQ(log->get(ctx, *lost).error().kind(), ErrorKind::not_found);
  const auto entry = *log->get(ctx, *kept);
  EXPECT_EQ(entry.record.who, "service:test");
  EXPECT_GT(entry.record.timestamp.physical_ns, 0);
  EXPECT_EQ(log->status(ctx)->size, 1u);
}

TEST_P(AuditContract, FindsByEveryFilterAndPages) {
  open();
  std::vector<AuditRecord> records;
  for (int i = 0; i < 24; ++i) records.push_back(sample(i));
  ASSERT_EQ(log->log_batch(ctx, records)->size(), 24u);
  flush();
  using V = std::vector<std::string>;
  EXPECT_EQ(resources({.limit = 3}), (V{"23", "22", "21"}));
  EXPECT_EQ(resources({.limit = 3, .newest_first = false}), (V{"0", "1", "2"}));
  EXPECT_EQ(resources({.who = "agent:1", .limit = 2}), (V{"22", "19"}));
  EXPECT_EQ(resources({.who = "human:a@example.com"}).size(), 24u);
  EXPECT_EQ(resources({.who = "agent:9"}).size(), 0u);
  EXPECT_EQ(resources({.what = "egress_denied"}).size(), 12u);
  EXPECT_EQ(resources({.what = "sandbox_*"}).size(), 12u);
  EXPECT_EQ(resources({.what = "sandbox%"}).size(), 0u);
  EXPECT_EQ(resources({.resource = "runtime:sandbox:7"}), V{"7"});
  EXPECT_EQ(resources({.resource = "runtime:sandbox:1*"}).size(), 11u);
  EXPECT_EQ(resources({.outcome = Outcome::denied}).size(), 6u);
  EXPECT_EQ(resources({.from = from_unix_ns(5'000'000'001), .until = from_unix_ns(7'000'000'001)}), (V{"6", "5"}));
  EXPECT_EQ(resources({.who = "agent:0", .what = "sandbox_spawned", .outcome = Outcome::success}), (V{"12", "0"}));
  AuditFilter filter{.limit = 5};
  V all;
  do {
    const auto page = *log->query(ctx, filter);
    for (const auto& entry : page.entries) all.push_back(entry.record.resource.substr(16));
    filter.cursor = page.next_cursor;
  } while (!filter.cursor.empty());
  EXPECT_EQ(all.size(), 24u);
  EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), 24u);
  EXPECT_EQ(log->query(ctx, {.limit = 0}).error().kind(), ErrorKind::invalid_input);
  EXPECT_EQ(log->query(ctx, {.limit = 1001}).error().kind(), ErrorKind::invalid_input);
  EXPECT_EQ(log->query(ctx, {.cursor = "1; DROP TABLE"}).error().kind(), ErrorKind::invalid_input);
}

TEST_P(AuditContract, ShowsAnOrganizationOnlyItsOwn) {
  open();
  const auto id = put(sample(1));
  flush();
  Context other = ctx;
  other.org = "other";
  if (wire) log = create_audit_client(wire->connect("other"));
  EXPECT_TRUE(log->query(other, {})->entries.empty());
  EXPECT_EQ(log->get(other, id).error().kind(), ErrorKind::not_found);
  EXPECT_EQ(log->proof(other, id).error().kind(), ErrorKind::not_found);
}

TEST_P(AuditContract, ProvesWhatItHolds) {
  open();
  std::vector<AuditId> ids;
  for (int i = 0; i < 10; ++i) ids.push_back(put(sample(i)));
  flush();
  const auto old = *tlog::Checkpoint::parse(*tlog::verify_note(*log->checkpoint(ctx), verifiers()));
  std::vector<AuditRecord> more;
  for (int i = 0; i < 300; ++i) more.push_back(sample(i));
  ASSERT_TRUE(log->log_batch(ctx, more));
  flush();
  const auto now = *tlog::Checkpoint::parse(*tlog::verify_note(*log->checkpoint(ctx), verifiers()));
  EXPECT_EQ(now.size, 310u);
  EXPECT_TRUE(tlog::verify_consistency(old.size, now.size, *log->consistency(ctx, old.size), old.root, now.root));
  for (const auto& id : ids) {
    const auto proof = *log->proof(ctx, id);
    EXPECT_EQ(proof.root, now.root);
    EXPECT_TRUE(tlog::verify_inclusion(proof.index, proof.tree_size, proof.leaf_hash, proof.path, now.root));
    EXPECT_TRUE(*log->verify(ctx, id, proof, now.root));
    EXPECT_FALSE(*log->verify(ctx, id, proof, old.root));
    EXPECT_FALSE(*log->verify(ctx, ids[(proof.index + 1) % 10], proof, now.root));
    EXPECT_TRUE(tlog::verify_note(proof.checkpoint, verifiers()));
  }
  EXPECT_EQ(log->consistency(ctx, 311).error().kind(), ErrorKind::invalid_input);
  std::size_t records = 0;
  const auto verified = verify_directory(tiles, key_file(), [&](std::string_view record) -> Result<> {
    EXPECT_TRUE(parse_entry(record));
    ++records;
    return {};
  });
  ASSERT_TRUE(verified) << verified.error().to_string();
  EXPECT_EQ(verified->size, 310u);
  EXPECT_EQ(records, 310u);
  EXPECT_EQ(verified->origin, origin);
}

TEST_P(AuditContract, SaysThatARecordIsNotYetInTheLog) {
  open(false);
  const auto id = put(sample(1));
  const auto early = log->proof(ctx, id);
  EXPECT_EQ(early.error().kind(), ErrorKind::unavailable);
  EXPECT_TRUE(early.error().retry_after());
  EXPECT_EQ(log->status(ctx)->pending, 1u);
  flush();
  EXPECT_TRUE(log->proof(ctx, id));
  EXPECT_EQ(log->get(ctx, AuditId::fresh(system_clock().now())).error().kind(), ErrorKind::not_found);
}

TEST_P(AuditContract, SequencesByItselfSoon) {
  open();
  const auto id = put(sample(1));
  const auto until = system_clock().monotonic() + 30s;
  while (log->status(ctx)->pending != 0 && system_clock().monotonic() < until) std::this_thread::yield();
  EXPECT_TRUE(log->proof(ctx, id));
}

TEST_P(AuditContract, RefusesWhatCannotBeARecord) {
  open();
  const auto refused = [&](auto change) {
    AuditRecord record = sample(1);
    change(record);
    auto id = log->log(ctx, record);
    return id ? std::string("accepted") : std::string(to_string(id.error().kind()));
  };
  EXPECT_EQ(refused([](auto& r) { r.what = ""; }), "invalid_input");
  EXPECT_EQ(refused([](auto& r) { r.what = std::string(257, 'x'); }), "invalid_input");
  EXPECT_EQ(refused([](auto& r) { r.resource = std::string(2'049, 'x'); }), "invalid_input");
  EXPECT_EQ(refused([](auto& r) { r.why = "\xff"; }), "invalid_input");
  EXPECT_EQ(refused([](auto& r) { r.why = std::string("a\0b", 3); }), "invalid_input");
  EXPECT_EQ(refused([](auto& r) { r.metadata = "[]"; }), "invalid_input");
  EXPECT_EQ(refused([](auto& r) { r.metadata = "{"; }), "invalid_input");
  EXPECT_EQ(refused([](auto& r) { r.metadata = R"({"n":12345678901234567})"; }), "invalid_input");
  EXPECT_EQ(refused([](auto& r) { r.why = std::string(65'535, 'x'); }), "too_large");
  EXPECT_EQ(refused([](auto& r) { r.delegation_chain.resize(33, "agent:x"); }), "invalid_input");
  EXPECT_EQ(log->log_batch(ctx, std::vector<AuditRecord>(1'001, sample(1))).error().kind(), ErrorKind::too_large);
  // All or none.
  AuditRecord bad = sample(2);
  bad.what = "";
  EXPECT_FALSE(log->log_batch(ctx, {sample(1), bad}));
  flush();
  EXPECT_EQ(log->status(ctx)->size, 0u);
}

TEST_P(AuditContract, RefusesAnIdThatIsInUseAndWhatItCouldNotReadBack) {
  open();
  AuditRecord record = sample(1);
  record.id = AuditId::fresh(system_clock().now());
  EXPECT_EQ(put(record), *record.id);
  EXPECT_EQ(log->log(ctx, record).error().kind(), ErrorKind::already_exists);
  flush();
  EXPECT_EQ(log->log(ctx, record).error().kind(), ErrorKind::already_exists);
  AuditRecord deep = sample(2);
  deep.metadata = "{\"a\":" + std::string(63, '[') + std::string(63, ']') + "}";
  EXPECT_EQ(log->log(ctx, deep).error().kind(), ErrorKind::invalid_input);
  // And goes on.
  put(sample(3));
  flush();
  EXPECT_EQ(log->status(ctx)->size, 2u);
}

TEST_P(AuditContract, RefusesAnotherLogsFilesAndLostFiles) {
  open();
  put(sample(1));
  flush();
  close();
  const auto with = [&](const std::filesystem::path& path, const std::string& name) {
    auto opened = create_audit_log(*db, io::real_files(), system_clock(), no_telemetry(), keys(),
                                   {.directory = path, .origin = name});
    return opened ? std::string("opened") : std::string(to_string(opened.error().kind()));
  };
  EXPECT_EQ(with(tiles, "example.com/other"), "conflict");
  EXPECT_EQ(with(directory / "empty", origin), "conflict");
  EXPECT_EQ(with(tiles, "a+b"), "invalid_input");
  EXPECT_EQ(with(tiles, origin), "opened");
}

TEST_P(AuditContract, MakesTheIndexAgainFromTheTiles) {
  open();
  std::vector<AuditRecord> records;
  for (int i = 0; i < 300; ++i) records.push_back(sample(i));
  const auto ids = *log->log_batch(ctx, records);
  flush();
  const auto checkpoint = *log->checkpoint(ctx);
  close();
  // A database from before all of it.
  testing::TestDatabase empty(database_of(GetParam()));
  auto restored = empty.open();
  auto again = create_audit_log(*restored, io::real_files(), system_clock(), no_telemetry(), keys(),
                                {.directory = tiles, .origin = origin});
  ASSERT_TRUE(again) << again.error().to_string();
  EXPECT_EQ(*(*again)->checkpoint(ctx), checkpoint);
  EXPECT_EQ((*again)->query(ctx, {.limit = 1'000})->entries.size(), 300u);
  EXPECT_TRUE((*again)->proof(ctx, ids[123]));
  ASSERT_TRUE((*again)->log(ctx, sample(7)));
  ASSERT_TRUE((*again)->flush(ctx));
  again->reset();
  restored.reset();
  std::string file;
  for (const auto& key : verifiers()) file += key.text() + "\n";
  EXPECT_EQ(verify_directory(tiles, file)->size, 301u);
}

TEST_P(AuditContract, WritesABatchAgainWhoseEndTheDatabaseLost) {
  open(false);
  put(sample(1));
  flush();
  const std::vector<AuditId> lost{put(sample(2)), put(sample(3))};
  flush();
  // As a database server leaves it that lost its power: the entries have their places, and are not in the index.
  const auto undone = sql::write(*db, ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(
        tx.exec("INSERT INTO audit_pending (org, id, entry, idx) SELECT org, id, entry, idx FROM audit_entries WHERE "
                "idx >= 1 ORDER BY idx"));
    CRETO_TRY(tx.exec("DELETE FROM audit_entries WHERE idx >= 1"));
    CRETO_TRY(tx.exec("UPDATE audit_state SET size = 1, assigned = 3 WHERE one = 1"));
    return {};
  });
  ASSERT_TRUE(undone) << undone.error().to_string();
  put(sample(4));
  flush();
  EXPECT_EQ(resources({.newest_first = false}), (std::vector<std::string>{"1", "2", "3", "4"}));
  for (const auto& id : lost) EXPECT_TRUE(log->proof(ctx, id));
  const std::string file = key_file();
  close();
  EXPECT_EQ(verify_directory(tiles, file)->size, 4u);
}

/// Where the log is; a client keeps nothing that could be lost.
class AuditKill : public AuditContract {};

TEST_P(AuditKill, LosesNothingAndRepeatsNothing) {
  int pipe_ends[2];
  ASSERT_EQ(::pipe(pipe_ends), 0);
  db.reset();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    db = store.open();
    open();
    for (int i = 0;; ++i) {
      const auto id = log->log(ctx, sample(i));
      if (!id || ::write(pipe_ends[1], id->bytes().data(), 16) != 16) ::_exit(1);
    }
  }
  ::close(pipe_ends[1]);
  std::set<std::string> acknowledged;
  ByteArray<16> bytes;
  while (acknowledged.size() < 60 && ::read(pipe_ends[0], bytes.data(), 16) == 16) {
    acknowledged.insert(AuditId::from_bytes(bytes).to_string());
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  while (::read(pipe_ends[0], bytes.data(), 16) == 16) acknowledged.insert(AuditId::from_bytes(bytes).to_string());
  ::close(pipe_ends[0]);
  ASSERT_GE(acknowledged.size(), 60u);

  db = store.open();
  open();
  flush();
  std::map<std::string, int> in_log;
  const auto verified = tlog::verify_log(tlog::files_below(io::real_files(), tiles), verifiers(),
                                         [&](std::uint64_t, BytesView entry) -> Result<> {
                                           const auto parsed = CRETO_TRY(parse_entry(as_text(entry)));
                                           ++in_log[parsed.record.id->to_string()];
                                           return {};
                                         });
  ASSERT_TRUE(verified) << verified.error().to_string();
  for (const auto& id : acknowledged) EXPECT_EQ(in_log[id], 1) << id;
  for (const auto& [id, times] : in_log) EXPECT_EQ(times, 1) << id;
}

INSTANTIATE_TEST_SUITE_P(, AuditKill, ::testing::Values(Where::sqlite, Where::postgres), database_name);
INSTANTIATE_TEST_SUITE_P(, AuditContract, everywhere(), database_name);

/// Dies at every step of writing, with a file system that loses what was not synced.
TEST(AuditCrash, NeverForksLosesOrRepeatsWhereverItDies) {
  testing::TestDatabase store(testing::DatabaseKind::sqlite);
  auto db = store.open();
  testing::FaultFiles files;
  const Context ctx;
  const AuditOptions options{.directory = "audit", .origin = origin, .batch_max = 7, .sequence_in_background = false};
  std::vector<std::string> recorded;
  std::vector<tlog::Checkpoint> seen;
  int died = 0;
  for (std::uint64_t round = 0; round < 60; ++round) {
    files.die_at(1 + round % 30);
    {
      auto log = create_audit_log(*db, files, system_clock(), no_telemetry(), keys(), options);
      if (log) {
        for (int i = 0; i < 9; ++i) recorded.push_back((*log)->log(ctx, sample(i))->to_string());
        if (!(*log)->flush(ctx)) ++died;
      } else {
        ASSERT_EQ(log.error().kind(), ErrorKind::unavailable) << log.error().to_string();
        ++died;
      }
    }
    files.crash(round % 5);
    // Whoever saw this checkpoint holds us to it.
    const auto note = *tlog::files_below(files, "audit")("checkpoint");
    if (note) seen.push_back(*tlog::Checkpoint::parse(*tlog::verify_note(as_text(*note), verifiers())));
  }
  EXPECT_GT(died, 30);
  auto log = create_audit_log(*db, files, system_clock(), no_telemetry(), keys(), options);
  ASSERT_TRUE(log) << log.error().to_string();
  ASSERT_TRUE((*log)->flush(ctx));
  const auto last = *tlog::Checkpoint::parse(*tlog::verify_note(*(*log)->checkpoint(ctx), verifiers()));
  for (const auto& checkpoint : seen) {
    if (checkpoint.size == 0) continue;
    EXPECT_TRUE(tlog::verify_consistency(checkpoint.size, last.size, *(*log)->consistency(ctx, checkpoint.size),
                                         checkpoint.root, last.root))
        << checkpoint.size << " of " << last.size;
  }
  std::vector<std::string> in_log;
  ASSERT_TRUE(
      tlog::verify_log(tlog::files_below(files, "audit"), verifiers(), [&](std::uint64_t, BytesView entry) -> Result<> {
        const auto parsed = CRETO_TRY(parse_entry(as_text(entry)));
        in_log.push_back(parsed.record.id->to_string());
        return {};
      }));
  EXPECT_EQ(in_log, recorded);
}

TEST(AuditCrash, RefusesTheChangeWhereTheDiskIsFullAndGoesOnWhenThereIsRoom) {
  testing::TestDatabase store(testing::DatabaseKind::sqlite);
  auto db = store.open();
  testing::FaultFiles files;
  const Context ctx;
  auto log = std::move(*create_audit_log(*db, files, system_clock(), no_telemetry(), keys(),
                                         {.directory = "audit", .origin = origin, .sequence_in_background = false}));
  ASSERT_TRUE(log->log(ctx, sample(1)));
  files.set_disk_bytes_max(6'000);
  EXPECT_EQ(log->flush(ctx).error().kind(), ErrorKind::resource_exhausted);
  EXPECT_EQ(log->status(ctx)->size, 0u);
  EXPECT_EQ(log->status(ctx)->pending, 1u);
  files.set_disk_bytes_max(UINT64_MAX);
  ASSERT_TRUE(log->flush(ctx));
  EXPECT_EQ(log->status(ctx)->size, 1u);
}

TEST(AuditEntry, RoundTripsAndRefusesWhatItDoesNotKnow) {
  AuditRecord record = sample(5);
  record.id = AuditId::fresh(system_clock().now());
  record.signature = Signature{"ed25519", {9, 8}};
  const auto entry = *to_entry("org", record);
  const auto parsed = *parse_entry(entry);
  EXPECT_EQ(parsed.org, "org");
  EXPECT_EQ(*to_entry(parsed.org, parsed.record), entry);
  for (const char* bad : {"", "{}", "[]", R"({"type":"creto.audit.record"})", "\xff"})
    EXPECT_FALSE(parse_entry(bad)) << bad;
  EXPECT_FALSE(parse_entry(entry.substr(0, entry.size() - 1) + R"(,"unknown":1})"));
}

}  // namespace
}  // namespace creto::audit
