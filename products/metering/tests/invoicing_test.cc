#include "invoicing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <random>

namespace creto::metering {
namespace {

Decimal d(std::string_view text) { return Decimal::literal(text); }
Instant at(std::string_view text) { return from_rfc3339(text).value(); }
const Period november{at("2026-11-01T00:00:00Z"), at("2026-12-01T00:00:00Z")};

Plan sample_plan() {
  return plan_from_json(R"({"id":"agent-standard","name":"Agent standard","currency":"USD","base_fee":"19","charges":[
    {"id":"sandboxes","description":"Sandboxes started","model":"standard","metric":{"event_type":"sandbox_allocated"},"price":{"per_unit":"0.05"}},
    {"id":"input","description":"Input tokens","model":"graduated","metric":{"event_type":"inference_tokens","aggregation":"sum","property":"input_tokens","group_by":"model_id","divide_by":"1000"},
     "price":{"tiers":[{"up_to":"10","per_unit":"0.003"},{"per_unit":"0.0025"}]}},
    {"id":"egress","description":"Network egress, per begun MB","model":"package","metric":{"event_type":"network_egress","aggregation":"sum","property":"bytes_transferred"},"price":{"amount":"0.01","size":"1000000"}},
    {"id":"payments","description":"Payments made for you","model":"percentage","metric":{"event_type":"action","aggregation":"sum","property":"amount","match":{"action":["payments.pay"]}},"price":{"rate":"0.25","fixed":"0.3","event_max":"20"}}]})")
      .value();
}

struct Event {
  EventId id;
  Instant time;
  std::string type;
  Properties properties;
};

std::vector<Event> sample_events() {
  std::vector<Event> events;
  const auto add = [&](std::string type, Properties properties) {
    ByteArray<16> bytes{};
    bytes[15] = static_cast<std::uint8_t>(events.size());
    events.push_back({EventId::from_bytes(bytes), november.begin + std::chrono::hours(events.size()), std::move(type),
                      std::move(properties)});
  };
  for (int i = 0; i < 3; ++i) add("sandbox_allocated", {{"sandbox_id", "sb"}});
  for (int i = 0; i < 7; ++i)
    add("inference_tokens",
        {{"model_id", i % 2 == 0 ? "gullible-1" : "careful-2"}, {"input_tokens", std::to_string(1234 * (i + 1))}});
  add("network_egress", {{"bytes_transferred", "3500001"}});
  for (const char* amount : {"1200.50", "9999.99", "25000", "310"})
    add("action", {{"action", "payments.pay"}, {"amount", amount}});
  add("action", {{"action", "mail.send"}});
  return events;
}

InvoiceDraft::Priced price(const Plan& plan, const std::vector<Event>& events) {
  InvoiceDraft draft(plan, november, at("2026-11-29T20:00:00Z"));
  for (const Event& event : events) EXPECT_TRUE(draft.add({event.id, event.time, event.type, &event.properties}));
  return draft.finish().value();
}

Invoice sample_invoice(std::size_t repeat = 1) {
  const Plan plan = sample_plan();
  const auto priced = price(plan, sample_events());
  ByteArray<16> bytes{1, 2, 3};
  Invoice invoice{.id = InvoiceId::from_bytes(bytes),
                  .number = 42,
                  .subscription = SubscriptionId::from_bytes(bytes),
                  .agent = "agent:nhi:ed25519:4vJ9JU1bJJE96FWSJKvHsmmFADCg4gpZQff4P3bkLKi",
                  .plan_id = plan.id,
                  .plan_version = 3,
                  .plan_name = plan.name,
                  .period = {at("2026-11-29T20:00:00Z"), at("2026-12-01T00:00:00Z")},
                  .issued_at = at("2026-12-01T00:05:00Z"),
                  .currency = plan.currency,
                  .lines = {},
                  .total = priced.total,
                  .document = {},
                  .signature = Signature{"hybrid-ed25519-ml-dsa-65", {1}},
                  .pdf_object = {},
                  .sent = false};
  for (std::size_t i = 0; i < repeat; ++i)
    invoice.lines.insert(invoice.lines.end(), priced.lines.begin(), priced.lines.end());
  invoice.document = invoice_document(invoice).value();
  return invoice;
}

