#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "creto/authz/authz_rpc.h"
#include "creto/crypto/hash.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/wire.h"
#include "test_source.h"

namespace creto::authz {

using creto::testing::Where;
using creto::testing::Wire;
using std::chrono::hours;
using std::chrono::seconds;

class TestExtension final : public Extension {
 public:
  TestExtension(std::string name, int priority) : name_(std::move(name)), priority_(priority) {}
  std::string_view name() const override { return name_; }
  int priority() const override { return priority_; }
  bool denies_on_failure() const override { return closed; }
  Result<std::optional<Decision>> evaluate(const Context&, const CheckRequest&) override {
    ++calls;
    return answer();
  }
  bool closed = false;
  int calls = 0;
  std::function<Result<std::optional<Decision>>()> answer = [] { return std::optional<Decision>(); };

 private:
  std::string name_;
  int priority_;
};

/// What every Authz keeps, whether it runs here or at the other end of a connection.
class AuthzContract : public ::testing::TestWithParam<Where> {
 protected:
  AuthzContract() { start(); }
  ~AuthzContract() override { stop(); }

  void start() {
    db = database_.open();
    local = create_authz(*db, clock, *telemetry, {&source}, Secret(Bytes(32, 7)), options).value();
    authz = local.get();
    if (GetParam() != Where::grpc) return;
    wire_.emplace(clock);
    register_authz(wire_->dispatcher(), *local);
    client_ = connect("default");
    authz = client_.get();
  }
  std::unique_ptr<Authz> connect(std::string org) {
    return create_authz_client(wire_->connect(std::move(org)), *db, clock).value();
  }
  /// To say what no client of ours would. Over the wire alone.
  std::shared_ptr<rpc::Channel> raw_channel() { return wire_->connect("default"); }
  void stop() {
    client_.reset();
    wire_.reset();
    local.reset();
    db.reset();
  }

  void add(const PolicyId& id, std::string text) {
    auto done = authz->create_policy(ctx, id, std::move(text));
    ASSERT_TRUE(done) << done.error().to_string();
  }
  CheckRequest pay(std::int64_t amount) const {
    CheckRequest request{.principal = agent,
                         .chain = {human, agent},
                         .action = "payments.pay",
                         .resource = {"Ledger", "main"},
                         .context = {{"amount", amount}},
                         .arguments_hash = crypto::sha3_256(as_bytes(std::to_string(amount))),
                         .override_token = {}};
    return request;
  }
  Decision check(const CheckRequest& request) { return authz->check(ctx, request); }

  OverrideGrant grant_for(const CheckRequest& request) const {
    return {.request = approval,
            .agent = request.principal,
            .action = request.action,
            .resource = request.resource,
            .arguments_hash = request.arguments_hash,
            .lifts = {{"large", "large-payments"}},
            .expires_at = clock.now() + hours(1)};
  }
  Result<> consume(const CheckRequest& request, std::string_view operation) {
    return db->transaction(ctx, [&](sql::Tx& tx) { return authz->consume_override(tx, ctx, request, operation); });
  }
  void add_payment_policies() {
    add("pay", R"(permit(principal is Agent, action == Action::"payments.pay", resource);)");
    add("large", R"(@oversight("large-payments") @timeout("2h") @approvers("role:cfo, human:eve@example.com")
                    forbid(principal, action == Action::"payments.pay", resource) when { context.amount > 10000 };)");
  }

  creto::testing::FakeClock clock;
  AuthzOptions options;
  Telemetry* telemetry = &no_telemetry();
  TestSource source{"Action"};
  const Identity human = Identity::human("ada@example.com").value();
  const Identity agent = Identity::agent(ByteArray<32>{1});
  const Context ctx = Context::of_service(Identity::service("test").value());
  const RequestId approval = RequestId::fresh(clock.now());
  std::unique_ptr<sql::Database> db;
  std::unique_ptr<Authz> local;
  Authz* authz = nullptr;

 private:
  creto::testing::TestDatabase database_{database_of(GetParam()), clock};
  std::optional<Wire> wire_;
  std::unique_ptr<Authz> client_;
};

}  // namespace creto::authz
