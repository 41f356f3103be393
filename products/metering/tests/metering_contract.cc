// What every Metering keeps, whether it runs here over either database or at the other end of a connection.

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
namespace {

using namespace std::chrono_literals;
using contracts::BillingPeriod;
using creto::testing::Where;
using creto::testing::Wire;

class NoMailbox final : public InvoiceDelivery {
 public:
  Result<std::string> keep(const Context&, const Invoice&, BytesView) override { return std::string("nowhere"); }
  Result<> send(const Context&, const Invoice&, BytesView) override { return {}; }
};

class MeteringContract : public ::testing::TestWithParam<Where> {
 protected:
  MeteringContract() {
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

  std::optional<Identity> agent(std::string name, const Identity& owner) {
    auto made = registry->register_agent(
        ctx,
        {.name = std::move(name), .type = nhi::AgentType::autonomous, .owner = {}, .valid_for = {}, .attributes = {}});
    EXPECT_TRUE(made) << made.error().to_string();
    auto delegated = registry->create_delegation(Context::of(owner, {owner}),
                                                 {owner, made->identity, {}, {"*"}, clock.now() + 24h, {}, {}, {}, {}});
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
  NoMailbox mailbox;
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
  std::unique_ptr<bus::Bus> carrier;
  Metering* metering = nullptr;
  std::optional<Identity> parent, child;
};

constexpr std::string_view plan_text = R"({"id":"agent-standard","name":"Agent standard","base_fee":"19","charges":[
  {"id":"tokens","description":"Tokens","model":"graduated","metric":{"event_type":"inference_tokens","aggregation":"sum","property":"units"},
   "price":{"tiers":[{"up_to":"1000","per_unit":"0.01"},{"per_unit":"0.001"}]}},
  {"id":"sandboxes","description":"Sandboxes","model":"standard","metric":{"event_type":"sandbox_allocated"},"price":{"per_unit":"0.5"}}]})";

TEST_P(MeteringContract, AnEventCountsOnceAndARepetitionReturnsTheFirst) {
  const std::string one = event(*parent, keyed("k1"));
  const auto first = metering->ingest(ctx, one);
  ASSERT_TRUE(first) << first.error().to_string();
  EXPECT_FALSE(first->duplicate);
  const auto again = metering->ingest(ctx, one);
  ASSERT_TRUE(again);
  EXPECT_TRUE(again->duplicate);
  EXPECT_EQ(again->id, first->id);
  const auto other = metering->ingest(ctx, event(*parent, keyed("k1")));
  EXPECT_EQ(code(other), "MT-409");
  EXPECT_NE(other.error().message().find(first->id.to_string()), std::string::npos);
  const auto usage = metering->usage(ctx, {.subject = parent->text()}).value().rows;
  ASSERT_EQ(usage.size(), 1u);
  EXPECT_EQ(usage[0].events, 1);
  EXPECT_EQ(usage[0].units, Decimal(100));
}

TEST_P(MeteringContract, AQuotaForEachAgentMayLookAtProperties) {
  Quota each = quota("large", *parent, 150, "inference_tokens");
  each.subject = "agent:*";
  each.match = {{"model_id", {"large", "huge"}}};
  each.time_zone = "Europe/Berlin";
  ASSERT_TRUE(metering->set_quota(ctx, each));
  const auto listed = metering->list_quotas(ctx, "agent:*").value();
  ASSERT_EQ(listed.size(), 1u);
  EXPECT_EQ(listed[0].match, each.match);
  EXPECT_EQ(listed[0].time_zone, each.time_zone);
  auto spend = ask(*parent, "inference_tokens", "200");
  spend.properties = {{"model_id", "huge"}};
  EXPECT_EQ(code(metering->reserve(ctx, spend)), "MT-429");
  spend.properties = {{"model_id", "small"}};
  EXPECT_TRUE(metering->reserve(ctx, spend));
  auto other = ask(*child, "inference_tokens", "100");
  other.properties = {{"model_id", "large"}};
  EXPECT_TRUE(metering->reserve(ctx, other));
  EXPECT_EQ(metering->quota_state(ctx, "large", child->text())->held, 100);
  EXPECT_EQ(metering->quota_state(ctx, "large", parent->text())->held, 100) << "of those below it, too";
}

TEST_P(MeteringContract, AForecastBeginsWithWhatWasSpent) {
  EXPECT_EQ(code(metering->forecast_cost(ctx, *parent, contracts::BillingPeriod::month)), "MT-404");
  Draft draft = keyed("k1");
  draft.cost = "1.25";
  ASSERT_TRUE(metering->ingest(ctx, event(*parent, draft)));
  const auto told = metering->forecast_cost(ctx, *parent, contracts::BillingPeriod::month);
  ASSERT_TRUE(told) << told.error().to_string();
  EXPECT_EQ(told->so_far, (Money{Decimal::literal("1.25"), Currency::usd()}));
  EXPECT_EQ(told->hours_learnt, 0);
  EXPECT_GT(told->until, clock.now());
  EXPECT_EQ(code(metering->forecast_cost(ctx, *parent, contracts::BillingPeriod::lifetime)), "MT-400");
}

TEST_P(MeteringContract, AKeyMayBeUsedAgainAfterSevenDays) {
  const auto first = metering->ingest(ctx, event(*parent, keyed("k1"))).value();
  clock.advance(24h * 7 + 1s);
  const auto second = metering->ingest(ctx, event(*parent, keyed("k1")));
  ASSERT_TRUE(second) << second.error().to_string();
  EXPECT_NE(second->id, first.id);
  EXPECT_FALSE(second->duplicate);
}

TEST_P(MeteringContract, ABatchAnswersForEachEvent) {
  const std::string good = event(*parent, keyed("a"));
  std::string forged = event(*parent, keyed("b"));
  forged.replace(forged.find("\"100\""), 5, "\"999\"");
  EventEnvelope unsigned_event = EventEnvelope::from_json(event(*parent, keyed("c"))).value();
  unsigned_event.signature.reset();
  const auto answers =
      metering
          ->ingest_batch(ctx, std::vector<std::string>{good, forged, "{", good, unsigned_event.to_json().value(),
                                                       event(*child, keyed("a"))})
          .value();
  ASSERT_EQ(answers.size(), 6u);
  EXPECT_TRUE(answers[0]);
  EXPECT_EQ(code(answers[1]), "MT-401");
  EXPECT_EQ(code(answers[2]), "MT-400");
  EXPECT_TRUE(answers[3]->duplicate);
  EXPECT_EQ(code(answers[4]), "MT-401");
  EXPECT_TRUE(answers[5]);
  const auto used = metering->usage(ctx, {.subject = parent->text()}).value().rows;
  ASSERT_EQ(used.size(), 1u);
  EXPECT_EQ(used[0].events, 2);
}

TEST_P(MeteringContract, WhatIsMuchTooLargeIsRefusedInItsPlace) {
  RecordBatch batch{.records = {record(*parent, "small"), std::string(10 << 20, 'x')}};
  const auto answers = metering->ingest_records(ctx, batch);
  ASSERT_TRUE(answers) << answers.error().to_string();
  EXPECT_TRUE(answers->at(0));
  EXPECT_EQ(code(answers->at(1)), "MT-413");
  const auto events = metering->ingest_batch(ctx, std::vector<std::string>{std::string(10 << 20, 'x')});
  ASSERT_TRUE(events) << events.error().to_string();
  EXPECT_EQ(code(events->at(0)), "MT-413");
  batch.records.back() = std::string(16 << 20, 'x');
  EXPECT_EQ(code(metering->ingest_records(ctx, batch)), "MT-413") << "together";
}

TEST_P(MeteringContract, AFullDiskRefusesClearlyAndIsForgottenWhenThereIsRoom) {
  if (database_of(GetParam()) == creto::testing::DatabaseKind::postgres) GTEST_SKIP() << "the log is in the database";
  ASSERT_TRUE(metering->set_quota(ctx, quota("t", *parent, 100, "t")));
  ASSERT_TRUE(metering->ingest_records(ctx, {.records = {record(*parent, "before")}}));
  files.set_disk_bytes_max(1);
  const std::vector<std::string> records{record(*parent, "a"), record(*child, "b")};
  const auto refused = metering->ingest_records(ctx, {.records = records});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::resource_exhausted) << refused.error().to_string();
  EXPECT_EQ(metering->ingest(ctx, sandbox(*parent, "1")).error().kind(), ErrorKind::resource_exhausted);
  EXPECT_EQ(metering->quota_state(ctx, "t")->used, 1) << "nothing of it counts";
  files.set_disk_bytes_max(UINT64_MAX);
  const auto taken = metering->ingest_records(ctx, {.records = records});
  ASSERT_TRUE(taken) << taken.error().to_string();
  for (const auto& one : *taken) EXPECT_FALSE(one.value().duplicate);
  EXPECT_EQ(metering->quota_state(ctx, "t")->used, 3);
  EXPECT_TRUE(metering->verify_usage(ctx)->problems.empty());
  stop();
  start();
  EXPECT_EQ(metering->quota_state(ctx, "t")->used, 3);
  EXPECT_TRUE(metering->verify_usage(ctx)->problems.empty());
}

TEST_P(MeteringContract, AnUnknownAgentIsNotFoundAndMayBeTriedAgain) {
  const Identity stranger = Identity::agent(ByteArray<32>{9});
  const contracts::RuntimeUsageEvent usage{"sandbox_terminated", "k", R"({"sandbox_id":"sb-1"})", Decimal(1), {}};
  const EventEnvelope envelope{"runtime_usage",         EventId::fresh(clock.now()), stranger, {stranger}, time_->now(),
                               usage.to_json().value(), Signature{"ml-dsa-65", {1}}};
  const auto refused = metering->ingest(ctx, envelope.to_json().value());
  EXPECT_EQ(code(refused), "MT-404");
  EXPECT_TRUE(refused.error().retryable());
}

TEST_P(MeteringContract, EventsFarFromNowAreRefused) {
  Draft draft = keyed("k");
  draft.when = clock.now() + 2h;
  EXPECT_EQ(code(metering->ingest(ctx, event(*parent, draft))), "MT-400");
  draft.when = clock.now() - 24h * 400;
  EXPECT_EQ(code(metering->ingest(ctx, event(*parent, draft))), "MT-400");
}

TEST_P(MeteringContract, UsageCountsForEveryAncestor) {
  ASSERT_TRUE(metering->ingest(ctx, event(*child, keyed("k1"))));
  for (const Identity& who : {*child, *parent, *ctx.caller}) {
    const auto usage = metering->usage(ctx, {.subject = who.text(), .event_type = "inference_tokens"}).value().rows;
    ASSERT_EQ(usage.size(), 1u) << who.text();
    EXPECT_EQ(usage[0].units, Decimal(100));
  }
}

