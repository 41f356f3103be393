#include <fmt/format.h>
#include <google/protobuf/message.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/impl/codegen/server_callback_handlers.h>
#include <grpcpp/impl/service_type.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <deque>
#include <filesystem>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "creto/common/assert.h"
#include "rpc/call.h"
#include "rpc/errors.h"

namespace creto::rpc {
namespace {

using google::protobuf::Message;
using grpc::ByteBuffer;

grpc::Status to_status(const Error& error) {
  int code = to_grpc_status(error.kind());
  return {static_cast<grpc::StatusCode>(code), error.message(), to_status_details(error, code)};
}

/// What gRPC knows of a call, for both kinds of reactor.
class GrpcCall : public Call {
 public:
  GrpcCall(grpc::CallbackServerContext* context, const ByteBuffer* request, std::size_t bytes_max)
      : context_(context), request_(request), bytes_max_(bytes_max) {}

  std::string_view metadata(std::string_view name) const override {
    const auto& all = context_->client_metadata();
    auto found = all.find(grpc::string_ref(name.data(), name.size()));
    if (found == all.end()) return {};
    return {found->second.data(), found->second.size()};
  }
  std::vector<std::string> certificate_uris() const override {
    std::vector<std::string> uris;
    auto auth = context_->auth_context();
    if (auth == nullptr || !auth->IsPeerAuthenticated()) return uris;
    for (const grpc::string_ref& uri : auth->FindPropertyValues("peer_uri")) uris.emplace_back(uri.data(), uri.size());
    return uris;
  }
  std::string peer() const override { return context_->peer(); }
  std::optional<Nanos> timeout() const override {
    gpr_timespec deadline = context_->raw_deadline();
    if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0) return std::nullopt;
    gpr_timespec left =
        gpr_time_sub(gpr_convert_clock_type(deadline, GPR_CLOCK_MONOTONIC), gpr_now(GPR_CLOCK_MONOTONIC));
    return std::max(Nanos(0), Nanos(std::chrono::seconds(left.tv_sec)) + Nanos(left.tv_nsec));
  }
  Result<> parse(Message& request) override {
    if (request_->Length() > bytes_max_)
      return Error(Product::platform, ErrorKind::too_large, fmt::format("the request is over {} bytes", bytes_max_));
    // Deserialize empties the buffer it is given; a copy shares the slices.
    ByteBuffer buffer = *request_;
    auto status = grpc::GenericDeserialize<grpc::ProtoBufferReader, Message>(&buffer, &request);
    if (!status.ok())
      return Error(Product::platform, ErrorKind::invalid_input,
                   fmt::format("the request is not a valid `{}`", request.GetDescriptor()->full_name()));
    return {};
  }

 protected:
  grpc::CallbackServerContext* context_;
  const ByteBuffer* request_;
  const std::size_t bytes_max_;
};

/// A call that is answered once. gRPC's objects go when it is, so nothing here looks at them afterwards: a late answer
/// finds `finished_` set.
class UnaryCall : public GrpcCall {
 public:
  UnaryCall(grpc::CallbackServerContext* context, const ByteBuffer* request, std::size_t bytes_max,
            ByteBuffer* response, grpc::ServerUnaryReactor& reactor)
      : GrpcCall(context, request, bytes_max), response_(response), reactor_(reactor) {}

  void answer(const Message& message) override {
    end([&] {
      bool own = false;
      return grpc::GenericSerialize<grpc::ProtoBufferWriter, Message>(message, response_, &own);
    });
  }
  void fail(const Error& error) override {
    end([&] { return to_status(error); });
  }
  void park() override { CRETO_ASSERT(false); }
  std::shared_ptr<detail::Outlet> open_stream(std::size_t) override { return nullptr; }

 protected:
  template <class F>
  void end(F status) {
    if (!finished_.exchange(true)) reactor_.Finish(status());
  }

