// Invoices: what they are made of, when they come, what of them is left for later, how they are proven and sent.

#include "creto/common/time_zone.h"
#include "creto/metering/simulation.h"
#include "creto/metering/usage_log.h"
#include "metering_contract.h"
#include "store.h"

namespace creto::metering {
namespace {

Decimal d(std::string_view text) { return Decimal::literal(text); }
Instant at(std::string_view text) { return from_rfc3339(text).value(); }

class BillingContract : public MeteringContract {
 protected:
  BillingContract()
      : MeteringContract({.issuer = {.name = "Creto GmbH", .address = {"Berlin"}, .payment = {"IBAN DE00"}}}) {
    for (const char* name : {"ada", "bob", "eve"}) agents.push_back(*agent(name, *ctx.caller, 24h * 300));
  }

  void put_plan(const std::string& members) {
    const auto plan = plan_from_json(
        R"({"id":"p","name":"Plan",)" + members +
        R"(,"charges":[{"id":"tokens","description":"Tokens","model":"graduated","metric":{"event_type":"inference_tokens","aggregation":"sum","property":"units"},
            "price":{"tiers":[{"up_to":"1000","per_unit":"0.01"},{"per_unit":"0.001"}]}}]})");
    ASSERT_TRUE(plan) << plan.error().to_string();
    const auto put = metering->put_plan(ctx, *plan);
    ASSERT_TRUE(put) << put.error().to_string();
  }
  Subscription subscribe(const Identity& who) {
    const auto made = metering->subscribe(ctx, {.agent = who.text(), .plan_id = "p"});
    EXPECT_TRUE(made) << made.error().to_string();
    return *made;
  }
  std::string event(const Identity& who, const std::string& key, const std::string& units,
                    std::optional<Instant> when = {}, std::string_view more_properties = {}) {
    Draft draft = keyed(key);
    draft.properties =
        fmt::format(R"({{"input_tokens":"60","model_id":"m","output_tokens":"40"{},"provider":"p"}})", more_properties);
    draft.units = units;
    draft.when = when.value_or(clock.now());
    return MeteringContract::event(who, draft);
  }
  void use(const Identity& who, const std::string& units, std::optional<Instant> when = {}) {
    const auto taken = metering->ingest(ctx, event(who, fmt::format("k{}", ++keys_), units, when));
    ASSERT_TRUE(taken) << taken.error().to_string();
  }
  Decimal balance(const Identity& who) {
    Decimal sum;
    for (const Credit& one : metering->list_credits(ctx, who.text()).value()) {
      sum = Decimal::add(sum, one.balance).value();
    }
    return sum;
  }
  void go(std::string_view when) {
    clock.set(at(when));
    const auto ticked = local->tick();
    ASSERT_TRUE(ticked) << ticked.error().to_string();
  }
  /// Of a subscription, oldest first.
  std::vector<Invoice> invoices(const Subscription& subscription) {
    auto all = metering->list_invoices(ctx, subscription.id).value();
    std::ranges::reverse(all);
    return all;
  }
  void expect_verified(const Invoice& invoice) {
    ASSERT_TRUE(invoice.signature);
    const auto text = signed_text(invoice);
    ASSERT_TRUE(text) << text.error().to_string();
    const Identity self = Identity::service("metering").value();
    EXPECT_TRUE(registry->verify(ctx, self, as_bytes(*text), *invoice.signature, invoice_signature_context));
  }

  std::vector<Identity> agents;
  int keys_ = 0;
};

TEST_P(BillingContract, AnInvoiceNamesWhoBillsAndWhoIsBilled) {
  put_plan(R"("base_fee":"0")");
  const Subscription named = subscribe(agents[0]);
  const Subscription unnamed = subscribe(agents[1]);
  const BillingProfile profile{agents[0].text(), {.name = "Ada Ltd.", .address = {"Dublin"}, .tax_id = "IE 1"}};
  ASSERT_TRUE(metering->set_billing_profile(ctx, profile));
  EXPECT_EQ(metering->list_billing_profiles(ctx, agents[0].text()).value().at(0).party, profile.party);
  EXPECT_EQ(metering->list_billing_profiles(ctx, "").value().size(), 1u);
  EXPECT_EQ(metering->set_billing_profile(ctx, {"nobody", {.name = "A"}}).error().kind(), ErrorKind::invalid_input);
  use(agents[0], "100");
  use(agents[1], "100");
  clock.advance(1h);
  const Invoice first = metering->issue_invoice(ctx, named.id, std::nullopt).value();
  EXPECT_EQ(first.customer, profile.party);
  EXPECT_EQ(first.issuer.name, "Creto GmbH");
  EXPECT_NE(first.document.find(R"("tax_id":"IE 1")"), std::string::npos) << "it is signed";
  EXPECT_EQ(metering->issue_invoice(ctx, unnamed.id, std::nullopt).value().customer, BillingParty());
  // What is final stays as it is.
  ASSERT_TRUE(metering->delete_billing_profile(ctx, agents[0].text()));
  EXPECT_EQ(metering->delete_billing_profile(ctx, agents[0].text()).error().code(), "MT-404");
  EXPECT_EQ(metering->get_invoice(ctx, first.id)->customer, profile.party);
}

