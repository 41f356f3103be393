#include "creto/testing/temp_dir.h"

#include <cstdlib>
#include <string>
#include <system_error>

#include "creto/common/assert.h"

namespace creto::testing {

TempDir::TempDir(std::string_view name) {
  auto pattern = (std::filesystem::temp_directory_path() / (std::string(name) + "-XXXXXX")).string();
  CRETO_ASSERT(::mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace creto::testing
