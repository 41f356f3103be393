// What every Runtime keeps, over each database and at the other end of a connection; with real sandboxes.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <future>
#include <nlohmann/json.hpp>

#include "creto/authz/authz.h"
#include "creto/common/json.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/contracts/spending.h"
#include "creto/crypto/aead.h"
#include "creto/crypto/hash.h"
#include "creto/io/http_client.h"
#include "creto/io/http_server.h"
#include "creto/io/rpc.h"
#include "creto/io/rpc_channel.h"
#include "creto/nhi/nhi.h"
#include "creto/runtime/runtime_rpc.h"
#include "creto/testing/databases.h"
#include "creto/vault/vault.h"
#include "driver/process.h"
#include "tests/sandbox_fixture.h"

namespace creto::runtime {
namespace {

using ::testing::HasSubstr;
constexpr auto hybrid = crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65;

struct Setup {
  std::string runtime_class;
  creto::testing::DatabaseKind database;
  bool remote;
};

class TestSealer final : public crypto::KeySealer {
 public:
  Result<Bytes> seal(std::string_view aad, BytesView plaintext) override {
    return key_.seal(plaintext, as_bytes(aad)).encode();
  }
  Result<Secret> unseal(std::string_view aad, BytesView sealed) override {
    auto ciphertext = CRETO_TRY(crypto::Ciphertext::parse(sealed));
    return key_.open(ciphertext, as_bytes(aad));
  }
  std::string key_id() const override { return "0000000000000000"; }

 private:
  crypto::AeadKey key_ = crypto::AeadKey::generate();
};

class Everyone final : public AccessControl {
 public:
  Result<> require(const Context&, std::string_view, std::string_view, std::string_view) override { return {}; }
};

/// Limits by number of sandboxes, as a quota would.
class TestLimits final : public contracts::SpendingLimits {
 public:
  Result<contracts::Hold> reserve(const Context&, const contracts::SpendRequest& request) override {
    if (request.event_type == "sandbox_allocated" && left-- <= 0)
      return Error(Product::metering, ErrorKind::quota_exceeded, "monthly quota of `sandbox_allocated` exceeded");
    return contracts::Hold{request.id, {}};
  }
  Result<> release(const Context&, const ReservationId&) override { return {}; }
  std::atomic<int> left = 1000;
};

/// One human, who answers when the test says so.
class TestGate final : public contracts::ApprovalGate {
 public:
  explicit TestGate(authz::Authz& authz) : authz_(authz) {}
  Result<contracts::ApprovalCheck> check_approval_required(const Context&, const contracts::GatedAction&) override {
    return contracts::ApprovalCheck(contracts::NotRequired{});
  }
  Result<contracts::ApprovalStatus> request_approval(const Context&,
                                                     const contracts::ApprovalRequest& request) override {
    const std::lock_guard lock(mutex_);
    requests_.push_back(request);
    states_.push_back({RequestId::fresh(system_clock().now()), contracts::ApprovalState::pending, {}, {}, {}, {}, {}});
    return states_.back();
  }
  Result<contracts::ApprovalStatus> approval_status(const Context&, const RequestId& id) override {
    const std::lock_guard lock(mutex_);
    for (const auto& state : states_)
      if (state.request == id) return state;
    return Error(Product::oversight, ErrorKind::not_found, "no such request");
  }
  Result<Subscription> when_final(const Context&, const RequestId&,
                                  std::function<void(const contracts::ApprovalStatus&)> f) override {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(f));
    return Subscription(std::make_shared<int>(0));
  }
  Result<> cancel_approval(const Context&, const RequestId&) override { return {}; }

