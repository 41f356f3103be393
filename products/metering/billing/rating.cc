#include "billing/rating.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "billing/pricing.h"
#include "creto/common/assert.h"
#include "creto/common/json.h"

namespace creto::metering {
namespace {

constexpr std::size_t crossed_max = 1'000;

/// Days [begin, end) of a period.
struct Days {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t count() const { return std::max<std::int64_t>(0, end - begin); }
};

/// amount * days / of, exact but for the quotient's 28th place.
Result<Decimal> share(const Decimal& amount, std::int64_t days, std::int64_t of) {
  if (days == of) return amount;
  const Decimal product = CRETO_TRY(Decimal::multiply(amount, Decimal(days)));
  return Decimal::divide(product, Decimal(of));
}
Result<Decimal> rounded(const Decimal& exact, const Currency& currency) {
  const Money unrounded{exact, currency};
  const Money money = CRETO_TRY(unrounded.rounded());
  return money.amount;
}

/// The first day of the period that is not free of base fee.
std::int64_t trial_end(const Plan& plan, Instant subscribed_at, const PeriodDays& days, const TimeZone& zone) {
  if (plan.trial_days == 0) return 0;
  const auto paid_from = zone.day_of(subscribed_at) + std::chrono::days(plan.trial_days);
  return days.before(zone.day_begin(paid_from));
}

struct BaseFee {
  Decimal exact;
  Decimal amount;
  std::int64_t days = 0;
};
Result<BaseFee> base_fee(const Phase& phase, Days days, const PeriodDays& of, Instant subscribed_at,
                         const TimeZone& zone) {
  days.begin = std::max(days.begin, trial_end(*phase.plan, subscribed_at, of, zone));
  const Decimal whole = CRETO_TRY(Decimal::multiply(phase.plan->base_fee, phase.quantity));
  BaseFee fee;
  fee.days = days.count();
  fee.exact = CRETO_TRY(share(whole, fee.days, of.total()));
  fee.amount = CRETO_TRY(rounded(fee.exact, phase.plan->currency));
  return fee;
}

std::string days_text(const std::string& what, std::int64_t days, std::int64_t of) {
  return days == of ? what : fmt::format("{}, {} of {} days", what, days, of);
}

InvoiceLine base_line(LineKind kind, const Phase& phase, const BaseFee& fee, std::int64_t of, Period period,
                      const std::string& description) {
  return {.kind = kind,
          .charge = "base_fee",
          .description = days_text(description, fee.days, of),
          .model = "flat",
          .group = {},
          .period = period,
          .units = phase.quantity,
          .events = 0,
          .exact = fee.exact,
          .amount = fee.amount};
}

Result<Decimal> sum_of(std::span<const InvoiceLine> lines) {
  Decimal total;
  for (const InvoiceLine& line : lines) total = CRETO_TRY(Decimal::add(total, line.amount));
  return total;
}

}  // namespace

struct Rating::Rep {
  explicit Rep(RatedPeriod rated) : period(std::move(rated)), days(period.full, period.zone) {
    CRETO_ASSERT(!period.phases.empty());
    for (std::size_t i = 0; i < period.phases.size(); ++i) {
      const Phase& phase = period.phases[i];
      const bool last = i + 1 == period.phases.size();
      const Instant end = phase.when.end;
      phase_days.push_back({days.before(phase.when.begin), last && period.ends ? days.through(end) : days.before(end)});
      for (const Charge& charge : phase.plan->charges) {
        aggregators.emplace_back(std::shared_ptr<const Metric>(phase.plan, &charge.metric), values_wanted(charge.price),
                                 UsageWindow{phase.when, period.full, phase_days.back().end, &days});
      }
    }
  }

  /// Calls `visit(charge, aggregator)` for every charge of a phase.
  template <class Visit>
  Result<> for_each_charge(std::size_t phase_index, Visit visit) const {
    std::size_t first = 0;
    for (std::size_t i = 0; i < phase_index; ++i) first += period.phases[i].plan->charges.size();
    const Phase& phase = period.phases[phase_index];
    for (std::size_t i = 0; i < phase.plan->charges.size(); ++i) {
      CRETO_TRY(visit(phase.plan->charges[i], aggregators[first + i]));
    }
    return {};
  }

