#include "cedar/schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>

#include "cedar/text.h"

namespace creto::authz::cedar {
namespace {

std::string qualified(std::string_view name_space, std::string_view name) {
  return name_space.empty() ? std::string(name) : fmt::format("{}::{}", name_space, name);
}

/// Bool, Long, String and the extension types; null for any other name.
TypePtr builtin(std::string_view name) {
  static const std::array<std::pair<std::string_view, Type::Kind>, 7> types = {{{"Bool", Type::Kind::boolean},
                                                                                {"Long", Type::Kind::integer},
                                                                                {"String", Type::Kind::string},
                                                                                {"decimal", Type::Kind::decimal},
                                                                                {"ipaddr", Type::Kind::ipaddr},
                                                                                {"datetime", Type::Kind::datetime},
                                                                                {"duration", Type::Kind::duration}}};
  for (const auto& [known, kind] : types) {
    if (known == name) return simple_type(kind);
  }
  return nullptr;
}

/// Turns names into types. Common types are worked out once, when first asked for.
class Resolver {
 public:
  Resolver(const SchemaDecl& decl, SchemaLimits limits) : decl_(decl), limits_(limits) {}

  std::vector<Problem> problems;
  std::map<std::string, EntityTypeDef, std::less<>> entity_types;
  std::map<EntityUid, ActionDef> actions;

  void run() {
    collect_names();
    for (const auto& [name, space] : decl_.namespaces) {
      for (const auto& [id, type] : space.types) common_type(qualified(name, id), type.where);
      for (const auto& [id, entity] : space.entities) add_entity_type(name, id, entity);
      for (const auto& [id, action] : space.actions) add_action(name, id, action);
    }
    // The first of a name counts; these are looked at for what is wrong in them.
    for (const auto& [name, space] : decl_.repeated) {
      for (const auto& [id, type] : space.types) whole_type(name, type.type);
      for (const auto& [id, entity] : space.entities) add_entity_type(name, id, entity);
      for (const auto& [id, action] : space.actions) add_action(name, id, action);
    }
    close_entity_types();
    close_actions();
  }

 private:
  struct Common {
    const CommonTypeDecl* decl;
    std::string name_space;
    TypePtr type = nullptr;
    std::size_t size = 0;
    bool open = false;  ///< being worked out: meeting it again is a cycle
  };

  void problem(Position where, std::string what, std::string hint = {}) {
    problems.push_back({where, std::move(what), std::move(hint)});
  }

  void collect_names() {
    for (const auto& [name, space] : decl_.namespaces) {
      for (const auto& [id, type] : space.types) commons_.emplace(qualified(name, id), Common{&type, name});
      for (const auto& [id, entity] : space.entities) entity_names_.insert(qualified(name, id));
      if (!space.actions.empty()) entity_names_.insert(qualified(name, "Action"));
    }
    refuse_shadows();
  }

  /// What a namespace declares must not hide what stands outside of every namespace (Cedar's RFC 70).
  void refuse_shadows() {
    const auto outside = decl_.namespaces.find("");
    if (outside == decl_.namespaces.end()) return;
    const NamespaceDecl& global = outside->second;
    for (const auto& [name, space] : decl_.namespaces) {
      if (name.empty()) continue;
      const auto check = [&, &name = name](const std::string& id, Position where) {
        if (global.types.contains(id) || global.entities.contains(id)) {
          problem(where, fmt::format("`{}` hides the `{}` that is declared outside of every namespace",
                                     qualified(name, id), id));
        }
      };
      for (const auto& [id, type] : space.types) check(id, type.where);
      for (const auto& [id, entity] : space.entities) check(id, entity.where);
      for (const auto& [id, action] : space.actions) {
        if (!global.actions.contains(id)) continue;
        problem(action.where, fmt::format("action {} hides the one that is declared outside of every namespace",
                                          EntityUid{qualified(name, "Action"), id}.to_string()));
      }
    }
  }

  /// The declared names that `name`, written in `name_space`, may stand for; nearest first.
  static std::vector<std::string> candidates(std::string_view name_space, const std::string& name) {
    if (name.find("::") != std::string::npos || name_space.empty()) return {name};
    return {qualified(name_space, name), name};
  }

