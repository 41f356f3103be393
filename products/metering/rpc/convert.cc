#include "rpc/convert.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "billing/invoicing.h"
#include "creto/common/json.h"
#include "creto/contracts/message_cost_tracker.h"

namespace creto::metering {

using proto::bad_field;

Result<std::string> json_of(const google::protobuf::Struct& document) {
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(document, &text).ok())
    return bad_field("document", "must be a JSON object");
  const Json json = CRETO_TRY(parse_json(text));
  return canonical_json(json);
}

Result<google::protobuf::Struct> struct_of(const std::string& json) {
  google::protobuf::Struct document;
  if (!google::protobuf::util::JsonStringToMessage(json, &document).ok())
    return bad_field("document", "must be a JSON object");
  return document;
}

common::v1::Money to_proto(const Money& money) {
  common::v1::Money out;
  out.set_amount(money.amount.to_string());
  out.set_currency(money.currency.code());
  return out;
}

Result<Money> from_proto(const common::v1::Money& money, std::string_view field) {
  // A message that was left out is no money.
  if (money.amount().empty() && money.currency().empty()) return Money{};
  const auto amount = Decimal::parse(money.amount());
  if (!amount) return bad_field(field, "must have a decimal amount");
  auto currency = Currency::parse(money.currency());
  if (!currency) return bad_field(field, "must have a currency of three capitals");
  return Money{*amount, *std::move(currency)};
}

Result<Decimal> decimal_from(const std::string& text, std::string_view field, const Decimal& otherwise) {
  if (text.empty()) return otherwise;
  const auto value = Decimal::parse(text);
  if (!value) return bad_field(field, "must be a decimal");
  return *value;
}

Result<std::string> overrides_from(const google::protobuf::Struct& overrides) {
  if (overrides.fields().empty()) return std::string();
  return json_of(overrides);
}

v1::Subscription to_proto(const Subscription& subscription) {
  v1::Subscription out;
  out.set_id(subscription.id.to_string());
  out.set_agent(subscription.agent);
  proto::set_time(out.mutable_started_at(), subscription.started_at);
  if (subscription.ended_at) proto::set_time(out.mutable_ended_at(), *subscription.ended_at);
  out.set_billing_time(std::string(to_string(subscription.billing_time)));
  out.set_time_zone(subscription.time_zone);
  for (const SubscriptionTerms& terms : subscription.terms) {
    auto* one = out.add_terms();
    one->set_plan_id(terms.plan_id);
    one->set_plan_version(terms.plan_version);
    one->set_quantity(terms.quantity.to_string());
    // Stored overrides were a Struct before, or were validated as one JSON object.
    if (!terms.overrides.empty()) {
      if (auto overrides = struct_of(terms.overrides)) *one->mutable_overrides() = *std::move(overrides);
    }
    proto::set_time(one->mutable_from(), terms.from);
    out.set_plan_id(terms.plan_id);
    out.set_plan_version(terms.plan_version);
  }
  return out;
}

Result<Subscription> from_proto(const v1::Subscription& subscription) {
  const SubscriptionId id = CRETO_TRY(proto::from_id<SubscriptionId>(subscription.id(), "id"));
  Subscription out{.id = id, .agent = subscription.agent(), .time_zone = subscription.time_zone()};
  out.billing_time = CRETO_TRY(billing_time_from_string(subscription.billing_time()));
  out.started_at = CRETO_TRY(proto::from_time(subscription.started_at(), "started_at"));
  if (subscription.has_ended_at()) out.ended_at = CRETO_TRY(proto::from_time(subscription.ended_at(), "ended_at"));
  if (subscription.terms().empty()) return bad_field("terms", "must not be empty");
  for (const auto& one : subscription.terms()) {
    SubscriptionTerms terms{.plan_id = one.plan_id(), .plan_version = one.plan_version()};
    terms.quantity = CRETO_TRY(decimal_from(one.quantity(), "quantity", Decimal(1)));
    terms.overrides = CRETO_TRY(overrides_from(one.overrides()));
    terms.from = CRETO_TRY(proto::from_time(one.from(), "from"));
    out.terms.push_back(std::move(terms));
  }
  return out;
}

