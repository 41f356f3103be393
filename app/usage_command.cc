#include "usage_command.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "creto/common/clock.h"
#include "creto/io/files.h"
#include "usage_events.h"
#include "usage_view.h"

namespace creto::app {
namespace {

constexpr std::string_view method = "creto.metering.v1.MeteringService/GetUsage";

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

Result<Json> request_of(const UsageOptions& usage) {
  Json request = Json::object();
  request["subject"] = usage.subject;
  request["event_type"] = usage.type;
  request["group_by"] = usage.by;
  request["where"] = usage.where;
  request["time_zone"] = usage.zone;
  request["order_by"] = usage.order.empty() && usage.top > 0 ? usage.measure : usage.order;
  request["limit"] = usage.top;
  request["after"] = usage.after;
  const auto put = [&](const char* name, std::string_view option, const std::string& text) -> Result<> {
    if (text.empty()) return {};
    const Instant at = CRETO_TRY(usage_instant(option, text));
    request[name] = to_rfc3339(at);
    return {};
  };
  CRETO_TRY(put("from", "--from", usage.from));
  CRETO_TRY(put("until", "--until", usage.until));
  return request;
}

}  // namespace

Result<Instant> usage_instant(std::string_view option, const std::string& text) {
  if (const auto ago = parse_duration(text)) return system_clock().now() - *ago;
  if (const auto at = from_rfc3339(text)) return *at;
  return invalid(fmt::format("{} `{}`: must be RFC 3339 or a duration such as 30d", option, text));
}

Result<Json> ask_for_usage(const Home& home, const cli::CallOptions& options, const UsageOptions& usage) {
  const Json request = CRETO_TRY(request_of(usage));
  const auto server = CRETO_TRY(cli::Server::connect(home, options));
  return server->call(method, request);
}

Result<Output> show_usage(const Home& home, const cli::CallOptions& options, UsageOptions usage) {
  if (!usage.measure.empty() && usage.measure != "events" && usage.measure != "units" && usage.measure != "cost") {
    return invalid(fmt::format("--measure `{}`: must be events, units or cost", usage.measure));
  }
  const bool chosen = !usage.measure.empty();
  if (!chosen) usage.measure = "cost";
  Json response = CRETO_TRY(ask_for_usage(home, options, usage));
  if (!chosen && !has_cost(response)) {
    // Nobody stated costs. Only the largest groups were asked for, and by cost none is.
    usage.measure = "units";
    if (usage.top > 0) response = CRETO_TRY(ask_for_usage(home, options, usage));
  }
  Instant from{};
  if (!usage.from.empty()) from = CRETO_TRY(usage_instant("--from", usage.from));
  note_held_since(from, response);
  Output output;
  output.json = response.dump(2);
  const Chart chart = usage_as_chart(response, usage.by, usage.measure);
  if (!usage.svg.empty()) {
    CRETO_TRY(io::write_durably(io::real_files(), usage.svg, as_bytes(chart_as_svg(chart)), 0644));
  }
  if (!usage.png.empty()) {
    const Bytes png = CRETO_TRY(chart_as_png(chart));
    CRETO_TRY(io::write_durably(io::real_files(), usage.png, png, 0644));
  }
  if (usage.csv) {
    output.text = usage_as_csv(response, usage.by);
  } else if (usage.plot) {
    output.text = chart_as_text(chart, usage.columns);
  } else {
    output.text = usage_as_table(response, usage.by);
  }
  return output;
}

}  // namespace creto::app
