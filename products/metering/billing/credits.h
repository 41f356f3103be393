#pragma once

#include <span>
#include <vector>

#include "creto/metering/billing.h"

namespace creto::metering {

/// What credits give towards an amount, and what is still due.
struct Burned {
  struct Part {
    CreditId id;
    Decimal amount;  ///< positive
  };
  std::vector<Part> parts;
  Decimal overage;
};
/// Takes `due` from the credits that are effective at `when`, by priority, then what expires first, then the older.
/// Lowers their balances. Voided credits and other currencies give nothing.
Result<Burned> burn(std::span<Credit> credits, const Decimal& due, const Currency& currency, Instant when);

/// Applies the resets that were due until `now`; `reset_at` becomes the next one. Whether anything changed.
Result<bool> catch_up(Credit& credit, std::optional<Instant>& reset_at, Instant now);
/// The end of the calendar interval (UTC) around `when`.
Instant next_reset(const CreditReset& reset, Instant when);

/// What `credit` is worth at `when`: nothing before it is effective, after it has expired or was voided.
Decimal worth(const Credit& credit, Instant when);

}  // namespace creto::metering
