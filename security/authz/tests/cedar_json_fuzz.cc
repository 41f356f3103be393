#include <nlohmann/json.hpp>

#include "creto/authz/value.h"

/// What is read is written as JSON that reads back as the same.
extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace creto;
  auto json = parse_json({reinterpret_cast<const char*>(data), size});
  if (!json) return 0;
  if (auto value = authz::value_from_json(*json)) {
    auto again = authz::value_from_json(authz::value_to_json(*value));
    if (!again || *again != *value) __builtin_trap();
  }
  (void)authz::entity_from_json(*json);
  return 0;
}
