#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/id.h"
#include "creto/common/result.h"
#include "creto/common/telemetry.h"
#include "net/sandbox_network.h"

namespace creto::runtime {

/// Where a sandbox wants to go.
struct EgressTarget {
  SandboxId sandbox;
  std::string host;  ///< the name it looked up, or the address it used without looking one up
  std::uint16_t port = 0;
  std::string text() const;  ///< "api.example:443"
};

struct EgressClosed {
  EgressTarget target;
  std::uint64_t bytes_out = 0;  ///< from the sandbox
  std::uint64_t bytes_in = 0;
};

struct EgressOptions {
  /// Names that are not asked of DNS: "rates.example" to "127.0.0.1:8123". The port replaces the one asked for.
  std::map<std::string, std::string> static_hosts;
  std::size_t connections_max = 256;
  std::size_t connections_per_sandbox_max = 32;
  std::size_t names_per_sandbox_max = 1024;  ///< a sandbox can look up that many different names
  Nanos greeting_timeout = std::chrono::seconds(5);
  Nanos connect_timeout = std::chrono::seconds(10);
  Nanos idle_timeout = std::chrono::minutes(5);
};

/// The one way out of sandboxes: connections that arrive in the gateway. Names are given addresses of our own
/// (198.19.0.0/16), different for each sandbox, so the proxy knows which name a connection means without trusting what
/// is said in it; nothing of a lookup leaves this machine. A TLS server name or HTTP host that says otherwise ends the
/// connection.
///
/// A refused connection is reset. Thread-safe.
class EgressProxy {
 public:
  /// Decides on a thread of the connection and may block a little. An error refuses.
  using Decide = std::function<Result<>(const EgressTarget&)>;
  using Closed = std::function<void(const EgressClosed&)>;

  static Result<std::unique_ptr<EgressProxy>> create(EgressOptions options, GatewaySockets sockets, Decide decide,
                                                     Closed closed, Telemetry& telemetry);
  virtual ~EgressProxy() = default;  ///< ends every connection

  /// From now on packets from `guest_address` are this sandbox'.
  virtual void admit(const std::string& guest_address, const SandboxId& sandbox) = 0;
  /// Ends its connections; returns when `closed` has been called for each.
  virtual void dismiss(const SandboxId& sandbox) = 0;
};

/// Pure parsers of what a sandbox sends; for the proxy and its fuzzers.
namespace egress {

struct Peek {
  enum class State : std::uint8_t { need_more, none, found } state = State::need_more;
  std::string host;  ///< lower case, without port
};
/// The server name in a TLS ClientHello. `none`: not TLS, or no name.
Peek tls_server_name(std::string_view bytes);
/// The Host header of an HTTP/1 request. `none`: not HTTP, or no host. Several are joined by commas, which is no host's
/// name: somebody is to be confused.
Peek http_host(std::string_view bytes);

struct DnsQuestion {
  std::string name;        ///< lower case, without the last dot
  std::uint16_t type = 0;  ///< 1: A
  std::size_t end = 0;     ///< behind the question
};
std::optional<DnsQuestion> dns_question(std::string_view packet);
/// The answer to `packet`: `ipv4` (network order) where given, else no data (or a failure).
std::string dns_answer(std::string_view packet, const DnsQuestion& question, std::optional<std::uint32_t> ipv4,
                       bool failed);

/// [a-z0-9_-] labels joined by dots, 253 characters; or an IPv4 address.
bool is_host_name(std::string_view name);

}  // namespace egress
}  // namespace creto::runtime
