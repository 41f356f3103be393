#include "creto/io/rpc_channel.h"
#include "creto/nhi/nhi_rpc.h"
#include "delegation.h"
#include "rpc/convert.h"

namespace creto::nhi {
namespace {

constexpr rpc::CallOptions repeatable{.idempotent = true};

class NhiClient final : public Nhi {
 public:
  explicit NhiClient(std::shared_ptr<rpc::Channel> channel) : channel_(std::move(channel)) {}

  Result<Agent> register_agent(const Context& ctx, const NewAgent& agent) override {
    v1::RegisterAgentRequest request;
    to_proto(agent, request);
    return agent_from(ctx, "RegisterAgent", request);
  }
  Result<Agent> register_human(const Context& ctx, const Identity& human, const std::string& name,
                               const crypto::VerifyingKey& signing,
                               const std::optional<crypto::KemPublicKey>& kem) override {
    v1::RegisterHumanRequest request;
    request.set_identity(human.text());
    request.set_name(name);
    request.set_signing_algorithm(std::string(crypto::to_string(signing.algorithm())));
    request.set_signing_key(proto::to_text(signing.bytes()));
    if (kem) {
      request.set_kem_algorithm(std::string(crypto::to_string(kem->algorithm())));
      request.set_kem_key(proto::to_text(kem->bytes()));
    }
    return agent_from(ctx, "RegisterHuman", request, repeatable);
  }
  Result<Agent> ensure_service(const Context& ctx, const Identity& service) override {
    return agent_from(ctx, "EnsureService", about<v1::EnsureServiceRequest>(service), repeatable);
  }
  Result<Agent> update_agent(const Context& ctx, const Identity& identity, const AgentChange& change) override {
    auto request = about<v1::UpdateAgentRequest>(identity);
    to_proto(change, request);
    return agent_from(ctx, "UpdateAgent", request, repeatable);
  }
  Result<Agent> set_roles(const Context& ctx, const Identity& human, std::vector<std::string> roles) override {
    auto request = about<v1::SetRolesRequest>(human);
    for (std::string& role : roles) request.add_roles(std::move(role));
    return agent_from(ctx, "SetRoles", request, repeatable);
  }
  Result<Agent> revoke_agent(const Context& ctx, const Identity& identity, const std::string& reason) override {
    auto request = about<v1::RevokeAgentRequest>(identity);
    request.set_reason(reason);
    return agent_from(ctx, "RevokeAgent", request, repeatable);
  }
  Result<Agent> get_agent(const Context& ctx, const Identity& identity) override {
    return agent_from(ctx, "GetAgent", about<v1::GetAgentRequest>(identity), repeatable);
  }
  Result<std::vector<Agent>> list_agents(const Context& ctx, const AgentFilter& filter) override {
    v1::ListAgentsRequest request;
    to_proto(filter, request);
    auto response = CRETO_TRY(call<v1::ListAgentsResponse>(ctx, "ListAgents", request, repeatable));
    std::vector<Agent> agents;
    for (const v1::Agent& one : response.agents()) {
      auto agent = CRETO_TRY(from_proto(one));
      agents.push_back(std::move(agent));
    }
    return agents;
  }
  Result<Agent> find_agent(const Context& ctx, const std::string& identity_or_name) override {
    v1::GetAgentRequest request;
    request.set_identity(identity_or_name);
    return agent_from(ctx, "GetAgent", request, repeatable);
  }
  Result<bool> is_registered(const Context& ctx, const Identity& identity) override {
    auto response = CRETO_TRY(
        call<v1::IsRegisteredResponse>(ctx, "IsRegistered", about<v1::IsRegisteredRequest>(identity), repeatable));
    return response.registered();
  }
  Result<bool> is_revoked(const Context& ctx, const Identity& identity) override {
    auto response =
        CRETO_TRY(call<v1::IsRevokedResponse>(ctx, "IsRevoked", about<v1::IsRevokedRequest>(identity), repeatable));
    return response.revoked();
  }

