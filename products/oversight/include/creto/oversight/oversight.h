#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "creto/common/clock.h"
#include "creto/common/health.h"
#include "creto/common/secret.h"
#include "creto/common/telemetry.h"
#include "creto/contracts/approval_gate.h"

namespace creto::sql {
class Database;
}
namespace creto::bus {
class Bus;
}
namespace creto::nhi {
class Nhi;
}
namespace creto::authz {
class Authz;
}
namespace creto::consensus {
class TimestampSource;
}
namespace creto::memory {
class Memory;
}

/// Which human must say yes before an agent goes on, and what he said (OV1-OV8).
namespace creto::oversight {

/// Who is asked at one level, and for how long.
struct Tier {
  std::vector<Identity> approvers;        ///< 1 to 64 humans
  std::uint32_t quorum = 1;               ///< how many of them must approve; at most their number
  Nanos timeout = std::chrono::hours(2);  ///< 1 s to 30 days; then the next tier is asked
};

enum class FinalAction : std::uint8_t { auto_deny, auto_approve };
std::string_view to_string(FinalAction action);
Result<FinalAction> final_action_from_string(std::string_view text);

/// What asks for a human: an authorization decision names its policy itself; the others take the first policy, by id,
/// that lists them.
enum class Trigger : std::uint8_t { authorization, cost_threshold, quota_breach };
std::string_view to_string(Trigger trigger);
Result<Trigger> trigger_from_string(std::string_view text);

struct Policy {
  PolicyId id;              ///< 1 to 128 of [a-zA-Z0-9._-]: the text of @oversight
  std::string description;  ///< up to 1 000 characters
  std::vector<Trigger> triggers = {Trigger::authorization};
  std::vector<Tier> tiers;                            ///< 1 to 8, asked in order
  FinalAction final_action = FinalAction::auto_deny;  ///< when the last tier's time is over
  bool allow_self_approval = false;             ///< whether a human in the agent's own delegation chain may approve
  std::vector<std::string> channels = {"cli"};  ///< "cli", "webhook"
};

/// One approver's signed answer.
struct Response {
  Identity approver;
  bool approve = false;
  std::string notes;     ///< shown to the agent
  std::string document;  ///< the signed bytes, as received (docs/formats.md, "Approval response")
  Signature signature;
  Instant received_at{};
};

/// One policy that a request has to satisfy.
struct Requirement {
  Policy policy;           ///< as it was when the request was made, narrowed by what the decision said
  PolicyId forbid;         ///< the Cedar policy its approval lifts; empty where none asked
  std::uint32_t tier = 0;  ///< who is asked now
  Instant tier_ends{};
  bool met = false;
  bool met_by_timeout = false;  ///< the final action approved
};

struct Request {
  RequestId id;
  std::uint64_t version = 1;
  contracts::ApprovalState state = contracts::ApprovalState::pending;
  contracts::GatedAction action;
  std::string description{};
  std::string reasoning{};  ///< the agent's own words
  std::vector<std::string> related_memories{};
  double confidence = 0;  ///< memory's, in the reasoning; 0 where there is none
  std::vector<std::string> risk_factors{};
  std::string context_problem{};  ///< "OV-503: …" where memory gave no context; empty otherwise
  std::vector<Requirement> requirements{};
  std::vector<Response> responses{};
  std::string decision_response{};  ///< the JSON object the deciding approver attached; "{}" otherwise
  Instant created_at{};
  Instant decided_at{};  ///< once final

  /// SHA3-256 of `action.arguments`: what an approval and its token are bound to.
  Hash256 arguments_hash() const;
};

/// What an approver signs: the type's name, a newline, and this as canonical JSON.
struct ResponseDocument {
  RequestId request;
  Identity approver;
  bool approve = false;
  Hash256 arguments_hash{};  ///< so that he approves what he saw
  std::string notes{};
  std::string response = "{}";  ///< a JSON object for whoever acts on the decision: {"new_limit":"200000"}

