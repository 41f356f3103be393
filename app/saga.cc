#include "saga.h"

#include <fmt/format.h>

#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "creto/audit/audit_log.h"
#include "creto/common/bytes.h"
#include "creto/crypto/hash.h"
#include "creto/io/sql.h"

namespace creto::app {
namespace {

constexpr sql::Migration migrations[] = {{1, "sagas", R"(
CREATE TABLE app_sagas (
  org TEXT NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL,
  caller TEXT NOT NULL, op_key TEXT NOT NULL, request_hash BYTEA NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('making', 'made', 'undoing', 'undone')),
  steps BIGINT NOT NULL, chain TEXT NOT NULL, data TEXT NOT NULL, error_kind TEXT NOT NULL, error TEXT NOT NULL,
  PRIMARY KEY (org, id));
CREATE UNIQUE INDEX app_sagas_key ON app_sagas (org, kind, caller, op_key);
CREATE INDEX app_sagas_open ON app_sagas (kind, state))"}};

constexpr std::string_view columns =
    "SELECT org, id, caller, request_hash, state, steps, chain, data, error_kind, error FROM app_sagas";

Error failure(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

/// A saga with what is needed to go on with it in another process.
struct Stored {
  std::string org;
  Saga saga;
  Identity caller;
  DelegationChain chain;
  Bytes request_hash;
  ErrorKind error_kind = ErrorKind::internal;

  bool over() const { return saga.state == SagaState::made || saga.state == SagaState::undone; }
};

Result<Stored> stored_from(const sql::Row& row) {
  const SagaId id = CRETO_TRY(SagaId::parse(row.text(1)));
  const Identity caller = CRETO_TRY(Identity::parse(row.text(2)));
  Stored stored{row.text(0), Saga{id}, caller, {}, row.bytes(3)};
  for (const SagaState state : {SagaState::making, SagaState::made, SagaState::undoing, SagaState::undone})
    if (to_string(state) == row.text(4)) stored.saga.state = state;
  stored.saga.steps = static_cast<std::size_t>(row.integer(5));
  const Json chain = CRETO_TRY(parse_json(row.text(6)));
  for (const Json& link : chain) {
    const Identity identity = CRETO_TRY(Identity::parse(link.get<std::string>()));
    stored.chain.push_back(identity);
  }
  stored.saga.data = CRETO_TRY(parse_json(row.text(7), {.bytes_max = 16 << 20}));
  stored.error_kind = error_kind_from_string(row.text(8)).value_or(ErrorKind::internal);
  stored.saga.error = row.text(9);
  return stored;
}

class SqlSagas final : public Sagas {
 public:
  SqlSagas(sql::Database& database, Telemetry& telemetry, std::string kind, std::vector<SagaStep> steps)
      : Sagas(std::move(steps)), database_(database), telemetry_(telemetry), kind_(std::move(kind)) {}

  Result<Saga> run(const Context& ctx, const Json& data) override {
    Stored saga = CRETO_TRY(begin(ctx, data));
    return advance(ctx, std::move(saga));
  }

  Result<Saga> get(const Context& ctx, const SagaId& id) override {
    const Stored saga = CRETO_TRY(load(ctx, id));
    return saga.saga;
  }

  Result<> resume() override {
    const auto open = CRETO_TRY(sql::read(database_, Context(), [&](sql::Tx& tx) -> Result<std::vector<Stored>> {
      const auto rows = CRETO_TRY(
          tx.query(fmt::format("{} WHERE kind = $1 AND state IN ('making', 'undoing') ORDER BY id", columns), {kind_}));
      std::vector<Stored> found;
      for (const sql::Row row : rows) {
        Stored saga = CRETO_TRY(stored_from(row));
        found.push_back(std::move(saga));
      }
      return found;
    }));
    for (const Stored& saga : open) {
      Context ctx = Context::of(saga.caller, saga.chain);
      ctx.org = saga.org;
      // A saga that was undone is over; what stays open is tried again next time.
      if (const auto done = advance(ctx, saga); !done)
        telemetry_.warn("platform", "saga_not_made",
                        {{"kind", kind_}, {"saga", saga.saga.id.to_string()}, {"error", done.error().to_string()}});
    }
    return {};
  }

 private:
  /// Whoever goes on with a saga in this process; another one waits its turn.
  class Turn {
   public:
    Turn(SqlSagas& sagas, SagaId id) : sagas_(sagas), id_(id) {
      const std::lock_guard lock(sagas_.mutex_);
      mine_ = sagas_.running_.insert(id_).second;
    }
    ~Turn() {
      if (!mine_) return;
      const std::lock_guard lock(sagas_.mutex_);
      sagas_.running_.erase(id_);
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    bool mine() const { return mine_; }

   private:
    SqlSagas& sagas_;
    const SagaId id_;
    bool mine_ = false;
  };

  Result<Stored> begin(const Context& ctx, const Json& data) {
    Json compared = data;
    compared.erase("signed");
    const Hash256 hash = crypto::sha3_256(as_bytes(compared.dump()));
    return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Stored> {
      const SagaId id = SagaId::fresh(tx.now());
      const std::string key = ctx.idempotency_key.empty() ? id.to_string() : ctx.idempotency_key;
      const auto rows =
          CRETO_TRY(tx.query(fmt::format("{} WHERE org = $1 AND kind = $2 AND caller = $3 AND op_key = $4", columns),
                             {ctx.org, kind_, ctx.caller_text(), key}));
      if (!rows.empty()) {
        Stored there = CRETO_TRY(stored_from(rows.front()));
        if (!std::ranges::equal(there.request_hash, hash))
          return failure(ErrorKind::conflict,
                         fmt::format("idempotency key `{}` was used before with other content", key));
        return there;
      }
      Json chain = Json::array();
      for (const Identity& link : ctx.chain) chain.push_back(link.text());
      Stored fresh{ctx.org, Saga{id}, *ctx.caller, ctx.chain, Bytes(hash.begin(), hash.end())};
      fresh.saga.data = data;
      CRETO_TRY(
          tx.exec("INSERT INTO app_sagas (org, id, kind, caller, op_key, request_hash, state, steps, chain, data, "
                  "error_kind, error) VALUES ($1, $2, $3, $4, $5, $6, 'making', 0, $7, $8, '', '')",
                  {ctx.org, id.to_string(), kind_, ctx.caller_text(), key, hash, chain.dump(), data.dump()}));
      CRETO_TRY(note(tx, ctx, fresh, "begun"));
      return fresh;
    });
  }

  Result<Stored> load(const Context& ctx, const SagaId& id) {
    return sql::read(database_, ctx, [&](sql::Tx& tx) -> Result<Stored> {
      const auto rows = CRETO_TRY(tx.query(fmt::format("{} WHERE org = $1 AND kind = $2 AND id = $3", columns),
                                           {ctx.org, kind_, id.to_string()}));
      if (rows.empty()) return failure(ErrorKind::not_found, fmt::format("there is no `{}`", id.to_string()));
      return stored_from(rows.front());
    });
  }

  Result<Saga> advance(const Context& ctx, Stored stored) {
    const Turn turn(*this, stored.saga.id);
    if (!turn.mine())
      return failure(ErrorKind::unavailable, "the same request is being processed; repeat it")
          .with_retry_after(std::chrono::milliseconds(200));
    // Whoever had the turn before has changed it.
    stored = CRETO_TRY(load(ctx, stored.saga.id));
    Saga& saga = stored.saga;
    while (saga.state == SagaState::making) {
      if (saga.steps == steps_.size()) {
        saga.state = SagaState::made;
      } else {
        const SagaStep& step = steps_[saga.steps];
        if (const auto made = step.make(context_of(ctx, stored, step, "make"), saga.data); made) {
          ++saga.steps;
        } else if (made.error().retryable()) {
          // What it learned, a request that it waits for say, is there when it is tried again.
          CRETO_TRY(save(ctx, stored));
          return Error(made.error())
              .with_context(fmt::format("`{}` goes on with step `{}`", saga.id.to_string(), step.name));
        } else {
          saga.state = SagaState::undoing;
          saga.error = fmt::format("{}: {}", step.name, made.error().to_string());
          stored.error_kind = made.error().kind();
        }
      }
      CRETO_TRY(save(ctx, stored));
    }
    while (saga.state == SagaState::undoing) {
      if (saga.steps == 0) {
        saga.state = SagaState::undone;
      } else {
        const SagaStep& step = steps_[saga.steps - 1];
        if (step.undo) CRETO_TRY(undo(ctx, stored, step));
        --saga.steps;
      }
      CRETO_TRY(save(ctx, stored));
    }
    if (saga.state == SagaState::undone) return failure(stored.error_kind, saga.error + "; all of it is undone");
    return saga;
  }

  /// What cannot be undone now is undone later: until then the saga is open.
  Result<> undo(const Context& ctx, const Stored& stored, const SagaStep& step) {
    const auto undone = step.undo(context_of(ctx, stored, step, "undo"), stored.saga.data);
    if (undone || undone.error().kind() == ErrorKind::not_found) return {};
    telemetry_.error("platform", "saga_not_undone",
                     {{"kind", kind_},
                      {"saga", stored.saga.id.to_string()},
                      {"step", step.name},
                      {"error", undone.error().to_string()}});
    return failure(ErrorKind::unavailable, fmt::format("{}; step `{}` is not undone yet", stored.saga.error, step.name))
        .with_cause(undone.error());
  }

  Context context_of(const Context& ctx, const Stored& stored, const SagaStep& step, std::string_view part) const {
    Context of_step = ctx;
    of_step.idempotency_key = fmt::format("{}/{}/{}", stored.saga.id.to_string(), step.name, part);
    std::ranges::copy(stored.request_hash, of_step.request_hash.begin());
    return of_step;
  }

  Result<> save(const Context& ctx, const Stored& stored) {
    const Saga& saga = stored.saga;
    return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec(
          "UPDATE app_sagas SET state = $3, steps = $4, data = $5, error_kind = $6, error = $7 "
          "WHERE org = $1 AND id = $2",
          {stored.org, saga.id.to_string(), to_string(saga.state), static_cast<std::int64_t>(saga.steps),
           saga.data.dump(), saga.error.empty() ? std::string_view() : to_string(stored.error_kind), saga.error}));
      if (saga.state == SagaState::made || saga.state == SagaState::undone)
        CRETO_TRY(note(tx, ctx, stored, to_string(saga.state)));
      return {};
    });
  }

