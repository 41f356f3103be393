#include "creto/io/rpc_channel.h"

#include <fmt/format.h>
#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/client_unary_call.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/sync_stream.h>

#include <algorithm>
#include <csignal>
#include <random>
#include <thread>

#include "rpc/errors.h"

namespace creto::rpc {
namespace {

using google::protobuf::Message;
using grpc::ByteBuffer;

double jitter() {
  thread_local std::minstd_rand generator{std::random_device{}()};
  return std::uniform_real_distribution(0.0, 1.0)(generator);
}

class ChannelImpl final : public Channel {
 public:
  ChannelImpl(ChannelOptions options, const Clock& clock)
      : options_(std::move(options)), clock_(clock), breaker_(options_.endpoint, options_.breaker, clock) {}

  Result<> connect() {
    std::signal(SIGPIPE, SIG_IGN);
    bool unix_socket = options_.endpoint.starts_with("unix:");
    if (options_.endpoint.empty() || (!unix_socket && options_.endpoint.find(':') == std::string::npos))
      return Error(Product::platform, ErrorKind::invalid_input,
                   fmt::format("`{}` is neither host:port nor unix:/path", options_.endpoint));
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(static_cast<int>(options_.message_bytes_max));
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
    if (options_.tls) {
      grpc::SslCredentialsOptions ssl{options_.tls->authority, options_.tls->key, options_.tls->certificate};
      credentials = grpc::SslCredentials(ssl);
      if (!options_.server_name.empty()) arguments.SetSslTargetNameOverride(options_.server_name);
    }
    channel_ = grpc::CreateCustomChannel(options_.endpoint, credentials, arguments);
    return {};
  }

  Result<> call_message(const Context& ctx, std::string_view method, const Message& request, Message& response,
                        CallOptions options) override {
    bool repeatable = options.idempotent || !ctx.idempotency_key.empty();
    for (std::uint32_t attempt = 1;; ++attempt) {
      bool answered = false;
      const bool patient = is_patient(ctx);
      auto result = breaker_.run([&] { return attempt_once(ctx, method, request, response, answered); },
                                 [&](const Error& error) { return is_failure(error, answered, patient); });
      if (result || !repeatable || category_of(result.error().kind()) != ErrorCategory::transient ||
          attempt >= options_.attempts_max)
        return result;
      auto delay = delay_before(retry_strategy(result.error()), attempt + 1, jitter());
      if (!delay || (ctx.deadline != Monotonic::max() && clock_.monotonic() + *delay >= ctx.deadline)) return result;
      std::this_thread::sleep_for(std::min(*delay, Nanos(std::chrono::seconds(2))));
    }
  }

  Result<> stream_messages(const Context& ctx, std::string_view method, const Message& request, Message& message,
                           const std::function<bool()>& each) override {
    bool answered = false;
    auto read_all = [&]() -> Result<> {
      grpc::ClientContext client;
      prepare(client, ctx, /*limit=*/false);
      ByteBuffer bytes = CRETO_TRY(serialize(request));
      std::string name(method);
      grpc::internal::RpcMethod rpc(name.c_str(), grpc::internal::RpcMethod::SERVER_STREAMING);
      std::unique_ptr<grpc::ClientReader<ByteBuffer>> reader(
          grpc::internal::ClientReaderFactory<ByteBuffer>::Create(channel_.get(), rpc, &client, bytes));
      ByteBuffer received;
      while (reader->Read(&received)) {
        if (!grpc::GenericDeserialize<grpc::ProtoBufferReader, Message>(&received, &message).ok()) {
          client.TryCancel();
          (void)reader->Finish();
          return Error(Product::platform, ErrorKind::internal, fmt::format("`{}` sent a malformed message", method));
        }
        if (!each()) {
          client.TryCancel();
          (void)reader->Finish();
          return {};
        }
      }
      return result_of(reader->Finish(), method, answered);
    };
    const bool patient = is_patient(ctx);
    return breaker_.run(read_all, [&](const Error& error) { return is_failure(error, answered, patient); });
  }

  Result<> exchange_messages(const Context& ctx, std::string_view method, const Message& request,
                             const std::function<bool()>& next, Message& response,
                             const std::function<bool()>& each) override {
    bool answered = false;
    auto talk = [&]() -> Result<> {
      grpc::ClientContext client;
      prepare(client, ctx, /*limit=*/false);
      std::string name(method);
      grpc::internal::RpcMethod rpc(name.c_str(), grpc::internal::RpcMethod::BIDI_STREAMING);
      std::unique_ptr<grpc::ClientReaderWriter<ByteBuffer, ByteBuffer>> stream(
          grpc::internal::ClientReaderWriterFactory<ByteBuffer, ByteBuffer>::Create(channel_.get(), rpc, &client));
      Result<> refused;
      std::thread writer([&] {
        bool open = true;
        while (open && next()) {
          auto bytes = serialize(request);
          if (bytes) {
            open = stream->Write(*bytes);
          } else {
            refused = std::move(bytes).error();
            break;
          }
        }
        if (open) stream->WritesDone();
      });
      Result<> result;
      ByteBuffer received;
      bool wanted = true;
      while (wanted && stream->Read(&received)) {
        if (!grpc::GenericDeserialize<grpc::ProtoBufferReader, Message>(&received, &response).ok()) {
          result = Error(Product::platform, ErrorKind::internal, fmt::format("`{}` sent a malformed message", method));
          break;
        }
        wanted = each();
      }
      const bool cut = !wanted || !result;
      if (cut) client.TryCancel();
      writer.join();
      const grpc::Status status = stream->Finish();
      CRETO_TRY(std::move(refused));
      if (cut) return result;
      return result_of(status, method, answered);
    };
    const bool patient = is_patient(ctx);
    return breaker_.run(talk, [&](const Error& error) { return is_failure(error, answered, patient); });
  }

