// What agents reach from inside their sandboxes: actions, models, messages, and the human who has to approve them.

#include "tests/runtime_contract.h"

namespace creto::runtime {
namespace {

TEST_P(RuntimeContract, AnActionIsPaidOnceWithCredentialsTheAgentNeverSees) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto first = pay(sandbox.id, "10.00", "k1");
  ASSERT_EQ(first.status, 200) << first.body;
  EXPECT_EQ(ledger.authorization, "Bearer ledger-credentials");
  {
    const std::lock_guard lock(limits.mutex);
    const std::map<std::string, std::string> said{{"action", "pay"}, {"sandbox_id", sandbox.id.to_string()}};
    EXPECT_EQ(limits.asked.back().properties, said) << "limits see what the event will say";
  }
  EXPECT_EQ(pay(sandbox.id, "10.00", "k1").body, first.body);
  EXPECT_EQ(ledger.payments(), 1u);
  EXPECT_EQ(pay(sandbox.id, "11.00", "k1").status, 409);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/actions/steal").status, 404);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/actions/pay", Json{{"arguments", {{"amount", 10}}}}).status, 400);
}

TEST_P(RuntimeContract, AnApprovalPermitsExactlyItsActionOnce) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto asked = pay(sandbox.id, "250.00", "k1");
  ASSERT_EQ(asked.status, 202) << asked.body;
  EXPECT_EQ(ledger.payments(), 0u);
  const auto request = parse_json(asked.body).value()["request_id"].get<std::string>();
  EXPECT_THAT(gateway(sandbox.id, "GET", "/v1/requests/" + request).body, HasSubstr("pending"));
  const auto token = gate->approve_last(as_service());
  EXPECT_THAT(gateway(sandbox.id, "GET", "/v1/requests/" + request + "?wait=5s").body, HasSubstr("approved"));
  EXPECT_NE(pay(sandbox.id, "251.00", "other", token).status, 200);
  EXPECT_EQ(pay(sandbox.id, "250.00", "k1", token).status, 200);
  EXPECT_NE(pay(sandbox.id, "250.00", "again", token).status, 200);
  EXPECT_EQ(ledger.payments(), 1u);
}

TEST_P(RuntimeContract, AnActionWithoutAnswerIsFinishedAfterARestartAndNotDoubled) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  {
    const std::lock_guard lock(ledger.mutex_);
    ledger.failing = true;
  }
  EXPECT_EQ(pay(sandbox.id, "10.00", "k1").status, 503);
  stop();
  {
    const std::lock_guard lock(ledger.mutex_);
    ledger.failing = false;
  }
  start();
  for (int i = 0; i < 200 && ledger.payments() == 0; ++i) ::usleep(50'000);
  EXPECT_EQ(ledger.payments(), 1u);
  EXPECT_EQ(pay(sandbox.id, "10.00", "k1").status, 200);
  EXPECT_EQ(ledger.payments(), 1u);
}

TEST_P(RuntimeContract, ACostThresholdAsksAHumanAndHisTokenPaysOnce) {
  costs.thresholds = {{Decimal(90), contracts::ThresholdAction::block},
                      {Decimal(50), contracts::ThresholdAction::require_approval},
                      {Decimal(20), contracts::ThresholdAction::notify_only}};
  const auto sandbox = spawn(spec({"sleep", "60"}));
  EXPECT_EQ(pay(sandbox.id, "30.00", "notified").status, 200);
  const auto blocked = pay(sandbox.id, "95.00", "blocked");
  EXPECT_EQ(blocked.status, 429) << blocked.body;

  const auto asked = pay(sandbox.id, "60.00", "k1");
  ASSERT_EQ(asked.status, 202) << asked.body;
  const auto request = gate->last();
  ASSERT_EQ(request.needs.size(), 1u);
  EXPECT_EQ(request.needs[0].policy, "from-50");
  EXPECT_EQ(request.needs[0].forbid, "");
  EXPECT_EQ(request.needs[0].approvers, std::vector<std::string>{"role:cfo"});
  const auto token = gate->approve_last(as_service());
  EXPECT_NE(pay(sandbox.id, "61.00", "other", token).status, 200);
  EXPECT_EQ(pay(sandbox.id, "60.00", "k1", token).status, 200);
  EXPECT_NE(pay(sandbox.id, "60.00", "again", token).status, 200);
  EXPECT_EQ(ledger.payments(), 2u);

  costs.thresholds = {{Decimal(0), contracts::ThresholdAction::require_approval}};
  ASSERT_EQ(pay(sandbox.id, "70.00", "late").status, 202);
  const auto late = gate->approve_last(as_service());
  costs.thresholds = {{Decimal(0), contracts::ThresholdAction::block}};
  EXPECT_EQ(pay(sandbox.id, "70.00", "late", late).status, 429) << "what is blocked nobody approves";
}

