#include "metering_commands.h"

#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "creto/common/clock.h"
#include "creto/common/id.h"
#include "creto/io/files.h"
#include "creto/metering/usage_log.h"
#include "usage_events.h"
#include "usage_import.h"

namespace creto::app {
namespace {

constexpr std::string_view service = "creto.metering.v1.MeteringService/";

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

/// What the user gave; lives as long as the commands that refer to it.
struct Given {
  ImportOptions import;
  std::filesystem::path log;
  metering::UsageLogFilter filter;
  std::string since;
  Json report = Json::object();  ///< of `report` and `void`, by field
  std::vector<std::string> properties;
};

/// One use, now unless told otherwise.
Result<Output> report_usage(const Given& given, const cli::CallOptions& options) {
  Json event = given.report;
  for (auto field = event.begin(); field != event.end();) field = *field == "" ? event.erase(field) : std::next(field);
  const Instant now = system_clock().now();
  if (!event.contains("time")) event["time"] = to_rfc3339(now);
  if (!event.contains("idempotency_key")) event["idempotency_key"] = EventId::fresh(now).to_string();
  Json properties = Json::object();
  for (const std::string& property : given.properties) {
    const std::size_t equals = property.find('=');
    if (equals == property.npos) return invalid(fmt::format("--property `{}`: must be NAME=VALUE", property));
    properties[property.substr(0, equals)] = property.substr(equals + 1);
  }
  event["properties"] = std::move(properties);
  const Home home = CRETO_TRY(Home::locate());
  const auto server = CRETO_TRY(cli::Server::connect(home, options));
  const Json request{{"events", Json::array({std::move(event)})}};
  const Json response = CRETO_TRY(server->call(std::string(service) + "ReportUsage", request));
  const Json items = response.value("items", Json::array());
  if (items.size() != 1)
    return Error(Product::platform, ErrorKind::internal, "the server's answer is not for one event");
  const Json& item = items.front();
  const bool refused = item.contains("error");
  const bool known = item.value("duplicate", false);
  std::string why;
  if (refused) why = fmt::format("{} {}", item["error"].value("code", ""), item["error"].value("message", ""));
  Output output;
  output.text = refused ? why + "\n" : fmt::format("{}\n", known ? "known already" : "taken");
  output.json = Json{
      {"taken", refused || known ? 0 : 1},
      {"known", known ? 1 : 0},
      {"event_id", item.value("event_id", "")},
      {"error",
       why}}.dump(2);
  output.exit_code = refused ? 1 : 0;
  return output;
}

Result<Output> verify_usage(const cli::CallOptions& options) {
  const Home home = CRETO_TRY(Home::locate());
  const auto server = CRETO_TRY(cli::Server::connect(home, options));
  const Json response = CRETO_TRY(server->call(std::string(service) + "VerifyUsage", Json::object()));
  const Json problems = response.value("problems", Json::array());
  Output output;
  output.json = response.dump(2);
  output.text = fmt::format(
      "{} events, {} signed batches, {} signed envelopes, {} counters, {} sums, {} recorded ends of the log: {}\n",
      response.value("events", "0"), response.value("batches", "0"), response.value("envelopes", "0"),
      response.value("counters", "0"), response.value("sums", "0"), response.value("heads", "0"),
      problems.empty() ? "all agree" : "they do not agree");
  if (response.contains("held_since")) {
    output.text += fmt::format("{} events that arrived until {} are no longer held; what was counted of them stands\n",
                               response.value("events_cut", "0"), response.value("held_since", ""));
  }
  for (const Json& problem : problems) output.text += problem.get<std::string>() + "\n";
  output.exit_code = problems.empty() ? 0 : 1;
  return output;
}

Result<Output> dump_usage(Given given) {
  if (given.log.empty()) {
    const Home home = CRETO_TRY(Home::locate());
    given.log = home.usage() / "log";
  }
  if (!given.since.empty()) {
    const auto ago = parse_duration(given.since);
    const auto at = from_rfc3339(given.since);
    if (!ago && !at)
      return invalid(fmt::format("--since `{}`: must be RFC 3339 or a duration such as 30d", given.since));
    given.filter.from = ago ? system_clock().now() - *ago : *at;
  }
  // Written as it is read: a log may be larger than memory.
  const auto write = [](std::string_view line) -> Result<> {
    std::cout << line << '\n';
    if (!std::cout) return invalid("standard output: is closed");
    return {};
  };
  const auto summary = CRETO_TRY(metering::dump_usage_log(io::real_files(), given.log, given.filter, write));
  std::cout.flush();
  note_held_since(given.filter.from, summary.held_since);
  return Output{};
}

}  // namespace

void add_metering_commands(const MakeCommand& command, std::function<Result<cli::CallOptions>()> options) {
  const auto given = std::make_shared<Given>();
  CLI::App* import = command("metering import", "take usage from a file: UsageReport or CloudEvent by line, or CSV",
                             [given, options]() -> Result<Output> {
                               const cli::CallOptions call = CRETO_TRY(options());
                               return import_usage(given->import, call);
                             });
  import
      ->add_option("FILE", given->import.file,
                   "beside it: its progress, so that it may be stopped, and what was refused")
      ->required();
  import->add_option("--format", given->import.format, "jsonl or csv; default: by the file's name");
  import->add_flag("--restart", given->import.restart,
                   "from the beginning: what was taken before is known and not taken twice");
  CLI::App* report = command("metering report", "one use, reported by you", [given, options]() -> Result<Output> {
    const cli::CallOptions call = CRETO_TRY(options());
    return report_usage(*given, call);
  });
  const auto field = [&](const char* option, const char* name, const char* help) {
    Json& value = given->report[name] = "";
    return report->add_option(option, value.get_ref<std::string&>(), help);
  };
  field("AGENT", "agent", "whose use: an identity")->required();
  field("TYPE", "usage_type", "what was used")->required();
  field("--units", "units", "how much of it; default: 1");
  field("--cost", "cost", "what it cost, where that is known");
  field("--currency", "currency", "of the cost, as USD");
  field("--time", "time", "RFC 3339; default: now");
  field("--key", "idempotency_key", "the same again is the same use; default: a new one");
  field("--source", "source", "who counted; default: the agent");
  field("--replaces", "replaces", "the event whose place it takes: its id, or key: and its idempotency key");
  report->add_option("--property", given->properties, "NAME=VALUE");
  const auto out = std::make_shared<Given>();
  CLI::App* take_out =
      command("metering void", "take an event out: it counts no more", [out, options]() -> Result<Output> {
        const cli::CallOptions call = CRETO_TRY(options());
        out->report["usage_type"] = "void";
        return report_usage(*out, call);
      });
  const auto member = [&](const char* option, const char* name, const char* help) {
    Json& value = out->report[name] = "";
    return take_out->add_option(option, value.get_ref<std::string&>(), help);
  };
  member("AGENT", "agent", "whose event: an identity")->required();
  member("EVENT", "voids", "its id, or key: and its idempotency key")->required();
  member("--key", "idempotency_key", "the same again is the same void; default: a new one");
  member("--source", "source", "who counted it, where EVENT is its key; default: the agent");
  take_out->add_option("--property", out->properties, "NAME=VALUE, as reason=...");
  command("metering verify",
          "count all usage again and compare; every hash, every batch's signature, no event twice, none gone",
          [options]() -> Result<Output> {
            cli::CallOptions call = CRETO_TRY(options());
            call.timeout = std::max<Nanos>(call.timeout, std::chrono::minutes(10));
            return verify_usage(call);
          });
  CLI::App* dump = command("metering dump", "the usage log as JSON, an event a line, without a server",
                           [given] { return dump_usage(*given); });
  dump->add_option("--log", given->log, "directory; default: this home's");
  dump->add_option("--org", given->filter.org, "of one organization");
  dump->add_option("--subject", given->filter.subject, "an identity with all below it, or a subscription");
  dump->add_option("--since", given->since, "of arrival: RFC 3339 or a duration such as 30d");
}

}  // namespace creto::app
