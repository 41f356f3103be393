#include <nlohmann/json.hpp>

#include "creto/authz/value.h"
#include "creto/testing/fuzz_seeds.h"

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

CRETO_FUZZ_SEEDS(
    R"({"a":[1,"x",true,{"__extn":{"fn":"ip","arg":"10.0.0.1/8"}}],"b":{"__entity":{"type":"N::U","id":"u"}},"c":{"__extn":{"fn":"decimal","arg":"1.5"}}})",
    R"({"uid":{"type":"U","id":"u"},"attrs":{"a":{"__extn":{"fn":"datetime","arg":"2024-10-15T11:35:00Z"}}},"tags":{"t":"x"},"parents":[{"__entity":{"type":"G","id":"g"}}]})")