TEST_P(RuntimeContract, AModelIsCalledOncePerKeyAndItsTokensAreMetered) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto ask = [&](const char* key, const char* content = "hello") {
    return gateway(sandbox.id, "POST", "/v1/inference/chat/completions",
                   Json{{"messages", {{{"role", "user"}, {"content", content}}}}}, {{"Creto-Idempotency-Key", key}});
  };
  model.set_open(false);
  auto first = std::async(std::launch::async, [&] { return ask("k"); });
  model.wait_for_a_call();
  EXPECT_EQ(ask("k").status, 503) << "it is under way";
  EXPECT_EQ(model.calls, 1);
  model.set_open(true);
  const auto answer = first.get();
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(parse_json(answer.body).value()["choices"][0]["message"]["content"], "hi");
  EXPECT_EQ(ask("k").body, answer.body);
  EXPECT_EQ(ask("k", "other").status, 409);
  EXPECT_EQ(model.calls, 1);
  EXPECT_EQ(usage("inference_tokens", sandbox.id), 1);

  // What was not answered is no answer to a repeat.
  model.status = 400;
  EXPECT_NE(ask("again").status, 200);
  model.status = 200;
  EXPECT_EQ(ask("again").status, 200);
  EXPECT_EQ(usage("inference_tokens", sandbox.id), 2);
  policy("forbid(principal, action == Action::\"inference.call\", resource);");
  EXPECT_EQ(ask("forbidden").status, 403);
}

TEST_P(RuntimeContract, AModelThatMayHaveAnsweredIsAskedAgainUnderTheSameKeyAndTheAnswerSaysSo) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto ask = [&](const char* key) {
    return gateway(sandbox.id, "POST", "/v1/inference/chat/completions",
                   Json{{"messages", {{{"role", "user"}, {"content", "hello"}}}}}, {{"Creto-Idempotency-Key", key}});
  };
  model.status = 503;
  EXPECT_EQ(ask("k").status, 503);
  stop();
  start();  // as after a crash: only what is written down is known
  model.status = 200;
  const auto repeated = ask("k");
  ASSERT_EQ(repeated.status, 200) << repeated.body;
  EXPECT_TRUE(parse_json(repeated.body).value().value("creto_repeated", false));
  EXPECT_EQ(model.calls, 2);
  EXPECT_EQ(model.keys().size(), 1u) << "the provider cannot know that it is the same call";
  EXPECT_EQ(ask("k").body, repeated.body);
  EXPECT_FALSE(parse_json(ask("other").body).value().contains("creto_repeated"));
  EXPECT_EQ(model.calls, 3);
  EXPECT_EQ(usage("inference_tokens", sandbox.id), 2);
}

TEST_P(RuntimeContract, AnApprovedCallOfAModelIsThisRequestAndMadeOnce) {
  policy("@oversight(\"large\") forbid(principal, action == Action::\"inference.call\", resource);");
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto ask = [&](const char* key, const char* content, const std::string& token = "") {
    return gateway(sandbox.id, "POST", "/v1/inference/chat/completions",
                   Json{{"messages", {{{"role", "user"}, {"content", content}}}}},
                   {{"Creto-Idempotency-Key", key}, {"Creto-Override", token}});
  };
  const auto asked = ask("k", "hello");
  ASSERT_EQ(asked.status, 202) << asked.body;
  const auto shown = parse_json(gate->last().action.arguments).value();
  EXPECT_EQ(shown["prompt"], "hello");
  EXPECT_EQ(model.calls, 0);
  const auto token = gate->approve_last(as_service());
  EXPECT_NE(ask("other", "something else", token).status, 200);
  // The approval outlives an attempt that was not answered.
  model.status = 400;
  EXPECT_NE(ask("k", "hello", token).status, 200);
  model.status = 200;
  const auto answer = ask("k", "hello", token);
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(ask("k", "hello", token).body, answer.body);
  EXPECT_NE(ask("again", "hello", token).status, 200);
  EXPECT_EQ(model.calls, 2);
}

