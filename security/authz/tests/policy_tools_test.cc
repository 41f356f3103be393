#include "creto/authz/policy_tools.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "creto/common/json.h"

namespace creto::authz {
namespace {

namespace fs = std::filesystem;

/// A folder with a small set of policies, as a user would have it.
class PolicyTools : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) /
              ("policy-tools-" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::remove_all(folder_);
    fs::create_directories(folder_ / "policies");
    write("app.cedarschema",
          "entity User in [Group] = { name: String };\nentity Group;\nentity Doc = { owner: User, size: Long };\n"
          "action read appliesTo { principal: User, resource: Doc, context: { mfa: Bool } };\n");
    write("entities.json", R"([
      {"uid": {"type": "User", "id": "ada"}, "attrs": {"name": "Ada"}, "parents": [{"type": "Group", "id": "staff"}]},
      {"uid": {"type": "Group", "id": "staff"}, "attrs": {}, "parents": []},
      {"uid": {"type": "Doc", "id": "plan"}, "attrs": {"owner": {"type": "User", "id": "ada"}, "size": 7}, "parents": []}])");
    write("policies/staff.cedar",
          "permit(principal in Group::\"staff\", action == Action::\"read\", resource)\n"
          "when { context.mfa && resource.size < 10 };\n");
    write("policies/big.cedar",
          "@id(\"no big ones\")\nforbid(principal, action, resource) when { resource.size > 100 };\n");
    files_ = {{folder_ / "policies"}, folder_ / "app.cedarschema", folder_ / "entities.json"};
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const std::string& name, std::string_view text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  std::string read(const std::string& name) const {
    std::ifstream in(folder_ / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  /// With the folder's own name taken out.
  std::string plain(std::string text) const {
    const std::string prefix = folder_.string() + "/";
    for (auto at = text.find(prefix); at != std::string::npos; at = text.find(prefix)) text.erase(at, prefix.size());
    return text;
  }

  fs::path folder_;
  PolicyFiles files_;
  const PolicyQuestion question_{"User::\"ada\"", "Action::\"read\"", "Doc::\"plan\"", R"({"mfa": true})"};
};

TEST_F(PolicyTools, ValidatePassesAGoodSet) {
  const auto result = validate_policies(files_);
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(result->text, "2 policies, 0 templates, 4 entities: no errors\n");
  EXPECT_EQ(result->exit_code, 0);
}

TEST_F(PolicyTools, ValidateTellsEveryProblemOfEveryFile) {
  write("policies/staff.cedar",
        "permit(principal, action, resource) when { resource.siz < 10 };\npermit(principal, action resource);\n"
        "permit(principal, action, resource) when { false };\n");
  write("policies/twice.cedar", "@id(\"no big ones\")\npermit(principal, action, resource);\n");
  const auto result = validate_policies(files_);
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(
      plain(result->text),
      "policies/staff.cedar:2:26: error: found `resource`, expected `,`\n"
      "policies/twice.cedar:1:1: error: policy `no big ones`: there is another policy `no big ones`, in "
      "policies/big.cedar\n"
      "policies/staff.cedar:1:53: error: policy `staff.1`: there is no attribute `siz` on entity type `Doc`; did you "
      "mean `size`?\n"
      "policies/staff.cedar:3:1: warning: policy `staff.2`: this policy can never apply: its scope or its "
      "conditions are always false\n"
      "3 policies, 0 templates, 4 entities: 3 errors\n");
  EXPECT_EQ(result->exit_code, 1);
  const Json json = Json::parse(result->json);
  EXPECT_EQ(json["problems"][2]["line"], 1);
  EXPECT_EQ(json["problems"][2]["hint"], "did you mean `size`?");
}

TEST_F(PolicyTools, CheckDecidesAsCedarDoes) {
  const auto allowed = check_policies(files_, question_);
  ASSERT_TRUE(allowed) << allowed.error().message();
  EXPECT_EQ(allowed->text, "allow\n  decided by policy `staff`\n");
  EXPECT_EQ(allowed->exit_code, 0);
  PolicyQuestion without = question_;
  without.context = R"({"mfa": false})";
  EXPECT_EQ(check_policies(files_, without)->exit_code, 3);
  without.context = "{}";
  EXPECT_EQ(check_policies(files_, without).error().message(), "context.mfa: this attribute is required");
  without.principal = "ada";
  EXPECT_FALSE(check_policies(files_, without));
}

TEST_F(PolicyTools, ExplainNamesWhatFailedFirstAndTheValuesItSaw) {
  PolicyQuestion without = question_;
  without.context = R"({"mfa": false})";
  const auto result = explain_policies(files_, without);
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(plain(result->text),
            "deny\n"
            "  no policy permits it\n"
            "forbid `no big ones` does not apply: `resource.size > 100` decided (policies/big.cedar:2)\n"
            "    resource.size = 7\n"
            "permit `staff` does not apply: `context.mfa` decided (policies/staff.cedar:2)\n"
            "    context.mfa = false\n");
  without.principal = "User::\"eve\"";
  EXPECT_NE(explain_policies(files_, without)->text.find("not in its scope `principal in Group::\"staff\"`"),
            std::string::npos);
}

TEST_F(PolicyTools, ValidateWarnsOfOversightThatIsNeverReachedAndOfBadAnnotations) {
  write("policies/hidden.cedar",
        "@oversight(\"x\") forbid(principal, action, resource == Doc::\"a\") when { resource.size > 100 };");
  write("policies/unpermitted.cedar", "@oversight(\"x\") forbid(principal, action == Action::\"write\", resource);");
  write("policies/rated.cedar", "\n@rate(\"often\") permit(principal, action == Action::\"read\", resource);");
  files_.schema.clear();
  files_.plain_cedar = true;
  const auto result = validate_policies(files_);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->exit_code, 0);
  EXPECT_EQ(plain(result->text),
            "policies/rated.cedar:2:1: warning: policy `rated`: `@rate`: \"often\" is not a number from 1 to 10000, a "
            "slash and a duration, as \"100/1m\"\n"
            "policies/hidden.cedar:1:1: warning: policy `hidden`: the oversight of `hidden` is never reached: `no big "
            "ones` forbids all of it\n"
            "policies/unpermitted.cedar:1:1: warning: policy `unpermitted`: the oversight of `unpermitted` is never "
            "reached: no policy permits any of it\n"
            "5 policies, 0 templates, 3 entities: no errors\n");
  files_.plain_cedar = false;
  const auto refused = validate_policies(files_);
  EXPECT_EQ(refused->exit_code, 1) << "the service would not store it";
  EXPECT_EQ(plain(refused->text).substr(0, 36), "policies/rated.cedar:2:1: error: pol");
  EXPECT_EQ(check_policies(files_, question_)->exit_code, 1) << "nor is anything decided by it";
}

TEST_F(PolicyTools, ARequestMayComeFromAFile) {
  const auto asked = check_policies(files_, question_);
  PolicyQuestion question;
  question.file = folder_ / "request.json";
  write("request.json", R"({"principal": "User::\"ada\"", "action": {"type": "Action", "id": "read"},
    "resource": "Doc::\"plan\"", "context": {"mfa": true}})");
  const auto read = check_policies(files_, question);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(read->text, asked->text);
  write("request.json", R"({"principal": "User::\"ada\"", "contxt": {}})");
  EXPECT_NE(check_policies(files_, question).error().message().find("request.json: contxt: unknown member"),
            std::string::npos);
  write("request.json", "{");
  EXPECT_FALSE(check_policies(files_, question));
  question = question_;
  question.action.clear();
  EXPECT_EQ(check_policies(files_, question).error().message(), "action: is missing");
  question = question_;
  question.context = "request.json";
  EXPECT_EQ(check_policies(files_, question).error().message().substr(0, 9), "context: ");
  files_.schema.clear();
  question.context = "[]";
  EXPECT_EQ(check_policies(files_, question).error().message(), "context: must be a JSON object");
  question.context = R"({"at": {"__extn": {"fn": "ip", "arg": "x"}}})";
  EXPECT_EQ(check_policies(files_, question).error().message(), "context.at: \"x\" is no ipaddr");
}

