#include "creto/io/rpc.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/bio.h>
#include <openssl/ssl.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <latch>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "creto/io/no_waiting.h"
#include "creto/io/rpc_channel.h"
#include "creto/nhi/v1/nhi.pb.h"
#include "creto/testing/temp_dir.h"
#include "echo.pb.h"

namespace creto::rpc {
namespace {

namespace v1 = nhi::v1;
using bench::v1::EchoMessage;
using std::chrono::milliseconds;
using std::chrono::seconds;

/// Tokens are names: "human:ada@example.com" is that human's. Any certificate of ours is believed.
class PlainAuthenticator final : public Authenticator {
 public:
  Result<Caller> authenticate(const Context&, const Credentials& credentials) override {
    ++asked;
    std::string name = credentials.bearer;
    if (name.empty()) name = CRETO_TRY(tls::identity_from_uri(credentials.certificate_uris.front())).identity;
    if (name == "expired") return Error(Product::platform, ErrorKind::expired, "the token has expired");
    auto identity = Identity::parse(name);
    if (!identity) return Error(Product::platform, ErrorKind::unauthenticated, "the token is not one of ours");
    if (!credentials.on_behalf_of.empty()) identity = Identity::parse(credentials.on_behalf_of);
    Caller caller{*identity, {*identity}, "default"};
    return caller;
  }
  std::atomic<int> asked = 0;
};

class ListAuthorizer final : public Authorizer {
 public:
  Result<> authorize(const Context& ctx, std::string_view action, const Resource& resource) override {
    if (ctx.caller_text() == "human:slow@example.com") {
      if (io::NoWaiting::forbids()) return Error(Product::platform, ErrorKind::unavailable, "it takes a while");
      think();
    }
    if (ctx.caller_text() == "human:eve@example.com")
      return Error(Product::platform, ErrorKind::permission_denied,
                   std::string(action) + " on " + resource.type + "::" + resource.id);
    return {};
  }
  std::function<void()> think = [] {};  ///< about somebody's calls
};

class MemoryAuditor final : public Auditor {
 public:
  Result<> record(const Context& ctx, const CallRecord& record) override {
    if (io::NoWaiting::forbids()) return Error(Product::platform, ErrorKind::unavailable, "it takes a while");
    std::lock_guard lock(mutex);
    if (fail) return Error(Product::platform, ErrorKind::unavailable, "the log is down");
    records_.push_back(ctx.caller_text() + " " + std::string(record.action) + " " +
                       (record.error ? record.error->code() : "ok"));
    return {};
  }
  std::vector<std::string> records() {
    std::lock_guard lock(mutex);
    return records_;
  }
  std::mutex mutex;
  std::atomic<bool> fail = false;

