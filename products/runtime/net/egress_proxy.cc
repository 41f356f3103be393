#include "net/egress_proxy.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <linux/netfilter_ipv4.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "creto/common/assert.h"
#include "driver/process.h"

namespace creto::runtime {

std::string EgressTarget::text() const { return fmt::format("{}:{}", host, port); }

namespace {

constexpr std::uint32_t names_base = 198u << 24 | 19u << 16;

std::string address_text(std::uint32_t network_order) {
  char text[INET_ADDRSTRLEN];
  ::inet_ntop(AF_INET, &network_order, text, sizeof text);
  return text;
}

/// Addresses that are this machine's, its neighbours' or nobody's. A name of the outside world must not lead there.
bool is_internal(std::uint32_t network_order) {
  const auto ip = ntohl(network_order);
  const auto in = [ip](std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d, int bits) {
    return (ip ^ (a << 24 | b << 16 | c << 8 | d)) >> (32 - bits) == 0;
  };
  return in(0, 0, 0, 0, 8) || in(10, 0, 0, 0, 8) || in(100, 64, 0, 0, 10) || in(127, 0, 0, 0, 8) ||
         in(169, 254, 0, 0, 16) || in(172, 16, 0, 0, 12) || in(192, 0, 0, 0, 24) || in(192, 168, 0, 0, 16) ||
         in(198, 18, 0, 0, 15) || in(224, 0, 0, 0, 3);
}

Error refused(std::string message) { return Error(Product::runtime, ErrorKind::egress_denied, std::move(message)); }

class Proxy final : public EgressProxy {
 public:
  Proxy(EgressOptions options, GatewaySockets sockets, Decide decide, Closed closed, Telemetry& telemetry)
      : options_(std::move(options)),
        decide_(std::move(decide)),
        closed_(std::move(closed)),
        telemetry_(telemetry),
        tcp_(std::move(sockets.tcp)),
        dns_(std::move(sockets.dns)) {}

  Result<> start() {
    stop_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!stop_.valid()) return system_error("cannot start the egress proxy");
    thread_ = std::thread([this] { run(); });
    return {};
  }

  ~Proxy() override {
    if (!thread_.joinable()) return;
    const std::uint64_t one = 1;
    if (::write(stop_.get(), &one, sizeof one) < 0) telemetry_.error("runtime", "egress_stop_failed");
    thread_.join();
    std::unique_lock lock(mutex_);
    for (auto& [key, connection] : connections_) ::shutdown(connection.fd, SHUT_RDWR);
    idle_.wait(lock, [&] { return connections_.empty(); });
  }

  void admit(const std::string& guest_address, const SandboxId& sandbox) override {
    const std::lock_guard lock(mutex_);
    guests_.insert_or_assign(guest_address, Guest{sandbox, {}, {}});
  }

  void dismiss(const SandboxId& sandbox) override {
    std::unique_lock lock(mutex_);
    std::erase_if(guests_, [&](const auto& entry) { return entry.second.sandbox == sandbox; });
    const auto mine = [&](const auto& entry) { return entry.second.sandbox == sandbox; };
    for (auto& [key, connection] : connections_)
      if (connection.sandbox == sandbox) ::shutdown(connection.fd, SHUT_RDWR);
    idle_.wait(lock, [&] { return std::none_of(connections_.begin(), connections_.end(), mine); });
  }

 private:
  struct Guest {
    SandboxId sandbox;
    std::vector<std::string> names;  ///< index: the low bits of the address we gave it
    std::unordered_map<std::string, std::uint32_t> index_of;
  };
  struct Connection {
    SandboxId sandbox;
    int fd;
  };

  void run() {
    for (;;) {
      pollfd fds[3] = {{stop_.get(), POLLIN, 0}, {tcp_.get(), POLLIN, 0}, {dns_.get(), POLLIN, 0}};
      if (::poll(fds, 3, -1) < 0 && errno != EINTR) return;
      if (fds[0].revents) return;
      if (fds[1].revents) accept_one();
      if (fds[2].revents) answer_one();
    }
  }

  void answer_one() {
    char packet[1024];
    sockaddr_in from{};
    char control[256];
    iovec part{packet, sizeof packet};
    msghdr message{};
    message.msg_name = &from;
    message.msg_namelen = sizeof from;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const auto size = ::recvmsg(dns_.get(), &message, 0);
    if (size <= 0) return;
    const std::string_view query(packet, static_cast<std::size_t>(size));
    const auto question = egress::dns_question(query);
    if (!question) return;
    std::optional<std::uint32_t> given;
    bool failed = false;
    {
      const std::lock_guard lock(mutex_);
      const auto guest = guests_.find(address_text(from.sin_addr.s_addr));
      if (guest == guests_.end()) return;
      if (question->type == 1) {
        given = address_for(guest->second, question->name);
        failed = !given;
      }
    }
    std::string answer = egress::dns_answer(query, *question, given, failed);
    // Sent from the address that was asked (IP_PKTINFO goes back as it came), or conntrack would not undo the redirect.
    part = {answer.data(), answer.size()};
    ::sendmsg(dns_.get(), &message, MSG_DONTWAIT);
  }

