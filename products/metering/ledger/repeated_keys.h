#pragma once

#include <vector>

#include "ledger.h"

namespace creto::metering {

/// When events up to `until` arrived whose key had come less than `window` before. Compares keys in parts of about
/// `at_once`, by their hashes, and reads the log once for each: memory does not grow with the log. `events`: how many
/// there are.
Result<std::vector<Instant>> repeated_keys(const Ledger& ledger, BlockAddress until, std::uint64_t events, Nanos window,
                                           std::uint64_t at_once = 16'000'000);

}  // namespace creto::metering
