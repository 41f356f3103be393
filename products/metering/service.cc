#include "service.h"

#include <fmt/format.h>

#include <algorithm>

#include "creto/audit/audit_log.h"
#include "creto/contracts/events.h"
#include "creto/crypto/hash.h"
#include "creto/io/bus.h"
#include "creto/io/idempotency.h"
#include "invoicing.h"
#include "names.h"
#include "window.h"

namespace creto::metering {
namespace {

using contracts::BillingPeriod;

constexpr std::string_view invoice_context = "creto.invoice.v1";
constexpr std::size_t batch_max = 1'000;
constexpr std::size_t page = 5'000;
constexpr std::uint32_t unknown_agent_attempts = 4;  // the delivery and three retries (001 §4.1)

Error error(ErrorKind kind, std::string message) { return Error(Product::metering, kind, std::move(message)); }
Error not_found(std::string_view what, std::string_view id) {
  return error(ErrorKind::not_found, fmt::format("{} `{}` does not exist", what, id.substr(0, 300)));
}

Result<> audit_change(sql::Tx& tx, const Context& ctx, std::string what, std::string resource,
                      std::string metadata = "{}") {
  auto record = audit::AuditRecord::of(ctx, std::move(what), std::move(resource));
  record.metadata = std::move(metadata);
  CRETO_TRY(audit::record(tx, ctx, std::move(record)));
  return {};
}

std::string_view adjective(WindowKind kind) {
  switch (kind) {
    case WindowKind::rolling:
      return "rolling";
    case WindowKind::hour:
      return "hourly";
    case WindowKind::day:
      return "daily";
    case WindowKind::week:
      return "weekly";
    case WindowKind::month:
      return "monthly";
    case WindowKind::lifetime:
      return "lifetime";
  }
  return "";
}

std::string describe_refusal(const Verdict& verdict) {
  if (verdict.kind == Verdict::Kind::budget_exceeded) {
    return fmt::format("budget `{}` of `{}` exceeded ({} of {})", verdict.id, verdict.subject,
                       from_nano_money(verdict.used).to_string(), from_nano_money(verdict.limit).to_string());
  }
  return fmt::format("{} quota of `{}` exceeded ({}/{})", adjective(verdict.window), verdict.event_type, verdict.used,
                     verdict.limit);
}

}  // namespace

MeteringProbe::MeteringProbe(Telemetry& telemetry)
    : ingested_(telemetry.counter("metering_events_ingested_total", "events accepted")),
      duplicates_(telemetry.counter("metering_events_duplicate_total", "events that had been accepted before")),
      rejected_(telemetry.counter("metering_events_rejected_total", "events that were refused")),
      refused_(telemetry.counter("metering_quota_checks_total", "requests to spend", {{"result", "refused"}})),
      granted_(telemetry.counter("metering_quota_checks_total", "requests to spend", {{"result", "allowed"}})),
      invoices_(telemetry.counter("metering_invoices_generated_total", "invoices made")) {}

/// An event that may be taken.
struct MeteringService::Candidate {
  UsageEvent event;
  StoredEvent stored;
  DelegationChain chain;  ///< whom it counts for beside the agent
};

MeteringService::MeteringService(sql::Database& database, nhi::Nhi& nhi, consensus::TimestampSource& timestamps,
                                 InvoiceDelivery& delivery, const Clock& clock, Telemetry& telemetry,
                                 MeteringOptions options)
    : database_(database),
      nhi_(nhi),
      timestamps_(timestamps),
      delivery_(delivery),
      clock_(clock),
      telemetry_(telemetry),
      options_(std::move(options)),
      self_(Identity::service("metering").value()),
      probe_(telemetry),
      limits_({.detect_anomalies = options_.detect_anomalies}) {}

Result<> MeteringService::load() {
  const Context ctx = Context::of_service(self_);
  return database_.read(ctx, [&](sql::Tx& tx) -> Result<> {
    const auto quotas = CRETO_TRY(store::all_quotas(tx));
    for (const auto& [org, quota] : quotas) CRETO_TRY(limits_.put_quota(org, quota, clock_.now()));
    const auto thresholds = CRETO_TRY(store::all_thresholds(tx));
    for (const auto& [org, threshold] : thresholds) CRETO_TRY(limits_.put_threshold(org, threshold));
    const auto subscriptions = CRETO_TRY(store::all_subscriptions(tx));
    for (const auto& [org, subscription] : subscriptions) {
      subscriptions_[{org, subscription.agent}].push_back(subscription);
      if (!subscription.ended_at) limits_.bind(org, subscription.agent, subscription.id.to_string());
    }
    for (store::Place place;;) {
      const auto uses = CRETO_TRY(store::load_use(tx, place, page));
      for (const LoadedUse& use : uses) {
        limits_.replay(use.org, use.subject, use.event_type, use.action, use.units, use.cost, use.arrived);
      }
      if (uses.size() < page) return {};
    }
  });
}

// --- who we are, to sign
// -------------------------------------------------------------------------------------------------

Context MeteringService::own(const Context& ctx) const {
  Context result = Context::of_service(self_);
  result.org = ctx.org;
  result.trace = ctx.trace;
  result.deadline = ctx.deadline;
  return result;
}

Result<> MeteringService::ensure_identity(const Context& ctx) {
  const std::scoped_lock lock(identity_mutex_);
  if (orgs_with_identity_.contains(ctx.org)) return {};
  CRETO_TRY(nhi_.ensure_service(own(ctx), self_));
  orgs_with_identity_.insert(ctx.org);
  return {};
}

Result<EventEnvelope> MeteringService::signed_envelope(const Context& ctx, std::string_view type, const Identity& agent,
                                                       const DelegationChain& chain, std::string payload, EventId id) {
  CRETO_TRY(ensure_identity(ctx));
  EventEnvelope envelope{std::string(type), id, agent, chain, timestamps_.now(), std::move(payload), {}};
  const std::string bytes = CRETO_TRY(envelope.signed_bytes());
  envelope.signature = CRETO_TRY(nhi_.sign(own(ctx), self_, as_bytes(bytes), event_signature_context));
  return envelope;
}

// --- events
// --------------------------------------------------------------------------------------------------------------

Result<NanoMoney> MeteringService::cost_of(const Money& cost) const {
  if (cost.amount.is_zero()) return 0;
  if (!(cost.currency == options_.currency)) {
    return error(ErrorKind::invalid_input,
                 fmt::format("cost: must be in {}, which costs are limited in", options_.currency.code()));
  }
  if (cost.amount.is_negative()) return error(ErrorKind::invalid_input, "cost: must not be negative");
  return to_nano_money(cost.amount);
}

Result<NanoMoney> MeteringService::limited_cost(const Money& cost) const {
  // What another currency costs is recorded when it happens; limits of money do not see it.
  if (!(cost.currency == options_.currency)) return 0;
  return cost_of(cost);
}

std::string MeteringService::subscription_at(const std::string& org, const Identity& agent,
                                             const DelegationChain& chain, Instant when) const {
  const auto of = [&](const Identity& identity) -> const Subscription* {
    const auto found = subscriptions_.find({org, identity.text()});
    if (found == subscriptions_.end()) return nullptr;
    const auto active = std::ranges::find_if(found->second, [&](const Subscription& s) { return s.active_at(when); });
    return active == found->second.end() ? nullptr : &*active;
  };
  const Subscription* found = of(agent);
  for (auto ancestor = chain.rbegin(); found == nullptr && ancestor != chain.rend(); ++ancestor) found = of(*ancestor);
  return found == nullptr ? std::string() : found->id.to_string();
}

Result<MeteringService::Candidate> MeteringService::prepare(const Context& ctx, UsageEvent event, bool trusted) const {
  const EventEnvelope& envelope = event.envelope;
  const bool known = CRETO_TRY(nhi_.is_registered(ctx, envelope.agent));
  if (!known) {
    return error(ErrorKind::not_found, fmt::format("agent `{}` is not registered", envelope.agent.text()))
        .with_retryable(true);
  }
  if (!trusted) {
    if (!envelope.signature) return error(ErrorKind::signature_invalid, "event: is not signed").with_number(401);
    const std::string& algorithm = envelope.signature->algorithm;
    if (algorithm != "ml-dsa-65" && algorithm != "hybrid-ed25519-ml-dsa-65") {
      return error(ErrorKind::signature_invalid,
                   fmt::format("event: `{}` is no signature for events", algorithm.substr(0, 64)))
          .with_number(401);
    }
    auto verified =
        nhi_.verify(ctx, envelope.agent, as_bytes(event.signed_bytes), *envelope.signature, event_signature_context);
    if (!verified) {
      if (verified.error().category() == ErrorCategory::transient) return verified.error();
      return error(ErrorKind::signature_invalid, "event: the signature does not verify")
          .with_number(401)
          .with_cause(verified.error());
    }
  }
  const Instant now = clock_.now();
  const Instant when = envelope.timestamp.instant();
  if (when < now - options_.event_age_max || when > now + options_.event_ahead_max) {
    return error(ErrorKind::invalid_input, fmt::format("event.timestamp: {} is too far from now", to_rfc3339(when)));
  }

  Candidate candidate{std::move(event), {}, {}};
  const UsageEvent& taken = candidate.event;
  // The chain that nhi vouches for. An agent whose chain has just ended still used what it used: then its own word
  // counts.
  candidate.chain = envelope.delegation_chain;
  if (!trusted && taken.envelope.agent.is_agent()) {
    if (auto chain = nhi_.get_delegation_chain(ctx, taken.envelope.agent)) candidate.chain = chain->identities();
  }
  StoredEvent& stored = candidate.stored;
  stored.id = taken.envelope.event_id.to_string();
  stored.agent = taken.envelope.agent.text();
  stored.key = taken.idempotency_key;
  stored.content = crypto::sha3_256(as_bytes(taken.signed_bytes));
  stored.event_type = taken.usage_type;
  stored.action = taken.action;
  stored.event_time = when;
  stored.arrived = now;
  stored.units = CRETO_TRY(to_whole_units(taken.units));
  // Cost in another currency is a fact too; it is recorded in the event, but cannot be added up here.
  if (taken.cost && taken.cost->currency == options_.currency)
    stored.cost = CRETO_TRY(to_nano_money(taken.cost->amount));
  stored.properties = taken.properties;
  stored.properties.try_emplace("units", taken.units.to_string());
  if (taken.cost) stored.properties.try_emplace("cost", taken.cost->amount.to_string());
  stored.document = CRETO_TRY(taken.envelope.to_json());
  return candidate;
}

Result<MeteringService::SignedNotice> MeteringService::sign_notice(const Context& ctx, const Candidate& candidate,
                                                                   const Notice& notice) {
  contracts::CostThresholdExceededEvent event;
  const bool cost = notice.kind == Notice::Kind::cost;
  event.kind = cost ? "cost_threshold" : "quota_breach";
  event.threshold_id = notice.id;
  event.triggering_event = candidate.stored.id;
  event.current = cost ? from_nano_money(notice.used).to_string() : std::to_string(notice.used);
  event.limit = cost ? from_nano_money(notice.limit).to_string() : std::to_string(notice.limit);
  event.unit = cost ? options_.currency.code() : notice.event_type;
  event.period = notice.period;
  event.action = notice.action;
  event.approvers = notice.approvers;
  std::string payload = CRETO_TRY(event.to_json());
  const EventId id = EventId::fresh(clock_.now());
  const EventEnvelope envelope =
      CRETO_TRY(signed_envelope(ctx, contracts::CostThresholdExceededEvent::event_type, candidate.event.envelope.agent,
                                candidate.chain, std::move(payload), id));
  std::string body = CRETO_TRY(envelope.to_json());
  return SignedNotice{notice, id.to_string(), std::move(body)};
}

Result<std::vector<Result<Ingested>>> MeteringService::take(const Context& ctx,
                                                            std::vector<Result<Candidate>> candidates) {
  const std::shared_lock rules(rules_mutex_);
  const Instant keys_from = clock_.now() - options_.idempotency_window;
  const auto repeated = [](const StoredEvent& stored, const SeenKey& seen) -> Result<Ingested> {
    if (seen.content != stored.content) {
      return error(ErrorKind::conflict, fmt::format("idempotency key `{}` was used for other content by event `{}`",
                                                    stored.key, seen.event_id));
    }
    const EventId first = CRETO_TRY(EventId::parse(seen.event_id));
    return Ingested{first, true};
  };

  // What has been here before, so that only new use is counted. The transaction below looks again.
  std::vector<std::optional<Result<Ingested>>> answers(candidates.size());
  CRETO_TRY(database_.read(ctx, [&](sql::Tx& tx) -> Result<> {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      answers[i].reset();
      if (!candidates[i]) {
        answers[i] = candidates[i].error();
        continue;
      }
      const StoredEvent& stored = candidates[i]->stored;
      const auto seen = CRETO_TRY(store::find_key(tx, ctx.org, stored.agent, stored.key, keys_from));
      if (seen) answers[i] = repeated(stored, *seen);
    }
    return {};
  }));