TEST_P(BillingContract, PlansHaveVersionsAndSubscriptionsKeepTheirs) {
  put_plan(R"("base_fee":"19")");
  const Subscription subscription = subscribe(agents[0]);
  put_plan(R"("base_fee":"19")");
  EXPECT_EQ(metering->get_plan(ctx, "p", 0)->version, 1);
  put_plan(R"("base_fee":"29")");
  EXPECT_EQ(metering->get_plan(ctx, "p", 0)->version, 2);
  EXPECT_EQ(metering->get_plan(ctx, "p", 1)->base_fee, d("19"));
  EXPECT_EQ(metering->list_plans(ctx)->size(), 1u);
  EXPECT_EQ(metering->get_subscription(ctx, subscription.id)->terms.at(0).plan_version, 1);
  EXPECT_EQ(code(metering->subscribe(ctx, {.agent = agents[0].text(), .plan_id = "p"})), "MT-409");
  EXPECT_EQ(code(metering->subscribe(ctx, {.agent = agents[1].text(), .plan_id = "none"})), "MT-404");
  EXPECT_EQ(code(metering->subscribe(ctx, {.agent = agents[1].text(), .plan_id = "p", .quantity = d("0")})), "MT-400");
  EXPECT_FALSE(metering->subscribe(ctx, {.agent = agents[1].text(), .plan_id = "p", .time_zone = "Mars/Olympus"}));
  EXPECT_FALSE(metering->subscribe(ctx, {.agent = agents[1].text(), .plan_id = "p", .overrides = R"({"id":"q"})"}));
  clock.advance(1h);
  EXPECT_TRUE(metering->end_subscription(ctx, subscription.id)->ended_at);
  EXPECT_TRUE(metering->end_subscription(ctx, subscription.id)->ended_at);
  EXPECT_TRUE(metering->subscribe(ctx, {.agent = agents[0].text(), .plan_id = "p", .plan_version = 2}));
  EXPECT_EQ(metering->list_subscriptions(ctx, agents[0].text())->size(), 2u);
}

TEST_P(BillingContract, WhatEndsWithItsPeriodIsBilledToItsEndAndNoFurther) {
  put_plan(R"("base_fee":"30","base_fee_in_advance":true)");
  const Subscription subscription = subscribe(agents[0]);
  go("2026-12-05T00:00:00Z");
  const auto end = [&](SubscriptionEnd when) { return metering->end_subscription(ctx, subscription.id, when); };
  const Instant period_end = at("2027-01-01T00:00:00Z");
  EXPECT_EQ(end(SubscriptionEnd::period_end)->ended_at, period_end);
  EXPECT_EQ(end(SubscriptionEnd::period_end)->ended_at, period_end);
  EXPECT_EQ(code(metering->subscribe(ctx, {.agent = agents[0].text(), .plan_id = "p"})), "MT-409") << "it goes on";
  // A change takes the end back.
  EXPECT_FALSE(metering->change_subscription(ctx, subscription.id, {.terms = {.plan_id = "p"}})->ended_at);
  EXPECT_EQ(end(SubscriptionEnd::period_end)->ended_at, period_end);
  clock.advance(1h);
  use(agents[0], "100");
  go("2026-12-31T23:59:59Z");
  EXPECT_EQ(invoices(subscription).back().period.end, at("2026-12-01T00:00:00Z"));
  go("2027-01-01T00:00:01Z");
  use(agents[0], "1000");
  const auto made = invoices(subscription);
  ASSERT_FALSE(made.empty());
  EXPECT_EQ(made.back().period.end, period_end);
  EXPECT_EQ(made.back().total, d("1")) << "the whole month was paid in advance, and nothing is for the next";
  const std::size_t count = made.size();
  EXPECT_TRUE(metering->subscribe(ctx, {.agent = agents[0].text(), .plan_id = "p"}));
  go("2027-03-01T00:00:01Z");
  EXPECT_EQ(invoices(subscription).size(), count) << "it has ended";
}

TEST_P(BillingContract, PeriodsAreBilledWhenTheyAreOverAndSignedAsOneBatch) {
  put_plan(R"("base_fee":"30")");
  std::vector<Subscription> all;
  for (const Identity& who : agents) {
    all.push_back(subscribe(who));
    clock.advance(1min);
    use(who, "1200");
  }
  ASSERT_TRUE(local->tick());
  EXPECT_TRUE(invoices(all[0]).empty());
  go("2026-12-01T00:00:01Z");
  ASSERT_TRUE(local->tick());
  std::set<std::int64_t> numbers;
  for (const Subscription& one : all) {
    const auto made = invoices(one);
    ASSERT_EQ(made.size(), 1u);
    // 21 of 30 days; 1000 * 0.01 + 200 * 0.001
    EXPECT_EQ(made[0].total, d("31.2"));
    EXPECT_EQ(made[0].period, (Period{one.started_at, at("2026-12-01T00:00:00Z")}));
    ASSERT_TRUE(made[0].proof);
    EXPECT_EQ(made[0].proof->size, 3u);
    expect_verified(made[0]);
    numbers.insert(made[0].number);
  }
  EXPECT_EQ(numbers, (std::set<std::int64_t>{1, 2, 3}));
}

TEST_P(BillingContract, AnInterimInvoiceBillsUsageSoFarAndThePeriodTakesItOff) {
  put_plan(R"("base_fee":"30")");
  const Subscription subscription = subscribe(agents[0]);
  clock.advance(1h);
  use(agents[0], "1000");
  clock.advance(1h);
  const Instant until = clock.now();
  const Invoice interim = metering->issue_invoice(ctx, subscription.id, until).value();
  EXPECT_EQ(interim.kind, InvoiceKind::interim);
  EXPECT_EQ(interim.total, d("10"));
  EXPECT_FALSE(interim.proof);
  expect_verified(interim);
  EXPECT_EQ(metering->issue_invoice(ctx, subscription.id, until)->id, interim.id);
  EXPECT_TRUE(as_text(metering->invoice_pdf(ctx, interim.id).value()).starts_with("%PDF-"));
  EXPECT_EQ(code(metering->issue_invoice(ctx, subscription.id, until - 1s)), "MT-409");
  EXPECT_EQ(code(metering->issue_invoice(ctx, subscription.id, until + 1s)), "MT-400");
  use(agents[0], "500", until - 30min);  // late for the interim invoice, in time for the period
  go("2026-12-01T00:00:01Z");
  const auto made = invoices(subscription);
  ASSERT_EQ(made.size(), 2u);
  EXPECT_EQ(made[1].fees, d("31.5"));  // 21 + 10.50
  EXPECT_EQ(made[1].total, d("21.5"));
}

TEST_P(BillingContract, ReachedThresholdsAreBilledAtOnce) {
  put_plan(R"("base_fee":"0","progressive_thresholds":["5","10.1"])");
  const Subscription subscription = subscribe(agents[0]);
  for (const char* units : {"400", "200", "100", "500"}) {
    clock.advance(1h);
    use(agents[0], units);
    clock.advance(1h);
    ASSERT_TRUE(local->tick());
  }
  auto made = invoices(subscription);
  ASSERT_EQ(made.size(), 2u);
  EXPECT_EQ(made[0].total, d("6"));
  EXPECT_EQ(made[1].total, d("4.2"));
  go("2026-12-01T00:00:01Z");
  EXPECT_EQ(invoices(subscription).back().total, d("0"));
}

