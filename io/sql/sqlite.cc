#include <fcntl.h>
#include <fmt/format.h>
#include <sqlite3.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <thread>
#include <unordered_map>

#include "creto/io/no_waiting.h"
#include "sql/base.h"

namespace creto::sql {
namespace {

using detail::failure;

// "CRET": a database of ours, so that no stranger's file is migrated by mistake.
constexpr std::int64_t application_id = 0x43524554;
constexpr std::size_t statements_max = 512;
constexpr int deadline_check_operations = 20'000;
// Pages of 4 KiB in the journal: from the first number on it is moved into the file in the background, from the second
// on, which only a disk that cannot follow lets it reach, by the writer itself.
constexpr int journal_pages = 1'000;
constexpr int journal_pages_max = 16'000;

struct Statement {
  sqlite3_stmt* handle = nullptr;
  std::vector<int> positions;  ///< of $1, $2, …; 0 where the text does not use it
};

struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

/// One connection with its prepared statements. Used by one thread at a time.
class Connection {
 public:
  Connection() = default;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() {
    drop_statements();
    sqlite3_close(handle_);
  }

  Result<> open(const std::filesystem::path& file, const SqliteOptions& options, bool writer) {
    telemetry_ = options.telemetry;
    clock_ = options.clock;
    const int code = sqlite3_open_v2(file.c_str(), &handle_, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, nullptr);
    if (code != SQLITE_OK) return error(code, "open");
    sqlite3_extended_result_codes(handle_, 1);
    sqlite3_busy_timeout(
        handle_, static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(options.busy_timeout).count()));
    CRETO_TRY(
        script("PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;"
               "PRAGMA synchronous = FULL;"));
    if (!writer) return script("PRAGMA query_only = ON");
    return {};
  }

  Result<> script(const char* sql) {
    const int code = sqlite3_exec(handle_, sql, nullptr, nullptr, nullptr);
    if (code != SQLITE_OK) return error(code, sql);
    return {};
  }

  Result<std::int64_t> scalar(const char* sql) {
    sqlite3_stmt* statement = nullptr;
    int code = sqlite3_prepare_v2(handle_, sql, -1, &statement, nullptr);
    if (code == SQLITE_OK) code = sqlite3_step(statement);
    std::int64_t value = 0;
    if (code == SQLITE_ROW) value = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    if (code != SQLITE_ROW && code != SQLITE_DONE) return error(code, sql);
    return value;
  }

  /// `changed` counts rows; `busy` is set where repeating the transaction may help.
  Result<Rows> run(std::string_view sql, std::span<const Value> parameters, std::int64_t& changed, bool& busy) {
    auto* statement = CRETO_TRY(prepare(sql));
    CRETO_TRY(bind(*statement, parameters));
    const std::int64_t before = sqlite3_total_changes64(handle_);
    const int columns = sqlite3_column_count(statement->handle);
    std::vector<Value> cells;
    int code = 0;
    while ((code = sqlite3_step(statement->handle)) == SQLITE_ROW) {
      for (int i = 0; i < columns; ++i) cells.push_back(cell(statement->handle, i));
    }
    sqlite3_reset(statement->handle);
    sqlite3_clear_bindings(statement->handle);
    if (code != SQLITE_DONE) {
      busy = (code & 0xff) == SQLITE_BUSY || (code & 0xff) == SQLITE_LOCKED;
      return error(code, sql);
    }
    changed = sqlite3_total_changes64(handle_) == before ? 0 : sqlite3_changes64(handle_);
    return Rows(static_cast<std::size_t>(columns), std::move(cells));
  }

  /// A statement that runs longer is interrupted.
  void set_deadline(Monotonic deadline) {
    deadline_ = deadline;
    if (deadline == Monotonic::max()) {
      sqlite3_progress_handler(handle_, 0, nullptr, nullptr);
    } else {
      sqlite3_progress_handler(
          handle_, deadline_check_operations,
          [](void* self) {
            const auto* connection = static_cast<const Connection*>(self);
            return connection->clock_->monotonic() >= connection->deadline_ ? 1 : 0;
          },
          this);
    }
  }

