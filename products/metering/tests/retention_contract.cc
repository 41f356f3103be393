// What is cut off the usage log, and that nobody can tell by what is counted, billed and asked of later times.

#include <map>
#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "ledger/block_log.h"
#include "metering_contract.h"

namespace creto::metering {
namespace {

constexpr Nanos day = 24h;

class RetentionContract : public MeteringContract {
 protected:
  RetentionContract() {
    stop();
    audited = true;
    options.retention = 40 * day;
    options.event_age_max = day;
    options.segment_events_max = 9;
    start();
    owner_ = agent("owner", *ctx.caller, 2'000 * day);
    worker_ = agent("worker", *owner_, 2'000 * day);
  }

  struct Use {
    std::string key;
    const Identity* who;
    std::int64_t units = 1;
    std::string cost{}, currency{}, replaces{}, voids{};
  };
  std::string encoded(const Use& use) {
    Bytes bytes;
    const std::string units = use.voids.empty() ? std::to_string(use.units) : "0";
    encode_record({.bytes = {},
                   .agent = use.who->text(),
                   .type = use.voids.empty() ? std::string_view("t") : void_type,
                   .key = use.key,
                   .time = clock.now(),
                   .units = units,
                   .cost = use.cost,
                   .currency = use.currency,
                   .replaces = use.replaces,
                   .voids = use.voids,
                   .properties = {}},
                  bytes);
    return std::string(as_text(bytes));
  }
  Result<Ingested> take(const Use& use) {
    auto answers = CRETO_TRY(metering->ingest_records(ctx, {.records = {encoded(use)}}));
    return answers.front();
  }
  std::string problems() {
    const auto found = metering->verify_usage(ctx);
    if (!found) return found.error().to_string();
    return fmt::format("{}", fmt::join(found->problems, "; "));
  }
  /// What follows from the log alone is gone: the next start has the log and its base.
  void lose_what_follows() {
    stop();
    for (const std::string& name : files.list("/usage").value_or(std::vector<std::string>()))
      if (name.ends_with(".state")) EXPECT_TRUE(files.remove("/usage/" + name));
    for (const std::string& of : {"/usage/keys", "/usage/columns"})
      for (const std::string& name : files.list(of).value_or(std::vector<std::string>()))
        EXPECT_TRUE(files.remove(of + ("/" + name)));
    start();
  }
  std::optional<Instant> held_since() { return metering->usage(ctx, {.group_by = {}})->held_since; }
  std::int64_t segments() {
    if (database_of(GetParam()) == creto::testing::DatabaseKind::postgres)
      return rows("SELECT count(DISTINCT segment) FROM metering_blocks");
    const auto names = files.list("/usage/log").value();
    return std::ranges::count_if(names, [](const std::string& name) { return name.ends_with(".usage"); });
  }

  std::optional<Identity> owner_, worker_;
};

TEST_P(RetentionContract, WhatIsCutOffStillCountsAndNothingElseChanges) {
  std::mt19937_64 random(11);
  const auto put = [&](Quota one) { ASSERT_TRUE(metering->set_quota(ctx, one)); };
  std::vector<std::pair<std::string, std::string>> quotas;  // id and whose
  const auto of = [&](std::string id, const std::string& subject, Measure measure, WindowKind window) {
    Quota one = quota(std::move(id), *owner_, limit_max, measure == Measure::units ? "t" : "");
    one.subject = subject;
    one.measure = measure;
    one.window = window;
    if (window == WindowKind::rolling) one.rolling_length = 10 * day;
    put(one);
    for (const Identity* who : {&*owner_, &*worker_})
      if (subject == "agent:*" || subject == who->text()) quotas.emplace_back(one.id, who->text());
  };
  of("ever", owner_->text(), Measure::events, WindowKind::lifetime);
  of("month", worker_->text(), Measure::units, WindowKind::month);
  of("each", "agent:*", Measure::units, WindowKind::lifetime);
  of("rolling", owner_->text(), Measure::cost, WindowKind::rolling);
  ASSERT_TRUE(metering->set_threshold(ctx, {owner_->text(),
                                            {"euros",
                                             BillingPeriod::lifetime,
                                             {Decimal(1'000'000), Currency::parse("EUR").value()},
                                             contracts::ThresholdAction::block,
                                             {}}}));
  ASSERT_TRUE(
      metering->put_plan(ctx, plan_from_json(R"({"id":"p","base_fee":"0","charges":[{"id":"t","model":"standard",
      "metric":{"event_type":"t","aggregation":"sum","property":"units"},"price":{"per_unit":"0.01"}}]})")
                                  .value()));
  const auto subscription = metering->subscribe(ctx, {.agent = owner_->text(), .plan_id = "p"});
  ASSERT_TRUE(subscription) << subscription.error().to_string();