TEST_P(BillingContract, AChargeInAdvanceIsBilledAtOnceAndAlone) {
  const auto plan = plan_from_json(R"({"id":"p","name":"Plan","progressive_thresholds":["100"],"charges":[
    {"id":"seats","model":"standard","in_advance":true,"metric":{"event_type":"topic_created"},"price":{"per_unit":"5"}},
    {"id":"tokens","model":"standard","metric":{"event_type":"inference_tokens","aggregation":"sum","property":"units"},"price":{"per_unit":"0.01"}}]})");
  ASSERT_TRUE(metering->put_plan(ctx, *plan));
  const Subscription subscription = subscribe(agents[0]);
  const auto seat = [&] {
    clock.advance(1h);
    ASSERT_TRUE(metering->track_message_event(ctx, {.idempotency_key = fmt::format("seat{}", ++keys_),
                                                    .agent = agents[0],
                                                    .delegation_chain = {*ctx.caller, agents[0]},
                                                    .event_type = contracts::MessageEventType::topic_created,
                                                    .timestamp = time_->now()}));
    clock.advance(1h);
    ASSERT_TRUE(local->tick());
  };
  clock.advance(1h);
  use(agents[0], "1000");
  clock.advance(1h);
  ASSERT_TRUE(local->tick());
  EXPECT_TRUE(invoices(subscription).empty()) << "tokens are billed with the period";
  seat();
  auto made = invoices(subscription);
  ASSERT_EQ(made.size(), 1u);
  EXPECT_EQ(made[0].total, d("5"));
  ASSERT_EQ(made[0].lines.size(), 1u);
  EXPECT_EQ(made[0].lines[0].charge, "seats");
  clock.advance(1h);
  const Invoice by_hand = metering->issue_invoice(ctx, subscription.id, {}).value();
  EXPECT_EQ(by_hand.total, d("10")) << "the tokens until then";
  seat();
  made = invoices(subscription);
  ASSERT_EQ(made.size(), 3u);
  EXPECT_EQ(made[2].total, d("5")) << "the tokens that were billed do not lower it";
  ASSERT_TRUE(metering->settle_invoice(ctx, made[2].id, InvoiceStatus::voided, "a mistake"));
  clock.advance(1h);
  ASSERT_TRUE(local->tick());
  EXPECT_EQ(invoices(subscription).size(), 3u) << "what was voided is not asked for again before the period's end";
  use(agents[0], "9000");
  clock.advance(1h);
  ASSERT_TRUE(local->tick());
  made = invoices(subscription);
  ASSERT_EQ(made.size(), 4u) << "a threshold is reached";
  EXPECT_EQ(made[3].total, d("95"));  // two seats and 100.00, less 5 and 10
  go("2026-12-01T00:00:01Z");
  made = invoices(subscription);
  ASSERT_EQ(made.size(), 5u);
  EXPECT_EQ(made[4].fees, d("110"));
  EXPECT_EQ(made[4].total, d("0"));
}

TEST_P(BillingContract, WhatIsLateForAVoidedInvoiceIsOnTheNext) {
  put_plan(R"("base_fee":"0")");
  const Subscription subscription = subscribe(agents[0]);
  clock.advance(1h);
  use(agents[0], "500");
  go("2026-12-01T00:00:01Z");
  const Invoice november = invoices(subscription).back();
  EXPECT_EQ(november.total, d("5"));
  ASSERT_TRUE(metering->settle_invoice(ctx, november.id, InvoiceStatus::voided, "a present"));
  clock.advance(1h);
  use(agents[0], "100", at("2026-11-20T00:00:00Z"));
  go("2027-01-01T00:00:01Z");
  EXPECT_EQ(invoices(subscription).back().total, d("1"));
  go("2027-02-01T00:00:01Z");
  EXPECT_EQ(invoices(subscription).back().total, d("0"));
}

TEST_P(BillingContract, EventsAreInTheDraftOfTheirPeriodOrAnAdjustmentOnTheNext) {
  put_plan(R"("base_fee":"0","grace_days":2,"minimum_commitment":"3")");
  const Subscription subscription = subscribe(agents[0]);
  go("2026-12-01T00:00:01Z");
  auto made = invoices(subscription);
  ASSERT_EQ(made.size(), 1u);
  EXPECT_EQ(made[0].status, InvoiceStatus::draft);
  EXPECT_EQ(made[0].number, 0);
  use(agents[0], "100", at("2026-11-20T00:00:00Z"));
  EXPECT_EQ(metering->get_invoice(ctx, made[0].id)->total, d("2.1"));  // 1.00 and what lacks to 3 * 21 / 30
  EXPECT_EQ(code(metering->settle_invoice(ctx, made[0].id, InvoiceStatus::paid, "x")), "MT-409");
  go("2026-12-03T00:00:01Z");
  made = invoices(subscription);
  ASSERT_EQ(made.size(), 1u);
  EXPECT_EQ(made[0].status, InvoiceStatus::finalized);
  EXPECT_EQ(made[0].number, 1);
  EXPECT_EQ(made[0].total, d("2.1"));
  expect_verified(made[0]);

  clock.advance(1h);
  use(agents[0], "1000", at("2026-11-21T00:00:00Z"));  // 1100 in November: 10.10 instead of 2.10
  use(agents[0], "400");
  go("2027-01-03T00:00:01Z");
  made = invoices(subscription);
  ASSERT_EQ(made.size(), 2u);
  std::vector<InvoiceLine> late = made[1].lines;
  std::erase_if(late, [](const InvoiceLine& line) { return line.kind != LineKind::adjustment; });
  ASSERT_EQ(late.size(), 2u);
  EXPECT_EQ(late[0].amount, d("9.1"));
  EXPECT_EQ(late[1].amount, d("-1.1"));
  EXPECT_EQ(made[1].total, d("12"));  // 4.00 and 8.00
  go("2027-02-03T00:00:01Z");
  EXPECT_EQ(invoices(subscription).back().total, d("3"));  // adjusted once
}