 private:
  ByteBuffer* response_;
  grpc::ServerUnaryReactor& reactor_;
  std::atomic<bool> finished_ = false;
};

/// A call whose handler may leave it to be answered later, and which then ends when its caller goes. Keeps itself alive
/// until gRPC needs it no more. A cancelled call is finished only when no handler looks at the request any more.
class DeferredCall final : public UnaryCall, public grpc::ServerUnaryReactor {
 public:
  DeferredCall(grpc::CallbackServerContext* context, const ByteBuffer* request, std::size_t bytes_max,
               ByteBuffer* response)
      : UnaryCall(context, request, bytes_max, response, *this) {}
  void keep(std::shared_ptr<DeferredCall> self) { self_ = std::move(self); }

  void park() override {
    {
      std::lock_guard lock(mutex_);
      parked_ = true;
      if (!cancelled_) return;
    }
    end([] { return grpc::Status::CANCELLED; });
  }
  void OnCancel() override {
    std::shared_ptr<DeferredCall> alive = self_;
    {
      std::lock_guard lock(mutex_);
      cancelled_ = true;
      if (!parked_) return;
    }
    end([] { return grpc::Status::CANCELLED; });
  }
  void OnDone() override { self_.reset(); }

 private:
  std::mutex mutex_;
  bool parked_ = false, cancelled_ = false;
  std::shared_ptr<DeferredCall> self_;
};

class StreamCall final : public GrpcCall, public grpc::ServerWriteReactor<ByteBuffer> {
 public:
  StreamCall(grpc::CallbackServerContext* context, const ByteBuffer* request, std::size_t bytes_max)
      : GrpcCall(context, request, bytes_max) {}
  void keep(std::shared_ptr<StreamCall> self) { self_ = std::move(self); }

  void answer(const Message&) override { CRETO_ASSERT(false); }
  void fail(const Error& error) override { finish(error); }
  std::shared_ptr<detail::Outlet> open_stream(std::size_t queue_max) override;

  bool send(const Message& message) {
    bool own = false;
    ByteBuffer bytes;
    if (!grpc::GenericSerialize<grpc::ProtoBufferWriter, Message>(message, &bytes, &own).ok()) return false;
    std::lock_guard lock(mutex_);
    if (finishing_ || cancelled_) return false;
    if (queue_.size() >= queue_max_) {
      finishing_ = true;
      status_ = to_status(Error(Product::platform, ErrorKind::resource_exhausted, "the reader is too far behind"));
    } else {
      queue_.push_back(std::move(bytes));
    }
    pump();
    return !finishing_;
  }
  void finish(Result<> result) {
    std::lock_guard lock(mutex_);
    if (finishing_) return;
    finishing_ = true;
    status_ = result ? grpc::Status::OK : to_status(result.error());
    pump();
  }
  void on_closed(std::function<void()> callback) {
    {
      std::lock_guard lock(mutex_);
      if (!cancelled_ && !done_) {
        closed_ = std::move(callback);
        return;
      }
    }
    callback();
  }
  bool closed() {
    std::lock_guard lock(mutex_);
    return cancelled_ || done_ || finishing_;
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    writing_ = false;
    queue_.pop_front();
    if (!ok) cancelled_ = true;
    pump();
  }
  void OnCancel() override {
    std::shared_ptr<StreamCall> alive = self_;
    std::function<void()> closed;
    {
      std::lock_guard lock(mutex_);
      cancelled_ = true;
      closed = std::exchange(closed_, nullptr);
      pump();
    }
    if (closed) closed();
  }
  void OnDone() override {
    std::function<void()> closed;
    {
      std::lock_guard lock(mutex_);
      done_ = true;
      closed = std::exchange(closed_, nullptr);
    }
    if (closed) closed();
    self_.reset();
  }

 private:
  /// Writes what waits; ends the call when it is done, or cancelled once no handler looks at the request any more.
  void pump() {
    if (writing_ || finished_) return;
    if (!queue_.empty() && !cancelled_) {
      writing_ = true;
      StartWrite(&queue_.front());
    } else if (finishing_ || (cancelled_ && opened_)) {
      finished_ = true;
      Finish(finishing_ ? status_ : grpc::Status::CANCELLED);
    }
  }

