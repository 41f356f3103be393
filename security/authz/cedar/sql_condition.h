#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "cedar/sql_filter.h"

/// Conditions of SQL while they are put together: simplified as they grow, written down at the end.
namespace creto::authz::cedar {

/// Of AND within OR within AND; SQLite takes 1000 with what else there is.
inline constexpr std::size_t sql_depth_max = 300;

struct Predicate;
/// Shared: what stands in several places is made once.
using Pred = std::shared_ptr<const Predicate>;
using Pieces = std::vector<std::variant<std::string, SqlParameter>>;

/// TRUE counts; FALSE and NULL are the same, but under `not_true`, which asks for that.
struct Predicate {
  enum class Kind : std::uint8_t { always, never, leaf, all, any, not_true };
  Kind kind = Kind::leaf;
  Pieces pieces = {};               ///< leaf: a comparison
  std::vector<Pred> operands = {};  ///< all, any, not_true
  std::size_t depth = 1;
};

Pred constant(bool truth);
Pred leaf(Pieces pieces);
inline bool is(const Pred& pred, Predicate::Kind kind) { return pred->kind == kind; }
Pred all(const std::vector<Pred>& operands);
Pred any(const std::vector<Pred>& operands);
Pred not_true(const Pred& pred);

/// A condition of Cedar as three of SQL.
struct Truth {
  Pred yes;      ///< it is true
  Pred no;       ///< it is false
  Pred defined;  ///< it does not err
};

Truth always(bool truth);
Truth errs();
Truth negated(Truth truth);
/// && where `conjunction`, else ||. From the right, so that a long chain stays as long as it is. Requires: an operand.
Truth chain(const std::vector<Truth>& operands, bool conjunction);

/// Errors: too_large beyond `sql_depth_max`, `sql_bytes_max` or `sql_parameters_max`.
Result<SqlFilter> render(const Pred& pred, const SqlOptions& options);

}  // namespace creto::authz::cedar
