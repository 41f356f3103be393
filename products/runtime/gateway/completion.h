#pragma once

#include "creto/common/json.h"
#include "creto/inference/inference.h"

namespace creto::runtime {

/// Reads OpenAI's chat completion request, as an agent inside `sandbox` sends it. Pure. Errors: invalid_input naming
/// the field.
Result<inference::CompletionRequest> read_completion(const Json& json, const SandboxId& sandbox);

}  // namespace creto::runtime
