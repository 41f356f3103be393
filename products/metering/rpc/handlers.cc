#include <fmt/format.h>

#include "creto/contracts/message_cost_tracker.h"
#include "creto/io/proto_json.h"
#include "creto/io/rpc.h"
#include "creto/metering/metering_rpc.h"
#include "rpc/convert.h"
#include "usage/usage_records.h"

namespace creto::metering {

// Beside the others of convert.h, so that a call sees all of them.
static v1::IngestResponse to_proto(const Ingested& ingested) {
  v1::IngestResponse out;
  out.set_event_id(ingested.id.to_string());
  out.set_duplicate(ingested.duplicate);
  out.set_left_out(ingested.left_out);
  return out;
}

namespace {

/// The answer where the domain's value has a total conversion.
template <class Proto, class Domain>
Result<Proto> answer(Result<Domain> result) {
  if (!result) return std::move(result).error();
  return to_proto(*result);
}

template <class Domain>
Result<v1::Document> document(Result<Domain> result) {
  if (!result) return std::move(result).error();
  const std::string json = CRETO_TRY(to_json(*result));
  v1::Document out;
  *out.mutable_document() = CRETO_TRY(struct_of(json));
  return out;
}

template <class Domain>
Result<v1::Documents> documents(Result<std::vector<Domain>> result) {
  if (!result) return std::move(result).error();
  v1::Documents out;
  for (const Domain& one : *result) {
    const std::string json = CRETO_TRY(to_json(one));
    *out.add_documents() = CRETO_TRY(struct_of(json));
  }
  return out;
}

Result<contracts::MessageEventType> message_type(const std::string& text) {
  using enum contracts::MessageEventType;
  for (const auto type : {message_sent, message_received, topic_created, subscription_created}) {
    if (contracts::to_string(type) == text) return type;
  }
  return proto::bad_field("event_type", "is no kind of message event");
}

constexpr auto of_agent = [](const auto& request) { return rpc::Resource{"Agent", request.agent()}; };
constexpr auto of_subscription = [](const auto& request) { return rpc::Resource{"Subscription", request.id()}; };

v1::IngestBatchResponse answers_of(std::span<const Result<Ingested>> answers) {
  v1::IngestBatchResponse out;
  for (const auto& one : answers) {
    auto* item = out.add_items();
    if (!one) {
      *item->mutable_error() = to_proto(one.error());
    } else {
      item->set_event_id(one->id.to_string());
      item->set_duplicate(one->duplicate);
      item->set_left_out(one->left_out);
    }
  }
  return out;
}

Result<std::vector<Result<Ingested>>> take_records(const Context& ctx, Metering& metering,
                                                   v1::IngestRecordsRequest& request) {
  RecordBatch batch;
  batch.records.assign(std::move_iterator(request.mutable_records()->begin()),
                       std::move_iterator(request.mutable_records()->end()));
  batch.reporter = request.reporter();
  if (request.has_signature()) batch.signature = proto::from_signature(request.signature());
  return metering.ingest_records(ctx, batch);
}

v1::IngestStreamResponse stream_answer_of(std::span<const Result<Ingested>> answers) {
  v1::IngestStreamResponse out;
  std::string& ids = *out.mutable_event_ids();
  ids.resize(answers.size() * sizeof(ByteArray<16>));
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const auto place = static_cast<std::uint32_t>(i);
    if (!answers[i]) {
      auto* refusal = out.add_refused();
      refusal->set_record(place);
      *refusal->mutable_error() = to_proto(answers[i].error());
      continue;
    }
    std::ranges::copy(answers[i]->id.bytes(), ids.begin() + static_cast<std::ptrdiff_t>(i * sizeof(ByteArray<16>)));
    if (answers[i]->duplicate) out.add_duplicates(place);
  }
  return out;
}

constexpr std::size_t reports_max = 1'000;
/// Of what is taken item by item: one that is much too large is refused in its place, and what we take in bulk is 16
/// MiB, which is more as JSON.
constexpr std::size_t batch_bytes_max = 24 << 20;

/// Takes what could be encoded; what could not is refused in its place.
Result<v1::IngestBatchResponse> take_encoded(const Context& ctx, Metering& metering,
                                             std::vector<Result<std::string>> records) {
  RecordBatch batch;
  batch.records.reserve(records.size());
  for (auto& record : records) {
    if (record) batch.records.push_back(*std::move(record));
  }
  auto taken = CRETO_TRY(metering.ingest_records(ctx, batch));
  if (taken.size() == records.size()) return answers_of(taken);
  std::vector<Result<Ingested>> answers;
  std::size_t next = 0;
  for (const auto& record : records) {
    answers.push_back(record ? std::move(taken[next++]) : Result<Ingested>(record.error()));
  }
  return answers_of(answers);
}

template <class Events>
Result<std::vector<Result<std::string>>> records_of(const Events& events) {
  if (events.size() > static_cast<int>(reports_max))
    return Error(Product::metering, ErrorKind::too_large, fmt::format("events: must be at most {}", reports_max));
  std::vector<Result<std::string>> records;
  for (const auto& event : events) records.push_back(record_of(event));
  return records;
}

/// As protobuf would write it.
Result<std::string> json_of_answers(const google::protobuf::Message& response) {
  const auto& answers = static_cast<const v1::IngestBatchResponse&>(response);
  std::string json = R"({"items":[)";
  json.reserve(json.size() + static_cast<std::size_t>(answers.items_size()) * 80);
  for (const auto& item : answers.items()) {
    if (json.back() != '[') json += ',';
    json += R"({"event_id":")";
    json += item.event_id();
    json += item.duplicate() ? R"(","duplicate":true)" : R"(","duplicate":false)";
    if (item.has_error()) {
      json += R"(,"error":)";
      json += CRETO_TRY(proto::message_to_json(item.error()));
    }
    json += '}';
  }
  json += "]}";
  return json;
}

