#include <fmt/format.h>
#include <google/protobuf/arena.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/message.h>
#include <openssl/evp.h>

#include <algorithm>
#include <random>
#include <utility>

#include "creto/common/assert.h"
#include "creto/io/no_waiting.h"
#include "rpc/call.h"
#include "rpc/errors.h"
#include "rpc/rest.h"

namespace creto::rpc {
namespace {

using google::protobuf::Message;

Error refuse(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

/// Why a call got no worker.
Error too_busy(bool stopped) {
  return refuse(ErrorKind::unavailable, stopped ? "the server is stopping" : "too many calls are waiting")
      .with_retry_after(std::chrono::seconds(1));
}

/// "creto.nhi.v1.NhiService" and "GetAgent" give "nhi.get_agent".
std::string default_action(std::string_view service, std::string_view method) {
  std::string action;
  if (service.starts_with("creto.")) {
    auto rest = service.substr(6);
    action = rest.substr(0, rest.find('.'));
  } else {
    action = service.substr(0, service.find('.'));
  }
  action += '.';
  for (std::size_t i = 0; i < method.size(); ++i) {
    char c = method[i];
    if (c >= 'A' && c <= 'Z') {
      if (i > 0) action += '_';
      c = static_cast<char>(c - 'A' + 'a');
    }
    action += c;
  }
  return action;
}

bool is_hex(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

std::string random_hex(std::size_t digits) {
  // Trace ids only have to be different, so no entropy is taken from the kernel per call.
  thread_local std::mt19937_64 generator{std::random_device{}()};
  std::string text;
  while (text.size() < digits) text += fmt::format("{:016x}", generator());
  text.resize(digits);
  return text;
}

/// A W3C traceparent; a malformed one is ignored as its specification says, and a new trace begins.
Trace trace_of(std::string_view header) {
  if (header.size() >= 55 && header[2] == '-' && header[35] == '-' && header[52] == '-' &&
      header.substr(0, 2) != "ff" && is_hex(header.substr(0, 2)) && is_hex(header.substr(3, 32)) &&
      is_hex(header.substr(36, 16)) && is_hex(header.substr(53, 2)) &&
      header.substr(3, 32).find_first_not_of('0') != header.npos)
    return Trace{std::string(header.substr(3, 32)), std::string(header.substr(36, 16)), (header[54] & 1) != 0};
  return Trace{random_hex(32), random_hex(16), false};
}

/// SHA3-256 over the method's name and the request in a form that is the same over gRPC and REST.
Hash256 request_hash(std::string_view method, const Message& request) {
  std::string bytes(method);
  bytes += '\n';
  {
    google::protobuf::io::StringOutputStream out(&bytes);
    google::protobuf::io::CodedOutputStream coded(&out);
    coded.SetSerializationDeterministic(true);
    request.SerializeWithCachedSizes((request.ByteSizeLong(), &coded));
  }
  Hash256 hash;
  unsigned size = 0;
  CRETO_ASSERT(EVP_Digest(bytes.data(), bytes.size(), hash.data(), &size, EVP_sha3_256(), nullptr) == 1);
  CRETO_ASSERT(size == hash.size());
  return hash;
}

}  // namespace

/// What is known of a call while it runs; owned by whoever will answer it.
struct DispatcherImpl::Running {
  std::shared_ptr<Call> call;
  Context ctx;
  Resource resource;
  std::string peer;
  Monotonic began;
  bool admitted = false;
  bool apart = false;                     ///< on a thread for those that wait
  io::NoWaiting* here = nullptr;          ///< null: it may wait
  std::optional<Error> refusal_to_audit;  ///< found where it must not wait; the audit log waits for a disk

  /// Who would have had to wait gave up: there is no answer yet.
  bool put_off() const { return refusal_to_audit || (here != nullptr && here->given_up()); }
};

std::unique_ptr<Dispatcher> Dispatcher::create(Ports ports, DispatcherOptions options) {
  return std::make_unique<DispatcherImpl>(ports, options);
}

Service Dispatcher::service(std::string name) { return Service(*this, std::move(name)); }

DispatcherImpl::DispatcherImpl(Ports ports, DispatcherOptions options)
    : ports_(ports),
      options_(options),
      router_(std::make_unique<Router>()),
      put_off_(ports.telemetry.counter("platform_rpc_calls_put_off_total",
                                       "Calls that had to wait before it was known whether they may be")),
      workers_(options.workers, options.queue_max),
      waiting_(options.waiting, options.queue_max) {}

DispatcherImpl::~DispatcherImpl() { stop(); }

void DispatcherImpl::stop() {
  stopped_ = true;
  waiting_.stop();  // those that may be are left to the workers
  workers_.stop();
}

std::size_t DispatcherImpl::rest_body_bytes_max(const http::Request& head) const {
  return router_->body_bytes_max(head);
}

http::AsyncHandler DispatcherImpl::rest() {
  return [this](http::Request request, http::Respond respond) {
    if (request.path() == "/openapi.json" && request.method == "GET")
      return respond(http::Response::json(200, openapi()));
    for (const auto& [prefix, handler] : mounts_)
      if (request.path().starts_with(prefix)) return serve(handler, std::move(request), std::move(respond));
    router_->serve(*this, std::move(request), std::move(respond));
  };
}

void DispatcherImpl::mount(std::string prefix, http::Handler handler) {
  mounts_.emplace_back(std::move(prefix), std::move(handler));
}

void DispatcherImpl::serve(const http::Handler& handler, http::Request request, http::Respond respond) {
  const bool taken = !stopped_ && workers_.submit([&handler, request = std::move(request), respond] {
    try {
      respond(handler(request));
    } catch (const std::exception& e) {
      respond(http::error_response(refuse(ErrorKind::internal, e.what())));
    }
  });
  if (!taken) respond(http::error_response(too_busy(stopped_)));
}

std::string DispatcherImpl::openapi() const { return make_openapi(entries_); }

void DispatcherImpl::add(detail::Method method) {
  auto entry = std::make_unique<Entry>();
  entry->full_name = fmt::format("/{}/{}", method.service, method.name);
  entry->descriptor = google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(
      fmt::format("{}.{}", method.service, method.name));
  // A method that its proto does not have, or with other messages, is a mistake of ours.
  CRETO_ASSERT(entry->descriptor != nullptr);
  CRETO_ASSERT(entry->descriptor->input_type() == method.request->GetDescriptor());
  CRETO_ASSERT(entry->descriptor->output_type() == method.response->GetDescriptor());
  CRETO_ASSERT(entry->descriptor->server_streaming() == (method.stream || method.refusal));
  CRETO_ASSERT(entry->descriptor->client_streaming() == static_cast<bool>(method.refusal));
  CRETO_ASSERT(!method.inline_call || (method.unary && !method.audited));
  for (const auto& other : entries_) CRETO_ASSERT(other->full_name != entry->full_name);
  if (method.action.empty()) method.action = default_action(method.service, method.name);
  entry->succeeded = &ports_.telemetry.counter("platform_rpc_calls_total", "Calls by method and outcome",
                                               {{"method", entry->full_name}, {"code", "OK"}});
  entry->seconds = &ports_.telemetry.histogram("platform_rpc_call_duration_seconds", "Time from receipt to answer",
                                               {{"method", entry->full_name}});
  entry->method = std::move(method);
  router_->add(*entry);
  entries_.push_back(std::move(entry));
}

void DispatcherImpl::dispatch(const Entry& entry, const std::shared_ptr<Call>& call) {
  auto running = std::make_shared<Running>();
  running->call = call;
  running->began = ports_.clock.monotonic();
  if (stopped_) return call->fail(too_busy(true));
  if (!entry.method.inline_call) return leave_to(workers_, entry, running, &DispatcherImpl::work);
  io::NoWaiting here;
  running->here = &here;
  run(entry, running);
  if (!running->put_off()) return;
  running->here = nullptr;
  put_off_.add();
  leave_to(waiting_, entry, running, &DispatcherImpl::wait);
}

void DispatcherImpl::leave_to(io::WorkerPool& pool, const Entry& entry, const std::shared_ptr<Running>& running,
                              void (DispatcherImpl::*next)(const Entry&, const std::shared_ptr<Running>&)) {
  if (!pool.submit([this, &entry, running, next] { (this->*next)(entry, running); }))
    running->call->fail(too_busy(stopped_));
}

void DispatcherImpl::work(const Entry& entry, const std::shared_ptr<Running>& running) {
  {
    io::NoWaiting here;
    running->here = &here;
    run(entry, running);
    if (!running->put_off()) return;
    running->here = nullptr;
  }
  if (running->refusal_to_audit) return run(entry, running);
  put_off_.add();
  leave_to(waiting_, entry, running, &DispatcherImpl::wait);
}

void DispatcherImpl::wait(const Entry& entry, const std::shared_ptr<Running>& running) {
  running->apart = true;
  run(entry, running);
}

Result<Context> DispatcherImpl::context_of(const Call& call, Credentials& credentials) const {
  Context ctx;
  ctx.trace = trace_of(call.metadata("traceparent"));
  ctx.deadline =
      ports_.clock.monotonic() + std::min(call.timeout().value_or(options_.default_timeout), options_.timeout_max);

  std::string_view key = call.metadata("creto-idempotency-key");
  if (key.empty()) key = call.metadata("idempotency-key");
  if (key.size() > 256 || !std::ranges::all_of(key, [](char c) { return c > ' ' && c < 0x7f; }))
    return refuse(ErrorKind::invalid_input,
                  "`Creto-Idempotency-Key` must be 1 to 256 printable ASCII characters without spaces")
        .with_trace(ctx.trace.trace_id);
  ctx.idempotency_key = key;

  std::string_view authorization = call.metadata("authorization");
  if (!authorization.empty()) {
    if (authorization.size() < 8 ||
        (authorization.substr(0, 7) != "Bearer " && authorization.substr(0, 7) != "bearer "))
      return refuse(ErrorKind::unauthenticated, "`Authorization` must be `Bearer <token>`")
          .with_trace(ctx.trace.trace_id);
    if (authorization.size() > 16 << 10)
      return refuse(ErrorKind::unauthenticated, "the bearer token is longer than 16 KiB")
          .with_trace(ctx.trace.trace_id);
    credentials.bearer = authorization.substr(7);
  }
  credentials.certificate_uris = call.certificate_uris();
  credentials.on_behalf_of = call.metadata("creto-on-behalf-of");
  credentials.peer = call.peer();
  return ctx;
}

/// Whether the caller may; else he has his answer.
bool DispatcherImpl::admit(const Entry& entry, Running& running, const Credentials& credentials,
                           const Message& request) {
  const detail::Method& method = entry.method;
  const auto fail = [&](const Error& error) {
    finish(entry, running, &error, nullptr);
    return false;
  };
  const bool shown = !credentials.bearer.empty() || !credentials.certificate_uris.empty();
  if (shown || method.access != Access::anonymous) {
    if (!shown)
      return fail(refuse(ErrorKind::unauthenticated, "neither a client certificate nor a bearer token was shown"));
    auto caller = ports_.authenticator.authenticate(running.ctx, credentials);
    if (!caller) return fail(caller.error());
    running.ctx.org = std::move(caller->org);
    running.ctx.caller = std::move(caller->identity);
    running.ctx.chain = std::move(caller->chain);
  }
  if (method.resource) running.resource = method.resource(request);
  if (method.access == Access::authorized) {
    auto may = ports_.authorizer.authorize(running.ctx, method.action, running.resource);
    if (!may) return fail(may.error());
  }
  running.admitted = !running.put_off();
  return true;
}

void DispatcherImpl::run(const Entry& entry, const std::shared_ptr<Running>& running) {
  const detail::Method& method = entry.method;
  const std::shared_ptr<Call>& call = running->call;
  auto fail = [&](const Error& error) { finish(entry, *running, &error, nullptr); };
  if (const auto refusal = std::exchange(running->refusal_to_audit, std::nullopt)) return fail(*refusal);

  // Who was let in on the transport's thread is not asked again on the worker's: he was counted and logged.
  Credentials credentials;
  if (!running->admitted) {
    auto ctx = context_of(*call, credentials);
    if (!ctx) return fail(ctx.error());
    running->ctx = std::move(*ctx);
    running->peer = credentials.peer;
  }
  if (method.refusal && !call->in_exchange())
    return fail(refuse(ErrorKind::invalid_input, "this method streams; call it over gRPC"));
  if (running->ctx.expired(ports_.clock))
    return fail(refuse(ErrorKind::timeout, "the caller's deadline passed before the call began"));

  alignas(8) char first_block[4096];
  google::protobuf::ArenaOptions arena_options;
  arena_options.initial_block = first_block;
  arena_options.initial_block_size = sizeof first_block;
  google::protobuf::Arena arena(arena_options);
  Message* request = method.request->New(&arena);

  try {
    if (auto parsed = call->parse(*request); !parsed) return fail(parsed.error());

    if (!running->admitted && !admit(entry, *running, credentials, *request)) return;
    if (!method.inline_call) {
      if (running->put_off()) return;
      if (running->here != nullptr) std::exchange(running->here, nullptr)->end();
      if (std::exchange(running->apart, false)) return leave_to(workers_, entry, running, &DispatcherImpl::run);
    }
    if (!running->ctx.idempotency_key.empty()) running->ctx.request_hash = request_hash(entry.full_name, *request);

    if (method.unary) {
      method.unary(running->ctx, *request, [&](Result<> result, const Message* message) {
        finish(entry, *running, result ? nullptr : &result.error(), message);
      });
    } else if (method.deferred) {
      // Whoever drops the reply unanswered has a bug; the caller must not wait for his deadline because of it.
      struct Guard {
        DispatcherImpl& dispatcher;
        const Entry& entry;
        std::shared_ptr<Running> running;
        std::atomic<bool> answered = false;
        ~Guard() {
          if (answered.exchange(true)) return;
          Error error = refuse(ErrorKind::internal, "the call was dropped unanswered");
          dispatcher.finish(entry, *running, &error, nullptr);
        }
      };
      auto guard = std::make_shared<Guard>(*this, entry, running);
      method.deferred(running->ctx, *request, [guard](Result<> result, const Message* message) {
        if (guard->answered.exchange(true)) return;
        guard->dispatcher.finish(guard->entry, *guard->running, result ? nullptr : &result.error(), message);
      });
      call->park();
    } else {
      auto outlet = call->open_stream(options_.stream_queue_max);
      if (outlet == nullptr) return fail(refuse(ErrorKind::invalid_input, "this method streams; call it over gRPC"));
      entry.succeeded->add();
      method.stream(running->ctx, *request, std::move(outlet));
    }
  } catch (const std::exception& exception) {
    fail(refuse(ErrorKind::internal, fmt::format("exception in `{}`: {}", entry.full_name, exception.what())));
  }
}

void DispatcherImpl::finish(const Entry& entry, Running& running, const Error* error, const Message* message) {
  if (running.put_off()) return;
  std::optional<Error> audit_error;
  // An unknown caller's refusals are counted and logged but not audited: strangers must not be able to fill the log.
  bool refused = error != nullptr && !running.admitted && running.ctx.caller;
  if (refused && running.here != nullptr) {
    running.refusal_to_audit = *error;
    return;
  }
  if (refused || (running.admitted && entry.method.audited)) {
    auto recorded = ports_.auditor.record(
        running.ctx, CallRecord{entry.full_name, entry.method.action, running.resource, error, running.peer});
    if (!recorded) {
      ports_.telemetry.log(LogLevel::error, "platform", "audit_failed", &running.ctx,
                           {{"method", entry.full_name}, {"error", recorded.error().to_string()}});
      if (error == nullptr) {
        audit_error.emplace(
            refuse(ErrorKind::unavailable, "the call could not be audited").with_cause(recorded.error()));
        error = &*audit_error;
      }
    }
  }

  if (running.here != nullptr) running.here->end();  // sending the answer may be the end of others' calls too
  Nanos took = ports_.clock.monotonic() - running.began;
  entry.seconds->observe(std::chrono::duration<double>(took).count());
  if (error == nullptr) {
    entry.succeeded->add();
    running.call->answer(*message);
    return;
  }
  std::string code = error->code();
  ports_.telemetry
      .counter("platform_rpc_calls_total", "Calls by method and outcome", {{"method", entry.full_name}, {"code", code}})
      .add();
  ports_.telemetry.log(error->kind() == ErrorKind::internal ? LogLevel::error : LogLevel::info, "platform",
                       "call_failed", &running.ctx,
                       {{"method", entry.full_name},
                        {"code", code},
                        {"error", error->to_string()},
                        {"peer", running.peer},
                        {"duration_ms", std::chrono::duration<double, std::milli>(took).count()}});
  Error sent = without_internals(*error);
  if (sent.trace_id().empty()) sent = std::move(sent).with_trace(running.ctx.trace.trace_id);
  if (running.admitted && entry.method.refusal) {
    running.call->answer(*entry.method.refusal(sent));
  } else {
    running.call->fail(sent);
  }
}

}  // namespace creto::rpc