TEST_P(BillingContract, WhatIsCorrectedAfterItsInvoiceIsAdjustedOnTheNext) {
  put_plan(R"("base_fee":"0")");
  const Subscription subscription = subscribe(agents[0]);
  const auto send = [&](contracts::RuntimeUsageEvent usage, std::optional<Instant> when = {}) -> EventId {
    Timestamp time = time_->now();
    time.physical_ns = unix_ns(when.value_or(clock.now()));
    EventEnvelope envelope{"runtime_usage",
                           EventId::fresh(clock.now()),
                           agents[0],
                           {*ctx.caller, agents[0]},
                           time,
                           usage.to_json().value(),
                           {}};
    envelope.signature =
        registry->sign(ctx, agents[0], as_bytes(envelope.signed_bytes().value()), event_signature_context).value();
    const auto taken = metering->ingest(ctx, envelope.to_json().value());
    EXPECT_TRUE(taken) << taken.error().to_string();
    return taken ? taken->id : EventId::from_bytes({});
  };
  const auto tokens = [](std::string key, std::string_view units, std::string replaces = {}) {
    return contracts::RuntimeUsageEvent{"inference_tokens",
                                        std::move(key),
                                        R"({"input_tokens":"1","model_id":"m","output_tokens":"1","provider":"p"})",
                                        Decimal::literal(units),
                                        {},
                                        std::move(replaces)};
  };
  const auto out = [](std::string key, std::string voids) {
    return contracts::RuntimeUsageEvent{"void", std::move(key), "{}", Decimal(1), {}, {}, std::move(voids)};
  };
  go("2026-11-27T12:00:00Z");
  const Instant november = clock.now();
  send(tokens("a", "1000"));
  send(tokens("b", "200"));
  send(tokens("c", "500"));
  clock.advance(1min);
  send(out("c-out", "key:c"));  // in the same period: on its invoice
  go("2026-12-01T00:00:01Z");
  EXPECT_EQ(invoices(subscription).back().total, d("10.2"));
  clock.advance(1h);
  send(out("a-out", "key:a"));
  const EventId b2 = send(tokens("b2", "300", "key:b"), november);
  send(tokens("d", "100"));
  go("2027-01-01T00:00:01Z");
  // November: 300 * 0.01 instead of 10.20; December: 100 * 0.01
  EXPECT_EQ(invoices(subscription).back().fees, d("-6.2"));
  EXPECT_EQ(invoices(subscription).back().credited, d("6.2"));
  clock.advance(1h);
  send(out("b2-out", b2.to_string()));  // a replacement is an event like any other
  go("2027-02-01T00:00:01Z");
  EXPECT_EQ(invoices(subscription).back().fees, d("-3"));
  go("2027-03-01T00:00:01Z");
  EXPECT_EQ(invoices(subscription).back().fees, d("0"));
}

TEST_P(BillingContract, ASimulationOnTheUsageLogComesToTheSame) {
  if (database_of(GetParam()) == creto::testing::DatabaseKind::postgres)
    GTEST_SKIP() << "its usage log is not in files";
  put_plan(R"("base_fee":"19","minimum_commitment":"30")");
  const Subscription subscription = subscribe(agents[0]);
  clock.advance(1h);
  for (const char* units : {"900", "250", "7"}) {
    use(agents[0], units);
    clock.advance(24h * 12);
  }
  go("2027-01-01T00:00:01Z");
  GivenUsage usage;
  ASSERT_TRUE(dump_usage_log(files, "/usage/log", {.subject = subscription.id.to_string()},
                             [&](std::string_view line) { return usage.add(line); }));
  ASSERT_TRUE(usage.correct());
  const auto simulated =
      Simulation::run(metering->get_plan(ctx, "p", 0).value(), usage, {.from = subscription.started_at}).value();
  const auto made = invoices(subscription);
  ASSERT_EQ(simulated.size(), made.size());
  for (std::size_t i = 0; i < made.size(); ++i) {
    EXPECT_EQ(simulated[i].total, made[i].total);
    EXPECT_EQ(simulated[i].period, made[i].period);
    EXPECT_EQ(simulated[i].lines.size(), made[i].lines.size());
  }
}

TEST_P(BillingContract, InvoicesDoNotDependOnOrderOrRepetitionOfDelivery) {
  put_plan(R"("base_fee":"0")");
  std::vector<std::string> totals;
  std::mt19937_64 random(13);
  for (const Identity& who : agents) {
    const Subscription subscription = subscribe(who);
    clock.advance(1min);
    std::vector<std::string> deliveries;
    for (int i = 0; i < 15; ++i) deliveries.push_back(event(who, std::to_string(i), std::to_string(50 + i * 7)));
    for (int i = 0; i < 15; ++i) deliveries.push_back(deliveries[random() % 15]);
    std::ranges::shuffle(deliveries, random);
    for (std::size_t i = 0; i < deliveries.size();) {
      const std::size_t size = std::min<std::size_t>(1 + random() % 6, deliveries.size() - i);
      ASSERT_TRUE(metering->ingest_batch(ctx, std::span(deliveries).subspan(i, size)));
      i += size;
    }
    clock.advance(1min);
    totals.push_back(metering->issue_invoice(ctx, subscription.id, {})->total.to_string());
  }
  EXPECT_EQ(totals[0], totals[1]);
  EXPECT_EQ(totals[0], totals[2]);
}