/// What an agent may do, as the service has it: no `Agent` in the schema, actions that nobody declared, oversight,
/// rates.
class ServiceRules : public PolicyTools {
 protected:
  void SetUp() override {
    PolicyTools::SetUp();
    fs::remove_all(folder_ / "policies");
    fs::create_directories(folder_ / "policies");
    write("app.cedarschema", R"(entity Ledger; action "payments";
      action "payments.pay" in ["payments"] appliesTo { principal: [Agent], resource: [Ledger], context: { amount: Long } };)");
    write("policies/pay.cedar",
          "@rate(\"3/1m\") permit(principal is Agent, action in Action::\"payments\", resource) when { context.amount "
          "> 0 };");
    write("policies/large.cedar",
          "@oversight(\"large-payments\") forbid(principal, action == Action::\"payments.pay\", resource) "
          "when { context.amount > 100 };");
    write("policies/services.cedar",
          "permit(principal is Service, action, resource) when { context.delegation.root == principal };");
    write("policies/erring.cedar", "forbid(principal is Human, action, resource) when { context.level > 3 };");
    write("policies/humans.cedar", "permit(principal is Human, action, resource);");
    files_.entities.clear();
  }
};

TEST_F(ServiceRules, ValidateTakesWhatTheServiceTakes) {
  const auto result = validate_policies(files_);
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(result->text, "5 policies, 0 templates, 2 entities: no errors\n") << "nor warnings of other actions";
  files_.plain_cedar = true;
  EXPECT_EQ(validate_policies(files_)->exit_code, 1) << "for Cedar alone there is no `Agent`";
  files_.plain_cedar = false;
  EXPECT_FALSE(validate_policies(files_, {.permissive = true, .level_max = {}}));
  write("policies/template.cedar", "permit(principal == ?principal, action, resource);");
  const auto warned = validate_policies(files_);
  EXPECT_EQ(warned->exit_code, 0);
  EXPECT_EQ(plain(warned->text).find("policies/template.cedar:1:1: warning: policy `template`: no link makes"), 0u);
  const auto texts = read_policy_texts(files_);
  EXPECT_EQ(texts->policies.size(), 6u) << "it may be linked later";
  EXPECT_EQ(texts->warnings.size(), 1u);
  write("policies/template.cedar", "@rate(\"often\") permit(principal == ?principal, action, resource);");
  EXPECT_EQ(validate_policies(files_)->exit_code, 1) << "the service would not store it";
}

