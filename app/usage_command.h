#pragma once

#include <string>
#include <vector>

#include "commands.h"

namespace creto::app {

struct UsageOptions {
  std::string subject;
  std::string type;
  std::vector<std::string> by = {"type"};
  std::vector<std::string> where;
  std::string from, until;  ///< RFC 3339, or how long ago: "30d"
  std::string zone;
  std::string order;  ///< empty: by the largest cost where `top` is given, else by keys
  std::size_t top = 0;
  std::string after;    ///< `next` of the answer before
  std::string measure;  ///< that is drawn: events, units or cost; empty: cost where there is any, else units
  bool csv = false;
  bool plot = false;
  std::size_t columns = 100;  ///< of the terminal
  std::string svg, png;       ///< files to write; empty: none
};

/// A time, or how long ago. Errors: invalid_input naming `option`.
Result<Instant> usage_instant(std::string_view option, const std::string& text);
/// What the query finds: a GetUsageResponse.
Result<Json> ask_for_usage(const Home& home, const cli::CallOptions& options, const UsageOptions& usage);

/// `creto usage show`: what was used as a table, as CSV, as bars in the terminal, as a picture.
Result<Output> show_usage(const Home& home, const cli::CallOptions& options, UsageOptions usage);

}  // namespace creto::app
