#include <fmt/format.h>
#include <libpq-fe.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>
#include <unordered_map>

#include "creto/io/no_waiting.h"
#include "sql/base.h"

namespace creto::sql {
namespace {

using detail::failure;

constexpr std::size_t statements_max = 512;
/// How long after a call's deadline the server may still say itself that it has passed.
constexpr Nanos grace = std::chrono::seconds(1);

// From pg_type.dat; they never change.
constexpr Oid oid_bool = 16, oid_bytea = 17, oid_int8 = 20, oid_int2 = 21, oid_int4 = 23, oid_text = 25,
              oid_float4 = 700, oid_float8 = 701, oid_numeric = 1700;

struct ResultCloser {
  void operator()(PGresult* result) const { PQclear(result); }
};
using PgResult = std::unique_ptr<PGresult, ResultCloser>;

struct OptionsCloser {
  void operator()(PQconninfoOption* options) const { PQconninfoFree(options); }
};

/// `conninfo` with what notices a dead peer, where it does not say otherwise. What libpq cannot read stays as it is: it
/// says so when it connects.
std::string with_timeouts(const std::string& conninfo, Nanos connect_timeout) {
  const std::unique_ptr<PQconninfoOption, OptionsCloser> given(PQconninfoParse(conninfo.c_str(), nullptr));
  if (!given) return conninfo;
  const auto is_given = [&](std::string_view keyword) {
    for (const PQconninfoOption* option = given.get(); option->keyword != nullptr; ++option)
      if (option->keyword == keyword) return option->val != nullptr;
    return false;
  };
  std::string all;
  const auto add = [&](std::string_view keyword, std::string_view value) {
    all += fmt::format("{} = '", keyword);
    for (const char c : value) {
      if (c == '\'' || c == '\\') all.push_back('\\');
      all.push_back(c);
    }
    all += "' ";
  };
  for (const PQconninfoOption* option = given.get(); option->keyword != nullptr; ++option)
    if (option->val != nullptr) add(option->keyword, option->val);
  const auto seconds = std::chrono::ceil<std::chrono::seconds>(connect_timeout).count();
  for (const auto& [keyword, value] :
       {std::pair("connect_timeout", std::to_string(seconds)), std::pair("keepalives_idle", std::string("10")),
        std::pair("keepalives_interval", std::string("5")), std::pair("keepalives_count", std::string("3")),
        std::pair("tcp_user_timeout", std::string("15000"))})
    if (!is_given(keyword)) add(keyword, value);
  return all;
}

struct Failure {
  Error error;
  bool repeat = false;  ///< the transaction is certainly not committed and may succeed when run again
};

class Connection {
 public:
  explicit Connection(Telemetry& telemetry) : telemetry_(telemetry) {}
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() { PQfinish(handle_); }

  Result<> open(const std::string& conninfo) {
    handle_ = PQconnectdb(conninfo.c_str());
    if (PQstatus(handle_) != CONNECTION_OK) {
      telemetry_.log(LogLevel::warn, "io", "postgres_connect_failed", nullptr, {{"detail", PQerrorMessage(handle_)}});
      const char* host = PQhost(handle_);
      const char* name = PQdb(handle_);
      return failure(ErrorKind::unavailable, fmt::format("cannot connect to PostgreSQL at `{}`, database `{}`",
                                                         host ? host : "", name ? name : ""));
    }
    PQsetNoticeReceiver(handle_, [](void*, const PGresult*) {}, nullptr);
    if (PQsetClientEncoding(handle_, "UTF8") != 0) return failure(ErrorKind::unavailable, "cannot set UTF-8");
    return {};
  }

  bool alive() const { return !given_up_ && PQstatus(handle_) == CONNECTION_OK; }
  bool idle() const { return PQtransactionStatus(handle_) == PQTRANS_IDLE; }

  /// How long answers are waited for from now on, all together; without end where none is given.
  void wait_at_most(std::optional<Nanos> patience) {
    until_.reset();
    if (patience) until_ = std::chrono::steady_clock::now() + *patience;
  }

  std::optional<Failure> command(const std::string& sql) {
    PgResult result = answer(PQsendQuery(handle_, sql.c_str()));
    if (PQresultStatus(result.get()) == PGRES_COMMAND_OK) return std::nullopt;
    return failed(result.get(), sql);
  }