TEST_F(ServiceRules, QuestionsTheOtherWayRoundKnowWhatTheServiceAdds) {
  write("ledgers.json", R"([{"uid": {"type": "Ledger", "id": "main"}, "attrs": {}, "parents": []}])");
  files_.entities = folder_ / "ledgers.json";
  ResourceQuestion question;
  question.principal = "Service::\"mailer\"";
  question.action = "Action::\"message.send\"";
  question.resource_type = "Ledger";
  const auto own = list_resources(files_, question);
  ASSERT_TRUE(own) << own.error().message();
  EXPECT_EQ(own->text, "Ledger::\"main\"\n") << "as `check` says of an action that the schema does not declare";
  question.context = R"({"delegation": {"root": {"__entity": {"type": "Human", "id": "ada"}}}})";
  EXPECT_EQ(list_resources(files_, question)->text, "") << "it acts for somebody else";
  question.action = "Action::\"payments.pay\"";
  EXPECT_FALSE(list_resources(files_, question)) << "this one the schema declares, for agents";

  PartialQuestion partial;
  partial.action = "Action::\"message.send\"";
  partial.principal_type = "Service";
  const auto left = decide_partially(files_, partial);
  ASSERT_TRUE(left) << left.error().message();
  EXPECT_NE(left->text.find("context.delegation.root == principal"), std::string::npos) << left->text;
}

TEST_F(ServiceRules, APolicyMayCallItselfByItsIdWithoutTheFolder) {
  files_.folder = "team";
  write("policies/named.cedar", "@id(\"named\") permit(principal is Human, action, resource);");
  EXPECT_EQ(validate_policies(files_)->exit_code, 0) << validate_policies(files_)->text;
  const auto texts = read_policy_texts(files_);
  ASSERT_TRUE(texts) << texts.error().message();
  EXPECT_TRUE(std::any_of(texts->policies.begin(), texts->policies.end(),
                          [](const PolicyText& policy) { return policy.id == "team/named"; }));
}

TEST_F(ServiceRules, LinksOfAFileStayLinks) {
  write("policies/shared.json", R"({"staticPolicies": {}, "templates": {"viewer": {"effect": "permit",
    "principal": {"op": "==", "slot": "?principal"}, "action": {"op": "All"}, "resource": {"op": "All"},
    "conditions": []}}, "templateLinks": [{"templateId": "viewer", "newId": "viewer-ada",
    "values": {"?principal": {"type": "Human", "id": "ada"}}}]})");
  files_.folder = "team";
  const auto texts = read_policy_texts(files_);
  ASSERT_TRUE(texts) << texts.error().message();
  std::map<std::string, std::string> all;
  for (const PolicyText& text : texts->policies) all[text.id] = text.text;
  EXPECT_EQ(all.count("team/viewer"), 1u);
  const Json link = Json::parse(all["team/viewer-ada"]);
  EXPECT_EQ(link["newId"], "team/viewer-ada");
  EXPECT_EQ(link["templateId"], "team/viewer") << "as it is called there";
  EXPECT_EQ(link["values"]["?principal"]["id"], "ada");
}

