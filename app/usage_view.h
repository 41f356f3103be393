#pragma once

#include <string>
#include <vector>

#include "chart.h"
#include "creto/common/json.h"

/// What GetUsage answered, for eyes and other programs. Pure.
namespace creto::app {

/// RFC 4180, with a line of names first. `by`: what the request was grouped by.
std::string usage_as_csv(const Json& response, const std::vector<std::string>& by);
/// One line of RFC 4180, with its end.
std::string csv_line_of(const std::vector<std::string>& cells);
/// A row as text; numbers as they were written.
struct UsageLine {
  std::vector<std::string> keys;
  std::string events, units, cost, currency;
};
std::vector<UsageLine> usage_lines(const Json& response);
/// The rows under their names, and how many there are where that is more.
std::string usage_as_table(const Json& response, const std::vector<std::string>& by);
bool has_cost(const Json& response);
/// `measure`: events, units or cost.
Chart usage_as_chart(const Json& response, const std::vector<std::string>& by, const std::string& measure);

}  // namespace creto::app
