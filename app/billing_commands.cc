#include "billing_commands.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/yaml.h"
#include "creto/common/clock.h"
#include "creto/crypto/signing.h"
#include "creto/io/files.h"
#include "creto/metering/simulation.h"
#include "usage_events.h"

namespace creto::app {
namespace {

constexpr std::size_t plans_max = 8;
constexpr std::size_t invoice_bytes_max = 16 << 20;

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

// --- what usage would cost

struct SimulationOptions {
  std::vector<std::string> plans;
  std::string events, since, from, subject, zone = "UTC", quantity = "1";
  std::filesystem::path log;
  std::string org;
  bool anniversary = false;
};

Result<Instant> instant_of(std::string_view option, const std::string& text) {
  if (const auto ago = parse_duration(text)) return system_clock().now() - *ago;
  if (const auto at = from_rfc3339(text)) return *at;
  return invalid(fmt::format("{} `{}`: must be RFC 3339 or a duration such as 90d", option, text));
}

Result<metering::Plan> read_plan(const std::string& file) {
  const std::string text = CRETO_TRY(read_text(file, invoice_bytes_max));
  if (!file.ends_with(".yaml") && !file.ends_with(".yml")) return metering::plan_from_json(text);
  const Json json = CRETO_TRY(cli::json_from_yaml(text));
  return metering::plan_from_json(json.dump());
}

Result<metering::GivenUsage> usage_of_file(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) return invalid(fmt::format("`{}` cannot be read", file));
  metering::GivenUsage usage;
  std::string line;
  for (std::size_t number = 1; std::getline(in, line); ++number) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    auto added = usage.add(line);
    if (!added) return std::move(added).error().with_context(fmt::format("`{}` line {}", file, number));
  }
  CRETO_TRY(usage.correct());
  return usage;
}

/// What really was used, as the server's usage log or that of `--log` has it.
Result<metering::GivenUsage> usage_of_log(const SimulationOptions& given, Instant since,
                                          const std::function<Result<cli::CallOptions>()>& options) {
  const Home home = CRETO_TRY(Home::locate());
  const cli::CallOptions call = CRETO_TRY(options());
  // By arrival, which is not before the event's own time but for clocks that differ.
  const UsageEvents wanted{
      .subject = given.subject, .from = since - std::chrono::hours(1), .log = given.log, .org = given.org};
  metering::GivenUsage usage;
  CRETO_TRY(each_usage_event(home, call, wanted, [&](std::string_view line) { return usage.add(line); }));
  CRETO_TRY(usage.correct());
  return usage;
}

/// One plan's fees, by what they are for.
struct Priced {
  metering::Plan plan;
  std::vector<metering::Invoice> invoices;
};
using Row = std::pair<std::string, std::string>;  ///< day on which the period begins; charge and group

std::string day_of(const metering::Invoice& invoice, const TimeZone& zone) {
  const std::chrono::year_month_day day(zone.day_of(invoice.period.begin));
  return fmt::format("{:04}-{:02}-{:02}", static_cast<int>(day.year()), static_cast<unsigned>(day.month()),
                     static_cast<unsigned>(day.day()));
}

Result<Decimal> total_of(const Priced& priced) {
  Decimal total;
  for (const metering::Invoice& invoice : priced.invoices) total = CRETO_TRY(Decimal::add(total, invoice.total));
  return total;
}

