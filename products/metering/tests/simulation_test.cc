// What usage would cost: the same fees as an invoice, from lines of a file.

#include "creto/metering/simulation.h"

#include <gtest/gtest.h>

#include <fstream>

namespace creto::metering {
namespace {

Plan plan_of(const std::string& members = "") {
  return plan_from_json(
             R"({"id":"p","name":"P","base_fee":"10")" + members +
             R"(,"charges":[{"id":"pages","model":"graduated","metric":{"event_type":"pages","aggregation":"sum","property":"units"},
                "price":{"tiers":[{"up_to":"100","per_unit":"0.1"},{"per_unit":"0.01"}]}}]})")
      .value();
}
std::string line(const std::string& key, const std::string& time, const std::string& rest) {
  return R"({"agent":"service:a","usage_type":"pages","idempotency_key":")" + key + R"(","time":")" + time + "\"" +
         rest + "}";
}
std::vector<std::string> totals(const Plan& plan, const std::vector<std::string>& lines,
                                const SimulationTerms& terms = {}) {
  GivenUsage usage;
  for (const std::string& one : lines) {
    const auto added = usage.add(one);
    if (!added) return {added.error().code() + " " + added.error().message()};
  }
  if (const auto corrected = usage.correct(); !corrected)
    return {corrected.error().code() + " " + corrected.error().message()};
  const auto invoices = Simulation::run(plan, usage, terms);
  if (!invoices) return {invoices.error().code() + " " + invoices.error().message()};
  std::vector<std::string> texts;
  for (const Invoice& invoice : *invoices)
    texts.push_back(to_rfc3339(invoice.period.begin).substr(0, 10) + " " + invoice.total.to_string());
  return texts;
}
using Texts = std::vector<std::string>;

TEST(Simulation, HasAnInvoiceOfEachPeriodFromTheFirstEventToTheLast) {
  const Texts lines{line("1", "2026-03-31T23:00:00Z", R"(,"units":"150")"),
                    line("2", "2026-01-15T00:00:00Z", R"(,"units":"40")")};
  EXPECT_EQ(totals(plan_of(), lines), (Texts{"2026-01-01 14", "2026-02-01 10", "2026-03-01 20.5"}));
  // In Berlin the last event is of April.
  EXPECT_EQ(totals(plan_of(), lines, {.zone = TimeZone::load("Europe/Berlin").value()}),
            (Texts{"2025-12-31 14", "2026-01-31 10", "2026-02-28 10", "2026-03-31 20.5"}));
  EXPECT_EQ(totals(plan_of(R"(,"interval":"quarterly")"), lines), (Texts{"2026-01-01 20.9"}));
  EXPECT_EQ(totals(plan_of(R"(,"base_fee_in_advance":true)"), lines),
            (Texts{"2026-01-01 14", "2026-02-01 10", "2026-03-01 20.5"}));
  EXPECT_EQ(totals(plan_of(R"(,"taxes":[{"id":"vat","rate":"19"}])"), {lines[1]}), (Texts{"2026-01-01 16.66"}));
}

TEST(Simulation, BeginsWhereItIsTold) {
  const Texts lines{line("1", "2026-01-05T00:00:00Z", R"(,"units":"40")"),
                    line("2", "2026-01-25T00:00:00Z", R"(,"units":"10")")};
  const Instant from = from_rfc3339("2026-01-17T00:00:00Z").value();
  EXPECT_EQ(totals(plan_of(), lines, {.from = from}), (Texts{"2026-01-17 5.84"}));  // 15 of 31 days
  EXPECT_EQ(totals(plan_of(), lines, {.billing_time = BillingTime::anniversary, .from = from}),
            (Texts{"2026-01-17 11"}));
  EXPECT_EQ(totals(plan_of(), lines, {.until = from}), (Texts{"2026-01-01 14"}));
  EXPECT_EQ(totals(plan_of(), {}), Texts{});
}

TEST(Simulation, CountsOnceAndTakesOutWhatOtherLinesCorrect) {
  const std::string when = "2026-01-05T00:00:00Z";
  const std::string one = line("1", when, R"(,"units":"40")");
  EXPECT_EQ(totals(plan_of(), {one, one}), (Texts{"2026-01-01 14"}));
  EXPECT_EQ(totals(plan_of(), {one, line("1", when, R"(,"units":"41")")}),
            (Texts{"MT-409 idempotency key `1` was used for other content"}));
  EXPECT_EQ(totals(plan_of(), {line("2", when, R"(,"units":"4","replaces":"key:1")"), one}),
            (Texts{"2026-01-01 10.4"}));
  const std::string out =
      R"({"agent":"service:a","usage_type":"void","idempotency_key":"3","time":"2026-01-06T00:00:00Z","voids":"key:1"})";
  EXPECT_EQ(totals(plan_of(), {one, out}), Texts{});
  EXPECT_EQ(totals(plan_of(), {one, line("2", when, R"(,"replaces":"key:1")"), out}),
            (Texts{"MT-409 line 3: what it corrects was taken out before"}));
  EXPECT_EQ(totals(plan_of(), {out}), (Texts{"MT-404 line 1: what it corrects is not there"}));
}

TEST(Simulation, NamesWhatIsWrongWithALine) {
  EXPECT_EQ(totals(plan_of(), {line("1", "2026-01-05T00:00:00Z", R"(,"units":"-1")")}),
            (Texts{"MT-400 units `-1`: must be 0 to 10^18"}));
  EXPECT_FALSE(GivenUsage().add("[]"));
  EXPECT_FALSE(GivenUsage().add("{"));
  EXPECT_FALSE(GivenUsage().add(std::string(GivenUsage::line_bytes_max + 1, ' ')));
  EXPECT_TRUE(GivenUsage().add(
      R"({"specversion":"1.0","id":"1","source":"s","type":"pages","subject":"service:a","time":"2026-01-05T00:00:00Z","data":{"units":3}})"));
}

}  // namespace
}  // namespace creto::metering
