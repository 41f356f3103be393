#include "tools/service_bench.h"

#include <fmt/format.h>

#include <algorithm>

#include "check_request.h"

namespace creto::authz {
namespace {

Error bad(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

/// Whether one of the permits that permit it has room.
bool has_room(const PolicyDecision& decided, std::uint64_t admitted) {
  if (decided.rate == nullptr || admitted < decided.rate->rate().limit) return true;
  return std::any_of(decided.further_rates.begin(), decided.further_rates.end(),
                     [&](const RateWindows* rate) { return admitted < rate->rate().limit; });
}

}  // namespace

ServiceBench::ServiceBench(std::vector<std::shared_ptr<const LoadedPolicy>> policies, std::vector<Entity> entities) {
  state_.policies = PolicyTable(std::move(policies));
  std::vector<std::shared_ptr<const Entity>> shared;
  for (Entity& entity : entities) {
    cedar::normalise(entity);
    table_.add(entity);
    shared.push_back(std::make_shared<const Entity>(std::move(entity)));
  }
  state_.entities.put(std::move(shared));
  state_.plan();
}

std::vector<PolicyId> ServiceBench::Verdict::determining() const {
  std::vector<PolicyId> all = reasons;
  all.insert(all.end(), erring_forbids.begin(), erring_forbids.end());
  return all;
}

Result<ServiceBench::Verdict> ServiceBench::decide(const cedar::Request& request, const Assumptions& given) {
  std::vector<OverrideGrant::Lift> lifts;
  for (const PolicyId& id : given.approved) {
    const auto policy = state_.policies.find(id);
    if (!policy || !policy->planned->oversight) return bad(fmt::format("approved: `{}` asks for no oversight", id));
    lifts.push_back({id, policy->planned->oversight->oversight_policy});
  }
  const cedar::RequestView view{request.principal, request.action, request.resource, *request.context.as_record()};
  const auto what_failed = [&](const cedar::PlannedPolicy& policy) {
    const auto again = cedar::is_satisfied(policy.ast, request, table_);
    return again ? Error(Product::platform, ErrorKind::internal, "it fails where it should not") : again.error();
  };
  if (!state_.engine.evaluate(scratch_, state_.entities, nullptr, view, cedar::Detail::all, what_failed))
    return bad("an entity has too many ancestors");
  const cedar::Evaluation& evaluation = scratch_.result;
  PolicyDecision decided = authz::decide(evaluation, lifts);
  const auto restrict = [&](Decision other) {
    if (outranks(other, decided.decision)) decided.decision = std::move(other);
  };
  if (!has_room(decided, given.admitted)) restrict(RateLimited{decided.rate->rate().window, 0});
  if (given.quota_exceeded)
    restrict(QuotaExceeded{.quota_id = "assumed", .reset_at = {}, .message = "a quota is taken as exceeded"});

  Verdict verdict{std::move(decided.decision), {}, {}, {}};
  for (const auto* policy : evaluation.reasons()) verdict.reasons.push_back(policy->id);
  for (const auto& [policy, failure] : evaluation.errors) {
    verdict.errors.emplace_back(policy->id, failure.message());
    if (policy->ast.effect == cedar::Effect::forbid) verdict.erring_forbids.push_back(policy->id);
  }
  std::sort(verdict.reasons.begin(), verdict.reasons.end());
  std::sort(verdict.errors.begin(), verdict.errors.end());
  std::sort(verdict.erring_forbids.begin(), verdict.erring_forbids.end());
  return verdict;
}

PolicyDecision ServiceBench::decide_alone(const cedar::Request& request) {
  const cedar::RequestView view{request.principal, request.action, request.resource, *request.context.as_record()};
  const auto what_failed = [](const cedar::PlannedPolicy&) {
    return Error(Product::platform, ErrorKind::invalid_input, "it failed");
  };
  if (!state_.engine.evaluate(scratch_, state_.entities, nullptr, view, cedar::Detail::decision, what_failed))
    return {Deny{.reason = "an entity has too many ancestors", .policy = {}, .transient = true}, {}};
  return authz::decide(scratch_.result, {});
}

cedar::Request with_delegation(cedar::Request request) {
  const std::string& type = request.principal.type;
  if (type != "Agent" && type != "Human" && type != "Service") return request;
  if (request.context.attribute("delegation")) return request;
  Attributes context = *request.context.as_record();
  context.emplace_back("delegation", Value::record({{"root", request.principal},
                                                    {"depth", std::int64_t{1}},
                                                    {"chain", Value::set({Value(request.principal)})}}));
  request.context = Value::record(std::move(context));
  return request;
}

}  // namespace creto::authz
