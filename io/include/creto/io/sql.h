#pragma once

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "creto/common/assert.h"
#include "creto/common/bytes.h"
#include "creto/common/circuit_breaker.h"
#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/result.h"
#include "creto/common/telemetry.h"

/// State in SQL, the same text for SQLite (embedded) and PostgreSQL (scaled out).
///
/// What both understand is what we write: parameters `$1`, `$2`, …; the types TEXT, BIGINT, BYTEA, DOUBLE PRECISION;
/// ON CONFLICT and RETURNING. Booleans are BIGINT 0/1, times BIGINT Unix nanoseconds, JSON is TEXT. PostgreSQL's
/// sum(BIGINT) is NUMERIC: write CAST(sum(x) AS BIGINT). Every table has `org TEXT NOT NULL` first in its primary key.
namespace creto::sql {

enum class Dialect : std::uint8_t { sqlite, postgres };

/// One parameter or one cell.
class Value {
 public:
  // NOLINTBEGIN(google-explicit-constructor): parameters are given as what they are
  Value(std::nullptr_t = nullptr) {}
  template <std::integral T>
    requires(sizeof(T) <= sizeof(std::int64_t) && !std::same_as<T, std::uint64_t>)
  Value(T value) : value_(static_cast<std::int64_t>(value)) {}
  Value(double value) : value_(value) {}
  Value(std::string value) : value_(std::move(value)) {}
  Value(std::string_view value) : value_(std::string(value)) {}
  Value(const char* value) : value_(std::string(value)) {}
  Value(Bytes value) : value_(std::move(value)) {}
  Value(BytesView value) : value_(Bytes(value.begin(), value.end())) {}
  template <std::size_t N>
  Value(const ByteArray<N>& value) : value_(Bytes(value.begin(), value.end())) {}
  Value(Instant value) : value_(unix_ns(value)) {}
  template <class T>
  Value(const std::optional<T>& value) {
    if (value) *this = Value(*value);
  }
  // NOLINTEND(google-explicit-constructor)

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  const std::variant<std::nullptr_t, std::int64_t, double, std::string, Bytes>& variant() const { return value_; }
  friend bool operator==(const Value&, const Value&) = default;

 private:
  std::variant<std::nullptr_t, std::int64_t, double, std::string, Bytes> value_{nullptr};
};

/// One row of a result; columns count from 0 in the order of the SELECT or RETURNING list. Valid as long as its Rows.
/// Requires: the column exists and has the type asked for (our SQL, so anything else is our bug).
class Row {
 public:
  explicit Row(std::span<const Value> cells) : cells_(cells) {}

  std::size_t size() const { return cells_.size(); }
  bool is_null(std::size_t column) const { return cell(column).is_null(); }
  const std::string& text(std::size_t column) const { return get<std::string>(column); }
  std::int64_t integer(std::size_t column) const { return get<std::int64_t>(column); }
  bool boolean(std::size_t column) const { return integer(column) != 0; }
  double real(std::size_t column) const { return get<double>(column); }
  const Bytes& bytes(std::size_t column) const { return get<Bytes>(column); }
  Instant instant(std::size_t column) const { return from_unix_ns(integer(column)); }

  std::optional<std::string> optional_text(std::size_t column) const { return optional<std::string>(column); }
  std::optional<std::int64_t> optional_integer(std::size_t column) const { return optional<std::int64_t>(column); }
  std::optional<Bytes> optional_bytes(std::size_t column) const { return optional<Bytes>(column); }
  std::optional<Instant> optional_instant(std::size_t column) const {
    if (is_null(column)) return std::nullopt;
    return instant(column);
  }

 private:
  const Value& cell(std::size_t column) const {
    CRETO_ASSERT(column < cells_.size());
    return cells_[column];
  }
  template <class T>
  const T& get(std::size_t column) const {
    const T* value = std::get_if<T>(&cell(column).variant());
    CRETO_ASSERT(value != nullptr);
    return *value;
  }
  template <class T>
  std::optional<T> optional(std::size_t column) const {
    if (is_null(column)) return std::nullopt;
    return get<T>(column);
  }
  std::span<const Value> cells_;
};

/// A whole result in memory: LIMIT what may be long.
class Rows {
 public:
  class Iterator {
   public:
    Iterator(const Rows* rows, std::size_t index) : rows_(rows), index_(index) {}
    Row operator*() const { return (*rows_)[index_]; }
    Iterator& operator++() {
      ++index_;
      return *this;
    }
    friend bool operator==(const Iterator&, const Iterator&) = default;

   private:
    const Rows* rows_;
    std::size_t index_;
  };

