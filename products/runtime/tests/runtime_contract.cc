// What every Runtime keeps, over each database and at the other end of a connection; with real sandboxes.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <future>
#include <nlohmann/json.hpp>
#include <thread>
#include <tuple>

#include "creto/authz/authz.h"
#include "creto/common/json.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/contracts/cost_trigger.h"
#include "creto/contracts/spending.h"
#include "creto/crypto/hash.h"
#include "creto/inference/inference.h"
#include "creto/io/http_client.h"
#include "creto/io/http_server.h"
#include "creto/memory/memory.h"
#include "creto/nhi/nhi.h"
#include "creto/runtime/runtime_rpc.h"
#include "creto/testing/databases.h"
#include "creto/testing/human.h"
#include "creto/testing/sealer.h"
#include "creto/testing/wire.h"
#include "creto/vault/vault.h"
#include "driver/process.h"
#include "tests/sandbox_fixture.h"

namespace creto::runtime {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Setup {
  std::string runtime_class;
  creto::testing::DatabaseKind database;
  bool remote;
};

class Everyone final : public AccessControl {
 public:
  Result<> require(const Context&, std::string_view, std::string_view, std::string_view) override { return {}; }
};

/// Limits by number of sandboxes, as a quota would.
class TestLimits final : public contracts::SpendingLimits {
 public:
  Result<contracts::Hold> reserve(const Context&, const contracts::SpendRequest& request) override {
    {
      const std::lock_guard lock(mutex);
      asked.push_back(request);
      if (request.event_type == "sandbox_running") {
        if (!running.contains(request.id) && running.size() >= running_max)
          return Error(Product::metering, ErrorKind::quota_exceeded, "2 of 2 `sandbox_running` are held");
        running.insert(request.id);
        return contracts::Hold{request.id, {}};
      }
    }
    if (request.event_type == "sandbox_allocated" && left-- <= 0)
      return Error(Product::metering, ErrorKind::quota_exceeded, "monthly quota of `sandbox_allocated` exceeded");
    return contracts::Hold{request.id, {}};
  }
  Result<> release(const Context&, const ReservationId& id) override {
    const std::lock_guard lock(mutex);
    running.erase(id);
    return {};
  }
  /// How often the hold of a running sandbox was asked for.
  std::int64_t held(const SandboxId& sandbox) {
    const std::lock_guard lock(mutex);
    return std::ranges::count_if(asked, [&](const contracts::SpendRequest& request) {
      return request.event_type == "sandbox_running" && request.properties.at("sandbox_id") == sandbox.to_string();
    });
  }
  std::size_t running_now() {
    const std::lock_guard lock(mutex);
    return running.size();
  }
  std::atomic<int> left = 1000;
  std::size_t running_max = 1000;
  std::set<ReservationId> running;
  std::mutex mutex;
  std::vector<contracts::SpendRequest> asked;
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

  contracts::ApprovalRequest last() {
    const std::lock_guard lock(mutex_);
    return requests_.back();
  }

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
    for (const auto& need : request.needs)
      if (!need.forbid.empty()) grant.lifts.push_back({need.forbid, need.policy});
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

/// A queue in memory; rings as the real one does.
class TestMessenger final : public contracts::SandboxMessenger {
 public:
  Result<MessageId> send_from_sandbox(const Context&, const SandboxId&,
                                      const contracts::SealedMessage& message) override {
    if (refusals-- > 0)
      return Error(Product::messaging, ErrorKind::conflict, "it is not sealed for all").with_retryable(true);
    return message.message_id;
  }
  Result<TopicSubscriptionId> subscribe_sandbox(const Context&, const SandboxId&, std::string_view) override {
    return TopicSubscriptionId::fresh(system_clock().now());
  }
  Result<> unsubscribe_sandbox(const Context&, const TopicSubscriptionId&) override { return {}; }
  Result<std::vector<contracts::ReceivedMessage>> receive_for_sandbox(const Context&, const SandboxId&,
                                                                      std::size_t messages_max) override {
    const std::lock_guard lock(mutex_);
    ++looks_;
    looked_.notify_all();
    return std::vector(queue_.begin(),
                       queue_.begin() + static_cast<std::ptrdiff_t>(std::min(queue_.size(), messages_max)));
  }
  Result<> acknowledge_for_sandbox(const Context&, const SandboxId&, const MessageId& id) override {
    const std::lock_guard lock(mutex_);
    std::erase_if(queue_, [&](const auto& message) { return message.message.message_id == id; });
    return {};
  }

  Result<> refuse_for_sandbox(const Context&, const SandboxId&, const MessageId& id, std::string_view reason) override {
    const std::lock_guard lock(mutex_);
    std::erase_if(queue_, [&](const auto& message) { return message.message.message_id == id; });
    refused[id] = reason;
    return {};
  }

  void wait_for_a_look() {
    std::unique_lock lock(mutex_);
    looked_.wait(lock, [&] { return looks_ > 0; });
  }
  MessageId deliver(sql::Database& database, const Identity& recipient, std::string_view body) {
    const auto now = system_clock().now();
    const auto id = MessageId::fresh(now);
    const std::lock_guard lock(mutex_);
    queue_.push_back({{id, Identity::service("test").value(), recipient, "", contracts::MessagePriority::normal, now,
                       std::chrono::hours(1), to_bytes(as_bytes(body))},
                      now});
    database.signal(queue_signal).raise();
    return id;
  }
  std::size_t waiting() {
    const std::lock_guard lock(mutex_);
    return queue_.size();
  }
  std::atomic<int> refusals = 0;
  std::map<MessageId, std::string> refused;

