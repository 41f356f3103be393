// What an operator declares and what an agent asks for: any bytes are read or refused.
#include <cstdint>
#include <nlohmann/json.hpp>

#include "actions.h"
#include "creto/common/assert.h"
#include "creto/testing/fuzz_seeds.h"
#include "gateway/completion.h"

using namespace creto;           // NOLINT: a program of its own
using namespace creto::runtime;  // NOLINT: likewise

namespace {

const std::map<std::string, ActionDeclaration>& declared() {
  static const auto actions = parse_actions(R"(
schema_version: 1
actions:
  - {name: pay, cedar_action: payments.pay, resource: 'Ledger::"{to}"', upstream: 'http://ledger/', amount: amount,
     currency: currency, arguments: {to: {type: string, max: 8, required: true}, amount: {type: decimal},
     currency: {type: string}, copies: {type: integer}, urgent: {type: boolean}}}
)",
                                            {})
                                  .value();
  return actions;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) {
    const auto actions = parse_actions(text, {{"LEDGER", "http://ledger"}});
    if (!actions) return 0;
    // Whatever was accepted can be asked for.
    for (const auto& [name, action] : *actions) {
      CRETO_ASSERT(name == action.name);
      Json arguments = Json::object();
      for (const auto& [argument, rule] : action.arguments)
        arguments[argument] = rule.type == ArgumentRule::Type::boolean   ? Json(true)
                              : rule.type == ArgumentRule::Type::integer ? Json(7)
                                                                         : Json("1");
      (void)check_arguments(action, arguments);
    }
    return 0;
  }
  const auto json = parse_json(text);
  if (!json) return 0;
  (void)read_completion(*json, SandboxId::from_bytes({}));
  const auto checked = check_arguments(declared().at("pay"), *json);
  if (!checked) return 0;
  const auto again = check_arguments(declared().at("pay"), parse_json(checked->canonical).value());
  CRETO_ASSERT(again && again->canonical == checked->canonical && again->resource_id == checked->resource_id);
  return 0;
}

CRETO_FUZZ_SEEDS(
    "0schema_version: 1\nactions:\n  - {name: pay, description: d, cedar_action: payments.pay, resource: "
    "'Ledger::\"{to}\"', upstream: '${LEDGER}/pay',\n"
    "     method: PUT, idempotency_header: K, secret: {ref: a/b, header: H, prefix: 'Bearer '}, amount: amount, "
    "currency: currency,\n"
    "     arguments: {to: {type: string, max: 8, required: true}, amount: {type: decimal, places: 2}, currency: {type: "
    "string}},\n"
    "     response_bytes_max: 1000, timeout: 5s}\n",
    R"(1{"to":"x","amount":"12.50","currency":"USD","copies":2,"urgent":true})",
    R"(1{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"hi"}],"max_tokens":5,"temperature":0.5,"stop":["x"],"response_format":{"type":"json_object"}})")