v1::QuotaState to_proto(const QuotaState& state) {
  v1::QuotaState out;
  out.set_quota_id(state.quota_id);
  out.set_subject(state.subject);
  out.set_event_type(state.event_type);
  out.set_measure(std::string(to_string(state.measure)));
  out.set_window(std::string(to_string(state.window)));
  out.set_overflow(std::string(to_string(state.overflow)));
  out.set_currency(state.currency);
  out.set_limit(state.limit);
  out.set_used(state.used);
  out.set_held(state.held);
  if (state.reset_at) proto::set_time(out.mutable_reset_at(), *state.reset_at);
  return out;
}

Result<QuotaState> from_proto(const v1::QuotaState& state) {
  QuotaState out{state.quota_id(), state.subject(), state.event_type(), {},           {}, {},
                 state.currency(), state.limit(),   state.used(),       state.held(), {}};
  out.measure = CRETO_TRY(measure_from_string(state.measure()));
  out.window = CRETO_TRY(window_kind_from_string(state.window()));
  out.overflow = CRETO_TRY(overflow_from_string(state.overflow()));
  if (state.has_reset_at()) out.reset_at = CRETO_TRY(proto::from_time(state.reset_at(), "reset_at"));
  return out;
}

v1::CostForecast to_proto(const CostForecast& forecast) {
  v1::CostForecast out;
  proto::set_time(out.mutable_until(), forecast.until);
  *out.mutable_so_far() = to_proto(forecast.so_far);
  *out.mutable_expected() = to_proto(forecast.expected);
  *out.mutable_low() = to_proto(forecast.low);
  *out.mutable_high() = to_proto(forecast.high);
  out.set_confidence(forecast.confidence);
  out.set_hours_learnt(forecast.hours_learnt);
  return out;
}

Result<CostForecast> from_proto(const v1::CostForecast& forecast) {
  CostForecast out;
  out.until = CRETO_TRY(proto::from_time(forecast.until(), "until"));
  out.so_far = CRETO_TRY(from_proto(forecast.so_far(), "so_far"));
  out.expected = CRETO_TRY(from_proto(forecast.expected(), "expected"));
  out.low = CRETO_TRY(from_proto(forecast.low(), "low"));
  out.high = CRETO_TRY(from_proto(forecast.high(), "high"));
  out.confidence = forecast.confidence();
  out.hours_learnt = forecast.hours_learnt();
  return out;
}

v1::QuotaDecision to_proto(const contracts::QuotaDecision& decision) {
  v1::QuotaDecision out;
  out.set_allowed(decision.allowed);
  out.set_quota_id(decision.quota_id);
  out.set_limit(decision.limit);
  out.set_used(decision.used);
  if (decision.reset_at) proto::set_time(out.mutable_reset_at(), *decision.reset_at);
  return out;
}

Result<contracts::QuotaDecision> from_proto(const v1::QuotaDecision& decision) {
  contracts::QuotaDecision out{decision.allowed(), decision.quota_id(), decision.limit(), decision.used(), {}};
  if (decision.has_reset_at()) out.reset_at = CRETO_TRY(proto::from_time(decision.reset_at(), "reset_at"));
  return out;
}

v1::GetUsageRequest to_proto(const UsageQuery& query) {
  v1::GetUsageRequest out;
  out.set_subject(query.subject);
  out.set_event_type(query.event_type);
  proto::set_time(out.mutable_from(), query.from);
  if (query.until != Instant::max()) proto::set_time(out.mutable_until(), query.until);
  for (const UsageGrouping& grouping : query.group_by) out.add_group_by(to_string(grouping));
  for (const PropertyMatch& filter : query.filters) {
    for (const std::string& value : filter.values) out.add_where(fmt::format("{}={}", filter.property, value));
  }
  out.set_time_zone(query.zone.name());
  out.set_order_by(std::string(to_string(query.order)));
  out.set_limit(static_cast<std::int32_t>(query.limit));
  out.set_after(query.after);
  return out;
}

