#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/time_zone.h"
#include "creto/metering/billing.h"

/// What usage would cost on a plan, without a server.
namespace creto::metering {

/// Usage that somebody gives: read, checked, counted once and corrected as a server would. Not thread-safe.
class GivenUsage {
 public:
  static constexpr std::size_t line_bytes_max = 1 << 20;

  GivenUsage();
  GivenUsage(GivenUsage&&) noexcept;
  GivenUsage& operator=(GivenUsage&&) noexcept;
  ~GivenUsage();

  /// A UsageReport or CloudEvent as for `creto metering import`, or a line of `creto metering dump`. Errors:
  /// invalid_input naming the field; conflict where the key was used with other content; too_large.
  Result<> add(std::string_view line);
  /// Takes out what other lines correct. Once, after all lines. A dump may begin after what its corrections refer to;
  /// elsewhere that is an error: not_found naming it.
  Result<> correct();
  std::size_t events() const;

 private:
  friend class Simulation;
  struct Rep;
  std::unique_ptr<Rep> rep_;
};

/// A subscription that does not exist.
struct SimulationTerms {
  BillingTime billing_time = BillingTime::calendar;
  TimeZone zone{};
  Decimal quantity = Decimal(1);
  std::optional<Instant> from{};   ///< its start; default: that of the period of the first event
  std::optional<Instant> until{};  ///< later usage is not looked at
};

/// Prices a plan on usage by the path that makes invoices.
class Simulation {
 public:
  /// An invoice of each period from the start to the last event, in drafts without numbers. A base fee in advance is on
  /// the invoice of the period that it is for. Coupons, credits and interim invoices are not looked at. Errors:
  /// invalid_input where an event lacks what the plan counts; too_large over 10 000 periods.
  static Result<std::vector<Invoice>> run(const Plan& plan, const GivenUsage& usage, const SimulationTerms& terms);
};

}  // namespace creto::metering
