#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "billing/invoicing.h"
#include "creto/common/identity.h"
#include "creto/common/json.h"
#include "names.h"

/// Invoices and coupons as documents and as CSV (docs/formats.md, "Invoice").
namespace creto::metering {
namespace {

constexpr int schema_version = 2;
constexpr std::size_t document_bytes_max = 8 << 20;

Json period_json(Period period) { return {{"begin", to_rfc3339(period.begin)}, {"end", to_rfc3339(period.end)}}; }

Json party_json(const BillingParty& party) {
  Json json = Json::object();
  const auto put = [&](const char* name, const auto& value) {
    if (!value.empty()) json[name] = value;
  };
  put("name", party.name);
  put("address", party.address);
  put("tax_id", party.tax_id);
  put("email", party.email);
  put("payment", party.payment);
  return json;
}

std::vector<std::string> lines_of(JsonReader& reader, std::string_view key) {
  std::vector<std::string> lines;
  for (const Json& line : reader.array(key)) {
    if (!line.is_string()) {
      reader.refuse(key, "must hold texts");
      break;
    }
    lines.push_back(line.get<std::string>());
  }
  return lines;
}

/// The members of a party; others are the caller's.
BillingParty party_of(JsonReader& reader) {
  BillingParty party;
  party.name = reader.text_or("name", "");
  party.address = lines_of(reader, "address");
  party.tax_id = reader.text_or("tax_id", "");
  party.email = reader.text_or("email", "");
  party.payment = lines_of(reader, "payment");
  return party;
}

Result<BillingParty> party_from(const Json& json, const std::string& path) {
  JsonReader reader(json, path);
  BillingParty party = party_of(reader);
  CRETO_TRY(reader.finish());
  return party;
}

Decimal decimal_of(JsonReader& reader, std::string_view key) {
  const auto value = Decimal::parse(reader.text(key));
  if (value) return *value;
  reader.refuse(key, "must be a decimal string");
  return {};
}
Instant instant_of(JsonReader& reader, std::string_view key) {
  const auto value = from_rfc3339(reader.text(key));
  if (value) return *value;
  reader.refuse(key, "must be an RFC 3339 time");
  return {};
}

Result<Period> period_from(const Json& json, const std::string& path) {
  JsonReader reader(json, path);
  const Period period{instant_of(reader, "begin"), instant_of(reader, "end")};
  CRETO_TRY(reader.finish());
  return period;
}

/// Version 1 had only usage and the base fee, and did not say which.
Result<InvoiceLine> line_from(const Json& json, const std::string& path, std::int64_t version, Period of_invoice) {
  if (!json.is_object()) return Error(Product::metering, ErrorKind::invalid_input, path + ": must be an object");
  JsonReader reader(json, path);
  InvoiceLine line;
  const std::string kind = version == 1 ? "" : reader.text("kind");
  line.charge = reader.text("charge");
  line.description = reader.text("description");
  line.model = reader.text("model");
  line.group = reader.text("group");
  const Json& period = reader.object("period");
  line.units = decimal_of(reader, "units");
  line.events = reader.integer("events");
  line.exact = decimal_of(reader, "exact");
  line.amount = decimal_of(reader, "amount");
  CRETO_TRY(reader.finish());
  line.period = of_invoice;
  if (!period.empty()) line.period = CRETO_TRY(period_from(period, path + ".period"));
  if (version == 1) {
    line.kind = line.charge == "base_fee" ? LineKind::base_fee : LineKind::usage;
  } else {
    line.kind = CRETO_TRY(line_kind_from_string(kind));
  }
  return line;
}

Result<InvoiceEntry> entry_from(const Json& json, const std::string& path) {
  if (!json.is_object()) return Error(Product::metering, ErrorKind::invalid_input, path + ": must be an object");
  JsonReader reader(json, path);
  const std::string kind = reader.text("kind");
  InvoiceEntry entry;
  entry.id = reader.text("id");
  entry.description = reader.text("description");
  entry.base = decimal_of(reader, "base");
  entry.rate = decimal_of(reader, "rate");
  entry.amount = decimal_of(reader, "amount");
  CRETO_TRY(reader.finish());
  entry.kind = CRETO_TRY(entry_kind_from_string(kind));
  return entry;
}

std::string csv_field(std::string_view text) {
  // A leading sign or `=` would be a formula to spreadsheets; a number may keep its minus.
  const bool formula = !text.empty() && std::string_view("=+@\t\r").find(text.front()) != std::string_view::npos;
  const bool dashed = text.starts_with('-') && !Decimal::parse(text);
  std::string field = formula || dashed ? "'" + std::string(text) : std::string(text);
  if (field.find_first_of(",\"\r\n") == std::string::npos) return field;
  std::string quoted = "\"";
  for (const char c : field) quoted.append(c == '"' ? 2 : 1, c);
  return quoted + "\"";
}

}  // namespace

Result<std::string> invoice_document(const Invoice& invoice) {
  const int places = invoice.currency.places();
  Json lines = Json::array();
  for (const InvoiceLine& line : invoice.lines) {
    lines.push_back({{"kind", to_string(line.kind)},
                     {"charge", line.charge},
                     {"description", line.description},
                     {"model", line.model},
                     {"group", line.group},
                     {"period", period_json(line.period)},
                     {"units", line.units.to_string()},
                     {"events", std::to_string(line.events)},
                     {"exact", line.exact.to_string()},
                     {"amount", line.amount.to_fixed(places)}});
  }
  Json entries = Json::array();
  for (const InvoiceEntry& entry : invoice.entries) {
    entries.push_back({{"kind", to_string(entry.kind)},
                       {"id", entry.id},
                       {"description", entry.description},
                       {"base", entry.base.to_fixed(places)},
                       {"rate", entry.rate.to_string()},
                       {"amount", entry.amount.to_fixed(places)}});
  }
  Json json = {
      {"schema_version", schema_version},
      {"kind", to_string(invoice.kind)},
      {"id", invoice.id.to_string()},
      {"number", std::to_string(invoice.number)},
      {"subscription", invoice.subscription.to_string()},
      {"agent", invoice.agent},
      {"plan",
       {{"id", invoice.plan_id}, {"version", std::to_string(invoice.plan_version)}, {"name", invoice.plan_name}}},
      {"period", period_json(invoice.period)},
      {"time_zone", invoice.time_zone},
      {"issued_at", to_rfc3339(invoice.issued_at)},
      {"currency", invoice.currency.code()},
      {"lines", std::move(lines)},
      {"entries", std::move(entries)},
      {"fees", invoice.fees.to_fixed(places)},
      {"total", invoice.total.to_fixed(places)},
      {"credited", invoice.credited.to_fixed(places)}};
  if (invoice.due_at) json["due_at"] = to_rfc3339(*invoice.due_at);
  if (!invoice.issuer.empty()) json["issuer"] = party_json(invoice.issuer);
  if (!invoice.customer.empty()) json["customer"] = party_json(invoice.customer);
  return canonical_json(json);
}

Result<Invoice> invoice_from_document(std::string document) {
  const Json json = CRETO_TRY(parse_json(document, {.bytes_max = document_bytes_max, .depth_max = 8}));
  JsonReader reader(json, "invoice");
  const std::int64_t version = reader.integer("schema_version");
  if (version < 1 || version > schema_version) reader.refuse("schema_version", "must be 1 or 2");
  const InvoiceId id = CRETO_TRY(InvoiceId::parse(reader.text("id")));
  const SubscriptionId subscription = CRETO_TRY(SubscriptionId::parse(reader.text("subscription")));
  const std::string kind = version == 1 ? "period" : reader.text("kind");
  Invoice invoice{.id = id, .status = InvoiceStatus::finalized, .subscription = subscription};
  invoice.number = reader.integer("number");
  invoice.agent = reader.text("agent");
  const Json& plan_json = reader.object("plan");
  const Json& period = reader.object("period");
  invoice.time_zone = reader.text_or("time_zone", "UTC");
  invoice.issued_at = instant_of(reader, "issued_at");
  if (!reader.any("due_at").is_null()) invoice.due_at = instant_of(reader, "due_at");
  const std::string currency = reader.text("currency");
  const Json& issuer = reader.object("issuer");
  const Json& customer = reader.object("customer");
  const Json& lines = reader.array("lines");
  const Json& entries = reader.array("entries");
  invoice.total = decimal_of(reader, "total");
  invoice.fees = version == 1 ? invoice.total : decimal_of(reader, "fees");
  if (version > 1) invoice.credited = decimal_of(reader, "credited");
  CRETO_TRY(reader.finish());
  invoice.kind = CRETO_TRY(invoice_kind_from_string(kind));
  invoice.currency = CRETO_TRY(Currency::parse(currency));
  invoice.period = CRETO_TRY(period_from(period, "invoice.period"));

  invoice.issuer = CRETO_TRY(party_from(issuer, "invoice.issuer"));
  invoice.customer = CRETO_TRY(party_from(customer, "invoice.customer"));
  JsonReader plan(plan_json, "invoice.plan");
  invoice.plan_id = plan.text("id");
  invoice.plan_version = plan.integer("version");
  invoice.plan_name = plan.text("name");
  CRETO_TRY(plan.finish());
  for (const Json& one : lines) {
    const std::string path = fmt::format("invoice.lines[{}]", invoice.lines.size());
    InvoiceLine line = CRETO_TRY(line_from(one, path, version, invoice.period));
    invoice.lines.push_back(std::move(line));
  }
  for (const Json& one : entries) {
    InvoiceEntry entry = CRETO_TRY(entry_from(one, fmt::format("invoice.entries[{}]", invoice.entries.size())));
    invoice.entries.push_back(std::move(entry));
  }
  invoice.document = std::move(document);
  return invoice;
}

std::string invoice_csv(const Invoice& invoice) {
  const int places = invoice.currency.places();
  std::string csv = "invoice,kind,id,description,group,period_begin,period_end,units,events,rate,amount,currency\r\n";
  const auto row = [&](std::initializer_list<std::string_view> fields) {
    bool first = true;
    for (const std::string_view field : fields) {
      if (!first) csv += ',';
      csv += csv_field(field);
      first = false;
    }
    csv += "\r\n";
  };
  const std::string number = invoice.number == 0 ? "draft" : invoice_number_text(invoice.number);
  for (const InvoiceLine& line : invoice.lines) {
    row({number, to_string(line.kind), line.charge, line.description, line.group, to_rfc3339(line.period.begin),
         to_rfc3339(line.period.end), line.units.to_string(), std::to_string(line.events), "",
         line.amount.to_fixed(places), invoice.currency.code()});
  }
  for (const InvoiceEntry& entry : invoice.entries) {
    row({number, to_string(entry.kind), entry.id, entry.description, "", "", "", "", "",
         entry.rate.is_zero() ? "" : entry.rate.to_string(), entry.amount.to_fixed(places), invoice.currency.code()});
  }
  return csv;
}

bool BillingParty::empty() const { return *this == BillingParty(); }

Result<> validate(const BillingParty& party, std::string_view path) {
  const auto text = [&](std::string_view field, const std::string& value, std::size_t bytes_max) -> Result<> {
    if (value.size() <= bytes_max && is_valid_utf8(value)) return {};
    return Error(Product::metering, ErrorKind::invalid_input,
                 fmt::format("{}.{}: must be at most {} bytes of UTF-8", path, field, bytes_max));
  };
  CRETO_TRY(text("name", party.name, 256));
  CRETO_TRY(text("tax_id", party.tax_id, 64));
  CRETO_TRY(text("email", party.email, 254));
  for (const auto& [field, lines] : {std::pair("address", &party.address), {"payment", &party.payment}}) {
    if (lines->size() > 8)
      return Error(Product::metering, ErrorKind::invalid_input,
                   fmt::format("{}.{}: must be at most 8 lines", path, field));
    for (const std::string& line : *lines) {
      CRETO_TRY(text(field, line, 128));
      if (line.empty())
        return Error(Product::metering, ErrorKind::invalid_input,
                     fmt::format("{}.{}: must have no empty lines", path, field));
    }
  }
  return {};
}

Result<std::string> to_json(const BillingProfile& profile) {
  Json json = party_json(profile.party);
  json["schema_version"] = 1;
  json["subject"] = profile.subject;
  return canonical_json(json);
}

Result<BillingProfile> billing_profile_from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text, {.bytes_max = 16 << 10, .depth_max = 4}));
  JsonReader reader(json, "billing_profile");
  if (reader.integer_or("schema_version", 1) != 1) reader.refuse("schema_version", "must be 1");
  BillingProfile profile;
  profile.subject = reader.text("subject");
  profile.party = party_of(reader);
  if (!Identity::parse(profile.subject)) reader.refuse("subject", "must be an identity");
  if (profile.party.name.empty()) reader.refuse("name", "is required");
  if (!profile.party.payment.empty()) reader.refuse("payment", "is of who bills, not of who is billed");
  CRETO_TRY(reader.finish());
  CRETO_TRY(validate(profile.party, "billing_profile"));
  return profile;
}

