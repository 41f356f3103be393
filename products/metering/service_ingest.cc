#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "billing/rating.h"
#include "creto/common/json.h"
#include "creto/contracts/events.h"
#include "creto/crypto/hash.h"
#include "creto/io/bus.h"
#include "ledger/batch_proof.h"
#include "service.h"
#include "service_words.h"

namespace creto::metering {
namespace {

constexpr std::size_t envelopes_max = 1'000;
constexpr std::size_t records_max = 10'000;
constexpr std::size_t records_bytes_max = 16 << 20;

Error no_signature(std::string message) {
  return error(ErrorKind::signature_invalid, std::move(message)).with_number(401);
}

}  // namespace

// --- whom use counts for

std::uint64_t MeteringService::version() const { return identities_changed_.count() + subscriptions_changed_.load(); }

Result<Attributor::Attributed> MeteringService::attribute(const Context& ctx, const Identity& agent, Instant when) {
  const bool known = CRETO_TRY(nhi_.is_registered(ctx, agent));
  if (!known) {
    return error(ErrorKind::not_found, fmt::format("agent `{}` is not registered", agent.text())).with_retryable(true);
  }
  Attributed found;
  // Whose delegation has ended since still used what it used, for those who were above it then.
  if (agent.is_agent()) {
    auto past = nhi_.get_past_delegation_chain(ctx, agent, when);
    if (past) {
      found.chain = past->chain.identities();
      found.from = past->from;
      found.until = past->until;
    } else if (past.error().category() == ErrorCategory::transient) {
      return std::move(past).error();
    }
  }
  CRETO_TRY(add_subscription(ctx, agent, when, found));
  return found;
}

/// Of the agent itself, else of its nearest ancestor that had one at the time.
Result<> MeteringService::add_subscription(const Context& ctx, const Identity& agent, Instant when, Attributed& found) {
  const Subscription* billed = nullptr;
  const auto of = [&](const Identity& identity) {
    const auto all = subscriptions_.find({ctx.org, identity.text()});
    if (all == subscriptions_.end()) return false;
    for (const Subscription& one : all->second) {
      const Instant end = one.ended_at.value_or(Instant::max());
      if (one.active_at(when)) {
        found.subscription = one.id.to_string();
        found.from = std::max(found.from, one.started_at);
        found.until = std::min(found.until, end);
        billed = &one;
        return true;
      }
      // The answer holds as long as none of these begins or ends.
      if (end <= when) found.from = std::max(found.from, end);
      if (one.started_at > when) found.until = std::min(found.until, one.started_at);
    }
    return false;
  };
  of(agent);
  for (auto ancestor = found.chain.rbegin(); billed == nullptr && ancestor != found.chain.rend(); ++ancestor) {
    if (*ancestor != agent) of(*ancestor);
  }
  if (billed == nullptr) return {};
  const SubscriptionTerms& terms = billed->terms_at(when);
  const auto next = std::ranges::upper_bound(billed->terms, when, {}, &SubscriptionTerms::from);
  found.from = std::max(found.from, terms.from);
  if (next != billed->terms.end()) found.until = std::min(found.until, next->from);
  found.needs = CRETO_TRY(needs_of(ctx, terms));
  return {};
}

Result<std::shared_ptr<const BillingNeeds>> MeteringService::needs_of(const Context& ctx,
                                                                      const SubscriptionTerms& terms) {
  const std::tuple key(ctx.org, terms.plan_id, terms.plan_version, terms.overrides);
  {
    const std::scoped_lock lock(needs_mutex_);
    if (const auto known = needs_.find(key); known != needs_.end()) return known->second;
  }
  const auto plan = CRETO_TRY(sql::read(database_, own(ctx), [&](sql::Tx& tx) {
    return billing::find_plan(tx, ctx.org, terms.plan_id, terms.plan_version);
  }));
  const auto merged = plan ? with_overrides(*plan, terms.overrides) : not_found("plan", terms.plan_id);
  const std::scoped_lock lock(needs_mutex_);
  // Of a plan that cannot be read the invoice will tell; no fact is refused for it.
  return needs_.try_emplace(key, merged ? BillingNeeds::of(*merged) : nullptr).first->second;
}

// --- events

Result<> MeteringService::verify_envelope(const Context& ctx, const UsageEvent& event) const {
  const EventEnvelope& envelope = event.envelope;
  const bool known = CRETO_TRY(nhi_.is_registered(ctx, envelope.agent));
  if (!known) {
    return error(ErrorKind::not_found, fmt::format("agent `{}` is not registered", envelope.agent.text()))
        .with_retryable(true);
  }
  if (!envelope.signature) return no_signature("event: is not signed");
  const std::string& algorithm = envelope.signature->algorithm;
  if (algorithm != "ml-dsa-65" && algorithm != "hybrid-ed25519-ml-dsa-65") {
    return no_signature(fmt::format("event: `{}` is no signature for events", algorithm.substr(0, 64)));
  }
  const auto verified = nhi_.verify_past(ctx, envelope.agent, as_bytes(event.signed_bytes), *envelope.signature,
                                         event_signature_context, envelope.timestamp.instant());
  if (verified) return {};
  if (verified.error().category() == ErrorCategory::transient) return verified.error();
  return no_signature("event: the signature does not verify").with_cause(verified.error());
}

Result<Ingested> MeteringService::ingest(const Context& ctx, std::string_view envelope) {
  const std::string one(envelope);
  auto answers = CRETO_TRY(ingest_batch(ctx, std::span(&one, 1)));
  return std::move(answers.front());
}

Result<std::vector<Result<Ingested>>> MeteringService::ingest_batch(const Context& ctx,
                                                                    std::span<const std::string> envelopes) {
  if (envelopes.size() > envelopes_max)
    return error(ErrorKind::too_large, fmt::format("events: must be at most {}", envelopes_max));
  std::vector<Result<UsageEvent>> events;
  for (const std::string& text : envelopes) {
    auto event = parse_usage_event(text);
    if (event) {
      if (auto good = verify_envelope(ctx, *event); !good) event = std::move(good).error();
    }
    events.push_back(std::move(event));
  }
  return take_envelopes(ctx, events);
}

Result<std::vector<Result<Ingested>>> MeteringService::take_envelopes(const Context& ctx,
                                                                      std::span<const Result<UsageEvent>> events) {
  std::vector<Intake::Reached> reached;
  std::optional<Result<Intake::Answers>> answers;
  {
    const std::shared_lock rules(rules_mutex_);
    answers = intake_->take(ctx, events, reached);
  }
  return finish(ctx, *std::move(answers), reached);
}

Result<std::vector<Result<Ingested>>> MeteringService::ingest_records(const Context& ctx, const RecordBatch& batch) {
  if (batch.records.empty()) return std::vector<Result<Ingested>>();
  if (batch.records.size() > records_max)
    return error(ErrorKind::too_large, fmt::format("records: must be at most {}", records_max));
  const std::string caller = ctx.caller ? ctx.caller->text() : std::string();
  const std::string reporter = batch.reporter.empty() ? caller : batch.reporter;
  if (reporter.empty()) return error(ErrorKind::invalid_input, "reporter: is required");
  std::vector<BytesView> records;
  std::vector<Hash256> leaves;
  std::size_t bytes = 0;
  for (const auto& record : batch.records) bytes += record.size();
  if (bytes > records_bytes_max)
    return error(ErrorKind::too_large, fmt::format("records: must be at most {} bytes together", records_bytes_max));
  records.reserve(batch.records.size());
  leaves.reserve(batch.records.size());
  for (const auto& record : batch.records) {
    records.push_back(as_bytes(record));
    leaves.push_back(record_leaf(records.back()));
  }
  if (batch.signature) {
    const Identity signer = CRETO_TRY(Identity::parse(reporter));
    const std::string bytes = batch_signed_bytes(leaves.size(), merkle_root(leaves));
    const auto verified = nhi_.verify(ctx, signer, as_bytes(bytes), *batch.signature, batch_signature_context);
    if (!verified) {
      if (verified.error().category() == ErrorCategory::transient) return verified.error();
      return no_signature("batch: the signature does not verify").with_cause(verified.error());
    }
  } else if (reporter != caller || !ctx.caller || ctx.caller->is_agent()) {
    // A service's or human's own word is known from the connection; what an agent says of itself must stay provable.
    return no_signature("batch: is not signed");
  }
  std::vector<Intake::Reached> reached;
  std::optional<Result<Intake::Answers>> answers;
  {
    const std::shared_lock rules(rules_mutex_);
    answers = intake_->take(ctx,
                            {.records = records,
                             .reporter = reporter,
                             .signature = batch.signature ? &*batch.signature : nullptr,
                             .leaves = leaves},
                            reached);
  }
  return finish(ctx, *std::move(answers), reached);
}

Result<> MeteringService::ingest_stream(const Context& ctx, const NextBatch& next, const BatchAnswer& answered) {
  while (auto batch = next()) answered(ingest_records(ctx, *batch));
  return {};
}

/// Who corrects is who reports: of a signed batch perhaps another than who brings it.
Result<Context> MeteringService::as_reporter(const Context& ctx, std::string_view reporter) {
  if (ctx.caller_text() == reporter) return ctx;
  Context as = ctx;
  as.caller = CRETO_TRY(Identity::parse(reporter));
  as.chain = {*as.caller};
  if (as.caller->is_agent()) {
    const auto chain = CRETO_TRY(nhi_.get_delegation_chain(own(ctx), *as.caller));
    as.chain = chain.identities();
  }
  return as;
}

Result<> MeteringService::may_correct(const Context& ctx, std::string_view reporter, std::string_view agent) {
  if (options_.access == nullptr) return error(ErrorKind::permission_denied, "nobody may");
  const Context as = CRETO_TRY(as_reporter(ctx, reporter));
  return options_.access->require(as, correct_action, "Agent", agent);
}

Result<> MeteringService::record_corrections(const Context& ctx, std::string_view reporter,
                                             std::span<const RecordView* const> corrections) {
  const Context as = CRETO_TRY(as_reporter(ctx, reporter));
  return database_.transaction(as, [&](sql::Tx& tx) -> Result<> {
    for (const RecordView* one : corrections) {
      const bool voids = !one->voids.empty();
      const std::string metadata =
          CRETO_TRY(canonical_json({{"agent", one->agent}, {"by", one->key}, {"voids", voids}}));
      CRETO_TRY(audit_change(tx, as, "usage_corrected",
                             fmt::format("metering:event:{}", voids ? one->voids : one->replaces), metadata));
    }
    return {};
  });
}

/// Counts the answers and tells who has to know of limits. The events are durable already: trouble with a notice is
/// logged, and `tick` tries it again.
Result<std::vector<Result<Ingested>>> MeteringService::finish(const Context& ctx, Result<Intake::Answers> answers,
                                                              std::vector<Intake::Reached>& reached) {
  if (!answers) return std::move(answers).error();
  for (const Result<Ingested>& answer : *answers) {
    if (!answer)
      probe_.rejected();
    else if (answer->duplicate)
      probe_.duplicate();
    else
      probe_.ingested();
    if (!answer || !answer->left_out || answer->duplicate) continue;
    probe_.left_out();
    telemetry_.log(LogLevel::warn, "metering", "event_left_out", &ctx, {{"event", answer->id.to_string()}});
  }
  for (Intake::Reached& one : reached) {
    if (auto told = tell(ctx, one); !told) {
      telemetry_.log(LogLevel::warn, "metering", "notice_waits", &ctx,
                     {{"limit", one.notice.id}, {"error", told.error().to_string()}});
      const std::scoped_lock lock(untold_mutex_);
      untold_.push_back(std::move(one));
    }
  }
  return *std::move(answers);
}

/// Publishes a notice, once for its limit, subject and window.
Result<> MeteringService::tell(const Context& ctx, const Intake::Reached& reached) {
  const Notice& notice = reached.notice;
  // All that there ever was may have been counted again.
  if (unix_ns(notice.window_begin) >= 0 && notice.window_begin < clock_.now() - notice_age_max) {
    intake_->told();
    return {};
  }
  const bool unusual = notice.kind == Notice::Kind::anomaly;
  const bool cost = notice.kind == Notice::Kind::cost;
  contracts::CostThresholdExceededEvent event;
  event.kind = unusual ? "cost_anomaly" : cost ? "cost_threshold" : "quota_breach";
  event.threshold_id = notice.id;
  event.triggering_event = reached.event.to_string();
  const bool money = unusual || cost || notice.measure == Measure::cost;
  event.current = money ? from_nano_money(notice.used).to_string() : std::to_string(notice.used);
  event.limit = money ? from_nano_money(notice.limit).to_string() : std::to_string(notice.limit);
  event.unit = !money ? notice.event_type : notice.currency.empty() ? options_.currency.code() : notice.currency;
  event.period = notice.period;
  event.action = notice.action;
  event.approvers = notice.approvers;
  if (unusual) {
    event.expected = from_nano_money(std::llround(notice.expected)).to_string();
    event.confidence = fmt::format("{:.4f}", notice.confidence);
  }
  std::string payload = CRETO_TRY(event.to_json());
  const EventId id = EventId::fresh(clock_.now());
  DelegationChain chain;
  if (auto known = nhi_.get_delegation_chain(own(ctx), reached.agent)) chain = known->identities();
  const EventEnvelope envelope = CRETO_TRY(signed_envelope(ctx, contracts::CostThresholdExceededEvent::event_type,
                                                           reached.agent, chain, std::move(payload), id));
  const std::string body = CRETO_TRY(envelope.to_json());
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    const bool first = CRETO_TRY(store::insert_notice(tx, ctx.org, notice));
    if (!first) return {};
    CRETO_TRY(bus::publish(tx, ctx, contracts::CostThresholdExceededEvent::subject, id.to_string(), body));
    if (unusual) {
      return audit_change(tx, ctx, "cost_anomaly", "metering:anomaly:" + notice.subject,
                          fmt::format(R"({{"confidence":"{}","cost":"{}","expected":"{}"}})", event.confidence,
                                      event.current, event.expected));
    }
    return audit_change(tx, ctx, cost ? "cost_threshold_exceeded" : "quota_notice",
                        fmt::format("metering:{}:{}", cost ? "threshold" : "quota", notice.id));
  }));
  intake_->told();
  return {};
}

