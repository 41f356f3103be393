#include "live_sandbox.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "creto/io/http_server.h"

namespace creto::runtime {
namespace {

void append_tail(std::string& tail, std::string_view bytes) {
  tail.append(bytes);
  if (tail.size() > exec_output_max) tail.erase(0, tail.size() - exec_output_max);
}

void write_all(const Fd& fd, std::uint64_t& written, std::string_view bytes) {
  if (!fd.valid() || written >= kept_output_max) return;
  bytes = bytes.substr(0, std::min<std::uint64_t>(bytes.size(), kept_output_max - written));
  const auto n = ::write(fd.get(), bytes.data(), bytes.size());
  if (n > 0) written += static_cast<std::uint64_t>(n);
}

}  // namespace

LiveSandbox::LiveSandbox(SandboxId id, std::string directory) : id(id), directory(std::move(directory)) {}
LiveSandbox::~LiveSandbox() = default;

template <class F>
bool LiveSandbox::wait(std::unique_lock<std::mutex>& lock, Monotonic deadline, F done) {
  if (deadline == Monotonic::max()) {
    changed_.wait(lock, done);
    return true;
  }
  return changed_.wait_until(lock, deadline, done);
}

bool LiveSandbox::wait_connected(Monotonic deadline) {
  std::unique_lock lock(mutex_);
  return wait(lock, deadline, [&] { return connected_ || gone_; }) && connected_;
}

std::optional<std::string> LiveSandbox::wait_claimed(Monotonic deadline) {
  std::unique_lock lock(mutex_);
  if (!wait(lock, deadline, [&] { return claim_.has_value() || gone_; })) return std::nullopt;
  return claim_ ? *claim_ : "the sandbox ended";
}

std::optional<LiveSandbox::Command> LiveSandbox::wait_over(std::uint32_t stream, Monotonic deadline) {
  std::unique_lock lock(mutex_);
  auto& command = commands_[stream];
  if (!wait(lock, deadline, [&] { return command.over || gone_; })) return std::nullopt;
  if (!command.over) command.failure = "the sandbox ended";
  return command;
}

std::optional<LiveSandbox::Command> LiveSandbox::wait_started(std::uint32_t stream, Monotonic deadline) {
  std::unique_lock lock(mutex_);
  auto& command = commands_[stream];
  if (!wait(lock, deadline, [&] { return command.started || command.over || gone_; })) return std::nullopt;
  if (!command.started && !command.over) command.failure = "the sandbox ended";
  return command;
}

std::uint32_t LiveSandbox::begin_stream() {
  const std::lock_guard lock(mutex_);
  return next_stream_++;
}

void LiveSandbox::forget_stream(std::uint32_t stream) {
  const std::lock_guard lock(mutex_);
  commands_.erase(stream);
}

void LiveSandbox::open_output() {
  const std::lock_guard lock(mutex_);
  const auto open = [&](OutputStream stream, Fd& fd, std::uint64_t& bytes) {
    fd.reset(::open(output_path(stream).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    struct stat info{};
    if (fd.valid() && ::fstat(fd.get(), &info) == 0) bytes = static_cast<std::uint64_t>(info.st_size);
  };
  open(OutputStream::out, out_, out_bytes_);
  open(OutputStream::err, err_, err_bytes_);
}

void LiveSandbox::gone() {
  const std::lock_guard lock(mutex_);
  gone_ = true;
  changed_.notify_all();
}

bool LiveSandbox::ended() const {
  const std::lock_guard lock(mutex_);
  return gone_;
}

void LiveSandbox::connected() {
  const std::lock_guard lock(mutex_);
  connected_ = true;
  changed_.notify_all();
}

void LiveSandbox::disconnected() {
  const std::lock_guard lock(mutex_);
  connected_ = false;
}

void LiveSandbox::claimed(int error, std::string_view what) {
  const std::lock_guard lock(mutex_);
  claim_ = error == 0 ? std::string() : fmt::format("{}: {}", what, std::strerror(error));
  changed_.notify_all();
}

void LiveSandbox::started(std::uint32_t stream) {
  const std::lock_guard lock(mutex_);
  commands_[stream].started = true;
  changed_.notify_all();
}

void LiveSandbox::failed(std::uint32_t stream, int error, std::string_view what) {
  // After a restart the command is started again without knowing whether it runs; then it says so, and all is well.
  if (stream == command_stream && error == EBUSY) return started(stream);
  std::function<void(int)> call;
  {
    const std::lock_guard lock(mutex_);
    auto& command = commands_[stream];
    command.failure = fmt::format("{}: {}", what, std::strerror(error));
    command.error = error;
    command.over = true;
    command.status = (error == ENOENT ? 127 : 126) << 8;
    changed_.notify_all();
    if (stream == command_stream) call = on_command_end;
  }
  if (call) call((error == ENOENT ? 127 : 126) << 8);
}

void LiveSandbox::output(std::uint32_t stream, bool is_stderr, std::string_view bytes) {
  const std::lock_guard lock(mutex_);
  if (stream == command_stream) {
    is_stderr ? write_all(err_, err_bytes_, bytes) : write_all(out_, out_bytes_, bytes);
    return;
  }
  auto& command = commands_[stream];
  append_tail(is_stderr ? command.err : command.out, bytes);
}

void LiveSandbox::ended(std::uint32_t stream, int status) {
  std::function<void(int)> call;
  {
    const std::lock_guard lock(mutex_);
    auto& command = commands_[stream];
    if (command.over) return;
    command.over = true;
    command.started = true;
    command.status = status;
    changed_.notify_all();
    if (stream == command_stream) call = on_command_end;
  }
  if (call) call(status);
}

}  // namespace creto::runtime