  Rows() = default;
  Rows(std::size_t columns, std::vector<Value> cells) : columns_(columns), cells_(std::move(cells)) {}

  bool empty() const { return cells_.empty(); }
  std::size_t size() const { return columns_ == 0 ? 0 : cells_.size() / columns_; }
  Row operator[](std::size_t index) const {
    CRETO_ASSERT(index < size());
    return Row(std::span(cells_).subspan(index * columns_, columns_));
  }
  Row front() const { return (*this)[0]; }
  Iterator begin() const { return {this, 0}; }
  Iterator end() const { return {this, size()}; }

 private:
  std::size_t columns_ = 0;
  std::vector<Value> cells_;
};

class Database;

/// One attempt of one transaction; lives only during the function it is passed to, on that function's thread.
///
/// A statement that fails outside a savepoint dooms the transaction on both databases: later statements return the same
/// error and nothing commits. So ask with ON CONFLICT instead of trying and catching.
class Tx {
 public:
  virtual ~Tx() = default;

  /// Runs one statement and returns its rows.
  ///
  /// Errors (the same for `exec`):
  ///   already_exists      a UNIQUE or PRIMARY KEY constraint
  ///   conflict            a FOREIGN KEY, CHECK or NOT NULL constraint
  ///   resource_exhausted  the disk is full
  ///   timeout             the context's deadline passed
  ///   invalid_input       a text that is not UTF-8 or contains NUL, a number that is not finite
  ///   too_large           a value over the database's limit
  ///   unavailable         busy, serialization failure, lost connection; `transaction` repeats before it gives up
  ///   internal            anything else; the SQL text and the database's message are only logged
  Result<Rows> query(std::string_view sql, std::initializer_list<Value> parameters) {
    return query(sql, std::span(parameters.begin(), parameters.size()));
  }
  virtual Result<Rows> query(std::string_view sql, std::span<const Value> parameters = {}) = 0;

  /// Runs one statement and returns how many rows it changed.
  Result<std::int64_t> exec(std::string_view sql, std::initializer_list<Value> parameters) {
    return exec(sql, std::span(parameters.begin(), parameters.size()));
  }
  virtual Result<std::int64_t> exec(std::string_view sql, std::span<const Value> parameters = {}) = 0;

  /// Runs `fn`; where it fails, what it changed is undone and the transaction goes on. Returns what `fn` returned.
  virtual Result<> savepoint(const std::function<Result<>()>& fn) = 0;

  /// Runs `action` on this thread once the commit is durable; never where the transaction does not commit. Must not
  /// use the database. In a savepoint that is undone, the action is dropped too.
  virtual void after_commit(std::function<void()> action) = 0;

  /// When this attempt began, by the database's clock. The same for the whole attempt.
  virtual Instant now() const = 0;

  virtual Database& database() = 0;
  virtual Dialect dialect() const = 0;
};

using TxFunction = std::function<Result<>(Tx&)>;

enum class Isolation : std::uint8_t {
  serializable,    ///< as if transactions ran one after the other
  read_committed,  ///< for appending and for single-row compare-and-set; fewer repeats on PostgreSQL, same on SQLite
};

/// What a commit waits for.
enum class Durability : std::uint8_t {
  durable,  ///< the disk
  ordered,  ///< nothing: a power cut may undo it, but only with all that was committed after it. For bookkeeping that
            ///< is done again where it is lost
};

struct TransactionOptions {
  Isolation isolation = Isolation::serializable;
  Durability durability = Durability::durable;
};

/// Wakes a thread that waits for rows of another. In-process: whoever waits for other processes' rows also polls.
class Signal {
 public:
  virtual ~Signal() = default;
  virtual void raise() = 0;
  virtual std::uint64_t count() const = 0;
  /// Returns when `count()` differs from `seen` or after `timeout`.
  virtual void wait(std::uint64_t seen, Nanos timeout) = 0;
};

/// Thread-safe. Not to be entered again on a thread that is inside one of its transactions (asserted). On a thread that
/// must not wait (io::NoWaiting) both calls give up: `unavailable`.
class Database {
 public:
  virtual ~Database() = default;

  /// Runs `fn` in a read-write transaction and commits if it succeeds; when this returns success, the change is
  /// durable, unless `options` ask for less. `fn` runs again after a serialization failure or a busy database, so it
  /// has no side effects but through `after_commit`.
  ///
  /// Errors: what `fn` or `Tx::query` returns; nothing was changed. `unavailable` after the repeats are used up; where
  /// the connection broke during the commit itself it may have happened, so repeat only what is idempotent.
  virtual Result<> transaction(const Context& ctx, const TxFunction& fn, const TransactionOptions& options) = 0;
  Result<> transaction(const Context& ctx, const TxFunction& fn) { return transaction(ctx, fn, {}); }

