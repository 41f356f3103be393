#include "service.h"

#include <fmt/format.h>

#include "creto/contracts/events.h"
#include "creto/io/bus.h"
#include "limits/window.h"
#include "service_words.h"

namespace creto::metering {
namespace {

constexpr std::uint32_t checkpoint_segments = 4;     // full segments between checkpoints
constexpr std::uint64_t checkpoint_events = 10'000;  // at least, for `tick` to make one
constexpr std::size_t forgotten_at_once = 1'000;     // sessions, for which events wait a moment
constexpr std::uint32_t unknown_agent_attempts = 4;  // the delivery and three retries (001 §4.1)

/// How long an answer of nhi holds that nothing here has changed. A change by another process raises no signal; SQLite
/// has none.
Nanos attribution_ttl(sql::Database& database) {
  return database.dialect() == sql::Dialect::postgres ? Nanos(std::chrono::seconds(60)) : std::chrono::hours(1);
}

Result<> check_options(const MeteringOptions& options) {
  const auto within = [](std::string_view name, Nanos value, Nanos least, Nanos most) -> Result<> {
    if (value >= least && value <= most) return {};
    return error(ErrorKind::invalid_input,
                 fmt::format("metering.{}: must be {} to {}", name, creto::to_string(least), creto::to_string(most)));
  };
  using namespace std::chrono_literals;
  constexpr Nanos year = std::chrono::days(366);
  CRETO_TRY(within("idempotency_window", options.idempotency_window, 1min, year));
  CRETO_TRY(within("event_age_max", options.event_age_max, 1h, 100 * year));
  CRETO_TRY(within("event_ahead_max", options.event_ahead_max, 0s, 24h));
  CRETO_TRY(within("hold_max", options.hold_max, 1min, year));
  if (options.retention != Nanos(0)) {
    const Nanos least = std::max<Nanos>(std::chrono::days(32), options.idempotency_window + 1s);
    CRETO_TRY(within("retention", options.retention, least, 100 * year));
  }
  if (options.segment_events_max < 1 || options.segment_events_max > 10'000'000)
    return error(ErrorKind::invalid_input, "metering.segment_events_max: must be 1 to 10000000");
  if (!(options.anomaly_confidence >= 0.5 && options.anomaly_confidence < 1))
    return error(ErrorKind::invalid_input, "metering.anomaly_confidence: must be at least 0.5 and less than 1");
  return validate(options.issuer, "metering.issuer");
}

}  // namespace

MeteringProbe::MeteringProbe(Telemetry& telemetry)
    : ingested_(telemetry.counter("metering_events_ingested_total", "events accepted")),
      duplicates_(telemetry.counter("metering_events_duplicate_total", "events that had been accepted before")),
      rejected_(telemetry.counter("metering_events_rejected_total", "events that were refused")),
      left_out_(telemetry.counter("metering_events_left_out_total", "events that a charge cannot reckon with")),
      refused_(telemetry.counter("metering_quota_checks_total", "requests to spend", {{"result", "refused"}})),
      granted_(telemetry.counter("metering_quota_checks_total", "requests to spend", {{"result", "allowed"}})),
      invoices_(telemetry.counter("metering_invoices_generated_total", "invoices made")) {}

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
      limits_({.detect = options_.detect_anomalies, .confidence = options_.anomaly_confidence}, options_.currency),
      identities_changed_(database.signal("nhi.changed")) {}

Result<> MeteringService::start(io::FileSystem& files, const std::filesystem::path& directory) {
  const Context ctx = Context::of_service(self_);
  rules_ = CRETO_TRY(read_rules());
  CRETO_TRY(database_.read(ctx, [&](sql::Tx& tx) -> Result<> {
    auto prices = CRETO_TRY(store::all_prices(tx));
    std::map<std::string, std::vector<ModelPrice>> of_org;
    for (auto& [org, price] : prices) of_org[org].push_back(std::move(price));
    for (auto& [org, all] : of_org) prices_[org] = std::make_shared<const PriceTable>(std::move(all));
    auto subscriptions = CRETO_TRY(billing::all_subscriptions(tx));
    for (StoredSubscription& stored : subscriptions) {
      subscriptions_[{stored.org, stored.subscription.agent}].push_back(std::move(stored.subscription));
    }
    return {};
  }));
  CRETO_TRY(put_rules());
  // Where several processes may share the state, so does the log.
  std::unique_ptr<BlockLog> log;
  if (database_.dialect() == sql::Dialect::postgres) {
    log = CRETO_TRY(open_block_table(database_));
  } else {
    log = CRETO_TRY(open_block_files(files, directory / "log"));
  }
  std::optional<Intake::Recount> recount;
  ledger_ = CRETO_TRY(Ledger::open(
      std::move(log), files, directory, clock_, telemetry_,
      {.idempotency_window = options_.idempotency_window,
       .segment_events_max = options_.segment_events_max,
       .segment_age_max = options_.retention == Nanos(0) ? Nanos::max() : options_.retention / 8,
       .sealed = [this](std::uint32_t segment) -> Result<> {
         // While its blocks are still in memory, and before anybody asks.
         CRETO_TRY(columns_->seal(segment));
         if (segment % checkpoint_segments == 0) CRETO_TRY(checkpoint());
         return {};
       }},
      [&](Ledger& ledger, BytesView counters, Ledger::Saved saved) -> Result<> {
        CRETO_TRY(restore(ledger, counters, saved));
        recount.emplace(*intake_);
        return {};
      },
      [&](const StoredEvent& event) -> Result<> {
        recount->add(event, untold_);
        return {};
      }));
  recount->finish(untold_);
  columns_ = CRETO_TRY(ColumnStore::open(*ledger_, files, directory / "columns", telemetry_));
  rules_ = {};
  return {};
}

MeteringService::~MeteringService() {
  if (!ledger_) return;
  ledger_->stop();
  if (auto saved = checkpoint(); !saved) {
    telemetry_.log(LogLevel::warn, "metering", "checkpoint_failed", nullptr, {{"error", saved.error().to_string()}});
  }
  columns_.reset();
  ledger_.reset();
}

Result<MeteringService::Rules> MeteringService::read_rules() {
  Rules rules;
  CRETO_TRY(database_.read(Context::of_service(self_), [&](sql::Tx& tx) -> Result<> {
    rules.quotas = CRETO_TRY(store::all_quotas(tx));
    rules.thresholds = CRETO_TRY(store::all_thresholds(tx));
    return {};
  }));
  return rules;
}

Result<> MeteringService::put(const Rules& rules, Limits& limits, Instant now) {
  for (const auto& [org, quota] : rules.quotas) CRETO_TRY(limits.put_quota(org, quota, now));
  for (const auto& [org, threshold] : rules.thresholds) CRETO_TRY(limits.put_threshold(org, threshold, now));
  return {};
}

Result<> MeteringService::put_rules() {
  const Instant now = clock_.now();
  CRETO_TRY(put(rules_, limits_, now));
  for (const auto& [key, of_agent] : subscriptions_) bind(key.first, of_agent, now);
  return {};
}

/// Takes the counters of a checkpoint. What another version of them wrote is no use: then everything is counted anew.
/// Of what was cut off only its counters are left.
Result<> MeteringService::restore(Ledger& ledger, BytesView counters, Ledger::Saved saved) {
  intake_ = std::make_unique<Intake>(
      ledger, limits_, static_cast<Attributor&>(*this), clock_,
      IntakeOptions{.currency = options_.currency,
                    .event_age_max = options_.event_age_max,
                    .event_ahead_max = options_.event_ahead_max,
                    .attribution_ttl = attribution_ttl(database_),
                    .prices_of = [this](const std::string& org) { return prices_of(org); },
                    .find_events = [this](auto ids, auto whose) { return columns_->find(ids, whose); },
                    .may_correct = [this](const Context& ctx, auto reporter,
                                          auto agent) { return may_correct(ctx, reporter, agent); },
                    .record_corrections = [this](const Context& ctx, auto reporter,
                                                 auto records) { return record_corrections(ctx, reporter, records); }});
  if (counters.empty()) return {};
  layout::Reader reader(counters);
  const std::string_view currency = reader.text();
  if (currency != options_.currency.code() || !reader.ok()) {
    if (saved == Ledger::Saved::checkpoint)
      return error(ErrorKind::invalid_input, "the checkpoint counts another currency");
    return error(
        ErrorKind::invalid_input,
        fmt::format("metering.currency: must stay {}: costs of events that are no longer held were added up in it",
                    currency.substr(0, 8)));
  }
  auto younger = limits_.load(counters.last(reader.left()));
  if (!younger) {
    limits_ =
        Limits({.detect = options_.detect_anomalies, .confidence = options_.anomaly_confidence}, options_.currency);
    CRETO_TRY(put_rules());
    return std::move(younger).error();
  }
  // All that came after the base is replayed.
  if (saved == Ledger::Saved::base) return {};
  const Instant now = clock_.now();
  for (const auto& one : *younger) {
    const auto is = [&](const auto& said, std::string_view id) { return said.first == one.org && id == one.id; };
    if (one.family == Terms::Family::threshold) {
      const auto threshold = std::ranges::find_if(
          rules_.thresholds, [&](const auto& said) { return is(said, said.second.threshold.threshold_id); });
      CRETO_ASSERT(threshold != rules_.thresholds.end());
      const Counted counted = counted_of(threshold->second);
      if (const auto from = counted_from(counted.as, now)) {
        Seeding seeding;
        CRETO_TRY(read_seeds(ledger, one.org, counted, *from, seeding));
        if (!seeding.seeds.empty()) know_session(one.org, threshold->second.subject, seeding);
        CRETO_TRY(limits_.put_threshold_anew(one.org, threshold->second, now, seeding.seeds));
      }
      continue;
    }
    const auto quota = std::ranges::find_if(rules_.quotas, [&](const auto& said) { return is(said, said.second.id); });
    CRETO_ASSERT(quota != rules_.quotas.end());
    if (const auto from = counted_from(quota->second, now)) {
      Seeding seeding;
      const Counted counted = CRETO_TRY(counted_of(quota->second));
      CRETO_TRY(read_seeds(ledger, one.org, counted, *from, seeding));
      if (!seeding.seeds.empty()) know_session(one.org, quota->second.subject, seeding);
      CRETO_TRY(limits_.put_quota_anew(one.org, quota->second, now, seeding.seeds));
    }
  }
  return {};
}

Result<bool> MeteringService::checkpoint() {
  const std::scoped_lock one(checkpoint_mutex_);
  const std::uint64_t events = ledger_->position().events;
  bool saved = false;
  CRETO_TRY(ledger_->checkpoint(
      [&](Bytes& out) {
        if (intake_->untold() > 0) return false;
        layout::put_sized(out, options_.currency.code());
        limits_.begin_copy(out);
        return saved = true;
      },
      [this](Bytes& out) { return limits_.write_copy(out); }));
  saved_events_ = events;
  return saved;
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

// --- the bus, and time
// ---------------------------------------------------------------------------------------------------

/// What has arrived together is taken together: the log is synced once for it.
std::vector<Result<>> MeteringService::on_usage(std::span<const bus::BusMessage> messages) {
  std::vector<Result<>> results(messages.size());
  for (std::size_t from = 0; from < messages.size();) {
    std::size_t until = from + 1;
    while (until < messages.size() && messages[until].org == messages[from].org) ++until;
    const auto of_org = std::span(results).subspan(from, until - from);
    if (auto done = on_usage_of_org(messages.subspan(from, until - from), of_org); !done) {
      std::ranges::fill(of_org, Result<>(std::move(done).error().with_retryable(true)));
    }
    from = until;
  }
  return results;
}

/// Errors: nothing is known of any of them.
Result<> MeteringService::on_usage_of_org(std::span<const bus::BusMessage> messages, std::span<Result<>> results) {
  const Context ctx = context_of(messages.front());
  std::vector<std::string> bodies;
  for (const bus::BusMessage& message : messages) bodies.push_back(message.body);
  const auto answers = CRETO_TRY(ingest_batch(ctx, bodies));
  std::vector<std::size_t> rejected;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    if (answers[i]) continue;
    const Error& failed = answers[i].error();
    const bool again = failed.category() == ErrorCategory::transient ||
                       (failed.kind() == ErrorKind::not_found && messages[i].attempt < unknown_agent_attempts);
    if (again) {
      // It is delivered again with all that follows; then these are decided.
      results[i] = failed;
      break;
    }
    rejected.push_back(i);
  }
  if (rejected.empty()) return {};
  // Nothing that comes again will be better: keep it for a human, say so, and go on.
  return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    for (const std::size_t i : rejected) {
      const bus::BusMessage& message = messages[i];
      const std::string failed = answers[i].error().to_string();
      const Context its_own = context_of(message);
      telemetry_.log(LogLevel::warn, "metering", "event_rejected", &its_own,
                     {{"message", message.message_id}, {"error", failed}});
      CRETO_TRY(store::insert_rejected(tx, ctx.org, {message.message_id, failed, message.body, clock_.now()}));
      auto record = audit::AuditRecord::of(
          its_own, "event_rejected", fmt::format("metering:event:{}", message.message_id), audit::Outcome::denied);
      record.outcome_detail = failed;
      CRETO_TRY(audit::record(tx, its_own, std::move(record)));
    }
    return {};
  });
}