  std::string approve_last(const Context& ctx) {
    std::unique_lock lock(mutex_);
    auto& state = states_.back();
    const auto& request = requests_.back();
    authz::OverrideGrant grant{state.request,
                               request.action.agent,
                               request.action.action,
                               {request.action.resource_type, request.action.resource_id},
                               crypto::sha3_256(as_bytes(request.action.arguments)),
                               {},
                               system_clock().now() + std::chrono::hours(1)};
    for (std::size_t i = 0; i < request.need.policies.size(); ++i)
      grant.lifts.push_back({request.need.forbids[i], request.need.policies[i]});
    state.override_token = authz_.issue_override(ctx, grant).value();
    state.state = contracts::ApprovalState::approved;
    auto waiting = std::exchange(waiting_, {});
    const auto copy = state;
    lock.unlock();
    for (const auto& f : waiting) f(copy);
    return copy.override_token;
  }

 private:
  authz::Authz& authz_;
  std::mutex mutex_;
  std::vector<contracts::ApprovalRequest> requests_;
  std::vector<contracts::ApprovalStatus> states_;
  std::vector<std::function<void(const contracts::ApprovalStatus&)>> waiting_;
};

class TestPorts final : public rpc::Authenticator, public rpc::Authorizer, public rpc::Auditor {
 public:
  explicit TestPorts(nhi::Nhi& nhi) : nhi_(nhi) {}
  Result<rpc::Caller> authenticate(const Context& ctx, const rpc::Credentials& credentials) override {
    auto identity =
        CRETO_TRY(Identity::parse(credentials.on_behalf_of.empty() ? credentials.bearer : credentials.on_behalf_of));
    DelegationChain chain = {identity};
    if (auto found = nhi_.get_delegation_chain(ctx, identity)) chain = found->identities();
    return rpc::Caller{identity, chain, "default"};
  }
  Result<> authorize(const Context&, std::string_view, const rpc::Resource&) override { return {}; }
  Result<> record(const Context&, const rpc::CallRecord&) override { return {}; }

 private:
  nhi::Nhi& nhi_;
};

/// Pays what it is told, once per idempotency key.
class Ledger {
 public:
  Ledger() {
    http::ServerOptions options;
    options.port = 0;
    server_ = http::Server::start(
                  options,
                  [this](const http::Request& request) {
                    const std::lock_guard lock(mutex_);
                    authorization = std::string(request.header("authorization"));
                    ++calls;
                    if (failing) return http::Response::json(503, "{}");
                    const auto fresh =
                        paid.emplace(std::string(request.header("idempotency-key")), request.body).second;
                    return http::Response::json(200, fresh ? R"({"paid":true})" : R"({"paid":true,"again":true})");
                  },
                  no_telemetry())
                  .value();
  }
  std::string url() const { return fmt::format("http://127.0.0.1:{}", server_->port()); }
  std::size_t payments() {
    const std::lock_guard lock(mutex_);
    return paid.size();
  }
  std::mutex mutex_;
  std::map<std::string, std::string> paid;
  std::string authorization;
  int calls = 0;
  bool failing = false;

 private:
  std::unique_ptr<http::Server> server_;
};

/// The image of this test process' programs as an OCI layout.
Result<std::string> test_images() {
  struct Made {
    std::string path;
    Result<> result;
    Made() {
      auto rootfs = test_rootfs();
      if (!rootfs) {
        result = std::move(rootfs).error();
        return;
      }
      path = *rootfs + "-images";
      auto made = run_checked({.argv = {"sh", "-ec", R"sh(
mkdir -p "$0"; tar -C "$1" -cf "$0/base.tar" .
umoci init --layout "$0/base"; umoci new --image "$0/base:latest"; umoci raw add-layer --image "$0/base:latest" "$0/base.tar"
)sh",
                                        path, *rootfs}});
      if (!made) result = std::move(made).error();
    }
    ~Made() { std::filesystem::remove_all(path); }
  };
  static const Made made;
  if (!made.result) return Error(made.result.error());
  return made.path;
}

class RuntimeContract : public ::testing::TestWithParam<Setup> {
 protected:
  RuntimeContract() : database_(GetParam().database) {}

