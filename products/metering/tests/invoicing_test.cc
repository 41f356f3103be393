#include "billing/invoicing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <random>

#include "billing/credits.h"
#include "billing/rating.h"

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
    events.push_back({EventId::from_bytes(bytes), at("2026-11-29T21:00:00Z") + std::chrono::hours(events.size()),
                      std::move(type), std::move(properties)});
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

RatedPeriod two_days(const Plan& plan) {
  const Period active{at("2026-11-29T20:00:00Z"), november.end};
  return {
      .full = november, .phases = {{std::make_shared<Plan>(plan), Decimal(1), active}}, .subscribed_at = active.begin};
}
std::vector<InvoiceLine> price(const Plan& plan, const std::vector<Event>& events) {
  Rating rating(two_days(plan));
  for (const Event& event : events) EXPECT_TRUE(rating.add({event.id, event.time, event.type, &event.properties}));
  return rating.finish().value();
}

Invoice sample_invoice(std::size_t repeat = 1) {
  const Plan plan = sample_plan();
  const std::vector<InvoiceLine> lines = price(plan, sample_events());
  const ByteArray<16> bytes{1, 2, 3};
  Invoice invoice{.id = InvoiceId::from_bytes(bytes),
                  .status = InvoiceStatus::finalized,
                  .number = 42,
                  .subscription = SubscriptionId::from_bytes(bytes),
                  .agent = "agent:nhi:ed25519:4vJ9JU1bJJE96FWSJKvHsmmFADCg4gpZQff4P3bkLKi",
                  .issuer = {.name = "Crëto Metering GmbH",
                             .address = {"Lange Straße 1", "10115 Berlin", "Germany"},
                             .tax_id = "DE 123 456 789",
                             .email = "billing@example.com",
                             .payment = {"Bank Example, IBAN DE00 0000 0000 0000 0000 00", "within 14 days"}},
                  .customer = {.name = "Reading Room Ltd.",
                               .address = {"2 Short Street", "Dublin 2", "Ireland"},
                               .tax_id = "IE 1234567A",
                               .email = "accounts@example.org"},
                  .plan_id = plan.id,
                  .plan_version = 3,
                  .plan_name = plan.name,
                  .period = {at("2026-11-29T20:00:00Z"), at("2026-12-01T00:00:00Z")},
                  .issued_at = at("2026-12-01T00:05:00Z"),
                  .currency = plan.currency};
  for (std::size_t i = 0; i < repeat; ++i) invoice.lines.insert(invoice.lines.end(), lines.begin(), lines.end());
  EXPECT_TRUE(total_up(invoice, {}));
  invoice.document = invoice_document(invoice).value();
  invoice.signature = Signature{"hybrid-ed25519-ml-dsa-65", {1}};
  return invoice;
}

TEST(Invoice, AddsUpToTheCent) {
  const Invoice invoice = sample_invoice();
  ASSERT_EQ(invoice.lines.size(), 6u);
  EXPECT_EQ(invoice.lines[0].amount, d("1.27"));  // 19 * 2 / 30 days
  EXPECT_EQ(invoice.lines[1].amount, d("0.15"));
  // careful-2: 2468 + 4936 + 7404 = 14.808 thousand; gullible-1: 1234 + 3702 + 6170 + 8638 = 19.744 thousand
  EXPECT_EQ(invoice.lines[2].group, "careful-2");
  EXPECT_EQ(invoice.lines[2].exact, d("0.04202"));
  EXPECT_EQ(invoice.lines[3].exact, d("0.05436"));
  EXPECT_EQ(invoice.lines[4].amount, d("0.04"));
  // 3.30125 + 20 + 20 + 1.075
  EXPECT_EQ(invoice.lines[5].exact, d("44.37625"));
  EXPECT_EQ(invoice.total, d("45.93"));
}

TEST(Invoice, DoesNotDependOnTheOrderOfDelivery) {
  const Plan plan = sample_plan();
  auto events = sample_events();
  const auto expected = price(plan, events);
  std::mt19937_64 random(1);
  for (int i = 0; i < 50; ++i) {
    std::ranges::shuffle(events, random);
    const auto again = price(plan, events);
    ASSERT_EQ(again.size(), expected.size());
    for (std::size_t line = 0; line < again.size(); ++line) {
      EXPECT_EQ(again[line].exact, expected[line].exact);
      EXPECT_EQ(again[line].events, expected[line].events);
    }
  }
}

