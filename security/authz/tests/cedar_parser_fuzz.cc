#include "cedar/entity_table.h"
#include "cedar/parser.h"

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
