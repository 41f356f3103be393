#include "gateway/completion.h"

#include <nlohmann/json.hpp>

#include "errors.h"

namespace creto::runtime {

Result<inference::CompletionRequest> read_completion(const Json& json, const SandboxId& sandbox) {
  if (!json.is_object()) return invalid("request: must be an object");
  inference::CompletionRequest request;
  request.sandbox = sandbox;
  const auto number = [&](const char* key, double otherwise) {
    return json.contains(key) && json[key].is_number() ? json[key].get<double>() : otherwise;
  };
  if (json.contains("model") && json["model"].is_string()) request.model = json["model"];
  if (json.value("stream", Json(false)) == Json(true)) return invalid("stream: is not offered inside sandboxes");
  if (!json.contains("messages") || !json["messages"].is_array() || json["messages"].empty())
    return invalid("messages: must be a list");
  for (const auto& message : json["messages"]) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string() ||
        !message.contains("content") || !message["content"].is_string())
      return invalid("messages: each must have a role and text as content");
    auto role = inference::role_from_string(message["role"].get<std::string>());
    if (!role) return std::move(role).error();
    request.messages.push_back({*role, message["content"]});
  }
  const auto tokens = number("max_tokens", number("max_completion_tokens", 1024));
  if (tokens < 1 || tokens > 1'000'000) return invalid("max_tokens: must be 1 to 1000000");
  request.max_tokens = static_cast<std::uint32_t>(tokens);
  if (json.contains("temperature")) request.temperature = number("temperature", 0);
  if (json.contains("response_format") && json["response_format"].is_object())
    request.json = json["response_format"].value("type", Json()) == "json_object";
  return request;
}

}  // namespace creto::runtime