  void SetUp() override {
    auto images = test_images();
    if (!images) GTEST_SKIP() << "no image can be made here: " << images.error().to_string();
    images_ = *images;
    db = database_.open();
    nhi = nhi::create_nhi(*db, sealer_, system_clock()).value();
    std::vector<const authz::EntitySource*> none;
    authz = authz::create_authz(*db, system_clock(), no_telemetry(), none, Secret(Bytes(32, 7))).value();
    ceiling_ = consensus::create_ceiling_store(*db, "local").value();
    timestamps_ = consensus::create_timestamp_source(*ceiling_, system_clock(), no_telemetry()).value();
    vault = vault::create_vault(*db, sealer_, everyone_, system_clock()).value();
    gate = std::make_unique<TestGate>(*authz);
    policy(
        "permit(principal, action == Action::\"sandbox.spawn\", resource == Image::\"base\") unless { "
        "context.memory_bytes > 10000000000 };");
    policy("permit(principal, action == Action::\"payments.pay\", resource);");
    policy(
        "@oversight(\"large\") forbid(principal, action == Action::\"payments.pay\", resource) when { "
        "context.amount.greaterThan(decimal(\"100.00\")) };");
    policy("permit(principal, action == Action::\"network.egress\", resource == Host::\"rates.example:80\");");
    ASSERT_TRUE(write_text_file(directory_.path() / "actions.yaml", R"(
schema_version: 1
actions:
  - name: pay
    cedar_action: payments.pay
    resource: 'Ledger::"main"'
    upstream: ${LEDGER}/payments
    secret: {ref: ledger/TOKEN, prefix: 'Bearer '}
    amount: amount
    arguments:
      amount: {type: decimal, required: true}
)"));
    start();
    if (skipped_) return;
    auto fresh = std::unique_ptr<Human>(new Human{Identity::human("ada@example.com").value()});
    ASSERT_TRUE(nhi->register_human(as_service(), fresh->identity, "ada", fresh->key.verifying_key(), std::nullopt));
    ada = std::move(fresh);
    agent.emplace(register_agent("worker"));
    vault::NewSecret secret{
        {"ledger", "TOKEN"}, Secret::copy_of(std::string_view("ledger-credentials")), {}, std::nullopt};
    ASSERT_TRUE(vault->create_secret(Context::of_service(Identity::service("runtime").value()), std::move(secret)));
    vault::NewSecret own{{"agents", "API_KEY"}, Secret::copy_of(std::string_view("agents-own-key")), {}, std::nullopt};
    ASSERT_TRUE(vault->create_secret(as(*agent), std::move(own)));
  }

  void TearDown() override {
    if (runtime && !skipped_) {
      auto all = runtime->list(as_service(), {.limit = 1000});
      if (all)
        for (const auto& sandbox : *all)
          if (sandbox.state != SandboxState::terminated)
            if (auto done = runtime->terminate(as_service(), sandbox.id); !done)
              ADD_FAILURE() << done.error().to_string();
    }
    stop();
    // Nothing may stay behind on the machine, whatever the test did.
    for (const auto& entry : std::filesystem::directory_iterator("/run/netns")) {
      const auto instance = instance_name();
      if (entry.path().filename().string().find(instance) != std::string::npos)
        ADD_FAILURE() << "left behind: " << entry.path();
    }
    auto rules = run_to_end({.argv = {"nft", "delete", "table", "inet", "creto_" + instance_name()}});
    if (!rules) ADD_FAILURE() << rules.error().to_string();
  }
  std::string instance_name() const { return hex(crypto::sha3_256(as_bytes(options().state_directory))).substr(0, 8); }

  RuntimeOptions options() const {
    RuntimeOptions o;
    o.state_directory = directory_.path() / "runtime";
    o.image_directory = images_;
    o.runtime_class = GetParam().runtime_class;
    o.pool_image = pool ? "base" : "";
    o.pool_size = 1;
    o.static_hosts = {{"rates.example", ledger.url().substr(7)}};
    o.actions_file = directory_.path() / "actions.yaml";
    o.variables = {{"LEDGER", ledger.url()}};
    return o;
  }

  void start() {
    RuntimeServices services{*db, *nhi, *authz, *timestamps_, system_clock(), no_telemetry()};
    services.approvals = gate.get();
    services.limits = &limits;
    services.vault = vault.get();
    auto made = create_runtime(services, options());
    if (!made) {
      skipped_ = true;
      GTEST_SKIP() << "no sandboxes here: " << made.error().to_string();
    }
    service_ = std::move(*made);
    runtime = service_.get();
    if (!GetParam().remote) return;
    ports_ = std::make_unique<TestPorts>(*nhi);
    dispatcher_ = rpc::Dispatcher::create({*ports_, *ports_, *ports_, no_telemetry(), system_clock()});
    register_runtime(*dispatcher_, *service_);
    server_ = rpc::GrpcServer::start(*dispatcher_, {.port = 0}).value();
    rpc::ChannelOptions channel;
    channel.endpoint = fmt::format("127.0.0.1:{}", server_->port());
    channel.bearer = [] { return "service:test"; };
    channel.forward_caller = true;
    channel.timeout = std::chrono::seconds(60);
    client_ = create_runtime_client(rpc::Channel::connect(channel, system_clock()).value());
    runtime = client_.get();
  }
  void stop() {
    client_.reset();
    if (server_) server_->stop(std::chrono::seconds(1));
    server_.reset();
    if (dispatcher_) dispatcher_->stop();
    dispatcher_.reset();
    service_.reset();
  }

  struct Human {
    Identity identity;
    crypto::SigningKey key = crypto::SigningKey::generate(hybrid);
  };

  static Context as_service() { return Context::of_service(Identity::service("test").value()); }
  Context as(const Identity& identity) {
    DelegationChain chain = {identity};
    if (auto found = nhi->get_delegation_chain(as_service(), identity)) chain = found->identities();
    auto ctx = Context::of(identity, chain);
    ctx.deadline = system_clock().monotonic() + std::chrono::minutes(2);
    return ctx;
  }
  void policy(std::string text) {
    auto made = authz->create_policy(as_service(), fmt::format("p{}", ++policies_), std::move(text));
    ASSERT_TRUE(made) << made.error().to_string();
  }

  Identity register_agent(const std::string& name) {
    nhi::NewAgent fresh;
    fresh.name = name;
    fresh.owner = ada->identity;
    const auto made = nhi->register_agent(as(ada->identity), fresh).value();
    nhi::NewDelegation link{ada->identity,
                            made.identity,
                            std::nullopt,
                            {"*"},
                            system_clock().now() + std::chrono::hours(24),
                            DelegationId::fresh(system_clock().now()),
                            system_clock().now(),
                            {},
                            std::nullopt};
    link.key_id = nhi->get_public_keys(as_service(), ada->identity).value().key_id;
    nhi::Delegation signed_part{*link.id,
                                "default",
                                link.delegator,
                                link.delegatee,
                                std::nullopt,
                                link.permissions,
                                *link.created_at,
                                link.expires_at,
                                link.key_id,
                                {},
                                false};
    link.signature = ada->key.sign(as_bytes(signed_part.signed_bytes().value())).value();
    auto linked = nhi->create_delegation(as(ada->identity), link);
    EXPECT_TRUE(linked) << linked.error().to_string();
    return made.identity;
  }

  SandboxSpec spec(std::vector<std::string> command) const {
    SandboxSpec s;
    s.agent = *agent;
    s.image = "base";
    s.command = std::move(command);
    return s;
  }
  Sandbox spawn(const SandboxSpec& s) {
    auto result = runtime->spawn(as(ada->identity), s);
    if (!result) {
      ADD_FAILURE() << result.error().to_string();
      return Sandbox{SandboxId::fresh(system_clock().now()), *agent};
    }
    return *result->sandbox;
  }
  Sandbox wait_end(const SandboxId& id) {
    auto promise = std::make_shared<std::promise<Sandbox>>();
    auto future = promise->get_future();
    auto waiting =
        runtime->when_terminated(as(ada->identity), id, [promise](const Sandbox& s) { promise->set_value(s); });
    EXPECT_TRUE(waiting) << waiting.error().to_string();
    EXPECT_EQ(future.wait_for(std::chrono::seconds(60)), std::future_status::ready);
    return future.get();
  }
  std::string output(const SandboxId& id) {
    return runtime->output(as(ada->identity), id, OutputStream::out, 0).value().bytes;
  }

  /// As the agent inside would.
  http::Response gateway(const SandboxId& id, std::string method, std::string path, Json body = Json::object(),
                         http::Headers headers = {}) {
    http::ClientRequest request;
    request.method = std::move(method);
    request.url = "http://gateway" + path;
    request.unix_path = fmt::format("{}/sandboxes/{}/run/gateway.sock", options().state_directory, id.to_string());
    request.headers = std::move(headers);
    if (request.method == "POST") request.body = body.dump();
    auto response = http::Client::create(system_clock())->send(Context(), request);
    if (!response) ADD_FAILURE() << response.error().to_string();
    return response ? *response : http::Response{};
  }
  http::Response pay(const SandboxId& id, std::string amount, std::string key, std::string token = "") {
    http::Headers headers = {{"Creto-Idempotency-Key", std::move(key)}};
    if (!token.empty()) headers.emplace_back("Creto-Override", token);
    return gateway(id, "POST", "/v1/actions/pay",
                   Json{{"arguments", {{"amount", std::move(amount)}}}, {"reasoning", "it is due"}}, headers);
  }
  std::int64_t count(const std::string& table, const std::string& like) {
    return sql::read(*db, as_service(),
                     [&](sql::Tx& tx) -> Result<std::int64_t> {
                       const auto rows = CRETO_TRY(tx.query("SELECT count(*) FROM " + table + " WHERE " + like));
                       return rows.front().integer(0);
                     })
        .value();
  }

  bool pool = false;
  bool skipped_ = false;
  int policies_ = 0;
  creto::testing::TempDir directory_;
  std::string images_;
  Ledger ledger;
  creto::testing::TestDatabase database_;
  std::unique_ptr<sql::Database> db;
  TestSealer sealer_;
  Everyone everyone_;
  std::unique_ptr<nhi::Nhi> nhi;
  std::unique_ptr<authz::Authz> authz;
  std::unique_ptr<consensus::CeilingStore> ceiling_;
  std::unique_ptr<consensus::TimestampSource> timestamps_;
  std::unique_ptr<vault::Vault> vault;
  std::unique_ptr<TestGate> gate;
  TestLimits limits;
  std::unique_ptr<Runtime> service_;
  std::unique_ptr<TestPorts> ports_;
  std::unique_ptr<rpc::Dispatcher> dispatcher_;
  std::unique_ptr<rpc::GrpcServer> server_;
  std::unique_ptr<Runtime> client_;
  Runtime* runtime = nullptr;
  std::unique_ptr<Human> ada;
  std::optional<Identity> agent;
};

TEST_P(RuntimeContract, RunsACommandAttestsItAndReportsItsEnd) {
  const auto sandbox = spawn(spec({"sh", "-c", "echo $CRETO_AGENT; echo oops >&2; exit 3"}));
  EXPECT_EQ(sandbox.agent, *agent);
  EXPECT_EQ(sandbox.delegation_chain.size(), 2u);
  EXPECT_TRUE(runtime->verify_attestation(as(ada->identity), sandbox.attestation));
  const auto document = parse_json(sandbox.attestation.document).value();
  EXPECT_EQ(document["sandbox_id"], sandbox.id.to_string());
  EXPECT_EQ(document["image_digest"], sandbox.image_digest);
  const auto ended = wait_end(sandbox.id);
  EXPECT_EQ(ended.state, SandboxState::terminated);
  EXPECT_EQ(ended.reason, TerminationReason::failed);
  EXPECT_EQ(ended.exit_code, 3);
  EXPECT_EQ(output(sandbox.id), agent->text() + "\n");
  EXPECT_EQ(runtime->output(as(ada->identity), sandbox.id, OutputStream::err, 0).value().bytes, "oops\n");
}

TEST_P(RuntimeContract, AForgedAttestationIsRefused) {
  const auto sandbox = spawn(spec({"true"}));
  auto forged = sandbox.attestation;
  forged.document.replace(forged.document.find("base"), 4, "evil");
  const auto verified = runtime->verify_attestation(as(ada->identity), forged);
  ASSERT_FALSE(verified);
  EXPECT_EQ(verified.error().kind(), ErrorKind::attestation_failed);
}

TEST_P(RuntimeContract, RefusesWhatPolicyDoesNotPermit) {
  auto large = spec({"true"});
  large.limits.memory_bytes = 20ull << 30;
  const auto refused = runtime->spawn(as(ada->identity), large);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), "RT-403");
  EXPECT_EQ(count("audit_pending", "1 = 1") > 0, true);
}