  // Within the batch the first of a key counts.
  std::map<std::pair<std::string, std::string>, std::size_t> first_of;
  std::vector<std::size_t> fresh;
  std::vector<std::pair<std::size_t, std::size_t>> later_of;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (answers[i]) continue;
    const auto [place, first] = first_of.try_emplace({candidates[i]->stored.agent, candidates[i]->stored.key}, i);
    if (first)
      fresh.push_back(i);
    else
      later_of.emplace_back(i, place->second);
  }

  std::vector<std::shared_ptr<const Limits::Added>> added(candidates.size());
  std::vector<std::vector<SignedNotice>> notices(candidates.size());
  const auto take_all_back = [&] {
    for (auto& one : added) {
      if (one) limits_.take_back(*one);
      one.reset();
    }
  };
  for (const std::size_t i : fresh) {
    Candidate& candidate = *candidates[i];
    StoredEvent& stored = candidate.stored;
    stored.subscription = subscription_at(ctx.org, candidate.event.envelope.agent, candidate.chain, stored.event_time);
    stored.subjects = {stored.agent};
    const auto attribute = [&](const std::string& subject) {
      if (!subject.empty() && std::ranges::find(stored.subjects, subject) == stored.subjects.end())
        stored.subjects.push_back(subject);
    };
    for (const Identity& ancestor : candidate.chain) attribute(ancestor.text());
    attribute(stored.subscription);
    std::vector<Notice> reached;
    added[i] = limits_.add({.org = ctx.org,
                            .agent = stored.agent,
                            .chain = candidate.chain,
                            .event_type = stored.event_type,
                            .action = stored.action,
                            .units = stored.units,
                            .cost = stored.cost,
                            .subscription = stored.subscription},
                           stored.arrived, candidate.event.settles, reached);
    for (const Notice& notice : reached) {
      auto ready = sign_notice(ctx, candidate, notice);
      if (!ready) {
        take_all_back();
        return std::move(ready).error();
      }
      notices[i].push_back(*std::move(ready));
    }
  }

  const auto stored = database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    for (const std::size_t i : fresh) {
      const StoredEvent& event = candidates[i]->stored;
      answers[i].reset();
      const auto outcome = tx.savepoint([&]() -> Result<> {
        const bool inserted = CRETO_TRY(store::insert_event(tx, ctx.org, event, keys_from));
        if (!inserted) {
          const auto seen = CRETO_TRY(store::find_key(tx, ctx.org, event.agent, event.key, keys_from));
          if (!seen) return error(ErrorKind::unavailable, "the idempotency key is being used");
          answers[i] = repeated(event, *seen);
          return {};
        }
        for (const SignedNotice& notice : notices[i]) {
          const bool first = CRETO_TRY(store::insert_notice(tx, ctx.org, notice.notice));
          if (!first) continue;
          CRETO_TRY(
              bus::publish(tx, ctx, contracts::CostThresholdExceededEvent::subject, notice.message_id, notice.body));
          const bool cost = notice.notice.kind == Notice::Kind::cost;
          CRETO_TRY(audit_change(tx, ctx, cost ? "cost_threshold_exceeded" : "quota_notice",
                                 fmt::format("metering:{}:{}", cost ? "threshold" : "quota", notice.notice.id)));
        }
        return audit_change(tx, ctx, "event_ingested", fmt::format("metering:event:{}", event.id),
                            fmt::format(R"({{"agent":"{}","event_type":"{}","units":"{}"}})", event.agent,
                                        event.event_type, event.units));
      });
      if (!outcome) {
        // Only what is wrong with this one event; trouble with the database fails the whole.
        if (outcome.error().kind() != ErrorKind::conflict || outcome.error().product() != Product::metering)
          return outcome.error();
        answers[i] = outcome.error();
      } else if (!answers[i]) {
        answers[i] = Ingested{candidates[i]->event.envelope.event_id, false};
      }
    }
    return {};
  });
  if (!stored) {
    take_all_back();
    return stored.error();
  }

  for (const std::size_t i : fresh) {
    const bool counted = answers[i]->has_value() && !(*answers[i])->duplicate;
    if (!counted) limits_.take_back(*added[i]);
  }
  for (const auto& [later, first] : later_of) {
    if (!answers[first]->has_value()) {
      answers[later] = answers[first]->error();
    } else {
      answers[later] =
          repeated(candidates[later]->stored, {(*answers[first])->id.to_string(), candidates[first]->stored.content});
    }
  }
  std::vector<Result<Ingested>> result;
  for (auto& answer : answers) {
    if (!answer->has_value())
      probe_.rejected();
    else if ((*answer)->duplicate)
      probe_.duplicate();
    else
      probe_.ingested();
    result.push_back(*std::move(answer));
  }
  return result;
}

