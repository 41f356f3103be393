#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <thread>

#include "creto/io/files.h"
#include "creto/io/idempotency.h"
#include "creto/io/no_waiting.h"
#include "creto/io/sql.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/postgres.h"

namespace creto::sql {
namespace {

using testing::TestDatabase;

constexpr Migration steps[] = {
    {1, "things", R"sql(
CREATE TABLE things (
  org TEXT NOT NULL,
  name TEXT NOT NULL,
  n BIGINT NOT NULL CHECK (n >= 0),
  weight DOUBLE PRECISION,
  body BYTEA,
  note TEXT,
  PRIMARY KEY (org, name)
);
-- a comment; with a semicolon
CREATE TABLE numbered (id {{serial}}, org TEXT NOT NULL, what TEXT NOT NULL DEFAULT 'a;b')
)sql"},
};

class SqlContract : public ::testing::TestWithParam<testing::DatabaseKind> {
 protected:
  SqlContract() { migrate_things(); }

  void migrate_things() {
    auto done = migrate(*db, "test", steps);
    ASSERT_TRUE(done) << done.error().to_string();
  }
  Result<> put(std::string_view name, std::int64_t n) {
    return write(*db, ctx, [&](Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec("INSERT INTO things (org, name, n) VALUES ($1, $2, $3)", {"o", name, n}));
      return {};
    });
  }
  std::int64_t count() {
    return *read(*db, ctx, [](Tx& tx) -> Result<std::int64_t> {
      return CRETO_TRY(tx.query("SELECT count(*) FROM things")).front().integer(0);
    });
  }

  testing::FakeClock clock;
  TestDatabase store{GetParam(), clock};
  std::unique_ptr<Database> db = store.open();
  Context ctx;
};

TEST_P(SqlContract, KeepsEveryTypeOfValue) {
  const Bytes blob{0, 1, 0xff, 0, 7};
  ASSERT_TRUE(write(*db, ctx, [&](Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("INSERT INTO things (org, name, n, weight, body, note) VALUES ($1, $2, $3, $4, $5, $6)",
                      {"o", "ünïcode 'quoted'", INT64_MAX, 0.1, blob, nullptr}));
    CRETO_TRY(tx.exec("INSERT INTO things (org, name, n, weight, body, note) VALUES ($1, $2, $3, $4, $5, $6)",
                      {"o", "empty", 0, -1e300, Bytes(), ""}));
    return {};
  }));
  const auto rows = *read(*db, ctx, [](Tx& tx) -> Result<Rows> {
    return tx.query("SELECT name, n, weight, body, note FROM things ORDER BY n DESC");
  });
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].text(0), "ünïcode 'quoted'");
  EXPECT_EQ(rows[0].integer(1), INT64_MAX);
  EXPECT_EQ(rows[0].real(2), 0.1);
  EXPECT_EQ(rows[0].bytes(3), blob);
  EXPECT_TRUE(rows[0].is_null(4));
  EXPECT_EQ(rows[1].real(2), -1e300);
  EXPECT_EQ(rows[1].bytes(3), Bytes());
  EXPECT_EQ(rows[1].text(4), "");
}

TEST_P(SqlContract, UsesAParameterTwiceAndOutOfOrder) {
  ASSERT_TRUE(put("a", 1));
  const auto rows = *read(*db, ctx, [](Tx& tx) -> Result<Rows> {
    return tx.query("SELECT name FROM things WHERE n = $2 AND (name = $1 OR note = $1)", {"a", 1});
  });
  EXPECT_EQ(rows.size(), 1u);
}

TEST_P(SqlContract, CountsChangedRows) {
  ASSERT_TRUE(put("a", 1));
  ASSERT_TRUE(put("b", 1));
  ASSERT_TRUE(write(*db, ctx, [&](Tx& tx) -> Result<> {
    EXPECT_EQ(*tx.exec("UPDATE things SET n = n + 1 WHERE n = $1", {1}), 2);
    EXPECT_EQ(*tx.exec("UPDATE things SET n = 0 WHERE n = $1", {77}), 0);
    EXPECT_EQ(*tx.exec("INSERT INTO things (org, name, n) VALUES ('o', 'a', 1) ON CONFLICT (org, name) DO NOTHING"), 0);
    EXPECT_EQ(tx.query("DELETE FROM things WHERE name = $1 RETURNING n", {"a"})->front().integer(0), 2);
    return {};
  }));
  EXPECT_EQ(count(), 1);
}

