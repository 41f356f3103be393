#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>

#include "creto/io/sql.h"
#include "sql/crash_point.h"

namespace creto::sql::detail {

Error failure(ErrorKind kind, std::string_view message);
/// What a database says on a thread of io::NoWaiting.
Error must_not_wait();

class ConditionSignal final : public Signal {
 public:
  void raise() override;
  std::uint64_t count() const override;
  void wait(std::uint64_t seen, Nanos timeout) override;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t count_ = 0;
};

/// What both databases' transactions share: refusing bad parameters, the doom after a failed statement, savepoints and
/// the actions after the commit.
class BaseTx : public Tx {
 public:
  BaseTx(Database& database, Instant now) : database_(database), now_(now) {}

  using Tx::exec;
  using Tx::query;
  Result<Rows> query(std::string_view sql, std::span<const Value> parameters) final;
  Result<std::int64_t> exec(std::string_view sql, std::span<const Value> parameters) final;
  Result<> savepoint(const std::function<Result<>()>& fn) final;
  void after_commit(std::function<void()> action) final { actions_.push_back(std::move(action)); }
  Instant now() const final { return now_; }
  Database& database() final { return database_; }
  Dialect dialect() const final { return database_.dialect(); }

  /// Runs `fn`; an error of a statement counts even where `fn` swallowed it.
  Result<> run(const TxFunction& fn);
  /// Whether the whole function should run again: nothing is committed and the failure may pass.
  bool must_repeat() const { return must_repeat_; }
  void run_actions();
  const CrashPoint& crash_point() const { return crash_point_; }

 protected:
  struct Outcome {
    Rows rows;
    std::int64_t changed = 0;
  };
  virtual Result<Outcome> execute(std::string_view sql, std::span<const Value> parameters) = 0;
  void set_must_repeat() { must_repeat_ = true; }

 private:
  Result<Outcome> checked(std::string_view sql, std::span<const Value> parameters);

  Database& database_;
  Instant now_;
  std::optional<Error> doom_;
  bool must_repeat_ = false;
  int depth_ = 0;
  std::vector<std::function<void()>> actions_;
  CrashPoint crash_point_;
};

/// Marks this thread as being inside a transaction of `database`; asserts that it was not.
class Inside {
 public:
  explicit Inside(const Database* database);
  ~Inside();
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
};

class BaseDatabase : public Database {
 public:
  Signal& signal(std::string_view name) final;

 private:
  std::mutex signals_mutex_;
  std::map<std::string, std::unique_ptr<ConditionSignal>, std::less<>> signals_;
};

/// Brings the tables of io to date; called by both open functions.
Result<> migrate_io(Database& db);

}  // namespace creto::sql::detail
