#pragma once

#include <string>
#include <vector>

#include "creto/common/result.h"
#include "creto/common/time.h"

namespace creto::runtime {

/// A program of the system that is run to its end: `ip`, `nft`, an OCI runtime.
struct Invocation {
  std::vector<std::string> argv = {};  ///< argv[0] is looked up in PATH
  std::string input = {};              ///< for its stdin; /dev/null where empty
  /// Where stdout and stderr go. Empty: captured. A file is needed for programs
  /// that leave children holding them.
  std::string output_file = {};
  Nanos timeout = std::chrono::seconds(30);  ///< then it is killed
};

struct Finished {
  int exit_code = 0;   ///< 128 + signal where it was killed
  std::string output;  ///< what was captured, the last 64 KiB
};

/// Runs it in a session of its own. Waits on events, not on a schedule.
/// Thread-safe. Errors: not_found (no such program), timeout, unavailable.
Result<Finished> run_to_end(const Invocation& invocation);

/// As `run_to_end`, with an exit code other than 0 as an error that quotes the
/// output's last line.
Result<std::string> run_checked(const Invocation& invocation);

/// The file descriptor of a process (pidfd), -1 where there is none.
/// Close-on-exec.
int open_process(int pid);

/// When process `pid` started, in clock ticks since boot; 0 where there is no
/// such process. A process id together with this is never used twice.
std::uint64_t process_start_time(int pid);
bool is_zombie(int pid);

/// An owned file descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~Fd() { reset(); }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

/// Small helpers over files that may be absent.
Result<std::string> read_text_file(const std::string& path, std::size_t bytes_max = 1 << 20);
Result<> write_text_file(const std::string& path, std::string_view text, unsigned mode = 0644);
Result<> make_directory(const std::string& path, unsigned mode = 0755);

Error system_error(std::string what);  ///< from errno

}  // namespace creto::runtime
