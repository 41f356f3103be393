#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "commands.h"
#include "creto/metering/usage_log.h"

namespace creto::app {

/// Which events, and where they are read.
struct UsageEvents {
  std::string subject;  ///< an identity with all below it, or a subscription; empty: all
  Instant from{};       ///< by arrival; half open
  Instant until = Instant::max();
  std::filesystem::path log;  ///< a directory of log files; empty: the server's, as it may be seen by the caller
  std::string org;            ///< whose of the files; with `log` alone
};

/// Visits each event as a line of `creto metering dump`, in the order of arrival, and returns how many there were. Asks
/// the server page by page, or reads files without one. Errors: invalid_input where the options do not fit together.
Result<std::uint64_t> each_usage_event(const Home& home, const cli::CallOptions& options, const UsageEvents& wanted,
                                       const std::function<Result<>(std::string_view)>& line);

/// Says on standard error that some events are no longer held, where `from` reaches back to when those came.
void note_held_since(Instant from, const std::optional<Instant>& held_since);
/// The same by what an answer of the server says.
void note_held_since(Instant from, const Json& answer);

/// What such a line says. All is borrowed for the duration of the visit.
Result<> read_event_line(std::string_view line, const std::function<Result<>(const metering::LoggedEvent&)>& visit);

}  // namespace creto::app