  std::map<std::string, std::int64_t> counting;  // by key
  std::int64_t uses = 0;
  const auto answers = [&] {
    std::vector<std::string> all;
    for (const auto& [id, whose] : quotas) {
      const auto state = metering->quota_state(ctx, id, id == "each" ? whose : "");
      all.push_back(fmt::format("{} of {}: {}", id, whose, state ? state->used : -1));
    }
    for (const Identity* who : {&*owner_, &*worker_}) {
      for (const auto period : {BillingPeriod::month, BillingPeriod::lifetime})
        all.push_back(fmt::format("cost: {}", metering->accumulated_cost(ctx, *who, period)->total.amount.to_string()));
    }
    return all;
  };
  const auto used_since = [&](Instant from) {
    using By = UsageGrouping::By;
    const auto report =
        metering->usage(ctx, {.from = from, .group_by = {{By::type, {}}, {By::agent, {}}, {By::day, {}}}});
    EXPECT_TRUE(report) << report.error().to_string();
    std::vector<std::string> all;
    for (const UsageRow& row : report->rows)
      all.push_back(fmt::format("{}: {} {} {}", fmt::join(row.keys, " "), row.events, row.units.to_string(),
                                row.cost.amount.to_string()));
    UsageEventsQuery query{.from = from};
    for (const std::string& event : metering->usage_events(ctx, query)->events) all.push_back(event);
    return all;
  };
  std::vector<std::string> recent;
  std::size_t cuts = 0;
  for (int step = 0; step < 50; ++step) {
    clock.advance(Nanos(12h) + Nanos(1h) * static_cast<std::int64_t>(random() % 60));
    for (std::uint64_t n = random() % 6; n > 0; --n) {
      Use use{.key = fmt::format("k{}", uses++), .who = &*owner_};
      use.units = static_cast<std::int64_t>(random() % 9);
      if (random() % 2 == 0) use.cost = fmt::format("0.{:02}", random() % 100);
      if (!use.cost.empty()) use.currency = random() % 3 == 0 ? "EUR" : "USD";
      std::string& taken_out = random() % 2 == 0 ? use.voids : use.replaces;
      if (!recent.empty() && random() % 4 == 0) {
        taken_out = "key:" + recent.back();
        recent.pop_back();
      }
      const std::string corrected = use.voids.empty() ? use.replaces : use.voids;
      if (!use.voids.empty()) use.cost = use.currency = {};
      const auto taken = take(use);
      // A key is known for seven days.
      if (!taken) ASSERT_EQ(code(taken), "MT-404") << taken.error().to_string();
      if (!taken) continue;
      if (!corrected.empty()) counting.erase(corrected.substr(4));
      if (use.voids.empty()) {
        counting[use.key] = use.units;
        recent.push_back(use.key);
      }
      if (recent.size() > 4) recent.erase(recent.begin());
      Use below{.key = fmt::format("w{}", uses), .who = &*worker_, .units = 2, .cost = "0.5", .currency = "USD"};
      ASSERT_TRUE(take(below));
      counting[below.key] = 2;
    }
    const auto before = answers();
    const Instant since = clock.now() - 40 * day;
    const auto used_before = used_since(since);
    const auto held_before = held_since();
    ASSERT_TRUE(local->tick());
    const auto held = held_since();
    ASSERT_EQ(answers(), before) << "in step " << step;
    ASSERT_EQ(used_since(since), used_before) << "in step " << step;
    if (held) ASSERT_LT(*held, since);
    if (held != held_before) ++cuts;
    if (step % 9 == 4) {
      stop();
      start();
    }
    if (step % 9 == 7) lose_what_follows();
    ASSERT_EQ(answers(), before) << "after a start, in step " << step;
    ASSERT_EQ(used_since(since), used_before) << "after a start, in step " << step;
    if (step % 8 == 0) ASSERT_EQ(problems(), "") << "in step " << step;
    if (step == 40) {
      // Put again, one that counts all there ever was begins with what is no longer held.
      ASSERT_TRUE(metering->delete_quota(ctx, "ever"));
      of("ever", owner_->text(), Measure::events, WindowKind::lifetime);
      quotas.pop_back();
      ASSERT_EQ(answers(), before);
      ASSERT_EQ(problems(), "");
    }
  }
  EXPECT_GT(cuts, 2u);
  EXPECT_EQ(metering->quota_state(ctx, "ever")->used, std::ssize(counting));
  const auto verified = metering->verify_usage(ctx).value();
  EXPECT_GT(verified.events_cut, 10u);
  EXPECT_LT(segments(), 45);
  // Two more ends of months, and all is billed.
  for (int month = 0; month < 3; ++month) {
    clock.advance(31 * day);
    ASSERT_TRUE(local->tick());
  }
  Decimal billed;
  for (const Invoice& invoice : metering->list_invoices(ctx, subscription->id).value()) {
    for (const InvoiceLine& line : invoice.lines) billed = Decimal::add(billed, line.amount).value();
  }
  std::int64_t units = 0;
  for (const auto& [key, of_key] : counting) units += of_key;
  EXPECT_EQ(billed, Decimal::multiply(Decimal(units), Decimal::literal("0.01")).value());
  ASSERT_EQ(problems(), "");
}

TEST_P(RetentionContract, WhatAnInvoiceMayAskForStays) {
  ASSERT_TRUE(metering->put_plan(
      ctx, plan_from_json(R"({"id":"year","base_fee":"0","interval":"yearly","charges":[{"id":"t","model":"standard",
      "metric":{"event_type":"t","aggregation":"sum","property":"units"},"price":{"per_unit":"1"}}]})")
               .value()));
  const auto subscription =
      metering->subscribe(ctx, {.agent = owner_->text(), .plan_id = "year", .billing_time = BillingTime::anniversary});
  ASSERT_TRUE(subscription) << subscription.error().to_string();
  for (int i = 0; i < 30; ++i) {
    ASSERT_TRUE(take({.key = std::to_string(i), .who = &*owner_}));
    clock.advance(5 * day);
    ASSERT_TRUE(local->tick());
  }
  EXPECT_EQ(held_since(), std::nullopt) << "the year is not over";
  clock.advance(300 * day);
  ASSERT_TRUE(local->tick());
  ASSERT_TRUE(local->tick());
  const auto invoices = metering->list_invoices(ctx, subscription->id).value();
  Decimal billed;
  for (const Invoice& invoice : invoices) billed = Decimal::add(billed, invoice.total).value();
  EXPECT_EQ(billed, Decimal(30));
  EXPECT_NE(held_since(), std::nullopt);
}

