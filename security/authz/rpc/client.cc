#include <algorithm>

#include "creto/authz/authz_rpc.h"
#include "creto/io/rpc_channel.h"
#include "creto/io/sql.h"
#include "override_use.h"
#include "rpc/convert.h"
#include "store.h"

namespace creto::authz {
namespace {

constexpr rpc::CallOptions repeatable{.idempotent = true};
constexpr std::size_t page_max = 1'000;

class AuthzClient final : public Authz {
 public:
  AuthzClient(std::shared_ptr<rpc::Channel> channel, const Clock& clock)
      : channel_(std::move(channel)), clock_(clock) {}

  Decision check(const Context& ctx, const CheckRequest& request) override {
    return decide(ctx, "Check", request, repeatable);
  }
  Decision admit(const Context& ctx, const CheckRequest& request) override { return decide(ctx, "Admit", request, {}); }

  Decision check_naming(const Context& ctx, const CheckRequest& request, bool counts,
                        std::vector<PolicyId>& matched) override {
    matched.clear();
    v1::CheckRequest proto;
    to_proto(request, proto);
    proto.set_name_policies(true);
    return counts ? decide(ctx, "Admit", proto, {}, &matched) : decide(ctx, "Check", proto, repeatable, &matched);
  }

  std::vector<Decision> check_batch(const Context& ctx, std::span<const CheckRequest> requests) override {
    v1::CheckBatchRequest proto;
    for (const CheckRequest& request : requests) to_proto(request, *proto.add_requests());
    auto response = call<v1::CheckBatchResponse>(ctx, "CheckBatch", proto, repeatable);
    std::vector<Decision> decisions;
    for (int i = 0; i < static_cast<int>(requests.size()); ++i) {
      if (!response) {
        decisions.push_back(not_decided(response.error()));
        continue;
      }
      if (i >= response->decisions_size()) {
        decisions.push_back(not_decided(proto::bad_field("decisions", "are fewer than the requests")));
        continue;
      }
      auto decision = from_proto(response->decisions(i));
      decisions.push_back(decision ? *std::move(decision) : not_decided(decision.error()));
    }
    return decisions;
  }

  Explanation explain(const Context& ctx, const CheckRequest& request) override {
    v1::CheckRequest proto;
    to_proto(request, proto);
    const auto failed = [](const Error& error) {
      return Explanation{.decision = not_decided(error), .decided_by = "trouble"};
    };
    auto response = call<v1::ExplainResponse>(ctx, "Explain", proto, repeatable);
    if (!response) return failed(response.error());
    auto explanation = from_proto(*response);
    if (!explanation) return failed(explanation.error());
    return *std::move(explanation);
  }

  Result<ResourceFilter> filter_resources(const Context& ctx, const FilterQuestion& question) override {
    v1::FilterResourcesRequest request;
    to_proto(question, request);
    const auto response = CRETO_TRY(call<v1::FilterResourcesResponse>(ctx, "FilterResources", request, repeatable));
    return from_proto(response);
  }

  Result<Policy> create_policy(const Context& ctx, const PolicyId& id, std::string text) override {
    v1::CreatePolicyRequest request;
    request.set_id(id);
    request.set_text(std::move(text));
    const auto response = CRETO_TRY(call<v1::Policy>(ctx, "CreatePolicy", request, by_key(ctx)));
    return from_proto(response);
  }
  Result<Policy> update_policy(const Context& ctx, const PolicyId& id, std::string text,
                               std::int64_t expected_version) override {
    v1::UpdatePolicyRequest request;
    request.set_id(id);
    request.set_text(std::move(text));
    request.set_expected_version(expected_version);
    const auto response = CRETO_TRY(call<v1::Policy>(ctx, "UpdatePolicy", request, by_key(ctx)));
    return from_proto(response);
  }
  Result<> delete_policy(const Context& ctx, const PolicyId& id) override {
    v1::DeletePolicyRequest request;
    request.set_id(id);
    CRETO_TRY(call<v1::DeletePolicyResponse>(ctx, "DeletePolicy", request, {}));
    return {};
  }
  Result<std::vector<Policy>> list_policies(const Context& ctx, const PolicyId& after, std::size_t limit) override {
    v1::ListPoliciesRequest request;
    request.set_after(after);
    std::vector<Policy> policies;
    while (policies.size() < limit) {
      request.set_limit(static_cast<std::uint32_t>(std::min(limit - policies.size(), page_max)));
      const auto page = CRETO_TRY(call<v1::ListPoliciesResponse>(ctx, "ListPolicies", request, repeatable));
      CRETO_TRY(add_page(page, policies));
      if (!page.more()) break;
      request.set_after(policies.back().id);
    }
    return policies;
  }