  TypePtr unknown(const std::string& name, Position where, std::string_view what) {
    std::vector<std::string> known;
    if (what != "common type") known.assign(entity_names_.begin(), entity_names_.end());
    if (what != "entity type") {
      for (const auto& [common, decl] : commons_) known.push_back(common);
      for (const char* simple : {"Bool", "Long", "String", "decimal", "ipaddr", "datetime", "duration"}) {
        known.emplace_back(simple);
      }
    }
    problem(where, fmt::format("there is no {} `{}`", what, name), did_you_mean(name, known));
    return simple_type(Type::Kind::never);
  }

  TypePtr builtin_or_null(std::string_view name) {
    if (name.starts_with("__cedar::")) return builtin(name.substr(9));
    return builtin(name);
  }

  TypePtr named(std::string_view name_space, const TypeExpr& expr) {
    if (expr.name.empty()) return simple_type(Type::Kind::never);
    const bool common = expr.kind != TypeExpr::Kind::entity;
    const bool entity = expr.kind != TypeExpr::Kind::common;
    for (const std::string& name : candidates(name_space, expr.name)) {
      if (common && commons_.contains(name)) return common_type(name, expr.where);
      if (entity && entity_names_.contains(name)) return count(entity_type(name), 1);
    }
    if (common) {
      if (TypePtr type = builtin_or_null(expr.name)) return count(std::move(type), 1);
    }
    return unknown(expr.name, expr.where, !entity ? "common type" : !common ? "entity type" : "type");
  }

  TypePtr count(TypePtr type, std::size_t nodes) {
    size_ += nodes;
    return type;
  }

  TypePtr common_type(const std::string& name, Position where) {
    Common& common = commons_.at(name);
    if (common.type) return count(common.type, common.size);
    if (common.open) {
      problem(where, fmt::format("type `{}` is made of itself", name));
      return simple_type(Type::Kind::never);
    }
    common.open = true;
    const std::size_t before = size_;
    common.type = type(common.name_space, common.decl->type);
    common.size = size_ - before;
    common.open = false;
    return common.type;
  }

  TypePtr type(std::string_view name_space, const TypeExpr& expr) {
    // Common types may stand for nested ones, so that the whole is deeper than any text.
    const std::size_t depth_max = 4 * limits_.depth_max;
    if (depth_ == depth_max) {
      problem(expr.where, fmt::format("types are nested more than {} deep", depth_max));
      return simple_type(Type::Kind::never);
    }
    ++depth_;
    TypePtr result = type_within(name_space, expr);
    --depth_;
    return result;
  }

  TypePtr type_within(std::string_view name_space, const TypeExpr& expr) {
    if (size_ > limits_.expanded_max) {
      if (!std::exchange(too_large_, true)) {
        problem(expr.where, fmt::format("a type of more than {} parts", limits_.expanded_max));
      }
      return simple_type(Type::Kind::never);
    }
    switch (expr.kind) {
      case TypeExpr::Kind::named:
      case TypeExpr::Kind::common:
      case TypeExpr::Kind::entity:
        return named(name_space, expr);
      case TypeExpr::Kind::extension: {
        TypePtr type = builtin(expr.name);
        if (expr.name.empty()) return simple_type(Type::Kind::never);
        if (!type || type->kind < Type::Kind::decimal) return unknown(expr.name, expr.where, "extension type");
        return count(std::move(type), 1);
      }
      case TypeExpr::Kind::boolean:
        return count(simple_type(Type::Kind::boolean), 1);
      case TypeExpr::Kind::integer:
        return count(simple_type(Type::Kind::integer), 1);
      case TypeExpr::Kind::string:
        return count(simple_type(Type::Kind::string), 1);
      case TypeExpr::Kind::set:
        return count(set_type(type(name_space, expr.element[0])), 1);
      case TypeExpr::Kind::record:
        break;
    }
    AttributeTypes attributes;
    for (const AttributeDecl& attribute : expr.attributes) {
      attributes.emplace(attribute.name, AttributeType{type(name_space, attribute.type), attribute.required});
    }
    return count(record_type(std::move(attributes)), 1);
  }

  /// The type of a shape, a context or tags, which each may be `expanded_max` large.
  TypePtr whole_type(std::string_view name_space, const TypeExpr& expr) {
    size_ = 0;
    return type(name_space, expr);
  }

