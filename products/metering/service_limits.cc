#include "service.h"

#include <fmt/format.h>

#include <algorithm>

#include "limits/account_names.h"
#include "limits/window.h"
#include "service_words.h"

namespace creto::metering {
namespace {

using contracts::BillingPeriod;

constexpr std::size_t batch_max = 1'000;
constexpr std::size_t spend_properties_max = 32;

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
    case WindowKind::transaction:
      return "single-use";
    case WindowKind::concurrent:
      return "concurrent";
  }
  return "";
}

std::string describe_refusal(const Verdict& verdict, const Told& told) {
  if (verdict.kind == Verdict::Kind::budget_exceeded) {
    return fmt::format("budget `{}` of `{}` exceeded ({} of {})", told.id, told.subject,
                       from_nano_money(verdict.used).to_string(), from_nano_money(verdict.limit).to_string());
  }
  if (told.measure == Measure::cost) {
    return fmt::format("{} budget `{}` exceeded ({} of {})", adjective(told.window), told.id,
                       from_nano_money(verdict.used).to_string(), from_nano_money(verdict.limit).to_string());
  }
  return fmt::format("{} quota of `{}` exceeded ({}/{})", adjective(told.window),
                     told.event_type.empty() ? told.id : told.event_type, verdict.used, verdict.limit);
}

}  // namespace

/// Whom a use would count for is what nhi says, as with events; what the caller says of it might leave somebody out.
Result<DelegationChain> MeteringService::ancestors_of(const Context& ctx, const Identity& agent) {
  if (auto known = intake_->known_ancestors(ctx, agent)) return *std::move(known);
  const std::shared_lock rules(rules_mutex_);
  return intake_->ask_ancestors(own(ctx), agent);
}

Result<NanoMoney> MeteringService::cost_of(const Money& cost) {
  if (cost.amount.is_negative()) return error(ErrorKind::invalid_input, "cost: must not be negative");
  return to_nano_money(cost.amount);
}

/// As limits know it: nothing costs nothing in the accounting currency.
std::string_view MeteringService::currency_of(const Money& cost) const {
  return cost.amount.is_zero() || cost.currency == options_.currency ? std::string_view() : cost.currency.code();
}

/// What a call of a model may cost by the price table: what the request says of its tokens, or as many as its units, of
/// the dearer kind. None where its model has no price.
Result<std::optional<Money>> MeteringService::expected_cost(const Context& ctx, const contracts::SpendRequest& request,
                                                            Instant now) const {
  const auto prices = prices_of(ctx.org);
  RecordView record{.bytes = {}, .agent = {}, .type = request.event_type, .key = {}, .time = now};
  if (prices == nullptr) return std::optional<Money>();
  std::vector<PropertyView> properties(request.properties.begin(), request.properties.end());
  record.properties = properties;
  const bool stated = !record.property("input_tokens").empty() || !record.property("output_tokens").empty();
  const std::string units = std::to_string(CRETO_TRY(to_whole_units(request.units)));
  const std::array<std::string_view, 2> kinds{"input_tokens", "output_tokens"};
  std::optional<Money> highest;
  for (const std::string_view kind : kinds) {
    if (!stated) properties.emplace_back(kind, units);
    record.properties = properties;
    auto cost = CRETO_TRY(prices->highest_cost_of(record));
    if (cost && (!highest || cost->amount > highest->amount)) highest = std::move(cost);
    if (stated) break;
    properties.pop_back();
  }
  return highest;
}

// --- limits
// --------------------------------------------------------------------------------------------------------------

