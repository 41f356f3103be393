#include "gateway/agent_doors.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "creto/audit/audit_log.h"
#include "creto/common/assert.h"
#include "creto/common/json.h"
#include "creto/contracts/cost_trigger.h"
#include "creto/contracts/spending.h"
#include "creto/crypto/hash.h"
#include "creto/io/idempotency.h"
#include "creto/memory/memory.h"
#include "creto/nhi/nhi.h"
#include "creto/vault/vault.h"
#include "errors.h"
#include "gateway/completion.h"

namespace creto::runtime {
namespace {

constexpr std::string_view send_operation = "runtime.send";
constexpr Nanos idempotency_window = std::chrono::hours(24);
constexpr std::size_t receive_messages_max = 32;
constexpr int receive_looks_max = 8;
constexpr std::size_t shown_prompt_max = 2'000;
constexpr std::size_t shown_message_max = 700;
constexpr std::size_t reasoning_max = 16 << 10;
constexpr std::int64_t waiting_messages_max = 64;

Error turned_off(std::string_view what) {
  return Error(Product::runtime, ErrorKind::unavailable, fmt::format("{} is not part of this installation", what));
}

audit::AuditRecord entry(const Context& ctx, std::string what, const SandboxId& sandbox,
                         audit::Outcome outcome = audit::Outcome::success) {
  return audit::AuditRecord::of(ctx, std::move(what), fmt::format("runtime:sandbox:{}", sandbox.to_string()), outcome);
}

/// The id of an operation's hold: its own 16 bytes under another name.
ReservationId hold_of(const std::string& operation) {
  const auto id = ActionId::parse(operation);
  CRETO_ASSERT(id.has_value());
  return ReservationId::from_bytes(id->bytes());
}

ActionOutcome sent_outcome(const std::string& message_id) {
  return {200, Json{{"message_id", message_id}}.dump(), std::nullopt};
}

/// Of a message, for a human who has to approve it.
std::string shown(const std::string& body) {
  if (!is_valid_utf8(body)) return fmt::format("{} bytes that are no text", body.size());
  if (body.size() <= shown_message_max) return body;
  return fmt::format("{}… ({} bytes in all)", legible(body, shown_message_max), body.size());
}

Json message_json(const OpenedMessage& opened) {
  const bool text = is_valid_utf8(opened.body);
  return {{"message_id", opened.id.to_string()},
          {"from", opened.sender.text()},
          {"topic", opened.topic},
          {"verified", opened.verified},
          {"sent_at", to_rfc3339(opened.sent_at)},
          {"body", text ? opened.body : base64(as_bytes(opened.body))},
          {"encoding", text ? "text" : "base64"}};
}

}  // namespace

// --- approvals -------------------------------------------------------------------------------------------------------

Error Approvals::refused(const Context& ctx, const authz::CheckRequest& request, Error error) {
  auto record = audit::AuditRecord::of(ctx, request.action, request.resource.to_string(), audit::Outcome::denied);
  record.outcome_detail = error.to_string();
  auto written = sql::write(services_.database, ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(audit::record(tx, ctx, record));
    return {};
  });
  if (!written) services_.telemetry.error("runtime", "audit_failed", {{"error", written.error().to_string()}});
  return error;
}

Result<contracts::ApprovalStatus> Approvals::ask(const Context& ctx, const authz::CheckRequest& request,
                                                 const std::optional<SandboxId>& sandbox, const std::string& arguments,
                                                 const std::string& description, const std::string& reasoning,
                                                 std::vector<contracts::ApprovalNeed> needs,
                                                 std::vector<std::string> risks) {
  if (!services_.approvals)
    return refused(ctx, request,
                   Error(Product::runtime, ErrorKind::oversight_required,
                         fmt::format("`{}` needs a human's approval, and nobody can be asked here", request.action)));
  contracts::ApprovalRequest asked{{request.principal, request.chain, sandbox, request.action, request.resource.type,
                                    request.resource.id, arguments},
                                   std::move(needs),
                                   description,
                                   reasoning,
                                   std::move(risks)};
  // The runtime asks, which knows what the decision needs: who asks for himself has no say in who approves.
  return services_.approvals->request_approval(events_.asking_for(ctx), asked);
}