Result<UsageQuery> from_proto(const v1::GetUsageRequest& request) {
  UsageQuery query;
  query.subject = request.subject();
  query.event_type = request.event_type();
  if (request.has_from()) query.from = CRETO_TRY(proto::from_time(request.from(), "from"));
  if (request.has_until()) query.until = CRETO_TRY(proto::from_time(request.until(), "until"));
  query.group_by.clear();
  for (const std::string& text : request.group_by()) {
    UsageGrouping grouping = CRETO_TRY(usage_grouping_from_string(text));
    query.group_by.push_back(std::move(grouping));
  }
  for (const std::string& condition : request.where()) {
    const std::size_t equals = condition.find('=');
    if (equals == std::string::npos) return proto::bad_field("where", "must be <property>=<value>");
    const std::string property = condition.substr(0, equals);
    auto filter = std::ranges::find(query.filters, property, &PropertyMatch::property);
    if (filter == query.filters.end()) filter = query.filters.insert(filter, {property, {}});
    filter->values.push_back(condition.substr(equals + 1));
  }
  if (!request.time_zone().empty()) {
    auto zone = TimeZone::load(request.time_zone());
    if (!zone) return proto::bad_field("time_zone", "must be a name of the time zone database");
    query.zone = *std::move(zone);
  }
  if (!request.order_by().empty()) query.order = CRETO_TRY(usage_order_from_string(request.order_by()));
  if (request.limit() < 0) return proto::bad_field("limit", "must not be negative");
  if (request.limit() > 0) query.limit = static_cast<std::size_t>(request.limit());
  query.after = request.after();
  CRETO_TRY(check_usage_query(query));
  return query;
}

v1::ListUsageEventsRequest to_proto(const UsageEventsQuery& query) {
  v1::ListUsageEventsRequest out;
  out.set_subject(query.subject);
  proto::set_time(out.mutable_from(), query.from);
  if (query.until != Instant::max()) proto::set_time(out.mutable_until(), query.until);
  out.set_after(query.after);
  out.set_limit(static_cast<std::int32_t>(std::min<std::size_t>(query.limit, INT32_MAX)));
  return out;
}

Result<UsageEventsQuery> from_proto(const v1::ListUsageEventsRequest& request) {
  UsageEventsQuery query;
  query.subject = request.subject();
  if (request.has_from()) query.from = CRETO_TRY(proto::from_time(request.from(), "from"));
  if (request.has_until()) query.until = CRETO_TRY(proto::from_time(request.until(), "until"));
  query.after = request.after();
  if (request.limit() < 0) return proto::bad_field("limit", "must not be negative");
  if (request.limit() > 0) query.limit = static_cast<std::size_t>(request.limit());
  CRETO_TRY(check_usage_events_query(query));
  return query;
}

v1::GetUsageResponse to_proto(const UsageReport& usage) {
  v1::GetUsageResponse out;
  for (const UsageRow& one : usage.rows) {
    auto* row = out.add_rows();
    for (const std::string& key : one.keys) row->add_keys(key);
    row->set_events(one.events);
    row->set_units(one.units.to_string());
    *row->mutable_cost() = to_proto(one.cost);
  }
  out.set_groups(static_cast<std::int64_t>(usage.groups));
  out.set_next(usage.next);
  if (usage.held_since) proto::set_time(out.mutable_held_since(), *usage.held_since);
  return out;
}

Result<UsageReport> from_proto(const v1::GetUsageResponse& response) {
  UsageReport usage;
  usage.groups = static_cast<std::size_t>(response.groups());
  usage.next = response.next();
  if (response.has_held_since()) usage.held_since = CRETO_TRY(proto::from_time(response.held_since(), "held_since"));
  for (const auto& one : response.rows()) {
    UsageRow row;
    row.keys.assign(one.keys().begin(), one.keys().end());
    row.events = one.events();
    const auto units = Decimal::parse(one.units());
    if (!units) return proto::bad_field("units", "must be a decimal number");
    row.units = *units;
    row.cost = CRETO_TRY(from_proto(one.cost(), "cost"));
    usage.rows.push_back(std::move(row));
  }
  return usage;
}

v1::Invoice to_proto(const Invoice& invoice) {
  v1::Invoice out;
  out.set_document(invoice.document);
  if (invoice.signature) proto::set_signature(out.mutable_signature(), *invoice.signature);
  if (invoice.proof) {
    auto* proof = out.mutable_proof();
    proof->set_size(invoice.proof->size);
    proof->set_index(invoice.proof->index);
    proof->set_root(proto::to_text(invoice.proof->root));
    for (const Hash256& hash : invoice.proof->path) proof->add_path(proto::to_text(hash));
  }
  out.set_pdf_object(invoice.pdf_object);
  out.set_sent(invoice.sent);
  out.set_status(std::string(to_string(invoice.status)));
  out.set_settlement(invoice.settlement);
  out.set_id(invoice.id.to_string());
  if (invoice.number > 0) out.set_number(invoice_number_text(invoice.number));
  out.set_agent(invoice.agent);
  out.set_total(fmt::format("{} {}", invoice.total.to_fixed(invoice.currency.places()), invoice.currency.code()));
  return out;
}

