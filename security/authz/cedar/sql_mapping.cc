#include "cedar/sql_mapping.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cedar/parser.h"
#include "cedar/schema.h"
#include "cedar/text.h"
#include "creto/common/json.h"

namespace creto::authz::cedar {
namespace {

constexpr std::size_t entries_max = 2'000;  // of one object of a mapping
constexpr std::size_t name_bytes_max = 63;  // what PostgreSQL keeps of a name

Error bad(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

bool is_name(std::string_view text) {
  const bool quoted = text.size() > 2 && text.front() == '"' && text.back() == '"';
  if (quoted) text = text.substr(1, text.size() - 2);
  if (text.size() > name_bytes_max) return false;
  if (!quoted) return is_identifier(text);
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) >= ' ' && c != '"' && c != 0x7f; });
}

/// Up to `parts_max` names with dots between.
bool is_qualified_name(std::string_view text, std::size_t parts_max) {
  for (std::size_t part = 0; part < parts_max; ++part) {
    const bool quoted = text.starts_with('"');
    const std::size_t close = quoted ? text.find('"', 1) : 0;
    if (close == std::string_view::npos) return false;
    const std::size_t dot = text.find('.', close);
    if (!is_name(text.substr(0, dot))) return false;
    if (dot == std::string_view::npos) return true;
    text.remove_prefix(dot + 1);
  }
  return false;
}

Result<> check_name(std::string_view text, std::size_t parts_max, std::string_view path) {
  if (is_qualified_name(text, parts_max)) return {};
  return bad(fmt::format("{}: `{}` is no name of {}", path, text.substr(0, 100),
                         parts_max == 1 ? "a column, without its table" : "a column or table"));
}

Result<> check_type(SqlType type, std::string_view entity_type, std::string_view path) {
  if ((type == SqlType::entity) == is_path(entity_type)) return {};
  return bad(
      fmt::format("{}: {}", path,
                  type == SqlType::entity ? "an entity needs its entity type" : "only an entity has an entity type"));
}

Result<> check(const SqlAttribute& attribute, const std::string& path) {
  if (const auto* column = std::get_if<SqlColumn>(&attribute)) {
    CRETO_TRY(check_name(column->column, 3, path));
    return check_type(column->type, column->entity_type, path);
  }
  if (const auto* set = std::get_if<SqlSet>(&attribute)) {
    CRETO_TRY(check_name(set->table, 2, path + ".table"));
    CRETO_TRY(check_name(set->key, 1, path + ".key"));
    CRETO_TRY(check_name(set->value, 1, path + ".value"));
    return check_type(set->type, set->entity_type, path);
  }
  return {};
}

constexpr std::pair<std::string_view, SqlType> type_names[] = {
    {"bool", SqlType::boolean},      {"bit", SqlType::bit},        {"long", SqlType::integer},
    {"string", SqlType::string},     {"entity", SqlType::entity},  {"datetime", SqlType::datetime},
    {"duration", SqlType::duration}, {"decimal", SqlType::decimal}};

Result<> few(const Json& json, std::string_view path) {
  if (!json.is_object()) return bad(fmt::format("{}: must be an object", path));
  if (json.size() <= entries_max) return {};
  return Error(Product::platform, ErrorKind::too_large, fmt::format("{}: more than {} members", path, entries_max));
}

Result<SqlAttribute> attribute_from_json(const Json& json, const std::string& path) {
  if (json.is_null()) return SqlNone();
  JsonReader reader(json, path);
  const std::string type_name = reader.text("type");
  const auto* type = std::find_if(std::begin(type_names), std::end(type_names),
                                  [&](const auto& pair) { return pair.first == type_name; });
  if (type == std::end(type_names)) {
    reader.refuse("type", "must be bool, bit, long, string, entity, datetime, duration or decimal");
    type = type_names;
  }
  const std::string entity_type = reader.text_or("entity", "");
  SqlAttribute result;
  if (json.is_object() && json.contains("table")) {
    SqlSet set{reader.text("table"), reader.text("key"), reader.text("value"), type->second, entity_type};
    result = std::move(set);
  } else {
    SqlColumn column{reader.text("column"), type->second, entity_type, reader.boolean_or("nullable", true)};
    result = std::move(column);
  }
  CRETO_TRY(reader.finish());
  CRETO_TRY(check(result, path));
  return result;
}