TEST_P(RuntimeContract, AStrangerCannotSpawnForTheAgent) {
  const auto other = register_agent("other");
  const auto refused = runtime->spawn(as(other), spec({"true"}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::permission_denied);
  const auto sandbox = spawn(spec({"sleep", "60"}));
  EXPECT_EQ(runtime->get(as(other), sandbox.id).error().kind(), ErrorKind::not_found);
  EXPECT_EQ(runtime->terminate(as(other), sandbox.id).error().kind(), ErrorKind::not_found);
}

TEST_P(RuntimeContract, AUsedUpQuotaIsRt429CausedByMt429) {
  limits.left = 0;
  const auto refused = runtime->spawn(as(ada->identity), spec({"true"}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), "RT-429");
  ASSERT_NE(refused.error().caused_by(), nullptr);
  EXPECT_EQ(refused.error().caused_by()->code(), "MT-429");
}

TEST_P(RuntimeContract, TheSameKeyGivesTheSameSandbox) {
  auto ctx = as(ada->identity);
  ctx.idempotency_key = "once";
  const auto first = runtime->spawn(ctx, spec({"sleep", "60"}));
  ASSERT_TRUE(first) << first.error().to_string();
  const auto second = runtime->spawn(ctx, spec({"sleep", "60"}));
  ASSERT_TRUE(second) << second.error().to_string();
  EXPECT_EQ(first->sandbox->id, second->sandbox->id);
  EXPECT_EQ(runtime->list(as(ada->identity), {}).value().size(), 1u);
}

TEST_P(RuntimeContract, SecretsAreInMemoryInsideAndRevokedAtTheEnd) {
  auto with = spec({"sh", "-c", "echo $API_KEY; cat /run/secrets/API_KEY; sleep 60"});
  with.secrets = {"agents/API_KEY"};
  const auto sandbox = spawn(with);
  const auto seen = runtime->exec(as(ada->identity), sandbox.id,
                                  {.command = {"sh", "-c", "echo $API_KEY; cat /run/secrets/API_KEY"}});
  ASSERT_TRUE(seen) << seen.error().to_string();
  EXPECT_EQ(seen->out, "agents-own-key\nagents-own-key");
  const auto leaked = run_to_end(
      {.argv = {"grep", "-r", "-l", "agents-own-key", options().state_directory + "/" + GetParam().runtime_class}});
  EXPECT_EQ(leaked.value().output, "");
  ASSERT_TRUE(runtime->terminate(as(ada->identity), sandbox.id));
  const auto doc = sql::read(*db, as_service(), [&](sql::Tx& tx) -> Result<std::string> {
                     const auto rows = CRETO_TRY(
                         tx.query("SELECT doc FROM runtime_sandboxes WHERE id = $1", {sandbox.id.to_string()}));
                     return rows.front().text(0);
                   }).value();
  const auto lent = vault::SecretDelegationId::parse(parse_json(doc).value()["secret_delegation"].get<std::string>());
  EXPECT_EQ(vault->get_delegation(as(*agent), lent.value()).value().status, vault::DelegationStatus::revoked);
}

TEST_P(RuntimeContract, ExecAnswersWithOutputExitCodeAndTimeout) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto result = runtime->exec(as(ada->identity), sandbox.id,
                                    {.command = {"sh", "-c", "cat; echo err >&2; exit 4"}, .input = "given"});
  ASSERT_TRUE(result) << result.error().to_string();
  EXPECT_EQ(result->out, "given");
  EXPECT_EQ(result->err, "err\n");
  EXPECT_EQ(result->exit_code, 4);
  const auto slow = runtime->exec(as(ada->identity), sandbox.id,
                                  {.command = {"sleep", "60"}, .timeout = std::chrono::milliseconds(200)});
  ASSERT_TRUE(slow) << slow.error().to_string();
  EXPECT_TRUE(slow->timed_out);
  EXPECT_FALSE(runtime->exec(as(ada->identity), sandbox.id, {.command = {"/no/such"}}));
}

