#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "creto/common/result.h"
#include "creto/metering/usage_log.h"
#include "ledger/ledger.h"

namespace creto::metering {

/// What the log has of an event, with names for its numbers. `ancestors` lends it room; all is borrowed.
LoggedEvent logged_event_of(const Subjects& subjects, const StoredEvent& event,
                            std::vector<std::string_view>& ancestors);

/// As a line of a dump: canonical JSON (docs/formats.md, "Usage export").
Result<std::string> json_of(const LoggedEvent& event);

}  // namespace creto::metering
