#include "usage_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string_view>

namespace creto::app {
namespace {

std::string member(const Json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) return "0";
  return found->is_string() ? found->get<std::string>() : found->dump();
}
std::string cost_of(const Json& row) { return row.contains("cost") ? member(row["cost"], "amount") : "0"; }
std::vector<std::string> keys_of(const Json& row) {
  return row.contains("keys") ? row["keys"].get<std::vector<std::string>>() : std::vector<std::string>();
}
Json rows_of(const Json& response) { return response.contains("rows") ? response["rows"] : Json::array(); }

bool is_period(std::string_view grouping) {
  return grouping == "hour" || grouping == "day" || grouping == "week" || grouping == "month";
}

std::string csv_field(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + '"';
}

}  // namespace

std::string csv_line_of(const std::vector<std::string>& cells) {
  std::string out;
  for (const std::string& cell : cells) {
    if (&cell != cells.data()) out += ',';
    out += csv_field(cell);
  }
  return out + "\r\n";
}

std::vector<UsageLine> usage_lines(const Json& response) {
  std::vector<UsageLine> lines;
  for (const Json& row : rows_of(response)) {
    lines.push_back({keys_of(row), member(row, "events"), member(row, "units"), cost_of(row),
                     row.contains("cost") ? member(row["cost"], "currency") : ""});
  }
  return lines;
}

std::string usage_as_csv(const Json& response, const std::vector<std::string>& by) {
  std::vector<std::string> cells = by;
  cells.insert(cells.end(), {"events", "units", "cost", "currency"});
  std::string out = csv_line_of(cells);
  for (UsageLine& line : usage_lines(response)) {
    cells = std::move(line.keys);
    cells.insert(cells.end(), {line.events, line.units, line.cost, line.currency});
    out += csv_line_of(cells);
  }
  return out;
}

std::string usage_as_table(const Json& response, const std::vector<std::string>& by) {
  std::vector<std::vector<std::string>> lines{by};
  lines.front().insert(lines.front().end(), {"events", "units", "cost"});
  for (const Json& row : rows_of(response)) {
    lines.push_back(keys_of(row));
    lines.back().insert(lines.back().end(), {member(row, "events"), member(row, "units"),
                                             fmt::format("{} {}", cost_of(row),
                                                         row.contains("cost") ? member(row["cost"], "currency") : "")});
  }
  std::vector<std::size_t> widths(lines.front().size());
  for (const auto& line : lines) {
    for (std::size_t i = 0; i < line.size() && i < widths.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string out;
  for (const auto& line : lines) {
    std::string text;
    for (std::size_t i = 0; i < line.size() && i < widths.size(); ++i) {
      // Names to the left, numbers to the right.
      text += i < by.size() ? fmt::format("{:<{}}  ", line[i], widths[i]) : fmt::format("{:>{}}  ", line[i], widths[i]);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + "\n";
  }
  const std::string shown = std::to_string(lines.size() - 1);
  if (const std::string groups = member(response, "groups"); groups != shown) {
    out += fmt::format("{} of {} groups\n", shown, groups);
  }
  return out;
}

bool has_cost(const Json& response) {
  const auto rows = rows_of(response);
  return std::ranges::any_of(rows, [](const Json& row) { return std::strtod(cost_of(row).c_str(), nullptr) != 0; });
}

Chart usage_as_chart(const Json& response, const std::vector<std::string>& by, const std::string& measure) {
  Chart chart;
  std::string currency;
  for (const Json& row : rows_of(response)) {
    const std::vector<std::string> keys = keys_of(row);
    ChartRow bar;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (is_period(by[i])) {
        bar.period = keys[i];
      } else {
        bar.series += (bar.series.empty() ? "" : " ") + keys[i];
      }
    }
    bar.text = measure == "cost" ? cost_of(row) : member(row, measure.c_str());
    bar.value = std::max(0.0, std::strtod(bar.text.c_str(), nullptr));
    if (row.contains("cost")) currency = member(row["cost"], "currency");
    chart.rows.push_back(std::move(bar));
  }
  const std::string unit = measure == "cost" ? fmt::format(" in {}", currency) : "";
  chart.title = fmt::format("{}{} by {}", measure, unit, by.empty() ? "all" : fmt::format("{}", fmt::join(by, ", ")));
  return chart;
}

}  // namespace creto::app
