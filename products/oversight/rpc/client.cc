#include <condition_variable>
#include <mutex>
#include <thread>

#include "creto/io/proto.h"
#include "creto/io/rpc_channel.h"
#include "creto/oversight/oversight_rpc.h"
#include "rpc/convert.h"

namespace creto::oversight {
namespace {

using contracts::ApprovalStatus;

constexpr rpc::CallOptions repeatable{.idempotent = true};

class OversightClient final : public Oversight {
 public:
  OversightClient(std::shared_ptr<rpc::Channel> channel, const Clock& clock)
      : channel_(std::move(channel)), clock_(clock) {}

  Result<Policy> put_policy(const Context& ctx, const Policy& policy) override {
    v1::Policy request;
    to_proto(policy, request);
    const auto response = CRETO_TRY((call<v1::Policy>(ctx, "PutPolicy", request)));
    return from_proto(response);
  }

  Result<std::vector<Policy>> list_policies(const Context& ctx) override {
    const auto response = CRETO_TRY((call<v1::ListPoliciesResponse>(ctx, "ListPolicies", v1::ListPoliciesRequest())));
    std::vector<Policy> policies;
    for (const v1::Policy& in : response.policies()) {
      Policy policy = CRETO_TRY(from_proto(in));
      policies.push_back(std::move(policy));
    }
    return policies;
  }

  Result<> delete_policy(const Context& ctx, const PolicyId& id) override {
    v1::DeletePolicyRequest request;
    request.set_id(id);
    CRETO_TRY((call<v1::DeletePolicyResponse>(ctx, "DeletePolicy", request)));
    return {};
  }

  Result<Request> get(const Context& ctx, const RequestId& id) override {
    v1::GetRequestRequest request;
    request.set_id(id.to_string());
    const auto response = CRETO_TRY((call<v1::Request>(ctx, "GetRequest", request)));
    return from_proto(response);
  }

  Result<std::vector<Request>> list(const Context& ctx, const RequestFilter& filter) override {
    if (filter.limit < 1 || filter.limit > 1000)
      return Error(Product::oversight, ErrorKind::invalid_input, "limit: must be 1 to 1000");
    v1::ListRequestsRequest request;
    to_proto(filter, request);
    const auto response = CRETO_TRY((call<v1::ListRequestsResponse>(ctx, "ListRequests", request)));
    std::vector<Request> requests;
    for (const v1::Request& in : response.requests()) {
      Request one = CRETO_TRY(from_proto(in));
      requests.push_back(std::move(one));
    }
    return requests;
  }

  Result<std::vector<LostNotification>> lost_notifications(const Context& ctx, std::size_t limit) override {
    if (limit < 1 || limit > 1000)
      return Error(Product::oversight, ErrorKind::invalid_input, "limit: must be 1 to 1000");
    v1::ListLostNotificationsRequest request;
    request.set_limit(static_cast<std::int32_t>(limit));
    const auto response = CRETO_TRY((call<v1::ListLostNotificationsResponse>(ctx, "ListLostNotifications", request)));
    std::vector<LostNotification> lost;
    for (const v1::LostNotification& in : response.notifications()) {
      LostNotification one = CRETO_TRY(from_proto(in));
      lost.push_back(std::move(one));
    }
    return lost;
  }

  Result<Request> respond(const Context& ctx, const std::string& document, const Signature& signature) override {
    v1::SubmitResponseRequest request;
    request.set_document(document);
    request.mutable_signature()->set_algorithm(signature.algorithm);
    request.mutable_signature()->set_value(proto::to_text(signature.value));
    const auto response = CRETO_TRY((call<v1::Request>(ctx, "SubmitResponse", request)));
    return from_proto(response);
  }

  Result<contracts::ApprovalCheck> check_approval_required(const Context& ctx,
                                                           const contracts::GatedAction& action) override {
    v1::GatedAction request;
    to_proto(action, request);
    const auto response = CRETO_TRY((call<v1::ApprovalCheck>(ctx, "CheckApprovalRequired", request)));
    return from_proto(response);
  }

  Result<ApprovalStatus> request_approval(const Context& ctx, const contracts::ApprovalRequest& asked) override {
    v1::RequestApprovalRequest request;
    to_proto(asked, request);
    return status(ctx, "RequestApproval", request);
  }

  Result<ApprovalStatus> approval_status(const Context& ctx, const RequestId& id) override {
    v1::GetApprovalStatusRequest request;
    request.set_id(id.to_string());
    return status(ctx, "GetApprovalStatus", request);
  }

  Result<Subscription> when_final(const Context& ctx, const RequestId& id,
                                  std::function<void(const ApprovalStatus&)> on_final) override {
    CRETO_TRY(approval_status(ctx, id));
    v1::GetApprovalStatusRequest request;
    request.set_id(id.to_string());
    auto waiting = std::make_shared<std::jthread>(
        [this, ctx, request, on_final = std::move(on_final)](const std::stop_token& stop) {
          std::mutex mutex;
          std::condition_variable_any pause;
          while (!stop.stop_requested()) {
            Context attempt = ctx;
            attempt.deadline = clock_.monotonic() + std::chrono::seconds(1);
            const Result<ApprovalStatus> final = status(attempt, "AwaitApproval", request);
            if (final && contracts::is_final(final->state)) {
              if (!stop.stop_requested()) on_final(*final);
              return;
            }
            if (final || final.error().kind() == ErrorKind::timeout) continue;
            // Nobody is there, which shows at once: not to be asked again at once.
            std::unique_lock lock(mutex);
            pause.wait_for(lock, stop, std::chrono::seconds(1), [] { return false; });
          }
        });
    return Subscription(waiting, waiting.get());
  }

  Result<> cancel_approval(const Context& ctx, const RequestId& id) override {
    v1::CancelRequestRequest request;
    request.set_id(id.to_string());
    CRETO_TRY((call<v1::CancelRequestResponse>(ctx, "CancelRequest", request)));
    return {};
  }

  Result<std::size_t> apply_timeouts() override {
    return Error(Product::oversight, ErrorKind::unavailable, "timeouts are applied by the server itself");
  }

  HealthStatus health() override { return {}; }

 private:
  template <class Response, class Req>
  Result<Response> call(const Context& ctx, std::string_view method, const Req& request) {
    return channel_->call<Req, Response>(ctx, "/creto.oversight.v1.OversightService/" + std::string(method), request,
                                         repeatable);
  }

  template <class Req>
  Result<ApprovalStatus> status(const Context& ctx, std::string_view method, const Req& request) {
    const auto response = CRETO_TRY((call<v1::ApprovalStatus>(ctx, method, request)));
    return from_proto(response);
  }

  std::shared_ptr<rpc::Channel> channel_;
  const Clock& clock_;
};

}  // namespace

std::unique_ptr<Oversight> create_oversight_client(std::shared_ptr<rpc::Channel> channel, const Clock& clock) {
  return std::make_unique<OversightClient>(std::move(channel), clock);
}

}  // namespace creto::oversight
