#pragma once

#include <filesystem>
#include <string_view>

namespace creto::testing {

/// A fresh directory, removed with everything in it at the end.
class TempDir {
 public:
  explicit TempDir(std::string_view name = "creto");
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace creto::testing