  Result<std::vector<InvoiceLine>> usage_lines(std::size_t phase_index, const Charge& charge,
                                               const Aggregator& aggregator) const {
    const Phase& phase = period.phases[phase_index];
    const std::vector<Usage> groups = CRETO_TRY(aggregator.finish());
    std::vector<InvoiceLine> lines;
    for (const Usage& usage : groups) {
      const Fee fee = CRETO_TRY(price_usage(charge, usage, phase.plan->currency));
      lines.push_back({.kind = LineKind::usage,
                       .charge = charge.id,
                       .description = charge.description,
                       .model = std::string(to_string(charge.price)),
                       .group = usage.group,
                       .period = phase.when,
                       .units = fee.units,
                       .events = fee.events,
                       .exact = fee.exact,
                       .amount = fee.amount});
    }
    return lines;
  }

  /// A line that fills `lines` up to the days' share of `wanted`, where they fall short of it.
  Result<> fill_up(std::vector<InvoiceLine>& lines, const Decimal& reached, LineKind kind, const std::string& charge,
                   const std::string& description, const Decimal& wanted, std::size_t phase_index) const {
    if (wanted.is_zero()) return {};
    const Phase& phase = period.phases[phase_index];
    const Decimal exact = CRETO_TRY(share(wanted, phase_days[phase_index].count(), days.total()));
    const Decimal least = CRETO_TRY(rounded(exact, phase.plan->currency));
    const Decimal missing = CRETO_TRY(Decimal::subtract(least, reached));
    if (missing <= Decimal()) return {};
    lines.push_back({.kind = kind,
                     .charge = charge,
                     .description = days_text(description, phase_days[phase_index].count(), days.total()),
                     .model = std::string(to_string(kind)),
                     .group = {},
                     .period = phase.when,
                     .units = Decimal(1),
                     .events = 0,
                     .exact = missing,
                     .amount = missing});
    return {};
  }

  Result<std::vector<InvoiceLine>> phase_lines(std::size_t index) const {
    const Phase& phase = period.phases[index];
    std::vector<InvoiceLine> lines;
    const BaseFee base = CRETO_TRY(base_fee(phase, phase_days[index], days, period.subscribed_at, period.zone));
    if (!phase.plan->base_fee_in_advance && base.days > 0 && !base.exact.is_zero()) {
      lines.push_back(base_line(LineKind::base_fee, phase, base, days.total(), phase.when, phase.plan->name));
    }
    CRETO_TRY(for_each_charge(index, [&](const Charge& charge, const Aggregator& aggregator) -> Result<> {
      std::vector<InvoiceLine> usage = CRETO_TRY(usage_lines(index, charge, aggregator));
      const Decimal reached = CRETO_TRY(sum_of(usage));
      lines.insert(lines.end(), usage.begin(), usage.end());
      return fill_up(lines, reached, LineKind::minimum, charge.id, "Minimum: " + charge.description, charge.minimum,
                     index);
    }));
    Decimal reached = CRETO_TRY(sum_of(lines));
    // What was due in advance is on an earlier invoice, and counts towards the commitment all the same.
    if (phase.plan->base_fee_in_advance) reached = CRETO_TRY(Decimal::add(reached, base.amount));
    CRETO_TRY(fill_up(lines, reached, LineKind::commitment, "commitment", "Minimum commitment",
                      phase.plan->minimum_commitment, index));
    return lines;
  }

  /// A base fee in advance was paid to the end of the period. Where terms change, the old ones' rest comes back and the
  /// new ones' rest is due; where the subscription ends, the rest comes back.
  Result<> prorations(std::vector<InvoiceLine>& lines) const {
    const auto rest = [&](const Phase& phase, std::int64_t from_day, Instant from, bool back) -> Result<> {
      if (!phase.plan->base_fee_in_advance || phase.plan->base_fee.is_zero()) return {};
      BaseFee fee = CRETO_TRY(base_fee(phase, {from_day, days.total()}, days, period.subscribed_at, period.zone));
      if (fee.days == 0) return {};
      if (back) fee = {fee.exact.negated(), fee.amount.negated(), fee.days};
      lines.push_back(base_line(LineKind::proration, phase, fee, days.total(), {from, period.full.end},
                                (back ? "Unused: " : "Remaining: ") + phase.plan->name));
      return {};
    };
    for (std::size_t i = 0; i < period.phases.size(); ++i) {
      const Phase& phase = period.phases[i];
      if (i > 0) {
        CRETO_TRY(rest(period.phases[i - 1], phase_days[i].begin, phase.when.begin, true));
        CRETO_TRY(rest(phase, phase_days[i].begin, phase.when.begin, false));
      }
    }
    if (period.ends) CRETO_TRY(rest(period.phases.back(), phase_days.back().end, period.phases.back().when.end, true));
    return {};
  }