  TypePtr record(std::string_view name_space, const TypeExpr& expr, std::string_view what) {
    TypePtr resolved = whole_type(name_space, expr);
    if (resolved->kind == Type::Kind::record) return resolved;
    if (resolved->kind != Type::Kind::never) {
      problem(expr.where, fmt::format("{} is a record, not `{}`", what, to_string(*resolved)));
    }
    return record_type({});
  }

  /// Empty where there is none.
  std::string entity_name(std::string_view name_space, const PlacedName& ref) {
    if (ref.name.empty()) return {};
    for (const std::string& name : candidates(name_space, ref.name)) {
      if (entity_names_.contains(name)) return name;
    }
    problem(ref.where, fmt::format("there is no entity type `{}`", ref.name),
            did_you_mean(ref.name, {entity_names_.begin(), entity_names_.end()}));
    return {};
  }

  void add_entity_type(const std::string& name_space, const std::string& id, const EntityTypeDecl& decl) {
    EntityTypeDef def;
    def.name = qualified(name_space, id);
    for (const PlacedName& parent : decl.member_of) {
      std::string name = entity_name(name_space, parent);
      if (!name.empty()) def.ancestors.insert(std::move(name));
    }
    def.shape =
        decl.shape ? record(name_space, *decl.shape, fmt::format("the shape of `{}`", def.name)) : record_type({});
    if (decl.tags) def.tags = whole_type(name_space, *decl.tags);
    def.choices = decl.choices;
    std::sort(def.choices.begin(), def.choices.end());
    std::string name = def.name;
    entity_types.emplace(std::move(name), std::move(def));
  }

  void add_action(const std::string& name_space, const std::string& id, const ActionDecl& decl) {
    ActionDef def;
    def.uid = {qualified(name_space, "Action"), id};
    for (const ActionRef& ref : decl.member_of) {
      if (auto parent = action_ref(name_space, ref)) def.parents.push_back(*std::move(parent));
    }
    def.ancestors.insert(def.parents.begin(), def.parents.end());
    def.context = record_type({});
    // Where a list is empty it applies to nothing, whatever else is there: the two syntaxes say the same.
    if (decl.applies_to) {
      const auto types = [&](const std::vector<PlacedName>& refs, std::vector<std::string>& out) {
        for (const PlacedName& ref : refs) {
          std::string name = entity_name(name_space, ref);
          if (!name.empty()) out.push_back(std::move(name));
        }
        std::sort(out.begin(), out.end());
        out.erase(std::unique(out.begin(), out.end()), out.end());
      };
      types(decl.applies_to->principals, def.principals);
      types(decl.applies_to->resources, def.resources);
      if (decl.applies_to->context) {
        def.context =
            record(name_space, *decl.applies_to->context, fmt::format("the context of {}", def.uid.to_string()));
      }
      if (def.principals.empty() || def.resources.empty()) {
        def.principals.clear();
        def.resources.clear();
        def.context = record_type({});
      }
    }
    EntityUid uid = def.uid;
    actions.emplace(std::move(uid), std::move(def));
  }

  bool declares(const EntityUid& action) const {
    const std::string_view type = action.type;
    const auto space = decl_.namespaces.find(type == "Action" ? "" : std::string(type.substr(0, type.size() - 8)));
    return space != decl_.namespaces.end() && space->second.actions.contains(action.id);
  }

  std::optional<EntityUid> action_ref(const std::string& name_space, const ActionRef& ref) {
    if (ref.type && ref.type->empty()) return {};
    std::vector<EntityUid> possible;
    if (!ref.type) {
      possible.push_back({qualified(name_space, "Action"), ref.id});
    } else {
      for (std::string& type : candidates(name_space, *ref.type)) possible.push_back({std::move(type), ref.id});
    }
    for (EntityUid& uid : possible) {
      if (is_action_type(uid.type) && declares(uid)) return std::move(uid);
    }
    std::vector<std::string> known;
    for (const auto& [name, space] : decl_.namespaces) {
      for (const auto& [id, action] : space.actions) known.push_back(id);
    }
    problem(ref.where, fmt::format("there is no action {}", possible.front().to_string()), did_you_mean(ref.id, known));
    return {};
  }

  void close_entity_types() {
    for (auto& [name, def] : entity_types) {
      std::vector<std::string> open(def.ancestors.begin(), def.ancestors.end());
      while (!open.empty()) {
        const auto parent = entity_types.find(open.back());
        open.pop_back();
        if (parent == entity_types.end()) continue;
        for (const std::string& further : parent->second.ancestors) {
          if (def.ancestors.insert(further).second) open.push_back(further);
        }
      }
    }
  }