 private:
  std::vector<std::string> records_;
};

class Rpc : public ::testing::Test {
 protected:
  Rpc() {
    auto service = dispatcher->service("creto.nhi.v1.NhiService");
    service.unary<v1::GetAgentRequest, v1::Agent>(
        "GetAgent", {.idempotent = true, .resource = [](const auto& r) { return Resource{"Agent", r.identity()}; }},
        [this](const Context& ctx, const v1::GetAgentRequest& request) -> Result<v1::Agent> {
          {
            std::lock_guard lock(mutex);
            seen = ctx;
          }
          ++calls;
          if (request.identity() == "flaky" && calls < 3)
            return Error(Product::platform, ErrorKind::unavailable, "not now");
          if (request.identity() == "throws") throw std::runtime_error("secret detail");
          if (request.identity() == "quota")
            return Error(Product::runtime, ErrorKind::quota_exceeded, "cannot spawn sandbox: quota exceeded")
                .with_retry_after(std::chrono::hours(24))
                .with_context("spawning")
                .with_cause(Error(Product::metering, ErrorKind::quota_exceeded, "monthly quota exceeded (100/100)"));
          v1::Agent agent;
          agent.set_identity(request.identity());
          agent.set_name("clerk");
          agent.set_type(v1::AGENT_TYPE_AUTONOMOUS);
          (*agent.mutable_attributes())["team"] = "accounts";
          agent.mutable_created_at()->set_seconds(1'700'000'000);
          return agent;
        });
    service.unary<v1::IsRevokedRequest, v1::IsRevokedResponse>(
        "IsRevoked", {.access = Access::anonymous, .inline_call = true},
        [this](const Context&, const v1::IsRevokedRequest& request) -> Result<v1::IsRevokedResponse> {
          if (request.identity() == "far away") {
            ++calls;
            if (io::NoWaiting::forbids()) return Error(Product::platform, ErrorKind::unavailable, "it takes a while");
          }
          v1::IsRevokedResponse response;
          response.set_revoked(request.identity() == "mallory");
          return response;
        });
    service.unary<v1::IsRegisteredRequest, v1::IsRegisteredResponse>(
        "IsRegistered", {.inline_call = true},
        [](const Context&, const v1::IsRegisteredRequest&) -> Result<v1::IsRegisteredResponse> {
          return v1::IsRegisteredResponse();
        });
    service.unary<v1::RegisterAgentRequest, v1::Agent>(
        "RegisterAgent", {.audited = true},
        [this](const Context& ctx, const v1::RegisterAgentRequest& request) -> Result<v1::Agent> {
          std::lock_guard lock(mutex);
          seen = ctx;
          v1::Agent agent;
          agent.set_name(request.name());
          *agent.mutable_attributes() = request.attributes();
          return agent;
        });
    service.unary<v1::ListAgentsRequest, v1::ListAgentsResponse>(
        "ListAgents", {}, [](const Context&, const v1::ListAgentsRequest& request) -> Result<v1::ListAgentsResponse> {
          v1::ListAgentsResponse response;
          response.set_next_token(std::to_string(request.page().size()) + v1::AgentType_Name(request.type()));
          return response;
        });
    service.unary<v1::RevokeAgentRequest, v1::Agent>(
        "RevokeAgent", {}, [](const Context&, const v1::RevokeAgentRequest& request) -> Result<v1::Agent> {
          v1::Agent agent;
          agent.set_identity(request.identity() + "|" + request.reason());
          return agent;
        });
    service.deferred<v1::GetPublicKeysRequest, v1::AgentPublicKeys>(
        "GetPublicKeys", {},
        [this](const Context&, const v1::GetPublicKeysRequest& request, Reply<v1::AgentPublicKeys> reply) {
          if (request.identity() == "dropped") return;
          std::lock_guard lock(mutex);
          waiting.push_back(std::move(reply));
          arrived.notify_all();
        });
    dispatcher->service("creto.bench.v1.EchoService")
        .stream<EchoMessage, EchoMessage>(
            "Watch", {}, [this](const Context&, const EchoMessage& request, Stream<EchoMessage> stream) {
              stream.on_closed([this] {
                std::lock_guard lock(mutex);
                ++closed;
                arrived.notify_all();
              });
              if (request.identity() == "kept") {
                std::lock_guard lock(mutex);
                streams.push_back(stream);
                arrived.notify_all();
                return;
              }
              EchoMessage message;
              for (int i = 0; i < request.number(); ++i) {
                message.set_number(i);
                if (stream.send(message)) continue;
                std::lock_guard lock(mutex);
                cut_off = true;
                arrived.notify_all();
                return;
              }
              stream.finish(request.identity() == "fails"
                                ? Result<>(Error(Product::metering, ErrorKind::quota_exceeded, "enough"))
                                : Result<>());
            });
    dispatcher->service("creto.bench.v1.EchoService")
        .exchange<EchoMessage, EchoMessage>(
            "Converse", {},
            [this](const Context& ctx, const EchoMessage& request) -> Result<EchoMessage> {
              std::unique_lock lock(mutex);
              seen = ctx;
              heard.push_back(request.number());
              running_max = std::max(running_max, ++running);
              arrived.notify_all();
              arrived.wait(lock, [&] { return !held; });
              --running;
              if (request.identity() == "throws") throw std::runtime_error("secret detail");
              if (request.identity() == "refused") return Error(Product::metering, ErrorKind::quota_exceeded, "enough");
              return request;
            },
            [](const Error& error) {
              EchoMessage message;
              message.set_identity(error.code() + " " + error.message());
              return message;
            });
    server = GrpcServer::start(*dispatcher, {.port = 0}).value();
    channel = connect("human:ada@example.com");
  }
  ~Rpc() override {
    server->stop(seconds(1));
    dispatcher->stop();
  }

  std::shared_ptr<Channel> connect(std::string token, std::uint32_t attempts = 3) {
    ChannelOptions options;
    options.endpoint = "127.0.0.1:" + std::to_string(server->port());
    options.bearer = [token] { return token; };
    options.attempts_max = attempts;
    return Channel::connect(options, system_clock()).value();
  }

  Result<v1::Agent> get(Channel& over, const std::string& identity, const Context& ctx = {}) {
    v1::GetAgentRequest request;
    request.set_identity(identity);
    return over.call<v1::GetAgentRequest, v1::Agent>(ctx, "/creto.nhi.v1.NhiService/GetAgent", request,
                                                     {.idempotent = true});
  }

  http::Response rest(std::string method, std::string target, std::string body = "",
                      http::Headers headers = {{"authorization", "Bearer human:ada@example.com"}}) {
    std::mutex m;
    std::condition_variable done;
    std::optional<http::Response> response;
    http::Request request{std::move(method), std::move(target), std::move(headers), std::move(body), "test", {}};
    dispatcher->rest()(std::move(request), [&](http::Response r) {
      std::lock_guard lock(m);
      response = std::move(r);
      done.notify_all();
    });
    std::unique_lock lock(m);
    done.wait(lock, [&] { return response.has_value(); });
    return *response;
  }

  PlainAuthenticator authenticator;
  ListAuthorizer authorizer;
  MemoryAuditor auditor;
  std::unique_ptr<Dispatcher> dispatcher =
      Dispatcher::create({authenticator, authorizer, auditor, no_telemetry(), system_clock()},
                         {.workers = 2, .request_bytes_max = 1 << 20, .json_depth_max = 16});
  std::mutex mutex;
  std::condition_variable arrived;
  Context last_seen() {
    std::lock_guard lock(mutex);
    return seen;
  }

  Context seen;
  std::atomic<int> calls = 0;
  std::vector<Reply<v1::AgentPublicKeys>> waiting;
  std::vector<Stream<EchoMessage>> streams;
  int closed = 0;
  bool cut_off = false;
  std::vector<std::int64_t> heard;  ///< by `Converse`
  bool held = false;                ///< whether it waits
  int running = 0, running_max = 0;
  std::unique_ptr<GrpcServer> server;
  std::shared_ptr<Channel> channel;
};

TEST_F(Rpc, CarriesCallerTraceAndIdempotencyKeyToTheHandler) {
  Context ctx;
  ctx.trace = {"0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", true};
  ctx.idempotency_key = "key-1";
  ASSERT_TRUE(get(*channel, "clerk", ctx).has_value());
  const Context at_handler = last_seen();
  EXPECT_EQ(at_handler.caller_text(), "human:ada@example.com");
  EXPECT_EQ(at_handler.chain.size(), 1u);
  EXPECT_EQ(at_handler.trace.trace_id, ctx.trace.trace_id);
  EXPECT_TRUE(at_handler.trace.sampled);
  EXPECT_EQ(at_handler.idempotency_key, "key-1");
  EXPECT_LT(at_handler.deadline, Monotonic::max());
}

TEST_F(Rpc, ASocketIsForItsUserAloneAndGoesWithItsServer) {
  const creto::testing::TempDir directory;
  const std::filesystem::path path = directory / "rpc.sock";
  const auto over_socket = GrpcServer::start(*dispatcher, {.unix_path = path.string()}).value();
  EXPECT_EQ(std::filesystem::status(path).permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(path.parent_path()), {}), 1) << "something was left";
  ChannelOptions options;
  options.endpoint = "unix:" + path.string();
  options.bearer = [] { return std::string("human:ada@example.com"); };
  EXPECT_TRUE(get(*Channel::connect(std::move(options), system_clock()).value(), "clerk").has_value());
  over_socket->stop(Nanos(0));
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(Rpc, HashesTheSameRequestAlikeOverGrpcAndRest) {
  Context ctx;
  ctx.idempotency_key = "key-1";
  ASSERT_TRUE(get(*channel, "clerk", ctx).has_value());
  const Hash256 over_grpc = last_seen().request_hash;
  auto response = rest("GET", "/v1/agents/clerk", "",
                       {{"authorization", "Bearer human:ada@example.com"}, {"creto-idempotency-key", "key-1"}});
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(last_seen().request_hash, over_grpc);
  ASSERT_TRUE(get(*channel, "clerk2", ctx).has_value());
  EXPECT_NE(last_seen().request_hash, over_grpc);
}

TEST_F(Rpc, BringsTheWholeErrorChainBack) {
  auto result = get(*channel, "quota");
  ASSERT_FALSE(result.has_value());
  const Error& error = result.error();
  EXPECT_EQ(error.code(), "RT-429");
  EXPECT_EQ(error.kind(), ErrorKind::quota_exceeded);
  EXPECT_EQ(error.context(), std::vector<std::string>{"spawning"});
  EXPECT_EQ(error.retry_after(), std::chrono::hours(24));
  ASSERT_NE(error.caused_by(), nullptr);
  EXPECT_EQ(error.caused_by()->code(), "MT-429");
  EXPECT_EQ(error.trace_id().size(), 32u);

  auto response = rest("GET", "/v1/agents/quota");
  EXPECT_EQ(response.status, 429);
  auto again = http::error_from_json(response.body);
  ASSERT_TRUE(again.has_value()) << response.body;
  EXPECT_EQ(again->code(), "RT-429");
  EXPECT_EQ(again->caused_by()->code(), "MT-429");
  EXPECT_EQ(again->retry_after(), std::chrono::hours(24));
}

TEST_F(Rpc, RepeatsWhatIsSafeToRepeat) {
  EXPECT_TRUE(get(*channel, "flaky").has_value());
  EXPECT_EQ(calls, 3);
}

TEST_F(Rpc, TellsNothingOfWhatWentWrongInside) {
  auto result = get(*channel, "throws");
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().kind(), ErrorKind::internal);
  EXPECT_EQ(result.error().message().find("secret"), std::string::npos);
}

TEST_F(Rpc, RefusesWhoShowsNothingAndWhatIsForgedOrExpired) {
  auto nobody = connect("");
  EXPECT_EQ(get(*nobody, "clerk").error().kind(), ErrorKind::unauthenticated);
  auto forged = connect("forged");
  EXPECT_EQ(get(*forged, "clerk").error().kind(), ErrorKind::unauthenticated);
  auto expired = connect("expired");
  EXPECT_EQ(get(*expired, "clerk").error().kind(), ErrorKind::expired);
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(rest("GET", "/v1/agents/clerk", "", {}).status, 401);
  EXPECT_EQ(rest("GET", "/v1/agents/clerk", "", {{"authorization", "Basic YWRhOg=="}}).status, 401);
  EXPECT_TRUE(auditor.records().empty());
}

TEST_F(Rpc, AsksWhetherTheCallerMayAndAuditsTheRefusal) {
  auto eve = connect("human:eve@example.com");
  auto result = get(*eve, "clerk");
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().kind(), ErrorKind::permission_denied);
  EXPECT_EQ(result.error().message(), "nhi.get_agent on Agent::clerk");
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(auditor.records(), std::vector<std::string>{"human:eve@example.com nhi.get_agent PL-403"});
}

TEST_F(Rpc, ARefusalOnTheTransportsThreadIsAuditedOnAnother) {
  const auto eve = connect("human:eve@example.com");
  const auto result = eve->call<v1::IsRegisteredRequest, v1::IsRegisteredResponse>(
      Context(), "/creto.nhi.v1.NhiService/IsRegistered", v1::IsRegisteredRequest());
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::permission_denied) << result.error().to_string();
  EXPECT_EQ(auditor.records(), std::vector<std::string>{"human:eve@example.com nhi.is_registered PL-403"});
}