  /// Has `hook` called with the journal's pages after each commit, instead of SQLite's own checkpoints.
  void watch_journal(int (*hook)(void*, sqlite3*, const char*, int), void* argument) {
    sqlite3_wal_hook(handle_, hook, argument);
  }

  /// Moves as much of the journal into the file as can be moved without waiting for anybody.
  Result<> checkpoint() {
    const int code = sqlite3_wal_checkpoint_v2(handle_, nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr);
    if (code != SQLITE_OK && (code & 0xff) != SQLITE_BUSY) return error(code, "checkpoint");
    return {};
  }

  bool in_transaction() const { return sqlite3_get_autocommit(handle_) == 0; }

  Error error(int code, std::string_view sql) const {
    const char* detail = handle_ ? sqlite3_errmsg(handle_) : sqlite3_errstr(code);
    telemetry_->log(LogLevel::warn, "io", "sqlite_error", nullptr,
                    {{"code", code}, {"detail", detail}, {"sql", sql.substr(0, 200)}});
    switch (code & 0xff) {
      case SQLITE_CONSTRAINT:
        if (code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY ||
            code == SQLITE_CONSTRAINT_ROWID) {
          return failure(ErrorKind::already_exists, "it already exists");
        }
        return failure(ErrorKind::conflict, "the state does not permit it");
      case SQLITE_BUSY:
      case SQLITE_LOCKED:
        return failure(ErrorKind::unavailable, "the database is busy");
      case SQLITE_FULL:
        return failure(ErrorKind::resource_exhausted, "the disk is full");
      case SQLITE_INTERRUPT:
        return failure(ErrorKind::timeout, "the deadline passed in the database");
      case SQLITE_TOOBIG:
        return failure(ErrorKind::too_large, "a value is too large for the database");
      case SQLITE_NOTADB:
        return failure(ErrorKind::invalid_input, "the file is not a database of ours");
      case SQLITE_IOERR:
      case SQLITE_CANTOPEN:
      case SQLITE_NOMEM:
        return failure(ErrorKind::unavailable, "the database cannot read or write its file");
      default:
        return failure(ErrorKind::internal, "the database refused a statement");
    }
  }

 private:
  Result<Statement*> prepare(std::string_view sql) {
    if (auto found = statements_.find(sql); found != statements_.end()) return &found->second;
    if (statements_.size() >= statements_max) drop_statements();
    Statement statement;
    const char* rest = nullptr;
    const int code = sqlite3_prepare_v3(handle_, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT,
                                        &statement.handle, &rest);
    if (code != SQLITE_OK) return error(code, sql);
    CRETO_ASSERT(statement.handle != nullptr);
    const int count = sqlite3_bind_parameter_count(statement.handle);
    for (int i = 1; i <= count; ++i) {
      const char* name = sqlite3_bind_parameter_name(statement.handle, i);
      CRETO_ASSERT(name != nullptr && name[0] == '$');
      const auto number = static_cast<std::size_t>(std::strtoul(name + 1, nullptr, 10));
      CRETO_ASSERT(number >= 1 && number <= 999);
      if (statement.positions.size() < number) statement.positions.resize(number, 0);
      statement.positions[number - 1] = i;
    }
    return &statements_.emplace(std::string(sql), std::move(statement)).first->second;
  }