  std::mutex mutex_;
  std::deque<ByteBuffer> queue_;
  std::size_t queue_max_ = 0;
  bool opened_ = false, writing_ = false, finishing_ = false, finished_ = false, cancelled_ = false, done_ = false;
  grpc::Status status_;
  std::function<void()> closed_;
  std::shared_ptr<StreamCall> self_;

  friend class StreamOutlet;
};

class StreamOutlet final : public detail::Outlet {
 public:
  explicit StreamOutlet(std::shared_ptr<StreamCall> call) : call_(std::move(call)) {}
  ~StreamOutlet() override { call_->finish({}); }
  bool send(const Message& message) override { return call_->send(message); }
  void finish(Result<> result) override { call_->finish(std::move(result)); }
  void on_closed(std::function<void()> callback) override { call_->on_closed(std::move(callback)); }
  bool closed() const override { return call_->closed(); }

 private:
  std::shared_ptr<StreamCall> call_;
};

std::shared_ptr<detail::Outlet> StreamCall::open_stream(std::size_t queue_max) {
  auto outlet = std::make_shared<StreamOutlet>(self_);
  std::lock_guard lock(mutex_);
  queue_max_ = queue_max;
  opened_ = true;
  pump();
  return outlet;
}

class ExchangeCall;

/// Those that are open, for who stops the server.
class Exchanges {
 public:
  void add(const std::shared_ptr<ExchangeCall>& call) {
    std::lock_guard lock(mutex_);
    open_.emplace(call.get(), call);
  }
  void remove(ExchangeCall* call) {
    std::lock_guard lock(mutex_);
    open_.erase(call);
  }
  void end();

 private:
  std::mutex mutex_;
  std::map<ExchangeCall*, std::weak_ptr<ExchangeCall>> open_;
};

/// Reads messages as long as fewer than a window of them wait for their answers to be sent: a client who is faster than
/// we are, or does not read, is held by the transport's flow control. Ends when no handler looks at a message any more.
class ExchangeCall final : public grpc::ServerBidiReactor<ByteBuffer, ByteBuffer> {
 public:
  ExchangeCall(DispatcherImpl& dispatcher, const Entry& entry, Exchanges& exchanges,
               grpc::CallbackServerContext* context)
      : dispatcher_(dispatcher), entry_(entry), exchanges_(exchanges), context_(context) {}
  void start(std::shared_ptr<ExchangeCall> self) {
    self_ = std::move(self);
    // gRPC makes both when they are first asked for, which several messages would do at once.
    static_cast<void>(context_->auth_context());
    static_cast<void>(context_->client_metadata());
    exchanges_.add(self_);
    std::lock_guard lock(mutex_);
    read();
  }
  /// Reads no more, and ends when what came is answered.
  void stop() {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = true;
    status_ = to_status(Error(Product::platform, ErrorKind::unavailable, "the server is stopping"));
    pump();
  }

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    writing_ = false;
    messages_.pop_front();
    if (!ok) cancelled_ = true;
    read();
    pump();
  }
  void OnCancel() override {
    std::shared_ptr<ExchangeCall> alive = self_;
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    pump();
  }
  void OnDone() override {
    exchanges_.remove(this);
    self_.reset();
  }

 private:
  class Message;

  void read() {
    if (reading_ || ended_ || cancelled_ || messages_.size() >= dispatcher_.options().exchange_window) return;
    reading_ = true;
    next_ = {};
    StartRead(&next_);
  }
  void pump();

  DispatcherImpl& dispatcher_;
  const Entry& entry_;
  Exchanges& exchanges_;
  grpc::CallbackServerContext* context_;
  std::mutex mutex_;
  ByteBuffer next_;
  std::deque<std::shared_ptr<Message>> messages_;  ///< whose answers are not sent, in the order received
  std::size_t running_ = 0;                        ///< of them, those without an answer
  bool reading_ = false, writing_ = false, finished_ = false, cancelled_ = false;
  bool ended_ = false;  ///< no more is read; then `status_` says why
  grpc::Status status_;
  std::shared_ptr<ExchangeCall> self_;
};

