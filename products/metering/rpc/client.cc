#include <cstring>

#include "creto/contracts/message_cost_tracker.h"
#include "creto/io/rpc_channel.h"
#include "creto/metering/metering_rpc.h"
#include "rpc/convert.h"

namespace creto::metering {
namespace {

constexpr rpc::CallOptions repeatable{.idempotent = true};

class MeteringClient final : public Metering {
 public:
  explicit MeteringClient(std::shared_ptr<rpc::Channel> channel) : channel_(std::move(channel)) {}

  Result<Ingested> ingest(const Context& ctx, std::string_view envelope) override {
    v1::IngestRequest request;
    request.set_event(std::string(envelope));
    const auto response = CRETO_TRY(call<v1::IngestResponse>(ctx, "Ingest", request, repeatable));
    const auto id = CRETO_TRY(proto::from_id<EventId>(response.event_id(), "event_id"));
    return Ingested{id, response.duplicate(), response.left_out()};
  }
  Result<std::vector<Result<Ingested>>> ingest_batch(const Context& ctx,
                                                     std::span<const std::string> envelopes) override {
    v1::IngestBatchRequest request;
    for (const std::string& envelope : envelopes) request.add_events(envelope);
    const auto response = CRETO_TRY(call<v1::IngestBatchResponse>(ctx, "IngestBatch", request, repeatable));
    return answers_of(response);
  }
  Result<std::vector<Result<Ingested>>> ingest_records(const Context& ctx, const RecordBatch& batch) override {
    v1::IngestRecordsRequest request;
    for (const std::string& record : batch.records) request.add_records(record);
    request.set_reporter(batch.reporter);
    if (batch.signature) proto::set_signature(request.mutable_signature(), *batch.signature);
    const auto response = CRETO_TRY(call<v1::IngestBatchResponse>(ctx, "IngestRecords", request, repeatable));
    return answers_of(response);
  }
  Result<> ingest_stream(const Context& ctx, const NextBatch& next, const BatchAnswer& answered) override {
    Result<> malformed;
    CRETO_TRY((channel_->exchange<v1::IngestRecordsRequest, v1::IngestStreamResponse>(
        ctx, "/creto.metering.v1.MeteringService/IngestStream",
        [&](v1::IngestRecordsRequest& request) {
          auto batch = next();
          if (!batch) return false;
          request.Clear();
          for (std::string& record : batch->records) request.add_records(std::move(record));
          request.set_reporter(std::move(batch->reporter));
          if (batch->signature) proto::set_signature(request.mutable_signature(), *batch->signature);
          return true;
        },
        [&](const v1::IngestStreamResponse& response) {
          if (response.has_error()) {
            answered(from_proto(response.error()));
            return true;
          }
          auto answers = answers_of(response);
          malformed = answers ? Result<>() : Result<>(answers.error());
          if (answers) answered(*std::move(answers));
          return malformed.has_value();
        })));
    return malformed;
  }
  Result<std::vector<RejectedEvent>> rejected_events(const Context& ctx, std::size_t limit) override {
    v1::ListRejectedEventsRequest request;
    request.set_limit(static_cast<std::int32_t>(std::min<std::size_t>(limit, INT32_MAX)));
    const auto response =
        CRETO_TRY(call<v1::ListRejectedEventsResponse>(ctx, "ListRejectedEvents", request, repeatable));
    std::vector<RejectedEvent> events;
    for (const auto& one : response.events()) {
      const Instant when = CRETO_TRY(proto::from_time(one.when(), "when"));
      events.push_back({one.id(), one.error(), one.body(), when});
    }
    return events;
  }