Result<std::vector<RejectedEvent>> MeteringService::rejected_events(const Context& ctx, std::size_t limit) {
  if (limit < 1 || limit > 1'000) return error(ErrorKind::invalid_input, "limit: must be 1 to 1000");
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::list_rejected(tx, ctx.org, limit); });
}

Result<Ingested> MeteringService::replay_rejected(const Context& ctx, std::string_view id) {
  const auto found =
      CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_rejected(tx, ctx.org, id); }));
  if (!found) return not_found("rejected event", id);
  // As the bus would have brought it.
  const Ingested taken = CRETO_TRY(ingest(own(ctx), found->body));
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(store::delete_rejected(tx, ctx.org, id));
    return audit_change(tx, ctx, "rejected_event_replayed", fmt::format("metering:event:{}", id));
  }));
  return taken;
}

Result<> MeteringService::drop_rejected(const Context& ctx, std::string_view id) {
  return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    const bool there = CRETO_TRY(store::delete_rejected(tx, ctx.org, id));
    if (!there) return not_found("rejected event", id);
    return audit_change(tx, ctx, "rejected_event_dropped", fmt::format("metering:event:{}", id));
  });
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
  const Result<UsageEvent> understood = usage_event_of(std::move(envelope));
  // It is ours: who sends messages shall not take out what they cost.
  auto answers = CRETO_TRY(take_envelopes(own(ctx), std::span(&understood, 1)));
  if (!answers.front()) return answers.front().error();
  return answers.front()->id;
}

}  // namespace creto::metering