Result<SqlAncestors> ancestors_from_json(const Json& json, const std::string& path) {
  if (json.is_null()) return SqlNone();
  JsonReader reader(json, path);
  SqlAncestors result;
  if (json.is_object() && json.contains("table")) {
    SqlTree tree{reader.text("table"), reader.text("descendant"), reader.text("ancestor")};
    result = std::move(tree);
  } else {
    result = SqlParent{reader.text("column")};
  }
  CRETO_TRY(reader.finish());
  return result;
}

/// `owner.name` or `["a b"].c`, as behind `resource` in a policy.
Result<std::vector<std::string>> attribute_path(const std::string& text) {
  const auto parsed = parse_expression(fmt::format("resource{}{}", text.starts_with('[') ? "" : ".", text));
  std::vector<std::string> path;
  if (parsed.ok()) {
    const Node* node = &parsed.value.back();
    for (; node->op == Op::attribute; node = &parsed.value[node->operands[0]]) path.push_back(node->name);
    if (node->op != Op::variable || node->variable != Variable::resource) path.clear();
  }
  if (path.empty()) return bad(fmt::format("attributes: `{}` is no path such as `owner.name`", text.substr(0, 100)));
  std::reverse(path.begin(), path.end());
  return path;
}

}  // namespace

Result<> check(const SqlMapping& mapping) {
  CRETO_TRY(check_name(mapping.id, 3, "id"));
  for (const auto& [path, attribute] : mapping.attributes) {
    CRETO_TRY(check(attribute, fmt::format("attributes.{}", fmt::join(path, "."))));
  }
  for (const auto& [name, tag] : mapping.tags) CRETO_TRY(check(tag, "tags." + name));
  for (const auto& [types, ancestors] : mapping.ancestors) {
    const std::string path = fmt::format("ancestors.{}.{}", types.first, types.second);
    if (const auto* tree = std::get_if<SqlTree>(&ancestors)) {
      CRETO_TRY(check_name(tree->table, 2, path + ".table"));
      CRETO_TRY(check_name(tree->descendant, 1, path + ".descendant"));
      CRETO_TRY(check_name(tree->ancestor, 1, path + ".ancestor"));
    } else if (const auto* parent = std::get_if<SqlParent>(&ancestors)) {
      CRETO_TRY(check_name(parent->column, 3, path + ".column"));
    }
  }
  return {};
}

Result<SqlMapping> parse_sql_mapping(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  SqlMapping mapping;
  JsonReader reader(json, "columns");
  if (reader.integer("schema_version") != 1) reader.refuse("schema_version", "must be 1");
  mapping.id = reader.text("id");
  const Json& attributes = reader.object("attributes");
  const Json& tags = reader.object("tags");
  const Json& ancestors = reader.object("ancestors");
  CRETO_TRY(reader.finish());
  CRETO_TRY(few(attributes, "attributes"));
  for (const auto& [name, member] : attributes.items()) {
    auto path = CRETO_TRY(attribute_path(name));
    auto attribute = CRETO_TRY(attribute_from_json(member, "attributes." + name.substr(0, 100)));
    if (!mapping.attributes.emplace(std::move(path), std::move(attribute)).second) {
      return bad(fmt::format("attributes.{}: stands twice", name.substr(0, 100)));
    }
  }
  CRETO_TRY(few(tags, "tags"));
  for (const auto& [name, member] : tags.items()) {
    auto tag = CRETO_TRY(attribute_from_json(member, "tags." + name.substr(0, 100)));
    mapping.tags.emplace(name, std::move(tag));
  }
  CRETO_TRY(few(ancestors, "ancestors"));
  for (const auto& [below, types] : ancestors.items()) {
    const std::string path = "ancestors." + below.substr(0, 100);
    CRETO_TRY(few(types, path));
    for (const auto& [above, member] : types.items()) {
      const std::string whole = fmt::format("{}.{}", path, above.substr(0, 100));
      if (!is_path(below) || !is_path(above)) return bad(whole + ": both are entity types");
      auto one = CRETO_TRY(ancestors_from_json(member, whole));
      mapping.ancestors.emplace(std::pair(below, above), std::move(one));
    }
  }
  CRETO_TRY(check(mapping));
  return mapping;
}

void exclude_ancestors(SqlMapping& mapping, const Schema& schema) {
  for (const auto& [below, def] : schema.entity_types()) {
    for (const auto& [above, other] : schema.entity_types()) {
      if (!def.ancestors.contains(above)) mapping.ancestors.try_emplace({below, above}, SqlNone());
    }
  }
}

}  // namespace creto::authz::cedar
