#include "creto/inference/inference.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "creto/audit/audit_log.h"
#include "creto/common/json.h"
#include "creto/common/names.h"
#include "creto/io/sql.h"

namespace creto::inference {
namespace {

constexpr auto role_names = std::to_array<Named<Role>>(
    {{Role::system, "system"}, {Role::user, "user"}, {Role::assistant, "assistant"}, {Role::tool, "tool"}});
constexpr auto finish_names = std::to_array<Named<FinishReason>>({{FinishReason::stop, "stop"},
                                                                  {FinishReason::length, "length"},
                                                                  {FinishReason::content_filter, "content_filter"},
                                                                  {FinishReason::tool_calls, "tool_calls"}});
constexpr auto mode_names = std::to_array<Named<InjectionMode>>(
    {{InjectionMode::off, "off"}, {InjectionMode::flag, "flag"}, {InjectionMode::block, "block"}});

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }
Error too_large(std::string message) { return Error(Product::platform, ErrorKind::too_large, std::move(message)); }

/// Metrics of the module; the names are those of the reference.
struct Probe {
  explicit Probe(Telemetry& telemetry)
      : calls(telemetry.counter("creto_inference_calls_total", "Inference calls that were answered")),
        failures(telemetry.counter("creto_inference_failures_total", "Inference calls that failed")),
        tokens(telemetry.counter("creto_inference_tokens_total", "Tokens of prompts and answers")),
        injections(telemetry.counter("creto_inference_injections_total", "Prompts in which an injection was found")),
        seconds(telemetry.histogram("creto_inference_seconds", "Duration of inference calls")) {}
  Counter& calls;
  Counter& failures;
  Counter& tokens;
  Counter& injections;
  Histogram& seconds;
};

class InferenceService final : public Inference {
 public:
  InferenceService(Provider& provider, sql::Database& database, const Clock& clock, Telemetry& telemetry,
                   InferenceOptions options)
      : provider_(provider),
        database_(database),
        clock_(clock),
        telemetry_(telemetry),
        probe_(telemetry),
        options_(options) {}

  Result<CompletionResponse> complete(const Context& ctx, const CompletionRequest& request) override {
    return answered(ctx, request, [&] { return provider_.complete(ctx, request); });
  }

  Result<CompletionResponse> stream(const Context& ctx, const CompletionRequest& request,
                                    const ChunkSink& sink) override {
    return answered(ctx, request, [&] { return provider_.stream(ctx, request, sink); });
  }

  Result<Embeddings> embed(const Context& ctx, std::string_view model, const std::vector<std::string>& texts) override {
    std::size_t bytes = 0;
    for (const auto& text : texts) {
      if (!is_valid_utf8(text)) return invalid("`texts` must be UTF-8");
      bytes += text.size();
    }
    if (bytes > options_.request_bytes_max) {
      return too_large(fmt::format("the texts have {} bytes, over {}", bytes, options_.request_bytes_max));
    }
    auto made = provider_.embed(ctx, model, texts);
    if (made) {
      probe_.calls.add();
      probe_.tokens.add(static_cast<std::uint64_t>(made->usage.total()));
    } else {
      probe_.failures.add();
    }
    return made;
  }

  Capabilities capabilities() const override { return provider_.capabilities(); }
  HealthStatus health() override { return provider_.health(); }

 private:
  template <class Call>
  Result<CompletionResponse> answered(const Context& ctx, const CompletionRequest& request, Call call) {
    CRETO_TRY(check(request));
    auto finding = CRETO_TRY(inspect(ctx, request));
    const auto began = clock_.monotonic();
    auto response = call();
    probe_.seconds.observe(std::chrono::duration<double>(clock_.monotonic() - began).count());
    if (!response) {
      probe_.failures.add();
      telemetry_.log(
          LogLevel::warn, "inference", "inference_failed", &ctx,
          {{"model", request.model}, {"code", response.error().code()}, {"reason", response.error().message()}});
      return std::move(response).error();
    }
    probe_.calls.add();
    probe_.tokens.add(static_cast<std::uint64_t>(response->usage.total()));
    response->flagged = std::move(finding);
    return std::move(*response);
  }

