#pragma once

#include <memory>
#include <span>
#include <vector>

#include "billing/aggregation.h"
#include "creto/metering/billing.h"

namespace creto::metering {

/// A part of a billing period in which one plan is in force.
struct Phase {
  std::shared_ptr<const Plan> plan;  ///< with the subscription's overrides
  Decimal quantity = Decimal(1);
  Period when{};
};

/// What of a billing period a subscription was active in, and on which terms.
struct RatedPeriod {
  Period full{};                ///< as `period_at` says
  std::vector<Phase> phases{};  ///< one after the other without gaps, inside `full`; at least one
  bool ends = false;            ///< the subscription ends with the last phase
  Instant subscribed_at{};      ///< trials count from its day
  TimeZone zone{};
};

/// Whether facts from before the period count too.
bool looks_back(const RatedPeriod& period);
bool looks_back(const Plan& plan);

/// The charge of the line that tells which events were left out.
inline constexpr std::string_view left_out_charge = "left_out";

/// Adds up a period's events and prices them: the one path from usage to fees. Pure.
class Rating {
 public:
  explicit Rating(RatedPeriod period);
  Rating(Rating&&) noexcept;
  Rating& operator=(Rating&&) noexcept;
  ~Rating();

  /// Each event once, in any order. Errors: those of Aggregator; what a charge cannot reckon with it leaves out, and
  /// `finish` says so in a line without an amount, whose charge is `left_out`.
  Result<> add(const UsageFact& fact);

  /// Every fee of the period: per phase base fee (where it was not due in advance), charges, minimums, commitment; and
  /// what changes of terms make of base fees that were paid in advance.
  Result<std::vector<InvoiceLine>> finish() const;
  /// The charges alone, for a period that goes on.
  Result<std::vector<InvoiceLine>> usage_so_far() const;
  /// Aggregates, and single values that could not be added up.
  std::size_t kept() const;
  /// As `usage_so_far`, of the charges that are billed in advance.
  Result<std::vector<InvoiceLine>> usage_in_advance() const;

 private:
  struct Rep;
  std::unique_ptr<Rep> rep_;
};

/// The base fee of a period that begins, where the plan wants it in advance: for the days from `phase.when.begin` to
/// the period's end. No line where nothing is due.
Result<std::vector<InvoiceLine>> base_fee_in_advance(const Phase& phase, Period full, Instant subscribed_at,
                                                     const TimeZone& zone);

/// The plan with a subscription's overrides (SubscriptionTerms::overrides). Errors: invalid_input.
Result<Plan> with_overrides(const Plan& plan, std::string_view overrides);

/// What `now` bills that `before` did not, per charge, group and phase, as lines of kind adjustment.
Result<std::vector<InvoiceLine>> adjustments(std::span<const InvoiceLine> before, std::span<const InvoiceLine> now);

/// The thresholds that lie in (before, now]; after the last one there is one every `step`, if that is not zero.
Result<std::vector<Decimal>> thresholds_crossed(std::span<const Decimal> thresholds, const Decimal& step,
                                                const Decimal& before, const Decimal& now);

}  // namespace creto::metering