/// One message on its way through the dispatcher.
class ExchangeCall::Message final : public GrpcCall {
 public:
  Message(std::shared_ptr<ExchangeCall> exchange, ByteBuffer request)
      : GrpcCall(exchange->context_, &bytes_, exchange->dispatcher_.request_bytes_max(exchange->entry_)),
        exchange_(std::move(exchange)),
        bytes_(std::move(request)) {}
  ~Message() override { CRETO_ASSERT(settled_); }

  std::string_view metadata(std::string_view name) const override {
    // A key names one request, and there are many here.
    return name.ends_with("idempotency-key") ? std::string_view() : GrpcCall::metadata(name);
  }
  bool in_exchange() const override { return true; }
  std::shared_ptr<detail::Outlet> open_stream(std::size_t) override { return nullptr; }
  void answer(const google::protobuf::Message& message) override {
    ByteBuffer bytes;
    bool own = false;
    const auto status =
        grpc::GenericSerialize<grpc::ProtoBufferWriter, google::protobuf::Message>(message, &bytes, &own);
    settle(std::move(bytes), status);
  }
  void fail(const Error& error) override { settle({}, to_status(error)); }

 private:
  friend class ExchangeCall;
  void settle(ByteBuffer bytes, grpc::Status status) {
    // Keeps the exchange, which goes with its last message. The first answer counts.
    std::shared_ptr<ExchangeCall> exchange = std::move(exchange_);
    if (exchange == nullptr) return;
    std::lock_guard lock(exchange->mutex_);
    bytes_ = std::move(bytes);
    status_ = std::move(status);
    settled_ = true;
    --exchange->running_;
    exchange->pump();
  }

  std::shared_ptr<ExchangeCall> exchange_;
  ByteBuffer bytes_;  ///< the request, then the answer
  grpc::Status status_;
  bool settled_ = false;
};

void ExchangeCall::OnReadDone(bool ok) {
  std::shared_ptr<Message> message;
  {
    std::lock_guard lock(mutex_);
    reading_ = false;
    if (!ok) {
      ended_ = true;
      pump();
      return;
    }
    if (ended_ || cancelled_) return;
    message = std::make_shared<Message>(self_, std::move(next_));
    messages_.push_back(message);
    ++running_;
  }
  dispatcher_.dispatch(entry_, message);
  std::lock_guard lock(mutex_);
  read();
}

/// Sends the next answer where it is there, and ends the call when all is said.
void ExchangeCall::pump() {
  if (writing_ || finished_) return;
  if (!cancelled_ && !messages_.empty() && messages_.front()->settled_) {
    Message& first = *messages_.front();
    if (first.status_.ok()) {
      writing_ = true;
      StartWrite(&first.bytes_);
      return;
    }
    ended_ = true;
    status_ = first.status_;
    if (running_ > 0) return;
    messages_.clear();
  }
  if (running_ == 0 && (cancelled_ || (ended_ && messages_.empty()))) {
    finished_ = true;
    Finish(cancelled_ ? grpc::Status::CANCELLED : status_);
  }
}

void Exchanges::end() {
  std::vector<std::shared_ptr<ExchangeCall>> open;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [call, weak] : open_) {
      if (auto one = weak.lock()) open.push_back(std::move(one));
    }
  }
  for (const auto& call : open) call->stop();
}

