#pragma once

#include "creto/common/time.h"

namespace creto {

/// The only source of time for code above io/. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual Instant now() const = 0;
  virtual Monotonic monotonic() const = 0;
};

/// The machine's own clocks (clock_gettime). Lives for the whole process.
const Clock& system_clock();

}  // namespace creto