void register_events(rpc::Service& service, Metering& metering) {
  service.unary<v1::IngestRequest, v1::IngestResponse>(
      "Ingest", {.idempotent = true},
      [&metering](const Context& ctx, const v1::IngestRequest& request) -> Result<v1::IngestResponse> {
        return answer<v1::IngestResponse>(metering.ingest(ctx, request.event()));
      });
  service.unary<v1::IngestBatchRequest, v1::IngestBatchResponse>(
      "IngestBatch", {.idempotent = true, .request_bytes_max = batch_bytes_max},
      [&metering](const Context& ctx, const v1::IngestBatchRequest& request) -> Result<v1::IngestBatchResponse> {
        const std::vector<std::string> events(request.events().begin(), request.events().end());
        const auto answers = CRETO_TRY(metering.ingest_batch(ctx, events));
        return answers_of(answers);
      });
  service.unary<v1::IngestRecordsRequest, v1::IngestBatchResponse>(
      "IngestRecords", {.idempotent = true, .request_bytes_max = batch_bytes_max},
      [&metering](const Context& ctx, v1::IngestRecordsRequest& request) -> Result<v1::IngestBatchResponse> {
        const auto answers = CRETO_TRY(take_records(ctx, metering, request));
        return answers_of(answers);
      });
  service.exchange<v1::IngestRecordsRequest, v1::IngestStreamResponse>(
      "IngestStream", {.idempotent = true, .request_bytes_max = batch_bytes_max},
      [&metering](const Context& ctx, v1::IngestRecordsRequest& request) -> Result<v1::IngestStreamResponse> {
        const auto answers = CRETO_TRY(take_records(ctx, metering, request));
        return stream_answer_of(answers);
      },
      [](const Error& error) {
        v1::IngestStreamResponse out;
        *out.mutable_error() = to_proto(error);
        return out;
      });
  service.unary<v1::ReportUsageRequest, v1::IngestBatchResponse>(
      "ReportUsage", {.idempotent = true, .request_bytes_max = batch_bytes_max, .write_body = json_of_answers},
      [&metering](const Context& ctx, const v1::ReportUsageRequest& request) -> Result<v1::IngestBatchResponse> {
        auto records = CRETO_TRY(records_of(request.events()));
        return take_encoded(ctx, metering, std::move(records));
      });
  service.unary<v1::IngestCloudEventsRequest, v1::IngestBatchResponse>(
      "IngestCloudEvents",
      {.idempotent = true,
       .request_bytes_max = batch_bytes_max,
       .read_body = [](const http::Request& http, v1::IngestCloudEventsRequest& request) -> Result<> {
         if (http.header("ce-specversion").empty()) {
           request.set_json(http.body);
         } else {
           std::string event = CRETO_TRY(event_of_headers(http.headers, http.body));
           request.set_json(std::move(event));
         }
         return {};
       },
       .write_body = json_of_answers},
      [&metering](const Context& ctx, const v1::IngestCloudEventsRequest& request) -> Result<v1::IngestBatchResponse> {
        if (!request.json().empty() && !request.events().empty())
          return proto::bad_field("json", "must be empty beside `events`");
        auto records = CRETO_TRY(request.json().empty() ? records_of(request.events())
                                                        : records_of_json(request.json(), reports_max));
        return take_encoded(ctx, metering, std::move(records));
      });
  service.unary<v1::RejectedEventRequest, v1::IngestResponse>(
      "ReplayRejectedEvent", {.idempotent = true},
      [&metering](const Context& ctx, const v1::RejectedEventRequest& request) -> Result<v1::IngestResponse> {
        return answer<v1::IngestResponse>(metering.replay_rejected(ctx, request.id()));
      });
  service.unary<v1::RejectedEventRequest, v1::DropRejectedEventResponse>(
      "DropRejectedEvent", {},
      [&metering](const Context& ctx,
                  const v1::RejectedEventRequest& request) -> Result<v1::DropRejectedEventResponse> {
        CRETO_TRY(metering.drop_rejected(ctx, request.id()));
        return v1::DropRejectedEventResponse();
      });
  service.unary<v1::VerifyUsageRequest, v1::VerifyUsageResponse>(
      "VerifyUsage", {.audited = true, .idempotent = true},
      [&metering](const Context& ctx, const v1::VerifyUsageRequest&) -> Result<v1::VerifyUsageResponse> {
        const UsageVerification found = CRETO_TRY(metering.verify_usage(ctx));
        v1::VerifyUsageResponse out;
        out.set_events(found.events);
        out.set_batches(found.batches);
        out.set_envelopes(found.envelopes);
        out.set_counters(found.counters);
        out.set_sums(found.sums);
        out.set_heads(found.heads);
        out.set_head(std::string(as_text(found.head)));
        for (const std::string& problem : found.problems) out.add_problems(problem);
        out.set_events_cut(found.events_cut);
        if (found.held_since) proto::set_time(out.mutable_held_since(), *found.held_since);
        return out;
      });
  service.unary<v1::ListRejectedEventsRequest, v1::ListRejectedEventsResponse>(
      "ListRejectedEvents", {.idempotent = true},
      [&metering](const Context& ctx,
                  const v1::ListRejectedEventsRequest& request) -> Result<v1::ListRejectedEventsResponse> {
        const auto limit = static_cast<std::size_t>(request.limit() == 0 ? 100 : std::max(request.limit(), 0));
        const auto events = CRETO_TRY(metering.rejected_events(ctx, limit));
        v1::ListRejectedEventsResponse out;
        for (const RejectedEvent& one : events) {
          auto* event = out.add_events();
          event->set_id(one.id);
          event->set_error(one.error);
          event->set_body(one.body);
          proto::set_time(event->mutable_when(), one.when);
        }
        return out;
      });
}

