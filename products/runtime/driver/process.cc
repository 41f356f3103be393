#include "driver/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include "creto/common/assert.h"

extern char** environ;

namespace creto::runtime {
namespace {

constexpr std::size_t captured_max = 64 << 10;

std::string last_line(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
  const auto start = text.rfind('\n');
  auto line = std::string(start == std::string_view::npos ? text : text.substr(start + 1));
  if (line.size() > 400) line.resize(400);
  return line;
}

int exit_code_of(const siginfo_t& info) { return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status; }

}  // namespace

void Fd::reset(int fd) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

Error system_error(std::string what) {
  const int number = errno;
  ErrorKind kind = ErrorKind::unavailable;
  if (number == ENOENT) kind = ErrorKind::not_found;
  if (number == EACCES || number == EPERM) kind = ErrorKind::permission_denied;
  if (number == ENOSPC || number == EMFILE || number == ENFILE || number == ENOMEM)
    kind = ErrorKind::resource_exhausted;
  return Error(Product::runtime, kind, fmt::format("{}: {}", what, std::strerror(number)));
}

int open_process(int pid) { return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)); }

namespace {
/// The fields of /proc/PID/stat behind the command's name, which may hold
/// anything.
std::vector<std::string> stat_fields(int pid) {
  auto text = read_text_file(fmt::format("/proc/{}/stat", pid), 4096);
  if (!text) return {};
  const auto close = text->rfind(')');
  if (close == std::string::npos) return {};
  std::vector<std::string> fields;
  std::string_view rest = std::string_view(*text).substr(close + 2);
  while (!rest.empty()) {
    const auto space = rest.find(' ');
    fields.emplace_back(rest.substr(0, space));
    if (space == std::string_view::npos) break;
    rest.remove_prefix(space + 1);
  }
  return fields;
}
}  // namespace

std::uint64_t process_start_time(int pid) {
  const auto fields = stat_fields(pid);
  return fields.size() > 19 ? std::strtoull(fields[19].c_str(), nullptr, 10) : 0;
}

bool is_zombie(int pid) {
  const auto fields = stat_fields(pid);
  return !fields.empty() && fields[0] == "Z";
}

Result<Finished> run_to_end(const Invocation& invocation) {
  CRETO_ASSERT(!invocation.argv.empty());
  Fd in_read, in_write, out_read, out_write;
  int ends[2];
  if (!invocation.input.empty()) {
    if (::pipe2(ends, O_CLOEXEC) != 0) return system_error("pipe");
    in_read.reset(ends[0]);
    in_write.reset(ends[1]);
    ::fcntl(in_write.get(), F_SETFL, O_NONBLOCK);
  } else {
    in_read.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  }
  if (invocation.output_file.empty()) {
    if (::pipe2(ends, O_CLOEXEC) != 0) return system_error("pipe");
    out_read.reset(ends[0]);
    out_write.reset(ends[1]);
    ::fcntl(out_read.get(), F_SETFL, O_NONBLOCK);
  } else {
    out_write.reset(::open(invocation.output_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    if (!out_write.valid()) return system_error(fmt::format("cannot open `{}`", invocation.output_file));
  }

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in_read.get(), 0);
  posix_spawn_file_actions_adddup2(&actions, out_write.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, out_write.get(), 2);
  // A listening socket that a child held would keep the next server from its port.
  posix_spawn_file_actions_addclosefrom_np(&actions, 3);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, defaults;
  sigemptyset(&none);
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::vector<char*> argv;
  for (const auto& argument : invocation.argv) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t pid = 0;
  const int failure = ::posix_spawnp(&pid, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (failure != 0) {
    errno = failure;
    return system_error(fmt::format("cannot run `{}`", invocation.argv[0]));
  }
  in_read.reset();
  out_write.reset();

  const Fd process(open_process(pid));
  const auto deadline = std::chrono::steady_clock::now() + invocation.timeout;
  Finished finished;
  std::size_t written = 0;
  bool timed_out = false;
  bool ended = false;
  const auto drain = [&] {
    char buffer[16384];
    for (;;) {
      const auto n = ::read(out_read.get(), buffer, sizeof buffer);
      if (n <= 0) {
        if (n == 0) out_read.reset();
        return;
      }
      finished.output.append(buffer, static_cast<std::size_t>(n));
      if (finished.output.size() > captured_max) finished.output.erase(0, finished.output.size() - captured_max);
    }
  };
  while (!ended) {
    pollfd fds[3] = {{process.get(), POLLIN, 0}, {out_read.get(), POLLIN, 0}, {in_write.get(), POLLOUT, 0}};
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    const int wait = timed_out ? -1 : static_cast<int>(std::max<std::int64_t>(0, left.count()));
    const int ready = ::poll(fds, 3, wait);
    if (ready < 0 && errno != EINTR) return system_error("poll");
    if (ready == 0 && !timed_out) {
      timed_out = true;
      ::kill(-pid, SIGKILL);
      ::kill(pid, SIGKILL);
      continue;
    }
    if (out_read.valid() && fds[1].revents) drain();
    if (in_write.valid() && fds[2].revents) {
      const auto n = ::write(in_write.get(), invocation.input.data() + written, invocation.input.size() - written);
      if (n > 0) written += static_cast<std::size_t>(n);
      if ((n < 0 && errno != EAGAIN && errno != EINTR) || written == invocation.input.size()) in_write.reset();
    }
    ended = fds[0].revents != 0;
  }
  siginfo_t info{};
  while (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED) < 0 && errno == EINTR) {
  }
  if (out_read.valid()) drain();
  finished.exit_code = exit_code_of(info);
  if (timed_out) {
    return Error(Product::runtime, ErrorKind::timeout,
                 fmt::format("`{}` did not end within {}", invocation.argv[0], to_string(invocation.timeout)));
  }
  return finished;
}

Result<std::string> run_checked(const Invocation& invocation) {
  auto finished = run_to_end(invocation);
  if (!finished) return std::move(finished).error();
  if (finished->exit_code == 0) return std::move(finished->output);
  std::string output = std::move(finished->output);
  if (!invocation.output_file.empty()) output = read_text_file(invocation.output_file).value_or("");
  return Error(Product::runtime, ErrorKind::unavailable,
               fmt::format("`{}` ended with {}: {}", invocation.argv[0], finished->exit_code, last_line(output)));
}

Result<std::string> read_text_file(const std::string& path, std::size_t bytes_max) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return system_error(fmt::format("cannot open `{}`", path));
  std::string text;
  char buffer[16384];
  for (;;) {
    const auto n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error(fmt::format("cannot read `{}`", path));
    if (n == 0) return text;
    text.append(buffer, static_cast<std::size_t>(n));
    if (text.size() > bytes_max)
      return Error(Product::runtime, ErrorKind::too_large,
                   fmt::format("`{}` is larger than {} bytes", path, bytes_max));
  }
}

Result<> write_text_file(const std::string& path, std::string_view text, unsigned mode) {
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode));
  if (!fd.valid()) return system_error(fmt::format("cannot create `{}`", path));
  while (!text.empty()) {
    const auto n = ::write(fd.get(), text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error(fmt::format("cannot write `{}`", path));
    text.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

Result<> make_directory(const std::string& path, unsigned mode) {
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  if (::mkdir(path.c_str(), mode) != 0 && errno != EEXIST) return system_error(fmt::format("cannot create `{}`", path));
  if (::chmod(path.c_str(), mode) != 0) return system_error(fmt::format("cannot set the permissions of `{}`", path));
  return {};
}

}  // namespace creto::runtime
