#include <nlohmann/json.hpp>

#include "cedar/format.h"
#include "cedar/policy_json.h"
#include "creto/testing/fuzz_seeds.h"

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
    // The reader that tells every problem has some exactly where this one stops at the first.
    if (read_policies_json(text).ok() != set.has_value()) __builtin_trap();
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

CRETO_FUZZ_SEEDS(
    R"(0permit (principal == User::"a", action in [Action::"b", Action::"c"], resource is Doc in Group::"g")
when { context.n > 1 && principal has m.n && resource.t like "a*b\\*" } unless { if !(1 + 2 * -3 < 4) then true else [1, "x"].contains(2) };)",
    R"(0@id("x") @y forbid (principal is User, action, resource) when { ip("10.0.0.0/8").isInRange(ip("::1")) || decimal("1.5").lessThan(decimal("2.0"))
|| datetime("2024-10-15").offset(duration("1d")) >= datetime("2024-10-15T11:35:00Z") || {a: 1, "b": Set::"s"}.a == 1 || principal.hasTag("t") && principal.getTag("t") == "x" };)",
    R"(0permit (principal == ?principal, action, resource in ?resource);)",
    R"(1{"effect":"permit","principal":{"op":"==","entity":{"type":"User","id":"a"}},"action":{"op":"in","entities":[{"type":"Action","id":"b"}]},"resource":{"op":"is","entity_type":"Doc","in":{"entity":{"type":"G","id":"g"}}},"conditions":[{"kind":"when","body":{"&&":{"left":{"has":{"left":{"Var":"principal"},"attr":"m"}},"right":{"<":{"left":{".":{"left":{"Var":"context"},"attr":"n"}},"right":{"Value":1}}}}}},{"kind":"unless","body":{"like":{"left":{"Value":"x"},"pattern":["Wildcard",{"Literal":"a"}]}}},{"kind":"when","body":{"if-then-else":{"if":{"!":{"arg":{"Value":true}}},"then":{"Set":[{"neg":{"arg":{"Value":1}}}]},"else":{"Record":{"a":{"ip":[{"Value":"1.2.3.4"}]}}}}}}],"annotations":{"id":"x"}})",
    R"(1{"staticPolicies":{"p":{"effect":"forbid","principal":{"op":"All"},"action":{"op":"All"},"resource":{"op":"All"},"conditions":[]}},"templates":{"t":{"effect":"permit","principal":{"op":"==","slot":"?principal"},"action":{"op":"All"},"resource":{"op":"in","slot":"?resource"},"conditions":[]}},"templateLinks":[{"templateId":"t","newId":"l","values":{"?principal":{"type":"User","id":"a"},"?resource":{"type":"G","id":"g"}}}]})")
