#include "driver/control_hub.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include "creto/common/assert.h"
#include "driver/control_protocol.h"
#include "driver/process.h"

namespace creto::runtime {

namespace control {

bool FrameParser::feed(std::string_view bytes, std::vector<Frame>& frames) {
  pending_.append(bytes);
  std::size_t at = 0;
  bool good = true;
  while (pending_.size() - at >= sizeof(FrameHeader)) {
    FrameHeader header;
    std::memcpy(&header, pending_.data() + at, sizeof header);
    if (header.magic != frame_magic || header.version != frame_version || header.length > frame_payload_max) {
      good = false;
      break;
    }
    if (pending_.size() - at < sizeof header + header.length) break;
    frames.push_back({header.type, header.stream, pending_.substr(at + sizeof header, header.length)});
    at += sizeof header + header.length;
  }
  pending_.erase(0, at);
  return good;
}

}  // namespace control

namespace {

using control::FrameHeader;
using control::FrameType;

constexpr std::size_t queue_max = 8u << 20;

class Payload {
 public:
  Payload& u32(std::size_t value) {
    const auto number = static_cast<std::uint32_t>(value);
    bytes_.append(reinterpret_cast<const char*>(&number), 4);
    return *this;
  }
  Payload& u8(std::uint8_t value) {
    bytes_.push_back(static_cast<char>(value));
    return *this;
  }
  Payload& u64(std::uint64_t value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Payload& text(std::string_view value) {
    u32(value.size());
    bytes_.append(value);
    return *this;
  }
  Payload& raw(std::string_view value) {
    bytes_.append(value);
    return *this;
  }
  Payload& list(const std::vector<std::string>& values) {
    u32(values.size());
    for (const auto& value : values) text(value);
    return *this;
  }
  Payload() { bytes_.reserve(256); }
  ~Payload() { wipe(bytes_.data(), bytes_.size()); }
  std::string_view bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

class PayloadReader {
 public:
  explicit PayloadReader(std::string_view bytes) : bytes_(bytes) {}
  template <class T>
  T number() {
    T value = 0;
    if (bytes_.size() < sizeof value) {
      ok_ = false;
      return 0;
    }
    std::memcpy(&value, bytes_.data(), sizeof value);
    bytes_.remove_prefix(sizeof value);
    return value;
  }
  std::uint8_t u8() { return number<std::uint8_t>(); }
  std::uint32_t u32() { return number<std::uint32_t>(); }
  std::uint64_t u64() { return number<std::uint64_t>(); }
  std::string_view text() {
    const auto size = u32();
    if (size > bytes_.size()) {
      ok_ = false;
      return {};
    }
    const auto value = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return value;
  }
  std::string_view rest() const { return bytes_; }
  bool ok() const { return ok_; }

 private:
  std::string_view bytes_;
  bool ok_ = true;
};

/// A unix socket at a path of any length: the address holds 107 characters, a
/// directory's descriptor is short.
Result<Fd> listen_at(const std::string& directory, const char* name, unsigned mode) {
  const Fd folder(::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid()) return system_error(fmt::format("cannot open `{}`", directory));
  ::unlinkat(folder.get(), name, 0);
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return system_error("socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const auto path = fmt::format("/proc/self/fd/{}/{}", folder.get(), name);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return system_error("bind");
  if (::fchmodat(folder.get(), name, mode, 0) != 0) return system_error("fchmodat");
  if (::listen(fd.get(), 8) != 0) return system_error("listen");
  return fd;
}

class Hub final : public ControlHub {
 public:
  explicit Hub(Telemetry& telemetry) : telemetry_(telemetry) {}

  Result<> open() {
    epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
    wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!epoll_.valid() || !wake_.valid()) return system_error("epoll");
    watch(wake_.get(), 0, EPOLLIN);
    thread_ = std::thread([this] { run(); });
    return {};
  }

  ~Hub() override {
    if (!thread_.joinable()) return;
    stopping_ = true;
    const std::uint64_t one = 1;
    if (::write(wake_.get(), &one, sizeof one) < 0) telemetry_.error("runtime", "hub_wake_failed");
    thread_.join();
  }

  Result<> listen(const SandboxId& id, const std::string& run_directory,
                  std::shared_ptr<ControlListener> listener) override {
    auto entry = std::make_shared<Entry>();
    entry->id = id.to_string();
    entry->listener = std::move(listener);
    entry->listening = CRETO_TRY(listen_at(run_directory, "control.sock", 0600));
    const std::lock_guard lock(mutex_);
    if (by_id_.contains(id))
      return Error(Product::runtime, ErrorKind::already_exists, "the sandbox is already listened to");
    entry->key = next_key_;
    next_key_ += 2;
    by_id_.emplace(id, entry);
    by_key_.emplace(entry->key, entry);
    watch(entry->listening.get(), entry->key, EPOLLIN);
    return {};
  }

  void close(const SandboxId& id) override {
    std::shared_ptr<Entry> entry;
    {
      const std::lock_guard lock(mutex_);
      const auto it = by_id_.find(id);
      if (it == by_id_.end()) return;
      entry = it->second;
      by_id_.erase(it);
      by_key_.erase(entry->key);
      entry->closed = true;
      entry->listening.reset();
      drop_connection(*entry);
    }
    if (std::this_thread::get_id() == thread_.get_id()) return;
    const std::lock_guard running(callbacks_);  // what was being called has returned
  }

  Result<> claim(const SandboxId& id, const std::vector<Secret>& environment,
                 const std::vector<ClaimFile>& files) override {
    Payload payload;
    payload.u32(environment.size());
    for (const auto& variable : environment) payload.text(variable.reveal_text());
    payload.u32(files.size());
    for (const auto& file : files) payload.text(file.path).text(file.content.reveal_text());
    return send(id, FrameType::claim, 0, payload.bytes());
  }
  Result<> start(const SandboxId& id, std::uint32_t stream, const std::string& cwd,
                 const std::vector<std::string>& argv, const std::vector<std::string>& environment) override {
    return send(id, FrameType::start, stream, Payload().text(cwd).list(argv).list(environment).bytes());
  }
  Result<> input(const SandboxId& id, std::uint32_t stream, std::string_view bytes) override {
    return send(id, FrameType::input, stream, bytes);
  }
  Result<> signal(const SandboxId& id, std::uint32_t stream, int number) override {
    return send(id, FrameType::signal, stream, Payload().u32(static_cast<std::size_t>(number)).bytes());
  }
  Result<> ping(const SandboxId& id) override { return send(id, FrameType::ping, 0, "ping"); }

 private:
  struct Entry {
    std::string id;
    std::uint64_t key = 0;  ///< of the listening socket; +1 is the connection
    std::shared_ptr<ControlListener> listener;
    Fd listening;
    Fd connection;
    bool greeted = false;
    bool closed = false;
    bool keeping = true;  ///< false while its output cannot be kept
    control::FrameParser parser;
    std::string outgoing;
  };

  void watch(int fd, std::uint64_t key, std::uint32_t events) {
    epoll_event event{.events = events, .data = {.u64 = key}};
    CRETO_ASSERT(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0);
  }

  Result<> send(const SandboxId& id, FrameType type, std::uint32_t stream, std::string_view payload) {
    if (payload.size() > control::frame_payload_max)
      return Error(Product::runtime, ErrorKind::too_large, "a frame of the control channel holds 1 MiB at most");
    const std::lock_guard lock(mutex_);
    const auto it = by_id_.find(id);
    if (it == by_id_.end())
      return Error(Product::runtime, ErrorKind::not_found, fmt::format("no sandbox `{}` here", id.to_string()));
    Entry& entry = *it->second;
    if (!entry.greeted)
      return Error(Product::runtime, ErrorKind::unavailable, fmt::format("sandbox `{}` is not connected", entry.id));
    if (entry.outgoing.size() + payload.size() > queue_max)
      return Error(Product::runtime, ErrorKind::resource_exhausted,
                   fmt::format("sandbox `{}` does not read its control channel", entry.id));
    append(entry, type, stream, payload);
    return {};
  }

  /// Requires: mutex_ held.
  void append(Entry& entry, FrameType type, std::uint32_t stream, std::string_view payload) {
    const FrameHeader header{control::frame_magic,
                             control::frame_version,
                             static_cast<std::uint8_t>(type),
                             0,
                             stream,
                             static_cast<std::uint32_t>(payload.size())};
    entry.outgoing.append(reinterpret_cast<const char*>(&header), sizeof header);
    entry.outgoing.append(payload);
    flush(entry);
  }

  /// To what was just heard; where the connection is gone meanwhile, it is heard again. Answers are smaller than what
  /// they answer, so they have no limit of their own.
  void reply(Entry& entry, FrameType type, std::uint32_t stream, std::string_view payload) {
    const std::lock_guard lock(mutex_);
    if (entry.connection.valid()) append(entry, type, stream, payload);
  }

  /// Requires: mutex_ held.
  void flush(Entry& entry) {
    while (!entry.outgoing.empty() && entry.connection.valid()) {
      const auto n =
          ::send(entry.connection.get(), entry.outgoing.data(), entry.outgoing.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0) {
        if (errno == EINTR) continue;
        break;  // full: the thread goes on when there is room; broken: it learns
                // that by reading
      }
      wipe(entry.outgoing.data(), static_cast<std::size_t>(n));
      entry.outgoing.erase(0, static_cast<std::size_t>(n));
    }
    if (!entry.connection.valid()) return;
    epoll_event event{.events = entry.outgoing.empty() ? EPOLLIN : EPOLLIN | EPOLLOUT, .data = {.u64 = entry.key + 1}};
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, entry.connection.get(), &event);
  }

  /// Requires: mutex_ held.
  void drop_connection(Entry& entry) {
    by_key_.erase(entry.key + 1);
    entry.connection.reset();
    entry.greeted = false;
    entry.parser = {};
    wipe(entry.outgoing.data(), entry.outgoing.size());
    entry.outgoing.clear();
  }

  void run() {
    while (!stopping_) {
      epoll_event events[64];
      const int count = ::epoll_wait(epoll_.get(), events, 64, -1);
      for (int i = 0; i < count && !stopping_; ++i) {
        const auto key = events[i].data.u64;
        if (key == 0) continue;
        const std::lock_guard running(callbacks_);
        std::shared_ptr<Entry> entry;
        {
          const std::lock_guard lock(mutex_);
          const auto it = by_key_.find(key);
          if (it == by_key_.end()) continue;
          entry = it->second;
        }
        if (key == entry->key) {
          accept_one(entry);
        } else {
          serve(entry, events[i].events);
        }
      }
    }
  }

  void accept_one(const std::shared_ptr<Entry>& entry) {
    const std::lock_guard lock(mutex_);
    Fd fd(::accept4(entry->listening.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid() || entry->closed) return;
    // Only the init process can open this socket; it connects anew only when it
    // has given up the connection before.
    drop_connection(*entry);
    entry->connection = std::move(fd);
    by_key_.emplace(entry->key + 1, entry);
    watch(entry->connection.get(), entry->key + 1, EPOLLIN);
  }

  void serve(const std::shared_ptr<Entry>& entry, std::uint32_t happened) {
    std::vector<control::FrameParser::Frame> frames;
    bool lost = false;
    bool was_greeted = false;
    {
      const std::lock_guard lock(mutex_);
      if (!entry->connection.valid()) return;
      if (happened & EPOLLOUT) flush(*entry);
      char buffer[65536];
      const auto n = ::recv(entry->connection.get(), buffer, sizeof buffer, 0);
      if (n > 0) {
        lost = !entry->parser.feed(std::string_view(buffer, static_cast<std::size_t>(n)), frames);
        if (lost) telemetry_.warn("runtime", "control_channel_malformed", {{"sandbox", entry->id}});
      } else {
        lost = n == 0 || (errno != EAGAIN && errno != EINTR);
      }
      was_greeted = entry->greeted;
      if (lost) drop_connection(*entry);
    }
    for (auto& frame : frames) {
      if (!was_greeted) {
        if (!greet(entry, frame)) return;
        was_greeted = true;
        continue;
      }
      const bool kept = dispatch(*entry, frame);
      if (entry->closed) return;
      if (kept) continue;
      const std::lock_guard lock(mutex_);
      drop_connection(*entry);
      lost = true;
      break;
    }
    if (lost && was_greeted) entry->listener->disconnected();
  }

  bool greet(const std::shared_ptr<Entry>& entry, const control::FrameParser::Frame& frame) {
    PayloadReader in(frame.payload);
    const bool right = static_cast<FrameType>(frame.type) == FrameType::hello && in.text() == entry->id && in.ok();
    {
      const std::lock_guard lock(mutex_);
      if (!right) {
        telemetry_.warn("runtime", "control_channel_wrong_greeting", {{"sandbox", entry->id}});
        drop_connection(*entry);
        return false;
      }
      entry->greeted = entry->connection.valid();
    }
    const auto commands = in.u32();
    for (std::uint32_t i = 0; i < commands && in.ok() && !entry->closed; ++i) {
      const auto stream = in.u32();
      if (in.ok() && !entry->listener->awaits(stream))
        reply(*entry, FrameType::signal, stream, Payload().u32(SIGKILL).bytes());
    }
    if (!entry->closed) entry->listener->connected();
    return !entry->closed;
  }

  /// False where output could not be kept: over a new connection it comes again.
  bool dispatch(Entry& entry, const control::FrameParser::Frame& frame) {
    PayloadReader in(frame.payload);
    auto& listener = *entry.listener;
    switch (static_cast<FrameType>(frame.type)) {
      case FrameType::started:
        listener.started(frame.stream);
        return true;
      case FrameType::output: {
        const auto which = in.u8();
        const auto offset = in.u64();
        if (!in.ok() || which < 1 || which > 2) return true;
        const auto kept = listener.output(frame.stream, which == 2, offset, in.rest());
        reply(entry, FrameType::acknowledge, frame.stream, Payload().u8(which).u64(kept).bytes());
        const bool whole = kept >= offset + in.rest().size();
        if (!whole && entry.keeping) telemetry_.error("runtime", "output_cannot_be_kept", {{"sandbox", entry.id}});
        entry.keeping = whole;
        return whole;
      }
      case FrameType::ended: {
        const auto status = static_cast<int>(in.u32());
        if (in.ok() && listener.ended(frame.stream, status)) reply(entry, FrameType::forget, frame.stream, {});
        return true;
      }
      case FrameType::failed:
      case FrameType::claimed: {
        const auto error = static_cast<int>(in.u32());
        const auto what = in.text();
        if (!in.ok()) return true;
        if (static_cast<FrameType>(frame.type) == FrameType::failed) {
          listener.failed(frame.stream, error, what);
        } else {
          listener.claimed(error, what);
        }
        return true;
      }
      case FrameType::pong:
        listener.pong();
        return true;
      default:
        return true;  // of a later init: nothing we would know how to read
    }
  }

  Telemetry& telemetry_;
  Fd epoll_, wake_;
  std::atomic<bool> stopping_ = false;
  std::mutex callbacks_;  ///< held while a listener is called
  std::mutex mutex_;      ///< never held while a listener is called
  std::uint64_t next_key_ = 2;
  std::map<SandboxId, std::shared_ptr<Entry>> by_id_;
  std::map<std::uint64_t, std::shared_ptr<Entry>> by_key_;
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<ControlHub>> ControlHub::create(Telemetry& telemetry) {
  auto hub = std::make_unique<Hub>(telemetry);
  CRETO_TRY(hub->open());
  return hub;
}

}  // namespace creto::runtime
