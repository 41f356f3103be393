#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "codec.h"
#include "creto/audit/audit_log.h"
#include "creto/authz/authz.h"
#include "creto/common/event.h"
#include "creto/common/json.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/contracts/events.h"
#include "creto/crypto/hash.h"
#include "creto/io/bus.h"
#include "creto/memory/memory.h"
#include "creto/nhi/nhi.h"
#include "request.h"
#include "store.h"

namespace creto::oversight {
namespace {

using contracts::ApprovalState;
using contracts::ApprovalStatus;
using contracts::is_final;

constexpr std::string_view notification_subject = "oversight.notifications.";
constexpr const char* notification_consumer = "oversight-notifications";
constexpr std::size_t memories_shown_max = 5;
constexpr std::size_t needs_max = 16;  // what one token can lift
constexpr std::size_t approvers_max = 64;
constexpr std::string_view role_prefix = "role:";
constexpr std::uint32_t attempts_max = 1'000;  // some eight hours: a webhook may be down for a night

Error oversight_error(ErrorKind kind, std::string message) {
  return Error(Product::oversight, kind, std::move(message));
}

/// The probe of this module: what it counts, in one place (001 §10.2).
class Probe {
 public:
  explicit Probe(Telemetry& telemetry) : telemetry_(telemetry) {}
  void created(const Request& request) {
    for (const Requirement& requirement : request.requirements)
      telemetry_
          .counter("oversight_requests_created_total", "requests for approval", {{"policy_id", requirement.policy.id}})
          .add();
  }
  void moved(ApprovalState from, ApprovalState to) {
    telemetry_
        .counter("oversight_state_transitions_total", "changes of a request's state",
                 {{"from", contracts::to_string(from)}, {"to", contracts::to_string(to)}})
        .add();
  }
  void decided(const Request& request) {
    telemetry_.histogram("oversight_approvals_latency_seconds", "from request to decision")
        .observe(std::chrono::duration<double>(request.decided_at - request.created_at).count());
  }
  void notification_failed(std::string_view channel, const Error& error) {
    telemetry_.warn("oversight", "notification_failed", {{"channel", channel}, {"error", error.to_string()}});
  }
  void context_missing(const Error& error) {
    telemetry_.warn("oversight", "context_missing", {{"error", error.to_string()}});
  }
  void scheduler_failed(const Error& error) {
    telemetry_.error("oversight", "scheduler_failed", {{"error", error.to_string()}});
  }

 private:
  Telemetry& telemetry_;
};

Hash256 dedupe_hash(const contracts::GatedAction& action) {
  const Json json = {action.agent.text(), action.action, action.resource_type, action.resource_id, action.arguments};
  return crypto::sha3_256(as_bytes(json.dump(-1, ' ', false, Json::error_handler_t::replace)));
}

/// The longest prefix of at most `max` bytes that does not cut a character.
std::size_t whole_characters(std::string_view text, std::size_t max) {
  if (text.size() <= max) return text.size();
  while (max > 0 && (static_cast<unsigned char>(text[max]) & 0xc0) == 0x80) --max;
  return max;
}

std::string_view audit_word(ApprovalState state) {
  switch (state) {
    case ApprovalState::approved:
      return "approved";
    case ApprovalState::denied:
      return "denied";
    case ApprovalState::escalated:
      return "escalated";
    case ApprovalState::timed_out:
      return "timeout";
    case ApprovalState::cancelled:
      return "cancelled";
    case ApprovalState::pending:
      return "response_received";
  }
  std::unreachable();
}

/// Those who wait in this process for a request to become final.
class Waiters {
 public:
  using Callback = std::function<void(const ApprovalStatus&)>;

  std::shared_ptr<void> add(const RequestId& id, Callback callback) {
    auto entry = std::make_shared<Callback>(std::move(callback));
    const std::lock_guard lock(mutex_);
    std::erase_if(waiting_, [](const auto& waiting) { return waiting.second.expired(); });
    waiting_.emplace(id, entry);
    return entry;
  }

  std::vector<std::shared_ptr<Callback>> take(const RequestId& id) {
    const std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<Callback>> taken;
    const auto [begin, end] = waiting_.equal_range(id);
    for (auto it = begin; it != end; ++it)
      if (auto callback = it->second.lock()) taken.push_back(std::move(callback));
    waiting_.erase(begin, end);
    return taken;
  }

 private:
  std::mutex mutex_;
  std::multimap<RequestId, std::weak_ptr<Callback>> waiting_;
};

class OversightService final : public Oversight {
 public:
  OversightService(const OversightParts& parts, OversightOptions options)
      : parts_(parts),
        options_(options),
        probe_(parts.telemetry),
        changed_(parts.database.signal("oversight.changed")) {}