  Result<UsageVerification> verify_usage(const Context& ctx) override {
    const auto response =
        CRETO_TRY(call<v1::VerifyUsageResponse>(ctx, "VerifyUsage", v1::VerifyUsageRequest(), repeatable));
    UsageVerification found{response.events(),
                            response.batches(),
                            response.envelopes(),
                            response.counters(),
                            response.sums(),
                            response.heads(),
                            {},
                            {},
                            response.events_cut(),
                            {}};
    if (response.has_held_since()) found.held_since = CRETO_TRY(proto::from_time(response.held_since(), "held_since"));
    if (response.head().size() != found.head.size()) return proto::bad_field("head", "must have 32 bytes");
    std::ranges::copy(response.head(), found.head.begin());
    found.problems.assign(response.problems().begin(), response.problems().end());
    return found;
  }
  Result<Ingested> replay_rejected(const Context& ctx, std::string_view id) override {
    v1::RejectedEventRequest request;
    request.set_id(std::string(id));
    const auto response = CRETO_TRY(call<v1::IngestResponse>(ctx, "ReplayRejectedEvent", request, repeatable));
    const auto event = CRETO_TRY(proto::from_id<EventId>(response.event_id(), "event_id"));
    return Ingested{event, response.duplicate(), response.left_out()};
  }
  Result<> drop_rejected(const Context& ctx, std::string_view id) override {
    v1::RejectedEventRequest request;
    request.set_id(std::string(id));
    CRETO_TRY(call<v1::DropRejectedEventResponse>(ctx, "DropRejectedEvent", request));
    return {};
  }

  Result<PriceImport> import_prices(const Context& ctx, std::string_view table,
                                    std::optional<Instant> effective) override {
    v1::ImportPricesRequest request;
    request.set_table(std::string(table));
    if (effective) proto::set_time(request.mutable_effective(), *effective);
    const auto response = CRETO_TRY(call<v1::ImportPricesResponse>(ctx, "ImportPrices", request, repeatable));
    PriceImport imported{response.models(), response.left_out(), {}};
    imported.from = CRETO_TRY(proto::from_time(response.from(), "from"));
    return imported;
  }
  Result<std::vector<ModelPrice>> list_prices(const Context& ctx, std::string_view model) override {
    v1::ListPricesRequest request;
    request.set_model(std::string(model));
    return documents(ctx, "ListPrices", request, model_price_from_json);
  }
  Result<Plan> put_plan(const Context& ctx, const Plan& plan) override {
    const std::string json = CRETO_TRY(to_json(plan));
    v1::PutPlanRequest request;
    *request.mutable_plan() = CRETO_TRY(struct_of(json));
    return document(ctx, "PutPlan", request, plan_from_json);
  }
  Result<Plan> get_plan(const Context& ctx, std::string_view id, std::int64_t version) override {
    v1::GetPlanRequest request;
    request.set_id(std::string(id));
    request.set_version(version);
    return document(ctx, "GetPlan", request, plan_from_json);
  }
  Result<std::vector<Plan>> list_plans(const Context& ctx) override {
    return documents(ctx, "ListPlans", v1::ListPlansRequest(), plan_from_json);
  }
  Result<Subscription> subscribe(const Context& ctx, const NewSubscription& subscription) override {
    v1::SubscribeRequest request;
    request.set_agent(subscription.agent);
    request.set_plan_id(subscription.plan_id);
    request.set_plan_version(subscription.plan_version);
    request.set_quantity(subscription.quantity.to_string());
    request.set_billing_time(std::string(to_string(subscription.billing_time)));
    request.set_time_zone(subscription.time_zone);
    if (!subscription.overrides.empty()) *request.mutable_overrides() = CRETO_TRY(struct_of(subscription.overrides));
    const auto response =
        CRETO_TRY(call<v1::Subscription>(ctx, "Subscribe", request, {.idempotent = !ctx.idempotency_key.empty()}));
    return from_proto(response);
  }
  Result<Subscription> change_subscription(const Context& ctx, const SubscriptionId& id,
                                           const SubscriptionChange& change) override {
    v1::ChangeSubscriptionRequest request;
    request.set_id(id.to_string());
    request.set_plan_id(change.terms.plan_id);
    request.set_plan_version(change.terms.plan_version);
    request.set_quantity(change.terms.quantity.to_string());
    if (!change.terms.overrides.empty()) *request.mutable_overrides() = CRETO_TRY(struct_of(change.terms.overrides));
    request.set_at_period_end(change.at_period_end);
    const auto response = CRETO_TRY(
        call<v1::Subscription>(ctx, "ChangeSubscription", request, {.idempotent = !ctx.idempotency_key.empty()}));
    return from_proto(response);
  }
  using Billing::end_subscription;
  Result<Subscription> end_subscription(const Context& ctx, const SubscriptionId& id, SubscriptionEnd end) override {
    v1::EndSubscriptionRequest request;
    request.set_id(id.to_string());
    request.set_at_period_end(end == SubscriptionEnd::period_end);
    const auto response = CRETO_TRY(call<v1::Subscription>(ctx, "EndSubscription", request, repeatable));
    return from_proto(response);
  }
  Result<Subscription> get_subscription(const Context& ctx, const SubscriptionId& id) override {
    const auto response = CRETO_TRY(
        call<v1::Subscription>(ctx, "GetSubscription", about<v1::GetSubscriptionRequest>(id.to_string()), repeatable));
    return from_proto(response);
  }
  Result<std::vector<Subscription>> list_subscriptions(const Context& ctx, std::string_view agent) override {
    v1::ListSubscriptionsRequest request;
    request.set_agent(std::string(agent));
    const auto response = CRETO_TRY(call<v1::ListSubscriptionsResponse>(ctx, "ListSubscriptions", request, repeatable));
    std::vector<Subscription> all;
    for (const auto& one : response.subscriptions()) {
      Subscription subscription = CRETO_TRY(from_proto(one));
      all.push_back(std::move(subscription));
    }
    return all;
  }

