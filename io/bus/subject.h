#pragma once

#include <string_view>

namespace creto::bus {

bool is_valid_subject(std::string_view subject);
bool is_valid_pattern(std::string_view pattern);
/// Requires: both are valid.
bool matches(std::string_view pattern, std::string_view subject);

}  // namespace creto::bus
