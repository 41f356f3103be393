#include "creto/metering/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

#include "billing/expression.h"
#include "names.h"

namespace creto::metering {
namespace {

constexpr std::size_t charges_max = 100;
constexpr std::size_t tiers_max = 100;
constexpr std::size_t text_bytes_max = 256;
constexpr std::size_t filter_values_max = 100;
constexpr std::size_t taxes_max = 10;
constexpr std::size_t thresholds_max = 20;
constexpr std::int64_t whole_number_max = 1LL << 53;  // what canonical JSON holds as a number

constexpr std::array aggregations{std::pair{Aggregation::count, std::string_view("count")},
                                  std::pair{Aggregation::sum, std::string_view("sum")},
                                  std::pair{Aggregation::max, std::string_view("max")},
                                  std::pair{Aggregation::unique_count, std::string_view("unique_count")},
                                  std::pair{Aggregation::latest, std::string_view("latest")},
                                  std::pair{Aggregation::weighted_sum, std::string_view("weighted_sum")},
                                  std::pair{Aggregation::percentile, std::string_view("percentile")}};
constexpr std::array unit_roundings{std::pair{UnitRounding::none, std::string_view("none")},
                                    std::pair{UnitRounding::half_up, std::string_view("half_up")},
                                    std::pair{UnitRounding::ceil, std::string_view("ceil")},
                                    std::pair{UnitRounding::floor, std::string_view("floor")}};

constexpr std::array intervals{std::pair{Interval::weekly, std::string_view("weekly")},
                               std::pair{Interval::monthly, std::string_view("monthly")},
                               std::pair{Interval::quarterly, std::string_view("quarterly")},
                               std::pair{Interval::yearly, std::string_view("yearly")}};
constexpr std::array tier_conventions{std::pair{TierConvention::up_to, std::string_view("up_to")},
                                      std::pair{TierConvention::ranges, std::string_view("ranges")}};

Error invalid(const std::string& path, std::string_view rule) {
  return Error(Product::metering, ErrorKind::invalid_input, fmt::format("{}: {}", path, rule));
}

Result<> check_not_negative(const std::string& path, const Decimal& value) {
  if (value.is_negative()) return invalid(path, "must not be negative");
  return {};
}

Result<> check_percent(const std::string& path, const Decimal& value) {
  if (value.is_negative() || value > Decimal(100)) return invalid(path, "must be 0 to 100");
  return {};
}
Result<> check_within(const std::string& path, int value, int max) {
  if (value < 0 || value > max) return invalid(path, fmt::format("must be 0 to {}", max));
  return {};
}

Result<> check_tiers(const std::string& path, const std::vector<Tier>& tiers, TierConvention convention) {
  if (tiers.empty() || tiers.size() > tiers_max)
    return invalid(path, fmt::format("must have 1 to {} tiers", tiers_max));
  for (std::size_t i = 0; i < tiers.size(); ++i) {
    const std::string here = fmt::format("{}[{}]", path, i);
    const bool last = i + 1 == tiers.size();
    if (last != !tiers[i].up_to) return invalid(here + ".up_to", "must be given in all but the last tier");
    const Decimal floor = i == 0 ? Decimal() : *tiers[i - 1].up_to;
    if (tiers[i].up_to && *tiers[i].up_to <= floor) return invalid(here + ".up_to", "must grow from tier to tier");
    if (convention == TierConvention::ranges && tiers[i].up_to &&
        (!tiers[i].up_to->to_integer() || *tiers[i].up_to > Decimal(whole_number_max))) {
      return invalid(here + ".to", "must be whole, at most 2^53");
    }
    CRETO_TRY(check_not_negative(here + ".per_unit", tiers[i].per_unit));
    CRETO_TRY(check_not_negative(here + ".flat", tiers[i].flat));
  }
  return {};
}

struct PriceCheck {
  std::string path;
  TierConvention convention;
  Result<> operator()(const StandardPrice& price) const {
    return check_not_negative(path + ".per_unit", price.per_unit);
  }
  Result<> operator()(const GraduatedPrice& price) const {
    return check_tiers(path + ".tiers", price.tiers, convention);
  }
  Result<> operator()(const GraduatedPercentagePrice& price) const {
    return check_tiers(path + ".tiers", price.tiers, convention);
  }
  Result<> operator()(const VolumePrice& price) const { return check_tiers(path + ".tiers", price.tiers, convention); }
  Result<> operator()(const PackagePrice& price) const {
    CRETO_TRY(check_not_negative(path + ".amount", price.amount));
    CRETO_TRY(check_not_negative(path + ".free_units", price.free_units));
    if (price.size <= Decimal()) return invalid(path + ".size", "must be positive");
    return {};
  }
  Result<> operator()(const PercentagePrice& price) const {
    CRETO_TRY(check_not_negative(path + ".rate", price.rate));
    CRETO_TRY(check_not_negative(path + ".fixed", price.fixed));
    if (price.free_events && (*price.free_events < 0 || *price.free_events > whole_number_max))
      return invalid(path + ".free_events", "must be 0 to 2^53");
    if (price.free_value) CRETO_TRY(check_not_negative(path + ".free_value", *price.free_value));
    if (price.event_min) CRETO_TRY(check_not_negative(path + ".event_min", *price.event_min));
    if (price.event_max) CRETO_TRY(check_not_negative(path + ".event_max", *price.event_max));
    if (price.event_min && price.event_max && *price.event_max < *price.event_min) {
      return invalid(path + ".event_max", "must not be below event_min");
    }
    return {};
  }
  Result<> operator()(const DynamicPrice& price) const {
    return check_not_negative(path + ".multiplier", price.multiplier);
  }
};

Result<> check_metric(const std::string& path, const Charge& charge) {
  const Metric& metric = charge.metric;
  if (!is_name(metric.event_type)) return invalid(path + ".event_type", name_rule);
  using enum Aggregation;
  const Aggregation how = metric.aggregation;
  const bool by_event =
      std::holds_alternative<PercentagePrice>(charge.price) || std::holds_alternative<DynamicPrice>(charge.price);
  if (!metric.property.empty() && !is_name(metric.property)) return invalid(path + ".property", name_rule);
  if (!metric.expression.empty()) {
    if (!metric.property.empty()) return invalid(path + ".expression", "stands instead of a property");
    if (how == unique_count) return invalid(path + ".expression", "gives numbers; a unique count needs a property");
    const auto parsed = Expression::parse(metric.expression);
    if (!parsed) return invalid(path + ".expression", parsed.error().message());
  } else if (metric.property.empty() && (how != count || by_event)) {
    return invalid(path + ".property", "is required by this aggregation or price");
  }
  if (how == percentile ? metric.percentile <= Decimal() || metric.percentile > Decimal(100)
                        : !metric.percentile.is_zero()) {
    return invalid(path + ".percentile", "must be above 0 and at most 100, for a percentile only");
  }
  if (metric.carried && how != sum && how != weighted_sum && how != unique_count) {
    return invalid(path + ".carried", "is for sums and unique counts");
  }
  if (metric.prorated && how != sum && how != unique_count) {
    return invalid(path + ".prorated", "is for sums and unique counts");
  }
  if ((metric.carried || metric.prorated) && by_event) {
    return invalid(path, "a price by event cannot be of what is carried or prorated");
  }
  if (!metric.group_by.empty() && !is_name(metric.group_by)) return invalid(path + ".group_by", name_rule);
  if (metric.multiply_by <= Decimal()) return invalid(path + ".multiply_by", "must be positive");
  if (metric.divide_by <= Decimal()) return invalid(path + ".divide_by", "must be positive");
  if (metric.places < -28 || metric.places > 28) return invalid(path + ".places", "must be -28 to 28");
  std::size_t values = 0;
  for (const auto& [name, wanted] : metric.match) values += wanted.size();
  for (const auto& filter : metric.ignore) {
    for (const auto& [name, wanted] : filter) values += wanted.size();
  }
  if (values > filter_values_max)
    return invalid(path, fmt::format("filters must name at most {} values", filter_values_max));
  return {};
}

Result<> check_taxes(const std::vector<Tax>& taxes) {
  if (taxes.size() > taxes_max) return invalid("plan.taxes", fmt::format("must be at most {}", taxes_max));
  std::set<std::string_view> ids;
  for (std::size_t i = 0; i < taxes.size(); ++i) {
    const std::string path = fmt::format("plan.taxes[{}]", i);
    if (!is_name(taxes[i].id)) return invalid(path + ".id", name_rule);
    if (!ids.insert(taxes[i].id).second) return invalid(path + ".id", "must be unique in the plan");
    if (taxes[i].name.size() > text_bytes_max) {
      return invalid(path + ".name", fmt::format("must be at most {} bytes", text_bytes_max));
    }
    CRETO_TRY(check_percent(path + ".rate", taxes[i].rate));
  }
  return {};
}

Result<> check_thresholds(const Plan& plan) {
  const std::string path = "plan.progressive_thresholds";
  if (plan.progressive_thresholds.size() > thresholds_max) {
    return invalid(path, fmt::format("must be at most {}", thresholds_max));
  }
  Decimal before;
  for (const Decimal& threshold : plan.progressive_thresholds) {
    if (threshold <= before) return invalid(path, "must be positive and grow");
    before = threshold;
  }
  return check_not_negative("plan.progressive_step", plan.progressive_step);
}

}  // namespace

std::string_view to_string(Interval interval) { return name_of(intervals, interval); }
Result<Interval> interval_from_string(std::string_view text) { return value_of(intervals, text, "interval"); }
std::string_view to_string(TierConvention convention) { return name_of(tier_conventions, convention); }
Result<TierConvention> tier_convention_from_string(std::string_view text) {
  return value_of(tier_conventions, text, "tiers");
}
std::string_view to_string(Aggregation aggregation) { return name_of(aggregations, aggregation); }
Result<Aggregation> aggregation_from_string(std::string_view text) {
  return value_of(aggregations, text, "aggregation");
}
std::string_view to_string(UnitRounding rounding) { return name_of(unit_roundings, rounding); }
Result<UnitRounding> unit_rounding_from_string(std::string_view text) {
  return value_of(unit_roundings, text, "rounding");
}

std::string_view to_string(const Price& price) {
  static constexpr std::array<std::string_view, std::variant_size_v<Price>> names = {
      "standard", "graduated", "graduated_percentage", "volume", "package", "percentage", "dynamic"};
  return names[price.index()];
}

Result<> validate(const Plan& plan) {
  if (!is_name(plan.id)) return invalid("plan.id", name_rule);
  if (plan.name.size() > text_bytes_max)
    return invalid("plan.name", fmt::format("must be at most {} bytes", text_bytes_max));
  CRETO_TRY(check_not_negative("plan.base_fee", plan.base_fee));
  CRETO_TRY(check_not_negative("plan.minimum_commitment", plan.minimum_commitment));
  CRETO_TRY(check_within("plan.trial_days", plan.trial_days, 366));
  CRETO_TRY(check_within("plan.grace_days", plan.grace_days, 31));
  CRETO_TRY(check_within("plan.payment_days", plan.payment_days, 366));
  CRETO_TRY(check_taxes(plan.taxes));
  CRETO_TRY(check_thresholds(plan));
  if (plan.charges.size() > charges_max) {
    return invalid("plan.charges", fmt::format("must be at most {}", charges_max));
  }
  std::set<std::string_view> ids;
  for (std::size_t i = 0; i < plan.charges.size(); ++i) {
    const Charge& charge = plan.charges[i];
    const std::string path = fmt::format("plan.charges[{}]", i);
    if (!is_name(charge.id)) return invalid(path + ".id", name_rule);
    if (!ids.insert(charge.id).second) return invalid(path + ".id", "must be unique in the plan");
    if (charge.description.size() > text_bytes_max) {
      return invalid(path + ".description", fmt::format("must be at most {} bytes", text_bytes_max));
    }
    CRETO_TRY(check_not_negative(path + ".free_units", charge.free_units));
    if (charge.metric.prorated && !charge.free_units.is_zero()) {
      return invalid(path + ".free_units", "cannot be given where the metric is prorated");
    }
    CRETO_TRY(check_percent(path + ".discount_percent", charge.discount_percent));
    if (charge.maximum) CRETO_TRY(check_not_negative(path + ".maximum", *charge.maximum));
    CRETO_TRY(check_not_negative(path + ".minimum", charge.minimum));
    CRETO_TRY(check_metric(path + ".metric", charge));
    CRETO_TRY(std::visit(PriceCheck{path + ".price", plan.tiers}, charge.price));
  }
  return {};
}

}  // namespace creto::metering