  Result<ResolvedToken> resolve_token(const Context& ctx, const std::string& token) override {
    v1::ResolveTokenRequest request;
    request.set_token(token);
    auto response = CRETO_TRY(call<v1::ResolveTokenResponse>(ctx, "ResolveToken", request, repeatable));
    auto agent = CRETO_TRY(from_proto(response.agent()));
    auto expires_at = CRETO_TRY(proto::from_time(response.expires_at(), "expires_at"));
    return ResolvedToken{response.org(), std::move(agent), response.token_id(), expires_at};
  }
  Result<std::string> issue_token(const Context& ctx, const Identity& identity, Nanos valid_for) override {
    auto request = about<v1::IssueTokenRequest>(identity);
    proto::set_duration(request.mutable_valid_for(), valid_for);
    auto response = CRETO_TRY(call<v1::IssueTokenResponse>(ctx, "IssueToken", request));
    return response.token();
  }

  Result<Delegation> create_delegation(const Context& ctx, const NewDelegation& delegation) override {
    v1::CreateDelegationRequest request;
    to_proto(delegation, request);
    auto response =
        CRETO_TRY(call<v1::Delegation>(ctx, "CreateDelegation", request, {.idempotent = delegation.id.has_value()}));
    return from_proto(response);
  }
  Result<Chain> get_delegation_chain(const Context& ctx, const Identity& identity,
                                     const std::optional<DelegationId>& leaf) override {
    auto request = about<v1::GetDelegationChainRequest>(identity);
    if (leaf) request.set_leaf(leaf->to_string());
    auto response = CRETO_TRY(call<v1::DelegationChain>(ctx, "GetDelegationChain", request, repeatable));
    return from_proto(response);
  }
  Result<PastChain> get_past_delegation_chain(const Context& ctx, const Identity& identity, Instant when) override {
    auto request = about<v1::GetPastDelegationChainRequest>(identity);
    proto::set_time(request.mutable_at(), when);
    auto response = CRETO_TRY(call<v1::PastDelegationChain>(ctx, "GetPastDelegationChain", request, repeatable));
    return from_proto(response);
  }
  Result<> verify_delegation(const Context& ctx, const Chain& chain) override {
    v1::DelegationChain request;
    to_proto(chain, request);
    CRETO_TRY(call<v1::VerifyDelegationResponse>(ctx, "VerifyDelegation", request, repeatable));
    return {};
  }
  Result<> revoke_delegation(const Context& ctx, const DelegationId& id) override {
    v1::RevokeDelegationRequest request;
    request.set_id(id.to_string());
    CRETO_TRY(call<v1::RevokeDelegationResponse>(ctx, "RevokeDelegation", request, repeatable));
    return {};
  }

  Result<PublicKeys> get_public_keys(const Context& ctx, const Identity& identity) override {
    auto response = CRETO_TRY(
        call<v1::AgentPublicKeys>(ctx, "GetPublicKeys", about<v1::GetPublicKeysRequest>(identity), repeatable));
    return from_proto(response);
  }
  Result<std::vector<PublicKeys>> key_sets(const Context& ctx, const Identity& identity) override {
    auto response = CRETO_TRY(
        call<v1::ListKeySetsResponse>(ctx, "ListKeySets", about<v1::ListKeySetsRequest>(identity), repeatable));
    std::vector<PublicKeys> sets;
    for (const v1::AgentPublicKeys& one : response.sets()) {
      auto set = CRETO_TRY(from_proto(one));
      sets.push_back(std::move(set));
    }
    CRETO_TRY(check_succession(ctx.org, identity, sets));
    return sets;
  }
  Result<PublicKeys> rotate_keys(const Context& ctx, const Identity& identity, const KeyRotation& rotation) override {
    auto request = about<v1::RotateKeysRequest>(identity);
    to_proto(rotation, request);
    auto response =
        CRETO_TRY(call<v1::AgentPublicKeys>(ctx, "RotateKeys", request, {.idempotent = rotation.next.has_value()}));
    return from_proto(response);
  }
  Result<Signature> sign(const Context& ctx, const Identity& identity, BytesView data,
                         std::string_view context) override {
    auto request = about<v1::SignRequest>(identity);
    request.set_data(proto::to_text(data));
    request.set_context(std::string(context));
    auto response = CRETO_TRY(call<common::v1::Signature>(ctx, "Sign", request, repeatable));
    return proto::from_signature(response);
  }
  Result<> verify(const Context& ctx, const Identity& identity, BytesView data, const Signature& signature,
                  std::string_view context) override {
    return verified(ctx, verification(identity, data, signature, context));
  }
  Result<> verify_past(const Context& ctx, const Identity& identity, BytesView data, const Signature& signature,
                       std::string_view context, Instant when, std::optional<Instant> told) override {
    auto request = verification(identity, data, signature, context);
    proto::set_time(request.mutable_at(), when);
    if (told) proto::set_time(request.mutable_told(), *told);
    return verified(ctx, request);
  }
  Result<Secret> decapsulate(const Context&, const Identity&, std::string_view, BytesView) override {
    return refuse(ErrorKind::unavailable, "shared secrets do not travel: decapsulate where nhi runs")
        .with_retryable(false);
  }

