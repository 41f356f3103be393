#include "cedar/sql_condition.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <span>

#include "creto/common/assert.h"

namespace creto::authz::cedar {
namespace {

constexpr std::size_t row_max = 100;  // operands of AND and OR side by side, for SQLite's depth; more go into groups

Pred combine(Predicate::Kind kind, const std::vector<Pred>& operands) {
  using Kind = Predicate::Kind;
  const Kind neutral = kind == Kind::all ? Kind::always : Kind::never;
  const Kind decisive = kind == Kind::all ? Kind::never : Kind::always;
  Predicate result{kind};
  for (const Pred& operand : operands) {
    if (operand->kind == decisive) return operand;
    if (operand->kind == neutral) continue;
    if (operand->kind == kind) {
      result.operands.insert(result.operands.end(), operand->operands.begin(), operand->operands.end());
      result.depth = std::max(result.depth, operand->depth);
    } else {
      result.operands.push_back(operand);
      result.depth = std::max(result.depth, operand->depth + 1);
    }
  }
  if (result.operands.empty()) return constant(neutral == Kind::always);
  if (result.operands.size() == 1) return result.operands[0];
  return std::make_shared<const Predicate>(std::move(result));
}

class Renderer {
 public:
  explicit Renderer(const SqlOptions& options) : options_(options) {}

  SqlFilter filter;

  Result<> render(const Pred& pred) {
    if (pred->depth > sql_depth_max) {
      return Error(Product::platform, ErrorKind::too_large,
                   fmt::format("conditions are nested more than {} deep in SQL", sql_depth_max));
    }
    return put(pred, true);
  }

 private:
  /// `tight`: OR stands in parentheses.
  Result<> put(const Pred& pred, bool tight) {
    using Kind = Predicate::Kind;
    switch (pred->kind) {
      case Kind::always:
        return text("TRUE");
      case Kind::never:
        return text("FALSE");
      case Kind::leaf:
        for (const auto& piece : pred->pieces) {
          if (const auto* sql = std::get_if<std::string>(&piece)) {
            CRETO_TRY(text(*sql));
          } else {
            CRETO_TRY(bind(std::get<SqlParameter>(piece)));
          }
        }
        return {};
      case Kind::not_true:
        CRETO_TRY(text("("));
        CRETO_TRY(put(pred->operands[0], false));
        return text(") IS NOT TRUE");
      case Kind::all:
        return row(pred->operands, " AND ", true);
      case Kind::any: {
        if (tight) CRETO_TRY(text("("));
        CRETO_TRY(row(pred->operands, " OR ", false));
        if (tight) return text(")");
        return {};
      }
    }
    CRETO_ASSERT(false);
    return {};
  }

  Result<> row(std::span<const Pred> operands, std::string_view between, bool tight) {
    if (operands.size() <= row_max) {
      for (std::size_t i = 0; i < operands.size(); ++i) {
        if (i > 0) CRETO_TRY(text(between));
        CRETO_TRY(put(operands[i], tight));
      }
      return {};
    }
    const std::size_t size = (operands.size() + row_max - 1) / row_max;
    for (std::size_t i = 0; i < operands.size(); i += size) {
      CRETO_TRY(text(i > 0 ? between : ""));
      CRETO_TRY(text("("));
      CRETO_TRY(row(operands.subspan(i, std::min(size, operands.size() - i)), between, tight));
      CRETO_TRY(text(")"));
    }
    return {};
  }

  Result<> text(std::string_view sql) {
    if (filter.where.size() + sql.size() > sql_bytes_max) {
      return Error(Product::platform, ErrorKind::too_large,
                   fmt::format("the condition is longer than {} bytes in SQL", sql_bytes_max));
    }
    filter.where += sql;
    return {};
  }

  Result<> bind(const SqlParameter& parameter) {
    auto& all = filter.parameters;
    std::size_t index = all.size();
    if (options_.numbered) index = numbers_.try_emplace(parameter, all.size()).first->second;
    if (index == all.size()) {
      if (all.size() == sql_parameters_max) {
        return Error(Product::platform, ErrorKind::too_large,
                     fmt::format("the condition has more than {} parameters in SQL", sql_parameters_max));
      }
      all.push_back(parameter);
    }
    return text(options_.numbered ? fmt::format("${}", options_.first_parameter + index) : "?");
  }

  const SqlOptions& options_;
  std::map<SqlParameter, std::size_t> numbers_;
};

}  // namespace

Pred constant(bool truth) {
  using Kind = Predicate::Kind;
  return std::make_shared<const Predicate>(Predicate{truth ? Kind::always : Kind::never});
}
Pred leaf(Pieces pieces) {
  return std::make_shared<const Predicate>(Predicate{Predicate::Kind::leaf, std::move(pieces)});
}

Pred all(const std::vector<Pred>& operands) { return combine(Predicate::Kind::all, operands); }
Pred any(const std::vector<Pred>& operands) { return combine(Predicate::Kind::any, operands); }
Pred not_true(const Pred& pred) {
  using Kind = Predicate::Kind;
  if (is(pred, Kind::always) || is(pred, Kind::never)) return constant(is(pred, Kind::never));
  return std::make_shared<const Predicate>(Predicate{Kind::not_true, {}, {pred}, pred->depth + 1});
}

Truth always(bool truth) { return {constant(truth), constant(!truth), constant(true)}; }
Truth errs() { return {constant(false), constant(false), constant(false)}; }
Truth negated(Truth truth) { return {std::move(truth.no), std::move(truth.yes), std::move(truth.defined)}; }

Truth chain(const std::vector<Truth>& operands, bool conjunction) {
  Truth result = conjunction ? operands.back() : negated(operands.back());
  for (auto at = operands.rbegin() + 1; at != operands.rend(); ++at) {
    const Truth left = conjunction ? *at : negated(*at);
    // What is on the right counts where the left is true, and then the left is defined.
    result = {all({left.yes, result.yes}), any({left.no, all({left.defined, result.no})}),
              all({left.defined, any({left.no, result.defined})})};
  }
  return conjunction ? result : negated(result);
}

Result<SqlFilter> render(const Pred& pred, const SqlOptions& options) {
  Renderer renderer(options);
  CRETO_TRY(renderer.render(pred));
  return std::move(renderer.filter);
}

}  // namespace creto::authz::cedar
