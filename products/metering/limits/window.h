#pragma once

#include "creto/common/time_zone.h"
#include "creto/metering/plan.h"
#include "creto/metering/quota.h"

namespace creto::metering {

/// The calendar window of `kind` around `when`: days, weeks (from Monday) and months of `zone`, hours of UTC, so that
/// every hour has sixty minutes. Windows follow each other without gap. Lifetime is everything nanoseconds hold.
/// Requires: `kind` is a calendar window.
Period calendar_window(WindowKind kind, Instant when, const TimeZone& zone = {});

/// The beginning of what the quota's present window holds; none where the past does not count.
std::optional<Instant> counted_from(const Quota& quota, Instant now);

}  // namespace creto::metering
