#include <thread>

#include "creto/io/rpc_channel.h"
#include "creto/runtime/runtime_rpc.h"
#include "rpc/convert.h"

namespace creto::runtime {
namespace {

constexpr rpc::CallOptions repeatable{.idempotent = true};

class RuntimeClient final : public Runtime {
 public:
  explicit RuntimeClient(std::shared_ptr<rpc::Channel> channel) : channel_(std::move(channel)) {}

  Result<SpawnResult> spawn(const Context& ctx, const SandboxSpec& spec) override {
    v1::SpawnSandboxRequest request;
    to_proto(spec, request);
    const auto response = CRETO_TRY(
        call<v1::SpawnSandboxResponse>(ctx, "SpawnSandbox", request, {.idempotent = !ctx.idempotency_key.empty()}));
    return from_proto(response);
  }
  Result<SpawnResult> spawn_child(const Context& ctx, const SandboxId& parent, SandboxSpec spec) override {
    v1::SpawnChildRequest request;
    request.set_parent(parent.to_string());
    to_proto(spec, *request.mutable_spec());
    const auto response = CRETO_TRY(
        call<v1::SpawnSandboxResponse>(ctx, "SpawnChild", request, {.idempotent = !ctx.idempotency_key.empty()}));
    return from_proto(response);
  }
  Result<ExecResult> exec(const Context& ctx, const SandboxId& id, const ExecRequest& request) override {
    v1::ExecSandboxRequest message;
    to_proto(request, message);
    message.set_id(id.to_string());
    auto response = CRETO_TRY(call<v1::ExecSandboxResponse>(ctx, "ExecSandbox", message));
    return ExecResult{response.exit_code(), std::move(*response.mutable_out()), std::move(*response.mutable_err()),
                      response.timed_out()};
  }
  Result<Sandbox> terminate(const Context& ctx, const SandboxId& id) override {
    return about(ctx, "TerminateSandbox", id);
  }
  Result<Sandbox> get(const Context& ctx, const SandboxId& id) override { return about(ctx, "GetSandbox", id); }
  Result<std::vector<Sandbox>> list(const Context& ctx, const SandboxFilter& filter) override {
    v1::ListSandboxesRequest request;
    if (filter.agent) request.set_agent(filter.agent->text());
    if (filter.state) request.set_state(std::string(to_string(*filter.state)));
    if (filter.after) request.mutable_page()->set_token(filter.after->to_string());
    if (filter.limit < 1 || filter.limit > 1000)
      return Error(Product::runtime, ErrorKind::invalid_input, "limit: must be 1 to 1000");
    request.mutable_page()->set_size(static_cast<std::int32_t>(filter.limit));
    const auto response = CRETO_TRY(call<v1::ListSandboxesResponse>(ctx, "ListSandboxes", request, repeatable));
    std::vector<Sandbox> sandboxes;
    for (const auto& one : response.sandboxes()) {
      auto sandbox = CRETO_TRY(from_proto(one));
      sandboxes.push_back(std::move(sandbox));
    }
    return sandboxes;
  }
  Result<OutputChunk> output(const Context& ctx, const SandboxId& id, OutputStream stream,
                             std::uint64_t offset) override {
    v1::ReadOutputRequest request;
    request.set_id(id.to_string());
    request.set_stream(stream == OutputStream::out ? "stdout" : "stderr");
    request.set_offset(offset);
    auto response = CRETO_TRY(call<v1::ReadOutputResponse>(ctx, "ReadOutput", request, repeatable));
    return OutputChunk{std::move(*response.mutable_data()), response.next_offset(), response.complete()};
  }
  /// A thread waits for the far end: the border between processes is the one place where a wait costs one.
  Result<> when_terminated(const Context& ctx, const SandboxId& id,
                           std::function<void(const Sandbox&)> on_end) override {
    auto now = CRETO_TRY(get(ctx, id));
    if (now.state == SandboxState::terminated) {
      on_end(now);
      return {};
    }
    std::thread([channel = channel_, ctx, id, on_end = std::move(on_end)] {
      v1::SandboxRequest request;
      request.set_id(id.to_string());
      for (;;) {
        auto response = channel->call<v1::SandboxRequest, v1::Sandbox>(ctx, path("WaitSandbox"), request, repeatable);
        if (response) {
          if (const auto sandbox = from_proto(*response)) on_end(*sandbox);
          return;
        }
        if (response.error().kind() != ErrorKind::timeout || ctx.expired(system_clock())) return;
      }
    }).detach();
    return {};
  }
  Result<> verify_attestation(const Context& ctx, const Attestation& attestation) override {
    v1::Attestation request;
    to_proto(attestation, request);
    CRETO_TRY(call<v1::VerifyAttestationResponse>(ctx, "VerifyAttestation", request, repeatable));
    return {};
  }
  Result<std::vector<ImageInfo>> list_images(const Context& ctx) override {
    const auto response =
        CRETO_TRY(call<v1::ListImagesResponse>(ctx, "ListImages", v1::ListImagesRequest(), repeatable));
    std::vector<ImageInfo> images;
    for (const auto& image : response.images()) images.push_back({image.name(), image.digest()});
    return images;
  }
  Result<RuntimeStatus> status(const Context& ctx) override {
    const auto r =
        CRETO_TRY(call<v1::RuntimeStatus>(ctx, "GetRuntimeStatus", v1::GetRuntimeStatusRequest(), repeatable));
    return RuntimeStatus{r.runtime_class(), r.isolation(),  r.version(),   r.cgroups(),
                         r.network(),       r.pool_ready(), r.pool_size(), r.running()};
  }
  Result<std::size_t> sweep(const Context&) override {
    return Error(Product::runtime, ErrorKind::unavailable, "sweeping belongs to the runtime itself");
  }
  HealthStatus health() override {
    const auto answered = status(Context());
    if (answered) return {};
    return {Health::unhealthy, answered.error().message()};
  }

 private:
  static std::string path(std::string_view method) { return "/creto.runtime.v1.RuntimeService/" + std::string(method); }

  template <class Res, class Req>
  Result<Res> call(const Context& ctx, std::string_view method, const Req& request, rpc::CallOptions options = {}) {
    return channel_->call<Req, Res>(ctx, path(method), request, options);
  }
  Result<Sandbox> about(const Context& ctx, std::string_view method, const SandboxId& id) {
    v1::SandboxRequest request;
    request.set_id(id.to_string());
    const auto response = CRETO_TRY(call<v1::Sandbox>(ctx, method, request, repeatable));
    return from_proto(response);
  }

  std::shared_ptr<rpc::Channel> channel_;
};

}  // namespace

std::unique_ptr<Runtime> create_runtime_client(std::shared_ptr<rpc::Channel> channel) {
  return std::make_unique<RuntimeClient>(std::move(channel));
}

}  // namespace creto::runtime
