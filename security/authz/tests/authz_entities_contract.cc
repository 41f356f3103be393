// What every Authz keeps: entities, whoever they come from, and which resources are open to somebody.

#include <atomic>
#include <latch>
#include <thread>

#include "authz_contract.h"
#include "creto/io/telemetry.h"

namespace creto::authz {
namespace {

/// Owns sandboxes.
class TestProduct final : public ResourceSource {
 public:
  std::vector<std::string> types() const override { return {"Sandbox"}; }
  Result<std::optional<Entity>> find(const Context& ctx, const EntityUid& uid) const override {
    ++asked;
    deadline = ctx.deadline;
    answer_slowly();
    if (failing) return Error(Product::runtime, ErrorKind::unavailable, "the database is down");
    if (!owner) return std::optional<Entity>();
    return std::optional(Entity{uid, {{"owner", entity_of(*owner)}}, {}, {entity_of(*owner)}});
  }
  Nanos budget() const override { return patience; }
  std::optional<Identity> owner;
  bool failing = false;
  Nanos patience = seconds(10);
  std::function<void()> answer_slowly = [] {};
  mutable std::atomic<int> asked = 0;
  mutable std::atomic<Monotonic> deadline{};
};

TEST_P(AuthzContract, AsksAProductAtEachCheckWhatItsResourceIs) {
  TestProduct product;
  product.owner = agent;
  ASSERT_TRUE(local->register_source(product));
  EXPECT_EQ(local->register_source(product).error().kind(), ErrorKind::already_exists);
  add("own", R"(permit(principal, action == Action::"sandbox.exec", resource is Sandbox)
                  when { resource.owner == principal && resource in principal };)");
  CheckRequest request = pay(1);
  request.action = "sandbox.exec";
  request.resource = {"Sandbox", "sbx-1"};
  EXPECT_EQ(check(request), Decision(Allow{}));
  EXPECT_EQ(check(request), Decision(Allow{}));
  EXPECT_EQ(product.asked, 2) << "what a product said a moment ago is no answer";
  EXPECT_EQ(product.deadline.load(), clock.monotonic() + product.budget());
  EXPECT_EQ(authz->get_entity(ctx, request.resource)->entity.attributes.at(0).second, Value(entity_of(agent)));

  product.owner = human;
  EXPECT_TRUE(std::holds_alternative<Deny>(check(request))) << "it belongs to somebody else now";
  product.owner.reset();
  EXPECT_TRUE(std::holds_alternative<Deny>(check(request))) << "it is gone";
  EXPECT_EQ(authz->get_entity(ctx, request.resource).error().kind(), ErrorKind::not_found);
}

TEST_P(AuthzContract, AProductThatFailsOrTakesTooLongDenies) {
  TestProduct product;
  product.owner = agent;
  ASSERT_TRUE(local->register_source(product));
  add("all", R"(permit(principal, action, resource);)");
  add("stopped", R"(forbid(principal, action == Action::"sandbox.exec", resource) unless { resource has owner };)");
  CheckRequest request = pay(1);
  EXPECT_EQ(check(request), Decision(Allow{}));
  request.resource = {"Sandbox", "sbx-1"};
  EXPECT_EQ(check(request), Decision(Allow{}));
  EXPECT_EQ(product.asked, 0) << "no policy wants to know";
  request.action = "sandbox.exec";
  EXPECT_EQ(check(request), Decision(Allow{}));

  const auto denied_for_trouble = [&] {
    const Decision decision = check(request);
    return std::holds_alternative<Deny>(decision) && std::get<Deny>(decision).transient;
  };
  product.failing = true;
  EXPECT_TRUE(denied_for_trouble());
  product.failing = false;
  product.answer_slowly = [&] { clock.advance(product.budget() + Nanos(1)); };
  EXPECT_TRUE(denied_for_trouble());
}

TEST_P(AuthzContract, WhileAProductThinksOthersAreAnswered) {
  constexpr std::ptrdiff_t held = 32;  // more than a transport has threads, or a dispatcher workers
  TestProduct product;
  product.patience = std::chrono::minutes(1);
  product.owner = agent;
  ASSERT_TRUE(local->register_source(product));
  add("pay", R"(permit(principal, action == Action::"payments.pay", resource is Ledger);)");
  add("own", R"(permit(principal, action, resource is Sandbox) when { resource.owner == principal };)");
  std::latch asked(1), others_are_answered(1);
  std::atomic<std::ptrdiff_t> asking = 0;
  product.answer_slowly = [&] {
    if (++asking == 1) asked.count_down();
    others_are_answered.wait();
  };
  std::vector<std::jthread> waiting;
  std::atomic<int> permitted = 0;
  for (std::ptrdiff_t i = 0; i < held; ++i) {
    waiting.emplace_back([&] {
      CheckRequest request = pay(1);
      request.resource = {"Sandbox", "sbx-1"};
      if (check(request) == Decision(Allow{})) ++permitted;
    });
  }
  asked.wait();
  for (int i = 0; i < 100; ++i) EXPECT_EQ(check(pay(i)), Decision(Allow{}));
  EXPECT_EQ(permitted, 0);
  others_are_answered.count_down();
  waiting.clear();
  EXPECT_EQ(permitted, held);
}

TEST_P(AuthzContract, AProductThatNeverAnswersDeniesItsOwnAndHoldsUpNobody) {
  const auto told = ExportedTelemetry::create({.level = LogLevel::error, .sink = [](std::string_view) {}}, clock);
  stop();
  telemetry = told.get();
  start();
  TestProduct product;
  product.owner = agent;
  product.patience = std::chrono::milliseconds(20);
  ASSERT_TRUE(local->register_source(product));
  add("pay", R"(permit(principal, action == Action::"payments.pay", resource is Ledger);)");
  add("own", R"(permit(principal, action, resource is Sandbox) when { resource.owner == principal };)");
  CheckRequest request = pay(1);
  request.resource = {"Sandbox", "sbx-1"};
  std::latch end(1);
  product.answer_slowly = [&] { end.wait(); };
  for (int i = 0; i < 20; ++i) {
    const Decision decision = check(request);
    ASSERT_TRUE(std::holds_alternative<Deny>(decision));
    EXPECT_TRUE(std::get<Deny>(decision).transient);
    EXPECT_EQ(check(pay(i)), Decision(Allow{}));
  }
  const int asked = product.asked;
  EXPECT_GE(asked, 1);
  EXPECT_LT(asked, 20) << "who answers nobody is not asked any more";
  EXPECT_THAT(
      told->metrics(),
      ::testing::AllOf(
          ::testing::HasSubstr(fmt::format("authz_resource_late_total{{type=\"Sandbox\"}} {}", asked)),
          ::testing::HasSubstr(fmt::format("authz_resource_unasked_total{{type=\"Sandbox\"}} {}", 20 - asked))));
  end.count_down();
  stop();  // waits for it
}

TEST_P(AuthzContract, TellsWhichResourcesAreOpenToSomebody) {
  add("owners", R"(permit(principal, action == Action::"documents.read", resource is Document)
                     when { resource.owner == principal || resource in Folder::"public" };)");
  add("secret", R"(@oversight("secrets") forbid(principal, action == Action::"documents.read", resource)
                     when { resource.level > context.cleared };)");
  const auto document = [](const std::string& id, Value owner, std::int64_t level, std::vector<EntityUid> parents) {
    return Entity{{"Document", id}, {{"owner", std::move(owner)}, {"level", level}}, {}, std::move(parents)};
  };
  const Value mine(EntityUid{"Agent", agent.text()});
  const Value others(EntityUid{"Human", "somebody"});
  ASSERT_TRUE(authz->put_entities(ctx,
                                  {document("a-mine", mine, 1, {}),
                                   document("b-secret", mine, 9, {}),
                                   document("c-others", others, 1, {}),
                                   document("d-public", others, 1, {{"Folder", "public"}}),
                                   document("e-mine", mine, 2, {}),
                                   {{"Document", "f-erring"}, {{"owner", mine}}, {}, {}},
                                   {{"Folder", "public"}, {}, {}, {}}},
                                  false));
  CheckRequest request = pay(1);
  request.action = "documents.read";
  request.resource = {"Document", ""};
  request.context = {{"cleared", std::int64_t{5}}};

  const auto all = authz->filter_resources(ctx, {.request = request});
  ASSERT_TRUE(all) << all.error().to_string();
  EXPECT_EQ(all->kind, ResourceFilter::Kind::some);
  EXPECT_THAT(all->resources, ::testing::ElementsAre("a-mine", "d-public", "e-mine"));
  EXPECT_FALSE(all->more);
  EXPECT_GT(all->snapshot, 0);
  EXPECT_THAT(all->residual, ::testing::HasSubstr("resource.level > 5"));
  EXPECT_THAT(all->residual_json, ::testing::HasSubstr("\"secret\""));
  EXPECT_EQ(all->where, "");
  for (const std::string id : {"a-mine", "b-secret", "c-others", "d-public", "e-mine", "f-erring"}) {
    CheckRequest one = request;
    one.resource.id = id;
    EXPECT_EQ(allowed(check(one)), std::ranges::find(all->resources, id) != all->resources.end()) << id;
  }

  const auto first = authz->filter_resources(ctx, {.request = request, .limit = 2});
  EXPECT_THAT(first->resources, ::testing::ElementsAre("a-mine", "d-public"));
  EXPECT_TRUE(first->more);
  const auto rest = authz->filter_resources(ctx, {.request = request, .limit = 2, .after = "d-public"});
  EXPECT_THAT(rest->resources, ::testing::ElementsAre("e-mine"));
  EXPECT_FALSE(rest->more);

  const std::string columns = R"({"schema_version": 1, "id": "id", "attributes": {
      "owner": {"column": "owner", "type": "entity", "entity": "Agent"},
      "level": {"column": "level", "type": "long", "nullable": false}},
      "ancestors": {"Document": {"Folder": {"column": "folder"}}}})";
  const auto sql = authz->filter_resources(ctx, {.request = request, .limit = 0, .columns = columns});
  ASSERT_TRUE(sql) << sql.error().to_string();
  EXPECT_TRUE(sql->resources.empty());
  EXPECT_THAT(sql->where, ::testing::AllOf(::testing::HasSubstr("level"), ::testing::HasSubstr("folder")));
  EXPECT_THAT(sql->parameters, ::testing::Contains(std::variant<std::int64_t, std::string>(std::int64_t{5})));
  EXPECT_THAT(sql->parameters, ::testing::Contains(std::variant<std::int64_t, std::string>(std::string("public"))));
}

