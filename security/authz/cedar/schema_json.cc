#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <span>

#include "cedar/json_places.h"
#include "cedar/schema.h"
#include "cedar/text.h"

namespace creto::authz::cedar {
namespace {

/// Reads the JSON syntax. Every mistake is noted under the path of its member, and reading goes on.
class SchemaReader {
 public:
  /// `positions` are those of the text that the JSON comes from, where there is one.
  explicit SchemaReader(SchemaLimits limits, const JsonPositions* positions = nullptr)
      : limits_(limits), positions_(positions) {}

  Parsed<SchemaDecl> run(const Json& json) {
    if (!json.is_object()) {
      lost("the schema", "must be an object of namespaces");
      return std::move(result_);
    }
    for (const auto& [name, member] : json.items()) {
      const std::string path = name.empty() ? "\"\"" : name;
      if (!name.empty() && !is_path(name)) problem(path, "is no name of a namespace");
      name_space(path, member, !name.empty(), result_.value.namespaces[name]);
    }
    return std::move(result_);
  }

 private:
  void problem(const std::string& path, std::string_view rule) {
    result_.problems.push_back({{0, 0}, fmt::format("{}: {}", path, rule)});
  }
  /// Of what declarations are in, which are lost with it.
  void lost(const std::string& path, std::string_view rule) {
    problem(path, rule);
    result_.value.whole = false;
  }

  /// Line 0 where there is no text.
  Position place_of(const Json& json) const {
    if (positions_ == nullptr) return {0, 0};
    const auto at = positions_->find(&json);
    return at == positions_->end() ? Position{0, 0} : at->second;
  }

  /// Whether `json` is an object with no member but those allowed.
  bool object(const std::string& path, const Json& json, std::initializer_list<std::string_view> allowed) {
    if (!json.is_object()) {
      problem(path, "must be an object");
      return false;
    }
    for (const auto& [name, member] : json.items()) {
      if (std::find(allowed.begin(), allowed.end(), name) != allowed.end()) continue;
      problem(path + "." + name, did_you_mean(name, {allowed.begin(), allowed.end()}).empty()
                                     ? std::string("unknown member")
                                     : "unknown member; " + did_you_mean(name, {allowed.begin(), allowed.end()}));
    }
    return true;
  }

  static const Json* member(const Json& json, const char* name) {
    const auto at = json.find(name);
    return at == json.end() ? nullptr : &*at;
  }
  /// One that may be null, which says the same as none.
  static const Json* nullable(const Json& json, const char* name) {
    const Json* found = member(json, name);
    return found && found->is_null() ? nullptr : found;
  }

  std::string text(const std::string& path, const Json& json) {
    if (json.is_string()) return json.get<std::string>();
    problem(path, "must be a string");
    return {};
  }

  /// A name of types: identifiers joined by `::`. Empty where it is none.
  PlacedName name(const std::string& path, const Json& json) {
    PlacedName result{text(path, json), place_of(json)};
    const std::string_view inside =
        result.name.starts_with("__cedar::") ? std::string_view(result.name).substr(9) : result.name;
    if (json.is_string() && !is_path(inside)) {
      problem(path, fmt::format("{} is no name", quote(result.name)));
      result.name.clear();
    }
    return result;
  }

  std::vector<PlacedName> names(const std::string& path, const Json& json) {
    std::vector<PlacedName> all;
    if (!json.is_array()) {
      problem(path, "must be an array of names");
      return all;
    }
    for (std::size_t i = 0; i < json.size(); ++i) all.push_back(name(fmt::format("{}[{}]", path, i), json[i]));
    return all;
  }

  void annotations(const std::string& path, const Json& json, Annotations& into) {
    const Json* notes = member(json, "annotations");
    if (!notes) return;
    if (!notes->is_object()) return problem(path + ".annotations", "must be an object");
    for (const auto& [key, value] : notes->items()) {
      if (!is_identifier(key)) problem(path + ".annotations", fmt::format("{} is no name", quote(key)));
      into[key] = value.is_null() ? std::string() : text(path + ".annotations." + key, value);
    }
  }

