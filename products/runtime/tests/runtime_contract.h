#pragma once

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <filesystem>
#include <future>
#include <nlohmann/json.hpp>
#include <thread>
#include <tuple>

#include "creto/authz/authz.h"
#include "creto/common/json.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/crypto/hash.h"
#include "creto/inference/inference.h"
#include "creto/io/http_client.h"
#include "creto/memory/memory.h"
#include "creto/nhi/nhi.h"
#include "creto/runtime/runtime_rpc.h"
#include "creto/testing/databases.h"
#include "creto/testing/human.h"
#include "creto/testing/sealer.h"
#include "creto/testing/wire.h"
#include "creto/vault/vault.h"
#include "tests/runtime_fakes.h"

namespace creto::runtime {

using ::testing::HasSubstr;
using ::testing::Not;

struct Setup {
  std::string runtime_class;
  creto::testing::DatabaseKind database;
  bool remote;
};

/// What a runtime works with. Another process may have its own over the same database.
struct World {
  void open(std::unique_ptr<sql::Database> database) {
    db = std::move(database);
    nhi = nhi::create_nhi(*db, sealer, system_clock()).value();
    const std::vector<const authz::EntitySource*> none;
    authz = authz::create_authz(*db, system_clock(), no_telemetry(), none, Secret(Bytes(32, 7))).value();
    ceiling = consensus::create_ceiling_store(*db, "local").value();
    timestamps = consensus::create_timestamp_source(*ceiling, system_clock(), no_telemetry()).value();
    vault = vault::create_vault(*db, sealer, everyone, system_clock()).value();
  }
  RuntimeServices services() {
    RuntimeServices services{*db, *nhi, *authz, *timestamps, system_clock(), no_telemetry()};
    services.limits = &limits;
    services.vault = vault.get();
    return services;
  }

  static Context as_service() { return Context::of_service(Identity::service("test").value()); }
  DelegationChain chain_of(const Identity& identity) const {
    const auto found = nhi->get_delegation_chain(as_service(), identity);
    return found ? found->identities() : DelegationChain{identity};
  }
  Context as(const Identity& identity) const {
    auto ctx = Context::of(identity, chain_of(identity));
    ctx.deadline = system_clock().monotonic() + std::chrono::minutes(2);
    return ctx;
  }

  creto::testing::TestSealer sealer;
  Everyone everyone;
  TestLimits limits;
  std::unique_ptr<sql::Database> db;
  std::unique_ptr<nhi::Nhi> nhi;
  std::unique_ptr<authz::Authz> authz;
  std::unique_ptr<consensus::CeilingStore> ceiling;
  std::unique_ptr<consensus::TimestampSource> timestamps;
  std::unique_ptr<vault::Vault> vault;
};

/// What every Runtime keeps, over each database and at the other end of a connection; with real sandboxes. Their lives
/// are in sandbox_contract.cc, what agents reach from inside in gateway_contract.cc, what a server leaves that stops or
/// is killed in restart_contract.cc.
class RuntimeContract : public ::testing::TestWithParam<Setup>, protected World {
 protected:
  RuntimeContract() : database_(GetParam().database) {}

  void SetUp() override {
    auto images = test_images();
    if (!images) GTEST_SKIP() << "no image can be made here: " << images.error().to_string();
    images_ = *images;
    open(database_.open());
    gate = std::make_unique<TestGate>(*authz);
    policy(
        "permit(principal, action == Action::\"sandbox.spawn\", resource == Image::\"base\") unless { "
        "context.memory_bytes > 10000000000 };");
    policy("permit(principal, action == Action::\"payments.pay\", resource);");
    policy(
        "@oversight(\"large\") forbid(principal, action == Action::\"payments.pay\", resource) when { "
        "context.amount.greaterThan(decimal(\"100.00\")) };");
    policy("permit(principal, action == Action::\"inference.call\", resource);");
    policy(
        "permit(principal, action == Action::\"network.egress\", resource == Host::\"rates.example:80\") when { "
        "context has sandbox_id };");
    policy("permit(principal, action == Action::\"message.send\", resource);");
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
    ada.emplace(*nhi, "ada@example.com");
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
            if (auto done = runtime->terminate(as_service(), sandbox.id);
                !done && done.error().kind() != ErrorKind::not_found)
              ADD_FAILURE() << done.error().to_string();  // but it may have ended by itself meanwhile
    }
    stop();
    if (!skipped_) expect_nothing_left();
  }