TEST_P(RuntimeContract, TheTimeLimitEndsASandbox) {
  auto limited = spec({"sleep", "60"});
  limited.limits.time = std::chrono::seconds(1);
  const auto sandbox = spawn(limited);
  EXPECT_EQ(wait_end(sandbox.id).reason, TerminationReason::timeout);
}

TEST_P(RuntimeContract, AChildHasALongerChainAndEndsWithItsParent) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto answer =
      gateway(sandbox.id, "POST", "/v1/sandboxes", Json{{"image", "base"}, {"command", {"sleep", "60"}}});
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto child = SandboxId::parse(parse_json(answer.body).value()["sandbox_id"].get<std::string>()).value();
  const auto seen = runtime->get(as(ada->identity), child).value();
  EXPECT_EQ(seen.parent, sandbox.id);
  EXPECT_EQ(seen.delegation_chain.size(), 3u);
  EXPECT_EQ(seen.delegation_chain[1], *agent);
  EXPECT_EQ(gateway(sandbox.id, "GET", "/v1/sandboxes/" + child.to_string()).status, 200);
  ASSERT_TRUE(runtime->terminate(as(ada->identity), sandbox.id));
  EXPECT_EQ(wait_end(child).state, SandboxState::terminated);
}

TEST_P(RuntimeContract, AnActionIsPaidOnceWithCredentialsTheAgentNeverSees) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto first = pay(sandbox.id, "10.00", "k1");
  ASSERT_EQ(first.status, 200) << first.body;
  EXPECT_EQ(ledger.authorization, "Bearer ledger-credentials");
  EXPECT_EQ(pay(sandbox.id, "10.00", "k1").body, first.body);
  EXPECT_EQ(ledger.payments(), 1u);
  EXPECT_EQ(pay(sandbox.id, "11.00", "k1").status, 409);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/actions/steal").status, 404);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/actions/pay", Json{{"arguments", {{"amount", 10}}}}).status, 400);
}

