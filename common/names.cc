#include "creto/common/names.h"

#include <fmt/format.h>

namespace creto::detail {

Error no_such_name(Product product, std::string_view what, std::string_view text, const std::string& allowed) {
  return Error(product, ErrorKind::invalid_input,
               fmt::format("{} `{}`: must be one of {}", what, text.substr(0, 64), allowed));
}

}  // namespace creto::detail
