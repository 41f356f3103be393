#pragma once

#include "creto/oversight/oversight.h"

/// The state machine of a request (OV1, OV2). Pure: no clock, no store; every function returns what changed.
namespace creto::oversight {

/// Begins a policy at its first tier. Narrows it by what the authorization decision said: its timeout may shorten, its
/// approvers may only remain a subset. Requires: `need.approvers` are identities, roles resolved. Errors: invalid_input
/// where narrowing leaves nobody to ask.
Result<Requirement> begin_requirement(Policy policy, const contracts::ApprovalNeed& need, Instant now);

/// Takes a verified answer. Requires: the request is open, `response.approver` signed it.
/// Errors: permission_denied where he is not asked now or approves for himself; conflict where he has answered already.
Result<> apply_response(Request& request, const Response& response, std::string_view attached, Instant now);

/// Moves on what is due. True where something changed.
bool apply_timeouts(Request& request, Instant now);

/// When `apply_timeouts` has to look again; Instant::max() for a final request.
Instant next_deadline(const Request& request);

/// Who is asked now, over all requirements that are not met, each once.
std::vector<Identity> asked_now(const Request& request);

}  // namespace creto::oversight
