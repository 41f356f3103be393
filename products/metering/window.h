#pragma once

#include <optional>

#include "creto/metering/plan.h"
#include "creto/metering/quota.h"

namespace creto::metering {

/// The calendar window of `kind` around `when`, in UTC; weeks begin on Monday.
/// Lifetime is everything nanoseconds hold. Requires: `kind` is not rolling.
Period calendar_window(WindowKind kind, Instant when);

}  // namespace creto::metering