TEST_F(ServiceRules, AMistakeIsToldOnce) {
  write("policies/marked.cedar", "\xef\xbb\xbfpermit(principal, action, resource);");
  EXPECT_EQ(plain(validate_policies(files_)->text),
            "policies/marked.cedar:1:1: error: a byte order mark begins nothing in Cedar: save the text without it\n"
            "6 policies, 0 templates, 2 entities: 1 error\n");
}

TEST_F(ServiceRules, CheckAndExplainDecideAsTheServiceDoes) {
  PolicyQuestion question{"Agent::\"scout\"", "Action::\"payments.pay\"", "Ledger::\"main\"", R"({"amount": 50})"};
  EXPECT_EQ(check_policies(files_, question)->text, "allow\n  decided by policy `pay`\n");
  question.context = R"({"amount": 500})";
  const auto oversight = check_policies(files_, question);
  EXPECT_EQ(oversight->text,
            "requires_oversight\n  decided by policy `large`\n  a human has to approve: large-payments\n");
  EXPECT_EQ(oversight->exit_code, 3);
  EXPECT_EQ(Json::parse(oversight->json)["decision"], "requires_oversight");
  question.context = R"({"amount": 50, "more": 1})";
  EXPECT_FALSE(check_policies(files_, question)) << "the schema declares this action";

  const PolicyQuestion service{"Service::\"mailer\"", "Action::\"message.send\"", "Org::\"default\""};
  EXPECT_EQ(check_policies(files_, service)->text, "allow\n  decided by policy `services`\n") << "it acts for itself";
  PolicyQuestion chained = service;
  chained.context = R"({"delegation": {"root": {"__entity": {"type": "Human", "id": "ada"}}}})";
  EXPECT_EQ(check_policies(files_, chained)->exit_code, 3) << "unless a chain is given";

  const PolicyQuestion human{"Human::\"ada\"", "Action::\"documents.read\"", "Document::\"plan\""};
  const auto denied = explain_policies(files_, human);
  EXPECT_NE(denied->text.find("deny\n"), std::string::npos);
  EXPECT_NE(denied->text.find("  the forbid `erring` failed: "), std::string::npos) << denied->text;
  files_.plain_cedar = true;
  files_.schema.clear();
  EXPECT_EQ(check_policies(files_, human)->exit_code, 0) << "Cedar skips a forbid that fails";
}

TEST_F(ServiceRules, TablesKnowEveryDecisionAndWhatIsTakenAsGiven) {
  const std::string pay =
      R"("principal": "Agent::\"scout\"", "action": "Action::\"payments.pay\"", "resource": "Ledger::\"main\"")";
  const auto row = [&](const std::string& rest) { return "{" + pay + ", " + rest + "}"; };
  write("table.json",
        "[" + row(R"("context": {"amount": 50}, "decision": "allow", "reason": ["pay"])") + "," +
            row(R"("context": {"amount": -1}, "decision": "deny")") + "," +
            row(R"("context": {"amount": 500}, "decision": "requires_oversight", "reason": ["large"])") + "," +
            row(R"("context": {"amount": 500}, "approved": ["large"], "decision": "allow")") + "," +
            row(R"("context": {"amount": 50}, "admitted": 2, "decision": "allow")") + "," +
            row(R"("context": {"amount": 500}, "admitted": 3, "decision": "rate_limited")") + "," +
            row(R"("context": {"amount": 50}, "admitted": 3, "quota_exceeded": true, "decision": "quota_exceeded")") +
            "," + row(R"("context": {"amount": -1}, "quota_exceeded": true, "decision": "deny")") + "]");
  const auto result = test_policies(files_, folder_ / "table.json");
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(result->text, "8 passed, 0 failed\n");
  write("table.json", "[" + row(R"("context": {"amount": 500}, "decision": "deny")") + "," +
                          row(R"("context": {"amount": 50}, "decision": "perhaps")") + "," +
                          row(R"("context": {"amount": 50}, "approved": ["pay"], "decision": "allow")") + "]");
  EXPECT_EQ(test_policies(files_, folder_ / "table.json")->text,
            "request 1: expected deny, got requires_oversight\n  decided by policy `large`\n"
            "  a human has to approve: large-payments\n"
            "request 2: decision: must be one of allow, deny, requires_oversight, rate_limited, quota_exceeded\n"
            "request 3: approved: `pay` asks for no oversight\n"
            "0 passed, 3 failed\n");
  write("table.json", "[" + row(R"("context": {"amount": 50}, "decision": "allow", "reasons": ["large"])") + "," +
                          row(R"("context": {"amount": 50}, "decision": "allow", "reason": "large")") + "]");
  EXPECT_EQ(test_policies(files_, folder_ / "table.json")->text,
            "request 1: reasons: unknown member; did you mean `reason`?\n"
            "request 2: reason: must be an array of policy ids\n"
            "0 passed, 2 failed\n");
}