  Result<Policy> link_policy(const Context& ctx, const PolicyLink& link) override {
    v1::PolicyLink request;
    to_proto(link, request);
    const auto response = CRETO_TRY(call<v1::Policy>(ctx, "LinkPolicy", request, by_key(ctx)));
    return from_proto(response);
  }
  Result<std::vector<PolicyLink>> list_policy_links(const Context& ctx, const PolicyId& template_id) override {
    v1::ListPolicyLinksRequest request;
    request.set_template_id(template_id);
    std::vector<PolicyLink> links;
    while (true) {
      const auto page = CRETO_TRY(call<v1::ListPolicyLinksResponse>(ctx, "ListPolicyLinks", request, repeatable));
      for (const auto& one : page.links()) {
        PolicyLink link = CRETO_TRY(from_proto(one));
        links.push_back(std::move(link));
      }
      if (!page.more()) return links;
      if (page.links().empty()) return proto::bad_field("links", "are none, though there are more");
      request.set_after(links.back().id);
    }
  }
  Result<> unlink_policy(const Context& ctx, const PolicyId& id) override {
    v1::UnlinkPolicyRequest request;
    request.set_id(id);
    CRETO_TRY(call<v1::UnlinkPolicyResponse>(ctx, "UnlinkPolicy", request, {}));
    return {};
  }