TEST_P(BillingContract, AChangeOfTermsIsProratedByDays) {
  put_plan(R"("base_fee":"31","base_fee_in_advance":true)");
  go("2026-12-01T00:00:00Z");
  const Subscription subscription = subscribe(agents[0]);
  clock.advance(1h);
  ASSERT_TRUE(local->tick());
  auto made = invoices(subscription);
  ASSERT_EQ(made.size(), 1u);
  EXPECT_EQ(made[0].kind, InvoiceKind::opening);
  EXPECT_EQ(made[0].total, d("31"));

  clock.set(at("2026-12-11T15:00:00Z"));
  use(agents[0], "100");
  clock.advance(1h);
  const auto changed = metering->change_subscription(
      ctx, subscription.id,
      {.terms = {.plan_id = "p",
                 .quantity = d("2"),
                 .overrides = R"({"charges":{"tokens":{"model":"standard","price":{"tiers":null,"per_unit":"1"}}}})"}});
  ASSERT_TRUE(changed) << changed.error().to_string();
  EXPECT_EQ(changed->terms.size(), 2u);
  clock.advance(1h);
  use(agents[0], "3");
  const auto pending = metering->change_subscription(
      ctx, subscription.id, {.terms = {.plan_id = "p", .quantity = d("3")}, .at_period_end = true});
  ASSERT_TRUE(pending) << pending.error().to_string();
  EXPECT_EQ(pending->terms.back().from, at("2027-01-01T00:00:00Z"));
  go("2027-01-01T00:00:01Z");
  made = invoices(subscription);
  ASSERT_EQ(made.size(), 2u);
  // usage 1.00 and 3.00; 21 days back, 2 * 21 days more; January three times
  EXPECT_EQ(made[1].total, d("118"));

  clock.set(at("2027-01-10T12:00:00Z"));
  ASSERT_TRUE(metering->end_subscription(ctx, subscription.id));
  ASSERT_TRUE(local->tick());
  made = invoices(subscription);
  ASSERT_EQ(made.size(), 3u);
  EXPECT_EQ(made[2].total, d("0"));
  EXPECT_EQ(made[2].credited, d("63"));  // 3 * 21 days
  const auto credits = metering->list_credits(ctx, agents[0].text()).value();
  ASSERT_EQ(credits.size(), 1u);
  EXPECT_EQ(credits[0].balance, d("63"));
  EXPECT_EQ(code(metering->change_subscription(ctx, subscription.id, {.terms = {.plan_id = "p"}})), "MT-409");
  go("2027-03-01T00:00:01Z");
  EXPECT_EQ(invoices(subscription).size(), 3u);
}

TEST_P(BillingContract, CouponsTaxesAndCreditsFollowInTheirOrder) {
  put_plan(R"("base_fee":"0","taxes":[{"id":"vat","name":"VAT 20 %","rate":"20"}],"payment_days":14)");
  const Subscription subscription = subscribe(agents[0]);
  ASSERT_TRUE(metering->put_coupon(ctx, {.id = "half", .name = "Half", .percent = d("50"), .periods = 1}));
  EXPECT_EQ(metering->list_coupons(ctx)->at(0).periods, 1);
  ASSERT_TRUE(metering->apply_coupon(ctx, subscription.id, "half"));
  EXPECT_EQ(code(metering->apply_coupon(ctx, subscription.id, "half")), "MT-409");
  EXPECT_EQ(code(metering->apply_coupon(ctx, subscription.id, "none")), "MT-404");
  ASSERT_TRUE(metering->grant_credit(
      ctx, {.agent = agents[0].text(), .description = "Later", .amount = {d("3")}, .priority = 60}));
  const Credit first =
      metering
          ->grant_credit(ctx, {.agent = agents[0].text(), .description = "First", .amount = {d("2")}, .priority = 1})
          .value();
  const Credit gone =
      metering->grant_credit(ctx, {.agent = agents[0].text(), .description = "Gone", .amount = {d("9")}, .priority = 0})
          .value();
  EXPECT_EQ(metering->void_credit(ctx, gone.id)->balance, d("0"));
  EXPECT_EQ(code(metering->grant_credit(ctx, {.agent = agents[0].text(), .description = "x", .amount = {d("0.001")}})),
            "MT-400");
  ASSERT_TRUE(metering->set_top_up(ctx, {.agent = agents[0].text(), .amount = {d("50")}, .below = d("3")}));

  clock.advance(1h);
  use(agents[0], "700");
  go("2026-12-01T00:00:01Z");
  auto made = invoices(subscription);
  ASSERT_EQ(made.size(), 2u);
  // 7.00 - 3.50 = 3.50; 0.70 tax; 4.20 - 2 - 2.20
  EXPECT_EQ(made[0].total, d("0"));
  ASSERT_EQ(made[0].entries.size(), 4u);
  EXPECT_EQ(made[0].entries[2].id, first.id.to_string());
  EXPECT_EQ(made[0].entries[3].amount, d("-2.2"));
  EXPECT_EQ(made[0].due_at, made[0].issued_at + 24h * 14);
  EXPECT_EQ(made[1].kind, InvoiceKind::top_up);
  ASSERT_TRUE(metering->settle_invoice(ctx, made[1].id, InvoiceStatus::paid, "transfer 1"));
  ASSERT_EQ(metering->list_credits(ctx, agents[0].text())->size(), 4u);
  EXPECT_EQ(balance(agents[0]), d("50.8"));

  // Voiding gives back what it took.
  EXPECT_EQ(metering->settle_invoice(ctx, made[0].id, InvoiceStatus::voided, "a mistake")->status,
            InvoiceStatus::voided);
  EXPECT_EQ(code(metering->settle_invoice(ctx, made[0].id, InvoiceStatus::paid, "x")), "MT-409");
  EXPECT_EQ(balance(agents[0]), d("55"));

  use(agents[0], "700");
  go("2027-01-01T00:00:01Z");
  // The coupon was for one period.
  const Invoice next = invoices(subscription).back();
  EXPECT_EQ(next.fees, d("7"));
  EXPECT_TRUE(
      std::ranges::none_of(next.entries, [](const InvoiceEntry& one) { return one.kind == InvoiceEntryKind::coupon; }));
}

