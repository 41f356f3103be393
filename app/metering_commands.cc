#include "metering_commands.h"

#include <fmt/format.h>
#include <unistd.h>

#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/csv.h"
#include "creto/common/clock.h"
#include "creto/common/id.h"
#include "creto/io/files.h"
#include "creto/metering/usage_log.h"

namespace creto::app {
namespace {

constexpr std::string_view service = "creto.metering.v1.MeteringService/";
constexpr std::size_t batch_max = 1'000;
constexpr std::size_t line_bytes_max = 1 << 20;
constexpr std::size_t refusals_shown = 20;

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

/// What the user gave; lives as long as the commands that refer to it.
struct Given {
  std::filesystem::path file;
  std::string format;
  bool restart = false;
  std::filesystem::path log;
  metering::UsageLogFilter filter;
  std::string since;
  Json report = Json::object();  ///< of `report` and `void`, by field
  std::vector<std::string> properties;
};

/// How far an import has come, in a file beside the imported one.
class Progress {
 public:
  explicit Progress(const std::filesystem::path& file) : path_(file.string() + ".progress") {}
  Result<std::uint64_t> load(bool restart) {
    if (restart || !CRETO_TRY(io::real_files().exists(path_))) return std::uint64_t{0};
    const Bytes bytes = CRETO_TRY(io::real_files().read(path_, 64));
    const std::string text(as_text(bytes));
    char* end = nullptr;
    const std::uint64_t offset = std::strtoull(text.c_str(), &end, 10);
    if (text.empty() || *end != '\n')
      return invalid(fmt::format("`{}` is no progress of an import: remove it, or give --restart", path_.string()));
    return offset;
  }
  Result<> save(std::uint64_t offset) {
    return io::write_durably(io::real_files(), path_, as_bytes(fmt::format("{}\n", offset)), 0644);
  }
  Result<> done() { return io::real_files().remove(path_); }

 private:
  std::filesystem::path path_;
};

/// Sends reports and CloudEvents in batches and counts what became of them.
class Import {
 public:
  explicit Import(cli::Server& server) : server_(server) {}

  Result<> add(std::uint64_t line, Json event) {
    // A CloudEvent says so; what it is decides the call, so a batch has one kind.
    const bool cloud = event.is_object() && event.contains("specversion");
    if (!batch_.empty() && cloud != cloud_) CRETO_TRY(send());
    cloud_ = cloud;
    batch_.push_back(std::move(event));
    lines_.push_back(line);
    return batch_.size() == batch_max ? send() : Result<>();
  }
  void refuse(std::uint64_t line, const std::string& why) {
    if (refusals_.size() < refusals_shown) refusals_.push_back(fmt::format("line {}: {}", line, why));
    ++refused_;
  }
  Result<> send() {
    if (batch_.empty()) return {};
    const Json request{{"events", std::move(batch_)}};
    const Json response =
        CRETO_TRY(server_.call(std::string(service) + (cloud_ ? "IngestCloudEvents" : "ReportUsage"), request));
    const Json items = response.value("items", Json::array());
    if (items.size() != lines_.size())
      return Error(Product::platform, ErrorKind::internal, "the server's answer is short");
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (items[i].contains("error")) {
        refuse(lines_[i],
               fmt::format("{} {}", items[i]["error"].value("code", ""), items[i]["error"].value("message", "")));
      } else {
        ++(items[i].value("duplicate", false) ? known_ : taken_);
      }
    }
    batch_ = Json::array();
    lines_.clear();
    return {};
  }
  bool empty() const { return batch_.empty(); }

  Output output() const {
    Output output;
    output.text = fmt::format("{} taken, {} known already, {} refused\n", taken_, known_, refused_);
    for (const std::string& refusal : refusals_) output.text += refusal + "\n";
    if (refused_ > refusals_.size()) output.text += fmt::format("and {} more\n", refused_ - refusals_.size());
    output.json = Json{{"taken", taken_}, {"known", known_}, {"refused", refused_}, {"refusals", refusals_}}.dump(2);
    output.exit_code = refused_ == 0 ? 0 : 1;
    return output;
  }
  std::uint64_t seen() const { return taken_ + known_ + refused_; }

