#include "request.h"

#include <fmt/format.h>

#include <algorithm>

#include "creto/common/assert.h"

namespace creto::oversight {
namespace {

using contracts::ApprovalState;
using contracts::is_final;

Error oversight_error(ErrorKind kind, std::string message) {
  return Error(Product::oversight, kind, std::move(message));
}

const Tier& current_tier(const Requirement& requirement) { return requirement.policy.tiers[requirement.tier]; }

bool contains(const std::vector<Identity>& identities, const Identity& identity) {
  return std::ranges::find(identities, identity) != identities.end();
}

void decide(Request& request, ApprovalState state, Instant now) {
  request.state = state;
  request.decided_at = now;
}

void approve_if_all_met(Request& request, Instant now) {
  if (std::ranges::all_of(request.requirements, &Requirement::met)) decide(request, ApprovalState::approved, now);
}

/// Approvals of the people of the current tier; those of an earlier tier count only if they are asked again.
std::size_t approvals(const Request& request, const Requirement& requirement) {
  return static_cast<std::size_t>(std::ranges::count_if(request.responses, [&](const Response& response) {
    return response.approve && contains(current_tier(requirement).approvers, response.approver);
  }));
}

}  // namespace

Result<Requirement> begin_requirement(Policy policy, const contracts::ApprovalNeed& need, Instant now) {
  for (Tier& tier : policy.tiers) {
    if (need.timeout && *need.timeout < tier.timeout) {
      // A shorter time may end a request earlier, but not turn silence into a yes earlier.
      tier.timeout = *need.timeout;
      policy.final_action = FinalAction::auto_deny;
    }
    if (!need.approvers.empty()) {
      std::erase_if(tier.approvers, [&](const Identity& approver) {
        return std::ranges::find(need.approvers, approver.text()) == need.approvers.end();
      });
    }
  }
  // A tier that is left with fewer people than its quorum could never agree; a smaller quorum would widen the policy.
  std::erase_if(policy.tiers, [](const Tier& tier) { return tier.approvers.size() < tier.quorum; });
  if (policy.tiers.empty())
    return oversight_error(
        ErrorKind::invalid_input,
        fmt::format("approvers: too few of them are approvers of the oversight policy `{}`", policy.id));
  Requirement requirement;
  requirement.forbid = need.forbid;
  requirement.tier_ends = now + policy.tiers.front().timeout;
  requirement.policy = std::move(policy);
  return requirement;
}

Result<> apply_response(Request& request, const Response& response, std::string_view attached, Instant now) {
  CRETO_ASSERT(!is_final(request.state));
  const bool asked = std::ranges::any_of(request.requirements, [&](const Requirement& requirement) {
    return !requirement.met && contains(current_tier(requirement).approvers, response.approver);
  });
  if (!asked)
    return oversight_error(ErrorKind::permission_denied,
                           fmt::format("`{}` is not asked by this request", response.approver.text()));
  const bool answered = std::ranges::any_of(
      request.responses, [&](const Response& earlier) { return earlier.approver == response.approver; });
  if (answered)
    return oversight_error(ErrorKind::conflict,
                           fmt::format("`{}` has answered this request already", response.approver.text()));
  const bool own_agent =
      contains(request.action.delegation_chain, response.approver) || request.action.agent == response.approver;
  for (const Requirement& requirement : request.requirements) {
    if (response.approve && own_agent && !requirement.policy.allow_self_approval && !requirement.met &&
        contains(current_tier(requirement).approvers, response.approver))
      return oversight_error(
          ErrorKind::permission_denied,
          fmt::format("`{}` acts through this agent and may not approve for himself", response.approver.text()));
  }

  request.responses.push_back(response);
  request.decision_response = std::string(attached);
  if (!response.approve) {
    decide(request, ApprovalState::denied, now);
    return {};
  }
  for (Requirement& requirement : request.requirements)
    if (!requirement.met && approvals(request, requirement) >= current_tier(requirement).quorum) requirement.met = true;
  approve_if_all_met(request, now);
  return {};
}

bool apply_timeouts(Request& request, Instant now) {
  bool changed = false;
  for (Requirement& requirement : request.requirements) {
    while (!is_final(request.state) && !requirement.met && requirement.tier_ends <= now) {
      changed = true;
      if (requirement.tier + 1 < requirement.policy.tiers.size()) {
        ++requirement.tier;
        requirement.tier_ends += current_tier(requirement).timeout;
        request.state = ApprovalState::escalated;
        if (approvals(request, requirement) >= current_tier(requirement).quorum) requirement.met = true;
      } else if (requirement.policy.final_action == FinalAction::auto_approve) {
        requirement.met = requirement.met_by_timeout = true;
      } else {
        decide(request, ApprovalState::timed_out, now);
      }
    }
  }
  if (changed && !is_final(request.state)) approve_if_all_met(request, now);
  return changed;
}

Instant next_deadline(const Request& request) {
  Instant earliest = Instant::max();
  if (is_final(request.state)) return earliest;
  for (const Requirement& requirement : request.requirements)
    if (!requirement.met) earliest = std::min(earliest, requirement.tier_ends);
  return earliest;
}

std::vector<Identity> asked_now(const Request& request) {
  std::vector<Identity> asked;
  if (is_final(request.state)) return asked;
  for (const Requirement& requirement : request.requirements) {
    if (requirement.met) continue;
    for (const Identity& approver : current_tier(requirement).approvers)
      if (!contains(asked, approver)) asked.push_back(approver);
  }
  return asked;
}

}  // namespace creto::oversight
