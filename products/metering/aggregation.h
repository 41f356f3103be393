#pragma once

#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "creto/metering/plan.h"

namespace creto::metering {

/// Scalar members of an event's properties as text: strings as they are,
/// integers in decimal, "true" and "false".
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
  std::string group;  ///< the value of `group_by`; empty where the property is
                      ///< absent or nothing is grouped
  Decimal units;      ///< after conversion and rounding
  std::int64_t events = 0;
  std::vector<Decimal> values;  ///< each event's `property`, by time and id;
                                ///< only where it was asked for
};

/// Whether `fact` is counted by `metric`.
bool counts(const Metric& metric, const UsageFact& fact);

/// Adds up a metric. The result depends on which facts were added, not on their
/// order; each is added once.
class Aggregator {
 public:
  /// `keep_values` for prices that look at single events.
  Aggregator(Metric metric, bool keep_values);

  /// Facts the metric does not count change nothing.
  /// Errors: invalid_input where the property is missing or no decimal; the
  /// aggregate is then unchanged.
  Result<> add(const UsageFact& fact);

  /// One entry per group, ordered by its value; exactly one where nothing is
  /// grouped, also without events.
  Result<std::vector<Usage>> finish() const;

 private:
  struct Latest {
    Instant time;
    EventId id;
    Decimal value;
  };
  struct Value {
    Instant time;
    EventId id;
    Decimal value;
  };
  struct State {
    std::int64_t events = 0;
    Decimal number;
    std::optional<Latest> latest;
    std::set<std::string> unique;
    std::vector<Value> values;
  };
  Metric metric_;
  bool keep_values_;
  std::map<std::string, State> groups_;
};

/// Units of an aggregate, by the metric's conversion and rounding.
Result<Decimal> convert_units(const Metric& metric, const Decimal& aggregate);

}  // namespace creto::metering
