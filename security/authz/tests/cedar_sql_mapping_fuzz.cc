#include "cedar/entity_table.h"
#include "cedar/parser.h"
#include "cedar/sql_filter.h"
#include "creto/testing/fuzz_seeds.h"

namespace {

using namespace creto::authz;
using namespace creto::authz::cedar;

const PolicySet& policies() {
  static const PolicySet set = [] {
    auto parsed = parse_policies(R"(
        permit(principal, action, resource in Folder::"f")
        when { resource.a == 1 || resource.b == principal || resource.c.d like "x*" || resource.getTag("t") == "x" };
        permit(principal, action, resource)
        when { resource has e.f && resource.s.contains("x") && principal in resource.g && resource.b in Group::"g" };
        forbid(principal, action, resource) unless { resource.open };)");
    std::vector<std::shared_ptr<const PlannedPolicy>> all;
    for (PolicyAst& ast : *parsed) all.push_back(std::make_shared<PlannedPolicy>("p", std::move(ast)));
    return PolicySet(std::move(all));
  }();
  return set;
}

}  // namespace

/// Whatever the mapping, a condition has its parameters, and quotes only around names.
extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const auto mapping = parse_sql_mapping({reinterpret_cast<const char*>(data), size});
  if (!mapping) return 0;
  EntityTable none;
  const auto partial = evaluate_partially(
      policies(), {{EntityUid{"User", "a"}}, {EntityUid{"Action", "b"}}, {std::nullopt, "Doc"}}, none);
  if (!partial) __builtin_trap();
  for (const SqlDialect dialect : {SqlDialect::sqlite, SqlDialect::postgres}) {
    const auto filter = to_sql(*partial, *mapping, none, {.dialect = dialect, .numbered = false});
    if (!filter) continue;
    std::size_t marks = 0;
    bool quoted = false;
    for (const char c : filter->where) {
      if (c == '"') quoted = !quoted;
      if (!quoted && (c == ';' || c == '\0')) __builtin_trap();
      marks += !quoted && c == '?' ? 1 : 0;
    }
    if (quoted || marks != filter->parameters.size()) __builtin_trap();
  }
  return 0;
}

CRETO_FUZZ_SEEDS(
    R"({"schema_version": 1, "id": "\"d\".id", "attributes": {"a": {"column": "a", "type": "long"}, "b": {"column": "b", "type": "entity", "entity": "User"}, "c.d": {"column": "c", "type": "string"}, "e.f": {"column": "e", "type": "bool", "nullable": false}, "s": {"table": "s", "key": "k", "value": "v", "type": "string"}, "g": {"column": "g", "type": "entity", "entity": "Group"}, "open": {"column": "o", "type": "bit"}}, "tags": {"t": {"column": "t", "type": "string"}}, "ancestors": {"Doc": {"Folder": {"column": "f"}}, "User": {"Group": {"table": "ug", "descendant": "u", "ancestor": "g"}}}})")
