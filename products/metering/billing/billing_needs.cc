#include "billing/billing_needs.h"

#include <fmt/format.h>

#include <algorithm>

#include "billing/aggregation.h"
#include "billing/pricing.h"
#include "service_words.h"
#include "usage/intake.h"

namespace creto::metering {
namespace {

/// As properties_of(record) has it.
std::optional<std::string_view> property_of(const RecordView& record, std::string_view name) {
  for (const auto& [property, value] : record.properties) {
    if (property == name) return value;
  }
  if (name == "units") return record.units;
  if (name == "cost" && !record.cost.empty()) return record.cost;
  return std::nullopt;
}

bool matches(const std::map<std::string, std::vector<std::string>>& filter, const RecordView& record) {
  return std::ranges::all_of(filter, [&](const auto& wanted) {
    const auto value = property_of(record, wanted.first);
    return value && std::ranges::find(wanted.second, *value) != wanted.second.end();
  });
}

}  // namespace

std::shared_ptr<const BillingNeeds> BillingNeeds::of(const Plan& plan) {
  auto needs = std::make_shared<BillingNeeds>();
  needs->plan_ = plan.id;
  for (const Charge& charge : plan.charges) {
    const Metric& metric = charge.metric;
    const bool by_number = metric.aggregation != Aggregation::count && metric.aggregation != Aggregation::unique_count;
    if (metric.property.empty() && metric.expression.empty()) continue;
    Need need{charge.id, metric, {}, by_number || values_wanted(charge.price) != ValuesWanted::none};
    if (!metric.expression.empty()) need.expression = Expression::parse(metric.expression).value();
    needs->needs_.push_back(std::move(need));
  }
  return needs->needs_.empty() ? nullptr : needs;
}

Result<> BillingNeeds::check(const RecordView& record) const {
  for (const Need& need : needs_) {
    if (record.type == need.metric.event_type) CRETO_TRY(check(need, record));
  }
  return {};
}

Result<> BillingNeeds::check(const Need& need, const RecordView& record) const {
  const Metric& metric = need.metric;
  if (!matches(metric.match, record)) return {};
  if (std::ranges::any_of(metric.ignore, [&](const auto& filter) { return matches(filter, record); })) return {};
  const auto refused = [&](std::string_view what, std::string_view rule) {
    return error(ErrorKind::invalid_input, fmt::format("{}: {} by charge `{}` of plan `{}`, which takes its {}", what,
                                                       rule, need.charge, plan_, to_string(metric.aggregation)));
  };
  const auto number_is_good = [](const Decimal& number) {
    return number <= aggregated_max() && number >= aggregated_max().negated();
  };
  if (need.expression) {
    if (!need.number) return {};
    const Properties properties = properties_of(record);
    const auto number = need.expression->evaluate([&](std::string_view name) -> const std::string* {
      const auto found = properties.find(name);
      return found == properties.end() ? nullptr : &found->second;
    });
    if (!number) return refused("properties", fmt::format("{}, but are reckoned with", number.error().message()));
    return number_is_good(*number) ? Result<>() : refused("properties", "must give at most 10^18, as wanted");
  }
  const std::string name = "properties." + metric.property;
  const auto value = property_of(record, metric.property);
  if (!value) return refused(name, "is required");
  if (!need.number || small_integer(*value)) return {};
  const auto number = Decimal::parse(*value);
  if (!number) return refused(name, "must be a decimal number, as wanted");
  return number_is_good(*number) ? Result<>() : refused(name, "must be at most 10^18, as wanted");
}

}  // namespace creto::metering
