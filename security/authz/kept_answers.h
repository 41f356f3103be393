#pragma once

#include <string>
#include <string_view>

#include "creto/authz/authz.h"

/// What a change answered, as it is kept for who asks again under the same idempotency key.
namespace creto::authz {

std::string encode(const Policy& policy);
Result<Policy> decode(std::string_view text);

std::string encode_version(const PolicyVersion& version);
Result<PolicyVersion> decode_version(std::string_view text);

std::string encode_applied(const AppliedPolicies& applied);
Result<AppliedPolicies> decode_applied(std::string_view text);

}  // namespace creto::authz
