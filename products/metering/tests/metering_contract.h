#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>
#include <random>

#include "creto/audit/audit_log.h"
#include "creto/authz/authz.h"
#include "creto/common/event.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/contracts/events.h"
#include "creto/crypto/signing.h"
#include "creto/io/bus.h"
#include "creto/metering/metering_rpc.h"
#include "creto/nhi/nhi.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/fault_files.h"
#include "creto/testing/listed_access.h"
#include "creto/testing/sealer.h"
#include "creto/testing/wire.h"
#include "ledger/batch_proof.h"
#include "ledger/usage_record.h"

namespace creto::metering {

using namespace std::chrono_literals;
using contracts::BillingPeriod;
using creto::testing::Where;
using creto::testing::Wire;

/// Remembers what invoices came; does not answer as often as it shall fail.
class Mailbox final : public InvoiceDelivery {
 public:
  Result<std::string> keep(const Context&, const Invoice& invoice, BytesView pdf) override {
    const std::scoped_lock lock(mutex_);
    kept.emplace_back(invoice.number, to_bytes(pdf));
    return "default/invoices/" + invoice.id.to_string();
  }
  Result<> send(const Context&, const Invoice& invoice, BytesView) override {
    const std::scoped_lock lock(mutex_);
    if (failures > 0) {
      --failures;
      return Error(Product::messaging, ErrorKind::unavailable, "nobody answers");
    }
    sent.push_back(invoice.number);
    return {};
  }
  int failures = 0;
  std::vector<std::pair<std::int64_t, Bytes>> kept;
  std::vector<std::int64_t> sent;

 private:
  std::mutex mutex_;
};

/// What every Metering keeps, whether it runs here over either database or at the other end of a connection: usage in
/// usage_contract.cc, limits in limits_contract.cc, the log in log_contract.cc, corrections in corrections_contract.cc,
/// invoices in billing_contract.cc.
class MeteringContract : public ::testing::TestWithParam<Where> {
 protected:
  explicit MeteringContract(MeteringOptions with = {}) : options(std::move(with)) {
    start();
    EXPECT_TRUE(registry->ensure_service(ctx, *ctx.caller));
    parent = agent("invoice-agent", *ctx.caller);
    child = agent("invoice-agent-child", *parent);
  }
  ~MeteringContract() override { stop(); }

  void start() {
    db = database_.open();
    registry = nhi::create_nhi(*db, sealer_, clock).value();
    ceiling_ = consensus::create_ceiling_store(*db, "test").value();
    time_ = consensus::create_timestamp_source(*ceiling_, clock, no_telemetry(),
                                               {.node = "test", .renew_in_background = false})
                .value();
    if (audited) {
      const auto key = [](crypto::SignatureAlgorithm algorithm) {
        return crypto::SigningKey::from_seed(algorithm, Bytes(32, 7)).value();
      };
      audit_ = audit::create_audit_log(
                   *db, files, clock, no_telemetry(),
                   {key(crypto::SignatureAlgorithm::ed25519), key(crypto::SignatureAlgorithm::ml_dsa_65)},
                   {.directory = "/audit", .origin = "creto.test/metering", .sequence_in_background = false})
                   .value();
      options.audit = audit_.get();
    }
    options.access = &access;
    local = create_metering(*db, files, "/usage", *registry, *time_, mailbox, clock, no_telemetry(), options).value();
    metering = local.get();
    if (GetParam() != Where::grpc) return;
    wire_.emplace(clock);
    register_metering(wire_->dispatcher(), *local);
    client_ = create_metering_client(wire_->connect());
    metering = client_.get();
  }
  void stop() {
    client_.reset();
    wire_.reset();
    carrier.reset();
    local.reset();
    audit_.reset();
    time_.reset();
    ceiling_.reset();
    registry.reset();
    db.reset();
  }
  void with_bus() {
    carrier = bus::create_embedded_bus(*db, clock, no_telemetry(), {.poll_interval = 10ms}).value();
    ASSERT_TRUE(local->attach(*carrier));
  }

  /// Requires: a bus.
  void listen_to_limits() {
    ASSERT_TRUE(carrier->subscribe("test", "metering.thresholds", [this](const bus::BusMessage& message) -> Result<> {
      EventEnvelope notice = CRETO_TRY(EventEnvelope::from_json(message.body));
      const std::scoped_lock lock(told_mutex_);
      told_.push_back(std::move(notice));
      return {};
    }));
  }
  std::vector<EventEnvelope> told_of_limits() {
    const std::scoped_lock lock(told_mutex_);
    return told_;
  }