void register_plans(rpc::Service& service, Metering& metering) {
  service.unary<v1::ImportPricesRequest, v1::ImportPricesResponse>(
      "ImportPrices", {.audited = true, .idempotent = true, .request_bytes_max = batch_bytes_max},
      [&metering](const Context& ctx, const v1::ImportPricesRequest& request) -> Result<v1::ImportPricesResponse> {
        std::optional<Instant> effective;
        if (request.has_effective()) effective = CRETO_TRY(proto::from_time(request.effective(), "effective"));
        const PriceImport imported = CRETO_TRY(metering.import_prices(ctx, request.table(), effective));
        v1::ImportPricesResponse out;
        out.set_models(imported.models);
        out.set_left_out(imported.left_out);
        proto::set_time(out.mutable_from(), imported.from);
        return out;
      });
  service.unary<v1::ListPricesRequest, v1::Documents>(
      "ListPrices", {.idempotent = true},
      [&metering](const Context& ctx, const v1::ListPricesRequest& request) -> Result<v1::Documents> {
        return documents(metering.list_prices(ctx, request.model()));
      });
  service.unary<v1::PutPlanRequest, v1::Document>(
      "PutPlan", {.idempotent = true},
      [&metering](const Context& ctx, const v1::PutPlanRequest& request) -> Result<v1::Document> {
        const std::string json = CRETO_TRY(json_of(request.plan()));
        const Plan plan = CRETO_TRY(plan_from_json(json));
        return document(metering.put_plan(ctx, plan));
      });
  service.unary<v1::GetPlanRequest, v1::Document>(
      "GetPlan", {.idempotent = true},
      [&metering](const Context& ctx, const v1::GetPlanRequest& request) -> Result<v1::Document> {
        return document(metering.get_plan(ctx, request.id(), request.version()));
      });
  service.unary<v1::ListPlansRequest, v1::Documents>(
      "ListPlans", {.idempotent = true},
      [&metering](const Context& ctx, const v1::ListPlansRequest&) -> Result<v1::Documents> {
        return documents(metering.list_plans(ctx));
      });
  service.unary<v1::SubscribeRequest, v1::Subscription>(
      "Subscribe", {.resource = of_agent},
      [&metering](const Context& ctx, const v1::SubscribeRequest& request) -> Result<v1::Subscription> {
        NewSubscription wanted{request.agent(), request.plan_id(), request.plan_version()};
        wanted.quantity = CRETO_TRY(decimal_from(request.quantity(), "quantity", Decimal(1)));
        if (!request.billing_time().empty()) {
          wanted.billing_time = CRETO_TRY(billing_time_from_string(request.billing_time()));
        }
        if (!request.time_zone().empty()) wanted.time_zone = request.time_zone();
        wanted.overrides = CRETO_TRY(overrides_from(request.overrides()));
        return answer<v1::Subscription>(metering.subscribe(ctx, wanted));
      });
  service.unary<v1::ChangeSubscriptionRequest, v1::Subscription>(
      "ChangeSubscription", {.resource = of_subscription},
      [&metering](const Context& ctx, const v1::ChangeSubscriptionRequest& request) -> Result<v1::Subscription> {
        const auto id = CRETO_TRY(proto::from_id<SubscriptionId>(request.id(), "id"));
        SubscriptionChange change{.terms = {.plan_id = request.plan_id(), .plan_version = request.plan_version()},
                                  .at_period_end = request.at_period_end()};
        change.terms.quantity = CRETO_TRY(decimal_from(request.quantity(), "quantity", Decimal(1)));
        change.terms.overrides = CRETO_TRY(overrides_from(request.overrides()));
        return answer<v1::Subscription>(metering.change_subscription(ctx, id, change));
      });
  service.unary<v1::EndSubscriptionRequest, v1::Subscription>(
      "EndSubscription", {.idempotent = true, .resource = of_subscription},
      [&metering](const Context& ctx, const v1::EndSubscriptionRequest& request) -> Result<v1::Subscription> {
        const auto id = CRETO_TRY(proto::from_id<SubscriptionId>(request.id(), "id"));
        return answer<v1::Subscription>(metering.end_subscription(
            ctx, id, request.at_period_end() ? SubscriptionEnd::period_end : SubscriptionEnd::now));
      });
  service.unary<v1::GetSubscriptionRequest, v1::Subscription>(
      "GetSubscription", {.idempotent = true, .resource = of_subscription},
      [&metering](const Context& ctx, const v1::GetSubscriptionRequest& request) -> Result<v1::Subscription> {
        const auto id = CRETO_TRY(proto::from_id<SubscriptionId>(request.id(), "id"));
        return answer<v1::Subscription>(metering.get_subscription(ctx, id));
      });
  service.unary<v1::ListSubscriptionsRequest, v1::ListSubscriptionsResponse>(
      "ListSubscriptions", {.idempotent = true},
      [&metering](const Context& ctx,
                  const v1::ListSubscriptionsRequest& request) -> Result<v1::ListSubscriptionsResponse> {
        const auto all = CRETO_TRY(metering.list_subscriptions(ctx, request.agent()));
        v1::ListSubscriptionsResponse out;
        for (const Subscription& one : all) *out.add_subscriptions() = to_proto(one);
        return out;
      });
}