Result<Quota> MeteringService::set_quota(const Context& ctx, const Quota& quota) {
  CRETO_TRY(validate(quota));
  const std::string document = CRETO_TRY(to_json(quota));
  Seeding seeding;
  const auto seed = [&](Instant now) -> Result<> {
    const std::optional<Instant> from = counted_from(quota, now);
    if (!from || each_of(quota.subject)) return {};
    const Counted counted = CRETO_TRY(counted_of(quota));
    return read_seeds(*ledger_, ctx.org, counted, *from, seeding);
  };
  // Nearly all of the log is read while events go on, and only what came meanwhile while they wait.
  CRETO_TRY(seed(clock_.now()));
  std::optional<Quota> before;
  const std::unique_lock rules(rules_mutex_);
  const Instant now = clock_.now();
  CRETO_TRY(seed(now));
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    before = CRETO_TRY(store::find_quota(tx, ctx.org, quota.id));
    if (before && CRETO_TRY(to_json(*before)) == document) return {};  // put again
    CRETO_TRY(store::put_quota(tx, ctx.org, quota));
    return audit_change(tx, ctx, before ? "quota_changed" : "quota_created", "metering:quota:" + quota.id,
                        fmt::format(R"({{"limit":"{}","subject":"{}"}})", quota.limit, quota.subject));
  }));
  if (before && before->subject != quota.subject) limits_.remove_quota(ctx.org, *before);
  if (!seeding.seeds.empty()) know_session(ctx.org, quota.subject, seeding);
  if (auto placed = limits_.put_quota(ctx.org, quota, now, seeding.seeds); !placed) {
    // Too many: the store must not keep what is not in force.
    CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) { return store::delete_quota(tx, ctx.org, quota.id); }));
    return std::move(placed).error();
  }
  return quota;
}

Result<MeteringService::Counted> MeteringService::counted_of(const Quota& quota) const {
  Counted counted{quota, options_.currency, {}};
  if (!quota.currency.empty()) counted.currency = CRETO_TRY(Currency::parse(quota.currency));
  return counted;
}

MeteringService::Counted MeteringService::counted_of(const SubjectThreshold& threshold) {
  Quota as;
  as.id = threshold.threshold.threshold_id;
  as.subject = threshold.subject;
  as.measure = Measure::cost;
  as.window = window_of(threshold.threshold.period);
  as.time_zone = threshold.time_zone;
  return {std::move(as), threshold.threshold.limit.currency, threshold};
}

/// What was used since `from`, by arrival, up to the log's end. What `seeding` has already is not read again.
Result<> MeteringService::read_seeds(const Ledger& ledger, const std::string& org, const Counted& counted, Instant from,
                                     Seeding& seeding) const {
  const Quota& quota = counted.as;
  const bool rolling = quota.window == WindowKind::rolling;
  if (rolling) std::erase_if(seeding.seeds, [&](const Limits::Seed& seed) { return seed.when < from; });
  if (!rolling && seeding.from != from) seeding = {};  // another window has begun
  const auto held = ledger.held();
  if (seeding.held != held) seeding = {};  // another base stands for what was cut off
  seeding.held = held;
  seeding.from = from;
  std::vector<Limits::Seed>& seeds = seeding.seeds;
  const bool of_session = subject_kind(quota.subject) == SubjectKind::session;
  const SubjectNumber subject = ledger.subjects().find(org, quota.subject);
  if (subject == 0 && !of_session) return {};
  const bool with_base = quota.window == WindowKind::lifetime && !of_session;
  if (with_base && seeding.until == BlockAddress{}) {
    const std::int64_t used = CRETO_TRY(used_in_base(ledger, org, counted));
    if (used > 0) seeds.push_back({held->until, used});
  }
  const BlockAddress begin = CRETO_TRY(ledger.first_at(from));
  const BlockAddress first = std::max(begin, seeding.until);
  const BlockAddress end = ledger.position().end;
  const auto taken_out = ledger.corrections().taken_out(end);
  const auto is_counted = [&](const RecordView& record) {
    const bool of_type = quota.event_type.empty() || record.type == quota.event_type ||
                         (record.type == "action" && record.property("action") == quota.event_type);
    return of_type && std::ranges::all_of(quota.match, [&](const PropertyMatch& match) {
             return std::ranges::find(match.values, record.property(match.property)) != match.values.end();
           });
  };
  const auto amount_of = [&](const RecordView& record) {
    return quota.measure == Measure::units  ? record.whole_units
           : quota.measure == Measure::cost ? intake_->cost_of(record, counted.currency.code())
                                            : 1;
  };
  // A rolling window sorts by time what it gets; any other only needs the sum.
  const auto add = [&](Instant when, std::int64_t amount) {
    if (rolling || seeds.empty()) {
      seeds.push_back({when, amount});
    } else {
      seeds.back().amount = add_saturating(seeds.back().amount, amount);
    }
  };
  RecordScratch scratch;
  bool anew = false;
  const auto visit = [&](const StoredEvent& event) -> Result<> {
    const RecordView& record = event.record;
    // What it takes out may be among the seeds, which no longer know what they are of.
    anew = anew || (event.corrects && event.corrects->place.block < seeding.until);
    if (anew) return {};
    const Attribution& attribution = ledger.subjects().attribution(event.attribution);
    if (of_session) {
      const std::string_view session = session_of(record.properties);
      if (session.empty() || AccountNames::join(SubjectKind::session, session) != quota.subject ||
          ledger.subjects().subject(attribution.agent).org != org)
        return {};
      // Where a later session of the name began, what was used before is of another one.
      const std::int64_t arrived = unix_ns(event.arrived);
      if (seeding.life.is_over(arrived)) {
        seeding.life = {};
        seeds.clear();
      }
      if (!event.corrects) seeding.life.use(arrived, intake_->ends_session(record, event.reporter));
    }
    if (with_base && event.corrects && event.corrects->place.block < held->from &&
        ledger.subjects().attribution(event.corrects->attribution).counts_for(subject)) {
      scratch.clear();
      const RecordView out = CRETO_TRY(parse_record(event.corrects->record, scratch));
      if (is_counted(out)) add(held->until, -amount_of(out));
    }
    // A correction counts where what it takes out did.
    const Instant counted_at = event.corrects ? event.corrects->counted_at : event.arrived;
    if (taken_out && std::ranges::binary_search(*taken_out, event.place())) return {};
    if (counted_at < from || (of_session && !seeding.life.holds(unix_ns(counted_at)))) return {};
    if (!of_session && !attribution.counts_for(subject)) return {};
    if (is_counted(record)) add(counted_at, amount_of(record));
    return {};
  };
  CRETO_TRY(ledger.scan(first, end, visit, held.get()));
  if (anew) {
    seeding = {};
    return read_seeds(ledger, org, counted, from, seeding);
  }
  seeding.until = end;
  if (seeding.life.is_over(unix_ns(clock_.now()))) seeds.clear();
  return {};
}