TEST_P(SqlContract, ReportsAUniqueViolationAsAlreadyExistsAndOtherConstraintsAsConflict) {
  ASSERT_TRUE(put("a", 1));
  const auto twice = put("a", 2);
  ASSERT_FALSE(twice);
  EXPECT_EQ(twice.error().kind(), ErrorKind::already_exists);
  EXPECT_EQ(twice.error().to_string().find("INSERT"), std::string::npos);
  EXPECT_EQ(twice.error().to_string().find("things"), std::string::npos);
  const auto negative = put("b", -1);
  ASSERT_FALSE(negative);
  EXPECT_EQ(negative.error().kind(), ErrorKind::conflict);
  EXPECT_EQ(count(), 1);
}

TEST_P(SqlContract, ChangesNothingWhereTheFunctionFails) {
  const auto failed = write(*db, ctx, [&](Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("INSERT INTO things (org, name, n) VALUES ('o', 'a', 1)"));
    return Error(Product::platform, ErrorKind::permission_denied, "no");
  });
  EXPECT_EQ(failed.error().kind(), ErrorKind::permission_denied);
  EXPECT_EQ(count(), 0);
}

TEST_P(SqlContract, WaitsForTheDiskUnlessTheCommitIsOnlyOrdered) {
  const bool sqlite = db->dialect() == Dialect::sqlite;
  const auto waits = [&](Durability durability) {
    std::string answer;
    const auto asked = [&](Tx& tx) -> Result<> {
      const auto rows = CRETO_TRY(tx.query(sqlite ? "PRAGMA synchronous" : "SHOW synchronous_commit"));
      answer = sqlite ? std::to_string(rows.front().integer(0)) : rows.front().text(0);
      CRETO_TRY(
          tx.exec("INSERT INTO things (org, name, n) VALUES ('o', 'a', 1) ON CONFLICT (org, name) DO UPDATE SET "
                  "n = things.n + 1"));
      return {};
    };
    const auto done = db->transaction(ctx, asked, {.durability = durability});
    EXPECT_TRUE(done) << done.error().to_string();
    return answer == (sqlite ? "2" : "on");
  };
  EXPECT_TRUE(waits(Durability::durable));
  EXPECT_FALSE(waits(Durability::ordered));
  EXPECT_TRUE(waits(Durability::durable));
  const auto refused = db->transaction(ctx,
                                       [&](Tx& tx) -> Result<> {
                                         CRETO_TRY(tx.exec("UPDATE things SET n = 77"));
                                         return Error(Product::platform, ErrorKind::conflict, "no");
                                       },
                                       {.durability = Durability::ordered});
  EXPECT_FALSE(refused);
  const auto n = read(*db, ctx, [](Tx& tx) -> Result<std::int64_t> {
    return CRETO_TRY(tx.query("SELECT n FROM things")).front().integer(0);
  });
  EXPECT_EQ(*n, 3);
}

TEST_P(SqlContract, DoesNotCommitAfterAStatementFailedEvenIfThatWasSwallowed) {
  ASSERT_TRUE(put("a", 1));
  const auto result = write(*db, ctx, [&](Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("INSERT INTO things (org, name, n) VALUES ('o', 'b', 1)"));
    EXPECT_FALSE(tx.exec("INSERT INTO things (org, name, n) VALUES ('o', 'a', 1)"));
    EXPECT_FALSE(tx.query("SELECT 1"));
    return {};
  });
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::already_exists);
  EXPECT_EQ(count(), 1);
}

