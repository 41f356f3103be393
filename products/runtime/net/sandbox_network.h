#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "creto/common/result.h"
#include "creto/common/telemetry.h"
#include "driver/process.h"

namespace creto::runtime {

/// One sandbox' way out: a network namespace with one interface, whose other end is in the gateway. Used once, because
/// gVisor takes the address off the interface.
struct NetworkLease {
  std::uint32_t slot = 0;
  std::string namespace_path;  ///< "/run/netns/…"
  std::string interface;       ///< our end, in the gateway
  std::string host_address;    ///< also the sandbox' name server
  std::string guest_address;   ///< what the sandbox' packets come from; others are dropped
};

/// Where everything arrives that a sandbox may send.
struct GatewaySockets {
  Fd tcp;  ///< listens; SO_ORIGINAL_DST of a connection says where it was meant to go
  Fd dns;  ///< UDP; IP_PKTINFO says which address was asked
};

/// The sandboxes of one installation and the gateway they all end in: a network namespace without any way on, in which
/// nothing listens but the two sockets of `open_sockets`. TCP to ports 80 and 443 and DNS arrive there; whatever else
/// is refused. The rules stand in the gateway, where nothing inside a sandbox can go around them. The machine's own
/// network has no part in it: its firewall does not matter here, and what a killed server leaves behind does not matter
/// there. Thread-safe.
///
/// Subnet: 198.18.0.0/15, set aside for such uses by RFC 2544; /30 per sandbox.
class SandboxNetwork {
 public:
  /// `instance`: [a-z0-9]{1,12}, tells installations on one machine apart. A gateway that an earlier process left is
  /// taken over.
  /// Errors: permission_denied or unavailable, naming the tool or privilege that is missing.
  static Result<std::unique_ptr<SandboxNetwork>> create(std::string instance, Telemetry& telemetry);
  virtual ~SandboxNetwork() = default;  ///< leases and gateway stay, for a later process to take over

  /// Errors: unavailable where another process has them.
  virtual Result<GatewaySockets> open_sockets() = 0;
  virtual Result<NetworkLease> acquire() = 0;
  virtual void release(const NetworkLease& lease) = 0;  ///< idempotent
  /// A lease of an earlier process. Errors: not_found.
  virtual Result<NetworkLease> adopt(std::uint32_t slot) = 0;
  /// Every lease of this instance that exists, also those of earlier processes.
  virtual std::vector<NetworkLease> leases() = 0;
  /// Also the gateway. Requires: every lease released.
  virtual void remove() = 0;
};

}  // namespace creto::runtime
