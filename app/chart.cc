#include "chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string_view>

namespace creto::app {
namespace {

constexpr std::size_t series_max = 7;
constexpr std::size_t bars_max = 60;
constexpr std::size_t columns_max = 400;
constexpr double width = chart_width;
using Anchor = Canvas::Anchor;
/// Okabe and Ito's colours, which those who do not see red or green tell apart too; grey is what is left over.
constexpr auto colours = std::to_array<std::string_view>(
    {"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#9aa5b1"});

/// How many characters a text has: bytes that do not continue one.
std::size_t length(std::string_view text) {
  return static_cast<std::size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
}

/// At most `most` characters, the middle left out: identities differ at both ends.
std::string shortened(std::string_view text, std::size_t most) {
  if (length(text) <= most) return std::string(text);
  const auto prefix = [](std::string_view of, std::size_t characters) {
    std::size_t at = 0;
    while (at < of.size() && (characters > 0 || (of[at] & 0xC0) == 0x80)) {
      if ((of[at] & 0xC0) != 0x80) --characters;
      ++at;
    }
    return at;
  };
  const std::size_t tail = (most - 1) / 2;
  const std::size_t tail_begin = prefix(text, length(text) - tail);
  return fmt::format("{}…{}", text.substr(0, prefix(text, most - 1 - tail)), text.substr(tail_begin));
}

std::string label_of(const ChartRow& row) {
  if (row.series.empty()) return row.period.empty() ? "all" : row.period;
  return row.period.empty() ? row.series : fmt::format("{}  {}", row.period, row.series);
}

/// Text as XML has it; what no XML may have becomes a question mark.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 || c == 0x7F ? '?' : c;
    }
  }
  return out;
}

/// 1, 2 or 5 times a power of ten, so that some five steps reach `most`.
double step_of(double most) {
  if (most <= 0) return 1;
  const double power = std::pow(10, std::floor(std::log10(most / 5)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (most / (factor * power) <= 5) return factor * power;
  }
  return 10 * power;
}

/// "1.5M": an axis has little room.
std::string brief(double value) {
  constexpr auto units =
      std::to_array<std::pair<double, std::string_view>>({{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}});
  for (const auto& [unit, name] : units) {
    if (value >= unit) return fmt::format("{:.4g}{}", value / unit, name);
  }
  return fmt::format("{:.4g}", value);
}

class Svg final : public Canvas {
 public:
  void text(double x, double y, Anchor at, double size, std::string_view content) override {
    const std::string_view anchor = at == Anchor::start ? "start" : at == Anchor::end ? "end" : "middle";
    body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" font-size=\"{}\" fill=\"{}\">{}</text>\n",
                         x, y, anchor, size, chart_ink, escaped(content));
  }
  void line(double x1, double y1, double x2, double y2) override {
    body_ += fmt::format("<path d=\"M{:.1f} {:.1f}L{:.1f} {:.1f}\" stroke=\"{}\"/>\n", x1, y1, x2, y2, chart_faint);
  }
  void box(double x, double y, double w, double h, std::string_view colour, std::string_view tip) override {
    body_ += fmt::format("<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"{}\">", x, y, w, h,
                         colour);
    if (!tip.empty()) body_ += fmt::format("<title>{}</title>", escaped(tip));
    body_ += "</rect>\n";
  }
  std::string whole(double height) const {
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
        "font-family=\"system-ui, 'DejaVu Sans', sans-serif\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n"
        "{2}</svg>\n",
        width, height, body_);
  }

 private:
  std::string body_;
};

double draw_bars(const Chart& chart, Canvas& canvas) {
  constexpr double left = 300, right = 150, top = 64, row_height = 24;
  canvas.text(24, 36, Anchor::start, 18, chart.title);
  const std::size_t count = std::min(chart.rows.size(), bars_max);
  double most = 0;
  for (std::size_t i = 0; i < count; ++i) most = std::max(most, chart.rows[i].value);
  for (std::size_t i = 0; i < count; ++i) {
    const ChartRow& row = chart.rows[i];
    const double y = top + row_height * static_cast<double>(i);
    const double length = most > 0 ? row.value / most * (width - left - right) : 0;
    canvas.text(left - 10, y + 16, Anchor::end, 13, shortened(label_of(row), 32));
    canvas.box(left, y + 3, std::max(length, 1.0), row_height - 6, colours[0],
               fmt::format("{}: {}", label_of(row), row.text));
    canvas.text(left + length + 8, y + 16, Anchor::start, 13, row.text);
  }
  double height = top + row_height * static_cast<double>(count) + 24;
  if (count < chart.rows.size()) {
    canvas.text(left, height, Anchor::start, 12, fmt::format("{} more are not shown", chart.rows.size() - count));
    height += 24;
  }
  return height;
}

/// Sums by period and series; `series` with the largest first, the rest together as the last one.
struct Stacks {
  std::vector<std::string> periods;
  std::vector<std::string> series;
  std::vector<std::vector<double>> values;  ///< by period and series
};

