// Entities and contexts as JSON against a schema: what is taken conforms, and so does what it is written as.
#include <nlohmann/json.hpp>

#include "cedar/conform.h"
#include "creto/common/assert.h"
#include "creto/testing/fuzz_seeds.h"

namespace {

using namespace creto;
using namespace creto::authz;
using namespace creto::authz::cedar;

const Schema& schema() {
  static const Schema known = Schema::resolve(parse_schema(R"(
      entity U in [U, G] = { a: Long, b?: { c?: U, d: Set<Long> }, e?: U, f: String, g: decimal, h: ipaddr, i?: Bool }
        tags Set<String>;
      entity G;
      entity C enum ["x", "y"];
      action p in q appliesTo { principal: U, resource: [U, G], context: { a?: U, b: datetime, c: C, d?: duration } };
      action q;)"))
                                  .value;
  return known;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto json = parse_json(text);
  if (!json) return 0;
  if (data[0] % 2 == 0) {
    const auto context = context_from_json(schema(), {"Action", "p"}, *json);
    if (!context) return 0;
    const auto again = context_from_json(schema(), {"Action", "p"}, attributes_to_json(*context));
    CRETO_ASSERT(again && *again == *context);
    return 0;
  }
  const auto entities = entities_from_json(schema(), *json);
  CRETO_ASSERT(read_entities_json(&schema(), text, {}).ok() == entities.has_value());
  if (!entities) return 0;
  for (const Entity& entity : *entities) {
    CRETO_ASSERT(check_entity(schema(), entity));
    const auto again = authz::entity_from_json(entity_to_json(entity));
    CRETO_ASSERT(again && entity_to_json(*again) == entity_to_json(entity));
  }
  return 0;
}

CRETO_FUZZ_SEEDS(R"(0{"a":{"type":"U","id":"u"},"b":"2024-10-15","c":{"__entity":{"type":"C","id":"x"}},"d":"1h"})",
                 R"(1[{"uid":{"type":"U","id":"u"},"attrs":{"a":1,"b":{"c":{"type":"U","id":"v"},"d":[1,2]},)"
                 R"("f":"x","g":"1.5","h":"10.0.0.0/8","i":true},"parents":[{"type":"G","id":"g"}],)"
                 R"("tags":{"t":["a"]}},{"uid":{"type":"G","id":"g"},"attrs":{},"parents":[]}])")
