#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "tools/conformance.h"

namespace creto::authz {
namespace {

namespace fs = std::filesystem;

/// The unpacked tree `name`: from the environment, or from the archive in the shared folder. Empty: neither is there.
fs::path tree(const char* variable, const std::string& archive, const std::string& folder) {
  if (const char* given = std::getenv(variable)) return given;
  const char* shared = std::getenv("CRETO_SHARED");
  const fs::path packed = fs::path(shared ? shared : CRETO_SHARED_DIR) / "cedar" / (archive + ".tar.zst");
  if (!fs::exists(packed)) return {};
  const fs::path target = CRETO_CORPUS_DIR;
  if (!fs::exists(target / folder / "README.txt")) {
    fs::create_directories(target);
    const auto command = fmt::format("zstd --long=27 -dcq '{}' | tar -x -C '{}'", packed.string(), target.string());
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
  }
  return target / folder;
}

void print(std::string_view what, const Tally& tally) {
  if (tally.passed + tally.failed > 0) fmt::print("  {}: {} pass, {} fail\n", what, tally.passed, tally.failed);
}

void print(std::string_view which, const ConformanceTally& tally) {
  fmt::print("{}\n", which);
  print("requests", tally.requests);
  print("strict verdicts", tally.verdicts);
  print("permissive verdicts", tally.permissive);
  print("entity verdicts", tally.entities);
  print("request verdicts", tally.request_checks);
  print("schemas in both syntaxes", tally.schemas);
  print("engine as interpreter", tally.engine);
}

void expect_all_passed(const Result<ConformanceReport>& report) {
  ASSERT_TRUE(report) << report.error().message();
  print("tests with their own policy", report->own);
  print("tests with the trivial policy", report->trivial);
  for (const std::string& failure : report->failures) ADD_FAILURE() << failure;
  EXPECT_TRUE(report->all_passed());
  EXPECT_GT(report->own.requests.passed, 0u);
}

TEST(CedarCorpus, AnswersAndValidatesAsCedarDoes) {
  const fs::path root = tree("CRETO_CEDAR_CORPUS", "cedar-public", "cedar-public");
  if (root.empty()) GTEST_SKIP() << "no Cedar corpus: set $CRETO_CEDAR_CORPUS or CRETO_SHARED";
  const fs::path extra = tree("CRETO_CEDAR_EXTRA", "cedar-public-extra", "cedar-public-extra");
  expect_all_passed(run_corpus(root, extra.empty() ? std::optional<fs::path>() : extra));
}

TEST(CedarCorpus, DecidesTheWorkloadsOfTheCedarPaper) {
  const fs::path root = tree("CRETO_CEDAR_OOPSLA", "oopsla", "oopsla");
  if (root.empty()) GTEST_SKIP() << "no Cedar workloads: set $CRETO_CEDAR_OOPSLA or CRETO_SHARED";
  expect_all_passed(run_workloads(root));
}

}  // namespace
}  // namespace creto::authz
