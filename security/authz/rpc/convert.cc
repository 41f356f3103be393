#include "rpc/convert.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace creto::authz {
namespace {

using proto::bad_field;

Result<Hash256> hash_from(const std::string& bytes, std::string_view field) {
  Hash256 hash{};
  if (bytes.empty()) return hash;
  if (bytes.size() != hash.size()) return bad_field(field, "has 32 bytes or none");
  std::copy(bytes.begin(), bytes.end(), hash.begin());
  return hash;
}

Result<Json> json_from(const google::protobuf::Value& value, int depth);

Result<Json> json_from(const google::protobuf::Struct& object, int depth) {
  Json json = Json::object();
  for (const auto& [name, member] : object.fields()) json[name] = CRETO_TRY(json_from(member, depth + 1));
  return json;
}

Result<Json> json_from(const google::protobuf::Value& value, int depth) {
  if (depth > 64) return bad_field("context", "is nested more than 64 deep");
  switch (value.kind_case()) {
    case google::protobuf::Value::kBoolValue:
      return Json(value.bool_value());
    case google::protobuf::Value::kStringValue:
      return Json(value.string_value());
    case google::protobuf::Value::kNumberValue: {
      // Struct's numbers are doubles: beyond 2^53 they may have lost what was meant.
      const double number = value.number_value();
      if (std::trunc(number) != number || std::abs(number) > 9007199254740992.0) {
        return bad_field("context", "holds a number that is not whole or beyond 2^53: send `context_json`");
      }
      return Json(static_cast<std::int64_t>(number));
    }
    case google::protobuf::Value::kStructValue:
      return json_from(value.struct_value(), depth);
    case google::protobuf::Value::kListValue: {
      Json array = Json::array();
      for (const auto& member : value.list_value().values()) {
        Json element = CRETO_TRY(json_from(member, depth + 1));
        array.push_back(std::move(element));
      }
      return array;
    }
    default:
      return bad_field("context", "holds null, for which Cedar has no word");
  }
}

}  // namespace

void to_proto(const EntityUid& uid, v1::EntityUid& out) {
  out.set_type(uid.type);
  out.set_id(uid.id);
}

Result<EntityUid> from_proto(const v1::EntityUid& uid) {
  if (uid.type().empty()) return bad_field("type", "of an entity is missing");
  return EntityUid{uid.type(), uid.id()};
}

