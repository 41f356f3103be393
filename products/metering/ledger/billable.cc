#include "billable.h"

namespace creto::metering {

Result<> each_billable(const Ledger& ledger, const Seen& before, const Seen& invoice, Nanos ahead_max,
                       SubjectNumber subscription,
                       const std::function<Result<>(SubjectNumber, const StoredEvent&)>& visit) {
  // What arrived earlier lies in the period of the invoice before, which has seen it.
  BlockAddress from;
  if (before.until > Instant::min() + ahead_max) {
    const BlockAddress first = CRETO_TRY(ledger.first_at(before.until - ahead_max));
    from = std::min(first, before.log_end);
  }
  return ledger.scan(from, invoice.log_end, [&](const StoredEvent& event) -> Result<> {
    const SubjectNumber billed = ledger.subjects().attribution(event.attribution).subscription;
    if (billed == 0 || (subscription != 0 && billed != subscription)) return {};
    if (!invoice.has(event.record.time, event.block) || before.has(event.record.time, event.block)) return {};
    return visit(billed, event);
  });
}

}  // namespace creto::metering