/// The methods of one proto service, registered by name with bytes in and out.
class RawService final : public grpc::Service {
 public:
  void add(DispatcherImpl& dispatcher, const Entry& entry, Exchanges& exchanges) {
    using grpc::internal::RpcMethod;
    if (entry.method.refusal) {
      AddMethod(new grpc::internal::RpcServiceMethod(entry.full_name.c_str(), RpcMethod::BIDI_STREAMING, nullptr));
      MarkMethodRawCallback(count_++, new grpc::internal::CallbackBidiHandler<ByteBuffer, ByteBuffer>(
                                          [&dispatcher, &entry, &exchanges](grpc::CallbackServerContext* context) {
                                            auto call =
                                                std::make_shared<ExchangeCall>(dispatcher, entry, exchanges, context);
                                            ExchangeCall* reactor = call.get();
                                            reactor->start(std::move(call));
                                            return reactor;
                                          }));
      return;
    }
    if (entry.method.stream) {
      AddMethod(new grpc::internal::RpcServiceMethod(entry.full_name.c_str(), RpcMethod::SERVER_STREAMING, nullptr));
      MarkMethodRawCallback(
          count_++, new grpc::internal::CallbackServerStreamingHandler<ByteBuffer, ByteBuffer>(
                        [&dispatcher, &entry](grpc::CallbackServerContext* context, const ByteBuffer* request) {
                          auto call =
                              std::make_shared<StreamCall>(context, request, dispatcher.request_bytes_max(entry));
                          call->keep(call);
                          StreamCall* reactor = call.get();
                          dispatcher.dispatch(entry, std::move(call));
                          return reactor;
                        }));
      return;
    }
    AddMethod(new grpc::internal::RpcServiceMethod(entry.full_name.c_str(), RpcMethod::NORMAL_RPC, nullptr));
    MarkMethodRawCallback(count_++, new grpc::internal::CallbackUnaryHandler<ByteBuffer, ByteBuffer>(
                                        [&dispatcher, &entry](grpc::CallbackServerContext* context,
                                                              const ByteBuffer* request, ByteBuffer* response) {
                                          return unary(dispatcher, entry, context, request, response);
                                        }));
  }

 private:
  static grpc::ServerUnaryReactor* unary(DispatcherImpl& dispatcher, const Entry& entry,
                                         grpc::CallbackServerContext* context, const ByteBuffer* request,
                                         ByteBuffer* response) {
    const std::size_t bytes_max = dispatcher.request_bytes_max(entry);
    if (entry.method.deferred) {
      auto call = std::make_shared<DeferredCall>(context, request, bytes_max, response);
      call->keep(call);
      DeferredCall* reactor = call.get();
      dispatcher.dispatch(entry, std::move(call));
      return reactor;
    }
    // gRPC's own reactor costs no change of threads for what a reactor of ours would have to be told at the end.
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    dispatcher.dispatch(entry, std::make_shared<UnaryCall>(context, request, bytes_max, response, *reactor));
    return reactor;
  }

  int count_ = 0;
};