  Result<Quota> set_quota(const Context& ctx, const Quota& quota) override {
    CRETO_TRY(validate(quota));
    const std::string json = CRETO_TRY(to_json(quota));
    v1::SetQuotaRequest request;
    *request.mutable_quota() = CRETO_TRY(struct_of(json));
    return document(ctx, "SetQuota", request, quota_from_json);
  }
  Result<> delete_quota(const Context& ctx, std::string_view id) override {
    CRETO_TRY(call<v1::DeleteQuotaResponse>(ctx, "DeleteQuota", about<v1::DeleteQuotaRequest>(id)));
    return {};
  }
  Result<std::vector<Quota>> list_quotas(const Context& ctx, std::string_view subject) override {
    v1::ListQuotasRequest request;
    request.set_subject(std::string(subject));
    return documents(ctx, "ListQuotas", request, quota_from_json);
  }
  using Metering::quota_state;
  Result<QuotaState> quota_state(const Context& ctx, std::string_view id, std::string_view subject) override {
    auto request = about<v1::GetQuotaStateRequest>(id);
    request.set_subject(std::string(subject));
    const auto response = CRETO_TRY(call<v1::QuotaState>(ctx, "GetQuotaState", request, repeatable));
    return from_proto(response);
  }
  Result<contracts::QuotaDecision> check_quota(const Context& ctx, const Identity& agent, std::string_view event_type,
                                               std::int64_t units) override {
    v1::CheckQuotaRequest request;
    request.set_agent(agent.text());
    request.set_event_type(std::string(event_type));
    request.set_units(units);
    const auto response = CRETO_TRY(call<v1::QuotaDecision>(ctx, "CheckQuota", request, repeatable));
    return from_proto(response);
  }
  Result<SubjectThreshold> set_threshold(const Context& ctx, const SubjectThreshold& threshold) override {
    CRETO_TRY(validate(threshold));
    const std::string json = CRETO_TRY(to_json(threshold));
    v1::SetThresholdRequest request;
    *request.mutable_threshold() = CRETO_TRY(struct_of(json));
    return document(ctx, "SetThreshold", request, threshold_from_json);
  }
  Result<> delete_threshold(const Context& ctx, std::string_view id) override {
    CRETO_TRY(call<v1::DeleteThresholdResponse>(ctx, "DeleteThreshold", about<v1::DeleteThresholdRequest>(id)));
    return {};
  }
  Result<std::vector<SubjectThreshold>> list_thresholds(const Context& ctx, std::string_view subject) override {
    v1::ListThresholdsRequest request;
    request.set_subject(std::string(subject));
    return documents(ctx, "ListThresholds", request, threshold_from_json);
  }