Result<std::string> table_of(const std::vector<Priced>& all, const TimeZone& zone) {
  std::map<Row, std::vector<std::string>> amounts;
  const auto put = [&](Row row, std::size_t plan, const std::string& text) {
    auto& cells = amounts.try_emplace(std::move(row), all.size()).first->second;
    cells[plan] += (cells[plan].empty() ? "" : " + ") + text;
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    const int places = all[i].plan.currency.places();
    for (const metering::Invoice& invoice : all[i].invoices) {
      const std::string day = day_of(invoice, zone);
      for (const metering::InvoiceLine& line : invoice.lines) {
        const std::string units =
            line.kind == metering::LineKind::usage ? fmt::format(" ({})", line.units.to_string()) : "";
        std::string what = line.charge;
        if (!line.group.empty()) what += fmt::format(" [{}]", line.group);
        if (line.kind == metering::LineKind::minimum) what += ", minimum";
        put({day, what}, i, line.amount.to_fixed(places) + units);
      }
      for (const metering::InvoiceEntry& entry : invoice.entries)
        put({day, entry.id}, i, entry.amount.to_fixed(places));
      put({day, "~total"}, i, invoice.total.to_fixed(places));
    }
  }
  std::vector<std::vector<std::string>> lines{{"period from", "fee"}};
  for (const Priced& one : all) lines.front().push_back(fmt::format("{}, {}", one.plan.id, one.plan.currency.code()));
  for (const auto& [row, cells] : amounts) {
    lines.push_back({row.first, row.second == "~total" ? "total" : row.second});
    lines.back().insert(lines.back().end(), cells.begin(), cells.end());
  }
  lines.push_back({"all", "total"});
  for (const Priced& one : all) {
    const Decimal total = CRETO_TRY(total_of(one));
    lines.back().push_back(total.to_fixed(one.plan.currency.places()));
  }
  std::vector<std::size_t> widths(lines.front().size());
  for (const auto& line : lines) {
    for (std::size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string text;
  for (const auto& line : lines) {
    std::string row;
    for (std::size_t i = 0; i < line.size(); ++i) row += fmt::format("{:<{}}  ", line[i], widths[i]);
    row.erase(row.find_last_not_of(' ') + 1);
    text += row + "\n";
  }
  return text;
}

Result<Json> json_of(const Priced& priced) {
  Json invoices = Json::array();
  for (const metering::Invoice& invoice : priced.invoices) {
    Json lines = Json::array();
    for (const metering::InvoiceLine& line : invoice.lines) {
      lines.push_back({{"kind", to_string(line.kind)},
                       {"charge", line.charge},
                       {"group", line.group},
                       {"units", line.units.to_string()},
                       {"events", std::to_string(line.events)},
                       {"exact", line.exact.to_string()},
                       {"amount", line.amount.to_string()}});
    }
    Json entries = Json::array();
    for (const metering::InvoiceEntry& entry : invoice.entries)
      entries.push_back({{"kind", to_string(entry.kind)}, {"id", entry.id}, {"amount", entry.amount.to_string()}});
    invoices.push_back(
        {{"period", {{"begin", to_rfc3339(invoice.period.begin)}, {"end", to_rfc3339(invoice.period.end)}}},
         {"lines", std::move(lines)},
         {"entries", std::move(entries)},
         {"fees", invoice.fees.to_string()},
         {"total", invoice.total.to_string()}});
  }
  const Decimal total = CRETO_TRY(total_of(priced));
  return Json{{"plan", priced.plan.id},
              {"currency", priced.plan.currency.code()},
              {"invoices", std::move(invoices)},
              {"total", total.to_string()}};
}

Result<Output> simulate(const SimulationOptions& given, const std::function<Result<cli::CallOptions>()>& options) {
  if (given.plans.empty() || given.plans.size() > plans_max)
    return invalid(fmt::format("--plan: must be given 1 to {} times", plans_max));
  if (given.events.empty() == given.since.empty()) return invalid("--events, --since: one of both must be given");
  metering::SimulationTerms terms;
  terms.zone = CRETO_TRY(TimeZone::load(given.zone));
  terms.quantity = CRETO_TRY(Decimal::parse(given.quantity));
  if (given.anniversary) terms.billing_time = metering::BillingTime::anniversary;
  if (!given.from.empty()) terms.from = CRETO_TRY(instant_of("--from", given.from));
  std::optional<metering::GivenUsage> usage;
  if (given.since.empty()) {
    usage = CRETO_TRY(usage_of_file(given.events));
  } else {
    const Instant since = CRETO_TRY(instant_of("--since", given.since));
    if (!terms.from) terms.from = since;
    usage = CRETO_TRY(usage_of_log(given, since, options));
  }
  std::vector<Priced> all;
  for (const std::string& file : given.plans) {
    Priced priced;
    priced.plan = CRETO_TRY(read_plan(file));
    priced.invoices = CRETO_TRY(metering::Simulation::run(priced.plan, *usage, terms));
    all.push_back(std::move(priced));
  }
  Output output;
  Json json{{"events", std::to_string(usage->events())}, {"plans", Json::array()}};
  for (const Priced& one : all) {
    Json plan = CRETO_TRY(json_of(one));
    json["plans"].push_back(std::move(plan));
  }
  output.json = json.dump(2);
  output.text = CRETO_TRY(table_of(all, terms.zone));
  return output;
}

// --- whether an invoice is what was signed

Result<crypto::VerifyingKey> key_of(const Json& json) {
  Bytes bytes;
  for (const char* half : {"signing_key_ml_dsa", "signing_key_ed25519"}) {
    if (!json.contains(half) || !json[half].is_string()) return invalid(fmt::format("keys.{}: is required", half));
    const Bytes part = CRETO_TRY(from_base64(json[half].get<std::string>()));
    bytes.insert(bytes.end(), part.begin(), part.end());
  }
  return crypto::VerifyingKey::parse(crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65, bytes);
}

/// The keys of service:metering: "hybrid-ed25519-ml-dsa-65:<base64>", or what `creto --json agents keys` says, or
/// `agents key-sets`. Of these, what is compromised signs nothing: who holds it can write any date.
Result<std::vector<crypto::VerifyingKey>> keys_of(const std::string& text) {
  std::vector<crypto::VerifyingKey> keys;
  if (!text.starts_with('{')) {
    auto key = CRETO_TRY(crypto::VerifyingKey::from_text(text.substr(0, text.find_last_not_of(" \r\n") + 1)));
    keys.push_back(std::move(key));
    return keys;
  }
  const Json json = CRETO_TRY(parse_json(text));
  for (const Json& set : json.contains("sets") ? json["sets"] : Json::array({json})) {
    if (!set.is_object()) return invalid("keys.sets: must be a list of objects");
    auto key = CRETO_TRY(key_of(set));
    if (!set.contains("compromised") || set["compromised"] != Json(true)) keys.push_back(std::move(key));
  }
  return keys;
}

/// The invoice of `creto --json invoices show`, as far as its signature goes.
Result<metering::Invoice> invoice_of(const Json& json) {
  JsonReader reader(json, "invoice");
  metering::Invoice invoice{.id = InvoiceId::from_bytes({}), .subscription = SubscriptionId::from_bytes({})};
  invoice.document = reader.text("document");
  const Json& signature = reader.object("signature");
  const Json& proof = reader.object("proof");
  for (const char* other : {"pdf_object", "sent", "status", "settlement", "id", "number", "agent", "total"})
    reader.any(other);
  CRETO_TRY(reader.finish());
  if (signature.empty()) return invalid("invoice.signature: is required; drafts have none");
  JsonReader of_signature(signature, "invoice.signature");
  const std::string algorithm = of_signature.text("algorithm");
  const std::string value = of_signature.text("value");
  CRETO_TRY(of_signature.finish());
  const Bytes value_bytes = CRETO_TRY(from_base64(value));
  invoice.signature = Signature{algorithm, value_bytes};
  if (proof.empty()) return invoice;
  const auto hash_of = [](const Json& text) -> Result<Hash256> {
    if (!text.is_string()) return invalid("invoice.proof: must hold hashes in base64");
    const Bytes bytes = CRETO_TRY(from_base64(text.get<std::string>()));
    Hash256 hash{};
    if (bytes.size() != hash.size()) return invalid("invoice.proof: must hold hashes of 32 bytes");
    std::ranges::copy(bytes, hash.begin());
    return hash;
  };
  JsonReader of_proof(proof, "invoice.proof");
  metering::InvoiceProof& inclusion = invoice.proof.emplace();
  inclusion.size = static_cast<std::uint64_t>(of_proof.integer("size"));
  inclusion.index = static_cast<std::uint64_t>(of_proof.integer_or("index", 0));  // which JSON of a 0 leaves out
  const Json& root = of_proof.any("root");
  const Json& path = of_proof.array("path");
  CRETO_TRY(of_proof.finish());
  inclusion.root = CRETO_TRY(hash_of(root));
  for (const Json& node : path) {
    const Hash256 hash = CRETO_TRY(hash_of(node));
    inclusion.path.push_back(hash);
  }
  return invoice;
}

struct VerifyOptions {
  std::string invoice, keys;
};

Result<Output> verify_invoice(const VerifyOptions& given, const std::function<Result<cli::CallOptions>()>& options) {
  const bool file = CRETO_TRY(io::real_files().exists(given.invoice));
  std::unique_ptr<cli::Server> server;
  if (!file || given.keys.empty()) {
    const Home home = CRETO_TRY(Home::locate());
    const cli::CallOptions call = CRETO_TRY(options());
    server = CRETO_TRY(cli::Server::connect(home, call));
  }
  Json json;
  if (file) {
    const std::string text = CRETO_TRY(read_text(given.invoice, invoice_bytes_max));
    json = CRETO_TRY(parse_json(text, {.bytes_max = invoice_bytes_max}));
  } else {
    const Json request{{"id", given.invoice}};
    json = CRETO_TRY(server->call("creto.metering.v1.MeteringService/GetInvoice", request));
  }
  std::string keys;
  if (given.keys.empty()) {
    const Json request{{"identity", "service:metering"}};
    const Json answer = CRETO_TRY(server->call("creto.nhi.v1.NhiService/ListKeySets", request));
    keys = answer.dump();
  } else {
    keys = CRETO_TRY(read_text(given.keys, invoice_bytes_max));
  }
  const metering::Invoice invoice = CRETO_TRY(invoice_of(json));
  const std::vector<crypto::VerifyingKey> signers = CRETO_TRY(keys_of(keys));
  const Json document = CRETO_TRY(parse_json(invoice.document, {.bytes_max = invoice_bytes_max}));
  const auto signed_text = metering::signed_text(invoice);
  Result<> verified = invalid("none of the keys counts");
  if (!signed_text) verified = Error(signed_text.error());
  for (const crypto::VerifyingKey& key : signers) {
    if (!signed_text || verified) break;
    verified = key.verify(as_bytes(*signed_text), *invoice.signature, as_bytes(metering::invoice_signature_context));
  }
  Output output;
  JsonReader reader(document, "invoice.document");
  const std::string number = metering::invoice_number_text(reader.integer("number"));
  const std::string total = reader.text("total") + " " + reader.text("currency");
  const std::string how =
      invoice.proof ? fmt::format("one of {} that were signed together", invoice.proof->size) : "signed by itself";
  output.json = Json{{"valid", verified.has_value()},
                     {"number", number},
                     {"total", total},
                     {"batch", invoice.proof ? std::to_string(invoice.proof->size) : "1"},
                     {"error", verified ? "" : verified.error().message()}}
                    .dump(2);
  output.text =
      verified ? fmt::format("{} over {}: {}; it is what was signed\n", number, total, how)
               : fmt::format("{} over {}: is not what was signed: {}\n", number, total, verified.error().message());
  output.exit_code = verified ? 0 : 1;
  return output;
}

}  // namespace

void add_billing_commands(const MakeCommand& command, std::function<Result<cli::CallOptions>()> options) {
  const auto given = std::make_shared<SimulationOptions>();
  CLI::App* simulated = command("metering simulate", "what usage would cost on a plan, or on several side by side",
                                [given, options] { return simulate(*given, options); });
  simulated->add_option("--plan", given->plans, "a plan as YAML or JSON; may be given again")->required();
  simulated->add_option("--events", given->events, "usage as for `metering import`, or of `metering dump`");
  simulated->add_option("--since", given->since, "of what was really used: RFC 3339 or a duration such as 90d");
  simulated->add_option("--subject", given->subject, "of that: an identity with all below it, or a subscription");
  simulated->add_option("--log", given->log, "of that: read this directory of log files, without a server");
  simulated->add_option("--org", given->org, "of that: whose usage");
  simulated->add_option("--from", given->from,
                        "the subscription's start; default: of the first event's period, or --since");
  simulated->add_option("--time-zone", given->zone, "of days and periods; default: UTC");
  simulated->add_option("--quantity", given->quantity, "multiplies the base fee; default: 1");
  simulated->add_flag("--anniversary", given->anniversary, "periods count from the start, not by the calendar");

  const auto verified = std::make_shared<VerifyOptions>();
  CLI::App* verify = command("invoices verify", "whether an invoice is what was signed",
                             [verified, options] { return verify_invoice(*verified, options); });
  verify->add_option("INVOICE", verified->invoice, "a file of `creto --json invoices show`, or an id")->required();
  verify->add_option(
      "--keys", verified->keys,
      "a file of `creto --json agents key-sets service:metering`: then no server is asked; default: the server's");
}

}  // namespace creto::app