  std::optional<Failure> run(std::string_view sql, std::span<const Value> parameters, Rows& rows,
                             std::int64_t& changed) {
    // PostgreSQL fixes the types of a prepared statement, so NULL and a value are different statements.
    std::string key(sql);
    key.push_back('\0');
    std::vector<Oid> types;
    std::vector<const char*> values;
    std::vector<int> lengths;
    std::vector<int> formats;
    std::vector<std::string> buffers;
    buffers.reserve(parameters.size());
    for (const Value& parameter : parameters) {
      std::visit(
          [&](const auto& value) {
            using T = std::decay_t<decltype(value)>;
            int length = 0;
            int format = 0;
            const char* data = nullptr;
            if constexpr (std::same_as<T, std::nullptr_t>) {
              types.push_back(0);
              key.push_back('n');
            } else if constexpr (std::same_as<T, std::int64_t>) {
              types.push_back(oid_int8);
              key.push_back('i');
              data = buffers.emplace_back(std::to_string(value)).c_str();
            } else if constexpr (std::same_as<T, double>) {
              types.push_back(oid_float8);
              key.push_back('d');
              data = buffers.emplace_back(fmt::format("{}", value)).c_str();
            } else if constexpr (std::same_as<T, std::string>) {
              types.push_back(oid_text);
              key.push_back('t');
              data = value.c_str();
            } else {
              types.push_back(oid_bytea);
              key.push_back('b');
              data = value.empty() ? "" : reinterpret_cast<const char*>(value.data());
              length = static_cast<int>(value.size());
              format = 1;
            }
            values.push_back(data);
            lengths.push_back(length);
            formats.push_back(format);
          },
          parameter.variant());
    }
    const int count = static_cast<int>(parameters.size());
    auto prepared = statements_.find(key);
    if (prepared == statements_.end()) {
      if (statements_.size() >= statements_max) {
        if (auto problem = command("DEALLOCATE ALL")) return problem;
        statements_.clear();
      }
      const std::string name = fmt::format("s{}", ++statement_number_);
      const std::string text(sql);
      PgResult result = answer(PQsendPrepare(handle_, name.c_str(), text.c_str(), count, types.data()));
      if (PQresultStatus(result.get()) != PGRES_COMMAND_OK) return failed(result.get(), sql);
      prepared = statements_.emplace(std::move(key), name).first;
    }
    PgResult result = answer(PQsendQueryPrepared(handle_, prepared->second.c_str(), count, values.data(),
                                                 lengths.data(), formats.data(), 0));
    const auto status = PQresultStatus(result.get());
    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK) return failed(result.get(), sql);
    rows = read(result.get());
    changed = 0;
    // "SELECT" counts as well, and a SELECT changes nothing.
    if (std::strncmp(PQcmdStatus(result.get()), "SELECT", 6) != 0) {
      const char* text = PQcmdTuples(result.get());
      std::from_chars(text, text + std::strlen(text), changed);
    }
    return std::nullopt;
  }

 private:
  /// What the server says to what was sent: the last result, or the first that is an error. None where it was not sent,
  /// or nothing came in time: then the connection is given up.
  PgResult answer(int sent) {
    PgResult last;
    if (sent != 1) return last;
    while (true) {
      while (PQisBusy(handle_) != 0) {
        if (!readable() || PQconsumeInput(handle_) != 1) return {};
      }
      PgResult next(PQgetResult(handle_));
      if (!next) return last;
      // What follows an error says no more than it.
      if (!last || PQresultStatus(last.get()) != PGRES_FATAL_ERROR) last = std::move(next);
    }
  }

  bool readable() {
    pollfd socket{PQsocket(handle_), POLLIN, 0};
    while (true) {
      int left_ms = -1;
      if (until_) {
        const auto left = *until_ - std::chrono::steady_clock::now();
        left_ms = static_cast<int>(
            std::clamp<std::int64_t>(std::chrono::ceil<std::chrono::milliseconds>(left).count(), 0, 1'000'000));
      }
      const int ready = ::poll(&socket, 1, left_ms);
      if (ready > 0) return true;
      if (ready < 0 && errno == EINTR) continue;
      given_up_ = true;
      return false;
    }
  }

  Rows read(const PGresult* result) {
    const int columns = PQnfields(result);
    const int count = PQntuples(result);
    std::vector<Value> cells;
    cells.reserve(static_cast<std::size_t>(columns) * static_cast<std::size_t>(count));
    for (int row = 0; row < count; ++row) {
      for (int column = 0; column < columns; ++column) cells.push_back(cell(result, row, column));
    }
    return Rows(static_cast<std::size_t>(columns), std::move(cells));
  }

  static Value cell(const PGresult* result, int row, int column) {
    if (PQgetisnull(result, row, column)) return Value();
    const std::string_view text(PQgetvalue(result, row, column),
                                static_cast<std::size_t>(PQgetlength(result, row, column)));
    switch (PQftype(result, column)) {
      case oid_bool:
        return Value(text == "t" ? 1 : 0);
      case oid_int2:
      case oid_int4:
      case oid_int8:
        return integer(text);
      case oid_numeric:
        if (text.find_first_not_of("-0123456789") == std::string_view::npos) return integer(text);
        return real(text);
      case oid_float4:
      case oid_float8:
        return real(text);
      case oid_bytea: {
        CRETO_ASSERT(text.starts_with("\\x"));
        auto bytes = from_hex(text.substr(2));
        CRETO_ASSERT(bytes.has_value());
        return Value(std::move(*bytes));
      }
      default:
        return Value(text);
    }
  }
  static Value integer(std::string_view text) {
    std::int64_t value = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
    CRETO_ASSERT(parsed.ec == std::errc());
    return Value(value);
  }
  static Value real(std::string_view text) {
    double value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value);
    return Value(value);
  }

