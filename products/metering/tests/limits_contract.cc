// What may still be spent: quotas, holds, thresholds, budgets, and who is told of them.

#include "metering_contract.h"

namespace creto::metering {
namespace {

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

TEST_P(MeteringContract, WhatWasToldIsForgottenAfterAYearAndNotToldAgain) {
  Quota hourly = quota("hour", *parent, 1);
  hourly.window = WindowKind::hour;
  ASSERT_TRUE(metering->set_quota(ctx, hourly));
  Quota ever = quota("ever", *parent, 1);
  ever.window = WindowKind::lifetime;
  ASSERT_TRUE(metering->set_quota(ctx, ever));
  ASSERT_TRUE(metering->ingest(ctx, sandbox(*parent, "1")));
  const auto notices = [&] { return rows("SELECT count(*) FROM metering_notices"); };
  EXPECT_EQ(notices(), 2);
  clock.advance(24h * 390);
  ASSERT_TRUE(local->tick());
  EXPECT_EQ(notices(), 2);
  clock.advance(24h * 20);
  ASSERT_TRUE(local->tick());
  EXPECT_EQ(notices(), 1) << "that of a window which has no end stays";
  // Counted anew from the log, it is no news.
  stop();
  for (const std::string& name : files.list("/usage").value())
    if (name.ends_with(".state")) EXPECT_TRUE(files.remove("/usage/" + name));
  start();
  ASSERT_TRUE(local->tick());
  EXPECT_EQ(notices(), 1);
}

TEST_P(MeteringContract, AnHourOfUnusualSpendingIsToldOnce) {
  with_bus();
  ASSERT_FALSE(HasFatalFailure());
  listen_to_limits();
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
  const auto notices = told_of_limits();
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
  EXPECT_EQ(told_of_limits().size(), 2u) << "another hour";
}

TEST_P(MeteringContract, LimitsAreToldOnTheBusAndRaisedByAnApprovedDecision) {
  with_bus();
  ASSERT_FALSE(HasFatalFailure());
  listen_to_limits();
  ASSERT_TRUE(metering->set_quota(ctx, quota("sandboxes", *parent, 3)));
  for (int i = 0; i < 3; ++i) {
    const std::string usage = sandbox(*child, fmt::format("s{}", i));  // signing has transactions of its own
    EXPECT_TRUE(db->transaction(ctx, [&](sql::Tx& tx) {
      return bus::publish(tx, ctx, "metering.events.runtime", fmt::format("m{}", i), usage);
    }));
  }
  ASSERT_TRUE(carrier->wait_until_idle(30s));
  ASSERT_TRUE(carrier->wait_until_idle(30s));  // the notice itself, which the first wait has caused
  const auto notices = told_of_limits();
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

TEST_P(MeteringContract, ASandboxThatHasEndedIsForgottenAndAllStillAgrees) {
  Quota each = quota("session-max", *child, 1'000'000'000, "");
  each.subject = "session:*";
  each.measure = Measure::cost;
  each.window = WindowKind::lifetime;
  ASSERT_TRUE(metering->set_quota(ctx, each));
  Quota above = each;
  above.id = "above";
  above.subject = parent->text();
  ASSERT_TRUE(metering->set_quota(ctx, above));
  int events = 0;
  const auto spend = [&](std::string_view sandbox, std::string type = "inference_tokens") {
    Draft draft = keyed(fmt::format("k{}", events++));
    draft.type = std::move(type);
    draft.cost = "0.5";
    draft.units = "1";
    draft.properties = fmt::format(
        R"({{"input_tokens":"60","model_id":"m","output_tokens":"40","provider":"p","sandbox_id":"{}"}})", sandbox);
    const auto taken = metering->ingest(ctx, event(*child, draft));
    EXPECT_TRUE(taken) << taken.error().to_string();
  };
  const auto used = [&](std::string_view id, const std::string& subject = {}) {
    return metering->quota_state(ctx, id, subject)->used;
  };
  const auto agrees = [&] { return metering->verify_usage(ctx).value().problems; };
  for (const std::string_view sandbox : {"sb-1", "sb-2", "sb-3"}) {
    spend(sandbox);
    if (sandbox != "sb-3") spend(sandbox, "sandbox_terminated");
  }
  ASSERT_TRUE(local->tick());
  EXPECT_EQ(used("session-max", "session:sb-1"), 1'000'000'000) << "what it used before may still arrive";
  clock.advance(2h);
  ASSERT_TRUE(local->tick());
  EXPECT_EQ(used("session-max", "session:sb-1"), 0);
  EXPECT_EQ(used("session-max", "session:sb-3"), 500'000'000) << "which goes on";
  EXPECT_EQ(used("above"), 2'500'000'000);
  EXPECT_EQ(agrees(), std::vector<std::string>());
  spend("sb-2");  // late after all: a fact that counts for those above it
  EXPECT_EQ(used("above"), 3'000'000'000);
  EXPECT_EQ(agrees(), std::vector<std::string>());
  stop();
  start();
  EXPECT_EQ(used("session-max", "session:sb-1"), 0);
  EXPECT_EQ(used("session-max", "session:sb-2"), 500'000'000);
  EXPECT_EQ(used("session-max", "session:sb-3"), 500'000'000);
  EXPECT_EQ(used("above"), 3'000'000'000);
  EXPECT_EQ(agrees(), std::vector<std::string>());
  // A limit of its own counts what this one has used, not what another of its name had.
  each.id = "own";
  each.subject = "session:sb-2";
  ASSERT_TRUE(metering->set_quota(ctx, each));
  EXPECT_EQ(used("own"), 500'000'000);
}

TEST_P(MeteringContract, ALimitOnASessionThatRunsAlreadyEndsWithIt) {
  const auto spend = [&](std::string key) {
    Draft draft = keyed(std::move(key));
    draft.properties = R"({"input_tokens":"60","model_id":"m","output_tokens":"40","provider":"p","session":"s"})";
    const auto taken = metering->ingest(ctx, event(*child, draft));
    EXPECT_TRUE(taken) << taken.error().to_string();
  };
  spend("1");
  Quota own = quota("own", *child, 10'000, "inference_tokens");
  own.subject = "session:s";
  own.window = WindowKind::lifetime;
  clock.advance(1h);
  ASSERT_TRUE(metering->set_quota(ctx, own));
  EXPECT_EQ(metering->quota_state(ctx, "own")->used, 100);
  clock.advance(24h * 30);
  EXPECT_EQ(metering->quota_state(ctx, "own")->used, 0) << "a month after its last use, not after the limit was set";
  spend("2");
  EXPECT_EQ(metering->quota_state(ctx, "own")->used, 100);
  EXPECT_EQ(metering->verify_usage(ctx)->problems, std::vector<std::string>());
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

TEST_P(MeteringContract, ACallOfAModelWithoutAPriceIsRefusedWhereABudgetHasToHold) {
  ASSERT_TRUE(metering->import_prices(
      ctx, R"({"p/m":{"input_cost_per_token":0.001},"p/free":{"input_cost_per_token":0,"output_cost_per_token":0}})",
      {}));
  const auto call = [&](std::string_view model) {
    auto request = ask(*child, "inference_tokens", "1000");
    request.properties = {{"input_tokens", "10"}, {"output_tokens", "10"}};
    if (!model.empty()) request.properties.emplace("model_id", model);
    return metering->reserve(ctx, request);
  };
  EXPECT_TRUE(call("")) << "where no money is limited";
  Quota budget = quota("budget", *parent, 1'000'000'000, "");
  budget.measure = Measure::cost;
  budget.overflow = Overflow::allow_with_notification;
  ASSERT_TRUE(metering->set_quota(ctx, budget));
  EXPECT_TRUE(call("")) << "or it is only told of";
  budget.overflow = Overflow::block;
  ASSERT_TRUE(metering->set_quota(ctx, budget));
  const auto unnamed = call("");
  EXPECT_EQ(code(unnamed), "MT-400");
  EXPECT_EQ(
      unnamed.error().message(),
      fmt::format("cost: is not known, since no model is named; limit `budget` of `{}` needs it", parent->text()));
  EXPECT_EQ(code(call("unknown")), "MT-400");
  EXPECT_TRUE(call("m"));
  EXPECT_TRUE(call("free")) << "a price of nothing is a price";
  ASSERT_TRUE(metering->delete_quota(ctx, "budget"));
  EXPECT_TRUE(call("unknown"));
  ASSERT_TRUE(metering->set_threshold(
      ctx, {"agent:*",
            {"each", BillingPeriod::day, {Decimal(10), Currency::usd()}, contracts::ThresholdAction::block, {}}}));
  EXPECT_EQ(code(call("unknown")), "MT-400");
}

TEST_P(MeteringContract, ACostInAnotherCurrencyPassesNoLimitOfMoney) {
  const Currency euro = Currency::parse("EUR").value();
  const auto euros = [&](const Identity& who, std::int64_t amount = 1'000'000) {
    auto request = ask(who, "payment");
    request.cost = {Decimal(amount), euro};
    return request;
  };
  const Identity other = *agent("other", *ctx.caller);
  ASSERT_TRUE(metering->set_threshold(
      ctx, {parent->text(),
            {"ten", BillingPeriod::month, {Decimal(10), Currency::usd()}, contracts::ThresholdAction::block, {}}}));
  const auto refused = metering->reserve(ctx, euros(*child));
  EXPECT_EQ(code(refused), "MT-400");
  EXPECT_EQ(
      refused.error().message(),
      fmt::format("cost: must be in USD as limit `ten` of `{}` is, or have a limit in EUR there", parent->text()));
  EXPECT_TRUE(metering->reserve(ctx, euros(other))) << "nothing limits its money";
  Quota each = quota("each", *parent, 10'000'000'000, "payment");
  each.subject = "agent:*";
  each.measure = Measure::cost;
  ASSERT_TRUE(metering->set_quota(ctx, each));
  EXPECT_EQ(code(metering->reserve(ctx, euros(other))), "MT-400");
}

TEST_P(MeteringContract, ThresholdsOfEachCurrencyLimitWhatIsInIt) {
  const Currency euro = Currency::parse("EUR").value();
  const Currency pound = Currency::parse("GBP").value();
  const auto limit = [&](std::string id, BillingPeriod period, std::int64_t amount, const Currency& currency,
                         contracts::ThresholdAction action = contracts::ThresholdAction::require_approval) {
    ASSERT_TRUE(metering->set_threshold(
        ctx, {parent->text(), {std::move(id), period, {Decimal(amount), currency}, action, {}}}));
  };
  const auto asks = [&](std::int64_t amount, const Currency& currency, BillingPeriod period) {
    const contracts::BillableEvent event{"payment", *child, chain_of(*child), {Decimal(amount), currency}};
    const auto trigger = metering->check_cost_threshold(ctx, event, period).value();
    return trigger ? fmt::format("{} {} of {}", trigger->policy_id, trigger->current_cost.to_string(),
                                 trigger->threshold.to_string())
                   : std::string();
  };
  const BillingPeriod once = BillingPeriod::transaction;
  const BillingPeriod month = BillingPeriod::month;
  limit("one", once, 100, Currency::usd());
  EXPECT_EQ(asks(100, Currency::usd(), once), "");
  EXPECT_EQ(asks(1, euro, once), "one 1.00 EUR of 100.00 USD") << "what it cannot see is not within it";
  limit("one-eur", once, 90, euro);
  EXPECT_EQ(asks(90, euro, once), "");
  EXPECT_EQ(asks(91, euro, once), "one-eur 91.00 EUR of 90.00 EUR");
  EXPECT_EQ(asks(1, pound, once), "one 1.00 GBP of 100.00 USD");
  EXPECT_EQ(asks(101, Currency::usd(), once), "one 101.00 USD of 100.00 USD");

  int events = 0;
  const auto pay = [&](std::string_view amount, const Currency& currency) {
    contracts::RuntimeUsageEvent usage{
        "action", fmt::format("p{}", events++), R"({"action":"pay"})", Decimal(1), {}, {}, {}};
    usage.cost = Money{Decimal::literal(amount), currency};
    EventEnvelope envelope{"runtime_usage", EventId::fresh(clock.now()), *child, chain_of(*child),
                           time_->now(),    usage.to_json().value(),     {}};
    envelope.signature =
        registry->sign(ctx, *child, as_bytes(envelope.signed_bytes().value()), event_signature_context).value();
    const auto taken = metering->ingest(ctx, envelope.to_json().value());
    EXPECT_TRUE(taken) << taken.error().to_string();
  };
  pay("40", euro);
  limit("month-eur", month, 60, euro, contracts::ThresholdAction::block);
  EXPECT_EQ(asks(20, euro, month), "") << "of each currency by itself";
  EXPECT_EQ(asks(21, euro, month), "month-eur 61.00 EUR of 60.00 EUR") << "with what was spent before it was set";
  pay("15", euro);
  pay("1000", Currency::usd());
  const auto spend = [&](std::string_view amount, const Currency& currency) {
    auto request = ask(*child, "payment");
    request.cost = {Decimal::literal(amount), currency};
    return code(metering->reserve(ctx, request));
  };
  EXPECT_EQ(spend("6", euro), "MT-429");
  EXPECT_EQ(spend("3", euro), "ok");
  EXPECT_EQ(spend("3", euro), "MT-429") << "what is held counts";
  EXPECT_EQ(spend("5000", Currency::usd()), "ok") << "the accounting currency is what its own limits say";
  EXPECT_EQ(spend("1", pound), "MT-400");
  EXPECT_EQ(metering->verify_usage(ctx).value().problems, std::vector<std::string>());
  stop();
  start();
  EXPECT_EQ(asks(6, euro, month), "month-eur 61.00 EUR of 60.00 EUR");
  EXPECT_EQ(asks(5, euro, month), "");
  EXPECT_EQ(metering->accumulated_cost(ctx, *child, month)->total, (Money{Decimal(1000), Currency::usd()}));
  EXPECT_EQ(metering->verify_usage(ctx).value().problems, std::vector<std::string>());
}

TEST_P(MeteringContract, QuotasOfMoneyCountTheCurrencyThatTheyName) {
  const Currency euro = Currency::parse("EUR").value();
  const auto limit = [&](std::string id, std::string currency, std::int64_t amount, std::string type = "") {
    Quota one = quota(std::move(id), *parent, amount * 1'000'000'000, std::move(type));
    one.measure = Measure::cost;
    one.currency = std::move(currency);
    const auto put = metering->set_quota(ctx, one);
    EXPECT_TRUE(put) << put.error().to_string();
  };
  int events = 0;
  const auto pay = [&](std::string_view amount, const Currency& currency) {
    Bytes bytes;
    const std::string key = std::to_string(events++);
    encode_record({.bytes = {},
                   .agent = child->text(),
                   .type = "payment",
                   .key = key,
                   .time = clock.now(),
                   .cost = amount,
                   .currency = currency.code(),
                   .properties = {}},
                  bytes);
    const auto taken = metering->ingest_records(ctx, {.records = {std::string(as_text(bytes))}});
    EXPECT_TRUE(taken->front());
  };
  const auto spend = [&](std::string_view amount, const Currency& currency, std::string type = "payment") {
    auto request = ask(*child, std::move(type));
    request.cost = {Decimal::literal(amount), currency};
    return code(metering->reserve(ctx, request));
  };
  pay("40", euro);
  limit("dollars", "", 10);
  EXPECT_EQ(spend("1", euro), "MT-400");
  limit("euros-for-other", "EUR", 1'000, "rent");
  EXPECT_EQ(spend("1", euro), "MT-400") << "that does not count payments";
  limit("euros", "EUR", 60);
  EXPECT_EQ(metering->quota_state(ctx, "euros")->used, 40'000'000'000) << "with what was spent before it was set";
  EXPECT_EQ(metering->quota_state(ctx, "euros")->currency, "EUR");
  EXPECT_EQ(metering->quota_state(ctx, "dollars")->used, 0);
  pay("5", euro);
  pay("7", Currency::usd());
  EXPECT_EQ(spend("16", euro), "MT-429");
  EXPECT_EQ(spend("15", euro), "ok");
  EXPECT_EQ(spend("0.01", euro), "MT-429") << "what is held counts";
  EXPECT_EQ(spend("3", Currency::usd()), "ok");
  EXPECT_EQ(spend("1", Currency::parse("GBP").value()), "MT-400");
  EXPECT_EQ(metering->verify_usage(ctx).value().problems, std::vector<std::string>());
  stop();
  start();
  EXPECT_EQ(metering->quota_state(ctx, "euros")->used, 45'000'000'000);
  EXPECT_EQ(metering->quota_state(ctx, "dollars")->used, 7'000'000'000);
  EXPECT_EQ(metering->verify_usage(ctx).value().problems, std::vector<std::string>());
  Quota units = quota("units", *parent, 1, "payment");
  units.currency = "EUR";
  EXPECT_EQ(code(metering->set_quota(ctx, units)), "MT-400");
}

TEST_P(MeteringContract, ThresholdsThatAreAskedAboutSeeTheirOwnCurrency) {
  const Currency euro = Currency::parse("EUR").value();
  using contracts::ThresholdAction;
  const contracts::BillableEvent event{"payment", *child, chain_of(*child), {Decimal(50), euro}};
  const auto asks = [&](const std::vector<contracts::CostThreshold>& thresholds) {
    const auto triggers = metering->check_multiple_thresholds(ctx, event, thresholds);
    if (!triggers) return triggers.error().code();
    std::string all;
    for (const auto& one : *triggers)
      all += fmt::format("{} {} of {};", one.policy_id, one.current_cost.to_string(), one.threshold.to_string());
    return all;
  };
  const BillingPeriod once = BillingPeriod::transaction;
  const contracts::CostThreshold dollars{"usd", once, {Decimal(100), Currency::usd()}, ThresholdAction::block, {}};
  EXPECT_EQ(asks({{"eur", once, {Decimal(50), euro}, ThresholdAction::block, {}}}), "");
  EXPECT_EQ(asks({{"eur", once, {Decimal(49), euro}, ThresholdAction::block, {}}}), "eur 50.00 EUR of 49.00 EUR;");
  EXPECT_EQ(asks({dollars}), "usd 50.00 EUR of 100.00 USD;") << "what it cannot see is not within it";
  EXPECT_EQ(asks({dollars, {"eur", once, {Decimal(50), euro}, ThresholdAction::block, {}}}), "");
  EXPECT_EQ(asks({{"told", once, {Decimal(1), Currency::usd()}, ThresholdAction::notify_only, {}}}), "");
  EXPECT_EQ(asks({{"month", BillingPeriod::month, {Decimal(90), euro}, ThresholdAction::block, {}}}), "MT-400")
      << "only what is put is added up in another currency";
}

}  // namespace
}  // namespace creto::metering