  std::optional<Identity> agent(std::string name, const Identity& owner, Nanos delegated_for = 24h) {
    auto made = registry->register_agent(
        ctx,
        {.name = std::move(name), .type = nhi::AgentType::autonomous, .owner = {}, .valid_for = {}, .attributes = {}});
    EXPECT_TRUE(made) << made.error().to_string();
    auto delegated = registry->create_delegation(
        Context::of(owner, {owner}), {owner, made->identity, {}, {"*"}, clock.now() + delegated_for, {}, {}, {}, {}});
    EXPECT_TRUE(delegated) << delegated.error().to_string();
    return made->identity;
  }
  DelegationChain chain_of(const Identity& who) {
    if (who == *child) return {*ctx.caller, *parent, *child};
    return {*ctx.caller, who};
  }

  struct Draft {
    std::string type = "inference_tokens";
    std::string key;
    std::string properties = R"({"input_tokens":"60","model_id":"m","output_tokens":"40","provider":"p"})";
    std::string units = "100";
    std::string cost;
    std::optional<Instant> when;
  };
  std::string event(const Identity& who, const Draft& draft) {
    contracts::RuntimeUsageEvent usage{draft.type, draft.key, draft.properties, Decimal::literal(draft.units), {}};
    if (!draft.cost.empty()) usage.cost = Money{Decimal::literal(draft.cost), Currency::usd()};
    Timestamp time = time_->now();
    if (draft.when) time.physical_ns = unix_ns(*draft.when);
    EventEnvelope envelope{
        "runtime_usage", EventId::fresh(clock.now()), who, chain_of(who), time, usage.to_json().value(), {}};
    envelope.signature =
        registry->sign(ctx, who, as_bytes(envelope.signed_bytes().value()), event_signature_context).value();
    return envelope.to_json().value();
  }
  std::string sandbox(const Identity& who, std::string key) {
    return event(who, {.type = "sandbox_allocated",
                       .key = std::move(key),
                       .properties = R"({"runtime_class":"runsc","sandbox_id":"sb-1"})",
                       .units = "1",
                       .cost = {},
                       .when = {}});
  }
  std::string record(const Identity& who, std::string_view key) {
    Bytes bytes;
    encode_record({.bytes = {}, .agent = who.text(), .type = "t", .key = key, .time = clock.now(), .properties = {}},
                  bytes);
    return std::string(as_text(bytes));
  }
  Draft keyed(std::string key) {
    Draft draft;
    draft.key = std::move(key);
    return draft;
  }
  Quota quota(std::string id, const Identity& subject, std::int64_t limit, std::string type = "sandbox_allocated") {
    Quota result;
    result.id = std::move(id);
    result.subject = subject.text();
    result.event_type = std::move(type);
    result.limit = limit;
    return result;
  }
  contracts::SpendRequest ask(const Identity& who, std::string type, std::string_view units = "1",
                              std::string_view cost = "0") {
    return {ReservationId::fresh(clock.now()),
            who,
            chain_of(who),
            std::move(type),
            Decimal::literal(units),
            Money{Decimal::literal(cost), Currency::usd()},
            10min};
  }
  std::int64_t rows(const std::string& sql) {
    std::int64_t count = -1;
    EXPECT_TRUE(db->read(ctx, [&](sql::Tx& tx) -> Result<> {
      const auto result = CRETO_TRY(tx.query(sql));
      count = result.front().integer(0);
      return {};
    }));
    return count;
  }
  template <class T>
  static std::string code(const Result<T>& result) {
    return result ? "ok" : result.error().code();
  }

  const Context ctx = Context::of_service(Identity::service("test").value());
  creto::testing::FakeClock clock{from_rfc3339("2026-11-10T12:00:00Z").value()};
  creto::testing::TestDatabase database_{database_of(GetParam()), clock};
  creto::testing::TestSealer sealer_;
  creto::testing::FaultFiles files;
  Mailbox mailbox;
  creto::testing::ListedAccess access;
  MeteringOptions options;
  bool audited = false;  ///< whether there is an audit log
  std::unique_ptr<sql::Database> db;
  std::unique_ptr<nhi::Nhi> registry;
  std::unique_ptr<audit::AuditLog> audit_;
  std::unique_ptr<consensus::CeilingStore> ceiling_;
  std::unique_ptr<consensus::TimestampSource> time_;
  std::unique_ptr<LocalMetering> local;
  std::unique_ptr<Metering> client_;
  std::optional<Wire> wire_;
  std::mutex told_mutex_;
  std::vector<EventEnvelope> told_;
  std::unique_ptr<bus::Bus> carrier;  ///< after what it tells: its threads end first
  Metering* metering = nullptr;
  std::optional<Identity> parent, child;
};

inline constexpr std::string_view plan_text =
    R"({"id":"agent-standard","name":"Agent standard","base_fee":"19","charges":[
  {"id":"tokens","description":"Tokens","model":"graduated","metric":{"event_type":"inference_tokens","aggregation":"sum","property":"units"},
   "price":{"tiers":[{"up_to":"1000","per_unit":"0.01"},{"per_unit":"0.001"}]}},
  {"id":"sandboxes","description":"Sandboxes","model":"standard","metric":{"event_type":"sandbox_allocated"},"price":{"per_unit":"0.5"}}]})";

}  // namespace creto::metering