 private:
  std::mutex mutex_;
  std::condition_variable looked_;
  int looks_ = 0;
  std::vector<contracts::ReceivedMessage> queue_;
};

/// Seals nothing, and remembers what it was asked for.
class TestEndpoint final : public MessageEndpoint {
 public:
  Result<contracts::SealedMessage> seal(const Context&, const Identity& agent, const Identity& recipient,
                                        std::string_view body) override {
    const auto now = system_clock().now();
    return contracts::SealedMessage{
        MessageId::fresh(now),   agent, recipient, "", contracts::MessagePriority::normal, now, std::chrono::hours(1),
        to_bytes(as_bytes(body))};
  }
  Result<contracts::SealedMessage> seal_for_topic(const Context& ctx, const Identity& agent, const std::string& topic,
                                                  std::string_view body) override {
    ++sealed_for_topic;
    auto message = CRETO_TRY(seal(ctx, agent, agent, body));
    message.topic = topic;
    return message;
  }
  Result<OpenedMessage> open(const Context&, const Identity&, const contracts::ReceivedMessage& received) override {
    const auto& message = received.message;
    if (as_text(message.envelope) == "forged")
      return Error(Product::messaging, ErrorKind::signature_invalid, "the signature does not hold");
    if (as_text(message.envelope) == "not yet")
      return Error(Product::messaging, ErrorKind::unavailable, "the keys cannot be read");
    return OpenedMessage{
        message.message_id, message.sender, message.topic, std::string(as_text(message.envelope)), true,
        message.sent_at};
  }
  Result<> acknowledge(const Context&, const Identity&, const MessageId& id) override {
    acknowledged = id;
    return {};
  }
  std::atomic<int> sealed_for_topic = 0;
  std::optional<MessageId> acknowledged;
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

/// The real one, whose revocations fail as often as the test says.
class FailingVault final : public vault::Vault {
 public:
  explicit FailingVault(vault::Vault& real) : real_(real) {}
  Result<vault::SecretInfo> create_secret(const Context& ctx, vault::NewSecret secret) override {
    return real_.create_secret(ctx, std::move(secret));
  }
  Result<vault::SecretVersion> get_secret(const Context& ctx, const vault::SecretRef& ref,
                                          std::uint64_t version) override {
    return real_.get_secret(ctx, ref, version);
  }
  Result<std::vector<vault::SecretVersion>> get_secrets(const Context& ctx,
                                                        const std::vector<vault::SecretRef>& refs) override {
    return real_.get_secrets(ctx, refs);
  }
  Result<std::vector<vault::SecretInfo>> list_secrets(const Context& ctx, std::string_view path_prefix,
                                                      std::string_view after, std::size_t limit) override {
    return real_.list_secrets(ctx, path_prefix, after, limit);
  }
  Result<vault::SecretInfo> update_secret(const Context& ctx, vault::SecretUpdate update) override {
    return real_.update_secret(ctx, std::move(update));
  }
  Result<> delete_secret(const Context& ctx, const vault::SecretRef& ref) override {
    return real_.delete_secret(ctx, ref);
  }
  Result<vault::SecretDelegation> create_delegation(const Context& ctx,
                                                    const vault::DelegationRequest& request) override {
    return real_.create_delegation(ctx, request);
  }
  Result<vault::DelegatedSecrets> use_delegation(const Context& ctx, const vault::SecretDelegationId& id,
                                                 const std::optional<SandboxId>& sandbox) override {
    return real_.use_delegation(ctx, id, sandbox);
  }
  Result<vault::DelegatedSecrets> get_delegated_secrets(const Context& ctx, const SandboxId& sandbox,
                                                        const std::vector<vault::SecretRef>& refs, Nanos ttl) override {
    return real_.get_delegated_secrets(ctx, sandbox, refs, ttl);
  }
  Result<vault::SecretDelegation> revoke_delegation(const Context& ctx, const vault::SecretDelegationId& id) override {
    if (failures-- > 0) return Error(Product::platform, ErrorKind::unavailable, "the vault is away");
    return real_.revoke_delegation(ctx, id);
  }
  Result<vault::SecretDelegation> get_delegation(const Context& ctx, const vault::SecretDelegationId& id) override {
    return real_.get_delegation(ctx, id);
  }
  Result<std::vector<vault::SecretAccess>> access_log(const Context& ctx, const vault::SecretRef& ref,
                                                      std::int64_t before, std::size_t limit) override {
    return real_.access_log(ctx, ref, before, limit);
  }
  HealthStatus health() override { return real_.health(); }
  std::atomic<int> failures = 0;

 private:
  vault::Vault& real_;
};

/// Costs that ask or refuse from an amount on, in a single transaction.
class TestCosts final : public contracts::CostTrigger {
 public:
  Result<std::optional<contracts::OversightTrigger>> check_cost_threshold(const Context&,
                                                                          const contracts::BillableEvent& event,
                                                                          contracts::BillingPeriod period) override {
    if (period != contracts::BillingPeriod::transaction) return std::nullopt;
    for (const auto& [from, action] : thresholds) {
      if (event.cost.amount < from) continue;
      contracts::OversightTrigger trigger;
      trigger.policy_id = fmt::format("from-{}", from.to_string());
      trigger.current_cost = event.cost;
      trigger.threshold = Money{from, event.cost.currency};
      trigger.action = action;
      trigger.approvers = {"role:cfo"};
      return std::optional(std::move(trigger));
    }
    return std::nullopt;
  }
  Result<std::vector<contracts::OversightTrigger>> check_multiple_thresholds(
      const Context&, const contracts::BillableEvent&, const std::vector<contracts::CostThreshold>&) override {
    return std::vector<contracts::OversightTrigger>();
  }
  Result<std::vector<std::optional<contracts::OversightTrigger>>> check_batch(
      const Context&, const std::vector<contracts::BillableEvent>&, contracts::BillingPeriod) override {
    return std::vector<std::optional<contracts::OversightTrigger>>();
  }
  Result<contracts::AccumulatedCost> accumulated_cost(const Context&, const Identity&,
                                                      contracts::BillingPeriod) override {
    return Error(Product::metering, ErrorKind::not_found, "never seen");
  }
  /// The largest first.
  std::vector<std::pair<Decimal, contracts::ThresholdAction>> thresholds;
};

/// A model behind OpenAI's HTTP API; answers when the test lets it.
class Model {
 public:
  Model() {
    http::ServerOptions options;
    options.port = 0;
    server_ = http::Server::start(
                  options, [this](const http::Request& request) { return answer(request); }, no_telemetry())
                  .value();
    inference::OpenAiOptions provider;
    provider.base_url = fmt::format("http://127.0.0.1:{}/v1", server_->port());
    provider.default_model = "m-1";
    provider_ = inference::create_openai_provider(std::move(provider)).value();
  }
  inference::Provider& provider() { return *provider_; }
  void wait_for_a_call() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return calls > 0; });
  }
  void set_open(bool is_open) {
    const std::lock_guard lock(mutex_);
    open_ = is_open;
    changed_.notify_all();
  }
  std::set<std::string> keys() {
    const std::lock_guard lock(mutex_);
    return keys_;
  }
  std::atomic<int> calls = 0;
  std::atomic<int> status = 200;

