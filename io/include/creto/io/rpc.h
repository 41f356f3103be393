#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/health.h"
#include "creto/common/result.h"
#include "creto/common/telemetry.h"
#include "creto/io/http_server.h"
#include "creto/io/tls.h"

namespace google::protobuf {
class Message;
}

/// One dispatcher serves every method of every service, over gRPC and over REST/JSON alike (architecture, decision 2).
///
/// A module registers its methods once, in `<module>/rpc/<module>_handlers.cc`:
///
///   void register_nhi(rpc::Dispatcher& dispatcher, Nhi& nhi) {
///     auto service = dispatcher.service("creto.nhi.v1.NhiService");
///     service.unary<v1::GetAgentRequest, v1::Agent>(
///         "GetAgent", {.idempotent = true, .resource = [](const auto& r) { return rpc::Resource{"Agent",
///         r.identity()}; }},
///         [&nhi](const Context& ctx, const v1::GetAgentRequest& request) -> Result<v1::Agent> {
///           auto identity = CRETO_TRY(from_proto(request.identity()));
///           auto agent = CRETO_TRY(nhi.get(ctx, identity));
///           return to_proto(agent);
///         });
///   }
///
/// By the time a handler runs, the dispatcher has checked size and shape of the request, established `ctx` (caller,
/// delegation chain, deadline, trace, idempotency key and request hash), asked the Authorizer, and it will map the
/// error, count, log and audit. REST paths come from `google.api.http` in the proto; a method without one is at `POST
/// /<package.Service>/<Method>`.
namespace creto::rpc {

/// What a call is about, in Cedar's words. Empty: the organization.
struct Resource {
  std::string type = {};
  std::string id = {};
};

/// What a caller showed.
struct Credentials {
  std::string bearer = {};                         ///< from `authorization: Bearer …`
  std::vector<std::string> certificate_uris = {};  ///< URI SANs of a client certificate whose chain was verified
  std::string on_behalf_of = {};                   ///< from `creto-on-behalf-of`: whom a caller acts for; to be
                                                   ///< believed of services alone
  std::string peer = {};                           ///< transport address, for the record
};

struct Caller {
  Identity identity;
  DelegationChain chain;  ///< ends with `identity`
  std::string org;
};

/// Who is calling. Thread-safe, on the way of every call. Errors: unauthenticated, expired.
class Authenticator {
 public:
  virtual ~Authenticator() = default;
  virtual Result<Caller> authenticate(const Context& ctx, const Credentials& credentials) = 0;
};

/// May they. Thread-safe. Errors: permission_denied, oversight_required, quota_exceeded, rate_limited; whatever else it
/// returns refuses the call too.
class Authorizer {
 public:
  virtual ~Authorizer() = default;
  virtual Result<> authorize(const Context& ctx, std::string_view action, const Resource& resource) = 0;
};

struct CallRecord {
  std::string_view method;  ///< "/creto.nhi.v1.NhiService/GetAgent"
  std::string_view action;  ///< "nhi.get_agent"
  Resource resource;
  const Error* error;  ///< null: it succeeded
  std::string_view peer;
};

/// Writes down calls that no service writes down itself: refused ones, and those of methods with `audited`. State
/// changes are recorded by their service in the transaction of the change. Thread-safe. When it fails, an audited call
/// fails.
class Auditor {
 public:
  virtual ~Auditor() = default;
  virtual Result<> record(const Context& ctx, const CallRecord& record) = 0;
};

enum class Access : std::uint8_t {
  authorized,     ///< authenticated, and the Authorizer says yes
  authenticated,  ///< any identity; the service decides by itself what it may see
  anonymous,      ///< anybody: health, token resolution, public keys
};

template <class Req>
struct Rule {
  Access access = Access::authorized;
  std::string action = {};  ///< default: "<module>.<method_in_snake_case>"
  bool audited = false;     ///< see Auditor
  /// Runs on the transport's thread, in a scope of io::NoWaiting: memory only, microseconds. Where somebody gives up
  /// there, the handler runs again, on a thread for those that wait. Unary alone, and not `audited`; refusals are
  /// audited there too.
  bool inline_call = false;
  bool idempotent = false;  ///< reads, and writes that are safe to repeat: documented in OpenAPI
  std::function<Resource(const Req&)> resource = {};
  std::size_t request_bytes_max = 0;  ///< instead of the server's; the body of REST counts as it comes
  /// Instead of protobuf's JSON, for what comes over REST too often for it, or in headers. Of a unary method whose body
  /// is a list.
  std::function<Result<>(const http::Request& request, Req&)> read_body = {};
  std::function<Result<std::string>(const google::protobuf::Message& response)> write_body = {};
};

/// The answer of a deferred call. Copyable; the first call counts, from any thread. Dropped unanswered: `internal`.
template <class Res>
class Reply {
 public:
  explicit Reply(std::function<void(Result<>, const google::protobuf::Message*)> send) : send_(std::move(send)) {}
  void operator()(Result<Res> result) const {
    if (result) {
      send_({}, &*result);
    } else {
      send_(std::move(result).error(), nullptr);
    }
  }

