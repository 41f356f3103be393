#include <nlohmann/json.hpp>

#include "cedar/conform.h"
#include "cedar/entity_table.h"
#include "cedar/parser.h"
#include "cedar/validate.h"
#include "creto/testing/fuzz_seeds.h"

namespace {

using namespace creto::authz;
using namespace creto::authz::cedar;

const Schema& schema() {
  static const Schema known = Schema::resolve(parse_schema(R"(
      entity U in [G] = { a: Long, b?: { c?: U, d: Set<Long> }, e?: U, f: String, g: decimal, h: ipaddr, i: Bool } tags Long;
      entity G in [G] = { a: Bool };
      entity C enum ["x", "y"];
      action p in q appliesTo { principal: U, resource: [U, G], context: { a?: U, b: datetime, c: C, d?: duration } };
      action q appliesTo { principal: G, resource: U };)"))
                                  .value;
  return known;
}

/// A request and entities that conform.
Request request() {
  return {{"U", "u"},
          {"Action", "p"},
          {"G", "g"},
          Value::record(
              {{"a", Value(EntityUid{"U", "u"})}, {"b", Value(DatetimeValue{1})}, {"c", Value(EntityUid{"C", "x"})}})};
}
EntityTable entities() {
  EntityTable table;
  table.add({{"U", "u"},
             {{"a", 1},
              {"e", Value(EntityUid{"U", "u"})},
              {"f", "x"},
              {"g", Value(DecimalValue{1})},
              {"h", Value(IpValue{})},
              {"i", true}},
             {{"t", 1}},
             {{"G", "g"}}});
  table.add({{"G", "g"}, {{"a", true}}, {}, {}});
  table.add({{"C", "x"}, {}, {}, {}});
  table.add({{"C", "y"}, {}, {}, {}});
  for (creto::authz::Entity& action : schema().action_entities()) table.add(std::move(action));
  return table;
}

bool is_excused(const std::string& error) {
  // What the validator does not promise: arithmetic and dates within bounds, and that an entity is there.
  for (const char* part : {"overflow", "is not known", "range"}) {
    if (error.find(part) != std::string::npos) return true;
  }
  return false;
}

}  // namespace

/// A policy that the validator passes does not err on what conforms.
extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const auto parsed = parse_policies_and_templates({reinterpret_cast<const char*>(data), size});
  for (const PolicyAst& policy : parsed.value) {
    const bool strict = validate(schema(), policy, {.level_max = 3}).passed();
    const bool permissive = validate(schema(), policy, {.mode = ValidationMode::permissive}).passed();
    if (strict && !permissive) __builtin_trap();
    if (!permissive || policy.is_template()) continue;
    EntityTable table = entities();
    const auto satisfied = is_satisfied(policy, request(), table);
    if (!satisfied && !is_excused(satisfied.error().message())) __builtin_trap();
  }
  return 0;
}

CRETO_FUZZ_SEEDS(
    R"(permit (principal == U::"u", action == Action::"p", resource is G) when { principal.a + 1 > 2 && principal has b.c && principal.b.c.f like "x*" };)",
    R"(forbid (principal, action in Action::"q", resource) when { principal has e && principal.e.i && context.b < datetime("2024-10-15") && context has d && context.d.toDays() == 1 && context.c == C::"x" };)",
    R"(permit (principal is U, action == Action::"p", resource) unless { if principal.hasTag("t") then principal.getTag("t") == 1 else principal.g.greaterThan(decimal("1.0")) || principal.h.isIpv4() || [1].containsAny(principal.b.d) };)")