Result<Ingested> MeteringService::ingest(const Context& ctx, std::string_view envelope) {
  const std::string one(envelope);
  auto answers = CRETO_TRY(ingest_batch(ctx, std::span(&one, 1)));
  return std::move(answers.front());
}

Result<std::vector<Result<Ingested>>> MeteringService::ingest_batch(const Context& ctx,
                                                                    std::span<const std::string> envelopes) {
  if (envelopes.size() > batch_max)
    return error(ErrorKind::too_large, fmt::format("events: must be at most {}", batch_max));
  std::vector<Result<Candidate>> candidates;
  for (const std::string& text : envelopes) {
    auto event = parse_usage_event(text);
    if (!event)
      candidates.emplace_back(std::move(event).error());
    else
      candidates.push_back(prepare(ctx, *std::move(event), false));
  }
  return take(ctx, std::move(candidates));
}

Result<std::vector<RejectedEvent>> MeteringService::rejected_events(const Context& ctx, std::size_t limit) {
  if (limit < 1 || limit > 1'000) return error(ErrorKind::invalid_input, "limit: must be 1 to 1000");
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::list_rejected(tx, ctx.org, limit); });
}

Result<EventId> MeteringService::track_message_event(const Context& ctx, const contracts::MessageBillableEvent& event) {
  const std::string_view type = contracts::to_string(event.event_type);
  if (event.idempotency_key.empty() || event.idempotency_key.size() > 256 || !is_valid_utf8(event.idempotency_key)) {
    return error(ErrorKind::invalid_input, "idempotency_key: must have 1 to 256 characters");
  }
  if (event.message_size_bytes > static_cast<std::uint64_t>(limit_max) ||
      event.recipient_count > static_cast<std::uint64_t>(limit_max)) {
    return error(ErrorKind::invalid_input, "message_size_bytes, recipient_count: must be at most 10^18");
  }
  std::string payload = CRETO_TRY(message_usage_payload(type, event.idempotency_key, event.message_size_bytes,
                                                        event.recipient_count, contracts::to_string(event.priority)));
  // The id follows from the key, so that a repetition is the same event to the last bit.
  const Hash256 digest = crypto::sha3_256({as_bytes(ctx.org), as_bytes("\n"), as_bytes(event.agent.text()),
                                           as_bytes("\n"), as_bytes(event.idempotency_key)});
  ByteArray<16> id{};
  std::ranges::copy_n(digest.begin(), id.size(), id.begin());
  id[6] = static_cast<std::uint8_t>(0x80 | (id[6] & 0x0F));  // UUIDv8: made by us, not by time
  id[8] = static_cast<std::uint8_t>(0x80 | (id[8] & 0x3F));
  EventEnvelope envelope{"message_usage", EventId::from_bytes(id), event.agent, event.delegation_chain,
                         event.timestamp, std::move(payload),      {}};
  auto understood = usage_event_of(std::move(envelope));
  if (!understood) return std::move(understood).error();
  std::vector<Result<Candidate>> candidates;
  candidates.push_back(prepare(ctx, *std::move(understood), true));
  auto answers = CRETO_TRY(take(ctx, std::move(candidates)));
  if (!answers.front()) return answers.front().error();
  return answers.front()->id;
}

