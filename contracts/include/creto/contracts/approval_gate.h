#pragma once

#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/result.h"
#include "creto/common/signature.h"

namespace creto::contracts {

/// What an agent wants to do, exactly: an approval binds to all of it.
struct GatedAction {
  Identity agent;
  DelegationChain delegation_chain;
  std::optional<SandboxId> sandbox;
  std::string action;         ///< Cedar action id: "payments.pay", "sandbox.spawn"
  std::string resource_type;  ///< Cedar entity type and id
  std::string resource_id;
  std::string arguments;  ///< canonical JSON of the exact arguments
};

/// One oversight policy that must be met, narrowed by what the authorization decision said of its forbid alone
/// (architecture, "Decisions").
struct ApprovalNeed {
  PolicyId policy;  ///< the oversight policy
  /// The Cedar forbid that its approval lifts; empty where no Cedar policy asked (a cost threshold). The override token
  /// of the approval lifts exactly those of its needs.
  PolicyId forbid;
  std::optional<Nanos> timeout = {};  ///< may shorten the oversight policy's own, never lengthen
  /// May narrow, never widen; empty: nothing narrows. Identities, and "role:NAME" for whoever has that role when the
  /// request is made.
  std::vector<std::string> approvers = {};
};

struct ApprovalRequest {
  GatedAction action;
  std::vector<ApprovalNeed> needs;  ///< 1 to 16; every one must be met
  std::string description;          ///< one line for people
  std::string reasoning;            ///< the agent's own words; shown as such
  std::vector<std::string> risk_factors;
};

enum class ApprovalState : std::uint8_t { pending, escalated, approved, denied, timed_out, cancelled };
std::string_view to_string(ApprovalState state);
Result<ApprovalState> approval_state_from_string(std::string_view text);
inline bool is_final(ApprovalState state) { return state > ApprovalState::escalated; }

/// What became of a request so far.
struct ApprovalStatus {
  RequestId request;
  ApprovalState state;
  std::optional<Identity> approver;    ///< who decided; none while open or after a timeout
  std::optional<Signature> signature;  ///< the approver's, over the response
  std::string notes;                   ///< of the approver, or the reason of a denial
  std::string override_token;          ///< only when approved, only shown to the requesting agent
  Instant decided_at{};
};

/// Whether an action may proceed without asking (000 §1.2).
struct NotRequired {};
struct ApprovalRequired {
  std::vector<ApprovalNeed> needs;
};
struct Prohibited {
  std::string reason;
};
using ApprovalCheck = std::variant<NotRequired, ApprovalRequired, Prohibited>;

/// Oversight lets runtime ask a human (000 §1.2). Thread-safe. No call holds a thread while a human thinks.
class ApprovalGate {
 public:
  virtual ~ApprovalGate() = default;

  /// Decides by policy alone; creates nothing. < 1 ms at p99.
  virtual Result<ApprovalCheck> check_approval_required(const Context& ctx, const GatedAction& action) = 0;

  /// Creates the request, or returns the open one for the same agent, action, resource and arguments (24 h). `needs`
  /// are looked at where a service asks; who asks for himself gets those of the policies that would decide.
  /// Errors: permission_denied for another's action, or one that nobody may approve; conflict where no policy asks for
  /// an approval; not_found for an oversight policy that is not there.
  virtual Result<ApprovalStatus> request_approval(const Context& ctx, const ApprovalRequest& request) = 0;

  /// Errors: not_found; permission_denied for anyone but the requesting agent and its chain.
  virtual Result<ApprovalStatus> approval_status(const Context& ctx, const RequestId& request) = 0;

  /// Calls `on_final` once, from any thread, when the request is final; at once if it is already.
  /// The callback must not block. Dropped when the returned handle is destroyed.
  using Subscription = std::shared_ptr<void>;
  virtual Result<Subscription> when_final(const Context& ctx, const RequestId& request,
                                          std::function<void(const ApprovalStatus&)> on_final) = 0;

  /// The agent gave up. A final request stays as it is.
  virtual Result<> cancel_approval(const Context& ctx, const RequestId& request) = 0;
};

}  // namespace creto::contracts
