#include "creto/metering/simulation.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "billing/invoicing.h"
#include "billing/rating.h"
#include "creto/common/json.h"
#include "creto/crypto/hash.h"
#include "creto/io/proto_json.h"
#include "ledger/batch_proof.h"
#include "usage/intake.h"
#include "usage/usage_records.h"

namespace creto::metering {
namespace {

constexpr std::size_t periods_max = 10'000;

/// What a dump says beside a report.
constexpr std::array dump_members{"id", "arrived", "org", "ancestors", "reporter", "subscription", "envelope"};

Error error_of(ErrorKind kind, std::string message) { return Error(Product::metering, kind, std::move(message)); }

/// The record that a line stands for.
Result<std::string> record_of_line(const Json& json) {
  if (json.contains("specversion")) {
    google::protobuf::Struct event;
    CRETO_TRY(proto::message_from_json(json.dump(), event));
    return record_of(event);
  }
  v1::UsageReport report;
  CRETO_TRY(proto::message_from_json(json.dump(), report));
  // A dump shows what a void counts for.
  if (!report.voids().empty() && report.units() == "0") report.clear_units();
  return record_of(report);
}

/// An id where the line has none: they only tell events apart, and order those of one moment.
EventId id_of_line(std::size_t line) {
  ByteArray<16> bytes{};
  for (std::size_t i = 0; i < 8; ++i) bytes[8 + i] = static_cast<std::uint8_t>(line >> (8 * (7 - i)));
  return EventId::from_bytes(bytes);
}

}  // namespace

struct GivenUsage::Rep {
  struct Event {
    EventId id;
    Instant time;
    std::string key;
    std::string type;
    std::string agent;
    std::string corrects;  ///< as the line names it, by the names of `places`
    bool voids = false;
    Properties properties;
    std::size_t line = 0;
  };
  std::vector<Event> events;
  std::unordered_map<std::string, std::size_t> places;  ///< by id, and by source and key
  std::unordered_map<std::string, Hash256> contents;    ///< by source and key
  std::size_t lines = 0;
  bool dump = false;

