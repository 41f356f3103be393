// The dispatcher against a bare generated gRPC service, in turns, with the same clients and the same message.

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <thread>

#include "creto/io/rpc.h"
#include "creto/testing/bench.h"
#include "echo.grpc.pb.h"

namespace creto::rpc {
namespace {

using bench::v1::EchoMessage;
using bench::v1::EchoService;
constexpr int clients = 8;
constexpr auto round_time = std::chrono::milliseconds(1500);

class BareService final : public EchoService::CallbackService {
  grpc::ServerUnaryReactor* Echo(grpc::CallbackServerContext* context, const EchoMessage* request,
                                 EchoMessage* response) override {
    *response = *request;
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

/// As cheap as a port can be: what is measured is the dispatcher.
class OpenPorts final : public Authenticator, public Authorizer, public Auditor {
 public:
  Result<Caller> authenticate(const Context&, const Credentials&) override { return Caller{ada_, {ada_}, "default"}; }
  Result<> authorize(const Context&, std::string_view, const Resource&) override { return {}; }
  Result<> record(const Context&, const CallRecord&) override { return {}; }

 private:
  Identity ada_ = Identity::human("ada@example.com").value();
};

/// Calls per second of `clients` threads, each with one call in flight.
double throughput(const std::string& target) {
  std::atomic<bool> stop = false;
  std::atomic<std::int64_t> calls = 0;
  std::vector<std::jthread> threads;
  for (int i = 0; i < clients; ++i)
    threads.emplace_back([&, i] {
      grpc::ChannelArguments arguments;
      arguments.SetInt("creto.client", i);  // a connection of its own
      auto stub =
          EchoService::NewStub(grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments));
      EchoMessage request, response;
      request.set_identity("agent:nhi:ed25519:6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2");
      request.set_number(42);
      request.add_permissions("payments.pay");
      while (!stop) {
        grpc::ClientContext context;
        context.AddMetadata("authorization", "Bearer token");
        if (stub->Echo(&context, request, &response).ok()) calls.fetch_add(1, std::memory_order_relaxed);
      }
    });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  std::int64_t before = calls;
  auto began = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(round_time);
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  std::int64_t done = calls - before;
  stop = true;
  return static_cast<double>(done) / seconds;
}

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  BareService bare;
  int bare_port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &bare_port);
  builder.RegisterService(&bare);
  auto bare_server = builder.BuildAndStart();

  OpenPorts ports;
  auto make = [&](bool inline_call) {
    auto dispatcher = Dispatcher::create({ports, ports, ports, no_telemetry(), system_clock()}, {.workers = 2});
    dispatcher->service("creto.bench.v1.EchoService")
        .unary<EchoMessage, EchoMessage>(
            "Echo", {.inline_call = inline_call},
            [](const Context&, const EchoMessage& request) -> Result<EchoMessage> { return request; });
    return dispatcher;
  };
  auto inline_dispatcher = make(true), pool_dispatcher = make(false);
  auto inline_server = GrpcServer::start(*inline_dispatcher, {.port = 0}).value();
  auto pool_server = GrpcServer::start(*pool_dispatcher, {.port = 0}).value();

  auto target = [](int port) { return "127.0.0.1:" + std::to_string(port); };
  std::vector<double> plain, inlined, pooled;
  for (int round = 0; round < 5; ++round) {
    plain.push_back(throughput(target(bare_port)));
    inlined.push_back(throughput(target(inline_server->port())));
    pooled.push_back(throughput(target(pool_server->port())));
  }
  auto median = [](std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  };
  using Better = creto::testing::BenchReport::Better;
  report.add("bare generated gRPC service", median(plain), "calls/s", 0, 0, Better::higher);
  report.add("dispatcher, inline method, of bare", 100 * median(inlined) / median(plain), "%", 85, 95, Better::higher);
  report.add("dispatcher, method on the worker pool, of bare", 100 * median(pooled) / median(plain), "%", 70, 85,
             Better::higher);
  inline_server->stop();
  pool_server->stop();
  bare_server->Shutdown();
  return report.finish();
}

}  // namespace
}  // namespace creto::rpc

int main(int argc, char** argv) { return creto::rpc::run(argc, argv); }