TEST_P(RuntimeContract, AnApprovalPermitsExactlyItsActionOnce) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto asked = pay(sandbox.id, "250.00", "k1");
  ASSERT_EQ(asked.status, 202) << asked.body;
  EXPECT_EQ(ledger.payments(), 0u);
  const auto request = parse_json(asked.body).value()["request_id"].get<std::string>();
  EXPECT_THAT(gateway(sandbox.id, "GET", "/v1/requests/" + request).body, HasSubstr("pending"));
  const auto token = gate->approve_last(as_service());
  EXPECT_THAT(gateway(sandbox.id, "GET", "/v1/requests/" + request + "?wait=5s").body, HasSubstr("approved"));
  EXPECT_NE(pay(sandbox.id, "251.00", "other", token).status, 200);
  EXPECT_EQ(pay(sandbox.id, "250.00", "k1", token).status, 200);
  EXPECT_NE(pay(sandbox.id, "250.00", "again", token).status, 200);
  EXPECT_EQ(ledger.payments(), 1u);
}

TEST_P(RuntimeContract, AnActionWithoutAnswerIsFinishedAfterARestartAndNotDoubled) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  {
    const std::lock_guard lock(ledger.mutex_);
    ledger.failing = true;
  }
  EXPECT_EQ(pay(sandbox.id, "10.00", "k1").status, 503);
  stop();
  {
    const std::lock_guard lock(ledger.mutex_);
    ledger.failing = false;
  }
  start();
  for (int i = 0; i < 200 && ledger.payments() == 0; ++i) ::usleep(50'000);
  EXPECT_EQ(ledger.payments(), 1u);
  EXPECT_EQ(pay(sandbox.id, "10.00", "k1").status, 200);
  EXPECT_EQ(ledger.payments(), 1u);
}

