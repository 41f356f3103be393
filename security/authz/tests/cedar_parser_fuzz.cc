#include "cedar/entity_table.h"
#include "cedar/parser.h"
#include "creto/testing/fuzz_seeds.h"

/// Whatever parses also runs, without a crash and to the same end twice.
extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace creto::authz;
  auto parsed = cedar::parse_policies({reinterpret_cast<const char*>(data), size});
  if (!parsed) return 0;
  const cedar::Request request{{"User", "a"}, {"Action", "b"}, {"Doc", "c"}, Value::record({{"n", 1}})};
  for (const auto& policy : *parsed) {
    cedar::EntityTable table;
    table.add({{"User", "a"}, {{"n", 1}}, {{"t", "x"}}, {{"Group", "g"}}});
    const auto first = cedar::is_satisfied(policy, request, table);
    const auto second = cedar::is_satisfied(policy, request, table);
    if (first.has_value() != second.has_value()) __builtin_trap();
  }
  return 0;
}

CRETO_FUZZ_SEEDS(
    R"(permit (principal == User::"a", action in [Action::"b", Action::"c"], resource is Doc in Group::"g")
when { context.n > 1 && principal has m.n && resource.t like "a*b\\*" } unless { if !(1 + 2 * -3 < 4) then true else [1, "x"].contains(2) };)",
    R"(@id("x") @y forbid (principal is User, action, resource) when { ip("10.0.0.0/8").isInRange(ip("::1")) || decimal("1.5").lessThan(decimal("2.0"))
|| datetime("2024-10-15").offset(duration("1d")) >= datetime("2024-10-15T11:35:00Z") || {a: 1, "b": Set::"s"}.a == 1 || principal.hasTag("t") && principal.getTag("t") == "x" };)")
