#include "cedar/format.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cedar/policy_json.h"

namespace creto::authz::cedar {
namespace {

PolicyAst parsed(std::string_view text) {
  auto policies = parse_policies_and_templates(text);
  EXPECT_TRUE(policies.ok()) << to_error(policies.problems).message() << "\n" << text;
  return policies.value.empty() ? PolicyAst{} : std::move(policies.value[0]);
}

Json json_of(const PolicyAst& policy) {
  auto json = to_json(policy);
  EXPECT_TRUE(json) << json.error().message();
  return json ? *json : Json();
}

/// Text, tree, JSON: each way gives the same tree, of which the JSON is the witness.
void expect_round_trips(std::string_view text) {
  const PolicyAst policy = parsed(text);
  const Json json = json_of(policy);
  const PolicyAst printed = parsed(to_text(policy));
  EXPECT_EQ(json_of(printed), json) << to_text(policy);
  EXPECT_EQ(to_text(printed), to_text(policy));
  const auto read = policy_from_json(json);
  ASSERT_TRUE(read) << read.error().message() << "\n" << json.dump(2);
  EXPECT_EQ(json_of(*read), json);
  const auto laid_out = format_policies(text);
  ASSERT_TRUE(laid_out) << laid_out.error().message();
  EXPECT_EQ(json_of(parsed(*laid_out)), json) << *laid_out;
  EXPECT_EQ(format_policies(*laid_out).value_or(""), *laid_out);
}

constexpr std::string_view expressions[] = {
    "true",
    "principal == User::\"a\\\"\\u{1F600}\\0\"",
    "1 + 2 * 3 - -4 == -(5) - (6 - 7)",
    "(1 + 2) * 3 < 4 * (5 * 6)",
    "-9223372036854775808 <= context.n",
    "-(-1) == 1 && -(-(context.n)) == 1",
    "!true || !!(!(!!!false) && true) || !(1 == 2)",
    "(true || false) && true || true && (1 == 2 || false)",
    "(if true then false else true) && (if true then 1 == 1 else false)",
    "(true || false) == (1 != 2)",
    "principal in [Group::\"a\", Group::\"b\"] || principal is A::User || principal is User in Group::\"x\"",
    "context.path like \"a*\\*b\\\\*\" && context[\"odd \\\"name\\\"\"] like \"\"",
    "principal has a.b.c && context has \"not a name\" && context has if_",
    "(principal has a).b has c",
    "[1, [2], {}, {a: 1, \"b c\": [true]}].contains({x: principal.y})",
    "[].isEmpty() && [1].containsAll([1]) && [1].containsAny([2]) && resource.hasTag(\"t\") && resource.getTag(\"t\")",
    "ip(\"::1\").isInRange(ip(\"::/8\")) && decimal(\"1.0\").lessThan(context.d)",
    "datetime(\"2024-01-01\").offset(duration(\"1d\")) >= context.at",
    "(-1).foo == (1 + 2).bar && {a: 1}.a > 0",
    "context.is_it && context[\"is\"] && context[\"in\"]",
};

TEST(CedarText, SurvivesPrintingJsonAndLayout) {
  for (const std::string_view expression : expressions) {
    SCOPED_TRACE(expression);
    expect_round_trips(fmt::format("permit(principal, action, resource) when {{ {} }};", expression));
  }
  expect_round_trips(
      "@id(\"a\") @note forbid(principal is User in ?principal, action in [Action::\"a\", A::Action::\"b\"], "
      "resource == ?resource) when { true } unless { false };");
  expect_round_trips("permit(principal == U::\"a\", action == Action::\"b\", resource in R::\"c\");");
  expect_round_trips("permit(principal in U::\"a\", action in Action::\"b\", resource is R);");
  expect_round_trips("permit(principal, action in [], resource);");
}

TEST(CedarText, PrintsNoParenthesesThatAreNotNeeded) {
  const auto policy = parsed("permit(principal,action,resource)when{((1+(2))*(3))==(9)&&(((true)))};");
  EXPECT_EQ(to_text(policy), "permit (principal, action, resource)\nwhen { (1 + 2) * 3 == 9 && true };\n");
}

TEST(CedarLayout, BreaksWhatIsTooLongAndKeepsEveryComment) {
  const auto laid_out = format_policies(
      "// Licence\n\n\n// about the first\n@id(\"a\")permit(principal,action,resource)// who\nwhen{true};// done\n"
      "permit(principal in Group::\"payers\",action in[Action::\"pay\",Action::\"refund\"],resource is Ledger)"
      "when{context.amount<10000&&// small\ncontext.currency==\"EUR\"||(if principal has vip then principal.vip else "
      "[\"a\",\"b\"].contains(context.reason))}unless{resource.closed};\n// end",
      {.width = 60});
  ASSERT_TRUE(laid_out) << laid_out.error().message();
  EXPECT_EQ(*laid_out,
            "// Licence\n"
            "\n"
            "// about the first\n"
            "@id(\"a\")\n"
            "permit (principal, action, resource) // who\n"
            "when { true }; // done\n"
            "\n"
            "permit (\n"
            "  principal in Group::\"payers\",\n"
            "  action in [Action::\"pay\", Action::\"refund\"],\n"
            "  resource is Ledger\n"
            ")\n"
            "when {\n"
            "  context.amount < 10000\n"
            "  && // small\n"
            "  context.currency == \"EUR\"\n"
            "  || (\n"
            "    if principal has vip\n"
            "      then principal.vip\n"
            "      else [\"a\", \"b\"].contains(context.reason)\n"
            "  )\n"
            "}\n"
            "unless { resource.closed };\n"
            "// end\n");
  EXPECT_EQ(format_policies(*laid_out, {.width = 60}).value_or(""), *laid_out);
}

TEST(CedarLayout, LeavesWhatCannotBeReadAlone) {
  EXPECT_FALSE(format_policies("permit(principal, action);"));
  EXPECT_EQ(format_policies("").value_or("x"), "");
  EXPECT_EQ(format_policies("  // only this  \n\n").value_or("x"), "// only this\n");
}

TEST(CedarPolicyJson, IsCedarsOwn) {
  const Json json = json_of(
      parsed("permit(principal == User::\"12UA45\", action == Action::\"view\", resource in Folder::\"abc\") when { "
             "context.tls_version == \"1.3\" };"));
  EXPECT_EQ(json, Json::parse(R"({"effect": "permit",
    "principal": {"op": "==", "entity": {"type": "User", "id": "12UA45"}},
    "action": {"op": "==", "entity": {"type": "Action", "id": "view"}},
    "resource": {"op": "in", "entity": {"type": "Folder", "id": "abc"}},
    "conditions": [{"kind": "when", "body": {"==": {
      "left": {".": {"left": {"Var": "context"}, "attr": "tls_version"}}, "right": {"Value": "1.3"}}}}]})"));
  EXPECT_EQ(json_of(parsed("permit(principal, action, resource) when { principal has a.b };"))["conditions"][0]["body"],
            Json::parse(R"({"&&": {"left": {"has": {"left": {"Var": "principal"}, "attr": "a"}},
              "right": {"has": {"left": {".": {"left": {"Var": "principal"}, "attr": "a"}}, "attr": "b"}}}})"));
}

TEST(CedarPolicyJson, DoesNotShortenWhatAsksForAnAttributeAfterAnother) {
  const auto via_json = [](std::string_view condition) {
    const auto policy =
        policy_from_json(json_of(parsed(fmt::format("permit(principal, action, resource) when {{ {} }};", condition))));
    return policy ? to_text(*policy) : policy.error().message();
  };
  const std::string two = via_json("principal has a && principal.a has b");
  EXPECT_NE(two.find("principal has a && principal.a has b"), std::string::npos) << two;
  EXPECT_EQ(via_json("principal has a.b"), two);
}

std::string json_problem(std::string_view condition) {
  const auto json = Json::parse(fmt::format(
      R"({{"effect": "permit", "principal": {{"op": "All"}}, "action": {{"op": "All"}}, "resource": {{"op": "All"}},
           "conditions": [{{"kind": "when", "body": {}}}]}})",
      condition));
  const auto policy = policy_from_json(json);
  return policy ? "read" : policy.error().message();
}