TEST_F(PolicyTools, PolicyTextsAreThoseOfTheFiles) {
  write("policies/two.cedar",
        "// the first\npermit(principal, action, resource) when { context.a == \";\" };\n\n// the other\n"
        "@id(\"team/own\") forbid(principal, action, resource); // and its end\n");
  const auto texts = read_policy_texts({{folder_ / "policies"}, {}, {}});
  ASSERT_TRUE(texts) << texts.error().message();
  std::map<std::string, std::string> all;
  for (const PolicyText& text : texts->policies) all[text.id] = text.text;
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all["two.1"], "// the first\npermit(principal, action, resource) when { context.a == \";\" };\n");
  EXPECT_EQ(all["team/own"], "// the other\n@id(\"team/own\") forbid(principal, action, resource);\n");
  EXPECT_EQ(all["staff"], read("policies/staff.cedar"));
  PolicyFiles team{{folder_ / "policies/two.cedar"}, {}, {}};
  team.folder = "team";
  const auto in_folder = read_policy_texts(team)->policies;
  EXPECT_EQ(in_folder.at(0).id, "team/two.1");
  EXPECT_EQ(in_folder.at(1).id, "team/own");
  write("policies/bad.cedar", "permit(principal, action);");
  EXPECT_FALSE(read_policy_texts({{folder_ / "policies"}, {}, {}}));
}

TEST_F(PolicyTools, PartialPrintsWhatIsLeftAsPolicies) {
  PartialQuestion question;
  question.principal = "User::\"ada\"";
  question.action = "Action::\"read\"";
  question.unknown = {"context.mfa"};
  const auto result = decide_partially(files_, question);
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(result->text,
            "// undecided\n\n"
            "@id(\"no big ones\")\nforbid (principal, action, resource)\nwhen { resource.size > 100 };\n\n"
            "@id(\"staff\")\npermit (principal, action, resource)\nwhen { context.mfa && resource.size < 10 };\n");
  write("left.cedar", result->text);
  EXPECT_EQ(validate_policies({{folder_ / "left.cedar"}, files_.schema, {}})->exit_code, 0);
  question.form = PartialQuestion::Form::json;
  const Json json = Json::parse(decide_partially(files_, question)->text);
  EXPECT_EQ(json["decision"], "undecided");
  EXPECT_TRUE(json["residuals"]["staticPolicies"].contains("staff"));

  question.form = PartialQuestion::Form::cedar;
  question.principal = "User::\"eve\"";
  EXPECT_EQ(decide_partially(files_, question)->text.substr(0, 8), "// deny\n");
  question.unknown = {"context.mf"};
  EXPECT_EQ(decide_partially(files_, question).error().message(), "context.mf: there is no such attribute");
  question.unknown = {"resource"};
  EXPECT_FALSE(decide_partially(files_, question));
  question.unknown = {};
  EXPECT_EQ(decide_partially(files_, question).error().message(), "context.mfa: this attribute is required");
  question.resource_type = "Group";
  question.context = R"({"mfa": true})";
  EXPECT_EQ(decide_partially(files_, question).error().message(),
            "action Action::\"read\" takes no resource of type `Group`");
}

TEST_F(PolicyTools, PartialMakesAConditionOfSql) {
  write("columns.json",
        R"({"schema_version": 1, "id": "d.id", "attributes": {"size": {"column": "d.size", "type": "long"}}})");
  write("policies/own.cedar", "permit(principal, action, resource in Group::\"staff\");\n");
  PartialQuestion question;
  question.principal = "User::\"ada\"";
  question.action = "Action::\"read\"";
  question.context = R"({"mfa": true})";
  question.form = PartialQuestion::Form::sql;
  question.columns = folder_ / "columns.json";
  const auto result = decide_partially(files_, question);
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(result->text, "d.size < $1 AND d.size <= $2\n-- $1: 10\n-- $2: 100\n");
  files_.plain_cedar = true;
  EXPECT_EQ(decide_partially(files_, question)->text,
            "d.size < $1 AND (d.size > $2) IS NOT TRUE\n-- $1: 10\n-- $2: 100\n");
  question.columns.clear();
  EXPECT_FALSE(decide_partially(files_, question));
}

