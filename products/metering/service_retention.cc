// What goes from the usage log, when, and what is kept of it (docs/formats.md, "Usage base").

#include "billing/biller.h"
#include "limits/window.h"
#include "service.h"
#include "service_words.h"

namespace creto::metering {
namespace {

constexpr std::uint32_t segments_at_once = 16;  // counted again, beside all else, before they go

Result<> put_all(std::string& out, const auto& of_org) {
  for (const auto& [org, rule] : of_org) {
    const std::string document = CRETO_TRY(to_json(rule));
    out += fmt::format("{}\n{}\n", org, document);
  }
  return {};
}

}  // namespace

/// Cuts off the segments that are older than the retention and nobody can ask for any more.
Result<> MeteringService::cut_log() {
  if (options_.retention == Nanos(0)) return {};
  const std::unique_lock cutting(cutting_mutex_, std::try_to_lock);
  if (!cutting) return {};  // all is being counted again: next time
  CRETO_TRY(remove_cut());
  const Instant now = clock_.now();
  const std::uint32_t first = ledger_->held()->from.segment;
  BlockAddress until = CRETO_TRY(ledger_->first_at(now - options_.retention));
  if (until.segment <= first) return {};
  const Instant asked = CRETO_TRY(asked_from(now));
  until = std::min(until, CRETO_TRY(ledger_->first_at(asked)));
  const std::uint32_t segment = std::min(until.segment, first + segments_at_once);
  if (segment <= first) return {};

  const Rules rules = CRETO_TRY(read_rules());
  const Bytes counters = CRETO_TRY(count_until(segment, rules));
  {
    const std::shared_lock stay(rules_mutex_);
    // Who was told meanwhile what to count began with what was held.
    const Rules still = CRETO_TRY(read_rules());
    std::string before;
    std::string after;
    CRETO_TRY(put_all(before, rules.quotas));
    CRETO_TRY(put_all(before, rules.thresholds));
    CRETO_TRY(put_all(after, still.quotas));
    CRETO_TRY(put_all(after, still.thresholds));
    if (before != after) return {};
    // From an older checkpoint a start would want seeds of what goes.
    const bool saved = CRETO_TRY(checkpoint());
    if (!saved) return {};
    CRETO_TRY(ledger_->cut(segment, counters, [&](const Ledger::Held& held) {
      const Context ctx = Context::of_service(self_);
      return database_.transaction(ctx, [&](sql::Tx& tx) {
        return audit_change(tx, ctx, "usage_cut", fmt::format("metering:usage:{}", held.from.segment),
                            fmt::format(R"({{"arrived_until":"{}","base":"{}","events":"{}"}})", to_rfc3339(held.until),
                                        hex(held.base), held.events));
      });
    }));
  }
  telemetry_.log(LogLevel::info, "metering", "usage_cut", nullptr, {{"first_segment", std::to_string(segment)}});
  return remove_cut();
}

/// Where somebody still reads what was cut off, it stays until he has done.
Result<> MeteringService::remove_cut() {
  const bool removed = CRETO_TRY(ledger_->remove_cut());
  return removed ? columns_->forget_cut() : Result<>();
}

/// When the first event may have arrived that a repetition, a limit or an invoice can still ask for.
Result<Instant> MeteringService::asked_from(Instant now) {
  Instant asked = now - options_.idempotency_window - std::chrono::seconds(1);
  const auto window = [&](const Quota& quota) {
    const auto from = counted_from(quota, now);
    if (from && quota.window != WindowKind::lifetime) asked = std::min(asked, *from);
  };
  const Rules rules = CRETO_TRY(read_rules());
  for (const auto& [org, quota] : rules.quotas) window(quota);
  for (const auto& [org, threshold] : rules.thresholds) window(counted_of(threshold).as);

  Context ctx = Context::of_service(self_);
  FactSource source = facts();
  CRETO_TRY(database_.read(ctx, [&](sql::Tx& tx) -> Result<> {
    const auto draft = CRETO_TRY(billing::first_draft(tx));
    if (draft) asked = std::min(asked, *draft - options_.event_ahead_max);
    const auto subscriptions = CRETO_TRY(billing::all_subscriptions(tx));
    for (const StoredSubscription& stored : subscriptions) {
      ctx.org = stored.org;
      auto from = Biller(tx, ctx, now, source, options_.issuer).asks_from(stored, options_.event_age_max);
      if (!from && from.error().category() == ErrorCategory::transient) return std::move(from).error();
      // Of one whose plan cannot be read, invoices fail, until it can.
      if (!from) from = std::optional(stored.subscription.started_at);
      if (*from) asked = std::min(asked, **from - options_.event_ahead_max);
    }
    return {};
  }));
  return asked;
}

/// Counters as they were when `segment` began, by the rules of today: those of the base before, and what came since.
Result<Bytes> MeteringService::count_until(std::uint32_t segment, const Rules& rules) {
  Limits limits({.detect = options_.detect_anomalies, .confidence = options_.anomaly_confidence}, options_.currency);
  CRETO_TRY(put(rules, limits, clock_.now()));
  CRETO_TRY(load_base(*ledger_, limits));
  Intake intake(*ledger_, limits, static_cast<Attributor&>(*this), clock_, {.currency = options_.currency});
  Intake::Recount recount(intake);
  std::vector<Intake::Reached> reached;
  Instant last{};
  CRETO_TRY(ledger_->scan({}, {segment, 0}, [&](const StoredEvent& event) -> Result<> {
    recount.add(event, reached);
    reached.clear();
    last = std::max(last, event.arrived);
    return {};
  }));
  recount.finish(reached);
  limits.forget(limits.sessions_over(last), last);
  Bytes counters;
  layout::put_sized(counters, options_.currency.code());
  limits.begin_copy(counters);
  while (limits.write_copy(counters)) {
  }
  return counters;
}

/// Begins with what was counted before the log was cut. Requires: the rules were put.
Result<> MeteringService::load_base(const Ledger& ledger, Limits& limits) const {
  const Bytes state = CRETO_TRY(ledger.base_state());
  if (state.empty()) return {};
  layout::Reader reader(state);
  reader.text();
  CRETO_TRY(limits.load(reader.bytes(reader.left())));
  return {};
}

/// What a quota or a threshold on one subject had counted before the log was cut, if it was there.
Result<std::int64_t> MeteringService::used_in_base(const Ledger& ledger, const std::string& org,
                                                   const Counted& counted) const {
  if (ledger.held()->everything()) return 0;
  const Instant now = clock_.now();
  Limits limits({.detect = false}, options_.currency);
  if (counted.threshold) {
    CRETO_TRY(limits.put_threshold(org, *counted.threshold, now));
    CRETO_TRY(load_base(ledger, limits));
    return limits.used_of(org, *counted.threshold, now).value_or(0);
  }
  CRETO_TRY(limits.put_quota(org, counted.as, now));
  CRETO_TRY(load_base(ledger, limits));
  const auto state = limits.state(org, counted.as, now);
  return state ? state->used : 0;
}

}  // namespace creto::metering