Result<std::optional<contracts::ApprovalStatus>> Approvals::require(
    const Context& ctx, const authz::CheckRequest& request, const std::optional<SandboxId>& sandbox,
    const std::string& arguments, const std::string& description, const std::string& reasoning,
    const std::optional<Money>& cost) {
  const auto decision = services_.authz.admit(ctx, request);
  if (const auto* oversight = std::get_if<authz::RequiresOversight>(&decision)) {
    std::vector<contracts::ApprovalNeed> needs;
    std::vector<std::string> risks;
    for (const auto& requirement : oversight->requirements) {
      needs.push_back({requirement.oversight_policy, requirement.forbid, requirement.timeout, requirement.approvers});
      risks.push_back(fmt::format("policy `{}` forbids it without approval", requirement.forbid));
    }
    auto status =
        CRETO_TRY(ask(ctx, request, sandbox, arguments, description, reasoning, std::move(needs), std::move(risks)));
    return std::optional(std::move(status));
  }
  if (auto refusal = authz::refusal(Product::runtime, decision)) return refused(ctx, request, std::move(*refusal));

  if (cost && services_.costs) {
    const contracts::BillableEvent event{"action", request.principal, request.chain, *cost};
    for (const auto period :
         {contracts::BillingPeriod::transaction, contracts::BillingPeriod::hour, contracts::BillingPeriod::day,
          contracts::BillingPeriod::month, contracts::BillingPeriod::lifetime}) {
      auto trigger = CRETO_TRY(services_.costs->check_cost_threshold(ctx, event, period));
      if (!trigger || trigger->action == contracts::ThresholdAction::notify_only) continue;
      const auto text = fmt::format("cost threshold `{}`: {} of {}", trigger->policy_id,
                                    trigger->current_cost.to_string(), trigger->threshold.to_string());
      if (trigger->action == contracts::ThresholdAction::block)
        return refused(ctx, request,
                       Error(Product::runtime, ErrorKind::quota_exceeded, text + " exceeded")
                           .with_cause(Error(Product::metering, ErrorKind::quota_exceeded, text)));
      // A token is bound to these very arguments and used up later: who approved it has seen the cost.
      if (!request.override_token.empty()) continue;
      auto status = CRETO_TRY(ask(ctx, request, sandbox, arguments, description, reasoning,
                                  {{trigger->policy_id, {}, std::nullopt, trigger->approvers}}, {text}));
      return std::optional(std::move(status));
    }
  }
  return std::nullopt;
}

// --- actions ---------------------------------------------------------------------------------------------------------

AgentDoors::AgentDoors(RuntimeServices& services, Events& events, Approvals& approvals, Tasks& tasks, Backlog& backlog,
                       std::map<std::string, ActionDeclaration> actions)
    : services_(services),
      events_(events),
      approvals_(approvals),
      tasks_(tasks),
      backlog_(backlog),
      actions_(std::move(actions)),
      client_(http::Client::create(services.clock)),
      bell_(services.database.signal(contracts::SandboxMessenger::queue_signal), tasks) {}

