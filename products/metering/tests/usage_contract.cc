// What is taken in, for whom it counts, and what is answered when one asks what was used.

#include "metering_contract.h"

namespace creto::metering {
namespace {

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

}  // namespace

INSTANTIATE_TEST_SUITE_P(, MeteringContract, everywhere(), database_name);

}  // namespace creto::metering