TEST_P(MeteringContract, WhatIsToldAfterAnEndCountsForThoseItBelongedTo) {
  const auto used = [&](const Identity& who) {
    const auto rows = metering->usage(ctx, {.subject = who.text(), .group_by = {}})->rows;
    return rows.empty() ? 0 : rows[0].events;
  };
  const Identity other = *agent("other", *ctx.caller);
  const Instant begin = clock.now();
  clock.advance(1h);
  ASSERT_TRUE(registry->create_delegation(Context::of(other, {other}),
                                          {other, *child, {}, {"*"}, clock.now() + 2h, {}, {}, {}, {}}));
  clock.advance(1h);
  const auto at = [&](std::string key, Instant when) {
    Draft draft = keyed(std::move(key));
    draft.when = when;
    const auto taken = metering->ingest(ctx, event(*child, draft));
    EXPECT_TRUE(taken) << taken.error().to_string();
  };
  at("before", begin + 30min);
  EXPECT_EQ(used(*parent), 1);
  EXPECT_EQ(used(other), 0);
  at("after", clock.now());
  EXPECT_EQ(used(*parent), 1);
  EXPECT_EQ(used(other), 1);
  ASSERT_TRUE(registry->revoke_agent(ctx, *child, "gone"));
  clock.advance(1h);
  at("late", begin + 40min);
  at("terminated", clock.now());
  EXPECT_EQ(used(*parent), 2);
  EXPECT_EQ(used(other), 2);
  EXPECT_EQ(used(*ctx.caller), 4);
}

TEST_P(MeteringContract, WhatAnAgentUsedBeforeItsTimeWasOverIsTakenAfterwards) {
  const Identity brief = registry->register_agent(ctx, {.name = "brief", .valid_for = 1h})->identity;
  ASSERT_TRUE(registry->create_delegation(ctx, {*ctx.caller, brief, {}, {"*"}, clock.now() + 1h, {}, {}, {}, {}}));
  const Instant used_at = clock.now() + 30min;
  clock.advance(2h);
  Draft draft = keyed("late");
  draft.when = used_at;
  const auto taken = metering->ingest(ctx, event(brief, draft));
  EXPECT_TRUE(taken) << taken.error().to_string();
  EXPECT_TRUE(metering->ingest(ctx, sandbox(brief, "terminated"))) << "somebody else saw how it ended";
  EXPECT_EQ(metering->usage(ctx, {.subject = ctx.caller->text(), .group_by = {}})->rows.at(0).events, 2);
}

TEST_P(MeteringContract, LimitsAreThoseOfWhoIsAboveAnAgentWhateverTheCallerSays) {
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 1)));
  ASSERT_TRUE(metering->set_threshold(
      ctx,
      {parent->text(),
       {"one", BillingPeriod::transaction, {Decimal(10), Currency::usd()}, contracts::ThresholdAction::block, {}}}));
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*child, "1")));
  EXPECT_FALSE(metering->check_quota(ctx, *child, "sandbox_allocated", 1)->allowed);
  for (const DelegationChain& said : {DelegationChain{}, DelegationChain{*child}}) {
    auto request = ask(*child, "sandbox_allocated");
    request.delegation_chain = said;
    EXPECT_EQ(code(metering->reserve(ctx, request)), "MT-429");
    const contracts::BillableEvent cost{"payment", *child, said, {Decimal(11), Currency::usd()}};
    EXPECT_TRUE(metering->check_cost_threshold(ctx, cost, BillingPeriod::month)->has_value());
  }
}

TEST_P(MeteringContract, AnAgentReleasesWhatItHoldsOrWhoIsBelowItAndNothingElse) {
  ASSERT_TRUE(metering->set_quota(ctx, quota("tokens", *child, 100, "inference_tokens")));
  const auto release = [&](const Identity& by) {
    const auto held = ask(*child, "inference_tokens", "100");
    EXPECT_TRUE(metering->reserve(ctx, held));
    const auto released = code(local->release(Context::of(by, chain_of(by)), held.id));
    EXPECT_EQ(metering->quota_state(ctx, "tokens")->held, released == "ok" ? 0 : 100);
    EXPECT_TRUE(metering->release(ctx, held.id));
    return released;
  };
  EXPECT_EQ(release(*agent("other", *ctx.caller)), "MT-403");
  EXPECT_EQ(release(*child), "ok");
  EXPECT_EQ(release(*parent), "ok");
}

TEST_P(MeteringContract, UsageIsGroupedFilteredAndRanked) {
  Draft large = keyed("k1");
  large.properties = R"({"input_tokens":"60","model_id":"large","output_tokens":"40","provider":"p"})";
  ASSERT_TRUE(metering->ingest(ctx, event(*child, large)));
  for (const char* key : {"k2", "k3"}) {
    Draft small = keyed(key);
    small.properties = R"({"input_tokens":"60","model_id":"small","output_tokens":"40","provider":"p"})";
    ASSERT_TRUE(metering->ingest(ctx, event(*parent, small)));
  }
  using By = UsageGrouping::By;
  UsageQuery query;
  query.group_by = {{By::agent, {}}, {By::property, "model_id"}, {By::day, {}}};
  query.zone = TimeZone::load("Europe/Berlin").value();
  query.order = UsageOrder::units;
  const UsageReport all = metering->usage(ctx, query).value();
  const std::string day = to_rfc3339(clock.now()).substr(0, 10);
  ASSERT_EQ(all.rows.size(), 2u);
  EXPECT_EQ(all.rows[0].keys, (std::vector<std::string>{parent->text(), "small", day}));
  EXPECT_EQ(all.rows[0].events, 2);
  EXPECT_EQ(all.rows[0].units, Decimal(200));
  EXPECT_EQ(all.rows[1].keys, (std::vector<std::string>{child->text(), "large", day}));

  query.filters = {{"model_id", {"large", "huge"}}};
  query.group_by = {};
  const UsageReport filtered = metering->usage(ctx, query).value();
  ASSERT_EQ(filtered.rows.size(), 1u);
  EXPECT_EQ(filtered.rows[0].events, 1);

  query.filters = {};
  query.group_by = {{By::agent, {}}};
  query.limit = 1;
  EXPECT_EQ(metering->usage(ctx, query).value().groups, 2u);
  query.limit = UsageQuery::rows_max + 1;
  EXPECT_EQ(code(metering->usage(ctx, query)), "MT-400");
}

TEST_P(MeteringContract, EventsAreReadPageByPageAndOnlyByTheirOrganization) {
  std::vector<std::string> keys;
  for (int i = 0; i < 7; ++i) {
    const Identity& who = i % 3 == 0 ? *child : *parent;
    keys.push_back(fmt::format("k{}", i));
    ASSERT_TRUE(metering->ingest(ctx, event(who, keyed(keys.back()))));
    clock.advance(1min);
  }
  const auto key_of = [](const std::string& line) {
    constexpr std::string_view name = R"("idempotency_key":")";
    const std::size_t begin = line.find(name) + name.size();
    return line.substr(begin, line.find('"', begin) - begin);
  };
  const auto all = [&](UsageEventsQuery query) {
    std::vector<std::string> found;
    for (std::size_t page = 0; page < 20; ++page) {
      const auto read = metering->usage_events(ctx, query);
      EXPECT_TRUE(read) << read.error().to_string();
      if (!read) break;
      for (const std::string& line : read->events) found.push_back(key_of(line));
      query.after = read->next;
      if (query.after.empty()) break;
    }
    return found;
  };
  for (const std::size_t limit : {1u, 3u, 7u, 1'000u}) EXPECT_EQ(all({.limit = limit}), keys) << limit;
  EXPECT_EQ(all({.subject = child->text(), .limit = 2}), (std::vector<std::string>{"k0", "k3", "k6"}));
  EXPECT_EQ(all({.subject = parent->text(), .limit = 2}), keys) << "and of those below it";
  EXPECT_EQ(all({.subject = "human:nobody@example.com"}), std::vector<std::string>());
  const Instant first = from_rfc3339("2026-11-10T12:00:00Z").value();
  EXPECT_EQ(all({.from = first + 2min, .until = first + 4min, .limit = 1}), (std::vector<std::string>{"k2", "k3"}));
  Context other = ctx;
  other.org = "other";
  EXPECT_TRUE(local->usage_events(other, {}).value().events.empty());
  const std::string next = metering->usage_events(ctx, {.limit = 1}).value().next;
  EXPECT_EQ(code(metering->usage_events(ctx, {.after = "1.2"})), "MT-400");
  EXPECT_EQ(code(metering->usage_events(ctx, {.after = "1.9000.0"})), "MT-400") << "no block begins there";
  EXPECT_EQ(code(metering->usage_events(ctx, {.after = "99.0.0"})), "MT-400");
  EXPECT_EQ(code(metering->usage_events(ctx, {.after = next + "0."})), "MT-400");
  EXPECT_EQ(code(metering->usage_events(ctx, {.limit = 10'001})), "MT-400");
}

TEST_P(MeteringContract, SumsAreReadPageByPage) {
  for (int i = 0; i < 12; ++i) {
    Draft draft = keyed(fmt::format("k{}", i));
    draft.properties =
        fmt::format(R"({{"input_tokens":"60","model_id":"m{}","output_tokens":"40","provider":"p"}})", i % 4);
    ASSERT_TRUE(metering->ingest(ctx, event(i % 2 == 0 ? *parent : *child, draft)));
    if (i == 5) clock.advance(24h);
  }
  using By = UsageGrouping::By;
  UsageQuery query;
  query.group_by = {{By::day, {}}, {By::property, "model_id"}, {By::agent, {}}};
  const auto all = metering->usage(ctx, query).value();
  EXPECT_TRUE(all.next.empty());
  EXPECT_EQ(all.rows.size(), all.groups);
  for (const std::size_t limit : {1u, 3u, 100u}) {
    query.limit = limit;
    query.after.clear();
    std::vector<std::vector<std::string>> keys;
    do {
      const auto page = metering->usage(ctx, query);
      ASSERT_TRUE(page) << page.error().to_string();
      for (const UsageRow& row : page->rows) keys.push_back(row.keys);
      EXPECT_EQ(page->groups, all.groups);
      query.after = page->next;
    } while (!query.after.empty() && keys.size() <= all.groups);
    ASSERT_EQ(keys.size(), all.rows.size()) << limit;
    for (std::size_t i = 0; i < keys.size(); ++i) EXPECT_EQ(keys[i], all.rows[i].keys);
  }
  query.after = "[]";
  EXPECT_EQ(code(metering->usage(ctx, query)), "MT-400");
  query.after = R"(["1","m","a"])";
  query.order = UsageOrder::units;
  EXPECT_EQ(code(metering->usage(ctx, query)), "MT-400");
}

TEST_P(MeteringContract, AVerificationMissesWhatWasCutOffTheLog) {
  stop();
  audited = true;
  start();
  ASSERT_TRUE(metering->ingest_records(ctx, {.records = {record(*parent, "a")}}));
  const std::filesystem::path log = "/usage/log/00000001.usage";
  const bool table = database_of(GetParam()) == creto::testing::DatabaseKind::postgres;
  const std::uint64_t size = table ? 0 : files.size(log).value();
  const std::int64_t blocks = table ? rows("SELECT count(*) FROM metering_blocks") : 0;
  ASSERT_TRUE(local->tick());
  ASSERT_TRUE(metering->ingest_records(ctx, {.records = {record(*parent, "b"), record(*child, "c")}}));
  ASSERT_TRUE(local->tick());
  const auto before = metering->verify_usage(ctx);
  ASSERT_TRUE(before) << before.error().to_string();
  EXPECT_TRUE(before->problems.empty()) << fmt::format("{}", fmt::join(before->problems, "; "));
  EXPECT_EQ(before->heads, 2u);
  EXPECT_GE(before->sums, 3u);

  stop();
  for (const std::string& name : files.list("/usage").value_or(std::vector<std::string>()))
    if (name != "log" && name != "columns") EXPECT_TRUE(files.remove("/usage/" + name));
  for (const std::string& name : files.list("/usage/columns").value_or(std::vector<std::string>()))
    EXPECT_TRUE(files.remove("/usage/columns/" + name));
  if (table) {
    db = database_.open();
    ASSERT_TRUE(db->transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec("DELETE FROM metering_blocks WHERE place >= $1", {blocks}));
      return {};
    }));
    db.reset();
  } else {
    ASSERT_TRUE(files.truncate(log, size));
  }
  start();
  const auto after = metering->verify_usage(ctx);
  ASSERT_TRUE(after) << after.error().to_string();
  EXPECT_EQ(after->events, 1u);
  ASSERT_EQ(after->problems.size(), 1u) << fmt::format("{}", fmt::join(after->problems, "; "));
  EXPECT_NE(after->problems.front().find("is not in it"), std::string::npos) << after->problems.front();
}

TEST_P(MeteringContract, AQuotaRefusesWithItsReset) {
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 2)));
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*parent, "1")));
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*child, "2")));
  const auto refused = metering->reserve(ctx, ask(*child, "sandbox_allocated"));
  ASSERT_EQ(code(refused), "MT-429");
  EXPECT_EQ(refused.error().message(), "monthly quota of `sandbox_allocated` exceeded (2/2)");
  EXPECT_EQ(refused.error().retry_after(), from_rfc3339("2026-12-01T00:00:00Z").value() - clock.now());
  const auto decision = metering->check_quota(ctx, *child, "sandbox_allocated", 1).value();
  EXPECT_FALSE(decision.allowed);
  EXPECT_EQ(decision.quota_id, "sandboxes");
  // A fact is recorded whatever the quota says.
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*parent, "3")));
  EXPECT_EQ(metering->quota_state(ctx, "sandboxes")->used, 3);
  // Raised, it grants again; gone, nothing limits.
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 4)));
  EXPECT_TRUE(metering->reserve(ctx, ask(*child, "sandbox_allocated")));
  ASSERT_TRUE(metering->delete_quota(ctx, "sandboxes"));
  EXPECT_EQ(code(metering->quota_state(ctx, "sandboxes")), "MT-404");
}