void register_limits(rpc::Service& service, Metering& metering) {
  service.unary<v1::SetQuotaRequest, v1::Document>(
      "SetQuota", {.idempotent = true},
      [&metering](const Context& ctx, const v1::SetQuotaRequest& request) -> Result<v1::Document> {
        const std::string json = CRETO_TRY(json_of(request.quota()));
        const Quota quota = CRETO_TRY(quota_from_json(json));
        return document(metering.set_quota(ctx, quota));
      });
  service.unary<v1::DeleteQuotaRequest, v1::DeleteQuotaResponse>(
      "DeleteQuota", {},
      [&metering](const Context& ctx, const v1::DeleteQuotaRequest& request) -> Result<v1::DeleteQuotaResponse> {
        CRETO_TRY(metering.delete_quota(ctx, request.id()));
        return v1::DeleteQuotaResponse();
      });
  service.unary<v1::ListQuotasRequest, v1::Documents>(
      "ListQuotas", {.idempotent = true},
      [&metering](const Context& ctx, const v1::ListQuotasRequest& request) -> Result<v1::Documents> {
        return documents(metering.list_quotas(ctx, request.subject()));
      });
  service.unary<v1::GetQuotaStateRequest, v1::QuotaState>(
      "GetQuotaState", {.idempotent = true},
      [&metering](const Context& ctx, const v1::GetQuotaStateRequest& request) -> Result<v1::QuotaState> {
        return answer<v1::QuotaState>(metering.quota_state(ctx, request.id(), request.subject()));
      });
  service.unary<v1::CheckQuotaRequest, v1::QuotaDecision>(
      "CheckQuota", {.idempotent = true, .resource = of_agent},
      [&metering](const Context& ctx, const v1::CheckQuotaRequest& request) -> Result<v1::QuotaDecision> {
        const Identity agent = CRETO_TRY(proto::from_identity(request.agent(), "agent"));
        return answer<v1::QuotaDecision>(metering.check_quota(ctx, agent, request.event_type(), request.units()));
      });
  service.unary<v1::SetThresholdRequest, v1::Document>(
      "SetThreshold", {.idempotent = true},
      [&metering](const Context& ctx, const v1::SetThresholdRequest& request) -> Result<v1::Document> {
        const std::string json = CRETO_TRY(json_of(request.threshold()));
        const SubjectThreshold threshold = CRETO_TRY(threshold_from_json(json));
        return document(metering.set_threshold(ctx, threshold));
      });
  service.unary<v1::DeleteThresholdRequest, v1::DeleteThresholdResponse>(
      "DeleteThreshold", {},
      [&metering](const Context& ctx,
                  const v1::DeleteThresholdRequest& request) -> Result<v1::DeleteThresholdResponse> {
        CRETO_TRY(metering.delete_threshold(ctx, request.id()));
        return v1::DeleteThresholdResponse();
      });
  service.unary<v1::ListThresholdsRequest, v1::Documents>(
      "ListThresholds", {.idempotent = true},
      [&metering](const Context& ctx, const v1::ListThresholdsRequest& request) -> Result<v1::Documents> {
        return documents(metering.list_thresholds(ctx, request.subject()));
      });
}

