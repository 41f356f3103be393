#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fmt/format.h>

#include <atomic>
#include <latch>
#include <semaphore>
#include <thread>

#include "creto/io/http_client.h"
#include "creto/io/http_server.h"
#include "creto/testing/fake_clock.h"

namespace creto::http {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Response echo(const Request& request) {
  if (request.path() == "/throw") throw std::runtime_error("secret");
  Response response = Response::text(200, request.method + " " + request.target + " " + request.body);
  response.headers.emplace_back("X-Echo", std::string(request.header("x-echo")));
  for (const std::string& uri : request.peer_uris) response.headers.emplace_back("X-Peer", uri);
  return response;
}

std::string header(const Response& response, std::string_view name) {
  for (const auto& [key, value] : response.headers)
    if (key == name) return value;
  return "";
}

class Http : public ::testing::Test {
 protected:
  std::string url(const Server& server, std::string path, std::string scheme = "http") {
    return scheme + "://127.0.0.1:" + std::to_string(server.port()) + path;
  }
  Context ctx;
  std::shared_ptr<Client> client = Client::create(system_clock());
};

TEST_F(Http, AnswersOverTcpAndKeepsTheConnection) {
  auto server = Server::start({.port = 0}, echo, no_telemetry()).value();
  for (int i = 0; i < 3; ++i) {
    auto response = client->send(
        ctx, {.method = "POST", .url = url(*server, "/a?b=c"), .headers = {{"X-Echo", "yes"}}, .body = "hello"});
    ASSERT_TRUE(response.has_value()) << response.error().to_string();
    EXPECT_EQ(response->status, 200);
    EXPECT_EQ(response->body, "POST /a?b=c hello");
    EXPECT_EQ(header(*response, "x-echo"), "yes");
  }
  auto head = client->send(ctx, {.method = "HEAD", .url = url(*server, "/a")});
  ASSERT_TRUE(head.has_value());
  EXPECT_TRUE(head->body.empty());
}

TEST_F(Http, AnswersOverAUnixSocketThatOnlyItsOwnerMayUse) {
  std::string path = ::testing::TempDir() + "creto-http-test.sock";
  auto server = Server::start({.unix_path = path}, echo, no_telemetry()).value();
  struct stat info;
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  auto response = client->send(ctx, {.url = "http://gateway/x", .unix_path = path});
  ASSERT_TRUE(response.has_value()) << response.error().to_string();
  EXPECT_EQ(response->body, "GET /x ");
  server.reset();
  EXPECT_NE(::stat(path.c_str(), &info), 0);
}

TEST_F(Http, RefusesWhatIsTooLargeOrMalformed) {
  auto server =
      Server::start({.port = 0, .body_bytes_max = 1000, .header_bytes_max = 2000}, echo, no_telemetry()).value();
  auto big = client->send(ctx, {.method = "POST", .url = url(*server, "/"), .body = std::string(10 << 20, 'x')});
  // Either the answer, or the connection was closed while we still wrote.
  EXPECT_TRUE(!big || big->status == 413);
  auto wide = client->send(ctx, {.url = url(*server, "/"), .headers = {{"X-Wide", std::string(5000, 'x')}}});
  ASSERT_TRUE(wide.has_value()) << wide.error().to_string();
  EXPECT_EQ(wide->status, 431);
  EXPECT_TRUE(error_from_json(wide->body).has_value());
  auto thrown = client->send(ctx, {.url = url(*server, "/throw")});
  EXPECT_EQ(thrown->status, 500);
  EXPECT_EQ(thrown->body.find("secret"), std::string::npos);
}

TEST_F(Http, ABodyMayBeLargerWhereItIsForThat) {
  const auto limit_of = [](const Request& head) { return head.path() == "/bulk" ? std::size_t{1} << 20 : 0; };
  auto server =
      Server::start({.port = 0, .body_bytes_max = 1000, .body_bytes_of = limit_of}, echo, no_telemetry()).value();
  const auto status = [&](const char* path, std::size_t size) {
    auto answer = client->send(ctx, {.method = "POST", .url = url(*server, path), .body = std::string(size, 'x')});
    return answer ? answer->status : 0;
  };
  EXPECT_EQ(status("/bulk?a=b", 1 << 20), 200);
  EXPECT_EQ(status("/bulk", (1 << 20) + 1), 413);
  EXPECT_EQ(status("/other", 1000), 200);
  EXPECT_EQ(status("/other", 1001), 413);
}

TEST_F(Http, AnswersALongPollWithoutHoldingAThread) {
  std::mutex mutex;
  std::vector<Respond> waiting;
  std::counting_semaphore<> arrived(0);
  auto server = Server::start_async(
                    {.port = 0},
                    [&](Request, Respond respond) {
                      {
                        std::lock_guard lock(mutex);
                        waiting.push_back(std::move(respond));
                      }
                      arrived.release();
                    },
                    no_telemetry())
                    .value();
  std::atomic<int> answered = 0;
  std::vector<std::jthread> threads;
  for (int i = 0; i < 20; ++i)
    threads.emplace_back([&] {
      auto response = client->send(ctx, {.url = url(*server, "/wait")});
      if (response && response->body == "now") ++answered;
    });
  for (int i = 0; i < 20; ++i) arrived.acquire();
  for (auto& respond : waiting) {
    respond(Response::text(200, "now"));
    respond(Response::text(200, "twice"));
  }
  threads.clear();
  EXPECT_EQ(answered, 20);

  std::jthread dropped([&] {
    auto response = client->send(ctx, {.url = url(*server, "/drop")});
    if (response && response->status == 500) ++answered;
  });
  arrived.acquire();
  waiting.clear();
  dropped.join();
  EXPECT_EQ(answered, 21);
}

TEST_F(Http, CutsOffAHandlerThatTakesTooLong) {
  std::vector<Respond> kept;
  auto server = Server::start_async(
                    {.port = 0, .handler_timeout = milliseconds(100)},
                    [&](Request, Respond respond) { kept.push_back(std::move(respond)); }, no_telemetry())
                    .value();
  auto response = client->send(ctx, {.url = url(*server, "/")});
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->status, 504);
}