TEST_P(MeteringContract, AQuotaMadeLaterKnowsWhatWasUsed) {
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*child, "1")));
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 1)));
  EXPECT_EQ(metering->quota_state(ctx, "sandboxes")->used, 1);
  EXPECT_EQ(code(metering->reserve(ctx, ask(*parent, "sandbox_allocated"))), "MT-429");
}

TEST_P(MeteringContract, AReservationIsSettledByTheEventThatNamesIt) {
  ASSERT_TRUE(metering->set_quota(ctx, quota("tokens", *parent, 1'000, "inference_tokens")));
  const auto request = ask(*parent, "inference_tokens", "900");
  ASSERT_TRUE(metering->reserve(ctx, request));
  EXPECT_EQ(code(metering->reserve(ctx, ask(*parent, "inference_tokens", "101"))), "MT-429");
  Draft draft = keyed("k1");
  draft.properties = R"({"input_tokens":"60","model_id":"m","output_tokens":"40","provider":"p","reservation_id":")" +
                     request.id.to_string() + R"("})";
  ASSERT_TRUE(metering->ingest(ctx, event(*parent, draft)));
  const QuotaState state = metering->quota_state(ctx, "tokens").value();
  EXPECT_EQ(state.used, 100);
  EXPECT_EQ(state.held, 0);
  const auto other = ask(*parent, "inference_tokens", "900");
  ASSERT_TRUE(metering->reserve(ctx, other));
  ASSERT_TRUE(metering->release(ctx, other.id));
  EXPECT_EQ(metering->quota_state(ctx, "tokens")->held, 0);
}

TEST_P(MeteringContract, CountersComeBackAfterARestart) {
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 2)));
  ASSERT_TRUE(metering->set_threshold(ctx, {ctx.caller->text(),
                                            {"budget",
                                             BillingPeriod::month,
                                             {Decimal(1), Currency::usd()},
                                             contracts::ThresholdAction::require_approval,
                                             {}}}));
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*child, "1")));
  Draft draft = keyed("c");
  draft.cost = "0.75";
  ASSERT_TRUE(metering->ingest(ctx, event(*child, draft)));
  stop();
  start();
  EXPECT_EQ(metering->quota_state(ctx, "sandboxes")->used, 1);
  EXPECT_TRUE(metering->ingest(ctx, sandbox(*child, "2")));
  EXPECT_EQ(code(metering->reserve(ctx, ask(*child, "sandbox_allocated"))), "MT-429");
  const contracts::BillableEvent next{"payment", *child, chain_of(*child), {Decimal::literal("0.26"), Currency::usd()}};
  EXPECT_TRUE(metering->check_cost_threshold(ctx, next, BillingPeriod::month)->has_value());
  const auto total = metering->accumulated_cost(ctx, *ctx.caller, BillingPeriod::month).value();
  EXPECT_EQ(total.total.amount, Decimal::literal("0.75"));
  EXPECT_EQ(total.by_event_type.at("inference_tokens").amount, Decimal::literal("0.75"));
}

TEST_P(MeteringContract, AnotherAccountingCurrencyCountsAnew) {
  Draft draft = keyed("c");
  draft.cost = "0.75";
  ASSERT_TRUE(metering->ingest(ctx, event(*child, draft)));
  stop();
  options.currency = Currency::parse("EUR").value();
  start();
  const auto total = metering->accumulated_cost(ctx, *ctx.caller, BillingPeriod::month).value();
  EXPECT_EQ(total.total, (Money{Decimal(), options.currency})) << "dollars are no euros";
  EXPECT_TRUE(metering->verify_usage(ctx)->problems.empty());
  stop();
  options = {};
  start();
  EXPECT_EQ(metering->accumulated_cost(ctx, *ctx.caller, BillingPeriod::month)->total.amount, Decimal::literal("0.75"));
}

TEST_P(MeteringContract, TheWindowOfKeysIsAnOption) {
  stop();
  options.idempotency_window = 24h;
  start();
  const auto first = metering->ingest(ctx, event(*parent, keyed("k1"))).value();
  clock.advance(23h);
  EXPECT_EQ(code(metering->ingest(ctx, event(*parent, keyed("k1")))), "MT-409");
  clock.advance(2h);
  const auto second = metering->ingest(ctx, event(*parent, keyed("k1")));
  ASSERT_TRUE(second) << second.error().to_string();
  EXPECT_NE(second->id, first.id);
  MeteringOptions wrong;
  wrong.event_ahead_max = 48h;
  const auto refused = create_metering(*db, files, "/other", *registry, *time_, mailbox, clock, no_telemetry(), wrong);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message(), "metering.event_ahead_max: must be 0s to 1d");
}