TEST_P(BillingContract, ABalanceThatFallsByItselfIsToppedUpOnce) {
  put_plan(R"("base_fee":"0")");
  const Subscription expiring = subscribe(agents[0]);
  const Subscription voided = subscribe(agents[1]);
  for (const Identity& who : {agents[0], agents[1], agents[2]}) {
    ASSERT_TRUE(metering->set_top_up(ctx, {.agent = who.text(), .amount = {d("50")}, .below = d("3")}));
  }
  const auto grant = [&](const Identity& who, std::optional<Instant> expires) {
    return metering
        ->grant_credit(ctx, {.agent = who.text(), .description = "Prepaid", .amount = {d("5")}, .expires_at = expires})
        .value();
  };
  ASSERT_TRUE(local->tick());
  EXPECT_TRUE(invoices(expiring).empty()) << "it never had any";
  grant(agents[0], at("2026-11-15T00:00:00Z"));
  const Credit gone = grant(agents[1], {});
  ASSERT_TRUE(metering->void_credit(ctx, grant(agents[2], {}).id)) << "who has no subscription";
  go("2026-11-14T23:00:00Z");
  EXPECT_TRUE(invoices(expiring).empty());
  ASSERT_TRUE(metering->void_credit(ctx, gone.id));
  go("2026-11-15T00:00:01Z");
  ASSERT_TRUE(local->tick());
  for (const Subscription& one : {expiring, voided}) {
    const auto made = invoices(one);
    ASSERT_EQ(made.size(), 1u);
    EXPECT_EQ(made[0].kind, InvoiceKind::top_up);
    EXPECT_EQ(made[0].total, d("50"));
    expect_verified(made[0]);
    ASSERT_TRUE(metering->settle_invoice(ctx, made[0].id, InvoiceStatus::paid, "transfer"));
  }
  ASSERT_TRUE(local->tick());
  EXPECT_EQ(balance(agents[1]), d("50"));
  EXPECT_EQ(invoices(expiring).size(), 1u);
}

TEST_P(BillingContract, ACreditNoteOwesPartOfAnInvoiceBack) {
  put_plan(R"("base_fee":"30")");
  const Subscription subscription = subscribe(agents[0]);
  go("2026-12-01T00:00:01Z");
  const Invoice invoice = invoices(subscription).at(0);
  const CreditNote note = metering->issue_credit_note(ctx, invoice.id, d("15"), "an outage").value();
  EXPECT_EQ(note.number, 1);
  EXPECT_NE(note.document.find("\"amount\":\"15.00\""), std::string::npos);
  EXPECT_EQ(code(metering->issue_credit_note(ctx, invoice.id, d("6.01"), "more")), "MT-409");
  EXPECT_EQ(metering->issue_credit_note(ctx, invoice.id, d("6"), "more")->number, 2);
  EXPECT_EQ(metering->list_credit_notes(ctx, invoice.id)->size(), 2u);
  go("2027-01-01T00:00:01Z");
  EXPECT_EQ(invoices(subscription).back().total, d("9"));  // 30 - 21
}

TEST_P(BillingContract, PeriodsAreThoseOfTheAccountsTimeZone) {
  if (!TimeZone::load("America/New_York")) GTEST_SKIP() << "no time zone database here";
  put_plan(R"("base_fee":"30","interval":"monthly")");
  clock.set(at("2027-02-28T20:00:00Z"));
  const auto subscription = metering->subscribe(ctx, {.agent = agents[0].text(),
                                                      .plan_id = "p",
                                                      .billing_time = BillingTime::anniversary,
                                                      .time_zone = "America/New_York"});
  ASSERT_TRUE(subscription) << subscription.error().to_string();
  EXPECT_EQ(metering->get_subscription(ctx, subscription->id)->time_zone, "America/New_York");
  go("2027-03-28T03:59:59Z");
  EXPECT_TRUE(invoices(*subscription).empty());
  go("2027-03-28T04:00:00Z");  // summer began in between
  const auto made = invoices(*subscription);
  ASSERT_EQ(made.size(), 1u);
  EXPECT_EQ(made[0].total, d("30"));
}

TEST_P(BillingContract, AnEventThatCannotBeReckonedIsLeftOutAndToldAndHoldsUpNoInvoice) {
  const auto plan = plan_from_json(
      R"({"id":"q","charges":[
        {"id":"c","model":"standard","metric":{"event_type":"inference_tokens","aggregation":"sum","property":"pages"},"price":{"per_unit":"1"}},
        {"id":"n","model":"standard","metric":{"event_type":"inference_tokens"},"price":{"per_unit":"10"}}]})");
  ASSERT_TRUE(metering->put_plan(ctx, *plan));
  const auto subscription = metering->subscribe(ctx, {.agent = agents[1].text(), .plan_id = "q"});
  ASSERT_TRUE(subscription);
  clock.advance(1h);
  // What a gateway saw is taken in any case.
  const auto pages = [&](const std::string& key, std::string_view value) {
    const auto taken = metering->ingest(ctx, event(agents[1], key, "1", {}, fmt::format(R"(,"pages":"{}")", value)));
    EXPECT_TRUE(taken) << taken.error().to_string();
    EXPECT_EQ(taken->left_out, value != "3") << "who brings it is told";
    return taken->id.to_string();
  };
  pages("good", "3");
  const std::string words = pages("words", "many");
  const std::string huge = pages("huge", "1000000000000000000000");
  use(agents[1], "1");
  go("2026-12-01T00:00:01Z");
  const auto made = invoices(*subscription);
  ASSERT_EQ(made.size(), 1u);
  EXPECT_EQ(made[0].total, d("43"));
  const auto line = std::ranges::find(made[0].lines, "left_out", &InvoiceLine::charge);
  ASSERT_NE(line, made[0].lines.end());
  EXPECT_EQ(line->events, 3);
  EXPECT_EQ(line->amount, Decimal());
  EXPECT_NE(line->description.find(words), std::string::npos);
  EXPECT_NE(line->description.find(huge), std::string::npos);
}

