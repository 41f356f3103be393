// The lives of sandboxes, from the spawn to the end.

#include "tests/runtime_contract.h"

namespace creto::runtime {
namespace {

TEST_P(RuntimeContract, RunsACommandAttestsItAndReportsItsEnd) {
  const auto sandbox = spawn(spec({"sh", "-c", "echo $CRETO_AGENT; echo oops >&2; exit 3"}));
  EXPECT_EQ(sandbox.agent, *agent);
  EXPECT_EQ(sandbox.delegation_chain.size(), 2u);
  EXPECT_TRUE(runtime->verify_attestation(as(ada->identity), sandbox.attestation));
  const auto document = parse_json(sandbox.attestation.document).value();
  EXPECT_EQ(document["sandbox_id"], sandbox.id.to_string());
  EXPECT_EQ(document["image_digest"], sandbox.image_digest);
  const auto ended = wait_end(sandbox.id);
  EXPECT_EQ(ended.state, SandboxState::terminated);
  EXPECT_EQ(ended.reason, TerminationReason::failed);
  EXPECT_EQ(ended.exit_code, 3);
  EXPECT_EQ(output(sandbox.id), agent->text() + "\n");
  EXPECT_EQ(runtime->output(as(ada->identity), sandbox.id, OutputStream::err, 0).value().bytes, "oops\n");
}

TEST_P(RuntimeContract, AForgedAttestationIsRefused) {
  const auto sandbox = spawn(spec({"true"}));
  auto forged = sandbox.attestation;
  forged.document.replace(forged.document.find("base"), 4, "evil");
  const auto verified = runtime->verify_attestation(as(ada->identity), forged);
  ASSERT_FALSE(verified);
  EXPECT_EQ(verified.error().kind(), ErrorKind::attestation_failed);
}

TEST_P(RuntimeContract, AnAttestationOutlivesTheRuntimesKeysUnlessOthersHadThem) {
  const auto self = Identity::service("runtime").value();
  const auto holds = [&](const Sandbox& sandbox) {
    return runtime->verify_attestation(as(ada->identity), sandbox.attestation).has_value();
  };
  const auto first = spawn(spec({"true"}));
  wait_end(first.id);
  ASSERT_TRUE(nhi->rotate_keys(as_service(), self, {.overlap = Nanos(0)}));
  const auto second = spawn(spec({"true"}));
  wait_end(second.id);
  EXPECT_TRUE(holds(first));
  EXPECT_TRUE(holds(second));
  ASSERT_TRUE(nhi->rotate_keys(as_service(), self, {.compromised = true}));
  EXPECT_TRUE(holds(first));
  EXPECT_FALSE(holds(second)) << "whoever has the keys can write one of any time";
}

TEST_P(RuntimeContract, RefusesWhatPolicyDoesNotPermit) {
  auto large = spec({"true"});
  large.limits.memory_bytes = 20ull << 30;
  const auto refused = runtime->spawn(as(ada->identity), large);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), "RT-403");
  EXPECT_EQ(count("audit_pending", "1 = 1") > 0, true);
}

