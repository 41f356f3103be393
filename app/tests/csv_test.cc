#include "cli/csv.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace creto::app::cli {
namespace {

using Cells = std::vector<std::string>;

TEST(Csv, SplitsCellsAndKnowsQuotes) {
  EXPECT_EQ(split_csv("a,b,").value(), (Cells{"a", "b", ""}));
  EXPECT_EQ(split_csv("").value(), (Cells{""}));
  EXPECT_EQ(split_csv(R"("a,b","say ""yes""",c"d)").value(), (Cells{"a,b", "say \"yes\"", "c\"d"}));
  EXPECT_FALSE(split_csv(R"(a,"b)"));
}

TEST(Csv, ALineIsAReportAndOtherColumnsAreProperties) {
  const Cells header{"agent", "usage_type", "idempotency_key", "time", "units", "model_id"};
  const Json report = report_of_csv(header, {"service:a", "pages", "k", "2026-11-10T12:00:00Z", "", "m"}).value();
  EXPECT_EQ(report, Json::parse(R"({"agent":"service:a","usage_type":"pages","idempotency_key":"k",
                                    "time":"2026-11-10T12:00:00Z","properties":{"model_id":"m"}})"));
  EXPECT_FALSE(report_of_csv(header, {"too", "short"}));
}

}  // namespace
}  // namespace creto::app::cli
