#include "creto/contracts/events.h"

#include <nlohmann/json.hpp>

#include "creto/common/json.h"

namespace creto::contracts {
namespace {

constexpr const char* anomaly_kind = "cost_anomaly";

constexpr std::int64_t schema_version = 1;

/// The members every payload shares, checked once.
class PayloadReader : public JsonReader {
 public:
  PayloadReader(const Json& json, std::string_view event_type) : JsonReader(json, std::string(event_type)) {
    if (integer("schema_version") != schema_version) refuse("schema_version", "must be 1");
  }
  /// One of a closed list of words.
  std::string word(std::string_view key, std::initializer_list<std::string_view> allowed) {
    std::string value = text(key);
    for (const std::string_view candidate : allowed)
      if (value == candidate) return value;
    refuse(key, "is not one of the allowed words");
    return value;
  }
  std::vector<std::string> texts(std::string_view key) {
    std::vector<std::string> values;
    for (const Json& element : array(key)) {
      if (!element.is_string()) {
        refuse(key, "must hold strings");
        break;
      }
      values.push_back(element.get<std::string>());
    }
    return values;
  }
};

}  // namespace

Result<std::string> RuntimeUsageEvent::to_json() const {
  Json properties_json = CRETO_TRY(parse_json(properties));
  Json json = {{"schema_version", schema_version},
               {"usage_type", usage_type},
               {"idempotency_key", idempotency_key},
               {"properties", std::move(properties_json)},
               {"units", units.to_string()}};
  if (cost) json["cost"] = {{"amount", cost->amount.to_string()}, {"currency", cost->currency.code()}};
  if (!replaces.empty()) json["replaces"] = replaces;
  if (!voids.empty()) json["voids"] = voids;
  return canonical_json(json);
}

Result<RuntimeUsageEvent> RuntimeUsageEvent::from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  PayloadReader reader(json, event_type);
  RuntimeUsageEvent event;
  event.usage_type = reader.word("usage_type", {"sandbox_allocated", "sandbox_terminated", "inference_tokens",
                                                "network_egress", "action", "void"});
  event.idempotency_key = reader.text("idempotency_key");
  if (event.idempotency_key.empty() || event.idempotency_key.size() > 256)
    reader.refuse("idempotency_key", "must have 1 to 256 characters");
  const Json& properties_json = reader.object("properties");
  const std::string units_text = reader.text("units");
  const Json& cost_json = reader.object("cost");
  event.replaces = reader.text_or("replaces", "");
  event.voids = reader.text_or("voids", "");
  if (event.voids.empty() != (event.usage_type != "void"))
    reader.refuse("voids", "must stand in `void`, and only there");
  CRETO_TRY(reader.finish());

  event.properties = CRETO_TRY(canonical_json(properties_json));
  event.units = CRETO_TRY(Decimal::parse(units_text));
  if (event.units.is_negative())
    return Error(Product::platform, ErrorKind::invalid_input, "runtime_usage.units: must not be negative");
  if (!cost_json.empty()) {
    JsonReader cost_reader(cost_json, "runtime_usage.cost");
    const std::string amount_text = cost_reader.text("amount");
    const std::string currency_text = cost_reader.text("currency");
    CRETO_TRY(cost_reader.finish());
    const Decimal amount = CRETO_TRY(Decimal::parse(amount_text));
    Currency currency = CRETO_TRY(Currency::parse(currency_text));
    if (amount.is_negative())
      return Error(Product::platform, ErrorKind::invalid_input, "runtime_usage.cost.amount: must not be negative");
    event.cost = Money{amount, std::move(currency)};
  }
  return event;
}

Result<std::string> CostThresholdExceededEvent::to_json() const {
  Json json{{"schema_version", schema_version},
            {"kind", kind},
            {"threshold_id", threshold_id},
            {"triggering_event", triggering_event},
            {"current", current},
            {"limit", limit},
            {"unit", unit},
            {"period", period},
            {"action", std::string(to_string(action))},
            {"approvers", approvers}};
  if (kind == anomaly_kind) {
    json["expected"] = expected;
    json["confidence"] = confidence;
  }
  return canonical_json(json);
}

Result<CostThresholdExceededEvent> CostThresholdExceededEvent::from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  PayloadReader reader(json, event_type);
  CostThresholdExceededEvent event;
  event.kind = reader.word("kind", {"cost_threshold", "quota_breach", anomaly_kind});
  event.threshold_id = reader.text("threshold_id");
  event.triggering_event = reader.text("triggering_event");
  event.current = reader.text("current");
  event.limit = reader.text("limit");
  event.unit = reader.text("unit");
  event.period = reader.text("period");
  const std::string action_text = reader.text("action");
  event.approvers = reader.texts("approvers");
  const bool anomaly = event.kind == anomaly_kind;
  if (anomaly) event.expected = reader.text("expected");
  if (anomaly) event.confidence = reader.text("confidence");
  CRETO_TRY(reader.finish());
  event.action = CRETO_TRY(threshold_action_from_string(action_text));
  CRETO_TRY(Decimal::parse(event.current));
  CRETO_TRY(Decimal::parse(event.limit));
  if (!anomaly) return event;
  CRETO_TRY(Decimal::parse(event.expected));
  const Decimal confidence = CRETO_TRY(Decimal::parse(event.confidence));
  if (confidence.is_negative() || confidence > Decimal(1))
    return Error(Product::platform, ErrorKind::invalid_input, "cost_threshold_exceeded.confidence: must be 0 to 1");
  return event;
}

