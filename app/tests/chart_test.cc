#include "chart.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "usage_view.h"

namespace creto::app {
namespace {

TEST(Chart, BarsAreAsLongAsTheirValues) {
  const Chart chart{"cost", {{"a", "", 4, "4"}, {"b", "", 2, "2"}, {"none", "", 0, "0"}}};
  EXPECT_EQ(chart_as_text(chart, 19),
            "cost\n"
            "a     4  ██████████\n"
            "b     2  █████\n"
            "none  0  \n");
}

TEST(Chart, LongNamesKeepBothEnds) {
  const Chart chart{"t", {{"agent:abcdefghijklmnopqrstuvwxyz", "", 1, "1"}}};
  EXPECT_NE(chart_as_text(chart, 30).find("agent:a…tuvwxyz"), std::string::npos);
}

TEST(Chart, SvgEscapesWhatStrangersWrote) {
  const Chart chart{"<script>", {{"\"a\" & <b>\n", "", 1, "1"}}};
  const std::string svg = chart_as_svg(chart);
  EXPECT_EQ(svg.find("<script>"), std::string::npos);
  EXPECT_NE(svg.find("&quot;a&quot; &amp; &lt;b&gt;?"), std::string::npos);
}

TEST(Chart, OverTimeTheSmallestSeriesAreOne) {
  Chart chart{"t", {}};
  for (int i = 0; i < 12; ++i) chart.rows.push_back({"series" + std::to_string(i), "2026-11-10", 12.0 - i, "1"});
  const std::string svg = chart_as_svg(chart);
  EXPECT_NE(svg.find("series6"), std::string::npos);
  EXPECT_EQ(svg.find("series7"), std::string::npos);
  EXPECT_NE(svg.find("5 others"), std::string::npos);
}

TEST(Chart, NothingIsAPictureToo) {
  EXPECT_TRUE(chart_as_svg({"t", {}}).ends_with("</svg>\n"));
  EXPECT_EQ(chart_as_text({"t", {}}, 80), "t\n");
}

TEST(UsageView, DrawsThePeriodsOfAMeasure) {
  const Json response = Json::parse(
      R"({"rows":[{"keys":["a","2026-11-10"],"events":"2","units":"1.5","cost":{"amount":"0.25","currency":"USD"}}],"groups":"7"})");
  const Chart chart = usage_as_chart(response, {"agent", "day"}, "cost");
  EXPECT_EQ(chart.title, "cost in USD by agent, day");
  ASSERT_EQ(chart.rows.size(), 1U);
  EXPECT_EQ(chart.rows[0].series, "a");
  EXPECT_EQ(chart.rows[0].period, "2026-11-10");
  EXPECT_EQ(chart.rows[0].text, "0.25");
  EXPECT_EQ(usage_as_table(response, {"agent", "day"}),
            "agent  day         events  units      cost\n"
            "a      2026-11-10       2    1.5  0.25 USD\n"
            "1 of 7 groups\n");
}

TEST(UsageView, CsvQuotesWhatNeedsIt) {
  const Json response = Json::parse(
      R"({"rows":[{"keys":["a,\"b\""],"events":"2","units":"1.5","cost":{"amount":"0.25","currency":"USD"}}],"groups":"1"})");
  EXPECT_EQ(usage_as_csv(response, {"property:model"}),
            "property:model,events,units,cost,currency\r\n\"a,\"\"b\"\"\",2,1.5,0.25,USD\r\n");
}

TEST(Chart, AsPngHasInkAndColours) {
  Chart chart{"cost by agent", {{"a", "", 3, "3"}, {"b", "", 1, "1"}}};
  const auto png = chart_as_png(chart);
  if (!png && png.error().kind() == ErrorKind::not_found) GTEST_SKIP() << png.error().to_string();
  ASSERT_TRUE(png) << png.error().to_string();
  ASSERT_GT(png->size(), 2'000u);
  EXPECT_EQ(as_text(BytesView(*png).subspan(1, 3)), "PNG");
  chart.rows.clear();
  EXPECT_LT(chart_as_png(chart)->size(), png->size());
}

}  // namespace
}  // namespace creto::app
