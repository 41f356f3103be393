#include "cli/yaml.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace creto::app::cli {
namespace {

std::string refusal(const std::string& text) {
  const auto read = json_from_yaml(text);
  return read ? "read" : read.error().message();
}

TEST(Yaml, ReadsPlainWordsAsWhatTheyLookLikeAndTheRestAsText) {
  EXPECT_EQ(json_from_yaml("a: [1, true, ~, 1.5, '7']\nb: &x {c: d}\ne: *x").value().dump(),
            R"({"a":[1,true,null,"1.5","7"],"b":{"c":"d"},"e":{"c":"d"}})");
}

TEST(Yaml, RefusesWhatJsonCouldNotSay) {
  EXPECT_EQ(refusal("a: 1\na: 2"), "yaml: line 2, column 1: duplicate key");
  EXPECT_EQ(refusal("[a, b]: 1"), "yaml: line 1, column 1: a key must be text");
  EXPECT_EQ(refusal("a: \xFF"), "yaml: line 1, column 4: not valid UTF-8");
}

TEST(Yaml, RefusesAliasesThatMultiply) {
  std::string bomb = "a0: &a0 x\n";
  for (int i = 1; i < 12; ++i) {
    std::string aliases;
    for (int k = 0; k < 10; ++k) aliases += (k > 0 ? ", *a" : "*a") + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + aliases + "]\n";
  }
  EXPECT_NE(refusal(bomb).find("too large"), std::string::npos);
}

TEST(Yaml, RefusesNestingThatWouldEndTheStack) {
  EXPECT_NE(refusal(std::string(100'000, '[')), "read");
  EXPECT_NE(refusal(std::string(100, '[') + std::string(100, ']')).find("nested too deeply"), std::string::npos);
}

}  // namespace
}  // namespace creto::app::cli
