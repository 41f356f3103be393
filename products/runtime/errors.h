#pragma once

#include <string>
#include <utility>

#include "creto/common/error.h"

namespace creto::runtime {

/// What the caller gave breaks a rule; `message` names the field first.
inline Error invalid(std::string message) {
  return Error(Product::runtime, ErrorKind::invalid_input, std::move(message));
}

}  // namespace creto::runtime