 private:
  std::function<void(Result<>, const google::protobuf::Message*)> send_;
};

namespace detail {

class Outlet {
 public:
  virtual ~Outlet() = default;
  virtual bool send(const google::protobuf::Message& message) = 0;
  virtual void finish(Result<> result) = 0;
  virtual void on_closed(std::function<void()> callback) = 0;
  virtual bool closed() const = 0;
};

using Write = std::function<void(Result<>, const google::protobuf::Message*)>;

struct Method {
  std::string service;  ///< "creto.nhi.v1.NhiService"
  std::string name;     ///< "GetAgent"
  Access access;
  std::string action;
  bool audited;
  bool inline_call;
  bool idempotent;
  std::size_t request_bytes_max;             ///< 0: the server's
  const google::protobuf::Message* request;  ///< prototypes
  const google::protobuf::Message* response;
  std::function<Resource(const google::protobuf::Message&)> resource;
  std::function<Result<>(const http::Request&, google::protobuf::Message&)> read_body;
  std::function<Result<std::string>(const google::protobuf::Message&)> write_body;
  /// One of these. `write` may be called later, from another thread, only by `deferred`.
  std::function<void(const Context&, google::protobuf::Message&, const Write&)> unary;
  std::function<void(const Context&, const google::protobuf::Message&, Write)> deferred;
  std::function<void(const Context&, const google::protobuf::Message&, std::shared_ptr<Outlet>)> stream;
  /// Of an exchange, beside `unary`: the message that says why another was refused.
  std::function<std::unique_ptr<google::protobuf::Message>(const Error&)> refusal;
};

}  // namespace detail

/// The sending end of a server stream. Copyable; thread-safe. Messages are queued up to the dispatcher's limit, so that
/// an idle or slow reader holds no thread.
template <class Res>
class Stream {
 public:
  explicit Stream(std::shared_ptr<detail::Outlet> outlet) : outlet_(std::move(outlet)) {}
  /// False once the reader is gone or too far behind; then stop.
  bool send(const Res& message) const { return outlet_->send(message); }
  /// Ends the stream. Idempotent.
  void finish(Result<> result = {}) const { outlet_->finish(std::move(result)); }
  /// Called once, when the reader is gone or the stream has ended; at once if that was before.
  void on_closed(std::function<void()> callback) const { outlet_->on_closed(std::move(callback)); }
  bool closed() const { return outlet_->closed(); }

 private:
  std::shared_ptr<detail::Outlet> outlet_;
};

class Service;

struct Ports {
  Authenticator& authenticator;
  Authorizer& authorizer;
  Auditor& auditor;
  Telemetry& telemetry;
  const Clock& clock;
};

struct DispatcherOptions {
  std::size_t workers = 8;
  std::size_t waiting = 8;                  ///< threads for calls that have to wait before it is known whether they may
  std::size_t queue_max = 1024;             ///< calls waiting for one of either; more are refused with `unavailable`
  std::size_t request_bytes_max = 8 << 20;  ///< 1 KiB to 128 MiB; of methods without a limit of their own
  std::size_t json_depth_max = 64;
  std::size_t stream_queue_max = 1024;  ///< messages a slow reader may be behind
  std::size_t exchange_window = 8;      ///< messages of one exchange whose answers are not sent; more are not read
  Nanos default_timeout = std::chrono::seconds(30);
  Nanos timeout_max = std::chrono::minutes(10);  ///< a longer deadline is cut to this
};

/// Calls run on its workers. Whether a call may be is found out in a scope of io::NoWaiting; where somebody gives up
/// there, it is found out again on a thread apart, so that who is slow to say so keeps no worker from other calls.
class Dispatcher {
 public:
  static std::unique_ptr<Dispatcher> create(Ports ports, DispatcherOptions options = {});
  virtual ~Dispatcher() = default;

  /// `name` is the full name in the proto, whose generated code must be linked. Register everything before serving.
  Service service(std::string name);

  /// REST: for http::Server::start_async. Also serves /openapi.json; 404 for a path that belongs to no method. Streams
  /// are for gRPC alone.
  virtual http::AsyncHandler rest() = 0;
  /// How large a request's body may be, by its first line and headers: for http::ServerOptions::body_bytes_of. 0: as
  /// others.
  virtual std::size_t rest_body_bytes_max(const http::Request& head) const = 0;
  /// REST requests below `prefix` ("/v1/files/") go to `handler`, on a worker, before any method; whether they are
  /// permitted is for the handler to see. Before serving.
  virtual void mount(std::string prefix, http::Handler handler) = 0;
  /// OpenAPI 3.0 of everything registered.
  virtual std::string openapi() const = 0;
  /// Lets running calls finish, then refuses with `unavailable`. Idempotent.
  virtual void stop() = 0;

