#include "provision.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "creto/crypto/hash.h"
#include "creto/io/proto.h"
#include "creto/io/rpc.h"
#include "creto/messaging/endpoint.h"
#include "creto/provision/v1/provision.pb.h"
#include "system.h"

namespace creto::app {
namespace {

namespace v1 = provision::v1;

Error failure(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

std::string text_of(const Json& data, const char* key) { return data.value(key, std::string()); }
Result<Identity> agent_of(const Json& data) { return Identity::parse(text_of(data, "agent")); }

Result<nhi::NewDelegation> delegation_of(const Json& data) {
  nhi::v1::CreateDelegationRequest request;
  const Bytes bytes = CRETO_TRY(from_base64(text_of(data, "signed")));
  if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return failure(ErrorKind::internal, "a stored delegation cannot be read");
  const Identity delegator = CRETO_TRY(proto::from_identity(request.delegator(), "delegation.delegator"));
  const Identity delegatee = CRETO_TRY(proto::from_identity(request.delegatee(), "delegation.delegatee"));
  nhi::NewDelegation wanted{delegator, delegatee, {}, {}, {}, {}, {}, {}, {}};
  wanted.permissions = {request.permissions().begin(), request.permissions().end()};
  wanted.expires_at = CRETO_TRY(proto::from_time(request.expires_at(), "delegation.expires_at"));
  if (!request.id().empty()) wanted.id = CRETO_TRY(proto::from_id<DelegationId>(request.id(), "delegation.id"));
  if (request.has_created_at())
    wanted.created_at = CRETO_TRY(proto::from_time(request.created_at(), "delegation.created_at"));
  wanted.key_id = request.key_id();
  if (request.has_signature()) wanted.signature = proto::from_signature(request.signature());
  return wanted;
}

SagaStep identity_step(System& system) {
  return {"identity",
          [&system](const Context& ctx, Json& data) -> Result<> {
            const Identity agent = CRETO_TRY(agent_of(data));
            const nhi::Agent known = CRETO_TRY(system.nhi->get_agent(ctx, agent));
            if (known.status != nhi::AgentStatus::active || known.owner != ctx.chain.front())
              return failure(ErrorKind::permission_denied, "`agent` must be active and the caller's own");
            // Undoing revokes the identity, which must not happen to an agent that is at work.
            const auto chain = system.nhi->get_delegation_chain(ctx, agent);
            if (chain) return failure(ErrorKind::conflict, fmt::format("`{}` has a delegation already", known.name));
            if (chain.error().kind() != ErrorKind::permission_denied) return Error(chain.error());
            return {};
          },
          [&system](const Context& ctx, const Json& data) -> Result<> {
            const Identity agent = CRETO_TRY(agent_of(data));
            CRETO_TRY(system.nhi->revoke_agent(ctx, agent, "could not be provisioned"));
            return {};
          }};
}

SagaStep delegation_step(System& system) {
  return {"delegation",
          [&system](const Context& ctx, Json& data) -> Result<> {
            const nhi::NewDelegation wanted = CRETO_TRY(delegation_of(data));
            const nhi::Delegation made = CRETO_TRY(system.nhi->create_delegation(ctx, wanted));
            data["delegation"] = made.id.to_string();
            return {};
          },
          [&system](const Context& ctx, const Json& data) -> Result<> {
            const DelegationId id = CRETO_TRY(DelegationId::parse(text_of(data, "delegation")));
            return system.nhi->revoke_delegation(ctx, id);
          }};
}

SagaStep subscription_step(System& system) {
  return {"subscription",
          [&system](const Context& ctx, Json& data) -> Result<> {
            if (text_of(data, "plan_id").empty()) return {};
            if (system.metering == nullptr) return failure(ErrorKind::invalid_input, "`plan_id`: nothing meters here");
            const metering::Subscription made =
                CRETO_TRY(system.metering->subscribe(ctx, {text_of(data, "agent"), text_of(data, "plan_id"), 0}));
            data["subscription"] = made.id.to_string();
            return {};
          },
          [&system](const Context& ctx, const Json& data) -> Result<> {
            if (!data.contains("subscription")) return {};
            const SubscriptionId id = CRETO_TRY(SubscriptionId::parse(text_of(data, "subscription")));
            CRETO_TRY(system.metering->end_subscription(ctx, id));
            return {};
          }};
}

/// Runs `use` with the endpoint of an identity whose keys nhi holds.
template <class F>
auto with_endpoint(System& system, const Context& ctx, const Identity& owner, F use)
    -> std::invoke_result_t<F, messaging::Endpoint&> {
  const auto store = CRETO_TRY(messaging::create_endpoint_store(*system.database, *system.sealer, ctx.org, owner));
  const auto keys = messaging::keys_held_by_nhi(*system.nhi, owner);
  const auto endpoint = messaging::create_endpoint(*store, *keys, *system.nhi, system_clock());
  return use(*endpoint);
}

/// Nothing to undo: the keys of a revoked identity are given to nobody.
SagaStep messaging_keys_step(System& system) {
  return {"messaging keys", [&system](const Context& ctx, Json& data) -> Result<> {
            const Identity agent = CRETO_TRY(agent_of(data));
            const nhi::Chain chain = CRETO_TRY(system.nhi->get_delegation_chain(ctx, agent));
            Context as_agent = ctx;
            as_agent.caller = agent;
            as_agent.chain = chain.identities();
            return with_endpoint(system, ctx, agent, [&](messaging::Endpoint& endpoint) -> Result<> {
              return endpoint.publish_keys(as_agent);
            });
          }};
}

Result<MessageId> send_welcome(System& system, const Context& ctx, const Json& data) {
  const Identity self = CRETO_TRY(Identity::service("creto"));
  const Identity agent = CRETO_TRY(agent_of(data));
  Context as_self = ctx;
  as_self.caller = self;
  as_self.chain = {self};
  // Named after the step: a run that was interrupted behind the sending finds that it is sent.
  const Hash256 digest = crypto::sha3_256(as_bytes(ctx.idempotency_key));
  ByteArray<16> bytes;
  std::copy_n(digest.begin(), bytes.size(), bytes.begin());
  const MessageId id = MessageId::from_bytes(bytes);
  const std::string body = Json{{"type", "welcome"},
                                {"text", "Welcome to Creto! Your agent is ready."},
                                {"delegation", text_of(data, "delegation")},
                                {"subscription", text_of(data, "subscription")},
                                {"sandbox", text_of(data, "sandbox")}}
                               .dump();
  CRETO_TRY(system.nhi->ensure_service(as_self, self));
  const contracts::SealedMessage sealed = CRETO_TRY(
      with_endpoint(system, ctx, self, [&](messaging::Endpoint& endpoint) -> Result<contracts::SealedMessage> {
        return endpoint.seal(as_self, agent, {.body = as_bytes(body), .id = id});
      }));
  const auto sent = system.messaging->send(as_self, sealed);
  if (!sent && sent.error().kind() != ErrorKind::conflict) return Error(sent.error());
  return id;
}

/// Not worth failing for: the agent is ready without it.
SagaStep welcome_step(System& system) {
  return {"welcome", [&system](const Context& ctx, Json& data) -> Result<> {
            if (!system.messaging) return {};
            const auto sent = send_welcome(system, ctx, data);
            if (sent) data["welcome"] = sent->to_string();
            if (!sent) system.telemetry->warn("platform", "welcome_not_sent", {{"error", sent.error().to_string()}});
            return {};
          }};
}

Result<> delete_policies(System& system, const Context& ctx, const Json& policies) {
  for (const Json& policy : policies) {
    const auto deleted = system.authz->delete_policy(ctx, text_of(policy, "id"));
    if (!deleted && deleted.error().kind() != ErrorKind::not_found) return deleted;
  }
  return {};
}

SagaStep policies_step(System& system) {
  return {"policies",
          [&system](const Context& ctx, Json& data) -> Result<> {
            Json made = Json::array();
            for (const Json& policy : data.at("policies")) {
              Context of_one = ctx;
              of_one.idempotency_key += fmt::format("/{}", made.size());
              const auto created = system.authz->create_policy(of_one, text_of(policy, "id"), text_of(policy, "text"));
              if (!created && !created.error().retryable()) CRETO_TRY(delete_policies(system, ctx, made));
              if (!created) return Error(created.error());
              made.push_back(policy);
            }
            return {};
          },
          [&system](const Context& ctx, const Json& data) -> Result<> {
            return delete_policies(system, ctx, data.at("policies"));
          }};
}

/// The token of the approval that an earlier try asked for, once it is given.
Result<std::string> approval_of(System& system, const Context& ctx, const RequestId& request) {
  if (!system.oversight) return failure(ErrorKind::unavailable, "the sandbox waits for oversight, which is not here");
  const contracts::ApprovalStatus status = CRETO_TRY(system.oversight->approval_status(ctx, request));
  if (status.state == contracts::ApprovalState::approved) return status.override_token;
  if (contracts::is_final(status.state))
    return failure(ErrorKind::permission_denied, fmt::format("the sandbox was not approved: request `{}` is {}",
                                                             request.to_string(), to_string(status.state)));
  return failure(
             ErrorKind::oversight_required,
             fmt::format("the sandbox waits for the approval of request `{}`; everything before it is made, and this "
                         "goes on by itself once it is given",
                         request.to_string()))
      .with_retryable(true);
}

SagaStep sandbox_step(System& system) {
  return {"sandbox",
          [&system](const Context& ctx, Json& data) -> Result<> {
            if (text_of(data, "image").empty()) return {};
            if (!system.runtime) return failure(ErrorKind::invalid_input, "`image`: nothing runs sandboxes here");
            runtime::SandboxSpec spec;
            spec.agent = CRETO_TRY(agent_of(data));
            spec.image = text_of(data, "image");
            spec.command = data.at("command").get<std::vector<std::string>>();
            if (data.contains("approval")) {
              const RequestId request = CRETO_TRY(RequestId::parse(text_of(data, "approval")));
              spec.override_token = CRETO_TRY(approval_of(system, ctx, request));
            }
            const runtime::SpawnResult spawned = CRETO_TRY(system.runtime->spawn(ctx, spec));
            if (!spawned.sandbox) {
              data["approval"] = spawned.approval->request.to_string();
              CRETO_TRY(approval_of(system, ctx, spawned.approval->request));
              return failure(ErrorKind::unavailable, "the sandbox was approved meanwhile");
            }
            data["sandbox"] = spawned.sandbox->id.to_string();
            return {};
          },
          [&system](const Context& ctx, const Json& data) -> Result<> {
            if (!data.contains("sandbox")) return {};
            const SandboxId id = CRETO_TRY(SandboxId::parse(text_of(data, "sandbox")));
            CRETO_TRY(system.runtime->terminate(ctx, id));
            return {};
          }};
}

Result<Json> from_proto(const Context& ctx, const v1::ProvisionAgentRequest& request) {
  const Identity agent = CRETO_TRY(proto::from_identity(request.agent(), "agent"));
  if (!request.has_delegation() || !request.delegation().has_expires_at())
    return proto::bad_field("delegation", "must have an end");
  nhi::v1::CreateDelegationRequest delegation = request.delegation();
  if (delegation.delegator().empty()) delegation.set_delegator(ctx.caller_text());
  if (delegation.delegatee() != agent.text()) return proto::bad_field("delegation.delegatee", "must be `agent`");
  Json policies = Json::array();
  for (const auto& policy : request.policies()) policies.push_back({{"id", policy.id()}, {"text", policy.text()}});
  if (policies.size() > 64) return proto::bad_field("policies", "must be at most 64");
  Json data = {
      {"agent", agent.text()},
      {"signed", base64(as_bytes(delegation.SerializeAsString()))},
      {"permissions", std::vector<std::string>(delegation.permissions().begin(), delegation.permissions().end())},
      {"plan_id", request.plan_id()},
      {"policies", std::move(policies)},
      {"image", request.image()},
      {"command", std::vector<std::string>(request.command().begin(), request.command().end())}};
  CRETO_TRY(delegation_of(data));
  return data;
}

Result<> check_access(AccessControl& access, const Context& ctx, const v1::ProvisionAgentRequest& request) {
  CRETO_TRY(access.require(ctx, "nhi.create_delegation", "Agent", request.agent()));
  if (!request.plan_id().empty()) CRETO_TRY(access.require(ctx, "metering.subscribe", "Agent", request.agent()));
  for (const auto& policy : request.policies())
    CRETO_TRY(access.require(ctx, "authz.create_policy", "Policy", policy.id()));
  if (!request.image().empty()) CRETO_TRY(access.require(ctx, "runtime.spawn_sandbox", "Image", request.image()));
  return {};
}

v1::Provision to_proto(const Saga& saga, const std::vector<SagaStep>& steps) {
  v1::Provision out;
  out.set_id(saga.id.to_string());
  out.set_agent(text_of(saga.data, "agent"));
  out.set_state(std::string(to_string(saga.state)));
  for (std::size_t i = 0; i < saga.steps; ++i) out.add_steps(steps[i].name);
  out.set_error(saga.error);
  out.set_delegation(text_of(saga.data, "delegation"));
  out.set_subscription(text_of(saga.data, "subscription"));
  out.set_sandbox(text_of(saga.data, "sandbox"));
  out.set_welcome(text_of(saga.data, "welcome"));
  return out;
}

}  // namespace

Result<std::unique_ptr<Sagas>> create_provisioning(System& system) {
  return Sagas::create(
      *system.database, *system.telemetry, "agent_provision",
      {identity_step(system), delegation_step(system), subscription_step(system), messaging_keys_step(system),
       policies_step(system), sandbox_step(system), welcome_step(system)});
}

void register_provisioning(rpc::Dispatcher& dispatcher, System& system) {
  auto service = dispatcher.service("creto.provision.v1.ProvisionService");
  service.unary<v1::ProvisionAgentRequest, v1::Provision>(
      "ProvisionAgent", {.resource = [](const auto& request) { return rpc::Resource{"Agent", request.agent()}; }},
      [&system](const Context& ctx, const v1::ProvisionAgentRequest& request) -> Result<v1::Provision> {
        const Json data = CRETO_TRY(from_proto(ctx, request));
        CRETO_TRY(check_access(*system.access, ctx, request));
        const Saga saga = CRETO_TRY(system.provisioning->run(ctx, data));
        return to_proto(saga, system.provisioning->steps());
      });
  service.unary<v1::GetProvisionRequest, v1::Provision>(
      "GetProvision", {.idempotent = true},
      [&system](const Context& ctx, const v1::GetProvisionRequest& request) -> Result<v1::Provision> {
        const SagaId id = CRETO_TRY(proto::from_id<SagaId>(request.id(), "id"));
        const Saga saga = CRETO_TRY(system.provisioning->get(ctx, id));
        return to_proto(saga, system.provisioning->steps());
      });
}

}  // namespace creto::app