 private:
  http::Response answer(const http::Request& request) {
    std::unique_lock lock(mutex_);
    ++calls;
    keys_.emplace(request.header("idempotency-key"));
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
    return http::Response::json(status, R"({"id":"c1","model":"m-1","choices":[{"index":0,"finish_reason":"stop",
      "message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":3,"completion_tokens":4}})");
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::string> keys_;
  bool open_ = true;
  std::unique_ptr<inference::Provider> provider_;
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

TEST_P(RuntimeContract, ASandboxCountsAsRunningUntilItsEndAlsoOverARestart) {
  stop();
  running_hold = std::chrono::seconds(1);
  limits.running_max = 1;
  start();
  const auto first = spawn(spec({"sleep", "60"}));
  const auto refused = runtime->spawn(as(ada->identity), spec({"sleep", "60"}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), "RT-429");
  for (int i = 0; i < 200 && limits.held(first.id) < 3; ++i) ::usleep(50'000);
  EXPECT_GE(limits.held(first.id), 3) << "it is renewed";

  stop();
  {
    const std::lock_guard lock(limits.mutex);
    limits.running.clear();  // as where its holder has forgotten
  }
  start();
  for (int i = 0; i < 200 && limits.running_now() == 0; ++i) ::usleep(50'000);
  EXPECT_FALSE(runtime->spawn(as(ada->identity), spec({"sleep", "60"})));
  ASSERT_TRUE(runtime->terminate(as(ada->identity), first.id));
  const auto second = runtime->spawn(as(ada->identity), spec({"sleep", "60"}));
  ASSERT_TRUE(second) << second.error().to_string();
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
  EXPECT_EQ(lent_to(sandbox.id), vault::DelegationStatus::revoked);
}

TEST_P(RuntimeContract, ASandboxHasEndedWhenItsSecretsAreRevoked) {
  auto with = spec({"sleep", "60"});
  with.secrets = {"agents/API_KEY"};
  const auto sandbox = spawn(with);
  failing_vault->failures = 1;
  ASSERT_TRUE(runtime->terminate(as(ada->identity), sandbox.id));
  EXPECT_LT(failing_vault->failures, 0) << "it was tried again";
  EXPECT_EQ(lent_to(sandbox.id), vault::DelegationStatus::revoked);
}

TEST_P(RuntimeContract, TheSandboxOfARevokedAgentEndsAndItsUseIsCounted) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  ASSERT_TRUE(nhi->revoke_agent(as_service(), *agent, "it misbehaves"));
  const auto ended = runtime->terminate(as(ada->identity), sandbox.id);
  ASSERT_TRUE(ended) << ended.error().to_string();
  EXPECT_EQ(ended->state, SandboxState::terminated);
  EXPECT_EQ(usage("sandbox_terminated", sandbox.id), 1);
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

TEST_P(RuntimeContract, SlowCommandsAreInNobodysWay) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  std::vector<std::future<void>> slow;
  for (int i = 0; i < 12; ++i)
    slow.push_back(std::async(std::launch::async, [&] {
      (void)runtime->exec(as(ada->identity), sandbox.id, {.command = {"sh", "-c", "echo >> /tmp/begun; sleep 50"}});
    }));
  const auto begun = [&] {
    const auto seen = runtime->exec(as(ada->identity), sandbox.id, {.command = {"sh", "-c", "grep -c '' /tmp/begun"}});
    return seen ? seen->out : seen.error().to_string();
  };
  for (int i = 0; i < 200 && begun() != "12\n"; ++i) ::usleep(50'000);
  EXPECT_EQ(begun(), "12\n") << "more than the dispatcher has workers";
  EXPECT_EQ(runtime->get(as(ada->identity), sandbox.id)->state, SandboxState::running);
  EXPECT_TRUE(runtime->terminate(as(ada->identity), sandbox.id));
  for (auto& one : slow) one.get();
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
  {
    const std::lock_guard lock(limits.mutex);
    const std::map<std::string, std::string> said{{"action", "pay"}, {"sandbox_id", sandbox.id.to_string()}};
    EXPECT_EQ(limits.asked.back().properties, said) << "limits see what the event will say";
  }
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

TEST_P(RuntimeContract, EgressFollowsPolicyAndIsMetered) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  EXPECT_THAT(fetch(sandbox.id, "rates.example"), HasSubstr("200"));
  EXPECT_EQ(fetch(sandbox.id, "closed.example"), "");
  ASSERT_TRUE(runtime->terminate(as(ada->identity), sandbox.id));
  EXPECT_EQ(usage("network_egress", sandbox.id), 1) << "of the one connection that was let through";
}

TEST_P(RuntimeContract, ASandboxsOwnRulesNarrowWhatPolicyPermitsAndNeverWidenIt) {
  auto wide = spec({"sleep", "60"});
  wide.egress = {{"*", 0, EgressVerdict::allow}};
  const auto open = spawn(wide);
  EXPECT_THAT(fetch(open.id, "rates.example"), HasSubstr("200"));
  EXPECT_EQ(fetch(open.id, "closed.example"), "") << "`allow` in a spec is no permission";
  auto narrow = spec({"sleep", "60"});
  narrow.egress = {{"rates.example", 0, EgressVerdict::deny}};
  EXPECT_EQ(fetch(spawn(narrow).id, "rates.example"), "");

  policy(
      "forbid(principal, action == Action::\"sandbox.spawn\", resource) when { "
      "context.egress.contains({\"host\": \"*\", \"port\": 0, \"verdict\": \"allow\"}) };");
  EXPECT_EQ(runtime->spawn(as(ada->identity), wide).error().kind(), ErrorKind::permission_denied);
  EXPECT_TRUE(runtime->spawn(as(ada->identity), narrow));
}

TEST_P(RuntimeContract, AnApprovedSpawnIsThisSpecAndNoOther) {
  policy(
      "@oversight(\"large\") forbid(principal, action == Action::\"sandbox.spawn\", resource) when { "
      "context.cpu_millicores == 900 };");
  auto approved = spec({"sh", "-c", "sleep 60"});
  approved.limits.cpu_millicores = 900;
  approved.environment = {{"MODE", "dry-run"}};
  approved.egress = {{"rates.example", 80, EgressVerdict::require_authz}};
  const auto asked = runtime->spawn(as(ada->identity), approved);
  ASSERT_TRUE(asked) << asked.error().to_string();
  ASSERT_TRUE(asked->approval);
  const auto shown = parse_json(gate->last().action.arguments).value();
  EXPECT_EQ(shown["environment"]["MODE"], "dry-run");
  EXPECT_EQ(shown["egress"][0]["host"], "rates.example");
  approved.override_token = gate->approve_last(as_service());

  const std::pair<const char*, std::function<void(SandboxSpec&)>> changes[] = {
      {"command", [](SandboxSpec& s) { s.command = {"sh", "-c", "sleep 61"}; }},
      {"environment", [](SandboxSpec& s) { s.environment["MODE"] = "live"; }},
      {"working_directory", [](SandboxSpec& s) { s.working_directory = "/tmp"; }},
      {"secrets", [](SandboxSpec& s) { s.secrets = {"agents/API_KEY"}; }},
      {"egress host", [](SandboxSpec& s) { s.egress[0].host = "*"; }},
      {"egress verdict", [](SandboxSpec& s) { s.egress[0].verdict = EgressVerdict::allow; }},
      {"egress", [](SandboxSpec& s) { s.egress.clear(); }},
      {"limits.memory_bytes", [](SandboxSpec& s) { s.limits.memory_bytes *= 2; }},
      {"limits.pids", [](SandboxSpec& s) { s.limits.pids = 512; }},
      {"limits.time", [](SandboxSpec& s) { s.limits.time = std::chrono::hours(1); }}};
  for (const auto& [field, change] : changes) {
    auto other = approved;
    change(other);
    const auto refused = runtime->spawn(as(ada->identity), other);
    ASSERT_FALSE(refused) << field;
    EXPECT_EQ(refused.error().kind(), ErrorKind::permission_denied) << field;
  }
  const auto spawned = runtime->spawn(as(ada->identity), approved);
  ASSERT_TRUE(spawned) << spawned.error().to_string();
  EXPECT_TRUE(spawned->sandbox);
}

TEST_P(RuntimeContract, ACostThresholdAsksAHumanAndHisTokenPaysOnce) {
  costs.thresholds = {{Decimal(90), contracts::ThresholdAction::block},
                      {Decimal(50), contracts::ThresholdAction::require_approval},
                      {Decimal(20), contracts::ThresholdAction::notify_only}};
  const auto sandbox = spawn(spec({"sleep", "60"}));
  EXPECT_EQ(pay(sandbox.id, "30.00", "notified").status, 200);
  const auto blocked = pay(sandbox.id, "95.00", "blocked");
  EXPECT_EQ(blocked.status, 429) << blocked.body;

  const auto asked = pay(sandbox.id, "60.00", "k1");
  ASSERT_EQ(asked.status, 202) << asked.body;
  const auto request = gate->last();
  ASSERT_EQ(request.needs.size(), 1u);
  EXPECT_EQ(request.needs[0].policy, "from-50");
  EXPECT_EQ(request.needs[0].forbid, "");
  EXPECT_EQ(request.needs[0].approvers, std::vector<std::string>{"role:cfo"});
  const auto token = gate->approve_last(as_service());
  EXPECT_NE(pay(sandbox.id, "61.00", "other", token).status, 200);
  EXPECT_EQ(pay(sandbox.id, "60.00", "k1", token).status, 200);
  EXPECT_NE(pay(sandbox.id, "60.00", "again", token).status, 200);
  EXPECT_EQ(ledger.payments(), 2u);

  costs.thresholds = {{Decimal(0), contracts::ThresholdAction::require_approval}};
  ASSERT_EQ(pay(sandbox.id, "70.00", "late").status, 202);
  const auto late = gate->approve_last(as_service());
  costs.thresholds = {{Decimal(0), contracts::ThresholdAction::block}};
  EXPECT_EQ(pay(sandbox.id, "70.00", "late", late).status, 429) << "what is blocked nobody approves";
}

TEST_P(RuntimeContract, AModelIsCalledOncePerKeyAndItsTokensAreMetered) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto ask = [&](const char* key, const char* content = "hello") {
    return gateway(sandbox.id, "POST", "/v1/inference/chat/completions",
                   Json{{"messages", {{{"role", "user"}, {"content", content}}}}}, {{"Creto-Idempotency-Key", key}});
  };
  model.set_open(false);
  auto first = std::async(std::launch::async, [&] { return ask("k"); });
  model.wait_for_a_call();
  EXPECT_EQ(ask("k").status, 503) << "it is under way";
  EXPECT_EQ(model.calls, 1);
  model.set_open(true);
  const auto answer = first.get();
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(parse_json(answer.body).value()["choices"][0]["message"]["content"], "hi");
  EXPECT_EQ(ask("k").body, answer.body);
  EXPECT_EQ(ask("k", "other").status, 409);
  EXPECT_EQ(model.calls, 1);
  EXPECT_EQ(usage("inference_tokens", sandbox.id), 1);

  // What was not answered is no answer to a repeat.
  model.status = 400;
  EXPECT_NE(ask("again").status, 200);
  model.status = 200;
  EXPECT_EQ(ask("again").status, 200);
  EXPECT_EQ(usage("inference_tokens", sandbox.id), 2);
  policy("forbid(principal, action == Action::\"inference.call\", resource);");
  EXPECT_EQ(ask("forbidden").status, 403);
}

TEST_P(RuntimeContract, AModelThatMayHaveAnsweredIsAskedAgainUnderTheSameKeyAndTheAnswerSaysSo) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto ask = [&](const char* key) {
    return gateway(sandbox.id, "POST", "/v1/inference/chat/completions",
                   Json{{"messages", {{{"role", "user"}, {"content", "hello"}}}}}, {{"Creto-Idempotency-Key", key}});
  };
  model.status = 503;
  EXPECT_EQ(ask("k").status, 503);
  stop();
  start();  // as after a crash: only what is written down is known
  model.status = 200;
  const auto repeated = ask("k");
  ASSERT_EQ(repeated.status, 200) << repeated.body;
  EXPECT_TRUE(parse_json(repeated.body).value().value("creto_repeated", false));
  EXPECT_EQ(model.calls, 2);
  EXPECT_EQ(model.keys().size(), 1u) << "the provider cannot know that it is the same call";
  EXPECT_EQ(ask("k").body, repeated.body);
  EXPECT_FALSE(parse_json(ask("other").body).value().contains("creto_repeated"));
  EXPECT_EQ(model.calls, 3);
  EXPECT_EQ(usage("inference_tokens", sandbox.id), 2);
}

