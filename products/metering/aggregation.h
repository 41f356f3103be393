#pragma once

#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "billing_period.h"
#include "creto/metering/plan.h"
#include "expression.h"

namespace creto::metering {

/// Scalar members of an event's properties as text: strings as they are, integers in decimal, "true" and "false".
using Properties = std::map<std::string, std::string, std::less<>>;

/// What aggregation and pricing need of one event.
struct UsageFact {
  EventId id;
  Instant time{};
  std::string_view event_type;
  const Properties* properties = nullptr;
};

/// A period's usage of one metric (and one group).
struct Usage {
  std::string group{};  ///< the value of `group_by`; empty where the property is absent or nothing is grouped
  Decimal units{};      ///< after conversion and rounding
  std::int64_t events = 0;
  std::vector<Decimal> values{};  ///< each event's value, by time and id; only where it was asked for
  /// Of a prorated metric: what there is in full, and how it came to be, by time and id.
  struct Change {
    Decimal full{};
    Decimal prorated{};
  };
  std::optional<Decimal> full_units{};
  std::vector<Change> changes{};
};

/// The part of a billing period that is aggregated. What is carried comes from before it.
struct UsageWindow {
  Period part{};
  Period full{};              ///< the billing period
  std::int64_t days_end = 0;  ///< days of the period that end with the part, as PeriodDays counts them
  const PeriodDays* days = nullptr;
};

/// What one event may count for at most, either way: so that sums and prices of many still fit, and no event makes a
/// period that cannot be reckoned.
const Decimal& aggregated_max();

/// Whether `fact` is counted by `metric`.
bool counts(const Metric& metric, const UsageFact& fact);

/// Adds up a metric. The result depends on which facts were added, not on their order; each is added once.
/// Requires: the metric was validated; what `window` points to outlives it.
class Aggregator {
 public:
  /// `keep_values` for prices that look at single events.
  Aggregator(Metric metric, bool keep_values, UsageWindow window);

  /// Facts that the metric or the window does not count change nothing.
  /// Errors: invalid_input where a property is missing or no decimal; the aggregate is then unchanged.
  Result<> add(const UsageFact& fact);

  /// One entry per group, ordered by its value; exactly one where nothing is grouped, also without events.
  Result<std::vector<Usage>> finish() const;

 private:
  struct Value {
    Instant time;
    EventId id;
    Decimal number;
    std::string text{};  ///< of a unique count whose values may be removed
    bool removed = false;
  };
  struct State {
    std::int64_t events = 0;
    Decimal number;
    std::optional<Value> latest;
    std::set<std::string, std::less<>> unique;
    std::vector<Value> values;  ///< in no order
  };
  bool keeps_every_value() const;
  Result<Decimal> number_of(const UsageFact& fact) const;
  Result<Decimal> aggregate(const State& state, std::vector<Value>& ordered, Usage& usage) const;
  std::int64_t days_left(Instant when) const;

  Metric metric_;
  std::optional<Expression> expression_;
  bool keep_values_;
  UsageWindow window_;
  std::map<std::string, State, std::less<>> groups_;
};

/// Units of an aggregate, by the metric's conversion and rounding.
Result<Decimal> convert_units(const Metric& metric, const Decimal& aggregate);

}  // namespace creto::metering
