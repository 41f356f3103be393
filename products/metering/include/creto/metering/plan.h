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

/// How many events become one number. What is added up is the event's `property`, or the metric's expression.
enum class Aggregation : std::uint8_t {
  count,         ///< how many
  sum,           ///< of the values
  max,           ///< of the values; 0 without events
  unique_count,  ///< different values of `property`
  latest,        ///< the value of the event that is last by time, then by id
  weighted_sum,  ///< values move a level; its average over the period, by time
  percentile,    ///< the smallest value that `percentile` percent of the events do not exceed; 0 without events
};
std::string_view to_string(Aggregation aggregation);
Result<Aggregation> aggregation_from_string(std::string_view text);

enum class UnitRounding : std::uint8_t { none, half_up, ceil, floor };
std::string_view to_string(UnitRounding rounding);
Result<UnitRounding> unit_rounding_from_string(std::string_view text);

/// What of the usage is counted. The result does not depend on the order in which events arrived.
struct Metric {
  std::string event_type{};  ///< "sandbox_allocated", "inference_tokens", ...
  Aggregation aggregation = Aggregation::count;
  std::string property{};    ///< required by all but count, unless there is an expression
  std::string expression{};  ///< instead of `property`: docs/formats.md, "Expression"
  Decimal percentile{};      ///< above 0, at most 100; of a percentile only
  /// What was there at the end of a period is there at the beginning of the next: seats, stored bytes. Of a sum, a
  /// weighted sum or a unique count; an event whose property `operation` is "remove" takes its value out again.
  bool carried = false;
  /// A change counts for the days of the period that are left, its own included. Prices pick their tier by what there
  /// is in full. Of a sum or a unique count.
  bool prorated = false;
  /// An event counts if each of these properties has one of the given values, ...
  std::map<std::string, std::vector<std::string>> match{};
  /// ... and no entry of `ignore` matches as a whole. A property that is absent matches nothing.
  std::vector<std::map<std::string, std::vector<std::string>>> ignore{};
  std::string group_by{};  ///< one line per value of this property; empty: one line
  /// Units = rounded(aggregate * multiply_by / divide_by).
  Decimal multiply_by = Decimal(1);
  Decimal divide_by = Decimal(1);
  UnitRounding rounding = UnitRounding::none;
  int places = 0;  ///< -28..28, where `rounding` is not none
};

/// From the previous tier's `up_to` (exclusive) to `up_to` (inclusive); the last tier has none.
struct Tier {
  std::optional<Decimal> up_to{};
  Decimal per_unit{};  ///< or the rate in percent, in a graduated percentage
  Decimal flat{};      ///< once, when the tier is entered; the first one's even without usage
};

/// How a plan's document writes its tiers. What they mean is the same wherever both can say it.
enum class TierConvention : std::uint8_t {
  up_to,   ///< {"up_to": "10"}: upper bounds, of any decimals
  ranges,  ///< {"from": "0", "to": "10"}, {"from": "11"}: inclusive ranges of whole units, without gaps
};
std::string_view to_string(TierConvention convention);
Result<TierConvention> tier_convention_from_string(std::string_view text);

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
/// A percentage of each event's value and a fixed amount per event. Free are the first `free_events` events and, of the
/// running total, the first `free_value`; where both are set, what both leave free. A wholly free event pays nothing.
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
/// "standard", "graduated", "graduated_percentage", "volume", "package", "percentage", "dynamic".
std::string_view to_string(const Price& price);

/// The fee of a period: min(price(units - free_units) less discount_percent, maximum), rounded once, half up.
struct Charge {
  std::string id{};           ///< [a-z0-9_.-]{1,64}, unique in the plan
  std::string description{};  ///< the line's text on the invoice
  Metric metric{};
  Price price{};
  Decimal free_units{};              ///< of each period (and group), before any price that goes by units
  Decimal discount_percent{};        ///< 0..100
  std::optional<Decimal> maximum{};  ///< of a period
  /// What is missing to this is a line of its own, prorated by days.
  Decimal minimum{};
  /// Billed as soon as it is used, on interim invoices, instead of with the period.
  bool in_advance = false;
};

enum class Interval : std::uint8_t { weekly, monthly, quarterly, yearly };
std::string_view to_string(Interval interval);
Result<Interval> interval_from_string(std::string_view text);

struct Tax {
  std::string id{};    ///< unique in the plan
  std::string name{};  ///< "VAT 19 %"
  Decimal rate{};      ///< in percent, 0..100, of what is left after coupons; each tax is rounded once
};

struct Plan {
  std::string id{};          ///< [a-z0-9_.-]{1,64}
  std::int64_t version = 0;  ///< given by the store: 1, 2, ...
  std::string name{};
  Currency currency = Currency::usd();
  Interval interval = Interval::monthly;
  Decimal base_fee{};  ///< per interval and unit of the subscription's quantity; prorated by days
  bool base_fee_in_advance = false;
  int trial_days = 0;            ///< 0..366 days from the subscription's start without base fee
  Decimal minimum_commitment{};  ///< of base fee and charges together, per interval; prorated by days
  TierConvention tiers = TierConvention::up_to;
  std::vector<Charge> charges{};  ///< at most 100
  std::vector<Tax> taxes{};       ///< at most 10
  /// A period's usage that reaches one of these is billed at once. Growing; at most 20. After the last one every
  /// `progressive_step`, if that is not zero.
  std::vector<Decimal> progressive_thresholds{};
  Decimal progressive_step{};
  int grace_days = 0;    ///< 0..31 days for which a period's invoice stays a draft
  int payment_days = 0;  ///< 0..366 days from issue to due date
};

/// Errors: invalid_input with the path of what is wrong.
Result<> validate(const Plan& plan);
/// `to_json` is canonical; `from_json` refuses unknown members and validates.
Result<std::string> to_json(const Plan& plan);
Result<Plan> plan_from_json(std::string_view text);

/// Half open: [begin, end).
struct Period {
  Instant begin{};
  Instant end{};
  bool contains(Instant when) const { return begin <= when && when < end; }
  friend bool operator==(const Period&, const Period&) = default;
};

}  // namespace creto::metering
