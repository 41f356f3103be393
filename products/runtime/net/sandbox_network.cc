#include "net/sandbox_network.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>

#include <atomic>
#include <charconv>
#include <filesystem>
#include <thread>

namespace creto::runtime {
namespace {

constexpr std::uint32_t slots = 16384;
constexpr std::uint16_t tcp_port = 15001;
constexpr std::uint16_t dns_port = 53;

std::string address(std::uint32_t slot, std::uint32_t host) {
  const std::uint32_t value = (198u << 24 | 18u << 16) + slot * 4 + host;
  return fmt::format("{}.{}.{}.{}", value >> 24, value >> 16 & 255, value >> 8 & 255, value & 255);
}

class Network final : public SandboxNetwork {
 public:
  Network(std::string instance, Telemetry& telemetry)
      : prefix_(fmt::format("creto-{}-", instance)), gateway_(prefix_ + "gateway"), telemetry_(telemetry) {}

  Result<> open_gateway() {
    if (!std::filesystem::exists(path_of(gateway_))) CRETO_TRY(run_checked({.argv = {"ip", "netns", "add", gateway_}}));
    // Rebuilt whole, in one transaction of nftables. Elements are put back by `adopt`.
    return nft(fmt::format(R"(
table inet egress
delete table inet egress
table inet egress {{
  set sandboxes {{ type ifname . ipv4_addr; }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    tcp dport {{ 80, 443 }} redirect to :{0}
    udp dport 53 redirect to :{1}
    # Whatever else comes here too, to be refused at once: nothing is forwarded, so it would only be lost.
    meta l4proto tcp redirect to :9
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname . ip saddr @sandboxes tcp dport {0} accept
    iifname . ip saddr @sandboxes udp dport {1} accept
    meta l4proto tcp reject with tcp reset
  }}
  chain forward {{ type filter hook forward priority filter; policy drop; }}
}}
)",
                           tcp_port, dns_port));
  }

  Result<GatewaySockets> open_sockets() override {
    // A socket belongs to the namespace of the thread that makes it, for good.
    Result<GatewaySockets> made = Error(Product::runtime, ErrorKind::internal, "not opened");
    std::thread([&] { made = open_sockets_here(); }).join();
    return made;
  }

  Result<NetworkLease> acquire() override {
    for (std::uint32_t attempt = 0; attempt < slots; ++attempt) {
      const auto lease = lease_of(next_slot_.fetch_add(1) % slots);
      if (std::filesystem::exists(lease.namespace_path)) continue;
      CRETO_TRY(run_checked({.argv = {"ip", "netns", "add", namespace_of(lease.slot)}}));
      if (auto ready = configure(lease); !ready) {
        release(lease);
        return std::move(ready).error();
      }
      return lease;
    }
    return Error(Product::runtime, ErrorKind::resource_exhausted, "no free network slot for a sandbox");
  }

  void release(const NetworkLease& lease) override {
    if (auto removed = nft(fmt::format("delete element inet egress sandboxes {{ \"{}\" . {} }}\n", lease.interface,
                                       lease.guest_address));
        !removed)
      telemetry_.log(LogLevel::debug, "runtime", "network_rule_absent", nullptr, {{"interface", lease.interface}});
    // Removing one end removes both; the namespace may be held a little longer by a dying sandbox.
    for (const auto& argv : {std::vector<std::string>{"ip", "-n", gateway_, "link", "del", lease.interface},
                             std::vector<std::string>{"ip", "netns", "del", namespace_of(lease.slot)}}) {
      auto done = run_to_end({.argv = argv});
      if (!done) telemetry_.warn("runtime", "network_release_failed", {{"error", done.error().to_string()}});
    }
  }

  Result<NetworkLease> adopt(std::uint32_t slot) override {
    auto lease = lease_of(slot);
    if (!std::filesystem::exists(lease.namespace_path))
      return Error(Product::runtime, ErrorKind::not_found, fmt::format("network slot {} is gone", slot));
    CRETO_TRY(admit(lease));
    return lease;
  }