TEST_F(Http, FinishesTheRunningRequestWhenItStops) {
  std::latch entered(1);
  std::unique_ptr<Server> server;
  const auto until_nobody_is_let_in = [&](const Request& request) {
    if (request.path() == "/door") return Response::text(200, "open");
    entered.count_down();
    while (client->send(ctx, {.url = url(*server, "/door")})) continue;
    return Response::text(200, "done");
  };
  server = Server::start({.port = 0}, until_nobody_is_let_in, no_telemetry()).value();
  std::string body;
  std::jthread caller([&] {
    auto response = client->send(ctx, {.url = url(*server, "/")});
    body = response ? response->body : response.error().to_string();
  });
  entered.wait();
  server->stop(seconds(5));
  caller.join();
  EXPECT_EQ(body, "done");
  EXPECT_EQ(client->send(ctx, {.url = url(*server, "/")}).error().kind(), ErrorKind::unavailable);
}

TEST_F(Http, ShowsTheHandlerWhoseCertificateItVerified) {
  const Clock& clock = system_clock();
  auto authority = tls::create_authority("Example", std::chrono::hours(24), clock).value();
  auto pair = tls::issue(authority, {.common_name = "creto", .ip_addresses = {"127.0.0.1"}, .server = true},
                         std::chrono::hours(1), clock)
                  .value();
  auto ada = tls::issue(authority, {.common_name = "ada", .uri = tls::identity_uri({"human:ada@example.com"})},
                        std::chrono::hours(1), clock)
                 .value();
  ServerOptions options{.port = 0};
  options.tls = tls::Identity{pair.certificate, std::string(pair.key.reveal_text()), authority.certificate};
  auto server = Server::start(options, echo, no_telemetry()).value();
  ClientRequest request{.url = url(*server, "/", "https"), .authority_pem = authority.certificate};
  auto anonymous = client->send(ctx, request);
  ASSERT_TRUE(anonymous.has_value()) << anonymous.error().to_string();
  EXPECT_EQ(header(*anonymous, "x-peer"), "");
  request.certificate_pem = ada.certificate;
  request.key_pem = std::string(ada.key.reveal_text());
  auto known = Client::create(clock)->send(ctx, request);
  ASSERT_TRUE(known.has_value()) << known.error().to_string();
  EXPECT_EQ(header(*known, "x-peer"), "creto:human:ada%40example.com");
  request.authority_pem = tls::create_authority("Strangers", std::chrono::hours(24), clock).value().certificate;
  EXPECT_EQ(Client::create(clock)->send(ctx, request).error().kind(), ErrorKind::unavailable);
}

