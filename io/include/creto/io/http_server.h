#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "creto/common/result.h"
#include "creto/common/telemetry.h"
#include "creto/common/time.h"
#include "creto/io/tls.h"

namespace creto::http {

using Headers = std::vector<std::pair<std::string, std::string>>;

struct Request {
  std::string method = {};  ///< "GET", ...
  std::string target = {};  ///< as received: "/v1/agents?limit=3"
  Headers headers = {};     ///< names in lower case, in the order received
  std::string body = {};
  std::string peer = {};                    ///< "127.0.0.1:40312", or "unix"
  std::vector<std::string> peer_uris = {};  ///< URI SANs of a client certificate that was verified

  /// Without the query, not decoded.
  std::string_view path() const { return std::string_view(target).substr(0, target.find('?')); }
  /// The first header of that name (in lower case), or empty.
  std::string_view header(std::string_view name) const;
  /// The decoded value of the query's first `name`; none where it is absent or the query malformed.
  std::optional<std::string> query(std::string_view name) const;
  /// Every query parameter, decoded, in order. Errors: invalid_input for a stray '%'.
  Result<std::vector<std::pair<std::string, std::string>>> query_parameters() const;
};

struct Response {
  int status = 200;
  Headers headers = {};  ///< without Content-Length
  std::string body = {};

  static Response json(int status, std::string body) {
    return Response{status, {{"Content-Type", "application/json"}}, std::move(body)};
  }
  static Response text(int status, std::string body) {
    return Response{status, {{"Content-Type", "text/plain; charset=utf-8"}}, std::move(body)};
  }
};

/// The error as EnablementError JSON with its HTTP status (C1, C2) and, where there is one, Retry-After.
Response error_response(const Error& error);

/// The HTTP status of an error; total.
int to_http(const Error& error);

/// EnablementError (001 §8.2): {code, kind, message, product, category, context, caused_by, retryable, retry_after_ms,
/// trace_id}. `max_depth` bounds the chain of causes that is read.
std::string error_to_json(const Error& error);
/// None where it is not one. (A Result<Error> could not tell the two apart.)
std::optional<Error> error_from_json(std::string_view json, std::size_t max_depth = 16);

/// Percent-decoding; `plus_is_space` as in a query. Errors: invalid_input for a stray '%'.
Result<std::string> percent_decode(std::string_view text, bool plus_is_space);
std::string percent_encode(std::string_view text);

/// Runs on a worker thread; may block. An exception is answered as 500 and logged.
using Handler = std::function<Response(const Request&)>;

/// May be called once, from any thread, also after the client went away; unanswered when dropped, it answers 500.
using Respond = std::function<void(Response)>;
/// Runs on an I/O thread and must not block: the way of a long poll that holds no thread.
using AsyncHandler = std::function<void(Request, Respond)>;

struct ServerOptions {
  std::string address = "127.0.0.1";       ///< where `port` is set
  std::optional<std::uint16_t> port = {};  ///< 0: any free one, see `Server::port()`
  std::string unix_path = {};              ///< alone or beside the port; replaced if stale, removed at the end
  std::uint32_t unix_mode = 0600;
  std::optional<tls::Identity> tls = {};    ///< for the port; none: plain text
  bool require_client_certificate = false;  ///< with `tls.authority`; otherwise one is asked for and optional

  std::size_t io_threads = 1;
  std::size_t workers = 8;  ///< for Handler; further requests wait, over `queue_max` they get 503
  std::size_t queue_max = 256;
  std::size_t connections_max = 1024;
  std::size_t body_bytes_max = 4 << 20;  ///< above: 413
  /// Asked with what came before the body, on an I/O thread: another limit for this one, or 0.
  std::function<std::size_t(const Request& head)> body_bytes_of = {};
  std::size_t header_bytes_max = 32 << 10;  ///< above: 431
  Nanos read_timeout = std::chrono::seconds(30);
  Nanos handler_timeout = std::chrono::minutes(10);  ///< then 504; the handler's answer is dropped
};

/// An HTTP/1.1 server with keep-alive, over TCP (with TLS 1.3) and unix sockets.
class Server {
 public:
  /// Listening when it returns. Errors: unavailable naming the address; invalid_input for a bad certificate.
  static Result<std::unique_ptr<Server>> start(ServerOptions options, Handler handler, Telemetry& telemetry);
  static Result<std::unique_ptr<Server>> start_async(ServerOptions options, AsyncHandler handler, Telemetry& telemetry);

  virtual ~Server() = default;             ///< stops
  virtual std::uint16_t port() const = 0;  ///< 0 without one
  /// Accepts no more, lets running requests finish until `grace` has passed, closes. Idempotent.
  virtual void stop(Nanos grace = std::chrono::seconds(5)) = 0;
};

}  // namespace creto::http