TEST_P(RuntimeContract, AStrangerCannotSpawnForTheAgent) {
  const auto other = register_agent("other");
  const auto refused = runtime->spawn(as(other), spec({"true"}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::permission_denied);
  const auto sandbox = spawn(spec({"sleep", "60"}));
  EXPECT_EQ(runtime->get(as(other), sandbox.id).error().kind(), ErrorKind::not_found);
  EXPECT_EQ(runtime->terminate(as(other), sandbox.id).error().kind(), ErrorKind::not_found);
}

TEST_P(RuntimeContract, AUsedUpQuotaIsRt429CausedByMt429) {
  limits.left = 0;
  const auto refused = runtime->spawn(as(ada->identity), spec({"true"}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), "RT-429");
  ASSERT_NE(refused.error().caused_by(), nullptr);
  EXPECT_EQ(refused.error().caused_by()->code(), "MT-429");
}

TEST_P(RuntimeContract, ASandboxCountsAsRunningUntilItsEndAlsoOverARestart) {
  stop();
  running_hold = std::chrono::seconds(1);
  limits.running_max = 1;
  start();
  const auto first = spawn(spec({"sleep", "60"}));
  const auto refused = runtime->spawn(as(ada->identity), spec({"sleep", "60"}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), "RT-429");
  for (int i = 0; i < 200 && limits.held(first.id) < 3; ++i) ::usleep(50'000);
  EXPECT_GE(limits.held(first.id), 3) << "it is renewed";

  stop();
  {
    const std::lock_guard lock(limits.mutex);
    limits.running.clear();  // as where its holder has forgotten
  }
  start();
  for (int i = 0; i < 200 && limits.running_now() == 0; ++i) ::usleep(50'000);
  EXPECT_FALSE(runtime->spawn(as(ada->identity), spec({"sleep", "60"})));
  ASSERT_TRUE(runtime->terminate(as(ada->identity), first.id));
  const auto second = runtime->spawn(as(ada->identity), spec({"sleep", "60"}));
  ASSERT_TRUE(second) << second.error().to_string();
}

TEST_P(RuntimeContract, TheSameKeyGivesTheSameSandbox) {
  auto ctx = as(ada->identity);
  ctx.idempotency_key = "once";
  const auto first = runtime->spawn(ctx, spec({"sleep", "60"}));
  ASSERT_TRUE(first) << first.error().to_string();
  const auto second = runtime->spawn(ctx, spec({"sleep", "60"}));
  ASSERT_TRUE(second) << second.error().to_string();
  EXPECT_EQ(first->sandbox->id, second->sandbox->id);
  EXPECT_EQ(runtime->list(as(ada->identity), {}).value().size(), 1u);
}

TEST_P(RuntimeContract, SecretsAreInMemoryInsideAndRevokedAtTheEnd) {
  auto with = spec({"sh", "-c", "echo $API_KEY; cat /run/secrets/API_KEY; sleep 60"});
  with.secrets = {"agents/API_KEY"};
  const auto sandbox = spawn(with);
  const auto seen = runtime->exec(as(ada->identity), sandbox.id,
                                  {.command = {"sh", "-c", "echo $API_KEY; cat /run/secrets/API_KEY"}});
  ASSERT_TRUE(seen) << seen.error().to_string();
  EXPECT_EQ(seen->out, "agents-own-key\nagents-own-key");
  const auto leaked = run_to_end(
      {.argv = {"grep", "-r", "-l", "agents-own-key", options().state_directory + "/" + GetParam().runtime_class}});
  EXPECT_EQ(leaked.value().output, "");
  ASSERT_TRUE(runtime->terminate(as(ada->identity), sandbox.id));
  EXPECT_EQ(lent_to(sandbox.id), vault::DelegationStatus::revoked);
}

TEST_P(RuntimeContract, ASandboxHasEndedWhenItsSecretsAreRevoked) {
  auto with = spec({"sleep", "60"});
  with.secrets = {"agents/API_KEY"};
  const auto sandbox = spawn(with);
  failing_vault->failures = 1;
  ASSERT_TRUE(runtime->terminate(as(ada->identity), sandbox.id));
  EXPECT_LT(failing_vault->failures, 0) << "it was tried again";
  EXPECT_EQ(lent_to(sandbox.id), vault::DelegationStatus::revoked);
}

TEST_P(RuntimeContract, TheSandboxOfARevokedAgentEndsAndItsUseIsCounted) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  ASSERT_TRUE(nhi->revoke_agent(as_service(), *agent, "it misbehaves"));
  const auto ended = runtime->terminate(as(ada->identity), sandbox.id);
  ASSERT_TRUE(ended) << ended.error().to_string();
  EXPECT_EQ(ended->state, SandboxState::terminated);
  EXPECT_EQ(usage("sandbox_terminated", sandbox.id), 1);
}

TEST_P(RuntimeContract, ExecAnswersWithOutputExitCodeAndTimeout) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto result = runtime->exec(as(ada->identity), sandbox.id,
                                    {.command = {"sh", "-c", "cat; echo err >&2; exit 4"}, .input = "given"});
  ASSERT_TRUE(result) << result.error().to_string();
  EXPECT_EQ(result->out, "given");
  EXPECT_EQ(result->err, "err\n");
  EXPECT_EQ(result->exit_code, 4);
  const auto slow = runtime->exec(as(ada->identity), sandbox.id,
                                  {.command = {"sleep", "60"}, .timeout = std::chrono::milliseconds(200)});
  ASSERT_TRUE(slow) << slow.error().to_string();
  EXPECT_TRUE(slow->timed_out);
  EXPECT_FALSE(runtime->exec(as(ada->identity), sandbox.id, {.command = {"/no/such"}}));
}

TEST_P(RuntimeContract, SlowCommandsAreInNobodysWay) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  std::vector<std::future<void>> slow;
  for (int i = 0; i < 12; ++i)
    slow.push_back(std::async(std::launch::async, [&] {
      (void)runtime->exec(as(ada->identity), sandbox.id, {.command = {"sh", "-c", "echo >> /tmp/begun; sleep 50"}});
    }));
  const auto begun = [&] {
    const auto seen = runtime->exec(as(ada->identity), sandbox.id, {.command = {"sh", "-c", "grep -c '' /tmp/begun"}});
    return seen ? seen->out : seen.error().to_string();
  };
  for (int i = 0; i < 200 && begun() != "12\n"; ++i) ::usleep(50'000);
  EXPECT_EQ(begun(), "12\n") << "more than the dispatcher has workers";
  EXPECT_EQ(runtime->get(as(ada->identity), sandbox.id)->state, SandboxState::running);
  EXPECT_TRUE(runtime->terminate(as(ada->identity), sandbox.id));
  for (auto& one : slow) one.get();
}

TEST_P(RuntimeContract, TheTimeLimitEndsASandbox) {
  auto limited = spec({"sleep", "60"});
  limited.limits.time = std::chrono::seconds(1);
  const auto sandbox = spawn(limited);
  EXPECT_EQ(wait_end(sandbox.id).reason, TerminationReason::timeout);
}

TEST_P(RuntimeContract, AChildHasALongerChainAndEndsWithItsParent) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto answer =
      gateway(sandbox.id, "POST", "/v1/sandboxes", Json{{"image", "base"}, {"command", {"sleep", "60"}}});
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto child = SandboxId::parse(parse_json(answer.body).value()["sandbox_id"].get<std::string>()).value();
  const auto seen = runtime->get(as(ada->identity), child).value();
  EXPECT_EQ(seen.parent, sandbox.id);
  EXPECT_EQ(seen.delegation_chain.size(), 3u);
  EXPECT_EQ(seen.delegation_chain[1], *agent);
  EXPECT_EQ(gateway(sandbox.id, "GET", "/v1/sandboxes/" + child.to_string()).status, 200);
  ASSERT_TRUE(runtime->terminate(as(ada->identity), sandbox.id));
  EXPECT_EQ(wait_end(child).state, SandboxState::terminated);
}

