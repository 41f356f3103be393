#include <nlohmann/json.hpp>

#include "cedar/format.h"
#include "cedar/schema.h"
#include "creto/testing/fuzz_seeds.h"

/// A schema that is read says the same after the way through either syntax, and the formatter keeps it.
extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace creto::authz::cedar;
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const bool json = data[0] % 2 == 1;
  const auto parsed = json ? parse_schema_json(text) : parse_schema(text);
  if (!parsed.ok()) return 0;
  const auto resolved = Schema::resolve(parsed);
  const auto from_json = schema_from_json(schema_to_json(parsed.value));
  if (!from_json.ok()) __builtin_trap();
  if (schema_to_json(from_json.value) != schema_to_json(parsed.value)) __builtin_trap();
  if (!json) {
    const auto laid_out = format_schema(text);
    if (!laid_out || format_schema(*laid_out).value_or("") != *laid_out) __builtin_trap();
  }
  if (!resolved.ok()) return 0;
  const auto printed = schema_to_text(parsed.value);
  if (!printed) return 0;  // what only JSON can say
  const auto again = parse_schema(*printed);
  if (!again.ok()) __builtin_trap();
  const auto resolved_again = Schema::resolve(again);
  if (!resolved_again.ok() || !(resolved_again.value == resolved.value)) __builtin_trap();
  return 0;
}

CRETO_FUZZ_SEEDS(
    R"(0namespace N::M { @doc("x") entity U, V in [G, A::B] = { a: Long, "b"?: { c?: U, d: Set<Long> }, e: __cedar::String, f: T } tags Set<String>; entity G; entity C enum ["x", "y"];
type T = { g: decimal, h: ipaddr, i: datetime, j: duration, k: Bool }; action p, "q r" in [Action::"s", t] appliesTo { principal: [U, V], resource: G, context: T }; action t, s; })",
    R"(1{"N":{"commonTypes":{"T":{"type":"Record","attributes":{"a":{"type":"Long"},"b":{"type":"Set","element":{"type":"EntityOrCommon","name":"U"},"required":false}}}},"entityTypes":{"U":{"memberOfTypes":["G"],"shape":{"type":"Record","attributes":{"n":{"type":"Extension","name":"ipaddr"}},"additionalAttributes":false},"tags":{"type":"String"},"annotations":{"doc":"x"}},"G":{},"C":{"enum":["x"]}},"actions":{"p":{"memberOf":[{"id":"q"}],"appliesTo":{"principalTypes":["U"],"resourceTypes":["G"],"context":{"type":"T"}}},"q":{}}}})")
