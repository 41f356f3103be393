#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "creto/authz/authz.h"
#include "creto/common/json.h"
#include "creto/contracts/approval_gate.h"
#include "creto/contracts/cost_trigger.h"
#include "creto/contracts/sandbox_messenger.h"
#include "creto/contracts/spending.h"
#include "creto/crypto/hash.h"
#include "creto/inference/inference.h"
#include "creto/io/http_server.h"
#include "creto/io/sql.h"
#include "creto/runtime/runtime.h"
#include "creto/vault/vault.h"
#include "driver/process.h"
#include "tests/sandbox_fixture.h"

/// Who stands around a runtime in its contract suite, as small as they can be.
namespace creto::runtime {

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
  Result<MessageId> send_from_sandbox(const Context& ctx, const SandboxId&, const contracts::SealedMessage& message,
                                      const std::string& override_token) override {
    if (refusals-- > 0)
      return Error(Product::messaging, ErrorKind::conflict, "it is not sealed for all").with_retryable(true);
    const auto arguments = contracts::approval_arguments(message, crypto::sha3_256(message.envelope));
    const authz::CheckRequest request{
        *ctx.caller,
        ctx.chain,
        "message.send",
        message.topic.empty() ? authz::entity_of(message.recipient) : authz::EntityUid{"Topic", message.topic},
        {{"size", authz::Value(static_cast<std::int64_t>(message.envelope.size()))}},
        crypto::sha3_256(as_bytes(arguments)),
        override_token};
    if (auto refused = authz::refusal(Product::messaging, authz->admit(ctx, request))) return *std::move(refused);
    if (!override_token.empty())
      CRETO_TRY(sql::write(*database, ctx, [&](sql::Tx& tx) {
        return authz->consume_override(tx, ctx, request, message.message_id.to_string());
      }));
    const std::lock_guard lock(mutex_);
    sent.push_back(message.message_id);
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
  authz::Authz* authz = nullptr;  ///< which decides, as for the real one
  sql::Database* database = nullptr;
  std::atomic<int> refusals = 0;
  std::map<MessageId, std::string> refused;
  std::vector<MessageId> sent;

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
inline Result<std::string> test_images() {
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

}  // namespace creto::runtime