// --- plans and subscriptions
// ---------------------------------------------------------------------------------------------

Result<Plan> MeteringService::put_plan(const Context& ctx, const Plan& plan) {
  CRETO_TRY(validate(plan));
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Plan> {
    const auto newest = CRETO_TRY(store::find_plan(tx, ctx.org, plan.id, 0));
    Plan next = plan;
    next.version = newest ? newest->version : 1;
    if (newest) {
      const std::string before = CRETO_TRY(to_json(*newest));
      const std::string after = CRETO_TRY(to_json(next));
      if (before == after) return *newest;
      ++next.version;
    }
    CRETO_TRY(store::insert_plan(tx, ctx.org, next));
    CRETO_TRY(audit_change(tx, ctx, "plan_created", fmt::format("metering:plan:{}:{}", next.id, next.version)));
    return next;
  });
}

Result<Plan> MeteringService::get_plan(const Context& ctx, std::string_view id, std::int64_t version) {
  auto plan =
      CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_plan(tx, ctx.org, id, version); }));
  if (!plan) return not_found("plan", id);
  return *std::move(plan);
}

Result<std::vector<Plan>> MeteringService::list_plans(const Context& ctx) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::newest_plans(tx, ctx.org); });
}

Result<Subscription> MeteringService::subscribe(const Context& ctx, const NewSubscription& wanted) {
  const Identity agent = CRETO_TRY(Identity::parse(wanted.agent));
  const bool known = CRETO_TRY(nhi_.is_registered(ctx, agent));
  if (!known) return not_found("agent", wanted.agent);
  const std::unique_lock rules(rules_mutex_);
  auto& of_agent = subscriptions_[{ctx.org, agent.text()}];
  const Subscription made = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Subscription> {
    return io::once(
        tx, ctx, "metering.subscribe", std::chrono::hours(24),
        [&]() -> Result<Subscription> {
          const auto plan = CRETO_TRY(store::find_plan(tx, ctx.org, wanted.plan_id, wanted.plan_version));
          if (!plan) return not_found("plan", wanted.plan_id);
          const auto there = CRETO_TRY(store::list_subscriptions(tx, ctx.org, agent.text()));
          for (const Subscription& one : there) {
            if (!one.ended_at) {
              return error(ErrorKind::already_exists,
                           fmt::format("`{}` has subscription `{}`", agent.text(), one.id.to_string()));
            }
          }
          const Instant now = clock_.now();
          const Subscription subscription{
              SubscriptionId::fresh(now), agent.text(), plan->id, plan->version, now, std::nullopt};
          CRETO_TRY(store::put_subscription(tx, ctx.org, subscription));
          CRETO_TRY(
              audit_change(tx, ctx, "subscription_created", "metering:subscription:" + subscription.id.to_string()));
          return subscription;
        },
        [](const Subscription& subscription) { return subscription.id.to_string(); },
        [&](std::string_view id) -> Result<Subscription> {
          const SubscriptionId first = CRETO_TRY(SubscriptionId::parse(id));
          auto found = CRETO_TRY(store::find_subscription(tx, ctx.org, first));
          if (!found) return not_found("subscription", id);
          return *std::move(found);
        });
  }));
  if (std::ranges::find(of_agent, made.id, &Subscription::id) == of_agent.end()) of_agent.push_back(made);
  if (!made.ended_at) limits_.bind(ctx.org, made.agent, made.id.to_string());
  return made;
}

Result<Subscription> MeteringService::end_subscription(const Context& ctx, const SubscriptionId& id) {
  const std::unique_lock rules(rules_mutex_);
  const Subscription ended = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Subscription> {
    auto found = CRETO_TRY(store::find_subscription(tx, ctx.org, id));
    if (!found) return not_found("subscription", id.to_string());
    if (found->ended_at) return *found;
    found->ended_at = clock_.now();
    CRETO_TRY(store::put_subscription(tx, ctx.org, *found));
    CRETO_TRY(audit_change(tx, ctx, "subscription_ended", "metering:subscription:" + id.to_string()));
    return *found;
  }));
  auto& of_agent = subscriptions_[{ctx.org, ended.agent}];
  bool other_active = false;
  for (Subscription& one : of_agent) {
    if (one.id == id)
      one = ended;
    else if (!one.ended_at)
      other_active = true;
  }
  if (!other_active) limits_.bind(ctx.org, ended.agent, "");
  return ended;
}

Result<Subscription> MeteringService::get_subscription(const Context& ctx, const SubscriptionId& id) {
  auto found =
      CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_subscription(tx, ctx.org, id); }));
  if (!found) return not_found("subscription", id.to_string());
  return *std::move(found);
}

Result<std::vector<Subscription>> MeteringService::list_subscriptions(const Context& ctx, std::string_view agent) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::list_subscriptions(tx, ctx.org, agent); });
}