TEST_P(RuntimeContract, AnApprovedMessageIsTheOneThatWasSealedWhenItWasAskedForAlsoOverARestart) {
  policy("@oversight(\"letters\") forbid(principal, action == Action::\"message.send\", resource);");
  const auto peer = register_agent("peer");
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto tell = [&](const char* key, Json body, const std::string& token = "") {
    return gateway(sandbox.id, "POST", "/v1/messages", std::move(body),
                   {{"Creto-Idempotency-Key", key}, {"Creto-Override", token}});
  };
  const Json letter{{"to", "peer"}, {"body", "pay at once"}, {"reasoning", "it is due"}};
  const auto asked = tell("k", letter);
  ASSERT_EQ(asked.status, 202) << asked.body;
  const auto shown = gate->last();
  EXPECT_THAT(shown.description, HasSubstr("pay at once"));
  EXPECT_EQ(shown.reasoning, "it is due");
  EXPECT_EQ(shown.action.resource_id, peer.text());
  EXPECT_EQ(tell("k", Json{{"to", "peer"}, {"body", "something else"}}).status, 409);
  const auto token = gate->approve_last(as_service());
  EXPECT_TRUE(messenger.sent.empty());
  stop();
  start();
  EXPECT_NE(tell("other", Json{{"to", "peer"}, {"body", "something else"}}, token).status, 200);
  const auto sent = tell("k", letter, token);
  ASSERT_EQ(sent.status, 200) << sent.body;
  const std::string id = parse_json(sent.body).value()["message_id"];
  EXPECT_EQ(parse_json(shown.action.arguments).value()["message_id"], id) << "sealed when it was asked for";
  EXPECT_EQ(tell("k", letter, token).body, sent.body);
  EXPECT_NE(tell("again", letter, token).status, 200) << "the approval was of that one";
  EXPECT_EQ(messenger.sent.size(), 1u);
}

TEST_P(RuntimeContract, MessagesThatWaitForApprovalAreBoundedAndGoWithTheirTime) {
  policy("@oversight(\"letters\") forbid(principal, action == Action::\"message.send\", resource);");
  register_agent("peer");
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto tell = [&](int i) {
    return gateway(sandbox.id, "POST", "/v1/messages", Json{{"to", "peer"}, {"body", fmt::format("number {}", i)}});
  };
  for (int i = 0; i < 64; ++i) ASSERT_EQ(tell(i).status, 202);
  EXPECT_EQ(tell(64).status, 507);
  EXPECT_EQ(tell(63).status, 202) << "that one waits already";
  EXPECT_EQ(count("runtime_waiting_messages", "org = 'default'"), 64);
  ASSERT_TRUE(sql::write(*db, as_service(), [](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("UPDATE runtime_waiting_messages SET expires_at = sent_at"));
    return {};
  }));
  ASSERT_TRUE(service_->sweep(as_service()));
  EXPECT_EQ(count("runtime_waiting_messages", "org = 'default'"), 0);
  EXPECT_EQ(tell(64).status, 202);
}

TEST_P(RuntimeContract, WhatCannotBeOpenedIsRefusedAndStandsInNobodysWay) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto kept = messenger.deliver(*db, *agent, "not yet");
  std::vector<MessageId> forged;
  for (int i = 0; i < 40; ++i) forged.push_back(messenger.deliver(*db, *agent, "forged"));
  const auto good = messenger.deliver(*db, *agent, "hello");
  const auto answer = gateway(sandbox.id, "GET", "/v1/messages");
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto messages = parse_json(answer.body).value()["messages"];
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0]["message_id"], good.to_string());
  for (const auto& id : forged) EXPECT_EQ(messenger.refused[id], "it cannot be opened: the signature does not hold");
  EXPECT_FALSE(messenger.refused.contains(kept)) << "it may open later";
  EXPECT_EQ(messenger.waiting(), 2u);
}

TEST_P(RuntimeContract, AMessageEndsTheWaitForItAndIsAcknowledgedAtBothEnds) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  auto waiting = std::async(std::launch::async, [&] { return gateway(sandbox.id, "GET", "/v1/messages?wait=30s"); });
  messenger.wait_for_a_look();
  const auto sent_at = system_clock().monotonic();
  const auto id = messenger.deliver(*db, *agent, "hello");
  const auto answer = waiting.get();
  EXPECT_LT(system_clock().monotonic() - sent_at, std::chrono::milliseconds(900)) << "nothing woke it";
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto message = parse_json(answer.body).value()["messages"][0];
  EXPECT_EQ(message["message_id"], id.to_string());
  EXPECT_EQ(message["body"], "hello");
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/messages/" + id.to_string() + "/ack").status, 200);
  EXPECT_EQ(messenger.waiting(), 0u);
  EXPECT_EQ(endpoint.acknowledged, id);
  EXPECT_EQ(parse_json(gateway(sandbox.id, "GET", "/v1/messages?wait=100ms").body).value()["messages"].size(), 0u);
}

