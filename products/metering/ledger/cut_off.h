#pragma once

#include "block_log.h"
#include "creto/common/time.h"
#include "subjects.h"

namespace creto::metering {

/// What a base tells of the segments that it stands for (docs/formats.md, "Usage base").
struct CutOff {
  std::uint64_t events = 0;
  Instant until{};           ///< when the last of them arrived
  Subjects::Mark defined{};  ///< what they define
  BytesView beginning{};     ///< the log's first block
  BytesView rest{};          ///< definitions as Subjects::write makes them, then what was counted
};
/// The content of a base.
Bytes write_cut_off(const CutOff& cut);
/// Borrows `base`. Errors: hash_mismatch.
Result<CutOff> read_cut_off(const LogBase& base);

}  // namespace creto::metering
