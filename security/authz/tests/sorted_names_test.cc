#include "sorted_names.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace creto::authz {
namespace {

std::vector<std::string> behind(const SortedNames& names, std::string_view after, std::size_t most) {
  std::vector<std::string> all;
  names.each_behind(after, [&](const std::string& name) {
    all.push_back(name);
    return all.size() < most;
  });
  return all;
}

TEST(SortedNames, AreWhatASetIsAndACopyStaysAsItWas) {
  std::mt19937 random(7);
  SortedNames names, copy;
  std::set<std::string> model, copied;
  for (int i = 0; i < 20'000; ++i) {
    const std::string name = "n" + std::to_string(random() % 4'000);
    if (random() % 5 < 3) {
      names.insert(name);
      model.insert(name);
    } else {
      names.erase(name);
      model.erase(name);
    }
    if (i % 5'000 == 2'500) {
      copy = names;
      copied = model;
    }
    if (i % 500 != 0) continue;
    ASSERT_EQ(names.size(), model.size());
    const std::string after = "n" + std::to_string(random() % 4'000);
    const std::vector<std::string> expected(model.upper_bound(after), model.end());
    ASSERT_EQ(behind(names, after, SIZE_MAX), expected);
  }
  EXPECT_EQ(behind(copy, "", SIZE_MAX), std::vector<std::string>(copied.begin(), copied.end()));
  for (const std::string& name : model) names.erase(name);
  EXPECT_EQ(names.size(), 0u);
  EXPECT_TRUE(behind(names, "", 1).empty());
}

TEST(SortedNames, ReadNoFurtherThanTheyAreAsked) {
  SortedNames names;
  for (int i = 0; i < 10'000; ++i) names.insert("n" + std::to_string(i));
  EXPECT_EQ(behind(names, "n5", 3), (std::vector<std::string>{"n50", "n500", "n5000"}));
  EXPECT_EQ(behind(names, "n9999", 3), std::vector<std::string>());
}

}  // namespace
}  // namespace creto::authz
