#include <fmt/format.h>

#include "creto/inference/inference.h"
#include "creto/io/http_client.h"
#include "openai_wire.h"

namespace creto::inference {
namespace {

class OpenAiProvider final : public Provider {
 public:
  explicit OpenAiProvider(OpenAiOptions options)
      : options_(std::move(options)), client_(http::Client::create(system_clock())) {
    while (options_.base_url.ends_with('/')) options_.base_url.pop_back();
    capabilities_.context_tokens = options_.context_tokens;
    capabilities_.local = options_.local;
    capabilities_.default_model = options_.default_model;
    capabilities_.embeddings = !options_.default_embedding_model.empty();
  }

  const std::string& id() const override { return options_.id; }
  const Capabilities& capabilities() const override { return capabilities_; }

  Result<CompletionResponse> complete(const Context& ctx, const CompletionRequest& request) override {
    const auto answer =
        CRETO_TRY(post(ctx, "/chat/completions", openai::completion_request(request, model_of(request), false),
                       request.idempotency_key));
    auto response = CRETO_TRY(openai::parse_completion(answer.body));
    response.provider = options_.id;
    return response;
  }

  Result<CompletionResponse> stream(const Context& ctx, const CompletionRequest& request,
                                    const ChunkSink& sink) override {
    openai::EventReader reader;
    openai::Assembler assembler(sink);
    Result<> read;
    auto answer = post(ctx, "/chat/completions", openai::completion_request(request, model_of(request), true),
                       request.idempotency_key, [&](std::string_view piece) {
                         read = reader.feed(piece, [&](std::string_view data) { return assembler.event(data); });
                         return read.has_value();
                       });
    // What was wrong with the stream says more than that its reading was stopped.
    if (!read) return std::move(read).error();
    if (!answer) return std::move(answer).error();
    auto response = CRETO_TRY(assembler.finish());
    response.provider = options_.id;
    return response;
  }

  Result<Embeddings> embed(const Context& ctx, std::string_view model, const std::vector<std::string>& texts) override {
    if (texts.empty() || texts.size() > 2048) {
      return Error(Product::platform, ErrorKind::invalid_input, "`texts` must hold 1 to 2048 texts");
    }
    if (model.empty()) model = options_.default_embedding_model;
    const auto answer = CRETO_TRY(post(ctx, "/embeddings", openai::embedding_request(model, texts), {}));
    return openai::parse_embeddings(answer.body, texts.size());
  }

  HealthStatus health() override {
    http::ClientRequest request = prepared("GET", "/models");
    request.timeout = std::chrono::seconds(5);
    const auto answer = client_->send(Context(), request);
    if (!answer) return {Health::unhealthy, fmt::format("`{}` does not answer", options_.id)};
    if (answer->status >= 500) return {Health::unhealthy, fmt::format("`{}` answers {}", options_.id, answer->status)};
    if (answer->status != 200 && answer->status != 404) {
      return {Health::degraded, fmt::format("`{}` answers {}", options_.id, answer->status)};
    }
    return {};
  }

 private:
  std::string_view model_of(const CompletionRequest& request) const {
    return request.model.empty() ? std::string_view(options_.default_model) : request.model;
  }

  http::ClientRequest prepared(std::string method, std::string_view path) const {
    http::ClientRequest request;
    request.method = std::move(method);
    request.url = options_.base_url + std::string(path);
    request.timeout = options_.timeout;
    request.body_bytes_max = options_.response_bytes_max;
    if (!options_.api_key.empty()) {
      request.headers.emplace_back("Authorization", fmt::format("Bearer {}", options_.api_key.reveal_text()));
    }
    return request;
  }

  Result<http::Response> post(const Context& ctx, std::string_view path, std::string body, const std::string& key,
                              std::function<bool(std::string_view)> on_body = {}) {
    auto request = prepared("POST", path);
    request.headers.emplace_back("Content-Type", "application/json");
    if (!key.empty()) request.headers.emplace_back("Idempotency-Key", key);
    if (!ctx.trace.trace_id.empty() && !ctx.trace.span_id.empty()) {
      request.headers.emplace_back("traceparent", fmt::format("00-{}-{}-{}", ctx.trace.trace_id, ctx.trace.span_id,
                                                              ctx.trace.sampled ? "01" : "00"));
    }
    request.body = std::move(body);
    request.on_body = std::move(on_body);
    auto answer = client_->send(ctx, request);
    for (auto& [name, value] : request.headers) wipe(value.data(), value.size());
    if (!answer) return std::move(answer).error();
    if (answer->status != 200) {
      std::string_view retry_after;
      for (const auto& [name, value] : answer->headers) {
        if (name == "retry-after" || name == "Retry-After") retry_after = value;
      }
      return openai::parse_error(answer->status, retry_after, answer->body);
    }
    return std::move(*answer);
  }

  OpenAiOptions options_;
  Capabilities capabilities_;
  std::shared_ptr<http::Client> client_;
};

}  // namespace

Result<std::unique_ptr<Provider>> create_openai_provider(OpenAiOptions options) {
  if (!options.base_url.starts_with("http://") && !options.base_url.starts_with("https://")) {
    return Error(
        Product::platform, ErrorKind::invalid_input,
        fmt::format("`base_url` must begin with http:// or https://, not `{}`", options.base_url.substr(0, 100)));
  }
  return std::make_unique<OpenAiProvider>(std::move(options));
}

}  // namespace creto::inference