TEST_F(Rpc, FailsAnAuditedCallThatCannotBeAudited) {
  auditor.fail = true;
  EXPECT_EQ(rest("POST", "/v1/agents", R"({"name":"x"})").status, 503);
  auditor.fail = false;
  EXPECT_EQ(rest("POST", "/v1/agents", R"({"name":"x"})").status, 200);
  EXPECT_EQ(auditor.records().back(), "human:ada@example.com nhi.register_agent ok");
}

TEST_F(Rpc, AnswersADeferredCallFromAnotherThreadWithoutHoldingOne) {
  constexpr int callers = 8;  // more than there are workers
  std::vector<std::jthread> threads;
  std::atomic<int> answered = 0;
  for (int i = 0; i < callers; ++i)
    threads.emplace_back([&] {
      auto result = channel->call<v1::GetPublicKeysRequest, v1::AgentPublicKeys>(
          {}, "/creto.nhi.v1.NhiService/GetPublicKeys", v1::GetPublicKeysRequest());
      if (result && result->key_id() == "k") ++answered;
    });
  {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(arrived.wait_for(lock, seconds(20), [&] { return waiting.size() == callers; }));
  }
  for (auto& reply : waiting) {
    v1::AgentPublicKeys keys;
    keys.set_key_id("k");
    reply(keys);
    reply(keys);
  }
  waiting.clear();
  threads.clear();
  EXPECT_EQ(answered, callers);
}

