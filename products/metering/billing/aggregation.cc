#include "billing/aggregation.h"

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

/// The metric's conversion without its rounding.
Result<Decimal> scaled(const Metric& metric, const Decimal& aggregate) {
  const Decimal units = CRETO_TRY(Decimal::multiply(aggregate, metric.multiply_by));
  if (metric.divide_by == Decimal(1)) return units;
  return Decimal::divide(units, metric.divide_by);
}

constexpr std::string_view operation_property = "operation";

bool removes(const Properties& properties) {
  const auto found = properties.find(operation_property);
  return found != properties.end() && found->second == "remove";
}

}  // namespace

const Decimal& aggregated_max() {
  static const Decimal max(1'000'000'000'000'000'000);
  return max;
}

bool counts(const Metric& metric, const UsageFact& fact) {
  if (fact.event_type != metric.event_type || !matches(metric.match, *fact.properties)) return false;
  return std::ranges::none_of(metric.ignore, [&](const auto& filter) { return matches(filter, *fact.properties); });
}

void CountedNumbers::add(const Decimal& number) {
  fresh_.push_back(number);
  if (fresh_.size() >= std::max<std::size_t>(1'024, sorted_.size())) sort();
}

void CountedNumbers::sort() const {
  std::ranges::sort(fresh_);
  std::vector<std::pair<Decimal, std::int64_t>> merged;
  merged.reserve(sorted_.size());
  auto known = sorted_.begin();
  for (std::size_t i = 0; i < fresh_.size();) {
    const Decimal number = fresh_[i];
    std::int64_t count = 0;
    for (; i < fresh_.size() && fresh_[i] == number; ++i) ++count;
    while (known != sorted_.end() && known->first < number) merged.push_back(*known++);
    if (known != sorted_.end() && known->first == number) count += (known++)->second;
    merged.emplace_back(number, count);
  }
  merged.insert(merged.end(), known, sorted_.end());
  sorted_ = std::move(merged);
  fresh_.clear();
}

const std::vector<std::pair<Decimal, std::int64_t>>& CountedNumbers::all() const {
  sort();
  return sorted_;
}

Aggregator::Aggregator(std::shared_ptr<const Metric> metric, ValuesWanted values, UsageWindow window)
    : metric_(std::move(metric)), values_(values), window_(window) {
  if (!metric_->expression.empty()) expression_ = Expression::parse(metric_->expression).value();
  if (metric_->group_by.empty()) groups_.try_emplace("");
}

/// What depends on the order of time is reckoned at the end.
bool Aggregator::keeps_every_value() const {
  return values_ == ValuesWanted::in_order || metric_->prorated ||
         (metric_->aggregation == Aggregation::unique_count && metric_->carried);
}

bool Aggregator::counts_values() const {
  return values_ == ValuesWanted::counted || metric_->aggregation == Aggregation::percentile;
}

std::size_t Aggregator::kept() const {
  std::size_t kept = 0;
  for (const auto& [group, state] : groups_) kept += state.values.size() + state.unique.size() + state.counted.kept();
  return kept;
}

Result<Decimal> Aggregator::number_of(const UsageFact& fact) const {
  const auto lookup = [&](std::string_view name) -> const std::string* {
    const auto found = fact.properties->find(name);
    return found == fact.properties->end() ? nullptr : &found->second;
  };
  const auto value = [&]() -> Result<Decimal> {
    if (expression_) return expression_->evaluate(lookup);
    return Decimal::parse(*lookup(metric_->property));
  }();
  if (!value)
    return Error(Product::metering, ErrorKind::invalid_input,
                 fmt::format("event `{}`: {}", fact.id.to_string(), value.error().message()));
  if (*value > aggregated_max() || *value < aggregated_max().negated())
    return Error(Product::metering, ErrorKind::invalid_input,
                 fmt::format("event `{}`: its value is beyond 10^18", fact.id.to_string()));
  return *value;
}

Result<> Aggregator::add(const UsageFact& fact) {
  if (fact.time >= window_.part.end || (fact.time < window_.part.begin && !metric_->carried)) return {};
  if (!counts(*metric_, fact)) return {};

  const std::string* property = nullptr;
  if (!metric_->property.empty()) {
    const auto found = fact.properties->find(metric_->property);
    if (found == fact.properties->end()) {
      return Error(Product::metering, ErrorKind::invalid_input,
                   fmt::format("event `{}` has no property `{}`", fact.id.to_string(), metric_->property));
    }
    property = &found->second;
  }
  const bool by_number =
      metric_->aggregation != Aggregation::count && metric_->aggregation != Aggregation::unique_count;
  const bool changes_level = metric_->carried || metric_->prorated || metric_->aggregation == Aggregation::weighted_sum;
  const bool removed = changes_level && removes(*fact.properties);
  Decimal number;
  if (by_number || values_ != ValuesWanted::none) number = CRETO_TRY(number_of(fact));
  if (removed) number = number.negated();

  std::string_view group;
  if (!metric_->group_by.empty()) {
    if (const auto found = fact.properties->find(metric_->group_by); found != fact.properties->end())
      group = found->second;
  }
  auto existing = groups_.find(group);
  Decimal after = existing == groups_.end() ? Decimal() : existing->second.number;
  if (metric_->aggregation == Aggregation::sum) after = CRETO_TRY(Decimal::add(after, number));
  if (metric_->aggregation == Aggregation::max) {
    const bool first = existing == groups_.end() || existing->second.events == 0;
    after = first ? number : std::max(after, number);
  }
  if (metric_->aggregation == Aggregation::weighted_sum) {
    const Nanos there = window_.part.end - std::max(fact.time, window_.part.begin);
    const Decimal weighted = CRETO_TRY(Decimal::multiply(number, Decimal(there.count())));
    after = CRETO_TRY(Decimal::add(after, weighted));
  }

  // Nothing fails from here on.
  if (existing == groups_.end()) existing = groups_.try_emplace(std::string(group)).first;
  State& state = existing->second;
  state.number = after;
  if (window_.part.contains(fact.time)) ++state.events;
  std::uint32_t text = 0;
  if (metric_->aggregation == Aggregation::unique_count) {
    const auto known = state.unique.find(*property);
    text = known != state.unique.end()
               ? known->second
               : state.unique.emplace(*property, static_cast<std::uint32_t>(state.unique.size())).first->second;
  }
  if (counts_values()) state.counted.add(number);
  if (metric_->aggregation == Aggregation::latest) {
    if (!state.latest || std::tie(state.latest->time, state.latest->id) < std::tie(fact.time, fact.id)) {
      state.latest = Value{fact.time, fact.id, number};
    }
  }
  if (keeps_every_value()) state.values.push_back({fact.time, fact.id, number, text, removed});
  return {};
}

/// Days of the window's part from that of `when` to its end; what was there before counts from its beginning.
std::int64_t Aggregator::days_left(Instant when) const {
  return std::max<std::int64_t>(0, window_.days_end - window_.days->before(std::max(when, window_.part.begin)));
}

Result<Decimal> Aggregator::aggregate(const State& state, Usage& usage) const {
  switch (metric_->aggregation) {
    case Aggregation::count:
      return Decimal(state.events);
    case Aggregation::max:
      return state.number;
    case Aggregation::latest:
      return state.latest ? state.latest->number : Decimal();
    case Aggregation::percentile: {
      if (state.events == 0) return Decimal();
      const Decimal product = CRETO_TRY(Decimal::multiply(metric_->percentile, Decimal(state.events)));
      const Decimal share = CRETO_TRY(Decimal::multiply(product, Decimal::literal("0.01")));
      const Decimal rank = CRETO_TRY(share.round(0, Decimal::Rounding::up));
      std::int64_t left = CRETO_TRY(rank.to_integer());
      const auto& numbers = state.counted.all();
      const auto found = std::ranges::find_if(numbers, [&](const auto& one) { return (left -= one.second) <= 0; });
      return found->first;
    }
    case Aggregation::weighted_sum:
      return Decimal::divide(state.number, Decimal((window_.full.end - window_.full.begin).count()));
    case Aggregation::sum:
      if (!metric_->prorated) return state.number;
      break;
    case Aggregation::unique_count:
      if (!keeps_every_value()) return Decimal(static_cast<std::int64_t>(state.unique.size()));
      break;
  }

  // What comes and goes. Of a unique count only the first of a value comes, and only what is there goes; whoever goes
  // was there that day.
  std::vector<bool> present(state.unique.size());
  Decimal full;
  Decimal days;
  for (const Value& value : state.values) {
    Decimal change = value.number;
    std::int64_t left = days_left(value.time);
    if (metric_->aggregation == Aggregation::unique_count) {
      if (present[value.text] == !value.removed) continue;
      present[value.text] = !value.removed;
      change = Decimal(value.removed ? -1 : 1);
      if (value.removed && value.time >= window_.part.begin) left = std::max<std::int64_t>(0, left - 1);
    }
    full = CRETO_TRY(Decimal::add(full, change));
    const Decimal change_days = CRETO_TRY(Decimal::multiply(change, Decimal(left)));
    days = CRETO_TRY(Decimal::add(days, change_days));
    if (metric_->prorated) {
      const Decimal prorated = CRETO_TRY(Decimal::divide(change_days, Decimal(window_.days->total())));
      const Decimal full_units = CRETO_TRY(scaled(*metric_, change));
      const Decimal prorated_units = CRETO_TRY(scaled(*metric_, prorated));
      usage.changes.push_back({full_units, prorated_units});
    }
  }
  if (!metric_->prorated) return full;
  usage.full_units = CRETO_TRY(scaled(*metric_, full));
  return Decimal::divide(days, Decimal(window_.days->total()));
}

Result<std::vector<Usage>> Aggregator::finish() const {
  std::vector<Usage> result;
  for (const auto& [group, state] : groups_) {
    Usage usage;
    usage.group = group;
    usage.events = state.events;
    std::ranges::sort(state.values, {}, [](const Value& value) { return std::tie(value.time, value.id); });
    const Decimal aggregated = CRETO_TRY(aggregate(state, usage));
    usage.units = CRETO_TRY(convert_units(*metric_, aggregated));
    if (values_ == ValuesWanted::counted) usage.counted_values = state.counted.all();
    if (values_ == ValuesWanted::in_order) {
      for (const Value& value : state.values) usage.values.push_back(value.number);
    }
    result.push_back(std::move(usage));
  }
  return result;
}

Result<Decimal> convert_units(const Metric& metric, const Decimal& aggregate) {
  Decimal units = CRETO_TRY(scaled(metric, aggregate));
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