Result<std::string> to_json(const Coupon& coupon) {
  Json json = {{"schema_version", 1}, {"id", coupon.id}, {"name", coupon.name}};
  if (coupon.amount) {
    json["amount"] = coupon.amount->amount.to_string();
    json["currency"] = coupon.amount->currency.code();
  } else {
    json["percent"] = coupon.percent.to_string();
  }
  if (coupon.periods) json["periods"] = *coupon.periods;
  if (coupon.expires_at) json["expires_at"] = to_rfc3339(*coupon.expires_at);
  return canonical_json(json);
}

Result<Coupon> coupon_from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text, {.bytes_max = 16 << 10, .depth_max = 4}));
  JsonReader reader(json, "coupon");
  if (reader.integer_or("schema_version", 1) != 1) reader.refuse("schema_version", "must be 1");
  Coupon coupon;
  coupon.id = reader.text("id");
  if (!is_name(coupon.id)) reader.refuse("id", name_rule);
  coupon.name = reader.text_or("name", coupon.id);
  if (coupon.name.size() > 256) reader.refuse("name", "must be at most 256 bytes");
  const bool fixed = !reader.any("amount").is_null();
  std::string currency = "USD";
  Decimal amount;
  if (fixed) {
    amount = decimal_of(reader, "amount");
    if (amount <= Decimal()) reader.refuse("amount", "must be positive");
    currency = reader.text("currency");
  } else {
    coupon.percent = decimal_of(reader, "percent");
    if (coupon.percent <= Decimal() || coupon.percent > Decimal(100)) {
      reader.refuse("percent", "must be above 0 and at most 100");
    }
  }
  if (!reader.any("periods").is_null()) {
    const std::int64_t periods = reader.integer("periods");
    if (periods < 1 || periods > 1'000) reader.refuse("periods", "must be 1 to 1000");
    coupon.periods = static_cast<int>(periods);
  }
  if (!reader.any("expires_at").is_null()) coupon.expires_at = instant_of(reader, "expires_at");
  CRETO_TRY(reader.finish());
  if (fixed) {
    Currency of = CRETO_TRY(Currency::parse(currency));
    coupon.amount = Money{amount, std::move(of)};
  }
  return coupon;
}

}  // namespace creto::metering
