#include "creto/inference/inference_rpc.h"
#include "creto/io/rpc.h"
#include "rpc/convert.h"

namespace creto::inference {

void register_inference(rpc::Dispatcher& dispatcher, Inference& inference) {
  auto service = dispatcher.service("creto.inference.v1.InferenceService");

  service.unary<v1::CompleteRequest, v1::CompleteResponse>(
      "Complete",
      {.action = "inference.call",
       .resource = [](const v1::CompleteRequest& r) { return rpc::Resource{"Model", r.model()}; }},
      [&inference](const Context& ctx, const v1::CompleteRequest& r) -> Result<v1::CompleteResponse> {
        const auto request = CRETO_TRY(from_proto(r));
        const auto response = CRETO_TRY(inference.complete(ctx, request));
        v1::CompleteResponse out;
        to_proto(response, out);
        return out;
      });
  service.stream<v1::CompleteRequest, v1::CompleteChunk>(
      "CompleteStream",
      {.action = "inference.call",
       .resource = [](const v1::CompleteRequest& r) { return rpc::Resource{"Model", r.model()}; }},
      [&inference](const Context& ctx, const v1::CompleteRequest& r, rpc::Stream<v1::CompleteChunk> stream) {
        auto request = from_proto(r);
        if (!request) return stream.finish(std::move(request).error());
        auto response = inference.stream(ctx, *request, [&](std::string_view text) {
          v1::CompleteChunk chunk;
          chunk.set_text(std::string(text));
          return stream.send(chunk);
        });
        if (!response) return stream.finish(std::move(response).error());
        v1::CompleteChunk last;
        to_proto(*response, *last.mutable_response());
        stream.send(last);
        stream.finish();
      });
  service.unary<v1::EmbedRequest, v1::EmbedResponse>(
      "Embed",
      {.action = "inference.call",
       .resource = [](const v1::EmbedRequest& r) { return rpc::Resource{"Model", r.model()}; }},
      [&inference](const Context& ctx, const v1::EmbedRequest& r) -> Result<v1::EmbedResponse> {
        const std::vector<std::string> texts(r.texts().begin(), r.texts().end());
        const auto made = CRETO_TRY(inference.embed(ctx, r.model(), texts));
        v1::EmbedResponse out;
        to_proto(made, out);
        return out;
      });
  service.unary<v1::GetCapabilitiesRequest, v1::Capabilities>(
      "GetCapabilities", {.access = rpc::Access::authenticated, .idempotent = true},
      [&inference](const Context&, const v1::GetCapabilitiesRequest&) -> Result<v1::Capabilities> {
        v1::Capabilities out;
        to_proto(inference.capabilities(), out);
        return out;
      });
}

}  // namespace creto::inference