TEST(CedarPolicyJson, NamesTheMemberThatIsWrong) {
  EXPECT_EQ(
      json_problem(
          R"({"Value": [1, {"__extn": {"fn": "ip", "arg": "::1"}}, {"a": {"__entity": {"type": "A", "id": "b"}}}]})"),
      "read");
  EXPECT_EQ(json_problem(R"({"==": {"left": {"Var": "prince"}, "right": {"Value": 1}}})"),
            "conditions[0].body.==.left.Var: must be principal, action, resource or context");
  EXPECT_EQ(json_problem(R"({"has": {"left": {"Var": "context"}, "attr": ["a", "b", "c"]}})"), "read");
  EXPECT_EQ(json_problem(R"({"has": {"left": {"Var": "context"}, "attr": ["odd name"]}})"), "read");
  EXPECT_EQ(json_problem(R"({"has": {"left": {"Var": "context"}, "attr": ["a", "if"]}})"),
            "conditions[0].body.has.attr: \"if\" cannot be a part of a path");
  EXPECT_EQ(json_problem(R"({"has": {"left": {"Var": "context"}, "attr": []}})"),
            "conditions[0].body.has.attr: must be a name, or an array of 1 to 600 names");
  EXPECT_EQ(json_problem(R"({"frobnicate": []})"),
            "conditions[0].body.frobnicate: there is no such operator or function");
  EXPECT_EQ(json_problem(R"({"==": {"left": {"Var": "context"}}})"), "conditions[0].body.==.right: is missing");
  EXPECT_EQ(json_problem(R"({"isIpv4": []})"), "conditions[0].body.isIpv4: a method is called on something");
  EXPECT_EQ(json_problem(R"({"Slot": "?principal"})"),
            "conditions[0].body.Slot: a slot may only stand in the scope of a policy");
  EXPECT_NE(json_problem(R"({"Value": 1.5})"), "read");
  EXPECT_NE(json_problem(R"({"Value": null})"), "read");
  std::string deep = R"({"Value": 1})";
  for (int i = 0; i < 700; ++i) deep = fmt::format(R"({{"neg": {{"arg": {}}}}})", deep);
  EXPECT_NE(json_problem(deep).find("nested more than 600 deep"), std::string::npos);
}

