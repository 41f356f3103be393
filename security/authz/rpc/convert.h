#pragma once

#include "creto/authz/authz.h"
#include "creto/authz/v1/authz.pb.h"
#include "creto/io/proto.h"

/// `to_proto` is total; `from_proto` refuses what a domain type cannot hold, with invalid_input naming the field.
namespace creto::authz {

void to_proto(const EntityUid& uid, v1::EntityUid& out);
Result<EntityUid> from_proto(const v1::EntityUid& uid);

void to_proto(const CheckRequest& request, v1::CheckRequest& out);
Result<CheckRequest> from_proto(const v1::CheckRequest& request);

void to_proto(const Decision& decision, v1::Decision& out);
Result<Decision> from_proto(const v1::Decision& decision);
void to_proto(const Explanation& explanation, v1::ExplainResponse& out);
Result<Explanation> from_proto(const v1::ExplainResponse& response);
void to_proto(const VerifiedOverride& verified, v1::VerifyOverrideResponse& out);
Result<VerifiedOverride> from_proto(const v1::VerifyOverrideResponse& response);
void to_proto(const FilterQuestion& question, v1::FilterResourcesRequest& out);
Result<FilterQuestion> from_proto(const v1::FilterResourcesRequest& request);
void to_proto(const ResourceFilter& filter, v1::FilterResourcesResponse& out);
Result<ResourceFilter> from_proto(const v1::FilterResourcesResponse& response);

void to_proto(const Policy& policy, v1::Policy& out);
Result<Policy> from_proto(const v1::Policy& policy);
void to_proto(const PolicyLink& link, v1::PolicyLink& out);
Result<PolicyLink> from_proto(const v1::PolicyLink& link);

void to_proto(const PolicyVersion& version, v1::PolicyVersion& out);
Result<PolicyVersion> from_proto(const v1::PolicyVersion& version);
Result<VersionedPolicies> from_proto(const v1::PolicySet& set);
void to_proto(const PolicyApplication& application, v1::ApplyPoliciesRequest& out);
PolicyApplication from_proto(const v1::ApplyPoliciesRequest& request);
void to_proto(const AppliedPolicies& applied, v1::ApplyPoliciesResponse& out);
Result<AppliedPolicies> from_proto(const v1::ApplyPoliciesResponse& response);
void to_proto(const PolicySchema& schema, v1::PolicySchema& out);
Result<PolicySchema> from_proto(const v1::PolicySchema& schema);
void to_proto(const ExtensionStatus& status, v1::ListExtensionsResponse::Extension& out);
Result<ExtensionStatus> from_proto(const v1::ListExtensionsResponse::Extension& extension);

std::string entity_to_text(const Entity& entity);
Result<Entity> entity_from_text(const std::string& text);

void to_proto(const OverrideGrant& grant, v1::IssueOverrideRequest& out);
Result<OverrideGrant> from_proto(const v1::IssueOverrideRequest& request);

}  // namespace creto::authz