void register_invoices(rpc::Service& service, Metering& metering) {
  service.unary<v1::GetUsageRequest, v1::GetUsageResponse>(
      "GetUsage", {.idempotent = true},
      [&metering](const Context& ctx, const v1::GetUsageRequest& request) -> Result<v1::GetUsageResponse> {
        const UsageQuery query = CRETO_TRY(from_proto(request));
        return answer<v1::GetUsageResponse>(metering.usage(ctx, query));
      });
  service.unary<v1::ListUsageEventsRequest, v1::ListUsageEventsResponse>(
      "ListUsageEvents", {.idempotent = true},
      [&metering](const Context& ctx,
                  const v1::ListUsageEventsRequest& request) -> Result<v1::ListUsageEventsResponse> {
        const UsageEventsQuery query = CRETO_TRY(from_proto(request));
        UsageEventsPage page = CRETO_TRY(metering.usage_events(ctx, query));
        v1::ListUsageEventsResponse out;
        for (std::string& event : page.events) out.add_events(std::move(event));
        out.set_next(std::move(page.next));
        if (page.held_since) proto::set_time(out.mutable_held_since(), *page.held_since);
        return out;
      });
  service.unary<v1::IssueInvoiceRequest, v1::Invoice>(
      "IssueInvoice", {},
      [&metering](const Context& ctx, const v1::IssueInvoiceRequest& request) -> Result<v1::Invoice> {
        const auto id = CRETO_TRY(proto::from_id<SubscriptionId>(request.subscription(), "subscription"));
        std::optional<Instant> until;
        if (request.has_until()) until = CRETO_TRY(proto::from_time(request.until(), "until"));
        return answer<v1::Invoice>(metering.issue_invoice(ctx, id, until));
      });
  service.unary<v1::GetInvoiceRequest, v1::Invoice>(
      "GetInvoice", {.idempotent = true},
      [&metering](const Context& ctx, const v1::GetInvoiceRequest& request) -> Result<v1::Invoice> {
        const auto id = CRETO_TRY(proto::from_id<InvoiceId>(request.id(), "id"));
        return answer<v1::Invoice>(metering.get_invoice(ctx, id));
      });
  service.unary<v1::ListInvoicesRequest, v1::ListInvoicesResponse>(
      "ListInvoices", {.idempotent = true},
      [&metering](const Context& ctx, const v1::ListInvoicesRequest& request) -> Result<v1::ListInvoicesResponse> {
        std::optional<SubscriptionId> subscription;
        if (!request.subscription().empty()) {
          subscription = CRETO_TRY(proto::from_id<SubscriptionId>(request.subscription(), "subscription"));
        }
        const auto all = CRETO_TRY(metering.list_invoices(ctx, subscription));
        v1::ListInvoicesResponse out;
        for (const Invoice& one : all) *out.add_invoices() = to_proto(one);
        return out;
      });
  service.unary<v1::GetInvoiceRequest, v1::InvoicePdf>(
      "GetInvoicePdf", {.idempotent = true},
      [&metering](const Context& ctx, const v1::GetInvoiceRequest& request) -> Result<v1::InvoicePdf> {
        const auto id = CRETO_TRY(proto::from_id<InvoiceId>(request.id(), "id"));
        const Bytes pdf = CRETO_TRY(metering.invoice_pdf(ctx, id));
        v1::InvoicePdf out;
        out.set_pdf(proto::to_text(pdf));
        return out;
      });
}

