#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "creto/common/circuit_breaker.h"
#include "creto/common/context.h"
#include "creto/common/result.h"
#include "creto/io/http_server.h"

namespace creto::http {

struct ClientRequest {
  std::string method = "GET";
  std::string url = {};  ///< http:// or https://; other schemes are refused
  Headers headers = {};
  std::string body = {};
  std::string unix_path = {};                ///< connect here instead of to the url's host
  Nanos timeout = std::chrono::seconds(30);  ///< whole call; the context's deadline also holds
  Nanos connect_timeout = std::chrono::seconds(5);
  std::size_t body_bytes_max = 16 << 20;  ///< of the answer; above: too_large
  /// Also gets the body of an answer with status 200 piece by piece, as it arrives; false ends the call (cancelled).
  std::function<bool(std::string_view piece)> on_body = {};
  int redirects_max = 0;
  std::string authority_pem = {};    ///< whom to believe instead of the system's store
  std::string certificate_pem = {};  ///< our own, for mTLS
  std::string key_pem = {};
  bool refuse_private_addresses = false;  ///< for urls that came from outside: no loopback, private or link-local peer
};

/// One client keeps connections alive between calls. Thread-safe: each call takes a handle from a pool.
///
/// Each host (with its port, or the socket) has a circuit breaker: one that cannot be reached, does not answer within
/// the request's own timeout, or answers with 502, 503 or 504, is not called for a while after that has happened
/// several times in a row.
///
/// Errors: unavailable (no connection, TLS failure; or the circuit is open), timeout, cancelled, too_large,
/// invalid_input (a bad url). An answer of any HTTP status is a Response, not an Error.
class Client {
 public:
  static std::shared_ptr<Client> create(const Clock& clock, CircuitBreakerOptions breaker = {});
  virtual ~Client() = default;
  virtual Result<Response> send(const Context& ctx, const ClientRequest& request) = 0;
};

}  // namespace creto::http
