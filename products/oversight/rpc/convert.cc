#include "rpc/convert.h"

#include "codec.h"
#include "creto/io/proto.h"
#include "request.h"

namespace creto::oversight {
namespace {

using google::protobuf::RepeatedPtrField;

Result<std::vector<Identity>> identities(const RepeatedPtrField<std::string>& texts, std::string_view field) {
  std::vector<Identity> result;
  for (const std::string& text : texts) {
    Identity identity = CRETO_TRY(proto::from_identity(text, field));
    result.push_back(std::move(identity));
  }
  return result;
}

std::vector<std::string> strings(const RepeatedPtrField<std::string>& texts) { return {texts.begin(), texts.end()}; }

void add_texts(const std::vector<std::string>& from, RepeatedPtrField<std::string>* to) {
  for (const std::string& text : from) *to->Add() = text;
}
void add_identities(const std::vector<Identity>& from, RepeatedPtrField<std::string>* to) {
  for (const Identity& identity : from) *to->Add() = identity.text();
}

void add_needs(const std::vector<contracts::ApprovalNeed>& from, RepeatedPtrField<v1::ApprovalNeed>* to) {
  for (const contracts::ApprovalNeed& need : from) to_proto(need, *to->Add());
}
Result<std::vector<contracts::ApprovalNeed>> needs_from(const RepeatedPtrField<v1::ApprovalNeed>& from) {
  std::vector<contracts::ApprovalNeed> needs;
  for (const v1::ApprovalNeed& in : from) {
    contracts::ApprovalNeed need = CRETO_TRY(from_proto(in));
    needs.push_back(std::move(need));
  }
  return needs;
}

}  // namespace

void to_proto(const Policy& from, v1::Policy& to) {
  to.set_id(from.id);
  to.set_description(from.description);
  for (const Trigger trigger : from.triggers) to.add_triggers(std::string(to_string(trigger)));
  for (const Tier& tier : from.tiers) {
    v1::Tier& out = *to.add_tiers();
    add_identities(tier.approvers, out.mutable_approvers());
    out.set_quorum(tier.quorum);
    proto::set_duration(out.mutable_timeout(), tier.timeout);
  }
  to.set_final_action(std::string(to_string(from.final_action)));
  to.set_allow_self_approval(from.allow_self_approval);
  add_texts(from.channels, to.mutable_channels());
}

Result<Policy> from_proto(const v1::Policy& from) {
  Policy policy;
  policy.id = from.id();
  policy.description = from.description();
  if (from.triggers_size() > 0) policy.triggers.clear();
  for (const std::string& word : from.triggers()) {
    const Trigger trigger = CRETO_TRY(trigger_from_string(word));
    policy.triggers.push_back(trigger);
  }
  for (const v1::Tier& in : from.tiers()) {
    Tier tier;
    tier.approvers = CRETO_TRY(identities(in.approvers(), "tiers.approvers"));
    tier.quorum = in.quorum() == 0 ? 1 : in.quorum();
    if (in.has_timeout()) tier.timeout = CRETO_TRY(proto::from_duration(in.timeout(), "tiers.timeout"));
    policy.tiers.push_back(std::move(tier));
  }
  if (!from.final_action().empty()) policy.final_action = CRETO_TRY(final_action_from_string(from.final_action()));
  policy.allow_self_approval = from.allow_self_approval();
  if (from.channels_size() > 0) policy.channels = strings(from.channels());
  return policy;
}

void to_proto(const Request& from, v1::Request& to) {
  to.set_id(from.id.to_string());
  to.set_state(std::string(contracts::to_string(from.state)));
  to.set_agent(from.action.agent.text());
  add_identities(from.action.delegation_chain, to.mutable_delegation_chain());
  if (from.action.sandbox) to.set_sandbox_id(from.action.sandbox->to_string());
  to.set_action(from.action.action);
  to.set_resource_type(from.action.resource_type);
  to.set_resource_id(from.action.resource_id);
  to.set_arguments(from.action.arguments);
  to.set_arguments_sha3_256(hex(from.arguments_hash()));
  to.set_description(from.description);
  to.set_reasoning(from.reasoning);
  add_texts(from.related_memories, to.mutable_related_memories());
  to.set_confidence(from.confidence);
  add_texts(from.risk_factors, to.mutable_risk_factors());
  to.set_context_problem(from.context_problem);
  for (const Requirement& requirement : from.requirements) to.add_policies(requirement.policy.id);
  add_identities(asked_now(from), to.mutable_asked());
  for (const Response& response : from.responses) {
    v1::Response& out = *to.add_responses();
    out.set_approver(response.approver.text());
    out.set_approve(response.approve);
    out.set_notes(response.notes);
    proto::set_time(out.mutable_received_at(), response.received_at);
  }
  proto::set_time(to.mutable_created_at(), from.created_at);
  if (contracts::is_final(from.state)) proto::set_time(to.mutable_decided_at(), from.decided_at);
  if (Result<std::string> document = encode(from)) to.set_document(*std::move(document));
}

Result<Request> from_proto(const v1::Request& from) { return decode_request(from.document()); }

void to_proto(const LostNotification& from, v1::LostNotification& to) {
  to.set_request_id(from.request.to_string());
  to.set_channel(from.channel);
  to.set_approver(from.approver);
  to.set_error(from.error);
  proto::set_time(to.mutable_when(), from.when);
}

Result<LostNotification> from_proto(const v1::LostNotification& from) {
  const RequestId request = CRETO_TRY(proto::from_id<RequestId>(from.request_id(), "request_id"));
  const Instant when = CRETO_TRY(proto::from_time(from.when(), "when"));
  return LostNotification{request, from.channel(), from.approver(), from.error(), when};
}

void to_proto(const contracts::GatedAction& from, v1::GatedAction& to) {
  to.set_agent(from.agent.text());
  add_identities(from.delegation_chain, to.mutable_delegation_chain());
  if (from.sandbox) to.set_sandbox_id(from.sandbox->to_string());
  to.set_action(from.action);
  to.set_resource_type(from.resource_type);
  to.set_resource_id(from.resource_id);
  to.set_arguments(from.arguments);
}

Result<contracts::GatedAction> from_proto(const v1::GatedAction& from) {
  Identity agent = CRETO_TRY(proto::from_identity(from.agent(), "action.agent"));
  DelegationChain chain = CRETO_TRY(identities(from.delegation_chain(), "action.delegation_chain"));
  std::optional<SandboxId> sandbox;
  if (!from.sandbox_id().empty())
    sandbox = CRETO_TRY(proto::from_id<SandboxId>(from.sandbox_id(), "action.sandbox_id"));
  return contracts::GatedAction{std::move(agent),     std::move(chain),   sandbox,         from.action(),
                                from.resource_type(), from.resource_id(), from.arguments()};
}

void to_proto(const contracts::ApprovalNeed& from, v1::ApprovalNeed& to) {
  to.set_policy(from.policy);
  to.set_forbid(from.forbid);
  if (from.timeout) proto::set_duration(to.mutable_timeout(), *from.timeout);
  add_texts(from.approvers, to.mutable_approvers());
}

Result<contracts::ApprovalNeed> from_proto(const v1::ApprovalNeed& from) {
  contracts::ApprovalNeed need{.policy = from.policy(), .forbid = from.forbid()};
  if (from.has_timeout()) need.timeout = CRETO_TRY(proto::from_duration(from.timeout(), "needs.timeout"));
  need.approvers = strings(from.approvers());
  return need;
}

void to_proto(const contracts::ApprovalCheck& from, v1::ApprovalCheck& to) {
  if (const auto* required = std::get_if<contracts::ApprovalRequired>(&from))
    add_needs(required->needs, to.mutable_required()->mutable_needs());
  else if (const auto* prohibited = std::get_if<contracts::Prohibited>(&from))
    to.set_prohibited(prohibited->reason);
  else
    to.set_not_required(true);
}

Result<contracts::ApprovalCheck> from_proto(const v1::ApprovalCheck& from) {
  switch (from.result_case()) {
    case v1::ApprovalCheck::kNotRequired:
      return contracts::ApprovalCheck(contracts::NotRequired{});
    case v1::ApprovalCheck::kProhibited:
      return contracts::ApprovalCheck(contracts::Prohibited{from.prohibited()});
    case v1::ApprovalCheck::kRequired: {
      std::vector<contracts::ApprovalNeed> needs = CRETO_TRY(needs_from(from.required().needs()));
      return contracts::ApprovalCheck(contracts::ApprovalRequired{std::move(needs)});
    }
    case v1::ApprovalCheck::RESULT_NOT_SET:
      break;
  }
  return proto::bad_field("result", "must be set");
}

void to_proto(const contracts::ApprovalRequest& from, v1::RequestApprovalRequest& to) {
  to_proto(from.action, *to.mutable_action());
  add_needs(from.needs, to.mutable_needs());
  to.set_description(from.description);
  to.set_reasoning(from.reasoning);
  add_texts(from.risk_factors, to.mutable_risk_factors());
}

Result<contracts::ApprovalRequest> from_proto(const v1::RequestApprovalRequest& from) {
  contracts::GatedAction action = CRETO_TRY(from_proto(from.action()));
  std::vector<contracts::ApprovalNeed> needs = CRETO_TRY(needs_from(from.needs()));
  return contracts::ApprovalRequest{std::move(action), std::move(needs), from.description(), from.reasoning(),
                                    strings(from.risk_factors())};
}

void to_proto(const contracts::ApprovalStatus& from, v1::ApprovalStatus& to) {
  to.set_request_id(from.request.to_string());
  to.set_state(std::string(contracts::to_string(from.state)));
  if (from.approver) to.set_approver(from.approver->text());
  if (from.signature) {
    to.mutable_signature()->set_algorithm(from.signature->algorithm);
    to.mutable_signature()->set_value(proto::to_text(from.signature->value));
  }
  to.set_notes(from.notes);
  to.set_override_token(from.override_token);
  if (contracts::is_final(from.state)) proto::set_time(to.mutable_decided_at(), from.decided_at);
}

Result<contracts::ApprovalStatus> from_proto(const v1::ApprovalStatus& from) {
  const RequestId id = CRETO_TRY(proto::from_id<RequestId>(from.request_id(), "request_id"));
  contracts::ApprovalStatus status{.request = id,
                                   .state = contracts::ApprovalState::pending,
                                   .approver = std::nullopt,
                                   .signature = std::nullopt,
                                   .notes = from.notes(),
                                   .override_token = from.override_token(),
                                   .decided_at = {}};
  status.state = CRETO_TRY(contracts::approval_state_from_string(from.state()));
  if (!from.approver().empty()) status.approver = CRETO_TRY(proto::from_identity(from.approver(), "approver"));
  if (from.has_signature())
    status.signature = Signature{from.signature().algorithm(), to_bytes(from.signature().value())};
  if (from.has_decided_at()) status.decided_at = CRETO_TRY(proto::from_time(from.decided_at(), "decided_at"));
  return status;
}

void to_proto(const RequestFilter& from, v1::ListRequestsRequest& to) {
  if (from.state) to.set_state(std::string(contracts::to_string(*from.state)));
  to.set_open_only(from.open_only);
  if (from.agent) to.set_agent(from.agent->text());
  if (from.approver) to.set_approver(from.approver->text());
  to.set_limit(static_cast<std::int32_t>(from.limit));
  if (from.before) to.set_before(from.before->to_string());
}

Result<RequestFilter> from_proto(const v1::ListRequestsRequest& from) {
  RequestFilter filter;
  if (!from.state().empty()) filter.state = CRETO_TRY(contracts::approval_state_from_string(from.state()));
  filter.open_only = from.open_only();
  if (!from.agent().empty()) filter.agent = CRETO_TRY(proto::from_identity(from.agent(), "agent"));
  if (!from.approver().empty()) filter.approver = CRETO_TRY(proto::from_identity(from.approver(), "approver"));
  if (from.limit() < 0) return proto::bad_field("limit", "must be 1 to 1000");
  if (from.limit() > 0) filter.limit = static_cast<std::size_t>(from.limit());
  if (!from.before().empty()) filter.before = CRETO_TRY(proto::from_id<RequestId>(from.before(), "before"));
  return filter;
}

}  // namespace creto::oversight
