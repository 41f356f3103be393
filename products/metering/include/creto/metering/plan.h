#pragma once

#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "creto/common/id.h"
#include "creto/common/money.h"
#include "creto/common/result.h"
#include "creto/common/time.h"

namespace creto::metering {

/// How many events become one number.
enum class Aggregation : std::uint8_t {
  count,         ///< how many
  sum,           ///< of `property`
  max,           ///< of `property`; 0 without events
  unique_count,  ///< different values of `property`
  latest,        ///< `property` of the event that is last by time, then by id
};
std::string_view to_string(Aggregation aggregation);
Result<Aggregation> aggregation_from_string(std::string_view text);

enum class UnitRounding : std::uint8_t { none, half_up, ceil, floor };
std::string_view to_string(UnitRounding rounding);
Result<UnitRounding> unit_rounding_from_string(std::string_view text);

/// What of the usage is counted. The result does not depend on the order in
/// which events arrived.
struct Metric {
  std::string event_type{};  ///< "sandbox_allocated", "inference_tokens", ...
  Aggregation aggregation = Aggregation::count;
  std::string property{};  ///< required by all but count
  /// An event counts if each of these properties has one of the given values,
  /// ...
  std::map<std::string, std::vector<std::string>> match{};
  /// ... and no entry of `ignore` matches as a whole. A property that is absent
  /// matches nothing.
  std::vector<std::map<std::string, std::vector<std::string>>> ignore{};
  std::string group_by{};  ///< one line per value of this property; empty: one line
  /// Units = rounded(aggregate * multiply_by / divide_by).
  Decimal multiply_by = Decimal(1);
  Decimal divide_by = Decimal(1);
  UnitRounding rounding = UnitRounding::none;
  int places = 0;  ///< -28..28, where `rounding` is not none
};

/// From the previous tier's `up_to` (exclusive) to `up_to` (inclusive); the
/// last tier has none. For whole units this is also the convention of ranges
/// 0-10, 11-20.
struct Tier {
  std::optional<Decimal> up_to{};
  Decimal per_unit{};  ///< or the rate in percent, in a graduated percentage
  Decimal flat{};      ///< once, when the tier is entered; the first one's even
                       ///< without usage
};

struct StandardPrice {
  Decimal per_unit{};
};
/// Every tier prices the units that lie in it.
struct GraduatedPrice {
  std::vector<Tier> tiers{};
};
/// As graduated, with `per_unit` in percent of the tier's units.
struct GraduatedPercentagePrice {
  std::vector<Tier> tiers{};
};
/// One tier, that of the total, prices all units.
struct VolumePrice {
  std::vector<Tier> tiers{};
};
/// Begun packages of `size` units after `free_units`.
struct PackagePrice {
  Decimal amount{};
  Decimal size{};
  Decimal free_units{};
};
/// A percentage of each event's value and a fixed amount per event. Free are
/// the first `free_events` events and, of the running total, the first
/// `free_value`; where both are set, what both leave free. A wholly free event
/// pays nothing.
struct PercentagePrice {
  Decimal rate{};  ///< in percent
  Decimal fixed{};
  std::optional<std::int64_t> free_events{};
  std::optional<Decimal> free_value{};
  std::optional<Decimal> event_min{};  ///< bounds of what one event that is not free pays
  std::optional<Decimal> event_max{};
};
/// The sum that the events state, times `multiplier`.
struct DynamicPrice {
  Decimal multiplier = Decimal(1);
};
using Price = std::variant<StandardPrice, GraduatedPrice, GraduatedPercentagePrice, VolumePrice, PackagePrice,
                           PercentagePrice, DynamicPrice>;
/// "standard", "graduated", "graduated_percentage", "volume", "package",
/// "percentage", "dynamic".
std::string_view to_string(const Price& price);

struct Charge {
  std::string id{};           ///< [a-z0-9_.-]{1,64}, unique in the plan
  std::string description{};  ///< the line's text on the invoice
  Metric metric{};
  Price price{};
  Decimal minimum{};  ///< the fee is at least this, once per period
};

struct Plan {
  std::string id{};          ///< [a-z0-9_.-]{1,64}
  std::int64_t version = 0;  ///< given by the store: 1, 2, ...
  std::string name{};
  Currency currency = Currency::usd();
  Decimal base_fee{};             ///< per begun calendar month
  std::vector<Charge> charges{};  ///< at most 100
};

/// Errors: invalid_input with the path of what is wrong.
Result<> validate(const Plan& plan);
/// `to_json` is canonical; `from_json` refuses unknown members and validates.
Result<std::string> to_json(const Plan& plan);
Result<Plan> plan_from_json(std::string_view text);

/// Binds an agent to one version of a plan. Usage of agents below it that have
/// none of their own is billed to it.
struct Subscription {
  SubscriptionId id;
  std::string agent{};
  std::string plan_id{};
  std::int64_t plan_version = 0;
  Instant started_at{};
  std::optional<Instant> ended_at{};
  bool active_at(Instant when) const { return when >= started_at && (!ended_at || when < *ended_at); }
};

/// Half open: [begin, end).
struct Period {
  Instant begin{};
  Instant end{};
  bool contains(Instant when) const { return begin <= when && when < end; }
  friend bool operator==(const Period&, const Period&) = default;
};

}  // namespace creto::metering
