#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <nlohmann/json.hpp>

#include "creto/audit/audit_log.h"
#include "creto/io/http_server.h"
#include "runtime_service.h"
#include "spec.h"

namespace creto::runtime {
namespace {

int exit_code_of(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

}  // namespace

Result<ExecResult> RuntimeService::exec(const Context& ctx, const SandboxId& id, const ExecRequest& request) {
  const auto live = find_live(ctx.org, id);
  if (!live) return not_here(id);
  CRETO_TRY(may_touch(ctx, *live->record));
  if (request.command.empty()) return invalid("command: must not be empty");
  CRETO_TRY(check_strings("command", request.command));
  CRETO_TRY(check_environment(request.environment));
  if (request.input.size() > 1 << 20)
    return Error(Product::runtime, ErrorKind::too_large, "input: is larger than 1 MiB");
  auto record = audit::AuditRecord::of(ctx, "sandbox_exec", sandbox_uri(id));
  record.metadata = Json{{"command", request.command}}.dump();
  CRETO_TRY(sql::write(services_.database, ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(audit::record(tx, ctx, record));
    return {};
  }));
  const bool connected =
      live->wait_connected(std::min(ctx.deadline, services_.clock.monotonic() + options_.ready_timeout));
  if (!connected && live->ended()) return not_here(id);
  if (!connected)
    return Error(Product::runtime, ErrorKind::unavailable, "the sandbox has not come back to this server yet");
  const auto stream = live->begin_stream();
  const auto forget = std::shared_ptr<void>(nullptr, [&](void*) { live->forget_stream(stream); });
  std::vector<std::string> environment;
  for (const auto& [name, value] : request.environment) environment.push_back(name + "=" + value);
  CRETO_TRY(hub_->start(id, stream, request.working_directory, request.command, environment));
  for (std::size_t at = 0; at < request.input.size(); at += 256 << 10)
    CRETO_TRY(hub_->input(id, stream, std::string_view(request.input).substr(at, 256 << 10)));
  CRETO_TRY(hub_->input(id, stream, {}));
  ExecResult result;
  auto command = live->wait_over(stream, std::min(ctx.deadline, services_.clock.monotonic() + request.timeout));
  if (!command) {
    result.timed_out = true;
    CRETO_TRY(hub_->signal(id, stream, SIGKILL));
    command = live->wait_over(stream, services_.clock.monotonic() + std::chrono::seconds(5));
    if (!command) return Error(Product::runtime, ErrorKind::timeout, "the command did not end");
  }
  if (!command->failure.empty())
    return Error(Product::runtime, ErrorKind::invalid_input, fmt::format("command: {}", command->failure));
  result.exit_code = exit_code_of(command->status);
  result.out = std::move(command->out);
  result.err = std::move(command->err);
  return result;
}

Result<> RuntimeService::open_gateway(const Live& live) {
  live->gateway_directory.reset(::open(live->run_directory().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!live->gateway_directory.valid()) return system_error("cannot open the sandbox' directory");
  const auto& record = *live->record;
  const Principal principal{record.sandbox.agent, record.sandbox.delegation_chain};
  GatewayHooks hooks;
  hooks.context = [this, org = record.org, principal] {
    auto ctx = Context::of(principal.agent, principal.chain);
    ctx.org = org;
    ctx.deadline = services_.clock.monotonic() + std::chrono::minutes(5);
    return ctx;
  };
  hooks.spawn_child = [this, id = live->id](const Context& ctx, SandboxSpec spec) {
    return spawn_child(ctx, id, std::move(spec));
  };
  const auto own_child = [this, id = live->id](const Context& ctx, const SandboxId& child) -> Result<Sandbox> {
    auto sandbox = CRETO_TRY(get(ctx, child));
    if (sandbox.parent != id)
      return Error(Product::runtime, ErrorKind::not_found, fmt::format("there is no sandbox `{}`", child.to_string()));
    return sandbox;
  };
  hooks.child = own_child;
  hooks.end_child = [this, own_child](const Context& ctx, const SandboxId& child) -> Result<Sandbox> {
    CRETO_TRY(own_child(ctx, child));
    return terminate(ctx, child);
  };
  http::ServerOptions server;
  // Through a descriptor: the path itself may be longer than a unix socket's address.
  server.unix_path = fmt::format("/proc/self/fd/{}/gateway.sock", live->gateway_directory.get());
  server.unix_mode = 0666;
  server.io_threads = 1;
  server.workers = 1;
  server.connections_max = 64;
  server.body_bytes_max = 2 << 20;
  live->gateway =
      CRETO_TRY(http::Server::start_async(server,
                                          gateway_handler({record.org, live->id, principal.agent, principal.chain},
                                                          *doors_, services_, gateway_tasks_, std::move(hooks)),
                                          services_.telemetry));
  return {};
}

void RuntimeService::arm(const Live& live) {
  live->on_command_end = [this, weak = std::weak_ptr(live)](int status) {
    tasks_.post([this, weak, status] {
      const auto sandbox = weak.lock();
      if (!sandbox) return;
      const int code = exit_code_of(status);
      finish(sandbox, code == 0 ? TerminationReason::completed : TerminationReason::failed,
             code == 0 ? "" : fmt::format("exit code {}", code), code);
    });
  };
}

void RuntimeService::begin(const Live& live) {
  const auto& record = *live->record;
  if (!record.sandbox.command.empty()) start_command(live);
  if (record.sandbox.limits.time > Nanos(0)) {
    const auto left = *record.sandbox.ready_at + record.sandbox.limits.time - services_.clock.now();
    tasks_.post_after(std::max<Nanos>(left, Nanos(0)), [this, weak = std::weak_ptr(live)] {
      if (const auto sandbox = weak.lock())
        finish(sandbox, TerminationReason::timeout, "over its time limit", std::nullopt);
    });
  }
}

void RuntimeService::start_command(const Live& live) {
  live->when_connected([this, weak = std::weak_ptr(live)] {
    tasks_.post([this, weak] {
      const auto sandbox = weak.lock();
      if (!sandbox || sandbox->finishing) return;
      const auto& record = *sandbox->record;
      auto started = hub_->start(sandbox->id, command_stream, record.working_directory, record.sandbox.command, {});
      if (started) started = hub_->input(sandbox->id, command_stream, {});
      if (started) return;
      if (started.error().kind() == ErrorKind::unavailable) return start_command(sandbox);  // lost it meanwhile
      finish(sandbox, TerminationReason::failed, started.error().to_string(), std::nullopt);
    });
  });
}

}  // namespace creto::runtime
