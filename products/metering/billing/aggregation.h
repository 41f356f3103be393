#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "billing/billing_period.h"
#include "billing/expression.h"
#include "creto/metering/plan.h"

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
  /// Each event's value, where they were asked for: by time and id, or how many there are of each, ascending.
  std::vector<Decimal> values{};
  std::vector<std::pair<Decimal, std::int64_t>> counted_values{};
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

/// What a price wants to know of single events.
enum class ValuesWanted : std::uint8_t { none, counted, in_order };

/// How many there are of each number: memory for different ones only.
class CountedNumbers {
 public:
  void add(const Decimal& number);
  /// Ascending.
  const std::vector<std::pair<Decimal, std::int64_t>>& all() const;
  std::size_t kept() const { return sorted_.size() + fresh_.size(); }

 private:
  void sort() const;
  mutable std::vector<std::pair<Decimal, std::int64_t>> sorted_;
  mutable std::vector<Decimal> fresh_;
};

/// Adds up a metric. The result depends on which facts were added, not on their order; each is added once.
/// Events are added up as they come, and not kept; but for what depends on their order in time: each is 64 bytes of
/// what is prorated, of a unique count that is carried, and where values are wanted in order. Of percentiles and
/// counted values it is each different number; of a unique count each different value.
///
/// Requires: the metric was validated; what `window` points to outlives it.
class Aggregator {
 public:
  Aggregator(std::shared_ptr<const Metric> metric, ValuesWanted values, UsageWindow window);

  /// Facts that the metric or the window does not count change nothing.
  /// Errors: invalid_input where a property is missing or no decimal; the aggregate is then unchanged.
  Result<> add(const UsageFact& fact);

  std::size_t kept() const;
  /// One entry per group, ordered by its value; exactly one where nothing is grouped, also without events.
  Result<std::vector<Usage>> finish() const;

 private:
  struct Value {
    Instant time;
    EventId id;
    Decimal number;
    std::uint32_t text = 0;  ///< of a unique count whose values may be removed: its place in `unique`
    bool removed = false;
  };
  struct State {
    std::int64_t events = 0;
    Decimal number;  ///< of a weighted sum: times nanoseconds
    std::optional<Value> latest;
    std::map<std::string, std::uint32_t, std::less<>> unique;  ///< numbered in the order in which they came
    CountedNumbers counted;
    mutable std::vector<Value> values;  ///< in no order; by time and id once that was asked for
  };
  bool keeps_every_value() const;
  bool counts_values() const;
  Result<Decimal> number_of(const UsageFact& fact) const;
  /// Requires: its values are in order.
  Result<Decimal> aggregate(const State& state, Usage& usage) const;
  std::int64_t days_left(Instant when) const;

  std::shared_ptr<const Metric> metric_;
  std::optional<Expression> expression_;
  ValuesWanted values_;
  UsageWindow window_;
  std::map<std::string, State, std::less<>> groups_;
};

/// Units of an aggregate, by the metric's conversion and rounding.
Result<Decimal> convert_units(const Metric& metric, const Decimal& aggregate);

}  // namespace creto::metering