 private:
  cli::Server& server_;
  Json batch_ = Json::array();
  std::vector<std::uint64_t> lines_;
  bool cloud_ = false;
  std::uint64_t taken_ = 0, known_ = 0, refused_ = 0;
  std::vector<std::string> refusals_;
};

Result<Output> import_usage(const Given& given, const cli::CallOptions& options) {
  const std::string format = !given.format.empty() ? given.format : given.file.extension() == ".csv" ? "csv" : "jsonl";
  if (format != "csv" && format != "jsonl") return invalid(fmt::format("--format `{}`: must be jsonl or csv", format));
  std::ifstream in(given.file, std::ios::binary);
  if (!in) return invalid(fmt::format("`{}` cannot be read", given.file.string()));
  const auto size = std::filesystem::file_size(given.file);
  const Home home = CRETO_TRY(Home::locate());
  const auto server = CRETO_TRY(cli::Server::connect(home, options));
  Progress progress(given.file);
  const std::uint64_t resume = CRETO_TRY(progress.load(given.restart));

  Import import(*server);
  std::vector<std::string> header;
  std::string line;
  std::uint64_t number = 0;
  std::uint64_t offset = 0;
  const bool tell = ::isatty(STDERR_FILENO) == 1;
  while (std::getline(in, line)) {
    ++number;
    offset += line.size() + 1;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    if (line.size() > line_bytes_max) {
      import.refuse(number, fmt::format("is over {} bytes", line_bytes_max));
      continue;
    }
    if (format == "csv" && header.empty()) {
      header = CRETO_TRY(cli::split_csv(line));
      continue;
    }
    if (offset <= resume) continue;
    Result<Json> event = Error(Product::platform, ErrorKind::internal, "");
    if (format == "csv") {
      const auto cells = cli::split_csv(line);
      event = cells ? cli::report_of_csv(header, *cells) : Result<Json>(cells.error());
    } else {
      event = parse_json(line);
    }
    if (!event) {
      import.refuse(number, event.error().message());
      continue;
    }
    CRETO_TRY(import.add(number, *std::move(event)));
    if (!import.empty()) continue;
    CRETO_TRY(progress.save(offset));
    if (tell) fmt::print(stderr, "\r{} events, {} %", import.seen(), offset * 100 / std::max<std::uint64_t>(size, 1));
  }
  if (in.bad()) return invalid(fmt::format("`{}` cannot be read", given.file.string()));
  CRETO_TRY(import.send());
  CRETO_TRY(progress.done());
  if (tell) fmt::print(stderr, "\r{} events, 100 %\n", import.seen());
  return import.output();
}

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
  Import import(*server);
  CRETO_TRY(import.add(1, std::move(event)));
  CRETO_TRY(import.send());
  return import.output();
}

Result<Output> verify_usage(const cli::CallOptions& options) {
  const Home home = CRETO_TRY(Home::locate());
  const auto server = CRETO_TRY(cli::Server::connect(home, options));
  const Json response = CRETO_TRY(server->call(std::string(service) + "VerifyUsage", Json::object()));
  const Json problems = response.value("problems", Json::array());
  Output output;
  output.json = response.dump(2);
  output.text = fmt::format("{} events, {} signed batches, {} counters: {}\n", response.value("events", "0"),
                            response.value("batches", "0"), response.value("counters", "0"),
                            problems.empty() ? "all agree" : "they do not agree");
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
  CRETO_TRY(metering::dump_usage_log(io::real_files(), given.log, given.filter, [](std::string_view line) -> Result<> {
    std::cout << line << '\n';
    if (!std::cout) return invalid("standard output: is closed");
    return {};
  }));
  std::cout.flush();
  return Output{};
}

}  // namespace

void add_metering_commands(const MakeCommand& command, std::function<Result<cli::CallOptions>()> options) {
  const auto given = std::make_shared<Given>();
  CLI::App* import = command("metering import", "take usage from a file: UsageReport or CloudEvent by line, or CSV",
                             [given, options]() -> Result<Output> {
                               const cli::CallOptions call = CRETO_TRY(options());
                               return import_usage(*given, call);
                             });
  import->add_option("FILE", given->file, "its progress is kept beside it, so that it may be stopped")->required();
  import->add_option("--format", given->format, "jsonl or csv; default: by the file's name");
  import->add_flag("--restart", given->restart,
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
  command("metering verify", "count all usage again and compare; every hash, every signature, no event twice",
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