  Result<> check(const CompletionRequest& request) const {
    if (request.messages.empty()) return invalid("`messages` is empty");
    if (request.messages.size() > options_.messages_max) {
      return too_large(fmt::format("{} messages, over {}", request.messages.size(), options_.messages_max));
    }
    std::size_t bytes = 0;
    for (const auto& message : request.messages) {
      if (!is_valid_utf8(message.content)) return invalid("`messages` must be UTF-8");
      bytes += message.content.size();
    }
    if (bytes > options_.request_bytes_max) {
      return too_large(fmt::format("the messages have {} bytes, over {}", bytes, options_.request_bytes_max));
    }
    if (request.max_tokens == 0 || request.max_tokens > options_.max_tokens_limit) {
      return invalid(fmt::format("`max_tokens` must be 1 to {}", options_.max_tokens_limit));
    }
    if (request.model.size() > 200 || !is_valid_utf8(request.model))
      return invalid("`model` is over 200 bytes or not UTF-8");
    const auto printable = [](char c) { return c > 0x20 && c < 0x7f; };
    if (request.idempotency_key.size() > 256 || !std::ranges::all_of(request.idempotency_key, printable))
      return invalid("`idempotency_key` must be up to 256 printable ASCII characters");
    if (request.temperature && !(*request.temperature >= 0 && *request.temperature <= 2)) {
      return invalid("`temperature` must be 0 to 2");
    }
    if (request.stop.size() > 4) return invalid("`stop` has more than 4 entries");
    for (const auto& stop : request.stop) {
      if (stop.empty() || stop.size() > 256 || !is_valid_utf8(stop))
        return invalid("`stop` must hold 1 to 256 bytes of UTF-8");
    }
    return {};
  }

  /// The strongest finding over all messages but the system's own, where it reaches the threshold.
  Result<std::optional<InjectionFinding>> inspect(const Context& ctx, const CompletionRequest& request) {
    std::optional<InjectionFinding> worst;
    if (options_.injection_mode == InjectionMode::off) return worst;
    for (const auto& message : request.messages) {
      if (message.role == Role::system) continue;
      auto finding = check_injection(message.content);
      if (finding.score >= options_.injection_threshold && (!worst || finding.score > worst->score))
        worst = std::move(finding);
    }
    if (!worst) return worst;
    probe_.injections.add();
    const bool block = options_.injection_mode == InjectionMode::block;
    auto refusal =
        Error(Product::platform, ErrorKind::permission_denied,
              fmt::format("prompt injection detected: {} (score {:.2f})", fmt::join(worst->rules, ", "), worst->score));
    CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      auto entry =
          audit::AuditRecord::of(ctx, "inference.injection_detected",
                                 request.sandbox ? "runtime:sandbox:" + request.sandbox->to_string() : "inference",
                                 block ? audit::Outcome::denied : audit::Outcome::success);
      entry.why = fmt::format("matched {}", fmt::join(worst->rules, ", "));
      if (block) entry.outcome_detail = refusal.to_string();
      // Never the text itself: it may hold what must not leave the sandbox.
      Json metadata{{"mode", name_of(mode_names, options_.injection_mode)},
                    {"model", request.model},
                    {"rules", worst->rules},
                    {"score", fmt::format("{:.2f}", worst->score)}};
      entry.metadata = CRETO_TRY(canonical_json(metadata));
      CRETO_TRY(audit::record(tx, ctx, std::move(entry)));
      return {};
    }));
    if (block) return refusal;
    return worst;
  }

  Provider& provider_;
  sql::Database& database_;
  const Clock& clock_;
  Telemetry& telemetry_;
  Probe probe_;
  const InferenceOptions options_;
};

}  // namespace

std::string_view to_string(Role role) { return name_of(role_names, role); }
Result<Role> role_from_string(std::string_view text) { return value_of(role_names, text, "role", Product::platform); }
std::string_view to_string(FinishReason reason) { return name_of(finish_names, reason); }
Result<FinishReason> finish_reason_from_string(std::string_view text) {
  return value_of(finish_names, text, "finish_reason", Product::platform);
}
Result<InjectionMode> injection_mode_from_string(std::string_view text) {
  return value_of(mode_names, text, "injection mode", Product::platform);
}

Result<std::unique_ptr<Inference>> create_inference(Provider& provider, sql::Database& database, const Clock& clock,
                                                    Telemetry& telemetry, InferenceOptions options) {
  if (!(options.injection_threshold > 0 && options.injection_threshold <= 1)) {
    return invalid("`injection_threshold` must be over 0 and at most 1");
  }
  CRETO_TRY(audit::prepare(database));
  return std::make_unique<InferenceService>(provider, database, clock, telemetry, options);
}

}  // namespace creto::inference