  static std::string key_name(std::string_view source, std::string_view key) {
    return fmt::format("{}\n{}", source, key);
  }
};

GivenUsage::GivenUsage() : rep_(std::make_unique<Rep>()) {}
GivenUsage::GivenUsage(GivenUsage&&) noexcept = default;
GivenUsage& GivenUsage::operator=(GivenUsage&&) noexcept = default;
GivenUsage::~GivenUsage() = default;

std::size_t GivenUsage::events() const { return rep_->events.size(); }

Result<> GivenUsage::add(std::string_view line) {
  ++rep_->lines;
  if (line.size() > line_bytes_max)
    return error_of(ErrorKind::too_large, fmt::format("line: must be at most {} bytes", line_bytes_max));
  Json json = CRETO_TRY(parse_json(line));
  if (!json.is_object()) return error_of(ErrorKind::invalid_input, "line: must be an object");
  EventId id = id_of_line(rep_->lines);
  if (json.contains("arrived") && json.contains("id") && json["id"].is_string()) {
    id = CRETO_TRY(EventId::parse(json["id"].get<std::string>()));
    rep_->dump = true;
    for (const char* member : dump_members) json.erase(member);
  }
  const std::string bytes = CRETO_TRY(record_of_line(json));
  RecordScratch scratch;
  const RecordView record = CRETO_TRY(parse_record(as_bytes(bytes), scratch));
  CRETO_TRY(check_usage_properties(record.type, record.properties));

  const std::string_view source = record.source.empty() ? record.agent : record.source;
  const std::string name = Rep::key_name(source, record.key);
  const auto [known, fresh] = rep_->contents.emplace(name, record_leaf(record.bytes));
  if (!fresh && !rep_->dump) {
    if (known->second == record_leaf(record.bytes)) return {};
    return error_of(ErrorKind::conflict, fmt::format("idempotency key `{}` was used for other content", record.key));
  }
  Rep::Event event{.id = id,
                   .time = record.time,
                   .key = std::string(record.key),
                   .type = std::string(record.type),
                   .agent = std::string(record.agent),
                   .corrects = {},
                   .voids = !record.voids.empty(),
                   .properties = properties_of(record),
                   .line = rep_->lines};
  if (record.corrects()) {
    const std::string_view named = event.voids ? record.voids : record.replaces;
    event.corrects =
        named.starts_with(key_prefix) ? Rep::key_name(source, named.substr(key_prefix.size())) : std::string(named);
  }
  // Of a key that is used again after its window, a dump's later lines mean the later event.
  rep_->places[name] = rep_->events.size();
  rep_->places[id.to_string()] = rep_->events.size();
  rep_->events.push_back(std::move(event));
  return {};
}

Result<> GivenUsage::correct() {
  std::vector<bool> out(rep_->events.size());
  for (std::size_t i = 0; i < rep_->events.size(); ++i) {
    const Rep::Event& event = rep_->events[i];
    if (event.corrects.empty()) continue;
    out[i] = out[i] || event.voids;
    const auto refuse = [&](ErrorKind kind, std::string_view rule) {
      return error_of(kind, fmt::format("line {}: what it corrects {}", event.line, rule));
    };
    const auto found = rep_->places.find(event.corrects);
    if (found == rep_->places.end()) {
      if (rep_->dump) continue;
      return refuse(ErrorKind::not_found, "is not there");
    }
    const Rep::Event& target = rep_->events[found->second];
    if (target.agent != event.agent) return refuse(ErrorKind::permission_denied, "is another agent's");
    if (target.voids) return refuse(ErrorKind::conflict, "only takes another event out");
    if (out[found->second]) return refuse(ErrorKind::conflict, "was taken out before");
    out[found->second] = true;
  }
  std::size_t kept = 0;
  for (std::size_t i = 0; i < rep_->events.size(); ++i) {
    if (out[i]) continue;
    if (kept != i) rep_->events[kept] = std::move(rep_->events[i]);
    ++kept;
  }
  rep_->events.erase(rep_->events.begin() + static_cast<std::ptrdiff_t>(kept), rep_->events.end());
  rep_->places.clear();
  std::ranges::sort(rep_->events, {}, [](const Rep::Event& event) { return std::pair(event.time, event.id); });
  return {};
}

Result<std::vector<Invoice>> Simulation::run(const Plan& plan, const GivenUsage& usage, const SimulationTerms& terms) {
  const auto shared = std::make_shared<const Plan>(plan);
  const auto& all = usage.rep_->events;
  const Instant until = terms.until.value_or(Instant::max());
  const auto first =
      std::ranges::lower_bound(all, terms.from.value_or(Instant::min()), {}, &GivenUsage::Rep::Event::time);
  const auto last = std::ranges::lower_bound(all, until, {}, &GivenUsage::Rep::Event::time);
  std::vector<Invoice> invoices;
  if (first >= last) return invoices;

  Cycle cycle{plan.interval, terms.billing_time, terms.from.value_or(first->time), terms.zone};
  const Instant start = terms.from ? *terms.from : period_at(cycle, first->time).begin;
  cycle.anchor = start;
  const Instant end = std::prev(last)->time;
  for (Instant begin = start; begin <= end;) {
    if (invoices.size() == periods_max)
      return error_of(ErrorKind::too_large, fmt::format("usage: spans over {} periods", periods_max));
    const Period full = period_at(cycle, begin);
    const Phase phase{shared, terms.quantity, {begin, full.end}};
    const RatedPeriod rated{.full = full, .phases = {phase}, .ends = false, .subscribed_at = start, .zone = terms.zone};
    Rating rating(rated);
    const Instant from = looks_back(rated) ? start : begin;
    for (auto event = std::ranges::lower_bound(first, last, from, {}, &GivenUsage::Rep::Event::time);
         event != last && event->time < full.end; ++event) {
      auto added = rating.add({event->id, event->time, event->type, &event->properties});
      if (!added) {
        return error_of(added.error().kind(),
                        fmt::format("event `{}` (line {}): {}", event->key, event->line, added.error().message()));
      }
    }
    Invoice invoice{.id = InvoiceId::from_bytes({}), .subscription = SubscriptionId::from_bytes({})};
    invoice.plan_id = plan.id;
    invoice.plan_version = plan.version;
    invoice.plan_name = plan.name;
    invoice.period = {begin, full.end};
    invoice.time_zone = terms.zone.name();
    invoice.currency = plan.currency;
    invoice.lines = CRETO_TRY(base_fee_in_advance(phase, full, start, terms.zone));
    const std::vector<InvoiceLine> fees = CRETO_TRY(rating.finish());
    invoice.lines.insert(invoice.lines.end(), fees.begin(), fees.end());
    CRETO_TRY(total_up(invoice, {.taxes = plan.taxes, .when = full.end}));
    invoices.push_back(std::move(invoice));
    begin = full.end;
  }
  return invoices;
}

}  // namespace creto::metering
