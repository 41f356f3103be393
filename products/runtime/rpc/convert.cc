#include "rpc/convert.h"

namespace creto::runtime {
namespace {

void to_proto(const ResourceLimits& limits, v1::ResourceLimits& out) {
  out.set_cpu_millicores(limits.cpu_millicores);
  out.set_memory_bytes(limits.memory_bytes);
  out.set_pids(limits.pids);
  if (limits.time > Nanos(0)) proto::set_duration(out.mutable_time(), limits.time);
}

Result<ResourceLimits> from_proto(const v1::ResourceLimits& in) {
  ResourceLimits limits;
  if (in.cpu_millicores() != 0) limits.cpu_millicores = in.cpu_millicores();
  if (in.memory_bytes() != 0) limits.memory_bytes = in.memory_bytes();
  if (in.pids() != 0) limits.pids = in.pids();
  if (in.has_time()) limits.time = CRETO_TRY(proto::from_duration(in.time(), "limits.time"));
  return limits;
}

}  // namespace

void to_proto(const SandboxSpec& spec, v1::SpawnSandboxRequest& out) {
  if (spec.agent) out.set_agent(spec.agent->text());
  out.set_image(spec.image);
  for (const auto& argument : spec.command) out.add_command(argument);
  for (const auto& [name, value] : spec.environment) (*out.mutable_environment())[name] = value;
  out.set_working_directory(spec.working_directory);
  for (const auto& secret : spec.secrets) out.add_secrets(secret);
  to_proto(spec.limits, *out.mutable_limits());
  out.set_runtime_class(spec.runtime_class);
  for (const auto& rule : spec.egress) {
    auto* one = out.add_egress();
    one->set_host(rule.host);
    one->set_port(rule.port);
    one->set_verdict(std::string(to_string(rule.verdict)));
  }
  out.set_reasoning(spec.reasoning);
  out.set_override_token(spec.override_token);
}

Result<SandboxSpec> from_proto(const v1::SpawnSandboxRequest& request) {
  SandboxSpec spec;
  if (!request.agent().empty()) spec.agent = CRETO_TRY(proto::from_identity(request.agent(), "agent"));
  spec.image = request.image();
  spec.command.assign(request.command().begin(), request.command().end());
  spec.environment.insert(request.environment().begin(), request.environment().end());
  spec.working_directory = request.working_directory();
  spec.secrets.assign(request.secrets().begin(), request.secrets().end());
  spec.limits = CRETO_TRY(from_proto(request.limits()));
  spec.runtime_class = request.runtime_class();
  for (const auto& rule : request.egress()) {
    if (rule.port() > 65535) return proto::bad_field("egress.port", "must be 0 to 65535");
    const auto verdict = CRETO_TRY(egress_verdict_from_string(rule.verdict()));
    spec.egress.push_back({rule.host(), static_cast<std::uint16_t>(rule.port()), verdict});
  }
  spec.reasoning = request.reasoning();
  spec.override_token = request.override_token();
  return spec;
}

void to_proto(const SpawnResult& result, v1::SpawnSandboxResponse& out) {
  if (result.sandbox) to_proto(*result.sandbox, *out.mutable_sandbox());
  if (!result.approval) return;
  auto& approval = *out.mutable_approval();
  approval.set_request_id(result.approval->request.to_string());
  approval.set_state(std::string(contracts::to_string(result.approval->state)));
  if (result.approval->approver) approval.set_approver(result.approval->approver->text());
  approval.set_notes(result.approval->notes);
  approval.set_override_token(result.approval->override_token);
  if (unix_ns(result.approval->decided_at) != 0)
    proto::set_time(approval.mutable_decided_at(), result.approval->decided_at);
  if (result.approval->signature) proto::set_signature(approval.mutable_signature(), *result.approval->signature);
}

Result<SpawnResult> from_proto(const v1::SpawnSandboxResponse& response) {
  SpawnResult result;
  if (response.has_sandbox()) result.sandbox = CRETO_TRY(from_proto(response.sandbox()));
  if (!response.has_approval()) return result;
  const auto& in = response.approval();
  const auto id = CRETO_TRY(proto::from_id<RequestId>(in.request_id(), "approval.request_id"));
  const auto state = CRETO_TRY(contracts::approval_state_from_string(in.state()));
  contracts::ApprovalStatus status{id, state, std::nullopt, std::nullopt, in.notes(), in.override_token(), {}};
  if (!in.approver().empty()) status.approver = CRETO_TRY(proto::from_identity(in.approver(), "approval.approver"));
  if (in.has_decided_at()) status.decided_at = CRETO_TRY(proto::from_time(in.decided_at(), "approval.decided_at"));
  if (in.has_signature()) status.signature = proto::from_signature(in.signature());
  result.approval = std::move(status);
  return result;
}

void to_proto(const Attestation& attestation, v1::Attestation& out) {
  out.set_document(attestation.document);
  proto::set_signature(out.mutable_signature(), attestation.signature);
}

Attestation from_proto(const v1::Attestation& attestation) {
  return {attestation.document(), proto::from_signature(attestation.signature())};
}

void to_proto(const Sandbox& sandbox, v1::Sandbox& out) {
  out.set_id(sandbox.id.to_string());
  out.set_agent(sandbox.agent.text());
  for (const auto& link : sandbox.delegation_chain) out.add_delegation_chain(link.text());
  if (sandbox.parent) out.set_parent(sandbox.parent->to_string());
  out.set_state(std::string(to_string(sandbox.state)));
  if (sandbox.reason) out.set_reason(std::string(to_string(*sandbox.reason)));
  out.set_detail(sandbox.detail);
  if (sandbox.exit_code) out.set_exit_code(*sandbox.exit_code);
  out.set_image(sandbox.image);
  out.set_image_digest(sandbox.image_digest);
  out.set_runtime_class(sandbox.runtime_class);
  out.set_isolation(sandbox.isolation);
  for (const auto& argument : sandbox.command) out.add_command(argument);
  to_proto(sandbox.limits, *out.mutable_limits());
  out.set_warm(sandbox.warm);
  proto::set_time(out.mutable_created_at(), sandbox.created_at);
  if (sandbox.ready_at) proto::set_time(out.mutable_ready_at(), *sandbox.ready_at);
  if (sandbox.terminated_at) proto::set_time(out.mutable_terminated_at(), *sandbox.terminated_at);
  if (!sandbox.attestation.document.empty()) to_proto(sandbox.attestation, *out.mutable_attestation());
}

Result<Sandbox> from_proto(const v1::Sandbox& in) {
  const auto id = CRETO_TRY(proto::from_id<SandboxId>(in.id(), "id"));
  const auto agent = CRETO_TRY(proto::from_identity(in.agent(), "agent"));
  Sandbox sandbox{id, agent};
  for (const auto& link : in.delegation_chain()) {
    auto identity = CRETO_TRY(proto::from_identity(link, "delegation_chain"));
    sandbox.delegation_chain.push_back(std::move(identity));
  }
  if (!in.parent().empty()) sandbox.parent = CRETO_TRY(proto::from_id<SandboxId>(in.parent(), "parent"));
  sandbox.state = CRETO_TRY(sandbox_state_from_string(in.state()));
  if (!in.reason().empty()) sandbox.reason = CRETO_TRY(termination_reason_from_string(in.reason()));
  sandbox.detail = in.detail();
  if (in.has_exit_code()) sandbox.exit_code = in.exit_code();
  sandbox.image = in.image();
  sandbox.image_digest = in.image_digest();
  sandbox.runtime_class = in.runtime_class();
  sandbox.isolation = in.isolation();
  sandbox.command.assign(in.command().begin(), in.command().end());
  sandbox.limits = CRETO_TRY(from_proto(in.limits()));
  sandbox.warm = in.warm();
  sandbox.created_at = CRETO_TRY(proto::from_time(in.created_at(), "created_at"));
  if (in.has_ready_at()) sandbox.ready_at = CRETO_TRY(proto::from_time(in.ready_at(), "ready_at"));
  if (in.has_terminated_at()) sandbox.terminated_at = CRETO_TRY(proto::from_time(in.terminated_at(), "terminated_at"));
  if (in.has_attestation()) sandbox.attestation = from_proto(in.attestation());
  return sandbox;
}

void to_proto(const ExecRequest& request, v1::ExecSandboxRequest& out) {
  for (const auto& argument : request.command) out.add_command(argument);
  for (const auto& [name, value] : request.environment) (*out.mutable_environment())[name] = value;
  out.set_working_directory(request.working_directory);
  out.set_input(request.input);
  proto::set_duration(out.mutable_timeout(), request.timeout);
}

Result<ExecRequest> from_proto(const v1::ExecSandboxRequest& in) {
  ExecRequest request;
  request.command.assign(in.command().begin(), in.command().end());
  request.environment.insert(in.environment().begin(), in.environment().end());
  request.working_directory = in.working_directory();
  request.input = in.input();
  if (in.has_timeout()) request.timeout = CRETO_TRY(proto::from_duration(in.timeout(), "timeout"));
  return request;
}

}  // namespace creto::runtime
