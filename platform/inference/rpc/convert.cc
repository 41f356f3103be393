#include "rpc/convert.h"

namespace creto::inference {

void to_proto(const CompletionRequest& from, v1::CompleteRequest& to) {
  to.set_model(from.model);
  for (const auto& message : from.messages) {
    auto& out = *to.add_messages();
    out.set_role(std::string(to_string(message.role)));
    out.set_content(message.content);
  }
  to.set_max_tokens(from.max_tokens);
  if (from.temperature) to.set_temperature(*from.temperature);
  for (const auto& stop : from.stop) to.add_stop(stop);
  to.set_json(from.json);
  if (from.sandbox) to.set_sandbox_id(from.sandbox->to_string());
  to.set_classification(from.classification);
  to.set_idempotency_key(from.idempotency_key);
}

Result<CompletionRequest> from_proto(const v1::CompleteRequest& from) {
  CompletionRequest request;
  request.model = from.model();
  for (const auto& message : from.messages()) {
    const auto role = CRETO_TRY(role_from_string(message.role()));
    request.messages.push_back(Message{role, message.content()});
  }
  if (from.max_tokens() != 0) request.max_tokens = from.max_tokens();
  if (from.has_temperature()) request.temperature = from.temperature();
  request.stop.assign(from.stop().begin(), from.stop().end());
  request.json = from.json();
  if (!from.sandbox_id().empty()) request.sandbox = CRETO_TRY(SandboxId::parse(from.sandbox_id()));
  request.classification = from.classification();
  request.idempotency_key = from.idempotency_key();
  return request;
}

void to_proto(const TokenUsage& from, v1::TokenUsage& to) {
  to.set_prompt_tokens(from.prompt_tokens);
  to.set_cached_prompt_tokens(from.cached_prompt_tokens);
  to.set_completion_tokens(from.completion_tokens);
  to.set_reasoning_tokens(from.reasoning_tokens);
}

TokenUsage from_proto(const v1::TokenUsage& from) {
  return {from.prompt_tokens(), from.cached_prompt_tokens(), from.completion_tokens(), from.reasoning_tokens()};
}

void to_proto(const CompletionResponse& from, v1::CompleteResponse& to) {
  to.set_id(from.id);
  to.set_provider(from.provider);
  to.set_model(from.model);
  to.set_content(from.content);
  to.set_finish_reason(std::string(to_string(from.finish_reason)));
  to_proto(from.usage, *to.mutable_usage());
  if (!from.flagged) return;
  to.mutable_flagged()->set_score(from.flagged->score);
  for (const auto& rule : from.flagged->rules) to.mutable_flagged()->add_rules(rule);
  to.mutable_flagged()->set_excerpt(from.flagged->excerpt);
}

Result<CompletionResponse> from_proto(const v1::CompleteResponse& from) {
  CompletionResponse response;
  response.id = from.id();
  response.provider = from.provider();
  response.model = from.model();
  response.content = from.content();
  response.finish_reason = CRETO_TRY(finish_reason_from_string(from.finish_reason()));
  response.usage = from_proto(from.usage());
  if (from.has_flagged()) {
    const auto& rules = from.flagged().rules();
    response.flagged = InjectionFinding{from.flagged().score(), {rules.begin(), rules.end()}, from.flagged().excerpt()};
  }
  return response;
}

void to_proto(const Embeddings& from, v1::EmbedResponse& to) {
  to.set_model(from.model);
  for (const auto& vector : from.vectors) to.add_embeddings()->mutable_values()->Add(vector.begin(), vector.end());
  to_proto(from.usage, *to.mutable_usage());
}

Embeddings from_proto(const v1::EmbedResponse& from) {
  Embeddings out{from.model(), {}, from_proto(from.usage())};
  for (const auto& one : from.embeddings()) out.vectors.emplace_back(one.values().begin(), one.values().end());
  return out;
}

void to_proto(const Capabilities& from, v1::Capabilities& to) {
  to.set_streaming(from.streaming);
  to.set_embeddings(from.embeddings);
  to.set_json(from.json);
  to.set_context_tokens(from.context_tokens);
  to.set_local(from.local);
}

Capabilities from_proto(const v1::Capabilities& from) {
  return {from.streaming(), from.embeddings(), from.json(), from.context_tokens(), from.local()};
}

}  // namespace creto::inference