Context MeteringService::context_of(const bus::BusMessage& message) const {
  Context ctx = Context::of_service(self_);
  ctx.org = message.org;
  ctx.trace = message.trace;
  return ctx;
}

/// 001 §7.3: an approver raised a quota, or a cost threshold.
Result<> MeteringService::on_decision(const Context& ctx, const std::string& body) {
  const EventEnvelope envelope = CRETO_TRY(EventEnvelope::from_json(body));
  if (envelope.event_type != contracts::OversightDecisionEvent::event_type) return {};
  const auto decision = CRETO_TRY(contracts::OversightDecisionEvent::from_json(envelope.payload));
  if (decision.decision != contracts::ApprovalState::approved) return {};
  const auto quota = quota_raise_of(decision.action, decision.arguments, decision.response);
  const auto threshold = threshold_raise_of(decision.action, decision.arguments, decision.response);
  if (!quota && !threshold) return {};
  if (!envelope.signature) return error(ErrorKind::signature_invalid, "decision: is not signed").with_number(401);
  const std::string canonical = CRETO_TRY(envelope.to_json());
  if (canonical != body) return error(ErrorKind::invalid_input, "decision: must be canonical JSON");
  const std::string bytes = CRETO_TRY(envelope.signed_bytes());
  const Identity oversight = CRETO_TRY(Identity::service("oversight"));
  CRETO_TRY(nhi_.verify(own(ctx), oversight, as_bytes(bytes), *envelope.signature, event_signature_context));
  Context as_approver = own(ctx);
  if (auto approver = Identity::parse(decision.approver)) as_approver.chain = {*approver, self_};
  return quota ? raise_quota(ctx, *quota, as_approver) : raise_threshold(ctx, *threshold, as_approver);
}