Result<ActionOutcome> AgentDoors::act(const Context& ctx, const Resident& resident, const std::string& name,
                                      const Json& arguments, const std::string& reasoning,
                                      const std::string& override_token) {
  const auto declared = actions_.find(name);
  if (declared == actions_.end())
    return Error(Product::runtime, ErrorKind::not_found, fmt::format("there is no action `{}`", name.substr(0, 64)));
  const auto& action = declared->second;
  const auto checked = CRETO_TRY(check_arguments(action, arguments));
  if (reasoning.size() > reasoning_max)
    return Error(Product::runtime, ErrorKind::too_large, "reasoning: is longer than 16 KiB");

  const auto earlier =
      CRETO_TRY(sql::read(services_.database, ctx, [&](sql::Tx& tx) -> Result<std::optional<OperationRecord>> {
        return RuntimeStore::find_operation(tx, resident.org, resident.agent, "action", ctx.idempotency_key);
      }));
  if (earlier) {
    if (earlier->name != name || earlier->arguments != checked.canonical)
      return Error(Product::runtime, ErrorKind::conflict, "this idempotency key was used with other content");
    // The same key with another token would be a second use of an approval that the first one did not need.
    if (!override_token.empty() && earlier->done) return ActionOutcome{earlier->status, earlier->result, std::nullopt};
    if (earlier->done) return ActionOutcome{earlier->status, earlier->result, std::nullopt};
    return perform(ctx, *earlier, action, checked);
  }

  const authz::CheckRequest request{resident.agent,      resident.chain,
                                    action.cedar_action, {action.resource_type, checked.resource_id},
                                    checked.context,     crypto::sha3_256(as_bytes(checked.canonical)),
                                    override_token};
  auto waiting = CRETO_TRY(approvals_.require(
      ctx, request, resident.sandbox, checked.canonical,
      fmt::format("{}: {}", action.description.empty() ? action.name : action.description, checked.canonical),
      reasoning, checked.cost));
  if (waiting) {
    auto asked = entry(ctx, "action_awaits_approval", resident.sandbox);
    asked.why = waiting->request.to_string();
    asked.metadata = Json{{"action", name}, {"arguments", checked.canonical}}.dump();
    CRETO_TRY(sql::write(services_.database, ctx, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(audit::record(tx, ctx, asked));
      return {};
    }));
    return ActionOutcome{202, {}, std::move(waiting)};
  }

  OperationRecord operation{resident.org,
                            ActionId::fresh(services_.clock.now()).to_string(),
                            resident.agent,
                            resident.sandbox,
                            "action",
                            ctx.idempotency_key,
                            name,
                            checked.canonical,
                            reasoning,
                            false,
                            0,
                            {}};
  if (services_.limits) {
    const contracts::SpendRequest spend{hold_of(operation.id),
                                        resident.agent,
                                        resident.chain,
                                        "action",
                                        Decimal(1),
                                        checked.cost.value_or(Money{}),
                                        std::chrono::minutes(10),
                                        {{"action", name}, {"sandbox_id", resident.sandbox.to_string()}}};
    auto held = services_.limits->reserve(ctx, spend);
    if (!held) {
      if (held.error().kind() != ErrorKind::quota_exceeded) return std::move(held).error();
      return Error(Product::runtime, ErrorKind::quota_exceeded, fmt::format("`{}` is over the agent's quota", name))
          .with_cause(std::move(held).error());
    }
  }
  auto begun = sql::write(services_.database, ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(RuntimeStore::insert(tx, operation, tx.now()));
    if (!override_token.empty()) CRETO_TRY(services_.authz.consume_override(tx, ctx, request, operation.id));
    auto record = entry(ctx, "action_begun", resident.sandbox);
    record.why = legible(reasoning, 2000);
    record.metadata = Json{{"action", name}, {"operation", operation.id}, {"arguments", checked.canonical}}.dump();
    CRETO_TRY(audit::record(tx, ctx, record));
    return {};
  });
  if (!begun) {
    release(ctx, operation);
    // Another request with the same key was quicker.
    if (begun.error().kind() == ErrorKind::already_exists)
      return Error(Product::runtime, ErrorKind::unavailable, "the same operation is being performed; repeat")
          .with_retryable(true);
    return std::move(begun).error();
  }
  return perform(ctx, std::move(operation), action, checked);
}

Result<ActionOutcome> AgentDoors::perform(const Context& ctx, OperationRecord operation,
                                          const ActionDeclaration& action, const CheckedArguments& checked) {
  const auto own = events_.service_context(operation.org);
  http::ClientRequest call;
  call.method = action.method;
  call.url = action.upstream;
  call.headers = {{"Content-Type", "application/json"}, {action.idempotency_header, operation.id}};
  if (action.method != "GET") call.body = operation.arguments;
  call.timeout = action.timeout;
  call.body_bytes_max = action.response_bytes_max;
  if (!action.secret_ref.empty()) {
    if (!services_.vault) return turned_off("the vault");
    const auto ref = CRETO_TRY(vault::SecretRef::parse(action.secret_ref));
    auto secret = CRETO_TRY(services_.vault->get_secret(own, ref));
    call.headers.emplace_back(action.secret_header, action.secret_prefix + std::string(secret.value.reveal_text()));
  }
  auto answer = client_->send(ctx, call);
  for (auto& [header, value] : call.headers)
    if (header == action.secret_header) wipe(value.data(), value.size());
  // Without an answer nobody knows whether it happened: it stays begun, and repeating it under its id is safe.
  if (!answer) {
    if (answer.error().kind() == ErrorKind::too_large) return std::move(answer).error();
    return Error(Product::runtime, ErrorKind::unavailable,
                 fmt::format("`{}` did not answer; repeat with the same key", action.name))
        .with_cause(std::move(answer).error())
        .with_retryable(true);
  }
  if (answer->status >= 500 || answer->status == 429 || answer->status == 408)
    return Error(Product::runtime, ErrorKind::unavailable,
                 fmt::format("`{}` answered with {}; repeat with the same key", action.name, answer->status))
        .with_retryable(true);

  const bool succeeded = answer->status < 400;
  Json result;
  if (auto parsed = parse_json(answer->body, {.bytes_max = action.response_bytes_max}); parsed) {
    result = *parsed;
  } else {
    result = is_valid_utf8(answer->body) ? Json(answer->body) : Json(base64(as_bytes(answer->body)));
  }
  operation.done = true;
  operation.status = succeeded ? 200 : answer->status;
  if (succeeded) {
    operation.result = Json{{"operation_id", operation.id}, {"result", result}}.dump();
  } else {
    const Error refusal(Product::runtime, ErrorKind::conflict,
                        fmt::format("`{}` refused with {}", action.name, answer->status));
    auto body = Json::parse(http::error_to_json(refusal));
    body["upstream"] = result;
    operation.result = body.dump();
  }
  // On behalf of the agent, also after a restart, when nobody of its own asks.
  auto agent_ctx = ctx;
  std::vector<OutgoingEvent> outgoing;
  if (succeeded) {
    contracts::RuntimeUsageEvent usage;
    usage.usage_type = "action";
    usage.idempotency_key = operation.id;
    usage.properties = CRETO_TRY(canonical_json(Json{{"action", action.name},
                                                     {"sandbox_id", operation.sandbox.to_string()},
                                                     {"reservation_id", hold_of(operation.id).to_string()}}));
    usage.cost = checked.cost;
    auto event = CRETO_TRY(events_.usage(operation.org, operation.agent, agent_ctx.chain, usage));
    outgoing.push_back(std::move(event));
  }
  auto done = sql::write(services_.database, ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(RuntimeStore::update(tx, operation));
    CRETO_TRY(Events::publish(tx, agent_ctx, outgoing));
    auto record = entry(agent_ctx, "action_performed", operation.sandbox,
                        succeeded ? audit::Outcome::success : audit::Outcome::failure);
    record.why = legible(operation.reasoning, 2000);
    record.metadata = Json{
        {"action", action.name},
        {"operation", operation.id},
        {"arguments", operation.arguments},
        {"status",
         answer->status}}.dump();
    CRETO_TRY(audit::record(tx, agent_ctx, record));
    return {};
  });
  // `conflict`: a parallel repeat recorded the same outcome of the same operation.
  if (!done && done.error().kind() != ErrorKind::conflict) return std::move(done).error();
  // What succeeded settles its hold by its usage event.
  if (!succeeded) release(ctx, operation);
  return ActionOutcome{operation.status, operation.result, std::nullopt};
}