// --- limits
// --------------------------------------------------------------------------------------------------------------

Result<Quota> MeteringService::set_quota(const Context& ctx, const Quota& quota) {
  CRETO_TRY(validate(quota));
  const std::unique_lock rules(rules_mutex_);
  const Instant now = clock_.now();
  // What the present window holds, with a step to spare in a rolling one.
  const Instant from = quota.window == WindowKind::rolling ? now - quota.rolling_length - quota.rolling_length / 30
                                                           : calendar_window(quota.window, now).begin;
  std::optional<Quota> before;
  std::vector<Limits::Seed> seeds;
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    before = CRETO_TRY(store::find_quota(tx, ctx.org, quota.id));
    seeds = CRETO_TRY(store::use_since(tx, ctx.org, quota, from));
    CRETO_TRY(store::put_quota(tx, ctx.org, quota));
    return audit_change(tx, ctx, before ? "quota_changed" : "quota_created", "metering:quota:" + quota.id,
                        fmt::format(R"({{"limit":"{}","subject":"{}"}})", quota.limit, quota.subject));
  }));
  if (before && before->subject != quota.subject) limits_.remove_quota(ctx.org, *before);
  if (auto placed = limits_.put_quota(ctx.org, quota, now, seeds); !placed) {
    // Too many: the store must not keep what is not in force.
    CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) { return store::delete_quota(tx, ctx.org, quota.id); }));
    return std::move(placed).error();
  }
  return quota;
}

Result<> MeteringService::delete_quota(const Context& ctx, std::string_view id) {
  const std::unique_lock rules(rules_mutex_);
  std::optional<Quota> before;
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    before = CRETO_TRY(store::find_quota(tx, ctx.org, id));
    if (!before) return not_found("quota", id);
    CRETO_TRY(store::delete_quota(tx, ctx.org, id));
    return audit_change(tx, ctx, "quota_deleted", fmt::format("metering:quota:{}", id));
  }));
  limits_.remove_quota(ctx.org, *before);
  return {};
}

Result<std::vector<Quota>> MeteringService::list_quotas(const Context& ctx, std::string_view subject) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::list_quotas(tx, ctx.org, subject); });
}

Result<QuotaState> MeteringService::quota_state(const Context& ctx, std::string_view id) {
  const auto quota =
      CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_quota(tx, ctx.org, id); }));
  if (!quota) return not_found("quota", id);
  limits_.expire(clock_.now());
  const auto state = limits_.state(ctx.org, *quota, clock_.now());
  if (!state) return not_found("quota", id);
  return *state;
}

Result<contracts::QuotaDecision> MeteringService::check_quota(const Context& ctx, const Identity& agent,
                                                              const DelegationChain& chain, std::string_view event_type,
                                                              std::int64_t units) {
  if (chain.size() > delegation_chain_max_depth)
    return error(ErrorKind::invalid_input, "delegation_chain: is too deep");
  if (units < 0 || units > limit_max) return error(ErrorKind::invalid_input, "units: must be 0 to 10^18");
  const Verdict verdict = limits_.check(
      {.org = ctx.org, .agent = agent.text(), .chain = chain, .event_type = event_type, .units = units}, clock_.now());
  const bool allowed = verdict.kind == Verdict::Kind::granted;
  (allowed ? probe_.granted() : probe_.refused());
  return contracts::QuotaDecision{allowed, std::string(verdict.id), verdict.limit, verdict.used, verdict.reset_at};
}

Result<contracts::QuotaDecision> MeteringService::check_message_quota(const Context& ctx, const Identity& agent,
                                                                      contracts::MessageEventType type) {
  const bool own_chain = !ctx.chain.empty() && ctx.chain.back() == agent;
  static const DelegationChain none;
  return check_quota(ctx, agent, own_chain ? ctx.chain : none, contracts::to_string(type), 1);
}

Result<SubjectThreshold> MeteringService::set_threshold(const Context& ctx, const SubjectThreshold& threshold) {
  CRETO_TRY(validate(threshold));
  CRETO_TRY(cost_of(threshold.threshold.limit));
  const std::unique_lock rules(rules_mutex_);
  std::optional<SubjectThreshold> before;
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    before = CRETO_TRY(store::find_threshold(tx, ctx.org, threshold.threshold.threshold_id));
    CRETO_TRY(store::put_threshold(tx, ctx.org, threshold));
    return audit_change(tx, ctx, before ? "cost_threshold_changed" : "cost_threshold_created",
                        "metering:threshold:" + threshold.threshold.threshold_id);
  }));
  if (before && before->subject != threshold.subject) limits_.remove_threshold(ctx.org, *before);
  if (auto placed = limits_.put_threshold(ctx.org, threshold); !placed) {
    CRETO_TRY(database_.transaction(
        ctx, [&](sql::Tx& tx) { return store::delete_threshold(tx, ctx.org, threshold.threshold.threshold_id); }));
    return std::move(placed).error();
  }
  return threshold;
}

Result<> MeteringService::delete_threshold(const Context& ctx, std::string_view id) {
  const std::unique_lock rules(rules_mutex_);
  std::optional<SubjectThreshold> before;
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    before = CRETO_TRY(store::find_threshold(tx, ctx.org, id));
    if (!before) return not_found("threshold", id);
    CRETO_TRY(store::delete_threshold(tx, ctx.org, id));
    return audit_change(tx, ctx, "cost_threshold_deleted", fmt::format("metering:threshold:{}", id));
  }));
  limits_.remove_threshold(ctx.org, *before);
  return {};
}

Result<std::vector<SubjectThreshold>> MeteringService::list_thresholds(const Context& ctx, std::string_view subject) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::list_thresholds(tx, ctx.org, subject); });
}

Error MeteringService::refusal(const Verdict& verdict, Instant now) const {
  Error refused = error(verdict.kind == Verdict::Kind::oversight_required ? ErrorKind::oversight_required
                                                                          : ErrorKind::quota_exceeded,
                        describe_refusal(verdict))
                      .with_context(fmt::format("limit `{}`", verdict.id));
  if (verdict.reset_at) return std::move(refused).with_retry_after(std::max(*verdict.reset_at - now, Nanos(0)));
  return refused;
}

