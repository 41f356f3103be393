#include "cedar/schema.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "cedar/format.h"

namespace creto::authz::cedar {
namespace {

constexpr std::string_view photos = R"(// who may see which photo
namespace Photos {
  @doc("a person")
  entity User in [Group] = {
    name: String,
    manager?: User,
    address: Address,
    "odd name"?: Set<Set<Long>>,
  } tags String;
  entity Group in [Group];
  entity Photo in Album { owner: User, taken: datetime, score: decimal };
  entity Album, Shelf;
  entity Color enum ["red", "green"];
  type Address = { @doc("of a street") street: String, zip?: __cedar::Long, from: ipaddr };
  action write, "read all";
  action view in [write, Action::"read all"] appliesTo {
    principal: [User],
    resource: [Photo, Album],
    context: { at: datetime, color?: Color },
  };
  action copy in write appliesTo { context: Address, principal: User, resource: Photo };
}
entity Photos;
)";

std::string problems_of(const std::vector<Problem>& problems) {
  std::string text;
  for (const Problem& problem : problems) text += to_string(problem) + "\n";
  return text;
}
std::string problems_in(std::string_view text, SchemaLimits limits = {}) {
  return problems_of(Schema::resolve(parse_schema(text, limits), limits).problems);
}
std::string problems_in_json(std::string_view text) {
  return problems_of(Schema::resolve(parse_schema_json(text)).problems);
}

TEST(CedarSchema, ResolvesNamesWithinAndOutsideOfItsNamespaces) {
  const auto parsed = parse_schema(photos);
  ASSERT_TRUE(parsed.ok()) << problems_of(parsed.problems);
  const auto resolved = Schema::resolve(parsed);
  ASSERT_TRUE(resolved.ok()) << problems_of(resolved.problems);
  const Schema& schema = resolved.value;

  const EntityTypeDef* user = schema.entity_type("Photos::User");
  ASSERT_NE(user, nullptr);
  EXPECT_EQ(to_string(*user->shape),
            "{address: {from: ipaddr, street: String, zip?: Long}, manager?: Photos::User, name: String, "
            "\"odd name\"?: Set<Set<Long>>}");
  EXPECT_EQ(to_string(*user->tags), "String");
  EXPECT_TRUE(schema.may_be_in("Photos::User", "Photos::Group"));
  EXPECT_FALSE(schema.may_be_in("Photos::Group", "Photos::User"));
  EXPECT_TRUE(schema.may_be_in("Photos::Photo", "Photos::Album"));
  EXPECT_EQ(schema.entity_type("Photos::Color")->choices, (std::vector<std::string>{"green", "red"}));
  EXPECT_NE(schema.entity_type("Photos"), nullptr);

  const ActionDef* view = schema.action({"Photos::Action", "view"});
  ASSERT_NE(view, nullptr);
  EXPECT_EQ(view->ancestors.size(), 2u);
  EXPECT_EQ(view->resources, (std::vector<std::string>{"Photos::Album", "Photos::Photo"}));
  EXPECT_EQ(to_string(*schema.action({"Photos::Action", "copy"})->context),
            "{from: ipaddr, street: String, zip?: Long}");
  EXPECT_EQ(schema.action_entities().size(), 4u);
}

TEST(CedarSchema, SaysTheSameInBothSyntaxesAndBack) {
  const auto parsed = parse_schema(photos);
  ASSERT_TRUE(parsed.ok());
  const Json json = schema_to_json(parsed.value);
  const auto from_json = schema_from_json(json);
  ASSERT_TRUE(from_json.ok()) << problems_of(from_json.problems);
  EXPECT_EQ(schema_to_json(from_json.value), json);
  const auto text = schema_to_text(from_json.value);
  ASSERT_TRUE(text) << text.error().message();
  const auto again = parse_schema(*text);
  ASSERT_TRUE(again.ok()) << problems_of(again.problems) << *text;
  EXPECT_EQ(schema_to_json(again.value), json) << *text;
  EXPECT_EQ(Schema::resolve(again).value, Schema::resolve(parsed).value);
}

TEST(CedarSchema, ReadsWhatOnlyJsonCanSay) {
  constexpr std::string_view json = R"({"": {
    "commonTypes": {"Id": {"type": "Long"}},
    "entityTypes": {"User": {"shape": {"type": "Record", "attributes": {
      "id": {"type": "Id"}, "boss": {"type": "Entity", "name": "User", "required": false},
      "ok": {"type": "Boolean"}, "ip": {"type": "Extension", "name": "ipaddr"}}}}},
    "actions": {"a": {"appliesTo": {"principalTypes": ["User"], "resourceTypes": ["User"]}}}}})";
  const auto parsed = parse_schema_json(json);
  ASSERT_TRUE(parsed.ok()) << problems_of(parsed.problems);
  const auto resolved = Schema::resolve(parsed);
  ASSERT_TRUE(resolved.ok()) << problems_of(resolved.problems);
  EXPECT_EQ(to_string(*resolved.value.entity_type("User")->shape), "{boss?: User, id: Long, ip: ipaddr, ok: Bool}");
  const auto text = schema_to_text(parsed.value);
  ASSERT_TRUE(text);
  EXPECT_EQ(Schema::resolve(parse_schema(*text)).value, resolved.value);
}

