#include "pricing.h"

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

/// Units below zero (corrections may do that) are priced by the first tier, so
/// that they lower the amount.
template <class UnitPrice>
Result<Decimal> by_tier(const std::vector<Tier>& tiers, const Decimal& units, UnitPrice unit_price) {
  Decimal total;
  Decimal below;
  for (const Tier& tier : tiers) {
    const bool last = !tier.up_to || units <= *tier.up_to;
    const Decimal upper = last ? units : *tier.up_to;
    const Decimal inside = CRETO_TRY(Decimal::subtract(upper, below));
    const Decimal part = CRETO_TRY(unit_price(tier, inside));
    const Decimal with_flat = CRETO_TRY(Decimal::add(part, tier.flat));
    total = CRETO_TRY(Decimal::add(total, with_flat));
    if (last) return total;
    below = *tier.up_to;
  }
  CRETO_ASSERT(!"the last tier is open");
  return total;
}

Result<Decimal> price(const GraduatedPrice& graduated, const Usage& usage) {
  return by_tier(graduated.tiers, usage.units,
                 [](const Tier& tier, const Decimal& units) { return times(tier.per_unit, units); });
}

Result<Decimal> price(const GraduatedPercentagePrice& graduated, const Usage& usage) {
  return by_tier(graduated.tiers, usage.units,
                 [](const Tier& tier, const Decimal& units) { return percent_of(tier.per_unit, units); });
}

Result<Decimal> price(const VolumePrice& volume, const Usage& usage) {
  const auto tier =
      std::ranges::find_if(volume.tiers, [&](const Tier& t) { return !t.up_to || usage.units <= *t.up_to; });
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

Result<Decimal> price(const PercentagePrice& percentage, const Usage& usage) {
  Decimal total;
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
    const Decimal share = CRETO_TRY(percent_of(percentage.rate, billable));
    Decimal amount = CRETO_TRY(Decimal::add(share, percentage.fixed));
    if (percentage.event_min && amount < *percentage.event_min) amount = *percentage.event_min;
    if (percentage.event_max && amount > *percentage.event_max) amount = *percentage.event_max;
    total = CRETO_TRY(Decimal::add(total, amount));
  }
  return total;
}

Result<Decimal> price(const DynamicPrice& dynamic, const Usage& usage) {
  Decimal sum;
  for (const Decimal& value : usage.values) sum = CRETO_TRY(Decimal::add(sum, value));
  return times(sum, dynamic.multiplier);
}

}  // namespace

Result<Decimal> exact_amount(const Price& rule, const Usage& usage) {
  return std::visit([&](const auto& kind) { return price(kind, usage); }, rule);
}

Result<Fee> price_usage(const Charge& charge, const Usage& usage, const Currency& currency) {
  const Decimal exact = CRETO_TRY(exact_amount(charge.price, usage));
  const Decimal due = std::max(exact, charge.minimum);
  const Money unrounded{due, currency};
  Money amount = CRETO_TRY(unrounded.rounded());
  return Fee{usage.units, usage.events, exact, std::move(amount)};
}

}  // namespace creto::metering