/// Neither lowers: it may be delivered again, or was raised further meanwhile.
Result<> MeteringService::raise_quota(const Context& ctx, const QuotaRaise& raise, const Context& as_approver) {
  auto quota =
      CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_quota(tx, ctx.org, raise.quota_id); }));
  if (!quota) return not_found("quota", raise.quota_id);
  if (quota->limit >= raise.new_limit) return {};
  quota->limit = raise.new_limit;
  CRETO_TRY(set_quota(as_approver, *quota));
  return {};
}

Result<> MeteringService::raise_threshold(const Context& ctx, const ThresholdRaise& raise, const Context& as_approver) {
  auto found = CRETO_TRY(
      sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_threshold(tx, ctx.org, raise.threshold_id); }));
  if (!found) return not_found("threshold", raise.threshold_id);
  Money& limit = found->threshold.limit;
  if (limit.amount >= raise.new_limit) return {};
  limit.amount = raise.new_limit;
  CRETO_TRY(set_threshold(as_approver, *found));
  return {};
}

Result<> MeteringService::attach(bus::Bus& bus) {
  CRETO_TRY(bus.subscribe_batches("metering-usage", "metering.events.>",
                                  [this](std::span<const bus::BusMessage> messages) { return on_usage(messages); },
                                  {.attempts_max = 1'000}));
  CRETO_TRY(
      bus.subscribe("metering-decisions", contracts::OversightDecisionEvent::subject.data(),
                    [this](const bus::BusMessage& message) { return on_decision(context_of(message), message.body); }));
  return bus.subscribe("metering-invoices", "metering.invoices",
                       [this](const bus::BusMessage& message) -> Result<> {
                         const InvoiceId id = CRETO_TRY(InvoiceId::parse(message.body));
                         return deliver(context_of(message), id);
                       },
                       {.attempts_max = 1'000});
}

Result<> MeteringService::tick() {
  const Instant now = clock_.now();
  limits_.expire(now);
  let_go_of_ended(now);
  forget_sessions(now);
  CRETO_TRY(tell_what_waits());
  CRETO_TRY(purge_notices(now));
  CRETO_TRY(record_head());
  if (ledger_->position().events > saved_events_ + checkpoint_events) CRETO_TRY(checkpoint());
  // What a stop left out. Queries make what is missing: no reason not to bill.
  if (auto sealed = columns_->seal_all(); !sealed) {
    telemetry_.log(LogLevel::warn, "metering", "columns_failed", nullptr, {{"error", sealed.error().to_string()}});
  }
  CRETO_TRY(run_billing());
  return cut_log();
}

void MeteringService::forget_sessions(Instant now) {
  const std::vector<AccountNumber> over = limits_.sessions_over(now);
  for (std::size_t from = 0; from < over.size(); from += forgotten_at_once) {
    const auto some = std::span(over).subspan(from, std::min(forgotten_at_once, over.size() - from));
    ledger_->pause([&] { limits_.forget(some, now); });
  }
}

Result<> MeteringService::purge_notices(Instant now) {
  if (now < notices_purged_at_ + std::chrono::days(1)) return {};
  CRETO_TRY(database_.transaction(Context::of_service(self_),
                                  [&](sql::Tx& tx) { return store::purge_notices(tx, now - notice_age_max); }));
  notices_purged_at_ = now;
  return {};
}

/// Notices whose publication failed, and those of events that a crash cut off from theirs.
Result<> MeteringService::tell_what_waits() {
  std::vector<Intake::Reached> waiting;
  {
    const std::scoped_lock lock(untold_mutex_);
    waiting.swap(untold_);
  }
  for (std::size_t i = 0; i < waiting.size(); ++i) {
    Context ctx = Context::of_service(self_);
    ctx.org = waiting[i].org;
    if (auto told = tell(ctx, waiting[i]); !told) {
      const std::scoped_lock lock(untold_mutex_);
      untold_.insert(untold_.end(), std::make_move_iterator(waiting.begin() + static_cast<std::ptrdiff_t>(i)),
                     std::make_move_iterator(waiting.end()));
      return told;
    }
  }
  return {};
}

/// The audit log vouches for the usage log by the hash of its last block, which names all before it.
Result<> MeteringService::record_head() {
  const Ledger::Position position = ledger_->position();
  if (position.end == recorded_ || position.head == Hash256{}) return {};
  const Context ctx = Context::of_service(self_);
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) {
    return audit_change(tx, ctx, "usage_recorded",
                        fmt::format("metering:usage:{}:{}", position.end.segment, position.end.offset),
                        fmt::format(R"({{"head":"{}"}})", hex(position.head)));
  }));
  recorded_ = position.end;
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

Result<std::unique_ptr<LocalMetering>> create_metering(sql::Database& database, io::FileSystem& files,
                                                       const std::filesystem::path& directory, nhi::Nhi& nhi,
                                                       consensus::TimestampSource& timestamps,
                                                       InvoiceDelivery& delivery, const Clock& clock,
                                                       Telemetry& telemetry, MeteringOptions options) {
  CRETO_TRY(check_options(options));
  CRETO_TRY(audit::prepare(database));
  CRETO_TRY(store::migrate(database));
  CRETO_TRY(billing::migrate(database));
  auto service =
      std::make_unique<MeteringService>(database, nhi, timestamps, delivery, clock, telemetry, std::move(options));
  CRETO_TRY(service->start(files, directory));
  return std::unique_ptr<LocalMetering>(std::move(service));
}

}  // namespace creto::metering
