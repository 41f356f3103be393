#include "driver/init_program.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <string_view>

#include "driver/process.h"

// From init_program.S, which includes the linked program as it is.
extern "C" const char creto_init_program_begin[];
extern "C" const char creto_init_program_end[];

namespace creto::runtime {

Result<std::string> install_init_program(const std::string& directory) {
  const std::string_view program(creto_init_program_begin,
                                 static_cast<std::size_t>(creto_init_program_end - creto_init_program_begin));
  // FNV-1a: to tell versions of our own program apart, not to defend against
  // anybody.
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char c : program) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  auto path = fmt::format("{}/creto-init-{:016x}", directory, hash);
  if (::access(path.c_str(), X_OK) == 0) return path;
  const auto fresh = fmt::format("{}.{}", path, ::getpid());
  CRETO_TRY(write_text_file(fresh, program, 0555));
  if (::chmod(fresh.c_str(), 0555) != 0) return system_error("cannot install the init program");
  if (::rename(fresh.c_str(), path.c_str()) != 0) return system_error("cannot install the init program");
  return path;
}

}  // namespace creto::runtime