TEST_P(RuntimeContract, EgressFollowsPolicy) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto connect = [&](const std::string& host) {
    return runtime
        ->exec(as(ada->identity), sandbox.id,
               {.command = {"bash", "-c",
                            "exec 3<>/dev/tcp/" + host + "/80; printf 'GET / HTTP/1.0\\r\\nHost: " + host +
                                "\\r\\n\\r\\n' >&3; head -n 1 <&3"}})
        .value();
  };
  EXPECT_THAT(connect("rates.example").out, HasSubstr("200"));
  EXPECT_EQ(connect("evil.example").out, "");
}

TEST_P(RuntimeContract, RunningSandboxesAreTakenOverAfterARestart) {
  const auto sandbox = spawn(spec({"sh", "-c", "sleep 60"}));
  stop();
  start();
  const auto seen = runtime->get(as(ada->identity), sandbox.id);
  ASSERT_TRUE(seen);
  EXPECT_EQ(seen->state, SandboxState::running);
  EXPECT_EQ(runtime->exec(as(ada->identity), sandbox.id, {.command = {"echo", "alive"}}).value().out, "alive\n");
  EXPECT_EQ(gateway(sandbox.id, "GET", "/v1/identity").status, 200);
}

TEST_P(RuntimeContract, ASandboxThatDiedMeanwhileIsRecordedAsEnded) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  stop();
  auto driver = SandboxDriver::create({.runtime = GetParam().runtime_class,
                                       .state_directory = options().state_directory + "/" + GetParam().runtime_class},
                                      no_telemetry());
  ASSERT_TRUE(driver);
  ASSERT_TRUE((*driver)->remove(sandbox.id));
  driver->reset();
  start();
  const auto ended = wait_end(sandbox.id);
  EXPECT_EQ(ended.state, SandboxState::terminated);
  EXPECT_EQ(ended.reason, TerminationReason::failed);
}