  /// On the machine, once no sandbox runs: whatever the test did.
  void expect_nothing_left() {
    for (const auto& name_space : network_namespaces()) ADD_FAILURE() << "left behind: " << name_space;
    const auto mounts = read_text_file("/proc/self/mountinfo", 1 << 22);
    EXPECT_THAT(mounts.value(), Not(HasSubstr(options().state_directory)));
    std::error_code ignored;
    for (const auto& process : std::filesystem::directory_iterator("/proc", ignored)) {
      const auto command = read_text_file(process.path() / "cmdline", 64 << 10).value_or("");
      EXPECT_THAT(command, Not(HasSubstr(options().state_directory))) << process.path();
    }
    const std::filesystem::path cgroups = "/sys/fs/cgroup";
    EXPECT_FALSE(std::filesystem::exists(cgroups / cgroup_of(driver_directory())));
    for (const auto& controller : std::filesystem::directory_iterator(cgroups))
      EXPECT_FALSE(std::filesystem::exists(controller.path() / cgroup_of(driver_directory()))) << controller.path();
  }
  std::vector<std::string> network_namespaces() const {
    std::vector<std::string> found;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/run/netns", ignored))
      if (entry.path().filename().string().find(instance_name()) != std::string::npos) found.push_back(entry.path());
    return found;
  }
  std::string instance_name() const { return hex(crypto::sha3_256(as_bytes(options().state_directory))).substr(0, 8); }
  std::string driver_directory() const { return options().state_directory + "/" + GetParam().runtime_class; }

  RuntimeOptions options() const {
    RuntimeOptions o;
    o.state_directory = directory_.path() / "runtime";
    o.image_directory = images_;
    o.runtime_class = GetParam().runtime_class;
    o.pool_image = pool ? "base" : "";
    o.pool_size = 1;
    o.keep_sandboxes = keep_sandboxes;
    o.running_hold = running_hold;
    o.output_bytes_max = output_bytes_max;
    o.static_hosts = {{"rates.example", ledger.url().substr(7)}, {"closed.example", ledger.url().substr(7)}};
    o.actions_file = directory_.path() / "actions.yaml";
    o.variables = {{"LEDGER", ledger.url()}};
    return o;
  }

