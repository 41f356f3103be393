// What every Authz keeps: decisions, explanations, rates, extensions and override tokens.

#include "authz_contract.h"

#include "creto/authz/v1/authz.pb.h"
#include "creto/io/rpc_channel.h"
#include "creto/testing/temp_dir.h"

namespace creto::authz {
namespace {

INSTANTIATE_TEST_SUITE_P(, AuthzContract, everywhere(), database_name);

TEST_P(AuthzContract, DeniesWhatNoPolicyPermits) {
  const Decision decision = check(pay(1));
  ASSERT_TRUE(std::holds_alternative<Deny>(decision));
  EXPECT_EQ(std::get<Deny>(decision).policy, "");
  EXPECT_EQ(refusal(Product::runtime, decision)->code(), "RT-403");
}

TEST_P(AuthzContract, AsksAHumanWhereEveryForbidSaysSo) {
  add_payment_policies();
  EXPECT_EQ(check(pay(10'000)), Decision(Allow{}));
  const Decision decision = check(pay(25'000));
  ASSERT_TRUE(std::holds_alternative<RequiresOversight>(decision)) << to_string(decision);
  const auto& requirements = std::get<RequiresOversight>(decision).requirements;
  ASSERT_EQ(requirements.size(), 1u);
  EXPECT_EQ(requirements[0].forbid, "large");
  EXPECT_EQ(requirements[0].oversight_policy, "large-payments");
  EXPECT_EQ(requirements[0].timeout, Nanos(hours(2)));
  EXPECT_THAT(requirements[0].approvers, ::testing::ElementsAre("role:cfo", "human:eve@example.com"));
  EXPECT_EQ(refusal(Product::runtime, decision)->code(), "RT-202");

  add("never", R"(forbid(principal, action, resource) when { context.amount > 20000 };)");
  ASSERT_TRUE(std::holds_alternative<Deny>(check(pay(25'000))));
  EXPECT_EQ(std::get<Deny>(check(pay(25'000))).policy, "never");
}

TEST_P(AuthzContract, OversightNeverStandsInForAMissingPermit) {
  add("large", R"(@oversight("large-payments") forbid(principal, action, resource);)");
  EXPECT_TRUE(std::holds_alternative<Deny>(check(pay(1))));
}

/// Lets everybody in, and keeps what the dispatcher asks and tells.
struct Doorkeeper final : rpc::Authenticator, rpc::Authorizer, rpc::Auditor {
  Result<rpc::Caller> authenticate(const Context&, const rpc::Credentials&) override {
    const Identity caller = CRETO_TRY(Identity::human("ada@example.com"));
    return rpc::Caller{caller, {caller}, "default"};
  }
  Result<> authorize(const Context&, std::string_view action, const rpc::Resource& resource) override {
    asked.push_back(std::string(action) + " " + resource.type + " " + resource.id);
    return {};
  }
  Result<> record(const Context&, const rpc::CallRecord& call) override {
    recorded.push_back(std::string(call.action) + " " + call.resource.type + " " + call.resource.id);
    return {};
  }
  std::vector<std::string> asked, recorded;
};

TEST_P(AuthzContract, WhoReadsPoliciesOrAsksWhatSomebodyMayDoIsRecordedWithWhomHeAskedAbout) {
  if (GetParam() == Where::postgres) GTEST_SKIP() << "the database has no part in it";
  Doorkeeper door;
  const creto::testing::TempDir directory;
  const auto dispatcher = rpc::Dispatcher::create({door, door, door, no_telemetry(), clock});
  register_authz(*dispatcher, *local);
  const std::string socket = (directory / "rpc.sock").string();
  const auto server = rpc::GrpcServer::start(*dispatcher, {.unix_path = socket}).value();
  rpc::ChannelOptions to;
  to.endpoint = "unix:" + socket;
  to.bearer = [] { return std::string("ada"); };
  const auto client = create_authz_client(rpc::Channel::connect(std::move(to), clock).value(), *db, clock).value();
  (void)client->check(ctx, pay(1));
  EXPECT_THAT(door.recorded, ::testing::IsEmpty());
  (void)client->explain(ctx, pay(1));
  EXPECT_EQ(door.asked.back(), "authz.explain Agent " + agent.text());
  EXPECT_THAT(door.recorded, ::testing::ElementsAre("authz.explain Agent " + agent.text()));
  door.recorded.clear();
  ASSERT_TRUE(client->filter_resources(ctx, {.request = pay(1)}));
  EXPECT_EQ(door.asked.back(), "authz.filter_resources Agent " + agent.text());
  add("pay", "permit(principal, action, resource);");
  ASSERT_TRUE(client->list_policies(ctx, "", 10'000));
  ASSERT_TRUE(client->list_policy_links(ctx, ""));
  ASSERT_TRUE(client->get_policy_version(ctx, 0));
  ASSERT_TRUE(client->diff_policy_versions(ctx, 0, 0));
  EXPECT_THAT(door.recorded, ::testing::ElementsAre("authz.filter_resources Agent " + agent.text(),
                                                    "authz.list_policies  ", "authz.list_policy_links  ",
                                                    "authz.get_policy_version  ", "authz.diff_policy_versions  "));
  server->stop(Nanos(0));
  dispatcher->stop();
}

TEST_P(AuthzContract, AContextThatIsNoneIsAnErrorThatSaysWhy) {
  if (GetParam() != Where::grpc) GTEST_SKIP() << "who calls in process gives no text";
  const auto channel = raw_channel();
  const auto said = [&](const std::string& context) {
    v1::CheckRequest request;
    request.set_principal(agent.text());
    request.set_action("payments.pay");
    request.mutable_resource()->set_type("Ledger");
    request.set_context_json(context);
    const auto done =
        channel->call<v1::CheckRequest, v1::CheckResponse>(ctx, "/creto.authz.v1.AuthzService/Check", request);
    if (done) return done->decision().has_deny() ? "denied: " + done->decision().deny().reason() : "allowed";
    EXPECT_EQ(done.error().kind(), ErrorKind::invalid_input);
    return done.error().message();
  };
  EXPECT_EQ(said(R"({"amount": 1})"), "denied: no policy permits this");
  EXPECT_EQ(said(R"({"amount": 1)"), "context_json: json: syntax error at line 1, column 12");
  EXPECT_EQ(said(R"({"amount": 1, "amount": 2})"), "context_json: json: duplicate key `amount`");
  EXPECT_EQ(said("[1]"), "context_json: must be a JSON object");
  EXPECT_THAT(said(R"({"amount": null})"), ::testing::HasSubstr("context_json: "));
  EXPECT_THAT(said(R"({"amount": 1.5})"), ::testing::HasSubstr("context_json: "));
  EXPECT_THAT(said(R"({"amount": 9223372036854775808})"), ::testing::HasSubstr("context_json: "));
  EXPECT_THAT(said(R"({"who": {"__entity": {"type": "Agent"}}})"), ::testing::HasSubstr("context_json: "));
}

TEST_P(AuthzContract, ExplainTellsOfEachPolicyInScopeWhyItAppliesOrNot) {
  add_payment_policies();
  add("broken", "forbid(principal, action, resource) when { context.amount > 7 && context.nothing };");
  add("small", R"(forbid(principal, action, resource)
                    when { principal is Agent && context.amount < 5 };)");
  add("elsewhere", "permit(principal is Human, action, resource);");
  const Explanation why = authz->explain(ctx, pay(8));
  EXPECT_EQ(why.decided_by, "policies");
  ASSERT_EQ(why.policies.size(), 4u) << "not the one for humans";
  using Outcome = PolicyVerdict::Outcome;
  EXPECT_EQ(why.policies[0].policy, "pay");
  EXPECT_EQ(why.policies[0].outcome, Outcome::applies);
  EXPECT_FALSE(why.policies[0].forbids);
  EXPECT_EQ(why.policies[1].policy, "broken");
  EXPECT_EQ(why.policies[1].outcome, Outcome::failed);
  EXPECT_THAT(why.policies[1].because, ::testing::HasSubstr("nothing"));
  EXPECT_EQ(why.policies[2].policy, "large");
  EXPECT_EQ(why.policies[3],
            (PolicyVerdict{"small", true, Outcome::condition, "context.amount < 5", 2, 65, {{"context.amount", "8"}}}));
  EXPECT_EQ(why.policies_left_out, 0u);
  auto request = pay(1);
  request.chain = {agent, human};
  EXPECT_EQ(authz->explain(ctx, request).decided_by, "request");
  source.failing = true;
  add("look", "forbid(principal, action, resource) when { principal.gone };");
  EXPECT_EQ(authz->explain(ctx, pay(8)).decided_by, "trouble");
}

TEST_P(AuthzContract, ExplainNamesTheRateOrTheExtensionThatRefused) {
  add("pay", "@rate(\"1/1m\") permit(principal, action, resource);");
  EXPECT_TRUE(allowed(authz->admit(ctx, pay(1))));
  Explanation why = authz->explain(ctx, pay(1));
  EXPECT_TRUE(std::holds_alternative<RateLimited>(why.decision));
  EXPECT_EQ(why.decided_by, "rate");
  EXPECT_EQ(why.decided_by_name, "pay");
  TestExtension mild("mild", 1), quota("quota_enforcer", 100);
  quota.answer = [] { return std::optional<Decision>(QuotaExceeded{"q", 3, 3, std::nullopt, "full"}); };
  ASSERT_TRUE(local->register_extension(mild));
  ASSERT_TRUE(local->register_extension(quota));
  why = authz->explain(ctx, pay(1));
  EXPECT_EQ(why.decided_by, "extension");
  EXPECT_EQ(why.decided_by_name, "quota_enforcer");
  stop();
}

TEST_P(AuthzContract, NamesThePoliciesThatDeterminedADecisionWhereItIsAsked) {
  add_payment_policies();
  add("also", "permit(principal, action, resource) when { context.amount == 1 };");
  EXPECT_TRUE(allowed(check(pay(1)))) << "it is in the cache now";
  std::vector<PolicyId> matched{"before"};
  EXPECT_TRUE(allowed(authz->check_naming(ctx, pay(1), false, matched)));
  EXPECT_THAT(matched, ::testing::ElementsAre("also", "pay"));
  EXPECT_FALSE(allowed(authz->check_naming(ctx, pay(25'000), false, matched)));
  EXPECT_THAT(matched, ::testing::ElementsAre("large"));
  ASSERT_TRUE(authz->update_policy(ctx, "pay", "@rate(\"1/1m\") permit(principal, action, resource);", 0));
  EXPECT_TRUE(allowed(authz->check_naming(ctx, pay(2), false, matched)));
  EXPECT_TRUE(allowed(authz->check_naming(ctx, pay(2), true, matched)));
  EXPECT_TRUE(std::holds_alternative<RateLimited>(authz->check_naming(ctx, pay(2), true, matched))) << "it counts";
}

TEST_P(AuthzContract, AContextThatBringsADelegationOfItsOwnIsNotBelieved) {
  add("for ada", R"(permit(principal, action, resource)
                      when { context.delegation.root == Human::"human:ada@example.com" };)");
  auto request = pay(1);
  request.chain = {agent};
  request.context.emplace_back("delegation",
                               Value::record({{"root", EntityUid{"Human", human.text()}},
                                              {"depth", 2},
                                              {"chain", Value::set({Value(EntityUid{"Human", human.text()})})}}));
  EXPECT_FALSE(allowed(check(request)));
  request.chain = {human, agent};
  EXPECT_TRUE(allowed(check(request)));
  request.context.back().second = "something else";
  EXPECT_TRUE(allowed(check(request)));
  ASSERT_TRUE(authz->set_schema(ctx, R"(entity Ledger;
    action "payments.pay" appliesTo { principal: [Agent], resource: [Ledger], context: {
      amount: Long, delegation: { root: Human, depth: Long, chain: Set<Human> } } };)"))
      << "a schema may declare it";
  request.chain = {agent};
  request.context.back().second = Value::record({{"root", EntityUid{"Human", human.text()}},
                                                 {"depth", 2},
                                                 {"chain", Value::set({Value(EntityUid{"Human", human.text()})})}});
  EXPECT_FALSE(allowed(check(request)));
}

TEST_P(AuthzContract, AForbidThatErrsDenies) {
  add("pay", "permit(principal, action, resource);");
  add("broken", "@oversight(\"x\") forbid(principal, action, resource) when { context.nothing };");
  const Decision decision = check(pay(1));
  ASSERT_TRUE(std::holds_alternative<Deny>(decision));
  EXPECT_EQ(std::get<Deny>(decision).policy, "broken");
  const Explanation why = authz->explain(ctx, pay(1));
  ASSERT_EQ(why.errors.size(), 1u);
  EXPECT_THAT(why.reasons, ::testing::ElementsAre("pay"));
}

TEST_P(AuthzContract, DeniesRequestsThatMakeNoSense) {
  add("all", "permit(principal, action, resource);");
  EXPECT_TRUE(allowed(check(pay(1))));
  auto request = pay(1);
  request.chain = {agent, human};
  EXPECT_FALSE(allowed(check(request))) << "a chain that ends with somebody else";
  request = pay(1);
  request.action = std::string(1'000, 'x');
  EXPECT_FALSE(allowed(check(request)));
  request = pay(1);
  request.resource.type = "no type";
  EXPECT_FALSE(allowed(check(request)));
  request = pay(1);
  request.override_token = "crov1.AAAA";
  EXPECT_FALSE(allowed(check(request)));
}

TEST_P(AuthzContract, DeniesAContextOver256KiB) {
  add("all", "permit(principal, action, resource) when { context.many.containsAll(context.others) };");
  const auto with = [&](std::int64_t count) {
    std::vector<Value> numbers;
    for (std::int64_t n = 0; n < count; ++n) numbers.emplace_back(n);
    auto request = pay(1);
    request.context = {{"many", Value::set(numbers)}, {"others", Value::set(std::move(numbers))}};
    return check(request);
  };
  // Two sets and their names take 42 bytes.
  const std::int64_t most = ((256 << 10) - 42) / 32;
  EXPECT_TRUE(allowed(with(most)));
  const Decision denied = with(most + 1);
  ASSERT_TRUE(std::holds_alternative<Deny>(denied));
  EXPECT_EQ(std::get<Deny>(denied).reason, "invalid request: the context is larger than 256 KiB");
  auto request = pay(1);
  request.context = {{"text", std::string(256 << 10, 'x')}};
  EXPECT_EQ(authz->filter_resources(ctx, {.request = request}).error().kind(), ErrorKind::invalid_input);
}

TEST_P(AuthzContract, ExtensionsRestrictInTheOrderOfPrecedence) {
  add_payment_policies();
  TestExtension quota("quota_enforcer", 100);
  TestExtension rate("rate", 50);
  quota.closed = true;
  ASSERT_TRUE(local->register_extension(quota));
  ASSERT_TRUE(local->register_extension(rate));
  EXPECT_FALSE(local->register_extension(rate));
  EXPECT_TRUE(allowed(check(pay(1))));
  EXPECT_TRUE(allowed(check(pay(1))));
  EXPECT_EQ(quota.calls, 2) << "on a hit too";

  rate.answer = [] { return std::optional<Decision>(RateLimited{seconds(3), 0}); };
  EXPECT_EQ(check(pay(1)), Decision(RateLimited{seconds(3), 0}));
  quota.answer = [] { return std::optional<Decision>(QuotaExceeded{"q", 3, 3, std::nullopt, "full"}); };
  const Decision over = check(pay(25'000));
  ASSERT_TRUE(std::holds_alternative<QuotaExceeded>(over)) << "over RateLimited and RequiresOversight";
  EXPECT_EQ(refusal(Product::runtime, over)->caused_by()->code(), "MT-429");

  rate.answer = [] { return Error(Product::platform, ErrorKind::internal, "broken"); };
  quota.answer = [] { return std::optional<Decision>(RequiresOversight{}); };
  EXPECT_EQ(check(pay(1)), Decision(RequiresOversight{})) << "also where it names nobody to ask";
  quota.answer = [] { return std::optional<Decision>(Allow{}); };
  EXPECT_TRUE(allowed(check(pay(1)))) << "a failing extension is passed over";
  EXPECT_FALSE(allowed(check(pay(25'000)))) << "and an Allow permits nothing";
  quota.answer = [] { return Error(Product::metering, ErrorKind::unavailable, "broken"); };
  EXPECT_TRUE(std::holds_alternative<Deny>(check(pay(1)))) << "but the quota enforcer's failure denies";
  stop();
}

TEST_P(AuthzContract, AnExtensionOverItsTimeHasFailedUnlessItObjects) {
  add_payment_policies();
  TestExtension slow("slow", 1);
  ASSERT_TRUE(local->register_extension(slow));
  slow.answer = [&] {
    clock.advance(slow.budget() + Nanos(1));
    return std::optional<Decision>();
  };
  EXPECT_TRUE(allowed(check(pay(1)))) << "passed over";
  slow.closed = true;
  const Decision denied = check(pay(1));
  ASSERT_TRUE(std::holds_alternative<Deny>(denied));
  EXPECT_TRUE(std::get<Deny>(denied).transient);
  slow.answer = [&] {
    clock.advance(slow.budget() + Nanos(1));
    return std::optional<Decision>(QuotaExceeded{"q", 3, 3, std::nullopt, "full"});
  };
  EXPECT_TRUE(std::holds_alternative<QuotaExceeded>(check(pay(1)))) << "an objection is one, however late";
  slow.answer = [&] {
    clock.advance(slow.budget());
    return std::optional<Decision>();
  };
  EXPECT_TRUE(allowed(check(pay(1)))) << "just in time";
  slow.answer = [] { return Error(Product::platform, ErrorKind::internal, "broken"); };
  EXPECT_FALSE(allowed(check(pay(1))));
  const auto extensions = authz->list_extensions(ctx).value();
  ASSERT_EQ(extensions.size(), 1u);
  EXPECT_EQ(extensions[0].name, "slow");
  EXPECT_EQ(extensions[0].budget, slow.budget());
  EXPECT_TRUE(extensions[0].denies_on_failure);
  EXPECT_EQ(extensions[0].calls, 5u);
  EXPECT_EQ(extensions[0].failures, 1u);
  EXPECT_EQ(extensions[0].late, 3u);
  stop();
}

TEST_P(AuthzContract, APermitWithARatePermitsSoOftenInAnySpan) {
  add("pay", "@rate(\"3/1m\") permit(principal, action, resource);");
  const auto once = [&] { return authz->admit(ctx, pay(1)); };
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(allowed(check(pay(1)))) << "to ask consumes nothing";
  EXPECT_TRUE(allowed(authz->check_batch(ctx, std::vector<CheckRequest>(5, pay(1))).back()));
  EXPECT_TRUE(allowed(once()));
  clock.advance(seconds(40));
  EXPECT_TRUE(allowed(once()));
  EXPECT_TRUE(allowed(once()));
  EXPECT_EQ(once(), Decision(RateLimited{seconds(20), 0}));
  EXPECT_EQ(check(pay(2)), Decision(RateLimited{seconds(20), 0})) << "whatever the arguments";
  EXPECT_EQ(authz->explain(ctx, pay(1)).decision, Decision(RateLimited{seconds(20), 0}));
  auto other = pay(1);
  other.principal = Identity::agent(ByteArray<32>{2});
  other.chain = {human, other.principal};
  EXPECT_TRUE(allowed(authz->admit(ctx, other))) << "each principal has a rate of his own";
  clock.advance(seconds(20));
  EXPECT_TRUE(allowed(once()));
  EXPECT_EQ(once(), Decision(RateLimited{seconds(40), 0})) << "the two of 20 seconds ago still count";
  EXPECT_EQ(refusal(Product::runtime, once())->kind(), ErrorKind::rate_limited);

  ASSERT_TRUE(
      authz->update_policy(ctx, "pay", "@rate(\"3/1m\") permit(principal, action, resource) when { true };", 0));
  EXPECT_FALSE(allowed(once())) << "a new text with the same rate goes on counting";
  ASSERT_TRUE(authz->update_policy(ctx, "pay", "@rate(\"4/1m\") permit(principal, action, resource);", 0));
  EXPECT_TRUE(allowed(once())) << "another rate begins anew";
}

TEST_P(AuthzContract, TheFirstPermitWithRoomCounts) {
  add("a", "@rate(\"1/1m\") permit(principal, action, resource);");
  add("b", "@rate(\"1/1h\") permit(principal, action, resource);");
  EXPECT_TRUE(allowed(authz->admit(ctx, pay(1))));
  EXPECT_TRUE(allowed(authz->admit(ctx, pay(1))));
  EXPECT_EQ(authz->admit(ctx, pay(1)), Decision(RateLimited{seconds(60), 0})) << "until the sooner of both";
  add("c", "permit(principal, action, resource) when { context.amount == 7 };");
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(allowed(authz->admit(ctx, pay(7)))) << "one without a rate suffices";
  EXPECT_FALSE(allowed(authz->admit(ctx, pay(1))));
}

TEST_P(AuthzContract, ARateByRootIsSharedByAllWhoActForIt) {
  add("pay", "@rate(\"1/1m\") @rate_by(\"root\") permit(principal, action, resource);");
  EXPECT_TRUE(allowed(authz->admit(ctx, pay(1))));
  auto other = pay(1);
  other.principal = Identity::agent(ByteArray<32>{2});
  other.chain = {human, agent, other.principal};
  EXPECT_FALSE(allowed(authz->admit(ctx, other)));
  other.chain = {Identity::human("eve@example.com").value(), other.principal};
  EXPECT_TRUE(allowed(authz->admit(ctx, other)));
}

TEST_P(AuthzContract, ARateStandsBetweenQuotaAndOversight) {
  add("pay", "@rate(\"1/1m\") permit(principal, action, resource);");
  add("large", "@oversight(\"large\") forbid(principal, action, resource) when { context.amount > 10 };");
  EXPECT_TRUE(std::holds_alternative<RequiresOversight>(authz->admit(ctx, pay(11))));
  EXPECT_TRUE(allowed(authz->admit(ctx, pay(1)))) << "what was not allowed did not count";
  EXPECT_TRUE(std::holds_alternative<RateLimited>(authz->admit(ctx, pay(11))));
  TestExtension quota("quota_enforcer", 100);
  quota.answer = [] { return std::optional<Decision>(QuotaExceeded{"q", 3, 3, std::nullopt, "full"}); };
  ASSERT_TRUE(local->register_extension(quota));
  EXPECT_TRUE(std::holds_alternative<QuotaExceeded>(authz->admit(ctx, pay(1))));
  stop();
}

TEST_P(AuthzContract, AMalformedRateIsRefusedWithItsPlace) {
  const auto refused = [&](const std::string& annotations) {
    auto done = authz->create_policy(ctx, "p", annotations + " permit(principal, action, resource);");
    return done ? "stored" : done.error().message();
  };
  EXPECT_EQ(refused("@rate(\"often\")").substr(0, 41), "line 1, column 7: `@rate`: \"often\" is not");
  for (const char* rate : {"", "/1m", "0/1m", "-1/1m", "10001/1m", "1", "1/", "1/soon", "1/0s", "1/1us", "1/32d",
                           "1/1m ", " 1/1m", "1.5/1m"}) {
    EXPECT_NE(refused(fmt::format("@rate(\"{}\")", rate)).find("line 1, column 7: `@rate`"), std::string::npos) << rate;
  }
  EXPECT_NE(refused("@rate"), "stored");
  EXPECT_NE(refused("@rate_by(\"root\")"), "stored");
  EXPECT_NE(refused("@rate(\"1/1m\") @rate_by(\"everybody\")").find("line 1, column 24"), std::string::npos);
  EXPECT_FALSE(authz->create_policy(ctx, "p", "@rate(\"1/1m\") forbid(principal, action, resource);"));
  EXPECT_TRUE(authz->list_policies(ctx, "", 10'000)->empty());
}

TEST_P(AuthzContract, ATokenLiftsTheNamedForbidForThisVeryAction) {
  add_payment_policies();
  auto request = pay(25'000);
  auto token = authz->issue_override(ctx, grant_for(request));
  ASSERT_TRUE(token) << token.error().to_string();
  EXPECT_EQ(*authz->issue_override(ctx, grant_for(request)), *token);
  request.override_token = *token;
  EXPECT_TRUE(allowed(check(request)));
  const auto verified = authz->verify_override(ctx, request);
  ASSERT_TRUE(verified);
  EXPECT_EQ(verified->request, approval);
  EXPECT_EQ(verified->expires_at, clock.now() + hours(1));
  EXPECT_EQ(verified->lifts, grant_for(request).lifts);
  EXPECT_THAT(authz->explain(ctx, request).lifted, ::testing::ElementsAre("large"));

  auto other = pay(25'001);
  other.override_token = *token;
  EXPECT_FALSE(allowed(check(other))) << "another amount";
  other = request;
  other.action = "payments.refund";
  EXPECT_FALSE(allowed(check(other)));
  other = request;
  other.resource.id = "other";
  EXPECT_FALSE(allowed(check(other)));
  other = request;
  other.principal = Identity::agent(ByteArray<32>{2});
  other.chain = {other.principal};
  EXPECT_FALSE(allowed(check(other)));
  for (std::size_t i = 0; i < token->size(); ++i) {
    other = request;
    other.override_token[i] = other.override_token[i] == 'A' ? 'B' : 'A';
    EXPECT_FALSE(allowed(check(other))) << "changed at " << i;
  }

  add("second", R"(@oversight("other") forbid(principal, action, resource);)");
  EXPECT_TRUE(std::holds_alternative<RequiresOversight>(check(request))) << "the rest is evaluated anew";
  ASSERT_TRUE(authz->delete_policy(ctx, "second"));
  ASSERT_TRUE(authz->update_policy(ctx, "large", "forbid(principal, action, resource);", 0));
  EXPECT_TRUE(std::holds_alternative<Deny>(check(request))) << "a forbid that asks nobody any more is not lifted";
}

TEST_P(AuthzContract, ATokenIsUsedByOneOperation) {
  add_payment_policies();
  auto request = pay(25'000);
  request.override_token = *authz->issue_override(ctx, grant_for(request));
  EXPECT_TRUE(*authz->is_override_open(ctx, approval));
  auto rolled_back = db->transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(authz->consume_override(tx, ctx, request, "op-0"));
    return Error(Product::runtime, ErrorKind::internal, "the operation failed");
  });
  EXPECT_FALSE(rolled_back);
  EXPECT_TRUE(consume(request, "op-1")) << "what was not committed used nothing up";
  EXPECT_TRUE(consume(request, "op-1")) << "the same operation may repeat";
  EXPECT_FALSE(*authz->is_override_open(ctx, approval));
  EXPECT_EQ(consume(request, "op-2").error().kind(), ErrorKind::permission_denied);
  auto other = request;
  other.arguments_hash[0] ^= 1;
  EXPECT_FALSE(consume(other, "op-1"));
  EXPECT_EQ(authz->revoke_override(ctx, approval).error().kind(), ErrorKind::conflict);
  clock.advance(hours(2));
  EXPECT_TRUE(consume(request, "op-1")) << "also after its time";
}

TEST_P(AuthzContract, ATokenEndsByTimeOrByWithdrawal) {
  add_payment_policies();
  auto request = pay(25'000);
  request.override_token = *authz->issue_override(ctx, grant_for(request));
  ASSERT_TRUE(authz->revoke_override(ctx, approval));
  EXPECT_FALSE(allowed(check(request)));
  EXPECT_EQ(consume(request, "op-1").error().kind(), ErrorKind::permission_denied);

  auto grant = grant_for(request);
  grant.request = RequestId::fresh(clock.now());
  request.override_token = *authz->issue_override(ctx, grant);
  EXPECT_TRUE(allowed(check(request)));
  clock.advance(hours(1));
  EXPECT_FALSE(allowed(check(request)));
  EXPECT_EQ(consume(request, "op-1").error().kind(), ErrorKind::expired);
  grant.expires_at = clock.now() + hours(24 * 31);
  EXPECT_FALSE(authz->issue_override(ctx, grant));
}

TEST_P(AuthzContract, ForgetsUsesAndWithdrawalsThatNoTokenOutlasts) {
  add_payment_policies();
  auto request = pay(25'000);
  request.override_token = *authz->issue_override(ctx, grant_for(request));
  ASSERT_TRUE(consume(request, "op-1"));
  const RequestId withdrawn = RequestId::fresh(clock.now());
  ASSERT_TRUE(authz->revoke_override(ctx, withdrawn));
  clock.advance(hours(24 * 59));
  ASSERT_TRUE(authz->revoke_override(ctx, RequestId::fresh(clock.now())));
  EXPECT_FALSE(*authz->is_override_open(ctx, approval));
  EXPECT_FALSE(*authz->is_override_open(ctx, withdrawn));
  clock.advance(hours(24 * 2));
  ASSERT_TRUE(authz->revoke_override(ctx, RequestId::fresh(clock.now())));
  EXPECT_TRUE(*authz->is_override_open(ctx, approval)) << "its row is gone";
  EXPECT_TRUE(*authz->is_override_open(ctx, withdrawn));
  EXPECT_EQ(consume(request, "op-2").error().kind(), ErrorKind::expired);
}

TEST_P(AuthzContract, OrganizationsShareNothing) {
  add("pay", "permit(principal, action, resource);");
  Context elsewhere = ctx;
  elsewhere.org = "elsewhere";
  const auto client = GetParam() == Where::grpc ? connect("elsewhere") : nullptr;
  Authz& theirs = client ? *client : *authz;
  EXPECT_FALSE(allowed(theirs.check(elsewhere, pay(1))));
  EXPECT_TRUE(theirs.list_policies(elsewhere, "", 1)->empty());
  auto request = pay(25'000);
  request.override_token = *theirs.issue_override(elsewhere, grant_for(request));
  EXPECT_FALSE(allowed(check(request))) << "nor their tokens";
}

TEST_P(AuthzContract, AnswersABatchInOrderAndRefusesTooLargeOnes) {
  add_payment_policies();
  const std::vector<CheckRequest> batch = {pay(1), pay(25'000), pay(2)};
  const auto decisions = authz->check_batch(ctx, batch);
  ASSERT_EQ(decisions.size(), 3u);
  EXPECT_TRUE(allowed(decisions[0]));
  EXPECT_TRUE(std::holds_alternative<RequiresOversight>(decisions[1]));
  const std::vector<CheckRequest> large(1'001, pay(1));
  for (const Decision& decision : authz->check_batch(ctx, large)) EXPECT_FALSE(allowed(decision));
}

}  // namespace
}  // namespace creto::authz
