#include "usage_events.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "creto/io/files.h"

namespace creto::app {
namespace {

constexpr std::string_view method = "creto.metering.v1.MeteringService/ListUsageEvents";
constexpr std::int64_t page_events = 5'000;

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

Result<std::uint64_t> ask_for_events(const Home& home, const cli::CallOptions& options, const UsageEvents& wanted,
                                     const std::function<Result<>(std::string_view)>& line) {
  const auto server = CRETO_TRY(cli::Server::connect(home, options));
  Json request{{"subject", wanted.subject}, {"from", to_rfc3339(wanted.from)}, {"limit", page_events}};
  if (wanted.until != Instant::max()) request["until"] = to_rfc3339(wanted.until);
  std::uint64_t events = 0;
  for (;;) {
    const Json page = CRETO_TRY(server->call(method, request));
    for (const Json& event : page.value("events", Json::array())) {
      CRETO_TRY(line(event.get_ref<const std::string&>()));
      ++events;
    }
    std::string next = page.value("next", "");
    if (next.empty()) {
      note_held_since(wanted.from, page);
      return events;
    }
    request["after"] = std::move(next);
  }
}

/// The texts of an object's members, until they are used.
struct Texts {
  explicit Texts(const Json& json) : json_(json) {}
  std::string_view operator[](const char* name) const {
    const auto found = json_.find(name);
    return found == json_.end() || !found->is_string() ? std::string_view() : found->get_ref<const std::string&>();
  }

 private:
  const Json& json_;
};

Result<Instant> time_of(std::string_view text) {
  if (const auto at = from_rfc3339(text)) return *at;
  return invalid("an event's time: must be RFC 3339");
}

}  // namespace

Result<std::uint64_t> each_usage_event(const Home& home, const cli::CallOptions& options, const UsageEvents& wanted,
                                       const std::function<Result<>(std::string_view)>& line) {
  if (wanted.log.empty()) {
    if (!wanted.org.empty()) return invalid("--org: belongs to --log; a server shows that of the caller");
    return ask_for_events(home, options, wanted, line);
  }
  if (wanted.org.empty()) return invalid("--log: needs --org, whose usage to read of it");
  const metering::UsageLogFilter filter{
      .org = wanted.org, .subject = wanted.subject, .from = wanted.from, .until = wanted.until};
  const auto summary = CRETO_TRY(metering::dump_usage_log(io::real_files(), wanted.log, filter, line));
  note_held_since(wanted.from, summary.held_since);
  return summary.events;
}

void note_held_since(Instant from, const std::optional<Instant>& held_since) {
  if (!held_since || from > *held_since) return;
  fmt::print(stderr, "creto: events that arrived until {} are no longer held, and are not in this\n",
             to_rfc3339(*held_since));
}

void note_held_since(Instant from, const Json& answer) {
  const auto at = from_rfc3339(answer.value("held_since", ""));
  note_held_since(from, at ? std::optional(*at) : std::nullopt);
}

Result<> read_event_line(std::string_view line, const std::function<Result<>(const metering::LoggedEvent&)>& visit) {
  const Json json = CRETO_TRY(parse_json(line));
  const Texts text(json);
  std::vector<std::string_view> ancestors;
  if (const auto listed = json.find("ancestors"); listed != json.end()) {
    for (const Json& ancestor : *listed) {
      if (!ancestor.is_string()) return invalid("an event's ancestors: must be texts");
      ancestors.push_back(ancestor.get_ref<const std::string&>());
    }
  }
  std::vector<std::pair<std::string_view, std::string_view>> properties;
  if (const auto listed = json.find("properties"); listed != json.end()) {
    for (const auto& [name, value] : listed->items()) {
      if (!value.is_string()) return invalid("an event's properties: must be texts");
      properties.emplace_back(name, value.get_ref<const std::string&>());
    }
  }
  const EventId id = CRETO_TRY(EventId::parse(text["id"]));
  const Instant arrived = CRETO_TRY(time_of(text["arrived"]));
  const Instant time = CRETO_TRY(time_of(text["time"]));
  return visit({.id = id,
                .arrived = arrived,
                .org = text["org"],
                .agent = text["agent"],
                .ancestors = ancestors,
                .reporter = text["reporter"],
                .subscription = text["subscription"],
                .source = text["source"],
                .usage_type = text["usage_type"],
                .idempotency_key = text["idempotency_key"],
                .time = time,
                .units = text["units"],
                .cost = text["cost"],
                .currency = text["currency"],
                .replaces = text["replaces"],
                .voids = text["voids"],
                .envelope = text["envelope"],
                .properties = properties});
}

}  // namespace creto::app