TEST_P(RetentionContract, WhatComesLateForAPeriodThatIsGoneIsNotBilledAndLowersNothing) {
  ASSERT_TRUE(
      metering->put_plan(ctx, plan_from_json(R"({"id":"p","base_fee":"0","charges":[{"id":"t","model":"standard",
      "metric":{"event_type":"t","aggregation":"sum","property":"units"},"price":{"per_unit":"1"}}]})")
                                  .value()));
  const auto subscription = metering->subscribe(ctx, {.agent = owner_->text(), .plan_id = "p"});
  ASSERT_TRUE(subscription);
  std::vector<EventId> ids;
  for (int i = 0; i < 60; ++i) {
    ids.push_back(take({.key = std::to_string(i), .who = &*owner_})->id);
    clock.advance(2 * day);
    ASSERT_TRUE(local->tick());
  }
  const auto since = held_since();
  ASSERT_TRUE(since);
  const auto total = [&] {
    Decimal billed;
    for (const Invoice& invoice : metering->list_invoices(ctx, subscription->id).value())
      billed = Decimal::add(billed, invoice.total).value();
    return billed;
  };
  // The first event that is held: of a month whose first events are not.
  const auto events = metering->usage_events(ctx, {.limit = 1}).value().events;
  const std::string id = parse_json(events.front()).value()["id"];
  const auto late = take({.key = "late", .who = &*owner_, .units = 5, .replaces = id});
  ASSERT_TRUE(late) << late.error().to_string();
  EXPECT_EQ(code(take({.key = "too late", .who = &*owner_, .replaces = ids.front().to_string()})), "MT-404");
  const std::int64_t told = rows("SELECT count(*) FROM audit_pending");
  clock.advance(40 * day);
  ASSERT_TRUE(local->tick());
  ASSERT_TRUE(local->tick());
  EXPECT_EQ(total(), Decimal(65)) << "the replacement is of now, and its time is gone";
  EXPECT_GT(rows("SELECT count(*) FROM audit_pending"), told);
  EXPECT_EQ(problems(), "");
}

