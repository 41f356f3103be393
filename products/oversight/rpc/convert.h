#pragma once

#include "creto/oversight/oversight.h"
#include "creto/oversight/v1/oversight.pb.h"

/// `to_proto` is total; `from_proto` refuses what a domain type cannot hold, with invalid_input naming the field.
namespace creto::oversight {

void to_proto(const Policy& from, v1::Policy& to);
Result<Policy> from_proto(const v1::Policy& from);

void to_proto(const Request& from, v1::Request& to);
/// From its `document`, which holds all of it.
Result<Request> from_proto(const v1::Request& from);

void to_proto(const LostNotification& from, v1::LostNotification& to);
Result<LostNotification> from_proto(const v1::LostNotification& from);

void to_proto(const contracts::GatedAction& from, v1::GatedAction& to);
Result<contracts::GatedAction> from_proto(const v1::GatedAction& from);
void to_proto(const contracts::ApprovalNeed& from, v1::ApprovalNeed& to);
Result<contracts::ApprovalNeed> from_proto(const v1::ApprovalNeed& from);
void to_proto(const contracts::ApprovalCheck& from, v1::ApprovalCheck& to);
Result<contracts::ApprovalCheck> from_proto(const v1::ApprovalCheck& from);
void to_proto(const contracts::ApprovalRequest& from, v1::RequestApprovalRequest& to);
Result<contracts::ApprovalRequest> from_proto(const v1::RequestApprovalRequest& from);
void to_proto(const contracts::ApprovalStatus& from, v1::ApprovalStatus& to);
Result<contracts::ApprovalStatus> from_proto(const v1::ApprovalStatus& from);

void to_proto(const RequestFilter& from, v1::ListRequestsRequest& to);
Result<RequestFilter> from_proto(const v1::ListRequestsRequest& from);

}  // namespace creto::oversight
