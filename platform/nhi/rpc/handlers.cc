// How a module's methods are served: one registration per method, each only conversion and the call. Everything else
// (who calls, may they, deadline, trace, idempotency key, errors, audit of refusals) the dispatcher has done or will
// do. Copy this shape:
//
//   rpc/convert.h   to_proto (total), from_proto (Result, names the field)
//   rpc/handlers.cc register_<module>(Dispatcher&, <Module>&)
//   rpc/client.cc   the same interface over a Channel
#include "creto/io/proto_answer.h"
#include "creto/io/rpc.h"
#include "creto/nhi/nhi_rpc.h"
#include "rpc/convert.h"

namespace creto::nhi {
namespace {

using proto::answer;

rpc::Resource agent(const std::string& identity) {
  if (identity.starts_with("human:")) return {"Human", identity};
  if (identity.starts_with("service:")) return {"Service", identity};
  return {"Agent", identity};
}

/// For requests that are about one identity.
constexpr auto of_identity = [](const auto& request) { return agent(request.identity()); };

}  // namespace

void register_nhi(rpc::Dispatcher& dispatcher, Nhi& nhi) {
  auto service = dispatcher.service("creto.nhi.v1.NhiService");
  using enum rpc::Access;

  service.unary<v1::RegisterAgentRequest, v1::Agent>(
      "RegisterAgent", {}, [&nhi](const Context& ctx, const v1::RegisterAgentRequest& request) -> Result<v1::Agent> {
        auto wanted = CRETO_TRY(from_proto(request));
        return answer<v1::Agent>(nhi.register_agent(ctx, wanted));
      });
  service.unary<v1::RegisterHumanRequest, v1::Agent>(
      "RegisterHuman", {.idempotent = true},
      [&nhi](const Context& ctx, const v1::RegisterHumanRequest& request) -> Result<v1::Agent> {
        auto human = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        auto algorithm = CRETO_TRY(crypto::parse_signature_algorithm(request.signing_algorithm()));
        auto signing = CRETO_TRY(crypto::VerifyingKey::parse(algorithm, as_bytes(request.signing_key())));
        std::optional<crypto::KemPublicKey> kem;
        if (!request.kem_algorithm().empty()) {
          auto kem_algorithm = CRETO_TRY(crypto::parse_kem_algorithm(request.kem_algorithm()));
          kem = CRETO_TRY(crypto::KemPublicKey::parse(kem_algorithm, as_bytes(request.kem_key())));
        }
        return answer<v1::Agent>(nhi.register_human(ctx, human, request.name(), signing, kem));
      });
  service.unary<v1::EnsureServiceRequest, v1::Agent>(
      "EnsureService", {.idempotent = true},
      [&nhi](const Context& ctx, const v1::EnsureServiceRequest& request) -> Result<v1::Agent> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        return answer<v1::Agent>(nhi.ensure_service(ctx, identity));
      });
  service.unary<v1::UpdateAgentRequest, v1::Agent>(
      "UpdateAgent", {.idempotent = true, .resource = of_identity},
      [&nhi](const Context& ctx, const v1::UpdateAgentRequest& request) -> Result<v1::Agent> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        auto change = CRETO_TRY(from_proto(request));
        return answer<v1::Agent>(nhi.update_agent(ctx, identity, change));
      });
  service.unary<v1::SetRolesRequest, v1::Agent>(
      "SetRoles", {.idempotent = true, .resource = of_identity},
      [&nhi](const Context& ctx, const v1::SetRolesRequest& request) -> Result<v1::Agent> {
        auto human = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        return answer<v1::Agent>(nhi.set_roles(ctx, human, {request.roles().begin(), request.roles().end()}));
      });
  service.unary<v1::RevokeAgentRequest, v1::Agent>(
      "RevokeAgent", {.idempotent = true, .resource = of_identity},
      [&nhi](const Context& ctx, const v1::RevokeAgentRequest& request) -> Result<v1::Agent> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        return answer<v1::Agent>(nhi.revoke_agent(ctx, identity, request.reason()));
      });
  service.unary<v1::GetAgentRequest, v1::Agent>(
      "GetAgent", {.access = authenticated, .idempotent = true},
      [&nhi](const Context& ctx, const v1::GetAgentRequest& request) -> Result<v1::Agent> {
        return answer<v1::Agent>(nhi.find_agent(ctx, request.identity()));
      });
  service.unary<v1::ListAgentsRequest, v1::ListAgentsResponse>(
      "ListAgents", {.idempotent = true},
      [&nhi](const Context& ctx, const v1::ListAgentsRequest& request) -> Result<v1::ListAgentsResponse> {
        auto filter = CRETO_TRY(from_proto(request));
        auto agents = CRETO_TRY(nhi.list_agents(ctx, filter));
        v1::ListAgentsResponse response;
        for (const Agent& one : agents) to_proto(one, *response.add_agents());
        if (agents.size() == filter.limit) response.set_next_token(agents.back().identity.text());
        return response;
      });
  service.unary<v1::IsRegisteredRequest, v1::IsRegisteredResponse>(
      "IsRegistered", {.access = authenticated, .idempotent = true},
      [&nhi](const Context& ctx, const v1::IsRegisteredRequest& request) -> Result<v1::IsRegisteredResponse> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        bool registered = CRETO_TRY(nhi.is_registered(ctx, identity));
        v1::IsRegisteredResponse response;
        response.set_registered(registered);
        return response;
      });
  service.unary<v1::IsRevokedRequest, v1::IsRevokedResponse>(
      "IsRevoked", {.access = authenticated, .idempotent = true},
      [&nhi](const Context& ctx, const v1::IsRevokedRequest& request) -> Result<v1::IsRevokedResponse> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        bool revoked = CRETO_TRY(nhi.is_revoked(ctx, identity));
        v1::IsRevokedResponse response;
        response.set_revoked(revoked);
        return response;
      });

  service.unary<v1::ResolveTokenRequest, v1::ResolveTokenResponse>(
      "ResolveToken", {.access = authenticated, .idempotent = true},
      [&nhi](const Context& ctx, const v1::ResolveTokenRequest& request) -> Result<v1::ResolveTokenResponse> {
        auto resolved = CRETO_TRY(nhi.resolve_token(ctx, request.token()));
        v1::ResolveTokenResponse response;
        to_proto(resolved.agent, *response.mutable_agent());
        response.set_org(resolved.org);
        response.set_token_id(resolved.id);
        proto::set_time(response.mutable_expires_at(), resolved.expires_at);
        return response;
      });
  service.unary<v1::IssueTokenRequest, v1::IssueTokenResponse>(
      "IssueToken", {.resource = of_identity},
      [&nhi](const Context& ctx, const v1::IssueTokenRequest& request) -> Result<v1::IssueTokenResponse> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        auto valid_for = CRETO_TRY(proto::from_duration(request.valid_for(), "valid_for"));
        auto token = CRETO_TRY(nhi.issue_token(ctx, identity, valid_for));
        v1::IssueTokenResponse response;
        response.set_token(token);
        return response;
      });

  service.unary<v1::CreateDelegationRequest, v1::Delegation>(
      "CreateDelegation", {.resource = [](const auto& request) { return agent(request.delegatee()); }},
      [&nhi](const Context& ctx, const v1::CreateDelegationRequest& request) -> Result<v1::Delegation> {
        auto wanted = CRETO_TRY(from_proto(request, ctx));
        return answer<v1::Delegation>(nhi.create_delegation(ctx, wanted));
      });
  service.unary<v1::GetDelegationChainRequest, v1::DelegationChain>(
      "GetDelegationChain", {.access = authenticated, .idempotent = true},
      [&nhi](const Context& ctx, const v1::GetDelegationChainRequest& request) -> Result<v1::DelegationChain> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        std::optional<DelegationId> leaf;
        if (!request.leaf().empty()) leaf = CRETO_TRY(proto::from_id<DelegationId>(request.leaf(), "leaf"));
        return answer<v1::DelegationChain>(nhi.get_delegation_chain(ctx, identity, leaf));
      });
  service.unary<v1::GetPastDelegationChainRequest, v1::PastDelegationChain>(
      "GetPastDelegationChain", {.access = authenticated, .idempotent = true},
      [&nhi](const Context& ctx, const v1::GetPastDelegationChainRequest& request) -> Result<v1::PastDelegationChain> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        if (!request.has_at()) return proto::bad_field("at", "is missing");
        auto at = CRETO_TRY(proto::from_time(request.at(), "at"));
        return answer<v1::PastDelegationChain>(nhi.get_past_delegation_chain(ctx, identity, at));
      });
  service.unary<v1::DelegationChain, v1::VerifyDelegationResponse>(
      "VerifyDelegation", {.access = authenticated, .idempotent = true},
      [&nhi](const Context& ctx, const v1::DelegationChain& request) -> Result<v1::VerifyDelegationResponse> {
        auto chain = CRETO_TRY(from_proto(request));
        CRETO_TRY(nhi.verify_delegation(ctx, chain));
        v1::VerifyDelegationResponse response;
        response.set_valid(true);
        return response;
      });
  service.unary<v1::RevokeDelegationRequest, v1::RevokeDelegationResponse>(
      "RevokeDelegation", {.idempotent = true},
      [&nhi](const Context& ctx, const v1::RevokeDelegationRequest& request) -> Result<v1::RevokeDelegationResponse> {
        auto id = CRETO_TRY(proto::from_id<DelegationId>(request.id(), "id"));
        CRETO_TRY(nhi.revoke_delegation(ctx, id));
        return v1::RevokeDelegationResponse();
      });

  service.unary<v1::GetPublicKeysRequest, v1::AgentPublicKeys>(
      "GetPublicKeys", {.access = authenticated, .idempotent = true},
      [&nhi](const Context& ctx, const v1::GetPublicKeysRequest& request) -> Result<v1::AgentPublicKeys> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        return answer<v1::AgentPublicKeys>(nhi.get_public_keys(ctx, identity));
      });
  service.unary<v1::ListKeySetsRequest, v1::ListKeySetsResponse>(
      "ListKeySets", {.access = authenticated, .idempotent = true},
      [&nhi](const Context& ctx, const v1::ListKeySetsRequest& request) -> Result<v1::ListKeySetsResponse> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        const auto sets = CRETO_TRY(nhi.key_sets(ctx, identity));
        v1::ListKeySetsResponse response;
        for (const PublicKeys& set : sets) to_proto(set, *response.add_sets());
        return response;
      });
  service.unary<v1::RotateKeysRequest, v1::AgentPublicKeys>(
      "RotateKeys", {.resource = of_identity},
      [&nhi](const Context& ctx, const v1::RotateKeysRequest& request) -> Result<v1::AgentPublicKeys> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        const auto rotation = CRETO_TRY(from_proto(request));
        return answer<v1::AgentPublicKeys>(nhi.rotate_keys(ctx, identity, rotation));
      });
  service.unary<v1::SignRequest, common::v1::Signature>(
      "Sign", {.resource = of_identity},
      [&nhi](const Context& ctx, const v1::SignRequest& request) -> Result<common::v1::Signature> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        auto signature = CRETO_TRY(nhi.sign(ctx, identity, as_bytes(request.data()), request.context()));
        common::v1::Signature response;
        proto::set_signature(&response, signature);
        return response;
      });
  service.unary<v1::VerifyRequest, v1::VerifyResponse>(
      "Verify", {.access = authenticated, .idempotent = true},
      [&nhi](const Context& ctx, const v1::VerifyRequest& request) -> Result<v1::VerifyResponse> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        const auto signature = proto::from_signature(request.signature());
        if (request.has_at()) {
          auto at = CRETO_TRY(proto::from_time(request.at(), "at"));
          std::optional<Instant> told;
          if (request.has_told()) told = CRETO_TRY(proto::from_time(request.told(), "told"));
          CRETO_TRY(nhi.verify_past(ctx, identity, as_bytes(request.data()), signature, request.context(), at, told));
        } else {
          CRETO_TRY(nhi.verify(ctx, identity, as_bytes(request.data()), signature, request.context()));
        }
        v1::VerifyResponse response;
        response.set_valid(true);
        return response;
      });

  service.unary<v1::PublishKeyBundleRequest, v1::PrekeyCount>(
      "PublishKeyBundle", {.idempotent = true, .resource = of_identity},
      [&nhi](const Context& ctx, const v1::PublishKeyBundleRequest& request) -> Result<v1::PrekeyCount> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        auto count = CRETO_TRY(nhi.publish_key_bundle(ctx, identity, from_proto(request)));
        v1::PrekeyCount response;
        response.set_one_time(count.one_time);
        response.set_one_time_kem(count.one_time_kem);
        return response;
      });
  service.unary<v1::TakeKeyBundleRequest, v1::KeyBundle>(
      "TakeKeyBundle", {.resource = of_identity},
      [&nhi](const Context& ctx, const v1::TakeKeyBundleRequest& request) -> Result<v1::KeyBundle> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        return answer<v1::KeyBundle>(nhi.take_key_bundle(ctx, identity));
      });
  service.unary<v1::GetPrekeyCountRequest, v1::PrekeyCount>(
      "GetPrekeyCount", {.access = authenticated, .idempotent = true},
      [&nhi](const Context& ctx, const v1::GetPrekeyCountRequest& request) -> Result<v1::PrekeyCount> {
        auto identity = CRETO_TRY(proto::from_identity(request.identity(), "identity"));
        auto count = CRETO_TRY(nhi.prekey_count(ctx, identity));
        v1::PrekeyCount response;
        response.set_one_time(count.one_time);
        response.set_one_time_kem(count.one_time_kem);
        return response;
      });
}

}  // namespace creto::nhi
