#pragma once

#include <map>
#include <string>
#include <vector>

#include "creto/authz/authz.h"
#include "creto/common/json.h"
#include "creto/runtime/runtime.h"

/// What may be asked of a sandbox, and how it reads for those who decide on it. Pure.
namespace creto::runtime {

/// Errors of all: invalid_input or too_large, naming the field.
Result<> check_spec(const SandboxSpec& spec);
Result<> check_strings(std::string_view field, const std::vector<std::string>& values);
Result<> check_environment(const std::map<std::string, std::string>& environment);

/// How a sandbox is set up, whole: what an attestation vouches for, and what an approval is bound to.
Json config_json(const SandboxSpec& spec);
/// Its egress rules as policies see them.
authz::Value egress_value(const std::vector<EgressRule>& rules);

}  // namespace creto::runtime
