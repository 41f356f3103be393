#include "openai_wire.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "creto/common/json.h"

namespace creto::inference::openai {
namespace {

constexpr std::size_t event_bytes_max = 1u << 20;
constexpr JsonLimits limits{.bytes_max = 64u << 20, .depth_max = 32};

Error bad_answer(std::string_view what) {
  return Error(Product::platform, ErrorKind::internal,
               fmt::format("the provider's answer cannot be understood: {}", what));
}

std::string text_or(const Json& object, const char* key, const std::string& otherwise) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : otherwise;
}

std::int64_t count_or_zero(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number_integer()) return 0;
  const auto value = found->get<std::int64_t>();
  return value < 0 || value > (std::int64_t{1} << 40) ? 0 : value;
}

TokenUsage read_usage(const Json& object) {
  TokenUsage usage;
  const auto found = object.find("usage");
  if (found == object.end() || !found->is_object()) return usage;
  usage.prompt_tokens = count_or_zero(*found, "prompt_tokens");
  usage.completion_tokens = count_or_zero(*found, "completion_tokens");
  const auto prompt = found->find("prompt_tokens_details");
  if (prompt != found->end() && prompt->is_object())
    usage.cached_prompt_tokens = count_or_zero(*prompt, "cached_tokens");
  const auto completion = found->find("completion_tokens_details");
  if (completion != found->end() && completion->is_object()) {
    usage.reasoning_tokens = count_or_zero(*completion, "reasoning_tokens");
  }
  return usage;
}

FinishReason read_finish(const std::string& reason) {
  if (reason == "length") return FinishReason::length;
  if (reason == "content_filter") return FinishReason::content_filter;
  if (reason == "tool_calls" || reason == "function_call") return FinishReason::tool_calls;
  return FinishReason::stop;
}

Error filtered() { return Error(Product::platform, ErrorKind::permission_denied, "content filtered by the provider"); }

Result<Json> parse_object(std::string_view text) {
  auto document = parse_json(text, limits);
  if (!document) return bad_answer(document.error().message());
  if (!document->is_object()) return bad_answer("not an object");
  return std::move(*document);
}

/// choices[0], null where the list is empty.
Result<const Json*> first_choice(const Json& document) {
  const auto choices = document.find("choices");
  if (choices == document.end() || !choices->is_array()) return bad_answer("no `choices`");
  if (choices->empty()) return nullptr;
  if (!choices->front().is_object()) return bad_answer("`choices[0]` is not an object");
  return &choices->front();
}

std::string dump(const Json& document) {
  // What callers sent was checked to be UTF-8; `replace` keeps a slip from throwing.
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string shortened(std::string text) {
  if (!is_valid_utf8(text)) return "(not text)";
  if (text.size() > 300) {
    text.resize(300);
    while (!is_valid_utf8(text)) text.pop_back();
    text += "…";
  }
  return text;
}

std::optional<Nanos> seconds(std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value > 86'400) return std::nullopt;
  return std::chrono::seconds(value);
}

}  // namespace

std::string completion_request(const CompletionRequest& request, std::string_view model, bool stream) {
  Json messages = Json::array();
  for (const auto& message : request.messages) {
    messages.push_back({{"role", to_string(message.role)}, {"content", message.content}});
  }
  Json body{{"model", model}, {"messages", std::move(messages)}, {"max_tokens", request.max_tokens}};
  if (request.temperature) body["temperature"] = *request.temperature;
  if (!request.stop.empty()) body["stop"] = request.stop;
  if (request.json) body["response_format"] = {{"type", "json_object"}};
  if (stream) {
    body["stream"] = true;
    body["stream_options"] = {{"include_usage", true}};
  }
  return dump(body);
}

std::string embedding_request(std::string_view model, const std::vector<std::string>& texts) {
  return dump(Json{{"model", model}, {"input", texts}, {"encoding_format", "float"}});
}

Result<CompletionResponse> parse_completion(std::string_view body) {
  const auto document = CRETO_TRY(parse_object(body));
  const Json* choice = CRETO_TRY(first_choice(document));
  if (choice == nullptr) return bad_answer("`choices` is empty");
  const auto message = choice->find("message");
  if (message == choice->end() || !message->is_object()) return bad_answer("no `message`");
  CompletionResponse response;
  response.id = text_or(document, "id", "");
  response.model = text_or(document, "model", "");
  response.content = text_or(*message, "content", "");
  response.finish_reason = read_finish(text_or(*choice, "finish_reason", "stop"));
  response.usage = read_usage(document);
  if (response.finish_reason == FinishReason::content_filter) return filtered();
  return response;
}

