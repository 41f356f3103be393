#include "actions.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "gateway/completion.h"

namespace creto::runtime {
namespace {

constexpr const char* declared = R"(
schema_version: 1
actions:
  - name: pay
    cedar_action: payments.pay
    resource: 'Ledger::"{ledger}"'
    upstream: ${LEDGER_URL}/payments
    secret: {ref: ledger/TOKEN, prefix: 'Bearer '}
    amount: amount
    currency: currency
    arguments:
      ledger: {type: string, max: 8, required: true}
      amount: {type: decimal, places: 2, required: true}
      currency: {type: string, max: 3}
      copies: {type: integer}
)";

ActionDeclaration pay() {
  auto actions = parse_actions(declared, {{"LEDGER_URL", "http://ledger"}});
  EXPECT_TRUE(actions) << actions.error().to_string();
  return actions->at("pay");
}

std::string refusal(const Json& arguments) {
  const auto checked = check_arguments(pay(), arguments);
  return checked ? "" : checked.error().message();
}

TEST(Actions, AreReadWithVariablesAndDefaults) {
  const auto action = pay();
  EXPECT_EQ(action.upstream, "http://ledger/payments");
  EXPECT_EQ(action.secret_header, "Authorization");
  EXPECT_EQ(action.method, "POST");
}

TEST(Actions, NameTheFieldThatIsWrong) {
  const auto message = [](std::string text) {
    const auto actions = parse_actions(text, {});
    return actions ? "" : actions.error().message();
  };
  EXPECT_EQ(message(declared), "`${LEDGER_URL}/payments`: the variable `LEDGER_URL` is not set");
  EXPECT_NE(message("schema_version: 2\nactions: []").find("schema_version"), std::string::npos);
  EXPECT_NE(message("schema_version: 1\nactions: [{name: Pay, cedar_action: a, upstream: 'http://x'}]")
                .find("actions[0].name"),
            std::string::npos);
  EXPECT_NE(message("schema_version: 1\nactions: [{name: pay, cedar_action: a, upstream: 'ftp://x'}]")
                .find("actions[0].upstream"),
            std::string::npos);
  EXPECT_NE(message("schema_version: 1\nactions: [{name: pay, cedar_action: a, upstream: 'http://x', colour: red}]")
                .find("colour"),
            std::string::npos);
  EXPECT_NE(message("schema_version: 1\nactions: [[[[").find("actions"), std::string::npos);
  EXPECT_NE(
      message("schema_version: 1\nactions:\n  - {name: pay, cedar_action: a.b, upstream: 'http://l', currency: c, "
              "arguments: {c: {type: integer}}}")
          .find("actions[0].currency: must name a string argument"),
      std::string::npos);
}

TEST(Actions, AFileThatRefersToItselfOverAndOverIsTooLarge) {
  std::string text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 12; ++i) {
    text += fmt::format("a{0}: &a{0} [", i);
    for (int k = 0; k < 10; ++k) text += fmt::format("*a{}, ", i - 1);
    text += "x]\n";
  }
  const auto read = parse_actions(text, {});
  ASSERT_FALSE(read);
  EXPECT_NE(read.error().message().find("too large"), std::string::npos) << read.error().message();
}

TEST(Arguments, BecomeCanonicalBytesAContextAndACost) {
  const auto checked = check_arguments(pay(), Json{{"ledger", "main"}, {"currency", "EUR"}, {"amount", "12.50"}});
  ASSERT_TRUE(checked) << checked.error().to_string();
  EXPECT_EQ(checked->canonical, R"({"amount":"12.50","currency":"EUR","ledger":"main"})");
  EXPECT_EQ(checked->resource_id, "main");
  ASSERT_TRUE(checked->cost);
  EXPECT_EQ(checked->cost->to_string(), "12.50 EUR");
  const auto amount =
      std::find_if(checked->context.begin(), checked->context.end(), [](const auto& a) { return a.first == "amount"; });
  ASSERT_NE(amount, checked->context.end());
  EXPECT_EQ(amount->second, authz::Value(authz::DecimalValue{125'000}));
}

TEST(Arguments, ThatBreakTheirRulesAreRefusedByName) {
  const Json good = {{"ledger", "main"}, {"amount", "1"}};
  EXPECT_EQ(refusal(good), "");
  const auto with = [&](const char* name, Json value) {
    auto arguments = good;
    arguments[name] = std::move(value);
    return refusal(arguments);
  };
  EXPECT_EQ(with("amount", 1), "arguments.amount: must be a decimal number as a string, such as \"12.50\"");
  EXPECT_EQ(with("amount", "1.005"), "arguments.amount: has more than 2 places");
  EXPECT_EQ(with("amount", "-1"), "arguments.amount: must not be negative");
  EXPECT_EQ(with("amount", "99999999999999999999"), "arguments.amount: is too large");
  EXPECT_EQ(with("ledger", "longer than eight"), "arguments.ledger: is longer than 8 characters");
  EXPECT_EQ(with("currency", "euro"), "arguments.currency: is longer than 3 characters");
  EXPECT_EQ(with("currency", "eu"), "arguments.currency: is no ISO 4217 code");
  EXPECT_EQ(with("copies", 1.5), "arguments.copies: must be an integer of at most 53 bits");
  EXPECT_EQ(with("to", "me"), "arguments.to: `pay` has no such argument");
  EXPECT_EQ(refusal(Json{{"ledger", "main"}}), "arguments.amount: is required");
  EXPECT_EQ(refusal(Json::array()), "arguments: must be an object");
}

TEST(Completion, IsReadFromOpenAisRequest) {
  const auto id = SandboxId::from_bytes({});
  const Json messages = Json::array({{{"role", "user"}, {"content", "hello"}}});
  const auto read = read_completion(Json{{"messages", messages}, {"response_format", {{"type", "json_object"}}}}, id);
  ASSERT_TRUE(read) << read.error().to_string();
  EXPECT_TRUE(read->json);
  EXPECT_EQ(read->messages.size(), 1u);
  EXPECT_FALSE(read_completion(Json{{"messages", messages}, {"response_format", {{"type", 5}}}}, id).value().json);
  EXPECT_FALSE(read_completion(Json{{"messages", messages}, {"max_tokens", -1}}, id));
  EXPECT_FALSE(read_completion(Json{{"messages", Json::array({{{"role", 5}}})}}, id));
  EXPECT_FALSE(read_completion(Json::array(), id));
}

}  // namespace
}  // namespace creto::runtime