TEST_F(PolicyTools, QueryListsWhatMayBeActedOn) {
  write("entities.json", R"([
    {"uid": {"type": "User", "id": "ada"}, "attrs": {"name": "Ada"}, "parents": [{"type": "Group", "id": "staff"}]},
    {"uid": {"type": "Doc", "id": "plan"}, "attrs": {"owner": {"type": "User", "id": "ada"}, "size": 7}, "parents": []},
    {"uid": {"type": "Doc", "id": "book"}, "attrs": {"owner": {"type": "User", "id": "ada"}, "size": 70}, "parents": []},
    {"uid": {"type": "Doc", "id": "note"}, "attrs": {"owner": {"type": "User", "id": "ada"}, "size": 1}, "parents": []}])");
  ResourceQuestion question{"User::\"ada\"", "Action::\"read\"", "", R"({"mfa": true})"};
  const auto result = list_resources(files_, question);
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(result->text, "Doc::\"note\"\nDoc::\"plan\"\n");
  question.principal = "User::\"eve\"";
  EXPECT_EQ(list_resources(files_, question)->text, "");
}

TEST_F(PolicyTools, TestRunsATableOfRequests) {
  write("table.json", R"([
    {"name": "staff", "principal": "User::\"ada\"", "action": "Action::\"read\"", "resource": "Doc::\"plan\"",
     "context": {"mfa": true}, "decision": "allow", "reason": ["staff"], "errors": []},
    {"request": {"principal": {"type": "User", "id": "ada"}, "action": "Action::\"read\"", "resource": "Doc::\"plan\"",
     "context": {"mfa": false}}, "decision": "allow"},
    {"principal": "User::\"ada\"", "action": "Action::\"red\"", "resource": "Doc::\"plan\"", "decision": "deny"}])");
  files_.plain_cedar = true;
  const auto result = test_policies(files_, folder_ / "table.json");
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(result->text,
            "request 2: expected allow, got deny\n  no policy permits it\n"
            "request 3: there is no action Action::\"red\"\n"
            "1 passed, 2 failed\n");
  EXPECT_EQ(result->exit_code, 1);
}

TEST_F(PolicyTools, LinksOfAPolicySetMakePoliciesOfTheTemplatesBesideIt) {
  write("policies/share.cedar", "@id(\"share\")\npermit(principal == ?principal, action, resource == ?resource);\n");
  write("policies/links.json", R"({"staticPolicies": {}, "templateLinks": [{"templateId": "share", "newId": "for eve",
    "values": {"?principal": {"type": "User", "id": "eve"}, "?resource": {"type": "Doc", "id": "plan"}}}]})");
  PolicyQuestion eve = question_;
  eve.principal = "User::\"eve\"";
  EXPECT_EQ(check_policies(files_, eve)->text, "allow\n  decided by policy `for eve`\n");
  EXPECT_EQ(validate_policies(files_)->text, "3 policies, 1 template, 4 entities: no errors\n");
}