void to_proto(const CheckRequest& request, v1::CheckRequest& out) {
  out.set_principal(request.principal.text());
  for (const Identity& link : request.chain) out.add_delegation_chain(link.text());
  out.set_action(request.action);
  to_proto(request.resource, *out.mutable_resource());
  if (!request.context.empty()) {
    out.set_context_json(attributes_to_json(request.context).dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  if (request.arguments_hash != Hash256{}) out.set_arguments_hash(proto::to_text(request.arguments_hash));
  out.set_override_token(request.override_token);
}

namespace {

/// `field` says where the JSON came from.
Result<Attributes> context_from(const Result<Json>& json, std::string_view field) {
  const auto wrong = [field](ErrorKind kind, std::string_view what) {
    return Error(Product::platform, kind, fmt::format("{}: {}", field, what));
  };
  if (!json) return wrong(json.error().kind(), json.error().message());
  if (!json->is_object()) return wrong(ErrorKind::invalid_input, "must be a JSON object");
  auto attributes = attributes_from_json(*json);
  if (!attributes) return wrong(attributes.error().kind(), attributes.error().message());
  return attributes;
}

}  // namespace

Result<CheckRequest> from_proto(const v1::CheckRequest& request) {
  Identity principal = CRETO_TRY(proto::from_identity(request.principal(), "principal"));
  DelegationChain chain;
  for (const std::string& link : request.delegation_chain()) {
    Identity identity = CRETO_TRY(proto::from_identity(link, "delegation_chain"));
    chain.push_back(std::move(identity));
  }
  EntityUid resource = CRETO_TRY(from_proto(request.resource()));
  Attributes context;
  if (request.has_context() && !request.context_json().empty()) {
    return bad_field("context_json", "stands instead of `context`, not beside it");
  }
  if (request.has_context()) {
    const Json json = CRETO_TRY(json_from(request.context(), 0));
    context = CRETO_TRY(context_from(json, "context"));
  } else if (!request.context_json().empty()) {
    context = CRETO_TRY(context_from(parse_json(request.context_json()), "context_json"));
  }
  const Hash256 hash = CRETO_TRY(hash_from(request.arguments_hash(), "arguments_hash"));
  return CheckRequest{.principal = std::move(principal),
                      .chain = std::move(chain),
                      .action = request.action(),
                      .resource = std::move(resource),
                      .context = std::move(context),
                      .arguments_hash = hash,
                      .override_token = request.override_token()};
}

void to_proto(const Decision& decision, v1::Decision& out) {
  if (std::holds_alternative<Allow>(decision)) {
    out.mutable_allow();
  } else if (const auto* deny = std::get_if<Deny>(&decision)) {
    out.mutable_deny()->set_reason(deny->reason);
    out.mutable_deny()->set_policy_id(deny->policy);
    out.mutable_deny()->set_transient(deny->transient);
  } else if (const auto* oversight = std::get_if<RequiresOversight>(&decision)) {
    auto* requires_oversight = out.mutable_requires_oversight();
    for (const auto& requirement : oversight->requirements) {
      auto* one = requires_oversight->add_requirements();
      one->set_forbid(requirement.forbid);
      one->set_oversight_policy(requirement.oversight_policy);
      if (requirement.timeout) proto::set_duration(one->mutable_timeout(), *requirement.timeout);
      for (const std::string& approver : requirement.approvers) one->add_required_approvers(approver);
    }
  } else if (const auto* quota = std::get_if<QuotaExceeded>(&decision)) {
    out.mutable_quota_exceeded()->set_quota_id(quota->quota_id);
    out.mutable_quota_exceeded()->set_limit(quota->limit);
    out.mutable_quota_exceeded()->set_used(quota->used);
    out.mutable_quota_exceeded()->set_message(quota->message);
    if (quota->reset_at) proto::set_time(out.mutable_quota_exceeded()->mutable_reset_at(), *quota->reset_at);
  } else if (const auto* rate = std::get_if<RateLimited>(&decision)) {
    proto::set_duration(out.mutable_rate_limited()->mutable_retry_after(), rate->retry_after);
    out.mutable_rate_limited()->set_requests_remaining(rate->requests_remaining);
  }
}

Result<Decision> from_proto(const v1::Decision& decision) {
  switch (decision.result_case()) {
    case v1::Decision::kAllow:
      return Decision(Allow{});
    case v1::Decision::kDeny:
      return Decision(Deny{.reason = decision.deny().reason(),
                           .policy = decision.deny().policy_id(),
                           .transient = decision.deny().transient()});
    case v1::Decision::kRequiresOversight: {
      RequiresOversight oversight;
      for (const auto& one : decision.requires_oversight().requirements()) {
        RequiresOversight::Requirement requirement{one.forbid(), one.oversight_policy(), std::nullopt, {}};
        if (one.has_timeout()) requirement.timeout = CRETO_TRY(proto::from_duration(one.timeout(), "timeout"));
        requirement.approvers.assign(one.required_approvers().begin(), one.required_approvers().end());
        oversight.requirements.push_back(std::move(requirement));
      }
      return Decision(std::move(oversight));
    }
    case v1::Decision::kQuotaExceeded: {
      const auto& from = decision.quota_exceeded();
      QuotaExceeded quota{from.quota_id(), from.limit(), from.used(), std::nullopt, from.message()};
      if (from.has_reset_at()) quota.reset_at = CRETO_TRY(proto::from_time(from.reset_at(), "reset_at"));
      return Decision(std::move(quota));
    }
    case v1::Decision::kRateLimited: {
      const Nanos after = CRETO_TRY(proto::from_duration(decision.rate_limited().retry_after(), "retry_after"));
      return Decision(RateLimited{after, decision.rate_limited().requests_remaining()});
    }
    default:
      return bad_field("decision", "is missing");
  }
}

void to_proto(const Explanation& explanation, v1::ExplainResponse& out) {
  to_proto(explanation.decision, *out.mutable_decision());
  for (const PolicyId& id : explanation.reasons) out.add_matched_policies(id);
  for (const auto& [id, message] : explanation.errors) {
    auto* one = out.add_errors();
    one->set_policy_id(id);
    one->set_message(message);
  }
  for (const PolicyId& id : explanation.lifted) out.add_lifted(id);
  out.set_snapshot(explanation.snapshot);
  out.set_decided_by(explanation.decided_by);
  out.set_decided_by_name(explanation.decided_by_name);
  for (const PolicyVerdict& verdict : explanation.policies) {
    auto* one = out.add_policies();
    one->set_policy_id(verdict.policy);
    one->set_forbids(verdict.forbids);
    // The outcomes have the same order, behind the one that is not said.
    one->set_outcome(static_cast<v1::ExplainResponse::Verdict::Outcome>(static_cast<int>(verdict.outcome) + 1));
    one->set_because(verdict.because);
    one->set_line(static_cast<std::uint32_t>(verdict.line));
    one->set_column(static_cast<std::uint32_t>(verdict.column));
    for (const auto& [expression, value] : verdict.saw) {
      auto* seen = one->add_saw();
      seen->set_expression(expression);
      seen->set_value(value);
    }
  }
  out.set_policies_left_out(static_cast<std::uint32_t>(explanation.policies_left_out));
}

Result<Explanation> from_proto(const v1::ExplainResponse& response) {
  using Verdict = v1::ExplainResponse::Verdict;
  Explanation explanation;
  explanation.snapshot = response.snapshot();
  explanation.decided_by = response.decided_by();
  explanation.decided_by_name = response.decided_by_name();
  explanation.policies_left_out = response.policies_left_out();
  for (const auto& one : response.policies()) {
    if (one.outcome() < Verdict::OUTCOME_APPLIES || one.outcome() > Verdict::OUTCOME_CONDITION)
      return bad_field("outcome", "is not known here");
    PolicyVerdict& verdict = explanation.policies.emplace_back();
    verdict.policy = one.policy_id();
    verdict.forbids = one.forbids();
    verdict.outcome = static_cast<PolicyVerdict::Outcome>(one.outcome() - 1);
    verdict.because = one.because();
    verdict.line = one.line();
    verdict.column = one.column();
    for (const auto& seen : one.saw()) verdict.saw.emplace_back(seen.expression(), seen.value());
  }
  explanation.decision = CRETO_TRY(from_proto(response.decision()));
  explanation.reasons.assign(response.matched_policies().begin(), response.matched_policies().end());
  for (const auto& one : response.errors()) explanation.errors.emplace_back(one.policy_id(), one.message());
  explanation.lifted.assign(response.lifted().begin(), response.lifted().end());
  return explanation;
}

void to_proto(const VerifiedOverride& verified, v1::VerifyOverrideResponse& out) {
  out.set_request_id(verified.request.to_string());
  proto::set_time(out.mutable_expires_at(), verified.expires_at);
  for (const auto& lift : verified.lifts) {
    auto* one = out.add_lifts();
    one->set_forbid(lift.forbid);
    one->set_oversight_policy(lift.oversight_policy);
  }
}

Result<VerifiedOverride> from_proto(const v1::VerifyOverrideResponse& response) {
  const RequestId request = CRETO_TRY(proto::from_id<RequestId>(response.request_id(), "request_id"));
  const Instant expires_at = CRETO_TRY(proto::from_time(response.expires_at(), "expires_at"));
  VerifiedOverride verified{request, expires_at, {}};
  for (const auto& one : response.lifts()) verified.lifts.push_back({one.forbid(), one.oversight_policy()});
  return verified;
}

void to_proto(const FilterQuestion& question, v1::FilterResourcesRequest& out) {
  to_proto(question.request, *out.mutable_request());
  out.set_limit(static_cast<std::int32_t>(std::min<std::size_t>(question.limit, INT32_MAX)));
  if (question.after) out.set_after(*question.after);
  out.set_columns_json(question.columns);
  out.set_sqlite(question.sqlite);
}

Result<FilterQuestion> from_proto(const v1::FilterResourcesRequest& request) {
  CheckRequest check = CRETO_TRY(from_proto(request.request()));
  FilterQuestion question{.request = std::move(check),
                          .limit = 100,
                          .after = request.has_after() ? std::optional(request.after()) : std::nullopt,
                          .columns = request.columns_json(),
                          .sqlite = request.sqlite()};
  if (request.has_limit()) {
    if (request.limit() < 0) return bad_field("limit", "must not be negative");
    question.limit = static_cast<std::size_t>(request.limit());
  }
  return question;
}

void to_proto(const ResourceFilter& filter, v1::FilterResourcesResponse& out) {
  // The kinds have the same order, behind the one that is not said.
  out.set_kind(static_cast<v1::FilterResourcesResponse::Kind>(static_cast<int>(filter.kind) + 1));
  for (const std::string& id : filter.resources) out.add_resources(id);
  out.set_more(filter.more);
  out.set_residual(filter.residual);
  out.set_residual_json(filter.residual_json);
  out.set_where(filter.where);
  for (const auto& parameter : filter.parameters) {
    auto* one = out.add_parameters();
    if (const auto* number = std::get_if<std::int64_t>(&parameter))
      one->set_number(*number);
    else
      one->set_text(std::get<std::string>(parameter));
  }
  out.set_snapshot(filter.snapshot);
}

Result<ResourceFilter> from_proto(const v1::FilterResourcesResponse& response) {
  if (response.kind() < v1::FilterResourcesResponse::KIND_NONE ||
      response.kind() > v1::FilterResourcesResponse::KIND_SOME)
    return bad_field("kind", "is not known here");
  ResourceFilter filter;
  filter.kind = static_cast<ResourceFilter::Kind>(response.kind() - 1);
  filter.resources.assign(response.resources().begin(), response.resources().end());
  filter.more = response.more();
  filter.residual = response.residual();
  filter.residual_json = response.residual_json();
  filter.where = response.where();
  for (const auto& parameter : response.parameters()) {
    if (parameter.has_number())
      filter.parameters.emplace_back(parameter.number());
    else if (parameter.has_text())
      filter.parameters.emplace_back(parameter.text());
    else
      return bad_field("parameters", "has one without a value");
  }
  filter.snapshot = response.snapshot();
  return filter;
}

void to_proto(const Policy& policy, v1::Policy& out) {
  out.set_id(policy.id);
  out.set_text(policy.text);
  out.set_version(policy.version);
  proto::set_time(out.mutable_updated_at(), policy.updated_at);
  out.set_updated_by(policy.updated_by);
  for (const std::string& warning : policy.warnings) out.add_warnings(warning);
}

Result<Policy> from_proto(const v1::Policy& policy) {
  const Instant updated_at = CRETO_TRY(proto::from_time(policy.updated_at(), "updated_at"));
  return Policy{.id = policy.id(),
                .text = policy.text(),
                .version = policy.version(),
                .updated_at = updated_at,
                .updated_by = policy.updated_by(),
                .warnings = {policy.warnings().begin(), policy.warnings().end()}};
}

void to_proto(const PolicyLink& link, v1::PolicyLink& out) {
  out.set_id(link.id);
  out.set_template_id(link.template_id);
  if (link.principal) to_proto(*link.principal, *out.mutable_principal());
  if (link.resource) to_proto(*link.resource, *out.mutable_resource());
}

Result<PolicyLink> from_proto(const v1::PolicyLink& link) {
  PolicyLink result{.id = link.id(), .template_id = link.template_id()};
  if (link.has_principal()) result.principal = CRETO_TRY(from_proto(link.principal()));
  if (link.has_resource()) result.resource = CRETO_TRY(from_proto(link.resource()));
  return result;
}

void to_proto(const PolicyVersion& version, v1::PolicyVersion& out) {
  out.set_version(version.version);
  proto::set_time(out.mutable_made_at(), version.made_at);
  out.set_made_by(version.made_by);
  out.set_what(version.what);
  out.set_policies(version.policies);
  out.set_added(version.added);
  out.set_changed(version.changed);
  out.set_removed(version.removed);
  out.set_hash(proto::to_text(version.hash));
}

Result<PolicyVersion> from_proto(const v1::PolicyVersion& version) {
  const Instant made_at = CRETO_TRY(proto::from_time(version.made_at(), "made_at"));
  const Hash256 hash = CRETO_TRY(hash_from(version.hash(), "hash"));
  return PolicyVersion{.version = version.version(),
                       .made_at = made_at,
                       .made_by = version.made_by(),
                       .what = version.what(),
                       .policies = version.policies(),
                       .added = version.added(),
                       .changed = version.changed(),
                       .removed = version.removed(),
                       .hash = hash};
}

Result<VersionedPolicies> from_proto(const v1::PolicySet& set) {
  VersionedPolicies result;
  result.version = CRETO_TRY(from_proto(set.version()));
  for (const auto& one : set.policies()) {
    Policy policy = CRETO_TRY(from_proto(one));
    result.policies.push_back(std::move(policy));
  }
  result.schema = set.schema();
  return result;
}

void to_proto(const PolicyApplication& application, v1::ApplyPoliciesRequest& out) {
  for (const PolicyText& policy : application.policies) {
    auto* one = out.add_policies();
    one->set_id(policy.id);
    one->set_text(policy.text);
  }
  out.set_folder(application.folder);
  out.set_expected_version(application.expected_version);
  out.set_dry_run(application.dry_run);
}

PolicyApplication from_proto(const v1::ApplyPoliciesRequest& request) {
  PolicyApplication application{.policies = {},
                                .folder = request.folder(),
                                .expected_version = request.expected_version(),
                                .dry_run = request.dry_run()};
  for (const auto& one : request.policies()) application.policies.push_back({one.id(), one.text()});
  return application;
}

void to_proto(const AppliedPolicies& applied, v1::ApplyPoliciesResponse& out) {
  to_proto(applied.version, *out.mutable_version());
  for (const PolicyId& id : applied.added) out.add_added(id);
  for (const PolicyId& id : applied.changed) out.add_changed(id);
  for (const PolicyId& id : applied.removed) out.add_removed(id);
  for (const std::string& warning : applied.warnings) out.add_warnings(warning);
}

Result<AppliedPolicies> from_proto(const v1::ApplyPoliciesResponse& response) {
  AppliedPolicies applied;
  applied.version = CRETO_TRY(from_proto(response.version()));
  applied.added.assign(response.added().begin(), response.added().end());
  applied.changed.assign(response.changed().begin(), response.changed().end());
  applied.removed.assign(response.removed().begin(), response.removed().end());
  applied.warnings.assign(response.warnings().begin(), response.warnings().end());
  return applied;
}

void to_proto(const PolicySchema& schema, v1::PolicySchema& out) {
  out.set_text(schema.text);
  if (!schema.text.empty()) proto::set_time(out.mutable_updated_at(), schema.updated_at);
  out.set_updated_by(schema.updated_by);
}

Result<PolicySchema> from_proto(const v1::PolicySchema& schema) {
  const Instant updated_at = CRETO_TRY(proto::from_time(schema.updated_at(), "updated_at"));
  return PolicySchema{.text = schema.text(), .updated_at = updated_at, .updated_by = schema.updated_by()};
}

void to_proto(const ExtensionStatus& status, v1::ListExtensionsResponse::Extension& out) {
  out.set_name(status.name);
  out.set_priority(status.priority);
  proto::set_duration(out.mutable_budget(), status.budget);
  out.set_denies_on_failure(status.denies_on_failure);
  out.set_calls(status.calls);
  out.set_failures(status.failures);
  out.set_late(status.late);
}

Result<ExtensionStatus> from_proto(const v1::ListExtensionsResponse::Extension& extension) {
  const Nanos budget = CRETO_TRY(proto::from_duration(extension.budget(), "budget"));
  return ExtensionStatus{.name = extension.name(),
                         .priority = extension.priority(),
                         .budget = budget,
                         .denies_on_failure = extension.denies_on_failure(),
                         .calls = extension.calls(),
                         .failures = extension.failures(),
                         .late = extension.late()};
}

std::string entity_to_text(const Entity& entity) {
  return entity_to_json(entity).dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<Entity> entity_from_text(const std::string& text) {
  const Json json = CRETO_TRY(parse_json(text));
  return entity_from_json(json);
}

void to_proto(const OverrideGrant& grant, v1::IssueOverrideRequest& out) {
  out.set_request_id(grant.request.to_string());
  out.set_agent(grant.agent.text());
  out.set_action(grant.action);
  to_proto(grant.resource, *out.mutable_resource());
  out.set_arguments_hash(proto::to_text(grant.arguments_hash));
  for (const auto& lift : grant.lifts) {
    auto* one = out.add_lifts();
    one->set_forbid(lift.forbid);
    one->set_oversight_policy(lift.oversight_policy);
  }
  proto::set_time(out.mutable_expires_at(), grant.expires_at);
}

Result<OverrideGrant> from_proto(const v1::IssueOverrideRequest& request) {
  const RequestId id = CRETO_TRY(proto::from_id<RequestId>(request.request_id(), "request_id"));
  Identity agent = CRETO_TRY(proto::from_identity(request.agent(), "agent"));
  EntityUid resource = CRETO_TRY(from_proto(request.resource()));
  const Hash256 hash = CRETO_TRY(hash_from(request.arguments_hash(), "arguments_hash"));
  const Instant expires_at = CRETO_TRY(proto::from_time(request.expires_at(), "expires_at"));
  OverrideGrant grant{.request = id,
                      .agent = std::move(agent),
                      .action = request.action(),
                      .resource = std::move(resource),
                      .arguments_hash = hash,
                      .lifts = {},
                      .expires_at = expires_at};
  for (const auto& one : request.lifts()) grant.lifts.push_back({one.forbid(), one.oversight_policy()});
  return grant;
}

}  // namespace creto::authz
