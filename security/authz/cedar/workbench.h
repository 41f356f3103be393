#pragma once

#include <utility>

#include "cedar/engine.h"
#include "cedar/entity_table.h"

namespace creto::authz::cedar {

/// Policies and entities that are all in memory: for tools and tests. One thread.
class Workbench {
 public:
  Workbench(PolicySet policies, std::vector<Entity> entities) : policies_(std::move(policies)) {
    std::vector<std::shared_ptr<const Entity>> shared;
    for (Entity& entity : entities) {
      normalise(entity);
      table_.add(entity);
      shared.push_back(std::make_shared<const Entity>(std::move(entity)));
    }
    store_.put(std::move(shared));
    engine_ = Engine(policies_, store_);
  }

  const PolicySet& policies() const { return policies_; }
  EntityTable& entities() { return table_; }

  /// The engine's answer, whole; valid until the next call.
  const Evaluation& evaluate(const Request& request) {
    const RequestView view{request.principal, request.action, request.resource, *request.context.as_record()};
    decided_ = engine_.evaluate(scratch_, store_, nullptr, view, Detail::all, [&](const PlannedPolicy& policy) {
      auto again = is_satisfied(policy.ast, request, table_);
      return again ? Error(Product::platform, ErrorKind::internal, "engine and interpreter disagree") : again.error();
    });
    return scratch_.result;
  }
  /// Whether the last answer counts: not where a hierarchy is too large.
  bool decided() const { return decided_; }
  /// The reference's.
  Evaluation interpret(const Request& request) { return policies_.evaluate(request, table_); }

 private:
  PolicySet policies_;
  EntityTable table_;
  EntityStore store_;
  Engine engine_;
  Engine::Scratch scratch_;
  bool decided_ = true;
};

}  // namespace creto::authz::cedar
