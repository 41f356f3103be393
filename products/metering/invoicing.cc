#include "invoicing.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "pricing.h"
#include "window.h"

namespace creto::metering {
namespace {

constexpr int schema_version = 1;

bool needs_values(const Price& price) {
  return std::holds_alternative<PercentagePrice>(price) || std::holds_alternative<DynamicPrice>(price);
}

Result<Decimal> decimal_of(JsonReader& reader, std::string_view key) {
  const std::string text = reader.text(key);
  return Decimal::parse(text.empty() ? "0" : text);
}

}  // namespace

std::int64_t months_begun(Period period, Instant active_from) {
  std::int64_t months = 0;
  Instant first = std::max(period.begin, active_from);
  // A month that began before the period was paid with the invoice before, unless the subscription began in it.
  if (first != active_from && calendar_window(WindowKind::month, first).begin != first) {
    first = calendar_window(WindowKind::month, first).end;
  }
  while (first < period.end) {
    ++months;
    first = calendar_window(WindowKind::month, first).end;
  }
  return months;
}

InvoiceDraft::InvoiceDraft(const Plan& plan, Period period, Instant active_from)
    : plan_(plan), period_(period), active_from_(active_from) {
  for (const Charge& charge : plan.charges) aggregators_.emplace_back(charge.metric, needs_values(charge.price));
}

Result<> InvoiceDraft::add(const UsageFact& fact) {
  for (Aggregator& aggregator : aggregators_) CRETO_TRY(aggregator.add(fact));
  return {};
}

Result<InvoiceDraft::Priced> InvoiceDraft::finish() const {
  Priced priced;
  const std::int64_t months = months_begun(period_, active_from_);
  if (!plan_.base_fee.is_zero() && months > 0) {
    const Decimal exact = CRETO_TRY(Decimal::multiply(plan_.base_fee, Decimal(months)));
    const Money unrounded{exact, plan_.currency};
    const Money fee = CRETO_TRY(unrounded.rounded());
    priced.lines.push_back({"base_fee", plan_.name, "flat", {}, Decimal(months), 0, exact, fee.amount});
  }
  for (std::size_t i = 0; i < plan_.charges.size(); ++i) {
    const Charge& charge = plan_.charges[i];
    const std::vector<Usage> groups = CRETO_TRY(aggregators_[i].finish());
    for (const Usage& usage : groups) {
      const Fee fee = CRETO_TRY(price_usage(charge, usage, plan_.currency));
      priced.lines.push_back({charge.id, charge.description, std::string(to_string(charge.price)), usage.group,
                              fee.units, fee.events, fee.exact, fee.amount.amount});
    }
  }
  for (const InvoiceLine& line : priced.lines) priced.total = CRETO_TRY(Decimal::add(priced.total, line.amount));
  return priced;
}

std::string invoice_number_text(std::int64_t number) { return fmt::format("INV-{:06}", number); }

Result<std::string> invoice_document(const Invoice& invoice) {
  Json lines = Json::array();
  for (const InvoiceLine& line : invoice.lines) {
    lines.push_back({{"charge", line.charge},
                     {"description", line.description},
                     {"model", line.model},
                     {"group", line.group},
                     {"units", line.units.to_string()},
                     {"events", std::to_string(line.events)},
                     {"exact", line.exact.to_string()},
                     {"amount", line.amount.to_fixed(invoice.currency.places())}});
  }
  return canonical_json(
      {{"schema_version", schema_version},
       {"id", invoice.id.to_string()},
       {"number", std::to_string(invoice.number)},
       {"subscription", invoice.subscription.to_string()},
       {"agent", invoice.agent},
       {"plan",
        {{"id", invoice.plan_id}, {"version", std::to_string(invoice.plan_version)}, {"name", invoice.plan_name}}},
       {"period", {{"begin", to_rfc3339(invoice.period.begin)}, {"end", to_rfc3339(invoice.period.end)}}},
       {"issued_at", to_rfc3339(invoice.issued_at)},
       {"currency", invoice.currency.code()},
       {"lines", std::move(lines)},
       {"total", invoice.total.to_fixed(invoice.currency.places())}});
}

Result<Invoice> invoice_from_document(std::string document) {
  const Json json = CRETO_TRY(parse_json(document, {.bytes_max = 8 << 20, .depth_max = 8}));
  JsonReader reader(json, "invoice");
  if (reader.integer("schema_version") != schema_version) reader.refuse("schema_version", "must be 1");
  const InvoiceId id = CRETO_TRY(InvoiceId::parse(reader.text("id")));
  const SubscriptionId subscription = CRETO_TRY(SubscriptionId::parse(reader.text("subscription")));
  Invoice invoice{.id = id,
                  .number = reader.integer("number"),
                  .subscription = subscription,
                  .agent = reader.text("agent"),
                  .plan_id = {},
                  .plan_version = 0,
                  .plan_name = {},
                  .period = {},
                  .issued_at = {},
                  .currency = Currency::usd(),
                  .lines = {},
                  .total = {},
                  .document = {},
                  .signature = {},
                  .pdf_object = {},
                  .sent = false};
  const Json& plan_json = reader.object("plan");
  const Json& period_json = reader.object("period");
  invoice.issued_at = CRETO_TRY(from_rfc3339(reader.text("issued_at")));
  invoice.currency = CRETO_TRY(Currency::parse(reader.text("currency")));
  const Json& lines = reader.array("lines");
  invoice.total = CRETO_TRY(decimal_of(reader, "total"));
  CRETO_TRY(reader.finish());

  JsonReader plan(plan_json, "invoice.plan");
  invoice.plan_id = plan.text("id");
  invoice.plan_version = plan.integer("version");
  invoice.plan_name = plan.text("name");
  CRETO_TRY(plan.finish());
  JsonReader period(period_json, "invoice.period");
  invoice.period.begin = CRETO_TRY(from_rfc3339(period.text("begin")));
  invoice.period.end = CRETO_TRY(from_rfc3339(period.text("end")));
  CRETO_TRY(period.finish());
  for (const Json& one : lines) {
    JsonReader line_reader(one, fmt::format("invoice.lines[{}]", invoice.lines.size()));
    InvoiceLine line;
    line.charge = line_reader.text("charge");
    line.description = line_reader.text("description");
    line.model = line_reader.text("model");
    line.group = line_reader.text("group");
    line.units = CRETO_TRY(decimal_of(line_reader, "units"));
    line.events = line_reader.integer("events");
    line.exact = CRETO_TRY(decimal_of(line_reader, "exact"));
    line.amount = CRETO_TRY(decimal_of(line_reader, "amount"));
    CRETO_TRY(line_reader.finish());
    invoice.lines.push_back(std::move(line));
  }
  invoice.document = std::move(document);
  return invoice;
}

}  // namespace creto::metering
