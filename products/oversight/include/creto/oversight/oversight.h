#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/secret.h"
#include "creto/common/signature.h"
#include "creto/common/telemetry.h"
#include "creto/contracts/approval_gate.h"
#include "creto/contracts/events.h"

namespace creto::sql {
class Database;
}
namespace creto::bus {
class Bus;
}
namespace creto::http {
class Client;
}
namespace creto::nhi {
class Nhi;
}
namespace creto::authz {
class Authz;
}
namespace creto::memory {
class Memory;
}

/// Which human said yes: requests, who may answer them, the signed answers, and the tokens that come of them.
namespace creto::oversight {

using contracts::ApprovalNeed;
using contracts::ApprovalRequest;
using contracts::ApprovalState;
using contracts::ApprovalStatus;

/// Who is asked, one tier after the other, and what happens when nobody answers. Named by `@oversight("id")` in a Cedar
/// forbid, by a cost threshold's id, or by a trigger below.
struct OversightPolicy {
  struct Tier {
    std::vector<std::string> approvers;  ///< 1 to 64 of "human:<email>" or "role:<name>" (nhi attribute `roles`)
    std::uint32_t quorum = 1;            ///< distinct approvers, 1 to 16
    Nanos timeout = std::chrono::hours(2);
    std::vector<std::string> channels;  ///< names of webhooks; the CLI needs none
    friend bool operator==(const Tier&, const Tier&) = default;
  };
  enum class FinalAction : std::uint8_t { auto_deny, auto_approve };
  struct Trigger {
    std::string kind;     ///< "cost_threshold" or "quota_breach"
    std::string pattern;  ///< id of the threshold or quota; a last `*` stands for any rest
    friend bool operator==(const Trigger&, const Trigger&) = default;
  };

  PolicyId id;
  std::vector<Tier> tiers;  ///< 1 to 8
  FinalAction final_action = FinalAction::auto_deny;
  bool allow_self_approval = false;  ///< whether somebody of the request's own delegation chain may answer
  std::vector<Trigger> triggers;
  Nanos token_valid_for = std::chrono::hours(1);
  std::int64_t version = 0;
  friend bool operator==(const OversightPolicy&, const OversightPolicy&) = default;
};

/// How far one policy of a request has come.
struct Track {
  PolicyId policy;
  PolicyId forbid;  ///< what an approval lifts; empty where a cost threshold asked
  std::uint32_t tier = 0;
  Instant tier_ends{};
  bool met = false;
  friend bool operator==(const Track&, const Track&) = default;
};

/// A human's answer. The signature is over `signed_bytes` of the request it answers, with the context below.
struct Response {
  RequestId request;
  Identity approver;
  bool approve = false;
  std::string notes;       ///< up to 4 096 bytes; required for a denial
  std::string attachment;  ///< canonical JSON object, or empty: {"new_limit":"200000"}
  Instant signed_at{};     ///< within ten minutes of the server's clock
  Signature signature;
};
inline constexpr std::string_view response_signature_context = "creto oversight response";

/// What the agent's memory says about the action (OV4).
struct AgentContext {
  std::string reasoning;  ///< what memory holds for this action
  std::vector<std::string> related;
  std::optional<double> confidence;
  std::string missing;  ///< why there is none: "OV-503: …"; empty where memory answered
};

struct Request {
  RequestId id;
  std::string org;
  ApprovalState state = ApprovalState::pending;
  ApprovalRequest asked;
  Hash256 arguments_hash{};  ///< SHA3-256 of the canonical arguments
  std::vector<Track> tracks;
  std::optional<Instant> ends_at;  ///< from the annotation: times out whatever the tiers say
  AgentContext context;
  std::vector<Response> responses;  ///< accepted ones
  Instant created_at{};
  Instant decided_at{};
  std::string notes;                     ///< why it ended
  std::string attachment;                ///< of the deciding approval
  std::optional<Instant> token_expires;  ///< when approved
};

/// What an approver signs, for `request` as the server shows it (docs/formats.md, "Oversight response").
Result<std::string> signed_bytes(const Request& request, const Response& response);

struct RequestFilter {
  std::optional<ApprovalState> state;
  std::optional<Identity> agent;
  std::optional<Identity> approver;  ///< open ones that this human may answer now
  std::size_t limit = 100;           ///< 1 to 1 000, newest first
  std::string before;                ///< id below which the page begins
};

/// Where notifications go. `url` gets Standard Webhooks 1.0.0 requests.
struct Webhook {
  std::string name;  ///< [a-z0-9-]{1,64}
  std::string url;
  std::string secret;  ///< "whsec_<base64 of 24 to 64 bytes>"; only given in, never out
};

/// Thread-safe. Invariant 1: a final request never changes. Invariant 2: an approval counts only with a signature that
/// verifies under a key nhi holds for a human whom a tier of the request names. Invariant 3: a request, its event, its
/// notifications and its audit record commit together.
class Oversight : public contracts::ApprovalGate {
 public:
  /// Errors: not_found; permission_denied for an agent that neither made it nor is above it.
  virtual Result<Request> get_request(const Context& ctx, const RequestId& id) = 0;
  virtual Result<std::vector<Request>> list_requests(const Context& ctx, const RequestFilter& filter) = 0;

  /// Errors: not_found; conflict where it is final or this approver has answered; permission_denied (OV-403) where the
  /// approver is not eligible; signature_invalid; expired.
  virtual Result<Request> respond(const Context& ctx, const Response& response) = 0;

  /// Withdraws an approval that was not used yet. By an approver of it. Errors: conflict where it was used.
  virtual Result<> revoke_approval(const Context& ctx, const RequestId& id) = 0;

  /// Errors: invalid_input naming the field; conflict on another version than `version` (0: whatever is there).
  virtual Result<OversightPolicy> put_policy(const Context& ctx, OversightPolicy policy) = 0;
  virtual Result<> delete_policy(const Context& ctx, const PolicyId& id) = 0;
  virtual Result<std::vector<OversightPolicy>> list_policies(const Context& ctx) = 0;

  virtual Result<> put_webhook(const Context& ctx, const Webhook& webhook) = 0;
  virtual Result<> delete_webhook(const Context& ctx, const std::string& name) = 0;
  virtual Result<std::vector<Webhook>> list_webhooks(const Context& ctx) = 0;  ///< without secrets

  /// Escalates and ends what is due. The service does so by itself where `run_scheduler` is set; in process only.
  virtual Result<std::size_t> advance_due(const Context& ctx) = 0;
};

struct OversightOptions {
  Nanos idempotency_window = std::chrono::hours(24);  ///< same agent, action, resource and arguments
  Nanos scheduler_interval = std::chrono::milliseconds(200);
  bool run_scheduler = true;
  std::string request_link;  ///< of notifications; `{id}` is replaced
  Nanos webhook_timeout = std::chrono::seconds(10);
  std::uint32_t webhook_attempts_max = 8;
  bool webhook_private_addresses = true;  ///< whether a webhook may point at this machine or network
};

struct OversightPorts {
  sql::Database& database;
  bus::Bus& bus;
  nhi::Nhi& nhi;
  authz::Authz& authz;
  memory::Memory* memory;  ///< null: no reasoning is shown
  http::Client& http;
  const Clock& clock;
  Telemetry& telemetry;
};

/// Migrates its tables, subscribes to thresholds and its own notifications. Everything passed in must outlive it.
Result<std::unique_ptr<Oversight>> create_oversight(OversightPorts ports, OversightOptions options = {});

}  // namespace creto::oversight
