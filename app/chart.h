#pragma once

#include <string>
#include <vector>

/// Pictures of a table of usage, for terminals and as SVG. Pure.
namespace creto::app {

struct ChartRow {
  std::string series;  ///< what is compared: an agent, a model; empty: there is but one
  std::string period;  ///< "2026-11-10"; empty: the chart is not over time
  double value = 0;    ///< not negative
  std::string text;    ///< the value, exactly
};

struct Chart {
  std::string title;
  std::vector<ChartRow> rows;  ///< in the order in which they are shown; periods ascend
};

/// A bar for each row, no wider than `columns`.
std::string chart_as_text(const Chart& chart, std::size_t columns);

/// Over time: a column for each period, its series stacked, the largest seven and one for the rest. Else a bar for each
/// row. Shows at most 60 bars or 400 columns, and says so where there are more.
std::string chart_as_svg(const Chart& chart);

}  // namespace creto::app