TEST_P(MeteringContract, CostThresholdsTriggerOversight) {
  ASSERT_TRUE(metering->set_threshold(ctx, {parent->text(),
                                            {"one",
                                             BillingPeriod::transaction,
                                             {Decimal(10'000), Currency::usd()},
                                             contracts::ThresholdAction::require_approval,
                                             {"human:cfo@example.com"}}}));
  const auto spend = [&](std::int64_t amount) {
    return contracts::BillableEvent{"payment", *child, chain_of(*child), {Decimal(amount), Currency::usd()}};
  };
  EXPECT_FALSE(metering->check_cost_threshold(ctx, spend(10'000), BillingPeriod::month)->has_value());
  const auto trigger = metering->check_cost_threshold(ctx, spend(15'000), BillingPeriod::month).value();
  ASSERT_TRUE(trigger);
  EXPECT_EQ(trigger->policy_id, "one");
  EXPECT_EQ(trigger->current_cost.amount, Decimal(15'000));
  EXPECT_EQ(trigger->threshold.amount, Decimal(10'000));
  EXPECT_EQ(trigger->approvers, std::vector<std::string>{"human:cfo@example.com"});
  const auto batch = metering->check_batch(ctx, {spend(1), spend(20'000)}, BillingPeriod::month).value();
  EXPECT_FALSE(batch[0]);
  EXPECT_TRUE(batch[1]);
  const auto several = metering->check_multiple_thresholds(
      ctx, spend(500),
      {{"a", BillingPeriod::hour, {Decimal(499), Currency::usd()}, contracts::ThresholdAction::block, {}},
       {"b", BillingPeriod::day, {Decimal(500), Currency::usd()}, contracts::ThresholdAction::block, {}}});
  ASSERT_EQ(several->size(), 1u);
  EXPECT_EQ(several->front().policy_id, "a");
  // What those above it have spent counts, too.
  Draft spent = keyed("spent");
  spent.cost = "100";
  ASSERT_TRUE(metering->ingest(ctx, event(*parent, spent)));
  const auto above = metering->check_multiple_thresholds(
      ctx, spend(500),
      {{"b", BillingPeriod::day, {Decimal(599), Currency::usd()}, contracts::ThresholdAction::block, {}}});
  EXPECT_EQ(above->size(), 1u);
  // Limits of money are in one currency. What costs another one is a fact that those of single uses do not see, ...
  const contracts::BillableEvent euros{"payment", *child, {}, {Decimal(20'000), Currency::parse("EUR").value()}};
  EXPECT_FALSE(metering->check_cost_threshold(ctx, euros, BillingPeriod::month)->has_value());
  // ... and what those of a period cannot add up is not within them.
  ASSERT_TRUE(metering->set_threshold(ctx, {parent->text(),
                                            {"monthly",
                                             BillingPeriod::month,
                                             {Decimal(1'000'000), Currency::usd()},
                                             contracts::ThresholdAction::require_approval,
                                             {}}}));
  const auto blind = metering->check_cost_threshold(ctx, euros, BillingPeriod::month).value();
  ASSERT_TRUE(blind);
  EXPECT_EQ(blind->policy_id, "monthly");
  EXPECT_EQ(blind->current_cost, euros.cost);
  EXPECT_FALSE(metering->check_cost_threshold(ctx, euros, BillingPeriod::day)->has_value()) << "there is none";
}

TEST_P(MeteringContract, AnActionThatAHumanWasAskedForIsNotAskedForAgain) {
  ASSERT_TRUE(metering->set_threshold(ctx, {child->text(),
                                            {"dear",
                                             BillingPeriod::transaction,
                                             {Decimal(10), Currency::usd()},
                                             contracts::ThresholdAction::require_approval,
                                             {}}}));
  const auto pay = [&](std::string key, const std::string& hold) {
    Draft draft = keyed(std::move(key));
    draft.type = "action";
    draft.properties = R"({"action":"pay"})";
    if (!hold.empty()) draft.properties = fmt::format(R"({{"action":"pay","reservation_id":"{}"}})", hold);
    draft.units = "1";
    draft.cost = "20";
    const auto taken = metering->ingest(ctx, event(*child, draft));
    EXPECT_TRUE(taken) << taken.error().to_string();
  };
  const auto notices = [&] { return rows("SELECT count(*) FROM metering_notices"); };
  auto spend = ask(*child, "action", "1", "20");
  spend.properties = {{"action", "pay"}};
  ASSERT_TRUE(metering->reserve(ctx, spend));
  pay("1", spend.id.to_string());
  EXPECT_EQ(notices(), 0);
  pay("2", "");
  EXPECT_EQ(notices(), 1) << "nobody was asked for this one";
}

TEST_P(MeteringContract, AnApproverMayRaiseACostThreshold) {
  with_bus();
  ASSERT_FALSE(HasFatalFailure());
  ASSERT_TRUE(metering->set_threshold(
      ctx, {child->text(),
            {"month", BillingPeriod::month, {Decimal(10), Currency::usd()}, contracts::ThresholdAction::block, {}}}));
  const Identity oversight = Identity::service("oversight").value();
  ASSERT_TRUE(registry->ensure_service(Context::of_service(oversight), oversight));
  const auto decide = [&](const std::string& response) {
    const contracts::OversightDecisionEvent decision{
        RequestId::fresh(clock.now()), {},      contracts::ApprovalState::approved,
        "human:cfo@example.com",       "",      "cost.continue",
        R"({"threshold_id":"month"})", response};
    EventEnvelope envelope{std::string(contracts::OversightDecisionEvent::event_type),
                           EventId::fresh(clock.now()),
                           *child,
                           {},
                           time_->now(),
                           decision.to_json().value(),
                           {}};
    envelope.signature =
        registry->sign(ctx, oversight, as_bytes(envelope.signed_bytes().value()), event_signature_context).value();
    const std::string body = envelope.to_json().value();
    ASSERT_TRUE(db->transaction(ctx, [&](sql::Tx& tx) {
      return bus::publish(tx, ctx, contracts::OversightDecisionEvent::subject, envelope.event_id.to_string(), body);
    }));
    ASSERT_TRUE(carrier->wait_until_idle(30s));
  };
  const auto limit = [&] { return metering->list_thresholds(ctx, child->text())->at(0).threshold.limit.amount; };
  EXPECT_EQ(code(metering->reserve(ctx, ask(*child, "action", "1", "20"))), "MT-429");
  decide("{}");
  EXPECT_EQ(limit(), Decimal(10)) << "without a new limit nothing changes";
  decide(R"({"new_limit":"50.5"})");
  EXPECT_EQ(limit(), Decimal::literal("50.5"));
  EXPECT_TRUE(metering->reserve(ctx, ask(*child, "action", "1", "20")));
  decide(R"({"new_limit":"20"})");
  EXPECT_EQ(limit(), Decimal::literal("50.5")) << "it is raised, never lowered";
}

TEST_P(MeteringContract, MessagesAreTrackedOnceAndLimited) {
  ASSERT_TRUE(metering->set_quota(ctx, quota("messages", *parent, 1, "message_sent")));
  const contracts::MessageBillableEvent sent{"msg-1",
                                             *parent,
                                             chain_of(*parent),
                                             contracts::MessageEventType::message_sent,
                                             time_->now(),
                                             512,
                                             1,
                                             contracts::MessagePriority::normal};
  EXPECT_TRUE(metering->check_message_quota(ctx, *parent, contracts::MessageEventType::message_sent)->allowed);
  const auto first = metering->track_message_event(ctx, sent);
  ASSERT_TRUE(first) << first.error().to_string();
  EXPECT_EQ(metering->track_message_event(ctx, sent).value(), *first);
  auto changed = sent;
  changed.message_size_bytes = 513;
  EXPECT_EQ(code(metering->track_message_event(ctx, changed)), "MT-409");
  const auto decision = metering->check_message_quota(ctx, *parent, contracts::MessageEventType::message_sent).value();
  EXPECT_FALSE(decision.allowed);
  EXPECT_EQ(decision.used, 1);
}

TEST_P(MeteringContract, AnHourOfUnusualSpendingIsToldOnce) {
  with_bus();
  ASSERT_FALSE(HasFatalFailure());
  std::mutex mutex;
  std::vector<EventEnvelope> notices;
  ASSERT_TRUE(carrier->subscribe("test", "metering.thresholds", [&](const bus::BusMessage& message) -> Result<> {
    const std::scoped_lock lock(mutex);
    notices.push_back(EventEnvelope::from_json(message.body).value());
    return {};
  }));
  int events = 0;
  const auto spend = [&](std::string cost) {
    Draft draft = keyed(fmt::format("k{}", events++));
    draft.cost = std::move(cost);
    const auto taken = metering->ingest(ctx, event(*child, draft));
    EXPECT_TRUE(taken) << taken.error().to_string();
  };
  for (int hour = 0; hour < 30; ++hour) {
    spend("1");
    clock.advance(1h);
  }
  const std::int64_t before = rows("SELECT count(*) FROM audit_pending");
  for (int use = 0; use < 4; ++use) spend("2");
  EXPECT_EQ(rows("SELECT count(*) FROM audit_pending"), before + 2) << "the anomaly, and metering's keys to sign with";
  ASSERT_TRUE(carrier->wait_until_idle(30s));
  ASSERT_EQ(notices.size(), 1u) << "not with every use, and not for those above it";
  EXPECT_EQ(notices[0].agent, *child);
  EXPECT_TRUE(registry->verify(ctx, Identity::service("metering").value(), as_bytes(notices[0].signed_bytes().value()),
                               *notices[0].signature, event_signature_context));
  const auto notice = contracts::CostThresholdExceededEvent::from_json(notices[0].payload).value();
  EXPECT_EQ(notice.kind, "cost_anomaly");
  EXPECT_EQ(notice.current, "4");
  EXPECT_EQ(notice.expected, "1");
  EXPECT_EQ(notice.confidence, "1.0000");
  clock.advance(1h);
  for (int use = 0; use < 20; ++use) spend("2");
  ASSERT_TRUE(carrier->wait_until_idle(30s));
  EXPECT_EQ(notices.size(), 2u) << "another hour";
}

TEST_P(MeteringContract, LimitsAreToldOnTheBusAndRaisedByAnApprovedDecision) {
  with_bus();
  ASSERT_FALSE(HasFatalFailure());
  std::mutex mutex;
  std::vector<EventEnvelope> notices;
  ASSERT_TRUE(carrier->subscribe("test", "metering.thresholds", [&](const bus::BusMessage& message) -> Result<> {
    const std::scoped_lock lock(mutex);
    notices.push_back(EventEnvelope::from_json(message.body).value());
    return {};
  }));
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 3)));
  for (int i = 0; i < 3; ++i) {
    const std::string usage = sandbox(*child, fmt::format("s{}", i));  // signing has transactions of its own
    EXPECT_TRUE(db->transaction(ctx, [&](sql::Tx& tx) {
      return bus::publish(tx, ctx, "metering.events.runtime", fmt::format("m{}", i), usage);
    }));
  }
  ASSERT_TRUE(carrier->wait_until_idle(30s));
  ASSERT_TRUE(carrier->wait_until_idle(30s));  // the notice itself, which the first wait has caused
  ASSERT_EQ(notices.size(), 1u);
  const auto notice = contracts::CostThresholdExceededEvent::from_json(notices[0].payload).value();
  EXPECT_EQ(notice.kind, "quota_breach");
  EXPECT_EQ(notice.threshold_id, "sandboxes");
  EXPECT_EQ(notice.current, "3");
  EXPECT_TRUE(registry->verify(ctx, Identity::service("metering").value(), as_bytes(notices[0].signed_bytes().value()),
                               *notices[0].signature, event_signature_context));
  EXPECT_EQ(code(metering->reserve(ctx, ask(*child, "sandbox_allocated"))), "MT-429");

  const Identity oversight = Identity::service("oversight").value();
  ASSERT_TRUE(registry->ensure_service(Context::of_service(oversight), oversight));
  const contracts::OversightDecisionEvent decision{RequestId::fresh(clock.now()),
                                                   {},
                                                   contracts::ApprovalState::approved,
                                                   "human:cfo@example.com",
                                                   "",
                                                   "quota.raise",
                                                   R"({"current":"3","limit":"3","threshold_id":"sandboxes"})",
                                                   R"({"new_limit":"5"})"};
  const auto publish = [&](const Identity& signer, std::string id) {
    EventEnvelope envelope{"oversight_decision", EventId::fresh(clock.now()), *child, chain_of(*child),
                           time_->now(),         decision.to_json().value(),  {}};
    envelope.signature = registry
                             ->sign(Context::of_service(signer), signer, as_bytes(envelope.signed_bytes().value()),
                                    event_signature_context)
                             .value();
    ASSERT_TRUE(db->transaction(ctx, [&](sql::Tx& tx) {
      return bus::publish(tx, ctx, "oversight.decisions", id, envelope.to_json().value());
    }));
    ASSERT_TRUE(carrier->wait_until_idle(30s));
  };
  publish(*ctx.caller, "forged");
  EXPECT_EQ(metering->quota_state(ctx, "sandboxes")->limit, 3);
  publish(oversight, "real");
  EXPECT_EQ(metering->quota_state(ctx, "sandboxes")->limit, 5);
  EXPECT_TRUE(metering->reserve(ctx, ask(*child, "sandbox_allocated")));
}

TEST_P(MeteringContract, WhatTheBusBringsInVainWaitsForAHuman) {
  with_bus();
  ASSERT_FALSE(HasFatalFailure());
  std::string forged = event(*parent, keyed("b"));
  forged.replace(forged.find("\"100\""), 5, "\"999\"");
  ASSERT_TRUE(db->transaction(
      ctx, [&](sql::Tx& tx) { return bus::publish(tx, ctx, "metering.events.runtime", "m1", forged); }));
  ASSERT_TRUE(carrier->wait_until_idle(30s));
  const auto rejected = metering->rejected_events(ctx, 10).value();
  ASSERT_EQ(rejected.size(), 1u);
  EXPECT_EQ(rejected[0].body, forged);
  EXPECT_NE(rejected[0].error.find("MT-401"), std::string::npos);
}

TEST_P(MeteringContract, TheQuotaEnforcerRefusesInsideAuthorization) {
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 1)));
  authz::CheckRequest request{*child, chain_of(*child), "sandbox.spawn", {"Image", "python"}, {}, {}, {}};
  EXPECT_FALSE(local->quota_enforcer().evaluate(ctx, request)->has_value());
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*child, "1")));
  const auto decision = local->quota_enforcer().evaluate(ctx, request).value();
  ASSERT_TRUE(decision);
  const auto& exceeded = std::get<authz::QuotaExceeded>(*decision);
  EXPECT_EQ(exceeded.quota_id, "sandboxes");
  EXPECT_EQ(exceeded.limit, 1);
  EXPECT_EQ(exceeded.used, 1);
  EXPECT_EQ(exceeded.reset_at, from_rfc3339("2026-12-01T00:00:00Z").value());
}

TEST_P(MeteringContract, OrganizationsDoNotSeeEachOther) {
  Context other = ctx;
  other.org = "other";
  const auto client = wire_ ? create_metering_client(wire_->connect("other")) : nullptr;
  Metering& theirs = client ? *client : *metering;
  const Identity service = *ctx.caller;
  ASSERT_TRUE(registry->ensure_service(other, service));
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", service, 0)));
  ASSERT_TRUE(metering->put_plan(ctx, plan_from_json(plan_text).value()));
  EXPECT_TRUE(theirs.list_quotas(other, "")->empty());
  EXPECT_TRUE(theirs.list_plans(other)->empty());
  ASSERT_TRUE(theirs.set_quota(other, quota("all", service, 1)));
  const auto held = ask(service, "sandbox_allocated");
  EXPECT_TRUE(theirs.reserve(other, held));
  EXPECT_EQ(code(metering->reserve(ctx, ask(service, "sandbox_allocated"))), "MT-429");
  EXPECT_EQ(code(theirs.reserve(other, ask(*parent, "sandbox_allocated"))), "MT-404") << "not registered there";
  EXPECT_EQ(code(theirs.reserve(other, ask(service, "sandbox_allocated"))), "MT-429");
  ASSERT_TRUE(metering->release(ctx, held.id));
  EXPECT_EQ(code(theirs.reserve(other, ask(service, "sandbox_allocated"))), "MT-429") << "it is not ours to release";
  ASSERT_TRUE(theirs.release(other, held.id));
  EXPECT_EQ(code(theirs.reserve(other, ask(service, "sandbox_allocated"))), "ok");
}

TEST_P(MeteringContract, EveryChangeIsAudited) {
  const std::int64_t before = rows("SELECT count(*) FROM audit_pending");
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 10)));
  ASSERT_TRUE(metering->put_plan(ctx, plan_from_json(plan_text).value()));
  EXPECT_EQ(rows("SELECT count(*) FROM audit_pending"), before + 2);
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 10)));
  EXPECT_EQ(rows("SELECT count(*) FROM audit_pending"), before + 2) << "nothing changed";
}

TEST_P(MeteringContract, TheAuditLogVouchesForTheUsageLog) {
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*parent, "1")));
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*parent, "2")));
  const std::int64_t before = rows("SELECT count(*) FROM audit_pending");
  ASSERT_TRUE(local->tick());
  EXPECT_EQ(rows("SELECT count(*) FROM audit_pending"), before + 1);
  ASSERT_TRUE(local->tick());
  EXPECT_EQ(rows("SELECT count(*) FROM audit_pending"), before + 1) << "nothing new was used";
}

