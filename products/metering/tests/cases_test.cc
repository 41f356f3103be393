// Amounts that other billing systems arrive at, through the path that makes our invoices: rating, then the invoice's
// total; aggregates come from events as callers give them. What is here only gives things our names.

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "billing/credits.h"
#include "billing/invoicing.h"
#include "billing/price_table.h"
#include "billing/pricing.h"
#include "billing/rating.h"
#include "creto/metering/simulation.h"

namespace creto::metering {
namespace {

using Case = nlohmann::json;

std::string text_of(const Case& json) { return json.is_string() ? json.get<std::string>() : json.dump(); }
Decimal number(const Case& json) { return Decimal::literal(text_of(json)); }
Decimal number_or(const Case& params, const char* key, const Decimal& otherwise = {}) {
  return params.contains(key) ? number(params[key]) : otherwise;
}

std::vector<Tier> tiers_of(const Case& params) {
  std::vector<Tier> tiers;
  if (params.contains("tiers")) {
    for (const Case& tier : params["tiers"]) {
      std::optional<Decimal> up_to;
      if (!tier["up_to"].is_null()) up_to = number(tier["up_to"]);
      tiers.push_back({up_to, number_or(tier, "unit"), number_or(tier, "flat")});
    }
    return tiers;
  }
  for (const Case& range : params["ranges"]) {
    std::optional<Decimal> up_to;
    if (!range["to"].is_null()) up_to = number(range["to"]);
    tiers.push_back({up_to, number_or(range, range.contains("rate") ? "rate" : "per_unit"), number_or(range, "flat")});
  }
  return tiers;
}

Price price_of(const std::string& kind, const Case& params) {
  if (kind == "charge.standard") return StandardPrice{number(params["amount"])};
  if (kind == "charge.dynamic_multiplier") return StandardPrice{number(params["multiplier"])};
  if (kind == "charge.dynamic") {
    return DynamicPrice{Decimal::divide(Decimal(1), number(params["currency_subunit"])).value()};
  }
  if (kind == "charge.graduated" || kind == "charge.graduated_upto") return GraduatedPrice{tiers_of(params)};
  if (kind == "charge.graduated_percentage") return GraduatedPercentagePrice{tiers_of(params)};
  if (kind == "charge.volume" || kind == "charge.volume_upto") return VolumePrice{tiers_of(params)};
  if (kind == "charge.package") {
    return PackagePrice{number(params["amount"]), number(params["package_size"]), number_or(params, "free_units")};
  }
  EXPECT_EQ(kind, "charge.percentage");
  PercentagePrice price;
  price.rate = number(params["rate"]);
  price.fixed = number_or(params, "fixed_amount");
  if (params.contains("free_units_per_events")) price.free_events = params["free_units_per_events"].get<std::int64_t>();
  if (params.contains("free_units_per_total_aggregation"))
    price.free_value = number(params["free_units_per_total_aggregation"]);
  if (params.contains("per_transaction_min")) price.event_min = number(params["per_transaction_min"]);
  if (params.contains("per_transaction_max")) price.event_max = number(params["per_transaction_max"]);
  return price;
}

/// The values of single events, from whichever of the forms the case has.
std::vector<Decimal> values_of(const Case& one) {
  std::vector<Decimal> values;
  if (one["params"].contains("sum_precise_amount_cents")) return {number(one["params"]["sum_precise_amount_cents"])};
  if (!one.contains("events") || !one["events"].is_object()) return {number(one["units"])};
  const Case& events = one["events"];
  if (events.contains("values")) {
    for (const Case& value : events["values"]) values.push_back(number(value));
    return values;
  }
  Decimal running;
  for (const Case& until : events.value("running_total", Case::array())) {
    values.push_back(Decimal::subtract(number(until), running).value());
    running = number(until);
  }
  // What remains goes to the events that the case only counts.
  const auto missing = events["count"].get<std::int64_t>() - static_cast<std::int64_t>(values.size());
  const Decimal rest = Decimal::subtract(number(one["units"]), running).value();
  for (std::int64_t i = 0; i < missing; ++i) values.push_back(Decimal::divide(rest, Decimal(missing)).value());
  return values;
}

struct Event {
  EventId id;
  Instant time;
  Properties properties;
};
EventId id_of(std::size_t n) {
  ByteArray<16> bytes{};
  bytes[14] = static_cast<std::uint8_t>(n >> 8);
  bytes[15] = static_cast<std::uint8_t>(n);
  return EventId::from_bytes(bytes);
}

Instant at(std::string_view text) { return from_rfc3339(text).value(); }
Instant on_day(Instant begin, double days) { return begin + Nanos(static_cast<std::int64_t>(days * 86'400e9)); }
const Period march{at("2024-03-01T00:00:00Z"), at("2024-04-01T00:00:00Z")};

Plan plan_with(std::vector<Charge> charges, const Decimal& base_fee = {}) {
  Plan plan;
  plan.id = "case";
  plan.base_fee = base_fee;
  plan.charges = std::move(charges);
  EXPECT_TRUE(validate(plan));
  return plan;
}
Charge charge_of(Metric metric, Price price) {
  Charge charge;
  charge.id = "case";
  charge.metric = std::move(metric);
  charge.price = std::move(price);
  return charge;
}
Metric sum_of(std::string property) {
  return {.event_type = "calls", .aggregation = Aggregation::sum, .property = std::move(property)};
}

RatedPeriod whole(const Plan& plan, Period period) {
  return {
      .full = period, .phases = {{std::make_shared<Plan>(plan), Decimal(1), period}}, .subscribed_at = period.begin};
}
Rating rate(RatedPeriod period, const std::vector<Event>& events) {
  Rating rating(std::move(period));
  for (const Event& event : events) {
    const auto added = rating.add({event.id, event.time, "calls", &event.properties});
    EXPECT_TRUE(added) << added.error().to_string();
  }
  return rating;
}
Invoice invoice_over(std::vector<InvoiceLine> lines, const Reckoning& reckoning = {}) {
  Invoice invoice{.id = InvoiceId::from_bytes({}), .subscription = SubscriptionId::from_bytes({})};
  invoice.lines = std::move(lines);
  EXPECT_TRUE(total_up(invoice, reckoning));
  return invoice;
}
std::vector<InvoiceLine> of_kind(std::vector<InvoiceLine> lines, LineKind kind) {
  std::erase_if(lines, [&](const InvoiceLine& line) { return line.kind != kind; });
  return lines;
}
Decimal minus(const Decimal& a, const Decimal& b) { return Decimal::subtract(a, b).value(); }
/// "43100" for 431.00
Decimal cents(const Decimal& amount) { return Decimal::multiply(amount, Decimal(100)).value(); }
Decimal money(const Case& in_cents) { return Decimal::multiply(number(in_cents), Decimal::literal("0.01")).value(); }

std::vector<Event> events_of(const std::vector<Decimal>& values) {
  std::vector<Event> events;
  for (const Decimal& value : values) {
    events.push_back({id_of(events.size()),
                      march.begin + Nanos(static_cast<std::int64_t>(events.size())),
                      {{"v", value.to_string()}}});
  }
  return events;
}

/// Amounts of a charge in a period of which an earlier bill covered the first units, if the case says so: what is due
/// is the difference of two bills over the same period.
void run_charge(const Case& one) {
  const Case& params = one["params"];
  Charge charge = charge_of(sum_of("v"), price_of(one["kind"], params));
  charge.discount_percent = number_or(params, "percent_discount");
  charge.minimum = number_or(params, "min_amount");
  if (params.contains("max_amount")) charge.maximum = number(params["max_amount"]);
  const Case& expected = one["expected"];
  if (params.contains("prorated")) {  // the case gives both numbers of units
    Usage usage{.units = number(one["units"]), .full_units = number(params["full_units"])};
    EXPECT_EQ(price_usage(charge, usage, Currency::usd())->exact, number(expected["amount"]));
    return;
  }
  std::vector<Event> events;
  Fee before{};
  if (params.contains("already_billed_amount")) {
    Decimal billed = number_or(params, "already_billed_units");
    if (billed.is_zero()) {  // the case gives only what they came to, at half of 10 each
      billed = Decimal::divide(number(params["already_billed_amount"]), Decimal(5)).value();
    }
    events = events_of({billed});
    before = price_usage(charge, Usage{.units = billed}, Currency::usd()).value();
    EXPECT_EQ(before.amount, number(params["already_billed_amount"]));
    events.push_back({id_of(1), march.begin + Nanos(1), {{"v", text_of(one["units"])}}});
  } else {
    events = events_of(values_of(one));
  }
  const Plan plan = plan_with({charge});
  const Invoice invoice = invoice_over(rate(whole(plan, march), events).finish().value());
  const InvoiceLine& line = invoice.lines.front();
  if (params.contains("already_billed_amount")) {
    const Fee now = price_usage(charge, Usage{.units = line.units}, Currency::usd()).value();
    EXPECT_EQ(now.amount, line.amount);
    const Decimal gross = minus(now.gross, before.gross);
    EXPECT_EQ(gross, number(expected["amount"]));
    EXPECT_EQ(minus(line.amount, before.amount), number(expected["total"]));
    EXPECT_EQ(minus(gross, minus(line.amount, before.amount)), number(expected["discount"]));
  } else if (expected.contains("total")) {
    EXPECT_EQ(invoice.fees, number(expected["total"]));     // with what the fee lacks to its minimum
  } else if (one["kind"] == "charge.dynamic_multiplier") {  // the case states the rounded fee
    EXPECT_EQ(line.amount, number(expected["amount"]));
  } else {
    EXPECT_EQ(line.exact, number(expected["amount"]));
    EXPECT_EQ(line.amount, (Money{number(expected["amount"]), Currency::usd()}.rounded().value().amount));
  }
}

/// Full units pick the tier, prorated units are priced; the case gives both for every event.
void run_prorated_tiers(const Case& one) {
  const Charge charge = charge_of(sum_of("v"), GraduatedPrice{tiers_of(one["params"])});
  Usage usage{.full_units = Decimal()};
  for (std::size_t i = 0; i < one["events"]["full"].size(); ++i) {
    usage.changes.push_back({number(one["events"]["full"][i]), number(one["events"]["prorated"][i])});
  }
  const Fee fee = price_usage(charge, usage, Currency::usd()).value();
  EXPECT_EQ(fee.amount, number(one["expected"]["amount"]));
}

void run_units(const Case& one) {
  const Case& params = one["params"];
  Metric metric = sum_of("v");
  if (one["kind"] == "metric.rounding") {
    metric.rounding = params["function"] == "round" ? UnitRounding::half_up
                                                    : unit_rounding_from_string(text_of(params["function"])).value();
    metric.places = params["precision"].get<int>();
  } else {
    (params["op"] == "multiply" ? metric.multiply_by : metric.divide_by) = number(params["factor"]);
    metric.rounding = unit_rounding_from_string(text_of(params["rounding"])).value();
  }
  const Plan plan = plan_with({charge_of(metric, StandardPrice{Decimal(1)})});
  const auto lines = rate(whole(plan, march), events_of({number(one["units"])})).finish().value();
  EXPECT_EQ(lines.front().units, number(one["expected"]["units"]));
}

std::map<std::string, std::vector<std::string>> filter_of(const Case& json) {
  return json.get<std::map<std::string, std::vector<std::string>>>();
}

void run_aggregate(const Case& one) {
  const Case& params = one["params"];
  const std::string kind = one["kind"].get<std::string>().substr(4);
  Metric metric{.event_type = "calls", .aggregation = aggregation_from_string(kind).value(), .property = "v"};
  if (params.contains("match")) metric.match = filter_of(params["match"]);
  for (const Case& filter : params.value("ignore", Case::array())) metric.ignore.push_back(filter_of(filter));
  if (params.contains("group_by")) metric.group_by = params["group_by"][0];
  if (params.value("recurring", false)) {
    metric.carried = true;
    metric.property = "id";
  }
  // The events as a caller gives them: read, checked, counted once and corrected as by the server.
  GivenUsage usage;
  std::map<std::string, std::string> key_of;  // by transaction, of the event that counts
  std::size_t next = 0;
  for (const Case& event : one["events"]) {
    Case properties = Case::object();
    for (const auto& [name, value] : event.items()) {
      properties[name == "op" ? "operation" : name] = value == "add" ? "add" : text_of(value);
    }
    Instant when = march.begin + Nanos(event.value("day", event.value("t", 0) + 10));
    if (event.value("before_period", false)) when = march.begin - std::chrono::days(1);
    for (int n = event.value("n", 1); n > 0; --n) {
      const std::string key = std::to_string(++next);
      Case line = {{"agent", "service:a"},
                   {"usage_type", "calls"},
                   {"idempotency_key", key},
                   {"time", to_rfc3339(when)},
                   {"properties", properties}};
      // Another event of a transaction takes the place of the one before.
      if (event.contains("tx")) {
        std::string& before = key_of[event["tx"].get<std::string>()];
        if (!before.empty()) line["replaces"] = "key:" + before;
        before = key;
      }
      const auto added = usage.add(line.dump());
      ASSERT_TRUE(added) << added.error().to_string();
    }
  }
  const auto corrected = usage.correct();
  ASSERT_TRUE(corrected) << corrected.error().to_string();
  const Plan plan = plan_with({charge_of(metric, StandardPrice{Decimal(1)})});
  const auto invoices = Simulation::run(plan, usage, {.from = at("2024-02-01T00:00:00Z")});
  ASSERT_TRUE(invoices) << invoices.error().to_string();
  ASSERT_EQ(invoices->back().period, march);
  const std::vector<InvoiceLine>& lines = invoices->back().lines;
  const Case& expected = one["expected"];
  if (!expected.contains("groups")) {
    ASSERT_EQ(lines.size(), 1u);
    EXPECT_EQ(lines.front().units, number(expected["value"]));
    if (expected.contains("events")) EXPECT_EQ(lines.front().events, expected["events"].get<std::int64_t>());
    return;
  }
  ASSERT_EQ(lines.size(), expected["groups"].size());
  for (const Case& group : expected["groups"]) {
    const std::string name = group["region"].is_null() ? "" : group["region"].get<std::string>();
    const auto found = std::ranges::find(lines, name, &InvoiceLine::group);
    ASSERT_NE(found, lines.end());
    EXPECT_EQ(found->units, number(group["value"]));
    EXPECT_EQ(found->events, group["events"].get<std::int64_t>());
  }
}

void run_prorated_count(const Case& one) {
  const Case& params = one["params"];
  const Instant begin = at(params["period"][0].get<std::string>() + "T00:00:00Z");
  const Period period{begin, begin + std::chrono::days(params["days"].get<int>())};
  Metric metric{.event_type = "calls",
                .aggregation = Aggregation::unique_count,
                .property = "id",
                .carried = true,
                .prorated = true,
                .rounding = UnitRounding::ceil,
                .places = params["ceil"].get<int>()};
  std::vector<Event> events;
  const auto add = [&](Instant when, const std::string& id, const std::string& operation) {
    events.push_back({id_of(events.size()), when, {{"id", id}, {"operation", operation}}});
  };
  for (int i = 0; i < one["events"].value("add_before_period", 0); ++i) {
    add(begin - std::chrono::days(3), "before" + std::to_string(i), "add");
  }
  for (const Case& offset : one["events"]["add_offset_days"]) {
    const std::string id = "in" + text_of(offset);
    add(on_day(begin, offset.get<double>() + 0.3), id, "add");
    if (one["events"].value("removed_same_day", false)) add(on_day(begin, offset.get<double>() + 0.6), id, "remove");
  }
  const Plan plan = plan_with({charge_of(metric, StandardPrice{Decimal(1)})});
  EXPECT_EQ(rate(whole(plan, period), events).finish()->front().units, number(one["expected"]["value"]));
}

void run_proration(const Case& one) {
  const Case& params = one["params"];
  Plan plan = plan_with({}, money(params["amount_cents"]));
  plan.interval = interval_from_string(text_of(params["interval"])).value();
  const Instant start = at(params["start"].get<std::string>() + "T09:30:00Z");
  const Period full = period_at({.interval = plan.interval, .anchor = start}, start);
  // A case tells the days of its trial, or only those that are left of the days from its start to the period's end.
  const Instant first_day = at(params["start"].get<std::string>() + "T00:00:00Z");
  const auto days = static_cast<int>((full.end - first_day) / std::chrono::days(1));
  plan.trial_days = params.contains("trial_days")    ? params["trial_days"].get<int>()
                    : params.contains("billed_days") ? days - params["billed_days"].get<int>()
                                                     : 0;
  RatedPeriod rated{.full = full, .phases = {{std::make_shared<Plan>(plan), Decimal(1), {start, full.end}}}};
  rated.subscribed_at = start;
  const Invoice invoice = invoice_over(rate(rated, {}).finish().value());
  EXPECT_EQ(cents(invoice.total), number(one["expected"]["amount_cents"]));
  if (one["expected"].contains("precise")) {
    EXPECT_TRUE(cents(invoice.lines.front().exact).to_string().starts_with("71.428571428571"));
  }
}

void run_minimum(const Case& one) {
  const Case& params = one["params"];
  Charge charge = charge_of(sum_of("v"), StandardPrice{number(params["unit_price"])});
  charge.minimum = money(params["min_amount_cents"]);
  const Period february{at("2022-02-01T00:00:00Z"), at("2022-03-01T00:00:00Z")};
  RatedPeriod rated = whole(plan_with({charge}), february);
  rated.phases[0].when.begin = on_day(february.begin, 28 - params["billed_days"].get<double>());
  std::vector<Event> events = events_of({number(one["units"])});
  events[0].time = february.end - std::chrono::days(1);
  const auto lines = rate(rated, events).finish().value();
  EXPECT_EQ(cents(of_kind(lines, LineKind::usage).at(0).amount), number(one["expected"]["usage_cents"]));
  EXPECT_EQ(cents(of_kind(lines, LineKind::minimum).at(0).amount), number(one["expected"]["true_up_cents"]));
}

void run_commitment(const Case& one) {
  const Case& params = one["params"];
  Plan plan = plan_with({}, money(params["plan_amount_cents"]));
  plan.minimum_commitment = money(params["commitment_cents"]);
  const int days = params["period_days"].get<int>();
  const Period period{march.begin, march.begin + std::chrono::days(days)};
  RatedPeriod rated = whole(plan, period);
  rated.phases[0].when.begin = on_day(period.begin, days - params["billed_days"].get<double>());
  const auto lines = rate(rated, {}).finish().value();
  EXPECT_EQ(cents(of_kind(lines, LineKind::commitment).at(0).amount), number(one["expected"]["true_up_cents"]));
}

void run_progressive(const Case& one) {
  const Case& params = one["params"];
  const Case& expected = one["expected"];
  Plan plan =
      plan_with({charge_of(sum_of("v"), StandardPrice{number(params["unit_price"])})}, money(params["plan_cents"]));
  for (const Case& threshold : params["thresholds_cents"]) plan.progressive_thresholds.push_back(money(threshold));
  RatedPeriod rated = whole(plan, march);
  if (params.contains("terminate_day")) {
    rated.phases[0].when.end = on_day(march.begin, params["terminate_day"].get<double>() + 0.5);
    rated.ends = true;
  }
  std::vector<Event> so_far;
  std::vector<InvoiceEntry> billed;
  std::vector<Decimal> progressive;
  Decimal before;
  for (const Case& event : one["events"]) {
    so_far.push_back(
        {id_of(so_far.size()), on_day(march.begin, event["day"].get<double>()), {{"v", text_of(event["v"])}}});
    const Invoice interim = invoice_over(rate(whole(plan, march), so_far).usage_so_far().value(), {.billed = billed});
    if (thresholds_crossed(plan.progressive_thresholds, {}, before, interim.fees)->empty()) continue;
    before = interim.fees;
    progressive.push_back(cents(interim.total));
    billed.push_back({.kind = InvoiceEntryKind::billed, .amount = billed_by(interim)->negated()});
  }
  ASSERT_EQ(progressive.size(), expected["progressive_invoices"].size());
  for (std::size_t i = 0; i < progressive.size(); ++i) {
    EXPECT_EQ(progressive[i], number(expected["progressive_invoices"][i]));
  }
  const Invoice last = invoice_over(rate(rated, so_far).finish().value(), {.billed = billed});
  if (expected.contains("final_fees")) EXPECT_EQ(cents(last.fees), number(expected["final_fees"]));
  EXPECT_EQ(cents(minus(last.fees, last.total)), number(expected["final_credit"]));
  EXPECT_EQ(cents(last.total), number(expected["final_total"]));
}

void run_alert(const Case& one) {
  const Case& params = one["params"];
  std::vector<Decimal> thresholds;
  for (const Case& threshold : params["thresholds"]) thresholds.push_back(number(threshold));
  const auto crossed =
      thresholds_crossed(thresholds, number(params["recurring"]), number(params["previous"]), number(params["current"]))
          .value();
  ASSERT_EQ(crossed.size(), one["expected"]["crossed"].size());
  for (std::size_t i = 0; i < crossed.size(); ++i) EXPECT_EQ(crossed[i], number(one["expected"]["crossed"][i]));
}

void run_usage_discount(const Case& one) {
  Charge charge = charge_of(sum_of("v"), StandardPrice{Decimal(1)});
  charge.free_units = number(one["params"]["free_quantity"]);
  const Decimal used = number(one["params"]["already_used"]);
  const Plan plan = plan_with({charge});
  const Decimal before = rate(whole(plan, march), events_of({used})).finish()->front().amount;
  const Decimal after = rate(whole(plan, march), events_of({used, number(one["units"])})).finish()->front().amount;
  EXPECT_EQ(before, number(one["expected"]["billable_before"]));
  EXPECT_EQ(minus(after, before), number(one["expected"]["billable_now"]));
}

/// An invoice of `amount` that takes credits.
Decimal left_to_pay(const Decimal& amount, std::span<Credit> credits, Instant when) {
  InvoiceLine line;
  line.amount = amount;
  return invoice_over({line}, {.credits = credits, .when = when}).total;
}

void run_credit_burn(const Case& one) {
  std::vector<Credit> credits;
  for (const Case& grant : one["params"]["grants"]) {
    credits.push_back({.id = CreditId::from_bytes({static_cast<std::uint8_t>(credits.size() + 1)}),
                       .description = grant["id"],
                       .amount = number(grant["amount"]),
                       .balance = number(grant["amount"])});
  }
  Decimal overage;
  if (one.contains("units")) overage = left_to_pay(number(one["units"]), credits, march.begin);
  for (const Case& event : one.value("events", Case::array())) {
    if (!event["before_void"].get<bool>()) {
      for (Credit& credit : credits) credit.voided_at = march.begin + Nanos(1);
    }
    const Instant when = march.begin + Nanos(event["before_void"].get<bool>() ? 0 : 1);
    overage = Decimal::add(overage, left_to_pay(number(event["v"]), credits, when)).value();
  }
  EXPECT_EQ(overage, number(one["expected"]["overage"]));
  for (const Credit& credit : credits) {
    EXPECT_EQ(worth(credit, march.end), number(one["expected"]["balances"][credit.description]));
  }
}

void run_credit_reset(const Case& one) {
  const Case& grant = one["params"]["grant"];
  std::vector<Credit> credits = {{.id = CreditId::from_bytes({1}),
                                  .amount = number(grant["amount"]),
                                  .balance = number(grant["amount"]),
                                  .reset = CreditReset{.rollover_min = number(grant["rollover_min"]),
                                                       .rollover_max = number(grant["rollover_max"])}}};
  left_to_pay(number(one["units"]), credits, march.begin);
  std::optional<Instant> reset_at = next_reset(*credits[0].reset, march.begin);
  ASSERT_TRUE(catch_up(credits[0], reset_at, march.end).value());
  EXPECT_EQ(credits[0].balance, number(one["expected"]["balance_after_reset"]));
}

/// What we do otherwise than the system that a case is of; none where we agree with it.
std::optional<std::string> differs(const Case& one) {
  if (one["kind"] == "credit.reset" && one["params"]["preserve_overage"] == true)
    return "what credits do not cover is on the invoice: a reset does not ask for it again";
  return std::nullopt;
}

/// Another plan within the period, its base fee paid in advance.
void run_change(const Case& one) {
  const Case& params = one["params"];
  const auto phase = [&](const char* name, Period when) {
    Plan plan = plan_with({}, number(params[name]["price"]));
    plan.base_fee_in_advance = true;
    return Phase{std::make_shared<Plan>(plan), number(params[name]["qty"]), when};
  };
  const Instant change = at(params["date"].get<std::string>() + "T14:00:00Z");
  const RatedPeriod rated{.full = march,
                          .phases = {phase("old", {march.begin, change}), phase("new", {change, march.end})},
                          .subscribed_at = march.begin};
  const auto lines = rate(rated, {}).finish().value();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].amount, number(one["expected"]["credit"]));
  EXPECT_EQ(lines[1].amount, number(one["expected"]["charge"]));
  const Invoice invoice = invoice_over(lines);
  EXPECT_EQ(minus(invoice.total, invoice.credited), number(one["expected"]["net"]));
}

/// By the table of prices that gives uses of models their cost when they arrive.
void run_model_cost(const Case& one) {
  const Case& params = one["params"];
  const Case table = {{"m",
                       {{"litellm_provider", "p"},
                        {"input_cost_per_token", params["input_per_token"]},
                        {"output_cost_per_token", params["output_per_token"]},
                        {"cache_read_input_token_cost", params["cache_read_per_token"]}}}};
  const PriceTable prices(import_model_prices(table.dump(), march.begin).value().prices);
  const std::string input = text_of(params["prompt_tokens"]);
  const std::string cached = text_of(params["cached_tokens"]);
  const std::string output = text_of(params["completion_tokens"]);
  const std::vector<PropertyView> properties{{"cached_tokens", cached},
                                             {"input_tokens", input},
                                             {"model_id", "m"},
                                             {"output_tokens", output},
                                             {"provider", "p"}};
  RecordView record{.bytes = {}, .agent = "service:a", .type = "inference_tokens", .key = "k", .time = march.begin};
  record.properties = properties;
  const auto cost = prices.cost_of(record);
  ASSERT_TRUE(cost && *cost);
  EXPECT_EQ((*cost)->amount, number(one["expected"]["cost"]));
}

using Runner = void (*)(const Case&);
Runner runner_of(const std::string& kind) {
  static const std::map<std::string, Runner> special = {{"charge.graduated_prorated", run_prorated_tiers},
                                                        {"charge.minimum", run_minimum},
                                                        {"agg.unique_count_prorated", run_prorated_count},
                                                        {"metric.rounding", run_units},
                                                        {"unit.conversion", run_units},
                                                        {"subscription.proration", run_proration},
                                                        {"subscription.change", run_change},
                                                        {"plan.minimum_commitment", run_commitment},
                                                        {"billing.progressive", run_progressive},
                                                        {"alert.thresholds_crossed", run_alert},
                                                        {"discount.usage", run_usage_discount},
                                                        {"credit.burn", run_credit_burn},
                                                        {"credit.reset", run_credit_reset},
                                                        {"llm.cost", run_model_cost}};
  if (const auto found = special.find(kind); found != special.end()) return found->second;
  if (kind.starts_with("charge.")) return run_charge;
  if (kind.starts_with("agg.")) return run_aggregate;
  return nullptr;
}

TEST(MeteringCases, AgreeWithOtherBillingSystems) {
  const char* configured = std::getenv("CRETO_METERING_CASES");
  const std::string path = configured != nullptr ? configured : "../shared/cases/metering_cases.json";
  std::ifstream file(path);
  if (!file) GTEST_SKIP() << "no cases at " << path << "; set $CRETO_METERING_CASES";
  std::stringstream content;
  content << file.rdbuf();
  const Case cases = Case::parse(content.str());
  ASSERT_GE(cases.size(), 94u);
  std::map<std::string, std::string> not_run;
  for (const Case& one : cases) {
    SCOPED_TRACE(one["id"].get<std::string>());
    if (auto why = differs(one)) {
      not_run.emplace(one["id"], *std::move(why));
      continue;
    }
    const Runner run = runner_of(one["kind"]);
    ASSERT_NE(run, nullptr) << "nothing runs `" << one["kind"] << "`";
    run(one);
  }
  std::cout << "metering cases: " << cases.size() - not_run.size() << " of " << cases.size() << " run\n";
  for (const auto& [id, why] : not_run) std::cout << "not run: " << id << ": " << why << "\n";
}

}  // namespace
}  // namespace creto::metering