void AgentDoors::release(const Context& ctx, const OperationRecord& operation) {
  if (!services_.limits) return;
  if (auto released = services_.limits->release(ctx, hold_of(operation.id)); !released)
    services_.telemetry.warn("runtime", "release_failed", {{"error", released.error().to_string()}});
}

Result<> AgentDoors::resume() {
  auto open = CRETO_TRY(sql::read(
      services_.database, events_.service_context("default"),
      [&](sql::Tx& tx) -> Result<std::vector<OperationRecord>> { return RuntimeStore::unfinished(tx, "action"); }));
  for (auto& operation : open) resume_one(std::move(operation), Nanos(0));
  return {};
}

void AgentDoors::resume_one(OperationRecord operation, Nanos delay) {
  tasks_.post_after(delay, [this, operation = std::move(operation), delay]() mutable {
    const auto declared = actions_.find(operation.name);
    const auto arguments = parse_json(operation.arguments);
    if (declared == actions_.end() || !arguments) {
      services_.telemetry.error("runtime", "operation_cannot_be_resumed",
                                {{"operation", operation.id}, {"action", operation.name}});
      return;
    }
    auto checked = check_arguments(declared->second, *arguments);
    if (!checked) {
      services_.telemetry.error("runtime", "operation_cannot_be_resumed",
                                {{"operation", operation.id}, {"error", checked.error().to_string()}});
      return;
    }
    auto own = events_.service_context(operation.org);
    DelegationChain chain{operation.agent};
    if (auto known = services_.nhi.get_delegation_chain(own, operation.agent)) chain = known->identities();
    auto ctx = Context::of(operation.agent, std::move(chain));
    ctx.org = operation.org;
    auto outcome = perform(ctx, operation, declared->second, *checked);
    if (outcome) return;
    services_.telemetry.warn("runtime", "operation_not_yet_resumed",
                             {{"operation", operation.id}, {"error", outcome.error().to_string()}});
    if (outcome.error().retryable())
      resume_one(std::move(operation),
                 std::min<Nanos>(std::chrono::minutes(5), std::max<Nanos>(std::chrono::seconds(1), delay * 2)));
  });
}

// --- inference -------------------------------------------------------------------------------------------------------

