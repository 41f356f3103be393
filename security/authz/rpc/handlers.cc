#include <fmt/format.h>

#include <algorithm>

#include "creto/authz/authz_rpc.h"
#include "creto/io/proto_answer.h"
#include "creto/io/rpc.h"
#include "rpc/convert.h"

namespace creto::authz {
namespace {

using proto::answer;

constexpr std::uint32_t page_max = 1'000;
constexpr std::size_t page_bytes_max = 4 << 20;
constexpr std::size_t check_bytes_max = 1 << 20;   // a context of 256 KiB, however it is written
constexpr std::size_t apply_bytes_max = 64 << 20;  // 10 000 policies of 6 KiB

/// Puts those of `all`, which are sorted, that come behind `is_behind` into a page: `add` returns what one takes.
/// Returns whether there are more.
template <class T, class IsBehind, class Add>
bool add_page(const std::vector<T>& all, std::uint32_t limit, IsBehind&& is_behind, Add&& add) {
  if (limit == 0) limit = page_max;
  auto at = std::partition_point(all.begin(), all.end(), [&](const T& one) { return !is_behind(one); });
  for (std::size_t bytes = 0; at != all.end() && limit > 0 && bytes < page_bytes_max; ++at, --limit) bytes += add(*at);
  return at != all.end();
}

Result<> check_limit(std::uint32_t limit) {
  if (limit <= page_max) return {};
  return proto::bad_field("limit", fmt::format("must be at most {}", page_max));
}

/// A page of policies, for an answer that has `policies` and `more`.
template <class Request, class Response>
void add_policies(const std::vector<Policy>& all, const Request& request, Response& response) {
  const auto behind = [&](const Policy& policy) { return policy.id > request.after(); };
  response.set_more(add_page(all, request.limit(), behind, [&](const Policy& policy) {
    auto* one = response.add_policies();
    to_proto(policy, *one);
    return one->ByteSizeLong();
  }));
}

/// Errors: the one that is wrong; of several, what is wrong in up to 100, one a line.
Result<std::vector<Entity>> entities_from(const v1::PutEntitiesRequest& request) {
  std::vector<Entity> entities;
  std::vector<Error> wrong;
  for (const std::string& text : request.entities()) {
    auto entity = entity_from_text(text);
    if (entity) entities.push_back(*std::move(entity));
    if (!entity && wrong.size() < 100) wrong.push_back(std::move(entity).error());
  }
  if (wrong.empty()) return entities;
  if (wrong.size() == 1) return wrong.front();
  std::string all;
  for (const Error& error : wrong) all += (all.empty() ? "" : "\n") + error.message();
  return Error(Product::platform, ErrorKind::invalid_input, std::move(all));
}

constexpr auto of_policy = [](const auto& request) { return rpc::Resource{"Policy", request.id()}; };
constexpr auto of_request = [](const auto& request) { return rpc::Resource{"Approval", request.request_id()}; };

// Who reads policies, or asks what somebody may do, is in the audit log.

/// Whom a question is about: policies say whose affairs one may look into.
rpc::Resource asked_about(const v1::CheckRequest& request) {
  const auto principal = Identity::parse(request.principal());
  if (!principal) return {};
  EntityUid uid = entity_of(*principal);
  return {std::move(uid.type), std::move(uid.id)};
}
rpc::Resource asked_about_whom(const v1::FilterResourcesRequest& request) { return asked_about(request.request()); }

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
  service.unary<v1::CheckRequest, v1::CheckResponse>(
      "Check", {.inline_call = true, .idempotent = true, .request_bytes_max = check_bytes_max}, decide(false));
  service.unary<v1::CheckRequest, v1::CheckResponse>(
      "Admit", {.inline_call = true, .request_bytes_max = check_bytes_max}, decide(true));
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
      "Explain", {.audited = true, .idempotent = true, .resource = asked_about, .request_bytes_max = check_bytes_max},
      [&authz](const Context& ctx, const v1::CheckRequest& request) -> Result<v1::ExplainResponse> {
        const CheckRequest check = CRETO_TRY(from_proto(request));
        v1::ExplainResponse response;
        to_proto(authz.explain(ctx, check), response);
        return response;
      });

  service.unary<v1::FilterResourcesRequest, v1::FilterResourcesResponse>(
      "FilterResources", {.audited = true, .idempotent = true, .resource = asked_about_whom},
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
      "ListPolicies", {.audited = true, .idempotent = true},
      [&authz](const Context& ctx, const v1::ListPoliciesRequest& request) -> Result<v1::ListPoliciesResponse> {
        CRETO_TRY(check_limit(request.limit()));
        const std::uint32_t limit = request.limit() == 0 ? page_max : request.limit();
        const auto policies = CRETO_TRY(authz.list_policies(ctx, request.after(), limit + std::size_t{1}));
        v1::ListPoliciesResponse response;
        add_policies(policies, request, response);
        return response;
      });