  Result<UsageReport> usage(const Context& ctx, const UsageQuery& query) override {
    const auto response = CRETO_TRY(call<v1::GetUsageResponse>(ctx, "GetUsage", to_proto(query), repeatable));
    return from_proto(response);
  }
  Result<UsageEventsPage> usage_events(const Context& ctx, const UsageEventsQuery& query) override {
    const auto response =
        CRETO_TRY(call<v1::ListUsageEventsResponse>(ctx, "ListUsageEvents", to_proto(query), repeatable));
    UsageEventsPage page{{response.events().begin(), response.events().end()}, response.next()};
    if (response.has_held_since()) page.held_since = CRETO_TRY(proto::from_time(response.held_since(), "held_since"));
    return page;
  }
  Result<Invoice> issue_invoice(const Context& ctx, const SubscriptionId& subscription,
                                std::optional<Instant> until) override {
    v1::IssueInvoiceRequest request;
    request.set_subscription(subscription.to_string());
    if (until) proto::set_time(request.mutable_until(), *until);
    const bool safe = until || !ctx.idempotency_key.empty();
    const auto response = CRETO_TRY(call<v1::Invoice>(ctx, "IssueInvoice", request, {.idempotent = safe}));
    return from_proto(response);
  }
  Result<Invoice> get_invoice(const Context& ctx, const InvoiceId& id) override {
    const auto response =
        CRETO_TRY(call<v1::Invoice>(ctx, "GetInvoice", about<v1::GetInvoiceRequest>(id.to_string()), repeatable));
    return from_proto(response);
  }
  Result<std::vector<Invoice>> list_invoices(const Context& ctx,
                                             const std::optional<SubscriptionId>& subscription) override {
    v1::ListInvoicesRequest request;
    if (subscription) request.set_subscription(subscription->to_string());
    const auto response = CRETO_TRY(call<v1::ListInvoicesResponse>(ctx, "ListInvoices", request, repeatable));
    std::vector<Invoice> all;
    for (const auto& one : response.invoices()) {
      Invoice invoice = CRETO_TRY(from_proto(one));
      all.push_back(std::move(invoice));
    }
    return all;
  }
  Result<Bytes> invoice_pdf(const Context& ctx, const InvoiceId& id) override {
    const auto response =
        CRETO_TRY(call<v1::InvoicePdf>(ctx, "GetInvoicePdf", about<v1::GetInvoiceRequest>(id.to_string()), repeatable));
    return to_bytes(response.pdf());
  }
  Result<Invoice> settle_invoice(const Context& ctx, const InvoiceId& id, InvoiceStatus status,
                                 std::string_view settlement) override {
    v1::SettleInvoiceRequest request;
    request.set_id(id.to_string());
    request.set_status(std::string(to_string(status)));
    request.set_settlement(std::string(settlement));
    const auto response = CRETO_TRY(call<v1::Invoice>(ctx, "SettleInvoice", request, repeatable));
    return from_proto(response);
  }
  Result<CreditNote> issue_credit_note(const Context& ctx, const InvoiceId& invoice, const Decimal& amount,
                                       std::string_view reason) override {
    v1::IssueCreditNoteRequest request;
    request.set_invoice(invoice.to_string());
    request.set_amount(amount.to_string());
    request.set_reason(std::string(reason));
    const auto response =
        CRETO_TRY(call<v1::CreditNote>(ctx, "IssueCreditNote", request, {.idempotent = !ctx.idempotency_key.empty()}));
    return from_proto(response);
  }
  Result<std::vector<CreditNote>> list_credit_notes(const Context& ctx, const InvoiceId& invoice) override {
    v1::ListCreditNotesRequest request;
    request.set_invoice(invoice.to_string());
    const auto response = CRETO_TRY(call<v1::ListCreditNotesResponse>(ctx, "ListCreditNotes", request, repeatable));
    return all_of<CreditNote>(response.credit_notes());
  }
  Result<Credit> grant_credit(const Context& ctx, const NewCredit& credit) override {
    v1::GrantCreditRequest request;
    request.set_agent(credit.agent);
    request.set_description(credit.description);
    *request.mutable_amount() = to_proto(credit.amount);
    request.set_priority(credit.priority);
    if (credit.effective_at) proto::set_time(request.mutable_effective_at(), *credit.effective_at);
    if (credit.expires_at) proto::set_time(request.mutable_expires_at(), *credit.expires_at);
    if (credit.reset) *request.mutable_reset() = to_proto(*credit.reset);
    const auto response =
        CRETO_TRY(call<v1::Credit>(ctx, "GrantCredit", request, {.idempotent = !ctx.idempotency_key.empty()}));
    return from_proto(response);
  }
  Result<Credit> void_credit(const Context& ctx, const CreditId& id) override {
    const auto response =
        CRETO_TRY(call<v1::Credit>(ctx, "VoidCredit", about<v1::VoidCreditRequest>(id.to_string()), repeatable));
    return from_proto(response);
  }
  Result<std::vector<Credit>> list_credits(const Context& ctx, std::string_view agent) override {
    v1::ListCreditsRequest request;
    request.set_agent(std::string(agent));
    const auto response = CRETO_TRY(call<v1::ListCreditsResponse>(ctx, "ListCredits", request, repeatable));
    return all_of<Credit>(response.credits());
  }
  Result<TopUp> set_top_up(const Context& ctx, const TopUp& top_up) override {
    const auto response = CRETO_TRY(call<v1::TopUp>(ctx, "SetTopUp", to_proto(top_up), repeatable));
    return from_proto(response);
  }
  Result<BillingProfile> set_billing_profile(const Context& ctx, const BillingProfile& profile) override {
    const std::string json = CRETO_TRY(to_json(profile));
    v1::SetBillingProfileRequest request;
    *request.mutable_profile() = CRETO_TRY(struct_of(json));
    return document(ctx, "SetBillingProfile", request, billing_profile_from_json);
  }
  Result<> delete_billing_profile(const Context& ctx, std::string_view subject) override {
    v1::DeleteBillingProfileRequest request;
    request.set_subject(std::string(subject));
    CRETO_TRY(call<v1::DeleteBillingProfileResponse>(ctx, "DeleteBillingProfile", request));
    return {};
  }
  Result<std::vector<BillingProfile>> list_billing_profiles(const Context& ctx, std::string_view subject) override {
    v1::ListBillingProfilesRequest request;
    request.set_subject(std::string(subject));
    return documents(ctx, "ListBillingProfiles", request, billing_profile_from_json);
  }
  Result<Coupon> put_coupon(const Context& ctx, const Coupon& coupon) override {
    const std::string json = CRETO_TRY(to_json(coupon));
    v1::PutCouponRequest request;
    *request.mutable_coupon() = CRETO_TRY(struct_of(json));
    return document(ctx, "PutCoupon", request, coupon_from_json);
  }
  Result<std::vector<Coupon>> list_coupons(const Context& ctx) override {
    return documents(ctx, "ListCoupons", v1::ListCouponsRequest(), coupon_from_json);
  }
  Result<> apply_coupon(const Context& ctx, const SubscriptionId& subscription, std::string_view coupon) override {
    v1::ApplyCouponRequest request;
    request.set_subscription(subscription.to_string());
    request.set_coupon(std::string(coupon));
    CRETO_TRY(call<v1::ApplyCouponResponse>(ctx, "ApplyCoupon", request, {.idempotent = !ctx.idempotency_key.empty()}));
    return {};
  }

