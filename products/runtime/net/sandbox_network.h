#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "creto/common/result.h"
#include "creto/common/telemetry.h"

namespace creto::runtime {

/// One sandbox' way out: a network namespace with one interface, whose other end is ours. Used once, because gVisor
/// takes the address off the interface.
struct NetworkLease {
  std::uint32_t slot = 0;
  std::string namespace_path;  ///< "/run/netns/…"
  std::string interface;       ///< our end
  std::string host_address;    ///< also the sandbox' name server
  std::string guest_address;   ///< what the sandbox' packets come from; others are dropped
};

struct NetworkOptions {
  std::string instance;          ///< [a-z0-9]{1,12}: tells installations on one machine apart
  std::uint16_t proxy_port = 0;  ///< where redirected TCP arrives
  std::uint16_t dns_port = 0;    ///< where redirected DNS arrives
};

/// Network namespaces with everything dropped but TCP 80 and 443, which go to the egress proxy, and DNS, which goes to
/// our stub. The rules stand on our end of the pair, where nothing inside the sandbox can go around them. Thread-safe.
///
/// Subnet: 198.18.0.0/15, set aside for such uses by RFC 2544; /30 per sandbox.
class SandboxNetwork {
 public:
  /// Errors: permission_denied or unavailable, naming the tool or privilege that is missing.
  static Result<std::unique_ptr<SandboxNetwork>> create(NetworkOptions options, Telemetry& telemetry);
  virtual ~SandboxNetwork() = default;  ///< leases and rules stay, for a later process to take over

  virtual Result<NetworkLease> acquire() = 0;
  virtual void release(const NetworkLease& lease) = 0;  ///< idempotent
  /// A lease of an earlier process. Errors: not_found.
  virtual Result<NetworkLease> adopt(std::uint32_t slot) = 0;
  /// Every lease of this instance that exists, also those of earlier processes.
  virtual std::vector<NetworkLease> leases() = 0;
  /// Also the rules. Requires: every lease released.
  virtual void remove_rules() = 0;
};

}  // namespace creto::runtime
