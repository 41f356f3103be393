#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "cedar/partial.h"
#include "cedar/sql_mapping.h"

/// "Which resources may X …" as the condition of a SQL statement over the table that holds them.
namespace creto::authz::cedar {

enum class SqlDialect : std::uint8_t { sqlite, postgres };

struct SqlOptions {
  SqlDialect dialect = SqlDialect::postgres;
  bool numbered = true;               ///< `$1`, `$2`, each value once; else `?`
  std::uint32_t first_parameter = 1;  ///< the number of the first
  ErringForbid erring = ErringForbid::skipped;
};

using SqlParameter = std::variant<std::int64_t, std::string>;

struct SqlFilter {
  std::string where;  ///< binds as tightly as AND; `TRUE` or `FALSE` where nothing depends on the row
  std::vector<SqlParameter> parameters;
};

inline constexpr std::size_t sql_bytes_max = 256 << 10;
inline constexpr std::size_t sql_parameters_max = 999;

/// True for exactly the rows whose resource the policies allow, where `entities` and the rows tell all there is: a NULL
/// is an attribute that is absent, so that what asks for it errs. False or NULL for the others.
/// Requires of the request: an unknown resource of a known type.
/// Errors: invalid_input for what SQL cannot say with this mapping, with policy and expression; too_large beyond
/// `sql_bytes_max` or `sql_parameters_max`; the view's trouble.
Result<SqlFilter> to_sql(const PartialEvaluation& evaluation, const SqlMapping& mapping, EntityView& entities,
                         SqlOptions options = {});

}  // namespace creto::authz::cedar