static Result<Hash256> hash_from(const std::string& bytes) {
  Hash256 hash{};
  if (bytes.size() != hash.size()) return bad_field("proof", "must have hashes of 32 bytes");
  std::ranges::copy(bytes, hash.begin());
  return hash;
}

Result<Invoice> from_proto(const v1::Invoice& invoice) {
  Invoice out = CRETO_TRY(invoice_from_document(invoice.document()));
  out.status = CRETO_TRY(invoice_status_from_string(invoice.status()));
  if (invoice.has_signature()) out.signature = proto::from_signature(invoice.signature());
  if (invoice.has_proof()) {
    InvoiceProof proof{.size = invoice.proof().size(), .index = invoice.proof().index()};
    proof.root = CRETO_TRY(hash_from(invoice.proof().root()));
    for (const std::string& one : invoice.proof().path()) {
      const Hash256 hash = CRETO_TRY(hash_from(one));
      proof.path.push_back(hash);
    }
    out.proof = std::move(proof);
  }
  out.pdf_object = invoice.pdf_object();
  out.sent = invoice.sent();
  out.settlement = invoice.settlement();
  return out;
}

v1::CreditNote to_proto(const CreditNote& note) {
  v1::CreditNote out;
  out.set_id(note.id.to_string());
  out.set_number(note.number);
  out.set_invoice(note.invoice.to_string());
  out.set_amount(note.amount.to_string());
  out.set_reason(note.reason);
  proto::set_time(out.mutable_issued_at(), note.issued_at);
  out.set_document(note.document);
  return out;
}

Result<CreditNote> from_proto(const v1::CreditNote& note) {
  const auto id = CRETO_TRY(proto::from_id<CreditNoteId>(note.id(), "id"));
  const auto invoice = CRETO_TRY(proto::from_id<InvoiceId>(note.invoice(), "invoice"));
  CreditNote out{.id = id, .number = note.number(), .invoice = invoice, .reason = note.reason()};
  out.amount = CRETO_TRY(decimal_from(note.amount(), "amount", Decimal()));
  out.issued_at = CRETO_TRY(proto::from_time(note.issued_at(), "issued_at"));
  out.document = note.document();
  return out;
}

v1::CreditReset to_proto(const CreditReset& reset) {
  v1::CreditReset out;
  out.set_interval(std::string(to_string(reset.interval)));
  out.set_rollover_min(reset.rollover_min.to_string());
  out.set_rollover_max(reset.rollover_max.to_string());
  return out;
}

Result<CreditReset> from_proto(const v1::CreditReset& reset) {
  CreditReset out;
  out.interval = CRETO_TRY(interval_from_string(reset.interval()));
  out.rollover_min = CRETO_TRY(decimal_from(reset.rollover_min(), "reset.rollover_min", Decimal()));
  out.rollover_max = CRETO_TRY(decimal_from(reset.rollover_max(), "reset.rollover_max", Decimal()));
  return out;
}

v1::Credit to_proto(const Credit& credit) {
  v1::Credit out;
  out.set_id(credit.id.to_string());
  out.set_agent(credit.agent);
  out.set_description(credit.description);
  out.set_currency(credit.currency.code());
  out.set_amount(credit.amount.to_string());
  out.set_balance(credit.balance.to_string());
  out.set_priority(credit.priority);
  proto::set_time(out.mutable_effective_at(), credit.effective_at);
  if (credit.expires_at) proto::set_time(out.mutable_expires_at(), *credit.expires_at);
  if (credit.voided_at) proto::set_time(out.mutable_voided_at(), *credit.voided_at);
  if (credit.reset) *out.mutable_reset() = to_proto(*credit.reset);
  return out;
}

