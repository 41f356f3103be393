#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "billing/rating.h"
#include "ledger/ledger.h"

namespace creto::metering {

/// Usage of one subscription that billing asks for: how it is rated, and what was seen of it before.
struct FactRange {
  SubscriptionId subscription;
  Period when{};
  Instant late_before{};            ///< events that are earlier than this ...
  BlockAddress seen{};              ///< ... and lie in the log from here on are late
  std::optional<RatedPeriod> as{};  ///< none: only what came late is asked for
};

/// What was used in a range.
struct RatedUsage {
  std::optional<Rating> rating;  ///< of all its events
  std::optional<Instant> late;   ///< the earliest time of what came late: of an event, or of one that was taken out
};

/// Plans with overrides by organization, id, version and overrides: none of them ever changes.
using KnownPlans =
    std::map<std::tuple<std::string, std::string, std::int64_t, std::string>, std::shared_ptr<const Plan>>;

/// What billing reads of the usage log, up to where the log ended when this was made or went on. The one place that
/// knows where events lie. Events are added up as they are read, and not kept; those that others take out are left out.
/// Not thread-safe.
///
/// The log may lie in the database, and a transaction cannot open another. So a run inside a transaction that asks for
/// what is not here yet fails, outside of it `fetch` reads all that was asked for, and the run is repeated
/// (`with_facts`).
class FactSource {
 public:
  /// `ahead_max`: how far an event's time may lie after its arrival. The ledger must outlive it.
  FactSource(const Ledger& ledger, Nanos ahead_max)
      : ledger_(ledger), ahead_max_(ahead_max), end_(ledger.position().end) {}

  BlockAddress end() const { return end_; }
  /// Whether the log still has every event of a subscription with a time of `begin` or later.
  bool holds(const std::string& org, const SubscriptionId& subscription, Instant begin) const;
  /// One answer per range, good as long as this. Errors: internal where `fetch` is needed.
  Result<std::vector<const RatedUsage*>> read(const std::string& org, std::span<const FactRange> ranges);

  /// That these ranges will be read.
  void ask(const std::string& org, std::span<const FactRange> ranges);
  bool pending() const { return !pending_.empty(); }
  /// Reads what was asked for in one pass over the log. Requires: no transaction is open on this thread.
  Result<> fetch();
  /// How much is kept of what was read: aggregates, and values that could not be added up.
  std::size_t kept() const;
  /// Goes on to where the log ends now, reading only what is new: for what was asked for since it last did. The rest is
  /// forgotten, and so is that of which something was taken out. Requires: as `fetch`; answers of `read` are used no
  /// more.
  Result<> go_on();

  /// For all runs: the ranges of one must be those of the next.
  KnownPlans& plans() { return plans_; }

 private:
  using Key = std::tuple<std::string, SubscriptionId, Instant, Instant, Instant, BlockAddress, std::string>;
  static Key key_of(const std::string& org, const FactRange& range);
  struct Known {
    std::string org;
    FactRange range;
    RatedUsage usage{};
    bool asked = true;     ///< since the log went on
    bool changed = false;  ///< something that it holds was taken out
  };
  using OfSubscription = std::unordered_map<SubjectNumber, std::vector<Known*>>;
  void add(OfSubscription& to, Known& known) const;
  Result<BlockAddress> begin_of(const OfSubscription& of_subscription) const;
  Result<> scan(const OfSubscription& of_subscription, BlockAddress from) const;

  const Ledger& ledger_;
  const Nanos ahead_max_;
  BlockAddress end_;
  KnownPlans plans_;
  std::map<Key, Known> known_;
  std::vector<std::pair<std::string, FactRange>> pending_;
};

/// Runs `run()`, which reads from `source` in a transaction of its own, until it finds all that it asks for.
template <class Run>
auto with_facts(FactSource& source, Run run) -> decltype(run()) {
  for (;;) {
    auto result = run();
    if (!source.pending()) return result;
    if (auto fetched = source.fetch(); !fetched) return std::move(fetched).error();
  }
}

}  // namespace creto::metering
