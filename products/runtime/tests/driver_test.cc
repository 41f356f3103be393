#include <gtest/gtest.h>

#include "driver/process.h"

using namespace creto::runtime;
TEST(Process, ReturnsWhatTheProgramPrints) {
  auto output = run_checked({.argv = {"echo", "hello"}});
  ASSERT_TRUE(output) << output.error().to_string();
  EXPECT_EQ(*output, "hello\n");
}
