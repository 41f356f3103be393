#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "creto/common/circuit_breaker.h"
#include "creto/common/context.h"
#include "creto/common/result.h"
#include "creto/common/retry.h"
#include "creto/io/tls.h"

namespace google::protobuf {
class Message;
}

namespace creto::rpc {

struct ChannelOptions {
  std::string endpoint = {};                 ///< "host:port" or "unix:/path"
  std::optional<tls::Identity> tls = {};     ///< none: plain text
  std::string server_name = {};              ///< checked in the server's certificate instead of the endpoint's host
  std::function<std::string()> bearer = {};  ///< asked before each call; empty result: none sent
  bool forward_caller = false;               ///< a service's channel: sends `ctx.caller` as the one it acts for
  Nanos timeout = std::chrono::seconds(10);  ///< of one attempt; the context's deadline also holds
  std::uint32_t attempts_max = 3;            ///< for calls that are safe to repeat and fail as transient
  std::size_t message_bytes_max = 128 << 20;
  CircuitBreakerOptions breaker = {};
};

struct CallOptions {
  bool idempotent = false;  ///< safe to repeat: a read, or `ctx.idempotency_key` is set
};

/// A connection to a dispatcher elsewhere; connects when first used. Thread-safe.
///
/// Errors: those of the remote service as they were made there, with code, causes and retry delay; unavailable or
/// timeout where it was not reached (then the outcome is unknown).
class Channel {
 public:
  static Result<std::shared_ptr<Channel>> connect(ChannelOptions options, const Clock& clock);
  virtual ~Channel() = default;

  /// `method`: "/creto.nhi.v1.NhiService/GetAgent". Blocks until answered or `ctx.deadline`.
  template <class Req, class Res>
  Result<Res> call(const Context& ctx, std::string_view method, const Req& request, CallOptions options = {}) {
    Res response;
    auto done = call_message(ctx, method, request, response, options);
    if (!done) return std::move(done).error();
    return response;
  }

  /// Reads a server stream until it ends or `each` returns false.
  template <class Res, class Req, class F>
  Result<> stream(const Context& ctx, std::string_view method, const Req& request, F each) {
    Res message;
    return stream_messages(ctx, method, request, message, [&] { return each(static_cast<const Res&>(message)); });
  }

  /// Sends the messages that `next` puts into its argument until that returns false, and gives their answers to `each`,
  /// in the order of the messages, until it returns false. Several are under way at once. `each` runs on this thread,
  /// `next` on another; returns when neither is running. Errors: what ended the exchange early. Messages that were not
  /// answered then may have had their effect or not.
  template <class Req, class Res, class N, class F>
  Result<> exchange(const Context& ctx, std::string_view method, N next, F each) {
    Req request;
    Res response;
    return exchange_messages(
        ctx, method, request, [&] { return next(request); }, response,
        [&] { return each(static_cast<const Res&>(response)); });
  }

  virtual Result<> call_message(const Context& ctx, std::string_view method, const google::protobuf::Message& request,
                                google::protobuf::Message& response, CallOptions options) = 0;
  virtual Result<> stream_messages(const Context& ctx, std::string_view method,
                                   const google::protobuf::Message& request, google::protobuf::Message& message,
                                   const std::function<bool()>& each) = 0;
  virtual Result<> exchange_messages(const Context& ctx, std::string_view method,
                                     const google::protobuf::Message& request, const std::function<bool()>& next,
                                     google::protobuf::Message& response, const std::function<bool()>& each) = 0;
};

}  // namespace creto::rpc
