#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/json.h"
#include "creto/common/result.h"
#include "creto/common/telemetry.h"

namespace creto::sql {
class Database;
}

/// A change that several products make, each in its own transaction: steps in order, undone in reverse order where one
/// of them cannot be made (001 §9.1).
namespace creto::app {

CRETO_ID(SagaId, "saga");

/// `make` and `undo` may run again after a crash, with the same `ctx`: its idempotency key names saga and step, so what
/// an earlier run committed is found and not made twice.
struct SagaStep {
  std::string name;
  /// What it learns for its own next try, for later steps, for `undo` or for the answer goes into `data`. A retryable
  /// error leaves the saga where it is, any other begins the undoing; then it must have made nothing.
  std::function<Result<>(const Context& ctx, Json& data)> make;
  /// Empty: there is nothing to undo.
  std::function<Result<>(const Context& ctx, const Json& data)> undo = {};
};

enum class SagaState : std::uint8_t { making, made, undoing, undone };
std::string_view to_string(SagaState state);

struct Saga {
  SagaId id;
  SagaState state = SagaState::making;
  std::size_t steps = 0;  ///< so many are made
  Json data = {};
  std::string error = {};  ///< why it is or was undone
};

/// Sagas of one kind. Thread-safe. Every change of state is audited in its transaction, as `<kind>_begun`,
/// `<kind>_made` and `<kind>_undone`.
class Sagas {
 public:
  /// Migrates. `database` and `telemetry` must outlive it.
  static Result<std::unique_ptr<Sagas>> create(sql::Database& database, Telemetry& telemetry, std::string kind,
                                               std::vector<SagaStep> steps);
  virtual ~Sagas() = default;

  /// Begins one, or goes on with the one that the caller began under this idempotency key, until it is made or undone.
  /// `data` is what the steps get; its member `signed` may differ in a repetition, for a signature never is the same.
  ///
  /// Errors: that of the step, once everything before it is undone; a retryable one where the saga has to go on later,
  /// by a repetition of this call or by `resume`; conflict where the key was used with other content.
  virtual Result<Saga> run(const Context& ctx, const Json& data) = 0;
  virtual Result<Saga> get(const Context& ctx, const SagaId& id) = 0;
  /// Goes on with every saga that is neither made nor undone. Call it at the start and every minute.
  virtual Result<> resume() = 0;

  const std::vector<SagaStep>& steps() const { return steps_; }

 protected:
  explicit Sagas(std::vector<SagaStep> steps) : steps_(std::move(steps)) {}
  const std::vector<SagaStep> steps_;
};

}  // namespace creto::app