TEST_P(SqlContract, UndoesOnlyTheSavepointThatFailed) {
  ASSERT_TRUE(put("a", 1));
  bool dropped = true;
  int kept = 0;
  ASSERT_TRUE(write(*db, ctx, [&](Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("INSERT INTO things (org, name, n) VALUES ('o', 'b', 1)"));
    const auto inner = tx.savepoint([&]() -> Result<> {
      tx.after_commit([&] { dropped = false; });
      CRETO_TRY(tx.exec("INSERT INTO things (org, name, n) VALUES ('o', 'c', 1)"));
      CRETO_TRY(tx.exec("INSERT INTO things (org, name, n) VALUES ('o', 'a', 1)"));
      return {};
    });
    EXPECT_EQ(inner.error().kind(), ErrorKind::already_exists);
    CRETO_TRY(tx.savepoint([&]() -> Result<> {
      tx.after_commit([&] { ++kept; });
      CRETO_TRY(tx.exec("INSERT INTO things (org, name, n) VALUES ('o', 'd', 1)"));
      return {};
    }));
    EXPECT_EQ(kept, 0);
    return {};
  }));
  EXPECT_EQ(count(), 3);
  EXPECT_TRUE(dropped);
  EXPECT_EQ(kept, 1);
}

TEST_P(SqlContract, RefusesTextThatIsNotUtf8OrHoldsNul) {
  for (const std::string& bad : {std::string("a\0b", 3), std::string("\xff\xfe")}) {
    const auto refused = put(bad, 1);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind(), ErrorKind::invalid_input);
  }
  EXPECT_EQ(count(), 0);
}

TEST_P(SqlContract, RefusesToWriteInARead) {
  EXPECT_FALSE(read(*db, ctx, [&](Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("INSERT INTO things (org, name, n) VALUES ('o', 'a', 1)"));
    return {};
  }));
  EXPECT_EQ(count(), 0);
}

TEST_P(SqlContract, ReadsOneSnapshot) {
  ASSERT_TRUE(put("a", 1));
  ASSERT_TRUE(read(*db, ctx, [&](Tx& tx) -> Result<> {
    EXPECT_EQ(tx.query("SELECT count(*) FROM things")->front().integer(0), 1);
    std::thread([&] { EXPECT_TRUE(put("b", 1)); }).join();
    EXPECT_EQ(tx.query("SELECT count(*) FROM things")->front().integer(0), 1);
    return {};
  }));
  EXPECT_EQ(count(), 2);
}

TEST_P(SqlContract, StopsAtTheDeadline) {
  ctx.deadline = clock.monotonic();
  const auto late = put("a", 1);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().kind(), ErrorKind::timeout);
  ctx.deadline = Monotonic::max();
  EXPECT_EQ(count(), 0);
}

TEST_P(SqlContract, GivesUpOnAThreadThatMustNotWait) {
  {
    io::NoWaiting here;
    EXPECT_EQ(put("a", 1).error().kind(), ErrorKind::unavailable);
    EXPECT_TRUE(here.given_up());
  }
  {
    io::NoWaiting here;
    EXPECT_FALSE(read(*db, ctx, [](Tx&) -> Result<> { return {}; }));
    EXPECT_TRUE(here.given_up());
    here.end();
    EXPECT_EQ(count(), 0);
  }
  EXPECT_TRUE(put("a", 1));
  EXPECT_EQ(count(), 1);
}

TEST_P(SqlContract, LosesNoIncrementOfMany) {
  ASSERT_TRUE(put("a", 0));
  std::vector<std::thread> threads;
  constexpr int each = 25;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < each; ++k) {
        Result<> done;
        do {
          done = write(*db, ctx, [&](Tx& tx) -> Result<> {
            const auto n = CRETO_TRY(tx.query("SELECT n FROM things WHERE name = 'a'")).front().integer(0);
            CRETO_TRY(tx.exec("UPDATE things SET n = $1 WHERE name = 'a'", {n + 1}));
            return {};
          });
        } while (!done && done.error().kind() == ErrorKind::unavailable);
        EXPECT_TRUE(done);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(read(*db, ctx, [](Tx& tx) { return tx.query("SELECT n FROM things"); })->front().integer(0), 4 * each);
}

TEST_P(SqlContract, KeepsWhatWasCommittedOverARestart) {
  ASSERT_TRUE(put("a", 1));
  db.reset();
  db = store.open();
  migrate_things();
  EXPECT_EQ(count(), 1);
}

