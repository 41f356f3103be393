#include "net/sandbox_network.h"

#include <fmt/format.h>

#include <filesystem>
#include <mutex>
#include <random>

#include "driver/process.h"

namespace creto::runtime {
namespace {

constexpr std::uint32_t slots = 16384;

std::string address(std::uint32_t slot, std::uint32_t host) {
  const std::uint32_t value = (198u << 24 | 18u << 16) + slot * 4 + host;
  return fmt::format("{}.{}.{}.{}", value >> 24, value >> 16 & 255, value >> 8 & 255, value & 255);
}

class Network final : public SandboxNetwork {
 public:
  Network(NetworkOptions options, Telemetry& telemetry)
      : options_(std::move(options)),
        telemetry_(telemetry),
        table_("creto_" + options_.instance),
        random_(std::random_device()()) {}  // tidy(random): which slot comes first is no secret

  /// Rebuilt whole, in one transaction of nftables: an earlier process' ports are not ours. Elements are put back by
  /// `adopt`.
  Result<> install_rules() {
    const auto rules = fmt::format(R"(
table inet {0}
delete table inet {0}
table inet {0} {{
  set sandboxes {{ type ifname . ipv4_addr; }}
  set interfaces {{ type ifname; }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname . ip saddr @sandboxes tcp dport {{ 80, 443 }} redirect to :{1}
    iifname . ip saddr @sandboxes udp dport 53 redirect to :{2}
    # Whatever else it tries comes here too, to be refused at once: where the host does not forward it would only be lost.
    iifname . ip saddr @sandboxes meta l4proto tcp redirect to :9
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname @interfaces goto from_sandbox
    tcp dport {1} drop
    udp dport {2} drop
  }}
  chain from_sandbox {{
    iifname . ip saddr @sandboxes tcp dport {1} accept
    iifname . ip saddr @sandboxes udp dport {2} accept
    counter goto refuse
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname @interfaces counter goto refuse
    oifname @interfaces counter drop
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    drop
  }}
}}
)",
                                   table_, options_.proxy_port, options_.dns_port);
    return nft(rules);
  }

  Result<NetworkLease> acquire() override {
    for (int attempt = 0; attempt < 64; ++attempt) {
      const auto slot = next_slot();
      const auto lease = lease_of(slot);
      // The name of our end is the lock on the slot, machine-wide: adding it twice fails.
      auto made = run_checked({.argv = {"ip", "netns", "add", namespace_of(slot)}});
      if (!made) {
        if (made.error().kind() == ErrorKind::not_found) return std::move(made).error();
        continue;
      }
      auto linked =
          ip({}, fmt::format("link add {0} type veth peer name eth0 netns {1}\n", lease.interface, namespace_of(slot)));
      if (!linked) {
        auto dropped = run_to_end({.argv = {"ip", "netns", "del", namespace_of(slot)}});
        if (linked.error().message().find("File exists") != std::string::npos && dropped) continue;
        return std::move(linked).error();
      }
      if (auto ready = configure(slot, lease); !ready) {
        release(lease);
        return std::move(ready).error();
      }
      return lease;
    }
    return Error(Product::runtime, ErrorKind::resource_exhausted, "no free network slot for a sandbox");
  }

  void release(const NetworkLease& lease) override {
    const auto element = fmt::format("\"{}\"", lease.interface);
    if (auto removed = nft(
            fmt::format("delete element inet {0} sandboxes {{ {1} . {2} }}\n", table_, element, lease.guest_address));
        !removed)
      telemetry_.log(LogLevel::debug, "runtime", "network_rule_absent", nullptr, {{"interface", lease.interface}});
    if (auto removed = nft(fmt::format("delete element inet {0} interfaces {{ {1} }}\n", table_, element)); !removed)
      telemetry_.log(LogLevel::debug, "runtime", "network_rule_absent", nullptr, {{"interface", lease.interface}});
    // Removing one end removes both; the namespace may be held a little longer by a dying sandbox.
    for (const auto& argv : {std::vector<std::string>{"ip", "link", "del", lease.interface},
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
    const auto prefix = namespace_of(0).substr(0, namespace_of(0).size() - 1);
    for (const auto& entry : std::filesystem::directory_iterator("/run/netns", ignored)) {
      const auto name = entry.path().filename().string();
      if (name.starts_with(prefix))
        found.push_back(lease_of(static_cast<std::uint32_t>(std::atoi(name.c_str() + prefix.size()))));
    }
    return found;
  }

  void remove_rules() override {
    if (auto removed = nft(fmt::format("delete table inet {}\n", table_)); !removed)
      telemetry_.warn("runtime", "network_rules_not_removed", {{"error", removed.error().to_string()}});
  }

 private:
  std::uint32_t next_slot() {
    const std::lock_guard lock(mutex_);
    return std::uniform_int_distribution<std::uint32_t>(0, slots - 1)(random_);
  }

  std::string namespace_of(std::uint32_t slot) const { return fmt::format("creto-{}-{}", options_.instance, slot); }

  NetworkLease lease_of(std::uint32_t slot) const {
    return {slot, "/run/netns/" + namespace_of(slot), fmt::format("creto{}h", slot), address(slot, 1),
            address(slot, 2)};
  }

  Result<> configure(std::uint32_t slot, const NetworkLease& lease) {
    CRETO_TRY(admit(lease));  // before the link is up: never a moment without rules
    CRETO_TRY(ip({}, fmt::format("addr add {}/30 dev {}\nlink set {} up\n", lease.host_address, lease.interface,
                                 lease.interface)));
    CRETO_TRY(ip(namespace_of(slot),
                 fmt::format("link set lo up\naddr add {}/30 dev eth0\nlink set eth0 up\nroute add default via {}\n",
                             lease.guest_address, lease.host_address)));
    return {};
  }

  Result<> admit(const NetworkLease& lease) {
    return nft(fmt::format(
        "add element inet {0} interfaces {{ \"{1}\" }}\nadd element inet {0} sandboxes {{ \"{1}\" . {2} }}\n", table_,
        lease.interface, lease.guest_address));
  }

  static Result<> ip(const std::string& name_space, std::string batch) {
    Invocation call{.argv = {"ip"}, .input = std::move(batch)};
    if (!name_space.empty()) call.argv.insert(call.argv.end(), {"-n", name_space});
    call.argv.insert(call.argv.end(), {"-batch", "-"});
    CRETO_TRY(run_checked(call));
    return {};
  }

  static Result<> nft(std::string rules) {
    CRETO_TRY(run_checked({.argv = {"nft", "-f", "-"}, .input = std::move(rules)}));
    return {};
  }

  const NetworkOptions options_;
  Telemetry& telemetry_;
  const std::string table_;
  std::mutex mutex_;
  std::mt19937 random_;  // tidy(random-engine): as above
};

}  // namespace

Result<std::unique_ptr<SandboxNetwork>> SandboxNetwork::create(NetworkOptions options, Telemetry& telemetry) {
  auto network = std::make_unique<Network>(std::move(options), telemetry);
  if (auto installed = network->install_rules(); !installed) {
    return Error(Product::runtime, installed.error().kind(),
                 "sandbox networks need root, iproute2 and nftables with nat support: cannot install the egress rules")
        .with_cause(std::move(installed).error());
  }
  return network;
}

}  // namespace creto::runtime
