#include <atomic>
#include <exception>
#include <memory>

#include "creto/io/rpc.h"
#include "creto/runtime/runtime_rpc.h"
#include "rpc/convert.h"
#include "tasks.h"

namespace creto::runtime {
namespace {

/// Threads for calls that wait for a sandbox. The dispatcher's few workers are for those that do not: eight slow
/// commands must not stop an approval.
class Waiting {
 public:
  static constexpr std::size_t calls_max = 256;

  explicit Waiting(std::size_t threads) { tasks_.start(threads); }

  /// A deferred handler of what `handler` answers.
  template <class Req, class Res, class F>
  static auto on(const std::shared_ptr<Waiting>& here, F handler) {
    return [here, handler](const Context& ctx, const Req& request, const rpc::Reply<Res>& reply) {
      if (here->calls_.fetch_add(1) >= calls_max) {
        --here->calls_;
        return reply(Error(Product::runtime, ErrorKind::unavailable, "too many calls wait for sandboxes; repeat")
                         .with_retryable(true));
      }
      here->tasks_.post([self = here.get(), handler, ctx, request, reply] {
        try {
          reply(handler(ctx, request));
        } catch (const std::exception& problem) {  // as the dispatcher does: no call ends the server
          reply(Error(Product::runtime, ErrorKind::internal, problem.what()));
        }
        --self->calls_;
      });
    };
  }