/// What begins with the use of a session before now ends with it, too.
void MeteringService::know_session(const std::string& org, const std::string& subject, const Seeding& seeding) {
  if (subject_kind(subject) == SubjectKind::session) limits_.know_session(org, subject, seeding.life);
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

Result<QuotaState> MeteringService::quota_state(const Context& ctx, std::string_view id, std::string_view subject) {
  const auto quota =
      CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_quota(tx, ctx.org, id); }));
  if (!quota) return not_found("quota", id);
  limits_.expire(clock_.now());
  const auto state = limits_.state(ctx.org, *quota, clock_.now(), subject);
  if (!state) return not_found("quota", id);
  return *state;
}

Result<contracts::QuotaDecision> MeteringService::check_quota(const Context& ctx, const Identity& agent,
                                                              std::string_view event_type, std::int64_t units) {
  if (units < 0 || units > limit_max) return error(ErrorKind::invalid_input, "units: must be 0 to 10^18");
  const DelegationChain chain = CRETO_TRY(ancestors_of(ctx, agent));
  const Verdict verdict = limits_.check(
      {.org = ctx.org, .agent = agent.text(), .chain = chain, .event_type = event_type, .units = units}, clock_.now());
  const bool allowed = verdict.kind == Verdict::Kind::granted;
  (allowed ? probe_.granted() : probe_.refused());
  return contracts::QuotaDecision{allowed, verdict.limited ? limits_.tell(verdict).id : std::string(), verdict.limit,
                                  verdict.used, verdict.reset_at};
}

Result<contracts::QuotaDecision> MeteringService::check_message_quota(const Context& ctx, const Identity& agent,
                                                                      contracts::MessageEventType type) {
  return check_quota(ctx, agent, contracts::to_string(type), 1);
}