TEST_P(RuntimeContract, TheGatewayRefusesWhatIsMalformed) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  EXPECT_EQ(gateway(sandbox.id, "GET", "/v1/nothing").status, 404);
  EXPECT_EQ(gateway(sandbox.id, "GET", "/v1/requests/not-an-id").status, 404);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/actions/pay", Json::array()).status, 400);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/sandboxes", Json{{"image", "base"}, {"colour", "red"}}).status, 400);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/inference/chat/completions", Json::object()).status, 503);
}

TEST_P(RuntimeContract, AWarmSandboxIsClaimedAndReplaced) {
  stop();
  pool = true;
  start();
  for (int i = 0; i < 200 && runtime->status(as_service()).value().pool_ready == 0; ++i) ::usleep(50'000);
  const auto sandbox = spawn(spec({"true"}));
  EXPECT_TRUE(sandbox.warm);
  EXPECT_EQ(wait_end(sandbox.id).reason, TerminationReason::completed);
  for (int i = 0; i < 200 && runtime->status(as_service()).value().pool_ready == 0; ++i) ::usleep(50'000);
  EXPECT_EQ(runtime->status(as_service()).value().pool_ready, 1u);
}

using creto::testing::DatabaseKind;
INSTANTIATE_TEST_SUITE_P(, RuntimeContract,
                         ::testing::Values(Setup{"runsc", DatabaseKind::sqlite, false},
                                           Setup{"runc", DatabaseKind::postgres, false},
                                           Setup{"runc", DatabaseKind::sqlite, true}),
                         [](const auto& info) {
                           return fmt::format("{}_{}_{}", info.param.runtime_class,
                                              ::testing::PrintToString(info.param.database),
                                              info.param.remote ? "remote" : "local");
                         });

}  // namespace
}  // namespace creto::runtime