  void name_space(const std::string& path, const Json& json, bool named, NamespaceDecl& space) {
    if (!object(path, json, {"commonTypes", "entityTypes", "actions", "annotations"})) {
      result_.value.whole = false;
      return;
    }
    annotations(path, json, space.annotations);
    if (!named && !space.annotations.empty()) {
      problem(path + ".annotations", "the namespace without a name has no annotations");
    }
    each(path, json, "commonTypes", false, [&](const std::string& at, const std::string& id, const Json& value) {
      static constexpr std::array<std::string_view, 8> reserved = {"Bool", "Boolean", "Entity", "Extension",
                                                                   "Long", "Record",  "Set",    "String"};
      if (!is_identifier(id) || is_reserved(id)) problem(at, "is no name of a type");
      if (std::find(reserved.begin(), reserved.end(), id) != reserved.end()) {
        problem(at, fmt::format("`{}` is the name of a built-in type", id));
      }
      CommonTypeDecl& decl = space.types[id];
      decl.where = place_of(value);
      decl.type = type(at, value, 0, {"annotations"});
      annotations(at, value, decl.annotations);
    });
    each(path, json, "entityTypes", true, [&](const std::string& at, const std::string& id, const Json& value) {
      if (!is_identifier(id) || is_reserved(id)) problem(at, "is no name of an entity type");
      if (id == "Action") problem(at, "an entity type cannot be named `Action`");
      entity_type(at, value, space.entities[id]);
    });
    each(path, json, "actions", true, [&](const std::string& at, const std::string& id, const Json& value) {
      action(at, value, space.actions[id]);
    });
  }

  template <class Read>
  void each(const std::string& path, const Json& json, const char* key, bool required, Read read) {
    const Json* all = member(json, key);
    if (!all) {
      if (required) lost(path + "." + key, "is missing");
      return;
    }
    if (!all->is_object()) return lost(path + "." + key, "must be an object");
    for (const auto& [id, value] : all->items()) {
      read(fmt::format("{}.{}.{}", path, key, is_identifier(id) ? id : quote(id)), id, value);
    }
  }

  void entity_type(const std::string& path, const Json& json, EntityTypeDecl& decl) {
    decl.where = place_of(json);
    if (!object(path, json, {"memberOfTypes", "shape", "tags", "enum", "annotations"})) return;
    annotations(path, json, decl.annotations);
    if (const Json* choices = member(json, "enum")) {
      if (member(json, "memberOfTypes") || member(json, "shape") || member(json, "tags")) {
        problem(path, "an enumerated type has neither parents nor attributes nor tags");
      }
      if (!choices->is_array() || choices->empty())
        return problem(path + ".enum", "must be an array of at least one id");
      for (const Json& choice : *choices) decl.choices.push_back(text(path + ".enum", choice));
      return;
    }
    if (const Json* parents = member(json, "memberOfTypes")) decl.member_of = names(path + ".memberOfTypes", *parents);
    if (const Json* shape = member(json, "shape")) decl.shape = type(path + ".shape", *shape, 0);
    if (const Json* tags = member(json, "tags")) decl.tags = type(path + ".tags", *tags, 0);
  }

  void action(const std::string& path, const Json& json, ActionDecl& decl) {
    decl.where = place_of(json);
    if (!object(path, json, {"memberOf", "appliesTo", "attributes", "annotations"})) return;
    annotations(path, json, decl.annotations);
    if (nullable(json, "attributes")) problem(path + ".attributes", "actions have no attributes");
    if (const Json* groups = nullable(json, "memberOf")) {
      if (!groups->is_array()) problem(path + ".memberOf", "must be an array");
      static const Json none = Json::array();
      for (const Json& group : groups->is_array() ? *groups : none) {
        const std::string at = path + ".memberOf";
        if (!object(at, group, {"type", "id"})) continue;
        ActionRef ref;
        ref.where = place_of(group);
        if (const Json* type = nullable(group, "type")) ref.type = name(at + ".type", *type).name;
        const Json* id = member(group, "id");
        if (!id) problem(at + ".id", "is missing");
        if (!id) continue;
        ref.id = text(at + ".id", *id);
        if (id->is_string()) decl.member_of.push_back(std::move(ref));
      }
    }
    const Json* applies = nullable(json, "appliesTo");
    if (!applies) return;
    const std::string at = path + ".appliesTo";
    if (!object(at, *applies, {"principalTypes", "resourceTypes", "context"})) return;
    AppliesTo result;
    const Json* principals = member(*applies, "principalTypes");
    const Json* resources = member(*applies, "resourceTypes");
    if (!principals) problem(at + ".principalTypes", "is missing");
    if (!resources) problem(at + ".resourceTypes", "is missing");
    if (principals) result.principals = names(at + ".principalTypes", *principals);
    if (resources) result.resources = names(at + ".resourceTypes", *resources);
    if (const Json* context = member(*applies, "context")) result.context = type(at + ".context", *context, 0);
    decl.applies_to = std::move(result);
  }