  Result<> bind(Statement& statement, std::span<const Value> parameters) {
    CRETO_ASSERT(statement.positions.size() == parameters.size());
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const int position = statement.positions[i];
      CRETO_ASSERT(position != 0);
      const int code = std::visit(
          [&](const auto& value) {
            using T = std::decay_t<decltype(value)>;
            if constexpr (std::same_as<T, std::nullptr_t>) {
              return sqlite3_bind_null(statement.handle, position);
            } else if constexpr (std::same_as<T, std::int64_t>) {
              return sqlite3_bind_int64(statement.handle, position, value);
            } else if constexpr (std::same_as<T, double>) {
              return sqlite3_bind_double(statement.handle, position, value);
            } else if constexpr (std::same_as<T, std::string>) {
              return sqlite3_bind_text64(statement.handle, position, value.data(), value.size(), SQLITE_STATIC,
                                         SQLITE_UTF8);
            } else {
              // A null pointer would bind NULL instead of an empty blob.
              static const std::uint8_t nothing = 0;
              return sqlite3_bind_blob64(statement.handle, position, value.empty() ? &nothing : value.data(),
                                         value.size(), SQLITE_STATIC);
            }
          },
          parameters[i].variant());
      if (code != SQLITE_OK) return error(code, "bind");
    }
    return {};
  }

  static Value cell(sqlite3_stmt* statement, int column) {
    switch (sqlite3_column_type(statement, column)) {
      case SQLITE_INTEGER:
        return Value(static_cast<std::int64_t>(sqlite3_column_int64(statement, column)));
      case SQLITE_FLOAT:
        return Value(sqlite3_column_double(statement, column));
      case SQLITE_TEXT: {
        const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement, column));
        return Value(std::string(text, static_cast<std::size_t>(sqlite3_column_bytes(statement, column))));
      }
      case SQLITE_BLOB: {
        const auto* bytes = static_cast<const std::uint8_t*>(sqlite3_column_blob(statement, column));
        return Value(Bytes(bytes, bytes + sqlite3_column_bytes(statement, column)));
      }
      default:
        return Value();
    }
  }

  void drop_statements() {
    for (auto& [sql, statement] : statements_) sqlite3_finalize(statement.handle);
    statements_.clear();
  }

  sqlite3* handle_ = nullptr;
  Telemetry* telemetry_ = nullptr;
  const Clock* clock_ = nullptr;
  Monotonic deadline_ = Monotonic::max();
  std::unordered_map<std::string, Statement, TextHash, std::equal_to<>> statements_;
};

class SqliteTx final : public detail::BaseTx {
 public:
  SqliteTx(Database& database, Connection& connection, Instant now) : BaseTx(database, now), connection_(connection) {}

 protected:
  Result<Outcome> execute(std::string_view sql, std::span<const Value> parameters) override {
    Outcome outcome;
    bool busy = false;
    auto rows = connection_.run(sql, parameters, outcome.changed, busy);
    if (!rows) {
      if (busy) set_must_repeat();
      return std::move(rows).error();
    }
    outcome.rows = std::move(*rows);
    return outcome;
  }

 private:
  Connection& connection_;
};

/// First come, first served, until a deadline: a mutex alone may starve a writer.
class Turnstile {
 public:
  bool enter(Nanos timeout) {
    std::unique_lock lock(mutex_);
    const std::uint64_t ticket = next_++;
    waiting_.push_back(ticket);
    const bool mine = changed_.wait_for(lock, timeout, [&] { return !taken_ && waiting_.front() == ticket; });
    std::erase(waiting_, ticket);
    if (mine) {
      taken_ = true;
    } else {
      changed_.notify_all();
    }
    return mine;
  }
  void leave() {
    {
      std::lock_guard lock(mutex_);
      taken_ = false;
    }
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::uint64_t> waiting_;
  std::uint64_t next_ = 0;
  bool taken_ = false;
};

class SqliteDatabase final : public detail::BaseDatabase {
 public:
  SqliteDatabase(std::filesystem::path file, SqliteOptions options) : file_(std::move(file)), options_(options) {}
  ~SqliteDatabase() override {
    {
      std::lock_guard lock(journal_mutex_);
      stopping_ = true;
    }
    journal_grew_.notify_all();
    if (checkpoints_.joinable()) checkpoints_.join();
  }