Stacks stacks_of(const Chart& chart) {
  Stacks stacks;
  std::map<std::string, double> totals;
  for (const ChartRow& row : chart.rows) {
    totals[row.series] += row.value;
    stacks.periods.push_back(row.period);
  }
  std::ranges::sort(stacks.periods);
  stacks.periods.erase(std::unique(stacks.periods.begin(), stacks.periods.end()), stacks.periods.end());
  if (stacks.periods.size() > columns_max) stacks.periods.resize(columns_max);
  for (const auto& [series, total] : totals) stacks.series.push_back(series);
  std::ranges::stable_sort(stacks.series, [&](const auto& a, const auto& b) { return totals[a] > totals[b]; });
  std::map<std::string, std::size_t> place;
  for (std::size_t i = 0; i < stacks.series.size(); ++i) place[stacks.series[i]] = std::min(i, series_max);
  if (stacks.series.size() > series_max) {
    const std::size_t others = stacks.series.size() - series_max;
    stacks.series.resize(series_max);
    stacks.series.push_back(fmt::format("{} others", others));
  }
  stacks.values.assign(stacks.periods.size(), std::vector<double>(stacks.series.size()));
  for (const ChartRow& row : chart.rows) {
    const auto period = std::ranges::lower_bound(stacks.periods, row.period);
    if (period == stacks.periods.end()) continue;
    stacks.values[static_cast<std::size_t>(period - stacks.periods.begin())][place[row.series]] += row.value;
  }
  return stacks;
}

double draw_columns(const Chart& chart, Canvas& canvas) {
  constexpr double left = 72, right = 24, top = 64, plot_height = 320;
  const Stacks stacks = stacks_of(chart);
  canvas.text(24, 36, Anchor::start, 18, chart.title);
  double most = 0;
  for (const auto& of_period : stacks.values) {
    double sum = 0;
    for (const double value : of_period) sum += value;
    most = std::max(most, sum);
  }
  const double step = step_of(most);
  const double scale = step * std::max(1.0, std::ceil(most / step));
  const double bottom = top + plot_height;
  for (double tick = 0; tick <= scale * 1.0001; tick += step) {
    const double y = bottom - tick / scale * plot_height;
    canvas.line(left, y, width - right, y);
    canvas.text(left - 8, y + 4, Anchor::end, 12, brief(tick));
  }
  const double each = (width - left - right) / static_cast<double>(std::max<std::size_t>(1, stacks.periods.size()));
  // Every so many periods have their name below them.
  const auto every = static_cast<std::size_t>(std::ceil(86 / each));
  for (std::size_t p = 0; p < stacks.periods.size(); ++p) {
    const double x = left + each * static_cast<double>(p);
    double y = bottom;
    for (std::size_t s = 0; s < stacks.series.size(); ++s) {
      const double value = stacks.values[p][s];
      if (value <= 0) continue;
      const double height = value / scale * plot_height;
      y -= height;
      const std::string name = stacks.series[s].empty() ? "" : stacks.series[s] + ", ";
      canvas.box(x + each * 0.1, y, each * 0.8, height, colours[std::min(s, colours.size() - 1)],
                 fmt::format("{}{}: {:.10g}", name, stacks.periods[p], value));
    }
    if (p % every == 0) canvas.text(x + each / 2, bottom + 20, Anchor::middle, 12, stacks.periods[p].substr(0, 16));
  }
  double y = bottom + 48;
  if (stacks.series.size() > 1 || !stacks.series.empty()) {
    double x = left;
    for (std::size_t s = 0; s < stacks.series.size(); ++s) {
      if (stacks.series[s].empty() && stacks.series.size() == 1) break;
      const std::string name = stacks.series[s].empty() ? "none" : shortened(stacks.series[s], 28);
      const double room = 34 + 8.0 * static_cast<double>(length(name));
      if (x + room > width - right) {
        x = left;
        y += 22;
      }
      canvas.box(x, y - 11, 12, 12, colours[std::min(s, colours.size() - 1)], "");
      canvas.text(x + 18, y, Anchor::start, 13, name);
      x += room;
    }
  }
  return y + 24;
}

}  // namespace

std::string chart_as_text(const Chart& chart, std::size_t columns) {
  constexpr auto parts = std::to_array<std::string_view>({"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"});
  std::size_t label_width = 0;
  std::size_t text_width = 0;
  double most = 0;
  for (const ChartRow& row : chart.rows) {
    label_width = std::max(label_width, length(label_of(row)));
    text_width = std::max(text_width, row.text.size());
    most = std::max(most, row.value);
  }
  label_width = std::min(label_width, columns / 2);
  const std::size_t used = label_width + text_width + 4;
  const std::size_t room = columns > used + 8 ? columns - used : 8;
  std::string out = chart.title + "\n";
  for (const ChartRow& row : chart.rows) {
    const std::string label = shortened(label_of(row), label_width);
    const auto eighths =
        static_cast<std::size_t>(most > 0 ? std::round(row.value / most * static_cast<double>(room * 8)) : 0);
    std::string bar;
    for (std::size_t i = 0; i < eighths / 8; ++i) bar += "█";
    bar += parts[eighths % 8];
    out += fmt::format("{}{}  {:>{}}  {}\n", label, std::string(label_width - length(label), ' '), row.text, text_width,
                       bar);
  }
  return out;
}

double draw_chart(const Chart& chart, Canvas& canvas) {
  const bool over_time = std::ranges::any_of(chart.rows, [](const ChartRow& row) { return !row.period.empty(); });
  return over_time ? draw_columns(chart, canvas) : draw_bars(chart, canvas);
}

std::string chart_as_svg(const Chart& chart) {
  Svg svg;
  const double height = draw_chart(chart, svg);
  return svg.whole(height);
}

}  // namespace creto::app
