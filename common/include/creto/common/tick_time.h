#pragma once

#include "creto/common/clock.h"

namespace creto {

/// The monotonic time of a clock; of the machine's own that of its last tick, a few milliseconds ago. For hot paths
/// that ask whether something of seconds has ended: it is read in a quarter of the time. Thread-safe.
class TickTime {
 public:
  /// `clock` must outlive it.
  explicit TickTime(const Clock& clock) : clock_(clock), ticks_(&clock == &system_clock()) {}
  Monotonic now() const { return ticks_ ? last_tick() : clock_.monotonic(); }

 private:
  static Monotonic last_tick();
  const Clock& clock_;
  const bool ticks_;
};

}  // namespace creto
