// What every Authz keeps, whether it runs here or at the other end of a connection.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "creto/authz/authz_rpc.h"
#include "creto/crypto/hash.h"
#include "creto/io/rpc_channel.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/temp_dir.h"
#include "creto/testing/wire.h"
#include "test_source.h"

namespace creto::authz {
namespace {

using creto::testing::Where;
using creto::testing::Wire;
using std::chrono::hours;
using std::chrono::seconds;

class TestExtension final : public Extension {
 public:
  TestExtension(std::string name, int priority) : name_(std::move(name)), priority_(priority) {}
  std::string_view name() const override { return name_; }
  int priority() const override { return priority_; }
  bool denies_on_failure() const override { return closed; }
  Result<std::optional<Decision>> evaluate(const Context&, const CheckRequest&) override {
    ++calls;
    return answer();
  }
  bool closed = false;
  int calls = 0;
  std::function<Result<std::optional<Decision>>()> answer = [] { return std::optional<Decision>(); };

 private:
  std::string name_;
  int priority_;
};

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
  std::optional<Identity> owner;
  bool failing = false;
  std::function<void()> answer_slowly = [] {};
  mutable int asked = 0;
  mutable Monotonic deadline{};
};

class AuthzContract : public ::testing::TestWithParam<Where> {
 protected:
  AuthzContract() { start(); }
  ~AuthzContract() override { stop(); }

  void start() {
    db = database_.open();
    local = create_authz(*db, clock, no_telemetry(), {&source}, Secret(Bytes(32, 7)), options).value();
    authz = local.get();
    if (GetParam() != Where::grpc) return;
    wire_.emplace(clock);
    register_authz(wire_->dispatcher(), *local);
    client_ = connect("default");
    authz = client_.get();
  }
  std::unique_ptr<Authz> connect(std::string org) {
    return create_authz_client(wire_->connect(std::move(org)), *db, clock).value();
  }
  void stop() {
    client_.reset();
    wire_.reset();
    local.reset();
    db.reset();
  }

  void add(const PolicyId& id, std::string text) {
    auto done = authz->create_policy(ctx, id, std::move(text));
    ASSERT_TRUE(done) << done.error().to_string();
  }
  CheckRequest pay(std::int64_t amount) const {
    CheckRequest request{.principal = agent,
                         .chain = {human, agent},
                         .action = "payments.pay",
                         .resource = {"Ledger", "main"},
                         .context = {{"amount", amount}},
                         .arguments_hash = crypto::sha3_256(as_bytes(std::to_string(amount))),
                         .override_token = {}};
    return request;
  }
  Decision check(const CheckRequest& request) { return authz->check(ctx, request); }

  OverrideGrant grant_for(const CheckRequest& request) const {
    return {.request = approval,
            .agent = request.principal,
            .action = request.action,
            .resource = request.resource,
            .arguments_hash = request.arguments_hash,
            .lifts = {{"large", "large-payments"}},
            .expires_at = clock.now() + hours(1)};
  }
  Result<> consume(const CheckRequest& request, std::string_view operation) {
    return db->transaction(ctx, [&](sql::Tx& tx) { return authz->consume_override(tx, ctx, request, operation); });
  }
  void add_payment_policies() {
    add("pay", R"(permit(principal is Agent, action == Action::"payments.pay", resource);)");
    add("large", R"(@oversight("large-payments") @timeout("2h") @approvers("role:cfo, human:eve@example.com")
                    forbid(principal, action == Action::"payments.pay", resource) when { context.amount > 10000 };)");
  }

  creto::testing::FakeClock clock;
  AuthzOptions options;
  TestSource source{"Action"};
  const Identity human = Identity::human("ada@example.com").value();
  const Identity agent = Identity::agent(ByteArray<32>{1});
  const Context ctx = Context::of_service(Identity::service("test").value());
  const RequestId approval = RequestId::fresh(clock.now());
  std::unique_ptr<sql::Database> db;
  std::unique_ptr<Authz> local;
  Authz* authz = nullptr;

