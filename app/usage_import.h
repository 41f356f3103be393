#pragma once

#include <filesystem>
#include <string>

#include "commands.h"

namespace creto::app {

struct ImportOptions {
  std::filesystem::path file;
  std::string format;    ///< jsonl or csv; empty: by the file's name
  bool restart = false;  ///< forget how far an earlier import came
};

/// `creto metering import`: sends a file's lines to the server. Beside the file are then FILE.progress while it is not
/// done, so that a stopped import goes on where it was, and FILE.refused and FILE.refused.why with the lines that were
/// refused and why. Errors: invalid_input where the progress is of a file with other content; those of the server: what
/// was saved so far stays.
Result<Output> import_usage(const ImportOptions& given, const cli::CallOptions& options);

}  // namespace creto::app