TEST_P(RuntimeContract, AnApprovedCallOfAModelIsThisRequestAndMadeOnce) {
  policy("@oversight(\"large\") forbid(principal, action == Action::\"inference.call\", resource);");
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto ask = [&](const char* key, const char* content, const std::string& token = "") {
    return gateway(sandbox.id, "POST", "/v1/inference/chat/completions",
                   Json{{"messages", {{{"role", "user"}, {"content", content}}}}},
                   {{"Creto-Idempotency-Key", key}, {"Creto-Override", token}});
  };
  const auto asked = ask("k", "hello");
  ASSERT_EQ(asked.status, 202) << asked.body;
  const auto shown = parse_json(gate->last().action.arguments).value();
  EXPECT_EQ(shown["prompt"], "hello");
  EXPECT_EQ(model.calls, 0);
  const auto token = gate->approve_last(as_service());
  EXPECT_NE(ask("other", "something else", token).status, 200);
  // The approval outlives an attempt that was not answered.
  model.status = 400;
  EXPECT_NE(ask("k", "hello", token).status, 200);
  model.status = 200;
  const auto answer = ask("k", "hello", token);
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(ask("k", "hello", token).body, answer.body);
  EXPECT_NE(ask("again", "hello", token).status, 200);
  EXPECT_EQ(model.calls, 2);
}

