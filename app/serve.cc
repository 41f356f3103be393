#include <fmt/format.h>
#include <signal.h>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "creto/io/http_server.h"
#include "creto/io/rpc.h"
#include "creto/io/tls.h"
#include "ports_file.h"
#include "services.h"
#include "system.h"
#include "wiring.h"

namespace creto::app {
namespace {

/// Signals are taken by the main thread alone, with sigwait; every other thread inherits the block.
class SignalWait {
 public:
  SignalWait() {
    sigemptyset(&set_);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set_, signal);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    signal(SIGPIPE, SIG_IGN);
  }
  int next() {
    int received = 0;
    while (sigwait(&set_, &received) != 0) {
    }
    return received;
  }

 private:
  sigset_t set_{};
};

http::Response health_response(const System& system) {
  const HealthReport report = run_health_checks(system.health_checks());
  Json checks = Json::object();
  for (const auto& entry : report.entries)
    checks[entry.name] = {{"status", std::string(to_string(entry.status.health))},
                          {"reason", entry.status.reason},
                          {"critical", entry.critical}};
  const bool good = report.overall.health != Health::unhealthy;
  const Json body = {{"status", std::string(to_string(report.overall.health))},
                     {"reason", report.overall.reason},
                     {"checks", std::move(checks)}};
  return http::Response::json(good ? 200 : 503, body.dump());
}

/// Everything that listens. Destroyed before the services behind it.
struct Doors {
  std::unique_ptr<rpc::Authenticator> authenticator;
  std::unique_ptr<rpc::Authorizer> authorizer;
  std::unique_ptr<rpc::Auditor> auditor;
  std::unique_ptr<rpc::Dispatcher> dispatcher;
  std::unique_ptr<rpc::GrpcServer> grpc;
  std::unique_ptr<http::Server> rest;
  std::unique_ptr<http::Server> health;
  std::unique_ptr<http::Server> metrics;
};

Result<Doors> open_doors(System& system) {
  const Settings& settings = system.settings;
  Doors doors;
  doors.authenticator = authenticate_with(*system.nhi, settings.org);
  doors.authorizer = authorize_with(*system.authz);
  doors.auditor = audit_with(*system.audit);
  doors.dispatcher = rpc::Dispatcher::create(
      {*doors.authenticator, *doors.authorizer, *doors.auditor, *system.telemetry, system_clock()});
  register_services(*doors.dispatcher, system);

  std::optional<tls::Identity> identity;
  if (settings.tls) {
    tls::Identity server;
    server.certificate = CRETO_TRY(read_text(system.home.server_certificate()));
    server.key = CRETO_TRY(read_text(system.home.server_key()));
    server.authority = CRETO_TRY(read_text(system.home.authority()));
    identity = std::move(server);
  }
  rpc::GrpcServerOptions grpc;
  grpc.address = settings.address;
  grpc.port = static_cast<std::uint16_t>(settings.grpc_port);
  grpc.tls = identity;
  grpc.health = [&system] { return run_health_checks(system.health_checks()).overall; };
  doors.grpc = CRETO_TRY(rpc::GrpcServer::start(*doors.dispatcher, grpc));

  http::ServerOptions rest;
  rest.address = settings.address;
  rest.port = static_cast<std::uint16_t>(settings.rest_port);
  rest.tls = identity;
  rest.body_bytes_of = [&dispatcher = *doors.dispatcher](const http::Request& head) {
    return dispatcher.rest_body_bytes_max(head);
  };
  doors.rest = CRETO_TRY(http::Server::start_async(rest, doors.dispatcher->rest(), *system.telemetry));

  http::ServerOptions health;
  health.address = settings.address;
  health.port = static_cast<std::uint16_t>(settings.health_port);
  health.workers = 2;
  doors.health = CRETO_TRY(http::Server::start(
      health,
      [&system](const http::Request& request) {
        // One answer for both: what listens has been assembled, and without what is critical it can do nothing.
        if (request.path() == "/health" || request.path() == "/ready") return health_response(system);
        return http::Response::text(404, "not found: /health and /ready\n");
      },
      *system.telemetry));

  http::ServerOptions metrics = health;
  metrics.port = static_cast<std::uint16_t>(settings.metrics_port);
  doors.metrics = CRETO_TRY(http::Server::start(
      metrics,
      [&system](const http::Request& request) {
        if (request.path() == "/metrics") return http::Response::text(200, system.telemetry->metrics());
        return http::Response::text(404, "not found: /metrics\n");
      },
      *system.telemetry));
  return doors;
}

}  // namespace

Result<Output> serve(const Home& home, const std::vector<std::string>& services) {
  CRETO_TRY(human_of(home));
  // Before signals are blocked, so that Ctrl-C ends the question for a passphrase.
  std::unique_ptr<crypto::KeySealer> sealer = CRETO_TRY(open_root_key(home));
  SignalWait signals;
  if (!tls::use_post_quantum_groups())
    return Error(Product::platform, ErrorKind::internal,
                 "TLS here does not offer X25519MLKEM768: is another OpenSSL mapped?");
  Settings settings = CRETO_TRY(Settings::load(home));
  if (!services.empty()) settings.services = services;
  CRETO_TRY(check_products(settings));
  if (settings.tls) CRETO_TRY(renew_server_certificate(home, settings.names));
  const std::unique_ptr<System> system = CRETO_TRY(assemble_core(home, settings, std::move(sealer)));
  CRETO_TRY(assemble_services(*system));
  Doors doors = CRETO_TRY(open_doors(*system));

  const auto at = [&](std::uint16_t port) { return fmt::format("{}:{}", settings.address, port); };
  const RunningPorts ports{at(doors.grpc->port()), at(doors.rest->port()), at(doors.metrics->port()),
                           at(doors.health->port())};
  CRETO_TRY(write_ports(home, ports));
  system->telemetry->info(
      "platform", "ready",
      {{"grpc", ports.grpc}, {"rest", ports.rest}, {"health", ports.health}, {"metrics", ports.metrics}});
  fmt::print("creto is ready: gRPC {}, REST {}, health {}, metrics {}\n", ports.grpc, ports.rest, ports.health,
             ports.metrics);
  std::fflush(stdout);

  for (;;) {
    const int signal = signals.next();
    if (signal != SIGHUP) break;
    // Settings that can change while we run; a mistake in the file is logged and changes nothing.
    const Result<Settings> reloaded = Settings::load(home);
    const Result<> applied = reloaded ? apply_reload(*system, *reloaded) : Result<>(reloaded.error());
    if (applied)
      system->telemetry->info("platform", "reloaded");
    else
      system->telemetry->error("platform", "reload_failed", {{"error", applied.error().to_string()}});
  }
  system->telemetry->info("platform", "stopping");
  remove_ports(home);
  doors.grpc->stop();
  doors.rest->stop();
  doors.health->stop();
  doors.metrics->stop();
  doors.dispatcher->stop();
  return Output{"stopped\n", "", 0};
}

}  // namespace creto::app
