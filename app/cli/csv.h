#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "creto/common/json.h"
#include "creto/common/result.h"

namespace creto::app::cli {

/// The cells of one line (RFC 4180; a cell does not go over lines). Errors: invalid_input.
Result<std::vector<std::string>> split_csv(std::string_view line);

/// A line of usage by the names of the header, as a UsageReport: names that are none of its fields are properties, and
/// an empty cell is a field that is not given. Errors: invalid_input.
Result<Json> report_of_csv(const std::vector<std::string>& header, const std::vector<std::string>& cells);

}  // namespace creto::app::cli
