#include "cli/csv.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

namespace creto::app::cli {
namespace {

constexpr std::array<std::string_view, 10> fields{"agent", "usage_type", "idempotency_key", "time",     "units",
                                                  "cost",  "currency",   "source",          "replaces", "voids"};

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

}  // namespace

Result<std::vector<std::string>> split_csv(std::string_view line) {
  std::vector<std::string> cells(1);
  bool quoted = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quoted) {
      if (c != '"') {
        cells.back() += c;
      } else if (i + 1 < line.size() && line[i + 1] == '"') {
        cells.back() += line[++i];
      } else {
        quoted = false;
      }
    } else if (c == '"' && cells.back().empty()) {
      quoted = true;
    } else if (c == ',') {
      cells.emplace_back();
    } else {
      cells.back() += c;
    }
  }
  if (quoted) return invalid("a quotation mark is not closed on its line");
  return cells;
}

Result<Json> report_of_csv(const std::vector<std::string>& header, const std::vector<std::string>& cells) {
  if (cells.size() != header.size())
    return invalid(fmt::format("has {} cells, the header has {}", cells.size(), header.size()));
  Json report = Json::object();
  Json properties = Json::object();
  for (std::size_t i = 0; i < cells.size(); ++i) {
    if (cells[i].empty()) continue;
    const std::string& name = header[i];
    const bool own = std::ranges::find(fields, name) != fields.end();
    (own ? report : properties)[name] = cells[i];
  }
  report["properties"] = std::move(properties);
  return report;
}

}  // namespace creto::app::cli