  Result<AppliedPolicies> apply_policies(const Context& ctx, const PolicyApplication& application) override {
    v1::ApplyPoliciesRequest request;
    to_proto(application, request);
    const auto response = CRETO_TRY(call<v1::ApplyPoliciesResponse>(ctx, "ApplyPolicies", request, by_key(ctx)));
    return from_proto(response);
  }
  Result<std::vector<PolicyVersion>> list_policy_versions(const Context& ctx, std::int64_t before,
                                                          std::size_t limit) override {
    if (limit == 0 || limit > 1'000)
      return Error(Product::platform, ErrorKind::invalid_input, "limit: must be 1 to 1000");
    v1::ListPolicyVersionsRequest request;
    request.set_before(before);
    request.set_limit(static_cast<std::uint32_t>(limit));
    const auto response =
        CRETO_TRY(call<v1::ListPolicyVersionsResponse>(ctx, "ListPolicyVersions", request, repeatable));
    std::vector<PolicyVersion> versions;
    for (const auto& one : response.versions()) {
      PolicyVersion version = CRETO_TRY(from_proto(one));
      versions.push_back(std::move(version));
    }
    return versions;
  }
  Result<VersionedPolicies> get_policy_version(const Context& ctx, std::int64_t version) override {
    v1::GetPolicyVersionRequest request;
    request.set_version(version);
    auto page = CRETO_TRY(call<v1::PolicySet>(ctx, "GetPolicyVersion", request, repeatable));
    VersionedPolicies set = CRETO_TRY(from_proto(page));
    request.set_version(set.version.version);
    while (page.more()) {
      request.set_after(page.policies().empty() ? "" : page.policies().rbegin()->id());
      page = CRETO_TRY(call<v1::PolicySet>(ctx, "GetPolicyVersion", request, repeatable));
      CRETO_TRY(add_page(page, set.policies));
    }
    return set;
  }
  Result<std::vector<PolicyDifference>> diff_policy_versions(const Context& ctx, std::int64_t from,
                                                             std::int64_t to) override {
    v1::DiffPolicyVersionsRequest request;
    request.set_from(from);
    request.set_to(to);
    const auto response =
        CRETO_TRY(call<v1::DiffPolicyVersionsResponse>(ctx, "DiffPolicyVersions", request, repeatable));
    std::vector<PolicyDifference> differences;
    for (const auto& one : response.differences()) differences.push_back({one.id(), one.before(), one.after()});
    return differences;
  }
  Result<PolicyVersion> roll_back_policies(const Context& ctx, std::int64_t version,
                                           std::int64_t expected_version) override {
    v1::RollBackPoliciesRequest request;
    request.set_version(version);
    request.set_expected_version(expected_version);
    const auto response = CRETO_TRY(call<v1::PolicyVersion>(ctx, "RollBackPolicies", request, by_key(ctx)));
    return from_proto(response);
  }
  Result<PolicySchema> set_schema(const Context& ctx, std::string text) override {
    v1::SetSchemaRequest request;
    request.set_text(std::move(text));
    const auto response = CRETO_TRY(call<v1::PolicySchema>(ctx, "SetSchema", request, repeatable));
    return from_proto(response);
  }
  Result<PolicySchema> get_schema(const Context& ctx) override {
    const auto response = CRETO_TRY(call<v1::PolicySchema>(ctx, "GetSchema", v1::GetSchemaRequest(), repeatable));
    return from_proto(response);
  }

  Result<EntityChanges> put_entities(const Context& ctx, std::vector<Entity> entities, bool dry_run) override {
    v1::PutEntitiesRequest request;
    for (const Entity& entity : entities) request.add_entities(entity_to_text(entity));
    request.set_dry_run(dry_run);
    const auto response = CRETO_TRY(call<v1::PutEntitiesResponse>(ctx, "PutEntities", request, repeatable));
    const auto number = [](std::int64_t count) { return static_cast<std::size_t>(std::max<std::int64_t>(count, 0)); };
    return EntityChanges{number(response.added()), number(response.changed()), number(response.same())};
  }
  Result<> delete_entities(const Context& ctx, std::vector<EntityUid> uids) override {
    v1::DeleteEntitiesRequest request;
    for (const EntityUid& uid : uids) to_proto(uid, *request.add_uids());
    CRETO_TRY(call<v1::DeleteEntitiesResponse>(ctx, "DeleteEntities", request, repeatable));
    return {};
  }
  Result<std::vector<Entity>> list_entities(const Context& ctx, const EntityUid& after, std::size_t limit) override {
    v1::ListEntitiesRequest request;
    to_proto(after, *request.mutable_after());
    std::vector<Entity> entities;
    while (entities.size() < limit) {
      request.set_limit(static_cast<std::uint32_t>(std::min(limit - entities.size(), page_max)));
      const auto page = CRETO_TRY(call<v1::ListEntitiesResponse>(ctx, "ListEntities", request, repeatable));
      for (const std::string& text : page.entities()) {
        Entity entity = CRETO_TRY(entity_from_text(text));
        entities.push_back(std::move(entity));
      }
      if (!page.more()) break;
      if (page.entities().empty()) return proto::bad_field("entities", "are none, though there are more");
      to_proto(entities.back().uid, *request.mutable_after());
    }
    return entities;
  }
  Result<PlacedEntity> get_entity(const Context& ctx, const EntityUid& uid) override {
    v1::GetEntityRequest request;
    to_proto(uid, *request.mutable_uid());
    const auto response = CRETO_TRY(call<v1::GetEntityResponse>(ctx, "GetEntity", request, repeatable));
    Entity entity = CRETO_TRY(entity_from_text(response.entity()));
    PlacedEntity placed{std::move(entity), {}};
    for (const auto& one : response.ancestors()) {
      EntityUid ancestor = CRETO_TRY(from_proto(one));
      placed.ancestors.push_back(std::move(ancestor));
    }
    return placed;
  }

  Result<std::string> issue_override(const Context& ctx, const OverrideGrant& grant) override {
    v1::IssueOverrideRequest request;
    to_proto(grant, request);
    const auto response = CRETO_TRY(call<v1::IssueOverrideResponse>(ctx, "IssueOverride", request, repeatable));
    return response.token();
  }
  Result<> revoke_override(const Context& ctx, const RequestId& id) override {
    v1::RevokeOverrideRequest request;
    request.set_request_id(id.to_string());
    CRETO_TRY(call<v1::RevokeOverrideResponse>(ctx, "RevokeOverride", request, repeatable));
    return {};
  }
  Result<bool> is_override_open(const Context& ctx, const RequestId& id) override {
    v1::IsOverrideOpenRequest request;
    request.set_request_id(id.to_string());
    const auto response = CRETO_TRY(call<v1::IsOverrideOpenResponse>(ctx, "IsOverrideOpen", request, repeatable));
    return response.open();
  }
  Result<VerifiedOverride> verify_override(const Context& ctx, const CheckRequest& request) override {
    v1::CheckRequest proto;
    to_proto(request, proto);
    const auto response = CRETO_TRY(call<v1::VerifyOverrideResponse>(ctx, "VerifyOverride", proto, repeatable));
    return from_proto(response);
  }
  Result<> consume_override(sql::Tx& tx, const Context& ctx, const CheckRequest& request,
                            std::string_view operation_id) override {
    CRETO_TRY(verify_override(ctx, request));
    const OverrideToken token = CRETO_TRY(read_override_token(request.override_token));
    return use_token(tx, ctx, token, request, operation_id, clock_.now());
  }

  Result<> register_extension(Extension&) override {
    return Error(Product::platform, ErrorKind::invalid_input, "extensions are registered where the service runs");
  }
  Result<> register_source(const ResourceSource&) override {
    return Error(Product::platform, ErrorKind::invalid_input, "sources are registered where the service runs");
  }
  Result<std::vector<ExtensionStatus>> list_extensions(const Context& ctx) override {
    const auto response =
        CRETO_TRY(call<v1::ListExtensionsResponse>(ctx, "ListExtensions", v1::ListExtensionsRequest(), repeatable));
    std::vector<ExtensionStatus> all;
    for (const auto& one : response.extensions()) {
      ExtensionStatus status = CRETO_TRY(from_proto(one));
      all.push_back(std::move(status));
    }
    return all;
  }
  Result<> refresh(const Context&) override { return {}; }

 private:
  static Decision not_decided(const Error& error) {
    return Deny{.reason = "authorization did not answer: " + error.message(), .policy = {}, .transient = true};
  }

  Decision decide(const Context& ctx, std::string_view method, const CheckRequest& request, rpc::CallOptions options) {
    v1::CheckRequest proto;
    to_proto(request, proto);
    return decide(ctx, method, proto, options);
  }
  Decision decide(const Context& ctx, std::string_view method, const v1::CheckRequest& request,
                  rpc::CallOptions options, std::vector<PolicyId>* matched = nullptr) {
    auto response = call<v1::CheckResponse>(ctx, method, request, options);
    if (!response) return not_decided(response.error());
    if (matched) matched->assign(response->matched_policies().begin(), response->matched_policies().end());
    auto decision = from_proto(response->decision());
    if (!decision) return not_decided(decision.error());
    return *std::move(decision);
  }

  /// Adds the policies of a page that is not the last one and empty.
  template <class Page>
  static Result<> add_page(const Page& page, std::vector<Policy>& policies) {
    if (page.more() && page.policies().empty()) return proto::bad_field("policies", "are none, though there are more");
    for (const auto& one : page.policies()) {
      Policy policy = CRETO_TRY(from_proto(one));
      policies.push_back(std::move(policy));
    }
    return {};
  }

  /// A change may be sent again where its key makes it one.
  static rpc::CallOptions by_key(const Context& ctx) { return {.idempotent = !ctx.idempotency_key.empty()}; }

  template <class Res, class Req>
  Result<Res> call(const Context& ctx, std::string_view method, const Req& request, rpc::CallOptions options) {
    return channel_->call<Req, Res>(ctx, "/creto.authz.v1.AuthzService/" + std::string(method), request, options);
  }

  std::shared_ptr<rpc::Channel> channel_;
  const Clock& clock_;
};

}  // namespace

Result<std::unique_ptr<Authz>> create_authz_client(std::shared_ptr<rpc::Channel> channel, sql::Database& database,
                                                   const Clock& clock) {
  CRETO_TRY(store::migrate(database));
  return std::unique_ptr<Authz>(std::make_unique<AuthzClient>(std::move(channel), clock));
}

}  // namespace creto::authz