Result<Credit> from_proto(const v1::Credit& credit) {
  const auto id = CRETO_TRY(proto::from_id<CreditId>(credit.id(), "id"));
  Credit out{.id = id, .agent = credit.agent(), .description = credit.description()};
  out.currency = CRETO_TRY(Currency::parse(credit.currency()));
  out.amount = CRETO_TRY(decimal_from(credit.amount(), "amount", Decimal()));
  out.balance = CRETO_TRY(decimal_from(credit.balance(), "balance", Decimal()));
  out.priority = credit.priority();
  out.effective_at = CRETO_TRY(proto::from_time(credit.effective_at(), "effective_at"));
  if (credit.has_expires_at()) out.expires_at = CRETO_TRY(proto::from_time(credit.expires_at(), "expires_at"));
  if (credit.has_voided_at()) out.voided_at = CRETO_TRY(proto::from_time(credit.voided_at(), "voided_at"));
  if (credit.has_reset()) out.reset = CRETO_TRY(from_proto(credit.reset()));
  return out;
}

v1::TopUp to_proto(const TopUp& top_up) {
  v1::TopUp out;
  out.set_agent(top_up.agent);
  *out.mutable_amount() = to_proto(top_up.amount);
  out.set_below(top_up.below.to_string());
  return out;
}

Result<TopUp> from_proto(const v1::TopUp& top_up) {
  TopUp out{.agent = top_up.agent()};
  out.amount = CRETO_TRY(from_proto(top_up.amount(), "amount"));
  out.below = CRETO_TRY(decimal_from(top_up.below(), "below", Decimal()));
  return out;
}

v1::BillableEvent to_proto(const contracts::BillableEvent& event) {
  v1::BillableEvent out;
  out.set_event_type(event.event_type);
  out.set_agent(event.agent.text());
  set_chain(out, event.delegation_chain);
  *out.mutable_cost() = to_proto(event.cost);
  return out;
}

Result<contracts::BillableEvent> from_proto(const v1::BillableEvent& event) {
  Identity agent = CRETO_TRY(proto::from_identity(event.agent(), "agent"));
  DelegationChain chain = CRETO_TRY(chain_from(event.delegation_chain()));
  Money cost = CRETO_TRY(from_proto(event.cost(), "cost"));
  return contracts::BillableEvent{event.event_type(), std::move(agent), std::move(chain), std::move(cost)};
}

v1::CostThreshold to_proto(const contracts::CostThreshold& threshold) {
  v1::CostThreshold out;
  out.set_threshold_id(threshold.threshold_id);
  out.set_period(std::string(contracts::to_string(threshold.period)));
  *out.mutable_limit() = to_proto(threshold.limit);
  out.set_action(std::string(contracts::to_string(threshold.action)));
  for (const std::string& approver : threshold.approvers) out.add_approvers(approver);
  return out;
}

Result<contracts::CostThreshold> from_proto(const v1::CostThreshold& threshold) {
  contracts::CostThreshold out;
  out.threshold_id = threshold.threshold_id();
  out.period = CRETO_TRY(contracts::billing_period_from_string(threshold.period()));
  out.limit = CRETO_TRY(from_proto(threshold.limit(), "limit"));
  out.action = CRETO_TRY(contracts::threshold_action_from_string(threshold.action()));
  out.approvers.assign(threshold.approvers().begin(), threshold.approvers().end());
  return out;
}

v1::OversightTrigger to_proto(const contracts::OversightTrigger& trigger) {
  v1::OversightTrigger out;
  out.set_policy_id(trigger.policy_id);
  if (const auto* single = std::get_if<contracts::TransactionLimit>(&trigger.reason)) {
    *out.mutable_transaction_limit()->mutable_amount() = to_proto(single->amount);
    *out.mutable_transaction_limit()->mutable_limit() = to_proto(single->limit);
  } else if (const auto* period = std::get_if<contracts::PeriodLimit>(&trigger.reason)) {
    *out.mutable_period_limit()->mutable_accumulated() = to_proto(period->accumulated);
    *out.mutable_period_limit()->mutable_limit() = to_proto(period->limit);
    out.mutable_period_limit()->set_period(std::string(contracts::to_string(period->period)));
  } else {
    const auto& anomaly = std::get<contracts::AnomalyDetected>(trigger.reason);
    out.mutable_anomaly()->set_expected_rate(anomaly.expected_rate);
    out.mutable_anomaly()->set_actual_rate(anomaly.actual_rate);
    out.mutable_anomaly()->set_confidence(anomaly.confidence);
  }
  *out.mutable_current_cost() = to_proto(trigger.current_cost);
  *out.mutable_threshold() = to_proto(trigger.threshold);
  out.set_action(std::string(contracts::to_string(trigger.action)));
  for (const std::string& approver : trigger.approvers) out.add_approvers(approver);
  return out;
}