  Result<std::optional<contracts::OversightTrigger>> check_cost_threshold(const Context& ctx,
                                                                          const contracts::BillableEvent& event,
                                                                          contracts::BillingPeriod period) override {
    v1::CheckCostThresholdRequest request;
    *request.mutable_event() = to_proto(event);
    request.set_period(std::string(contracts::to_string(period)));
    const auto response =
        CRETO_TRY(call<v1::CheckCostThresholdResponse>(ctx, "CheckCostThreshold", request, repeatable));
    return from_proto(response);
  }
  Result<std::vector<contracts::OversightTrigger>> check_multiple_thresholds(
      const Context& ctx, const contracts::BillableEvent& event,
      const std::vector<contracts::CostThreshold>& thresholds) override {
    v1::CheckMultipleThresholdsRequest request;
    *request.mutable_event() = to_proto(event);
    for (const auto& threshold : thresholds) *request.add_thresholds() = to_proto(threshold);
    const auto response =
        CRETO_TRY(call<v1::CheckMultipleThresholdsResponse>(ctx, "CheckMultipleThresholds", request, repeatable));
    std::vector<contracts::OversightTrigger> triggers;
    for (const auto& one : response.triggers()) {
      auto trigger = CRETO_TRY(from_proto(one));
      triggers.push_back(std::move(trigger));
    }
    return triggers;
  }
  Result<std::vector<std::optional<contracts::OversightTrigger>>> check_batch(
      const Context& ctx, const std::vector<contracts::BillableEvent>& events,
      contracts::BillingPeriod period) override {
    v1::CheckCostBatchRequest request;
    for (const auto& event : events) *request.add_events() = to_proto(event);
    request.set_period(std::string(contracts::to_string(period)));
    const auto response = CRETO_TRY(call<v1::CheckCostBatchResponse>(ctx, "CheckCostBatch", request, repeatable));
    std::vector<std::optional<contracts::OversightTrigger>> triggers;
    for (const auto& one : response.answers()) {
      auto trigger = CRETO_TRY(from_proto(one));
      triggers.push_back(std::move(trigger));
    }
    return triggers;
  }
  Result<contracts::AccumulatedCost> accumulated_cost(const Context& ctx, const Identity& agent,
                                                      contracts::BillingPeriod period) override {
    v1::GetAccumulatedCostRequest request;
    request.set_agent(agent.text());
    request.set_period(std::string(contracts::to_string(period)));
    const auto response = CRETO_TRY(call<v1::AccumulatedCost>(ctx, "GetAccumulatedCost", request, repeatable));
    Money total = CRETO_TRY(from_proto(response.total(), "total"));
    contracts::AccumulatedCost cost{agent, period, std::move(total), {}};
    for (const auto& [type, amount] : response.by_event_type()) {
      Money of_type = CRETO_TRY(from_proto(amount, "by_event_type"));
      cost.by_event_type.emplace(type, std::move(of_type));
    }
    return cost;
  }