/// For this user alone; gone with its socket when it is destroyed.
class PrivateDirectory {
 public:
  static Result<PrivateDirectory> beside(const std::filesystem::path& path) {
    std::string made = path.parent_path() / ".XXXXXX";
    if (::mkdtemp(made.data()) == nullptr)
      return Error(Product::platform, ErrorKind::unavailable,
                   fmt::format("cannot make a directory beside `{}`: {}", path.string(), std::strerror(errno)));
    return PrivateDirectory(std::move(made));
  }
  PrivateDirectory(PrivateDirectory&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  PrivateDirectory& operator=(PrivateDirectory&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }
  ~PrivateDirectory() {
    if (path_.empty()) return;
    ::unlink(socket().c_str());
    ::rmdir(path_.c_str());
  }
  std::string socket() const { return path_ + "/s"; }

 private:
  explicit PrivateDirectory(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

class GrpcServerImpl final : public GrpcServer {
 public:
  ~GrpcServerImpl() override { stop(std::chrono::seconds(5)); }

  Result<> start(DispatcherImpl& dispatcher, const GrpcServerOptions& options) {
    // A peer that goes away while we write must be an error, not the end of the process.
    std::signal(SIGPIPE, SIG_IGN);
    static std::once_flag plugins;
    std::call_once(plugins, [] {
      grpc::EnableDefaultHealthCheckService(true);
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    });

    grpc::ServerBuilder builder;
    // gRPC has one limit for all; each method has its own when the message is there.
    std::size_t largest = dispatcher.options().request_bytes_max;
    for (const auto& entry : dispatcher.entries()) largest = std::max(largest, dispatcher.request_bytes_max(*entry));
    builder.SetMaxReceiveMessageSize(static_cast<int>(largest));
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 64 << 10);
    if (options.port) {
      std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials();
      if (options.tls) {
        CRETO_TRY(tls::facts_of(options.tls->certificate));
        grpc::SslServerCredentialsOptions ssl(options.tls->authority.empty()
                                                  ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                                  : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY);
        ssl.pem_root_certs = options.tls->authority;
        ssl.pem_key_cert_pairs.push_back({options.tls->key, options.tls->certificate});
        credentials = grpc::SslServerCredentials(ssl);
      }
      builder.AddListeningPort(fmt::format("{}:{}", options.address, *options.port), credentials, &port_);
    }
    // gRPC listens as soon as it binds: in a directory where nobody else gets at it, until it is ours alone.
    std::optional<PrivateDirectory> private_directory;
    int unix_port = 1;
    if (!options.unix_path.empty()) {
      private_directory = CRETO_TRY(PrivateDirectory::beside(options.unix_path));
      builder.AddListeningPort("unix:" + private_directory->socket(), grpc::InsecureServerCredentials(), &unix_port);
    }
    for (const auto& entry : dispatcher.entries()) {
      auto& service = services_[entry->method.service];
      if (service == nullptr) service = std::make_unique<RawService>();
      service->add(dispatcher, *entry, exchanges_);
    }
    for (auto& [name, service] : services_) builder.RegisterService(service.get());

    server_ = builder.BuildAndStart();
    if (server_ == nullptr || (options.port && port_ == 0) || unix_port == 0)
      return Error(
          Product::platform, ErrorKind::unavailable,
          fmt::format("cannot listen on `{}`",
                      options.port ? fmt::format("{}:{}", options.address, *options.port) : options.unix_path));
    if (private_directory) {
      const std::string socket = private_directory->socket();
      if (::chmod(socket.c_str(), 0600) != 0 || ::rename(socket.c_str(), options.unix_path.c_str()) != 0)
        return Error(Product::platform, ErrorKind::unavailable,
                     fmt::format("cannot put a socket at `{}`: {}", options.unix_path, std::strerror(errno)));
      unix_path_ = options.unix_path;
    }
    if (options.health) {
      health_ = options.health;
      watcher_ = std::jthread([this](const std::stop_token& stop) { watch(stop); });
    }
    return {};
  }

  std::uint16_t port() const override { return static_cast<std::uint16_t>(port_); }

  void stop(Nanos grace) override {
    if (server_ == nullptr) return;
    watcher_ = {};
    exchanges_.end();
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::duration_cast<std::chrono::microseconds>(grace));
    server_->Wait();
    server_.reset();
    if (!unix_path_.empty()) ::unlink(unix_path_.c_str());
  }

 private:
  /// grpc.health.v1 is told rather than asked.
  void watch(const std::stop_token& stop) {
    std::mutex mutex;
    std::condition_variable_any wake;
    std::unique_lock lock(mutex);
    do {
      server_->GetHealthCheckService()->SetServingStatus(health_().health != Health::unhealthy);
    } while (!wake.wait_for(lock, stop, std::chrono::seconds(2), [&] { return stop.stop_requested(); }));
  }

  int port_ = 0;
  std::string unix_path_;
  Exchanges exchanges_;
  std::map<std::string, std::unique_ptr<RawService>> services_;
  std::unique_ptr<grpc::Server> server_;
  std::function<HealthStatus()> health_;
  std::jthread watcher_;
};

}  // namespace

Result<std::unique_ptr<GrpcServer>> GrpcServer::start(Dispatcher& dispatcher, const GrpcServerOptions& options) {
  auto server = std::make_unique<GrpcServerImpl>();
  CRETO_TRY(server->start(static_cast<DispatcherImpl&>(dispatcher), options));
  return server;
}

}  // namespace creto::rpc