TEST(CedarSchema, KeepsThatAnActionAppliesToNothing) {
  const Json json = schema_to_json(parse_schema("entity U; action a;").value);
  EXPECT_EQ(json[""]["actions"]["a"], Json::parse(R"({"appliesTo": {"principalTypes": [], "resourceTypes": []}})"));
  for (const char* applies :
       {R"({"principalTypes": [], "resourceTypes": ["U"], "context": {"type": "Record", "attributes": {}}})",
        R"({"principalTypes": ["U"], "resourceTypes": []})"}) {
    const auto parsed = parse_schema_json(
        fmt::format(R"({{"": {{"entityTypes": {{"U": {{}}}}, "actions": {{"a": {{"appliesTo": {}}}}}}}}})", applies));
    ASSERT_TRUE(parsed.ok()) << problems_of(parsed.problems);
    const auto text = schema_to_text(parsed.value);
    ASSERT_TRUE(text);
    EXPECT_EQ(Schema::resolve(parse_schema(*text)).value, Schema::resolve(parsed).value) << *text;
  }
}

TEST(CedarSchema, TellsEveryProblemOfATextWithItsPlace) {
  EXPECT_EQ(problems_in("entity User = { name: };\n"
                        "entity Group in;\n"
                        "action view appliesTo { principal: [User] };\n"
                        "entity Ok;\n"
                        "entity Ok;\n"
                        "type Long = String;\n"
                        "entity Action;\n"
                        "enttiy X;"),
            "line 1, column 23: found `}`, expected a type\n"
            "line 2, column 16: found `;`, expected an entity type or `[`\n"
            "line 3, column 23: `appliesTo` without `resource`\n"
            "line 5, column 8: entity type `Ok` is declared twice\n"
            "line 6, column 6: `Long` is the name of a built-in type\n"
            "line 7, column 8: an entity type cannot be named `Action`: actions are declared with `action`\n"
            "line 8, column 1: found `enttiy`, expected `namespace`, `entity`, `action` or `type`\n");
  EXPECT_EQ(problems_in("namespace A { entity B; "),
            "line 1, column 25: found the end of the text, expected `entity`, `action`, `type` or `}`\n");
}

TEST(CedarSchema, TellsEveryNameThatNothingDeclares) {
  EXPECT_EQ(problems_in("entity User = { age: Lon, boss: Usr };\n"
                        "type A = B;\n"
                        "type B = Set<A>;\n"
                        "action a in b;\n"
                        "action c in d; action d in [c];\n"
                        "action e appliesTo { principal: Userr, resource: User, context: Long2 };"),
            "line 1, column 22: there is no type `Lon`; did you mean `Long`?\n"
            "line 1, column 33: there is no type `Usr`; did you mean `User`?\n"
            "line 3, column 14: type `A` is made of itself\n"
            "line 4, column 13: there is no action Action::\"b\"; did you mean `a`?\n"
            "line 5, column 8: action Action::\"c\" is a member of itself\n"
            "line 5, column 23: action Action::\"d\" is a member of itself\n"
            "line 6, column 33: there is no entity type `Userr`; did you mean `User`?\n"
            "line 6, column 65: there is no type `Long2`; did you mean `Long`?\n");
  EXPECT_EQ(problems_in("entity X; namespace N { entity X; }"),
            "line 1, column 32: `N::X` hides the `X` that is declared outside of every namespace\n");
  EXPECT_EQ(problems_in("entity X; action a appliesTo { principal: X, resource: X, context: X };"),
            "line 1, column 68: the context of Action::\"a\" is a record, not `X`\n");
}