  Result<CostForecast> forecast_cost(const Context& ctx, const Identity& agent,
                                     contracts::BillingPeriod period) override {
    v1::GetCostForecastRequest request;
    request.set_agent(agent.text());
    request.set_period(std::string(contracts::to_string(period)));
    const auto response = CRETO_TRY(call<v1::CostForecast>(ctx, "GetCostForecast", request, repeatable));
    return from_proto(response);
  }

  Result<EventId> track_message_event(const Context& ctx, const contracts::MessageBillableEvent& event) override {
    v1::TrackMessageEventRequest request;
    request.set_idempotency_key(event.idempotency_key);
    request.set_agent(event.agent.text());
    set_chain(request, event.delegation_chain);
    request.set_event_type(std::string(contracts::to_string(event.event_type)));
    proto::set_timestamp(request.mutable_timestamp(), event.timestamp);
    request.set_message_size_bytes(event.message_size_bytes);
    request.set_recipient_count(event.recipient_count);
    request.set_priority(std::string(contracts::to_string(event.priority)));
    const auto response = CRETO_TRY(call<v1::IngestResponse>(ctx, "TrackMessageEvent", request, repeatable));
    return proto::from_id<EventId>(response.event_id(), "event_id");
  }
  Result<contracts::QuotaDecision> check_message_quota(const Context& ctx, const Identity& agent,
                                                       contracts::MessageEventType type) override {
    v1::CheckMessageQuotaRequest request;
    request.set_agent(agent.text());
    request.set_event_type(std::string(contracts::to_string(type)));
    const auto response = CRETO_TRY(call<v1::QuotaDecision>(ctx, "CheckMessageQuota", request, repeatable));
    return from_proto(response);
  }

