#include "billing/credits.h"

#include <algorithm>
#include <tuple>

#include "billing/billing_period.h"

namespace creto::metering {

Decimal worth(const Credit& credit, Instant when) {
  const bool usable = credit.effective_at <= when && (!credit.expires_at || when < *credit.expires_at) &&
                      (!credit.voided_at || when < *credit.voided_at);
  return usable && !credit.balance.is_negative() ? credit.balance : Decimal();
}

Result<Burned> burn(std::span<Credit> credits, const Decimal& due, const Currency& currency, Instant when) {
  std::vector<Credit*> order;
  for (Credit& credit : credits) {
    if (credit.currency == currency && !worth(credit, when).is_zero()) order.push_back(&credit);
  }
  std::ranges::sort(order, {}, [](const Credit* credit) {
    return std::tuple(credit->priority, credit->expires_at.value_or(Instant::max()), credit->id);
  });
  Burned burned;
  burned.overage = due;
  for (Credit* credit : order) {
    if (burned.overage <= Decimal()) break;
    const Decimal taken = std::min(credit->balance, burned.overage);
    const Decimal left = CRETO_TRY(Decimal::subtract(credit->balance, taken));
    burned.overage = CRETO_TRY(Decimal::subtract(burned.overage, taken));
    credit->balance = left;
    burned.parts.push_back({credit->id, taken});
  }
  return burned;
}

Instant next_reset(const CreditReset& reset, Instant when) {
  return period_at({.interval = reset.interval, .anchor = when}, when).end;
}

Result<bool> catch_up(Credit& credit, std::optional<Instant>& reset_at, Instant now) {
  if (!credit.reset || !reset_at || *reset_at > now) return false;
  // The balance does not change between two resets that were both missed: the second finds what the first left.
  credit.balance = std::min(credit.reset->rollover_max, std::max(credit.reset->rollover_min, credit.balance));
  reset_at = next_reset(*credit.reset, now);
  return true;
}

}  // namespace creto::metering