 private:
  friend class Service;
  virtual void add(detail::Method method) = 0;
};

class Service {
 public:
  /// `handler`: Result<Res>(const Context&, Req&), or with a `const Req&`: the request is his, to take apart.
  template <class Req, class Res, class F>
  void unary(std::string_view method, Rule<Req> rule, F handler) {
    auto m = describe<Req, Res>(method, std::move(rule));
    m.unary = answering<Req, Res>(std::move(handler));
    dispatcher_.add(std::move(m));
  }

  /// `handler`: void(const Context&, const Req&, Reply<Res>): answers later, and holds no thread while it waits.
  template <class Req, class Res, class F>
  void deferred(std::string_view method, Rule<Req> rule, F handler) {
    auto m = describe<Req, Res>(method, std::move(rule));
    m.deferred = [handler = std::move(handler)](const Context& ctx, const google::protobuf::Message& request,
                                                detail::Write write) {
      handler(ctx, static_cast<const Req&>(request), Reply<Res>(std::move(write)));
    };
    dispatcher_.add(std::move(m));
  }

  /// `handler`: void(const Context&, const Req&, Stream<Res>). Not over REST.
  template <class Req, class Res, class F>
  void stream(std::string_view method, Rule<Req> rule, F handler) {
    auto m = describe<Req, Res>(method, std::move(rule));
    m.stream = [handler = std::move(handler)](const Context& ctx, const google::protobuf::Message& request,
                                              std::shared_ptr<detail::Outlet> outlet) {
      handler(ctx, static_cast<const Req&>(request), Stream<Res>(std::move(outlet)));
    };
    dispatcher_.add(std::move(m));
  }

  /// A call of many messages, each with an answer, sent in the order of the messages. Every message is a call of its
  /// own: it is authenticated, authorized, counted and has its deadline by itself, so that a caller who is revoked is
  /// refused at the next one. Several run at once, in no order. Not over REST; has no idempotency key.
  ///
  /// `handler`: as of `unary`. What it refuses is answered with `refusal`: Res(const Error&),
  /// and the exchange goes on. A message that does not come as far as the handler ends it with its error, once those
  /// before it are answered. Where the connection breaks, what was not answered may have happened or not.
  template <class Req, class Res, class F, class G>
  void exchange(std::string_view method, Rule<Req> rule, F handler, G refusal) {
    auto m = describe<Req, Res>(method, std::move(rule));
    m.unary = answering<Req, Res>(std::move(handler));
    m.refusal = [refusal = std::move(refusal)](const Error& error) -> std::unique_ptr<google::protobuf::Message> {
      return std::make_unique<Res>(refusal(error));
    };
    dispatcher_.add(std::move(m));
  }

 private:
  friend class Dispatcher;
  Service(Dispatcher& dispatcher, std::string name) : dispatcher_(dispatcher), name_(std::move(name)) {}

  template <class Req, class Res, class F>
  static auto answering(F handler) {
    return [handler = std::move(handler)](const Context& ctx, google::protobuf::Message& request,
                                          const detail::Write& write) {
      Result<Res> result = handler(ctx, static_cast<Req&>(request));
      if (result) {
        write({}, &*result);
      } else {
        write(std::move(result).error(), nullptr);
      }
    };
  }

  template <class Req, class Res>
  detail::Method describe(std::string_view method, Rule<Req> rule) const {
    detail::Method m;
    m.service = name_;
    m.name = method;
    m.access = rule.access;
    m.action = std::move(rule.action);
    m.audited = rule.audited;
    m.inline_call = rule.inline_call;
    m.idempotent = rule.idempotent;
    m.request_bytes_max = rule.request_bytes_max;
    m.request = &Req::default_instance();
    m.response = &Res::default_instance();
    if (rule.resource) {
      m.resource = [extract = std::move(rule.resource)](const google::protobuf::Message& request) {
        return extract(static_cast<const Req&>(request));
      };
    }
    if (rule.read_body) {
      m.read_body = [read = std::move(rule.read_body)](const http::Request& http, google::protobuf::Message& request) {
        return read(http, static_cast<Req&>(request));
      };
    }
    m.write_body = std::move(rule.write_body);
    return m;
  }

  Dispatcher& dispatcher_;
  std::string name_;
};

struct GrpcServerOptions {
  std::string address = "127.0.0.1";
  std::optional<std::uint16_t> port = {};     ///< 0: any free one
  std::string unix_path = {};                 ///< alone or beside the port
  std::optional<tls::Identity> tls = {};      ///< for the port; none: plain text
  std::function<HealthStatus()> health = {};  ///< behind grpc.health.v1.Health
};

/// Serves what is registered in `dispatcher`, with reflection and health beside it.
class GrpcServer {
 public:
  /// Errors: unavailable naming the address; invalid_input for a bad certificate.
  static Result<std::unique_ptr<GrpcServer>> start(Dispatcher& dispatcher, const GrpcServerOptions& options);
  virtual ~GrpcServer() = default;  ///< stops
  virtual std::uint16_t port() const = 0;
  /// Takes no more calls, answers what came before of exchanges and ends them, and lets calls finish for `grace`.
  virtual void stop(Nanos grace = std::chrono::seconds(5)) = 0;
};

}  // namespace creto::rpc