void register_credits(rpc::Service& service, Metering& metering) {
  service.unary<v1::GetInvoiceRequest, v1::InvoiceCsv>(
      "GetInvoiceCsv", {.idempotent = true},
      [&metering](const Context& ctx, const v1::GetInvoiceRequest& request) -> Result<v1::InvoiceCsv> {
        const auto id = CRETO_TRY(proto::from_id<InvoiceId>(request.id(), "id"));
        const Invoice invoice = CRETO_TRY(metering.get_invoice(ctx, id));
        v1::InvoiceCsv out;
        out.set_csv(invoice_csv(invoice));
        return out;
      });
  service.unary<v1::SettleInvoiceRequest, v1::Invoice>(
      "SettleInvoice", {.idempotent = true},
      [&metering](const Context& ctx, const v1::SettleInvoiceRequest& request) -> Result<v1::Invoice> {
        const auto id = CRETO_TRY(proto::from_id<InvoiceId>(request.id(), "id"));
        const auto status = CRETO_TRY(invoice_status_from_string(request.status()));
        return answer<v1::Invoice>(metering.settle_invoice(ctx, id, status, request.settlement()));
      });
  service.unary<v1::IssueCreditNoteRequest, v1::CreditNote>(
      "IssueCreditNote", {},
      [&metering](const Context& ctx, const v1::IssueCreditNoteRequest& request) -> Result<v1::CreditNote> {
        const auto id = CRETO_TRY(proto::from_id<InvoiceId>(request.invoice(), "invoice"));
        const Decimal amount = CRETO_TRY(decimal_from(request.amount(), "amount", Decimal()));
        return answer<v1::CreditNote>(metering.issue_credit_note(ctx, id, amount, request.reason()));
      });
  service.unary<v1::ListCreditNotesRequest, v1::ListCreditNotesResponse>(
      "ListCreditNotes", {.idempotent = true},
      [&metering](const Context& ctx,
                  const v1::ListCreditNotesRequest& request) -> Result<v1::ListCreditNotesResponse> {
        const auto id = CRETO_TRY(proto::from_id<InvoiceId>(request.invoice(), "invoice"));
        const auto all = CRETO_TRY(metering.list_credit_notes(ctx, id));
        v1::ListCreditNotesResponse out;
        for (const CreditNote& one : all) *out.add_credit_notes() = to_proto(one);
        return out;
      });
  service.unary<v1::GrantCreditRequest, v1::Credit>(
      "GrantCredit", {.resource = of_agent},
      [&metering](const Context& ctx, const v1::GrantCreditRequest& request) -> Result<v1::Credit> {
        NewCredit credit{.agent = request.agent(), .description = request.description()};
        credit.amount = CRETO_TRY(from_proto(request.amount(), "amount"));
        if (request.has_priority()) credit.priority = request.priority();
        if (request.has_effective_at()) {
          credit.effective_at = CRETO_TRY(proto::from_time(request.effective_at(), "effective_at"));
        }
        if (request.has_expires_at()) {
          credit.expires_at = CRETO_TRY(proto::from_time(request.expires_at(), "expires_at"));
        }
        if (request.has_reset()) credit.reset = CRETO_TRY(from_proto(request.reset()));
        return answer<v1::Credit>(metering.grant_credit(ctx, credit));
      });
  service.unary<v1::VoidCreditRequest, v1::Credit>(
      "VoidCredit", {.idempotent = true},
      [&metering](const Context& ctx, const v1::VoidCreditRequest& request) -> Result<v1::Credit> {
        const auto id = CRETO_TRY(proto::from_id<CreditId>(request.id(), "id"));
        return answer<v1::Credit>(metering.void_credit(ctx, id));
      });
  service.unary<v1::ListCreditsRequest, v1::ListCreditsResponse>(
      "ListCredits", {.idempotent = true, .resource = of_agent},
      [&metering](const Context& ctx, const v1::ListCreditsRequest& request) -> Result<v1::ListCreditsResponse> {
        const auto all = CRETO_TRY(metering.list_credits(ctx, request.agent()));
        v1::ListCreditsResponse out;
        for (const Credit& one : all) *out.add_credits() = to_proto(one);
        return out;
      });
  service.unary<v1::TopUp, v1::TopUp>("SetTopUp", {.idempotent = true, .resource = of_agent},
                                      [&metering](const Context& ctx, const v1::TopUp& request) -> Result<v1::TopUp> {
                                        const TopUp top_up = CRETO_TRY(from_proto(request));
                                        return answer<v1::TopUp>(metering.set_top_up(ctx, top_up));
                                      });
  service.unary<v1::SetBillingProfileRequest, v1::Document>(
      "SetBillingProfile", {.idempotent = true},
      [&metering](const Context& ctx, const v1::SetBillingProfileRequest& request) -> Result<v1::Document> {
        const std::string json = CRETO_TRY(json_of(request.profile()));
        const BillingProfile profile = CRETO_TRY(billing_profile_from_json(json));
        return document(metering.set_billing_profile(ctx, profile));
      });
  service.unary<v1::DeleteBillingProfileRequest, v1::DeleteBillingProfileResponse>(
      "DeleteBillingProfile", {},
      [&metering](const Context& ctx,
                  const v1::DeleteBillingProfileRequest& request) -> Result<v1::DeleteBillingProfileResponse> {
        CRETO_TRY(metering.delete_billing_profile(ctx, request.subject()));
        return v1::DeleteBillingProfileResponse();
      });
  service.unary<v1::ListBillingProfilesRequest, v1::Documents>(
      "ListBillingProfiles", {.idempotent = true},
      [&metering](const Context& ctx, const v1::ListBillingProfilesRequest& request) -> Result<v1::Documents> {
        return documents(metering.list_billing_profiles(ctx, request.subject()));
      });
  service.unary<v1::PutCouponRequest, v1::Document>(
      "PutCoupon", {.idempotent = true},
      [&metering](const Context& ctx, const v1::PutCouponRequest& request) -> Result<v1::Document> {
        const std::string json = CRETO_TRY(json_of(request.coupon()));
        const Coupon coupon = CRETO_TRY(coupon_from_json(json));
        return document(metering.put_coupon(ctx, coupon));
      });
  service.unary<v1::ListCouponsRequest, v1::Documents>(
      "ListCoupons", {.idempotent = true},
      [&metering](const Context& ctx, const v1::ListCouponsRequest&) -> Result<v1::Documents> {
        return documents(metering.list_coupons(ctx));
      });
  service.unary<v1::ApplyCouponRequest, v1::ApplyCouponResponse>(
      "ApplyCoupon", {},
      [&metering](const Context& ctx, const v1::ApplyCouponRequest& request) -> Result<v1::ApplyCouponResponse> {
        const auto id = CRETO_TRY(proto::from_id<SubscriptionId>(request.subscription(), "subscription"));
        CRETO_TRY(metering.apply_coupon(ctx, id, request.coupon()));
        return v1::ApplyCouponResponse();
      });
}

