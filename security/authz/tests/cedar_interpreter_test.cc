#include "cedar/interpreter.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "cedar/entity_table.h"
#include "cedar/parser.h"
#include "cedar/policy_set.h"

namespace creto::authz::cedar {
namespace {

EntityTable people() {
  EntityTable table;
  table.add({{"User", "anna"}, {{"age", 30}, {"boss", EntityUid{"User", "bob"}}}, {{"team", "red"}}, {{"Group", "a"}}});
  table.add({{"User", "bob"}, {{"age", 60}}, {}, {}});
  table.add({{"Group", "a"}, {}, {}, {{"Group", "top"}}});
  table.add({{"Group", "loop1"}, {}, {}, {{"Group", "loop2"}}});
  table.add({{"Group", "loop2"}, {}, {}, {{"Group", "loop1"}}});
  return table;
}

/// "true", another value, "error: …", or "syntax: …".
std::string value_of(std::string_view expression) {
  auto parsed = parse_policies(fmt::format("permit(principal,action,resource) when {{ {} }};", expression));
  if (!parsed) return "syntax: " + parsed.error().message();
  EntityTable table = people();
  const Request request{{"User", "anna"},
                        {"Action", "read"},
                        {"Doc", "d"},
                        Value::record({{"n", 5}, {"s", Value::set({1, 2, 2})}, {"r", Value::record({{"x", 1}})}})};
  auto value = evaluate(parsed->front(), parsed->front().conditions[0].expression, request, table);
  if (value) return value->to_string();
  return value.error().message().find("overflow") != std::string::npos ? "overflow" : "error";
}

TEST(CedarInterpreter, ComparesTotally) {
  EXPECT_EQ(value_of("1 == \"1\""), "false");
  EXPECT_EQ(value_of("[1, 2] == [2, 1, 1]"), "true");
  EXPECT_EQ(value_of("{a: 1, b: 2} == {b: 2, a: 1}"), "true");
  EXPECT_EQ(value_of("User::\"a\" != Group::\"a\""), "true");
  EXPECT_EQ(value_of("1 < true"), "error");
  EXPECT_EQ(value_of("decimal(\"1.0\") < decimal(\"2.0\")"), "error") << "decimals have methods for that";
  EXPECT_EQ(value_of("duration(\"1s\") < duration(\"1m\")"), "true");
  EXPECT_EQ(value_of("datetime(\"2024-01-01\") < duration(\"1m\")"), "error");
}

TEST(CedarInterpreter, ChecksIntegersForOverflow) {
  EXPECT_EQ(value_of("9223372036854775807 + 1 > 0"), "overflow");
  EXPECT_EQ(value_of("-9223372036854775808 - 1 < 0"), "overflow");
  EXPECT_EQ(value_of("9223372036854775807 * 2 > 0"), "overflow");
  EXPECT_EQ(value_of("--9223372036854775808 > 0"), "overflow");
  EXPECT_EQ(value_of("2 * 3 + 4 - 5"), "5");
  EXPECT_EQ(value_of("10 - 3 - 2"), "5");
}

TEST(CedarInterpreter, ShortCircuitsButStillWantsBooleans) {
  EXPECT_EQ(value_of("false && 1"), "false");
  EXPECT_EQ(value_of("true && 1"), "error");
  EXPECT_EQ(value_of("true || 1 + true"), "true");
  EXPECT_EQ(value_of("false || 1"), "error");
  EXPECT_EQ(value_of("1 && false"), "error");
  EXPECT_EQ(value_of("if true then 1 else 1 + true"), "1");
  EXPECT_EQ(value_of("if 1 then 1 else 2"), "error");
  EXPECT_EQ(value_of("!1"), "error");
}

TEST(CedarInterpreter, FollowsTheHierarchy) {
  EXPECT_EQ(value_of("principal in Group::\"top\""), "true");
  EXPECT_EQ(value_of("principal in principal"), "true");
  EXPECT_EQ(value_of("User::\"nobody\" in User::\"nobody\""), "true");
  EXPECT_EQ(value_of("User::\"nobody\" in Group::\"a\""), "false");
  EXPECT_EQ(value_of("principal in [Group::\"x\", Group::\"a\"]"), "true");
  EXPECT_EQ(value_of("principal in []"), "false");
  EXPECT_EQ(value_of("principal in [Group::\"a\", 1]"), "error");
  EXPECT_EQ(value_of("principal in 1"), "error");
  EXPECT_EQ(value_of("1 in principal"), "error");
  EXPECT_EQ(value_of("principal is User in Group::\"top\""), "true");
  EXPECT_EQ(value_of("principal is Group in 1"), "false");
  EXPECT_EQ(value_of("Group::\"loop1\" in Group::\"loop1\""), "true") << "a cycle ends";
}

TEST(CedarInterpreter, ReadsAttributesAndTags) {
  EXPECT_EQ(value_of("principal.boss.age"), "60");
  EXPECT_EQ(value_of("principal[\"age\"]"), "30");
  EXPECT_EQ(value_of("principal.nothing"), "error");
  EXPECT_EQ(value_of("User::\"nobody\".age"), "error");
  EXPECT_EQ(value_of("User::\"nobody\" has age"), "false");
  EXPECT_EQ(value_of("principal has boss.age"), "true");
  EXPECT_EQ(value_of("principal has boss.nothing"), "false");
  EXPECT_EQ(value_of("principal has age.x"), "error");
  EXPECT_EQ(value_of("context has r.x"), "true");
  EXPECT_EQ(value_of("1 has x"), "error");
  EXPECT_EQ(value_of("principal.hasTag(\"team\")"), "true");
  EXPECT_EQ(value_of("principal.getTag(\"team\")"), "\"red\"");
  EXPECT_EQ(value_of("principal.getTag(\"x\")"), "error");
  EXPECT_EQ(value_of("User::\"nobody\".hasTag(\"x\")"), "false");
}

TEST(CedarInterpreter, AsksSets) {
  EXPECT_EQ(value_of("context.s.contains(2)"), "true");
  EXPECT_EQ(value_of("context.s.containsAll([2, 1])"), "true");
  EXPECT_EQ(value_of("context.s.containsAll([])"), "true");
  EXPECT_EQ(value_of("context.s.containsAny([3])"), "false");
  EXPECT_EQ(value_of("context.s.containsAny([])"), "false");
  EXPECT_EQ(value_of("[].isEmpty()"), "true");
  EXPECT_EQ(value_of("context.s.containsAll(1)"), "error");
  EXPECT_EQ(value_of("context.n.contains(1)"), "error");
}

TEST(CedarInterpreter, MatchesPatterns) {
  EXPECT_EQ(value_of("\"abcd\" like \"a*d\""), "true");
  EXPECT_EQ(value_of("\"abab\" like \"ab*ab\""), "true");
  EXPECT_EQ(value_of("\"aba\" like \"ab*ba\""), "false") << "pieces do not overlap";
  EXPECT_EQ(value_of("\"a*b\" like \"a\\*b\""), "true");
  EXPECT_EQ(value_of("\"axb\" like \"a\\*b\""), "false");
  EXPECT_EQ(value_of("\"\" like \"*\""), "true");
  EXPECT_EQ(value_of("\"x\" like \"\""), "false");
  EXPECT_EQ(value_of("\"xaybz\" like \"*a*b*\""), "true");
  EXPECT_EQ(value_of("1 like \"*\""), "error");
}

TEST(CedarInterpreter, SkipsAPolicyThatErrsAndReportsIt) {
  auto parsed = parse_policies(R"(
    permit(principal, action, resource);
    forbid(principal, action, resource) when { context.missing };
    permit(principal, action == Action::"write", resource);
    permit(principal, action in [Action::"read"], resource) unless { context.n > 10 };)");
  ASSERT_TRUE(parsed);
  std::vector<std::shared_ptr<const PlannedPolicy>> policies;
  for (PolicyAst& ast : *parsed) {
    policies.push_back(std::make_shared<PlannedPolicy>(fmt::format("p{}", policies.size()), std::move(ast)));
  }
  EntityTable table = people();
  const Evaluation got = PolicySet(policies).evaluate(
      {{"User", "anna"}, {"Action", "read"}, {"Doc", "d"}, Value::record({{"n", 5}})}, table);
  EXPECT_TRUE(got.allows());
  ASSERT_EQ(got.permits.size(), 2u);
  ASSERT_EQ(got.errors.size(), 1u);
  EXPECT_EQ(got.errors[0].first->id, "p1");
}

}  // namespace
}  // namespace creto::authz::cedar
