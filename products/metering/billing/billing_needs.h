#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "billing/expression.h"
#include "creto/metering/plan.h"
#include "ledger/usage_record.h"

namespace creto::metering {

/// What the charges of a plan need of an event that they count. Immutable.
class BillingNeeds {
 public:
  /// Null where they need nothing.
  static std::shared_ptr<const BillingNeeds> of(const Plan& plan);

  /// Does not allocate where the event is good and no expression is asked for. Errors: invalid_input naming property,
  /// charge and plan.
  Result<> check(const RecordView& record) const;

 private:
  struct Need {
    std::string charge;
    Metric metric;
    std::optional<Expression> expression;
    bool number = true;  ///< what the charge looks at must be one
  };
  Result<> check(const Need& need, const RecordView& record) const;

  std::string plan_;
  std::vector<Need> needs_;
};

}  // namespace creto::metering