Result<SubjectThreshold> MeteringService::set_threshold(const Context& ctx, const SubjectThreshold& threshold) {
  CRETO_TRY(validate(threshold));
  CRETO_TRY(cost_of(threshold.threshold.limit));
  const std::string document = CRETO_TRY(to_json(threshold));
  Seeding seeding;
  const auto seed = [&](Instant now) -> Result<> {
    // What accounts add up themselves need not be looked for.
    const bool summed = threshold.threshold.limit.currency == options_.currency && threshold.time_zone.empty();
    const Counted counted = counted_of(threshold);
    const std::optional<Instant> from = counted_from(counted.as, now);
    if (summed || !from || each_of(threshold.subject)) return {};
    return read_seeds(*ledger_, ctx.org, counted, *from, seeding);
  };
  CRETO_TRY(seed(clock_.now()));
  std::optional<SubjectThreshold> before;
  const std::unique_lock rules(rules_mutex_);
  const Instant now = clock_.now();
  CRETO_TRY(seed(now));
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    before = CRETO_TRY(store::find_threshold(tx, ctx.org, threshold.threshold.threshold_id));
    if (before && CRETO_TRY(to_json(*before)) == document) return {};  // put again
    CRETO_TRY(store::put_threshold(tx, ctx.org, threshold));
    return audit_change(tx, ctx, before ? "cost_threshold_changed" : "cost_threshold_created",
                        "metering:threshold:" + threshold.threshold.threshold_id);
  }));
  if (before && before->subject != threshold.subject) limits_.remove_threshold(ctx.org, *before);
  if (!seeding.seeds.empty()) know_session(ctx.org, threshold.subject, seeding);
  if (auto placed = limits_.put_threshold(ctx.org, threshold, now, seeding.seeds); !placed) {
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

Error MeteringService::blind_refusal(const Told& limit, const contracts::SpendRequest& request,
                                     const std::optional<Money>& cost) const {
  const std::string& currency = limit.currency.empty() ? options_.currency.code() : limit.currency;
  if (cost) {
    return error(ErrorKind::invalid_input,
                 fmt::format("cost: must be in {} as limit `{}` of `{}` is, or have a limit in {} there", currency,
                             limit.id, limit.subject, cost->currency.code()));
  }
  const auto model = request.properties.find("model_id");
  return error(ErrorKind::invalid_input,
               fmt::format("cost: is not known, since {}; limit `{}` of `{}` needs it",
                           model == request.properties.end() ? "no model is named"
                                                             : fmt::format("model `{}` has no price", model->second),
                           limit.id, limit.subject));
}

Error MeteringService::refusal(const Verdict& verdict, Instant now) const {
  const Told told = limits_.tell(verdict);
  Error refused = error(verdict.kind == Verdict::Kind::oversight_required ? ErrorKind::oversight_required
                                                                          : ErrorKind::quota_exceeded,
                        describe_refusal(verdict, told))
                      .with_context(fmt::format("limit `{}`", told.id));
  if (verdict.reset_at) return std::move(refused).with_retry_after(std::max(*verdict.reset_at - now, Nanos(0)));
  return refused;
}

Result<contracts::Hold> MeteringService::reserve(const Context& ctx, const contracts::SpendRequest& request) {
  if (request.hold_for <= Nanos(0) || request.hold_for > options_.hold_max) {
    return error(ErrorKind::invalid_input,
                 fmt::format("hold_for: must be positive and at most {}", creto::to_string(options_.hold_max)));
  }
  const std::int64_t units = CRETO_TRY(to_whole_units(request.units));
  if (request.properties.size() > spend_properties_max)
    return error(ErrorKind::invalid_input, fmt::format("properties: must be at most {}", spend_properties_max));
  std::vector<std::pair<std::string_view, std::string_view>> properties(request.properties.begin(),
                                                                        request.properties.end());
  const Instant now = clock_.now();
  const Instant until = now + request.hold_for;
  // A name that is no usage type is that of an action; likewise the action that the event will name.
  const auto action = request.event_type == "action" ? request.properties.find("action") : request.properties.end();
  const DelegationChain chain = CRETO_TRY(ancestors_of(ctx, request.agent));
  const bool of_model = request.cost.amount.is_zero() && request.event_type == model_usage_type;
  std::optional<Money> expected = request.cost;
  if (of_model) expected = CRETO_TRY(expected_cost(ctx, request, now));
  const NanoMoney cost = CRETO_TRY(cost_of(expected.value_or(Money{})));
  const Use use{.org = ctx.org,
                .agent = request.agent.text(),
                .chain = chain,
                .event_type = request.event_type,
                .action = action == request.properties.end() ? std::string_view() : action->second,
                .properties = properties,
                .units = units,
                .cost = cost,
                .currency = expected ? currency_of(*expected) : std::string_view(),
                .free = of_model && expected && cost == 0};
  // What cannot be told to be within a budget is not, before it is spent.
  if (!expected || !use.currency.empty()) {
    if (const auto blind = limits_.blind_limit(use, now)) {
      probe_.refused();
      return blind_refusal(*blind, request, expected);
    }
  }
  const Verdict verdict = limits_.reserve(request.id, use, now, until);
  if (verdict.kind == Verdict::Kind::granted) {
    probe_.granted();
    return contracts::Hold{request.id, until};
  }
  if (verdict.kind == Verdict::Kind::conflict) {
    return error(ErrorKind::conflict,
                 fmt::format("reservation `{}` was used for other content", request.id.to_string()));
  }
  probe_.refused();
  telemetry_.log(
      LogLevel::info, "metering", "spending_refused", &ctx,
      {{"limit", limits_.tell(verdict).id}, {"agent", request.agent.text()}, {"event_type", request.event_type}});
  return refusal(verdict, now);
}

Result<> MeteringService::release(const Context& ctx, const ReservationId& id) {
  // Whose hold it is was said when it was made; one of another organization is none that is known here.
  const std::optional<std::string> holder = limits_.holder_of(ctx.org, id);
  if (!holder) return {};
  if (ctx.caller && ctx.caller->is_agent() && ctx.caller->text() != *holder) {
    const auto holding = CRETO_TRY(Identity::parse(*holder));
    const DelegationChain above = CRETO_TRY(ancestors_of(ctx, holding));
    if (std::ranges::find(above, *ctx.caller) == above.end())
      return error(ErrorKind::permission_denied, fmt::format("reservation `{}` is another agent's", id.to_string()));
  }
  limits_.release(id);
  return {};
}

Result<std::optional<authz::Decision>> MeteringService::evaluate(const Context& ctx,
                                                                 const authz::CheckRequest& request) {
  std::string_view type = request.action;
  bool spends = false;
  for (const auto& [action, event_type] : options_.actions) {
    if (action != request.action) continue;
    type = event_type;
    spends = true;
  }
  if (request.chain.size() > delegation_chain_max_depth)
    return error(ErrorKind::invalid_input, "delegation chain: is too deep");
  // What the context and the resource say are properties, as the event will say them.
  std::vector<std::pair<std::string_view, std::string_view>> properties;
  if (request.resource.type == "Model") properties.emplace_back("model_id", request.resource.id);
  for (const auto& [name, value] : request.context) {
    if (const auto* text = value.as<std::string>(); text != nullptr && properties.size() < spend_properties_max)
      properties.emplace_back(name, *text);
  }
  const Use use{.org = ctx.org,
                .agent = request.principal.text(),
                .chain = request.chain,
                .event_type = type,
                .action = request.action,
                .properties = properties,
                .units = 1,
                .free = !spends};
  const Instant now = clock_.now();
  if (limits_.allows(use, now)) return std::optional<authz::Decision>();
  const Verdict verdict = limits_.check(use, now);
  if (verdict.kind == Verdict::Kind::granted) return std::optional<authz::Decision>();
  probe_.refused();
  const Told told = limits_.tell(verdict);
  return std::optional<authz::Decision>(
      authz::QuotaExceeded{told.id, verdict.limit, verdict.used, verdict.reset_at, describe_refusal(verdict, told)});
}

// --- cost
// ----------------------------------------------------------------------------------------------------------------

Result<contracts::OversightTrigger> MeteringService::trigger_of(const CostFinding& finding,
                                                                const contracts::BillableEvent& event) const {
  Currency currency = options_.currency;
  if (!finding.currency.empty()) currency = CRETO_TRY(Currency::parse(finding.currency));
  const Money with_use{from_nano_money(finding.with_use), currency};
  const Money limit{from_nano_money(finding.limit), currency};
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
  const NanoMoney cost = CRETO_TRY(cost_of(event.cost));
  const DelegationChain chain = CRETO_TRY(ancestors_of(ctx, event.agent));
  const Use use{.org = ctx.org,
                .agent = event.agent.text(),
                .chain = chain,
                .event_type = event.event_type,
                .units = 0,
                .cost = cost,
                .currency = currency_of(event.cost)};
  const Instant now = clock_.now();
  // What a threshold cannot add up is not within it.
  const auto blind = use.currency.empty() ? std::nullopt : limits_.blind_threshold(use, period, now);
  const auto finding = blind ? blind : limits_.check_cost(use, period, now);
  if (!finding) return std::optional<contracts::OversightTrigger>();
  contracts::OversightTrigger trigger = CRETO_TRY(trigger_of(*finding, event));
  if (blind) trigger.current_cost = event.cost;
  return std::optional(std::move(trigger));
}

Result<std::vector<contracts::OversightTrigger>> MeteringService::check_multiple_thresholds(
    const Context& ctx, const contracts::BillableEvent& event,
    const std::vector<contracts::CostThreshold>& thresholds) {
  if (thresholds.size() > batch_max)
    return error(ErrorKind::too_large, fmt::format("thresholds: must be at most {}", batch_max));
  const NanoMoney cost = CRETO_TRY(cost_of(event.cost));
  DelegationChain whose = CRETO_TRY(ancestors_of(ctx, event.agent));
  whose.push_back(event.agent);
  const Instant now = clock_.now();
  const auto sees_it = [&](const contracts::CostThreshold& threshold) {
    return cost == 0 || threshold.limit.currency == event.cost.currency;
  };
  std::vector<contracts::OversightTrigger> triggers;
  for (const contracts::CostThreshold& threshold : thresholds) {
    const bool of_period = threshold.period != BillingPeriod::transaction;
    if (of_period && !(threshold.limit.currency == options_.currency)) {
      return error(ErrorKind::invalid_input,
                   fmt::format("thresholds: `{}` must be in {}, which costs are added up in, or of a transaction; put "
                               "it as a threshold to count another currency",
                               threshold.threshold_id, options_.currency.code()));
    }
    const NanoMoney limit = CRETO_TRY(cost_of(threshold.limit));
    NanoMoney with_use = sees_it(threshold) ? cost : 0;
    for (const Identity& one : whose) {
      if (!of_period) break;
      const Use use{.org = ctx.org,
                    .agent = one.text(),
                    .event_type = event.event_type,
                    .units = 0,
                    .cost = sees_it(threshold) ? cost : 0};
      with_use = std::max(with_use, limits_.cost_with(use, threshold.period, now));
    }
    // What a threshold cannot add up is not within it, unless another one of the same period does.
    const bool blind = !sees_it(threshold) && threshold.action != contracts::ThresholdAction::notify_only &&
                       std::ranges::none_of(thresholds, [&](const contracts::CostThreshold& other) {
                         return other.period == threshold.period &&
                                other.action != contracts::ThresholdAction::notify_only && sees_it(other);
                       });
    if (with_use <= limit && !blind) continue;
    const CostFinding finding{threshold.threshold_id,          event.agent.text(), threshold.period,    with_use, limit,
                              threshold.limit.currency.code(), threshold.action,   threshold.approvers, {}};
    contracts::OversightTrigger trigger = CRETO_TRY(trigger_of(finding, event));
    if (blind) trigger.current_cost = event.cost;
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

Result<CostForecast> MeteringService::forecast_cost(const Context& ctx, const Identity& agent, BillingPeriod period) {
  if (period == BillingPeriod::transaction || period == BillingPeriod::lifetime)
    return error(ErrorKind::invalid_input, "period: must be hour, day or month");
  const auto told = limits_.forecast(ctx.org, agent.text(), period, clock_.now());
  if (!told) return not_found("usage of", agent.text());
  const auto money = [&](NanoMoney amount) { return Money{from_nano_money(amount), options_.currency}; };
  return CostForecast{from_unix_ns(told->until_ns),
                      money(told->so_far),
                      money(told->expected),
                      money(told->low),
                      money(told->high),
                      told->confidence,
                      told->hours_learnt};
}

}  // namespace creto::metering
