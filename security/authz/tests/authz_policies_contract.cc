// What every Authz keeps: policies, links, versions and schemas.

#include "authz_contract.h"

namespace creto::authz {
namespace {

TEST_P(AuthzContract, ATemplateDecidesThroughItsLinks) {
  add("pay", R"(@id("pay") permit(principal == ?principal, action == Action::"payments.pay", resource == ?resource)
                  when { context.amount < 100 };)");
  EXPECT_FALSE(allowed(check(pay(1)))) << "a template alone decides nothing";
  const PolicyLink link{"pay-agent", "pay", entity_of(agent), EntityUid{"Ledger", "main"}};
  const auto made = authz->link_policy(ctx, link);
  ASSERT_TRUE(made) << made.error().to_string();
  EXPECT_EQ(made->version, 1);
  EXPECT_TRUE(allowed(check(pay(1))));
  EXPECT_FALSE(allowed(check(pay(100))));
  EXPECT_EQ(authz->explain(ctx, pay(1)).reasons, std::vector<PolicyId>{"pay-agent"});

  const auto links = authz->list_policy_links(ctx, "pay");
  ASSERT_TRUE(links);
  ASSERT_EQ(links->size(), 1u);
  EXPECT_EQ(links->at(0).id, "pay-agent");
  EXPECT_EQ(links->at(0).template_id, "pay");
  EXPECT_EQ(links->at(0).principal, link.principal);
  EXPECT_EQ(links->at(0).resource, link.resource);
  EXPECT_TRUE(authz->list_policy_links(ctx, "another")->empty());

  ASSERT_TRUE(authz->update_policy(ctx, "pay", R"(
      permit(principal == ?principal, action == Action::"payments.pay", resource == ?resource)
        when { context.amount < 1000 };)",
                                   0));
  EXPECT_TRUE(allowed(check(pay(100)))) << "the link changes with its template";

