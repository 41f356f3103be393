#include "creto/authz/authz_rpc.h"
#include "creto/io/rpc.h"
#include "rpc/convert.h"

namespace creto::authz {
namespace {

template <class Proto, class Domain>
Result<Proto> answer(Result<Domain> result) {
  if (!result) return std::move(result).error();
  Proto proto;
  to_proto(*result, proto);
  return proto;
}

constexpr auto of_policy = [](const auto& request) { return rpc::Resource{"Policy", request.id()}; };
constexpr auto of_request = [](const auto& request) { return rpc::Resource{"Approval", request.request_id()}; };

}  // namespace

void register_authz(rpc::Dispatcher& dispatcher, Authz& authz) {
  auto service = dispatcher.service("creto.authz.v1.AuthzService");

  const auto decide = [&authz](bool counts) {
    return [&authz, counts](const Context& ctx, const v1::CheckRequest& request) -> Result<v1::CheckResponse> {
      const CheckRequest check = CRETO_TRY(from_proto(request));
      const Monotonic begin = system_clock().monotonic();
      std::vector<PolicyId> matched;
      const Decision decision = request.name_policies() ? authz.check_naming(ctx, check, counts, matched)
                                : counts                ? authz.admit(ctx, check)
                                                        : authz.check(ctx, check);
      v1::CheckResponse response;
      for (const PolicyId& id : matched) response.add_matched_policies(id);
      response.set_evaluation_time_ns(static_cast<std::uint64_t>((system_clock().monotonic() - begin).count()));
      to_proto(decision, *response.mutable_decision());
      return response;
    };
  };
  service.unary<v1::CheckRequest, v1::CheckResponse>("Check", {.inline_call = true, .idempotent = true}, decide(false));
  service.unary<v1::CheckRequest, v1::CheckResponse>("Admit", {.inline_call = true}, decide(true));
  service.unary<v1::CheckBatchRequest, v1::CheckBatchResponse>(
      "CheckBatch", {.idempotent = true},
      [&authz](const Context& ctx, const v1::CheckBatchRequest& request) -> Result<v1::CheckBatchResponse> {
        std::vector<CheckRequest> checks;
        for (const auto& one : request.requests()) {
          CheckRequest check = CRETO_TRY(from_proto(one));
          checks.push_back(std::move(check));
        }
        v1::CheckBatchResponse response;
        for (const Decision& decision : authz.check_batch(ctx, checks)) to_proto(decision, *response.add_decisions());
        return response;
      });
  service.unary<v1::CheckRequest, v1::ExplainResponse>(
      "Explain", {.idempotent = true},
      [&authz](const Context& ctx, const v1::CheckRequest& request) -> Result<v1::ExplainResponse> {
        const CheckRequest check = CRETO_TRY(from_proto(request));
        v1::ExplainResponse response;
        to_proto(authz.explain(ctx, check), response);
        return response;
      });

  service.unary<v1::FilterResourcesRequest, v1::FilterResourcesResponse>(
      "FilterResources", {.idempotent = true},
      [&authz](const Context& ctx, const v1::FilterResourcesRequest& request) -> Result<v1::FilterResourcesResponse> {
        const FilterQuestion question = CRETO_TRY(from_proto(request));
        const ResourceFilter filter = CRETO_TRY(authz.filter_resources(ctx, question));
        v1::FilterResourcesResponse response;
        to_proto(filter, response);
        return response;
      });

  service.unary<v1::CreatePolicyRequest, v1::Policy>(
      "CreatePolicy", {.resource = of_policy}, [&authz](const Context& ctx, const v1::CreatePolicyRequest& request) {
        return answer<v1::Policy>(authz.create_policy(ctx, request.id(), request.text()));
      });
  service.unary<v1::UpdatePolicyRequest, v1::Policy>(
      "UpdatePolicy", {.resource = of_policy}, [&authz](const Context& ctx, const v1::UpdatePolicyRequest& request) {
        return answer<v1::Policy>(authz.update_policy(ctx, request.id(), request.text(), request.expected_version()));
      });
  service.unary<v1::DeletePolicyRequest, v1::DeletePolicyResponse>(
      "DeletePolicy", {.resource = of_policy},
      [&authz](const Context& ctx, const v1::DeletePolicyRequest& request) -> Result<v1::DeletePolicyResponse> {
        CRETO_TRY(authz.delete_policy(ctx, request.id()));
        return v1::DeletePolicyResponse();
      });
  service.unary<v1::ListPoliciesRequest, v1::ListPoliciesResponse>(
      "ListPolicies", {.idempotent = true},
      [&authz](const Context& ctx, const v1::ListPoliciesRequest&) -> Result<v1::ListPoliciesResponse> {
        const auto policies = CRETO_TRY(authz.list_policies(ctx));
        v1::ListPoliciesResponse response;
        for (const Policy& policy : policies) to_proto(policy, *response.add_policies());
        return response;
      });

  service.unary<v1::ApplyPoliciesRequest, v1::ApplyPoliciesResponse>(
      "ApplyPolicies", {}, [&authz](const Context& ctx, const v1::ApplyPoliciesRequest& request) {
        return answer<v1::ApplyPoliciesResponse>(authz.apply_policies(ctx, from_proto(request)));
      });
  service.unary<v1::ListPolicyVersionsRequest, v1::ListPolicyVersionsResponse>(
      "ListPolicyVersions", {.idempotent = true},
      [&authz](const Context& ctx,
               const v1::ListPolicyVersionsRequest& request) -> Result<v1::ListPolicyVersionsResponse> {
        const std::size_t limit = request.limit() == 0 ? 50 : request.limit();
        const auto versions = CRETO_TRY(authz.list_policy_versions(ctx, request.before(), limit));
        v1::ListPolicyVersionsResponse response;
        for (const PolicyVersion& version : versions) to_proto(version, *response.add_versions());
        return response;
      });
  service.unary<v1::GetPolicyVersionRequest, v1::PolicySet>(
      "GetPolicyVersion", {.idempotent = true},
      [&authz](const Context& ctx, const v1::GetPolicyVersionRequest& request) {
        return answer<v1::PolicySet>(authz.get_policy_version(ctx, request.version()));
      });
  service.unary<v1::DiffPolicyVersionsRequest, v1::DiffPolicyVersionsResponse>(
      "DiffPolicyVersions", {.idempotent = true},
      [&authz](const Context& ctx,
               const v1::DiffPolicyVersionsRequest& request) -> Result<v1::DiffPolicyVersionsResponse> {
        const auto differences = CRETO_TRY(authz.diff_policy_versions(ctx, request.from(), request.to()));
        v1::DiffPolicyVersionsResponse response;
        for (const PolicyDifference& difference : differences) {
          auto* one = response.add_differences();
          one->set_id(difference.id);
          one->set_before(difference.before);
          one->set_after(difference.after);
        }
        return response;
      });
  service.unary<v1::RollBackPoliciesRequest, v1::PolicyVersion>(
      "RollBackPolicies", {}, [&authz](const Context& ctx, const v1::RollBackPoliciesRequest& request) {
        return answer<v1::PolicyVersion>(authz.roll_back_policies(ctx, request.version(), request.expected_version()));
      });
  service.unary<v1::SetSchemaRequest, v1::PolicySchema>(
      "SetSchema", {.idempotent = true}, [&authz](const Context& ctx, const v1::SetSchemaRequest& request) {
        return answer<v1::PolicySchema>(authz.set_schema(ctx, request.text()));
      });
  service.unary<v1::GetSchemaRequest, v1::PolicySchema>("GetSchema", {.idempotent = true},
                                                        [&authz](const Context& ctx, const v1::GetSchemaRequest&) {
                                                          return answer<v1::PolicySchema>(authz.get_schema(ctx));
                                                        });
  service.unary<v1::ListExtensionsRequest, v1::ListExtensionsResponse>(
      "ListExtensions", {.idempotent = true},
      [&authz](const Context& ctx, const v1::ListExtensionsRequest&) -> Result<v1::ListExtensionsResponse> {
        const auto extensions = CRETO_TRY(authz.list_extensions(ctx));
        v1::ListExtensionsResponse response;
        for (const ExtensionStatus& one : extensions) to_proto(one, *response.add_extensions());
        return response;
      });

  service.unary<v1::PutEntitiesRequest, v1::PutEntitiesResponse>(
      "PutEntities", {.idempotent = true},
      [&authz](const Context& ctx, const v1::PutEntitiesRequest& request) -> Result<v1::PutEntitiesResponse> {
        std::vector<Entity> entities;
        for (const std::string& text : request.entities()) {
          Entity entity = CRETO_TRY(entity_from_text(text));
          entities.push_back(std::move(entity));
        }
        CRETO_TRY(authz.put_entities(ctx, std::move(entities)));
        return v1::PutEntitiesResponse();
      });
  service.unary<v1::DeleteEntitiesRequest, v1::DeleteEntitiesResponse>(
      "DeleteEntities", {.idempotent = true},
      [&authz](const Context& ctx, const v1::DeleteEntitiesRequest& request) -> Result<v1::DeleteEntitiesResponse> {
        std::vector<EntityUid> uids;
        for (const auto& one : request.uids()) {
          EntityUid uid = CRETO_TRY(from_proto(one));
          uids.push_back(std::move(uid));
        }
        CRETO_TRY(authz.delete_entities(ctx, std::move(uids)));
        return v1::DeleteEntitiesResponse();
      });
  service.unary<v1::ListEntitiesRequest, v1::ListEntitiesResponse>(
      "ListEntities", {.idempotent = true},
      [&authz](const Context& ctx, const v1::ListEntitiesRequest&) -> Result<v1::ListEntitiesResponse> {
        const auto entities = CRETO_TRY(authz.list_entities(ctx));
        v1::ListEntitiesResponse response;
        for (const Entity& entity : entities) response.add_entities(entity_to_text(entity));
        return response;
      });

  service.unary<v1::IssueOverrideRequest, v1::IssueOverrideResponse>(
      "IssueOverride", {.audited = true, .idempotent = true, .resource = of_request},
      [&authz](const Context& ctx, const v1::IssueOverrideRequest& request) -> Result<v1::IssueOverrideResponse> {
        const OverrideGrant grant = CRETO_TRY(from_proto(request));
        v1::IssueOverrideResponse response;
        *response.mutable_token() = CRETO_TRY(authz.issue_override(ctx, grant));
        return response;
      });
  service.unary<v1::RevokeOverrideRequest, v1::RevokeOverrideResponse>(
      "RevokeOverride", {.idempotent = true, .resource = of_request},
      [&authz](const Context& ctx, const v1::RevokeOverrideRequest& request) -> Result<v1::RevokeOverrideResponse> {
        const RequestId id = CRETO_TRY(proto::from_id<RequestId>(request.request_id(), "request_id"));
        CRETO_TRY(authz.revoke_override(ctx, id));
        return v1::RevokeOverrideResponse();
      });
  service.unary<v1::IsOverrideOpenRequest, v1::IsOverrideOpenResponse>(
      "IsOverrideOpen", {.idempotent = true, .resource = of_request},
      [&authz](const Context& ctx, const v1::IsOverrideOpenRequest& request) -> Result<v1::IsOverrideOpenResponse> {
        const RequestId id = CRETO_TRY(proto::from_id<RequestId>(request.request_id(), "request_id"));
        v1::IsOverrideOpenResponse response;
        const bool open = CRETO_TRY(authz.is_override_open(ctx, id));
        response.set_open(open);
        return response;
      });
  service.unary<v1::CheckRequest, v1::VerifyOverrideResponse>(
      "VerifyOverride", {.idempotent = true},
      [&authz](const Context& ctx, const v1::CheckRequest& request) -> Result<v1::VerifyOverrideResponse> {
        const CheckRequest check = CRETO_TRY(from_proto(request));
        return answer<v1::VerifyOverrideResponse>(authz.verify_override(ctx, check));
      });
}

}  // namespace creto::authz