  void leave_out(const UsageFact& fact) {
    ++left_out;
    if (left_out > named_left_out_max) return;
    named_left_out += (named_left_out.empty() ? "" : ", ") + fact.id.to_string();
  }
  void tell_left_out(std::vector<InvoiceLine>& lines) const {
    if (left_out == 0) return;
    lines.push_back({.kind = LineKind::usage,
                     .charge = std::string(left_out_charge),
                     .description = fmt::format("Not billed, since a property is missing or no number: {}{}",
                                                named_left_out, left_out > named_left_out_max ? ", ..." : ""),
                     .model = "flat",
                     .group = {},
                     .period = period.phases.front().when,
                     .units = {},
                     .events = left_out});
  }

  static constexpr std::int64_t named_left_out_max = 10;
  std::int64_t left_out = 0;
  std::string named_left_out{};
  RatedPeriod period;
  PeriodDays days;
  std::vector<Days> phase_days;
  std::vector<Aggregator> aggregators;  ///< of each phase's charges, one phase after the other
};

Rating::Rating(RatedPeriod period) : rep_(std::make_unique<Rep>(std::move(period))) {}
Rating::Rating(Rating&&) noexcept = default;
Rating& Rating::operator=(Rating&&) noexcept = default;
Rating::~Rating() = default;

bool looks_back(const Plan& plan) {
  return std::ranges::any_of(plan.charges, [](const Charge& charge) { return charge.metric.carried; });
}

bool looks_back(const RatedPeriod& period) {
  return std::ranges::any_of(period.phases, [](const Phase& phase) { return looks_back(*phase.plan); });
}

std::size_t Rating::kept() const {
  std::size_t kept = 0;
  for (const Aggregator& aggregator : rep_->aggregators) kept += 1 + aggregator.kept();
  return kept;
}

Result<> Rating::add(const UsageFact& fact) {
  Result<> all;
  for (Aggregator& aggregator : rep_->aggregators) {
    if (auto added = aggregator.add(fact); !added && all) all = std::move(added);
  }
  if (!all) rep_->leave_out(fact);
  return all;
}

Result<std::vector<InvoiceLine>> Rating::finish() const {
  std::vector<InvoiceLine> lines;
  for (std::size_t i = 0; i < rep_->period.phases.size(); ++i) {
    std::vector<InvoiceLine> of_phase = CRETO_TRY(rep_->phase_lines(i));
    lines.insert(lines.end(), std::make_move_iterator(of_phase.begin()), std::make_move_iterator(of_phase.end()));
  }
  CRETO_TRY(rep_->prorations(lines));
  rep_->tell_left_out(lines);
  return lines;
}

namespace {

Result<std::vector<InvoiceLine>> charges_if(const auto& rep, auto wanted) {
  std::vector<InvoiceLine> lines;
  for (std::size_t i = 0; i < rep.period.phases.size(); ++i) {
    CRETO_TRY(rep.for_each_charge(i, [&](const Charge& charge, const Aggregator& aggregator) -> Result<> {
      if (!wanted(charge)) return {};
      const std::vector<InvoiceLine> usage = CRETO_TRY(rep.usage_lines(i, charge, aggregator));
      lines.insert(lines.end(), usage.begin(), usage.end());
      return {};
    }));
  }
  return lines;
}

}  // namespace

Result<std::vector<InvoiceLine>> Rating::usage_so_far() const {
  return charges_if(*rep_, [](const Charge&) { return true; });
}

Result<std::vector<InvoiceLine>> Rating::usage_in_advance() const {
  return charges_if(*rep_, [](const Charge& charge) { return charge.in_advance; });
}

Result<std::vector<InvoiceLine>> base_fee_in_advance(const Phase& phase, Period full, Instant subscribed_at,
                                                     const TimeZone& zone) {
  std::vector<InvoiceLine> lines;
  if (!phase.plan->base_fee_in_advance || phase.plan->base_fee.is_zero()) return lines;
  const PeriodDays days(full, zone);
  const BaseFee fee =
      CRETO_TRY(base_fee(phase, {days.before(phase.when.begin), days.total()}, days, subscribed_at, zone));
  if (fee.days == 0) return lines;
  lines.push_back(base_line(LineKind::base_fee, phase, fee, days.total(), {phase.when.begin, full.end},
                            phase.plan->name + ", in advance"));
  return lines;
}

Result<Plan> with_overrides(const Plan& plan, std::string_view overrides) {
  if (overrides.empty()) return plan;
  const auto refuse = [](std::string_view rule) {
    return Error(Product::metering, ErrorKind::invalid_input, fmt::format("overrides: {}", rule));
  };
  Json patch = CRETO_TRY(parse_json(overrides, {.bytes_max = 64 << 10, .depth_max = 16}));
  if (!patch.is_object()) return refuse("must be an object");
  for (const char* fixed : {"schema_version", "id", "version", "currency"}) {
    if (patch.contains(fixed)) return refuse(fmt::format("`{}` cannot be overridden", fixed));
  }
  const std::string text = CRETO_TRY(to_json(plan));
  Json json = CRETO_TRY(parse_json(text));
  if (const auto charges = patch.find("charges"); charges != patch.end()) {
    if (!charges->is_object()) return refuse("`charges` must be an object by charge id");
    for (const auto& [id, change] : charges->items()) {
      const auto charge =
          std::ranges::find_if(json["charges"], [&](const Json& one) { return one["id"].get<std::string>() == id; });
      if (charge == json["charges"].end()) return refuse(fmt::format("the plan has no charge `{}`", legible(id, 64)));
      charge->merge_patch(change);
    }
    patch.erase(charges);
  }
  json.merge_patch(patch);
  const std::string merged = CRETO_TRY(canonical_json(json));
  return plan_from_json(merged);
}

Result<std::vector<InvoiceLine>> adjustments(std::span<const InvoiceLine> before, std::span<const InvoiceLine> now) {
  // The model tells a charge's minimum from its usage, also in adjustments that were made earlier.
  using Key = std::tuple<Instant, std::string, std::string, std::string>;
  const auto key_of = [](const InvoiceLine& line) {
    return Key{line.period.begin, line.charge, line.group, line.model};
  };
  std::map<Key, InvoiceLine> changed;
  std::vector<Key> order;
  const auto count = [&](const InvoiceLine& line, bool add) -> Result<> {
    const Key key = key_of(line);
    const auto [at, fresh] = changed.try_emplace(key, line);
    InvoiceLine& sum = at->second;
    if (fresh) {
      sum.kind = LineKind::adjustment;
      sum.units = sum.exact = sum.amount = Decimal();
      sum.events = 0;
      order.push_back(key);
    }
    const auto move = [&](Decimal& total, const Decimal& by) -> Result<> {
      total = CRETO_TRY(add ? Decimal::add(total, by) : Decimal::subtract(total, by));
      return {};
    };
    CRETO_TRY(move(sum.units, line.units));
    CRETO_TRY(move(sum.exact, line.exact));
    CRETO_TRY(move(sum.amount, line.amount));
    sum.events += add ? line.events : -line.events;
    return {};
  };
  for (const InvoiceLine& line : before) CRETO_TRY(count(line, false));
  for (const InvoiceLine& line : now) CRETO_TRY(count(line, true));
  std::vector<InvoiceLine> lines;
  for (const Key& key : order) {
    const InvoiceLine& line = changed.at(key);
    if (!line.amount.is_zero() || !line.units.is_zero() || line.events != 0) lines.push_back(line);
  }
  return lines;
}

Result<std::vector<Decimal>> thresholds_crossed(std::span<const Decimal> thresholds, const Decimal& step,
                                                const Decimal& before, const Decimal& now) {
  std::vector<Decimal> crossed;
  Decimal last;
  for (const Decimal& threshold : thresholds) {
    if (before < threshold && threshold <= now) crossed.push_back(threshold);
    last = threshold;
  }
  if (step <= Decimal() || now <= last) return crossed;
  // The first one after `before`, by division, so that a far jump costs no walk.
  Decimal next = CRETO_TRY(Decimal::add(last, step));
  if (before >= next) {
    const Decimal past = CRETO_TRY(Decimal::subtract(before, last));
    const Decimal quotient = CRETO_TRY(Decimal::divide(past, step));
    const Decimal steps = CRETO_TRY(quotient.round(0, Decimal::Rounding::down));
    const Decimal walked = CRETO_TRY(Decimal::multiply(steps, step));
    next = CRETO_TRY(Decimal::add(last, walked));
    if (next <= before) next = CRETO_TRY(Decimal::add(next, step));
  }
  while (next <= now && crossed.size() < crossed_max) {
    crossed.push_back(next);
    next = CRETO_TRY(Decimal::add(next, step));
  }
  return crossed;
}

}  // namespace creto::metering
