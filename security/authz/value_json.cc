#include <fmt/format.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "cedar/extension_values.h"
#include "cedar/interpreter.h"
#include "cedar/schema.h"
#include "cedar/text.h"
#include "creto/authz/value.h"

namespace creto::authz {
namespace {

constexpr std::size_t depth_max = 64;

Error bad(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

Result<EntityUid> uid_from_json(const Json& json) {
  const Json* body = &json;
  if (json.is_object() && json.contains("__entity")) body = &json.at("__entity");
  if (!body->is_object() || body->size() != 2 || !body->contains("type") || !body->contains("id") ||
      !body->at("type").is_string() || !body->at("id").is_string()) {
    return bad("an entity is {\"type\": …, \"id\": …} with two strings");
  }
  EntityUid uid{body->at("type").get<std::string>(), body->at("id").get<std::string>()};
  if (!cedar::is_path(uid.type)) return bad(fmt::format("{} is no entity type", cedar::quote(uid.type.substr(0, 100))));
  return uid;
}

Result<Value> from_json(const Json& json, std::size_t depth);

/// `{"fn", "arg"}`, or `{"fn", "args"}` for what no single literal names.
Result<Value> extension_from_json(const Json& json, std::size_t depth) {
  const bool one = json.is_object() && json.contains("arg");
  if (!json.is_object() || json.size() != 2 || !json.contains("fn") || !json.at("fn").is_string() ||
      (!one && (!json.contains("args") || !json.at("args").is_array()))) {
    return bad("an extension value is {\"fn\": …, \"arg\": …}");
  }
  const auto name = json.at("fn").get<std::string>();
  const auto* function = cedar::find_extension_function(name);
  if (!function) return bad(fmt::format("there is no extension function {}", cedar::quote(name.substr(0, 100))));
  std::vector<Value> arguments;
  const auto add = [&](const Json& argument) -> Result<> {
    Value value = CRETO_TRY(from_json(argument, depth + 1));
    arguments.push_back(std::move(value));
    return {};
  };
  if (one) {
    CRETO_TRY(add(json.at("arg")));
  } else {
    for (const Json& argument : json.at("args")) {
      CRETO_TRY(add(argument));
    }
  }
  if (arguments.size() != function->arity) {
    return bad(fmt::format("`{}` takes {} arguments, got {}", name, function->arity, arguments.size()));
  }
  return function->call(arguments);
}

Result<Attributes> members(const Json& json, std::size_t depth) {
  Attributes attributes;
  attributes.reserve(json.size());
  for (const auto& [name, member] : json.items()) {
    auto value = from_json(member, depth + 1);
    if (!value) return bad(fmt::format("{}: {}", name, value.error().message()));
    attributes.emplace_back(name, *std::move(value));
  }
  return attributes;
}

Result<Value> from_json(const Json& json, std::size_t depth) {
  if (depth > depth_max) return bad(fmt::format("nested more than {} deep", depth_max));
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value(json.get<bool>());
    case Json::value_t::number_integer:
      return Value(json.get<std::int64_t>());
    case Json::value_t::number_unsigned:
      if (json.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        return bad("the integer does not fit into 64 bits");
      }
      return Value(json.get<std::int64_t>());
    case Json::value_t::string:
      return Value(json.get<std::string>());
    case Json::value_t::array: {
      std::vector<Value> elements;
      elements.reserve(json.size());
      for (const Json& member : json) {
        Value element = CRETO_TRY(from_json(member, depth + 1));
        elements.push_back(std::move(element));
      }
      return Value::set(std::move(elements));
    }
    case Json::value_t::object: {
      if (json.size() == 1 && json.contains("__entity")) {
        EntityUid uid = CRETO_TRY(uid_from_json(json));
        return Value(std::move(uid));
      }
      if (json.size() == 1 && json.contains("__extn")) return extension_from_json(json.at("__extn"), depth);
      if (json.size() == 1 && json.contains("__expr"))
        return bad("Cedar no longer has `__expr`: write the value itself");
      Attributes attributes = CRETO_TRY(members(json, depth));
      return Value::record(std::move(attributes));
    }
    case Json::value_t::number_float:
      return bad("Cedar has no fractions: use decimal, {\"__extn\": …}");
    default:
      return bad("Cedar has no null");
  }
}

Json uid_to_json(const EntityUid& uid) { return Json{{"type", uid.type}, {"id", uid.id}}; }

Json extension_to_json(std::string_view function, std::string argument) {
  return Json{{"__extn", Json{{"fn", function}, {"arg", std::move(argument)}}}};
}

}  // namespace

Result<Value> value_from_json(const Json& json) { return from_json(json, 0); }

Result<Attributes> attributes_from_json(const Json& json) {
  if (!json.is_object()) return bad("attributes are a JSON object");
  Attributes attributes = CRETO_TRY(members(json, 0));
  return *Value::record(std::move(attributes)).as_record();
}

Json value_to_json(const Value& value) {
  if (const auto* v = value.as<bool>()) return *v;
  if (const auto* v = value.as<std::int64_t>()) return *v;
  if (const auto* v = value.as<std::string>()) return *v;
  if (const auto* v = value.as<EntityUid>()) return Json{{"__entity", uid_to_json(*v)}};
  if (const auto* v = value.as<DecimalValue>()) return extension_to_json("decimal", cedar::format(*v));
  if (const auto* v = value.as<IpValue>()) return extension_to_json("ip", cedar::format(*v));
  if (const auto* v = value.as<DatetimeValue>()) {
    const std::string text = cedar::format(*v);
    if (cedar::parse_datetime(text)) return extension_to_json("datetime", text);
    Json args = Json::array({extension_to_json("datetime", "1970-01-01"),
                             extension_to_json("duration", cedar::format(DurationValue{v->unix_ms}))});
    return Json{{"__extn", Json{{"fn", "offset"}, {"args", std::move(args)}}}};
  }
  if (const auto* v = value.as<DurationValue>()) return extension_to_json("duration", cedar::format(*v));
  if (const auto* record = value.as_record()) return attributes_to_json(*record);
  Json array = Json::array();
  for (const Value& element : *value.as_set()) array.push_back(value_to_json(element));
  return array;
}

Json attributes_to_json(const Attributes& attributes) {
  Json object = Json::object();
  for (const auto& [name, value] : attributes) object[name] = value_to_json(value);
  return object;
}

Result<Entity> entity_from_json(const Json& json) {
  if (!json.is_object() || !json.contains("uid"))
    return bad("an entity is an object with `uid`, `attrs` and `parents`");
  for (const auto& [name, member] : json.items()) {
    if (name != "uid" && name != "attrs" && name != "tags" && name != "parents") {
      return bad(fmt::format("entity: unknown member `{}`", name));
    }
  }
  Entity entity;
  entity.uid = CRETO_TRY(uid_from_json(json.at("uid")));
  if (json.contains("attrs")) entity.attributes = CRETO_TRY(attributes_from_json(json.at("attrs")));
  if (json.contains("tags")) entity.tags = CRETO_TRY(attributes_from_json(json.at("tags")));
  if (json.contains("parents")) {
    if (!json.at("parents").is_array()) return bad("entity: `parents` is an array");
    for (const Json& member : json.at("parents")) {
      EntityUid parent = CRETO_TRY(uid_from_json(member));
      if (cedar::is_action_type(entity.uid.type) && !cedar::is_action_type(parent.type))
        return bad(
            fmt::format("{}: an action can only be in actions, not in {}", entity.uid.to_string(), parent.to_string()));
      entity.parents.push_back(std::move(parent));
    }
  }
  cedar::normalise(entity);
  return entity;
}

Json entity_to_json(const Entity& entity) {
  Json parents = Json::array();
  for (const EntityUid& parent : entity.parents) parents.push_back(uid_to_json(parent));
  Json json{{"uid", uid_to_json(entity.uid)},
            {"attrs", attributes_to_json(entity.attributes)},
            {"parents", std::move(parents)}};
  if (!entity.tags.empty()) json["tags"] = attributes_to_json(entity.tags);
  return json;
}

}  // namespace creto::authz
