#include <mutex>

#include "creto/io/proto.h"
#include "creto/io/proto_answer.h"
#include "creto/io/rpc.h"
#include "creto/oversight/oversight_rpc.h"
#include "rpc/convert.h"

namespace creto::oversight {
namespace {

using proto::answer;

Result<v1::ApprovalStatus> status_of(Result<contracts::ApprovalStatus> result) {
  const contracts::ApprovalStatus status = CRETO_TRY(std::move(result));
  v1::ApprovalStatus response;
  to_proto(status, response);
  return response;
}

/// Keeps a subscription until it has called back, which may be before it was even returned.
class Waiting {
 public:
  void keep(Oversight::Subscription subscription) {
    const std::lock_guard lock(mutex_);
    if (!ended_) subscription_ = std::move(subscription);
  }
  void end() {
    Oversight::Subscription dropped;
    const std::lock_guard lock(mutex_);
    ended_ = true;
    dropped.swap(subscription_);
  }

 private:
  std::mutex mutex_;
  bool ended_ = false;
  Oversight::Subscription subscription_;
};

rpc::Resource request_of(const std::string& id) { return {"OversightRequest", id}; }

}  // namespace

void register_oversight(rpc::Dispatcher& dispatcher, Oversight& oversight) {
  auto service = dispatcher.service("creto.oversight.v1.OversightService");

  service.unary<v1::Policy, v1::Policy>(
      "PutPolicy",
      {.idempotent = true, .resource = [](const v1::Policy& r) { return rpc::Resource{"OversightPolicy", r.id()}; }},
      [&oversight](const Context& ctx, const v1::Policy& r) -> Result<v1::Policy> {
        const Policy policy = CRETO_TRY(from_proto(r));
        return answer<v1::Policy>(oversight.put_policy(ctx, policy));
      });
  service.unary<v1::ListPoliciesRequest, v1::ListPoliciesResponse>(
      "ListPolicies", {.idempotent = true},
      [&oversight](const Context& ctx, const v1::ListPoliciesRequest&) -> Result<v1::ListPoliciesResponse> {
        const std::vector<Policy> policies = CRETO_TRY(oversight.list_policies(ctx));
        v1::ListPoliciesResponse response;
        for (const Policy& policy : policies) to_proto(policy, *response.add_policies());
        return response;
      });
  service.unary<v1::DeletePolicyRequest, v1::DeletePolicyResponse>(
      "DeletePolicy",
      {.resource = [](const v1::DeletePolicyRequest& r) { return rpc::Resource{"OversightPolicy", r.id()}; }},
      [&oversight](const Context& ctx, const v1::DeletePolicyRequest& r) -> Result<v1::DeletePolicyResponse> {
        CRETO_TRY(oversight.delete_policy(ctx, r.id()));
        return v1::DeletePolicyResponse();
      });

  service.unary<v1::GetRequestRequest, v1::Request>(
      "GetRequest", {.idempotent = true, .resource = [](const v1::GetRequestRequest& r) { return request_of(r.id()); }},
      [&oversight](const Context& ctx, const v1::GetRequestRequest& r) -> Result<v1::Request> {
        const RequestId id = CRETO_TRY(proto::from_id<RequestId>(r.id(), "id"));
        return answer<v1::Request>(oversight.get(ctx, id));
      });
  service.unary<v1::ListRequestsRequest, v1::ListRequestsResponse>(
      "ListRequests", {.idempotent = true},
      [&oversight](const Context& ctx, const v1::ListRequestsRequest& r) -> Result<v1::ListRequestsResponse> {
        const RequestFilter filter = CRETO_TRY(from_proto(r));
        const std::vector<Request> requests = CRETO_TRY(oversight.list(ctx, filter));
        v1::ListRequestsResponse response;
        for (const Request& request : requests) to_proto(request, *response.add_requests());
        return response;
      });
  service.unary<v1::ListLostNotificationsRequest, v1::ListLostNotificationsResponse>(
      "ListLostNotifications", {.idempotent = true},
      [&oversight](const Context& ctx,
                   const v1::ListLostNotificationsRequest& r) -> Result<v1::ListLostNotificationsResponse> {
        if (r.limit() < 0) return proto::bad_field("limit", "must be 1 to 1000");
        const std::size_t limit = r.limit() == 0 ? 100 : static_cast<std::size_t>(r.limit());
        const std::vector<LostNotification> lost = CRETO_TRY(oversight.lost_notifications(ctx, limit));
        v1::ListLostNotificationsResponse response;
        for (const LostNotification& one : lost) to_proto(one, *response.add_notifications());
        return response;
      });
  // What counts is the approver's signature; whoever carries it may be anybody with an identity.
  service.unary<v1::SubmitResponseRequest, v1::Request>(
      "SubmitResponse", {.access = rpc::Access::authenticated, .idempotent = true},
      [&oversight](const Context& ctx, const v1::SubmitResponseRequest& r) -> Result<v1::Request> {
        const Signature signature{r.signature().algorithm(), to_bytes(r.signature().value())};
        return answer<v1::Request>(oversight.respond(ctx, r.document(), signature));
      });

  service.unary<v1::GatedAction, v1::ApprovalCheck>(
      "CheckApprovalRequired", {.idempotent = true},
      [&oversight](const Context& ctx, const v1::GatedAction& r) -> Result<v1::ApprovalCheck> {
        const contracts::GatedAction action = CRETO_TRY(from_proto(r));
        const contracts::ApprovalCheck check = CRETO_TRY(oversight.check_approval_required(ctx, action));
        v1::ApprovalCheck response;
        to_proto(check, response);
        return response;
      });
  service.unary<v1::RequestApprovalRequest, v1::ApprovalStatus>(
      "RequestApproval", {.idempotent = true},
      [&oversight](const Context& ctx, const v1::RequestApprovalRequest& r) -> Result<v1::ApprovalStatus> {
        const contracts::ApprovalRequest request = CRETO_TRY(from_proto(r));
        return status_of(oversight.request_approval(ctx, request));
      });
  // Who may see a request's status, and so its token, the service decides by the request's own agent and chain.
  service.unary<v1::GetApprovalStatusRequest, v1::ApprovalStatus>(
      "GetApprovalStatus", {.access = rpc::Access::authenticated, .idempotent = true},
      [&oversight](const Context& ctx, const v1::GetApprovalStatusRequest& r) -> Result<v1::ApprovalStatus> {
        const RequestId id = CRETO_TRY(proto::from_id<RequestId>(r.id(), "id"));
        return status_of(oversight.approval_status(ctx, id));
      });
  service.deferred<v1::GetApprovalStatusRequest, v1::ApprovalStatus>(
      "AwaitApproval", {.access = rpc::Access::authenticated, .idempotent = true},
      [&oversight](const Context& ctx, const v1::GetApprovalStatusRequest& r,
                   const rpc::Reply<v1::ApprovalStatus>& reply) {
        const Result<RequestId> id = proto::from_id<RequestId>(r.id(), "id");
        if (!id) return reply(Error(id.error()));
        auto waiting = std::make_shared<Waiting>();
        const auto subscription =
            oversight.when_final(ctx, *id, [reply, waiting](const contracts::ApprovalStatus& status) {
              v1::ApprovalStatus response;
              to_proto(status, response);
              reply(std::move(response));
              waiting->end();
            });
        if (!subscription) return reply(Error(subscription.error()));
        waiting->keep(*subscription);
      });
  service.unary<v1::CancelRequestRequest, v1::CancelRequestResponse>(
      "CancelRequest",
      {.idempotent = true, .resource = [](const v1::CancelRequestRequest& r) { return request_of(r.id()); }},
      [&oversight](const Context& ctx, const v1::CancelRequestRequest& r) -> Result<v1::CancelRequestResponse> {
        const RequestId id = CRETO_TRY(proto::from_id<RequestId>(r.id(), "id"));
        CRETO_TRY(oversight.cancel_approval(ctx, id));
        return v1::CancelRequestResponse();
      });
}

}  // namespace creto::oversight