TEST(Invoice, FollowsItsOrder) {
  Invoice invoice = sample_invoice();
  invoice.lines.resize(1);
  invoice.lines[0].amount = d("100");
  std::vector<AppliedCoupon> coupons(2);
  coupons[0].coupon = {.id = "ten", .name = "Ten percent", .percent = d("10")};
  coupons[1].coupon = {.id = "five", .name = "Five off", .amount = Money{d("5"), Currency::usd()}};
  const std::vector<Tax> taxes = {{"vat", "VAT", d("19")}, {"city", "City", d("1.5")}};
  std::vector<Credit> credits = {
      {.id = CreditId::from_bytes({2}), .balance = d("30"), .priority = 1},
      {.id = CreditId::from_bytes({1}), .balance = d("30"), .priority = 0},
      {.id = CreditId::from_bytes({3}), .currency = Currency::parse("EUR").value(), .balance = d("30")}};
  ASSERT_TRUE(total_up(invoice, {.billed = {{.kind = InvoiceEntryKind::billed, .amount = d("-20")}},
                                 .coupons = coupons,
                                 .taxes = taxes,
                                 .credits = credits}));
  std::vector<std::string> amounts;
  for (const InvoiceEntry& entry : invoice.entries) amounts.push_back(entry.amount.to_string());
  // 100 - 20 = 80; 10 % of it; 5; taxes on 67; credits by priority
  EXPECT_EQ(amounts, (std::vector<std::string>{"-20", "-8", "-5", "12.73", "1.01", "-30", "-30"}));
  EXPECT_EQ(invoice.total, d("20.74"));
  EXPECT_EQ(credits[2].balance, d("30"));
}

TEST(Invoice, OwesBackWhatWouldMakeItNegative) {
  Invoice invoice = sample_invoice();
  invoice.lines.resize(1);
  invoice.lines[0].amount = d("-38.39");
  ASSERT_TRUE(total_up(invoice, {}));
  EXPECT_EQ(invoice.total, d("0"));
  EXPECT_EQ(invoice.credited, d("38.39"));
}

TEST(Invoice, ReadsDocumentsOfTheFirstVersion) {
  const Invoice old =
      invoice_from_document(
          R"({"agent":"human:ada@example.com","currency":"USD","id":"inv-01890a5d-ac96-774b-bcce-b302099a8057","issued_at":"2026-12-01T00:05:00Z","lines":[{"amount":"19.00","charge":"base_fee","description":"P","events":"0","exact":"19","group":"","model":"flat","units":"1"}],"number":"7","period":{"begin":"2026-11-01T00:00:00Z","end":"2026-12-01T00:00:00Z"},"plan":{"id":"p","name":"P","version":"1"},"schema_version":1,"subscription":"sub-01890a5d-ac96-774b-bcce-b302099a8057","total":"19.00"})")
          .value();
  EXPECT_EQ(old.number, 7);
  EXPECT_EQ(old.total, d("19"));
  EXPECT_EQ(old.lines.at(0).kind, LineKind::base_fee);
  EXPECT_EQ(old.lines.at(0).period, old.period);
}

TEST(Invoice, IsCsvThatNoSpreadsheetRuns) {
  Invoice invoice = sample_invoice();
  invoice.lines.resize(2);
  invoice.lines[0].description = "=HYPERLINK(\"x\"), a";
  invoice.lines[1].description = "-2+3";
  const std::string csv = invoice_csv(invoice);
  EXPECT_NE(csv.find("\"'=HYPERLINK(\"\"x\"\"), a\""), std::string::npos);
  EXPECT_NE(csv.find(",'-2+3,"), std::string::npos);
  EXPECT_NE(csv.find("INV-000042,usage,sandboxes,"), std::string::npos);
}

TEST(InvoiceBatch, EachInvoiceProvesThatItIsInIt) {
  for (const std::size_t size : {1u, 2u, 3u, 7u, 100u}) {
    std::vector<Invoice> invoices;
    std::vector<Hash256> leaves;
    for (std::size_t i = 0; i < size; ++i) {
      Invoice invoice = sample_invoice();
      invoice.number = static_cast<std::int64_t>(i) + 1;
      invoice.document = invoice_document(invoice).value();
      leaves.push_back(InvoiceBatch::leaf_hash(invoice.document));
      invoices.push_back(std::move(invoice));
    }
    const InvoiceBatch batch(leaves);
    for (std::size_t i = 0; i < size; ++i) {
      invoices[i].proof = batch.proof(i);
      EXPECT_EQ(signed_text(invoices[i]).value(), batch_text(size, batch.root()));
      Invoice forged = invoices[i];
      forged.document.replace(forged.document.find("\"total\":\"45"), 11, "\"total\":\"44");
      EXPECT_FALSE(signed_text(forged));
    }
  }
}

TEST(Invoice, SurvivesItsDocument) {
  const Invoice invoice = sample_invoice();
  const Invoice again = invoice_from_document(invoice.document).value();
  EXPECT_EQ(invoice_document(again).value(), invoice.document);
  EXPECT_EQ(again.total, invoice.total);
  EXPECT_EQ(again.issuer, invoice.issuer);
  EXPECT_EQ(again.customer, invoice.customer);
  EXPECT_NE(invoice.document.find("IE 1234567A"), std::string::npos) << "what is signed names them";
}