  Failure failed(const PGresult* result, std::string_view sql) const {
    const char* found = result ? PQresultErrorField(result, PG_DIAG_SQLSTATE) : nullptr;
    const std::string state = found ? found : "";
    telemetry_.log(LogLevel::warn, "io", "postgres_error", nullptr,
                   {{"sqlstate", state},
                    {"detail", given_up_ ? "no answer in time" : PQerrorMessage(handle_)},
                    {"sql", sql.substr(0, 200)}});
    if (given_up_) return {failure(ErrorKind::timeout, "the database did not answer by the deadline")};
    if (!alive() || state.empty() || state.starts_with("08") || state.starts_with("57P")) {
      return {failure(ErrorKind::unavailable, "the connection to the database was lost"), true};
    }
    if (state == "40001" || state == "40P01" || state == "55P03") {
      return {failure(ErrorKind::unavailable, "the database is busy"), true};
    }
    if (state == "23505") return {failure(ErrorKind::already_exists, "it already exists")};
    if (state.starts_with("23")) return {failure(ErrorKind::conflict, "the state does not permit it")};
    if (state == "53100") return {failure(ErrorKind::resource_exhausted, "the disk is full")};
    if (state.starts_with("53")) return {failure(ErrorKind::unavailable, "the database is out of resources"), true};
    if (state == "57014") return {failure(ErrorKind::timeout, "the deadline passed in the database")};
    if (state == "54000") return {failure(ErrorKind::too_large, "a value is too large for the database")};
    return {failure(ErrorKind::internal, "the database refused a statement")};
  }

  Telemetry& telemetry_;
  PGconn* handle_ = nullptr;
  bool given_up_ = false;
  std::optional<std::chrono::steady_clock::time_point> until_;
  std::uint64_t statement_number_ = 0;
  std::unordered_map<std::string, std::string> statements_;
};

class PostgresTx final : public detail::BaseTx {
 public:
  PostgresTx(Database& database, Connection& connection, Instant now)
      : BaseTx(database, now), connection_(connection) {}

 protected:
  Result<Outcome> execute(std::string_view sql, std::span<const Value> parameters) override {
    Outcome outcome;
    if (auto problem = connection_.run(sql, parameters, outcome.rows, outcome.changed)) {
      if (problem->repeat) set_must_repeat();
      return std::move(problem->error);
    }
    return outcome;
  }

 private:
  Connection& connection_;
};

class PostgresDatabase final : public detail::BaseDatabase {
 public:
  PostgresDatabase(const std::string& conninfo, PostgresOptions options)
      : conninfo_(with_timeouts(conninfo, options.connect_timeout)),
        options_(options),
        breaker_("PostgreSQL", options.breaker, *options.clock) {}

  Result<> open() {
    auto lease = CRETO_TRY(acquire(Monotonic::max()));
    return {};
  }