  service.unary<v1::PolicyLink, v1::Policy>(
      "LinkPolicy", {.resource = of_policy},
      [&authz](const Context& ctx, const v1::PolicyLink& request) -> Result<v1::Policy> {
        const PolicyLink link = CRETO_TRY(from_proto(request));
        return answer<v1::Policy>(authz.link_policy(ctx, link));
      });
  service.unary<v1::ListPolicyLinksRequest, v1::ListPolicyLinksResponse>(
      "ListPolicyLinks", {.audited = true, .idempotent = true},
      [&authz](const Context& ctx, const v1::ListPolicyLinksRequest& request) -> Result<v1::ListPolicyLinksResponse> {
        CRETO_TRY(check_limit(request.limit()));
        const auto links = CRETO_TRY(authz.list_policy_links(ctx, request.template_id()));
        v1::ListPolicyLinksResponse response;
        const auto behind = [&](const PolicyLink& link) { return link.id > request.after(); };
        response.set_more(add_page(links, request.limit(), behind, [&](const PolicyLink& link) {
          auto* one = response.add_links();
          to_proto(link, *one);
          return one->ByteSizeLong();
        }));
        return response;
      });
  service.unary<v1::UnlinkPolicyRequest, v1::UnlinkPolicyResponse>(
      "UnlinkPolicy", {.resource = of_policy},
      [&authz](const Context& ctx, const v1::UnlinkPolicyRequest& request) -> Result<v1::UnlinkPolicyResponse> {
        CRETO_TRY(authz.unlink_policy(ctx, request.id()));
        return v1::UnlinkPolicyResponse();
      });

  service.unary<v1::ApplyPoliciesRequest, v1::ApplyPoliciesResponse>(
      "ApplyPolicies", {.request_bytes_max = apply_bytes_max},
      [&authz](const Context& ctx, const v1::ApplyPoliciesRequest& request) {
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
      "GetPolicyVersion", {.audited = true, .idempotent = true},
      [&authz](const Context& ctx, const v1::GetPolicyVersionRequest& request) -> Result<v1::PolicySet> {
        CRETO_TRY(check_limit(request.limit()));
        const VersionedPolicies set = CRETO_TRY(authz.get_policy_version(ctx, request.version()));
        v1::PolicySet response;
        to_proto(set.version, *response.mutable_version());
        if (request.after().empty()) response.set_schema(set.schema);
        add_policies(set.policies, request, response);
        return response;
      });
  service.unary<v1::DiffPolicyVersionsRequest, v1::DiffPolicyVersionsResponse>(
      "DiffPolicyVersions", {.audited = true, .idempotent = true},
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
        auto entities = CRETO_TRY(entities_from(request));
        const EntityChanges changes = CRETO_TRY(authz.put_entities(ctx, std::move(entities), request.dry_run()));
        v1::PutEntitiesResponse response;
        response.set_added(static_cast<std::int64_t>(changes.added));
        response.set_changed(static_cast<std::int64_t>(changes.changed));
        response.set_same(static_cast<std::int64_t>(changes.same));
        return response;
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
      [&authz](const Context& ctx, const v1::ListEntitiesRequest& request) -> Result<v1::ListEntitiesResponse> {
        CRETO_TRY(check_limit(request.limit()));
        const EntityUid after{request.after().type(), request.after().id()};
        const std::uint32_t limit = request.limit() == 0 ? page_max : request.limit();
        const auto entities = CRETO_TRY(authz.list_entities(ctx, after, limit + std::size_t{1}));
        v1::ListEntitiesResponse response;
        const auto all = [](const Entity&) { return true; };
        response.set_more(add_page(entities, limit, all, [&](const Entity& entity) {
          response.add_entities(entity_to_text(entity));
          return response.entities(response.entities_size() - 1).size();
        }));
        return response;
      });
  service.unary<v1::GetEntityRequest, v1::GetEntityResponse>(
      "GetEntity", {.idempotent = true},
      [&authz](const Context& ctx, const v1::GetEntityRequest& request) -> Result<v1::GetEntityResponse> {
        const EntityUid uid = CRETO_TRY(from_proto(request.uid()));
        const PlacedEntity placed = CRETO_TRY(authz.get_entity(ctx, uid));
        v1::GetEntityResponse response;
        response.set_entity(entity_to_text(placed.entity));
        for (const EntityUid& ancestor : placed.ancestors) to_proto(ancestor, *response.add_ancestors());
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
