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

/// The part of `bytes` that `seen` does not reach; `bytes` begin at `offset`.
std::string_view unseen(std::uint64_t seen, std::uint64_t offset, std::string_view bytes) {
  if (seen <= offset) return bytes;
  return bytes.substr(std::min<std::uint64_t>(seen - offset, bytes.size()));
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
  commands_[next_stream_];
  return next_stream_++;
}

void LiveSandbox::forget_stream(std::uint32_t stream) {
  const std::lock_guard lock(mutex_);
  commands_.erase(stream);
}

Result<> LiveSandbox::open_output() {
  const std::lock_guard lock(mutex_);
  for (const auto stream : {OutputStream::out, OutputStream::err}) {
    auto& file = stream == OutputStream::out ? out_ : err_;
    file.fd.reset(::open(output_path(stream).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    struct stat info{};
    if (!file.fd.valid() || ::fstat(file.fd.get(), &info) != 0)
      return system_error(fmt::format("cannot open `{}`", output_path(stream)));
    file.bytes = static_cast<std::uint64_t>(info.st_size);
  }
  return {};
}

Result<> LiveSandbox::sync_output() const {
  for (const auto& path : {output_path(OutputStream::out), output_path(OutputStream::err), directory}) {
    const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.valid() && errno == ENOENT) continue;  // it was swept meanwhile, or never wrote
    if (!file.valid() || ::fsync(file.get()) != 0) return system_error(fmt::format("cannot sync `{}`", path));
  }
  return {};
}

std::uint64_t LiveSandbox::write_down(OutputFile& file, std::uint64_t offset, std::string_view bytes) {
  const auto end = offset + bytes.size();
  bytes = unseen(file.bytes, offset, bytes);
  // Beyond the limit it is passed over; how far, a later process need not know.
  while (!bytes.empty() && file.bytes < kept_output_max) {
    const auto n =
        ::write(file.fd.get(), bytes.data(), std::min<std::uint64_t>(bytes.size(), kept_output_max - file.bytes));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return file.bytes;  // the disk is full: the command waits until there is room
    file.bytes += static_cast<std::uint64_t>(n);
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  file.bytes = std::max(file.bytes, end);
  return file.bytes;
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
  std::function<void()> call;
  {
    const std::lock_guard lock(mutex_);
    connected_ = was_connected_ = true;
    call.swap(when_connected_);
    changed_.notify_all();
  }
  if (call) call();
}

void LiveSandbox::when_connected(std::function<void()> action) {
  {
    const std::lock_guard lock(mutex_);
    if (!connected_) {
      when_connected_ = std::move(action);
      return;
    }
  }
  action();
}

bool LiveSandbox::was_connected() const {
  const std::lock_guard lock(mutex_);
  return was_connected_;
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

LiveSandbox::Command* LiveSandbox::find(std::uint32_t stream) {
  if (stream == command_stream) return &commands_[stream];
  const auto it = commands_.find(stream);
  return it == commands_.end() ? nullptr : &it->second;
}

void LiveSandbox::started(std::uint32_t stream) {
  const std::lock_guard lock(mutex_);
  if (auto* command = find(stream)) command->started = true;
  changed_.notify_all();
}

void LiveSandbox::failed(std::uint32_t stream, int error, std::string_view what) {
  // After a restart the command is started again without knowing whether it runs; then it says so, and all is well.
  if (stream == command_stream && error == EBUSY) return started(stream);
  std::function<void(int)> call;
  {
    const std::lock_guard lock(mutex_);
    auto* command = find(stream);
    if (!command) return;
    command->failure = fmt::format("{}: {}", what, std::strerror(error));
    command->error = error;
    command->over = true;
    command->status = (error == ENOENT ? 127 : 126) << 8;
    changed_.notify_all();
    if (stream == command_stream) call = on_command_end;
  }
  if (call) call((error == ENOENT ? 127 : 126) << 8);
}

bool LiveSandbox::awaits(std::uint32_t stream) {
  const std::lock_guard lock(mutex_);
  next_stream_ = std::max(next_stream_, stream + 1);
  return find(stream) != nullptr;
}

std::uint64_t LiveSandbox::output(std::uint32_t stream, bool is_stderr, std::uint64_t offset, std::string_view bytes) {
  const std::lock_guard lock(mutex_);
  if (stream == command_stream) return write_down(is_stderr ? err_ : out_, offset, bytes);
  const auto end = offset + bytes.size();
  auto* command = find(stream);
  if (!command) return end;  // nobody waits for it
  auto& seen = is_stderr ? command->err_seen : command->out_seen;
  append_tail(is_stderr ? command->err : command->out, unseen(seen, offset, bytes));
  seen = std::max(seen, end);
  return end;
}

bool LiveSandbox::ended(std::uint32_t stream, int status) {
  std::function<void(int)> call;
  {
    const std::lock_guard lock(mutex_);
    auto* command = find(stream);
    if (!command) return true;
    if (!command->over) {
      command->over = true;
      command->started = true;
      command->status = status;
      changed_.notify_all();
      if (stream == command_stream) call = on_command_end;
    }
  }
  if (call) call(status);
  // The sandbox' own end goes with the sandbox, once it is recorded.
  return stream != command_stream;
}

}  // namespace creto::runtime