TEST_P(MeteringContract, WhatWasUsedIsKnownAfterAStart) {
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 10)));
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*child, "1")));
  stop();
  start();
  EXPECT_EQ(metering->quota_state(ctx, "sandboxes")->used, 1);
  EXPECT_EQ(metering->ingest(ctx, sandbox(*child, "2"))->duplicate, false);
  EXPECT_EQ(metering->quota_state(ctx, "sandboxes")->used, 2);
  const auto usage = metering->usage(ctx, {.subject = parent->text()}).value().rows;
  ASSERT_EQ(usage.size(), 1u);
  EXPECT_EQ(usage[0].events, 2);
}

TEST_P(MeteringContract, ADamagedCheckpointIsNoLoss) {
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 10)));
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*child, "1")));
  stop();
  std::size_t damaged = 0;
  const auto names = files.list("/usage").value();
  for (const std::string& name : names) {
    if (!name.ends_with(".state")) continue;
    files.flip_bit("/usage/" + name, 8 * 50);
    ++damaged;
  }
  EXPECT_EQ(damaged, 1u);
  start();
  EXPECT_EQ(metering->quota_state(ctx, "sandboxes")->used, 1);
}

TEST_P(MeteringContract, ANoticeThatCouldNotBeGivenIsGivenAfterAStart) {
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 1)));
  const auto given = [&] { return rows("SELECT count(*) FROM metering_notices"); };
  ASSERT_TRUE(db->transaction(ctx, [](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("ALTER TABLE metering_notices RENAME TO metering_notices_away"));
    return {};
  }));
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*parent, "1"))) << "the event is durable, whatever becomes of the notice";
  stop();
  db = database_.open();
  ASSERT_TRUE(db->transaction(ctx, [](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("ALTER TABLE metering_notices_away RENAME TO metering_notices"));
    return {};
  }));
  db.reset();
  start();
  EXPECT_EQ(given(), 0);
  ASSERT_TRUE(local->tick());
  EXPECT_EQ(given(), 1);
}

TEST_P(MeteringContract, AQuotaThatIsYoungerThanTheCheckpointCountsWhatWasBefore) {
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*child, "1")));
  stop();
  start();
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*child, "2")));
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 10)));
  EXPECT_EQ(metering->quota_state(ctx, "sandboxes")->used, 2);
  files.crash();  // before the next checkpoint
  stop();
  start();
  EXPECT_EQ(metering->quota_state(ctx, "sandboxes")->used, 2);
}

TEST_P(MeteringContract, ABatchOfRecordsIsSignedAsAWhole) {
  const Identity reporter = Identity::service("gateway").value();
  ASSERT_TRUE(registry->ensure_service(ctx, reporter));
  RecordBatch batch;
  const auto add = [&](const Identity& who, std::string_view key, std::string_view units) {
    Bytes bytes;
    encode_record({.bytes = {},
                   .agent = who.text(),
                   .type = "pages_read",
                   .key = key,
                   .time = clock.now(),
                   .units = units,
                   .properties = {}},
                  bytes);
    batch.records.emplace_back(as_text(bytes));
  };
  const auto sign = [&] {
    std::vector<Hash256> leaves;
    for (const std::string& record : batch.records) leaves.push_back(record_leaf(as_bytes(record)));
    const std::string bytes = batch_signed_bytes(leaves.size(), merkle_root(leaves));
    batch.signature =
        registry->sign(Context::of_service(reporter), reporter, as_bytes(bytes), batch_signature_context).value();
  };
  batch.reporter = reporter.text();
  add(*child, "1", "3");
  add(*parent, "2", "0.5");
  add(Identity::agent(ByteArray<32>{9}), "3", "1");
  add(*child, "1", "3");
  add(*child, "1", "4");
  batch.records.emplace_back("no record");
  EXPECT_EQ(code(metering->ingest_records(ctx, batch)), "MT-401");
  sign();
  const auto answers = metering->ingest_records(ctx, batch).value();
  ASSERT_EQ(answers.size(), 6u);
  EXPECT_FALSE(answers[0]->duplicate);
  EXPECT_FALSE(answers[1]->duplicate);
  EXPECT_EQ(code(answers[2]), "MT-404");
  EXPECT_EQ(answers[3]->id, answers[0]->id);
  EXPECT_TRUE(answers[3]->duplicate);
  EXPECT_EQ(code(answers[4]), "MT-409");
  EXPECT_EQ(code(answers[5]), "MT-400");
  const auto usage = metering->usage(ctx, {.subject = parent->text(), .event_type = "pages_read"}).value().rows;
  ASSERT_EQ(usage.size(), 1u);
  EXPECT_EQ(usage[0].events, 2);
  EXPECT_EQ(usage[0].units, Decimal::literal("3.5"));
  ASSERT_TRUE(metering->set_quota(ctx, quota("pages", *parent, 100, "pages_read")));
  const UsageVerification verified = metering->verify_usage(ctx).value();
  EXPECT_EQ(verified.events, 2u);
  EXPECT_EQ(verified.batches, 1u);
  EXPECT_GT(verified.counters, 4u);
  EXPECT_EQ(verified.problems, std::vector<std::string>());
  batch.records.pop_back();
  EXPECT_EQ(code(metering->ingest_records(ctx, batch)), "MT-401") << "it was not this that was signed";
}

TEST_P(MeteringContract, VerifyingLooksAtEnvelopesThresholdsSessionsAndTypes) {
  Quota each = quota("session-max", *child, 1'000'000'000, "");
  each.subject = "session:*";
  each.measure = Measure::cost;
  each.window = WindowKind::lifetime;
  ASSERT_TRUE(metering->set_quota(ctx, each));
  ASSERT_TRUE(metering->set_threshold(
      ctx, {parent->text(),
            {"ten", BillingPeriod::month, {Decimal(10), Currency::usd()}, contracts::ThresholdAction::block, {}}}));
  ASSERT_TRUE(metering->ingest_records(ctx, {.records = {record(*child, "1")}}));
  const std::uint64_t counters = metering->verify_usage(ctx)->counters;
  Draft draft = keyed("e1");
  draft.cost = "0.6";
  ASSERT_TRUE(metering->ingest(ctx, event(*child, draft)));
  draft = keyed("e2");
  draft.type = "sandbox_allocated";
  draft.properties = R"({"runtime_class":"runsc","sandbox_id":"sb-1"})";
  draft.cost = "0.2";
  ASSERT_TRUE(metering->ingest(ctx, event(*child, draft)));
  const UsageVerification found = metering->verify_usage(ctx).value();
  EXPECT_EQ(found.envelopes, 2u);
  EXPECT_EQ(found.problems, std::vector<std::string>());
  EXPECT_GE(found.counters, counters + 5) << "those of the session are new";
  // What vouches for an event is the agent's key: without it nothing does.
  stop();
  db = database_.open();
  ASSERT_TRUE(db->transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("DELETE FROM nhi_keys WHERE identity = $1", {child->text()}));
    return {};
  }));
  db.reset();
  start();
  const auto problems = metering->verify_usage(ctx)->problems;
  ASSERT_EQ(problems.size(), 2u);
  EXPECT_NE(problems[0].find("its signature does not verify"), std::string::npos) << problems[0];
}