TEST_F(Http, ClientRefusesWhatItShouldNotFetch) {
  EXPECT_EQ(client->send(ctx, {.url = "file:///etc/passwd"}).error().kind(), ErrorKind::invalid_input);
  EXPECT_EQ(client->send(ctx, {.url = "nonsense"}).has_value(), false);
  EXPECT_EQ(client->send(ctx, {.url = "http://127.0.0.1:1/", .refuse_private_addresses = true}).error().kind(),
            ErrorKind::invalid_input);
  EXPECT_EQ(client->send(ctx, {.url = "http://127.0.0.1:1/"}).error().kind(), ErrorKind::unavailable);
  EXPECT_EQ(client->send(ctx, {.url = "http://127.0.0.1:1/", .headers = {{"X", "a\r\nY: b"}}}).error().kind(),
            ErrorKind::invalid_input);
  auto server = Server::start(
                    {.port = 0},
                    [](const Request& request) {
                      if (request.path() == "/big") return Response::text(200, std::string(100'000, 'x'));
                      Response response;
                      response.status = 302;
                      response.headers.emplace_back("Location", "/big");
                      return response;
                    },
                    no_telemetry())
                    .value();
  EXPECT_EQ(client->send(ctx, {.url = url(*server, "/big"), .body_bytes_max = 1000}).error().kind(),
            ErrorKind::too_large);
  EXPECT_EQ(client->send(ctx, {.url = url(*server, "/moved")})->status, 302);
  EXPECT_EQ(client->send(ctx, {.url = url(*server, "/moved"), .redirects_max = 1})->status, 200);
}

TEST(HttpClient, LeavesAHostAloneForAWhileThatFailsAgainAndAgain) {
  testing::FakeClock clock;
  std::atomic<int> status = 503, calls = 0;
  const auto answer = [&](const Request&) {
    ++calls;
    return Response::text(status, "");
  };
  auto failing = Server::start({.port = 0}, answer, no_telemetry()).value();
  auto other = Server::start({.port = 0}, echo, no_telemetry()).value();
  const auto at = [](const Server& server) { return fmt::format("http://127.0.0.1:{}/", server.port()); };
  const auto client =
      Client::create(clock, {.failure_threshold = 3, .reset_timeout = seconds(10), .half_open_requests = 1});
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client->send(Context(), {.url = at(*failing)})->status, 503);
  const auto refused = client->send(Context(), {.url = at(*failing)});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::unavailable);
  EXPECT_NE(refused.error().to_string().find("circuit is open"), std::string::npos);
  EXPECT_EQ(calls, 3) << "it was called all the same";
  EXPECT_EQ(client->send(Context(), {.url = at(*other)})->status, 200) << "another host pays for it";

  clock.advance(seconds(10));
  status = 404;  // an answer, whatever it says
  EXPECT_EQ(client->send(Context(), {.url = at(*failing)})->status, 404);
  EXPECT_EQ(client->send(Context(), {.url = at(*failing)})->status, 404);

  failing->stop(Nanos(0));
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(client->send(Context(), {.url = at(*failing)}).error().kind(), ErrorKind::unavailable);
  EXPECT_NE(client->send(Context(), {.url = at(*failing)}).error().to_string().find("circuit is open"),
            std::string::npos);
}

TEST(HttpRequest, DecodesPathAndQuery) {
  Request request;
  request.target = "/a%20b?x=1+2&y=%C3%A4&flag&x=3";
  EXPECT_EQ(request.path(), "/a%20b");
  EXPECT_EQ(request.query("x"), "1 2");
  EXPECT_EQ(request.query("y"), "\xc3\xa4");
  EXPECT_EQ(request.query("flag"), "");
  EXPECT_EQ(request.query("none"), std::nullopt);
  EXPECT_EQ(percent_decode("%4", false).error().kind(), ErrorKind::invalid_input);
  EXPECT_EQ(percent_encode("a b/\xc3\xa4"), "a%20b%2F%C3%A4");
}

}  // namespace
}  // namespace creto::http