TEST_P(SqlContract, RefusesAMigrationThatWasChangedAfterwards) {
  constexpr Migration edited[] = {{1, "things", "CREATE TABLE other (org TEXT NOT NULL PRIMARY KEY)"}};
  const auto result = migrate(*db, "test", edited);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::conflict);
}

TEST_P(SqlContract, RefusesADatabaseThatIsNewerThanTheProgram) {
  const auto result = migrate(*db, "test", {});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::conflict);
}

TEST_P(SqlContract, AppliesAStepOnceWhenManyMigrateAtOnce) {
  constexpr Migration step[] = {{1, "x", "CREATE TABLE x (org TEXT NOT NULL PRIMARY KEY)"}};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const auto done = migrate(*db, "many", step);
      EXPECT_TRUE(done) << done.error().to_string();
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST_P(SqlContract, LeavesNothingOfAMigrationThatFails) {
  constexpr Migration bad[] = {{1, "bad", "CREATE TABLE y (org TEXT NOT NULL PRIMARY KEY); CREATE TABEL z (a TEXT)"}};
  EXPECT_FALSE(migrate(*db, "bad", bad));
  constexpr Migration good[] = {{1, "good", "CREATE TABLE y (org TEXT NOT NULL PRIMARY KEY)"}};
  EXPECT_TRUE(migrate(*db, "bad", good));
}

INSTANTIATE_TEST_SUITE_P(, SqlContract, both_databases(), database_name);

class OnceContract : public SqlContract {
 protected:
  Result<std::string> call(std::string key, std::uint8_t content, bool fail = false) {
    ctx.idempotency_key = std::move(key);
    ctx.request_hash[0] = content;
    return write(*db, ctx, [&](Tx& tx) -> Result<std::string> {
      return io::once(
          tx, ctx, "make", std::chrono::hours(1),
          [&]() -> Result<std::string> {
            ++runs;
            if (fail) return Error(Product::platform, ErrorKind::conflict, "no");
            return "result " + std::to_string(runs);
          },
          [](const std::string& value) { return value; },
          [](std::string_view text) -> Result<std::string> { return std::string(text); });
    });
  }
  int runs = 0;
};

TEST_P(OnceContract, GivesTheFirstResultToARepeat) {
  EXPECT_EQ(*call("k", 1), "result 1");
  EXPECT_EQ(*call("k", 1), "result 1");
  EXPECT_EQ(*call("other", 1), "result 2");
  EXPECT_EQ(*call("", 1), "result 3");
  EXPECT_EQ(*call("", 1), "result 4");
}

TEST_P(OnceContract, RefusesTheSameKeyWithOtherContent) {
  ASSERT_TRUE(call("k", 1));
  const auto other = call("k", 2);
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().kind(), ErrorKind::conflict);
  EXPECT_EQ(runs, 1);
}

TEST_P(OnceContract, DoesNotRememberAFailure) {
  EXPECT_FALSE(call("k", 1, true));
  EXPECT_EQ(*call("k", 1), "result 2");
}

TEST_P(OnceContract, ForgetsWhenTheWindowHasPassed) {
  ASSERT_TRUE(call("k", 1));
  clock.advance(std::chrono::hours(2));
  EXPECT_EQ(*call("k", 2), "result 2");
  clock.advance(std::chrono::hours(2));
  EXPECT_EQ(*io::forget_expired(*db), 1);
}

TEST_P(OnceContract, KeepsCallersApart) {
  ctx.caller = *Identity::service("a");
  EXPECT_EQ(*call("k", 1), "result 1");
  ctx.caller = *Identity::service("b");
  EXPECT_EQ(*call("k", 2), "result 2");
}