TEST_P(MeteringContract, ADefaultThatIsPutAfterUseVerifies) {
  ASSERT_TRUE(metering->ingest_records(ctx, {.records = {record(*child, "1")}}));
  Quota each = quota("each", *child, 100, "t");
  each.subject = "agent:*";
  ASSERT_TRUE(metering->set_quota(ctx, each));
  ASSERT_TRUE(metering->ingest_records(ctx, {.records = {record(*child, "2")}}));
  EXPECT_EQ(metering->quota_state(ctx, "each", child->text())->used, 1);
  EXPECT_EQ(metering->verify_usage(ctx)->problems, std::vector<std::string>());
}

TEST_P(MeteringContract, AnAgentReportsForItselfAndThoseBelowIt) {
  const Identity other = *agent("other", *ctx.caller);
  RecordBatch batch{.records = {record(*parent, "1"), record(*child, "2"), record(other, "3")},
                    .reporter = parent->text()};
  std::vector<Hash256> leaves;
  for (const std::string& one : batch.records) leaves.push_back(record_leaf(as_bytes(one)));
  batch.signature = registry
                        ->sign(ctx, *parent, as_bytes(batch_signed_bytes(leaves.size(), merkle_root(leaves))),
                               batch_signature_context)
                        .value();
  const auto taken = metering->ingest_records(ctx, batch).value();
  EXPECT_TRUE(taken[0]) << taken[0].error().to_string();
  EXPECT_TRUE(taken[1]) << taken[1].error().to_string();
  EXPECT_EQ(code(taken[2]), "MT-403");
  EXPECT_EQ(metering->verify_usage(ctx)->problems, std::vector<std::string>());
}

TEST_P(MeteringContract, BatchesOfAnyOrganizationAndOfReportersWhoseTimeIsOverVerify) {
  Context other = Context::of_service(*ctx.caller);
  other.org = "other";
  ASSERT_TRUE(registry->ensure_service(other, *other.caller));
  for (const Context& of : {ctx, other}) {
    const Identity reporter = registry->register_agent(of, {.name = "reporter", .valid_for = 1h})->identity;
    ASSERT_TRUE(registry->create_delegation(of, {*of.caller, reporter, {}, {"*"}, clock.now() + 1h, {}, {}, {}, {}}));
    RecordBatch batch{.records = {record(reporter, "1"), "no record"}, .reporter = reporter.text()};
    std::vector<Hash256> leaves;
    for (const std::string& one : batch.records) leaves.push_back(record_leaf(as_bytes(one)));
    batch.signature = registry
                          ->sign(of, reporter, as_bytes(batch_signed_bytes(leaves.size(), merkle_root(leaves))),
                                 batch_signature_context)
                          .value();
    const auto taken = local->ingest_records(of, batch).value();
    EXPECT_TRUE(taken[0]) << taken[0].error().to_string();
  }
  clock.advance(2h);
  const UsageVerification verified = metering->verify_usage(ctx).value();
  EXPECT_EQ(verified.batches, 2u);
  EXPECT_EQ(verified.problems, std::vector<std::string>());
}

TEST_P(MeteringContract, AStreamAnswersEveryBatchInOrder) {
  std::vector<RecordBatch> batches;
  for (int b = 0; b < 20; ++b) {
    RecordBatch batch;
    for (int i = 0; i < 5; ++i) batch.records.push_back(record(i == 3 ? *parent : *child, fmt::format("{}-{}", b, i)));
    batches.push_back(std::move(batch));
  }
  batches[4].records[2] = batches[3].records[2];
  batches[7].reporter = child->text();  // not the caller, and not signed
  batches[9].records[1] = "no record";
  for (const bool again : {false, true}) {
    std::size_t next = 0;
    std::vector<Result<std::vector<Result<Ingested>>>> answers;
    const auto ended = metering->ingest_stream(
        ctx, [&] { return next < batches.size() ? std::optional(batches[next++]) : std::nullopt; },
        [&](Result<std::vector<Result<Ingested>>> answer) { answers.push_back(std::move(answer)); });
    ASSERT_TRUE(ended) << ended.error().to_string();
    ASSERT_EQ(answers.size(), batches.size());
    for (std::size_t b = 0; b < answers.size(); ++b) {
      if (b == 7) {
        EXPECT_EQ(code(answers[b]), "MT-401");
        continue;
      }
      ASSERT_TRUE(answers[b]) << b;
      ASSERT_EQ(answers[b]->size(), 5u);
      for (std::size_t i = 0; i < 5; ++i) {
        if (b == 9 && i == 1) {
          EXPECT_EQ(code((*answers[b])[i]), "MT-400");
        } else if (i != 2 || (b != 3 && b != 4)) {
          EXPECT_EQ((*answers[b])[i]->duplicate, again) << b << ", " << i;
        }
      }
    }
    EXPECT_EQ((*answers[3])[2]->id, (*answers[4])[2]->id);
    if (!again) EXPECT_NE((*answers[3])[2]->duplicate, (*answers[4])[2]->duplicate) << "one of them was first";
  }
  EXPECT_EQ(metering->usage(ctx, {.group_by = {}}).value().rows.at(0).events, 19 * 5 - 2);
}

