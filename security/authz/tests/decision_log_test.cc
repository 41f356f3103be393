#include "decisions/decision_log.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "creto/audit/audit_log.h"
#include "creto/authz/decision_tools.h"
#include "creto/crypto/hash.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/fault_files.h"
#include "creto/testing/temp_dir.h"
#include "decisions/decision_files.h"
#include "decisions/decision_replay.h"
#include "test_source.h"

namespace creto::authz {
namespace {

using creto::testing::DatabaseKind;
using creto::testing::FakeClock;
using creto::testing::FaultFiles;
using creto::testing::TempDir;
using creto::testing::TestDatabase;
using std::chrono::hours;
using std::chrono::seconds;

const Identity ada = Identity::human("ada@example.com").value();

Context context_of(const std::string& org) {
  Context ctx = Context::of_service(Identity::service("test").value());
  ctx.org = org;
  return ctx;
}

/// Policies, entities and requests that often have to do with each other.
class World {
 public:
  explicit World(std::uint64_t seed) : random_(seed) {
    for (std::uint8_t i = 0; i < 4; ++i) agents.push_back(Identity::agent(ByteArray<32>{i}));
  }

  std::uint64_t below(std::uint64_t limit) { return random_() % limit; }
  bool chance(unsigned percent) { return below(100) < percent; }

