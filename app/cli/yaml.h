#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "creto/common/json.h"

namespace creto::app::cli {

/// One YAML document as JSON: plain `true`, `false`, `null` and integers are what they look like, everything else, and
/// whatever is quoted, is text. Errors: invalid_input with line and column.
Result<Json> json_from_yaml(const std::string& text);

}  // namespace creto::app::cli
