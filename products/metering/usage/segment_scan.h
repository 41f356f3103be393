#pragma once

#include <vector>

#include "usage/usage_question.h"

namespace creto::metering::detail {

/// What is used again from segment to segment.
struct SegmentScratch {
  std::vector<std::uint32_t> local_whom;  ///< by whom: its number in the segment, or none
};

/// Adds what counts of one segment to `groups`. Errors: resource_exhausted over `groups_max` groups; those of reading
/// columns.
Result<> scan_segment(Question& question, const Columns& columns, SegmentScratch& scratch, Groups& groups,
                      std::size_t groups_max);

}  // namespace creto::metering::detail