  std::string condition(int depth = 2) {
    if (depth > 0 && chance(60)) {
      static constexpr std::string_view joints[] = {"&&", "||"};
      return fmt::format("({} {} {})", condition(depth - 1), joints[below(2)], condition(depth - 1));
    }
    const std::vector<std::string> all = {
        fmt::format("context.amount > {}", below(6)),
        fmt::format("context.payee like \"p{}*\"", below(3)),
        fmt::format("principal in Group::\"g{}\"", below(3)),
        fmt::format("resource in Group::\"g{}\"", below(3)),
        fmt::format("principal has level && principal.level >= {}", below(4)),
        "principal.level == 1",
        "resource.owner == principal",
        "context.delegation.root == Human::\"human:ada@example.com\"",
        fmt::format("context.delegation.depth < {}", below(4)),
        fmt::format("principal.hasTag(\"t{}\")", below(2)),
        fmt::format("context.tags.contains(\"x{}\")", below(3)),
        "context.from.isInRange(ip(\"10.0.0.0/8\"))",
    };
    return fmt::format("{}({})", chance(20) ? "!" : "", all[below(all.size())]);
  }
  std::string policy() {
    const bool permit = chance(65);
    std::string text = permit       ? "permit("
                       : chance(50) ? fmt::format("@oversight(\"o{}\") forbid(", below(2))
                                    : "forbid(";
    static constexpr std::string_view principals[] = {"principal", "principal is Agent", "principal in Group::\"g1\""};
    text += principals[below(3)];
    text += chance(50) ? ", action, " : fmt::format(", action == Action::\"act{}\", ", below(3));
    text += chance(60) ? "resource)" : fmt::format("resource == Thing::\"t{}\")", below(3));
    if (chance(80)) text += fmt::format(" when {{ {} }}", condition());
    return text + ";";
  }
  Attributes attributes() {
    Attributes all{{"level", static_cast<std::int64_t>(below(4))}};
    if (chance(50)) all.emplace_back("owner", uid());
    if (chance(20)) all.clear();
    return all;
  }
  EntityUid group() { return {"Group", fmt::format("g{}", below(3))}; }
  EntityUid uid() {
    if (chance(50)) return {"Agent", agents[below(agents.size())].text()};
    return {"Thing", fmt::format("t{}", below(3))};
  }
  Entity entity(EntityUid uid) {
    Entity entity{std::move(uid), attributes(), {}, {}};
    if (chance(40)) entity.tags.emplace_back(fmt::format("t{}", below(2)), "yes");
    for (auto n = below(3); n > 0; --n) entity.parents.push_back(group());
    return entity;
  }
  CheckRequest request() {
    const Identity& agent = agents[below(agents.size())];
    CheckRequest request{.principal = agent,
                         .chain = {},
                         .action = fmt::format("act{}", below(3)),
                         .resource = {"Thing", fmt::format("t{}", below(4))},
                         .context = {{"amount", static_cast<std::int64_t>(below(6))}},
                         .arguments_hash = {},
                         .override_token = {}};
    if (chance(60)) request.chain = {ada, agent};
    if (chance(60)) request.context.emplace_back("payee", fmt::format("p{} and co", below(3)));
    if (chance(30)) request.context.emplace_back("tags", Value::set({"x1", "x2", Value::record({{"n", 1}})}));
    if (chance(20)) request.context.emplace_back("from", IpValue{.prefix = 32, .address = {10, 1, 2, 3}});
    if (chance(20)) request.context.emplace_back("amount", static_cast<std::int64_t>(below(6)));
    if (chance(10)) {
      request.context.emplace_back("at", DatetimeValue{static_cast<std::int64_t>(below(100)) - 50});
      request.context.emplace_back("for", DurationValue{-5});
      request.context.emplace_back("rate", DecimalValue{12'345});
      request.context.emplace_back("who", uid());
      request.context.emplace_back("long", std::string(below(2'000), 'l'));
    }
    if (chance(30)) request.arguments_hash = crypto::sha3_256(as_bytes(std::to_string(below(10))));
    return request;
  }

  std::vector<Identity> agents;

 private:
  std::mt19937_64 random_;  // tidy(random-engine): a seed must give the same world again
};

/// A product that owns things.
class ThingsOfAProduct final : public ResourceSource {
 public:
  std::vector<std::string> types() const override { return {"Thing"}; }
  Result<std::optional<Entity>> find(const Context& ctx, const EntityUid& uid) const override {
    return things.find(ctx.org, uid);
  }
  TestSource things{"Group"};
};

/// A service that logs, and what it said.
class LoggedAuthz : public ::testing::Test {
 protected:
  std::unique_ptr<Authz> start(DecisionLogOptions log = {}) {
    log.directory = directory / "decisions";
    log.org = "default";
    AuthzOptions options;
    options.decision_log = log;
    return create_authz(*db, clock, no_telemetry(), {&source}, Secret(Bytes(32, 7)), options).value();
  }
  Decision check(Authz& authz, const CheckRequest& request) {
    said.push_back(authz.check(ctx, request));
    return said.back();
  }
  ReplayReport replayed(ReplayPolicies policies = {}) {
    return replay(io::real_files(), {.log = directory / "decisions", .policies = std::move(policies)}).value();
  }
  Json listed() {
    const auto result = list_decisions({.log = directory / "decisions"}, 1'000'000);
    return parse_json(result.value().json, {.bytes_max = 1 << 30}).value();
  }

  FakeClock clock;
  TestDatabase database{DatabaseKind::sqlite, clock};
  std::unique_ptr<sql::Database> db = database.open();
  TempDir directory;
  TestSource source{"Group"};
  const Context ctx = context_of("default");
  const std::shared_ptr<RateMemory> rates = std::make_shared<RateMemory>(1 << 20);
  std::vector<Decision> said;
};

TEST_F(LoggedAuthz, AnUnchangedPolicySetDecidesEveryLoggedRequestAsItDid) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    World world(seed);
    said.clear();
    std::filesystem::remove_all(directory / "decisions");
    db.reset();
    TestDatabase fresh(DatabaseKind::sqlite, clock);
    db = fresh.open();
    auto authz = start({.segment_bytes = seed % 3 == 0 ? 4'096u : 1u << 20});
    ThingsOfAProduct product;
    ASSERT_TRUE(authz->register_source(product));
    std::vector<CheckRequest> requests;
    for (int i = 0; i < 30; ++i) requests.push_back(world.request());
    const auto policy_template = [&] {
      return fmt::format("{}(principal == ?principal, action, resource) when {{ context.amount < {} }};",
                         world.chance(50) ? "permit" : "forbid", world.below(6));
    };
    for (int step = 0; step < 300; ++step) {
      if (world.chance(4)) (void)authz->create_policy(ctx, fmt::format("p{}", world.below(12)), world.policy());
      if (world.chance(2)) (void)authz->update_policy(ctx, fmt::format("p{}", world.below(12)), world.policy(), 0);
      if (world.chance(1)) (void)authz->delete_policy(ctx, fmt::format("p{}", world.below(12)));
      if (world.chance(3)) (void)authz->put_entities(ctx, {world.entity(world.uid())}, false);
      if (world.chance(1)) (void)authz->delete_entities(ctx, {world.uid()});
      if (world.chance(3)) (void)authz->create_policy(ctx, "template", policy_template());
      if (world.chance(1)) (void)authz->update_policy(ctx, "template", policy_template(), 0);
      const std::string link = fmt::format("link{}", world.below(4));
      const Identity& linked = world.agents[world.below(world.agents.size())];
      if (world.chance(4)) (void)authz->link_policy(ctx, {link, "template", entity_of(linked)});
      if (world.chance(2)) (void)authz->unlink_policy(ctx, link);
      if (world.chance(3)) source.put(world.entity(world.uid()));
      if (world.chance(3)) product.things.put(world.entity(world.uid()));
      product.things.failing = world.chance(1);
      source.failing = world.chance(1);
      CheckRequest request = requests[world.below(requests.size())];
      if (world.chance(1)) request.action = "";
      const Decision decision = check(*authz, request);
      if (const auto* oversight = std::get_if<RequiresOversight>(&decision)) {
        OverrideGrant grant{.request = RequestId::fresh(clock.now()),
                            .agent = request.principal,
                            .action = request.action,
                            .resource = request.resource,
                            .arguments_hash = request.arguments_hash,
                            .lifts = {},
                            .expires_at = clock.now() + hours(1)};
        for (const auto& one : oversight->requirements) grant.lifts.push_back({one.forbid, one.oversight_policy});
        request.override_token = authz->issue_override(ctx, grant).value();
        check(*authz, request);
      }
      clock.advance(Nanos(world.below(2'000'000'000)));
    }
    authz.reset();
    source = TestSource("Group");

    const ReplayReport report = replayed();
    EXPECT_EQ(report.read, said.size()) << "seed " << seed;
    EXPECT_EQ(report.replayed + report.by_others, said.size());
    EXPECT_EQ(report.differ, 0u) << "seed " << seed << ": "
                                 << (report.groups.empty() ? "" : report.groups[0].example.dump());
    EXPECT_EQ(report.otherwise_determined, 0u) << "seed " << seed;
    const Json all = listed();
    ASSERT_EQ(all.size(), said.size());
    for (std::size_t i = 0; i < said.size(); ++i) EXPECT_EQ(all[i]["outcome"], to_string(said[i])) << i;
  }
}

TEST_F(LoggedAuthz, AnotherPolicySetDiffersWhereItDecidesOtherwise) {
  World world(99);
  std::vector<CheckRequest> requests;
  for (int i = 0; i < 200; ++i) requests.push_back(world.request());
  std::vector<Entity> entities;
  for (int i = 0; i < 10; ++i) entities.push_back(world.entity(world.uid()));
  for (const Identity& agent : world.agents) source.put(world.entity({"Agent", agent.text()}));
  std::vector<std::string> before, after;
  for (int i = 0; i < 8; ++i) before.push_back(world.policy());
  after = before;
  after[2] = world.policy();
  after[5] = world.policy();
  after.push_back("permit(principal, action == Action::\"act1\", resource);");

  auto authz = start();
  ASSERT_TRUE(authz->put_entities(ctx, entities, false));
  for (std::size_t i = 0; i < before.size(); ++i) authz->create_policy(ctx, fmt::format("p{}", i), before[i]).value();
  // Everything about the agents is looked at, so that everything is logged.
  authz->create_policy(ctx, "look", "permit(principal in Group::\"none\", action, resource in Group::\"none\");")
      .value();
  for (const CheckRequest& request : requests) check(*authz, request);
  for (const CheckRequest& request : requests) check(*authz, request);
  authz.reset();

  TestDatabase other(DatabaseKind::sqlite, clock);
  const auto other_db = other.open();
  auto changed = create_authz(*other_db, clock, no_telemetry(), {&source}, Secret(Bytes(32, 7))).value();
  ASSERT_TRUE(changed->put_entities(ctx, entities, false));
  std::vector<std::shared_ptr<const LoadedPolicy>> policies;
  for (std::size_t i = 0; i < after.size(); ++i) {
    const Policy policy = changed->create_policy(ctx, fmt::format("p{}", i), after[i]).value();
    policies.push_back(std::make_shared<const LoadedPolicy>(load_policy(policy, 1 << 16, nullptr, rates).value()));
  }
  const auto asked = [](const Decision& decision) {
    const auto* oversight = std::get_if<RequiresOversight>(&decision);
    return std::string(to_string(decision)) + (oversight ? oversight_names(*oversight) : "");
  };
  std::uint64_t differ = 0;
  for (std::size_t i = 0; i < said.size(); ++i)
    differ += asked(changed->check(ctx, requests[i % requests.size()])) != asked(said[i]);
  const ReplayReport report = replayed(policies);
  EXPECT_EQ(report.read, said.size());
  EXPECT_EQ(report.differ, differ);
  EXPECT_GT(differ, 0u);
  std::uint64_t grouped = 0;
  for (const ReplayGroup& group : report.groups) grouped += group.count;
  EXPECT_EQ(grouped, differ);
}

TEST_F(LoggedAuthz, AFolderOfPoliciesIsTriedAmongThoseOfOthers) {
  auto authz = start();
  ASSERT_TRUE(authz->create_policy(ctx, "all", "permit(principal, action, resource);"));
  ASSERT_TRUE(authz->create_policy(ctx, "team/act1", "forbid(principal, action == Action::\"act1\", resource);"));
  World world(7);
  for (int i = 0; i < 3; ++i) {
    CheckRequest request = world.request();
    request.action = fmt::format("act{}", i);
    check(*authz, request);
  }
  // What others change in between stays, too.
  ASSERT_TRUE(authz->create_policy(ctx, "act0", "forbid(principal, action == Action::\"act0\", resource);"));
  CheckRequest last = world.request();
  last.action = "act0";
  check(*authz, last);
  authz.reset();
  const auto write = [&](const char* name, std::string_view text) {
    std::ofstream(directory / name) << text;
    return directory / name;
  };
  PolicyFiles same{{write("act1.cedar", "forbid(principal, action == Action::\"act1\", resource);")}, {}, {}};
  same.folder = "team";
  const DecisionFilter filter{.log = directory / "decisions"};
  const auto unchanged = replay_decisions(filter, same);
  ASSERT_TRUE(unchanged) << unchanged.error().message();
  EXPECT_EQ(unchanged->text, "0 of 4 decisions differ\n");
  EXPECT_EQ(unchanged->exit_code, 0);
  PolicyFiles other{{write("act2.cedar", "forbid(principal, action == Action::\"act2\", resource);")}, {}, {}};
  other.folder = "team";
  const auto changed = parse_json(replay_decisions(filter, other)->json).value();
  EXPECT_EQ(changed["differ"], 2) << "act1 is allowed now, act2 is not";
  std::set<std::string> policies;
  for (const Json& group : changed["groups"]) policies.insert(group["policy_becomes"].get<std::string>());
  EXPECT_EQ(policies, (std::set<std::string>{"all", "team/act2"}));
  const PolicyQuestion question{"Service::\"test\"", "Action::\"act0\"", "Thing::\"t0\""};
  EXPECT_EQ(what_if(filter, {}, other, question)->exit_code, 0) << "the others' forbid is still there";
  other.folder.clear();
  EXPECT_EQ(what_if(filter, {}, other, question)->exit_code, 0) << "nothing permits it";
  PolicyFiles strict;
  strict.schema =
      write("app.cedarschema", "entity Thing; action act2 appliesTo { principal: Human, resource: Thing };");
  const auto refused = parse_json(replay_decisions(filter, strict)->json).value();
  EXPECT_EQ(refused["differ"], 1) << "the action is declared, but not for agents";
}

TEST_F(LoggedAuthz, NoTokenIsWrittenAndLongContextsAreLeftOut) {
  auto authz = start({.request_bytes_max = 4'096});
  authz->create_policy(ctx, "all", "permit(principal, action, resource);").value();
  World world(1);
  CheckRequest request = world.request();
  const std::string token = authz
                                ->issue_override(ctx, {.request = RequestId::fresh(clock.now()),
                                                       .agent = request.principal,
                                                       .action = request.action,
                                                       .resource = request.resource,
                                                       .arguments_hash = request.arguments_hash,
                                                       .lifts = {{"none", "nobody"}},
                                                       .expires_at = clock.now() + hours(1)})
                                .value();
  request.override_token = token;
  EXPECT_TRUE(allowed(check(*authz, request)));
  request.override_token = token + "x";
  EXPECT_FALSE(allowed(check(*authz, request)));
  request.override_token.clear();
  request.context = {{"secret sauce", std::string(5'000, 's')}};
  EXPECT_TRUE(allowed(check(*authz, request)));
  request.action = std::string(1 << 20, 'a');
  EXPECT_FALSE(allowed(check(*authz, request)));
  authz.reset();

  const Bytes file = io::real_files().read(directory / "decisions" / "0000000001.seg", 1 << 20).value();
  EXPECT_EQ(as_text(file).find(token), std::string_view::npos);
  EXPECT_EQ(as_text(file).find("secret sauce"), std::string_view::npos);
  const ReplayReport report = replayed();
  EXPECT_EQ(report.read, 4u);
  EXPECT_EQ(report.replayed, 1u);
  EXPECT_EQ(report.by_others, 2u) << "the token that does not hold, and the request that is malformed";
  EXPECT_EQ(report.not_logged, 1u);
}

TEST_F(LoggedAuthz, ADecisionThatCannotBeLoggedIsADenial) {
  auto authz = start({.request_bytes_max = 4'096,
                      .ring_bytes = 64 << 10,
                      .wait_max = std::chrono::milliseconds(1),
                      .write_in_background = false});
  authz->create_policy(ctx, "all", "permit(principal, action, resource);").value();
  World world(1);
  const CheckRequest request = world.request();
  std::size_t allows = 0;
  Decision decision = Allow{};
  while (allowed(decision) && allows < 10'000) {
    decision = check(*authz, request);
    allows += allowed(decision) ? 1 : 0;
  }
  const auto* deny = std::get_if<Deny>(&decision);
  ASSERT_NE(deny, nullptr);
  EXPECT_TRUE(deny->transient);
  EXPECT_EQ(deny->reason, "the decision log cannot be written");
  authz.reset();
  EXPECT_EQ(replayed().read, allows) << "all that were allowed are there";
  const SegmentFile file = SegmentFile::read(io::real_files(), directory / "decisions" / "0000000001.seg").value();
  SegmentReader reader;
  ASSERT_TRUE(file.each(reader, [](const SegmentReader::Decided&) { return Result<>(); }));
  EXPECT_EQ(reader.refused(), 1u);
}

TEST_F(LoggedAuthz, WhatAnExtensionRefusedStaysRefused) {
  class Quota final : public Extension {
   public:
    std::string_view name() const override { return "quota"; }
    int priority() const override { return 1; }
    Result<std::optional<Decision>> evaluate(const Context&, const CheckRequest&) override {
      return std::optional<Decision>(
          QuotaExceeded{.quota_id = "monthly", .limit = 1, .used = 1, .reset_at = {}, .message = {}});
    }
  } quota;
  auto authz = start();
  authz->create_policy(ctx, "all", "permit(principal, action, resource);").value();
  ASSERT_TRUE(authz->register_extension(quota));
  World world(1);
  EXPECT_FALSE(allowed(check(*authz, world.request())));
  authz.reset();
  EXPECT_EQ(replayed().differ, 0u);
  const ReplayReport without = replayed(std::vector<std::shared_ptr<const LoadedPolicy>>());
  ASSERT_EQ(without.groups.size(), 1u);
  EXPECT_EQ(without.groups[0].was, "quota_exceeded");
  EXPECT_EQ(without.groups[0].becomes, "deny");
}

TEST_F(LoggedAuthz, VerifyFindsAnySegmentThatIsNotTheOneThatWasSealed) {
  const auto key = [](crypto::SignatureAlgorithm algorithm, std::uint8_t seed) {
    return crypto::SigningKey::from_seed(algorithm, Bytes(32, seed)).value();
  };
  audit::AuditOptions audit_options;
  audit_options.directory = directory / "audit";
  audit_options.origin = "creto.local/audit/default";
  audit_options.sequence_in_background = false;
  const auto audit_log =
      audit::create_audit_log(
          *db, io::real_files(), clock, no_telemetry(),
          {key(crypto::SignatureAlgorithm::ed25519, 1), key(crypto::SignatureAlgorithm::ml_dsa_65, 2)}, audit_options)
          .value();
  World world(3);
  for (int run = 0; run < 3; ++run) {
    auto authz = start();
    (void)authz->create_policy(ctx, "all", "permit(principal, action, resource);");
    for (int i = 0; i < 20; ++i) check(*authz, world.request());
  }
  audit_log->flush(ctx).value();
  const std::string keys = audit_log->status(ctx).value().verifier_keys;
  const auto log = directory / "decisions";
  const auto verify = [&] { return verify_decisions(log, directory / "audit", keys).value(); };
  ASSERT_EQ(verify().exit_code, 0) << verify().text;
  EXPECT_EQ(parse_json(verify().json).value()["segments"], 3);

  const Bytes good = io::real_files().read(log / "0000000002.seg", 1 << 20).value();
  const auto write = [&](BytesView bytes) {
    std::ofstream(log / "0000000002.seg", std::ios::binary) << as_text(bytes);
  };
  for (std::size_t at = 0; at < good.size(); at += 19) {
    Bytes bad = good;
    bad[at] ^= 1;
    write(bad);
    EXPECT_EQ(verify().exit_code, 1) << "byte " << at;
  }
  write(BytesView(good).first(good.size() - 1));
  EXPECT_EQ(verify().exit_code, 1) << "cut";
  std::filesystem::remove(log / "0000000002.seg");
  EXPECT_EQ(verify().exit_code, 1) << "removed";
  write(good);
  EXPECT_EQ(verify().exit_code, 0);
}

/// The log alone, over files that can fail.
class DecisionLogFiles : public ::testing::Test {
 protected:
  DecisionLogFiles() {
    auto loaded = load_policy(Policy{.id = "all",
                                     .text = "permit(principal, action, resource);",
                                     .version = 1,
                                     .updated_at = {},
                                     .updated_by = {}},
                              1 << 16, nullptr, std::make_shared<RateMemory>(1 << 20));
    state_->version = 1;
    state_->policies.put(std::make_shared<const LoadedPolicy>(*std::move(loaded)));
    state_->plan();
    EXPECT_TRUE(files.create_directories("/log"));
  }
  Result<std::unique_ptr<DecisionLog>> open(DecisionLogOptions options = {}, bool in_background = false) {
    options.directory = "/log";
    options.write_in_background = in_background;
    options.wait_max = in_background ? std::chrono::seconds(10) : std::chrono::milliseconds(1);
    auto log = DecisionLog::open(*db, files, clock, no_telemetry(), options, 0, std::chrono::minutes(1));
    if (log) (*log)->publish("default", state_);
    return log;
  }
  bool append(DecisionLog& log) {
    CheckRequest request = world.request();
    request.resource.id = std::to_string(appended_);
    Trail trail;
    trail.key.emplace("default", 1, std::span<const std::uint64_t>(), request);
    trail.at = clock.monotonic();
    trail.policy = state_->policies.find("all")->planned.get();
    const bool done = log.append(trail, request, 0, Allow{});
    appended_ += done ? 1 : 0;
    return done;
  }
  /// The resources of all decisions that the segments hold, in order.
  std::vector<std::string> logged() {
    std::vector<std::string> ids;
    for (const SegmentName& name : list_segments(files, "/log").value()) {
      const auto file =
          SegmentFile::read(files, std::filesystem::path("/log") / segment_name(name.sequence, name.open));
      if (!file) continue;
      SegmentReader reader;
      const auto done = file->each(reader, [&](const SegmentReader::Decided& decided) -> Result<> {
        SegmentReader::Request request;
        CRETO_TRY(reader.request(decided.request, request));
        ids.push_back(request.resource.id);
        return {};
      });
      EXPECT_TRUE(done) << done.error().to_string();
    }
    return ids;
  }
  std::vector<std::string> audited(std::string_view what) {
    std::vector<std::string> found;
    const auto rows = sql::read(*db, context_of("default"),
                                [&](sql::Tx& tx) { return tx.query("SELECT entry FROM audit_pending ORDER BY seq"); });
    if (!rows) ADD_FAILURE() << rows.error().to_string();
    if (!rows) return found;
    for (const sql::Row row : *rows) {
      const std::string entry = row.text(0);
      if (entry.find(fmt::format("\"{}\"", what)) != std::string::npos) found.push_back(entry);
    }
    return found;
  }

  FakeClock clock;
  TestDatabase database{DatabaseKind::sqlite, clock};
  std::unique_ptr<sql::Database> db = database.open();
  FaultFiles files;
  World world{7};
  std::shared_ptr<OrgState> state_ = std::make_shared<OrgState>();
  std::size_t appended_ = 0;
};

TEST_F(DecisionLogFiles, KeepsAPrefixWhateverByteTheTailIsTornAt) {
  {
    auto log = open().value();
    for (int block = 0; block < 3; ++block) {
      for (int i = 0; i < 2; ++i) ASSERT_TRUE(append(*log));
      ASSERT_TRUE(log->flush());
    }
    files.die_at(1);
  }
  files.crash();
  const Bytes whole = files.read("/log/0000000001.open", 1 << 20).value();
  const std::vector<std::string> all = logged();
  ASSERT_EQ(all.size(), 6u);
  std::size_t most = 0;
  for (std::size_t size = 0; size <= whole.size(); ++size) {
    FaultFiles torn;
    ASSERT_TRUE(torn.create_directories("/log"));
    auto file = torn.create("/log/0000000001.open", 0600).value();
    ASSERT_TRUE(file->append(BytesView(whole).first(size)));
    ASSERT_TRUE(file->sync());
    file.reset();
    const auto done = finish_open_segment(torn, "/log", ByteArray<16>{}, 1, clock.now());
    ASSERT_TRUE(done) << "at " << size << ": " << done.error().to_string();
    const SegmentFile read = SegmentFile::read(torn, "/log/0000000001.seg").value();
    EXPECT_TRUE(read.is_whole());
    SegmentReader reader;
    ASSERT_TRUE(read.each(reader, [](const SegmentReader::Decided&) { return Result<>(); })) << "at " << size;
    EXPECT_TRUE(reader.ended() && reader.recovered() && reader.header());
    EXPECT_GE(reader.decisions(), most);
    EXPECT_EQ(reader.decisions() % 2, 0u);
    most = reader.decisions();
  }
  EXPECT_EQ(most, 6u);
}

TEST_F(DecisionLogFiles, ReadsDamagedBlocksWithoutHarm) {
  state_->entities.put({std::make_shared<const Entity>(Entity{
      {"Thing", "t"}, {{"a", Value::set({1, "x"})}, {"b", Value::record({{"c", true}})}}, {}, {{"Group", "g"}}})});
  auto log = open().value();
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(append(*log));
  ASSERT_TRUE(log->rotate());
  const Bytes whole = files.read("/log/0000000001.seg", 1 << 20).value();
  std::size_t refused = 0;
  for (int round = 0; round < 300; ++round) {
    SegmentReader reader;
    std::deque<Bytes> kept;  // what the reader borrows
    const auto intact = io::Journal::scan(whole, [&](BytesView block) -> Result<> {
      Bytes& bytes = kept.emplace_back(to_bytes(block));
      for (auto n = world.below(3); n > 0 && kept.size() > 1; --n)
        bytes[world.below(bytes.size())] = static_cast<std::uint8_t>(world.below(256));
      return reader.read(bytes, [&](const SegmentReader::Decided& decided) -> Result<> {
        SegmentReader::Request request;
        CRETO_TRY(reader.request(decided.request, request));
        (void)decision_json(reader, decided, request);
        return {};
      });
    });
    refused += intact ? 0 : 1;
  }
  EXPECT_GT(refused, 20u);
  EXPECT_LT(refused, 300u);
}

TEST_F(DecisionLogFiles, LosesNothingThatWasFlushedWhereverItDies) {
  for (std::uint64_t step = 1; step < 60; ++step) {
    std::size_t flushed = logged().size();
    {
      auto log = open({.segment_bytes = 2'000}).value();
      flushed = logged().size();
      appended_ = flushed;
      files.die_at(step);
      for (int i = 0; i < 10; ++i) {
        if (!append(*log) || !log->flush()) break;
        ++flushed;
        if (i % 4 == 3 && !log->rotate()) break;
      }
      files.die_at(1);
    }
    files.crash(step);
    {
      auto log = open();
      ASSERT_TRUE(log) << "step " << step << ": " << log.error().to_string();
      ASSERT_TRUE((*log)->rotate());
    }
    const auto ids = logged();
    ASSERT_GE(ids.size(), flushed) << "step " << step;
    for (std::size_t i = 0; i < ids.size(); ++i) ASSERT_EQ(ids[i], std::to_string(i)) << "step " << step;
  }
  // Each segment was entered once, with the hash of what is there.
  const auto segments = list_segments(files, "/log").value();
  EXPECT_EQ(audited("authz_decision_segment").size(), segments.size());
  for (const SegmentName& name : segments) {
    const Bytes content =
        files.read(std::filesystem::path("/log") / segment_name(name.sequence, false), 1 << 20).value();
    const std::string hash = hex(crypto::sha3_256(content));
    const auto entries = audited("authz_decision_segment");
    EXPECT_TRUE(std::any_of(entries.begin(), entries.end(),
                            [&](const std::string& entry) { return entry.find(hash) != std::string::npos; }));
  }
}

TEST_F(DecisionLogFiles, AFullDiskRefusesAndALaterWriteLosesNothing) {
  auto log = open({.request_bytes_max = 4'096, .ring_bytes = 64 << 10, .behind_bytes_max = 64 << 10}).value();
  ASSERT_TRUE(append(*log));
  ASSERT_TRUE(log->flush());
  files.set_disk_bytes_max(1);
  while (append(*log)) {
    ASSERT_FALSE(log->flush());
    ASSERT_LT(appended_, 100'000u);
  }
  files.set_disk_bytes_max(UINT64_MAX);
  ASSERT_TRUE(log->flush());
  ASSERT_TRUE(append(*log));
  ASSERT_TRUE(log->rotate());
  const auto ids = logged();
  ASSERT_EQ(ids.size(), appended_);
  for (std::size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(ids[i], std::to_string(i));
}

TEST_F(DecisionLogFiles, ADiskThatStallsHoldsNobodyUpBeforeTheBound) {
  auto log = open({.request_bytes_max = 4'096,
                   .ring_bytes = 64 << 10,
                   .write_interval = std::chrono::milliseconds(1),
                   .sync_interval = std::chrono::milliseconds(1)},
                  true)
                 .value();
  files.stall_syncs(true);
  // Many times what a ring holds.
  for (int i = 0; i < 5'000; ++i) {
    ASSERT_TRUE(append(*log)) << i;
    clock.advance(std::chrono::milliseconds(1));
  }
  EXPECT_LT(logged().size(), appended_) << "the disk did stall";
  files.stall_syncs(false);
  ASSERT_TRUE(log->rotate());
  const auto ids = logged();
  ASSERT_EQ(ids.size(), appended_);
  for (std::size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(ids[i], std::to_string(i));
}

TEST_F(DecisionLogFiles, ASyncThatFailedLeavesADoubtThatTheAuditLogTells) {
  auto log = open().value();
  ASSERT_TRUE(append(*log));
  ASSERT_TRUE(log->flush());
  ASSERT_TRUE(append(*log));
  files.fail_sync();
  ASSERT_FALSE(log->flush());
  ASSERT_TRUE(append(*log));
  ASSERT_TRUE(log->rotate());
  EXPECT_EQ(logged().size(), 3u);
  auto entries = audited("authz_decision_segment");
  ASSERT_EQ(entries.size(), 1u);
  std::erase(entries[0], '\\');
  EXPECT_NE(entries[0].find(R"("recovered":true)"), std::string::npos) << entries[0];
}

TEST_F(DecisionLogFiles, WritesAStateThatIsLargerThanARecordOfAJournal) {
  std::vector<std::shared_ptr<const Entity>> entities;
  for (int i = 0; i < 300; ++i)
    entities.push_back(std::make_shared<const Entity>(
        Entity{{"Thing", std::to_string(i)}, {{"text", std::to_string(i) + std::string(60'000, 'x')}}, {}, {}}));
  auto large = std::make_shared<OrgState>(*state_);
  large->entities.put(std::move(entities));
  state_ = large;
  auto log = open().value();
  ASSERT_TRUE(append(*log));
  const auto done = log->rotate();
  ASSERT_TRUE(done) << done.error().to_string();
  EXPECT_EQ(logged().size(), 1u);
  EXPECT_EQ(latest_state(files, "/log", "default").value().entities.size(), 300u);
}

TEST_F(DecisionLogFiles, RemovesWhatIsTooOldAndSaysSo) {
  auto log = open({.age_max = hours(24 * 30)}).value();
  for (int day = 0; day < 4; ++day) {
    ASSERT_TRUE(append(*log));
    ASSERT_TRUE(log->rotate());
    clock.advance(hours(24));
  }
  EXPECT_EQ(list_segments(files, "/log").value().size(), 4u);
  clock.advance(hours(24 * 28) - seconds(1));
  ASSERT_TRUE(log->rotate());
  EXPECT_EQ(list_segments(files, "/log").value().size(), 2u);
  EXPECT_EQ(audited("authz_decision_segment_purged").size(), 2u);
}

TEST_F(DecisionLogFiles, RemovesTheOldestWhereItIsTooLarge) {
  auto log = open({.bytes_max = 3'000}).value();
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(append(*log));
    ASSERT_TRUE(log->rotate());
  }
  const auto left = list_segments(files, "/log").value();
  std::uint64_t bytes = 0;
  for (const SegmentName& name : left)
    bytes += files.size(std::filesystem::path("/log") / segment_name(name.sequence, false)).value();
  EXPECT_LE(bytes, 3'000u);
  ASSERT_FALSE(left.empty());
  EXPECT_EQ(left.back().sequence, 20u);
  EXPECT_EQ(audited("authz_decision_segment_purged").size(), 20 - left.size());
}

TEST_F(DecisionLogFiles, KeepsADamagedFileAsideAndSaysSo) {
  {
    auto log = open().value();
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(append(*log));
      ASSERT_TRUE(log->flush());
    }
    files.die_at(1);
  }
  files.crash();
  files.flip_bit("/log/0000000001.open", 8 * 100);
  auto log = open();
  ASSERT_TRUE(log) << log.error().to_string();
  EXPECT_TRUE(files.exists("/log/0000000001.damaged").value());
  EXPECT_EQ(audited("authz_decision_segment_damaged").size(), 1u);
  ASSERT_TRUE(append(**log));
  ASSERT_TRUE((*log)->rotate());
  EXPECT_EQ(list_segments(files, "/log").value().back().sequence, 2u);
}

TEST(DecisionRing, GivesBackWhatWasPutInWholeAndInOrder) {
  std::mt19937_64 random(5);  // tidy(random-engine): the same order every time
  DecisionRing ring(4'096);
  std::deque<std::uint64_t> waiting;
  std::uint64_t next = 0;
  std::size_t seen = 0;
  const auto read = [&](bool keep) {
    seen = 0;
    for (auto record = ring.next(); !record.empty(); record = ring.next()) {
      std::uint32_t size = 0;
      std::memcpy(&size, record.data(), sizeof(size));
      EXPECT_EQ(size, record.size());
      for (std::size_t at = 8; at < size; at += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, record.data() + at, sizeof(word));
        EXPECT_EQ(word, waiting.at(seen));
      }
      ++seen;
    }
    EXPECT_EQ(seen, waiting.size());
    if (keep) return ring.rewind();
    ring.release();
    waiting.clear();
  };
  for (int step = 0; step < 20'000; ++step) {
    const std::uint32_t size = 16 + 8 * static_cast<std::uint32_t>(random() % 60);
    std::byte* place = ring.reserve(size);
    if (!place) {
      ASSERT_FALSE(waiting.empty());
      read(random() % 4 == 0);
      continue;
    }
    std::memset(place, 0, 8);
    std::memcpy(place, &size, sizeof(size));
    for (std::size_t at = 8; at < size; at += 8) std::memcpy(place + at, &next, sizeof(next));
    ring.commit();
    waiting.push_back(next++);
    if (random() % 10 == 0) read(random() % 4 == 0);
  }
}

TEST(DecidedKey, IsReadAsItWasWritten) {
  for (std::uint64_t seed = 1; seed < 300; ++seed) {
    World world(seed);
    const CheckRequest request = world.request();
    const std::array<std::uint64_t, 2> versions{3, 4};
    const CacheKey key("org", 17, versions, request);
    const DecodedKey decoded = DecodedKey::of(key.written(), 2);
    EXPECT_EQ(decoded.org, "org");
    EXPECT_EQ(decoded.state_version, 17);
    ASSERT_EQ(decoded.chain.size(), request.chain.size());
    for (std::size_t i = 0; i < request.chain.size(); ++i) EXPECT_EQ(decoded.chain[i], request.chain[i].text());
    EXPECT_EQ(decoded.principal, request.principal.text());
    EXPECT_EQ(decoded.action, request.action);
    EXPECT_EQ(decoded.resource_type, request.resource.type);
    EXPECT_EQ(decoded.resource_id, request.resource.id);
    EXPECT_EQ(decoded.context, request.context);
    const auto [org, version] = DecodedKey::place_of(key.written(), 2);
    EXPECT_EQ(org, "org");
    EXPECT_EQ(version, 17);
  }
}

}  // namespace
}  // namespace creto::authz