Result<contracts::Hold> MeteringService::reserve(const Context& ctx, const contracts::SpendRequest& request) {
  if (request.delegation_chain.size() > delegation_chain_max_depth) {
    return error(ErrorKind::invalid_input, "delegation_chain: is too deep");
  }
  if (request.hold_for <= Nanos(0) || request.hold_for > options_.hold_max) {
    return error(ErrorKind::invalid_input,
                 fmt::format("hold_for: must be positive and at most {}", creto::to_string(options_.hold_max)));
  }
  const std::int64_t units = CRETO_TRY(to_whole_units(request.units));
  const NanoMoney cost = CRETO_TRY(limited_cost(request.cost));
  const Instant now = clock_.now();
  const Instant until = now + request.hold_for;
  // A name that is no usage type is that of an action.
  const Verdict verdict = limits_.reserve(request.id,
                                          {.org = ctx.org,
                                           .agent = request.agent.text(),
                                           .chain = request.delegation_chain,
                                           .event_type = request.event_type,
                                           .units = units,
                                           .cost = cost},
                                          now, until);
  if (verdict.kind == Verdict::Kind::granted) {
    probe_.granted();
    return contracts::Hold{request.id, until};
  }
  if (verdict.kind == Verdict::Kind::conflict) {
    return error(ErrorKind::conflict,
                 fmt::format("reservation `{}` was used for other content", request.id.to_string()));
  }
  probe_.refused();
  telemetry_.log(LogLevel::info, "metering", "spending_refused", &ctx,
                 {{"limit", verdict.id}, {"agent", request.agent.text()}, {"event_type", request.event_type}});
  return refusal(verdict, now);
}

Result<> MeteringService::release(const Context&, const ReservationId& id) {
  limits_.release(id);
  return {};
}

Result<std::optional<authz::Decision>> MeteringService::evaluate(const Context& ctx,
                                                                 const authz::CheckRequest& request) {
  std::string_view type = request.action;
  for (const auto& [action, event_type] : options_.actions) {
    if (action == request.action) type = event_type;
  }
  if (request.chain.size() > delegation_chain_max_depth)
    return error(ErrorKind::invalid_input, "delegation chain: is too deep");
  const Verdict verdict = limits_.check({.org = ctx.org,
                                         .agent = request.principal.text(),
                                         .chain = request.chain,
                                         .event_type = type,
                                         .action = request.action,
                                         .units = 1},
                                        clock_.now());
  if (verdict.kind == Verdict::Kind::granted) return std::optional<authz::Decision>();
  probe_.refused();
  return std::optional<authz::Decision>(authz::QuotaExceeded{std::string(verdict.id), verdict.limit, verdict.used,
                                                             verdict.reset_at, describe_refusal(verdict)});
}

// --- cost
// ----------------------------------------------------------------------------------------------------------------

Result<contracts::OversightTrigger> MeteringService::trigger_of(const CostFinding& finding,
                                                                const contracts::BillableEvent& event) const {
  const Money with_use{from_nano_money(finding.with_use), options_.currency};
  const Money limit{from_nano_money(finding.limit), options_.currency};
  contracts::OversightTrigger trigger;
  trigger.policy_id = finding.id;
  trigger.current_cost = with_use;
  trigger.threshold = limit;
  trigger.action = finding.action;
  trigger.approvers = finding.approvers;
  if (finding.anomaly) {
    trigger.reason = contracts::AnomalyDetected{finding.anomaly->expected_per_hour, finding.anomaly->actual_per_hour,
                                                finding.anomaly->confidence};
  } else if (finding.period == BillingPeriod::transaction) {
    trigger.reason = contracts::TransactionLimit{event.cost, limit};
  } else {
    trigger.reason = contracts::PeriodLimit{with_use, limit, finding.period};
  }
  return trigger;
}

Result<std::optional<contracts::OversightTrigger>> MeteringService::check_cost_threshold(
    const Context& ctx, const contracts::BillableEvent& event, BillingPeriod period) {
  if (event.delegation_chain.size() > delegation_chain_max_depth) {
    return error(ErrorKind::invalid_input, "delegation_chain: is too deep");
  }
  const NanoMoney cost = CRETO_TRY(limited_cost(event.cost));
  const auto finding = limits_.check_cost({.org = ctx.org,
                                           .agent = event.agent.text(),
                                           .chain = event.delegation_chain,
                                           .event_type = event.event_type,
                                           .units = 0,
                                           .cost = cost},
                                          period, clock_.now());
  if (!finding) return std::optional<contracts::OversightTrigger>();
  contracts::OversightTrigger trigger = CRETO_TRY(trigger_of(*finding, event));
  return std::optional(std::move(trigger));
}

Result<std::vector<contracts::OversightTrigger>> MeteringService::check_multiple_thresholds(
    const Context& ctx, const contracts::BillableEvent& event,
    const std::vector<contracts::CostThreshold>& thresholds) {
  const NanoMoney cost = CRETO_TRY(limited_cost(event.cost));
  const Use use{.org = ctx.org, .agent = event.agent.text(), .event_type = event.event_type, .units = 0, .cost = cost};
  std::vector<contracts::OversightTrigger> triggers;
  for (const contracts::CostThreshold& threshold : thresholds) {
    const NanoMoney limit = CRETO_TRY(cost_of(threshold.limit));
    const NanoMoney with_use = limits_.cost_with(use, threshold.period, clock_.now());
    if (with_use <= limit) continue;
    const CostFinding finding{threshold.threshold_id,
                              event.agent.text(),
                              threshold.period,
                              with_use,
                              limit,
                              threshold.action,
                              threshold.approvers,
                              {}};
    contracts::OversightTrigger trigger = CRETO_TRY(trigger_of(finding, event));
    triggers.push_back(std::move(trigger));
  }
  return triggers;
}

Result<std::vector<std::optional<contracts::OversightTrigger>>> MeteringService::check_batch(
    const Context& ctx, const std::vector<contracts::BillableEvent>& events, BillingPeriod period) {
  if (events.size() > batch_max)
    return error(ErrorKind::too_large, fmt::format("events: must be at most {}", batch_max));
  std::vector<std::optional<contracts::OversightTrigger>> triggers;
  for (const contracts::BillableEvent& event : events) {
    auto trigger = CRETO_TRY(check_cost_threshold(ctx, event, period));
    triggers.push_back(std::move(trigger));
  }
  return triggers;
}

Result<contracts::AccumulatedCost> MeteringService::accumulated_cost(const Context& ctx, const Identity& agent,
                                                                     BillingPeriod period) {
  if (period == BillingPeriod::transaction) return error(ErrorKind::invalid_input, "period: must be a window of time");
  const auto totals = limits_.costs(ctx.org, agent.text(), period, clock_.now());
  if (!totals) return not_found("usage of", agent.text());
  contracts::AccumulatedCost cost{agent, period, {from_nano_money(totals->total), options_.currency}, {}};
  for (const auto& [type, amount] : totals->by_event_type) {
    cost.by_event_type.emplace(type, Money{from_nano_money(amount), options_.currency});
  }
  return cost;
}