TEST_P(RuntimeContract, WhatCannotBeOpenedIsRefusedAndStandsInNobodysWay) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto kept = messenger.deliver(*db, *agent, "not yet");
  std::vector<MessageId> forged;
  for (int i = 0; i < 40; ++i) forged.push_back(messenger.deliver(*db, *agent, "forged"));
  const auto good = messenger.deliver(*db, *agent, "hello");
  const auto answer = gateway(sandbox.id, "GET", "/v1/messages");
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto messages = parse_json(answer.body).value()["messages"];
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0]["message_id"], good.to_string());
  for (const auto& id : forged) EXPECT_EQ(messenger.refused[id], "it cannot be opened: the signature does not hold");
  EXPECT_FALSE(messenger.refused.contains(kept)) << "it may open later";
  EXPECT_EQ(messenger.waiting(), 2u);
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
  remove_behind_its_back(sandbox.id);
  start();
  const auto ended = wait_end(sandbox.id);
  EXPECT_EQ(ended.state, SandboxState::terminated);
  EXPECT_EQ(ended.reason, TerminationReason::failed);
}

/// A process of its own that is killed: it spawns what its environment asks for, says so, and waits.
TEST(RuntimeVictim, DISABLED_SpawnsAndWaits) {
  const auto given = parse_json(std::getenv("CRETO_TEST_VICTIM")).value();
  const std::string place = given["database"];
  World world;
  world.open(given["kind"] == "sqlite" ? sql::open_sqlite(place).value() : sql::open_postgres(place).value());
  RuntimeOptions options;
  options.state_directory = given["state_directory"];
  options.image_directory = given["image_directory"];
  options.runtime_class = given["runtime_class"];
  options.pool_image = given.value("pool", false) ? "base" : "";
  options.pool_size = 1;
  const auto runtime = create_runtime(world.services(), options).value();
  auto ctx = world.as(Identity::parse(given["caller"].get<std::string>()).value());
  ctx.idempotency_key = given.value("key", "");
  SandboxSpec spec;
  spec.agent = Identity::parse(given["agent"].get<std::string>()).value();
  spec.image = "base";
  spec.command = given.value("command", std::vector<std::string>{"sleep", "60"});
  spec.secrets = {"agents/API_KEY"};
  Json said = {{"pid", ::getpid()}, {"sandboxes", Json::array()}};
  for (int i = given.value("spawns", 0); i > 0; --i)
    said["sandboxes"].push_back(runtime->spawn(ctx, spec).value().sandbox->id.to_string());
  std::jthread executing;
  if (given.contains("exec")) {
    const auto id = SandboxId::parse(said["sandboxes"][0].get<std::string>()).value();
    executing = std::jthread([&runtime, ctx, id, command = given["exec"].get<std::vector<std::string>>()] {
      EXPECT_TRUE(runtime->exec(ctx, id, {.command = command}));
    });
    const ExecRequest look{.command = {"ls", "/tmp/up"}};
    for (int i = 0; i < 200 && runtime->exec(ctx, id, look).value().exit_code != 0; ++i) ::usleep(50'000);
  }
  if (given.value("until_end", false)) {
    const auto id = SandboxId::parse(said["sandboxes"][0].get<std::string>()).value();
    std::promise<void> ended;
    EXPECT_TRUE(runtime->when_terminated(ctx, id, [&](const Sandbox&) { ended.set_value(); }));
    ended.get_future().wait();
  }
  const std::size_t warm = options.pool_image.empty() ? 0 : 1;
  for (int i = 0; i < 200 && runtime->status(ctx).value().pool_ready < warm; ++i) ::usleep(50'000);
  fmt::print("\nvictim {}\n", said.dump());
  std::fflush(stdout);
  ::pause();
}

/// What such a process said before it was killed; null where it died before.
Json killed_victim(const Json& given, std::string* log = nullptr) {
  // What it leaves goes to init, as after a server's death, and not to us, who would have to collect it: a runtime
  // waits long for a dead process that nobody collects.
  EXPECT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
  ::setenv("CRETO_TEST_VICTIM", given.dump().c_str(), 1);
  const auto command = "exec " + std::filesystem::read_symlink("/proc/self/exe").string() +
                       " --gtest_also_run_disabled_tests --gtest_filter=RuntimeVictim.DISABLED_SpawnsAndWaits 2>&1";
  const std::unique_ptr<FILE, int (*)(FILE*)> victim(::popen(command.c_str(), "re"), ::pclose);
  Json said;
  for (char line[4096]; said.is_null() && std::fgets(line, sizeof line, victim.get());) {
    if (std::string_view(line).starts_with("victim ")) said = parse_json(line + 7).value();
    if (log) *log += line;
  }
  if (!said.is_null()) EXPECT_EQ(::kill(said["pid"].get<int>(), SIGKILL), 0);
  return said;
}

/// Such processes die, one after the other, at every kind of commit up to this one (io/sql/crash_point.h).
void die_after(const Json& given, const std::string& commit) {
  const creto::testing::TempDir directory;
  const auto kinds = (directory.path() / "kinds").string();
  ::setenv("CRETO_CRASH_AT", ("after:" + kinds).c_str(), 1);
  const auto met = [&] {
    const auto text = read_text_file(kinds);
    return text && ("\n" + *text).find("\n" + commit + "\n") != std::string::npos;
  };
  for (int i = 0; i < 50 && !met(); ++i) EXPECT_TRUE(killed_victim(given).is_null());
  ::unsetenv("CRETO_CRASH_AT");
  EXPECT_TRUE(met());
}

TEST_P(RuntimeContract, WhatAKilledServerLeftIsTakenOverOrCleanedUp) {
  stop();
  auto given = victim();
  given["spawns"] = 2;
  given["pool"] = true;
  std::string log;
  const auto told = killed_victim(given, &log);
  ASSERT_FALSE(told.is_null()) << log;
  const auto alive = SandboxId::parse(told["sandboxes"][0].get<std::string>()).value();
  const auto dead = SandboxId::parse(told["sandboxes"][1].get<std::string>()).value();
  remove_behind_its_back(dead);
  EXPECT_EQ(network_namespaces().size(), 4u) << "the gateway, two sandboxes and a warm one";

  start();
  EXPECT_EQ(runtime->get(as(ada->identity), alive).value().state, SandboxState::running);
  const auto kept = runtime->exec(as(ada->identity), alive, {.command = {"sh", "-c", "echo $API_KEY"}});
  ASSERT_TRUE(kept) << kept.error().to_string();
  EXPECT_EQ(kept->out, "agents-own-key\n");
  EXPECT_EQ(lent_to(alive), vault::DelegationStatus::active);

  const auto ended = wait_end(dead);
  EXPECT_EQ(ended.reason, TerminationReason::failed);
  EXPECT_EQ(ended.detail, "ended while the runtime was down");
  EXPECT_EQ(lent_to(dead), vault::DelegationStatus::revoked);

  // The warm one was nobody's.
  EXPECT_EQ(network_namespaces().size(), 2u) << "the gateway and one sandbox";
  const auto bundles = std::filesystem::directory_iterator(driver_directory() + "/bundles");
  EXPECT_EQ(std::distance(begin(bundles), end(bundles)), 1);
}

TEST_P(RuntimeContract, WhatASandboxWritesWhileServersAreKilledArrivesOnceAndItsEndBehindIt) {
  stop();
  auto given = victim();
  given["spawns"] = 1;
  given["command"] = {"bash", "-c", "for ((i = 0; i < 60000; ++i)); do echo line $i; echo error $i >&2; done; exit 3"};
  std::string log;
  const auto told = killed_victim(given, &log);
  ASSERT_FALSE(told.is_null()) << log;
  given["spawns"] = 0;
  for (int i = 0; i < 3; ++i) killed_victim(given);
  start();
  const auto id = SandboxId::parse(told["sandboxes"][0].get<std::string>()).value();
  EXPECT_EQ(wait_end(id).exit_code, 3);
  for (const auto stream : {OutputStream::out, OutputStream::err}) {
    std::string expected, written;
    for (int i = 0; i < 60000; ++i)
      expected += fmt::format("{} {}\n", stream == OutputStream::out ? "line" : "error", i);
    for (auto chunk = runtime->output(as(ada->identity), id, stream, 0).value(); !chunk.complete;
         chunk = runtime->output(as(ada->identity), id, stream, chunk.next_offset).value())
      written += chunk.bytes;
    EXPECT_TRUE(written == expected) << written.size() << " bytes instead of " << expected.size();
  }
}

TEST_P(RuntimeContract, ASpawnThatACrashCutOffIsEndedWithARecordAndItsRepeatSpawnsAnew) {
#ifdef NDEBUG
  GTEST_SKIP() << "this build cannot be made to crash at a commit";
#endif
  stop();
  auto given = victim();
  given["spawns"] = 1;
  given["key"] = "once";
  // Once before anything is lent to it, and once when it is lent and nobody has heard.
  die_after(given,
            "INSERT vault_delegations, INSERT vault_delegation_secrets, INSERT vault_access, INSERT audit_pending");
  start();
  const auto left = runtime->list(as(ada->identity), {}).value();
  ASSERT_EQ(left.size(), 2u);
  for (const Sandbox& one : left) {
    EXPECT_FALSE(one.ready_at);
    EXPECT_EQ(wait_end(one.id).reason, TerminationReason::failed);
    const auto of_it = [&](std::string_view what) {
      return count("audit_pending", fmt::format("entry LIKE '%{}%' AND entry LIKE '%{}%'", what, one.id.to_string()));
    };
    EXPECT_EQ(of_it("sandbox_spawn_failed"), 1);
    EXPECT_EQ(of_it("sandbox_terminated"), 0);
  }
  EXPECT_EQ(count("vault_delegations", "revoked = 1"), 1);
  EXPECT_EQ(count("vault_delegations", "revoked = 0"), 0);

  auto ctx = as(ada->identity);
  ctx.idempotency_key = "once";
  const auto again = runtime->spawn(ctx, spec({"sleep", "60"}));
  ASSERT_TRUE(again) << again.error().to_string();
  for (const Sandbox& one : left) EXPECT_NE(again->sandbox->id, one.id);
  EXPECT_EQ(again->sandbox->state, SandboxState::running);
  ASSERT_TRUE(runtime->terminate(as(ada->identity), again->sandbox->id));
  const auto ended = runtime->spawn(ctx, spec({"sleep", "60"}));
  ASSERT_TRUE(ended) << ended.error().to_string();
  EXPECT_EQ(ended->sandbox->id, again->sandbox->id);
  EXPECT_EQ(ended->sandbox->state, SandboxState::terminated);
}

TEST_P(RuntimeContract, TheExitCodeOutlivesAServerThatDiesWhileItTakesASandboxDown) {
#ifdef NDEBUG
  GTEST_SKIP() << "this build cannot be made to crash at a commit";
#endif
  stop();
  auto given = victim();
  given["spawns"] = 1;
  given["key"] = "once";
  given["command"] = {"sh", "-c", "exit 3"};
  given["until_end"] = true;
  die_after(given, "UPDATE runtime_sandboxes");
  start();
  const auto sandboxes = runtime->list(as(ada->identity), {}).value();
  const auto real = std::find_if(sandboxes.begin(), sandboxes.end(), [](const Sandbox& s) { return s.ready_at; });
  ASSERT_NE(real, sandboxes.end());
  const auto ended = wait_end(real->id);
  EXPECT_EQ(ended.exit_code, 3);
  EXPECT_EQ(ended.detail, "exit code 3");
}

TEST_P(RuntimeContract, AnExecOfAKilledServerIsEndedAndInNobodysWay) {
  stop();
  auto given = victim();
  given["spawns"] = 1;
  given["exec"] = {"sh", "-c", "echo up > /tmp/up; sleep 61"};
  std::string log;
  const auto told = killed_victim(given, &log);
  ASSERT_FALSE(told.is_null()) << log;
  start();
  const auto id = SandboxId::parse(told["sandboxes"][0].get<std::string>()).value();
  const auto seen = runtime->exec(as(ada->identity), id, {.command = {"sh", "-c", "cat /proc/[0-9]*/cmdline"}});
  ASSERT_TRUE(seen) << seen.error().to_string();
  EXPECT_THAT(seen->out, Not(HasSubstr(std::string_view("sleep\00061", 8))));
  EXPECT_THAT(seen->out, HasSubstr(std::string_view("sleep\00060", 8)));
}

TEST_P(RuntimeContract, AStopEndsItsSandboxesWhereItIsToldTo) {
  stop();
  keep_sandboxes = false;
  start();
  auto with = spec({"sleep", "60"});
  with.secrets = {"agents/API_KEY"};
  const auto sandbox = spawn(with);
  stop();
  expect_nothing_left();
  EXPECT_EQ(lent_to(sandbox.id), vault::DelegationStatus::revoked);
  start();
  const auto ended = runtime->get(as(ada->identity), sandbox.id).value();
  EXPECT_EQ(ended.state, SandboxState::terminated);
  EXPECT_EQ(ended.reason, TerminationReason::manual);
}

TEST_P(RuntimeContract, OutputOfEndedSandboxesIsKeptByAgeAndSize) {
  const auto running = spawn(spec({"sh", "-c", "echo running; sleep 60"}));
  const auto first = spawn(spec({"sh", "-c", "echo first"}));
  wait_end(first.id);
  const auto second = spawn(spec({"sh", "-c", "echo second"}));
  wait_end(second.id);
  EXPECT_EQ(service_->sweep(as_service()).value(), 0u);
  EXPECT_EQ(output(first.id), "first\n");

  stop();
  output_bytes_max = 150;  // one with its resolv.conf and hosts
  start();
  EXPECT_EQ(service_->sweep(as_service()).value(), 1u);
  const auto gone = runtime->output(as(ada->identity), first.id, OutputStream::out, 0);
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().kind(), ErrorKind::not_found);
  EXPECT_EQ(output(second.id), "second\n");

  const auto directory = fmt::format("{}/sandboxes/{}", options().state_directory, second.id.to_string());
  std::filesystem::last_write_time(directory, std::filesystem::file_time_type::clock::now() - std::chrono::days(8));
  EXPECT_EQ(service_->sweep(as_service()).value(), 1u);
  EXPECT_FALSE(std::filesystem::exists(directory));
  EXPECT_EQ(output(running.id), "running\n");
}

TEST_P(RuntimeContract, AMessageEndsTheWaitForItAndIsAcknowledgedAtBothEnds) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  auto waiting = std::async(std::launch::async, [&] { return gateway(sandbox.id, "GET", "/v1/messages?wait=30s"); });
  messenger.wait_for_a_look();
  const auto sent_at = system_clock().monotonic();
  const auto id = messenger.deliver(*db, *agent, "hello");
  const auto answer = waiting.get();
  EXPECT_LT(system_clock().monotonic() - sent_at, std::chrono::milliseconds(900)) << "nothing woke it";
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto message = parse_json(answer.body).value()["messages"][0];
  EXPECT_EQ(message["message_id"], id.to_string());
  EXPECT_EQ(message["body"], "hello");
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/messages/" + id.to_string() + "/ack").status, 200);
  EXPECT_EQ(messenger.waiting(), 0u);
  EXPECT_EQ(endpoint.acknowledged, id);
  EXPECT_EQ(parse_json(gateway(sandbox.id, "GET", "/v1/messages?wait=100ms").body).value()["messages"].size(), 0u);
}

