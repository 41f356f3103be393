#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/common/result.h"

/// Pictures of a table of usage, for terminals, as SVG and as PNG.
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

/// What a chart is drawn on: units to the right and down, as in SVG.
class Canvas {
 public:
  enum class Anchor { start, middle, end };
  virtual ~Canvas() = default;
  virtual void text(double x, double y, Anchor anchor, double size, std::string_view content) = 0;
  /// A faint one.
  virtual void line(double x1, double y1, double x2, double y2) = 0;
  /// `colour` as "#0072b2". `tip`: what a reader who can point at it is told.
  virtual void box(double x, double y, double w, double h, std::string_view colour, std::string_view tip) = 0;
};
inline constexpr double chart_width = 960;
inline constexpr std::string_view chart_ink = "#1f2933";
inline constexpr std::string_view chart_faint = "#d9dee3";

/// Over time: a column for each period, its series stacked, the largest seven and one for the rest. Else a bar for each
/// row. Shows at most 60 bars or 400 columns, and says so where there are more.
/// Returns the height.
double draw_chart(const Chart& chart, Canvas& canvas);
std::string chart_as_svg(const Chart& chart);
/// In pixels, two to a unit; with a font of the system. Errors: not_found where there is none.
Result<Bytes> chart_as_png(const Chart& chart);

}  // namespace creto::app