TEST_F(Rpc, AnswersWhatItsHandlerDropped) {
  v1::GetPublicKeysRequest request;
  request.set_identity("dropped");
  auto result = channel->call<v1::GetPublicKeysRequest, v1::AgentPublicKeys>(
      {}, "/creto.nhi.v1.NhiService/GetPublicKeys", request);
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().kind(), ErrorKind::internal);
}

TEST_F(Rpc, StreamsInOrderAndEndsWithTheHandlersResult) {
  EchoMessage request;
  request.set_number(500);
  std::vector<std::int64_t> numbers;
  auto collect = [&](const EchoMessage& message) {
    numbers.push_back(message.number());
    return true;
  };
  constexpr std::string_view watch = "/creto.bench.v1.EchoService/Watch";
  auto done = channel->stream<EchoMessage>(Context(), watch, request, collect);
  ASSERT_TRUE(done.has_value()) << done.error().to_string();
  ASSERT_EQ(numbers.size(), 500u);
  EXPECT_TRUE(std::ranges::is_sorted(numbers));

  request.set_identity("fails");
  request.set_number(1);
  auto failed = channel->stream<EchoMessage>(Context(), watch, request, collect);
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().code(), "MT-429");

  // More than the queue holds while nobody reads: the reader is told, the writer is not held.
  request.set_identity("");
  request.set_number(1'000'000);
  auto behind = channel->stream<EchoMessage>(Context(), watch, request, [&](const EchoMessage&) {
    std::unique_lock lock(mutex);
    return arrived.wait_for(lock, seconds(60), [&] { return cut_off; });
  });
  ASSERT_FALSE(behind.has_value());
  EXPECT_EQ(behind.error().kind(), ErrorKind::resource_exhausted);
}

TEST_F(Rpc, TellsAStreamThatItsReaderIsGone) {
  constexpr int readers = 20;  // more than there are workers
  EchoMessage request;
  request.set_identity("kept");
  std::vector<std::jthread> threads;
  std::atomic<int> read = 0;
  for (int i = 0; i < readers; ++i)
    threads.emplace_back([&] {
      (void)channel->stream<EchoMessage>(Context(), "/creto.bench.v1.EchoService/Watch", request,
                                         [&](const EchoMessage&) {
                                           ++read;
                                           return false;  // one is enough
                                         });
    });
  {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(arrived.wait_for(lock, seconds(30), [&] { return streams.size() == readers; }));
  }
  for (const auto& stream : streams) EXPECT_TRUE(stream.send(EchoMessage()));
  threads.clear();
  EXPECT_EQ(read, readers);
  {
    std::unique_lock lock(mutex);
    EXPECT_TRUE(arrived.wait_for(lock, seconds(30), [&] { return closed == readers; }));
  }
  for (const auto& stream : streams) EXPECT_FALSE(stream.send(EchoMessage()));
  streams.clear();
}