void register_contracts(rpc::Service& service, Metering& metering) {
  service.unary<v1::CheckCostThresholdRequest, v1::CheckCostThresholdResponse>(
      "CheckCostThreshold", {.idempotent = true},
      [&metering](const Context& ctx,
                  const v1::CheckCostThresholdRequest& request) -> Result<v1::CheckCostThresholdResponse> {
        const auto event = CRETO_TRY(from_proto(request.event()));
        const auto period = CRETO_TRY(contracts::billing_period_from_string(request.period()));
        return answer<v1::CheckCostThresholdResponse>(metering.check_cost_threshold(ctx, event, period));
      });
  service.unary<v1::CheckMultipleThresholdsRequest, v1::CheckMultipleThresholdsResponse>(
      "CheckMultipleThresholds", {.idempotent = true},
      [&metering](const Context& ctx,
                  const v1::CheckMultipleThresholdsRequest& request) -> Result<v1::CheckMultipleThresholdsResponse> {
        const auto event = CRETO_TRY(from_proto(request.event()));
        std::vector<contracts::CostThreshold> thresholds;
        for (const auto& one : request.thresholds()) {
          auto threshold = CRETO_TRY(from_proto(one));
          thresholds.push_back(std::move(threshold));
        }
        const auto triggers = CRETO_TRY(metering.check_multiple_thresholds(ctx, event, thresholds));
        v1::CheckMultipleThresholdsResponse out;
        for (const auto& trigger : triggers) *out.add_triggers() = to_proto(trigger);
        return out;
      });
  service.unary<v1::CheckCostBatchRequest, v1::CheckCostBatchResponse>(
      "CheckCostBatch", {.idempotent = true},
      [&metering](const Context& ctx, const v1::CheckCostBatchRequest& request) -> Result<v1::CheckCostBatchResponse> {
        std::vector<contracts::BillableEvent> events;
        for (const auto& one : request.events()) {
          auto event = CRETO_TRY(from_proto(one));
          events.push_back(std::move(event));
        }
        const auto period = CRETO_TRY(contracts::billing_period_from_string(request.period()));
        const auto triggers = CRETO_TRY(metering.check_batch(ctx, events, period));
        v1::CheckCostBatchResponse out;
        for (const auto& trigger : triggers) *out.add_answers() = to_proto(trigger);
        return out;
      });
  service.unary<v1::GetAccumulatedCostRequest, v1::AccumulatedCost>(
      "GetAccumulatedCost", {.idempotent = true, .resource = of_agent},
      [&metering](const Context& ctx, const v1::GetAccumulatedCostRequest& request) -> Result<v1::AccumulatedCost> {
        const Identity agent = CRETO_TRY(proto::from_identity(request.agent(), "agent"));
        const auto period = CRETO_TRY(contracts::billing_period_from_string(request.period()));
        const auto cost = CRETO_TRY(metering.accumulated_cost(ctx, agent, period));
        v1::AccumulatedCost out;
        out.set_agent(cost.agent.text());
        out.set_period(std::string(contracts::to_string(cost.period)));
        *out.mutable_total() = to_proto(cost.total);
        for (const auto& [type, amount] : cost.by_event_type) (*out.mutable_by_event_type())[type] = to_proto(amount);
        return out;
      });
  service.unary<v1::GetCostForecastRequest, v1::CostForecast>(
      "GetCostForecast", {.idempotent = true, .resource = of_agent},
      [&metering](const Context& ctx, const v1::GetCostForecastRequest& request) -> Result<v1::CostForecast> {
        const Identity agent = CRETO_TRY(proto::from_identity(request.agent(), "agent"));
        const auto period =
            CRETO_TRY(contracts::billing_period_from_string(request.period().empty() ? "month" : request.period()));
        const CostForecast forecast = CRETO_TRY(metering.forecast_cost(ctx, agent, period));
        v1::CostForecast out = to_proto(forecast);
        out.set_agent(agent.text());
        out.set_period(std::string(contracts::to_string(period)));
        return out;
      });
  service.unary<v1::TrackMessageEventRequest, v1::IngestResponse>(
      "TrackMessageEvent", {.idempotent = true, .resource = of_agent},
      [&metering](const Context& ctx, const v1::TrackMessageEventRequest& request) -> Result<v1::IngestResponse> {
        // Unsigned events: believed only where a service of ours says so.
        if (!ctx.caller || ctx.caller->kind() != Identity::Kind::service) {
          return Error(Product::metering, ErrorKind::permission_denied, "only a service may report messages unsigned");
        }
        Identity agent = CRETO_TRY(proto::from_identity(request.agent(), "agent"));
        DelegationChain chain = CRETO_TRY(chain_from(request.delegation_chain()));
        const auto type = CRETO_TRY(message_type(request.event_type()));
        const auto priority = CRETO_TRY(contracts::message_priority_from_string(request.priority()));
        const contracts::MessageBillableEvent event{request.idempotency_key(),
                                                    std::move(agent),
                                                    std::move(chain),
                                                    type,
                                                    proto::from_timestamp(request.timestamp()),
                                                    request.message_size_bytes(),
                                                    request.recipient_count(),
                                                    priority};
        const EventId id = CRETO_TRY(metering.track_message_event(ctx, event));
        v1::IngestResponse out;
        out.set_event_id(id.to_string());
        return out;
      });
  service.unary<v1::CheckMessageQuotaRequest, v1::QuotaDecision>(
      "CheckMessageQuota", {.idempotent = true, .resource = of_agent},
      [&metering](const Context& ctx, const v1::CheckMessageQuotaRequest& request) -> Result<v1::QuotaDecision> {
        const Identity agent = CRETO_TRY(proto::from_identity(request.agent(), "agent"));
        const auto type = CRETO_TRY(message_type(request.event_type()));
        return answer<v1::QuotaDecision>(metering.check_message_quota(ctx, agent, type));
      });
  service.unary<v1::ReserveRequest, v1::Hold>(
      "Reserve", {.idempotent = true, .resource = of_agent},
      [&metering](const Context& ctx, const v1::ReserveRequest& request) -> Result<v1::Hold> {
        const auto id = CRETO_TRY(proto::from_id<ReservationId>(request.id(), "id"));
        Identity agent = CRETO_TRY(proto::from_identity(request.agent(), "agent"));
        DelegationChain chain = CRETO_TRY(chain_from(request.delegation_chain()));
        const Decimal units = CRETO_TRY(Decimal::parse(request.units().empty() ? "1" : request.units()));
        Money cost = CRETO_TRY(from_proto(request.cost(), "cost"));
        const Nanos hold_for = CRETO_TRY(proto::from_duration(request.hold_for(), "hold_for"));
        const contracts::SpendRequest spend{
            id,    std::move(agent), std::move(chain), request.event_type(),
            units, std::move(cost),  hold_for,         {request.properties().begin(), request.properties().end()}};
        const auto hold = CRETO_TRY(metering.reserve(ctx, spend));
        v1::Hold out;
        out.set_id(hold.id.to_string());
        proto::set_time(out.mutable_expires_at(), hold.expires_at);
        return out;
      });
  service.unary<v1::ReleaseRequest, v1::ReleaseResponse>(
      "Release", {.idempotent = true},
      [&metering](const Context& ctx, const v1::ReleaseRequest& request) -> Result<v1::ReleaseResponse> {
        const auto id = CRETO_TRY(proto::from_id<ReservationId>(request.id(), "id"));
        CRETO_TRY(metering.release(ctx, id));
        return v1::ReleaseResponse();
      });
}

}  // namespace

void register_metering(rpc::Dispatcher& dispatcher, Metering& metering) {
  auto service = dispatcher.service("creto.metering.v1.MeteringService");
  register_events(service, metering);
  register_plans(service, metering);
  register_limits(service, metering);
  register_invoices(service, metering);
  register_credits(service, metering);
  register_contracts(service, metering);
}

}  // namespace creto::metering
