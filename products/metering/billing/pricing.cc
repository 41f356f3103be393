#include "billing/pricing.h"

#include <algorithm>

#include "creto/common/assert.h"

namespace creto::metering {
namespace {

const Decimal hundredth = Decimal::literal("0.01");

Result<Decimal> times(const Decimal& a, const Decimal& b) { return Decimal::multiply(a, b); }
Result<Decimal> percent_of(const Decimal& rate, const Decimal& amount) {
  const Decimal share = CRETO_TRY(times(rate, amount));
  return times(share, hundredth);
}

Result<Decimal> price(const StandardPrice& standard, const Usage& usage) {
  return times(standard.per_unit, usage.units);
}

/// The tier's price of what moves the level from `below` to `above`, and its flat fee where the move enters it.
/// `visit(tier, part)` gets each tier's share of the move, which is negative where the level falls. Levels below zero
/// (corrections may do that) are the first tier's, so that they lower the amount.
template <class Visit>
Result<> split_by_tier(const std::vector<Tier>& tiers, const Decimal& from, const Decimal& to, Visit visit) {
  const bool rises = from <= to;
  const Decimal& low = rises ? from : to;
  const Decimal& high = rises ? to : from;
  std::optional<Decimal> lower;
  for (const Tier& tier : tiers) {
    const Decimal begin = lower ? std::max(*lower, low) : low;
    const Decimal end = tier.up_to ? std::min(*tier.up_to, high) : high;
    if (end > begin) {
      const Decimal part = CRETO_TRY(Decimal::subtract(end, begin));
      CRETO_TRY(visit(tier, rises ? part : part.negated()));
    }
    lower = tier.up_to;
  }
  return {};
}

/// Prorated units, change by change: the full units say in which tiers a change lies, and are paid by the prorated.
template <class UnitPrice>
Result<Decimal> by_changes(const std::vector<Tier>& tiers, const std::vector<Usage::Change>& changes,
                           UnitPrice unit_price) {
  Decimal total = tiers.front().flat;
  Decimal level;
  Decimal highest;
  for (const Usage::Change& change : changes) {
    if (change.full.is_zero()) continue;
    const Decimal next = CRETO_TRY(Decimal::add(level, change.full));
    CRETO_TRY(split_by_tier(tiers, level, next, [&](const Tier& tier, const Decimal& part) -> Result<> {
      Decimal units = part;
      if (change.prorated != change.full) {
        const Decimal share = CRETO_TRY(times(change.prorated, part));
        units = CRETO_TRY(Decimal::divide(share, change.full));
      }
      const Decimal amount = CRETO_TRY(unit_price(tier, units));
      total = CRETO_TRY(Decimal::add(total, amount));
      return {};
    }));
    for (std::size_t i = 1; i < tiers.size() && next > *tiers[i - 1].up_to; ++i) {
      if (highest > *tiers[i - 1].up_to) continue;
      total = CRETO_TRY(Decimal::add(total, tiers[i].flat));
    }
    highest = std::max(highest, next);
    level = next;
  }
  return total;
}

template <class UnitPrice>
Result<Decimal> by_tier(const std::vector<Tier>& tiers, const Usage& usage, UnitPrice unit_price) {
  if (usage.full_units) return by_changes(tiers, usage.changes, unit_price);
  return by_changes(tiers, {{usage.units, usage.units}}, unit_price);
}

Result<Decimal> price(const GraduatedPrice& graduated, const Usage& usage) {
  return by_tier(graduated.tiers, usage,
                 [](const Tier& tier, const Decimal& units) { return times(tier.per_unit, units); });
}

Result<Decimal> price(const GraduatedPercentagePrice& graduated, const Usage& usage) {
  return by_tier(graduated.tiers, usage,
                 [](const Tier& tier, const Decimal& units) { return percent_of(tier.per_unit, units); });
}

Result<Decimal> price(const VolumePrice& volume, const Usage& usage) {
  const Decimal& full = usage.full_units ? *usage.full_units : usage.units;
  const auto tier = std::ranges::find_if(volume.tiers, [&](const Tier& t) { return !t.up_to || full <= *t.up_to; });
  CRETO_ASSERT(tier != volume.tiers.end());
  const Decimal part = CRETO_TRY(times(tier->per_unit, usage.units));
  return Decimal::add(part, tier->flat);
}

Result<Decimal> price(const PackagePrice& package, const Usage& usage) {
  const Decimal billable = CRETO_TRY(Decimal::subtract(usage.units, package.free_units));
  if (billable <= Decimal()) return Decimal();
  // The quotient is rounded at its 28th place; whether a package is begun is
  // decided exactly, by multiplying back.
  const Decimal quotient = CRETO_TRY(Decimal::divide(billable, package.size));
  Decimal packages = CRETO_TRY(quotient.round(0, Decimal::Rounding::down));
  const Decimal covered = CRETO_TRY(times(packages, package.size));
  if (covered < billable) packages = CRETO_TRY(Decimal::add(packages, Decimal(1)));
  return times(packages, package.amount);
}

/// What an event that is not free pays of what is billable of its value.
Result<Decimal> percentage_of(const PercentagePrice& percentage, const Decimal& billable) {
  const Decimal share = CRETO_TRY(percent_of(percentage.rate, billable));
  const Decimal amount = CRETO_TRY(Decimal::add(share, percentage.fixed));
  if (percentage.event_min && amount < *percentage.event_min) return *percentage.event_min;
  if (percentage.event_max && amount > *percentage.event_max) return *percentage.event_max;
  return amount;
}

Result<Decimal> price(const PercentagePrice& percentage, const Usage& usage) {
  Decimal total;
  for (const auto& [value, count] : usage.counted_values) {
    const Decimal each = CRETO_TRY(percentage_of(percentage, value));
    const Decimal amount = CRETO_TRY(times(each, Decimal(count)));
    total = CRETO_TRY(Decimal::add(total, amount));
  }
  Decimal running;
  std::int64_t index = 0;
  for (const Decimal& value : usage.values) {
    const Decimal before = running;
    running = CRETO_TRY(Decimal::add(running, value));
    const bool among_free = !percentage.free_events || index < *percentage.free_events;
    ++index;
    Decimal billable = value;
    if (percentage.free_events || percentage.free_value) {
      if (among_free && (!percentage.free_value || running <= *percentage.free_value)) continue;
      if (among_free && before < *percentage.free_value) {
        billable = CRETO_TRY(Decimal::subtract(running, *percentage.free_value));
      }
    }
    const Decimal amount = CRETO_TRY(percentage_of(percentage, billable));
    total = CRETO_TRY(Decimal::add(total, amount));
  }
  return total;
}

Result<Decimal> price(const DynamicPrice& dynamic, const Usage& usage) {
  Decimal sum;
  for (const auto& [value, count] : usage.counted_values) {
    const Decimal of_value = CRETO_TRY(times(value, Decimal(count)));
    sum = CRETO_TRY(Decimal::add(sum, of_value));
  }
  return times(sum, dynamic.multiplier);
}

}  // namespace

ValuesWanted values_wanted(const Price& price) {
  if (std::holds_alternative<DynamicPrice>(price)) return ValuesWanted::counted;
  const auto* percentage = std::get_if<PercentagePrice>(&price);
  if (percentage == nullptr) return ValuesWanted::none;
  // Only which events are free depends on their order.
  const bool some_are_free = percentage->free_events || percentage->free_value;
  return some_are_free ? ValuesWanted::in_order : ValuesWanted::counted;
}

Result<Decimal> exact_amount(const Price& rule, const Usage& usage) {
  return std::visit([&](const auto& kind) { return price(kind, usage); }, rule);
}

Result<Fee> price_usage(const Charge& charge, const Usage& usage, const Currency& currency) {
  Usage billable = usage;
  if (!charge.free_units.is_zero() && usage.units > Decimal()) {
    const Decimal rest = CRETO_TRY(Decimal::subtract(usage.units, charge.free_units));
    billable.units = std::max(Decimal(), rest);
  }
  const Decimal gross = CRETO_TRY(exact_amount(charge.price, billable));
  Decimal exact = gross;
  if (!charge.discount_percent.is_zero()) {
    const Decimal discount = CRETO_TRY(percent_of(charge.discount_percent, gross));
    exact = CRETO_TRY(Decimal::subtract(gross, discount));
  }
  if (charge.maximum) exact = std::min(exact, *charge.maximum);
  const Money unrounded{exact, currency};
  const Money amount = CRETO_TRY(unrounded.rounded());
  return Fee{usage.units, usage.events, gross, exact, amount.amount};
}

}  // namespace creto::metering
