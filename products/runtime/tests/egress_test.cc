#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <future>
#include <mutex>
#include <thread>

#include "driver/process.h"
#include "net/egress_proxy.h"
#include "net/sandbox_network.h"
#include "tests/sandbox_fixture.h"

namespace creto::runtime {
namespace {

using egress::Peek;

std::string client_hello(const std::string& name) {
  const auto u16 = [](std::size_t n) { return std::string{static_cast<char>(n >> 8), static_cast<char>(n)}; };
  const auto server = std::string(1, '\0') + u16(name.size()) + name;
  const auto sni = u16(0) + u16(server.size() + 2) + u16(server.size()) + server;
  const auto extensions = u16(10) + u16(2) + "xx" + sni;
  const auto body = "\x03\x03" + std::string(32, 'r') + std::string(1, '\0') + u16(2) + "cc" +
                    std::string("\x01\x00", 2) + u16(extensions.size()) + extensions;
  const auto hello = std::string("\x01\x00", 2) + u16(body.size()) + body;
  return std::string("\x16\x03\x01", 3) + u16(hello.size()) + hello;
}

TEST(TlsServerName, IsFoundWhereverTheBytesAreCut) {
  const auto hello = client_hello("API.example");
  for (std::size_t cut = 1; cut < hello.size(); ++cut)
    EXPECT_EQ(egress::tls_server_name(hello.substr(0, cut)).state, Peek::State::need_more) << cut;
  const auto peek = egress::tls_server_name(hello);
  EXPECT_EQ(peek.state, Peek::State::found);
  EXPECT_EQ(peek.host, "api.example");
}

TEST(TlsServerName, IsFoundInAHelloOfTwoRecords) {
  const auto hello = client_hello("api.example").substr(5);
  const auto record = [](const std::string& part) {
    return std::string("\x16\x03\x01\x00", 4) + static_cast<char>(part.size()) + part;
  };
  EXPECT_EQ(egress::tls_server_name(record(hello.substr(0, 20)) + record(hello.substr(20))).host, "api.example");
}

TEST(TlsServerName, IsNoneInWhatIsNotTls) {
  EXPECT_EQ(egress::tls_server_name("GET / HTTP/1.1\r\n").state, Peek::State::none);
  EXPECT_EQ(egress::tls_server_name(std::string(20000, '\x16')).state, Peek::State::none);
}

TEST(HttpHost, IsTheHeaderWithoutPortAndRefusedTwice) {
  EXPECT_EQ(egress::http_host("GET / HTTP/1.1\r\nHOST: Rates.example:80 \r\n\r\n").host, "rates.example");
  EXPECT_EQ(egress::http_host("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").host, "a,b");
  EXPECT_EQ(egress::http_host("GET / HTTP/1.1\r\nHost:\r\nHost: b\r\n\r\n").host, ",b");
  EXPECT_EQ(egress::http_host("GET /\r").state, Peek::State::need_more);
  EXPECT_EQ(egress::http_host("GET\n/\r\nHost: a\r\n\r\n").state, Peek::State::none);
  EXPECT_EQ(egress::http_host("GET / HTTP/1.1\r\nHos").state, Peek::State::need_more);
}

TEST(Dns, AnswersWithTheAddressAndRefusesMalformedQuestions) {
  const std::string query(
      "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05rates\x07"
      "Example\x00\x00\x01\x00\x01",
      31);
  const auto question = egress::dns_question(query);
  ASSERT_TRUE(question);
  EXPECT_EQ(question->name, "rates.example");
  const auto answer = egress::dns_answer(query, *question, ::inet_addr("198.19.0.1"), false);
  EXPECT_EQ(answer.substr(answer.size() - 4), std::string("\xC6\x13\x00\x01", 4));
  EXPECT_EQ(answer[7], 1);
  for (std::size_t cut = 0; cut < query.size(); ++cut) EXPECT_FALSE(egress::dns_question(query.substr(0, cut)));
}

/// Sends "hello from upstream" to whoever connects, after having read something.
class Upstream {
 public:
  Upstream() {
    fd_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    ::listen(fd_.get(), 8);
    ::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&address), &size);
    port = ntohs(address.sin_port);
    thread_ = std::thread([this] {
      for (;;) {
        const Fd client(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!client.valid()) return;
        char buffer[4096];
        if (::recv(client.get(), buffer, sizeof buffer, 0) > 0)
          ::send(client.get(), "hello from upstream", 19, MSG_NOSIGNAL);
      }
    });
  }
  ~Upstream() {
    ::shutdown(fd_.get(), SHUT_RDWR);
    thread_.join();
  }
  std::uint16_t port = 0;

 private:
  Fd fd_;
  std::thread thread_;
};

class EgressTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto fixture = SandboxFixture::create(GetParam());
    if (!fixture) GTEST_SKIP() << "no sandboxes here: " << fixture.error().to_string();
    fixture_ = std::move(*fixture);
    auto network = SandboxNetwork::create(instance_, no_telemetry());
    if (!network) GTEST_SKIP() << "no sandbox networks here: " << network.error().to_string();
    network_ = std::move(*network);
    auto sockets = network_->open_sockets();
    ASSERT_TRUE(sockets) << sockets.error().to_string();
    auto proxy = EgressProxy::create(
        {.static_hosts = {{"rates.example", "127.0.0.1:" + std::to_string(upstream_.port)}}}, std::move(*sockets),
        [this](const EgressTarget& target) -> Result<> {
          const std::lock_guard lock(mutex_);
          asked_.push_back(target.text());
          if (target.host == "rates.example") return {};
          return Error(Product::runtime, ErrorKind::egress_denied, "not allowed");
        },
        [this](const EgressClosed& closed) { closed_.set_value(closed); }, no_telemetry());
    ASSERT_TRUE(proxy) << proxy.error().to_string();
    proxy_ = std::move(*proxy);
    auto lease = network_->acquire();
    ASSERT_TRUE(lease) << lease.error().to_string();
    lease_ = *lease;
    ASSERT_TRUE(write_text_file(fixture_->directory() + "/resolv.conf", "nameserver " + lease_.host_address + "\n"));
    auto sandbox =
        fixture_->start({}, lease_.namespace_path, {{fixture_->directory() + "/resolv.conf", "/etc/resolv.conf"}});
    ASSERT_TRUE(sandbox) << sandbox.error().to_string();
    sandbox_.emplace(std::move(*sandbox));
    proxy_->admit(lease_.guest_address, sandbox_->id);
  }
  void TearDown() override {
    fixture_.reset();
    if (!network_) return;
    for (const auto& lease : network_->leases()) network_->release(lease);
    network_->remove();
  }
  CommandResult connect(const std::string& host, int port) {
    // bash can open TCP connections by itself; nothing else is needed in the image.
    return fixture_->run(*sandbox_,
                         {"bash", "-c",
                          "exec 3<>/dev/tcp/" + host + "/" + std::to_string(port) +
                              " || exit 9; printf 'GET / HTTP/1.0\\r\\nHost: " + host + "\\r\\n\\r\\n' >&3; cat <&3"},
                         "");
  }

  const std::string instance_ = "t" + std::to_string(::getpid());
  std::mutex mutex_;
  std::vector<std::string> asked_;
  std::promise<EgressClosed> closed_;
  Upstream upstream_;
  std::unique_ptr<SandboxFixture> fixture_;
  std::unique_ptr<EgressProxy> proxy_;
  std::unique_ptr<SandboxNetwork> network_;
  NetworkLease lease_;
  std::optional<SandboxFixture::Sandbox> sandbox_;
};

TEST_P(EgressTest, AnAllowedNameIsReachedAndItsBytesAreCounted) {
  const auto result = connect("rates.example", 80);
  EXPECT_EQ(result.out, "hello from upstream") << result.err;
  auto closed = closed_.get_future();
  ASSERT_EQ(closed.wait_for(std::chrono::seconds(5)), std::future_status::ready);
  const auto counted = closed.get();
  EXPECT_EQ(counted.bytes_in, 19u);
  EXPECT_EQ(counted.bytes_out, std::string("GET / HTTP/1.0\r\nHost: rates.example\r\n\r\n").size());
  EXPECT_EQ(counted.target.text(), "rates.example:80");
}

TEST_P(EgressTest, ADeniedNameIsResetAfterTheDecisionWasAsked) {
  const auto result = connect("evil.example", 443);
  EXPECT_EQ(result.out, "");
  const std::lock_guard lock(mutex_);
  EXPECT_EQ(asked_, std::vector<std::string>{"evil.example:443"});
}

TEST_P(EgressTest, ABareAddressIsJudgedAsThatAddress) {
  connect("93.184.216.34", 80);
  const std::lock_guard lock(mutex_);
  EXPECT_EQ(asked_, std::vector<std::string>{"93.184.216.34:80"});
}

TEST_P(EgressTest, OtherPortsAndTheHostItselfAreRefused) {
  EXPECT_EQ(connect("93.184.216.34", 22).exit_code, 9);
  EXPECT_EQ(connect(lease_.host_address, upstream_.port).exit_code, 9);
  const std::lock_guard lock(mutex_);
  EXPECT_TRUE(asked_.empty());
}

TEST_P(EgressTest, AnotherNameInsideAnAllowedConnectionEndsIt) {
  const auto result = fixture_->run(
      *sandbox_,
      {"bash", "-c",
       "exec 3<>/dev/tcp/rates.example/80; printf 'GET / HTTP/1.0\\r\\nHost: evil.example\\r\\n\\r\\n' >&3; cat <&3"},
      "");
  EXPECT_EQ(result.out, "");
}

TEST_P(EgressTest, TheGatewayOfADeadProcessIsTakenOverAndThatOfALivingOneIsNot) {
  const auto second = SandboxNetwork::create(instance_, no_telemetry()).value();
  EXPECT_EQ(second->open_sockets().error().kind(), ErrorKind::unavailable);
  proxy_.reset();
  auto sockets = second->open_sockets();
  ASSERT_TRUE(sockets) << sockets.error().to_string();
  ASSERT_TRUE(second->adopt(lease_.slot));
  std::promise<void> decided;
  proxy_ = EgressProxy::create(
               {}, std::move(*sockets),
               [&](const EgressTarget&) -> Result<> {
                 decided.set_value();
                 return Error(Product::runtime, ErrorKind::egress_denied, "not allowed");
               },
               [](const EgressClosed&) {}, no_telemetry())
               .value();
  proxy_->admit(lease_.guest_address, sandbox_->id);
  connect("93.184.216.34", 80);
  EXPECT_EQ(decided.get_future().wait_for(std::chrono::seconds(0)), std::future_status::ready);
}

TEST_P(EgressTest, TheMachinesOwnNetworkHasNoPartInIt) {
  const auto rules = run_checked({.argv = {"nft", "list", "ruleset"}});
  EXPECT_EQ(rules.value().find("sandbox"), std::string::npos);
  const auto links = run_checked({.argv = {"ip", "-brief", "link"}});
  EXPECT_EQ(links.value().find("sandbox"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Runtimes, EgressTest, testing::Values("runsc", "runc"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace creto::runtime