TEST(CedarPolicySet, LinksTemplates) {
  const auto set = parse_policies_json(R"({
    "staticPolicies": {"all": {"effect": "permit", "principal": {"op": "All"}, "action": {"op": "All"},
                               "resource": {"op": "All"}, "conditions": []}},
    "templates": {"share": {"effect": "permit", "principal": {"op": "==", "slot": "?principal"},
                            "action": {"op": "All"}, "resource": {"op": "in", "slot": "?resource"}, "conditions": []}},
    "templateLinks": [{"templateId": "share", "newId": "share-1", "values": {
      "?principal": {"type": "User", "id": "a"}, "?resource": {"__entity": {"type": "Album", "id": "b"}}}}]})");
  ASSERT_TRUE(set) << set.error().message();
  const auto linked = set->linked();
  ASSERT_TRUE(linked) << linked.error().message();
  ASSERT_EQ(linked->size(), 2u);
  EXPECT_EQ(to_text(linked->at("share-1")), "permit (principal == User::\"a\", action, resource in Album::\"b\");\n");
  const auto json = to_json(*set);
  ASSERT_TRUE(json);
  const auto again = policy_set_from_json(*json);
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_EQ(to_json(*again).value_or(Json()), *json);

  PolicySetDecl wrong = *set;
  wrong.links[0].values.resource.reset();
  EXPECT_EQ(wrong.linked().error().message(),
            "share-1: ?resource: the template has this slot, and nothing was given for it");
  wrong = *set;
  wrong.links[0].id = "all";
  EXPECT_EQ(wrong.linked().error().message(), "all: this id is in use");
  wrong = *set;
  wrong.links[0].template_id = "nothing";
  EXPECT_EQ(wrong.linked().error().message(), "share-1: there is no template \"nothing\"");
}

}  // namespace
}  // namespace creto::authz::cedar