TEST_P(RuntimeContract, EgressFollowsPolicyAndIsMetered) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  EXPECT_THAT(fetch(sandbox.id, "rates.example"), HasSubstr("200"));
  EXPECT_EQ(fetch(sandbox.id, "closed.example"), "");
  ASSERT_TRUE(runtime->terminate(as(ada->identity), sandbox.id));
  EXPECT_EQ(usage("network_egress", sandbox.id), 1) << "of the one connection that was let through";
}

TEST_P(RuntimeContract, ASandboxsOwnRulesNarrowWhatPolicyPermitsAndNeverWidenIt) {
  auto wide = spec({"sleep", "60"});
  wide.egress = {{"*", 0, EgressVerdict::allow}};
  const auto open = spawn(wide);
  EXPECT_THAT(fetch(open.id, "rates.example"), HasSubstr("200"));
  EXPECT_EQ(fetch(open.id, "closed.example"), "") << "`allow` in a spec is no permission";
  auto narrow = spec({"sleep", "60"});
  narrow.egress = {{"rates.example", 0, EgressVerdict::deny}};
  EXPECT_EQ(fetch(spawn(narrow).id, "rates.example"), "");

  policy(
      "forbid(principal, action == Action::\"sandbox.spawn\", resource) when { "
      "context.egress.contains({\"host\": \"*\", \"port\": 0, \"verdict\": \"allow\"}) };");
  EXPECT_EQ(runtime->spawn(as(ada->identity), wide).error().kind(), ErrorKind::permission_denied);
  EXPECT_TRUE(runtime->spawn(as(ada->identity), narrow));
}