Result<Embeddings> parse_embeddings(std::string_view body, std::size_t count) {
  const auto document = CRETO_TRY(parse_object(body));
  const auto data = document.find("data");
  if (data == document.end() || !data->is_array() || data->size() != count) {
    return bad_answer(fmt::format("`data` does not hold {} embeddings", count));
  }
  Embeddings out;
  out.model = text_or(document, "model", "");
  out.usage = read_usage(document);
  out.vectors.resize(count);
  std::size_t position = 0;
  for (const auto& entry : *data) {
    if (!entry.is_object()) return bad_answer("an embedding is not an object");
    const auto given = entry.find("index");
    std::size_t index = position++;
    if (given != entry.end()) {
      if (!given->is_number_unsigned() || given->get<std::uint64_t>() >= count) return bad_answer("a wrong `index`");
      index = given->get<std::size_t>();
    }
    const auto vector = entry.find("embedding");
    if (vector == entry.end() || !vector->is_array() || vector->empty()) return bad_answer("an embedding is missing");
    if (!out.vectors[index].empty()) return bad_answer("an `index` comes twice");
    out.vectors[index].reserve(vector->size());
    for (const auto& number : *vector) {
      if (!number.is_number()) return bad_answer("an embedding holds something else than numbers");
      const auto value = number.get<double>();
      if (!std::isfinite(value) || std::abs(value) > 1e6) return bad_answer("an embedding holds an impossible number");
      out.vectors[index].push_back(static_cast<float>(value));
    }
    if (out.vectors[index].size() > 16'384) return bad_answer("an embedding has too many dimensions");
  }
  for (const auto& vector : out.vectors) {
    if (vector.size() != out.vectors.front().size()) return bad_answer("embeddings differ in dimension");
  }
  return out;
}

Error parse_error(int status, std::string_view retry_after, std::string_view body) {
  std::string message = "no message";
  std::string code;
  if (auto document = parse_json(body, limits); document && document->is_object()) {
    const auto error = document->find("error");
    if (error != document->end() && error->is_object()) {
      message = text_or(*error, "message", message);
      code = text_or(*error, "code", text_or(*error, "type", ""));
    } else if (error != document->end() && error->is_string()) {
      message = error->get<std::string>();
    }
  }
  const auto described = fmt::format("the provider answered {}: {}", status, shortened(std::move(message)));
  const auto is = [&](std::string_view name) { return code == name; };
  if (is("context_length_exceeded") || is("string_above_max_length") || status == 413) {
    return Error(Product::platform, ErrorKind::too_large, "token limit exceeded: " + described);
  }
  if (is("content_filter") || is("content_policy_violation")) {
    return Error(Product::platform, ErrorKind::permission_denied, "content filtered: " + described);
  }
  if (is("model_not_found") || status == 404) return Error(Product::platform, ErrorKind::not_found, described);
  if (is("insufficient_quota")) return Error(Product::platform, ErrorKind::resource_exhausted, described);
  switch (status) {
    case 401:
    case 403:
      return Error(Product::platform, ErrorKind::unauthenticated, described);
    case 408:
    case 504:
      return Error(Product::platform, ErrorKind::timeout, described);
    case 429: {
      auto error = Error(Product::platform, ErrorKind::rate_limited, described);
      const auto delay = seconds(retry_after);
      if (delay) return std::move(error).with_retry_after(*delay);
      return error;
    }
    default:
      break;
  }
  if (status >= 500) return Error(Product::platform, ErrorKind::unavailable, described);
  if (status >= 400) return Error(Product::platform, ErrorKind::invalid_input, described);
  return bad_answer(fmt::format("status {}", status));
}

Result<> EventReader::feed(std::string_view bytes, const std::function<Result<>(std::string_view data)>& event) {
  while (!bytes.empty()) {
    const auto end = bytes.find('\n');
    line_.append(bytes.substr(0, end));
    if (line_.size() + data_.size() > event_bytes_max) {
      return Error(Product::platform, ErrorKind::too_large, "the provider sent an event over 1 MiB");
    }
    if (end == std::string_view::npos) return {};
    bytes.remove_prefix(end + 1);
    if (line_.ends_with('\r')) line_.pop_back();
    if (line_.empty()) {
      const auto data = std::exchange(data_, {});
      if (!data.empty()) CRETO_TRY(event(data));
    } else if (line_.starts_with("data:")) {
      std::string_view rest = std::string_view(line_).substr(5);
      if (rest.starts_with(' ')) rest.remove_prefix(1);
      if (!data_.empty()) data_ += '\n';
      data_.append(rest);
    }
    line_.clear();
  }
  return {};
}

Result<> Assembler::event(std::string_view data) {
  if (done_) return {};
  if (data == "[DONE]") {
    done_ = true;
    return {};
  }
  const auto document = CRETO_TRY(parse_object(data));
  if (document.contains("error")) return parse_error(500, {}, data);
  if (response_.id.empty()) response_.id = text_or(document, "id", "");
  if (response_.model.empty()) response_.model = text_or(document, "model", "");
  const auto usage = read_usage(document);
  if (usage.total() > 0) response_.usage = usage;
  const Json* choice = CRETO_TRY(first_choice(document));
  if (choice == nullptr) return {};
  const auto finish = text_or(*choice, "finish_reason", "");
  const auto delta = choice->find("delta");
  if (delta != choice->end() && delta->is_object()) {
    const auto piece = text_or(*delta, "content", "");
    if (!piece.empty()) {
      response_.content += piece;
      if (!sink_(piece)) return Error(Product::platform, ErrorKind::cancelled, "the stream was stopped");
    }
  }
  if (!finish.empty()) {
    finished_ = true;
    response_.finish_reason = read_finish(finish);
    if (response_.finish_reason == FinishReason::content_filter) return filtered();
  }
  return {};
}

Result<CompletionResponse> Assembler::finish() {
  if (!finished_) return Error(Product::platform, ErrorKind::unavailable, "the stream broke off before its end");
  return std::move(response_);
}

}  // namespace creto::inference::openai