constexpr std::string_view converse = "/creto.bench.v1.EchoService/Converse";

/// Sends `count` messages, the one at `special` with that identity; the answers.
struct Conversation {
  std::vector<EchoMessage> answers;
  Result<> ended;
};
Conversation talk(Channel& channel, int count, int special = -1, const std::string& identity = "",
                  std::atomic<int>* sent = nullptr) {
  Conversation conversation;
  int next = 0;
  conversation.ended = channel.exchange<EchoMessage, EchoMessage>(
      Context(), converse,
      [&](EchoMessage& message) {
        if (next == count) return false;
        message.set_identity(next == special ? identity : "");
        message.set_number(next++);
        if (sent != nullptr) *sent = next;
        return true;
      },
      [&](const EchoMessage& answer) {
        conversation.answers.push_back(answer);
        return true;
      });
  return conversation;
}

TEST_F(Rpc, AnswersEveryMessageOfAnExchangeInOrder) {
  constexpr int count = 2'000;
  const Conversation conversation = talk(*channel, count);
  ASSERT_TRUE(conversation.ended) << conversation.ended.error().to_string();
  ASSERT_EQ(conversation.answers.size(), count);
  for (int i = 0; i < count; ++i) ASSERT_EQ(conversation.answers[static_cast<std::size_t>(i)].number(), i);
  EXPECT_EQ(last_seen().caller_text(), "human:ada@example.com");
  EXPECT_TRUE(talk(*channel, 0).ended) << "one without messages";
}

TEST_F(Rpc, AnExchangeGoesOnAfterAMessageThatItsHandlerRefused) {
  for (const auto& [identity, expected] :
       {std::pair<std::string, std::string>("refused", "MT-429 enough"),
        std::pair<std::string, std::string>("throws",
                                            "PL-500 internal error; the server's log has it under this trace id")}) {
    const Conversation conversation = talk(*channel, 20, 5, identity);
    ASSERT_TRUE(conversation.ended) << conversation.ended.error().to_string();
    ASSERT_EQ(conversation.answers.size(), 20u);
    EXPECT_EQ(conversation.answers[5].identity(), expected);
    EXPECT_EQ(conversation.answers[19].number(), 19);
  }
}

TEST_F(Rpc, EveryMessageOfAnExchangeIsCheckedLikeACall) {
  EXPECT_EQ(talk(*connect(""), 1).ended.error().kind(), ErrorKind::unauthenticated);
  EXPECT_EQ(talk(*connect("human:eve@example.com"), 1).ended.error().kind(), ErrorKind::permission_denied);
  EXPECT_TRUE(heard.empty());
  EXPECT_EQ(auditor.records(), std::vector<std::string>{"human:eve@example.com bench.converse PL-403"});

  // Over the limit of a message: what came before is answered.
  const Conversation large = talk(*channel, 5, 3, std::string((1 << 20) + 1, 'x'));
  EXPECT_EQ(large.ended.error().kind(), ErrorKind::too_large);
  EXPECT_LE(large.answers.size(), 3u);

  Context late;
  late.deadline = system_clock().monotonic() + milliseconds(100);
  const auto ended = channel->exchange<EchoMessage, EchoMessage>(
      late, converse, [&](EchoMessage&) { return system_clock().monotonic() < late.deadline + milliseconds(50); },
      [](const EchoMessage&) { return true; });
  EXPECT_EQ(ended.error().kind(), ErrorKind::timeout);

  EXPECT_EQ(rest("POST", std::string(converse), R"({"number":"1"})").status, 400);
}

TEST_F(Rpc, AnExchangeIsReadNoFasterThanItIsAnswered) {
  {
    std::lock_guard lock(mutex);
    held = true;
  }
  std::atomic<int> sent = 0;
  Conversation conversation;
  // Large enough that the transport's own buffers are soon full.
  std::jthread client([&] { conversation = talk(*channel, 100, 0, std::string(500 << 10, 'x'), &sent); });
  {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(arrived.wait_for(lock, seconds(20), [&] { return running == 2; })) << "as many as there are workers";
    EXPECT_LE(heard.size(), 8u);
    held = false;
    arrived.notify_all();
  }
  client.join();
  EXPECT_TRUE(conversation.ended);
  EXPECT_EQ(conversation.answers.size(), 100u);
  const std::lock_guard lock(mutex);
  EXPECT_LE(running_max, 8);
}