  /// `beside`: the members of what has the type, which stand beside the type's.
  TypeExpr type(const std::string& path, const Json& json, std::size_t depth,
                std::initializer_list<std::string_view> beside = {}) {
    TypeExpr expr = TypeExpr::simple(TypeExpr::Kind::record, place_of(json));
    if (depth == limits_.depth_max) {
      problem(path, fmt::format("types are nested more than {} deep", limits_.depth_max));
      return expr;
    }
    const Json* kind = json.is_object() ? member(json, "type") : nullptr;
    if (!kind || !kind->is_string()) {
      problem(path, "a type is an object with the member `type`");
      return expr;
    }
    const auto word = kind->get<std::string>();
    const auto members = [&](std::initializer_list<std::string_view> extra) {
      std::vector<std::string_view> allowed = {"type"};
      allowed.insert(allowed.end(), beside.begin(), beside.end());
      allowed.insert(allowed.end(), extra.begin(), extra.end());
      for (const auto& [name, value] : json.items()) {
        if (std::find(allowed.begin(), allowed.end(), name) == allowed.end()) {
          problem(path + "." + name, fmt::format("a type {} has no such member", quote(word)));
        }
      }
    };
    const auto named = [&](TypeExpr::Kind as) {
      members({"name"});
      expr.kind = as;
      const Json* of = member(json, "name");
      if (!of) problem(path + ".name", "is missing");
      if (!of) return;
      PlacedName given = name(path + ".name", *of);
      expr.name = std::move(given.name);
      expr.where = given.where;
    };
    if (word == "Boolean" || word == "Bool") {
      members({});
      expr.kind = TypeExpr::Kind::boolean;
    } else if (word == "Long") {
      members({});
      expr.kind = TypeExpr::Kind::integer;
    } else if (word == "String") {
      members({});
      expr.kind = TypeExpr::Kind::string;
    } else if (word == "Set") {
      members({"element"});
      const Json* element = member(json, "element");
      if (!element) {
        problem(path + ".element", "is missing");
        return expr;
      }
      expr.kind = TypeExpr::Kind::set;
      expr.element.push_back(type(path + ".element", *element, depth + 1));
    } else if (word == "Record") {
      members({"attributes", "additionalAttributes"});
      if (const Json* more = member(json, "additionalAttributes"); more && *more != false) {
        problem(path + ".additionalAttributes", "records with further attributes are not supported");
      }
      each_attribute(path, json, depth, expr);
    } else if (word == "Entity") {
      named(TypeExpr::Kind::entity);
    } else if (word == "EntityOrCommon") {
      named(TypeExpr::Kind::named);
    } else if (word == "Extension") {
      named(TypeExpr::Kind::extension);
    } else {
      members({});
      expr.kind = TypeExpr::Kind::common;
      PlacedName given = name(path + ".type", *kind);
      expr.name = std::move(given.name);
      expr.where = given.where;
    }
    return expr;
  }

  void each_attribute(const std::string& path, const Json& json, std::size_t depth, TypeExpr& record) {
    each(path, json, "attributes", true, [&](const std::string& at, const std::string& id, const Json& value) {
      AttributeDecl attribute;
      attribute.name = id;
      attribute.type = type(at, value, depth + 1, {"required", "annotations"});
      if (value.is_object()) {
        if (const Json* required = member(value, "required")) {
          if (!required->is_boolean()) problem(at + ".required", "must be true or false");
          attribute.required = !required->is_boolean() || required->get<bool>();
        }
        annotations(at, value, attribute.annotations);
      }
      record.attributes.push_back(std::move(attribute));
    });
  }

