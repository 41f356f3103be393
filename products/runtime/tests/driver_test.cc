#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <future>

#include "creto/common/clock.h"
#include "driver/control_hub.h"
#include "driver/init_program.h"
#include "driver/process.h"
#include "driver/sandbox_driver.h"
#include "tests/sandbox_fixture.h"

namespace creto::runtime {
namespace {

TEST(Process, ReturnsWhatTheProgramPrints) {
  auto output = run_checked({.argv = {"cat"}, .input = "hello\n"});
  ASSERT_TRUE(output) << output.error().to_string();
  EXPECT_EQ(*output, "hello\n");
}

TEST(Process, QuotesTheLastLineOfAProgramThatFails) {
  auto output = run_checked({.argv = {"sh", "-c", "echo first; echo second >&2; exit 3"}});
  ASSERT_FALSE(output);
  EXPECT_EQ(output.error().message(), "`sh` ended with 3: second");
}

TEST(Process, KillsWhatDoesNotEndInTime) {
  auto output = run_to_end({.argv = {"sleep", "60"}, .timeout = std::chrono::milliseconds(50)});
  ASSERT_FALSE(output);
  EXPECT_EQ(output.error().kind(), ErrorKind::timeout);
}

TEST(Process, NamesAProgramThatDoesNotExist) {
  auto output = run_to_end({.argv = {"no-such-program-here"}});
  ASSERT_FALSE(output);
  EXPECT_EQ(output.error().kind(), ErrorKind::not_found);
}

TEST(Traits, AnUnknownRuntimeClassIsAnErrorThatNamesTheKnownOnes) {
  auto traits = runtime_traits("hyperv");
  ASSERT_FALSE(traits);
  EXPECT_EQ(traits.error().kind(), ErrorKind::not_found);
  EXPECT_NE(traits.error().message().find("runsc"), std::string::npos);
}

class DriverTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto fixture = SandboxFixture::create(GetParam());
    if (!fixture) GTEST_SKIP() << "no sandboxes here: " << fixture.error().to_string();
    fixture_ = std::move(*fixture);
  }
  std::unique_ptr<SandboxFixture> fixture_;
};

TEST_P(DriverTest, RunsACommandOverTheControlChannelAndReportsItsOutputAndExitCode) {
  auto sandbox = fixture_->start();
  ASSERT_TRUE(sandbox) << sandbox.error().to_string();
  const auto result = fixture_->run(*sandbox, {"sh", "-c", "echo out; echo err >&2; cat; id -u; exit 7"}, "given\n");
  EXPECT_EQ(result.out, "out\ngiven\n1000\n");
  EXPECT_EQ(result.err, "err\n");
  EXPECT_EQ(result.exit_code, 7);
}

TEST_P(DriverTest, SecretsReachTheAgentButNeitherConfigurationNorDisk) {
  auto sandbox = fixture_->start();
  ASSERT_TRUE(sandbox) << sandbox.error().to_string();
  const std::string secret = "s3cret-" + sandbox->id.to_string();
  ASSERT_EQ(fixture_->claim(*sandbox, {"TOKEN=" + secret}, {{"/run/secrets/token", secret}}), "");
  const auto result = fixture_->run(*sandbox, {"sh", "-c", "echo $TOKEN; cat /run/secrets/token"}, "");
  EXPECT_EQ(result.out, secret + "\n" + secret);
  const auto found = run_to_end({.argv = {"grep", "-r", "-l", secret, fixture_->directory()}});
  ASSERT_TRUE(found);
  EXPECT_EQ(found->output, "");
}

TEST_P(DriverTest, TheAgentCanNeitherWriteTheRootNorReachTheControlChannelNorGainPrivileges) {
  auto sandbox = fixture_->start();
  ASSERT_TRUE(sandbox) << sandbox.error().to_string();
  EXPECT_NE(fixture_->run(*sandbox, {"touch", "/bin/x"}, "").exit_code, 0);
  EXPECT_NE(fixture_->run(*sandbox, {"sh", "-c", "echo > /run/creto/control.sock"}, "").exit_code, 0);
  EXPECT_NE(fixture_->run(*sandbox, {"mount", "-t", "tmpfs", "none", "/tmp"}, "").exit_code, 0);
  const auto status = fixture_->run(*sandbox, {"grep", "-E", "CapEff|CapPrm", "/proc/self/status"}, "");
  EXPECT_EQ(status.out, "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n");
  EXPECT_EQ(fixture_->run(*sandbox, {"touch", "/tmp/x"}, "").exit_code, 0);
}

TEST_P(DriverTest, ACommandThatCannotStartNamesTheReason) {
  auto sandbox = fixture_->start();
  ASSERT_TRUE(sandbox) << sandbox.error().to_string();
  const auto result = fixture_->run(*sandbox, {"/no/such/program"}, "");
  EXPECT_EQ(result.failure, "/no/such/program: No such file or directory");
}