  Result<> open() {
    CRETO_TRY(create_file());
    CRETO_TRY(writer_.open(file_, options_, true));
    if (CRETO_TRY(writer_.scalar("PRAGMA application_id")) != application_id) {
      if (CRETO_TRY(writer_.scalar("SELECT count(*) FROM sqlite_schema")) != 0) {
        return failure(ErrorKind::invalid_input, fmt::format("`{}` is not a database of ours", file_.string()));
      }
      CRETO_TRY(writer_.script(fmt::format("PRAGMA application_id = {}", application_id).c_str()));
    }
    CRETO_TRY(writer_.script("PRAGMA journal_mode = WAL"));
    CRETO_TRY(mover_.open(file_, options_, true));
    writer_.watch_journal(
        [](void* self, sqlite3*, const char*, int pages) {
          static_cast<SqliteDatabase*>(self)->after_commit(pages);
          return SQLITE_OK;
        },
        this);
    checkpoints_ = std::thread([this] { move_journal(); });
    return {};
  }

  using Database::transaction;
  Result<> transaction(const Context& ctx, const TxFunction& fn, const TransactionOptions& options) override {
    if (io::NoWaiting::forbids()) return detail::must_not_wait();
    detail::Inside inside(this);
    const Nanos patience = std::min(options_.busy_timeout, remaining(ctx));
    if (patience <= Nanos::zero()) return failure(ErrorKind::timeout, "the deadline passed");
    if (!turnstile_.enter(patience)) {
      if (ctx.expired(*options_.clock)) return failure(ErrorKind::timeout, "the deadline passed");
      return failure(ErrorKind::unavailable, "the database is busy");
    }
    SqliteTx tx(*this, writer_, options_.clock->now());
    auto result = attempt(ctx, fn, tx, options.durability);
    turnstile_.leave();
    if (result) {
      actions_of(tx);
    }
    return result;
  }

  Result<> read(const Context& ctx, const TxFunction& fn) override {
    if (io::NoWaiting::forbids()) return detail::must_not_wait();
    detail::Inside inside(this);
    if (ctx.expired(*options_.clock)) return failure(ErrorKind::timeout, "the deadline passed");
    auto connection = CRETO_TRY(take_reader());
    connection->set_deadline(ctx.deadline);
    SqliteTx tx(*this, *connection, options_.clock->now());
    auto result = connection->script("BEGIN");
    if (result) result = tx.run(fn);
    connection->set_deadline(Monotonic::max());
    if (connection->in_transaction()) {
      if (auto ended = connection->script("ROLLBACK"); !ended && result) result = std::move(ended);
    }
    std::lock_guard lock(readers_mutex_);
    if (readers_.size() < options_.readers_max) readers_.push_back(std::move(connection));
    return result;
  }

  Dialect dialect() const override { return Dialect::sqlite; }
  const Clock& clock() const override { return *options_.clock; }

 private:
  Nanos remaining(const Context& ctx) const {
    if (ctx.deadline == Monotonic::max()) return Nanos::max();
    return ctx.deadline - options_.clock->monotonic();
  }

