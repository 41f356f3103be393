// What a server leaves that stops or is killed, and what the next one makes of it.

#include "tests/runtime_contract.h"

namespace creto::runtime {
namespace {

TEST_P(RuntimeContract, RunningSandboxesAreTakenOverAfterARestart) {
  const auto sandbox = spawn(spec({"sh", "-c", "sleep 60"}));
  stop();
  start();
  const auto seen = runtime->get(as(ada->identity), sandbox.id);
  ASSERT_TRUE(seen);
  EXPECT_EQ(seen->state, SandboxState::running);
  EXPECT_EQ(runtime->exec(as(ada->identity), sandbox.id, {.command = {"echo", "alive"}}).value().out, "alive\n");
  EXPECT_EQ(gateway(sandbox.id, "GET", "/v1/identity").status, 200);
}

TEST_P(RuntimeContract, ASandboxThatDiedMeanwhileIsRecordedAsEnded) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  stop();
  remove_behind_its_back(sandbox.id);
  start();
  const auto ended = wait_end(sandbox.id);
  EXPECT_EQ(ended.state, SandboxState::terminated);
  EXPECT_EQ(ended.reason, TerminationReason::failed);
}

/// A process of its own that is killed: it spawns what its environment asks for, says so, and waits.

TEST(RuntimeVictim, DISABLED_SpawnsAndWaits) {
  const auto given = parse_json(std::getenv("CRETO_TEST_VICTIM")).value();
  const std::string place = given["database"];
  World world;
  world.open(given["kind"] == "sqlite" ? sql::open_sqlite(place).value() : sql::open_postgres(place).value());
  RuntimeOptions options;
  options.state_directory = given["state_directory"];
  options.image_directory = given["image_directory"];
  options.runtime_class = given["runtime_class"];
  options.pool_image = given.value("pool", false) ? "base" : "";
  options.pool_size = 1;
  const auto runtime = create_runtime(world.services(), options).value();
  auto ctx = world.as(Identity::parse(given["caller"].get<std::string>()).value());
  ctx.idempotency_key = given.value("key", "");
  SandboxSpec spec;
  spec.agent = Identity::parse(given["agent"].get<std::string>()).value();
  spec.image = "base";
  spec.command = given.value("command", std::vector<std::string>{"sleep", "60"});
  spec.secrets = {"agents/API_KEY"};
  Json said = {{"pid", ::getpid()}, {"sandboxes", Json::array()}};
  for (int i = given.value("spawns", 0); i > 0; --i)
    said["sandboxes"].push_back(runtime->spawn(ctx, spec).value().sandbox->id.to_string());
  std::jthread executing;
  if (given.contains("exec")) {
    const auto id = SandboxId::parse(said["sandboxes"][0].get<std::string>()).value();
    executing = std::jthread([&runtime, ctx, id, command = given["exec"].get<std::vector<std::string>>()] {
      EXPECT_TRUE(runtime->exec(ctx, id, {.command = command}));
    });
    const ExecRequest look{.command = {"ls", "/tmp/up"}};
    for (int i = 0; i < 200 && runtime->exec(ctx, id, look).value().exit_code != 0; ++i) ::usleep(50'000);
  }
  if (given.value("until_end", false)) {
    const auto id = SandboxId::parse(said["sandboxes"][0].get<std::string>()).value();
    std::promise<void> ended;
    EXPECT_TRUE(runtime->when_terminated(ctx, id, [&](const Sandbox&) { ended.set_value(); }));
    ended.get_future().wait();
  }
  const std::size_t warm = options.pool_image.empty() ? 0 : 1;
  for (int i = 0; i < 200 && runtime->status(ctx).value().pool_ready < warm; ++i) ::usleep(50'000);
  fmt::print("\nvictim {}\n", said.dump());
  std::fflush(stdout);
  ::pause();
}

/// What such a process said before it was killed; null where it died before.
Json killed_victim(const Json& given, std::string* log = nullptr) {
  // What it leaves goes to init, as after a server's death, and not to us, who would have to collect it: a runtime
  // waits long for a dead process that nobody collects.
  EXPECT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
  ::setenv("CRETO_TEST_VICTIM", given.dump().c_str(), 1);
  const auto command = "exec " + std::filesystem::read_symlink("/proc/self/exe").string() +
                       " --gtest_also_run_disabled_tests --gtest_filter=RuntimeVictim.DISABLED_SpawnsAndWaits 2>&1";
  const std::unique_ptr<FILE, int (*)(FILE*)> victim(::popen(command.c_str(), "re"), ::pclose);
  Json said;
  for (char line[4096]; said.is_null() && std::fgets(line, sizeof line, victim.get());) {
    if (std::string_view(line).starts_with("victim ")) said = parse_json(line + 7).value();
    if (log) *log += line;
  }
  if (!said.is_null()) EXPECT_EQ(::kill(said["pid"].get<int>(), SIGKILL), 0);
  return said;
}

/// Such processes die, one after the other, at every kind of commit up to this one (io/sql/crash_point.h).
void die_after(const Json& given, const std::string& commit) {
  const creto::testing::TempDir directory;
  const auto kinds = (directory.path() / "kinds").string();
  ::setenv("CRETO_CRASH_AT", ("after:" + kinds).c_str(), 1);
  const auto met = [&] {
    const auto text = read_text_file(kinds);
    return text && ("\n" + *text).find("\n" + commit + "\n") != std::string::npos;
  };
  for (int i = 0; i < 50 && !met(); ++i) EXPECT_TRUE(killed_victim(given).is_null());
  ::unsetenv("CRETO_CRASH_AT");
  EXPECT_TRUE(met());
}

TEST_P(RuntimeContract, WhatAKilledServerLeftIsTakenOverOrCleanedUp) {
  stop();
  auto given = victim();
  given["spawns"] = 2;
  given["pool"] = true;
  std::string log;
  const auto told = killed_victim(given, &log);
  ASSERT_FALSE(told.is_null()) << log;
  const auto alive = SandboxId::parse(told["sandboxes"][0].get<std::string>()).value();
  const auto dead = SandboxId::parse(told["sandboxes"][1].get<std::string>()).value();
  remove_behind_its_back(dead);
  EXPECT_EQ(network_namespaces().size(), 4u) << "the gateway, two sandboxes and a warm one";

  start();
  EXPECT_EQ(runtime->get(as(ada->identity), alive).value().state, SandboxState::running);
  const auto kept = runtime->exec(as(ada->identity), alive, {.command = {"sh", "-c", "echo $API_KEY"}});
  ASSERT_TRUE(kept) << kept.error().to_string();
  EXPECT_EQ(kept->out, "agents-own-key\n");
  EXPECT_EQ(lent_to(alive), vault::DelegationStatus::active);

  const auto ended = wait_end(dead);
  EXPECT_EQ(ended.reason, TerminationReason::failed);
  EXPECT_EQ(ended.detail, "ended while the runtime was down");
  EXPECT_EQ(lent_to(dead), vault::DelegationStatus::revoked);

  // The warm one was nobody's.
  EXPECT_EQ(network_namespaces().size(), 2u) << "the gateway and one sandbox";
  const auto bundles = std::filesystem::directory_iterator(driver_directory() + "/bundles");
  EXPECT_EQ(std::distance(begin(bundles), end(bundles)), 1);
}

TEST_P(RuntimeContract, WhatASandboxWritesWhileServersAreKilledArrivesOnceAndItsEndBehindIt) {
  stop();
  auto given = victim();
  given["spawns"] = 1;
  given["command"] = {"bash", "-c", "for ((i = 0; i < 60000; ++i)); do echo line $i; echo error $i >&2; done; exit 3"};
  std::string log;
  const auto told = killed_victim(given, &log);
  ASSERT_FALSE(told.is_null()) << log;
  given["spawns"] = 0;
  for (int i = 0; i < 3; ++i) killed_victim(given);
  start();
  const auto id = SandboxId::parse(told["sandboxes"][0].get<std::string>()).value();
  EXPECT_EQ(wait_end(id).exit_code, 3);
  for (const auto stream : {OutputStream::out, OutputStream::err}) {
    std::string expected, written;
    for (int i = 0; i < 60000; ++i)
      expected += fmt::format("{} {}\n", stream == OutputStream::out ? "line" : "error", i);
    for (auto chunk = runtime->output(as(ada->identity), id, stream, 0).value(); !chunk.complete;
         chunk = runtime->output(as(ada->identity), id, stream, chunk.next_offset).value())
      written += chunk.bytes;
    EXPECT_TRUE(written == expected) << written.size() << " bytes instead of " << expected.size();
  }
}

TEST_P(RuntimeContract, ASpawnThatACrashCutOffIsEndedWithARecordAndItsRepeatSpawnsAnew) {
#ifdef NDEBUG
  GTEST_SKIP() << "this build cannot be made to crash at a commit";
#endif
  stop();
  auto given = victim();
  given["spawns"] = 1;
  given["key"] = "once";
  // Once before anything is lent to it, and once when it is lent and nobody has heard.
  die_after(given,
            "INSERT vault_delegations, INSERT vault_delegation_secrets, INSERT vault_access, INSERT audit_pending");
  start();
  const auto left = runtime->list(as(ada->identity), {}).value();
  ASSERT_EQ(left.size(), 2u);
  for (const Sandbox& one : left) {
    EXPECT_FALSE(one.ready_at);
    EXPECT_EQ(wait_end(one.id).reason, TerminationReason::failed);
    const auto of_it = [&](std::string_view what) {
      return count("audit_pending", fmt::format("entry LIKE '%{}%' AND entry LIKE '%{}%'", what, one.id.to_string()));
    };
    EXPECT_EQ(of_it("sandbox_spawn_failed"), 1);
    EXPECT_EQ(of_it("sandbox_terminated"), 0);
  }
  EXPECT_EQ(count("vault_delegations", "revoked = 1"), 1);
  EXPECT_EQ(count("vault_delegations", "revoked = 0"), 0);

  auto ctx = as(ada->identity);
  ctx.idempotency_key = "once";
  const auto again = runtime->spawn(ctx, spec({"sleep", "60"}));
  ASSERT_TRUE(again) << again.error().to_string();
  for (const Sandbox& one : left) EXPECT_NE(again->sandbox->id, one.id);
  EXPECT_EQ(again->sandbox->state, SandboxState::running);
  ASSERT_TRUE(runtime->terminate(as(ada->identity), again->sandbox->id));
  const auto ended = runtime->spawn(ctx, spec({"sleep", "60"}));
  ASSERT_TRUE(ended) << ended.error().to_string();
  EXPECT_EQ(ended->sandbox->id, again->sandbox->id);
  EXPECT_EQ(ended->sandbox->state, SandboxState::terminated);
}

TEST_P(RuntimeContract, TheExitCodeOutlivesAServerThatDiesWhileItTakesASandboxDown) {
#ifdef NDEBUG
  GTEST_SKIP() << "this build cannot be made to crash at a commit";
#endif
  stop();
  auto given = victim();
  given["spawns"] = 1;
  given["key"] = "once";
  given["command"] = {"sh", "-c", "exit 3"};
  given["until_end"] = true;
  die_after(given, "UPDATE runtime_sandboxes");
  start();
  const auto sandboxes = runtime->list(as(ada->identity), {}).value();
  const auto real = std::find_if(sandboxes.begin(), sandboxes.end(), [](const Sandbox& s) { return s.ready_at; });
  ASSERT_NE(real, sandboxes.end());
  const auto ended = wait_end(real->id);
  EXPECT_EQ(ended.exit_code, 3);
  EXPECT_EQ(ended.detail, "exit code 3");
}

TEST_P(RuntimeContract, AnExecOfAKilledServerIsEndedAndInNobodysWay) {
  stop();
  auto given = victim();
  given["spawns"] = 1;
  given["exec"] = {"sh", "-c", "echo up > /tmp/up; sleep 61"};
  std::string log;
  const auto told = killed_victim(given, &log);
  ASSERT_FALSE(told.is_null()) << log;
  start();
  const auto id = SandboxId::parse(told["sandboxes"][0].get<std::string>()).value();
  const auto seen = runtime->exec(as(ada->identity), id, {.command = {"sh", "-c", "cat /proc/[0-9]*/cmdline"}});
  ASSERT_TRUE(seen) << seen.error().to_string();
  EXPECT_THAT(seen->out, Not(HasSubstr(std::string_view("sleep\00061", 8))));
  EXPECT_THAT(seen->out, HasSubstr(std::string_view("sleep\00060", 8)));
}

}  // namespace
}  // namespace creto::runtime