Result<ActionOutcome> AgentDoors::complete(const Context& ctx, const Resident& resident, const Json& body,
                                           const std::string& override_token) {
  if (!services_.inference) return turned_off("inference");
  const auto request = CRETO_TRY(read_completion(body, resident.sandbox));
  const auto canonical = CRETO_TRY(canonical_json(body));
  const auto hash = hex(crypto::sha3_256(as_bytes(canonical)));
  if (ctx.idempotency_key.empty()) return call_model(ctx, resident, request, hash, override_token);

  // A sandbox has one runtime, so this one knows of every call that is under way.
  const auto call = fmt::format("{}\n{}\n{}", resident.org, resident.agent.text(), ctx.idempotency_key);
  {
    const std::lock_guard lock(mutex_);
    if (!calls_.insert(call).second)
      return Error(Product::runtime, ErrorKind::unavailable, "the same call is under way; repeat").with_retryable(true);
  }
  const auto over = [&](const std::string* done) {
    const std::lock_guard lock(mutex_);
    calls_.erase(*done);
  };
  const std::unique_ptr<const std::string, decltype(over)> under_way(&call, over);
  return call_model(ctx, resident, request, hash, override_token);
}

Result<ActionOutcome> AgentDoors::call_model(const Context& ctx, const Resident& resident,
                                             const inference::CompletionRequest& request, const std::string& hash,
                                             const std::string& override_token) {
  const auto earlier =
      CRETO_TRY(sql::read(services_.database, ctx, [&](sql::Tx& tx) -> Result<std::optional<OperationRecord>> {
        return RuntimeStore::find_operation(tx, resident.org, resident.agent, "inference", ctx.idempotency_key);
      }));
  if (earlier) {
    if (earlier->arguments != hash)
      return Error(Product::runtime, ErrorKind::conflict, "this idempotency key was used with other content");
    if (earlier->done) return ActionOutcome{earlier->status, earlier->result, std::nullopt};
  }
  // A request that names no model is one for the endpoint's own: by policy, and by price.
  const std::string model = request.model.empty() ? services_.inference->capabilities().default_model : request.model;
  const auto sandbox = resident.sandbox.to_string();
  const auto max_tokens = static_cast<std::int64_t>(request.max_tokens);
  // What a human is shown, and his token bound to: the whole request by its hash.
  const auto arguments = CRETO_TRY(canonical_json(
      Json{{"max_tokens", max_tokens},
           {"prompt", request.messages.empty() ? "" : legible(request.messages.back().content, shown_prompt_max)},
           {"request_sha3_256", hash},
           {"sandbox_id", sandbox}}));
  const authz::CheckRequest check{resident.agent,
                                  resident.chain,
                                  "inference.call",
                                  {"Model", model.empty() ? "default" : model},
                                  {{"max_tokens", max_tokens}, {"sandbox_id", sandbox}},
                                  crypto::sha3_256(as_bytes(arguments)),
                                  override_token};
  // A token that is used up already was so for this call, which then got no answer.
  const auto used = override_token.empty() ? std::string() : hex(crypto::sha3_256(as_bytes(override_token)));
  const bool approved = earlier && !used.empty() && earlier->reasoning == used;
  if (!approved) {
    auto waiting =
        CRETO_TRY(approvals_.require(ctx, check, resident.sandbox, arguments,
                                     fmt::format("call the model `{}`", check.resource.id), "", std::nullopt));
    if (waiting) return ActionOutcome{202, {}, std::move(waiting)};
  }

  OperationRecord operation{resident.org,
                            ActionId::fresh(services_.clock.now()).to_string(),
                            resident.agent,
                            resident.sandbox,
                            "inference",
                            ctx.idempotency_key,
                            request.model,
                            hash,
                            used,
                            false,
                            0,
                            {}};
  // Nobody knows whether that call was answered: this process or the line died under it. It goes under the same id.
  if (earlier) operation.id = earlier->id;
  if (services_.limits) {
    // The prompt is counted by the provider only; a token is at least a byte and usually four.
    std::int64_t characters = 0;
    for (const auto& message : request.messages) characters += static_cast<std::int64_t>(message.content.size());
    const std::int64_t prompt = characters / 4;
    contracts::SpendRequest spend{hold_of(operation.id),
                                  resident.agent,
                                  resident.chain,
                                  "inference_tokens",
                                  Decimal(prompt + request.max_tokens),
                                  Money{},
                                  std::chrono::minutes(10),
                                  {{"sandbox_id", resident.sandbox.to_string()},
                                   {"input_tokens", std::to_string(prompt)},
                                   {"output_tokens", std::to_string(request.max_tokens)}}};
    // As it was asked for: which one the provider takes for it, only its answer says.
    if (!model.empty()) spend.properties.emplace("model_id", model);
    auto held = services_.limits->reserve(ctx, spend);
    if (!held)
      return Error(Product::runtime,
                   held.error().kind() == ErrorKind::quota_exceeded ? ErrorKind::quota_exceeded : held.error().kind(),
                   "the model cannot be called")
          .with_cause(std::move(held).error());
  }
  const bool uses_token = !override_token.empty() && !approved;
  if (!earlier || uses_token) {
    const auto begun = sql::write(services_.database, ctx, [&](sql::Tx& tx) -> Result<> {
      if (!earlier) CRETO_TRY(RuntimeStore::insert(tx, operation, tx.now()));
      if (uses_token) CRETO_TRY(services_.authz.consume_override(tx, ctx, check, operation.id));
      return {};
    });
    if (!begun) {
      release(ctx, operation);
      return Error(begun.error());
    }
  }
  // A provider that knows the key answers a repeat from its first answer and charges once. For one that does not, the
  // answer says that there was a call before this one.
  auto keyed = request;
  keyed.idempotency_key = operation.id;
  auto response = services_.inference->complete(ctx, keyed);
  if (!response) {
    release(ctx, operation);
    const auto kind = response.error().kind();
    if (kind == ErrorKind::timeout || kind == ErrorKind::unavailable || kind == ErrorKind::cancelled)
      return std::move(response).error();
    // What was refused is no operation, unless an approval stands in it; where this is not written, the repeat calls
    // again all the same.
    if (!override_token.empty()) return std::move(response).error();
    const auto forgotten =
        sql::write(services_.database, ctx, [&](sql::Tx& tx) { return RuntimeStore::remove(tx, operation); });
    if (!forgotten)
      services_.telemetry.warn("runtime", "operation_not_removed", {{"error", forgotten.error().to_string()}});
    return std::move(response).error();
  }
  Json answer = {
      {"id", response->id},
      {"object", "chat.completion"},
      {"created", std::chrono::duration_cast<std::chrono::seconds>(services_.clock.now().time_since_epoch()).count()},
      {"model", response->model},
      {"choices", Json::array({{{"index", 0},
                                {"message", {{"role", "assistant"}, {"content", response->content}}},
                                {"finish_reason", inference::to_string(response->finish_reason)}}})},
      {"usage",
       {{"prompt_tokens", response->usage.prompt_tokens},
        {"completion_tokens", response->usage.completion_tokens},
        {"total_tokens", response->usage.total()}}}};
  if (earlier) answer["creto_repeated"] = true;
  if (response->flagged)
    answer["creto_injection"] = {{"score", response->flagged->score}, {"rules", response->flagged->rules}};
  operation.done = true;
  operation.status = 200;
  operation.result = answer.dump();

  contracts::RuntimeUsageEvent usage;
  usage.usage_type = "inference_tokens";
  usage.idempotency_key = operation.id;
  usage.units = Decimal(response->usage.total());
  usage.properties = CRETO_TRY(canonical_json(Json{{"sandbox_id", resident.sandbox.to_string()},
                                                   {"model_id", response->model},
                                                   {"provider", response->provider},
                                                   {"input_tokens", response->usage.prompt_tokens},
                                                   {"cached_tokens", response->usage.cached_prompt_tokens},
                                                   {"reservation_id", hold_of(operation.id).to_string()},
                                                   {"output_tokens", response->usage.completion_tokens},
                                                   {"reasoning_tokens", response->usage.reasoning_tokens}}));
  // The model has answered: that is a fact and an answer, whatever the database says to it now.
  backlog_.record("tokens of " + operation.id, [this, resident, operation, usage]() -> Result<> {
    auto own = Context::of(resident.agent, resident.chain);
    own.org = resident.org;
    own.deadline = services_.clock.monotonic() + std::chrono::seconds(10);
    auto event = CRETO_TRY(events_.usage(resident.org, resident.agent, resident.chain, usage));
    auto written = sql::write(services_.database, own, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(RuntimeStore::update(tx, operation));
      return Events::publish(tx, own, {event});
    });
    if (!written && written.error().kind() == ErrorKind::conflict) return {};  // it was, and we did not learn of it
    return written;
  });
  return ActionOutcome{200, operation.result, std::nullopt};
}