 private:
  /// Whether the caller waits as long as a healthy server may take.
  bool is_patient(const Context& ctx) const {
    return ctx.deadline == Monotonic::max() || ctx.deadline - clock_.monotonic() >= options_.timeout;
  }

  /// A server that says for itself "not yet" or "too many" is well, and one whose caller did not want to wait may be:
  /// only what the connection says otherwise counts against it.
  static bool is_failure(const Error& error, bool answered, bool patient) {
    if (answered || (error.kind() == ErrorKind::timeout && !patient)) return false;
    return error.category() == ErrorCategory::transient;
  }

  void prepare(grpc::ClientContext& client, const Context& ctx, bool limit) {
    if (limit || ctx.deadline != Monotonic::max()) {
      Nanos left = ctx.deadline == Monotonic::max() ? options_.timeout : ctx.deadline - clock_.monotonic();
      if (limit) left = std::min(left, options_.timeout);
      client.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::duration_cast<std::chrono::microseconds>(std::max(left, Nanos(0))));
    }
    if (options_.bearer) {
      if (std::string token = options_.bearer(); !token.empty()) client.AddMetadata("authorization", "Bearer " + token);
    }
    if (options_.forward_caller && ctx.caller) client.AddMetadata("creto-on-behalf-of", ctx.caller->text());
    if (!ctx.idempotency_key.empty()) client.AddMetadata("creto-idempotency-key", ctx.idempotency_key);
    if (!ctx.trace.trace_id.empty())
      client.AddMetadata("traceparent", fmt::format("00-{}-{}-{}", ctx.trace.trace_id, ctx.trace.span_id,
                                                    ctx.trace.sampled ? "01" : "00"));
  }

  static Result<ByteBuffer> serialize(const Message& message) {
    ByteBuffer bytes;
    bool own = false;
    if (!grpc::GenericSerialize<grpc::ProtoBufferWriter, Message>(message, &bytes, &own).ok())
      return Error(Product::platform, ErrorKind::invalid_input, "the request cannot be serialized");
    return bytes;
  }

  Result<> attempt_once(const Context& ctx, std::string_view method, const Message& request, Message& response,
                        bool& answered) {
    if (ctx.expired(clock_)) return Error(Product::platform, ErrorKind::timeout, "the deadline has passed");
    grpc::ClientContext client;
    prepare(client, ctx, /*limit=*/true);
    ByteBuffer bytes = CRETO_TRY(serialize(request));
    ByteBuffer received;
    std::string name(method);
    grpc::internal::RpcMethod rpc(name.c_str(), grpc::internal::RpcMethod::NORMAL_RPC);
    grpc::Status status =
        grpc::internal::BlockingUnaryCall<ByteBuffer, ByteBuffer>(channel_.get(), rpc, &client, bytes, &received);
    CRETO_TRY(result_of(status, method, answered));
    if (!grpc::GenericDeserialize<grpc::ProtoBufferReader, Message>(&received, &response).ok())
      return Error(Product::platform, ErrorKind::internal,
                   fmt::format("`{}` answered with a malformed message", method));
    return {};
  }

  /// Sets `answered` when the server itself said how the call went.
  Result<> result_of(const grpc::Status& status, std::string_view method, bool& answered) const {
    if (status.ok()) return {};
    if (auto error = from_status_details(status.error_details())) {
      answered = true;
      return *std::move(error);
    }
    ErrorKind kind = kind_of_grpc_status(static_cast<int>(status.error_code()));
    return Error(Product::platform, kind,
                 fmt::format("`{}` at `{}`: {}", method, options_.endpoint,
                             status.error_code() == grpc::StatusCode::UNIMPLEMENTED ? "that server does not serve it"
                                                                                    : status.error_message()));
  }

  const ChannelOptions options_;
  const Clock& clock_;
  CircuitBreaker breaker_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace

Result<std::shared_ptr<Channel>> Channel::connect(ChannelOptions options, const Clock& clock) {
  auto channel = std::make_shared<ChannelImpl>(std::move(options), clock);
  CRETO_TRY(channel->connect());
  return channel;
}

}  // namespace creto::rpc
