#pragma once

#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "aggregation.h"
#include "ledger/ledger.h"

namespace creto::metering {

/// Events of one subscription that billing asks for, and what it has seen of them before.
struct FactRange {
  SubscriptionId subscription;
  Period when{};
  Instant late_before{};  ///< events that are earlier than this ...
  BlockAddress seen{};    ///< ... and lie in the log from here on are late
  friend bool operator==(const FactRange&, const FactRange&) = default;
};

/// What billing reads of the usage log, up to where the log ended when this was made. The one place that knows where
/// events lie. Events that others take out are left out. Not thread-safe.
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
  using Visit = std::function<Result<>(std::size_t range, const UsageFact& fact)>;
  /// Calls `visit` for every event of every range, each in the order of arrival. Returns the earliest time for which
  /// something of each range came late: of an event, or of one that was taken out. Errors: internal where `fetch` is
  /// needed.
  Result<std::vector<std::optional<Instant>>> read(const std::string& org, std::span<const FactRange> ranges,
                                                   const Visit& visit);

  /// That these ranges will be read.
  void ask(const std::string& org, std::span<const FactRange> ranges);
  bool pending() const { return !pending_.empty(); }
  /// Events that are here, of all ranges.
  std::size_t count() const { return count_; }
  /// Reads what was asked for in one pass over the log. Requires: no transaction is open on this thread.
  Result<> fetch();

 private:
  struct Fact {
    EventId id;
    Instant time;
    std::string event_type;
    Properties properties;
  };
  struct Known {
    std::vector<Fact> facts;
    std::optional<Instant> late;
  };
  using Key = std::tuple<std::string, SubscriptionId, Instant, Instant, Instant, BlockAddress>;
  static Key key_of(const std::string& org, const FactRange& range) {
    return {org, range.subscription, range.when.begin, range.when.end, range.late_before, range.seen};
  }

  const Ledger& ledger_;
  const Nanos ahead_max_;
  const BlockAddress end_;
  std::map<Key, Known> known_;
  std::size_t count_ = 0;
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
