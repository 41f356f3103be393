#pragma once

#include <filesystem>

#include "usage_command.h"

namespace creto::app {

struct ExportOptions {
  std::filesystem::path file;  ///< what its name ends with says the format: .csv or .arrow
  bool events = false;         ///< each by itself; else what the query adds up
  std::filesystem::path log;   ///< read this without a server; then
  std::string org;             ///< ... of whom
};

/// `creto usage export`: usage for other programs. The file is there when it is whole.
Result<Output> export_usage(const Home& home, const cli::CallOptions& options, const UsageOptions& usage,
                            const ExportOptions& wanted);

}  // namespace creto::app
