#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "creto/common/result.h"

/// For benchmarks over data that takes long to make.
namespace creto::testing {

/// Ends the benchmark where something did not work.
inline void must(const Result<>& result) {
  if (result) return;
  fmt::print(stderr, "benchmark: {}\n", result.error().to_string());
  std::exit(1);
}
template <class T>
T must(Result<T> result) {
  if (!result) must(Result<>(std::move(result).error()));
  return *std::move(result);
}

/// Where data of that name is kept between runs: in $CRETO_BENCH_DATA, else in ~/.cache/creto/bench.
inline std::filesystem::path bench_data(std::string_view name) {
  const char* given = std::getenv("CRETO_BENCH_DATA");
  const char* home = std::getenv("HOME");
  const std::filesystem::path base =
      given != nullptr ? std::filesystem::path(given)
                       : std::filesystem::path(home == nullptr ? "/tmp" : home) / ".cache/creto/bench";
  return base / name;
}

/// Takes the files in `directory` out of the page cache, them alone.
inline void forget_cached(const std::filesystem::path& directory) {
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const int file = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) continue;
    // What was not written yet would stay.
    if (::fdatasync(file) != 0 || ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) != 0)
      fmt::print(stderr, "benchmark: {} may still be cached\n", entry.path().string());
    ::close(file);
  }
}

}  // namespace creto::testing
