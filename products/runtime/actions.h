#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "creto/authz/value.h"
#include "creto/common/json.h"
#include "creto/common/money.h"
#include "creto/common/result.h"
#include "creto/common/time.h"

namespace creto::runtime {

/// What one argument of a declared action may be.
struct ArgumentRule {
  enum class Type : std::uint8_t { string, decimal, integer, boolean } type = Type::string;
  bool required = false;
  std::size_t max = 1000;  ///< characters of a string
  int places = 2;          ///< of a decimal, at most 4: what Cedar compares
};

/// Something agents may do in the world: how policy calls it, where it goes, what is added that the agent never sees.
struct ActionDeclaration {
  std::string name;  ///< [a-z][a-z0-9_-]{0,63}
  std::string description;
  std::string cedar_action;   ///< "payments.pay"
  std::string resource_type;  ///< Cedar entity; `{argument}` in the id stands for that argument
  std::string resource_id;
  std::string upstream;  ///< http(s) URL
  std::string method = "POST";
  std::string idempotency_header = "Idempotency-Key";
  std::string secret_ref;  ///< of the vault; empty: none
  std::string secret_header = "Authorization";
  std::string secret_prefix;
  std::string amount_argument;    ///< empty: it costs nothing
  std::string currency_argument;  ///< empty: USD
  std::map<std::string, ArgumentRule> arguments;
  std::size_t response_bytes_max = 64 << 10;
  Nanos timeout = std::chrono::seconds(30);
};

/// Arguments that follow their rules, in every form they are needed in.
struct CheckedArguments {
  std::string canonical;      ///< RFC 8785: what is hashed, approved, sent
  authz::Attributes context;  ///< for policies: strings, decimals, longs, booleans
  std::string resource_id;
  std::optional<Money> cost;
};

/// Reads the YAML or JSON of docs/formats.md, "Actions". `${NAME}` comes from `variables`; an unknown one is an error.
/// Errors: invalid_input naming the action and the field.
Result<std::map<std::string, ActionDeclaration>> parse_actions(std::string_view text,
                                                               const std::map<std::string, std::string>& variables);

/// Errors: invalid_input naming the argument and the rule.
Result<CheckedArguments> check_arguments(const ActionDeclaration& action, const Json& arguments);

}  // namespace creto::runtime
