#pragma once

#include <filesystem>
#include <functional>
#include <string_view>

#include "creto/common/bytes.h"
#include "creto/common/result.h"
#include "creto/common/time.h"

namespace creto::io {
class FileSystem;
}

/// Work on the files of a usage log, without the server that writes them (docs/formats.md, "Usage log").
namespace creto::metering {

struct UsageLogFilter {
  std::string org{};      ///< empty: all
  std::string subject{};  ///< an identity or subscription that events count for; empty: all
  Instant from{};         ///< of arrival; half open
  Instant until = Instant::max();
};

struct UsageLogSummary {
  std::uint64_t events = 0;  ///< that the filter lets through
  std::uint32_t segments = 0;
  Hash256 head{};  ///< of the last block: names all before it
};

/// Calls `line` for each event in the order of arrival, as canonical JSON: id, arrival, whom it counts for, the record.
/// Safe while a server writes. Errors: not_found; hash_mismatch where the log is damaged; those of `line`.
Result<UsageLogSummary> dump_usage_log(io::FileSystem& files, const std::filesystem::path& directory,
                                       const UsageLogFilter& filter,
                                       const std::function<Result<>(std::string_view)>& line);

}  // namespace creto::metering