  /// SQLite would create it with the umask's permissions; its -wal and -shm take over those of the file.
  Result<> create_file() {
    const int descriptor = ::open(file_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (descriptor < 0) {
      return failure(errno == ENOSPC || errno == EDQUOT ? ErrorKind::resource_exhausted : ErrorKind::unavailable,
                     fmt::format("cannot open `{}`: {}", file_.string(), std::strerror(errno)));
    }
    ::close(descriptor);
    auto directory = file_.parent_path();
    if (directory.empty()) directory = ".";
    const int parent = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool synced = parent >= 0 && ::fsync(parent) == 0;
    const int why = errno;
    if (parent >= 0) ::close(parent);
    if (synced) return {};
    return failure(ErrorKind::unavailable, fmt::format("cannot sync `{}`: {}", directory.string(), std::strerror(why)));
  }

  Result<> attempt(const Context& ctx, const TxFunction& fn, SqliteTx& tx, Durability durability) {
    // With the journal in WAL mode, the next commit that is FULL syncs those before it too.
    if (durability != durability_) {
      CRETO_TRY(writer_.script(durability == Durability::durable ? "PRAGMA synchronous = FULL"
                                                                 : "PRAGMA synchronous = NORMAL"));
      durability_ = durability;
    }
    CRETO_TRY(writer_.script("BEGIN IMMEDIATE"));
    writer_.set_deadline(ctx.deadline);
    Result<> result;
    try {
      result = tx.run(fn);
    } catch (...) {
      writer_.set_deadline(Monotonic::max());
      static_cast<void>(writer_.script("ROLLBACK"));
      turnstile_.leave();
      throw;
    }
    writer_.set_deadline(Monotonic::max());
    if (result) {
      tx.crash_point().before_commit();
      result = writer_.script("COMMIT");
      if (result) tx.crash_point().after_commit();
    }
    if (writer_.in_transaction()) {
      if (auto undone = writer_.script("ROLLBACK"); !undone && result) result = std::move(undone);
    }
    return result;
  }

  static void actions_of(SqliteTx& tx) { tx.run_actions(); }

  /// On the writer's connection, behind a commit.
  void after_commit(int pages) {
    if (pages < journal_pages) return;
    if (pages >= journal_pages_max) note(writer_.checkpoint());
    {
      std::lock_guard lock(journal_mutex_);
      journal_is_long_ = true;
    }
    journal_grew_.notify_one();
  }

  /// A commit costs one write to the journal; what moving it into the file costs, no commit waits for.
  void move_journal() {
    std::unique_lock lock(journal_mutex_);
    while (true) {
      journal_grew_.wait(lock, [&] { return stopping_ || journal_is_long_; });
      if (stopping_) return;
      journal_is_long_ = false;
      lock.unlock();
      note(mover_.checkpoint());
      // The journal begins anew only where all of it is moved: what was written meanwhile is moved before the next
      // commit.
      if (turnstile_.enter(options_.busy_timeout)) {
        note(mover_.checkpoint());
        turnstile_.leave();
      }
      lock.lock();
    }
  }

  void note(const Result<>& moved) {
    if (!moved) options_.telemetry->warn("io", "sqlite_checkpoint_failed", {{"error", moved.error().to_string()}});
  }

  Result<std::unique_ptr<Connection>> take_reader() {
    {
      std::lock_guard lock(readers_mutex_);
      if (!readers_.empty()) {
        auto connection = std::move(readers_.back());
        readers_.pop_back();
        return connection;
      }
    }
    auto connection = std::make_unique<Connection>();
    CRETO_TRY(connection->open(file_, options_, false));
    return connection;
  }

  const std::filesystem::path file_;
  const SqliteOptions options_;
  Turnstile turnstile_;
  Connection writer_;                            // guarded by turnstile_
  Durability durability_ = Durability::durable;  // of the writer's commits; guarded by turnstile_
  Connection mover_;                             // of the thread `checkpoints_`
  std::mutex journal_mutex_;
  std::condition_variable journal_grew_;
  bool journal_is_long_ = false;
  bool stopping_ = false;
  std::thread checkpoints_;
  std::mutex readers_mutex_;
  std::vector<std::unique_ptr<Connection>> readers_;  // idle ones
};

}  // namespace

Result<std::unique_ptr<Database>> open_sqlite(const std::filesystem::path& file, SqliteOptions options) {
  auto database = std::make_unique<SqliteDatabase>(file, options);
  CRETO_TRY(database->open());
  CRETO_TRY(detail::migrate_io(*database));
  return std::unique_ptr<Database>(std::move(database));
}

}  // namespace creto::sql