  using Database::transaction;
  Result<> transaction(const Context& ctx, const TxFunction& fn, const TransactionOptions& options) override {
    std::string begin = options.isolation == Isolation::serializable ? "BEGIN ISOLATION LEVEL SERIALIZABLE"
                                                                     : "BEGIN ISOLATION LEVEL READ COMMITTED";
    if (options.durability == Durability::ordered) begin += "; SET LOCAL synchronous_commit = off";
    return repeat(ctx, fn, begin);
  }
  Result<> read(const Context& ctx, const TxFunction& fn) override {
    return repeat(ctx, fn, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
  }

  Dialect dialect() const override { return Dialect::postgres; }
  const Clock& clock() const override { return *options_.clock; }

 private:
  /// A connection for one attempt; goes back to the pool unless it broke.
  class Lease {
   public:
    Lease(PostgresDatabase& database, std::unique_ptr<Connection> connection)
        : database_(&database), connection_(std::move(connection)) {}
    Lease(Lease&& other) noexcept : database_(other.database_), connection_(std::move(other.connection_)) {}
    Lease& operator=(Lease&&) = delete;
    ~Lease() {
      if (connection_) database_->give_back(std::move(connection_));
    }
    Connection& operator*() const { return *connection_; }
    Connection* operator->() const { return connection_.get(); }

   private:
    PostgresDatabase* database_;
    std::unique_ptr<Connection> connection_;
  };

  Result<> repeat(const Context& ctx, const TxFunction& fn, std::string_view begin) {
    if (io::NoWaiting::forbids()) return detail::must_not_wait();
    detail::Inside inside(this);
    for (std::uint32_t attempt = 1;; ++attempt) {
      if (ctx.expired(*options_.clock)) return failure(ErrorKind::timeout, "the deadline passed");
      bool again = false;
      auto result = run_once(ctx, fn, begin, again);
      if (result || !again || attempt >= options_.attempts_max) return result;
      pause(attempt);
    }
  }

  Result<> run_once(const Context& ctx, const TxFunction& fn, std::string_view begin, bool& again) {
    auto lease = CRETO_TRY(acquire(ctx.deadline));
    std::string start(begin);
    if (ctx.deadline == Monotonic::max()) {
      lease->wait_at_most(std::nullopt);
    } else {
      const Nanos left = ctx.deadline - options_.clock->monotonic();
      lease->wait_at_most(std::max(left, Nanos::zero()) + grace);
      start += fmt::format("; SET LOCAL statement_timeout = {}",
                           std::max<std::int64_t>(1, std::chrono::floor<std::chrono::milliseconds>(left).count()));
    }
    if (auto problem = lease->command(start)) {
      again = problem->repeat;
      return std::move(problem->error);
    }
    PostgresTx tx(*this, *lease, options_.clock->now());
    auto result = tx.run(fn);
    if (!result) {
      again = tx.must_repeat();
      if (lease->alive()) static_cast<void>(lease->command("ROLLBACK"));
      return result;
    }
    tx.crash_point().before_commit();
    if (auto problem = lease->command("COMMIT")) {
      // A refused commit is undone; one whose answer was lost may have happened, so it is not run again here.
      again = problem->repeat && lease->alive();
      if (!lease->alive()) {
        return failure(ErrorKind::unavailable, "the connection was lost during the commit; the outcome is unknown");
      }
      return std::move(problem->error);
    }
    tx.crash_point().after_commit();
    tx.run_actions();
    return {};
  }

  Result<Lease> acquire(Monotonic deadline) {
    std::unique_lock lock(mutex_);
    Nanos patience = options_.acquire_timeout;
    if (deadline != Monotonic::max()) patience = std::min(patience, Nanos(deadline - options_.clock->monotonic()));
    if (!freed_.wait_for(lock, std::max(patience, Nanos::zero()),
                         [&] { return !idle_.empty() || open_ < options_.connections_max; })) {
      return failure(ErrorKind::unavailable, "all connections to the database are in use");
    }
    if (!idle_.empty()) {
      auto connection = std::move(idle_.back());
      idle_.pop_back();
      return Lease(*this, std::move(connection));
    }
    ++open_;
    lock.unlock();
    auto connection = std::make_unique<Connection>(*options_.telemetry);
    if (auto opened = breaker_.run([&] { return connection->open(conninfo_); }); !opened) {
      lock.lock();
      --open_;
      lock.unlock();
      freed_.notify_one();
      return std::move(opened).error();
    }
    return Lease(*this, std::move(connection));
  }

  void give_back(std::unique_ptr<Connection> connection) {
    // In whatever state an attempt left it: one that is not at rest is closed, and PostgreSQL undoes what it held.
    const bool usable = connection->alive() && connection->idle();
    std::vector<std::unique_ptr<Connection>> dropped;
    {
      std::lock_guard lock(mutex_);
      if (usable) {
        idle_.push_back(std::move(connection));
      } else {
        // What one has lost the others most likely have too: better to find out by connecting than by a call of each.
        --open_;
        if (!connection->alive()) dropped.swap(idle_);
        open_ -= static_cast<std::uint32_t>(dropped.size());
      }
    }
    freed_.notify_all();
  }

  static void pause(std::uint32_t attempt) {
    thread_local std::minstd_rand random{std::random_device{}()};
    const auto most = std::min<std::int64_t>(1000LL << std::min(attempt, 8U), 200'000);
    std::this_thread::sleep_for(
        std::chrono::microseconds(std::uniform_int_distribution<std::int64_t>(most / 2, most)(random)));
  }

  const std::string conninfo_;
  const PostgresOptions options_;
  CircuitBreaker breaker_;
  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<std::unique_ptr<Connection>> idle_;
  std::uint32_t open_ = 0;
};

}  // namespace

Result<std::unique_ptr<Database>> open_postgres(const std::string& conninfo, PostgresOptions options) {
  CRETO_ASSERT(options.connections_max > 0 && options.attempts_max > 0);
  auto database = std::make_unique<PostgresDatabase>(conninfo, options);
  CRETO_TRY(database->open());
  CRETO_TRY(detail::migrate_io(*database));
  return std::unique_ptr<Database>(std::move(database));
}

}  // namespace creto::sql
