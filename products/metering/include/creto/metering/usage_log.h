#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "creto/common/bytes.h"
#include "creto/common/id.h"
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
  std::uint64_t events = 0;    ///< that the filter lets through
  std::uint32_t segments = 0;  ///< that are held
  Hash256 head{};              ///< of the last block: names all before it
  /// What arrived until then is no longer held. None: all that ever came is.
  std::optional<Instant> held_since{};
};

/// An event as the log has it. Everything is borrowed for the duration of the visit.
struct LoggedEvent {
  EventId id;
  Instant arrived{};
  std::string_view org;
  std::string_view agent;
  std::span<const std::string_view> ancestors;  ///< root first, without the agent
  std::string_view reporter{};                  ///< who brought it
  std::string_view subscription{};              ///< that it is billed to; this and the following may be empty
  std::string_view source{};
  std::string_view usage_type;
  std::string_view idempotency_key;
  Instant time{};
  std::string_view units;
  std::string_view cost{};
  std::string_view currency{};
  std::string_view replaces{};
  std::string_view voids{};
  std::string_view envelope{};  ///< as received, where it came in one
  std::span<const std::pair<std::string_view, std::string_view>> properties{};
};

/// Calls `visit` for each event in the order of arrival. Safe while a server writes. Errors: not_found; hash_mismatch
/// where the log is damaged; those of `visit`.
Result<UsageLogSummary> read_usage_log(io::FileSystem& files, const std::filesystem::path& directory,
                                       const UsageLogFilter& filter,
                                       const std::function<Result<>(const LoggedEvent&)>& visit);

/// The same with each event as canonical JSON: id, arrival, whom it counts for, the record.
Result<UsageLogSummary> dump_usage_log(io::FileSystem& files, const std::filesystem::path& directory,
                                       const UsageLogFilter& filter,
                                       const std::function<Result<>(std::string_view)>& line);

}  // namespace creto::metering