TEST_P(RuntimeContract, AnApprovedSpawnIsThisSpecAndNoOther) {
  policy(
      "@oversight(\"large\") forbid(principal, action == Action::\"sandbox.spawn\", resource) when { "
      "context.cpu_millicores == 900 };");
  auto approved = spec({"sh", "-c", "sleep 60"});
  approved.limits.cpu_millicores = 900;
  approved.environment = {{"MODE", "dry-run"}};
  approved.egress = {{"rates.example", 80, EgressVerdict::require_authz}};
  const auto asked = runtime->spawn(as(ada->identity), approved);
  ASSERT_TRUE(asked) << asked.error().to_string();
  ASSERT_TRUE(asked->approval);
  const auto shown = parse_json(gate->last().action.arguments).value();
  EXPECT_EQ(shown["environment"]["MODE"], "dry-run");
  EXPECT_EQ(shown["egress"][0]["host"], "rates.example");
  approved.override_token = gate->approve_last(as_service());

  const std::pair<const char*, std::function<void(SandboxSpec&)>> changes[] = {
      {"command", [](SandboxSpec& s) { s.command = {"sh", "-c", "sleep 61"}; }},
      {"environment", [](SandboxSpec& s) { s.environment["MODE"] = "live"; }},
      {"working_directory", [](SandboxSpec& s) { s.working_directory = "/tmp"; }},
      {"secrets", [](SandboxSpec& s) { s.secrets = {"agents/API_KEY"}; }},
      {"egress host", [](SandboxSpec& s) { s.egress[0].host = "*"; }},
      {"egress verdict", [](SandboxSpec& s) { s.egress[0].verdict = EgressVerdict::allow; }},
      {"egress", [](SandboxSpec& s) { s.egress.clear(); }},
      {"limits.memory_bytes", [](SandboxSpec& s) { s.limits.memory_bytes *= 2; }},
      {"limits.pids", [](SandboxSpec& s) { s.limits.pids = 512; }},
      {"limits.time", [](SandboxSpec& s) { s.limits.time = std::chrono::hours(1); }}};
  for (const auto& [field, change] : changes) {
    auto other = approved;
    change(other);
    const auto refused = runtime->spawn(as(ada->identity), other);
    ASSERT_FALSE(refused) << field;
    EXPECT_EQ(refused.error().kind(), ErrorKind::permission_denied) << field;
  }
  const auto spawned = runtime->spawn(as(ada->identity), approved);
  ASSERT_TRUE(spawned) << spawned.error().to_string();
  EXPECT_TRUE(spawned->sandbox);
}

TEST_P(RuntimeContract, AStopEndsItsSandboxesWhereItIsToldTo) {
  stop();
  keep_sandboxes = false;
  start();
  auto with = spec({"sleep", "60"});
  with.secrets = {"agents/API_KEY"};
  const auto sandbox = spawn(with);
  stop();
  expect_nothing_left();
  EXPECT_EQ(lent_to(sandbox.id), vault::DelegationStatus::revoked);
  start();
  const auto ended = runtime->get(as(ada->identity), sandbox.id).value();
  EXPECT_EQ(ended.state, SandboxState::terminated);
  EXPECT_EQ(ended.reason, TerminationReason::manual);
}

TEST_P(RuntimeContract, OutputOfEndedSandboxesIsKeptByAgeAndSize) {
  const auto running = spawn(spec({"sh", "-c", "echo running; sleep 60"}));
  const auto first = spawn(spec({"sh", "-c", "echo first"}));
  wait_end(first.id);
  const auto second = spawn(spec({"sh", "-c", "echo second"}));
  wait_end(second.id);
  EXPECT_EQ(service_->sweep(as_service()).value(), 0u);
  EXPECT_EQ(output(first.id), "first\n");

  stop();
  output_bytes_max = 150;  // one with its resolv.conf and hosts
  start();
  EXPECT_EQ(service_->sweep(as_service()).value(), 1u);
  const auto gone = runtime->output(as(ada->identity), first.id, OutputStream::out, 0);
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().kind(), ErrorKind::not_found);
  EXPECT_EQ(output(second.id), "second\n");

  const auto directory = fmt::format("{}/sandboxes/{}", options().state_directory, second.id.to_string());
  std::filesystem::last_write_time(directory, std::filesystem::file_time_type::clock::now() - std::chrono::days(8));
  EXPECT_EQ(service_->sweep(as_service()).value(), 1u);
  EXPECT_FALSE(std::filesystem::exists(directory));
  EXPECT_EQ(output(running.id), "running\n");
}

TEST_P(RuntimeContract, AWarmSandboxIsClaimedAndReplaced) {
  stop();
  pool = true;
  start();
  for (int i = 0; i < 200 && runtime->status(as_service()).value().pool_ready == 0; ++i) ::usleep(50'000);
  const auto sandbox = spawn(spec({"true"}));
  EXPECT_TRUE(sandbox.warm);
  EXPECT_EQ(wait_end(sandbox.id).reason, TerminationReason::completed);
  for (int i = 0; i < 200 && runtime->status(as_service()).value().pool_ready == 0; ++i) ::usleep(50'000);
  EXPECT_EQ(runtime->status(as_service()).value().pool_ready, 1u);
}

}  // namespace

using creto::testing::DatabaseKind;
INSTANTIATE_TEST_SUITE_P(, RuntimeContract,
                         ::testing::Values(Setup{"runsc", DatabaseKind::sqlite, false},
                                           Setup{"runc", DatabaseKind::postgres, true}),
                         [](const auto& info) {
                           return fmt::format("{}_{}_{}", info.param.runtime_class,
                                              ::testing::PrintToString(info.param.database),
                                              info.param.remote ? "remote" : "local");
                         });

}  // namespace creto::runtime