  Result<> note(sql::Tx& tx, const Context& ctx, const Stored& stored, std::string_view what) const {
    audit::AuditRecord record = audit::AuditRecord::of(
        ctx, fmt::format("{}_{}", kind_, what), "saga:" + stored.saga.id.to_string(),
        stored.saga.state == SagaState::undone ? audit::Outcome::failure : audit::Outcome::success);
    record.outcome_detail = legible(stored.saga.error, 1024);
    CRETO_TRY(audit::record(tx, ctx, std::move(record)));
    return {};
  }

  sql::Database& database_;
  Telemetry& telemetry_;
  const std::string kind_;
  std::mutex mutex_;
  std::set<SagaId> running_;
};

}  // namespace

std::string_view to_string(SagaState state) {
  switch (state) {
    case SagaState::making:
      return "making";
    case SagaState::made:
      return "made";
    case SagaState::undoing:
      return "undoing";
    case SagaState::undone:
      return "undone";
  }
  return "undone";
}

Result<std::unique_ptr<Sagas>> Sagas::create(sql::Database& database, Telemetry& telemetry, std::string kind,
                                             std::vector<SagaStep> steps) {
  CRETO_TRY(audit::prepare(database));
  CRETO_TRY(sql::migrate(database, "app", migrations));
  return std::unique_ptr<Sagas>(std::make_unique<SqlSagas>(database, telemetry, std::move(kind), std::move(steps)));
}

}  // namespace creto::app