  ~OversightService() override {
    for (const char* consumer : {"oversight-thresholds", notification_consumer}) parts_.bus.unsubscribe(consumer);
    stopping_ = true;
    changed_.raise();
    if (scheduler_.joinable()) scheduler_.join();
  }

  Result<> start() {
    CRETO_TRY(store::prepare(parts_.database));
    CRETO_TRY(audit::prepare(parts_.database));
    CRETO_TRY(parts_.nhi.ensure_service(Context::of_service(self_), self_));
    CRETO_TRY(parts_.bus.subscribe("oversight-thresholds", std::string(contracts::CostThresholdExceededEvent::subject),
                                   [this](const bus::BusMessage& message) { return consume_threshold(message); },
                                   {.attempts_max = attempts_max}));
    CRETO_TRY(parts_.bus.subscribe(notification_consumer, std::string(notification_subject) + "*",
                                   [this](const bus::BusMessage& message) { return deliver(message); },
                                   {.attempts_max = attempts_max}));
    if (options_.schedule) scheduler_ = std::thread([this] { run_scheduler(); });
    return {};
  }

  // --- policies

  Result<Policy> put_policy(const Context& ctx, const Policy& policy) override {
    CRETO_TRY(validate(policy));
    if (parts_.webhook == nullptr && std::ranges::find(policy.channels, "webhook") != policy.channels.end())
      return oversight_error(ErrorKind::invalid_input,
                             "policy.channels: no webhook is configured (oversight.webhook.url)");
    for (const Tier& tier : policy.tiers)
      for (const Identity& approver : tier.approvers) {
        const bool known = CRETO_TRY(parts_.nhi.is_registered(ctx, approver));
        if (!known)
          return oversight_error(ErrorKind::invalid_input,
                                 fmt::format("policy.tiers: `{}` is not registered", approver.text()));
      }
    CRETO_TRY(parts_.database.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(store::put_policy(tx, ctx, policy));
      return record(tx, ctx, "policy_changed", "oversight:policy:" + policy.id, "");
    }));
    return policy;
  }

  Result<std::vector<Policy>> list_policies(const Context& ctx) override {
    return sql::read(parts_.database, ctx, [&](sql::Tx& tx) { return store::list_policies(tx, ctx); });
  }

