#include <nlohmann/json.hpp>

#include "cedar/format.h"
#include "cedar/policy_json.h"

namespace {

using namespace creto::authz::cedar;

/// Text and JSON of a policy read back as the same.
void check(const PolicyAst& policy) {
  const auto printed = parse_policies_and_templates(to_text(policy), {.bytes_max = 64 << 20});
  const auto json = to_json(policy);
  if (!printed.ok()) {
    // A tree from JSON may be nested more deeply than the parser lets parentheses be.
    if (printed.problems[0].what.find("nested more than") == std::string::npos) __builtin_trap();
    return;
  }
  if (!json) return;  // nested too deeply for JSON
  if (printed.value.size() != 1 || to_json(printed.value[0]).value_or(creto::Json()) != *json) __builtin_trap();
  const auto read = policy_from_json(*json);
  if (!read || to_json(*read).value_or(creto::Json()) != *json) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 1) {
    const auto set = parse_policies_json(text);
    if (!set) return 0;
    for (const auto* group : {&set->policies, &set->templates}) {
      for (const auto& [id, policy] : *group) check(policy);
    }
    (void)set->linked();
    return 0;
  }
  const auto parsed = parse_policies_and_templates(text);
  for (const PolicyAst& policy : parsed.value) check(policy);
  if (!parsed.ok()) return 0;
  const auto laid_out = format_policies(text);
  if (!laid_out || format_policies(*laid_out).value_or("") != *laid_out) __builtin_trap();
  return 0;
}