Result<contracts::OversightTrigger> from_proto(const v1::OversightTrigger& trigger) {
  contracts::OversightTrigger out;
  out.policy_id = trigger.policy_id();
  switch (trigger.reason_case()) {
    case v1::OversightTrigger::kTransactionLimit: {
      Money amount = CRETO_TRY(from_proto(trigger.transaction_limit().amount(), "amount"));
      Money limit = CRETO_TRY(from_proto(trigger.transaction_limit().limit(), "limit"));
      out.reason = contracts::TransactionLimit{std::move(amount), std::move(limit)};
      break;
    }
    case v1::OversightTrigger::kPeriodLimit: {
      Money accumulated = CRETO_TRY(from_proto(trigger.period_limit().accumulated(), "accumulated"));
      Money limit = CRETO_TRY(from_proto(trigger.period_limit().limit(), "limit"));
      const auto period = CRETO_TRY(contracts::billing_period_from_string(trigger.period_limit().period()));
      out.reason = contracts::PeriodLimit{std::move(accumulated), std::move(limit), period};
      break;
    }
    case v1::OversightTrigger::kAnomaly:
      out.reason = contracts::AnomalyDetected{trigger.anomaly().expected_rate(), trigger.anomaly().actual_rate(),
                                              trigger.anomaly().confidence()};
      break;
    case v1::OversightTrigger::REASON_NOT_SET:
      return bad_field("reason", "is required");
  }
  out.current_cost = CRETO_TRY(from_proto(trigger.current_cost(), "current_cost"));
  out.threshold = CRETO_TRY(from_proto(trigger.threshold(), "threshold"));
  out.action = CRETO_TRY(contracts::threshold_action_from_string(trigger.action()));
  out.approvers.assign(trigger.approvers().begin(), trigger.approvers().end());
  return out;
}

v1::CheckCostThresholdResponse to_proto(const std::optional<contracts::OversightTrigger>& trigger) {
  v1::CheckCostThresholdResponse out;
  if (trigger) *out.mutable_trigger() = to_proto(*trigger);
  return out;
}

Result<std::optional<contracts::OversightTrigger>> from_proto(const v1::CheckCostThresholdResponse& response) {
  if (!response.has_trigger()) return std::optional<contracts::OversightTrigger>();
  auto trigger = CRETO_TRY(from_proto(response.trigger()));
  return std::optional(std::move(trigger));
}

common::v1::EnablementError to_proto(const Error& error) {
  common::v1::EnablementError out;
  out.set_code(error.code());
  out.set_kind(std::string(to_string(error.kind())));
  out.set_message(error.message());
  out.set_product(std::string(to_string(error.product())));
  for (const std::string& context : error.context()) out.add_context(context);
  out.set_retryable(error.retryable());
  if (error.retry_after()) proto::set_duration(out.mutable_retry_after(), *error.retry_after());
  out.set_trace_id(error.trace_id());
  if (error.caused_by() != nullptr) *out.mutable_caused_by() = to_proto(*error.caused_by());
  return out;
}

Error from_proto(const common::v1::EnablementError& error) {
  Error out =
      Error(Product::metering, error_kind_from_string(error.kind()).value_or(ErrorKind::internal), error.message())
          .with_retryable(error.retryable());
  // "MT-401": the number may differ from its kind's.
  if (error.code().size() == 6) {
    int number = 0;
    for (const char c : std::string_view(error.code()).substr(3))
      number = c >= '0' && c <= '9' ? number * 10 + (c - '0') : 0;
    if (number >= 1) out = std::move(out).with_number(number);
  }
  for (const std::string& context : error.context()) out = std::move(out).with_context(context);
  if (error.has_retry_after()) {
    if (const auto delay = proto::from_duration(error.retry_after(), "retry_after"))
      out = std::move(out).with_retry_after(*delay);
  }
  if (error.has_caused_by()) out = std::move(out).with_cause(from_proto(error.caused_by()));
  return out;
}

}  // namespace creto::metering