TEST_P(BillingContract, WhatAChargeCannotReckonWithIsRefusedWhereItIsReported) {
  const auto plan = [&](std::string_view id, std::string_view metric) {
    const auto made = plan_from_json(fmt::format(
        R"({{"id":"{}","charges":[{{"id":"c","model":"standard","metric":{{"event_type":"read","match":{{"kind":["paid"]}},{}}},"price":{{"per_unit":"1"}}}}]}})",
        id, metric));
    ASSERT_TRUE(made) << made.error().to_string();
    ASSERT_TRUE(metering->put_plan(ctx, *made));
  };
  plan("sum", R"("aggregation":"sum","property":"pages")");
  plan("unique", R"("aggregation":"unique_count","property":"reader")");
  plan("formula", R"("aggregation":"max","expression":"pages / sheets")");
  using Properties = std::vector<PropertyView>;
  std::string key = "0";
  const auto report = [&](Properties properties) {
    properties.emplace_back("kind", "paid");
    Bytes bytes;
    encode_record({.bytes = {},
                   .agent = agents[1].text(),
                   .type = "read",
                   .key = key,
                   .time = clock.now(),
                   .properties = properties},
                  bytes);
    const auto taken = metering->ingest_records(ctx, {.records = {std::string(as_text(bytes))}}).value();
    if (!taken.front()) return taken.front().error().to_string();
    return std::string(taken.front()->duplicate ? "again" : "ok");
  };
  const auto fresh = [&](const Properties& properties) {
    clock.advance(1s);
    key = std::to_string(unix_ns(clock.now()));
    return report(properties);
  };
  EXPECT_EQ(fresh({}), "ok") << "nobody bills it";
  key = "before";
  EXPECT_EQ(report({}), "ok");
  const auto subscription = metering->subscribe(ctx, {.agent = agents[1].text(), .plan_id = "sum"});
  ASSERT_TRUE(subscription);
  EXPECT_EQ(report({}), "again") << "what was taken stays taken";
  EXPECT_EQ(fresh({{"pages", "3"}}), "ok");
  EXPECT_EQ(fresh({{"pages", "0.25"}}), "ok");
  EXPECT_EQ(fresh({}), "MT-400: properties.pages: is required by charge `c` of plan `sum`, which takes its sum");
  EXPECT_EQ(
      fresh({{"pages", "many"}}),
      "MT-400: properties.pages: must be a decimal number, as wanted by charge `c` of plan `sum`, which takes its sum");
  EXPECT_EQ(
      fresh({{"pages", "1000000000000000000000"}}),
      "MT-400: properties.pages: must be at most 10^18, as wanted by charge `c` of plan `sum`, which takes its sum");
  const auto change = [&](std::string plan_id) {
    SubscriptionChange next;
    next.terms.plan_id = std::move(plan_id);
    clock.advance(1s);
    const auto changed = metering->change_subscription(ctx, subscription->id, next);
    EXPECT_TRUE(changed) << changed.error().to_string();
  };
  change("unique");
  EXPECT_EQ(fresh({{"reader", "ada"}}), "ok");
  EXPECT_EQ(fresh({{"pages", "3"}}).substr(0, 35), "MT-400: properties.reader: is requi");
  change("formula");
  EXPECT_EQ(fresh({{"pages", "3"}, {"sheets", "2"}}), "ok");
  EXPECT_EQ(fresh({{"pages", "3"}, {"sheets", "0"}}).substr(0, 19), "MT-400: properties:");
  EXPECT_EQ(fresh({{"pages", "3"}}).substr(0, 19), "MT-400: properties:");
  go("2026-12-01T00:00:01Z");
  const auto made = invoices(*subscription);
  ASSERT_EQ(made.size(), 1u);
  EXPECT_EQ(made[0].total, d("5.75")) << "3.25 pages, one reader, 1.5";
  EXPECT_EQ(std::ranges::find(made[0].lines, "left_out", &InvoiceLine::charge), made[0].lines.end());
}

TEST_P(BillingContract, WhatComesLateForASubscriptionThatHasEndedIsBilledOrCredited) {
  put_plan(R"("base_fee":"0")");
  const Subscription subscription = subscribe(agents[0]);
  clock.advance(1h);
  use(agents[0], "100");
  clock.advance(1h);
  ASSERT_TRUE(metering->end_subscription(ctx, subscription.id));
  go("2026-11-10T15:00:00Z");
  ASSERT_EQ(invoices(subscription).size(), 1u);
  EXPECT_EQ(invoices(subscription)[0].total, d("1"));
  EXPECT_EQ(code(metering->issue_invoice(ctx, subscription.id, {})), "MT-409") << "nothing came late";
  const std::string late = event(agents[0], "late", "50", at("2026-11-10T12:30:00Z"));
  ASSERT_TRUE(metering->ingest(ctx, late));
  go("2026-12-01T00:00:01Z");
  auto made = invoices(subscription);
  ASSERT_EQ(made.size(), 2u);
  EXPECT_EQ(made[1].total, d("0.5"));
  ASSERT_EQ(made[1].lines.size(), 1u);
  EXPECT_EQ(made[1].lines[0].kind, LineKind::adjustment);
  go("2027-01-01T00:00:01Z");
  EXPECT_EQ(invoices(subscription).size(), 2u) << "billed once";
  const std::string late_id = EventEnvelope::from_json(late)->event_id.to_string();
  Bytes bytes;
  encode_record({.bytes = {},
                 .agent = agents[0].text(),
                 .type = void_type,
                 .key = "out",
                 .time = clock.now(),
                 .voids = late_id,
                 .properties = {}},
                bytes);
  const auto voided = metering->ingest_records(ctx, {.records = {std::string(as_text(bytes))}}).value();
  ASSERT_TRUE(voided.front()) << voided.front().error().to_string();
  go("2027-02-01T00:00:01Z");
  made = invoices(subscription);
  ASSERT_EQ(made.size(), 3u);
  EXPECT_EQ(made[2].credited, d("0.5"));
  EXPECT_EQ(balance(agents[0]), d("0.5"));
}

TEST_P(BillingContract, WhatGaveACreditAlreadyIsNotVoided) {
  put_plan(R"("base_fee":"30")");
  const Subscription subscription = subscribe(agents[0]);
  clock.advance(1h);
  use(agents[0], "1000");
  clock.advance(1h);
  const Invoice invoice = metering->issue_invoice(ctx, subscription.id, {}).value();
  ASSERT_TRUE(metering->issue_credit_note(ctx, invoice.id, d("4"), "too slow"));
  EXPECT_EQ(code(metering->settle_invoice(ctx, invoice.id, InvoiceStatus::voided, "mistake")), "MT-409");
  EXPECT_EQ(balance(agents[0]), d("4"));
  EXPECT_TRUE(metering->settle_invoice(ctx, invoice.id, InvoiceStatus::paid, "transfer"));
}