  stop();
  start();
  EXPECT_TRUE(allowed(check(pay(100)))) << "also after a restart";
  EXPECT_FALSE(allowed(check(pay(1000))));
  EXPECT_EQ(authz->delete_policy(ctx, "pay").error().kind(), ErrorKind::conflict);
  EXPECT_EQ(authz->unlink_policy(ctx, "pay").error().kind(), ErrorKind::not_found) << "it is no link";
  ASSERT_TRUE(authz->unlink_policy(ctx, "pay-agent"));
  EXPECT_FALSE(allowed(check(pay(1))));
  EXPECT_TRUE(authz->delete_policy(ctx, "pay"));
}

TEST_P(AuthzContract, RefusesALinkThatDoesNotFitItsTemplate) {
  add("pay", R"(permit(principal == ?principal, action, resource);)");
  add("plain", "permit(principal, action, resource) when { context has never };");
  const auto refusal = [&](const PolicyLink& link) {
    const auto made = authz->link_policy(ctx, link);
    return made ? "made" : std::string(made.error().message());
  };
  EXPECT_THAT(refusal({"l", "pay"}), ::testing::HasSubstr("nothing was given for it"));
  EXPECT_THAT(refusal({"l", "pay", entity_of(agent), EntityUid{"Ledger", "main"}}),
              ::testing::HasSubstr("no such slot"));
  EXPECT_THAT(refusal({"l", "nowhere", entity_of(agent)}), ::testing::HasSubstr("there is no template"));
  EXPECT_THAT(refusal({"l", "plain", entity_of(agent)}), ::testing::HasSubstr("is no template"));
  EXPECT_EQ(authz->link_policy(ctx, {"pay", "pay", entity_of(agent)}).error().kind(), ErrorKind::already_exists);
  EXPECT_EQ(authz->create_policy(ctx, "l", R"({"templateId": "pay", "newId": "l"})").error().kind(),
            ErrorKind::invalid_input);
  ASSERT_TRUE(authz->link_policy(ctx, {"l", "pay", entity_of(agent)}));
  EXPECT_TRUE(allowed(check(pay(1))));
  const auto changed = authz->update_policy(ctx, "pay", "permit(principal, action, resource == ?resource);", 0);
  ASSERT_FALSE(changed);
  EXPECT_THAT(std::string(changed.error().message()), ::testing::HasSubstr("policy `l`, a link of `pay`"));
  EXPECT_TRUE(allowed(check(pay(1)))) << "what is in force stays in force";
  const auto typed = authz->set_schema(ctx, R"(
      entity Ledger; action "payments.pay" appliesTo { principal: [Agent], resource: [Ledger],
        context: { amount: Long } };)");
  ASSERT_TRUE(typed) << typed.error().to_string();
  EXPECT_EQ(authz->link_policy(ctx, {"m", "pay", EntityUid{"Nobody", "x"}}).error().kind(), ErrorKind::invalid_input);
}

TEST_P(AuthzContract, TemplatesAndLinksAreAppliedAndRolledBackTogether) {
  const std::string link =
      R"({"newId":"a","templateId":"t","values":{"?principal":{"id":")" + agent.text() + R"(","type":"Agent"}}})";
  const auto apply = [&](std::vector<PolicyText> policies) {
    return authz->apply_policies(ctx, {.policies = std::move(policies), .folder = ""});
  };
  // The link comes before its template by id, not in order.
  const auto first = apply({{"a", link}, {"t", "permit(principal == ?principal, action, resource);"}});
  ASSERT_TRUE(first) << first.error().to_string();
  EXPECT_THAT(first->added, ::testing::ElementsAre("a", "t"));
  EXPECT_TRUE(allowed(check(pay(1))));
  EXPECT_EQ(apply({{"a", link}}).error().kind(), ErrorKind::invalid_input) << "without its template";
  const auto second = apply({{"a", link},
                             {"t", "forbid(principal == ?principal, action, resource);"},
                             {"z", "permit(principal, action, resource);"}});
  ASSERT_TRUE(second) << second.error().to_string();
  EXPECT_THAT(second->changed, ::testing::ElementsAre("t"));
  EXPECT_FALSE(allowed(check(pay(1))));
  ASSERT_TRUE(authz->roll_back_policies(ctx, first->version.version, 0));
  EXPECT_TRUE(allowed(check(pay(1))));
  EXPECT_EQ(authz->list_policy_links(ctx, "")->size(), 1u);
  ASSERT_TRUE(apply({}));
  EXPECT_TRUE(authz->list_policy_links(ctx, "")->empty());
}

TEST_P(AuthzContract, AChangeIsSeenByTheNextCheckAndSurvivesARestart) {
  add("pay", "permit(principal, action, resource);");
  EXPECT_TRUE(allowed(check(pay(1))));
  EXPECT_TRUE(allowed(check(pay(1)))) << "from the cache";
  ASSERT_TRUE(authz->update_policy(ctx, "pay", "permit(principal, action, resource) when { context.amount > 5 };", 1));
  EXPECT_FALSE(allowed(check(pay(1)))) << "a cached Allow does not outlive its policy";
  EXPECT_TRUE(allowed(check(pay(6))));
  stop();
  start();
  EXPECT_FALSE(allowed(check(pay(1))));
  EXPECT_TRUE(allowed(check(pay(6))));
  const auto policies = authz->list_policies(ctx, "", 10'000);
  ASSERT_EQ(policies->size(), 1u);
  EXPECT_EQ(policies->front().version, 2);
  EXPECT_EQ(policies->front().updated_by, "service:test");
  ASSERT_TRUE(authz->delete_policy(ctx, "pay"));
  EXPECT_FALSE(allowed(check(pay(6))));
  EXPECT_EQ(authz->delete_policy(ctx, "pay").error().kind(), ErrorKind::not_found);
}

TEST_P(AuthzContract, ABadPolicyReplacesNothing) {
  add("pay", "permit(principal, action, resource);");
  const auto refused = [&](std::string text) {
    auto done = authz->update_policy(ctx, "pay", std::move(text), 0);
    EXPECT_FALSE(done);
    return done ? std::string() : done.error().message();
  };
  EXPECT_EQ(refused("permit(principal, action, resource) when { ] };"),
            "line 1, column 44: found `]`, expected an expression");
  EXPECT_NE(refused(""), "");
  EXPECT_NE(refused("permit(principal,action,resource); permit(principal,action,resource);"), "");
  EXPECT_NE(refused("@id(\"other\") permit(principal,action,resource);"), "");
  EXPECT_NE(refused("@oversight(\"x\") permit(principal,action,resource);"), "") << "oversight lifts forbids";
  EXPECT_NE(refused("@timeout(\"2h\") forbid(principal,action,resource);"), "");
  EXPECT_NE(refused("@oversight(\"x\") @timeout(\"soon\") forbid(principal,action,resource);"), "");
  EXPECT_TRUE(allowed(check(pay(1))));
  EXPECT_EQ(authz->create_policy(ctx, "pay", "permit(principal,action,resource);").error().kind(),
            ErrorKind::already_exists);
  EXPECT_EQ(authz->update_policy(ctx, "pay", "permit(principal,action,resource);", 7).error().kind(),
            ErrorKind::conflict);
  EXPECT_EQ(authz->update_policy(ctx, "none", "permit(principal,action,resource);", 0).error().kind(),
            ErrorKind::not_found);
  EXPECT_FALSE(authz->create_policy(ctx, "", "permit(principal,action,resource);"));
  EXPECT_FALSE(authz->create_policy(ctx, "team/repay", "@id(\"pay\") permit(principal,action,resource);"));
  EXPECT_TRUE(authz->create_policy(ctx, "team/pay", "@id(\"pay\") permit(principal,action,resource);"))
      << "so a file's name for it holds in whatever folder it is put";
}

TEST_P(AuthzContract, EveryChangeOfPoliciesIsAVersionThatCanBeReadAgain) {
  EXPECT_TRUE(authz->list_policy_versions(ctx, 0, 10)->empty());
  EXPECT_TRUE(authz->get_policy_version(ctx, 0)->policies.empty());
  add("pay", "permit(principal, action, resource);");
  ASSERT_TRUE(authz->put_entities(ctx, {{{"Group", "a"}, {}, {}, {}}}, false));
  add("other", "forbid(principal, action, resource) when { false };");
  const std::string text = "permit(principal, action, resource) when { true };";
  ASSERT_TRUE(authz->update_policy(ctx, "pay", text, 0));
  ASSERT_TRUE(authz->delete_policy(ctx, "other"));
  const auto check_history = [&] {
    const auto versions = authz->list_policy_versions(ctx, 0, 10).value();
    ASSERT_EQ(versions.size(), 4u);
    EXPECT_EQ(versions[0].what, "policy_deleted");
    EXPECT_EQ(versions[1].what, "policy_updated");
    EXPECT_EQ(versions[3].what, "policy_created");
    EXPECT_EQ(versions[3].made_by, "service:test");
    EXPECT_EQ(versions[2].version, versions[3].version + 2) << "entities have used a number up";
    EXPECT_EQ(versions[0].policies, 1);
    EXPECT_EQ(versions[1].policies, 2);
    EXPECT_NE(versions[0].hash, versions[1].hash);
    EXPECT_EQ(authz->list_policy_versions(ctx, versions[1].version, 1)->at(0).version, versions[2].version);

    const VersionedPolicies third = authz->get_policy_version(ctx, versions[1].version).value();
    ASSERT_EQ(third.policies.size(), 2u);
    EXPECT_EQ(third.policies[0].id, "other");
    EXPECT_EQ(third.policies[1].text, text);
    EXPECT_EQ(third.policies[1].version, 2);
    const VersionedPolicies between = authz->get_policy_version(ctx, versions[3].version + 1).value();
    EXPECT_EQ(between.version.version, versions[3].version) << "a snapshot of entities has the policies before it";
    ASSERT_EQ(between.policies.size(), 1u);
    EXPECT_EQ(between.policies[0].version, 1);
    EXPECT_EQ(authz->get_policy_version(ctx, 0)->policies.size(), 1u);
    EXPECT_EQ(authz->explain(ctx, pay(1)).snapshot, versions[0].version);

    const auto differences = authz->diff_policy_versions(ctx, versions[3].version, 0).value();
    ASSERT_EQ(differences.size(), 1u);
    EXPECT_EQ(differences[0].id, "pay");
    EXPECT_EQ(differences[0].after, text);
    const auto gone = authz->diff_policy_versions(ctx, versions[2].version, versions[0].version).value();
    ASSERT_EQ(gone.size(), 2u);
    EXPECT_EQ(gone[0].id, "other");
    EXPECT_EQ(gone[0].after, "");
    EXPECT_EQ(authz->get_policy_version(ctx, versions[0].version + 1).error().kind(), ErrorKind::not_found);
    EXPECT_EQ(authz->get_policy_version(ctx, -1).error().kind(), ErrorKind::not_found);
  };
  check_history();
  stop();
  start();
  check_history();
  EXPECT_FALSE(authz->list_policy_versions(ctx, 0, 0));
  EXPECT_FALSE(authz->list_policy_versions(ctx, 0, 1'001));
}

TEST_P(AuthzContract, RollsBackToAnOldVersionByMakingANewOne) {
  add("pay", "permit(principal, action, resource);");
  add("stays", "permit(principal, action, resource) when { false };");
  const PolicyVersion good = authz->list_policy_versions(ctx, 0, 1)->at(0);
  ASSERT_TRUE(authz->update_policy(ctx, "pay", "forbid(principal, action, resource);", 0));
  add("new", "forbid(principal, action, resource);");
  EXPECT_FALSE(allowed(check(pay(1))));
  const PolicyVersion bad = authz->list_policy_versions(ctx, 0, 1)->at(0);
  EXPECT_EQ(authz->roll_back_policies(ctx, good.version, good.version).error().kind(), ErrorKind::conflict);
  EXPECT_EQ(authz->roll_back_policies(ctx, bad.version + 1, 0).error().kind(), ErrorKind::not_found);
  EXPECT_FALSE(allowed(check(pay(1))));
  Context keyed = ctx;
  keyed.idempotency_key = "back";
  const auto back = authz->roll_back_policies(keyed, good.version, bad.version);
  ASSERT_TRUE(back) << back.error().to_string();
  EXPECT_EQ(authz->roll_back_policies(keyed, good.version, bad.version)->version, back->version) << "once per key";
  EXPECT_GT(back->version, bad.version);
  EXPECT_EQ(back->hash, good.hash);
  EXPECT_EQ(back->changed, 1);
  EXPECT_EQ(back->removed, 1);
  EXPECT_TRUE(allowed(check(pay(1))));
  const auto policies = authz->list_policies(ctx, "", 10'000).value();
  ASSERT_EQ(policies.size(), 2u);
  EXPECT_EQ(policies[0].version, 3);
  EXPECT_EQ(policies[1].version, 1) << "what stayed as it was has no new version";
  ASSERT_TRUE(authz->roll_back_policies(ctx, bad.version, 0)) << "and forward again";
  EXPECT_FALSE(allowed(check(pay(1))));
}

TEST_P(AuthzContract, WhatWasStoredBeforeThereWasAHistoryIsItsFirstVersion) {
  add("pay", "permit(principal, action, resource);");
  const PolicyVersion known = authz->list_policy_versions(ctx, 0, 1)->at(0);
  ASSERT_TRUE(db->transaction(ctx, [](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("DELETE FROM authz_policy_versions"));
    CRETO_TRY(tx.exec("UPDATE authz_policies SET since = 0"));
    return {};
  }));
  stop();
  start();
  const auto versions = authz->list_policy_versions(ctx, 0, 10).value();
  ASSERT_EQ(versions.size(), 1u);
  EXPECT_EQ(versions[0].what, "policies_found");
  EXPECT_EQ(versions[0].version, known.version);
  EXPECT_EQ(versions[0].hash, known.hash);
  ASSERT_TRUE(authz->delete_policy(ctx, "pay"));
  ASSERT_TRUE(authz->roll_back_policies(ctx, known.version, 0));
  EXPECT_TRUE(allowed(check(pay(1))));
}

TEST_P(AuthzContract, TakesOverWhatAnotherProcessChangedBeforeItChangesAnything) {
  const auto other = create_authz(*db, clock, no_telemetry(), {&source}, Secret(Bytes(32, 7)), options).value();
  add("pay", "permit(principal, action, resource);");
  EXPECT_FALSE(allowed(other->check(ctx, pay(1)))) << "it has not looked yet";
  ASSERT_TRUE(other->create_policy(ctx, "large", "forbid(principal, action, resource) when { context.amount > 5 };"));
  EXPECT_TRUE(allowed(other->check(ctx, pay(1))));
  EXPECT_TRUE(allowed(check(pay(6)))) << "nor has the first one";
  ASSERT_TRUE(authz->put_entities(ctx, {{{"Group", "a"}, {}, {}, {}}}, false));
  EXPECT_FALSE(allowed(check(pay(6))));
  const auto versions = authz->list_policy_versions(ctx, 0, 10).value();
  ASSERT_EQ(versions.size(), 2u);
  EXPECT_EQ(versions[0].policies, 2);
  ASSERT_TRUE(other->refresh(ctx));
  EXPECT_EQ(other->list_entities(ctx, {}, 100'000)->size(), 1u);
}

TEST_P(AuthzContract, DeniesWhereItCouldNotLookForOthersChangesForTooLong) {
  stop();
  options.fresh_for = seconds(30);
  start();
  add("pay", "permit(principal, action, resource);");
  EXPECT_TRUE(allowed(check(pay(1))));
  clock.advance(seconds(31));
  for (const std::int64_t amount : {1, 2}) {
    const Decision decision = check(pay(amount));
    ASSERT_TRUE(std::holds_alternative<Deny>(decision)) << "cached or not: " << amount;
    EXPECT_TRUE(std::get<Deny>(decision).transient);
  }
  EXPECT_EQ(authz->filter_resources(ctx, {.request = pay(1)}).error().kind(), ErrorKind::unavailable);
  const auto rename = [&](const char* from, const char* to) {
    ASSERT_TRUE(db->transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec(fmt::format("ALTER TABLE {} RENAME TO {}", from, to)));
      return {};
    }));
  };
  rename("authz_versions", "authz_hidden");
  EXPECT_FALSE(local->refresh(ctx));
  EXPECT_FALSE(allowed(check(pay(1))));
  rename("authz_hidden", "authz_versions");
  ASSERT_TRUE(local->refresh(ctx));
  EXPECT_TRUE(allowed(check(pay(1))));
  clock.advance(seconds(30));
  EXPECT_TRUE(allowed(check(pay(1))));
}

TEST_P(AuthzContract, KeepsSoManyVersionsAndNoMore) {
  stop();
  options.versions_kept = 3;
  start();
  add("pay", "permit(principal, action, resource) when { context.amount == 0 };");
  const std::int64_t first = authz->list_policy_versions(ctx, 0, 1)->at(0).version;
  for (int i = 1; i < 6; ++i)
    ASSERT_TRUE(authz->update_policy(
        ctx, "pay", fmt::format("permit(principal, action, resource) when {{ context.amount == {} }};", i), 0));
  const auto versions = authz->list_policy_versions(ctx, 0, 10).value();
  ASSERT_EQ(versions.size(), 3u);
  EXPECT_EQ(authz->get_policy_version(ctx, first).error().kind(), ErrorKind::not_found);
  EXPECT_NE(authz->get_policy_version(ctx, versions[2].version)->policies[0].text.find("== 3"), std::string::npos);
  ASSERT_TRUE(authz->roll_back_policies(ctx, versions[2].version, 0));
  EXPECT_TRUE(allowed(check(pay(3))));
}

TEST_P(AuthzContract, AppliesManyPoliciesInOneStepOrNone) {
  add("old", "permit(principal, action, resource);");
  add("same", "permit(principal, action, resource) when { false };");
  const std::int64_t before = authz->list_policy_versions(ctx, 0, 1)->at(0).version;
  PolicyApplication next{.policies = {{"same", "permit(principal, action, resource) when { false };"},
                                      {"new", "permit(principal, action, resource) when { context.amount == 2 };"},
                                      {"bad", "permit(principal, action, resource) when { ] };"}},
                         .folder = "",
                         .expected_version = before,
                         .dry_run = false};
  const auto refused = authz->apply_policies(ctx, next);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message(), "policy `bad`: line 1, column 44: found `]`, expected an expression");
  next.policies.push_back({"worse", "permit(principal, action resource) when { ] };"});
  const std::string both = authz->apply_policies(ctx, next).error().message();
  EXPECT_THAT(both, ::testing::AllOf(::testing::HasSubstr("policy `bad`: line 1"),
                                     ::testing::HasSubstr("\npolicy `worse`: line 1")));
  next.policies.pop_back();
  EXPECT_TRUE(allowed(check(pay(1)))) << "a bad set never replaces a good one";
  next.policies.pop_back();
  next.dry_run = true;
  const auto plan = authz->apply_policies(ctx, next);
  ASSERT_TRUE(plan) << plan.error().to_string();
  EXPECT_THAT(plan->added, ::testing::ElementsAre("new"));
  EXPECT_THAT(plan->removed, ::testing::ElementsAre("old"));
  EXPECT_TRUE(plan->changed.empty());
  EXPECT_TRUE(allowed(check(pay(1))));
  next.dry_run = false;
  const auto done = authz->apply_policies(ctx, next);
  ASSERT_TRUE(done) << done.error().to_string();
  EXPECT_EQ(done->version.version, before + 1);
  EXPECT_EQ(done->version.policies, 2);
  EXPECT_FALSE(allowed(check(pay(1))));
  EXPECT_TRUE(allowed(check(pay(2))));
  EXPECT_EQ(authz->apply_policies(ctx, next).error().kind(), ErrorKind::conflict);
  next.expected_version = 0;
  EXPECT_EQ(authz->apply_policies(ctx, next)->version.version, before + 1) << "nothing to do makes no version";

  PolicyApplication folder{
      .policies = {{"team/a", "permit(principal, action, resource) when { context.amount == 5 };"}},
      .folder = "team",
      .expected_version = 0,
      .dry_run = false};
  ASSERT_TRUE(authz->apply_policies(ctx, folder));
  folder.policies = {{"team/b", "permit(principal, action, resource) when { context.amount == 6 };"}};
  const auto moved = authz->apply_policies(ctx, folder).value();
  EXPECT_THAT(moved.removed, ::testing::ElementsAre("team/a"));
  EXPECT_TRUE(allowed(check(pay(2)))) << "what is in no such folder stays";
  EXPECT_FALSE(allowed(check(pay(5))));
  EXPECT_TRUE(allowed(check(pay(6))));
  folder.policies = {{"teams/b", "permit(principal, action, resource);"}};
  EXPECT_EQ(authz->apply_policies(ctx, folder).error().kind(), ErrorKind::invalid_input);
  folder.policies = {{"team/b", "permit(principal, action, resource);"},
                     {"team/b", "permit(principal, action, resource);"}};
  EXPECT_EQ(authz->apply_policies(ctx, folder).error().kind(), ErrorKind::invalid_input);
}

TEST_P(AuthzContract, WarnsOfAnOversightThatIsNeverReached) {
  const auto warnings = [&](const PolicyId& id, std::string text) {
    return authz->create_policy(ctx, id, std::move(text)).value().warnings;
  };
  EXPECT_TRUE(warnings("all", "permit(principal, action, resource);").empty());
  EXPECT_TRUE(
      warnings("large", R"(@oversight("large") forbid(principal is Agent, action == Action::"payments.pay", resource)
                                   when { context.amount > 5 };)")
          .empty());
  EXPECT_TRUE(warnings("elsewhere", R"(forbid(principal is Human, action, resource);)").empty());
  EXPECT_TRUE(
      warnings("sometimes", R"(forbid(principal is Agent, action, resource) when { context.amount > 50 };)").empty());
  EXPECT_THAT(warnings("none", R"(forbid(principal is Agent, action, resource);)"),
              ::testing::ElementsAre("the oversight of `large` is never reached: `none` forbids all of it"));
  ASSERT_TRUE(authz->delete_policy(ctx, "none"));
  EXPECT_THAT(warnings("just so", R"(forbid(principal, action, resource) when { context.amount > 5 };)").size(), 1u);
  EXPECT_THAT(warnings("second", R"(@oversight("x") forbid(principal == Agent::"a", action, resource)
                                    when { true } when { context.amount > 5 };)"),
              ::testing::ElementsAre("the oversight of `second` is never reached: `just so` forbids all of it"));
}

TEST_P(AuthzContract, ASchemaKnowsWhatProductsOwnUnlessItGivesTheNameToSomethingElse) {
  const auto known = authz->set_schema(ctx, R"(
      action keep appliesTo { principal: [Agent], resource: [Object, Secret], context: {} };)");
  ASSERT_TRUE(known) << known.error().to_string();
  add("own", R"(permit(principal, action == Action::"keep", resource is Object)
                  when { resource in principal && resource.classification == "artifact" };)");
  const auto wrong = authz->create_policy(
      ctx, "wrong",
      R"(permit(principal, action == Action::"keep", resource is Secret) when { resource.value == "" };)");
  ASSERT_FALSE(wrong);
  EXPECT_THAT(std::string(wrong.error().message()), ::testing::HasSubstr("value"));
  ASSERT_TRUE(authz->delete_policy(ctx, "own"));

  const auto own = authz->set_schema(ctx, R"(
      type Secret = String;
      namespace Shop {
        entity Bucket;
        entity Subscription in Bucket { kind: Secret };
        action buy appliesTo { principal: Agent, resource: [Subscription, Object], context: {} };
      })");
  EXPECT_TRUE(own) << own.error().to_string();
}

TEST_P(AuthzContract, WithASchemaWhatDoesNotFitIsRefused) {
  const std::string schema = R"(entity Ledger; entity Group;
    action "payments";
    action "payments.pay" in ["payments"] appliesTo { principal: [Agent], resource: [Ledger], context: { amount: Long } };)";
  add("pay", R"(permit(principal is Agent, action in Action::"payments", resource) when { context.amount > 0 };)");
  add("services", "permit(principal is Service, action, resource);");
  EXPECT_FALSE(allowed(check(pay(1)))) << "the group of actions is not stored";
  EXPECT_EQ(authz->get_schema(ctx)->text, "");
  const auto refused = authz->set_schema(ctx, "entity Ledger; entity Ledger; action;");
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message().find("line 1, column"), std::string::npos) << refused.error().message();
  const auto set = authz->set_schema(ctx, schema);
  ASSERT_TRUE(set) << set.error().to_string();
  EXPECT_EQ(set->updated_by, "service:test");
  EXPECT_EQ(authz->list_policy_versions(ctx, 0, 1)->at(0).what, "schema_set");
  EXPECT_TRUE(allowed(check(pay(1)))) << "the schema's groups of actions count";
  EXPECT_TRUE(authz->list_entities(ctx, {}, 100'000)->empty()) << "but nobody stored them";

  const auto bad = authz->create_policy(
      ctx, "typo",
      R"(permit(principal is Agent, action == Action::"payments.pay", resource) when { context.amont > 0 };)");
  ASSERT_FALSE(bad);
  EXPECT_NE(bad.error().message().find("line 1, column"), std::string::npos);
  EXPECT_NE(bad.error().message().find("amount"), std::string::npos)
      << "says what was meant: " << bad.error().message();
  const auto never = authz->create_policy(
      ctx, "never", R"(permit(principal is Agent, action == Action::"payments.pay", resource) when { false };)");
  ASSERT_TRUE(never);
  EXPECT_THAT(
      never->warnings,
      ::testing::ElementsAre(::testing::HasSubstr("policy `never`: line 1, column 1: this policy can never apply")));
  ASSERT_TRUE(authz->delete_policy(ctx, "never"));
  auto request = pay(1);
  request.context = {{"amount", "one"}};
  EXPECT_FALSE(allowed(check(request)));
  request = pay(1);
  request.context.emplace_back("more", 1);
  EXPECT_FALSE(allowed(check(request)));
  request = pay(1);
  request.resource = {"Group", "a"};
  EXPECT_FALSE(allowed(check(request)));
  EXPECT_FALSE(authz->put_entities(ctx, {{{"Ledger", "main"}, {{"color", "red"}}, {}, {}}}, false));
  EXPECT_TRUE(authz->put_entities(ctx, {{{"Ledger", "main"}, {}, {}, {}}, {{"Other", "x"}, {{"color", "red"}}, {}, {}}},
                                  false));
  ASSERT_TRUE(authz->delete_entities(ctx, {{"Action", "payments.pay"}})) << "the schema's own stay";
  EXPECT_TRUE(allowed(check(pay(1))));

  const auto misfit = authz->set_schema(
      ctx, "entity Ledger; action \"payments.pay\" appliesTo { principal: [Agent], resource: [Ledger] };");
  ASSERT_FALSE(misfit);
  EXPECT_NE(misfit.error().message().find("policy `pay`"), std::string::npos) << misfit.error().message();
  stop();
  start();
  EXPECT_EQ(authz->get_schema(ctx)->text, schema);
  EXPECT_TRUE(allowed(check(pay(1))));

  const std::int64_t with_schema = authz->list_policy_versions(ctx, 0, 1)->at(0).version;
  ASSERT_TRUE(authz->set_schema(ctx, ""));
  EXPECT_FALSE(allowed(check(pay(1))));
  EXPECT_EQ(authz->get_policy_version(ctx, with_schema)->schema, schema);
  ASSERT_TRUE(authz->roll_back_policies(ctx, with_schema, 0));
  EXPECT_EQ(authz->get_schema(ctx)->text, schema) << "a schema belongs to its version";
  EXPECT_TRUE(allowed(check(pay(1))));
}

}  // namespace
}  // namespace creto::authz
