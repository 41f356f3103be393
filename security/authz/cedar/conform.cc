#include "cedar/conform.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>

#include "cedar/extension_values.h"
#include "cedar/json_places.h"
#include "cedar/text.h"

namespace creto::authz::cedar {
namespace {

using Kind = Type::Kind;

constexpr std::size_t depth_max = 64;

Error bad(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

std::string member_path(std::string_view path, std::string_view name) {
  const std::string spelled = is_identifier(name) ? std::string(name) : quote(name);
  return path.empty() ? spelled : fmt::format("{}.{}", path, spelled);
}

// --- JSON with types ------------------------------------------------------------------------------------------------

std::string_view constructor_of(Kind kind) {
  switch (kind) {
    case Kind::decimal:
      return "decimal";
    case Kind::ipaddr:
      return "ip";
    case Kind::datetime:
      return "datetime";
    case Kind::duration:
      return "duration";
    default:
      return {};
  }
}

/// `json` with the escapes that its type implies written out, so that there is one reader of values. What does not fit
/// the type stays as it is: the check afterwards says why.
Json escaped(const Json& json, const Type& type, std::size_t depth) {
  if (depth > depth_max) return json;
  switch (type.kind) {
    case Kind::entity:
      if (json.is_object() && json.size() == 2 && json.contains("type") && json.contains("id")) {
        return Json{{"__entity", json}};
      }
      return json;
    case Kind::decimal:
    case Kind::ipaddr:
    case Kind::datetime:
    case Kind::duration:
      if (json.is_string()) {
        Json call{{"fn", constructor_of(type.kind)}};
        call["arg"] = json;
        return Json{{"__extn", std::move(call)}};
      }
      if (json.is_object() && json.contains("fn")) return Json{{"__extn", json}};
      return json;
    case Kind::set: {
      if (!json.is_array()) return json;
      Json result = Json::array();
      for (const Json& element : json) result.push_back(escaped(element, *type.element, depth + 1));
      return result;
    }
    case Kind::record: {
      if (!json.is_object() || json.contains("__entity") || json.contains("__extn")) return json;
      Json result = Json::object();
      for (const auto& [name, member] : json.items()) {
        const auto attribute = type.attributes.find(name);
        result[name] =
            attribute == type.attributes.end() ? member : escaped(member, *attribute->second.type, depth + 1);
      }
      return result;
    }
    default:
      return json;
  }
}

// --- values against types -------------------------------------------------------------------------------------------

/// An entity that is named somewhere: its type is declared, and of an enumerated type the id too.
Result<> check_reference(const Schema& schema, const EntityUid& uid, std::string_view path) {
  const auto at = [&] { return path.empty() ? std::string() : fmt::format("{}: ", path); };
  if (is_action_type(uid.type)) {
    if (schema.action(uid)) return {};
    return bad(fmt::format("{}there is no action {}", at(), uid.to_string()));
  }
  const EntityTypeDef* def = schema.entity_type(uid.type);
  if (!def) {
    const std::string hint = did_you_mean(uid.type, schema.entity_type_names());
    return bad(fmt::format("{}there is no entity type `{}`{}{}", at(), uid.type, hint.empty() ? "" : "; ", hint));
  }
  if (!def->enumerated() || std::binary_search(def->choices.begin(), def->choices.end(), uid.id)) return {};
  return bad(
      fmt::format("{}{} is none of the entities that the schema lists for `{}`", at(), uid.to_string(), uid.type));
}

Result<> check_value(const Schema& schema, const Value& value, const Type& type, const std::string& path);

Result<> check_attributes(const Schema& schema, const Attributes& attributes, const Type& type,
                          const std::string& path) {
  for (const auto& [name, value] : attributes) {
    const auto declared = type.attributes.find(name);
    if (declared == type.attributes.end()) {
      std::vector<std::string> known;
      for (const auto& [other, attribute] : type.attributes) known.push_back(other);
      const std::string hint = did_you_mean(name, known);
      return bad(
          fmt::format("{}: there is no such attribute{}{}", member_path(path, name), hint.empty() ? "" : "; ", hint));
    }
    CRETO_TRY(check_value(schema, value, *declared->second.type, member_path(path, name)));
  }
  for (const auto& [name, declared] : type.attributes) {
    if (!declared.required || find_attribute(attributes, name)) continue;
    return bad(fmt::format("{}: this attribute is required", member_path(path, name)));
  }
  return {};
}

Result<> check_value(const Schema& schema, const Value& value, const Type& type, const std::string& path) {
  const auto wrong = [&] {
    return bad(fmt::format("{}: expected {}, got a {}", path, to_string(type), value.type_name()));
  };
  const auto expect = [&](bool fits) -> Result<> {
    if (fits) return {};
    return wrong();
  };
  switch (type.kind) {
    case Kind::boolean:
    case Kind::always_true:
    case Kind::always_false:
      return expect(value.as<bool>() != nullptr);
    case Kind::integer:
      return expect(value.as<std::int64_t>() != nullptr);
    case Kind::string:
      return expect(value.as<std::string>() != nullptr);
    case Kind::decimal:
      return expect(value.as<DecimalValue>() != nullptr);
    case Kind::ipaddr:
      return expect(value.as<IpValue>() != nullptr);
    case Kind::datetime:
      return expect(value.as<DatetimeValue>() != nullptr);
    case Kind::duration:
      return expect(value.as<DurationValue>() != nullptr);
    case Kind::entity: {
      const EntityUid* uid = value.as<EntityUid>();
      if (!uid) return wrong();
      if (std::find(type.entities.begin(), type.entities.end(), uid->type) == type.entities.end()) {
        return bad(fmt::format("{}: expected an entity of type {}, got {}", path, to_string(type), uid->to_string()));
      }
      return check_reference(schema, *uid, path);
    }
    case Kind::set: {
      const auto* elements = value.as_set();
      if (!elements) return wrong();
      for (const Value& element : *elements) {
        CRETO_TRY(check_value(schema, element, *type.element, path + "[]"));
      }
      return {};
    }
    case Kind::record: {
      const auto* attributes = value.as_record();
      if (!attributes) return wrong();
      return check_attributes(schema, *attributes, type, path);
    }
    case Kind::never:
    case Kind::any_entity:
      break;
  }
  return wrong();
}

Result<> check_action_entity(const Schema& schema, const Entity& entity) {
  const ActionDef* def = schema.action(entity.uid);
  if (!def) return bad(fmt::format("there is no action {}", entity.uid.to_string()));
  if (!entity.attributes.empty() || !entity.tags.empty()) {
    return bad(fmt::format("{}: actions have neither attributes nor tags", entity.uid.to_string()));
  }
  // Either the groups it is declared in, or all of their groups too.
  const std::set<EntityUid> parents(entity.parents.begin(), entity.parents.end());
  if (parents == std::set<EntityUid>(def->parents.begin(), def->parents.end()) || parents == def->ancestors) return {};
  return bad(fmt::format("{}: its groups are not those that the schema declares", entity.uid.to_string()));
}

/// Where in a text with entities the one at `index` has what `message` speaks of: an attribute, a tag, or all of it.
Position place_of(std::string_view text, const Json& entity, std::size_t index, std::string_view message) {
  const std::string whole = fmt::format("[{}]", index);
  const Position begin = json_place(text, whole);
  if (!entity.is_object()) return begin;
  if (const auto uid = authz::entity_from_json(Json{{"uid", entity.value("uid", Json())}})) {
    const std::string name = uid->uid.to_string();
    if (message.starts_with(name)) message.remove_prefix(name.size());
  }
  while (message.starts_with(".") || message.starts_with(":") || message.starts_with(" ")) message.remove_prefix(1);
  for (const char* group : {"attrs", "tags"}) {
    const std::string path = fmt::format("{}.{}", whole, group);
    const Position of_group = json_place(text, path);
    const Position place = json_place(text, fmt::format("{}.{}", path, message));
    if (place != of_group && of_group != begin) return place;
  }
  return begin;
}

/// Every entity below itself is one of these.
Result<> refuse_cycles(const std::vector<Entity>& entities) {
  enum class State : std::uint8_t { fresh, open, done };
  std::unordered_map<EntityUid, std::pair<const Entity*, State>> all;
  for (const Entity& entity : entities) all.emplace(entity.uid, std::pair{&entity, State::fresh});
  for (auto& [uid, start] : all) {
    if (start.second != State::fresh) continue;
    std::vector<std::pair<std::pair<const Entity*, State>*, std::size_t>> path{{&start, 0}};
    start.second = State::open;
    while (!path.empty()) {
      auto& [at, next] = path.back();
      if (next == at->first->parents.size()) {
        at->second = State::done;
        path.pop_back();
        continue;
      }
      const auto parent = all.find(at->first->parents[next++]);
      if (parent == all.end() || parent->second.second == State::done) continue;
      if (parent->second.second == State::open) {
        return bad(fmt::format("entity {} is in itself", parent->first.to_string()));
      }
      parent->second.second = State::open;
      path.emplace_back(&parent->second, 0);
    }
  }
  return {};
}

}  // namespace

Result<> check_entity(const Schema& schema, const Entity& entity) {
  if (is_action_type(entity.uid.type)) return check_action_entity(schema, entity);
  CRETO_TRY(check_reference(schema, entity.uid, {}));
  const EntityTypeDef& def = *schema.entity_type(entity.uid.type);
  const std::string name = entity.uid.to_string();
  CRETO_TRY(check_attributes(schema, entity.attributes, *def.shape, name));
  if (!entity.tags.empty() && !def.tags) return bad(fmt::format("{}: entities of this type have no tags", name));
  for (const auto& [key, value] : entity.tags) {
    CRETO_TRY(check_value(schema, value, *def.tags, fmt::format("{}, tag {}", name, quote(key))));
  }
  for (const EntityUid& parent : entity.parents) {
    if (!def.ancestors.contains(parent.type)) {
      return bad(fmt::format("{}: entities of type `{}` cannot be in {}", name, def.name, parent.to_string()));
    }
    CRETO_TRY(check_reference(schema, parent, name));
  }
  return {};
}

Result<Entity> entity_from_json(const Schema& schema, const Json& json) {
  Json whole = json;
  if (json.is_object() && json.contains("uid")) {
    const Json& uid = json.at("uid");
    const Json& body = uid.is_object() && uid.contains("__entity") ? uid.at("__entity") : uid;
    const bool typed = body.is_object() && body.contains("type") && body.at("type").is_string();
    const EntityTypeDef* def = typed ? schema.entity_type(body.at("type").get<std::string>()) : nullptr;
    if (def && json.contains("attrs")) whole["attrs"] = escaped(json.at("attrs"), *def->shape, 0);
    if (def && def->tags && json.contains("tags") && json.at("tags").is_object()) {
      for (auto& [key, value] : whole["tags"].items()) value = escaped(value, *def->tags, 0);
    }
  }
  Entity entity = CRETO_TRY(authz::entity_from_json(whole));
  CRETO_TRY(check_entity(schema, entity));
  return entity;
}

bool is_same(Entity a, Entity b) {
  for (Entity* one : {&a, &b}) {
    normalise(*one);
    std::sort(one->parents.begin(), one->parents.end());
    one->parents.erase(std::unique(one->parents.begin(), one->parents.end()), one->parents.end());
  }
  return a.uid == b.uid && a.attributes == b.attributes && a.tags == b.tags && a.parents == b.parents;
}

namespace {

/// As far as they can be read, each once, however often it stands there; each mistake is told to `wrong`, with the
/// number of the entity, which says whether to go on.
std::vector<Entity> read_entities(const Schema* schema, const Json& json,
                                  const std::function<bool(const EntityUid&)>& declared,
                                  const std::function<bool(std::size_t, const Error&)>& wrong) {
  std::vector<Entity> entities;
  std::unordered_map<EntityUid, std::size_t> seen;  // where in `entities`
  const auto read = [&](const Json& one) -> Result<Entity> {
    if (!schema) return authz::entity_from_json(one);
    if (!declared) return entity_from_json(*schema, one);
    Entity plain = CRETO_TRY(authz::entity_from_json(one));
    if (!declared(plain.uid)) return plain;
    return entity_from_json(*schema, one);
  };
  for (std::size_t i = 0; i < json.size(); ++i) {
    auto entity = read(json[i]);
    // An action of the schema is as that says, or an error.
    if (entity && schema && schema->action(entity->uid)) continue;
    if (entity) {
      const auto [first, fresh] = seen.emplace(entity->uid, entities.size());
      if (!fresh && is_same(entities[first->second], *entity)) continue;
      if (!fresh) entity = bad(fmt::format("{} stands twice, each time otherwise", entity->uid.to_string()));
    }
    if (entity) {
      entities.push_back(*std::move(entity));
    } else if (!wrong(i, entity.error())) {
      return entities;
    }
  }
  return entities;
}

}  // namespace

Result<std::vector<Entity>> entities_from_json(const Schema& schema, const Json& json,
                                               const std::function<bool(const EntityUid&)>& declared) {
  if (!json.is_array()) return bad("entities are a JSON array");
  std::optional<Error> first;
  auto entities = read_entities(&schema, json, declared, [&](std::size_t i, const Error& error) {
    first = bad(fmt::format("entity {}: {}", i + 1, error.message()));
    return false;
  });
  if (first) return *std::move(first);
  CRETO_TRY(refuse_cycles(entities));
  for (Entity& action : schema.action_entities()) entities.push_back(std::move(action));
  return entities;
}

Parsed<std::vector<Entity>> read_entities_json(const Schema* schema, std::string_view text, JsonLimits limits,
                                               const std::function<bool(const EntityUid&)>& declared) {
  auto read = read_json(text, limits);
  Parsed<std::vector<Entity>> parsed{{}, std::move(read.problems)};
  if (!read.value.whole) return parsed;
  const Json& json = read.value.json;
  if (!json.is_array()) {
    parsed.problems.push_back({json_place(text, ""), "entities are a JSON array"});
    return parsed;
  }
  std::size_t placed = 0;
  parsed.value = read_entities(schema, json, declared, [&](std::size_t i, const Error& error) {
    Problem problem{{0, 0}, fmt::format("entity {}: {}", i + 1, error.message())};
    if (placed++ < json_problems_placed) problem.where = place_of(read.value.text, json[i], i, error.message());
    parsed.problems.push_back(std::move(problem));
    return true;
  });
  std::sort(parsed.problems.begin(), parsed.problems.end());
  if (const auto acyclic = refuse_cycles(parsed.value); !acyclic)
    parsed.problems.push_back(problem_of(acyclic.error()));
  if (schema) {
    auto actions = schema->action_entities();
    std::move(actions.begin(), actions.end(), std::back_inserter(parsed.value));
  }
  return parsed;
}

Result<Attributes> context_from_json(const Schema& schema, const EntityUid& action, const Json& json,
                                     const std::set<std::string, std::less<>>& unknown) {
  const ActionDef* def = schema.action(action);
  if (!def) return bad(fmt::format("there is no action {}", action.to_string()));
  Attributes context = CRETO_TRY(attributes_from_json(escaped(json, *def->context, 0)));
  Type type = *def->context;
  for (const std::string& name : unknown) {
    const auto declared = type.attributes.find(name);
    if (declared == type.attributes.end()) {
      return bad(fmt::format("{}: there is no such attribute", member_path("context", name)));
    }
    declared->second.required = false;
  }
  CRETO_TRY(check_attributes(schema, context, type, "context"));
  return context;
}

Result<> check_request(const Schema& schema, const PartialRequest& request) {
  const ActionDef* action = nullptr;
  if (request.action.uid) {
    action = schema.action(*request.action.uid);
    if (!action) {
      std::vector<std::string> known;
      for (const auto& [uid, def] : schema.actions()) known.push_back(uid.to_string());
      const std::string name = request.action.uid->to_string();
      const std::string hint = did_you_mean(name, known);
      return bad(fmt::format("there is no action {}{}{}", name, hint.empty() ? "" : "; ", hint));
    }
  }
  const auto takes = [&](const PartialEntity& entity, std::vector<std::string> ActionDef::* types,
                         std::string_view what) -> Result<> {
    if (entity.uid) CRETO_TRY(check_reference(schema, *entity.uid, what));
    const std::string& type = entity.uid ? entity.uid->type : entity.type;
    if (type.empty()) return {};
    if (!entity.uid && !is_action_type(type) && !schema.entity_type(type)) {
      const std::string hint = did_you_mean(type, schema.entity_type_names());
      return bad(fmt::format("{}: there is no entity type `{}`{}{}", what, type, hint.empty() ? "" : "; ", hint));
    }
    if (!action || std::binary_search((action->*types).begin(), (action->*types).end(), type)) return {};
    return bad(fmt::format("action {} takes no {} of type `{}`", action->uid.to_string(), what, type));
  };
  CRETO_TRY(takes(request.principal, &ActionDef::principals, "principal"));
  return takes(request.resource, &ActionDef::resources, "resource");
}

Result<> check_request(const Schema& schema, const Request& request) {
  CRETO_TRY(check_request(schema, PartialRequest{{request.principal}, {request.action}, {request.resource}}));
  const Attributes* context = request.context.as_record();
  if (!context) return bad("the context is a record");
  return check_attributes(schema, *context, *schema.action(request.action)->context, "context");
}

}  // namespace creto::authz::cedar