// --- memory and messages -------------------------------------------------------------------------------------------

Result<std::string> AgentDoors::remember(const Context& ctx, const Resident& resident, const Json& body) {
  if (!services_.memory) return turned_off("memory");
  JsonReader in(body, "request");
  memory::NewEntry fresh{resident.agent, in.text("content"), memory::MemoryType::observation, {}, {}, std::nullopt};
  const auto type = in.text_or("type", "observation");
  const Json metadata = in.object("metadata");
  CRETO_TRY(in.finish());
  fresh.type = CRETO_TRY(memory::memory_type_from_string(type));
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string()) return invalid("metadata: values must be text");
    fresh.metadata[key] = value;
  }
  const auto id = CRETO_TRY(services_.memory->store(ctx, fresh));
  return id.to_string();
}

/// What an agent wants to tell whom.
struct AgentDoors::Letter {
  std::string to;
  std::string topic;  ///< one of the two is empty
  std::string body;
  std::string reasoning;

  /// Which text to whom: the same at each try.
  std::string content() const {
    const auto head = fmt::format("{} {} {} {}", to.size(), to, topic.size(), topic);
    return hex(crypto::sha3_256({as_bytes(head), as_bytes(body)}));
  }
};

Result<ActionOutcome> AgentDoors::send(const Context& ctx, const Resident& resident, const Json& body,
                                       const std::string& override_token) {
  if (!services_.messenger || !services_.endpoint) return turned_off("messaging");
  JsonReader in(body, "request");
  Letter letter{in.text_or("to", ""), in.text_or("topic", ""), in.text("body"), in.text_or("reasoning", "")};
  const auto encoding = in.text_or("encoding", "text");
  CRETO_TRY(in.finish());
  if (letter.to.empty() == letter.topic.empty()) return invalid("to, topic: one of them must be given, and not both");
  if (encoding != "text" && encoding != "base64") return invalid("encoding: must be text or base64");
  if (letter.reasoning.size() > reasoning_max)
    return Error(Product::runtime, ErrorKind::too_large, "reasoning: is longer than 16 KiB");
  if (encoding == "base64") {
    const auto bytes = CRETO_TRY(from_base64(letter.body));
    letter.body = std::string(as_text(bytes));
  }
  // Messaging sees what is sealed, and sealed anew it is another text: content can be compared only here.
  const auto first = CRETO_TRY(sql::write(
      services_.database, ctx, [&](sql::Tx& tx) { return io::begin(tx, ctx, send_operation, idempotency_window); }));
  if (first) return sent_outcome(*first);
  auto outcome = seal_and_send(ctx, resident, letter, override_token);
  // What waits comes again, and what may have been sent finds out: their key stays tied to this content.
  if (outcome ? outcome->approval.has_value() : outcome.error().retryable()) return outcome;
  CRETO_TRY(sql::write(services_.database, ctx, [&](sql::Tx& tx) -> Result<> {
    if (!outcome) return io::abandon(tx, ctx, send_operation);
    CRETO_TRY(RuntimeStore::remove_waiting(tx, resident.org, resident.agent, letter.content()));
    return io::finish(tx, ctx, send_operation, outcome->result);
  }));
  if (!outcome) return outcome;
  return sent_outcome(outcome->result);
}