TEST_F(PolicyTools, ValidateTellsEveryProblemOfJsonWithItsPlace) {
  fs::remove(folder_ / "policies/staff.cedar");
  write("policies/set.json", R"({
  "staticPolicies": {
    "first": {"effect": "permit", "principal": {"op": "All"}, "action": {"op": "All"},
      "resource": {"op": "All"}, "conditions": [{"kind": "when", "body": {"bogus": 1}}]},
    "a.b": {"effect": "perhaps", "principal": {"op": "All"}, "action": {"op": "All"},
      "resource": {"op": "All"}, "conditions": []},
    "typo": {"effect": "permit", "principal": {"op": "All"}, "action": {"op": "All"}, "resource": {"op": "All"},
      "conditions": [{"kind": "when", "body": {".": {"left": {"Var": "context"}, "attr": "mf"}}}]}
  },
  "templateLinks": [{"templateId": 5, "newId": "x", "values": {}}]
})");
  write("entities.json", R"([
    {"uid": {"type": "User", "id": "ada"}, "attrs": {"name": 5}, "parents": []},
    {"uid": {"type": "Usr", "id": "eve"}, "attrs": {}, "parents": []},
    {"uid": {"type": "Doc", "id": "plan"}, "attrs": {
      "owner": {"type": "User", "id": "ada"},
      "size": "large"}, "parents": []},
    "User"])");
  files_.plain_cedar = true;
  const auto result = validate_policies(files_);
  ASSERT_TRUE(result) << result.error().message();
  std::vector<std::string> places;
  const Json problems = Json::parse(result->json)["problems"];
  for (const Json& problem : problems) {
    const std::string file = fs::path(problem["file"].get<std::string>()).filename();
    places.push_back(fmt::format("{}:{}:{}", file, problem.value("line", 0), problem.value("column", 0)));
  }
  EXPECT_EQ(places,
            (std::vector<std::string>{"set.json:4:84", "set.json:5:23", "set.json:10:36", "entities.json:2:62",
                                      "entities.json:3:5", "entities.json:6:15", "entities.json:7:5", "set.json:7:13"}))
      << result->text;
  write("policies/set.json", "{\n  \"staticPolicies\": }");
  EXPECT_NE(validate_policies(files_)->text.find("set.json:2:"), std::string::npos);
  write("app.cedarschema.json", R"({"": {
    "entityTypes": {"User": {"shape": {"type": "Record", "attributes": {
      "name": {"type": "Strin", "required": 1}}}}},
    "actions": {"read": {"appliesTo": 7}}}})");
  files_.schema = folder_ / "app.cedarschema.json";
  const std::string schema = plain(validate_policies(files_)->text);
  EXPECT_NE(schema.find("app.cedarschema.json:3:"), std::string::npos) << schema;
  EXPECT_NE(schema.find("app.cedarschema.json:4:"), std::string::npos) << schema;
}

TEST_F(ServiceRules, BenchTimesTheRequestsOfATable) {
  write("table.json", R"([{"principal": "Agent::\"scout\"", "action": "Action::\"payments.pay\"",
    "resource": "Ledger::\"main\"", "context": {"amount": 50}, "decision": "allow"}])");
  const auto result = bench_policies(files_, folder_ / "table.json", 1'000);
  ASSERT_TRUE(result) << result.error().message();
  const Json json = Json::parse(result->json);
  EXPECT_EQ(json["allowed"], 1'000);
  EXPECT_GE(json["p99_ns"], json["p50_ns"]);
  EXPECT_GE(json["max_ns"], json["p99.9_ns"]);
  EXPECT_FALSE(bench_policies(files_, folder_ / "table.json", 1));
}

TEST_F(PolicyTools, ConformanceReadsJsonAndGoesOnBehindAMalformedTest) {
  fs::create_directories(folder_ / "tests");
  write("tests/broken.json", "{");
  write("tests/none.json", R"({"policies": "gone.json"})");
  write("tests/good.json", R"({"policies": "p.json", "policyFormat": "json", "schema": "s.json", "schemaFormat": "json",
    "entities": "e.json", "shouldValidate": true, "requests": [{"principal": {"type": "User", "id": "a"},
    "action": {"type": "Action", "id": "read"}, "resource": {"type": "Doc", "id": "d"}, "context": {},
    "decision": "allow", "reason": ["mine"], "errors": []}]})");
  write("p.json",
        R"({"staticPolicies": {"mine": {"effect": "permit", "principal": {"op": "All"}, "action": {"op": "All"},
    "resource": {"op": "All"}, "conditions": []}}})");
  write("s.json", R"({"": {"entityTypes": {"User": {}, "Doc": {}},
    "actions": {"read": {"appliesTo": {"principalTypes": ["User"], "resourceTypes": ["Doc"]}}}}})");
  write("e.json", "[]");
  const auto result = run_conformance(folder_, {}, false);
  ASSERT_TRUE(result) << result.error().message();
  const Json json = Json::parse(result->json);
  EXPECT_EQ(json["own"]["requests"]["passed"], 1) << result->text;
  EXPECT_EQ(json["own"]["requests"]["failed"], 2);
  EXPECT_EQ(json["failures"].size(), 2u);
}

