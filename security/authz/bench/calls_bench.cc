#include "bench/calls_bench.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <thread>

#include "creto/authz/authz_rpc.h"
#include "creto/crypto/hash.h"
#include "creto/io/rpc_channel.h"
#include "creto/testing/databases.h"
#include "creto/testing/temp_dir.h"
#include "creto/testing/wire.h"
#include "echo.grpc.pb.h"

namespace creto::authz {
namespace {

using creto::testing::percentile;
using creto::testing::Wire;

constexpr std::size_t clients = 8, often = 5'000, seldom = 1'000;  // calls a second, of all clients together

/// What gRPC's own generated code makes of a service that does nothing.
class BareService final : public bench::v1::EchoService::CallbackService {
  grpc::ServerUnaryReactor* Echo(grpc::CallbackServerContext* context, const bench::v1::EchoMessage* request,
                                 bench::v1::EchoMessage* response) override {
    response->set_number(request->number());
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

/// How long each of `rate` calls a second took of several clients, each call on its own schedule: who waits for the one
/// before him waits on the report too. `call` has the client's number and the call's.
std::vector<double> at_rate(std::size_t rate, const std::function<void(std::size_t, std::size_t)>& call) {
  const std::size_t calls = 2 * rate / clients;  // of each client: two seconds
  constexpr std::chrono::seconds give_up(10);    // who cannot keep up has shown that by then
  std::vector<std::vector<double>> took(clients);
  const auto begin = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
  std::vector<std::jthread> threads;
  for (std::size_t client = 0; client < clients; ++client) {
    threads.emplace_back([&, client] {
      for (std::size_t i = 0; i < calls; ++i) {
        const auto due = begin + std::chrono::nanoseconds((i * clients + client) * (1'000'000'000 / rate));
        std::this_thread::sleep_until(due);
        if (std::chrono::steady_clock::now() > begin + give_up) break;
        call(client, i);
        const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - due;
        if (i > calls / 10) took[client].push_back(spent.count());
      }
    });
  }
  threads.clear();
  std::vector<double> all;
  for (const auto& one : took) all.insert(all.end(), one.begin(), one.end());
  return all;
}

double middle(std::vector<double> rounds) {
  std::sort(rounds.begin(), rounds.end());
  return percentile(rounds, 0.5);
}

/// Runs the other process; what its calls took, sorted. Empty where one failed.
std::vector<double> called(std::string_view what, const std::string& endpoint) {
  const std::string command =
      fmt::format("'{}' {} {} '{}'", std::filesystem::read_symlink("/proc/self/exe").string(), calling, what, endpoint);
  std::vector<double> took;
  FILE* answers = popen(command.c_str(), "r");
  if (answers == nullptr) return took;
  std::array<double, 512> some;
  while (const std::size_t count = std::fread(some.data(), sizeof(double), some.size(), answers))
    took.insert(took.end(), some.begin(), some.begin() + count);
  if (pclose(answers) != 0) took.clear();
  std::sort(took.begin(), took.end());
  return took;
}

}  // namespace

std::vector<CheckRequest> ten_thousand_requests() {
  const Identity human = Identity::human("ada@example.com").value();
  const Identity agent = Identity::agent(ByteArray<32>{1});
  std::vector<CheckRequest> requests;
  for (int i = 0; i < 10'000; ++i) {
    requests.push_back({.principal = agent,
                        .chain = {human, agent},
                        .action = fmt::format("act{}", i % 99),
                        .resource = {"Thing", fmt::format("thing-{}", i)},
                        .context = {{"amount", i % 5'000}, {"payee", "known vendor"}},
                        .arguments_hash = crypto::sha3_256(as_bytes(fmt::format("{}", i))),
                        .override_token = {}});
  }
  return requests;
}

bool over_grpc(creto::testing::BenchReport& report, Authz& authz) {
  creto::testing::TempDir folder;
  BareService bare;
  grpc::ServerBuilder builder;
  const std::string bare_address = "unix:" + (folder / "bare.sock").string();
  builder.AddListeningPort(bare_address, grpc::InsecureServerCredentials());
  builder.RegisterService(&bare);
  const auto bare_server = builder.BuildAndStart();
  Wire wire(system_clock());
  register_authz(wire.dispatcher(), authz);

  std::vector<double> medians, tails, bare_medians, bare_tails;
  for (int round = 0; round < 5; ++round) {
    const auto ours = called("check", wire.endpoint()), plain = called("echo", bare_address);
    if (ours.empty() || plain.empty()) return false;
    medians.push_back(1e3 * percentile(ours, 0.5));
    tails.push_back(1e3 * percentile(ours, 0.99));
    bare_medians.push_back(1e3 * percentile(plain, 0.5));
    bare_tails.push_back(1e3 * percentile(plain, 0.99));
  }
  report.add("Check over gRPC at 5 000/s, median", middle(medians), "ms", 1, 0.3);
  report.add("Check over gRPC at 5 000/s, p99", middle(tails), "ms", 1, 0.5);
  report.compare("a bare generated service at 5 000/s, median", middle(bare_medians), "ms");
  report.compare("a bare generated service at 5 000/s, p99", middle(bare_tails), "ms");
  bare_server->Shutdown();
  return true;
}

bool over_grpc_asking(creto::testing::BenchReport& report, Authz& authz) {
  Wire wire(system_clock());
  register_authz(wire.dispatcher(), authz);
  std::vector<double> medians, tails;
  for (int round = 0; round < 5; ++round) {
    const auto took = called("ask", wire.endpoint());
    if (took.empty()) return false;
    medians.push_back(1e3 * percentile(took, 0.5));
    tails.push_back(1e3 * percentile(took, 0.99));
  }
  report.compare("Check over gRPC that asks a product, 1 000/s, median", middle(medians), "ms");
  report.compare("Check over gRPC that asks a product, 1 000/s, p99", middle(tails), "ms");
  return true;
}

int call_the_server(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::string_view what = argv[2];
  const std::string endpoint = argv[3];
  const std::vector<CheckRequest> requests = ten_thousand_requests();
  const auto of = [&](std::size_t i) -> const CheckRequest& { return requests[i * 7'919 % requests.size()]; };
  std::vector<std::unique_ptr<Authz>> connections;
  std::vector<std::unique_ptr<bench::v1::EchoService::Stub>> stubs;
  creto::testing::TestDatabase database(creto::testing::DatabaseKind::sqlite);
  const auto db = database.open();
  for (std::size_t i = 0; i < clients; ++i) {
    rpc::ChannelOptions options;
    options.endpoint = endpoint;
    options.bearer = [] { return std::string("default"); };
    options.forward_caller = true;
    auto channel = rpc::Channel::connect(std::move(options), system_clock()).value();
    connections.push_back(create_authz_client(std::move(channel), *db, system_clock()).value());
    grpc::ChannelArguments arguments;
    arguments.SetInt("creto.client", static_cast<int>(i));  // a connection of its own
    stubs.push_back(bench::v1::EchoService::NewStub(
        grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(), arguments)));
  }
  std::atomic<std::int64_t> refused{0};
  const auto check = [&](std::size_t client, std::size_t i) {
    const Context ctx = Context::of_service(Identity::service("bench").value());
    if (!allowed(connections[client]->check(ctx, of(i)))) ++refused;
  };
  const auto ask = [&](std::size_t client, std::size_t i) {
    CheckRequest request = of(i);
    request.action = product_action;
    request.resource.type = product_type;
    const Context ctx = Context::of_service(Identity::service("bench").value());
    if (!allowed(connections[client]->check(ctx, request))) ++refused;
  };
  const auto echo = [&](std::size_t client, std::size_t i) {
    bench::v1::EchoMessage request, response;
    request.set_identity(of(i).principal.text());
    request.set_number(static_cast<std::int64_t>(i));
    grpc::ClientContext context;
    if (!stubs[client]->Echo(&context, request, &response).ok()) ++refused;
  };
  const std::vector<double> took = what == "check" ? at_rate(often, check)
                                   : what == "ask" ? at_rate(seldom, ask)
                                                   : at_rate(often, echo);
  return refused == 0 && std::fwrite(took.data(), sizeof(double), took.size(), stdout) == took.size() ? 0 : 1;
}

}  // namespace creto::authz
