// A file that somebody hands to the command line: any text is read or refused.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "cli/yaml.h"
#include "creto/common/assert.h"
#include "creto/common/json.h"
#include "creto/testing/fuzz_seeds.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  const auto read = app::cli::json_from_yaml(std::string(reinterpret_cast<const char*>(data), size));
  // What it sends is JSON.
  if (read) CRETO_ASSERT(parse_json(read->dump(), {.bytes_max = 64 << 20, .depth_max = 65}).has_value());
  return 0;
}

CRETO_FUZZ_SEEDS("name: clerk\ntype: AGENT_TYPE_TOOL\nattributes: {team: \"accounts\", n: 3}\nlist:\n  - a\n  - ~\n",
                 "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
