#include "decider.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "asked_resources.h"
#include "check_request.h"
#include "creto/io/no_waiting.h"
#include "policy_verdicts.h"
#include "service_entities.h"
#include "source_overlay.h"
#include "workplace.h"

namespace creto::authz {
namespace {

constexpr std::size_t verdicts_max = 100;

Error error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

/// Of a thread that must not wait, where a product, a source or an extension would have had to: nothing is counted or
/// logged, and who asked has it decided elsewhere. A denial, for whoever does not know.
Decision put_off() {
  return Deny{.reason = "it takes longer than may be waited here", .policy = {}, .transient = true};
}

std::vector<PolicyId> ids_of(const std::vector<const cedar::PlannedPolicy*>& policies) {
  std::vector<PolicyId> ids;
  for (const auto* policy : policies) ids.push_back(policy->id);
  std::sort(ids.begin(), ids.end());
  return ids;
}

std::string permits_of(const Explanation& explanation) {
  std::string names;
  for (const PolicyVerdict& one : explanation.policies)
    if (!one.forbids && one.outcome == PolicyVerdict::Outcome::applies)
      names += (names.empty() ? "" : ", ") + one.policy;
  return names;
}

}  // namespace

Decision Decider::answer(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot, bool counts,
                         std::vector<PolicyId>* matched) {
  Trail trail;
  const OrgState* state = snapshot.org(ctx.org);
  const bool cacheable =
      state && !snapshot.stale && options_.cache_entries != 0 && request.override_token.empty() && matched == nullptr;
  DecisionCache::Place place;
  std::optional<CacheNote> note;
  if (cacheable || log_) {
    begin(trail, ctx, request, state);
    // What is likely to be found is fetched while the clock is read.
    if (cacheable) place = cache_.look(*trail.key);
    trail.at = log_ ? clock_.monotonic() : ticks_.now();  // the log tells the time
    if (cacheable && trail.at <= in_force_.fresh_until()) note = cache_.find(place, trail.at);
  }
  RateWindows* const rate = note && note->rate != 0 ? state->rate(note->rate) : nullptr;
  const bool known = note && (note->rate == 0 || rate != nullptr);
  if (known) {
    probe_.hit();
    trail.cached = true;
    trail.entities = note->entities;
    trail.policy = note->policy;
    // What nobody else has a say in is the way that has to be short.
    if (rate == nullptr && snapshot.extensions.empty()) return logged(trail, request, 0, Allow{});
  }
  PolicyDecision decided{Allow{}, {}, rate};
  if (!known) {
    decided = evaluate(ctx, request, snapshot, nullptr, log_ ? &trail : nullptr, matched);
    if (io::NoWaiting::gave_up()) return put_off();
    if (cacheable) {
      probe_.miss();
      // With the one rate that it depends on, if any: a choice of several is made anew each time.
      if (allowed(decided.decision) && decided.further_rates.empty() && !decided.fleeting)
        cache_.insert(place, trail.at, options_.cache_ttl,
                      {decided.rate == nullptr ? 0 : decided.rate->number(), trail.entities, trail.policy});
    }
  }
  Decision& decision = decided.decision;
  const std::size_t said = decision.index();
  if (!std::holds_alternative<Deny>(decision)) {
    const auto by = [&](DecidedBy who, auto&& step) {
      const std::size_t before = decision.index();
      step();
      if (decision.index() != before) trail.by = who;
    };
    by(DecidedBy::rate, [&] { limit(request, decided, false); });
    by(DecidedBy::extension, [&] { restrict(ctx, request, snapshot, decision); });
    if (io::NoWaiting::gave_up()) return put_off();
    if (counts && allowed(decision)) by(DecidedBy::rate, [&] { limit(request, decided, true); });
  }
  return logged(trail, request, said, std::move(decision));
}

void Decider::begin(Trail& trail, const Context& ctx, const CheckRequest& request, const OrgState* state) {
  std::array<std::uint64_t, sources_max> versions;  // not cleared: most services have no source
  const std::size_t count = sources_.size();
  for (std::size_t i = 0; i < count; ++i) versions[i] = sources_[i]->version();
  trail.key.emplace(ctx.org, state ? state->version : 0, std::span(versions).first(count), request);
}

Decision Decider::logged(Trail& trail, const CheckRequest& request, std::size_t said, Decision decision) {
  if (log_ && !log_->append(trail, request, said, decision))
    decision = Deny{.reason = "the decision log cannot be written", .policy = {}, .transient = true};
  if (!allowed(decision)) probe_.refused();
  return decision;
}

void Decider::limit(const CheckRequest& request, PolicyDecision& decided, bool counts) {
  if (decided.rate == nullptr) return;
  const Monotonic now = clock_.monotonic();
  const Identity& root = request.chain.empty() ? request.principal : request.chain.front();
  const auto ask = [&](RateWindows& rate) {
    const std::string& who = (rate.rate().by_root ? root : request.principal).text();
    return counts ? rate.take(who, now) : rate.look(who, now);
  };
  auto soonest = ask(*decided.rate);
  for (RateWindows* rate : decided.further_rates) {
    if (soonest.kind == RateWindows::Verdict::room) break;
    const auto verdict = ask(*rate);
    if (verdict.kind == RateWindows::Verdict::room || verdict.retry_after < soonest.retry_after) soonest = verdict;
  }
  if (soonest.kind == RateWindows::Verdict::room) return;
  probe_.limited();
  Decision refused = RateLimited{soonest.retry_after, 0};
  if (soonest.kind == RateWindows::Verdict::no_memory)
    refused = Deny{.reason = "too many are counted for `@rate`", .policy = {}, .transient = true};
  if (outranks(refused, decided.decision)) decided.decision = std::move(refused);
}

PolicyDecision Decider::evaluate(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot,
                                 Explanation* explanation, Trail* trail, std::vector<PolicyId>* matched) {
  const auto denied = [&](DecidedBy by, std::string reason, bool transient) -> PolicyDecision {
    if (trail) trail->by = by;
    if (explanation) explanation->decided_by = to_string(by);
    return {Deny{.reason = std::move(reason), .policy = {}, .transient = transient}, {}};
  };
  if (in_force_.is_stale(snapshot))
    return denied(DecidedBy::trouble, "the policies in force cannot be established", true);
  if (auto fault = fault_in(request)) return denied(DecidedBy::request, "invalid request: " + *fault, false);
  const OrgState* state = snapshot.org(ctx.org);
  if (!state) return denied(DecidedBy::policies, "no policy permits this", false);

  std::vector<OverrideGrant::Lift> lifts;
  if (!request.override_token.empty()) {
    auto token = tokens_.verify(ctx.org, request);
    if (!token) return denied(DecidedBy::token, token.error().message(), false);
    if (clock_.now() >= token->expires_at) return denied(DecidedBy::token, "the approval has expired", false);
    if (state->revoked && state->revoked->contains(token->request))
      return denied(DecidedBy::token, "the approval was withdrawn", false);
    lifts = std::move(token->lifts);
  }

  if (state->schema) {
    const auto conforms = state->schema->check(cedar_request(request));
    if (!conforms) return denied(DecidedBy::request, "invalid request: " + conforms.error().message(), false);
  }
  AskedResources resources(ctx, snapshot.sources);
  ServiceEntities entities(ctx.org, *state, sources_, &resources);
  const WorkplaceLease at;
  const Workplace::Asker& asker = at->asker(request);
  at->action.id = request.action;
  cedar::Engine::Scratch& scratch = at->engine;
  SourceOverlay overlay(entities, state->entities, &sources_, scratch.frame, &resources);
  const bool stored_alone = sources_.empty() && resources.empty();
  const cedar::RequestView view{asker.entity, at->action, request.resource, request.context, &asker.delegation};
  const auto what_failed = [&](const cedar::PlannedPolicy& policy) {
    const auto again = cedar::is_satisfied(policy.ast, cedar_request(request), entities);
    return again ? Error(Product::platform, ErrorKind::internal, "it fails where it should not") : again.error();
  };
  const bool decided =
      state->engine.evaluate(scratch, state->entities, stored_alone ? nullptr : &overlay, view,
                             explanation || matched ? cedar::Detail::all : cedar::Detail::decision, what_failed);
  if (io::NoWaiting::gave_up()) return {put_off(), {}};
  if (!decided) {
    const Error trouble = entities.trouble().value_or(
        error(ErrorKind::too_large, fmt::format("an entity has more than {} ancestors", cedar::ancestors_max)));
    probe_.trouble(ctx, trouble);
    return denied(DecidedBy::trouble, "entities cannot be read: " + trouble.message(), true);
  }
  const cedar::Evaluation& evaluation = scratch.result;
  for (const auto& [policy, failure] : evaluation.errors) probe_.policy_failed(ctx, policy->id, failure);
  PolicyDecision result = decide(evaluation, lifts);
  result.fleeting = resources.asked();
  if (matched) *matched = ids_of(evaluation.reasons());
  if (explanation) {
    explanation->snapshot = state->version;
    explanation->lifted = result.lifted;
    explanation->reasons = ids_of(evaluation.reasons());
    for (const auto& [policy, failure] : evaluation.errors)
      explanation->errors.emplace_back(policy->id, failure.message());
    std::sort(explanation->errors.begin(), explanation->errors.end());
    explanation->policies =
        verdicts_of(*state, cedar_request(request), entities, verdicts_max, explanation->policies_left_out);
    if (entities.trouble()) explanation->policies.clear();
  }
  if (trail) {
    trail->add_policies(evaluation, result);
    trail->add_entities(entities.take_loaded());
    if (!lifts.empty()) trail->make_further().lifts = std::move(lifts);
  }
  return result;
}

std::string_view Decider::restrict(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot,
                                   Decision& decision) {
  std::string_view by;
  if (snapshot.extensions.empty()) return by;
  Monotonic begin = clock_.monotonic();
  for (const auto& one : snapshot.extensions) {
    Extension& extension = one->extension;
    one->calls.fetch_add(1, std::memory_order_relaxed);
    auto opinion = extension.evaluate(ctx, request);
    if (io::NoWaiting::gave_up()) return by;
    const Monotonic end = clock_.monotonic();
    const Nanos took = end - std::exchange(begin, end);
    std::string failure;
    if (took > extension.budget()) {
      one->late.fetch_add(1, std::memory_order_relaxed);
      one->late_total.add();
      probe_.extension_late(ctx, extension, took);
      failure = "it took too long";
    }
    if (!opinion) {
      one->failures.fetch_add(1, std::memory_order_relaxed);
      one->failures_total.add();
      probe_.extension_failed(ctx, extension, opinion.error());
      failure = opinion.error().message();
    } else if (*opinion && !allowed(**opinion)) {
      // An objection is one, however late.
      if (outranks(**opinion, decision)) {
        decision = **std::move(opinion);
        by = extension.name();
      }
      failure.clear();
    }
    if (!failure.empty() && extension.denies_on_failure()) {
      decision =
          Deny{.reason = fmt::format("`{}` failed: {}", extension.name(), failure), .policy = {}, .transient = true};
      by = extension.name();
    }
    if (std::holds_alternative<Deny>(decision)) return by;
  }
  return by;
}

Explanation Decider::explain(const Context& ctx, const CheckRequest& request, const Snapshot& snapshot) {
  Explanation explanation;
  explanation.decided_by = to_string(DecidedBy::policies);
  PolicyDecision decided = evaluate(ctx, request, snapshot, &explanation, nullptr);
  if (!std::holds_alternative<Deny>(decided.decision)) {
    const std::size_t before = decided.decision.index();
    limit(request, decided, false);
    if (decided.decision.index() != before) {
      explanation.decided_by = to_string(DecidedBy::rate);
      explanation.decided_by_name = permits_of(explanation);
    }
    const std::string_view extension = restrict(ctx, request, snapshot, decided.decision);
    if (!extension.empty()) {
      explanation.decided_by = to_string(DecidedBy::extension);
      explanation.decided_by_name = extension;
    }
  }
  explanation.decision = std::move(decided.decision);
  return explanation;
}

}  // namespace creto::authz
