#include "cedar/parser.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace creto::authz::cedar {
namespace {

std::string error_of(std::string_view text, ParseLimits limits = {}) {
  auto parsed = parse_policies(text, limits);
  return parsed ? "parsed" : parsed.error().message();
}
std::string error_in(std::string_view expression) {
  return error_of(fmt::format("permit(principal,action,resource) when {{ {} }};", expression));
}

TEST(CedarParser, ReadsScopesAnnotationsAndConditions) {
  auto parsed = parse_policies(R"(
    // a comment
    @id("pay") @oversight("large payments") @reserved_if
    forbid(principal is Agent in Group::"payers", action in [Action::"a", Action::"b"], resource == Ledger::"main")
      when { context.amount > 10000 } unless { principal has vip && principal.vip };
    permit(principal, action, resource);)");
  ASSERT_TRUE(parsed) << parsed.error().message();
  ASSERT_EQ(parsed->size(), 2u);
  const PolicyAst& first = parsed->front();
  EXPECT_EQ(first.effect, Effect::forbid);
  EXPECT_EQ(first.annotations.at("oversight"), "large payments");
  EXPECT_EQ(first.annotations.at("reserved_if"), "");
  EXPECT_EQ(first.principal.kind, ScopeConstraint::Kind::is_in);
  EXPECT_EQ(first.principal.type, "Agent");
  EXPECT_EQ(first.action.entities.size(), 2u);
  EXPECT_EQ(first.resource.entities[0].to_string(), "Ledger::\"main\"");
  ASSERT_EQ(first.conditions.size(), 2u);
  EXPECT_FALSE(first.conditions[0].unless);
  EXPECT_TRUE(first.conditions[1].unless);
}

TEST(CedarParser, SaysWhereAndWhatItExpected) {
  EXPECT_EQ(error_of("permit(principal, action, resource)\n  when { 1 + ] };"),
            "line 2, column 14: found `]`, expected an expression");
  EXPECT_EQ(error_of("permit(principal, action resource);"), "line 1, column 26: found `resource`, expected `,`");
  EXPECT_EQ(error_of("permit(principal, action, resource)"),
            "line 1, column 36: found the end of the text, expected `when`, `unless` or `;`");
  EXPECT_EQ(error_of("allow(principal, action, resource);"),
            "line 1, column 1: found `allow`, expected `permit`, `forbid` or an annotation");
  EXPECT_EQ(error_of("permit(principal == \"x\", action, resource);"),
            "line 1, column 21: found a string, expected an entity such as Type::\"id\"");
  EXPECT_EQ(error_in("\"öäü\" like 5"), "line 1, column 53: found `5`, expected a pattern in quotes");
}

TEST(CedarParser, RefusesWhatCedarRefuses) {
  EXPECT_NE(error_in("1 == 2 == 3"), "parsed");
  EXPECT_NE(error_in("a"), "parsed");
  EXPECT_NE(error_in("9223372036854775808 > 0"), "parsed");
  EXPECT_NE(error_in("!!!!!true"), "parsed");
  EXPECT_NE(error_in("!-1"), "parsed");
  EXPECT_NE(error_in("{a: 1, \"a\": 2} == {}"), "parsed");
  EXPECT_NE(error_in("principal.if == 1"), "parsed");
  EXPECT_NE(error_in("context.contains()"), "parsed");
  EXPECT_NE(error_in("frobnicate(1)"), "parsed");
  EXPECT_NE(error_in("context.frobnicate(1)"), "parsed");
  EXPECT_NE(error_in("\"1.0\".decimal()"), "parsed");
  EXPECT_NE(error_in("lessThan(decimal(\"1.0\"), decimal(\"2.0\"))"), "parsed");
  EXPECT_NE(error_in("\"\\q\" == \"\""), "parsed");
  EXPECT_NE(error_in("\"\\*\" == \"\""), "parsed") << "only a pattern may escape the asterisk";
  EXPECT_NE(error_in("\"open == 1"), "parsed");
  EXPECT_NE(error_in("__cedar::Foo::\"x\" == principal"), "parsed");
  EXPECT_NE(error_in("6 / 2 == 3"), "parsed");
  EXPECT_NE(error_in("context[0]"), "parsed");
  EXPECT_NE(error_of("@a @a permit(principal,action,resource);"), "parsed");
  EXPECT_NE(error_of("permit(principal,action == User::\"x\",resource);"), "parsed");
  EXPECT_NE(error_of("permit(principal,action,resource) when { true \xff };"), "parsed");
}

TEST(CedarParser, ReadsTemplatesWhereTheyAreWelcome) {
  constexpr std::string_view text = "permit(principal == ?principal, action, resource is Photo in ?resource);";
  EXPECT_EQ(error_of(text),
            "line 1, column 1: this policy is a template (`?principal`, `?resource`) and decides nothing; link it to "
            "entities first");
  const auto parsed = parse_policies_and_templates(text);
  ASSERT_TRUE(parsed.ok());
  EXPECT_TRUE(parsed.value[0].is_template());
  EXPECT_TRUE(parsed.value[0].resource.slot);
  EXPECT_EQ(error_of("permit(principal == ?resource, action, resource);"),
            "line 1, column 21: found the slot `?resource`: a slot may only stand after `==` or `in` of the principal "
            "(`?principal`) or the resource (`?resource`)");
  EXPECT_NE(error_in("principal == ?principal"), "parsed");
}

TEST(CedarParser, TellsOneProblemOfEachBrokenPolicyAndReadsTheOthers) {
  const auto parsed = parse_policies_and_templates(
      "permit(principal, action, resource) when { 1 + };\n"
      "permit(principal, action, resource);\n"
      "forbid(principal, action, resource) when { true } // the end is missing\n"
      "@id(\"x\") permit(principal, action, resource) when { \"open };\n"
      "permit(principal, action, resource) when { ` };\n"
      "permt(principal, action, resource);\n"
      "permit(principal, action, resource);");
  std::string problems;
  for (const Problem& problem : parsed.problems) problems += to_string(problem) + "\n";
  EXPECT_EQ(problems,
            "line 1, column 48: found `}`, expected an expression\n"
            "line 4, column 1: found `@`, expected `when`, `unless` or `;`\n"
            "line 4, column 53: string is not closed: expected `\"`\n"
            "line 5, column 44: ``` begins nothing in Cedar\n"
            "line 6, column 1: found `permt`, expected `permit`, `forbid` or an annotation\n");
  EXPECT_EQ(parsed.value.size(), 2u);
}

TEST(CedarParser, ReadsTheSmallestInteger) {
  EXPECT_EQ(error_in("-9223372036854775808 < 0"), "parsed");
  EXPECT_NE(error_in("-(9223372036854775808) < 0"), "parsed");
  EXPECT_NE(error_in("-9223372036854775809 < 0"), "parsed");
}

TEST(CedarParser, BoundsNestingWithoutBoundingChains) {
  const auto nested = [](std::size_t n) { return std::string(n, '(') + "true" + std::string(n, ')'); };
  EXPECT_EQ(error_in(nested(100)), "parsed");
  EXPECT_NE(error_in(nested(100'000)).find("nested more than"), std::string::npos);
  std::string chain = "true";
  for (int i = 0; i < 5'000; ++i) chain += " && true";
  EXPECT_EQ(error_in(chain), "parsed");
  std::string sum = "1";
  for (int i = 0; i < 5'000; ++i) sum += " + 1";
  EXPECT_NE(error_in(sum + " > 1"), "parsed");
  EXPECT_NE(error_in(std::string(5'000, '[') + std::string(5'000, ']')), "parsed");
  std::string ifs;
  for (int i = 0; i < 5'000; ++i) ifs += "if true then true else ";
  EXPECT_NE(error_in(ifs + "true"), "parsed");
}

TEST(CedarParser, RefusesTooMuchText) {
  EXPECT_NE(error_of(std::string(2 << 20, ' ')), "parsed");
  std::string many;
  for (int i = 0; i < 5; ++i) many += "permit(principal,action,resource);";
  EXPECT_NE(error_of(many, {.policies_max = 4}), "parsed");
}

}  // namespace
}  // namespace creto::authz::cedar