  Result<> delete_policy(const Context& ctx, const PolicyId& id) override {
    return parts_.database.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      const bool deleted = CRETO_TRY(store::delete_policy(tx, ctx, id));
      if (!deleted) return oversight_error(ErrorKind::not_found, fmt::format("oversight policy `{}` not found", id));
      return record(tx, ctx, "policy_deleted", "oversight:policy:" + id, "");
    });
  }

  // --- the gate

  Result<contracts::ApprovalCheck> check_approval_required(const Context& ctx,
                                                           const contracts::GatedAction& action) override {
    authz::CheckRequest request{.principal = action.agent,
                                .chain = action.delegation_chain,
                                .action = action.action,
                                .resource = {action.resource_type, action.resource_id},
                                .context = {},
                                .arguments_hash = crypto::sha3_256(as_bytes(action.arguments)),
                                .override_token = {}};
    const Json arguments = CRETO_TRY(parse_json(action.arguments));
    request.context = CRETO_TRY(authz::attributes_from_json(arguments));
    const authz::Decision decision = parts_.authz.check(ctx, request);
    if (authz::allowed(decision)) return contracts::ApprovalCheck(contracts::NotRequired{});
    if (const auto* oversight = std::get_if<authz::RequiresOversight>(&decision)) {
      std::vector<contracts::ApprovalNeed> needs;
      for (const auto& requirement : oversight->requirements)
        needs.push_back({requirement.oversight_policy, requirement.forbid, requirement.timeout, requirement.approvers});
      return contracts::ApprovalCheck(contracts::ApprovalRequired{std::move(needs)});
    }
    const std::optional<Error> refused = authz::refusal(Product::oversight, decision);
    if (refused && refused->kind() == ErrorKind::quota_exceeded) return *refused;
    return contracts::ApprovalCheck(contracts::Prohibited{refused ? refused->to_string() : "denied"});
  }

  Result<ApprovalStatus> request_approval(const Context& ctx, const contracts::ApprovalRequest& given) override {
    const bool by_service = ctx.caller && ctx.caller->kind() == Identity::Kind::service;
    if (!by_service && (!ctx.caller || *ctx.caller != given.action.agent))
      return oversight_error(ErrorKind::permission_denied, "only the agent itself or a service asks for its approval");
    contracts::ApprovalRequest asked = given;
    if (!by_service) asked.needs = CRETO_TRY(needs_by_policy(ctx, asked.action));
    CRETO_TRY(check_size(asked));
    const Hash256 dedupe = dedupe_hash(asked.action);
    const Instant now = parts_.clock.now();
    const std::optional<Request> same = CRETO_TRY(sql::read(parts_.database, ctx, [&](sql::Tx& tx) {
      return store::find_same(tx, ctx, dedupe, now - options_.idempotency_window);
    }));
    if (same) {
      const bool answers = CRETO_TRY(still_answers(ctx, *same, now));
      if (answers) return status_of(ctx, *same);
    }

    Request request{.id = RequestId::fresh(now), .action = asked.action};
    request.description = asked.description;
    request.reasoning = asked.reasoning;
    request.risk_factors = asked.risk_factors;
    request.decision_response = "{}";
    request.created_at = now;
    add_context(ctx, request);
    for (contracts::ApprovalNeed need : asked.needs) {
      CRETO_TRY(resolve_roles(ctx, need));
      Policy policy = CRETO_TRY(policy_of(ctx, need));
      Requirement requirement = CRETO_TRY(begin_requirement(std::move(policy), need, now));
      request.requirements.push_back(std::move(requirement));
    }
    return create(ctx, std::move(request), dedupe);
  }

  Result<ApprovalStatus> approval_status(const Context& ctx, const RequestId& id) override {
    const Request request = CRETO_TRY(get(ctx, id));
    if (!is_of_the_agent(ctx, request))
      return oversight_error(ErrorKind::permission_denied,
                             fmt::format("request `{}` is another agent's", id.to_string()));
    return status_of(ctx, request);
  }

  Result<Subscription> when_final(const Context& ctx, const RequestId& id,
                                  std::function<void(const ApprovalStatus&)> on_final) override {
    // Registered before the state is read: a decision in between calls it, and it is called once.
    auto called = std::make_shared<std::atomic<bool>>(false);
    auto once = [called, on_final = std::move(on_final)](const ApprovalStatus& status) {
      if (!called->exchange(true)) on_final(status);
    };
    Subscription subscription = waiters_.add(id, once);
    const ApprovalStatus status = CRETO_TRY(approval_status(ctx, id));
    if (is_final(status.state)) once(status);
    return subscription;
  }

  Result<> cancel_approval(const Context& ctx, const RequestId& id) override {
    const Result<Request> changed = change(ctx, id, [&](Request& request) -> Result<bool> {
      if (!is_of_the_agent(ctx, request))
        return oversight_error(ErrorKind::permission_denied,
                               fmt::format("request `{}` is another agent's", id.to_string()));
      if (is_final(request.state)) return false;
      request.state = ApprovalState::cancelled;
      request.decided_at = parts_.clock.now();
      return true;
    });
    if (!changed) return Error(changed.error());
    return {};
  }

  // --- requests

  Result<Request> get(const Context& ctx, const RequestId& id) override {
    std::optional<Request> request =
        CRETO_TRY(sql::read(parts_.database, ctx, [&](sql::Tx& tx) { return store::find(tx, ctx, id); }));
    if (!request) return oversight_error(ErrorKind::not_found, fmt::format("request `{}` not found", id.to_string()));
    return *std::move(request);
  }

  Result<std::vector<Request>> list(const Context& ctx, const RequestFilter& filter) override {
    if (filter.limit < 1 || filter.limit > 1000)
      return oversight_error(ErrorKind::invalid_input, "limit: must be 1 to 1000");
    return sql::read(parts_.database, ctx, [&](sql::Tx& tx) { return store::list(tx, ctx, filter); });
  }

  Result<std::vector<LostNotification>> lost_notifications(const Context& ctx, std::size_t limit) override {
    if (limit < 1 || limit > 1000) return oversight_error(ErrorKind::invalid_input, "limit: must be 1 to 1000");
    const std::vector<bus::DeadLetter> letters = CRETO_TRY(parts_.bus.dead_letters(ctx.org, 10'000));
    std::vector<LostNotification> lost;
    for (const bus::DeadLetter& letter : letters) {
      if (letter.consumer != notification_consumer || lost.size() == limit) continue;
      const auto event = CRETO_TRY(contracts::OversightNotificationEvent::from_json(letter.message.body));
      lost.push_back({event.request, event.channel, event.approver, letter.error, letter.when});
    }
    return lost;
  }

  Result<Request> respond(const Context& ctx, const std::string& bytes, const Signature& signature) override {
    const ResponseDocument document = CRETO_TRY(ResponseDocument::from_signed_bytes(bytes));
    if (signature.algorithm != "hybrid-ed25519-ml-dsa-65")
      return oversight_error(ErrorKind::unsupported_algorithm,
                             fmt::format("signature algorithm `{}`: must be `hybrid-ed25519-ml-dsa-65`",
                                         signature.algorithm.substr(0, 64)));
    CRETO_TRY(parts_.nhi.verify(ctx, document.approver, as_bytes(bytes), signature, ResponseDocument::type_name));
    const Instant now = parts_.clock.now();
    // What is due by the clock is a change of its own, with its record and its notifications.
    CRETO_TRY(change(ctx, document.request, [&](Request& request) -> Result<bool> {
      return !is_final(request.state) && apply_timeouts_to(request, now);
    }));
    return change(ctx, document.request, [&](Request& request) -> Result<bool> {
      const auto repeated =
          std::ranges::find_if(request.responses, [&](const Response& r) { return r.document == bytes; });
      if (repeated != request.responses.end()) return false;
      if (is_final(request.state))
        return oversight_error(ErrorKind::conflict, fmt::format("request `{}` is {} already", request.id.to_string(),
                                                                contracts::to_string(request.state)));
      if (document.arguments_hash != request.arguments_hash())
        return oversight_error(ErrorKind::conflict,
                               "response document.arguments_sha3_256: is not of this request's arguments");
      // A signature outlives the right to give it.
      const bool may_act = !CRETO_TRY(parts_.nhi.is_revoked(ctx, document.approver));
      if (!may_act)
        return oversight_error(ErrorKind::permission_denied,
                               fmt::format("`{}` is suspended or revoked", document.approver.text()));
      const Response response{document.approver, document.approve, document.notes, bytes, signature, now};
      CRETO_TRY(apply_response(request, response, document.response, now));
      return true;
    });
  }

  Result<std::size_t> apply_timeouts() override {
    const Context read_ctx = Context::of_service(self_);
    const Instant now = parts_.clock.now();
    const std::vector<store::Due> due =
        CRETO_TRY(sql::read(parts_.database, read_ctx, [&](sql::Tx& tx) { return store::due(tx, now); }));
    for (const store::Due& entry : due) {
      Context ctx = Context::of_service(self_);
      ctx.org = entry.org;
      // One that cannot be changed now must not keep the others waiting.
      const Result<Request> changed = change(ctx, entry.id, [&](Request& request) -> Result<bool> {
        return !is_final(request.state) && apply_timeouts_to(request, now);
      });
      if (!changed) probe_.scheduler_failed(changed.error());
    }
    return due.size();
  }

  HealthStatus health() override {
    const Result<> reachable = parts_.database.read(Context::of_service(self_), [](sql::Tx& tx) -> Result<> {
      CRETO_TRY(store::earliest_deadline(tx));
      return {};
    });
    if (!reachable) return {Health::unhealthy, reachable.error().to_string()};
    return {};
  }

 private:
  static bool is_of_the_agent(const Context& ctx, const Request& request) {
    const auto& chain = request.action.delegation_chain;
    return ctx.caller && (ctx.caller->kind() == Identity::Kind::service || *ctx.caller == request.action.agent ||
                          std::ranges::find(chain, *ctx.caller) != chain.end());
  }

  /// Whether the earlier request answers a repeated one (OV8): while it is open, and while its approval can still be
  /// used.
  Result<bool> still_answers(const Context& ctx, const Request& earlier, Instant now) {
    if (!is_final(earlier.state)) return true;
    if (earlier.state != ApprovalState::approved || now >= earlier.decided_at + options_.override_ttl) return false;
    Context asking = Context::of_service(self_);
    asking.org = ctx.org;
    return parts_.authz.is_override_open(asking, earlier.id);
  }

  static bool apply_timeouts_to(Request& request, Instant now) { return oversight::apply_timeouts(request, now); }

  /// Who asks for himself does not choose who approves: that is for the policies that would decide.
  Result<std::vector<contracts::ApprovalNeed>> needs_by_policy(const Context& ctx,
                                                               const contracts::GatedAction& action) {
    auto check = CRETO_TRY(check_approval_required(ctx, action));
    if (auto* required = std::get_if<contracts::ApprovalRequired>(&check)) return std::move(required->needs);
    if (const auto* prohibited = std::get_if<contracts::Prohibited>(&check))
      return oversight_error(ErrorKind::permission_denied, prohibited->reason);
    return oversight_error(ErrorKind::conflict,
                           fmt::format("no policy asks for an approval of `{}`", action.action.substr(0, 128)));
  }

  static Result<> check_size(const contracts::ApprovalRequest& asked) {
    const auto refuse = [](std::string_view field, std::size_t limit) {
      return oversight_error(ErrorKind::too_large, fmt::format("{}: is over {} bytes", field, limit));
    };
    if (asked.action.arguments.size() > (64 << 10)) return refuse("arguments", 64 << 10);
    if (asked.reasoning.size() > (16 << 10)) return refuse("reasoning", 16 << 10);
    if (asked.description.size() > 1024) return refuse("description", 1024);
    if (asked.risk_factors.size() > 32)
      return oversight_error(ErrorKind::invalid_input, "risk_factors: must be at most 32");
    if (asked.needs.empty() || asked.needs.size() > needs_max)
      return oversight_error(ErrorKind::invalid_input, fmt::format("needs: must be 1 to {}", needs_max));
    for (const contracts::ApprovalNeed& need : asked.needs)
      if (need.approvers.size() > approvers_max)
        return oversight_error(ErrorKind::invalid_input, fmt::format("needs.approvers: {} at most", approvers_max));
    return {};
  }

  /// Puts in the place of each role those who have it now: whoever gets or loses it later changes nothing for a request
  /// that is open.
  Result<> resolve_roles(const Context& ctx, contracts::ApprovalNeed& need) {
    std::vector<std::string> resolved;
    for (const std::string& approver : need.approvers) {
      if (!approver.starts_with(role_prefix)) {
        resolved.push_back(approver);
        continue;
      }
      const std::string role = approver.substr(role_prefix.size());
      Context own = Context::of_service(self_);
      own.org = ctx.org;
      own.deadline = ctx.deadline;
      const std::vector<nhi::Agent> holders = CRETO_TRY(parts_.nhi.list_agents(
          own, {.type = nhi::AgentType::human, .status = nhi::AgentStatus::active, .role = role, .limit = 1000}));
      if (holders.empty())
        return oversight_error(ErrorKind::invalid_input,
                               fmt::format("approvers: no active human has the role `{}`", legible(role, 64)));
      for (const nhi::Agent& holder : holders) resolved.push_back(holder.identity.text());
    }
    need.approvers = std::move(resolved);
    return {};
  }

  /// The named policy. Where a cost threshold asks (no forbid behind it) and names its approvers, no stored one is
  /// needed.
  Result<Policy> policy_of(const Context& ctx, const contracts::ApprovalNeed& need) {
    std::optional<Policy> policy = CRETO_TRY(
        sql::read(parts_.database, ctx, [&](sql::Tx& tx) { return store::find_policy(tx, ctx, need.policy); }));
    if (policy) return *std::move(policy);
    if (!need.forbid.empty() || need.approvers.empty())
      return oversight_error(ErrorKind::not_found,
                             fmt::format("oversight policy `{}` not found", legible(need.policy, 128)));
    Tier tier{.approvers = {}, .quorum = 1, .timeout = std::chrono::hours(24)};
    for (const std::string& text : need.approvers) {
      Identity approver = CRETO_TRY(Identity::parse(text));
      if (std::ranges::find(tier.approvers, approver) == tier.approvers.end())
        tier.approvers.push_back(std::move(approver));
    }
    return Policy{
        .id = need.policy, .description = {}, .triggers = {Trigger::cost_threshold}, .tiers = {std::move(tier)}};
  }

  /// What the agent remembers about this, for the approver. Missing context never stops a request (003 §4.6).
  void add_context(const Context& asking, Request& request) {
    if (parts_.memory == nullptr) {
      request.context_problem = "OV-503: no memory service";
      return;
    }
    Context ctx = Context::of(self_, {self_});
    ctx.org = asking.org;
    ctx.deadline = parts_.clock.monotonic() + options_.memory_timeout;
    const memory::Query query{.agent = request.action.agent,
                              .text = request.description + " " + request.reasoning,
                              .limit = memories_shown_max,
                              .relevance_threshold = std::nullopt,
                              .types = {memory::MemoryType::reasoning, memory::MemoryType::context},
                              .from = request.created_at - std::chrono::hours(24),
                              .to = std::nullopt};
    const Result<std::vector<memory::ScoredEntry>> found = parts_.memory->query(ctx, query);
    if (!found) {
      probe_.context_missing(found.error());
      request.context_problem = "OV-503: " + found.error().to_string();
      return;
    }
    for (const memory::ScoredEntry& scored : *found) {
      request.related_memories.push_back(scored.entry.content.substr(0, whole_characters(scored.entry.content, 2000)));
      request.confidence = std::max(request.confidence, static_cast<double>(scored.relevance));
    }
  }

  Result<> record(sql::Tx& tx, const Context& ctx, std::string what, std::string resource, std::string why,
                  audit::Outcome outcome = audit::Outcome::success) {
    audit::AuditRecord entry = audit::AuditRecord::of(ctx, std::move(what), std::move(resource), outcome);
    entry.why = std::move(why);
    const Result<audit::AuditId> id = audit::record(tx, ctx, std::move(entry));
    if (!id) return Error(id.error());
    return {};
  }

  Result<> record(sql::Tx& tx, const Context& ctx, const Request& request, std::string_view what) {
    audit::AuditRecord entry =
        audit::AuditRecord::of(ctx, std::string(what), "oversight:request:" + request.id.to_string());
    entry.why = request.action.action + " on " + request.action.resource_type + "::" + request.action.resource_id;
    if (request.state == ApprovalState::denied) entry.outcome = audit::Outcome::denied;
    if (request.state == ApprovalState::timed_out) entry.outcome = audit::Outcome::timeout;
    if (!request.responses.empty()) entry.signature = request.responses.back().signature;
    Json policies = Json::array();
    for (const Requirement& requirement : request.requirements) policies.push_back(requirement.policy.id);
    entry.metadata = CRETO_TRY(
        canonical_json(Json{{"agent", request.action.agent.text()},
                            {"arguments_sha3_256", hex(request.arguments_hash())},
                            {"policies", std::move(policies)},
                            {"state", std::string(contracts::to_string(request.state))},
                            {"approver", request.responses.empty() ? "" : request.responses.back().approver.text()}}));
    const Result<audit::AuditId> id = audit::record(tx, ctx, std::move(entry));
    if (!id) return Error(id.error());
    return {};
  }

  /// Those whom a requirement has begun to ask since `before`; null: since there was none. Each once per channel.
  Result<> notify(sql::Tx& tx, const Context& ctx, const Request& request, const std::vector<std::uint32_t>* before) {
    std::set<std::pair<std::string, std::string>> told;
    for (std::size_t i = 0; i < request.requirements.size(); ++i) {
      const Requirement& requirement = request.requirements[i];
      if (requirement.met || (before != nullptr && (*before)[i] == requirement.tier)) continue;
      for (const std::string& channel : requirement.policy.channels)
        for (const Identity& approver : requirement.policy.tiers[requirement.tier].approvers) {
          if (channel == "cli" || !told.emplace(channel, approver.text()).second) continue;
          const contracts::OversightNotificationEvent event{request.id, channel, approver.text(), request.description,
                                                            request.reasoning};
          const std::string body = CRETO_TRY(event.to_json());
          const std::string id = fmt::format("{}.{}.{}", request.id.to_string(), request.version, approver.text());
          CRETO_TRY(bus::publish(tx, ctx, std::string(notification_subject) + channel, id, body));
        }
    }
    return {};
  }

  static std::vector<std::uint32_t> tiers_of(const Request& request) {
    std::vector<std::uint32_t> tiers;
    for (const Requirement& requirement : request.requirements) tiers.push_back(requirement.tier);
    return tiers;
  }

  /// A decision as a signed event. Made outside the transaction: signing reads keys.
  Result<std::optional<EventEnvelope>> decision_event(const Context& ctx, const Request& request) {
    if (request.state == ApprovalState::pending) return std::optional<EventEnvelope>();
    const contracts::OversightDecisionEvent event{
        request.id,
        request.action.sandbox,
        request.state,
        request.responses.empty() ? "" : request.responses.back().approver.text(),
        request.responses.empty() ? "" : request.responses.back().notes,
        request.action.action,
        request.action.arguments,
        request.decision_response};
    std::string payload = CRETO_TRY(event.to_json());
    EventEnvelope envelope{std::string(contracts::OversightDecisionEvent::event_type),
                           EventId::fresh(parts_.clock.now()),
                           request.action.agent,
                           request.action.delegation_chain,
                           parts_.timestamps.now(),
                           std::move(payload),
                           std::nullopt};
    const std::string to_sign = CRETO_TRY(envelope.signed_bytes());
    Context signer = Context::of_service(self_);
    signer.org = ctx.org;
    envelope.signature = CRETO_TRY(parts_.nhi.sign(signer, self_, as_bytes(to_sign), event_signature_context));
    return std::optional(std::move(envelope));
  }

  Result<ApprovalStatus> create(const Context& ctx, Request request, const Hash256& dedupe) {
    CRETO_TRY(parts_.database.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      // Two at once: the second finds the first's.
      const std::optional<Request> same =
          CRETO_TRY(store::find_same(tx, ctx, dedupe, request.created_at - options_.idempotency_window));
      if (same && !is_final(same->state)) {
        request = *same;
        return {};
      }
      CRETO_TRY(store::insert(tx, ctx, request, dedupe));
      CRETO_TRY(record(tx, ctx, request, "request_created"));
      CRETO_TRY(notify(tx, ctx, request, nullptr));
      tx.after_commit([this] { changed_.raise(); });
      return {};
    }));
    probe_.created(request);
    return status_of(ctx, request);
  }

  /// Reads, decides, signs, and writes if nobody else was faster; then tells who waits. `decide` returns whether it
  /// changed anything.
  template <class Decide>
  Result<Request> change(const Context& ctx, const RequestId& id, Decide decide) {
    for (;;) {
      Request request = CRETO_TRY(get(ctx, id));
      const ApprovalState before = request.state;
      const std::vector<std::uint32_t> tiers_before = tiers_of(request);
      const std::uint64_t expected = request.version;
      const bool changed = CRETO_TRY(decide(request));
      if (!changed) return request;
      ++request.version;
      // From one tier to the next it is escalated again, though its state stays the same.
      const bool escalated = !is_final(request.state) && tiers_of(request) != tiers_before;
      const bool moved = request.state != before || escalated;
      std::optional<EventEnvelope> event;
      if (moved) event = CRETO_TRY(decision_event(ctx, request));
      bool replaced = false;
      CRETO_TRY(parts_.database.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
        replaced = CRETO_TRY(store::replace(tx, ctx, request, expected));
        if (!replaced) return {};
        CRETO_TRY(record(tx, ctx, request, moved ? audit_word(request.state) : "response_received"));
        if (escalated) CRETO_TRY(notify(tx, ctx, request, &tiers_before));
        if (event) {
          const std::string body = CRETO_TRY(event->to_json());
          CRETO_TRY(
              bus::publish(tx, ctx, contracts::OversightDecisionEvent::subject, event->event_id.to_string(), body));
        }
        tx.after_commit([this] { changed_.raise(); });
        return {};
      }));
      if (!replaced) continue;
      if (moved) probe_.moved(before, request.state);
      if (is_final(request.state)) {
        probe_.decided(request);
        CRETO_TRY(tell(ctx, request));
      }
      return request;
    }
  }

  Result<> tell(const Context& ctx, const Request& request) {
    const auto waiting = waiters_.take(request.id);
    if (waiting.empty()) return {};
    const ApprovalStatus status = CRETO_TRY(status_of(ctx, request));
    for (const auto& callback : waiting) (*callback)(status);
    return {};
  }

  Result<ApprovalStatus> status_of(const Context& ctx, const Request& request) {
    ApprovalStatus status{.request = request.id,
                          .state = request.state,
                          .approver = std::nullopt,
                          .signature = std::nullopt,
                          .notes = {},
                          .override_token = {},
                          .decided_at = request.decided_at};
    if (is_final(request.state) && !request.responses.empty()) {
      status.approver = request.responses.back().approver;
      status.signature = request.responses.back().signature;
      status.notes = request.responses.back().notes;
    }
    if (request.state == ApprovalState::approved) status.override_token = CRETO_TRY(token_of(ctx, request));
    return status;
  }

  Result<std::string> token_of(const Context& ctx, const Request& request) {
    authz::OverrideGrant grant{.request = request.id,
                               .agent = request.action.agent,
                               .action = request.action.action,
                               .resource = {request.action.resource_type, request.action.resource_id},
                               .arguments_hash = request.arguments_hash(),
                               .lifts = {},
                               .expires_at = request.decided_at + options_.override_ttl};
    for (const Requirement& requirement : request.requirements)
      if (!requirement.forbid.empty()) grant.lifts.push_back({requirement.forbid, requirement.policy.id});
    Context issuer = Context::of_service(self_);
    issuer.org = ctx.org;
    return parts_.authz.issue_override(issuer, grant);
  }

  // --- what comes over the bus

  /// A cost threshold or quota notice becomes a request nobody has to wait for (001 §4.5, §7.3).
  Result<> consume_threshold(const bus::BusMessage& message) {
    Context ctx = Context::of_service(self_);
    ctx.org = message.org;
    const EventEnvelope envelope = CRETO_TRY(EventEnvelope::from_json(message.body));
    if (!envelope.signature)
      return oversight_error(ErrorKind::signature_invalid, "cost threshold event: is not signed");
    const std::string signed_bytes = CRETO_TRY(envelope.signed_bytes());
    CRETO_TRY(parts_.nhi.verify(ctx, metering_, as_bytes(signed_bytes), *envelope.signature, event_signature_context));
    const auto event = CRETO_TRY(contracts::CostThresholdExceededEvent::from_json(envelope.payload));

    const bool quota = event.kind == "quota_breach";
    const bool unusual = event.kind == "cost_anomaly";
    const std::optional<Policy> policy =
        CRETO_TRY(policy_for(ctx, quota ? Trigger::quota_breach : Trigger::cost_threshold));
    if (!policy) return {};
    Json said{{"threshold_id", event.threshold_id},
              {"current", event.current},
              {"limit", event.limit},
              {"unit", event.unit},
              {"period", event.period}};
    std::string description = fmt::format("{} has used {} of {} {} per {}", envelope.agent.text(), event.current,
                                          event.limit, event.unit, event.period);
    if (unusual) {
      said["expected"] = event.expected;
      said["confidence"] = event.confidence;
      description = fmt::format("{} has spent {} {} in an hour that usually costs {} (confidence {})",
                                envelope.agent.text(), event.current, event.unit, event.expected, event.confidence);
    }
    const std::string arguments = CRETO_TRY(canonical_json(said));
    contracts::ApprovalRequest asked{
        .action = {envelope.agent, envelope.delegation_chain, std::nullopt, quota ? "quota.raise" : "cost.continue",
                   quota ? "Quota" : "CostThreshold", event.threshold_id, arguments},
        .needs = {{.policy = policy->id, .forbid = {}}},
        .description = std::move(description),
        .reasoning = {},
        .risk_factors = {quota     ? "quota nearly used up"
                         : unusual ? "unusual spending"
                                   : "cost threshold exceeded"}};
    const Result<ApprovalStatus> created = request_approval(ctx, asked);
    if (!created) return Error(created.error());
    return {};
  }

  Result<std::optional<Policy>> policy_for(const Context& ctx, Trigger trigger) {
    const std::vector<Policy> policies = CRETO_TRY(list_policies(ctx));
    for (const Policy& policy : policies)
      if (std::ranges::find(policy.triggers, trigger) != policy.triggers.end()) return std::optional(policy);
    return std::optional<Policy>();
  }

  Result<> deliver(const bus::BusMessage& message) {
    Context ctx = Context::of_service(self_);
    ctx.org = message.org;
    const std::string_view channel = std::string_view(message.subject).substr(notification_subject.size());
    if (channel != "webhook" || parts_.webhook == nullptr)
      return oversight_error(ErrorKind::invalid_input, fmt::format("channel `{}`: is not configured", channel));
    const Result<> sent = parts_.webhook->notify(ctx, message.message_id, message.body);
    if (!sent) probe_.notification_failed(channel, sent.error());
    return sent;
  }

  // --- the scheduler

  /// Sleeps until the earliest deadline, a change, or a minute for what other processes wrote.
  void run_scheduler() {
    while (!stopping_) {
      const std::uint64_t seen = changed_.count();
      const Result<std::size_t> applied = apply_timeouts();
      if (!applied) probe_.scheduler_failed(applied.error());
      const auto earliest = sql::read(parts_.database, Context::of_service(self_),
                                      [](sql::Tx& tx) { return store::earliest_deadline(tx); });
      Nanos wait = std::chrono::minutes(1);
      if (applied && earliest && *earliest) wait = std::clamp<Nanos>(**earliest - parts_.clock.now(), Nanos(0), wait);
      if (!applied) wait = std::chrono::seconds(1);
      if (!stopping_) changed_.wait(seen, wait);
    }
  }

  const OversightParts parts_;
  const OversightOptions options_;
  Probe probe_;
  sql::Signal& changed_;
  Waiters waiters_;
  const Identity self_ = Identity::service("oversight").value();
  const Identity metering_ = Identity::service("metering").value();
  std::atomic<bool> stopping_ = false;
  std::thread scheduler_;
};

}  // namespace

Result<std::unique_ptr<Oversight>> create_oversight(const OversightParts& parts, OversightOptions options) {
  auto service = std::make_unique<OversightService>(parts, options);
  CRETO_TRY(service->start());
  return service;
}

}  // namespace creto::oversight