 private:
  creto::testing::TestDatabase database_{database_of(GetParam()), clock};
  std::optional<Wire> wire_;
  std::unique_ptr<Authz> client_;
};

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

TEST_P(AuthzContract, WhoExplainsIsAskedAboutWhomAndIsRecorded) {
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
  server->stop(Nanos(0));
  dispatcher->stop();
}

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
  add("plain", R"(permit(principal, action == Action::"none", resource);)");
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
  EXPECT_EQ(product.deadline, clock.monotonic() + product.budget());
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
  ASSERT_TRUE(authz->put_entities(ctx, {document("a-mine", mine, 1, {}),
                                        document("b-secret", mine, 9, {}),
                                        document("c-others", others, 1, {}),
                                        document("d-public", others, 1, {{"Folder", "public"}}),
                                        document("e-mine", mine, 2, {}),
                                        {{"Document", "f-erring"}, {{"owner", mine}}, {}, {}},
                                        {{"Folder", "public"}, {}, {}, {}}}));
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
  ASSERT_TRUE(authz->put_entities(ctx, documents));
  ASSERT_TRUE(authz->put_entities(ctx, {{{"Other", id_of(0)}, {{"even", true}}, {}, {}}}));
  ASSERT_TRUE(authz->delete_entities(ctx, {{"Document", id_of(4)}}));
  ASSERT_TRUE(authz->put_entities(ctx, {{{"Document", id_of(5)}, {{"even", true}}, {}, {}}}));
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
  const auto policies = authz->list_policies(ctx);
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
}

TEST_P(AuthzContract, SeesStoredEntitiesAndThoseOfTheSourceAsOne) {
  add("team", R"(permit(principal in Group::"payers", action in Action::"payments", resource)
                 when { principal.status == "active" && context.delegation.root == Human::"human:ada@example.com" };)");
  const EntityUid uid{"Agent", agent.text()};
  source.put({uid, {{"status", "active"}}, {}, {}});
  EXPECT_FALSE(allowed(check(pay(1))));
  ASSERT_TRUE(authz->put_entities(ctx, {{uid, {}, {}, {{"Group", "invoices"}}},
                                        {{"Group", "invoices"}, {}, {}, {{"Group", "payers"}}},
                                        {{"Action", "payments.pay"}, {}, {}, {{"Action", "payments"}}}}));
  EXPECT_TRUE(allowed(check(pay(1))));
  source.put({uid, {{"status", "suspended"}}, {}, {}});
  EXPECT_FALSE(allowed(check(pay(1)))) << "a new version of the source drops what was cached";
  source.put({uid, {{"status", "active"}}, {}, {}});
  EXPECT_TRUE(allowed(check(pay(1))));
  ASSERT_TRUE(authz->delete_entities(ctx, {{"Group", "invoices"}}));
  EXPECT_FALSE(allowed(check(pay(1))));
  EXPECT_EQ(authz->list_entities(ctx)->size(), 2u);
}