  void close_actions() {
    for (auto& [uid, def] : actions) {
      std::vector<EntityUid> open = def.parents;
      while (!open.empty()) {
        const auto parent = actions.find(open.back());
        open.pop_back();
        if (parent == actions.end()) continue;
        for (const EntityUid& further : parent->second.parents) {
          if (def.ancestors.insert(further).second) open.push_back(further);
        }
      }
      if (def.ancestors.contains(uid)) {
        problem(where_declared(uid), fmt::format("action {} is a member of itself", uid.to_string()));
      }
    }
  }

  Position where_declared(const EntityUid& uid) const {
    const std::string_view type = uid.type;
    return decl_.namespaces.at(type == "Action" ? "" : std::string(type.substr(0, type.size() - 8)))
        .actions.at(uid.id)
        .where;
  }

  const SchemaDecl& decl_;
  const SchemaLimits limits_;
  std::map<std::string, Common> commons_;
  std::set<std::string, std::less<>> entity_names_;
  std::size_t depth_ = 0;
  std::size_t size_ = 0;
  bool too_large_ = false;
};

}  // namespace

Parsed<Schema> Schema::resolve(const Parsed<SchemaDecl>& read, SchemaLimits limits) {
  Parsed<Schema> result;
  result.problems = read.problems;
  if (!read.value.whole) return result;
  Resolver resolver(read.value, limits);
  resolver.run();
  std::move(resolver.problems.begin(), resolver.problems.end(), std::back_inserter(result.problems));
  std::sort(result.problems.begin(), result.problems.end());
  result.problems.erase(std::unique(result.problems.begin(), result.problems.end()), result.problems.end());
  if (result.ok()) {
    result.value.entity_types_ = std::move(resolver.entity_types);
    result.value.actions_ = std::move(resolver.actions);
  }
  return result;
}

const EntityTypeDef* Schema::entity_type(std::string_view name) const {
  const auto at = entity_types_.find(name);
  return at == entity_types_.end() ? nullptr : &at->second;
}

const ActionDef* Schema::action(const EntityUid& uid) const {
  const auto at = actions_.find(uid);
  return at == actions_.end() ? nullptr : &at->second;
}

bool Schema::may_be_in(std::string_view type, std::string_view ancestor) const {
  if (type == ancestor) return true;
  if (const EntityTypeDef* def = entity_type(type)) return def->ancestors.contains(ancestor);
  return std::any_of(actions_.begin(), actions_.end(), [&](const auto& action) {
    return action.first.type == type && std::any_of(action.second.ancestors.begin(), action.second.ancestors.end(),
                                                    [&](const EntityUid& uid) { return uid.type == ancestor; });
  });
}

std::vector<std::string> Schema::entity_type_names() const {
  std::vector<std::string> names;
  for (const auto& [name, def] : entity_types_) names.push_back(name);
  return names;
}

std::vector<Entity> Schema::action_entities() const {
  std::vector<Entity> entities;
  for (const auto& [uid, def] : actions_) entities.push_back({uid, {}, {}, def.parents});
  return entities;
}

bool operator==(const Schema& a, const Schema& b) {
  const auto same_type = [](const TypePtr& x, const TypePtr& y) { return x == y || (x && y && *x == *y); };
  return std::equal(a.entity_types_.begin(), a.entity_types_.end(), b.entity_types_.begin(), b.entity_types_.end(),
                    [&](const auto& x, const auto& y) {
                      const EntityTypeDef& l = x.second;
                      const EntityTypeDef& r = y.second;
                      return l.name == r.name && l.ancestors == r.ancestors && l.choices == r.choices &&
                             same_type(l.shape, r.shape) && same_type(l.tags, r.tags);
                    }) &&
         std::equal(a.actions_.begin(), a.actions_.end(), b.actions_.begin(), b.actions_.end(),
                    [&](const auto& x, const auto& y) {
                      const ActionDef& l = x.second;
                      const ActionDef& r = y.second;
                      return l.uid == r.uid && l.ancestors == r.ancestors && l.principals == r.principals &&
                             l.resources == r.resources && same_type(l.context, r.context);
                    });
}

bool is_action_type(std::string_view type) { return type == "Action" || type.ends_with("::Action"); }

}  // namespace creto::authz::cedar