  Result<PrekeyCount> publish_key_bundle(const Context& ctx, const Identity& identity,
                                         const KeyBundleUpload& bundle) override {
    auto request = about<v1::PublishKeyBundleRequest>(identity);
    to_proto(bundle, request);
    return count_from(ctx, "PublishKeyBundle", request);
  }
  Result<KeyBundle> take_key_bundle(const Context& ctx, const Identity& identity) override {
    auto response = CRETO_TRY(call<v1::KeyBundle>(ctx, "TakeKeyBundle", about<v1::TakeKeyBundleRequest>(identity)));
    return from_proto(response);
  }
  Result<PrekeyCount> prekey_count(const Context& ctx, const Identity& identity) override {
    return count_from(ctx, "GetPrekeyCount", about<v1::GetPrekeyCountRequest>(identity));
  }

  Result<> refresh(const Context&) override { return {}; }

  HealthStatus health() override {
    Context ctx;
    auto answered = is_registered(ctx, Identity::service("nhi").value());
    if (answered || category_of(answered.error().kind()) != ErrorCategory::transient) return {};
    return {Health::unhealthy, answered.error().to_string()};
  }

 private:
  static v1::VerifyRequest verification(const Identity& identity, BytesView data, const Signature& signature,
                                        std::string_view context) {
    auto request = about<v1::VerifyRequest>(identity);
    request.set_data(proto::to_text(data));
    request.set_context(std::string(context));
    proto::set_signature(request.mutable_signature(), signature);
    return request;
  }
  Result<> verified(const Context& ctx, const v1::VerifyRequest& request) {
    CRETO_TRY(call<v1::VerifyResponse>(ctx, "Verify", request, repeatable));
    return {};
  }
  template <class Res, class Req>
  Result<Res> call(const Context& ctx, std::string_view method, const Req& request, rpc::CallOptions options = {}) {
    return channel_->call<Req, Res>(ctx, "/creto.nhi.v1.NhiService/" + std::string(method), request, options);
  }
  template <class Req>
  static Req about(const Identity& identity) {
    Req request;
    request.set_identity(identity.text());
    return request;
  }
  template <class Req>
  Result<Agent> agent_from(const Context& ctx, std::string_view method, const Req& request,
                           rpc::CallOptions options = {}) {
    auto response = CRETO_TRY(call<v1::Agent>(ctx, method, request, options));
    return from_proto(response);
  }
  template <class Req>
  Result<PrekeyCount> count_from(const Context& ctx, std::string_view method, const Req& request) {
    auto response = CRETO_TRY(call<v1::PrekeyCount>(ctx, method, request, repeatable));
    return PrekeyCount{response.one_time(), response.one_time_kem()};
  }

  std::shared_ptr<rpc::Channel> channel_;
};

}  // namespace

std::unique_ptr<Nhi> create_nhi_client(std::shared_ptr<rpc::Channel> channel) {
  return std::make_unique<NhiClient>(std::move(channel));
}

}  // namespace creto::nhi
