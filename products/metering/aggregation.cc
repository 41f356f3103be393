#include "aggregation.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

namespace creto::metering {
namespace {

bool matches(const std::map<std::string, std::vector<std::string>>& filter, const Properties& properties) {
  return std::ranges::all_of(filter, [&](const auto& wanted) {
    const auto found = properties.find(wanted.first);
    return found != properties.end() && std::ranges::find(wanted.second, found->second) != wanted.second.end();
  });
}

bool wants_number(Aggregation aggregation) {
  return aggregation == Aggregation::sum || aggregation == Aggregation::max || aggregation == Aggregation::latest;
}

}  // namespace

bool counts(const Metric& metric, const UsageFact& fact) {
  if (fact.event_type != metric.event_type || !matches(metric.match, *fact.properties)) return false;
  return std::ranges::none_of(metric.ignore, [&](const auto& filter) { return matches(filter, *fact.properties); });
}

Aggregator::Aggregator(Metric metric, bool keep_values) : metric_(std::move(metric)), keep_values_(keep_values) {
  if (metric_.group_by.empty()) groups_.try_emplace("");
}

Result<> Aggregator::add(const UsageFact& fact) {
  if (!counts(metric_, fact)) return {};

  const std::string* property = nullptr;
  Decimal number;
  if (!metric_.property.empty()) {
    const auto found = fact.properties->find(metric_.property);
    if (found == fact.properties->end()) {
      return Error(Product::metering, ErrorKind::invalid_input,
                   fmt::format("event `{}` has no property `{}`", fact.id.to_string(), metric_.property));
    }
    property = &found->second;
    if (wants_number(metric_.aggregation) || keep_values_) number = CRETO_TRY(Decimal::parse(*property));
  }

  std::string group;
  if (!metric_.group_by.empty()) {
    if (const auto found = fact.properties->find(metric_.group_by); found != fact.properties->end())
      group = found->second;
  }
  const auto existing = groups_.find(group);
  const Decimal before = existing == groups_.end() ? Decimal() : existing->second.number;
  const bool first = existing == groups_.end() || existing->second.events == 0;
  Decimal after = before;
  if (metric_.aggregation == Aggregation::sum) after = CRETO_TRY(Decimal::add(before, number));
  if (metric_.aggregation == Aggregation::max) after = first ? number : std::max(before, number);

  // Nothing fails from here on.
  State& state = groups_[group];
  state.number = after;
  ++state.events;
  if (metric_.aggregation == Aggregation::unique_count) state.unique.insert(*property);
  if (metric_.aggregation == Aggregation::latest) {
    if (!state.latest || std::tie(state.latest->time, state.latest->id) < std::tie(fact.time, fact.id)) {
      state.latest = Latest{fact.time, fact.id, number};
    }
  }
  if (keep_values_) state.values.push_back({fact.time, fact.id, number});
  return {};
}

Result<std::vector<Usage>> Aggregator::finish() const {
  std::vector<Usage> result;
  for (const auto& [group, state] : groups_) {
    Decimal aggregate = state.number;
    if (metric_.aggregation == Aggregation::count) aggregate = Decimal(state.events);
    if (metric_.aggregation == Aggregation::unique_count) {
      aggregate = Decimal(static_cast<std::int64_t>(state.unique.size()));
    }
    if (metric_.aggregation == Aggregation::latest && state.latest) aggregate = state.latest->value;

    Usage usage;
    usage.group = group;
    usage.events = state.events;
    usage.units = CRETO_TRY(convert_units(metric_, aggregate));
    std::vector<Value> ordered = state.values;
    std::ranges::sort(ordered, {}, [](const Value& value) { return std::tie(value.time, value.id); });
    for (const Value& value : ordered) usage.values.push_back(value.value);
    result.push_back(std::move(usage));
  }
  return result;
}

Result<Decimal> convert_units(const Metric& metric, const Decimal& aggregate) {
  Decimal units = CRETO_TRY(Decimal::multiply(aggregate, metric.multiply_by));
  if (metric.divide_by != Decimal(1)) units = CRETO_TRY(Decimal::divide(units, metric.divide_by));
  if (metric.rounding == UnitRounding::none) return units;

  Decimal::Rounding rounding = Decimal::Rounding::half_up;
  if (metric.rounding == UnitRounding::ceil) {
    rounding = units.is_negative() ? Decimal::Rounding::down : Decimal::Rounding::up;
  }
  if (metric.rounding == UnitRounding::floor) {
    rounding = units.is_negative() ? Decimal::Rounding::up : Decimal::Rounding::down;
  }
  if (metric.places >= 0) return units.round(metric.places, rounding);
  // Tens, hundreds...: round the shifted number.
  const Decimal shift = CRETO_TRY(Decimal::parse(fmt::format("1e{}", -metric.places)));
  const Decimal shifted = CRETO_TRY(Decimal::divide(units, shift));
  const Decimal rounded = CRETO_TRY(shifted.round(0, rounding));
  return Decimal::multiply(rounded, shift);
}

}  // namespace creto::metering