  /// Runs `fn` on one consistent snapshot. Writing in it is an error. Never waits for writers.
  virtual Result<> read(const Context& ctx, const TxFunction& fn) = 0;

  virtual Dialect dialect() const = 0;
  virtual const Clock& clock() const = 0;

  /// The signal of that name, the same object at each call; lives as long as the database.
  virtual Signal& signal(std::string_view name) = 0;
};

/// `transaction` for functions that return a value: `auto usage = CRETO_TRY(sql::write(db, ctx, [&](sql::Tx& tx)
/// -> Result<Usage> { … }));`
template <class F>
auto write(Database& db, const Context& ctx, F&& fn) -> std::invoke_result_t<F&, Tx&> {
  using R = std::invoke_result_t<F&, Tx&>;
  if constexpr (std::same_as<R, Result<>>) {
    return db.transaction(ctx, std::forward<F>(fn));
  } else {
    std::optional<R> result;
    auto done = db.transaction(ctx, [&](Tx& tx) -> Result<> {
      result.emplace(fn(tx));
      if (!*result) return Error(result->error());
      return {};
    });
    if (!done) return std::move(done).error();
    return std::move(*result);
  }
}

/// `Database::read` for functions that return a value.
template <class F>
auto read(Database& db, const Context& ctx, F&& fn) -> std::invoke_result_t<F&, Tx&> {
  using R = std::invoke_result_t<F&, Tx&>;
  if constexpr (std::same_as<R, Result<>>) {
    return db.read(ctx, std::forward<F>(fn));
  } else {
    std::optional<R> result;
    auto done = db.read(ctx, [&](Tx& tx) -> Result<> {
      result.emplace(fn(tx));
      if (!*result) return Error(result->error());
      return {};
    });
    if (!done) return std::move(done).error();
    return std::move(*result);
  }
}

struct SqliteOptions {
  std::uint32_t readers_max = 4;                  ///< connections for `read`; opened when needed
  Nanos busy_timeout = std::chrono::seconds(10);  ///< for another process' lock, and for our own writers' queue
  const Clock* clock = &system_clock();
  Telemetry* telemetry = &no_telemetry();  ///< gets the database's own messages; callers never do
};

/// A file of its own (mode 0600, with `-wal` and `-shm` beside it); created where absent. Journal in WAL mode,
/// synchronous FULL: a commit that returned survives kill -9 and power loss. One writer at a time.
/// Also brings the tables of io itself (idempotency, outbox, bus) to date.
/// Errors: invalid_input (not a database of ours), unavailable, resource_exhausted.
Result<std::unique_ptr<Database>> open_sqlite(const std::filesystem::path& file, SqliteOptions options = {});

struct PostgresOptions {
  std::uint32_t connections_max = 8;
  std::uint32_t attempts_max = 10;                   ///< runs of one transaction's function, the first included
  Nanos acquire_timeout = std::chrono::seconds(10);  ///< to wait for a free connection
  /// To wait for a new one, in whole seconds from 2 on; where `conninfo` says nothing else.
  Nanos connect_timeout = std::chrono::seconds(5);
  /// While it cannot be connected to, calls fail at once, and one at a time looks whether it is back.
  CircuitBreakerOptions breaker = {
      .failure_threshold = 3, .reset_timeout = std::chrono::seconds(1), .half_open_requests = 1};
  const Clock* clock = &system_clock();
  Telemetry* telemetry = &no_telemetry();
};

/// `conninfo` is libpq's ("host=… dbname=…"). Connects once at open to fail early. Lost connections are replaced. A
/// database that is away makes calls `unavailable`, soon and without a thread that waits for it, until it is back. A
/// server that does not answer by the call's deadline is given up a second later, and its connection with it.
/// Also brings the tables of io itself to date.
/// Errors: unavailable, naming host and database but no password.
Result<std::unique_ptr<Database>> open_postgres(const std::string& conninfo, PostgresOptions options = {});

/// One forward step of a module's schema. Both databases run the same text; `{{serial}}` stands for an automatically
/// growing BIGINT primary key. Several statements are separated by `;`.
struct Migration {
  int number;             ///< 1, 2, 3, … without gaps
  std::string_view name;  ///< "usage"
  std::string_view sql;
};

/// Applies what is not yet applied, each step in its own transaction with its entry in `schema_migrations`. Safe to run
/// from several processes at once.
/// Errors: conflict where an applied step's text has changed since, or the database is newer than this program.
Result<> migrate(Database& db, std::string_view module, std::span<const Migration> steps);

}  // namespace creto::sql