  static constexpr std::string_view type_name = "creto.oversight.response.v1";
  Result<std::string> signed_bytes() const;
  /// Errors: invalid_input naming the field; too_large over 64 KiB.
  static Result<ResponseDocument> from_signed_bytes(std::string_view bytes);
};

/// Somebody who was never told, because a channel refused or was away for too long.
struct LostNotification {
  RequestId request;
  std::string channel;
  std::string approver;
  std::string error;
  Instant when{};
};

struct RequestFilter {
  std::optional<contracts::ApprovalState> state;
  bool open_only = false;
  std::optional<Identity> agent;
  std::optional<Identity> approver;  ///< whom a requirement asks now
  std::size_t limit = 100;           ///< 1 to 1 000, newest first
  std::optional<RequestId> before;   ///< page: those older than this
};

/// Thread-safe. Every change is audited in its transaction, and every decision leaves as an `oversight_decision` event
/// in it. Waiting holds no thread.
///
/// Invariant 1: a final request never changes. Invariant 2: it is approved only where every requirement is met, each by
/// a quorum of valid signatures of its current tier, or by a policy whose final action is to approve. Invariant 3: an
/// approval's token fits this agent, action, resource and arguments alone.
///
/// Errors of every call: invalid_input naming the field; not_found; unavailable.
class Oversight : public contracts::ApprovalGate {
 public:
  /// Errors: invalid_input (unknown human, quorum above the number of approvers, …).
  virtual Result<Policy> put_policy(const Context& ctx, const Policy& policy) = 0;
  virtual Result<std::vector<Policy>> list_policies(const Context& ctx) = 0;
  virtual Result<> delete_policy(const Context& ctx, const PolicyId& id) = 0;

  virtual Result<Request> get(const Context& ctx, const RequestId& id) = 0;
  virtual Result<std::vector<Request>> list(const Context& ctx, const RequestFilter& filter) = 0;

  /// Newest first; `limit` 1 to 1 000. The requests wait all the same, and their approvers see them in `list`.
  virtual Result<std::vector<LostNotification>> lost_notifications(const Context& ctx, std::size_t limit) = 0;

  /// An approver's answer. Repeating the same document returns the request as it is.
  ///
  /// Errors: signature_invalid; permission_denied (OV-403) for who is not asked now, or approves for himself; conflict
  /// where the request is final, he has answered already, or the document is for other arguments.
  virtual Result<Request> respond(const Context& ctx, const std::string& document, const Signature& signature) = 0;

  /// Applies what is due by the clock: next tiers, final actions. Returns how many requests changed. Runs by itself in
  /// the background too.
  virtual Result<std::size_t> apply_timeouts() = 0;

  virtual HealthStatus health() = 0;
};

/// Tells approvers through one channel. Called until it succeeds or fails for good (an error that is not `retryable`),
/// at least once; blocking. Thread-safe.
class Notifier {
 public:
  virtual ~Notifier() = default;
  /// `id` stays the same when a notification is repeated; `body` is the `oversight_notification` payload.
  virtual Result<> notify(const Context& ctx, std::string_view id, std::string_view body) = 0;
};

/// Standard Webhooks 1.0.0: POST with `webhook-id`, `webhook-timestamp` and an HMAC-SHA256 `webhook-signature`.
std::unique_ptr<Notifier> create_webhook_notifier(std::string url, Secret secret, const Clock& clock);

struct OversightOptions {
  Nanos idempotency_window = std::chrono::hours(24);  ///< same agent, action, resource, arguments: the open request
  Nanos override_ttl = std::chrono::hours(1);         ///< of the token, from the decision
  Nanos memory_timeout = std::chrono::milliseconds(500);
  bool schedule = true;  ///< false: only `apply_timeouts` (tests)
};

struct OversightParts {
  sql::Database& database;
  bus::Bus& bus;
  nhi::Nhi& nhi;
  authz::Authz& authz;
  consensus::TimestampSource& timestamps;
  const Clock& clock;
  Telemetry& telemetry;
  memory::Memory* memory = nullptr;  ///< null: no context
  Notifier* webhook = nullptr;       ///< null: policies with the channel "webhook" are refused
};

/// Migrates, makes `service:oversight` known to nhi, consumes `metering.thresholds` and its own notifications from the
/// bus.
Result<std::unique_ptr<Oversight>> create_oversight(const OversightParts& parts, OversightOptions options = {});

}  // namespace creto::oversight