// --- usage and invoices
// --------------------------------------------------------------------------------------------------

Result<std::vector<UsageRow>> MeteringService::usage(const Context& ctx, const UsageQuery& query) {
  if (query.subject.empty()) return error(ErrorKind::invalid_input, "subject: is required");
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::usage(tx, ctx.org, query, options_.currency); });
}

Result<Invoice> MeteringService::issue_invoice(const Context& ctx, const SubscriptionId& id,
                                               std::optional<Instant> until) {
  const Instant now = clock_.now();
  if (until && *until > now) return error(ErrorKind::invalid_input, "until: must not be in the future");
  const Instant end = until.value_or(now);
  Invoice issued = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Invoice> {
    return io::once(
        tx, ctx, "metering.issue_invoice", std::chrono::hours(24),
        [&]() -> Result<Invoice> {
          const auto subscription = CRETO_TRY(store::find_subscription(tx, ctx.org, id));
          if (!subscription) return not_found("subscription", id.to_string());
          const auto earlier = CRETO_TRY(store::list_invoices(tx, ctx.org, id));
          for (const Invoice& one : earlier) {
            if (one.period.end == end) return one;
          }
          const Instant begin = earlier.empty() ? subscription->started_at : earlier.front().period.end;
          if (begin >= end) {
            return error(ErrorKind::conflict, fmt::format("subscription `{}` is billed until {} already",
                                                          id.to_string(), to_rfc3339(begin)));
          }
          const auto plan = CRETO_TRY(store::find_plan(tx, ctx.org, subscription->plan_id, subscription->plan_version));
          CRETO_ASSERT(plan.has_value());

          const Period period{begin, end};
          InvoiceDraft draft(*plan, period, subscription->started_at);
          std::int64_t after_ns = INT64_MIN;
          std::string after_id;
          for (;;) {
            const auto facts = CRETO_TRY(store::unbilled(tx, ctx.org, id.to_string(), end, after_ns, after_id, page));
            for (const store::BillableFact& fact : facts) {
              CRETO_TRY(draft.add({fact.id, fact.time, fact.event_type, &fact.properties}));
            }
            if (facts.size() < page) break;
            after_ns = unix_ns(facts.back().time);
            after_id = facts.back().id.to_string();
          }
          InvoiceDraft::Priced priced = CRETO_TRY(draft.finish());
          const std::int64_t number = CRETO_TRY(store::next_number(tx, ctx.org));
          Invoice invoice{.id = InvoiceId::fresh(now),
                          .number = number,
                          .subscription = id,
                          .agent = subscription->agent,
                          .plan_id = plan->id,
                          .plan_version = plan->version,
                          .plan_name = plan->name,
                          .period = period,
                          .issued_at = now,
                          .currency = plan->currency,
                          .lines = std::move(priced.lines),
                          .total = priced.total,
                          .document = {},
                          .signature = {},
                          .pdf_object = {},
                          .sent = false};
          invoice.document = CRETO_TRY(invoice_document(invoice));
          CRETO_TRY(store::insert_invoice(tx, ctx.org, invoice));
          CRETO_TRY(store::mark_billed(tx, ctx.org, id.to_string(), end, invoice.id.to_string()));
          CRETO_TRY(
              audit_change(tx, ctx, "invoice_generated", "metering:invoice:" + invoice.id.to_string(),
                           fmt::format(R"({{"number":"{}","total":"{}","currency":"{}"}})", invoice_number_text(number),
                                       invoice.total.to_string(), invoice.currency.code())));
          return invoice;
        },
        [](const Invoice& invoice) { return invoice.id.to_string(); },
        [&](std::string_view text) -> Result<Invoice> {
          const InvoiceId first = CRETO_TRY(InvoiceId::parse(text));
          auto found = CRETO_TRY(store::find_invoice(tx, ctx.org, first));
          if (!found) return not_found("invoice", text);
          return *std::move(found);
        });
  }));
  return finish_invoice(ctx, std::move(issued));
}

/// Signs outside the transaction that made the invoice (signing asks nhi, which has its own); a crash in between is
/// made good by `tick`. With the signature the invoice goes out.
Result<Invoice> MeteringService::finish_invoice(const Context& ctx, Invoice invoice) {
  if (invoice.signature) return invoice;
  CRETO_TRY(ensure_identity(ctx));
  const std::string bytes = "creto.invoice.v1\n" + invoice.document;
  invoice.signature = CRETO_TRY(nhi_.sign(own(ctx), self_, as_bytes(bytes), invoice_context));
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(store::sign_invoice(tx, ctx.org, invoice));
    return bus::publish(tx, ctx, "metering.invoices", invoice.id.to_string(), invoice.id.to_string());
  }));
  probe_.invoiced();
  return get_invoice(ctx, invoice.id);
}

Result<Invoice> MeteringService::get_invoice(const Context& ctx, const InvoiceId& id) {
  auto found = CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_invoice(tx, ctx.org, id); }));
  if (!found) return not_found("invoice", id.to_string());
  return *std::move(found);
}

Result<std::vector<Invoice>> MeteringService::list_invoices(const Context& ctx,
                                                            const std::optional<SubscriptionId>& subscription) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::list_invoices(tx, ctx.org, subscription); });
}

Result<Bytes> MeteringService::invoice_pdf(const Context& ctx, const InvoiceId& id) {
  const Invoice invoice = CRETO_TRY(get_invoice(ctx, id));
  return render_pdf(invoice, options_.issuer);
}

Result<> MeteringService::deliver(const Context& ctx, const InvoiceId& id) {
  Invoice invoice = CRETO_TRY(get_invoice(ctx, id));
  if (invoice.sent) return {};
  const Bytes pdf = CRETO_TRY(render_pdf(invoice, options_.issuer));
  const Context self = own(ctx);
  if (invoice.pdf_object.empty()) {
    invoice.pdf_object = CRETO_TRY(delivery_.keep(self, invoice, pdf));
    CRETO_TRY(database_.transaction(self, [&](sql::Tx& tx) { return store::set_delivery(tx, ctx.org, invoice); }));
  }
  CRETO_TRY(delivery_.send(self, invoice, pdf));
  invoice.sent = true;
  return database_.transaction(self, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(store::set_delivery(tx, ctx.org, invoice));
    return audit_change(tx, self, "invoice_sent", "metering:invoice:" + invoice.id.to_string());
  });
}

