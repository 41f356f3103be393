#pragma once

#include <string>

#include "creto/common/result.h"

namespace creto::runtime {

/// Writes the init program of sandboxes, which is part of this binary, into
/// `directory`, read-only and executable, and returns its path. Its name holds
/// the hash of its content, so a newer one never replaces one that is in use.
Result<std::string> install_init_program(const std::string& directory);

}  // namespace creto::runtime