TEST_P(OnceContract, WhatIsDoneElsewhereTiesItsKeyBeforeAndKeepsItsResultAfter) {
  ctx.idempotency_key = "k";
  const auto begin = [&](std::uint8_t content) {
    ctx.request_hash[0] = content;
    return write(*db, ctx, [&](Tx& tx) { return io::begin(tx, ctx, "tell", std::chrono::hours(1)); });
  };
  const auto is_conflict = [](const auto& result) { return !result && result.error().kind() == ErrorKind::conflict; };
  EXPECT_EQ(begin(1).value(), std::nullopt);
  EXPECT_EQ(begin(1).value(), std::nullopt) << "it ran into a crash: it runs again";
  EXPECT_TRUE(is_conflict(begin(2)));
  ASSERT_TRUE(write(*db, ctx, [&](Tx& tx) { return io::abandon(tx, ctx, "tell"); }));
  EXPECT_EQ(begin(2).value(), std::nullopt) << "nothing had happened";
  ASSERT_TRUE(write(*db, ctx, [&](Tx& tx) { return io::finish(tx, ctx, "tell", "told"); }));
  ASSERT_TRUE(write(*db, ctx, [&](Tx& tx) { return io::abandon(tx, ctx, "tell"); }));
  EXPECT_EQ(begin(2).value(), "told");
  EXPECT_TRUE(is_conflict(begin(1)));
}

TEST_P(OnceContract, RunsOneOfTwoAtOnce) {
  std::atomic<int> ran = 0;
  std::vector<std::thread> threads;
  std::vector<std::int64_t> seen(4);
  for (std::size_t i = 0; i < seen.size(); ++i) {
    threads.emplace_back([&, i] {
      Context mine;
      mine.idempotency_key = "same";
      Result<std::int64_t> result = Error(Product::platform, ErrorKind::unavailable, "");
      while (!result && result.error().kind() == ErrorKind::unavailable) {
        result = write(*db, mine, [&](Tx& tx) -> Result<std::int64_t> {
          return io::once(
              tx, mine, "insert", std::chrono::hours(1),
              [&]() -> Result<std::int64_t> {
                CRETO_TRY(tx.exec("INSERT INTO numbered (org) VALUES ('o')"));
                return CRETO_TRY(tx.query("SELECT count(*) FROM numbered")).front().integer(0);
              },
              [](std::int64_t n) { return std::to_string(n); },
              [](std::string_view text) -> Result<std::int64_t> { return std::stoll(std::string(text)); });
        });
      }
      ASSERT_TRUE(result) << result.error().to_string();
      seen[i] = *result;
      ++ran;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(ran, 4);
  EXPECT_EQ(seen, std::vector<std::int64_t>(4, 1));
}

INSTANTIATE_TEST_SUITE_P(, OnceContract, both_databases(), database_name);

TEST(Sqlite, TheJournalStaysBoundedUnderSteadyWrites) {
  creto::testing::TempDir directory;
  auto db = open_sqlite(directory / "x.db").value();
  ASSERT_TRUE(write(*db, {}, [](Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("CREATE TABLE heap (id BIGINT PRIMARY KEY, body BYTEA NOT NULL)"));
    return {};
  }));
  const Bytes body(64 << 10, 1);
  for (std::int64_t i = 0; i < 2'000; ++i) {
    ASSERT_TRUE(write(*db, {}, [&](Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec("INSERT INTO heap (id, body) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET body = $2",
                        {i % 100, body}));
      return {};
    }));
  }
  EXPECT_LT(std::filesystem::file_size(directory / "x.db-wal"), 70u << 20) << "of over 125 MiB that were written";
}

TEST(Sqlite, RefusesAFileThatIsNotOurs) {
  testing::TempDir directory;
  ASSERT_TRUE(io::write_durably(io::real_files(), directory / "x.db", as_bytes("certainly not a database, but text")));
  const auto opened = open_sqlite(directory / "x.db");
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().kind(), ErrorKind::invalid_input);
}

TEST(Sqlite, KeepsTheFileToItsOwner) {
  testing::TempDir directory;
  auto db = open_sqlite(directory / "x.db");
  ASSERT_TRUE(db);
  for (const char* name : {"x.db", "x.db-wal", "x.db-shm"}) {
    const auto permissions = std::filesystem::status(directory / name).permissions();
    EXPECT_EQ(permissions & std::filesystem::perms(0777), std::filesystem::perms(0600)) << name;
  }
}

Result<std::int64_t> ask(Database& db, std::string_view sql, const Context& ctx = {}) {
  return read(db, ctx, [&](Tx& tx) -> Result<std::int64_t> { return CRETO_TRY(tx.query(sql)).front().integer(0); });
}

