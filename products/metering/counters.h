#pragma once

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "creto/contracts/cost_trigger.h"
#include "creto/metering/quota.h"

namespace creto::metering {

/// Money as the counters hold it: billionths of the accounting currency's unit, so up to 9.2 thousand million of it.
using NanoMoney = std::int64_t;
/// Half up at the ninth place. Errors: invalid_input where it does not fit.
Result<NanoMoney> to_nano_money(const Decimal& amount);
Decimal from_nano_money(NanoMoney amount);
/// Whole units, fractions rounded up. Errors: invalid_input where negative or over `limit_max`.
Result<std::int64_t> to_whole_units(const Decimal& units);

/// Use that happens or shall happen.
struct Use {
  std::string_view org;
  std::string_view agent;
  std::span<const Identity> chain{};  ///< the agent's ancestors, with or without itself
  std::string_view event_type;
  std::string_view action{};  ///< of an action: its name is counted as a type too
  std::int64_t units = 1;
  NanoMoney cost = 0;
  /// None: the one that `bind` tells. Facts say it themselves, since they may be older; empty: nobody is billed.
  std::optional<std::string_view> subscription{};
};

/// The answer to a request to spend, or to the question whether it would be granted.
struct Verdict {
  enum class Kind : std::uint8_t {
    granted,
    quota_exceeded,      ///< a quota that blocks
    oversight_required,  ///< a quota whose overflow asks a human
    budget_exceeded,     ///< a cost threshold that blocks
    conflict,            ///< the reservation id was used with other content
  };
  Kind kind = Kind::granted;
  bool limited = false;   ///< some quota applies; the rest describes the one that refuses, or has least left
  std::string_view id{};  ///< of the quota or threshold; lives as long as the Limits
  std::string_view subject{};
  std::string_view event_type{};
  WindowKind window = WindowKind::lifetime;
  std::int64_t limit = 0;  ///< units, or NanoMoney for a budget
  std::int64_t used = 0;   ///< with what is held
  std::optional<Instant> reset_at{};
};

/// A soft limit, hard limit or cost threshold that recorded use has reached.
struct Notice {
  enum class Kind : std::uint8_t { soft, hard, cost };
  Kind kind;
  std::string id;  ///< of the quota or threshold
  std::string subject;
  std::int64_t used;  ///< units, or NanoMoney
  std::int64_t limit;
  Instant window_begin;    ///< a notice is given once per window
  std::string period;      ///< "month", "transaction", ...
  std::string event_type;  ///< of the quota
  contracts::ThresholdAction action = contracts::ThresholdAction::notify_only;
  std::vector<std::string> approvers;
};

/// A cost threshold that a use would exceed.
struct CostFinding {
  std::string id;
  std::string subject;
  contracts::BillingPeriod period;
  NanoMoney with_use;  ///< accumulated, with the use in question
  NanoMoney limit;
  contracts::ThresholdAction action;
  std::vector<std::string> approvers;
  struct Anomaly {
    double expected_per_hour;  ///< in units of the currency
    double actual_per_hour;
    double confidence;
  };
  std::optional<Anomaly> anomaly;  ///< then `id` is "anomaly"
};

struct CostTotals {
  NanoMoney total = 0;
  std::vector<std::pair<std::string, NanoMoney>> by_event_type;
};

struct LimitOptions {
  bool detect_anomalies = true;
  std::uint32_t anomaly_hours_min = 24;  ///< completed hours of history before anything counts as unusual
  double anomaly_deviations = 6;         ///< how many standard deviations above the mean hour
  double anomaly_factor = 3;             ///< and how many times the mean hour
};

/// What every identity and subscription may use, has used, and holds: in memory, the store is its journal.
///
/// Invariant 1: used + held of a quota that blocks never passes its limit by a reservation, from however many threads.
/// Invariant 2: a reservation is held by all windows it touches or by none.
/// Invariant 3: facts are added whatever the limits say.
///
/// Checks that grant take no lock and do not allocate; everything else locks the accounts it touches, in the order of
/// their addresses. Time is passed in and never opens an older window again. Thread-safe.
class Limits {
 public:
  explicit Limits(LimitOptions options = {});
  ~Limits();

  // --- what is allowed
  /// Replaces the quota of that id; its use so far stays where subject, type and window are the same. A quota that
  /// begins to count does so from `seeds`, the use of the present window so far. Errors: resource_exhausted over 256
  /// quotas of one subject, or 4 096 event types.
  struct Seed {
    Instant when;
    std::int64_t units;
  };
  Result<> put_quota(std::string_view org, const Quota& quota, Instant now, std::span<const Seed> seeds = {});
  void remove_quota(std::string_view org, const Quota& quota);
  Result<> put_threshold(std::string_view org, const SubjectThreshold& threshold);
  void remove_threshold(std::string_view org, const SubjectThreshold& threshold);
  /// Usage of `agent`, and of those below it that are not bound themselves, also counts for `subscription`; empty
  /// unbinds.
  void bind(std::string_view org, std::string_view agent, std::string_view subscription);
  /// The subscription that usage of `agent` is billed to: its own, else its nearest ancestor's. Empty where there is
  /// none.
  std::string_view subscription_of(std::string_view org, std::string_view agent, std::span<const Identity> chain) const;

  // --- requests to spend
  /// Whether a reservation of `use` would be granted. Holds nothing.
  Verdict check(const Use& use, Instant now);
  /// Holds `use` until `expires_at`. The same id with the same use is granted again.
  Verdict reserve(const ReservationId& id, const Use& use, Instant now, Instant expires_at);
  /// False where there is no such hold (any more).
  bool release(const ReservationId& id);
  /// Ends holds whose time is over; returns how many.
  std::size_t expire(Instant now);

  // --- facts
  struct Added;
  /// Counts `use` at once, before it is stored; `settles` gives up that hold in the same step. What it returns is
  /// needed to take it back. Notices say which limits are reached with it.
  std::shared_ptr<const Added> add(const Use& use, Instant now, std::optional<ReservationId> settles,
                                   std::vector<Notice>& notices);
  /// Undoes `add` where the store failed. The hold does not come back.
  void take_back(const Added& added);
  /// Rebuilds one account's counters at start: use that arrived at `when`, in order of time.
  void replay(std::string_view org, std::string_view subject, std::string_view event_type, std::string_view action,
              std::int64_t units, NanoMoney cost, Instant when);

  // --- cost
  /// The first threshold of agent, subscription or ancestor that `use` would exceed: transaction limits and those of
  /// `period`. Does not allocate where there is none.
  std::optional<CostFinding> check_cost(const Use& use, contracts::BillingPeriod period, Instant now);
  /// Accumulated cost of the agent in the period's window around `now`, with what is held, and `use` added.
  NanoMoney cost_with(const Use& use, contracts::BillingPeriod period, Instant now);
  /// None where the subject has never been seen.
  std::optional<CostTotals> costs(std::string_view org, std::string_view subject, contracts::BillingPeriod period,
                                  Instant now);

  /// Of the quota with that id on `subject`.
  std::optional<QuotaState> state(std::string_view org, const Quota& quota, Instant now);
  std::size_t accounts() const;
  std::size_t holds() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace creto::metering