TEST_P(MeteringContract, RepeatingWhatABrokenStreamLeftUnansweredTakesNothingTwice) {
  if (GetParam() != Where::grpc) GTEST_SKIP() << "only a connection breaks";
  std::vector<RecordBatch> batches(200);
  for (std::size_t b = 0; b < batches.size(); ++b) {
    for (int i = 0; i < 10; ++i) batches[b].records.push_back(record(*child, fmt::format("{}-{}", b, i)));
  }
  std::size_t answered = 0;
  const auto stream = [&](std::size_t from, std::size_t pause_at) {
    std::size_t next = from;
    return metering->ingest_stream(
        ctx, [&] { return next < batches.size() ? std::optional(batches[next++]) : std::nullopt; },
        [&](const Result<std::vector<Result<Ingested>>>& answer) {
          if (answer && ++answered == pause_at) wire_.reset();
        });
  };
  EXPECT_FALSE(stream(0, 20));
  ASSERT_GE(answered, 20u);
  ASSERT_LT(answered, batches.size());
  stop();
  start();
  EXPECT_TRUE(stream(answered, 0));
  EXPECT_EQ(answered, batches.size());
  EXPECT_EQ(metering->usage(ctx, {.group_by = {}}).value().rows.at(0).events, 2'000);
  EXPECT_EQ(metering->verify_usage(ctx).value().problems, std::vector<std::string>());
}

TEST_P(MeteringContract, ASessionAtItsMaximumIsRefusedWhileAnotherGoesOn) {
  Quota each = quota("session-max", *child, 1'000'000'000, "");
  each.subject = "session:*";
  each.measure = Measure::cost;
  each.window = WindowKind::lifetime;
  ASSERT_TRUE(metering->set_quota(ctx, each));
  const auto spend = [&](std::map<std::string, std::string> properties) {
    contracts::SpendRequest request = ask(*child, "inference_tokens", "1", "0.6");
    request.properties = std::move(properties);
    const auto held = metering->reserve(ctx, request);
    return held ? request.id.to_string() : held.error().code();
  };
  const std::string hold = spend({{"session", "s-1"}, {"sandbox_id", "sb-1"}});
  Draft draft = keyed("1");
  draft.cost = "0.6";
  draft.properties = fmt::format(
      R"({{"input_tokens":"60","model_id":"m","output_tokens":"40","provider":"p","reservation_id":"{}","session":"s-1"}})",
      hold);
  ASSERT_TRUE(metering->ingest(ctx, event(*child, draft)));
  EXPECT_EQ(spend({{"session", "s-1"}}), "MT-429");
  EXPECT_NE(spend({{"session", "s-2"}}), "MT-429");
  EXPECT_NE(spend({{"sandbox_id", "sb-1"}}), "MT-429") << "a sandbox is a session of its own";
  EXPECT_EQ(spend({{"sandbox_id", "sb-1"}}), "MT-429");
  EXPECT_NE(spend({}), "MT-429") << "no session";
  EXPECT_EQ(metering->quota_state(ctx, "session-max", "session:s-1")->used, 600'000'000);
  EXPECT_EQ(metering->verify_usage(ctx).value().problems, std::vector<std::string>());

  stop();
  start();
  EXPECT_EQ(spend({{"session", "s-1"}}), "MT-429") << "what it used is in the log";
  each.id = "session-1";
  each.subject = "session:s-1";
  each.limit = 1'500'000'000;
  ASSERT_TRUE(metering->set_quota(ctx, each));
  EXPECT_EQ(metering->quota_state(ctx, "session-1")->used, 600'000'000) << "counts from what is there";
  EXPECT_NE(spend({{"session", "s-1"}}), "MT-429") << "one of its own takes the default's place";
}

TEST_P(MeteringContract, ABudgetOfMoneyStopsCallsOfModelsBeforeTheyAreMade) {
  ASSERT_TRUE(
      metering->import_prices(ctx, R"({"p/m":{"input_cost_per_token":0.001,"output_cost_per_token":0.02}})", {}));
  Quota budget = quota("budget", *parent, 1'000'000'000, "");
  budget.measure = Measure::cost;
  ASSERT_TRUE(metering->set_quota(ctx, budget));
  const auto call = [&](std::string_view input, std::string_view output) {
    auto request = ask(*child, "inference_tokens", "1000");
    request.properties = {
        {"model_id", "m"}, {"input_tokens", std::string(input)}, {"output_tokens", std::string(output)}};
    return request;
  };
  EXPECT_EQ(code(metering->reserve(ctx, call("1000", "10"))), "MT-429") << "1.20 of 1";
  auto unstated = ask(*child, "inference_tokens", "100");
  unstated.properties = {{"model_id", "m"}};
  EXPECT_EQ(code(metering->reserve(ctx, unstated)), "MT-429") << "all of it may be output";
  ASSERT_TRUE(metering->reserve(ctx, call("500", "10")));
  EXPECT_EQ(metering->quota_state(ctx, "budget")->held, 700'000'000);
  EXPECT_EQ(code(metering->reserve(ctx, call("301", "0"))), "MT-429");
}

TEST_P(MeteringContract, WhereABudgetIsUsedUpNothingMoreIsSpentWithoutSayingItsCost) {
  Quota budget = quota("budget", *parent, 1'000'000'000, "");
  budget.measure = Measure::cost;
  ASSERT_TRUE(metering->set_quota(ctx, budget));
  const authz::CheckRequest call{*child, chain_of(*child), "inference.call", {"Model", "m"}, {}, {}, {}};
  const authz::CheckRequest look{*child, chain_of(*child), "usage.read", {"Usage", "all"}, {}, {}, {}};
  EXPECT_TRUE(metering->reserve(ctx, ask(*child, "sandbox_allocated")));
  EXPECT_FALSE(local->quota_enforcer().evaluate(ctx, call)->has_value());
  Draft draft = keyed("1");
  draft.cost = "1";
  ASSERT_TRUE(metering->ingest(ctx, event(*child, draft)));
  const auto refused = metering->reserve(ctx, ask(*child, "sandbox_allocated"));
  EXPECT_EQ(code(refused), "MT-429");
  EXPECT_EQ(refused.error().message(), "monthly budget `budget` exceeded (1 of 1)");
  EXPECT_FALSE(metering->check_quota(ctx, *child, "inference_tokens", 1)->allowed);
  EXPECT_TRUE(local->quota_enforcer().evaluate(ctx, call)->has_value());
  EXPECT_FALSE(local->quota_enforcer().evaluate(ctx, look)->has_value()) << "what costs nothing goes on";
}

TEST_P(MeteringContract, ACostInAnotherCurrencyPassesNoLimitOfMoney) {
  const auto euros = [&](const Identity& who) {
    auto request = ask(who, "payment");
    request.cost = {Decimal(1'000'000), Currency::parse("EUR").value()};
    return request;
  };
  const Identity other = *agent("other", *ctx.caller);
  ASSERT_TRUE(metering->set_threshold(
      ctx, {parent->text(),
            {"ten", BillingPeriod::month, {Decimal(10), Currency::usd()}, contracts::ThresholdAction::block, {}}}));
  const auto refused = metering->reserve(ctx, euros(*child));
  EXPECT_EQ(code(refused), "MT-400");
  EXPECT_EQ(refused.error().message(), "cost: must be in USD, which the limits that apply are in");
  EXPECT_TRUE(metering->reserve(ctx, euros(other))) << "nothing limits its money";
  Quota each = quota("each", *parent, 10'000'000'000, "payment");
  each.subject = "agent:*";
  each.measure = Measure::cost;
  ASSERT_TRUE(metering->set_quota(ctx, each));
  EXPECT_EQ(code(metering->reserve(ctx, euros(other))), "MT-400");
}

TEST_P(MeteringContract, EventsThatArriveTogetherAreAnsweredEachByItself) {
  with_bus();
  std::vector<std::string> bodies;
  for (int i = 0; i < 60; ++i) bodies.push_back(sandbox(i % 2 == 0 ? *child : *parent, fmt::format("k-{}", i % 50)));
  bodies[20] = "{}";
  bodies[58] = "[]";
  ASSERT_TRUE(db->transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    for (std::size_t i = 0; i < bodies.size(); ++i) {
      CRETO_TRY(bus::publish(tx, ctx, "metering.events.runtime", fmt::format("m-{}", i), bodies[i]));
    }
    return {};
  }));
  ASSERT_TRUE(carrier->wait_until_idle(60s));
  const auto rejected = metering->rejected_events(ctx, 100).value();
  // A repetition of a key with another envelope is another content: 50 to 59 but for the one that is no event.
  EXPECT_EQ(rejected.size(), 2u + 9u);
  EXPECT_EQ(metering->usage(ctx, {.group_by = {}}).value().rows.at(0).events, 49);
}

TEST_P(MeteringContract, AnEventThatWasGivenUpCanBeTriedAgainOrDropped) {
  with_bus();
  EXPECT_EQ(code(metering->replay_rejected(ctx, "nothing")), "MT-404");
  EXPECT_EQ(code(metering->drop_rejected(ctx, "nothing")), "MT-404");
  const std::string broken = "{}";
  ASSERT_TRUE(db->transaction(
      ctx, [&](sql::Tx& tx) { return bus::publish(tx, ctx, "metering.events.runtime", "broken-1", broken); }));
  ASSERT_TRUE(carrier->wait_until_idle(30s));
  const auto waiting = metering->rejected_events(ctx, 10).value();
  ASSERT_EQ(waiting.size(), 1u);
  EXPECT_EQ(waiting[0].body, broken);
  EXPECT_EQ(code(metering->replay_rejected(ctx, waiting[0].id)), "MT-400");
  EXPECT_EQ(metering->rejected_events(ctx, 10)->size(), 1u) << "it stays until it is taken";
  ASSERT_TRUE(metering->drop_rejected(ctx, waiting[0].id));
  EXPECT_TRUE(metering->rejected_events(ctx, 10)->empty());
}

TEST_P(MeteringContract, AServiceMayReportWithoutASignatureAndAnAgentMayNot) {
  RecordBatch batch;
  batch.records.push_back(record(*child, "k"));
  EXPECT_TRUE(metering->ingest_records(ctx, batch).value().front());
  const Context as_agent = Context::of(*child, chain_of(*child));
  EXPECT_EQ(code(local->ingest_records(as_agent, batch)), "MT-401");
}

// --- corrections

struct Report {
  std::string key;
  std::string units = "1";
  std::string cost{};
  std::string replaces{};
  std::string voids{};
};
std::string record_text(const Identity& who, const Report& report, Instant when) {
  Bytes bytes;
  encode_record({.bytes = {},
                 .agent = who.text(),
                 .type = report.voids.empty() ? "pages" : void_type,
                 .key = report.key,
                 .time = when,
                 .units = report.units,
                 .cost = report.cost,
                 .currency = report.cost.empty() ? "" : "USD",
                 .replaces = report.replaces,
                 .voids = report.voids,
                 .properties = {}},
                bytes);
  return std::string(as_text(bytes));
}

TEST_P(MeteringContract, AVoidTakesAnEventOutAndAReplacementPutsAnotherInItsPlace) {
  const auto take = [&](const Identity& who, const Report& report) {
    return metering->ingest_records(ctx, {.records = {record_text(who, report, clock.now())}}).value().front();
  };
  Quota pages = quota("pages", *child, 1'000, "pages");
  pages.window = WindowKind::day;
  ASSERT_TRUE(metering->set_quota(ctx, pages));
  const auto expect = [&](std::int64_t events, std::string_view units, std::string_view cost, std::int64_t used) {
    const UsageReport report = metering->usage(ctx, {.subject = child->text(), .group_by = {}}).value();
    ASSERT_EQ(report.rows.size(), events == 0 ? 0u : 1u);
    if (events > 0) {
      EXPECT_EQ(report.rows[0].events, events);
      EXPECT_EQ(report.rows[0].units, Decimal::literal(units));
      EXPECT_EQ(report.rows[0].cost.amount, Decimal::literal(cost));
    }
    EXPECT_EQ(metering->quota_state(ctx, "pages")->used, used);
    EXPECT_EQ(metering->accumulated_cost(ctx, *child, BillingPeriod::lifetime)->total.amount, Decimal::literal(cost));
    EXPECT_EQ(metering->verify_usage(ctx)->problems, std::vector<std::string>());
  };
  const EventId a = take(*child, {.key = "a", .units = "100", .cost = "2"})->id;
  const EventId b = take(*child, {.key = "b", .units = "10", .cost = "0.5"})->id;
  expect(2, "110", "2.5", 110);

  const auto replaced = take(*child, {.key = "a2", .units = "70", .cost = "1", .replaces = a.to_string()});
  ASSERT_TRUE(replaced) << replaced.error().to_string();
  expect(2, "80", "1.5", 80);
  const auto voided = take(*child, {.key = "b-out", .voids = "key:b"});
  ASSERT_TRUE(voided) << voided.error().to_string();
  expect(1, "70", "1", 70);
  EXPECT_TRUE(take(*child, {.key = "b-out", .voids = "key:b"})->duplicate);

  const auto expect_refused = [&](const Identity& who, const Report& report, std::string_view code_,
                                  const std::string& names) {
    const auto taken = take(who, report);
    EXPECT_EQ(code(taken), code_) << report.key;
    if (!taken) {
      EXPECT_NE(taken.error().message().find(names), std::string::npos) << taken.error().message();
    }
  };
  expect_refused(*child, {.key = "x1", .voids = b.to_string()}, "MT-409", voided->id.to_string());
  expect_refused(*child, {.key = "x2", .voids = voided->id.to_string()}, "MT-409", "only takes another one out");
  expect_refused(*child, {.key = "x3", .voids = "key:never"}, "MT-404", "is not known");
  expect_refused(*child, {.key = "x4", .replaces = EventId::fresh(clock.now()).to_string()}, "MT-404", "is not known");
  expect_refused(*parent, {.key = "x5", .voids = replaced->id.to_string()}, "MT-403", "another agent's");
  expect_refused(*child, {.key = "x6", .voids = "key:x6"}, "MT-404", "is not known");
  expect(1, "70", "1", 70);

  // A correction counts where what it corrects did.
  clock.advance(24h);
  expect(1, "70", "1", 0);
  ASSERT_TRUE(take(*child, {.key = "a3", .units = "75", .cost = "1.5", .replaces = "key:a2"}));
  expect(1, "75", "1.5", 0);
  ASSERT_TRUE(take(*child, {.key = "c", .units = "5"}));
  expect(2, "80", "1.5", 5);
  stop();
  start();
  expect(2, "80", "1.5", 5);
  expect_refused(*child, {.key = "x7", .voids = "key:a2"}, "MT-409", "was taken out by");
  ASSERT_TRUE(take(*child, {.key = "a-out", .voids = "key:a3"}));
  expect(1, "5", "0", 5);
  // By id beyond the keys' window, also in a younger quota.
  clock.advance(24h * 8);
  expect_refused(*child, {.key = "x8", .voids = "key:c"}, "MT-404", "is not known");
  const EventId d = take(*child, {.key = "d", .units = "7"})->id;
  clock.advance(24h * 8);
  ASSERT_TRUE(take(*child, {.key = "d2", .units = "6", .replaces = d.to_string()}));
  Quota ever = quota("ever", *child, 1'000, "pages");
  ever.window = WindowKind::lifetime;
  ASSERT_TRUE(metering->set_quota(ctx, ever));
  EXPECT_EQ(metering->quota_state(ctx, "ever")->used, 11);
  expect(2, "11", "0", 0);
}

TEST_P(MeteringContract, AnEnvelopeMayCorrectOneThatBroughtItsIdAlong) {
  const std::string first = event(*parent, keyed("k1"));
  const EventId id = EventEnvelope::from_json(first)->event_id;
  const auto correction = [&](contracts::RuntimeUsageEvent usage) {
    EventEnvelope envelope{"runtime_usage", EventId::fresh(clock.now()), *parent, chain_of(*parent),
                           time_->now(),    usage.to_json().value(),     {}};
    envelope.signature =
        registry->sign(ctx, *parent, as_bytes(envelope.signed_bytes().value()), event_signature_context).value();
    return envelope.to_json().value();
  };
  const std::string out = correction({"void", "k1-out", "{}", Decimal(1), {}, {}, id.to_string()});
  EXPECT_EQ(code(metering->ingest(ctx, out)), "MT-404") << "nothing is there yet";
  const std::array<std::string, 2> both{first, out};
  const auto taken = metering->ingest_batch(ctx, both).value();
  ASSERT_TRUE(taken[1]) << taken[1].error().to_string();
  EXPECT_TRUE(metering->usage(ctx, {.subject = parent->text()})->rows.empty());
  const std::string second = event(*parent, keyed("k2"));
  ASSERT_TRUE(metering->ingest(ctx, second));
  const EventId second_id = EventEnvelope::from_json(second)->event_id;
  ASSERT_TRUE(metering->ingest(ctx, correction({"void", "k2-out", "{}", Decimal(1), {}, {}, second_id.to_string()})));
  EXPECT_TRUE(metering->usage(ctx, {.subject = parent->text()})->rows.empty());
  EXPECT_EQ(metering->verify_usage(ctx)->problems, std::vector<std::string>());
}

TEST_P(MeteringContract, WhatAnotherHasReportedIsCorrectedByPermissionOnly) {
  const auto take = [&](const Context& by, const Report& report) {
    return metering->ingest_records(by, {.records = {record_text(*child, report, clock.now())}}).value().front();
  };
  const std::int64_t before = rows("SELECT count(*) FROM audit_pending");
  const auto corrections = [&] { return rows("SELECT count(*) FROM audit_pending") - before; };
  const Context auditor = Context::of_service(Identity::service("auditor").value());
  const std::string a = take(ctx, {.key = "a", .units = "100"})->id.to_string();
  const auto refused = take(auditor, {.key = "x", .voids = a});
  ASSERT_EQ(code(refused), "MT-403");
  EXPECT_NE(refused.error().message().find("usage.correct"), std::string::npos) << refused.error().message();
  EXPECT_EQ(code(take(auditor, {.key = "x", .replaces = "key:a"})), "MT-403");
  contracts::RuntimeUsageEvent out{"void", "x", "{}", Decimal(1), {}, {}, a};
  EventEnvelope own{"runtime_usage", EventId::fresh(clock.now()), *child, chain_of(*child),
                    time_->now(),    out.to_json().value(),       {}};
  own.signature = registry->sign(ctx, *child, as_bytes(own.signed_bytes().value()), event_signature_context).value();
  const Context as_agent = Context::of(*child, chain_of(*child));
  EXPECT_EQ(code(metering->ingest(as_agent, own.to_json().value())), "MT-403") << "an agent of what is said of it";
  EXPECT_EQ(metering->usage(ctx, {.subject = child->text()})->rows.at(0).units, Decimal(100));
  EXPECT_EQ(corrections(), 0);

  access.permit(fmt::format("service:auditor usage.correct {}", child->text()));
  access.down = true;
  EXPECT_EQ(code(take(auditor, {.key = "y", .voids = a})), "MT-503") << "no answer is no permission";
  access.down = false;
  const auto taken = take(auditor, {.key = "y", .voids = a});
  ASSERT_TRUE(taken) << taken.error().to_string();
  EXPECT_TRUE(take(auditor, {.key = "y", .voids = a})->duplicate);
  EXPECT_TRUE(metering->usage(ctx, {.subject = child->text()})->rows.empty());
  EXPECT_EQ(corrections(), 1);
  ASSERT_TRUE(take(ctx, {.key = "b"}));
  ASSERT_TRUE(take(ctx, {.key = "b-out", .voids = "key:b"})) << "its own";
  EXPECT_EQ(corrections(), 2);
  stop();
  start();
  EXPECT_EQ(metering->verify_usage(ctx)->problems, std::vector<std::string>());
}

TEST_P(MeteringContract, CorrectionsInAnyOrderAreTheCorrectedEventsAlone) {
  const auto plan = plan_from_json(R"({"id":"p","name":"P","base_fee":"0","charges":[
    {"id":"pages","description":"Pages","model":"graduated","metric":{"event_type":"pages","aggregation":"sum","property":"units"},
     "price":{"tiers":[{"up_to":"300","per_unit":"0.01"},{"per_unit":"0.003"}]}},
    {"id":"reports","description":"Reports","model":"standard","metric":{"event_type":"pages"},"price":{"per_unit":"0.5"}}]})");
  ASSERT_TRUE(metering->put_plan(ctx, *plan));
  std::mt19937_64 random(29);
  const auto pick = [&](std::uint64_t below) { return random() % below; };
  std::vector<std::string> seen;
  for (const std::string_view name : {"corrected", "plain"}) {
    const bool corrected = name == "corrected";
    const Identity who = *agent(std::string(name), *ctx.caller);
    const Subscription subscription = metering->subscribe(ctx, {.agent = who.text(), .plan_id = "p"}).value();
    clock.advance(1min);
    for (const WindowKind window : {WindowKind::day, WindowKind::lifetime, WindowKind::rolling}) {
      for (const Measure measure : {Measure::units, Measure::events, Measure::cost}) {
        Quota one =
            quota(fmt::format("{}-{}-{}", name, to_string(window), to_string(measure)), who, 1'000'000, "pages");
        one.window = window;
        one.measure = measure;
        if (window == WindowKind::rolling) one.rolling_length = 60min;
        ASSERT_TRUE(metering->set_quota(ctx, one));
      }
    }
    std::vector<std::string> waiting;
    std::mt19937_64 numbers(7);
    const Instant when = clock.now();
    for (int i = 0; i < 40; ++i) {
      // What is right is the same for both; one of them gets there by corrections.
      const Report right{.key = fmt::format("e{}", i),
                         .units = fmt::format("{}", 1 + numbers() % 50),
                         .cost = fmt::format("0.0{}", 1 + numbers() % 9)};
      const bool counts = numbers() % 4 != 0;
      const auto send = [&](const Report& report) { waiting.push_back(record_text(who, report, when)); };
      if (!corrected) {
        if (counts) send(right);
        continue;
      }
      std::string last;
      for (std::uint64_t wrong = pick(3); wrong > 0; --wrong) {
        Report report{.key = fmt::format("e{}-wrong{}", i, wrong), .units = fmt::format("{}", pick(900))};
        if (!last.empty()) report.replaces = "key:" + last;
        last = report.key;
        send(report);
      }
      if (counts || last.empty()) {
        Report report = right;
        if (!last.empty()) report.replaces = "key:" + last;
        last = report.key;
        send(report);
      }
      if (!counts) send({.key = fmt::format("e{}-out", i), .voids = "key:" + last});
    }
    const std::size_t all = waiting.size();
    for (std::size_t i = 0; i < all / 2; ++i) waiting.push_back(waiting[pick(all)]);
    for (int round = 0; !waiting.empty(); ++round) {
      ASSERT_LT(round, 1'000);
      std::ranges::shuffle(waiting, random);
      const std::size_t size = std::min<std::size_t>(waiting.size(), 1 + pick(20));
      RecordBatch batch;
      batch.records.assign(waiting.end() - static_cast<std::ptrdiff_t>(size), waiting.end());
      waiting.resize(waiting.size() - size);
      const auto answers = metering->ingest_records(ctx, batch).value();
      for (std::size_t i = 0; i < size; ++i) {
        if (answers[i]) continue;
        ASSERT_EQ(code(answers[i]), "MT-404") << answers[i].error().to_string();
        waiting.push_back(batch.records[i]);  // what it corrects comes later
      }
    }
    EXPECT_EQ(metering->verify_usage(ctx)->problems, std::vector<std::string>());
    const auto state = [&] {
      std::string text;
      const UsageReport used = metering->usage(ctx, {.subject = who.text()}).value();
      for (const UsageRow& row : used.rows)
        text +=
            fmt::format("{} {} {} {}; ", row.keys[0], row.events, row.units.to_string(), row.cost.amount.to_string());
      const auto quotas = metering->list_quotas(ctx, who.text()).value();
      for (const Quota& one : quotas) text += fmt::format("{} ", metering->quota_state(ctx, one.id)->used);
      return text + metering->accumulated_cost(ctx, who, BillingPeriod::day)->total.amount.to_string();
    };
    seen.push_back(state());
    stop();
    start();
    EXPECT_EQ(state(), seen.back());
    clock.advance(1min);
    const Invoice invoice = metering->issue_invoice(ctx, subscription.id, {}).value();
    for (const InvoiceLine& line : invoice.lines)
      seen.back() += fmt::format(" {} {} {}", line.charge, line.units.to_string(), line.amount.to_string());
  }
  EXPECT_EQ(seen[0], seen[1]);
}

TEST_P(MeteringContract, UseOfAModelWithoutACostGetsItsPrice) {
  const auto tokens = [&](std::string key, std::string_view input, std::string replaces = {}) {
    const std::array<PropertyView, 4> properties{
        {{"model_id", "m"}, {"provider", "p"}, {"input_tokens", input}, {"output_tokens", "10"}}};
    Bytes bytes;
    encode_record({.bytes = {},
                   .agent = child->text(),
                   .type = "inference_tokens",
                   .key = key,
                   .time = clock.now(),
                   .replaces = replaces,
                   .properties = properties},
                  bytes);
    const auto taken = metering->ingest_records(ctx, {.records = {std::string(as_text(bytes))}}).value().front();
    EXPECT_TRUE(taken) << taken.error().to_string();
  };
  const auto cost = [&] { return metering->accumulated_cost(ctx, *child, BillingPeriod::day)->total.amount; };
  tokens("before", "1000");
  const std::string first = R"({"p/m":{"input_cost_per_token":1e-3,"output_cost_per_token":0.02}})";
  const PriceImport imported = metering->import_prices(ctx, first, {}).value();
  EXPECT_EQ(imported.models, 1u);
  EXPECT_EQ(code(metering->import_prices(ctx, "[]", {})), "MT-400");
  EXPECT_EQ(cost(), Decimal()) << "what came before keeps its cost";
  tokens("a", "1000");
  EXPECT_EQ(cost(), Decimal::literal("1.2"));
  ASSERT_TRUE(metering->ingest(ctx, event(*child, {.key = "stated", .cost = "0.5", .when = {}})));
  EXPECT_EQ(cost(), Decimal::literal("1.7")) << "a cost that is stated counts";
  ASSERT_TRUE(metering->import_prices(ctx, R"({"m":{"input_cost_per_token":1}})", clock.now() + 1h));
  tokens("b", "2000");
  EXPECT_EQ(cost(), Decimal::literal("3.9"));
  tokens("c", "500", "key:a");
  EXPECT_EQ(cost(), Decimal::literal("3.4"));
  stop();
  start();
  EXPECT_EQ(cost(), Decimal::literal("3.4"));
  EXPECT_EQ(metering->usage(ctx, {.subject = child->text(), .group_by = {}})->rows.at(0).cost.amount,
            Decimal::literal("3.4"));
  clock.advance(2h);
  tokens("d", "3");
  EXPECT_EQ(cost(), Decimal::literal("6.4"));
  EXPECT_EQ(metering->verify_usage(ctx)->problems, std::vector<std::string>());
  EXPECT_EQ(metering->list_prices(ctx, "")->size(), 2u);
  ASSERT_EQ(metering->list_prices(ctx, "p/m")->size(), 1u);
  EXPECT_EQ(metering->list_prices(ctx, "p/m")->at(0).prices.input, Decimal::literal("0.001"));
  EXPECT_TRUE(metering->list_prices(ctx, "other")->empty());
}

INSTANTIATE_TEST_SUITE_P(, MeteringContract, everywhere(), database_name);

}  // namespace
}  // namespace creto::metering