TEST_P(RetentionContract, WhoeverStopsACutLeavesTheFormerStateOrTheNewOne) {
  Quota all = quota("all", *owner_, limit_max, "t");
  all.window = WindowKind::lifetime;
  ASSERT_TRUE(metering->set_quota(ctx, all));
  std::int64_t taken = 0;
  const auto use = [&](int days) {
    for (int i = 0; i < days; ++i) {
      ASSERT_TRUE(take({.key = std::to_string(taken), .who = &*owner_}));
      ++taken;
      clock.advance(day);
    }
  };
  use(60);
  std::uint64_t cut = 0;
  for (std::uint64_t step = 1; step <= 25; ++step) {
    use(3);
    files.die_at(step);
    (void)local->tick();
    stop();
    files.crash(step);
    start();
    const auto found = metering->verify_usage(ctx);
    ASSERT_TRUE(found) << found.error().to_string() << " at step " << step;
    ASSERT_EQ(fmt::format("{}", fmt::join(found->problems, "; ")), "") << "at step " << step;
    ASSERT_EQ(found->events + found->events_cut, static_cast<std::uint64_t>(taken)) << "at step " << step;
    ASSERT_GE(found->events_cut, cut) << "at step " << step;
    cut = found->events_cut;
    ASSERT_EQ(metering->quota_state(ctx, "all")->used, taken) << "at step " << step;
  }
  EXPECT_GT(cut, 20u);
  ASSERT_TRUE(local->tick());
  EXPECT_EQ(problems(), "");
}

TEST_P(RetentionContract, ABaseThatNobodyRecordedIsFound) {
  for (int i = 0; i < 60; ++i) {
    ASSERT_TRUE(take({.key = std::to_string(i), .who = &*owner_}));
    clock.advance(day);
    ASSERT_TRUE(local->tick());
  }
  ASSERT_TRUE(held_since());
  EXPECT_EQ(problems(), "");
  const UsageVerification found = metering->verify_usage(ctx).value();
  EXPECT_EQ(found.events + found.events_cut, 60u);
  EXPECT_GT(found.heads, 1u);
  EXPECT_EQ(found.held_since, held_since());
  stop();
  db = database_.open();
  const bool table = database_of(GetParam()) == creto::testing::DatabaseKind::postgres;
  auto log = table ? open_block_table(*db).value() : open_block_files(files, "/usage/log").value();
  LogBase forged = *log->base().value();
  ASSERT_TRUE(log->scan({forged.segment, 0}, {forged.segment + 1, 0}, [&](auto, auto, const Hash256& hash) -> Result<> {
    forged.before = hash;
    return {};
  }));
  ++forged.segment;
  ASSERT_TRUE(log->cut(forged, [](const Hash256&) { return Result<>(); }));
  log.reset();
  db.reset();
  start();
  EXPECT_NE(problems().find("nobody recorded"), std::string::npos) << problems();
}

TEST_P(RetentionContract, AnotherCurrencyIsRefusedWhereCostsCannotBeCountedAgain) {
  for (int i = 0; i < 60; ++i) {
    ASSERT_TRUE(take({.key = std::to_string(i), .who = &*owner_, .cost = "1", .currency = "USD"}));
    clock.advance(day);
    ASSERT_TRUE(local->tick());
  }
  ASSERT_TRUE(held_since());
  client_.reset();
  wire_.reset();
  metering = nullptr;
  local.reset();
  MeteringOptions other = options;
  other.currency = Currency::parse("EUR").value();
  const auto made =
      create_metering(*db, files, "/usage", *registry, *time_, mailbox, clock, no_telemetry(), std::move(other));
  ASSERT_FALSE(made);
  EXPECT_NE(made.error().to_string().find("metering.currency: must stay USD"), std::string::npos)
      << made.error().to_string();
}

TEST_P(RetentionContract, SettingsHaveTheirLimits) {
  client_.reset();
  wire_.reset();
  metering = nullptr;
  local.reset();
  MeteringOptions other = options;
  other.retention = 31 * day;
  EXPECT_FALSE(create_metering(*db, files, "/usage", *registry, *time_, mailbox, clock, no_telemetry(), other));
  other.retention = 50 * day;
  other.idempotency_window = 50 * day;
  const auto made = create_metering(*db, files, "/usage", *registry, *time_, mailbox, clock, no_telemetry(), other);
  ASSERT_FALSE(made);
  EXPECT_NE(made.error().to_string().find("metering.retention: must be"), std::string::npos)
      << made.error().to_string();
}

INSTANTIATE_TEST_SUITE_P(, RetentionContract, everywhere(), database_name);

}  // namespace
}  // namespace creto::metering