TEST_P(BillingContract, InvoicesAreKeptAndSentUntilItSucceeds) {
  carrier = bus::create_embedded_bus(*db, clock, no_telemetry(), {.poll_interval = 10ms}).value();
  ASSERT_TRUE(local->attach(*carrier));
  mailbox.failures = 1;
  put_plan(R"("base_fee":"30")");
  const Subscription subscription = subscribe(agents[0]);
  clock.advance(1h);
  const Invoice invoice = metering->issue_invoice(ctx, subscription.id, {}).value();
  for (int i = 0; i < 200 && !carrier->wait_until_idle(20ms); ++i) clock.advance(1s);
  const Invoice sent = metering->get_invoice(ctx, invoice.id).value();
  EXPECT_TRUE(sent.sent);
  EXPECT_FALSE(sent.pdf_object.empty());
  EXPECT_EQ(mailbox.kept.size(), 1u);
  EXPECT_EQ(mailbox.sent, std::vector<std::int64_t>{1});
}

/// Tables as they were before there were periods of other lengths, with one invoice in them.
class OldTables : public ::testing::TestWithParam<Where> {};

TEST_P(OldTables, AreTakenOver) {
  creto::testing::FakeClock clock{at("2026-11-10T12:00:00Z")};
  creto::testing::TestDatabase database(database_of(GetParam()), clock);
  creto::testing::TestSealer sealer;
  creto::testing::FaultFiles files;
  Mailbox mailbox;
  const Context ctx = Context::of_service(Identity::service("test").value());
  const auto db = database.open();
  ASSERT_TRUE(audit::prepare(*db));
  ASSERT_TRUE(store::migrate(*db));
  const SubscriptionId lives = SubscriptionId::fresh(clock.now());
  const SubscriptionId ended = SubscriptionId::fresh(clock.now());
  const InvoiceId old = InvoiceId::fresh(clock.now());
  const Instant started = at("2026-09-15T00:00:00Z");
  const std::string document = fmt::format(
      R"({{"agent":"service:old","currency":"USD","id":"{}","issued_at":"2026-11-01T00:00:05Z","lines":[{{"amount":"7.50","charge":"tokens","description":"Tokens","events":"3","exact":"7.5","group":"","model":"standard","units":"750"}}],"number":"1","period":{{"begin":"2026-10-01T00:00:00Z","end":"2026-11-01T00:00:00Z"}},"plan":{{"id":"p","name":"Plan","version":"1"}},"schema_version":1,"subscription":"{}","total":"7.50"}})",
      old.to_string(), lives.to_string());
  const std::string plan =
      R"({"base_fee":"30","charges":[],"currency":"USD","id":"p","name":"Plan","schema_version":1})";
  ASSERT_TRUE(db->transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("INSERT INTO metering_plans (org, id, version, doc) VALUES ($1, 'p', 1, $2)", {ctx.org, plan}));
    CRETO_TRY(
        tx.exec("INSERT INTO metering_subscriptions (org, id, agent, plan_id, plan_version, started_ns, ended_ns) "
                "VALUES ($1, $2, 'service:old', 'p', 1, $3, NULL), ($1, $4, 'service:gone', 'p', 1, $3, $5)",
                {ctx.org, lives.to_string(), started, ended.to_string(), at("2026-10-10T00:00:00Z")}));
    CRETO_TRY(tx.exec("INSERT INTO metering_numbers (org, name, value) VALUES ($1, 'invoice', 1)", {ctx.org}));
    CRETO_TRY(
        tx.exec("INSERT INTO metering_invoices (org, id, number, subscription, period_begin_ns, period_end_ns, doc, "
                "algorithm, signature, pdf_object, sent, log_segment, log_offset) "
                "VALUES ($1, $2, 1, $3, $4, $5, $6, 'hybrid-ed25519-ml-dsa-65', $7, 'kept/there', 1, 0, 0)",
                {ctx.org, old.to_string(), lives.to_string(), at("2026-10-01T00:00:00Z"), at("2026-11-01T00:00:00Z"),
                 document, Bytes{1, 2, 3}}));
    return {};
  }));
  const auto registry = nhi::create_nhi(*db, sealer, clock).value();
  const auto ceiling = consensus::create_ceiling_store(*db, "test").value();
  const auto time = consensus::create_timestamp_source(*ceiling, clock, no_telemetry(),
                                                       {.node = "test", .renew_in_background = false})
                        .value();
  const auto metering = create_metering(*db, files, "/usage", *registry, *time, mailbox, clock, no_telemetry()).value();

  const Subscription taken = metering->get_subscription(ctx, lives).value();
  EXPECT_EQ(taken.agent, "service:old");
  EXPECT_EQ(taken.started_at, started);
  EXPECT_EQ(taken.terms.at(0).plan_version, 1);
  EXPECT_EQ(metering->get_subscription(ctx, ended)->ended_at, at("2026-10-10T00:00:00Z"));
  const Invoice kept = metering->get_invoice(ctx, old).value();
  EXPECT_EQ(kept.document, document) << "what was signed stays as it is";
  EXPECT_EQ(kept.signature->value, (Bytes{1, 2, 3}));
  EXPECT_EQ(kept.total, d("7.5"));
  EXPECT_EQ(kept.lines.at(0).kind, LineKind::usage);
  EXPECT_EQ(kept.pdf_object, "kept/there");
  EXPECT_TRUE(kept.sent);

  clock.set(at("2026-12-01T00:00:01Z"));
  ASSERT_TRUE(metering->tick());
  auto made = metering->list_invoices(ctx, lives).value();
  ASSERT_EQ(made.size(), 2u) << "October is billed already, November is next";
  EXPECT_EQ(made[0].period, (Period{at("2026-11-01T00:00:00Z"), at("2026-12-01T00:00:00Z")}));
  EXPECT_EQ(made[0].total, d("30"));
}

INSTANTIATE_TEST_SUITE_P(, OldTables, ::testing::Values(Where::sqlite, Where::postgres), database_name);
INSTANTIATE_TEST_SUITE_P(, BillingContract, everywhere(), database_name);

}  // namespace
}  // namespace creto::metering