TEST_F(Rpc, AnExchangeSurvivesAClientThatGoesAwayInTheMiddle) {
  for (int i = 0; i < 20; ++i) {
    int read = 0, next = 0;
    const auto ended = channel->exchange<EchoMessage, EchoMessage>(
        Context(), converse,
        [&](EchoMessage& message) {
          message.set_number(next++);
          return true;
        },
        [&](const EchoMessage&) { return ++read < i; });
    EXPECT_TRUE(ended);
  }
  EXPECT_TRUE(talk(*channel, 10).ended) << "the server is well";
}

TEST_F(Rpc, AStoppingServerAnswersWhatCameOfAnExchange) {
  std::mutex m;
  std::condition_variable wake;
  int answered = 0;
  bool stopped = false;
  Result<> ended;
  std::jthread client([&] {
    int next = 0;
    ended = channel->exchange<EchoMessage, EchoMessage>(
        Context(), converse,
        [&](EchoMessage& message) {
          message.set_number(next);
          std::unique_lock lock(m);
          if (next++ < 10) return true;
          wake.wait(lock, [&] { return stopped; });
          return false;
        },
        [&](const EchoMessage&) {
          std::lock_guard lock(m);
          ++answered;
          wake.notify_all();
          return true;
        });
  });
  {
    std::unique_lock lock(m);
    ASSERT_TRUE(wake.wait_for(lock, seconds(20), [&] { return answered == 10; }));
  }
  const auto began = std::chrono::steady_clock::now();
  server->stop(seconds(20));
  EXPECT_LT(std::chrono::steady_clock::now() - began, seconds(10)) << "an idle exchange does not hold up the end";
  {
    std::lock_guard lock(m);
    stopped = true;
    wake.notify_all();
  }
  client.join();
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().kind(), ErrorKind::unavailable);
}

TEST_F(Rpc, GivesUpAtTheCallersDeadline) {
  Context ctx;
  ctx.deadline = system_clock().monotonic() + milliseconds(100);
  auto result = channel->call<v1::GetPublicKeysRequest, v1::AgentPublicKeys>(
      ctx, "/creto.nhi.v1.NhiService/GetPublicKeys", v1::GetPublicKeysRequest());
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().kind(), ErrorKind::timeout);
}

TEST_F(Rpc, RefusesMalformedAndOversizedMessages) {
  v1::GetAgentRequest request;
  request.set_identity(std::string(10 << 20, 'x'));
  auto big = channel->call<v1::GetAgentRequest, v1::Agent>({}, "/creto.nhi.v1.NhiService/GetAgent", request);
  ASSERT_FALSE(big.has_value());
  EXPECT_EQ(big.error().kind(), ErrorKind::too_large);

  // Field 1 of SignedPrekey is a number; of GetAgentRequest it must be valid UTF-8.
  v1::OneTimePrekey other;
  other.set_id(7);
  other.set_key("\xff\xfe");
  v1::IssueTokenResponse bad;
  v1::ResolveTokenRequest broken;
  bad.GetReflection()->MutableUnknownFields(&bad)->AddLengthDelimited(1, "\xff\xfe");
  auto malformed = channel->call<v1::IssueTokenResponse, v1::Agent>({}, "/creto.nhi.v1.NhiService/GetAgent", bad);
  ASSERT_FALSE(malformed.has_value());
  EXPECT_EQ(malformed.error().kind(), ErrorKind::invalid_input);
  EXPECT_EQ(calls, 0);

  auto missing = channel->call<v1::IssueTokenResponse, v1::Agent>({}, "/creto.nhi.v1.NhiService/Nothing", bad);
  EXPECT_EQ(missing.error().kind(), ErrorKind::not_found);
}

TEST_F(Rpc, ServesRestFromTheAnnotations) {
  auto response = rest("GET", "/v1/agents/agent:nhi:ed25519:abc");
  ASSERT_EQ(response.status, 200) << response.body;
  auto json = nlohmann::json::parse(response.body);
  EXPECT_EQ(json["identity"], "agent:nhi:ed25519:abc");
  EXPECT_EQ(json["type"], "AGENT_TYPE_AUTONOMOUS");
  EXPECT_EQ(json["created_at"], "2023-11-14T22:13:20Z");
  EXPECT_EQ(json["attributes"]["team"], "accounts");

  response = rest("GET", "/v1/agents/mallory:isRevoked", "", {});
  EXPECT_EQ(nlohmann::json::parse(response.body)["revoked"], true) << response.body;
  response = rest("POST", "/v1/agents/human%3Aada%40example.com:revoke", R"({"reason":"left"})");
  EXPECT_EQ(nlohmann::json::parse(response.body)["identity"], "human:ada@example.com|left") << response.body;
  response = rest("GET", "/v1/agents?page.size=7&type=AGENT_TYPE_TOOL");
  EXPECT_EQ(nlohmann::json::parse(response.body)["next_token"], "7AGENT_TYPE_TOOL") << response.body;
}