// --- the bus, and time
// ---------------------------------------------------------------------------------------------------

Result<> MeteringService::on_usage(const Context& ctx, std::string_view message_id, std::uint32_t attempt,
                                   const std::string& body) {
  const auto taken = ingest(ctx, body);
  if (taken) return {};
  const Error& failed = taken.error();
  if (failed.category() == ErrorCategory::transient) return failed;
  if (failed.kind() == ErrorKind::not_found && attempt < unknown_agent_attempts) return failed;
  // Nothing that comes again will be better: keep it for a human, say so, and go on.
  telemetry_.log(LogLevel::warn, "metering", "event_rejected", &ctx,
                 {{"message", message_id}, {"error", failed.to_string()}});
  return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(store::insert_rejected(tx, ctx.org, {std::string(message_id), failed.to_string(), body, clock_.now()}));
    auto record = audit::AuditRecord::of(ctx, "event_rejected", fmt::format("metering:event:{}", message_id),
                                         audit::Outcome::denied);
    record.outcome_detail = failed.to_string();
    CRETO_TRY(audit::record(tx, ctx, std::move(record)));
    return {};
  });
}

/// 001 §7.3: an approver raised a quota.
Result<> MeteringService::on_decision(const Context& ctx, const std::string& body) {
  const EventEnvelope envelope = CRETO_TRY(EventEnvelope::from_json(body));
  if (envelope.event_type != contracts::OversightDecisionEvent::event_type) return {};
  const auto decision = CRETO_TRY(contracts::OversightDecisionEvent::from_json(envelope.payload));
  if (decision.decision != contracts::ApprovalState::approved) return {};
  const std::optional<QuotaRaise> raise = quota_raise_of(decision.action, decision.arguments, decision.response);
  if (!raise) return {};
  if (!envelope.signature) return error(ErrorKind::signature_invalid, "decision: is not signed").with_number(401);
  const std::string canonical = CRETO_TRY(envelope.to_json());
  if (canonical != body) return error(ErrorKind::invalid_input, "decision: must be canonical JSON");
  const std::string bytes = CRETO_TRY(envelope.signed_bytes());
  const Identity oversight = CRETO_TRY(Identity::service("oversight"));
  CRETO_TRY(nhi_.verify(own(ctx), oversight, as_bytes(bytes), *envelope.signature, event_signature_context));

  auto quota = CRETO_TRY(
      sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_quota(tx, ctx.org, raise->quota_id); }));
  if (!quota) return not_found("quota", raise->quota_id);
  if (quota->limit >= raise->new_limit) return {};  // delivered again, or raised further meanwhile
  quota->limit = raise->new_limit;
  Context as_approver = own(ctx);
  if (auto approver = Identity::parse(decision.approver)) as_approver.chain = {*approver, self_};
  CRETO_TRY(set_quota(as_approver, *quota));
  return {};
}

Result<> MeteringService::attach(bus::Bus& bus) {
  const auto context_of = [this](const bus::BusMessage& message) {
    Context ctx = Context::of_service(self_);
    ctx.org = message.org;
    ctx.trace = message.trace;
    return ctx;
  };
  CRETO_TRY(bus.subscribe("metering-usage", "metering.events.>",
                          [this, context_of](const bus::BusMessage& message) {
                            return on_usage(context_of(message), message.message_id, message.attempt, message.body);
                          },
                          {.attempts_max = 1'000}));
  CRETO_TRY(bus.subscribe(
      "metering-decisions", contracts::OversightDecisionEvent::subject.data(),
      [this, context_of](const bus::BusMessage& message) { return on_decision(context_of(message), message.body); }));
  return bus.subscribe("metering-invoices", "metering.invoices",
                       [this, context_of](const bus::BusMessage& message) -> Result<> {
                         const InvoiceId id = CRETO_TRY(InvoiceId::parse(message.body));
                         return deliver(context_of(message), id);
                       },
                       {.attempts_max = 1'000});
}

Result<> MeteringService::tick() {
  const Instant now = clock_.now();
  limits_.expire(now);
  Context ctx = Context::of_service(self_);
  CRETO_TRY(database_.transaction(
      ctx, [&](sql::Tx& tx) { return store::forget_keys(tx, now - options_.idempotency_window); }));
  const auto unfinished =
      CRETO_TRY(sql::read(database_, ctx, [](sql::Tx& tx) { return store::unfinished_invoices(tx); }));
  for (const auto& [org, id] : unfinished) {
    ctx.org = org;
    Invoice invoice = CRETO_TRY(get_invoice(ctx, id));
    CRETO_TRY(finish_invoice(ctx, std::move(invoice)));
  }

  // Months that are over.
  const Instant month = calendar_window(WindowKind::month, now).begin;
  std::vector<std::pair<std::string, Subscription>> all;
  {
    const std::shared_lock rules(rules_mutex_);
    for (const auto& [key, of_agent] : subscriptions_) {
      for (const Subscription& subscription : of_agent) all.emplace_back(key.first, subscription);
    }
  }
  for (const auto& [org, subscription] : all) {
    const Instant end = subscription.ended_at && *subscription.ended_at < month ? *subscription.ended_at : month;
    if (subscription.started_at >= end) continue;
    ctx.org = org;
    auto invoice = issue_invoice(ctx, subscription.id, end);
    if (!invoice && invoice.error().kind() != ErrorKind::conflict) return std::move(invoice).error();
  }
  return {};
}

HealthStatus MeteringService::health() {
  const Context ctx = Context::of_service(self_);
  const auto answered = database_.read(ctx, [](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.query("SELECT 1"));
    return {};
  });
  if (answered) return {};
  return {Health::unhealthy, answered.error().to_string()};
}

Result<std::unique_ptr<LocalMetering>> create_metering(sql::Database& database, nhi::Nhi& nhi,
                                                       consensus::TimestampSource& timestamps,
                                                       InvoiceDelivery& delivery, const Clock& clock,
                                                       Telemetry& telemetry, MeteringOptions options) {
  CRETO_TRY(audit::prepare(database));
  CRETO_TRY(store::migrate(database));
  auto service =
      std::make_unique<MeteringService>(database, nhi, timestamps, delivery, clock, telemetry, std::move(options));
  CRETO_TRY(service->load());
  return std::unique_ptr<LocalMetering>(std::move(service));
}

}  // namespace creto::metering