  void start() {
    auto with = services();
    with.approvals = gate.get();
    messenger.authz = authz.get();
    messenger.database = db.get();
    with.messenger = &messenger;
    with.endpoint = &endpoint;
    with.costs = &costs;
    failing_vault = std::make_unique<FailingVault>(*vault);
    with.vault = failing_vault.get();
    inference = inference::create_inference(model.provider(), *db, system_clock(), no_telemetry()).value();
    with.inference = inference.get();
    memory = memory::create_memory(*db, *embedder, everyone, system_clock(), no_telemetry()).value();
    with.memory = memory.get();
    auto made = create_runtime(with, options());
    if (!made) {
      skipped_ = true;
      GTEST_SKIP() << "no sandboxes here: " << made.error().to_string();
    }
    service_ = std::move(*made);
    runtime = service_.get();
    if (!GetParam().remote) return;
    wire_.emplace(system_clock(), [this](const Identity& caller) { return chain_of(caller); });
    register_runtime(wire_->dispatcher(), *service_);
    client_ = create_runtime_client(wire_->connect());
    runtime = client_.get();
  }
  void stop() {
    client_.reset();
    wire_.reset();
    service_.reset();
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
    const auto link = ada->delegation(made.identity, {"*"}, system_clock().now());
    const auto linked = nhi->create_delegation(as(ada->identity), link);
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
    if (!waiting || future.wait_for(std::chrono::minutes(3)) != std::future_status::ready) {
      ADD_FAILURE() << (waiting ? "it did not end" : waiting.error().to_string());
      return Sandbox{id, *agent};
    }
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
  /// What somebody inside gets from port 80 of `host`; empty where he is not let through.
  std::string fetch(const SandboxId& id, const std::string& host) {
    return runtime
        ->exec(as(ada->identity), id,
               {.command = {"bash", "-c",
                            "exec 3<>/dev/tcp/" + host + "/80; printf 'GET / HTTP/1.0\\r\\nHost: " + host +
                                "\\r\\n\\r\\n' >&3; head -n 1 <&3"}})
        .value()
        .out;
  }
  /// How many usage events of `type` have left for `id`.
  std::int64_t usage(const std::string& type, const SandboxId& id) {
    return count("outbox", fmt::format("body LIKE '%{}%' AND body LIKE '%{}%'", type, id.to_string()));
  }
  http::Response pay(const SandboxId& id, std::string amount, std::string key, std::string token = "") {
    http::Headers headers = {{"Creto-Idempotency-Key", std::move(key)}};
    if (!token.empty()) headers.emplace_back("Creto-Override", token);
    return gateway(id, "POST", "/v1/actions/pay",
                   Json{{"arguments", {{"amount", std::move(amount)}}}, {"reasoning", "it is due"}}, headers);
  }
  /// What a process of its own is told, see killed_victim.
  Json victim() const {
    return {{"kind", ::testing::PrintToString(GetParam().database)},
            {"database", database_.location()},
            {"state_directory", options().state_directory},
            {"image_directory", options().image_directory},
            {"runtime_class", GetParam().runtime_class},
            {"caller", ada->identity.text()},
            {"agent", agent->text()}};
  }
  void remove_behind_its_back(const SandboxId& id) {
    auto driver = SandboxDriver::create({.runtime = GetParam().runtime_class, .state_directory = driver_directory()},
                                        no_telemetry());
    ASSERT_TRUE(driver) << driver.error().to_string();
    ASSERT_TRUE((*driver)->remove(id));
  }
  vault::DelegationStatus lent_to(const SandboxId& id) {
    const auto document = sql::read(*db, as_service(), [&](sql::Tx& tx) -> Result<std::string> {
      const auto rows = CRETO_TRY(tx.query("SELECT doc FROM runtime_sandboxes WHERE id = $1", {id.to_string()}));
      return rows.front().text(0);
    });
    const std::string lent = parse_json(document.value()).value()["secret_delegation"];
    return vault->get_delegation(as(*agent), vault::SecretDelegationId::parse(lent).value()).value().status;
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
  bool keep_sandboxes = true;
  Nanos running_hold = std::chrono::minutes(10);
  std::uint64_t output_bytes_max = 1 << 20;
  bool skipped_ = false;
  int policies_ = 0;
  creto::testing::TempDir directory_;
  std::string images_;
  Ledger ledger;
  creto::testing::TestDatabase database_;
  std::unique_ptr<TestGate> gate;
  TestMessenger messenger;
  TestEndpoint endpoint;
  TestCosts costs;
  std::unique_ptr<FailingVault> failing_vault;
  Model model;
  std::unique_ptr<inference::Inference> inference;
  std::unique_ptr<memory::Embedder> embedder = memory::create_hash_embedder();
  std::unique_ptr<memory::Memory> memory;
  std::unique_ptr<Runtime> service_;
  std::optional<creto::testing::Wire> wire_;
  std::unique_ptr<Runtime> client_;
  Runtime* runtime = nullptr;
  std::optional<creto::testing::Human> ada;
  std::optional<Identity> agent;
};

}  // namespace creto::runtime
