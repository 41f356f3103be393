#include "openai_wire.h"

#include <gtest/gtest.h>

namespace creto::inference::openai {
namespace {

TEST(OpenAiWire, ReadsACompletionWithItsUsage) {
  const auto response = parse_completion(
      R"({"id":"c1","model":"m-2026","choices":[{"index":0,"finish_reason":"length","message":{"role":"assistant","content":"hi"}}],
          "usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15,"prompt_tokens_details":{"cached_tokens":4},
                   "completion_tokens_details":{"reasoning_tokens":2}},"more":1})");
  ASSERT_TRUE(response) << response.error().to_string();
  EXPECT_EQ(response->content, "hi");
  EXPECT_EQ(response->model, "m-2026");
  EXPECT_EQ(response->finish_reason, FinishReason::length);
  EXPECT_EQ(response->usage, (TokenUsage{12, 4, 3, 2}));
}

TEST(OpenAiWire, RefusesWhatIsNoCompletion) {
  for (const auto* body : {"", "[]", "{}", "null", R"({"choices":[]})", R"({"choices":[1]})", R"({"choices":[{}]})",
                           R"({"choices":{"0":{}}})", R"({"choices":[{"message":"hi"}]})"}) {
    EXPECT_EQ(parse_completion(body).error().kind(), ErrorKind::internal) << body;
  }
  EXPECT_EQ(
      parse_completion(R"({"choices":[{"finish_reason":"content_filter","message":{"content":""}}]})").error().kind(),
      ErrorKind::permission_denied);
}

TEST(OpenAiWire, ImpossibleTokenCountsCountAsNone) {
  const auto response = parse_completion(
      R"({"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":-5,"completion_tokens":9223372036854775807}})");
  ASSERT_TRUE(response);
  EXPECT_EQ(response->usage, TokenUsage{});
}

TEST(OpenAiWire, NamesEachKindOfFailure) {
  const auto kind = [](int status, std::string_view body) { return parse_error(status, "", body).kind(); };
  EXPECT_EQ(kind(401, "{}"), ErrorKind::unauthenticated);
  EXPECT_EQ(kind(404, "{}"), ErrorKind::not_found);
  EXPECT_EQ(kind(400, R"({"error":{"code":"context_length_exceeded","message":"too many tokens"}})"),
            ErrorKind::too_large);
  EXPECT_EQ(kind(400, R"({"error":{"code":"content_filter"}})"), ErrorKind::permission_denied);
  EXPECT_EQ(kind(400, R"({"error":"nope"})"), ErrorKind::invalid_input);
  EXPECT_EQ(kind(429, "not json"), ErrorKind::rate_limited);
  EXPECT_EQ(kind(503, ""), ErrorKind::unavailable);
  EXPECT_EQ(kind(504, ""), ErrorKind::timeout);
  EXPECT_EQ(kind(302, ""), ErrorKind::internal);
  EXPECT_EQ(parse_error(429, "7", "").retry_after(), std::chrono::seconds(7));
  EXPECT_EQ(parse_error(429, "-7", "").retry_after().value_or(Nanos(0)),
            parse_error(429, "", "").retry_after().value_or(Nanos(0)));
}

Result<CompletionResponse> assemble(std::string_view stream, std::size_t piece, std::string& heard) {
  const ChunkSink sink = [&](std::string_view text) {
    heard += text;
    return heard.size() < 1000;
  };
  EventReader reader;
  Assembler assembler(sink);
  while (!stream.empty()) {
    CRETO_TRY(reader.feed(stream.substr(0, piece), [&](std::string_view data) { return assembler.event(data); }));
    stream.remove_prefix(std::min(piece, stream.size()));
  }
  return assembler.finish();
}

constexpr std::string_view stream =
    ": comment\r\n"
    "data: {\"id\":\"s1\",\"model\":\"m\",\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\r\n\r\n"
    "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n"
    "event: x\ndata: {\"choices\":[{\"delta\":\ndata: {\"content\":\"lo\"}}]}\n\n"
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n"
    "data: [DONE]\n\n";

TEST(OpenAiWire, PutsAStreamTogetherHoweverItIsCut) {
  for (std::size_t piece = 1; piece < stream.size(); piece += 5) {
    std::string heard;
    const auto response = assemble(stream, piece, heard);
    ASSERT_TRUE(response) << piece << response.error().to_string();
    EXPECT_EQ(heard, "Hello");
    EXPECT_EQ(response->content, "Hello");
    EXPECT_EQ(response->usage.total(), 5);
  }
}

TEST(OpenAiWire, AStreamThatBreaksOffIsNoAnswer) {
  std::string heard;
  EXPECT_EQ(assemble(stream.substr(0, 150), 1000, heard).error().kind(), ErrorKind::unavailable);
  EXPECT_FALSE(assemble("data: {\"error\":{\"message\":\"overloaded\"}}\n\n", 1000, heard));
  EXPECT_FALSE(assemble("data: nonsense\n\n", 1000, heard));
  EXPECT_EQ(assemble("data: " + std::string(2 << 20, 'x'), 1 << 16, heard).error().kind(), ErrorKind::too_large);
}

TEST(OpenAiWire, ReadsEmbeddingsInTheirOrder) {
  const auto made = parse_embeddings(
      R"({"model":"e","data":[{"index":1,"embedding":[0,1]},{"index":0,"embedding":[1,0.5]}],"usage":{"prompt_tokens":2}})",
      2);
  ASSERT_TRUE(made) << made.error().to_string();
  EXPECT_EQ(made->vectors, (std::vector<std::vector<float>>{{1, 0.5}, {0, 1}}));
  for (const auto* body :
       {R"({"data":[{"embedding":[1]}]})", R"({"data":[{"embedding":[1]},{"embedding":[1,2]}]})",
        R"({"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]})",
        R"({"data":[{"embedding":[]},{"embedding":[1]}]})", R"({"data":[{"embedding":["1"]},{"embedding":[1]}]})",
        R"({"data":[{"index":5,"embedding":[1]},{"embedding":[1]}]})", R"({"data":[1,2]})",
        R"({"data":[{"embedding":[1e300]},{"embedding":[1]}]})"}) {
    EXPECT_FALSE(parse_embeddings(body, 2)) << body;
  }
}

}  // namespace
}  // namespace creto::inference::openai