 private:
  std::atomic<std::size_t> calls_ = 0;
  Tasks tasks_;
};

template <class Req>
rpc::Resource sandbox_of(const Req& request) {
  return {"Sandbox", request.id()};
}

}  // namespace

void register_runtime(rpc::Dispatcher& dispatcher, Runtime& runtime) {
  auto service = dispatcher.service("creto.runtime.v1.RuntimeService");
  // Apart, so that commands that take their time are in no spawn's way.
  const auto commands = std::make_shared<Waiting>(16);
  const auto lives = std::make_shared<Waiting>(8);

  service.deferred<v1::SpawnSandboxRequest, v1::SpawnSandboxResponse>(
      "SpawnSandbox", {.resource = [](const auto& r) { return rpc::Resource{"Image", r.image()}; }},
      Waiting::on<v1::SpawnSandboxRequest, v1::SpawnSandboxResponse>(
          lives, [&runtime](const Context& ctx, const v1::SpawnSandboxRequest& r) -> Result<v1::SpawnSandboxResponse> {
            const auto spec = CRETO_TRY(from_proto(r));
            const auto result = CRETO_TRY(runtime.spawn(ctx, spec));
            v1::SpawnSandboxResponse response;
            to_proto(result, response);
            return response;
          }));
  service.deferred<v1::SpawnChildRequest, v1::SpawnSandboxResponse>(
      "SpawnChild", {.resource = [](const auto& r) { return rpc::Resource{"Sandbox", r.parent()}; }},
      Waiting::on<v1::SpawnChildRequest, v1::SpawnSandboxResponse>(
          lives, [&runtime](const Context& ctx, const v1::SpawnChildRequest& r) -> Result<v1::SpawnSandboxResponse> {
            const auto parent = CRETO_TRY(proto::from_id<SandboxId>(r.parent(), "parent"));
            auto spec = CRETO_TRY(from_proto(r.spec()));
            const auto result = CRETO_TRY(runtime.spawn_child(ctx, parent, std::move(spec)));
            v1::SpawnSandboxResponse response;
            to_proto(result, response);
            return response;
          }));
  service.deferred<v1::ExecSandboxRequest, v1::ExecSandboxResponse>(
      "ExecSandbox", {.resource = sandbox_of<v1::ExecSandboxRequest>},
      Waiting::on<v1::ExecSandboxRequest, v1::ExecSandboxResponse>(
          commands, [&runtime](const Context& ctx, const v1::ExecSandboxRequest& r) -> Result<v1::ExecSandboxResponse> {
            const auto id = CRETO_TRY(proto::from_id<SandboxId>(r.id(), "id"));
            const auto request = CRETO_TRY(from_proto(r));
            auto result = CRETO_TRY(runtime.exec(ctx, id, request));
            v1::ExecSandboxResponse response;
            response.set_exit_code(result.exit_code);
            response.set_out(std::move(result.out));
            response.set_err(std::move(result.err));
            response.set_timed_out(result.timed_out);
            return response;
          }));
  service.deferred<v1::SandboxRequest, v1::Sandbox>(
      "TerminateSandbox", {.idempotent = true, .resource = sandbox_of<v1::SandboxRequest>},
      Waiting::on<v1::SandboxRequest, v1::Sandbox>(
          lives, [&runtime](const Context& ctx, const v1::SandboxRequest& r) -> Result<v1::Sandbox> {
            const auto id = CRETO_TRY(proto::from_id<SandboxId>(r.id(), "id"));
            const auto sandbox = CRETO_TRY(runtime.terminate(ctx, id));
            v1::Sandbox response;
            to_proto(sandbox, response);
            return response;
          }));
  service.unary<v1::SandboxRequest, v1::Sandbox>(
      "GetSandbox", {.idempotent = true, .resource = sandbox_of<v1::SandboxRequest>},
      [&runtime](const Context& ctx, const v1::SandboxRequest& r) -> Result<v1::Sandbox> {
        const auto id = CRETO_TRY(proto::from_id<SandboxId>(r.id(), "id"));
        const auto sandbox = CRETO_TRY(runtime.get(ctx, id));
        v1::Sandbox response;
        to_proto(sandbox, response);
        return response;
      });
  service.deferred<v1::SandboxRequest, v1::Sandbox>(
      "WaitSandbox", {.idempotent = true, .resource = sandbox_of<v1::SandboxRequest>},
      [&runtime](const Context& ctx, const v1::SandboxRequest& r, const rpc::Reply<v1::Sandbox>& reply) {
        const auto id = proto::from_id<SandboxId>(r.id(), "id");
        if (!id) return reply(Error(id.error()));
        auto waiting = runtime.when_terminated(ctx, *id, [reply](const Sandbox& sandbox) {
          v1::Sandbox response;
          to_proto(sandbox, response);
          reply(std::move(response));
        });
        if (!waiting) reply(std::move(waiting).error());
      });
  service.unary<v1::ListSandboxesRequest, v1::ListSandboxesResponse>(
      "ListSandboxes", {.idempotent = true},
      [&runtime](const Context& ctx, const v1::ListSandboxesRequest& r) -> Result<v1::ListSandboxesResponse> {
        SandboxFilter filter;
        if (!r.agent().empty()) filter.agent = CRETO_TRY(proto::from_identity(r.agent(), "agent"));
        for (const auto state : {SandboxState::starting, SandboxState::running, SandboxState::terminated})
          if (r.state() == to_string(state)) filter.state = state;
        if (!r.state().empty() && !filter.state)
          return proto::bad_field("state", "must be starting, running or terminated");
        if (!r.page().token().empty())
          filter.after = CRETO_TRY(proto::from_id<SandboxId>(r.page().token(), "page.token"));
        if (r.page().size() < 0 || r.page().size() > 1000) return proto::bad_field("page.size", "must be 1 to 1000");
        if (r.page().size() > 0) filter.limit = static_cast<std::size_t>(r.page().size());
        const auto sandboxes = CRETO_TRY(runtime.list(ctx, filter));
        v1::ListSandboxesResponse response;
        for (const auto& sandbox : sandboxes) to_proto(sandbox, *response.add_sandboxes());
        if (sandboxes.size() == filter.limit) response.set_next_token(sandboxes.back().id.to_string());
        return response;
      });
  service.unary<v1::ReadOutputRequest, v1::ReadOutputResponse>(
      "ReadOutput", {.idempotent = true, .resource = sandbox_of<v1::ReadOutputRequest>},
      [&runtime](const Context& ctx, const v1::ReadOutputRequest& r) -> Result<v1::ReadOutputResponse> {
        const auto id = CRETO_TRY(proto::from_id<SandboxId>(r.id(), "id"));
        if (!r.stream().empty() && r.stream() != "stdout" && r.stream() != "stderr")
          return proto::bad_field("stream", "must be stdout or stderr");
        const auto stream = r.stream() == "stderr" ? OutputStream::err : OutputStream::out;
        auto chunk = CRETO_TRY(runtime.output(ctx, id, stream, r.offset()));
        v1::ReadOutputResponse response;
        response.set_data(std::move(chunk.bytes));
        response.set_next_offset(chunk.next_offset);
        response.set_complete(chunk.complete);
        return response;
      });
  service.unary<v1::Attestation, v1::VerifyAttestationResponse>(
      "VerifyAttestation", {.access = rpc::Access::authenticated, .idempotent = true},
      [&runtime](const Context& ctx, const v1::Attestation& r) -> Result<v1::VerifyAttestationResponse> {
        CRETO_TRY(runtime.verify_attestation(ctx, from_proto(r)));
        return v1::VerifyAttestationResponse();
      });
  service.unary<v1::ListImagesRequest, v1::ListImagesResponse>(
      "ListImages", {.idempotent = true},
      [&runtime](const Context& ctx, const v1::ListImagesRequest&) -> Result<v1::ListImagesResponse> {
        const auto images = CRETO_TRY(runtime.list_images(ctx));
        v1::ListImagesResponse response;
        for (const auto& image : images) {
          auto* one = response.add_images();
          one->set_name(image.name);
          one->set_digest(image.digest);
        }
        return response;
      });
  service.unary<v1::GetRuntimeStatusRequest, v1::RuntimeStatus>(
      "GetRuntimeStatus", {.idempotent = true},
      [&runtime](const Context& ctx, const v1::GetRuntimeStatusRequest&) -> Result<v1::RuntimeStatus> {
        const auto status = CRETO_TRY(runtime.status(ctx));
        v1::RuntimeStatus response;
        response.set_runtime_class(status.runtime_class);
        response.set_isolation(status.isolation);
        response.set_version(status.version);
        response.set_cgroups(status.cgroups);
        response.set_network(status.network);
        response.set_pool_ready(static_cast<std::uint32_t>(status.pool_ready));
        response.set_pool_size(static_cast<std::uint32_t>(status.pool_size));
        response.set_running(static_cast<std::uint32_t>(status.running));
        return response;
      });
}

}  // namespace creto::runtime
