#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/inference/inference.h"

/// OpenAI's HTTP API as bytes: what is sent, and what may come back. Pure. Answers come from outside: anything may be
/// in them.
namespace creto::inference::openai {

std::string completion_request(const CompletionRequest& request, std::string_view model, bool stream);
std::string embedding_request(std::string_view model, const std::vector<std::string>& texts);

/// Fields `provider` and `flagged` are left to the caller.
Result<CompletionResponse> parse_completion(std::string_view body);

/// Errors: internal unless there is one vector for each of `count` texts, all of one dimension, of finite numbers
Result<Embeddings> parse_embeddings(std::string_view body, std::size_t count);

/// What an answer other than 200 means. `retry_after` is that header.
Error parse_error(int status, std::string_view retry_after, std::string_view body);

/// Splits a server-sent event stream (text/event-stream) into the data of its events.
class EventReader {
 public:
  /// Calls `event` with the data of each event that is complete now.
  /// Errors: too_large for an event over 1 MiB; what `event` returns
  Result<> feed(std::string_view bytes, const std::function<Result<>(std::string_view data)>& event);

 private:
  std::string line_;
  std::string data_;
};

/// Puts the chunks of a streamed completion together.
class Assembler {
 public:
  explicit Assembler(const ChunkSink& sink) : sink_(sink) {}
  /// Errors: internal (not a chunk), cancelled (the sink said stop), and those that a stream may carry itself
  Result<> event(std::string_view data);
  /// Errors: unavailable where the stream ended before its end
  Result<CompletionResponse> finish();
  bool done() const { return done_; }

 private:
  const ChunkSink& sink_;
  CompletionResponse response_;
  bool finished_ = false;  ///< a finish_reason came
  bool done_ = false;      ///< [DONE] came
};

}  // namespace creto::inference::openai
