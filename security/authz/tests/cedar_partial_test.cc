#include "cedar/partial.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>

#include "cedar/entity_table.h"
#include "cedar/format.h"
#include "cedar/parser.h"
#include "cedar/policy_json.h"
#include "creto/testing/soak.h"
#include "tests/cedar_generator.h"

namespace creto::authz::cedar {
namespace {

PolicySet policies_of(const std::vector<std::string>& texts) {
  std::vector<std::shared_ptr<const PlannedPolicy>> policies;
  for (const std::string& text : texts) {
    auto parsed = parse_policies(text);
    if (!parsed) continue;  // generated: a literal out of range, a call that Cedar refuses at once
    policies.push_back(std::make_shared<PlannedPolicy>(fmt::format("p{}", policies.size()), std::move((*parsed)[0])));
  }
  return PolicySet(std::move(policies));
}

/// Each tries many requests.
std::uint64_t seeds() { return creto::testing::number_from("CRETO_ENGINE_ROUNDS", 400) / 20; }

std::string tell(const Result<bool>& satisfied) { return !satisfied ? "error" : *satisfied ? "yes" : "no"; }

/// "no", "yes", "error", or the one policy that is left, on one line.
std::string partially(const std::string& policy, const PartialRequest& request, std::vector<Entity> entities = {}) {
  const PolicySet policies = policies_of({policy});
  EntityTable table(std::move(entities));
  const auto result = evaluate_partially(policies, request, table);
  if (!result) return result.error().message();
  const PartialPolicy& one = result->policies.at(0);
  if (!one.residual)
    return one.outcome == PartialPolicy::Outcome::error ? "error" : tell(one.outcome == PartialPolicy::Outcome::yes);
  std::string text = to_text(*one.residual);
  std::replace(text.begin(), text.end(), '\n', ' ');
  while (text.ends_with(' ')) text.pop_back();
  return text;
}

/// `condition` for alice, who is in staff, reading an unknown Doc.
std::string left_of(const std::string& condition) {
  PartialRequest request{{EntityUid{"User", "alice"}}, {EntityUid{"Action", "read"}}, {std::nullopt, "Doc"}};
  request.context = Value::record({{"mfa", true}, {"n", 3}});
  request.unknown_context = {"later"};
  const std::string before = "permit (principal, action, resource) when { ";
  std::string text = partially(
      "permit(principal, action, resource) when { " + condition + " };", request,
      {{{"User", "alice"}, {{"age", 30}}, {}, {{"Group", "staff"}}}, {{"Group", "staff"}, {}, {}, {{"Group", "all"}}}});
  if (text.starts_with(before) && text.ends_with(" };"))
    text = text.substr(before.size(), text.size() - before.size() - 3);
  return text;
}

TEST(CedarPartial, FoldsWhatIsKnownAndKeepsTheRest) {
  EXPECT_EQ(left_of("resource.owner == principal"), "resource.owner == User::\"alice\"");
  EXPECT_EQ(left_of("principal in Group::\"all\" && resource.open"), "resource.open");
  EXPECT_EQ(left_of("principal in Group::\"none\" && resource.open"), "no");
  EXPECT_EQ(left_of("resource in Folder::\"x\""), "resource in Folder::\"x\"");
  EXPECT_EQ(left_of("principal.age + context.n > resource.limit"), "33 > resource.limit");
  EXPECT_EQ(left_of("context.mfa && context.later == 1"), "context.later == 1");
  EXPECT_EQ(left_of("context has later || context has n"), "yes");
  EXPECT_EQ(left_of("context has other"), "no");
  EXPECT_EQ(left_of("if resource.open then context.n == 3 else principal.age < 18"),
            "if resource.open then true else false");
}

TEST(CedarPartial, KnowsWhatAnUnknownOfAKnownTypeCannotBe) {
  EXPECT_EQ(left_of("resource is Doc && resource is Doc"), "yes");
  EXPECT_EQ(left_of("resource is User"), "no");
  EXPECT_EQ(left_of("resource == principal"), "no");
  EXPECT_EQ(left_of("[principal, Doc::\"a\"].contains(resource)"), "[Doc::\"a\", User::\"alice\"].contains(resource)");
  EXPECT_EQ(left_of("principal in resource"), "no");
  PartialRequest request{{EntityUid{"User", "alice"}}, {EntityUid{"Action", "read"}}, {}};
  const std::vector<Entity> entities = {{{"User", "alice"}, {}, {}, {{"Group", "staff"}}},
                                        {{"Group", "staff"}, {}, {}, {}}};
  request.resource.type = "Group";
  EXPECT_EQ(partially("permit(principal, action, resource) when { principal in resource };", request, entities),
            "permit (principal, action, resource) when { resource == Group::\"staff\" };");
}

TEST(CedarPartial, NeverDropsAnOperandThatMayErr) {
  EXPECT_EQ(left_of("false && resource.x"), "no");
  EXPECT_EQ(left_of("resource.x && false"), "resource.x && false");
  EXPECT_EQ(left_of("resource has x && false"), "no");
  EXPECT_EQ(left_of("resource has x.y && false"), "resource has x.y && false");
  EXPECT_EQ(left_of("resource.x && resource has x && false"), "resource.x && false");
  EXPECT_EQ(left_of("resource.x || true"), "resource.x || true");
  EXPECT_EQ(left_of("(true && resource.x) == 1"), "(true && resource.x) == 1");
  EXPECT_EQ(left_of("principal.none == resource.x"), "error");
  EXPECT_EQ(left_of("resource.x && principal.none"), "resource.x && User::\"alice\".none");
  EXPECT_EQ(left_of("resource has x && 3 < \"\""), "resource has x && 3 < \"\"");
  EXPECT_EQ(left_of("resource < 3"), "error");
}

TEST(CedarPartial, LeavesOpenWhatAnUnknownEntityMayBringWithIt) {
  // Doc::"plan" may be the resource, and then has an owner; User::"bob" is certainly nobody.
  EXPECT_EQ(left_of("Doc::\"plan\".owner == principal"), "Doc::\"plan\".owner == User::\"alice\"");
  EXPECT_EQ(left_of("Doc::\"plan\" in Folder::\"x\""), "Doc::\"plan\" in Folder::\"x\"");
  EXPECT_EQ(left_of("User::\"bob\".name == \"Bob\""), "error");
  EXPECT_EQ(left_of("User::\"bob\" in Group::\"staff\""), "no");
}

TEST(CedarPartial, LeavesOpenWhatOneUnknownEntityMayBringForAnother) {
  // The principal may be User::"eve", who is then in whatever group the resource is.
  PartialRequest request{{std::nullopt, "User"}, {EntityUid{"Action", "read"}}, {std::nullopt, "Group"}};
  const std::vector<Entity> entities = {{{"Bot", "b"}, {}, {}, {{"User", "eve"}}}};
  const std::string policy = "permit(principal, action, resource) when { Bot::\"b\" in resource };";
  EXPECT_EQ(partially(policy, request, entities),
            "permit (principal, action, resource) when { Bot::\"b\" in resource };");
  request.principal = {EntityUid{"User", "ada"}};
  EXPECT_EQ(partially(policy, request, entities), "no");
  // The resource may be the principal, of whom nothing is known yet.
  request.resource.type = "User";
  EXPECT_EQ(partially("permit(principal in Group::\"g\", action, resource);", request),
            "permit (principal in Group::\"g\", action, resource);");
  request.resource.type = "Group";
  EXPECT_EQ(partially("permit(principal in Group::\"g\", action, resource);", request), "no");
}

TEST(CedarPartial, KeepsTheScopeOfWhatIsUnknown) {
  const PartialRequest request{{EntityUid{"User", "alice"}}, {EntityUid{"Action", "read"}}, {std::nullopt, "Doc"}};
  const std::string head = "permit (principal, action, resource";
  EXPECT_EQ(partially("@id(\"x\") permit(principal is User, action == Action::\"read\", resource in Folder::\"f\");",
                      request),
            "@id(\"x\") " + head + " in Folder::\"f\");");
  EXPECT_EQ(partially("permit(principal, action, resource is Doc in Folder::\"f\");", request),
            head + " in Folder::\"f\");");
  EXPECT_EQ(partially("permit(principal, action, resource is Doc);", request), "yes");
  EXPECT_EQ(partially("permit(principal, action, resource == User::\"f\") when { 1 < \"\" };", request), "no");
  EXPECT_EQ(partially("permit(principal, action, resource) when { 1 < \"\" };", request), "error");
  EXPECT_EQ(partially("permit(principal, action, resource == Doc::\"f\") when { 1 < \"\" };", request),
            head + " == Doc::\"f\") when { 1 < \"\" };");
}

TEST(CedarPartial, DecidesOnlyWhatIsCertain) {
  const PartialRequest request{{EntityUid{"User", "alice"}}, {EntityUid{"Action", "read"}}, {}};
  const auto decide = [&](const std::vector<std::string>& conditions, ErringForbid erring) {
    std::vector<std::string> texts;
    for (const std::string& condition : conditions) {
      const std::size_t effect = condition.find(' ');
      texts.push_back(fmt::format("{}(principal, action, resource) when {{ {} }};", condition.substr(0, effect),
                                  condition.substr(effect)));
    }
    const PolicySet policies = policies_of(texts);
    EntityTable none;
    return evaluate_partially(policies, request, none)->decision(erring);
  };
  using enum PartialDecision;
  constexpr auto skipped = ErringForbid::skipped, denies = ErringForbid::denies;
  EXPECT_EQ(decide({"permit true"}, skipped), allow);
  EXPECT_EQ(decide({"permit resource.x"}, skipped), undecided);
  EXPECT_EQ(decide({"permit resource.x && false"}, skipped), deny);
  EXPECT_EQ(decide({"permit true", "forbid resource.x && false"}, skipped), allow);
  EXPECT_EQ(decide({"permit true", "forbid resource.x && false"}, denies), undecided);
  EXPECT_EQ(decide({"permit true", "forbid 1 < \"\""}, skipped), allow);
  EXPECT_EQ(decide({"permit true", "forbid 1 < \"\""}, denies), deny);
  EXPECT_EQ(decide({"permit resource.x", "forbid true"}, skipped), deny);
  EXPECT_EQ(decide({}, skipped), deny);
}

TEST(CedarPartial, RefusesWhatGrowsTooLarge) {
  std::vector<Value> many;
  for (int i = 0; i < 8'000; ++i) many.emplace_back(i);
  PartialRequest request{{EntityUid{"User", "alice"}}, {EntityUid{"Action", "read"}}, {}};
  request.context = Value::record({{"all", Value::set(std::move(many))}});
  std::string condition = "context.all.contains(resource.a)";
  for (int i = 0; i < 20; ++i) condition += " && context.all.contains(resource.a)";
  EXPECT_EQ(partially("permit(principal, action, resource) when { " + condition + " };", request),
            "policy `p0`: what is left of the policies is larger than 100000 operators");
}

/// A request with parts of it hidden, and the entities as far as they are told.
struct Hidden {
  PartialRequest request;
  std::map<EntityUid, Entity> entities;
};

Hidden hide(Generator& generator, const Request& request, const std::map<EntityUid, Entity>& entities) {
  Hidden hidden{{}, entities};
  const auto side = [&](PartialEntity& into, const EntityUid& uid, unsigned percent) {
    if (!generator.chance(percent)) {
      into.uid = uid;
      return;
    }
    if (generator.chance(60)) into.type = uid.type;
    if (generator.chance(50)) hidden.entities.erase(uid);
  };
  side(hidden.request.principal, request.principal, 40);
  side(hidden.request.action, request.action, 15);
  side(hidden.request.resource, request.resource, 70);
  hidden.request.context_unknown = generator.chance(15);
  Attributes known;
  if (!hidden.request.context_unknown) known = *request.context.as_record();
  if (generator.chance(50)) {
    for (const char* name : {"n", "m", "f", "s", "e", "es", "r", "t"}) {
      if (!generator.chance(30)) continue;
      hidden.request.unknown_context.insert(name);
      known.emplace_back(name, Value("what stands here does not count"));
    }
  }
  hidden.request.context = Value::record(std::move(known));
  return hidden;
}

/// Policies that ask for entities by the names that are hidden.
std::string policy_by_name(Generator& generator, const std::vector<Request>& requests) {
  const auto name = [&] {
    const Request& request = requests[generator.below(requests.size())];
    const EntityUid& known = generator.chance(50) ? request.resource : request.principal;
    return (generator.chance(60) ? known : generator.uid()).to_string();
  };
  const auto variable = [&] { return generator.chance(50) ? "principal" : "resource"; };
  std::string condition;
  switch (generator.below(7)) {
    case 0:
      condition = fmt::format("{} in {}", name(), name());
      break;
    case 1:
      condition = fmt::format("{} in [{}, {}]", name(), name(), variable());
      break;
    case 2:
      condition = fmt::format("{}.n == {}.n || {}.f", name(), variable(), name());
      break;
    case 3:
      condition = fmt::format("{} has {}", name(), generator.chance(50) ? "n" : "r.n");
      break;
    case 4:
      condition = fmt::format("{}.hasTag(\"x\")", name());
      break;
    case 5:
      condition = fmt::format("{} in {}", variable(), variable());
      break;
    default:
      return fmt::format("permit({} in {}, action, {} in {});", "principal", name(), "resource", name());
  }
  return fmt::format("permit(principal, action, resource) {} {{ {} }};", generator.chance(50) ? "when" : "unless",
                     condition);
}

/// Through text and through JSON.
std::vector<PolicyAst> read_back(const PolicyAst& residual) {
  std::vector<PolicyAst> all;
  const std::string text = to_text(residual);
  auto parsed = parse_policies(text);
  EXPECT_TRUE(parsed) << text;
  if (parsed) all.push_back(std::move((*parsed)[0]));
  const auto json = to_json(residual);
  auto read = json ? policy_from_json(*json) : Result<PolicyAst>(json.error());
  EXPECT_TRUE(read) << text;
  if (read) all.push_back(*std::move(read));
  return all;
}

TEST(CedarPartial, IsSatisfiedAndErrsAsThePolicyDoesHoweverTheRequestIsCompleted) {
  using Outcome = PartialPolicy::Outcome;
  std::map<Outcome, std::size_t> met;
  std::map<std::string, std::size_t> residuals;
  for (std::uint64_t seed = 1; seed <= seeds(); ++seed) {
    Generator generator(seed);
    const Generated generated = generate(seed, {.policies = 12, .entities = 12, .requests = 10});
    std::vector<std::string> texts;
    for (const GeneratedPolicy& policy : generated.policies) texts.push_back(policy.text);
    for (int i = 0; i < 10; ++i) texts.push_back(policy_by_name(generator, generated.requests));
    const PolicySet policies = policies_of(texts);
    std::map<EntityUid, Entity> entities;
    for (const Entity& entity : generated.entities) entities.emplace(entity.uid, entity);
    const auto table = [](const std::map<EntityUid, Entity>& all) {
      EntityTable table;
      for (const auto& [uid, entity] : all) table.add(entity);
      return table;
    };
    EntityTable whole = table(entities);
    for (const Request& request : generated.requests) {
      const Hidden hidden = hide(generator, request, entities);
      EntityTable told = table(hidden.entities);
      const auto partial = evaluate_partially(policies, hidden.request, told);
      ASSERT_TRUE(partial) << partial.error().message();
      ASSERT_EQ(partial->policies.size(), policies.policies().size());
      bool permitted = false, forbidden = false, forbid_erred = false;
      for (const PartialPolicy& policy : partial->policies) {
        const PolicyAst& ast = policy.policy->ast;
        const auto satisfied = is_satisfied(ast, request, whole);
        const std::string wanted = tell(satisfied);
        const auto context = [&] {
          return fmt::format("seed {}, request {} {} {} {}\n{}left: {}", seed, request.principal.to_string(),
                             request.action.to_string(), request.resource.to_string(), request.context.to_string(),
                             to_text(ast), policy.residual ? to_text(*policy.residual) : "");
        };
        ++met[policy.outcome];
        if (policy.outcome != Outcome::residual) {
          const std::string got = policy.outcome == Outcome::error ? "error"
                                  : policy.outcome == Outcome::yes ? "yes"
                                                                   : "no";
          ASSERT_EQ(got, wanted) << context();
        } else {
          ++residuals[wanted];
          ASSERT_EQ(tell(is_satisfied(*policy.residual, request, whole)), wanted) << context();
          for (const PolicyAst& read : read_back(*policy.residual)) {
            ASSERT_EQ(tell(is_satisfied(read, request, whole)), wanted) << context();
          }
          if (!policy.can_apply) ASSERT_NE(wanted, "yes") << context();
        }
        (ast.effect == Effect::permit ? permitted : forbidden) |= wanted == "yes";
        forbid_erred |= ast.effect == Effect::forbid && wanted == "error";
      }
      for (const ErringForbid erring : {ErringForbid::skipped, ErringForbid::denies}) {
        const bool allowed = permitted && !forbidden && (erring == ErringForbid::skipped || !forbid_erred);
        const PartialDecision decision = partial->decision(erring);
        if (decision == PartialDecision::undecided) continue;
        ASSERT_EQ(decision == PartialDecision::allow, allowed) << "seed " << seed;
      }
    }
  }
  for (const Outcome outcome : {Outcome::no, Outcome::yes, Outcome::error, Outcome::residual}) {
    EXPECT_GT(met[outcome], seeds()) << static_cast<int>(outcome);
  }
  for (const char* wanted : {"no", "yes", "error"}) EXPECT_GT(residuals[wanted], seeds() / 2) << wanted;
}

TEST(CedarPartial, ListsTheResourcesThatChecksOneByOneAllow) {
  std::size_t listed = 0, refused = 0;
  for (std::uint64_t seed = 1; seed <= seeds(); ++seed) {
    const Generated generated = generate(seed, {.policies = 6, .entities = 12, .requests = 1});
    const PolicySet policies = compile(generated);
    EntityTable table(generated.entities);
    const Request& request = generated.requests[0];
    std::vector<EntityUid> candidates;
    for (const char* id : {"a", "b", "c", "d"}) candidates.push_back({request.resource.type, id});
    const auto evaluation = evaluate_partially(policies,
                                               {.principal = {request.principal},
                                                .action = {request.action},
                                                .resource = {std::nullopt, request.resource.type},
                                                .context = request.context},
                                               table);
    ASSERT_TRUE(evaluation) << evaluation.error().message();
    for (const ErringForbid erring : {ErringForbid::skipped, ErringForbid::denies}) {
      const auto got = query_resources(*evaluation, erring, candidates, table);
      ASSERT_TRUE(got) << got.error().message();
      std::vector<EntityUid> wanted;
      for (const EntityUid& candidate : candidates) {
        Request one = request;
        one.resource = candidate;
        const Evaluation evaluation = policies.evaluate(one, table);
        const bool forbid_erred =
            std::any_of(evaluation.errors.begin(), evaluation.errors.end(),
                        [](const auto& failed) { return failed.first->ast.effect == Effect::forbid; });
        if (evaluation.allows() && (erring == ErringForbid::skipped || !forbid_erred)) wanted.push_back(candidate);
      }
      ASSERT_EQ(*got, wanted) << "seed " << seed;
      listed += got->size();
      refused += candidates.size() - got->size();
    }
  }
  EXPECT_GT(listed, seeds() / 2);
  EXPECT_GT(refused, seeds());
}

}  // namespace
}  // namespace creto::authz::cedar