  /// Requires: mutex_ held. The same name always gets the same address.
  std::optional<std::uint32_t> address_for(Guest& guest, const std::string& name) {
    auto [it, fresh] = guest.index_of.try_emplace(name, static_cast<std::uint32_t>(guest.names.size()));
    if (fresh) {
      if (guest.names.size() >= options_.names_per_sandbox_max) {
        guest.index_of.erase(it);
        return std::nullopt;
      }
      guest.names.push_back(name);
    }
    return htonl(names_base + 1 + it->second);
  }

  void accept_one() {
    sockaddr_in from{};
    socklen_t size = sizeof from;
    Fd fd(::accept4(tcp_.get(), reinterpret_cast<sockaddr*>(&from), &size, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) return;
    const std::lock_guard lock(mutex_);
    const auto guest = guests_.find(address_text(from.sin_addr.s_addr));
    if (guest == guests_.end()) return reset_connection(fd);
    const auto sandbox = guest->second.sandbox;
    const auto own = std::count_if(connections_.begin(), connections_.end(),
                                   [&](const auto& c) { return c.second.sandbox == sandbox; });
    if (connections_.size() >= options_.connections_max ||
        static_cast<std::size_t>(own) >= options_.connections_per_sandbox_max) {
      telemetry_.warn("runtime", "egress_too_many_connections", {{"sandbox", sandbox.to_string()}});
      return reset_connection(fd);
    }
    sockaddr_in wanted{};
    size = sizeof wanted;
    if (::getsockopt(fd.get(), IPPROTO_IP, SO_ORIGINAL_DST, &wanted, &size) != 0) return reset_connection(fd);
    EgressTarget target{sandbox, address_text(wanted.sin_addr.s_addr), ntohs(wanted.sin_port)};
    const auto index = ntohl(wanted.sin_addr.s_addr) - names_base - 1;
    const bool named = index < guest->second.names.size();
    if (named) target.host = guest->second.names[index];
    const auto key = next_connection_++;
    connections_.emplace(key, Connection{sandbox, fd.get()});
    std::thread([this, key, named, target = std::move(target), fd = std::move(fd)]() mutable {
      serve(target, named, fd);
      const std::lock_guard done(mutex_);
      connections_.erase(key);
      fd.reset();
      idle_.notify_all();
    }).detach();
  }

  static void reset_connection(Fd& fd) {
    const linger now{1, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
    fd.reset();
  }
  /// As above where the descriptor is still listed: it is closed by its owner.
  static void make_reset(const Fd& fd) {
    const linger now{1, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
  }

  void serve(const EgressTarget& target, bool named, Fd& inside) {
    auto allowed = decide_(target);
    if (!allowed) return make_reset(inside);
    std::string greeting;
    if (auto same = check_greeting(target, inside, greeting); !same) {
      telemetry_.warn("runtime", "egress_name_mismatch",
                      {{"sandbox", target.sandbox.to_string()}, {"error", same.error().message()}});
      return make_reset(inside);
    }
    auto outside = connect_to(target, named);
    if (!outside) {
      telemetry_.info("runtime", "egress_connect_failed",
                      {{"target", target.text()}, {"error", outside.error().message()}});
      return make_reset(inside);
    }
    EgressClosed result{target};
    relay(inside, *outside, std::move(greeting), result);
    closed_(result);
  }

  /// What the connection itself says about where it goes must be what was decided upon.
  Result<> check_greeting(const EgressTarget& target, const Fd& inside, std::string& greeting) {
    const auto deadline = std::chrono::steady_clock::now() + options_.greeting_timeout;
    for (;;) {
      const auto peek = target.port == 443 ? egress::tls_server_name(greeting) : egress::http_host(greeting);
      if (peek.state == egress::Peek::State::found) {
        if (peek.host == target.host) return {};
        return refused(fmt::format("a connection to `{}` asks for `{}`", target.host, peek.host));
      }
      if (peek.state == egress::Peek::State::none) return {};
      pollfd ready{inside.get(), POLLIN, 0};
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
      if (left <= 0 || ::poll(&ready, 1, static_cast<int>(left)) <= 0) {
        if (greeting.empty()) return {};  // it speaks second, or never
        return refused(fmt::format("a connection to `{}` does not finish its greeting", target.host));
      }
      char buffer[4096];
      const auto n = ::recv(inside.get(), buffer, sizeof buffer, 0);
      if (n <= 0) return {};
      greeting.append(buffer, static_cast<std::size_t>(n));
    }
  }

  Result<Fd> connect_to(const EgressTarget& target, bool named) {
    std::string host = target.host;
    std::string port = std::to_string(target.port);
    bool internal_allowed = false;
    const auto fixed = options_.static_hosts.find(target.host);
    if (fixed != options_.static_hosts.end()) {
      const auto colon = fixed->second.rfind(':');
      host = fixed->second.substr(0, colon);
      if (colon != std::string::npos) port = fixed->second.substr(colon + 1);
      internal_allowed = true;  // whoever runs this installation said so
    }
    addrinfo hints{};
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = named || internal_allowed ? 0 : AI_NUMERICHOST;
    addrinfo* found = nullptr;
    if (::getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0 || !found)
      return Error(Product::runtime, ErrorKind::unavailable, fmt::format("cannot resolve `{}`", host));
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owned(found, &::freeaddrinfo);
    for (const addrinfo* entry = found; entry; entry = entry->ai_next) {
      const auto* address = reinterpret_cast<const sockaddr_in*>(entry->ai_addr);
      if (!internal_allowed && is_internal(address->sin_addr.s_addr)) continue;
      Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      if (::connect(fd.get(), entry->ai_addr, entry->ai_addrlen) != 0 && errno != EINPROGRESS) continue;
      pollfd ready{fd.get(), POLLOUT, 0};
      const auto wait = std::chrono::duration_cast<std::chrono::milliseconds>(options_.connect_timeout).count();
      if (::poll(&ready, 1, static_cast<int>(wait)) <= 0) continue;
      int error = 0;
      socklen_t size = sizeof error;
      ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
      if (error == 0) return fd;
    }
    return Error(Product::runtime, ErrorKind::unavailable, fmt::format("cannot connect to `{}:{}`", host, port));
  }

  struct Direction {
    int from, to;
    std::string pending;
    std::uint64_t bytes = 0;
    bool ended = false;  ///< nothing more comes
    bool shut = false;   ///< and the other side knows
  };

  void relay(const Fd& inside, const Fd& outside, std::string greeting, EgressClosed& result) {
    Direction out{inside.get(), outside.get(), std::move(greeting)};
    Direction in{outside.get(), inside.get(), {}};
    bool broken = false;
    while (!broken && !(out.shut && in.shut)) {
      pollfd fds[2] = {{inside.get(), 0, 0}, {outside.get(), 0, 0}};
      const auto want = [](Direction& d, pollfd& from, pollfd& to) {
        if (!d.pending.empty())
          to.events |= POLLOUT;
        else if (!d.ended)
          from.events |= POLLIN;
      };
      want(out, fds[0], fds[1]);
      want(in, fds[1], fds[0]);
      const auto wait = std::chrono::duration_cast<std::chrono::milliseconds>(options_.idle_timeout).count();
      if (::poll(fds, 2, static_cast<int>(wait)) <= 0) break;
      broken = !move(out) || !move(in) || ((fds[0].revents | fds[1].revents) & (POLLERR | POLLNVAL)) != 0;
    }
    result.bytes_out = out.bytes;
    result.bytes_in = in.bytes;
  }

  static bool move(Direction& d) {
    if (d.pending.empty() && !d.ended) {
      char buffer[65536];
      const auto n = ::recv(d.from, buffer, sizeof buffer, MSG_DONTWAIT);
      if (n > 0) d.pending.assign(buffer, static_cast<std::size_t>(n));
      if (n == 0) d.ended = true;
      if (n < 0 && errno != EAGAIN && errno != EINTR) return false;
    }
    if (!d.pending.empty()) {
      const auto n = ::send(d.to, d.pending.data(), d.pending.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && errno != EAGAIN && errno != EINTR) return false;
      if (n > 0) {
        d.bytes += static_cast<std::uint64_t>(n);
        d.pending.erase(0, static_cast<std::size_t>(n));
      }
    }
    if (d.ended && d.pending.empty() && !d.shut) {
      ::shutdown(d.to, SHUT_WR);
      d.shut = true;
    }
    return true;
  }

  const EgressOptions options_;
  const Decide decide_;
  const Closed closed_;
  Telemetry& telemetry_;
  Fd tcp_, dns_, stop_;
  std::mutex mutex_;
  std::condition_variable idle_;
  std::unordered_map<std::string, Guest> guests_;
  std::unordered_map<std::uint64_t, Connection> connections_;
  std::uint64_t next_connection_ = 1;
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<EgressProxy>> EgressProxy::create(EgressOptions options, GatewaySockets sockets, Decide decide,
                                                         Closed closed, Telemetry& telemetry) {
  auto proxy =
      std::make_unique<Proxy>(std::move(options), std::move(sockets), std::move(decide), std::move(closed), telemetry);
  CRETO_TRY(proxy->start());
  return proxy;
}

}  // namespace creto::runtime