TEST(CedarSchema, WhatStandsTwiceHidesNothing) {
  EXPECT_EQ(problems_in("entity A;\n"
                        "entity A = { x: Lon };\n"
                        "type T = { y: Long, y: Strin };\n"
                        "type T = Set<Boo>;\n"
                        "action a in b;\n"
                        "action a appliesTo { principal: B, resource: A };\n"
                        "entity E = { z: Missing };"),
            "line 2, column 8: entity type `A` is declared twice\n"
            "line 2, column 17: there is no type `Lon`; did you mean `Long`?\n"
            "line 3, column 21: attribute `y` stands twice\n"
            "line 4, column 6: type `T` is declared twice\n"
            "line 4, column 14: there is no type `Boo`; did you mean `Bool`?\n"
            "line 5, column 13: there is no action Action::\"b\"; did you mean `a`?\n"
            "line 6, column 8: action `a` is declared twice\n"
            "line 6, column 33: there is no entity type `B`; did you mean `A`?\n"
            "line 7, column 17: there is no type `Missing`\n");
  EXPECT_EQ(problems_in_json(
                "{\"\": {\"entityTypes\": {\"é\": {}, \"é\": {\"tags\": {}}, \"A\": {\"tags\": {\"type\": \"B\"}}},\n"
                "  \"actions\": {\"a\": {\"memberOf\": [{\"id\": \"a\", \"id\": \"c\"}]}},\n"
                "  \"actions\": {}, \"actions\": [{}, 1],\n"
                "  \"commonTypes\": {\"C\": {\"type\": \"D\"}}}}"),
            "line 1, column 28: \"\".entityTypes.\"é\": is no name of an entity type\n"
            "line 1, column 32: the member \"é\" stands twice\n"
            "line 1, column 74: there is no common type `B`; did you mean `C`?\n"
            "line 2, column 20: action Action::\"a\" is a member of itself\n"
            "line 2, column 46: the member \"id\" stands twice\n"
            "line 3, column 3: the member \"actions\" stands twice\n"
            "line 3, column 18: the member \"actions\" stands twice\n"
            "line 4, column 33: there is no common type `D`; did you mean `C`?\n");
  EXPECT_EQ(problems_in_json(R"({"a": 1, "a": 2, "b": })"),
            "line 1, column 10: the member \"a\" stands twice\n"
            "line 1, column 23: found `}`: this is no JSON\n");
  EXPECT_EQ(problems_in_json("{\"é\": \n\n {\"ö\" }"), "line 3, column 7: found `}`: this is no JSON\n");
  EXPECT_EQ(problems_in_json("{\"a\": "), "line 1, column 7: found the end of the text: this is no JSON\n");
}

TEST(CedarSchema, WhateverBecomesOfAJsonTextItsProblemsHaveAPlaceInIt) {
  const std::string whole =
      "{\"N\": {\"commonTypes\": {\"T\": {\"type\": \"Set\", \"element\": {\"type\": \"Long\"}}},\n"
      " \"entityTypes\": {\"U\": {\"tags\": {\"type\": \"T\"}, \"annotations\": {\"a\": \"é\\\"\"}}},\n"
      " \"actions\": {\"a\": {\"memberOf\": [{\"id\": \"b\"}]}, \"b\": {}}}}";
  constexpr std::string_view characters("{}[]\",:\\a1\n \0\xc3\xa9", 16);
  std::mt19937_64 random(1);  // tidy(random-engine): the same each time
  const auto below = [&](std::size_t limit) { return static_cast<std::size_t>(random() % limit); };
  std::size_t twice = 0;
  for (int round = 0; round < 2'000; ++round) {
    std::string text = whole;
    for (auto changes = 1 + below(3); changes > 0; --changes) {
      const std::size_t at = below(text.size()), length = below(std::min<std::size_t>(60, text.size() - at)) + 1;
      const std::string part = text.substr(at, length);
      if (below(3) == 0) text.erase(at, length);
      if (below(3) == 0) text.insert(below(text.size() + 1), part);
      if (below(3) == 0) text.insert(below(text.size() + 1), 1, characters[below(characters.size())]);
      if (text.empty()) text = " ";
    }
    const auto lines = static_cast<std::uint32_t>(std::count(text.begin(), text.end(), '\n')) + 1;
    const auto read = Schema::resolve(parse_schema_json(text));
    for (const Problem& problem : read.problems) {
      EXPECT_LE(problem.where.line, lines) << text;
      EXPECT_LE(problem.where.column, text.size() + 1) << text;
      twice += problem.what.ends_with("stands twice");
    }
  }
  EXPECT_GT(twice, 0u);
}