Result<std::string> OversightDecisionEvent::to_json() const {
  Json arguments_json = CRETO_TRY(parse_json(arguments));
  Json response_json = CRETO_TRY(parse_json(response));
  return canonical_json(Json{{"schema_version", schema_version},
                             {"request_id", request.to_string()},
                             {"sandbox_id", sandbox ? sandbox->to_string() : ""},
                             {"decision", std::string(to_string(decision))},
                             {"approver", approver},
                             {"notes", notes},
                             {"action", action},
                             {"arguments", std::move(arguments_json)},
                             {"response", std::move(response_json)}});
}

Result<OversightDecisionEvent> OversightDecisionEvent::from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  PayloadReader reader(json, event_type);
  const std::string request_text = reader.text("request_id");
  const std::string sandbox_text = reader.text_or("sandbox_id", "");
  const std::string decision_text = reader.text("decision");
  const std::string approver = reader.text("approver");
  const std::string notes = reader.text("notes");
  const std::string action = reader.text("action");
  const Json& arguments_json = reader.object("arguments");
  const Json& response_json = reader.object("response");
  CRETO_TRY(reader.finish());

  const RequestId request = CRETO_TRY(RequestId::parse(request_text));
  std::optional<SandboxId> sandbox;
  if (!sandbox_text.empty()) sandbox = CRETO_TRY(SandboxId::parse(sandbox_text));
  const ApprovalState decision = CRETO_TRY(approval_state_from_string(decision_text));
  if (decision == ApprovalState::pending)
    return Error(Product::platform, ErrorKind::invalid_input, "oversight_decision.decision: `pending` decides nothing");
  if (!approver.empty()) CRETO_TRY(Identity::parse(approver));
  std::string arguments = CRETO_TRY(canonical_json(arguments_json));
  std::string response = CRETO_TRY(canonical_json(response_json));
  return OversightDecisionEvent{
      request, sandbox, decision, approver, notes, action, std::move(arguments), std::move(response)};
}

Result<std::string> SandboxLifecycleEvent::to_json() const {
  return canonical_json(Json{
      {"schema_version", schema_version}, {"sandbox_id", sandbox.to_string()}, {"change", change}, {"detail", detail}});
}

Result<SandboxLifecycleEvent> SandboxLifecycleEvent::from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  PayloadReader reader(json, event_type);
  const std::string sandbox_text = reader.text("sandbox_id");
  const std::string change = reader.word("change", {"created", "terminated", "checkpointed", "restored"});
  const std::string detail = reader.text("detail");
  CRETO_TRY(reader.finish());
  const SandboxId sandbox = CRETO_TRY(SandboxId::parse(sandbox_text));
  return SandboxLifecycleEvent{sandbox, change, detail};
}

Result<std::string> DeliveryReceiptEvent::to_json() const {
  return canonical_json(Json{{"schema_version", schema_version},
                             {"message_id", message.to_string()},
                             {"recipient_nhi", recipient.text()},
                             {"receipt_type", receipt},
                             {"failure_reason", failure_reason}});
}

Result<DeliveryReceiptEvent> DeliveryReceiptEvent::from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  PayloadReader reader(json, event_type);
  const std::string message_text = reader.text("message_id");
  const std::string recipient_text = reader.text("recipient_nhi");
  const std::string receipt = reader.word("receipt_type", {"delivered", "read", "failed"});
  const std::string reason = reader.text_or("failure_reason", "");
  CRETO_TRY(reader.finish());
  const MessageId message = CRETO_TRY(MessageId::parse(message_text));
  Identity recipient = CRETO_TRY(Identity::parse(recipient_text));
  return DeliveryReceiptEvent{message, std::move(recipient), receipt, reason};
}

Result<std::string> OversightNotificationEvent::to_json() const {
  return canonical_json(Json{{"schema_version", schema_version},
                             {"request_id", request.to_string()},
                             {"channel_type", channel},
                             {"approver_identity", approver},
                             {"action_description", description},
                             {"reasoning_context", reasoning}});
}

Result<OversightNotificationEvent> OversightNotificationEvent::from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  PayloadReader reader(json, event_type);
  const std::string request_text = reader.text("request_id");
  const std::string channel = reader.word("channel_type", {"webhook", "cli", "slack", "email"});
  const std::string approver = reader.text("approver_identity");
  const std::string description = reader.text("action_description");
  const std::string reasoning = reader.text("reasoning_context");
  CRETO_TRY(reader.finish());
  const RequestId request = CRETO_TRY(RequestId::parse(request_text));
  return OversightNotificationEvent{request, channel, approver, description, reasoning};
}

}  // namespace creto::contracts
