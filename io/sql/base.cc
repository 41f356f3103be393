#include "sql/base.h"

#include <algorithm>
#include <cmath>

namespace creto::sql::detail {

Error failure(ErrorKind kind, std::string_view message) { return Error(Product::platform, kind, std::string(message)); }
Error must_not_wait() { return failure(ErrorKind::unavailable, "the database is not waited for on this thread"); }

void ConditionSignal::raise() {
  {
    std::lock_guard lock(mutex_);
    ++count_;
  }
  changed_.notify_all();
}

std::uint64_t ConditionSignal::count() const {
  std::lock_guard lock(mutex_);
  return count_;
}

void ConditionSignal::wait(std::uint64_t seen, Nanos timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] { return count_ != seen; });
}

namespace {

/// PostgreSQL would cut a text at NUL and refuse bad UTF-8, SQLite would keep both: refuse them alike.
Result<> check(std::span<const Value> parameters) {
  for (const Value& value : parameters) {
    if (const auto* text = std::get_if<std::string>(&value.variant())) {
      if (text->find('\0') != std::string::npos || !is_valid_utf8(*text)) {
        return failure(ErrorKind::invalid_input, "text must be valid UTF-8 without NUL");
      }
    } else if (const auto* real = std::get_if<double>(&value.variant())) {
      if (!std::isfinite(*real)) return failure(ErrorKind::invalid_input, "number must be finite");
    }
  }
  return {};
}

thread_local std::vector<const Database*> inside;

}  // namespace

Result<BaseTx::Outcome> BaseTx::checked(std::string_view sql, std::span<const Value> parameters) {
  if (doom_) return Error(*doom_);
  auto outcome = [&]() -> Result<Outcome> {
    CRETO_TRY(check(parameters));
    return execute(sql, parameters);
  }();
  if (!outcome)
    doom_ = outcome.error();
  else
    crash_point_.wrote(sql);
  return outcome;
}

Result<Rows> BaseTx::query(std::string_view sql, std::span<const Value> parameters) {
  auto outcome = checked(sql, parameters);
  if (!outcome) return std::move(outcome).error();
  return std::move(outcome->rows);
}

Result<std::int64_t> BaseTx::exec(std::string_view sql, std::span<const Value> parameters) {
  auto outcome = checked(sql, parameters);
  if (!outcome) return std::move(outcome).error();
  return outcome->changed;
}

Result<> BaseTx::savepoint(const std::function<Result<>()>& fn) {
  const std::string name = "creto_" + std::to_string(++depth_);
  const std::size_t actions = actions_.size();
  if (auto begun = exec("SAVEPOINT " + name, {}); !begun) {
    --depth_;
    return std::move(begun).error();
  }
  auto result = fn();
  if (result && doom_) result = Error(*doom_);
  --depth_;
  // A busy database or a serialization failure has ended the transaction: only repeating the whole of it helps.
  if (must_repeat_) return result;
  if (!result) {
    doom_.reset();
    actions_.resize(actions);
    if (auto undone = exec("ROLLBACK TO SAVEPOINT " + name, {}); !undone) return std::move(undone).error();
  }
  if (auto released = exec("RELEASE SAVEPOINT " + name, {}); !released) return std::move(released).error();
  return result;
}

Result<> BaseTx::run(const TxFunction& fn) {
  auto result = fn(*this);
  if (result && doom_) return Error(*doom_);
  return result;
}

void BaseTx::run_actions() {
  for (auto& action : actions_) action();
  actions_.clear();
}

Inside::Inside(const Database* database) {
  CRETO_ASSERT(std::find(inside.begin(), inside.end(), database) == inside.end());
  inside.push_back(database);
}
Inside::~Inside() { inside.pop_back(); }

Signal& BaseDatabase::signal(std::string_view name) {
  std::lock_guard lock(signals_mutex_);
  auto found = signals_.find(name);
  if (found == signals_.end()) found = signals_.emplace(name, std::make_unique<ConditionSignal>()).first;
  return *found->second;
}

}  // namespace creto::sql::detail
