#include "actions.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "creto/common/bytes.h"
#include "errors.h"

namespace creto::runtime {
namespace {

constexpr int nodes_max = 20'000;

/// `nodes` counts what was read: aliases could make a short text endless.
Json from_yaml(const YAML::Node& node, int depth, int& nodes) {
  if (depth > 16) throw YAML::Exception(node.Mark(), "nested too deeply");
  if (++nodes > nodes_max) throw YAML::Exception(node.Mark(), "too large");
  switch (node.Type()) {
    case YAML::NodeType::Map: {
      Json object = Json::object();
      for (const auto& member : node) {
        auto key = member.first.as<std::string>();
        if (!is_valid_utf8(key)) throw YAML::Exception(member.first.Mark(), "not valid UTF-8");
        if (object.contains(key)) throw YAML::Exception(member.first.Mark(), "duplicate key");
        object[std::move(key)] = from_yaml(member.second, depth + 1, nodes);
      }
      return object;
    }
    case YAML::NodeType::Sequence: {
      Json array = Json::array();
      for (const auto& item : node) array.push_back(from_yaml(item, depth + 1, nodes));
      return array;
    }
    case YAML::NodeType::Scalar: {
      const auto& text = node.Scalar();
      if (!is_valid_utf8(text)) throw YAML::Exception(node.Mark(), "not valid UTF-8");
      if (node.Tag() == "!") return text;  // quoted
      if (text == "true" || text == "false") return text == "true";
      std::int64_t number = 0;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
      if (error == std::errc() && end == text.data() + text.size()) return number;
      return text;
    }
    default:
      return nullptr;
  }
}

Result<std::string> expand(const std::string& text, const std::map<std::string, std::string>& variables) {
  std::string out;
  std::size_t at = 0;
  for (;;) {
    const auto open = text.find("${", at);
    out.append(text, at, open - at);
    if (open == std::string::npos) return out;
    const auto close = text.find('}', open);
    if (close == std::string::npos) return invalid(fmt::format("`{}`: `${{` without `}}`", text));
    const auto name = text.substr(open + 2, close - open - 2);
    const auto found = variables.find(name);
    if (found == variables.end()) return invalid(fmt::format("`{}`: the variable `{}` is not set", text, name));
    out += found->second;
    at = close + 1;
  }
}

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= 64 && text.front() >= 'a' && text.front() <= 'z' &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-'; });
}

Result<ArgumentRule> read_rule(const Json& json, const std::string& path) {
  if (!json.is_object()) return invalid(fmt::format("{}: must be an object", path));
  JsonReader in(json, path);
  ArgumentRule rule;
  const auto type = in.text("type");
  if (type == "string")
    rule.type = ArgumentRule::Type::string;
  else if (type == "decimal")
    rule.type = ArgumentRule::Type::decimal;
  else if (type == "integer")
    rule.type = ArgumentRule::Type::integer;
  else if (type == "boolean")
    rule.type = ArgumentRule::Type::boolean;
  else
    in.refuse("type", "must be string, decimal, integer or boolean");
  rule.required = in.boolean_or("required", false);
  const auto max = in.integer_or("max", 1000);
  if (max < 1 || max > 65536) in.refuse("max", "must be 1 to 65536");
  rule.max = static_cast<std::size_t>(max);
  const auto places = in.integer_or("places", 2);
  if (places < 0 || places > 4) in.refuse("places", "must be 0 to 4");
  rule.places = static_cast<int>(places);
  CRETO_TRY(in.finish());
  return rule;
}

Result<ActionDeclaration> read_action(const Json& json, const std::string& path,
                                      const std::map<std::string, std::string>& variables) {
  if (!json.is_object()) return invalid(fmt::format("{}: must be an object", path));
  JsonReader in(json, path);
  ActionDeclaration action;
  action.name = in.text("name");
  if (!is_name(action.name)) in.refuse("name", "must be [a-z][a-z0-9_-]{0,63}");
  action.description = in.text_or("description", "");
  action.cedar_action = in.text("cedar_action");
  const auto resource = in.text_or("resource", "Org::\"default\"");
  const auto colons = resource.rfind("::\"");
  if (colons == std::string::npos || resource.back() != '"' || resource.size() < colons + 4) {
    in.refuse("resource", "must be a Cedar entity such as Ledger::\"main\"");
  } else {
    action.resource_type = resource.substr(0, colons);
    action.resource_id = resource.substr(colons + 3, resource.size() - colons - 4);
  }
  const auto upstream = in.text("upstream");
  action.method = in.text_or("method", "POST");
  if (action.method != "POST" && action.method != "PUT" && action.method != "PATCH" && action.method != "DELETE" &&
      action.method != "GET")
    in.refuse("method", "must be GET, POST, PUT, PATCH or DELETE");
  action.idempotency_header = in.text_or("idempotency_header", "Idempotency-Key");
  const Json secret = in.object("secret");
  action.amount_argument = in.text_or("amount", "");
  action.currency_argument = in.text_or("currency", "");
  const Json arguments = in.object("arguments");
  const auto response_max = in.integer_or("response_bytes_max", 65536);
  if (response_max < 1 || response_max > 16 << 20) in.refuse("response_bytes_max", "must be 1 to 16777216");
  action.response_bytes_max = static_cast<std::size_t>(response_max);
  const auto timeout = parse_duration(in.text_or("timeout", "30s"));
  if (!timeout || *timeout <= Nanos(0) || *timeout > std::chrono::minutes(10))
    in.refuse("timeout", "must be a duration of up to 10m");
  CRETO_TRY(in.finish());
  action.timeout = *timeout;
  action.upstream = CRETO_TRY(expand(upstream, variables));
  if (!action.upstream.starts_with("http://") && !action.upstream.starts_with("https://"))
    return invalid(fmt::format("{}.upstream: must be an http or https URL", path));
  if (!secret.empty()) {
    JsonReader s(secret, path + ".secret");
    action.secret_ref = s.text("ref");
    action.secret_header = s.text_or("header", "Authorization");
    action.secret_prefix = s.text_or("prefix", "");
    CRETO_TRY(s.finish());
  }
  for (const auto& [name, rule] : arguments.items())
    action.arguments[name] = CRETO_TRY(read_rule(rule, fmt::format("{}.arguments.{}", path, name)));
  const auto amount = action.arguments.find(action.amount_argument);
  if (!action.amount_argument.empty() &&
      (amount == action.arguments.end() || amount->second.type != ArgumentRule::Type::decimal))
    return invalid(fmt::format("{}.amount: must name a decimal argument", path));
  const auto currency = action.arguments.find(action.currency_argument);
  if (!action.currency_argument.empty() &&
      (currency == action.arguments.end() || currency->second.type != ArgumentRule::Type::string))
    return invalid(fmt::format("{}.currency: must name a string argument", path));
  return action;
}

Result<authz::Value> check_one(const ArgumentRule& rule, const std::string& name, const Json& value) {
  const auto refuse = [&](std::string_view why) { return invalid(fmt::format("arguments.{}: {}", name, why)); };
  switch (rule.type) {
    case ArgumentRule::Type::string: {
      if (!value.is_string()) return refuse("must be a string");
      const auto& text = value.get_ref<const std::string&>();
      const auto characters = std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
      if (static_cast<std::size_t>(characters) > rule.max)
        return refuse(fmt::format("is longer than {} characters", rule.max));
      if (rule.required && text.empty()) return refuse("must not be empty");
      return authz::Value(text);
    }
    case ArgumentRule::Type::decimal: {
      if (!value.is_string()) return refuse("must be a decimal number as a string, such as \"12.50\"");
      auto number = Decimal::parse(value.get_ref<const std::string&>());
      if (!number) return refuse("must be a decimal number as a string, such as \"12.50\"");
      auto rounded = number->round(rule.places, Decimal::Rounding::down);
      if (!rounded || *rounded != *number) return refuse(fmt::format("has more than {} places", rule.places));
      if (number->is_negative()) return refuse("must not be negative");
      auto scaled = Decimal::multiply(*number, Decimal(10'000));
      if (!scaled) return refuse("is too large");
      const auto whole = scaled->to_integer();
      if (!whole) return refuse("is too large");
      return authz::Value(authz::DecimalValue{*whole});
    }
    case ArgumentRule::Type::integer:
      if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<std::uint64_t>() > (1ull << 53)) ||
          (!value.is_number_unsigned() && value.get<std::int64_t>() < -(1ll << 53)))
        return refuse("must be an integer of at most 53 bits");
      return authz::Value(value.get<std::int64_t>());
    case ArgumentRule::Type::boolean:
      if (!value.is_boolean()) return refuse("must be true or false");
      return authz::Value(value.get<bool>());
  }
  return refuse("has an unknown type");
}

}  // namespace