TEST_P(RuntimeContract, ATopicMessageIsSealedAgainForWhoSubscribesMeanwhile) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  messenger.refusals = 1;
  const auto sent = gateway(sandbox.id, "POST", "/v1/messages", Json{{"topic", "news"}, {"body", "hello"}});
  EXPECT_EQ(sent.status, 200) << sent.body;
  EXPECT_EQ(endpoint.sealed_for_topic, 2);
  messenger.refusals = 10;
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/messages", Json{{"topic", "news"}, {"body", "hello"}}).status, 409);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/messages", Json{{"topic", "a"}, {"to", "b"}, {"body", "c"}}).status, 400);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/messages", Json{{"body", "hello"}}).status, 400);
}

TEST_P(RuntimeContract, TheSameKeyAtAnyDoorIsTheFirstAnswerAndARefusalForOtherContent) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  const auto ask = [&](std::string path, Json body) {
    return gateway(sandbox.id, "POST", std::move(path), std::move(body), {{"Creto-Idempotency-Key", "k"}});
  };
  const std::tuple<const char*, Json, Json> doors[] = {
      {"/v1/sandboxes",
       {{"image", "base"}, {"command", {"sleep", "60"}}},
       {{"image", "base"}, {"command", {"sleep", "61"}}}},
      {"/v1/messages", {{"topic", "news"}, {"body", "hello"}}, {{"topic", "news"}, {"body", "other"}}},
      {"/v1/memories", {{"content", "it is due"}}, {{"content", "it is not due"}}},
      {"/v1/actions/pay", {{"arguments", {{"amount", "1.00"}}}}, {{"arguments", {{"amount", "2.00"}}}}}};
  for (const auto& [path, body, other] : doors) {
    const auto first = ask(path, body);
    EXPECT_EQ(first.status, 200) << first.body;
    EXPECT_EQ(ask(path, body).body, first.body) << path;
    EXPECT_EQ(ask(path, other).status, 409) << path;
    EXPECT_EQ(ask(path, body).body, first.body) << path;
  }
  EXPECT_EQ(runtime->list(as(ada->identity), {}).value().size(), 2u);
  EXPECT_EQ(endpoint.sealed_for_topic, 1);
  EXPECT_EQ(count("audit_pending", "entry LIKE '%memory.store%'"), 1);
  EXPECT_EQ(ledger.payments(), 1u);

  // What was refused is not remembered.
  messenger.refusals = 10;
  const auto tell = [&](const char* body) {
    return gateway(sandbox.id, "POST", "/v1/messages", Json{{"to", "nobody"}, {"body", body}},
                   {{"Creto-Idempotency-Key", "n"}})
        .status;
  };
  EXPECT_EQ(tell("hello"), 404);
  EXPECT_EQ(tell("other"), 404);
  const auto with_key = [&](std::string key) {
    return gateway(sandbox.id, "POST", "/v1/memories", Json{{"content", "x"}}, {{"Creto-Idempotency-Key", key}}).status;
  };
  EXPECT_EQ(with_key(std::string(256, 'k')), 200);
  EXPECT_EQ(with_key(std::string(257, 'k')), 400);
}

TEST_P(RuntimeContract, TheGatewayRefusesWhatIsMalformed) {
  const auto sandbox = spawn(spec({"sleep", "60"}));
  EXPECT_EQ(gateway(sandbox.id, "GET", "/v1/nothing").status, 404);
  EXPECT_EQ(gateway(sandbox.id, "GET", "/v1/requests/not-an-id").status, 404);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/actions/pay", Json::array()).status, 400);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/sandboxes", Json{{"image", "base"}, {"colour", "red"}}).status, 400);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/inference/chat/completions", Json::object()).status, 400);
  EXPECT_EQ(gateway(sandbox.id, "POST", "/v1/\xff\xfe").status, 404);
}

}  // namespace
}  // namespace creto::runtime
