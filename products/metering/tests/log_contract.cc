// What stands after a stop, and how the log is proven: restarts, signatures, verification, the audit log.

#include "metering_contract.h"

namespace creto::metering {
namespace {

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

TEST_P(MeteringContract, VerifyingLooksAtThresholdsForEachOfAKind) {
  Draft draft = keyed("1");
  draft.cost = "3";
  ASSERT_TRUE(metering->ingest(ctx, event(*child, draft)));
  const std::uint64_t before = metering->verify_usage(ctx)->counters;
  ASSERT_TRUE(metering->set_threshold(
      ctx, {"agent:*",
            {"each", BillingPeriod::month, {Decimal(10), Currency::usd()}, contracts::ThresholdAction::block, {}}}));
  draft.key = "2";
  ASSERT_TRUE(metering->ingest(ctx, event(*child, draft)));
  const UsageVerification found = metering->verify_usage(ctx).value();
  EXPECT_EQ(found.counters, before + 2) << "the agent's and its parent's";
  EXPECT_EQ(found.problems, std::vector<std::string>());
}

TEST_P(MeteringContract, EventsTellWhoReportedThem) {
  ASSERT_TRUE(metering->ingest_records(ctx, {.records = {record(*child, "1")}}));
  ASSERT_TRUE(metering->ingest(ctx, event(*child, keyed("2"))));
  const auto page = metering->usage_events(ctx, {}).value();
  ASSERT_EQ(page.events.size(), 2u);
  for (const std::string& line : page.events)
    EXPECT_NE(line.find(R"("reporter":"service:test")"), std::string::npos) << line;
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

}  // namespace
}  // namespace creto::metering