TEST_F(PolicyTools, FormatKeepsTheOrderOfAPolicySetAndSaysWhatItCannotWrite) {
  write("set.json", R"({"staticPolicies": {
    "zebra": {"effect": "permit", "principal": {"op": "All"}, "action": {"op": "All"}, "resource": {"op": "All"}, "conditions": []},
    "ant": {"effect": "forbid", "principal": {"op": "All"}, "action": {"op": "All"}, "resource": {"op": "All"}, "conditions": []}}})");
  const auto text = format_policy_files({folder_ / "set.json"}, {.to_cedar = true});
  ASSERT_TRUE(text) << text.error().message();
  EXPECT_EQ(text->text,
            "@id(\"zebra\")\npermit (principal, action, resource);\n\n"
            "@id(\"ant\")\nforbid (principal, action, resource);\n");
  write("links.json",
        R"({"staticPolicies": {}, "templateLinks": [{"templateId": "share", "newId": "x", "values": {}}]})");
  EXPECT_NE(
      format_policy_files({folder_ / "links.json"}, {.to_cedar = true}).error().message().find("links.json: links"),
      std::string::npos);
}

TEST_F(PolicyTools, FormatKeepsTheOrderThroughJsonAndBack) {
  std::string text;
  for (const char* name : {"zebra", "ant"}) {
    text += fmt::format(
        "@id(\"{}\")\n@note(\"x\")\npermit (principal, action, resource)\nwhen {{ context.b > 1 }}\n"
        "unless {{ context.a > 1 }}\nwhen {{ context.c > 1 }};\n\n",
        name);
  }
  for (int i = 0; i < 11; ++i)
    text += fmt::format("@id(\"policy{}\")\npermit (principal, action, resource);\n\n", i + 2);
  text.pop_back();
  std::string unnamed = text;
  for (int i = 0; i < 11; ++i) {
    const std::string id = fmt::format("@id(\"policy{}\")\n", i + 2);
    unnamed.erase(unnamed.find(id), id.size());
  }
  write("many.cedar", unnamed);
  const auto json = format_policy_files({folder_ / "many.cedar"}, {.to_json = true});
  ASSERT_TRUE(json) << json.error().message();
  write("many.json", json->text);
  const auto back = format_policy_files({folder_ / "many.json"}, {.to_cedar = true});
  ASSERT_TRUE(back) << back.error().message();
  EXPECT_EQ(back->text, text);
}

TEST_F(PolicyTools, FormatWritesOnlyWhatChanges) {
  const auto check = format_policy_files({folder_}, {.check = true});
  ASSERT_TRUE(check) << check.error().message();
  EXPECT_EQ(check->exit_code, 1);
  const auto written = format_policy_files({folder_}, {.write = true});
  ASSERT_TRUE(written) << written.error().message();
  EXPECT_EQ(read("policies/big.cedar"),
            "@id(\"no big ones\")\nforbid (principal, action, resource)\nwhen { resource.size > 100 };\n");
  EXPECT_EQ(format_policy_files({folder_}, {.check = true})->text, "");
  EXPECT_EQ(check_policies(files_, question_)->exit_code, 0);
}

TEST_F(PolicyTools, FormatConvertsBothWays) {
  const auto json = format_policy_files({folder_ / "policies/big.cedar"}, {.to_json = true});
  ASSERT_TRUE(json) << json.error().message();
  write("big.json", json->text);
  const auto text = format_policy_files({folder_ / "big.json"}, {.to_cedar = true});
  ASSERT_TRUE(text) << text.error().message();
  EXPECT_EQ(text->text, "@id(\"no big ones\")\nforbid (principal, action, resource)\nwhen { resource.size > 100 };\n");
  const auto schema = format_policy_files({folder_ / "app.cedarschema"}, {.to_json = true});
  ASSERT_TRUE(schema) << schema.error().message();
  write("app.cedarschema.json", schema->text);
  const auto back = format_policy_files({folder_ / "app.cedarschema.json"}, {.to_cedar = true});
  ASSERT_TRUE(back) << back.error().message();
  files_.schema = folder_ / "app.cedarschema.json";
  EXPECT_EQ(validate_policies(files_)->exit_code, 0);
  write("schema.json", schema->text);
  EXPECT_EQ(format_policy_files({folder_ / "schema.json"}, {.to_cedar = true})->text, back->text)
      << "whatever it is called";
}

TEST_F(PolicyTools, SayWhatCannotBeRead) {
  files_.schema = folder_ / "none.cedarschema";
  EXPECT_FALSE(validate_policies(files_));
  EXPECT_FALSE(format_policy_files({folder_ / "entities.json"}, {}));
  EXPECT_FALSE(run_conformance(folder_, {}, false));
  EXPECT_FALSE(run_conformance(folder_, {}, true));
}

}  // namespace
}  // namespace creto::authz
