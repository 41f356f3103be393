#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/health.h"
#include "creto/common/id.h"
#include "creto/common/secret.h"
#include "creto/common/telemetry.h"

namespace creto::sql {
class Database;
}

namespace creto::inference {

enum class Role : std::uint8_t { system, user, assistant, tool };
std::string_view to_string(Role role);
Result<Role> role_from_string(std::string_view text);

struct Message {
  Role role = Role::user;
  std::string content;
  friend bool operator==(const Message&, const Message&) = default;
};

struct CompletionRequest {
  std::string model;  ///< empty: the provider's default
  std::vector<Message> messages;
  std::uint32_t max_tokens = 1024;
  std::optional<double> temperature;  ///< 0 to 2
  std::vector<std::string> stop;      ///< up to 4
  bool json = false;                  ///< asks for a JSON object as answer
  std::optional<SandboxId> sandbox;   ///< for audit; not sent to the provider
  std::string classification;         ///< of the data in it; for routing and audit
  /// Sent along: a provider that knows it answers a repeat from its first answer, and charges once. Up to 256 printable
  /// ASCII characters; empty: none is sent.
  std::string idempotency_key;
};

struct TokenUsage {
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_prompt_tokens = 0;  ///< part of prompt_tokens
  std::int64_t completion_tokens = 0;
  std::int64_t reasoning_tokens = 0;  ///< part of completion_tokens
  std::int64_t total() const { return prompt_tokens + completion_tokens; }
  friend bool operator==(const TokenUsage&, const TokenUsage&) = default;
};

enum class FinishReason : std::uint8_t { stop, length, content_filter, tool_calls };
std::string_view to_string(FinishReason reason);
Result<FinishReason> finish_reason_from_string(std::string_view text);

/// What the injection check found in what a model was to read or wrote. Rules and weights: the README of inference.
struct InjectionFinding {
  double score = 0;                ///< 0 to 1; 1 - product of (1 - weight) over the rules that matched
  std::vector<std::string> rules;  ///< names, most telling first
  std::string excerpt;             ///< up to 120 characters around the first match
};

struct CompletionResponse {
  std::string id;        ///< the provider's
  std::string provider;  ///< our name of the provider
  std::string model;     ///< what actually answered
  std::string content;
  FinishReason finish_reason = FinishReason::stop;
  TokenUsage usage;
  std::optional<InjectionFinding> flagged;  ///< set where the check found something and let it pass
};

/// Gets each piece of text as it comes; false stops the stream (the result is then `cancelled`).
using ChunkSink = std::function<bool(std::string_view text)>;

struct Embeddings {
  std::string model;
  std::vector<std::vector<float>> vectors;  ///< one per text, in order, all of one dimension
  TokenUsage usage;
};

struct Capabilities {
  bool streaming = true;
  bool embeddings = true;
  bool json = true;
  std::uint32_t context_tokens = 0;  ///< 0: not known
  bool local = false;                ///< data does not leave this installation
  std::string default_model = {};    ///< answers a request that names none; empty: not known
};

/// One source of model answers. Thread-safe. Calls return by `ctx.deadline`.
///
/// Errors of every call (002 §3.1.2):
///   unavailable (retryable)    cannot be reached, or answers with 5xx
///   timeout (retryable)
///   rate_limited (retryable)   with retry_after where the provider says so
///   not_found                  no such model
///   too_large                  token limit of the model exceeded
///   permission_denied          content filtered; the message says so
///   invalid_input              the provider did not understand the request
///   unauthenticated            our API key is not accepted
///   internal                   an answer that cannot be understood
class Provider {
 public:
  virtual ~Provider() = default;
  virtual const std::string& id() const = 0;
  virtual const Capabilities& capabilities() const = 0;
  virtual Result<CompletionResponse> complete(const Context& ctx, const CompletionRequest& request) = 0;
  /// As `complete`, with the text handed over piece by piece; the response holds all of it again.
  virtual Result<CompletionResponse> stream(const Context& ctx, const CompletionRequest& request,
                                            const ChunkSink& sink) = 0;
  /// `model` empty: the provider's default. 1 to 2048 texts.
  virtual Result<Embeddings> embed(const Context& ctx, std::string_view model,
                                   const std::vector<std::string>& texts) = 0;
  virtual HealthStatus health() = 0;
};

struct OpenAiOptions {
  std::string id = "openai";
  std::string base_url;  ///< "http://127.0.0.1:11434/v1": what "/chat/completions" is appended to
  Secret api_key;        ///< empty: none is sent
  std::string default_model;
  std::string default_embedding_model;
  std::uint32_t context_tokens = 0;
  bool local = false;
  Nanos timeout = std::chrono::seconds(60);
  std::size_t response_bytes_max = 8u << 20;
};

/// Anything that speaks OpenAI's HTTP API: OpenAI itself, vLLM, TGI, Ollama, llama.cpp.
/// Errors: invalid_input for a base_url that is not http(s)
Result<std::unique_ptr<Provider>> create_openai_provider(OpenAiOptions options);

/// Looks for text that tries to give a model orders it should not take. A heuristic: it finds the common and careless
/// attacks; what stops a careful one is policy on what the agent may do. Pure; linear in the text.
InjectionFinding check_injection(std::string_view text);

enum class InjectionMode : std::uint8_t { off, flag, block };
Result<InjectionMode> injection_mode_from_string(std::string_view text);

struct InferenceOptions {
  InjectionMode injection_mode = InjectionMode::block;
  double injection_threshold = 0.6;          ///< a finding counts from this score on
  std::uint32_t max_tokens_limit = 16'384;   ///< largest max_tokens that is let through
  std::size_t request_bytes_max = 1u << 20;  ///< all messages together
  std::size_t messages_max = 512;
};

/// What agents use: a provider behind limits, the injection check (over every message that is not `system`), and audit.
/// Thread-safe.
///
/// Errors: as Provider, and permission_denied ("prompt injection detected: ...") in mode block; too_large over a limit
class Inference {
 public:
  virtual ~Inference() = default;
  virtual Result<CompletionResponse> complete(const Context& ctx, const CompletionRequest& request) = 0;
  virtual Result<CompletionResponse> stream(const Context& ctx, const CompletionRequest& request,
                                            const ChunkSink& sink) = 0;
  virtual Result<Embeddings> embed(const Context& ctx, std::string_view model,
                                   const std::vector<std::string>& texts) = 0;
  virtual Capabilities capabilities() const = 0;
  virtual HealthStatus health() = 0;
};

/// `database` is where audit records are written. Everything passed in must outlive the result.
Result<std::unique_ptr<Inference>> create_inference(Provider& provider, sql::Database& database, const Clock& clock,
                                                    Telemetry& telemetry, InferenceOptions options = {});

}  // namespace creto::inference