TEST(BillingProfile, NamesWhatIsWrong) {
  const auto refused = [](std::string_view text) {
    const auto profile = billing_profile_from_json(text);
    return profile ? std::string("taken") : profile.error().message();
  };
  EXPECT_EQ(refused(R"({"subject":"service:a","name":"A","address":["b"],"tax_id":"c","email":"d"})"), "taken");
  EXPECT_EQ(refused(R"({"subject":"service:a"})"), "billing_profile.name: is required");
  EXPECT_EQ(refused(R"({"subject":"a","name":"A"})"), "billing_profile.subject: must be an identity");
  EXPECT_EQ(refused(R"({"subject":"service:a","name":"A","address":[""]})"),
            "billing_profile.address: must have no empty lines");
  EXPECT_EQ(refused(R"({"subject":"service:a","name":"A","payment":["b"]})"),
            "billing_profile.payment: is of who bills, not of who is billed");
  EXPECT_EQ(refused(R"({"subject":"service:a","name":"A","address":["1","2","3","4","5","6","7","8","9"]})"),
            "billing_profile.address: must be at most 8 lines");
}

const std::filesystem::path fonts = "/usr/share/fonts/truetype/dejavu";

TEST(InvoicePdf, IsAPdfAndTheSameForTheSameInvoice) {
  for (const std::size_t repeat : {1u, 12u}) {
    const Invoice invoice = sample_invoice(repeat);
    const Bytes pdf = render_pdf(invoice, fonts).value();
    EXPECT_TRUE(as_text(pdf).starts_with("%PDF-"));
    EXPECT_EQ(render_pdf(invoice, fonts).value(), pdf);
    // To look at it: CRETO_KEEP_PDF=DIR
    if (const char* directory = std::getenv("CRETO_KEEP_PDF")) {
      std::ofstream(std::string(directory) + "/invoice-" + std::to_string(repeat) + ".pdf")
          .write(reinterpret_cast<const char*>(pdf.data()), static_cast<std::streamsize>(pdf.size()));
    }
  }
}

TEST(InvoicePdf, ShowsWhatLeadsFromFeesToTotal) {
  Invoice invoice = sample_invoice(3);
  invoice.due_at = at("2026-12-15T00:05:00Z");
  invoice.lines[0].description =
      "Pages read in the reading room, with all that belongs to them: notes, appendices, maps and pictures, and what "
      "was read aloud, at " +
      std::string(90, 'x');
  invoice.lines[1].kind = LineKind::adjustment;
  invoice.lines[1].period = {at("2026-10-01T00:00:00Z"), at("2026-11-01T00:00:00Z")};
  std::vector<AppliedCoupon> coupons(1);
  coupons[0].coupon = {.id = "ten", .name = "Welcome", .percent = d("10")};
  const std::vector<Tax> taxes = {{"vat", "VAT", d("19")}};
  std::vector<Credit> credits = {
      {.id = CreditId::from_bytes({2}), .description = std::string(300, 'c'), .balance = d("30")}};
  ASSERT_TRUE(total_up(
      invoice,
      {.billed = {{.kind = InvoiceEntryKind::billed, .description = "Billed with INV-000041", .amount = d("-20")}},
       .coupons = coupons,
       .taxes = taxes,
       .credits = credits}));
  const Bytes pdf = render_pdf(invoice, fonts).value();
  EXPECT_TRUE(as_text(pdf).starts_with("%PDF-"));
  if (const char* directory = std::getenv("CRETO_KEEP_PDF")) {
    std::ofstream(std::string(directory) + "/invoice-entries.pdf")
        .write(reinterpret_cast<const char*>(pdf.data()), static_cast<std::streamsize>(pdf.size()));
  }
}

TEST(InvoicePdf, SetsOtherScriptsInAFontThatHasThem) {
  Invoice invoice = sample_invoice(9);
  invoice.issuer.name = "Ελληνικά Ταχυδρομεία";
  invoice.plan_name = "Читальный зал, полный доступ";
  for (std::size_t i = 0; i < invoice.lines.size(); i += 2) {
    invoice.lines[i].description = "Прочитанные страницы, включая приложения и всё, что к ним относится";
    invoice.lines[i].group = "Αθήνα";
  }
  invoice.lines[1].description = "Příliš žluťoučký kůň, Łódź, İstanbul";
  const Bytes pdf = render_pdf(invoice, fonts).value();
  EXPECT_NE(as_text(pdf).find("DejaVuSans"), std::string::npos);
  EXPECT_LT(pdf.size(), 200'000u) << "of a font only what is used";
  EXPECT_EQ(render_pdf(invoice, fonts).value(), pdf);
  EXPECT_EQ(as_text(render_pdf(invoice, "/nowhere").value()).find("DejaVu"), std::string::npos);
  EXPECT_EQ(as_text(render_pdf(sample_invoice(9), fonts).value()).find("DejaVu"), std::string::npos);
  if (const char* directory = std::getenv("CRETO_KEEP_PDF")) {
    std::ofstream(std::string(directory) + "/invoice-scripts.pdf")
        .write(reinterpret_cast<const char*>(pdf.data()), static_cast<std::streamsize>(pdf.size()));
  }
}

TEST(InvoicePdf, DrawsAnyText) {
  Invoice invoice = sample_invoice();
  invoice.plan_name = "Für Ämter \xE2\x82\xAC \xF0\x9F\x98\x80 (with) \\ and \x01 " + std::string(400, 'W');
  invoice.lines[0].description = std::string(300, 'x');
  EXPECT_TRUE(render_pdf(invoice, fonts));
}

}  // namespace
}  // namespace creto::metering