TEST_P(AuthzContract, PagesOfResourcesHaveEachOnceAndSeeWhatCameAndWent) {
  add("even", R"(permit(principal, action == Action::"documents.read", resource is Document) when { resource.even };)");
  const auto id_of = [](int i) { return "d" + std::to_string(10'000 + i); };
  std::vector<Entity> documents;
  for (int i = 0; i < 700; ++i) documents.push_back({{"Document", id_of(i)}, {{"even", i % 2 == 0}}, {}, {}});
  ASSERT_TRUE(authz->put_entities(ctx, documents, false));
  ASSERT_TRUE(authz->put_entities(ctx, {{{"Other", id_of(0)}, {{"even", true}}, {}, {}}}, false));
  ASSERT_TRUE(authz->delete_entities(ctx, {{"Document", id_of(4)}}));
  ASSERT_TRUE(authz->put_entities(ctx, {{{"Document", id_of(5)}, {{"even", true}}, {}, {}}}, false));
  std::vector<std::string> expected;
  for (int i = 0; i < 700; ++i)
    if (i == 5 || (i % 2 == 0 && i != 4)) expected.push_back(id_of(i));

  CheckRequest request = pay(1);
  request.action = "documents.read";
  request.resource = {"Document", ""};
  std::vector<std::string> seen;
  FilterQuestion question{.request = request, .limit = 37};
  while (true) {
    const auto page = authz->filter_resources(ctx, question);
    ASSERT_TRUE(page) << page.error().to_string();
    seen.insert(seen.end(), page->resources.begin(), page->resources.end());
    if (!page->more) break;
    ASSERT_EQ(page->resources.size(), 37u);
    question.after = page->resources.back();
  }
  EXPECT_EQ(seen, expected);
}

TEST_P(AuthzContract, AResourceWhoseIdIsEmptyIsListedOnceWhereverThePageEnds) {
  add("all", R"(permit(principal, action, resource is Document);)");
  ASSERT_TRUE(authz->put_entities(
      ctx, {{{"Document", ""}, {}, {}, {}}, {{"Document", "a"}, {}, {}, {}}, {{"Document", "b"}, {}, {}, {}}}, false));
  FilterQuestion question{.request = pay(1), .limit = 1};
  question.request.resource = {"Document", ""};
  std::vector<std::string> seen;
  for (bool more = true; more && seen.size() < 10;) {
    const auto page = authz->filter_resources(ctx, question);
    ASSERT_TRUE(page) << page.error().to_string();
    seen.insert(seen.end(), page->resources.begin(), page->resources.end());
    question.after = page->resources.back();
    more = page->more;
  }
  EXPECT_THAT(seen, ::testing::ElementsAre("", "a", "b"));
}

TEST_P(AuthzContract, PuttingEntitiesSaysWhatItChangesAndLeavesAloneWhatIsAsItWas) {
  const Entity a{{"Group", "a"}, {{"n", std::int64_t{1}}, {"m", "x"}}, {}, {{"Group", "b"}, {"Group", "c"}}};
  const auto changes = [&](std::vector<Entity> entities, bool dry_run) {
    const auto done = authz->put_entities(ctx, std::move(entities), dry_run);
    return done ? fmt::format("{} {} {}", done->added, done->changed, done->same) : done.error().message();
  };
  const auto version = [&] { return authz->explain(ctx, pay(1)).snapshot; };
  add("pay", "permit(principal, action, resource);");
  const std::int64_t before = version();
  EXPECT_EQ(changes({a, {{"Group", "b"}, {}, {}, {}}}, true), "2 0 0");
  EXPECT_EQ(version(), before);
  EXPECT_TRUE(authz->list_entities(ctx, {}, 10)->empty()) << "a dry run";
  EXPECT_EQ(changes({a, {{"Group", "b"}, {}, {}, {}}}, false), "2 0 0");
  const std::int64_t stored = version();
  EXPECT_GT(stored, before);
  EXPECT_EQ(changes({{a.uid, {{"m", "x"}, {"n", std::int64_t{1}}}, {}, {{"Group", "c"}, {"Group", "b"}}}}, false),
            "0 0 1");
  EXPECT_EQ(version(), stored) << "nothing was changed, so nothing that is remembered is dropped";
  EXPECT_EQ(changes({{a.uid, {}, {}, {}}, {{"Group", "d"}, {}, {}, {}}, {{"Group", "b"}, {}, {}, {}}}, false), "1 1 1");
  EXPECT_EQ(changes({{{"no type", "a"}, {}, {}, {}}, a, {{"none 2", "a"}, {}, {}, {}}}, true),
            "\"no type\" is no entity type\n\"none 2\" is no entity type");
}

TEST_P(AuthzContract, LooksForOpenResourcesUntilTheDeadlineAndNoLonger) {
  TestProduct product;
  product.owner = human;
  ASSERT_TRUE(local->register_source(product));
  add("own", "permit(principal, action, resource is Sandbox) when { resource.owner == principal };");
  std::vector<Entity> sandboxes;
  for (int i = 0; i < 300; ++i) sandboxes.push_back({{"Sandbox", std::to_string(1'000 + i)}, {}, {}, {}});
  ASSERT_TRUE(authz->put_entities(ctx, sandboxes, false));
  product.answer_slowly = [&] { clock.advance(seconds(1)); };
  CheckRequest request = pay(1);
  request.resource = {"Sandbox", ""};
  Context hasty = ctx;
  hasty.deadline = clock.monotonic() + seconds(100);
  const auto found = authz->filter_resources(hasty, {.request = request});
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().kind(), ErrorKind::timeout) << found.error().to_string();
  EXPECT_LT(product.asked, 300);
}

TEST_P(AuthzContract, WhatDoesNotDependOnTheResourceIsToldAsSuch) {
  CheckRequest request = pay(1);
  request.resource.id.clear();
  const auto none = authz->filter_resources(ctx, {.request = request});
  ASSERT_TRUE(none) << none.error().to_string();
  EXPECT_EQ(none->kind, ResourceFilter::Kind::none);
  add("pay", R"(permit(principal is Agent, action == Action::"payments.pay", resource);)");
  const auto every = authz->filter_resources(ctx, {.request = request});
  EXPECT_EQ(every->kind, ResourceFilter::Kind::all);
  EXPECT_EQ(every->residual, "");
  EXPECT_TRUE(every->resources.empty()) << "none is stored";

  EXPECT_EQ(authz->filter_resources(ctx, {.request = request, .limit = 1'001}).error().kind(),
            ErrorKind::invalid_input);
  EXPECT_EQ(authz->filter_resources(ctx, {.request = request, .columns = "{}"}).error().kind(),
            ErrorKind::invalid_input);
  request.resource.type = "no type";
  EXPECT_EQ(authz->filter_resources(ctx, {.request = request}).error().kind(), ErrorKind::invalid_input);
}

TEST_P(AuthzContract, SeesStoredEntitiesAndThoseOfTheSourceAsOne) {
  add("team", R"(permit(principal in Group::"payers", action in Action::"payments", resource)
                 when { principal.status == "active" && context.delegation.root == Human::"human:ada@example.com" };)");
  const EntityUid uid{"Agent", agent.text()};
  source.put({uid, {{"status", "active"}}, {}, {}});
  EXPECT_FALSE(allowed(check(pay(1))));
  ASSERT_TRUE(authz->put_entities(ctx,
                                  {{uid, {}, {}, {{"Group", "invoices"}}},
                                   {{"Group", "invoices"}, {}, {}, {{"Group", "payers"}}},
                                   {{"Action", "payments.pay"}, {}, {}, {{"Action", "payments"}}}},
                                  false));
  EXPECT_TRUE(allowed(check(pay(1))));
  source.put({uid, {{"status", "suspended"}}, {}, {}});
  EXPECT_FALSE(allowed(check(pay(1)))) << "a new version of the source drops what was cached";
  source.put({uid, {{"status", "active"}}, {}, {}});
  EXPECT_TRUE(allowed(check(pay(1))));
  ASSERT_TRUE(authz->delete_entities(ctx, {{"Group", "invoices"}}));
  EXPECT_FALSE(allowed(check(pay(1))));
  EXPECT_EQ(authz->list_entities(ctx, {}, 100'000)->size(), 2u);
}

TEST_P(AuthzContract, ListsAreWholeHoweverManyPagesTheyTake) {
  std::vector<Entity> entities;
  for (int i = 0; i < 1'000; ++i) entities.push_back({{"Group", fmt::format("g{:04}", i)}, {}, {}, {}});
  ASSERT_TRUE(authz->put_entities(ctx, entities, false));
  for (Entity& entity : entities) entity.uid.type = "Team";
  ASSERT_TRUE(authz->put_entities(ctx, entities, false));
  ASSERT_TRUE(authz->put_entities(ctx, {{{"Team", ""}, {}, {}, {}}}, false));
  const auto all = authz->list_entities(ctx, {}, 100'000).value();
  ASSERT_EQ(all.size(), 2'001u);
  EXPECT_EQ(all.front().uid, (EntityUid{"Group", "g0000"}));
  EXPECT_EQ(all.back().uid, (EntityUid{"Team", "g0999"}));
  const auto page = authz->list_entities(ctx, {"Group", "g0998"}, 3).value();
  ASSERT_EQ(page.size(), 3u);
  EXPECT_EQ(page[0].uid, (EntityUid{"Group", "g0999"}));
  EXPECT_EQ(page[1].uid, (EntityUid{"Team", ""}));
  EXPECT_EQ(page[2].uid, (EntityUid{"Team", "g0000"}));

  PolicyApplication application;
  for (int i = 0; i < 180; ++i)
    application.policies.push_back({fmt::format("p{:03}", i), fmt::format("// {}\npermit(principal, action, resource);",
                                                                          std::string(50'000, 'x'))});
  ASSERT_TRUE(authz->apply_policies(ctx, application)) << "9 MB in one request";
  const auto policies = authz->list_policies(ctx, "", 10'000).value();
  ASSERT_EQ(policies.size(), 180u) << "in pages of 4 MiB";
  EXPECT_EQ(policies.back().id, "p179");
  const auto some = authz->list_policies(ctx, "p041", 2).value();
  ASSERT_EQ(some.size(), 2u);
  EXPECT_EQ(some[0].id, "p042");
  EXPECT_EQ(some[1].id, "p043");
  EXPECT_TRUE(authz->list_policies(ctx, "p179", 2)->empty());
  EXPECT_EQ(authz->get_policy_version(ctx, 0)->policies.size(), 180u);
}

TEST_P(AuthzContract, AnEntityComesWithAllAboveIt) {
  const EntityUid uid{"Agent", agent.text()};
  source.put({uid, {{"status", "active"}}, {}, {{"Human", "ada"}}});
  ASSERT_TRUE(
      authz->put_entities(ctx, {{uid, {}, {}, {{"Group", "a"}}}, {{"Group", "a"}, {}, {}, {{"Group", "b"}}}}, false));
  const auto placed = authz->get_entity(ctx, uid);
  ASSERT_TRUE(placed) << placed.error().to_string();
  EXPECT_THAT(placed->ancestors,
              ::testing::ElementsAre(EntityUid{"Group", "a"}, EntityUid{"Group", "b"}, EntityUid{"Human", "ada"}));
  EXPECT_EQ(placed->entity.attributes.size(), 1u);
  EXPECT_EQ(authz->get_entity(ctx, {"Group", "c"}).error().kind(), ErrorKind::not_found);
  source.failing = true;
  EXPECT_EQ(authz->get_entity(ctx, uid).error().kind(), ErrorKind::unavailable);
}

TEST_P(AuthzContract, RefusesAHierarchyWithACycle) {
  ASSERT_TRUE(authz->put_entities(ctx, {{{"Group", "a"}, {}, {}, {{"Group", "b"}}}}, false));
  auto done = authz->put_entities(ctx, {{{"Group", "b"}, {}, {}, {{"Group", "a"}}}}, false);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().kind(), ErrorKind::invalid_input);
  EXPECT_EQ(authz->list_entities(ctx, {}, 100'000)->size(), 1u);
}

TEST_P(AuthzContract, RefusesAHierarchyThatIsTooLarge) {
  stop();
  options.ancestors_max = 3;
  start();
  ASSERT_TRUE(authz->put_entities(
      ctx, {{{"Group", "a"}, {}, {}, {{"Group", "b"}}}, {{"Group", "b"}, {}, {}, {{"Group", "c"}}}}, false));
  auto done = authz->put_entities(ctx, {{{"Group", "c"}, {}, {}, {{"Group", "d"}}}}, false);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().kind(), ErrorKind::resource_exhausted);
  EXPECT_EQ(authz->list_entities(ctx, {}, 100'000)->size(), 2u);
}

TEST_P(AuthzContract, DeniesWhereEntitiesCannotBeRead) {
  add("pay", "permit(principal, action, resource) when { principal has status };");
  source.failing = true;
  const Decision decision = check(pay(1));
  ASSERT_TRUE(std::holds_alternative<Deny>(decision));
  EXPECT_TRUE(std::get<Deny>(decision).transient);
}

}  // namespace
}  // namespace creto::authz