/// The outcome's result is the message's id alone.
Result<ActionOutcome> AgentDoors::seal_and_send(const Context& ctx, const Resident& resident, const Letter& letter,
                                                const std::string& override_token) {
  auto waiting = CRETO_TRY(sql::read(services_.database, ctx, [&](sql::Tx& tx) {
    return RuntimeStore::find_waiting(tx, resident.org, resident.agent, letter.content(), services_.clock.now());
  }));
  for (int attempt = 1;; ++attempt) {
    if (!waiting) waiting = CRETO_TRY(seal(ctx, resident, letter));
    const auto sealed = *std::exchange(waiting, std::nullopt);
    auto sent = services_.messenger->send_from_sandbox(ctx, resident.sandbox, sealed, override_token);
    if (sent) return ActionOutcome{200, sent->to_string(), std::nullopt};
    if (sent.error().kind() == ErrorKind::oversight_required)
      return ask_to_send(ctx, resident, letter, sealed, override_token);
    // Who subscribes between sealing and sending makes the messenger refuse: then it is sealed anew, for him too.
    const bool again = !letter.topic.empty() && sent.error().kind() == ErrorKind::conflict && sent.error().retryable();
    if (!again || attempt == 3) return std::move(sent).error();
  }
}

Result<contracts::SealedMessage> AgentDoors::seal(const Context& ctx, const Resident& resident, const Letter& letter) {
  if (!letter.topic.empty()) return services_.endpoint->seal_for_topic(ctx, resident.agent, letter.topic, letter.body);
  const auto recipient = CRETO_TRY(services_.nhi.find_agent(events_.service_context(resident.org), letter.to));
  return services_.endpoint->seal(ctx, resident.agent, recipient.identity, letter.body);
}