TEST(CedarSchema, NamesTheMemberOfJsonThatIsWrong) {
  EXPECT_EQ(problems_in_json(R"({"N": {"entityTypes": {"A": {"shap": {}}}, "actions": {"x": {"appliesTo": {}}}}})"),
            "line 1, column 38: N.entityTypes.A.shap: unknown member; did you mean `shape`?\n"
            "line 1, column 75: N.actions.x.appliesTo.principalTypes: is missing\n"
            "line 1, column 75: N.actions.x.appliesTo.resourceTypes: is missing\n");
  EXPECT_NE(problems_in_json(R"({"N": {"entityTypes": {}, "actions": {}, "actions": {}}})"), "");
  EXPECT_NE(problems_in_json(R"({"N": {"entityTypes": {"A": {"shape": {"type": "Record"}}}, "actions": {}}})"), "");
  EXPECT_NE(problems_in_json(R"([1])"), "");
}

TEST(CedarSchema, TellsWhereInJsonANameStandsThatNothingDeclares) {
  EXPECT_EQ(problems_in_json(R"({"": {"commonTypes": {"A": {"type": "B"}},
  "entityTypes": {"User": {"memberOfTypes": ["Userr"], "shape": {"type": "Record", "attributes": {
    "age": {"type": "Lon"}, "é": {"type": "Set", "element": {"type": "Entity", "name": "Usr"}}}}}},
  "actions": {"a": {"memberOf": [{"id": "b"}],
    "appliesTo": {"principalTypes": ["User", "Uzer"], "resourceTypes": [], "context": {"type": "Long"}}}}}})"),
            "line 1, column 37: there is no common type `B`; did you mean `A`?\n"
            "line 2, column 46: there is no entity type `Userr`; did you mean `User`?\n"
            "line 3, column 21: there is no common type `Lon`; did you mean `Long`?\n"
            "line 3, column 88: there is no entity type `Usr`; did you mean `User`?\n"
            "line 4, column 34: there is no action Action::\"b\"; did you mean `a`?\n"
            "line 5, column 46: there is no entity type `Uzer`; did you mean `User`?\n"
            "line 5, column 87: the context of Action::\"a\" is a record, not `Long`\n");
}

TEST(CedarSchema, BoundsDepthAndSize) {
  std::string deep = "type T = ";
  for (int i = 0; i < 1'000; ++i) deep += "Set<";
  EXPECT_NE(problems_in(deep).find("nested more than 64 deep"), std::string::npos);
  std::string doubling = "type T0 = Long;";
  for (int i = 1; i <= 60; ++i) doubling += fmt::format("type T{} = {{a: T{}, b: T{}}};", i, i - 1, i - 1);
  EXPECT_NE(problems_in(doubling).find("more than 1000000 parts"), std::string::npos);
  std::string long_chain = "type T0 = Long;";
  for (int i = 1; i <= 500; ++i) long_chain += fmt::format("type T{} = T{};", i, i - 1);
  EXPECT_NE(problems_in(long_chain + "entity E = {a: T500};"), "crash");
  EXPECT_NE(problems_in(std::string(2 << 20, ' ')), "");
}

TEST(CedarSchema, IsLaidOutWithItsComments) {
  const auto laid_out = format_schema(
      "// top\n\nnamespace  A{entity   B in[C,D]=  {x:Long,// why\n y?:Set<  String>}tags Long;\n"
      "// group\nentity C,D;@a action v in [w,Action::\"q\"] appliesTo{principal:B,resource:[B,C],context:{}};"
      "action w,q;}\n// end\n");
  ASSERT_TRUE(laid_out) << laid_out.error().message();
  EXPECT_EQ(*laid_out,
            "// top\n"
            "\n"
            "namespace A {\n"
            "  entity B in [C, D] = {\n"
            "    x: Long, // why\n"
            "    y?: Set<String>\n"
            "  } tags Long;\n"
            "\n"
            "  // group\n"
            "  entity C, D;\n"
            "\n"
            "  @a\n"
            "  action v in [w, Action::\"q\"] appliesTo {\n"
            "    principal: B,\n"
            "    resource: [B, C],\n"
            "    context: {}\n"
            "  };\n"
            "\n"
            "  action w, q;\n"
            "}\n"
            "// end\n");
  EXPECT_EQ(format_schema(*laid_out).value_or(""), *laid_out);
}

}  // namespace
}  // namespace creto::authz::cedar
