#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "cedar/problem.h"
#include "cedar/types.h"
#include "creto/authz/value.h"
#include "creto/common/json.h"

namespace creto::authz::cedar {

// --- as written -----------------------------------------------------------------------------------------------------

using Annotations = std::map<std::string, std::string, std::less<>>;

/// A name, and where it stands. Empty where what stands there is no name, which is a problem by itself.
struct PlacedName {
  std::string name;
  Position where = {};
};

struct AttributeDecl;

/// A type as a schema writes it, its names not yet resolved.
struct TypeExpr {
  enum class Kind : std::uint8_t {
    named,      ///< `name`: a common type, else an entity type
    common,     ///< `name`: a common type (JSON alone says so)
    entity,     ///< `name`: an entity type (JSON alone)
    extension,  ///< `name`: decimal, ipaddr, datetime or duration (JSON alone)
    boolean,    ///< JSON alone: in Cedar's syntax Bool, Long and String are names
    integer,
    string,
    set,     ///< of `element[0]`
    record,  ///< of `attributes`
  };
  Kind kind = Kind::named;
  std::string name = {};
  std::vector<TypeExpr> element;
  std::vector<AttributeDecl> attributes;
  Position where = {};

  /// One without parts.
  static TypeExpr simple(Kind kind, Position where, std::string name = {});
};

struct AttributeDecl {
  std::string name;
  bool required = true;
  TypeExpr type = {};
  Annotations annotations = {};
};

inline TypeExpr TypeExpr::simple(Kind kind, Position where, std::string name) {
  TypeExpr expr;
  expr.kind = kind;
  expr.name = std::move(name);
  expr.where = where;
  return expr;
}

struct CommonTypeDecl {
  TypeExpr type;
  Annotations annotations = {};
  Position where = {};
};

struct EntityTypeDecl {
  std::vector<PlacedName> member_of = {};
  std::optional<TypeExpr> shape = {};
  std::optional<TypeExpr> tags = {};
  std::vector<std::string> choices = {};  ///< of an enumerated type; such a type has nothing else
  Annotations annotations = {};
  Position where = {};
};

/// An action that another is a member of. Without a type it is one of the same namespace.
struct ActionRef {
  std::optional<std::string> type;
  std::string id;
  Position where = {};
};

struct AppliesTo {
  std::vector<PlacedName> principals, resources;
  std::optional<TypeExpr> context = {};
};

struct ActionDecl {
  std::vector<ActionRef> member_of = {};
  std::optional<AppliesTo> applies_to = {};
  Annotations annotations = {};
  Position where = {};
};

struct NamespaceDecl {
  std::map<std::string, CommonTypeDecl> types;
  std::map<std::string, EntityTypeDecl> entities;
  std::map<std::string, ActionDecl> actions;
  Annotations annotations;
};

/// A schema as written: what the two syntaxes have in common. The namespace without a name is "".
struct SchemaDecl {
  std::map<std::string, NamespaceDecl> namespaces;
  /// With the name of their namespace, declarations of what is declared already, each a problem; kept to find what else
  /// is wrong in them.
  std::vector<std::pair<std::string, NamespaceDecl>> repeated = {};
  /// False where a declaration could not be read, so that names may look undeclared that are not.
  bool whole = true;
};

struct SchemaLimits {
  std::size_t bytes_max = 1 << 20;
  std::size_t depth_max = 64;            ///< of nested types
  std::size_t expanded_max = 1'000'000;  ///< nodes of one type once its common types are written out
};

/// A schema in Cedar's syntax. Problems: syntax, what is declared twice, reserved names; all of the text at once.
Parsed<SchemaDecl> parse_schema(std::string_view text, SchemaLimits limits = {});
/// A schema in the JSON syntax. Problems begin with the path of the member: "Photos.actions.view.appliesTo: …".
Parsed<SchemaDecl> parse_schema_json(std::string_view text, SchemaLimits limits = {});
/// The same from JSON that is parsed already.
Parsed<SchemaDecl> schema_from_json(const Json& json, SchemaLimits limits = {});

/// In Cedar's syntax; reads back as the same schema. Errors: invalid_input for what only JSON can say (a name that
/// Cedar's syntax would resolve to another type).
Result<std::string> schema_to_text(const SchemaDecl& schema);
Json schema_to_json(const SchemaDecl& schema);

// --- resolved -------------------------------------------------------------------------------------------------------

struct EntityTypeDef {
  std::string name;
  std::set<std::string, std::less<>> ancestors;  ///< the types of whatever an entity of this type may be in
  TypePtr shape;                                 ///< a record
  TypePtr tags;                                  ///< null: it has none
  std::vector<std::string> choices;              ///< the ids of an enumerated type, sorted; empty: any id

  bool enumerated() const { return !choices.empty(); }
};

struct ActionDef {
  EntityUid uid;
  std::vector<EntityUid> parents;
  std::set<EntityUid> ancestors;
  std::vector<std::string> principals, resources;  ///< sorted
  TypePtr context;                                 ///< a record
};

/// A schema whose names are resolved. Immutable.
class Schema {
 public:
  /// Problems: those of reading it, and where that left it whole also names that nothing declares, cycles, an
  /// enumerated type with attributes, a shape that is no record.
  static Parsed<Schema> resolve(const Parsed<SchemaDecl>& read, SchemaLimits limits = {});

  /// Null where none is declared.
  const EntityTypeDef* entity_type(std::string_view name) const;
  const ActionDef* action(const EntityUid& uid) const;
  const std::map<std::string, EntityTypeDef, std::less<>>& entity_types() const { return entity_types_; }
  const std::map<EntityUid, ActionDef>& actions() const { return actions_; }

  /// Whether entities of type `type` may be of type `ancestor` or in one of that type; actions too.
  bool may_be_in(std::string_view type, std::string_view ancestor) const;

  std::vector<std::string> entity_type_names() const;
  /// The actions as entities, with their groups as parents.
  std::vector<Entity> action_entities() const;

  /// Whether they say the same, however it is written.
  friend bool operator==(const Schema& a, const Schema& b);

 private:
  std::map<std::string, EntityTypeDef, std::less<>> entity_types_;
  std::map<EntityUid, ActionDef> actions_;
};

/// Whether entities of this type are actions: its last name is `Action`.
bool is_action_type(std::string_view type);

}  // namespace creto::authz::cedar
