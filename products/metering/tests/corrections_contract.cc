// What was reported wrongly: voids and replacements, and who may make them.

#include "metering_contract.h"

namespace creto::metering {
namespace {

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

}  // namespace
}  // namespace creto::metering
