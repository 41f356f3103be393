#pragma once

#include "ledger.h"

namespace creto::metering {

/// What of the log an invoice has seen. An event belongs to the first invoice of its subscription that ends after its
/// time and that saw it: late events go to the next one, and nothing is ever marked.
struct Seen {
  Instant until = Instant::min();  ///< of event times, not included
  BlockAddress log_end{};
  friend bool operator==(const Seen&, const Seen&) = default;
  bool has(Instant time, BlockAddress block) const { return time < until && block < log_end; }
};

/// Calls `visit` for each event that `invoice` has and `before`, the invoice before it, has not, in the order of
/// arrival. `ahead_max`: how far an event's time may lie after its arrival. Of one subscription, or of all with 0.
Result<> each_billable(const Ledger& ledger, const Seen& before, const Seen& invoice, Nanos ahead_max,
                       SubjectNumber subscription,
                       const std::function<Result<>(SubjectNumber, const StoredEvent&)>& visit);

}  // namespace creto::metering