Result<ActionOutcome> AgentDoors::ask_to_send(const Context& ctx, const Resident& resident, const Letter& letter,
                                              const contracts::SealedMessage& sealed,
                                              const std::string& override_token) {
  const auto content = letter.content();
  // Kept before anybody is asked: what is approved must be there.
  CRETO_TRY(sql::write(services_.database, ctx, [&](sql::Tx& tx) -> Result<> {
    const auto kept =
        CRETO_TRY(RuntimeStore::find_waiting(tx, resident.org, resident.agent, content, services_.clock.now()));
    if (kept && kept->message_id == sealed.message_id) return {};
    CRETO_TRY(RuntimeStore::remove_waiting(tx, resident.org, resident.agent, content));
    const auto others = CRETO_TRY(RuntimeStore::count_waiting(tx, resident.org, resident.agent));
    if (others >= waiting_messages_max)
      return Error(Product::runtime, ErrorKind::resource_exhausted,
                   fmt::format("{} messages of `{}` wait for approval already", others, resident.agent.text()));
    return RuntimeStore::insert(tx, WaitingMessage{resident.org, resident.agent, content, sealed});
  }));
  const auto arguments = contracts::approval_arguments(sealed, crypto::sha3_256(sealed.envelope));
  const bool direct = sealed.topic.empty();
  const authz::CheckRequest check{resident.agent,
                                  resident.chain,
                                  "message.send",
                                  direct ? authz::entity_of(sealed.recipient) : authz::EntityUid{"Topic", sealed.topic},
                                  {{"priority", authz::Value(contracts::to_string(sealed.priority))},
                                   {"size", authz::Value(static_cast<std::int64_t>(sealed.envelope.size()))}},
                                  crypto::sha3_256(as_bytes(arguments)),
                                  override_token};
  // Only here and at the ends is it readable, and he cannot approve what he does not see.
  const auto description =
      fmt::format("message to {}: {}", direct ? sealed.recipient.text() : "topic " + sealed.topic, shown(letter.body));
  auto status = CRETO_TRY(approvals_.require(ctx, check, resident.sandbox, arguments, legible(description, 1024),
                                             letter.reasoning, std::nullopt));
  if (!status)
    return Error(Product::runtime, ErrorKind::unavailable, "policy has changed meanwhile; repeat").with_retryable(true);
  return ActionOutcome{202, {}, std::move(status)};
}

Result<Json> AgentDoors::receive(const Context& ctx, const Resident& resident) {
  if (!services_.messenger || !services_.endpoint) return turned_off("messaging");
  Json list = Json::array();
  // What cannot be opened leaves the queue and makes room for what is behind it; but nobody keeps a gateway busy with
  // it.
  for (int look = 0, refused = 1; look < receive_looks_max && refused > 0 && list.empty(); ++look) {
    refused = 0;
    const auto received =
        CRETO_TRY(services_.messenger->receive_for_sandbox(ctx, resident.sandbox, receive_messages_max));
    for (const auto& message : received) {
      auto opened = services_.endpoint->open(ctx, resident.agent, message);
      if (opened) {
        list.push_back(message_json(*opened));
        continue;
      }
      const auto& id = message.message.message_id;
      services_.telemetry.warn("runtime", "message_not_opened",
                               {{"message", id.to_string()}, {"error", opened.error().to_string()}});
      if (opened.error().retryable()) continue;
      const auto reason = fmt::format("it cannot be opened: {}", opened.error().message());
      CRETO_TRY(services_.messenger->refuse_for_sandbox(ctx, resident.sandbox, id, legible(reason, 1024)));
      ++refused;
    }
  }
  return list;
}

std::uint64_t AgentDoors::messages_seen() const { return bell_.rung(); }

void AgentDoors::when_message(std::uint64_t seen, std::function<void()> look) {
  bell_.when_rung(seen, std::move(look));
}

Result<> AgentDoors::acknowledge(const Context& ctx, const Resident& resident, const MessageId& message) {
  if (!services_.messenger || !services_.endpoint) return turned_off("messaging");
  // The queue first: what is still in it must open again.
  CRETO_TRY(services_.messenger->acknowledge_for_sandbox(ctx, resident.sandbox, message));
  return services_.endpoint->acknowledge(ctx, resident.agent, message);
}

Result<std::string> AgentDoors::subscribe(const Context& ctx, const Resident& resident, const std::string& topic) {
  if (!services_.messenger) return turned_off("messaging");
  const auto id = CRETO_TRY(services_.messenger->subscribe_sandbox(ctx, resident.sandbox, topic));
  return id.to_string();
}

}  // namespace creto::runtime