  std::vector<NetworkLease> leases() override {
    std::vector<NetworkLease> found;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/run/netns", ignored)) {
      const auto name = entry.path().filename().string();
      if (!name.starts_with(prefix_)) continue;
      std::uint32_t slot = 0;
      const auto parsed = std::from_chars(name.data() + prefix_.size(), name.data() + name.size(), slot);
      if (parsed.ec == std::errc() && parsed.ptr == name.data() + name.size()) found.push_back(lease_of(slot));
    }
    return found;
  }

  void remove() override {
    if (auto removed = run_checked({.argv = {"ip", "netns", "del", gateway_}}); !removed)
      telemetry_.warn("runtime", "network_gateway_not_removed", {{"error", removed.error().to_string()}});
  }

 private:
  static std::string path_of(const std::string& name) { return "/run/netns/" + name; }
  std::string namespace_of(std::uint32_t slot) const { return prefix_ + std::to_string(slot); }

  NetworkLease lease_of(std::uint32_t slot) const {
    return {slot, path_of(namespace_of(slot)), fmt::format("sandbox{}", slot), address(slot, 1), address(slot, 2)};
  }

  Result<> configure(const NetworkLease& lease) {
    CRETO_TRY(admit(lease));
    CRETO_TRY(
        ip(gateway_,
           fmt::format("link add {0} type veth peer name eth0 netns {1}\naddr add {2}/30 dev {0}\nlink set {0} up\n",
                       lease.interface, namespace_of(lease.slot), lease.host_address)));
    return ip(namespace_of(lease.slot),
              fmt::format("link set lo up\naddr add {}/30 dev eth0\nlink set eth0 up\nroute add default via {}\n",
                          lease.guest_address, lease.host_address));
  }

  Result<> admit(const NetworkLease& lease) {
    return nft(
        fmt::format("add element inet egress sandboxes {{ \"{}\" . {} }}\n", lease.interface, lease.guest_address));
  }

  /// Leaves the thread in the gateway.
  Result<GatewaySockets> open_sockets_here() const {
    const Fd gateway(::open(path_of(gateway_).c_str(), O_RDONLY | O_CLOEXEC));
    if (!gateway.valid() || ::setns(gateway.get(), CLONE_NEWNET) != 0)
      return system_error("cannot enter the sandboxes' gateway");
    GatewaySockets sockets{.tcp = Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)),
                           .dns = Fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0))};
    const int on = 1;
    // Connections of an earlier process may still be closing.
    ::setsockopt(sockets.tcp.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    ::setsockopt(sockets.dns.get(), IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
    for (const auto& [fd, port] : {std::pair(sockets.tcp.get(), tcp_port), std::pair(sockets.dns.get(), dns_port)}) {
      sockaddr_in any{};
      any.sin_family = AF_INET;
      any.sin_port = htons(port);
      any.sin_addr.s_addr = htonl(INADDR_ANY);
      if (::bind(fd, reinterpret_cast<sockaddr*>(&any), sizeof any) != 0)
        return system_error("cannot listen in the sandboxes' gateway; does another server run on this directory?");
    }
    if (::listen(sockets.tcp.get(), 128) != 0) return system_error("cannot listen in the sandboxes' gateway");
    return sockets;
  }

  static Result<> ip(const std::string& name_space, std::string batch) {
    CRETO_TRY(run_checked({.argv = {"ip", "-n", name_space, "-batch", "-"}, .input = std::move(batch)}));
    return {};
  }

  Result<> nft(std::string rules) const {
    CRETO_TRY(
        run_checked({.argv = {"nsenter", "--net=" + path_of(gateway_), "nft", "-f", "-"}, .input = std::move(rules)}));
    return {};
  }

  const std::string prefix_;
  const std::string gateway_;
  Telemetry& telemetry_;
  std::atomic<std::uint32_t> next_slot_ = 0;
};

}  // namespace

Result<std::unique_ptr<SandboxNetwork>> SandboxNetwork::create(std::string instance, Telemetry& telemetry) {
  auto network = std::make_unique<Network>(std::move(instance), telemetry);
  if (auto opened = network->open_gateway(); !opened) {
    return Error(Product::runtime, opened.error().kind(),
                 "sandbox networks need root, iproute2 and nftables with nat support: cannot set up the gateway")
        .with_cause(std::move(opened).error());
  }
  return network;
}

}  // namespace creto::runtime