  Result<contracts::Hold> reserve(const Context& ctx, const contracts::SpendRequest& spend) override {
    v1::ReserveRequest request;
    request.set_id(spend.id.to_string());
    request.set_agent(spend.agent.text());
    set_chain(request, spend.delegation_chain);
    request.set_event_type(spend.event_type);
    request.set_units(spend.units.to_string());
    *request.mutable_cost() = to_proto(spend.cost);
    proto::set_duration(request.mutable_hold_for(), spend.hold_for);
    for (const auto& [property, value] : spend.properties) (*request.mutable_properties())[property] = value;
    const auto response = CRETO_TRY(call<v1::Hold>(ctx, "Reserve", request, repeatable));
    const Instant until = CRETO_TRY(proto::from_time(response.expires_at(), "expires_at"));
    return contracts::Hold{spend.id, until};
  }
  Result<> release(const Context& ctx, const ReservationId& id) override {
    CRETO_TRY(call<v1::ReleaseResponse>(ctx, "Release", about<v1::ReleaseRequest>(id.to_string()), repeatable));
    return {};
  }

 private:
  static Result<std::vector<Result<Ingested>>> answers_of(const v1::IngestBatchResponse& response) {
    std::vector<Result<Ingested>> answers;
    for (const auto& item : response.items()) {
      if (item.has_error()) {
        answers.emplace_back(from_proto(item.error()));
        continue;
      }
      const auto id = CRETO_TRY(proto::from_id<EventId>(item.event_id(), "event_id"));
      answers.emplace_back(Ingested{id, item.duplicate(), item.left_out()});
    }
    return answers;
  }
  static Result<std::vector<Result<Ingested>>> answers_of(const v1::IngestStreamResponse& response) {
    const std::string& ids = response.event_ids();
    ByteArray<16> id{};
    if (ids.size() % id.size() != 0) return proto::bad_field("event_ids", "must have 16 bytes each");
    std::vector<Result<Ingested>> answers;
    answers.reserve(ids.size() / id.size());
    for (std::size_t at = 0; at < ids.size(); at += id.size()) {
      std::memcpy(id.data(), ids.data() + at, id.size());
      answers.emplace_back(Ingested{EventId::from_bytes(id), false});
    }
    for (const std::uint32_t place : response.duplicates()) {
      if (place >= answers.size()) return proto::bad_field("duplicates", "must be places of records");
      answers[place]->duplicate = true;
    }
    for (const auto& refusal : response.refused()) {
      if (refusal.record() >= answers.size()) return proto::bad_field("refused", "must be places of records");
      answers[refusal.record()] = from_proto(refusal.error());
    }
    return answers;
  }
  template <class Res, class Req>
  Result<Res> call(const Context& ctx, std::string_view method, const Req& request, rpc::CallOptions options = {}) {
    return channel_->call<Req, Res>(ctx, "/creto.metering.v1.MeteringService/" + std::string(method), request, options);
  }
  template <class Req>
  static Req about(std::string_view id) {
    Req request;
    request.set_id(std::string(id));
    return request;
  }
  template <class Domain, class Repeated>
  static Result<std::vector<Domain>> all_of(const Repeated& messages) {
    std::vector<Domain> all;
    for (const auto& one : messages) {
      Domain domain = CRETO_TRY(from_proto(one));
      all.push_back(std::move(domain));
    }
    return all;
  }
  template <class Req, class Parse>
  auto document(const Context& ctx, std::string_view method, const Req& request, Parse parse)
      -> decltype(parse(std::string_view())) {
    const auto response = CRETO_TRY(call<v1::Document>(ctx, method, request, repeatable));
    const std::string json = CRETO_TRY(json_of(response.document()));
    return parse(json);
  }
  template <class Req, class Parse>
  auto documents(const Context& ctx, std::string_view method, const Req& request, Parse parse)
      -> Result<std::vector<typename decltype(parse(std::string_view()))::value_type>> {
    const auto response = CRETO_TRY(call<v1::Documents>(ctx, method, request, repeatable));
    std::vector<typename decltype(parse(std::string_view()))::value_type> all;
    for (const auto& one : response.documents()) {
      const std::string json = CRETO_TRY(json_of(one));
      auto parsed = CRETO_TRY(parse(json));
      all.push_back(std::move(parsed));
    }
    return all;
  }

  std::shared_ptr<rpc::Channel> channel_;
};

}  // namespace

std::unique_ptr<Metering> create_metering_client(std::shared_ptr<rpc::Channel> channel) {
  return std::make_unique<MeteringClient>(std::move(channel));
}

}  // namespace creto::metering