Result<std::map<std::string, ActionDeclaration>> parse_actions(std::string_view text,
                                                               const std::map<std::string, std::string>& variables) {
  if (text.size() > 1 << 20)
    return Error(Product::runtime, ErrorKind::too_large, "the actions file is larger than 1 MiB");
  Json document;
  try {
    int nodes = 0;
    document = from_yaml(YAML::Load(std::string(text)), 0, nodes);  // JSON is YAML
  } catch (const YAML::Exception& problem) {
    return invalid(fmt::format("actions: {}", problem.what()));
  }
  if (!document.is_object()) return invalid("actions: must be an object");
  JsonReader in(document, "actions file");
  if (in.integer("schema_version") != 1) in.refuse("schema_version", "must be 1");
  const Json list = in.array("actions");
  CRETO_TRY(in.finish());
  std::map<std::string, ActionDeclaration> actions;
  for (std::size_t i = 0; i < list.size(); ++i) {
    auto action = CRETO_TRY(read_action(list[i], fmt::format("actions[{}]", i), variables));
    const auto name = action.name;
    if (!actions.emplace(name, std::move(action)).second)
      return invalid(fmt::format("actions[{}].name: `{}` is declared twice", i, name));
  }
  return actions;
}

Result<CheckedArguments> check_arguments(const ActionDeclaration& action, const Json& arguments) {
  if (!arguments.is_object()) return invalid("arguments: must be an object");
  CheckedArguments checked;
  for (const auto& [name, value] : arguments.items()) {
    const auto rule = action.arguments.find(name);
    if (rule == action.arguments.end())
      return invalid(fmt::format("arguments.{}: `{}` has no such argument", name.substr(0, 64), action.name));
    auto attribute = CRETO_TRY(check_one(rule->second, name, value));
    checked.context.emplace_back(name, std::move(attribute));
  }
  for (const auto& [name, rule] : action.arguments)
    if (rule.required && !arguments.contains(name)) return invalid(fmt::format("arguments.{}: is required", name));
  checked.canonical = CRETO_TRY(canonical_json(arguments));
  for (std::size_t at = 0; at < action.resource_id.size(); ++at) {
    const auto close = action.resource_id[at] == '{' ? action.resource_id.find('}', at) : std::string::npos;
    if (close == std::string::npos) {
      checked.resource_id += action.resource_id[at];
      continue;
    }
    const auto name = action.resource_id.substr(at + 1, close - at - 1);
    if (!arguments.contains(name) || !arguments[name].is_string())
      return invalid(fmt::format("arguments.{}: is needed to name the resource", name));
    checked.resource_id += arguments[name].get<std::string>();
    at = close;
  }
  if (!action.amount_argument.empty() && arguments.contains(action.amount_argument)) {
    Money cost;
    cost.amount = CRETO_TRY(Decimal::parse(arguments[action.amount_argument].get<std::string>()));
    if (!action.currency_argument.empty() && arguments.contains(action.currency_argument)) {
      auto currency = Currency::parse(arguments[action.currency_argument].get<std::string>());
      if (!currency) return invalid(fmt::format("arguments.{}: is no ISO 4217 code", action.currency_argument));
      cost.currency = *currency;
    }
    checked.cost = cost;
  }
  return checked;
}

}  // namespace creto::runtime