TEST(Invoice, AddsUpToTheCent) {
  const auto priced = price(sample_plan(), sample_events());
  ASSERT_EQ(priced.lines.size(), 6u);
  EXPECT_EQ(priced.lines[0].amount, d("19"));
  EXPECT_EQ(priced.lines[1].amount, d("0.15"));
  // careful-2: 2468 + 4936 + 7404 = 14.808 thousand; gullible-1: 1234 + 3702 + 6170 + 8638 = 19.744 thousand
  EXPECT_EQ(priced.lines[2].group, "careful-2");
  EXPECT_EQ(priced.lines[2].exact, d("0.04202"));
  EXPECT_EQ(priced.lines[3].exact, d("0.05436"));
  EXPECT_EQ(priced.lines[4].amount, d("0.04"));
  // 3.30125 + 20 + 20 + 1.075
  EXPECT_EQ(priced.lines[5].exact, d("44.37625"));
  EXPECT_EQ(priced.total, d("63.66"));
}

TEST(Invoice, DoesNotDependOnTheOrderOfDelivery) {
  const Plan plan = sample_plan();
  auto events = sample_events();
  const auto expected = price(plan, events);
  std::mt19937_64 random(1);
  for (int i = 0; i < 50; ++i) {
    std::ranges::shuffle(events, random);
    const auto again = price(plan, events);
    ASSERT_EQ(again.lines.size(), expected.lines.size());
    for (std::size_t line = 0; line < again.lines.size(); ++line) {
      EXPECT_EQ(again.lines[line].exact, expected.lines[line].exact);
      EXPECT_EQ(again.lines[line].events, expected.lines[line].events);
    }
  }
}

TEST(Invoice, ChargesTheBaseFeeOncePerBegunMonth) {
  const Instant start = at("2026-11-29T20:00:00Z");
  EXPECT_EQ(months_begun({start, at("2026-11-30T00:00:00Z")}, start), 1);
  EXPECT_EQ(months_begun({at("2026-11-30T00:00:00Z"), at("2026-12-01T00:00:00Z")}, start), 0);
  EXPECT_EQ(months_begun({at("2026-11-30T00:00:00Z"), at("2026-12-01T00:00:01Z")}, start), 1);
  EXPECT_EQ(months_begun({at("2026-12-01T00:00:00Z"), at("2027-01-01T00:00:00Z")}, start), 1);
  EXPECT_EQ(months_begun({start, at("2027-02-15T00:00:00Z")}, start), 4);
  EXPECT_EQ(months_begun({at("2026-11-01T00:00:00Z"), at("2026-12-01T00:00:00Z")}, at("2026-11-01T00:00:00Z")), 1);
}

TEST(Invoice, SurvivesItsDocument) {
  const Invoice invoice = sample_invoice();
  const Invoice again = invoice_from_document(invoice.document).value();
  EXPECT_EQ(invoice_document(again).value(), invoice.document);
  EXPECT_EQ(again.total, invoice.total);
}

TEST(InvoicePdf, IsAPdfAndTheSameForTheSameInvoice) {
  for (const std::size_t repeat : {1u, 12u}) {
    const Invoice invoice = sample_invoice(repeat);
    const Bytes pdf = render_pdf(invoice, "Creto").value();
    EXPECT_TRUE(as_text(pdf).starts_with("%PDF-"));
    EXPECT_EQ(render_pdf(invoice, "Creto").value(), pdf);
    // To look at it: CRETO_KEEP_PDF=DIR
    if (const char* directory = std::getenv("CRETO_KEEP_PDF")) {
      std::ofstream(std::string(directory) + "/invoice-" + std::to_string(repeat) + ".pdf")
          .write(reinterpret_cast<const char*>(pdf.data()), static_cast<std::streamsize>(pdf.size()));
    }
  }
}

TEST(InvoicePdf, DrawsAnyText) {
  Invoice invoice = sample_invoice();
  invoice.plan_name = "Für Ämter \xE2\x82\xAC \xF0\x9F\x98\x80 (with) \\ and \x01 " + std::string(400, 'W');
  invoice.lines[0].description = std::string(300, 'x');
  EXPECT_TRUE(render_pdf(invoice, "Crëto"));
}

}  // namespace
}  // namespace creto::metering