  const SchemaLimits limits_;
  const JsonPositions* const positions_;
  Parsed<SchemaDecl> result_;
};

Json names_json(const std::vector<PlacedName>& names) {
  Json array = Json::array();
  for (const PlacedName& name : names) array.push_back(name.name);
  return array;
}

void add_annotations(Json& json, const Annotations& annotations) {
  if (!annotations.empty()) json["annotations"] = annotations;
}

/// Requires: nested no deeper than a parser lets it.
Json type_json(const TypeExpr& expr) {
  switch (expr.kind) {
    case TypeExpr::Kind::named:
      return Json{{"type", "EntityOrCommon"}, {"name", expr.name}};
    case TypeExpr::Kind::common:
      return Json{{"type", expr.name}};
    case TypeExpr::Kind::entity:
      return Json{{"type", "Entity"}, {"name", expr.name}};
    case TypeExpr::Kind::extension:
      return Json{{"type", "Extension"}, {"name", expr.name}};
    case TypeExpr::Kind::boolean:
      return Json{{"type", "Boolean"}};
    case TypeExpr::Kind::integer:
      return Json{{"type", "Long"}};
    case TypeExpr::Kind::string:
      return Json{{"type", "String"}};
    case TypeExpr::Kind::set: {
      Json json{{"type", "Set"}};
      json["element"] = type_json(expr.element[0]);
      return json;
    }
    case TypeExpr::Kind::record:
      break;
  }
  Json attributes = Json::object();
  for (const AttributeDecl& attribute : expr.attributes) {
    Json json = type_json(attribute.type);
    if (!attribute.required) json["required"] = false;
    add_annotations(json, attribute.annotations);
    attributes[attribute.name] = std::move(json);
  }
  Json json{{"type", "Record"}};
  json["attributes"] = std::move(attributes);
  return json;
}

Json entity_json(const EntityTypeDecl& decl) {
  Json json = Json::object();
  if (!decl.choices.empty()) json["enum"] = decl.choices;
  if (!decl.member_of.empty()) json["memberOfTypes"] = names_json(decl.member_of);
  if (decl.shape) json["shape"] = type_json(*decl.shape);
  if (decl.tags) json["tags"] = type_json(*decl.tags);
  add_annotations(json, decl.annotations);
  return json;
}

Json action_json(const ActionDecl& decl) {
  Json json = Json::object();
  if (!decl.member_of.empty()) {
    json["memberOf"] = Json::array();
    for (const ActionRef& ref : decl.member_of) {
      Json group{{"id", ref.id}};
      if (ref.type) group["type"] = *ref.type;
      json["memberOf"].push_back(std::move(group));
    }
  }
  // That it applies to nothing is written out, as Cedar does: what reads JSON of its older versions would take an
  // action without `appliesTo` for one that applies to anything.
  const AppliesTo to = decl.applies_to.value_or(AppliesTo());
  Json& applies = json["appliesTo"];
  applies["principalTypes"] = names_json(to.principals);
  applies["resourceTypes"] = names_json(to.resources);
  if (to.context) applies["context"] = type_json(*to.context);
  add_annotations(json, decl.annotations);
  return json;
}

}  // namespace

Parsed<SchemaDecl> schema_from_json(const Json& json, SchemaLimits limits) { return SchemaReader(limits).run(json); }

Parsed<SchemaDecl> parse_schema_json(std::string_view text, SchemaLimits limits) {
  // Each type is up to three JSON objects: itself, its attributes, the attribute.
  auto read = read_json(text, {.bytes_max = limits.bytes_max, .depth_max = 3 * limits.depth_max + 8});
  if (!read.value.whole) return {{}, std::move(read.problems)};
  const JsonPositions positions = json_positions(read.value.text, read.value.json);
  auto parsed = SchemaReader(limits, &positions).run(read.value.json);
  const std::size_t placed = std::min<std::size_t>(parsed.problems.size(), json_problems_placed);
  for (Problem& problem : std::span(parsed.problems).first(placed)) {
    problem.where = json_place(read.value.text, problem.what);
  }
  std::move(read.problems.begin(), read.problems.end(), std::back_inserter(parsed.problems));
  std::sort(parsed.problems.begin(), parsed.problems.end());
  return parsed;
}

Json schema_to_json(const SchemaDecl& schema) {
  Json json = Json::object();
  for (const auto& [name, space] : schema.namespaces) {
    Json& part = json[name];
    part["entityTypes"] = Json::object();
    part["actions"] = Json::object();
    for (const auto& [id, decl] : space.types) {
      Json type = type_json(decl.type);
      add_annotations(type, decl.annotations);
      part["commonTypes"][id] = std::move(type);
    }
    for (const auto& [id, decl] : space.entities) part["entityTypes"][id] = entity_json(decl);
    for (const auto& [id, decl] : space.actions) part["actions"][id] = action_json(decl);
    add_annotations(part, space.annotations);
  }
  return json;
}

}  // namespace creto::authz::cedar
