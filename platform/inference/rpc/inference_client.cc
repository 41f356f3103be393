#include "creto/inference/inference_rpc.h"
#include "creto/io/rpc_channel.h"
#include "rpc/convert.h"

namespace creto::inference {
namespace {

class InferenceClient final : public Inference {
 public:
  explicit InferenceClient(std::shared_ptr<rpc::Channel> channel) : channel_(std::move(channel)) {}

  Result<CompletionResponse> complete(const Context& ctx, const CompletionRequest& request) override {
    if (request.max_tokens == 0) return Error(Product::platform, ErrorKind::invalid_input, "`max_tokens` is 0");
    v1::CompleteRequest message;
    to_proto(request, message);
    const auto answer = CRETO_TRY((call<v1::CompleteResponse>(ctx, "Complete", message)));
    return from_proto(answer);
  }

  Result<CompletionResponse> stream(const Context& ctx, const CompletionRequest& request,
                                    const ChunkSink& sink) override {
    if (request.max_tokens == 0) return Error(Product::platform, ErrorKind::invalid_input, "`max_tokens` is 0");
    v1::CompleteRequest message;
    to_proto(request, message);
    std::optional<v1::CompleteResponse> last;
    bool stopped = false;
    auto read = channel_->stream<v1::CompleteChunk>(ctx, method("CompleteStream"), message,
                                                    [&](const v1::CompleteChunk& chunk) {
                                                      if (chunk.has_response()) last = chunk.response();
                                                      if (!chunk.text().empty()) stopped = !sink(chunk.text());
                                                      return !stopped;
                                                    });
    if (stopped) return Error(Product::platform, ErrorKind::cancelled, "the stream was stopped");
    if (!read) return std::move(read).error();
    if (!last) return Error(Product::platform, ErrorKind::unavailable, "the stream broke off before its end");
    return from_proto(*last);
  }

  Result<Embeddings> embed(const Context& ctx, std::string_view model, const std::vector<std::string>& texts) override {
    v1::EmbedRequest request;
    request.set_model(std::string(model));
    for (const auto& text : texts) request.add_texts(text);
    const auto made = CRETO_TRY((call<v1::EmbedResponse>(ctx, "Embed", request)));
    return from_proto(made);
  }

  Capabilities capabilities() const override {
    const auto found = channel_->call<v1::GetCapabilitiesRequest, v1::Capabilities>(
        Context(), method("GetCapabilities"), v1::GetCapabilitiesRequest(), {.idempotent = true});
    return found ? from_proto(*found) : Capabilities{false, false, false, 0, false};
  }

  /// Whether the service answers at all; its own health is at its health endpoint.
  HealthStatus health() override {
    auto answered = call<v1::Capabilities>(Context(), "GetCapabilities", v1::GetCapabilitiesRequest());
    if (!answered && answered.error().category() == ErrorCategory::transient) {
      return {Health::unhealthy, "inference does not answer"};
    }
    return {};
  }

 private:
  static std::string method(std::string_view name) {
    return "/creto.inference.v1.InferenceService/" + std::string(name);
  }

  template <class Res, class Req>
  Result<Res> call(const Context& ctx, std::string_view name, const Req& request) {
    return channel_->call<Req, Res>(ctx, method(name), request);
  }

  const std::shared_ptr<rpc::Channel> channel_;
};

}  // namespace

std::unique_ptr<Inference> create_inference_client(std::shared_ptr<rpc::Channel> channel) {
  return std::make_unique<InferenceClient>(std::move(channel));
}

}  // namespace creto::inference