TEST_P(AuthzContract, ListsAreWholeHoweverManyPagesTheyTake) {
  std::vector<Entity> entities;
  for (int i = 0; i < 1'000; ++i) entities.push_back({{"Group", fmt::format("g{:04}", i)}, {}, {}, {}});
  ASSERT_TRUE(authz->put_entities(ctx, entities));
  for (Entity& entity : entities) entity.uid.type = "Team";
  ASSERT_TRUE(authz->put_entities(ctx, entities));
  const auto all = authz->list_entities(ctx).value();
  ASSERT_EQ(all.size(), 2'000u);
  EXPECT_EQ(all.front().uid, (EntityUid{"Group", "g0000"}));
  EXPECT_EQ(all.back().uid, (EntityUid{"Team", "g0999"}));

  PolicyApplication application;
  for (int i = 0; i < 180; ++i)
    application.policies.push_back({fmt::format("p{:03}", i), fmt::format("// {}\npermit(principal, action, resource);",
                                                                          std::string(50'000, 'x'))});
  ASSERT_TRUE(authz->apply_policies(ctx, application)) << "9 MB in one request";
  const auto policies = authz->list_policies(ctx).value();
  ASSERT_EQ(policies.size(), 180u) << "in pages of 4 MiB";
  EXPECT_EQ(policies.back().id, "p179");
  EXPECT_EQ(authz->get_policy_version(ctx, 0)->policies.size(), 180u);
}

TEST_P(AuthzContract, AnEntityComesWithAllAboveIt) {
  const EntityUid uid{"Agent", agent.text()};
  source.put({uid, {{"status", "active"}}, {}, {{"Human", "ada"}}});
  ASSERT_TRUE(authz->put_entities(ctx, {{uid, {}, {}, {{"Group", "a"}}}, {{"Group", "a"}, {}, {}, {{"Group", "b"}}}}));
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
  ASSERT_TRUE(authz->put_entities(ctx, {{{"Group", "a"}, {}, {}, {{"Group", "b"}}}}));
  auto done = authz->put_entities(ctx, {{{"Group", "b"}, {}, {}, {{"Group", "a"}}}});
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().kind(), ErrorKind::invalid_input);
  EXPECT_EQ(authz->list_entities(ctx)->size(), 1u);
}

TEST_P(AuthzContract, RefusesAHierarchyThatIsTooLarge) {
  stop();
  options.ancestors_max = 3;
  start();
  ASSERT_TRUE(authz->put_entities(
      ctx, {{{"Group", "a"}, {}, {}, {{"Group", "b"}}}, {{"Group", "b"}, {}, {}, {{"Group", "c"}}}}));
  auto done = authz->put_entities(ctx, {{{"Group", "c"}, {}, {}, {{"Group", "d"}}}});
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().kind(), ErrorKind::resource_exhausted);
  EXPECT_EQ(authz->list_entities(ctx)->size(), 2u);
}

TEST_P(AuthzContract, DeniesWhereEntitiesCannotBeRead) {
  add("pay", "permit(principal, action, resource) when { principal has status };");
  source.failing = true;
  const Decision decision = check(pay(1));
  ASSERT_TRUE(std::holds_alternative<Deny>(decision));
  EXPECT_TRUE(std::get<Deny>(decision).transient);
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
  EXPECT_TRUE(authz->list_policies(ctx)->empty());
}

TEST_P(AuthzContract, EveryChangeOfPoliciesIsAVersionThatCanBeReadAgain) {
  EXPECT_TRUE(authz->list_policy_versions(ctx, 0, 10)->empty());
  EXPECT_TRUE(authz->get_policy_version(ctx, 0)->policies.empty());
  add("pay", "permit(principal, action, resource);");
  ASSERT_TRUE(authz->put_entities(ctx, {{{"Group", "a"}, {}, {}, {}}}));
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
  const auto policies = authz->list_policies(ctx).value();
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
  ASSERT_TRUE(authz->put_entities(ctx, {{{"Group", "a"}, {}, {}, {}}}));
  EXPECT_FALSE(allowed(check(pay(6))));
  const auto versions = authz->list_policy_versions(ctx, 0, 10).value();
  ASSERT_EQ(versions.size(), 2u);
  EXPECT_EQ(versions[0].policies, 2);
  ASSERT_TRUE(other->refresh(ctx));
  EXPECT_EQ(other->list_entities(ctx)->size(), 1u);
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
  EXPECT_TRUE(authz->list_entities(ctx)->empty()) << "but nobody stored them";

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
  EXPECT_FALSE(authz->put_entities(ctx, {{{"Ledger", "main"}, {{"color", "red"}}, {}, {}}}));
  EXPECT_TRUE(
      authz->put_entities(ctx, {{{"Ledger", "main"}, {}, {}, {}}, {{"Other", "x"}, {{"color", "red"}}, {}, {}}}));
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
  EXPECT_TRUE(theirs.list_policies(elsewhere)->empty());
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