TEST(Postgres, IsNotWaitedForWhileItIsAwayAndIsBackByItself) {
  creto::testing::OwnPostgres server;
  const auto db = open_postgres(server.fresh_database(), {.breaker = {.failure_threshold = 2,
                                                                      .reset_timeout = std::chrono::milliseconds(500),
                                                                      .half_open_requests = 1}})
                      .value();
  ASSERT_TRUE(write(*db, {}, [](Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("CREATE TABLE x (org BIGINT NOT NULL PRIMARY KEY)"));
    CRETO_TRY(tx.exec("INSERT INTO x (org) VALUES (7)"));
    return {};
  }));
  server.stop();
  bool open = false;
  const Monotonic begin = system_clock().monotonic();
  for (int i = 0; i < 500; ++i) {
    const auto answer = ask(*db, "SELECT org FROM x");
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().kind(), ErrorKind::unavailable);
    EXPECT_TRUE(answer.error().retryable());
    open = open || answer.error().retry_after().has_value();
  }
  EXPECT_TRUE(open) << "it says when it will look again";
  EXPECT_LT(system_clock().monotonic() - begin, std::chrono::seconds(5)) << "500 calls waited for it";

  server.start();
  const Monotonic back = system_clock().monotonic();
  auto answer = ask(*db, "SELECT org FROM x");
  while (!answer && system_clock().monotonic() - back < std::chrono::seconds(30))
    answer = ask(*db, "SELECT org FROM x");
  ASSERT_TRUE(answer) << answer.error().to_string();
  EXPECT_EQ(*answer, 7);
  EXPECT_TRUE(write(*db, {}, [](Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("INSERT INTO x (org) VALUES (8)"));
    return {};
  }));
}

TEST(Postgres, ARestartOfTheServerIsSeenByNoCallAfterIt) {
  creto::testing::OwnPostgres server;
  constexpr std::uint32_t connections = 16;
  const auto db = open_postgres(server.fresh_database(), {.connections_max = connections}).value();
  {
    // Each holds a connection until all have one, so that as many lie idle afterwards.
    std::barrier all(connections);
    std::vector<std::jthread> threads;
    for (std::uint32_t i = 0; i < connections; ++i)
      threads.emplace_back([&] {
        EXPECT_TRUE(read(*db, {}, [&](Tx& tx) -> Result<> {
          CRETO_TRY(tx.query("SELECT 1"));
          all.arrive_and_wait();
          return {};
        }));
      });
  }
  server.stop();
  server.start();
  for (int i = 0; i < 20; ++i) {
    const auto answer = ask(*db, "SELECT CAST(1 AS BIGINT)");
    ASSERT_TRUE(answer) << answer.error().to_string();
  }
}

TEST(Postgres, IsGivenUpWhereItDoesNotAnswerByTheDeadline) {
  const auto db = open_postgres(creto::testing::fresh_postgres_database()).value();
  Context ctx;
  const Monotonic begin = system_clock().monotonic();
  ctx.deadline = begin + std::chrono::milliseconds(200);
  const auto stuck = read(*db, ctx, [](Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("SET LOCAL statement_timeout = 0"));
    CRETO_TRY(tx.query("SELECT pg_sleep(60)"));
    return {};
  });
  ASSERT_FALSE(stuck);
  EXPECT_EQ(stuck.error().kind(), ErrorKind::timeout);
  EXPECT_LT(system_clock().monotonic() - begin, std::chrono::seconds(20));
  EXPECT_EQ(ask(*db, "SELECT CAST(1 AS BIGINT)").value(), 1) << "the others go on";
}

TEST(Postgres, NamesHostAndDatabaseButNoPasswordWhereItCannotConnect) {
  const auto opened = open_postgres("host=/nowhere dbname=creto password=geheim");
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().kind(), ErrorKind::unavailable);
  EXPECT_NE(opened.error().message().find("/nowhere"), std::string::npos);
  EXPECT_EQ(opened.error().to_string().find("geheim"), std::string::npos);
}

}  // namespace
}  // namespace creto::sql