TEST_F(Rpc, RefusesBadRestWithAClearErrorAndItsCode) {
  auto expect = [&](int status, std::string_view part, const http::Response& response) {
    EXPECT_EQ(response.status, status) << response.body;
    auto error = http::error_from_json(response.body);
    ASSERT_TRUE(error.has_value()) << response.body;
    EXPECT_THAT(error->message(), ::testing::HasSubstr(std::string(part)));
  };
  expect(404, "no such path", rest("GET", "/v1/nothing"));
  expect(404, "no such path", rest("GET", "/"));
  expect(405, "not for this path", rest("DELETE", "/v1/agents/clerk"));
  expect(400, "colour", rest("POST", "/v1/agents", R"({"name":"x","colour":"red"})"));
  expect(400, "name", rest("POST", "/v1/agents", R"({"name":["x"]})"));
  expect(400, "line 1", rest("POST", "/v1/agents", R"({"name":)"));
  expect(400, "duplicate key `name`", rest("POST", "/v1/agents", R"({"name":"x","name":"y"})"));
  expect(400, "UTF-8", rest("POST", "/v1/agents", "{\"name\":\"\xff\"}"));
  expect(413, "nested deeper", rest("POST", "/v1/agents", std::string(10'000, '[')));
  expect(400, "Content-Type",
         rest("POST", "/v1/agents", "<x/>",
              {{"authorization", "Bearer human:ada@example.com"}, {"content-type", "text/xml"}}));
  expect(400, "two hex digits", rest("GET", "/v1/agents?page.size=1%"));
  expect(400, "page.size", rest("GET", "/v1/agents?page.size=many"));
  expect(400, "`nonsense`", rest("GET", "/v1/agents?nonsense=1"));
  expect(400, "`identity.x`", rest("GET", "/v1/agents/clerk?identity.x=1"));
  expect(400, "takes no body", rest("GET", "/v1/agents/clerk", R"({"identity":"other"})"));
  expect(400, "Idempotency",
         rest("POST", "/v1/agents", R"({"name":"x"})",
              {{"authorization", "Bearer human:ada@example.com"}, {"creto-idempotency-key", std::string(300, 'k')}}));
  EXPECT_EQ(calls, 0);
}

TEST_F(Rpc, DescribesItselfAsOpenApi) {
  auto document = nlohmann::json::parse(dispatcher->openapi());
  EXPECT_EQ(document["openapi"], "3.0.3");
  const auto& operation = document["paths"]["/v1/agents/{identity}"]["get"];
  EXPECT_EQ(operation["operationId"], "NhiService_GetAgent");
  EXPECT_EQ(operation["summary"], "One identity, by its text or by its name.");
  EXPECT_EQ(operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"],
            "#/components/schemas/creto.nhi.v1.Agent");
  EXPECT_EQ(document["components"]["schemas"]["creto.nhi.v1.Agent"]["properties"]["created_at"]["format"], "date-time");
  EXPECT_TRUE(document["paths"]["/v1/agents/{identity}:isRevoked"]["get"]["security"].empty());
}

TEST_F(Rpc, WhoDoesNotWantToWaitDoesNotCloseTheDoorForOthers) {
  for (int i = 0; i < 10; ++i) {
    Context hasty;
    hasty.deadline = system_clock().monotonic() + milliseconds(20);
    auto result = channel->call<v1::GetPublicKeysRequest, v1::AgentPublicKeys>(
        hasty, "/creto.nhi.v1.NhiService/GetPublicKeys", v1::GetPublicKeysRequest());
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind(), ErrorKind::timeout) << result.error().to_string();
  }
  EXPECT_TRUE(get(*channel, "clerk"));
}

TEST_F(Rpc, WhatWouldHaveToWaitOnTheTransportsThreadIsAnsweredByAWorker) {
  const auto ask = [&](std::string identity) {
    v1::IsRevokedRequest request;
    request.set_identity(std::move(identity));
    return channel->call<v1::IsRevokedRequest, v1::IsRevokedResponse>(Context(), "/creto.nhi.v1.NhiService/IsRevoked",
                                                                      request);
  };
  const auto answer = ask("far away");
  ASSERT_TRUE(answer) << answer.error().to_string();
  EXPECT_EQ(calls, 2) << "once here, once there";
  EXPECT_EQ(authenticator.asked, 1) << "who was let in is let in";
  EXPECT_TRUE(ask("mallory")->revoked());
}

TEST_F(Rpc, WhoIsSlowToSayWhetherACallMayBeKeepsNoWorkerFromOthers) {
  constexpr int callers = 32;  // more than there are threads of either kind
  const auto threads = static_cast<int>(DispatcherOptions().waiting);
  std::latch thinking(threads), others_are_answered(1);
  std::atomic<int> asked = 0, answered = 0;
  authorizer.think = [&] {
    if (++asked <= threads) thinking.count_down();
    others_are_answered.wait();
  };
  const auto slow = connect("human:slow@example.com");
  std::vector<std::jthread> waiters;
  for (int i = 0; i < callers; ++i)
    waiters.emplace_back([&, i] {
      v1::IsRegisteredRequest inline_call;
      const bool done = i % 2 == 0 ? get(*slow, "clerk").has_value()
                                   : slow->call<v1::IsRegisteredRequest, v1::IsRegisteredResponse>(
                                             Context(), "/creto.nhi.v1.NhiService/IsRegistered", inline_call)
                                         .has_value();
      answered += done;
    });
  thinking.wait();
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(get(*channel, "clerk"));
  EXPECT_EQ(answered, 0);
  others_are_answered.count_down();
  waiters.clear();
  EXPECT_EQ(answered, callers);
  EXPECT_EQ(asked, callers) << "each once";
}

TEST_F(Rpc, KeepsServingWhenOneMethodWaits) {
  std::jthread waiter([&] {
    Context ctx;
    ctx.deadline = system_clock().monotonic() + milliseconds(300);
    (void)channel->call<v1::GetPublicKeysRequest, v1::AgentPublicKeys>(ctx, "/creto.nhi.v1.NhiService/GetPublicKeys",
                                                                       v1::GetPublicKeysRequest());
  });
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(get(*channel, "clerk").has_value());
}

/// The group that the server on `port` agrees on with a client that offers `groups`; empty where they find none.
std::string negotiated_group(std::uint16_t port, const char* groups) {
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  SSL_CTX_set1_groups_list(context, groups);
  const unsigned char h2[] = "\x02h2";
  SSL_CTX_set_alpn_protos(context, h2, 3);
  BIO* bio = BIO_new_ssl_connect(context);
  BIO_set_conn_hostname(bio, ("127.0.0.1:" + std::to_string(port)).c_str());
  std::string group;
  SSL* ssl = nullptr;
  BIO_get_ssl(bio, &ssl);
  if (BIO_do_handshake(bio) == 1) group = SSL_group_to_name(ssl, static_cast<int>(SSL_get_negotiated_group(ssl)));
  BIO_free_all(bio);
  SSL_CTX_free(context);
  return group;
}

TEST(RpcTls, KnowsItsCallerByHisCertificateAndNegotiatesThePostQuantumGroup) {
  ASSERT_TRUE(tls::use_post_quantum_groups());
  const Clock& clock = system_clock();
  auto authority = tls::create_authority("Example", std::chrono::hours(24), clock).value();
  auto server_pair =
      tls::issue(authority,
                 {.common_name = "creto", .dns_names = {"localhost"}, .ip_addresses = {"127.0.0.1"}, .server = true},
                 std::chrono::hours(1), clock)
          .value();
  auto ada_pair = tls::issue(authority, {.common_name = "ada", .uri = tls::identity_uri({"human:ada+x@example.com"})},
                             std::chrono::hours(1), clock)
                      .value();
  auto pem = [](const tls::KeyPair& pair, const std::string& ca) {
    return tls::Identity{pair.certificate, std::string(pair.key.reveal_text()), ca};
  };

  PlainAuthenticator authenticator;
  ListAuthorizer authorizer;
  MemoryAuditor auditor;
  auto dispatcher = Dispatcher::create({authenticator, authorizer, auditor, no_telemetry(), clock});
  std::mutex mutex;
  std::string caller;
  dispatcher->service("creto.nhi.v1.NhiService")
      .unary<v1::GetAgentRequest, v1::Agent>("GetAgent", {},
                                             [&](const Context& ctx, const v1::GetAgentRequest&) -> Result<v1::Agent> {
                                               std::lock_guard lock(mutex);
                                               caller = ctx.caller_text();
                                               return v1::Agent();
                                             });
  auto server = GrpcServer::start(*dispatcher, {.port = 0, .tls = pem(server_pair, authority.certificate)}).value();
  ChannelOptions options;
  options.endpoint = "localhost:" + std::to_string(server->port());
  options.tls = pem(ada_pair, authority.certificate);
  auto channel = Channel::connect(options, clock).value();
  auto result = channel->call<v1::GetAgentRequest, v1::Agent>({}, "/creto.nhi.v1.NhiService/GetAgent", {});
  ASSERT_TRUE(result.has_value()) << result.error().to_string();
  {
    std::lock_guard lock(mutex);
    EXPECT_EQ(caller, "human:ada+x@example.com");
  }

  EXPECT_EQ(negotiated_group(server->port(), "X25519MLKEM768"), "X25519MLKEM768");
  EXPECT_EQ(negotiated_group(server->port(), "X25519"), "x25519");  // for who does not have it yet

  // A certificate of another authority does not even get a connection.
  auto strangers = tls::create_authority("Strangers", std::chrono::hours(24), clock).value();
  auto eve = tls::issue(strangers, {.common_name = "eve", .uri = tls::identity_uri({"human:ada@example.com"})},
                        std::chrono::hours(1), clock)
                 .value();
  options.tls = pem(eve, authority.certificate);
  options.attempts_max = 1;
  options.timeout = seconds(2);
  auto refused = Channel::connect(options, clock)
                     .value()
                     ->call<v1::GetAgentRequest, v1::Agent>({}, "/creto.nhi.v1.NhiService/GetAgent", {});
  EXPECT_FALSE(refused.has_value());
  // gRPC takes its refused connections down in the background.
  std::this_thread::sleep_for(milliseconds(500));  // tidy(sleep): it shows no sign of being done
}

}  // namespace
}  // namespace creto::rpc