TEST_P(RuntimeContract, ATopicMessageIsSealedAgainForWhoSubscribesMeanwhile) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  messenger.refusals = 1;
  const auto sent = gateway(sandbox.id, "POST", "/v1/messages", Json{{"topic", "news"}, {"body", "hello"}});
  EXPECT_EQ(sent.status, 200) << sent.body;
  EXPECT_EQ(endpoint.sealed_for_topic, 2);
  messenger.refusals = 10;
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/messages", Json{{"topic", "news"}, {"body", "hello"}}).status, 409);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/messages", Json{{"topic", "a"}, {"to", "b"}, {"body", "c"}}).status, 400);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/messages", Json{{"body", "hello"}}).status, 400);
}

TEST_P(RuntimeContract, TheSameKeyAtAnyDoorIsTheFirstAnswerAndARefusalForOtherContent) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto ask = [&](std::string path, Json body) {
    return gateway(sandbox.id, "POST", std::move(path), std::move(body), {{"Creto-Idempotency-Key", "k"}});
  };
  const std::tuple<const char*, Json, Json> doors[] = {
      {"/v1/sandboxes",
       {{"image", "base"}, {"command", {"sleep", "60"}}},
       {{"image", "base"}, {"command", {"sleep", "61"}}}},
      {"/v1/messages", {{"topic", "news"}, {"body", "hello"}}, {{"topic", "news"}, {"body", "other"}}},
      {"/v1/memories", {{"content", "it is due"}}, {{"content", "it is not due"}}},
      {"/v1/actions/pay", {{"arguments", {{"amount", "1.00"}}}}, {{"arguments", {{"amount", "2.00"}}}}}};
  for (const auto& [path, body, other] : doors) {
    const auto first = ask(path, body);
    EXPECT_EQ(first.status, 200) << first.body;
    EXPECT_EQ(ask(path, body).body, first.body) << path;
    EXPECT_EQ(ask(path, other).status, 409) << path;
    EXPECT_EQ(ask(path, body).body, first.body) << path;
  }
  EXPECT_EQ(runtime->list(as(ada->identity), {}).value().size(), 2u);
  EXPECT_EQ(endpoint.sealed_for_topic, 1);
  EXPECT_EQ(count("audit_pending", "entry LIKE '%memory.store%'"), 1);
  EXPECT_EQ(ledger.payments(), 1u);

  // What was refused is not remembered.
  messenger.refusals = 10;
  const auto tell = [&](const char* body) {
    return gateway(sandbox.id, "POST", "/v1/messages", Json{{"to", "nobody"}, {"body", body}},
                   {{"Creto-Idempotency-Key", "n"}})
        .status;
  };
  EXPECT_EQ(tell("hello"), 404);
  EXPECT_EQ(tell("other"), 404);
  const auto with_key = [&](std::string key) {
    return gateway(sandbox.id, "POST", "/v1/memories", Json{{"content", "x"}}, {{"Creto-Idempotency-Key", key}}).status;
  };
  EXPECT_EQ(with_key(std::string(256, 'k')), 200);
  EXPECT_EQ(with_key(std::string(257, 'k')), 400);
}

TEST_P(RuntimeContract, TheGatewayRefusesWhatIsMalformed) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  EXPECT_EQ(gateway(sandbox.id, "GET", "/v1/nothing").status, 404);
  EXPECT_EQ(gateway(sandbox.id, "GET", "/v1/requests/not-an-id").status, 404);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/actions/pay", Json::array()).status, 400);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/sandboxes", Json{{"image", "base"}, {"colour", "red"}}).status, 400);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/inference/chat/completions", Json::object()).status, 400);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/\xff\xfe").status, 404);
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
                                           Setup{"runc", DatabaseKind::postgres, true}),
                         [](const auto& info) {
                           return fmt::format("{}_{}_{}", info.param.runtime_class,
                                              ::testing::PrintToString(info.param.database),
                                              info.param.remote ? "remote" : "local");
                         });

}  // namespace
}  // namespace creto::runtime