TEST_P(DriverTest, TheEndOfASandboxIsAnEvent) {
  auto sandbox = fixture_->start();
  ASSERT_TRUE(sandbox) << sandbox.error().to_string();
  std::promise<void> ended;
  fixture_->driver().watch(sandbox->id, sandbox->process, [&](bool) { ended.set_value(); });
  ::kill(sandbox->process.pid, SIGKILL);
  EXPECT_EQ(ended.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
}

TEST_P(DriverTest, ASandboxOverItsMemoryLimitIsEndedAndTheReasonIsTold) {
  auto sandbox = fixture_->start({.memory_bytes = 64ull << 20});
  ASSERT_TRUE(sandbox) << sandbox.error().to_string();
  std::promise<bool> ended;
  fixture_->driver().watch(sandbox->id, sandbox->process, [&](bool out_of_memory) { ended.set_value(out_of_memory); });
  fixture_->begin(*sandbox, {"tail", "/dev/zero"});  // which keeps the endless line in memory
  auto end = ended.get_future();
  ASSERT_EQ(end.wait_for(std::chrono::seconds(30)), std::future_status::ready);
  EXPECT_TRUE(end.get());
}

TEST_P(DriverTest, RemovingLeavesNothingAndCanBeRepeated) {
  auto sandbox = fixture_->start();
  ASSERT_TRUE(sandbox) << sandbox.error().to_string();
  ASSERT_TRUE(fixture_->driver().remove(sandbox->id));
  ASSERT_TRUE(fixture_->driver().remove(sandbox->id));
  auto found = fixture_->driver().list();
  ASSERT_TRUE(found);
  EXPECT_TRUE(found->empty());
  EXPECT_EQ(process_start_time(sandbox->process.pid), 0u);
  const auto cgroups = run_to_end({.argv = {"find", "/sys/fs/cgroup", "-name", sandbox->id.to_string()}});
  ASSERT_TRUE(cgroups);
  EXPECT_EQ(cgroups->output, "");
}

TEST_P(DriverTest, ASandboxOutlivesItsSupervisorAndIsTakenOver) {
  auto sandbox = fixture_->start();
  ASSERT_TRUE(sandbox) << sandbox.error().to_string();
  const auto stream = fixture_->begin(*sandbox, {"sh", "-c", "read line; echo got $line; exit 5"});
  fixture_->restart_supervisor();
  auto found = fixture_->driver().list();
  ASSERT_TRUE(found);
  ASSERT_EQ(found->size(), 1u);
  EXPECT_TRUE(found->front().running);
  ASSERT_TRUE(fixture_->take_over(*sandbox));
  fixture_->input(*sandbox, stream, "later\n");
  const auto result = fixture_->finish(*sandbox, stream);
  EXPECT_EQ(result.out, "got later\n");
  EXPECT_EQ(result.exit_code, 5);
}

TEST_P(DriverTest, OutputThatWasNotAcknowledgedComesAgainAndWhatWasDoesNot) {
  auto sandbox = fixture_->start();
  ASSERT_TRUE(sandbox) << sandbox.error().to_string();
  fixture_->be_forgetful(*sandbox);
  const auto stream = fixture_->begin(*sandbox, {"sh", "-c", "printf 0123456789; read line; printf abc; exit 5"});
  // Each new connection begins where the last was acknowledged.
  const auto seen = fixture_->wait_for_output(*sandbox, stream, "0123456789");
  EXPECT_THAT(seen.pieces, testing::ElementsAre(testing::Pair(0u, "0123456789"), testing::Pair(3u, "3456789"),
                                                testing::Pair(6u, "6789"), testing::Pair(9u, "9")));
  fixture_->input(*sandbox, stream, "on\n");
  EXPECT_EQ(fixture_->finish(*sandbox, stream).out, "0123456789abc");

  // Nobody said that the end is known for good.
  fixture_->restart_supervisor();
  ASSERT_TRUE(fixture_->take_over(*sandbox));
  const auto again = fixture_->finish(*sandbox, stream);
  EXPECT_EQ(again.exit_code, 5);
  EXPECT_EQ(again.out, "");
}

TEST_P(DriverTest, WhatACommandWritesWithoutAnybodyWaitsInOrderWithItsEndBehindIt) {
  auto sandbox = fixture_->start();
  ASSERT_TRUE(sandbox) << sandbox.error().to_string();
  fixture_->be_forgetful(*sandbox);  // however fast the command is, its end is not heard before nobody is there
  const auto stream =
      fixture_->begin(*sandbox, {"sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exit 4"});
  fixture_->restart_supervisor();
  ASSERT_TRUE(fixture_->take_over(*sandbox));
  std::string expected;
  for (int i = 0; i < 3000; ++i) expected += "line " + std::to_string(i) + "\n";
  const auto result = fixture_->finish(*sandbox, stream);
  EXPECT_TRUE(expected.ends_with(result.out));
  EXPECT_EQ(result.pieces.empty() ? expected.size() : result.pieces.front().first, expected.size() - result.out.size());
  EXPECT_EQ(result.exit_code, 4);
}

INSTANTIATE_TEST_SUITE_P(Runtimes, DriverTest, testing::Values("runsc", "runc"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace creto::runtime
