#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "creto/common/result.h"

/// Where the resources of one Cedar type lie in SQL.
namespace creto::authz::cedar {

class Schema;

/// How a value lies in a column, which compares bytewise.
enum class SqlType : std::uint8_t {
  boolean,   ///< BOOLEAN; in SQLite 0 or 1
  bit,       ///< an integer, 0 or 1
  integer,   ///< 64 bits
  string,    ///< text
  entity,    ///< the id of an entity of one type, as text
  datetime,  ///< an integer, Unix milliseconds
  duration,  ///< an integer, milliseconds
  decimal,   ///< an integer, ten-thousandths
};

struct SqlColumn {
  std::string column;  ///< as it is written in the statement: `d.owner`, `"Docs"."owner"`
  SqlType type = SqlType::string;
  std::string entity_type = {};  ///< where `type` is entity
  bool nullable = true;          ///< NULL: the resource does not have the attribute
};
/// A set that every resource has, perhaps empty: the values in the rows of a table that have the resource's id as key.
struct SqlSet {
  std::string table, key, value;
  SqlType type = SqlType::string;
  std::string entity_type = {};
};
/// Rows of descendant and ancestor, each pair of a hierarchy, not parents alone.
struct SqlTree {
  std::string table, descendant, ancestor;
};
/// A column with the id of the one entity of its type that the resource is in; NULL: none.
struct SqlParent {
  std::string column;
};
/// What no resource has.
struct SqlNone {};

using SqlAttribute = std::variant<SqlNone, SqlColumn, SqlSet>;
using SqlAncestors = std::variant<SqlNone, SqlTree, SqlParent>;

/// Where the resources of one type lie. Names are names, perhaps qualified, perhaps in double quotes; never
/// expressions.
struct SqlMapping {
  std::string id;                                               ///< a column
  std::map<std::vector<std::string>, SqlAttribute> attributes;  ///< by path; through records, and entities joined
  std::map<std::string, SqlAttribute, std::less<>> tags;
  /// By the type below, of the resource or of an attribute, and the type above.
  std::map<std::pair<std::string, std::string>, SqlAncestors> ancestors;
};

/// JSON: `docs/formats.md`, "Columns". Errors: invalid_input with the path of the member; too_large.
Result<SqlMapping> parse_sql_mapping(std::string_view json);
/// What `schema` says can never be above something need not be said in JSON.
void exclude_ancestors(SqlMapping& mapping, const Schema& schema);

/// Nothing but names comes into a statement. Errors: as above, of one that was made otherwise.
Result<> check(const SqlMapping& mapping);

}  // namespace creto::authz::cedar
