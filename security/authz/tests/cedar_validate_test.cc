#include "cedar/validate.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cedar/conform.h"
#include "cedar/parser.h"

namespace creto::authz::cedar {
namespace {

const Schema& schema() {
  static const Schema schema = [] {
    const auto parsed = parse_schema(R"(
      entity User in [Group] = {
        name: String, age?: Long, manager?: User, home?: { street?: String, number: Long }, from: ipaddr,
      } tags Set<String>;
      entity Group;
      entity Photo in [Album] = { owner: User, public: Bool, labels: Set<String> };
      entity Album in [Album] = { owner: User };
      entity Color enum ["red", "green"];
      action readOnly;
      action view in readOnly appliesTo { principal: User, resource: [Photo, Album], context: { at?: datetime, color: Color } };
      action edit appliesTo { principal: User, resource: Photo, context: {} };
      action other appliesTo { principal: Group, resource: Color };
    )");
    EXPECT_TRUE(parsed.ok()) << to_error(parsed.problems).message();
    auto resolved = Schema::resolve(parsed);
    EXPECT_TRUE(resolved.ok()) << to_error(resolved.problems).message();
    return std::move(resolved.value);
  }();
  return schema;
}

std::string findings(std::string_view text, const ValidationOptions& options = {}) {
  const auto parsed = parse_policies_and_templates(text);
  if (!parsed.ok()) return "parser: " + to_error(parsed.problems).message();
  std::string all;
  for (const PolicyAst& policy : parsed.value) {
    const PolicyFindings found = validate(schema(), policy, options);
    for (const Problem& error : found.errors) all += to_string(error) + "\n";
    for (const Problem& warning : found.warnings) all += "warning: " + to_string(warning) + "\n";
  }
  return all;
}
std::string findings_in(std::string_view condition, const ValidationOptions& options = {}) {
  return findings(
      fmt::format("permit(principal, action == Action::\"view\", resource is Photo) when {{\n{} }};", condition),
      options);
}
const ValidationOptions permissive{.mode = ValidationMode::permissive};

TEST(CedarValidator, TakesActionsOfOneTypeInAScope) {
  const auto parsed = parse_schema(
      "entity E; action a, b appliesTo { principal: E, resource: E }; namespace N { action c appliesTo { principal: E, "
      "resource: E }; }");
  const auto schema = Schema::resolve(parsed);
  ASSERT_TRUE(schema.ok());
  const auto errors = [&](std::string_view actions, ValidationMode mode) {
    const auto policy = parse_policies(fmt::format("permit(principal, action in [{}], resource);", actions)).value()[0];
    std::string all;
    for (const Problem& error : validate(schema.value, policy, {.mode = mode}).errors) all += to_string(error);
    return all;
  };
  EXPECT_EQ(errors("Action::\"a\", Action::\"b\"", ValidationMode::strict), "");
  EXPECT_EQ(errors("Action::\"a\", N::Action::\"c\"", ValidationMode::strict),
            "line 1, column 29: the elements of this set are of different types: `Action` and `N::Action`");
  EXPECT_EQ(errors("Action::\"a\", N::Action::\"c\"", ValidationMode::permissive), "");
}

TEST(CedarValidator, WarnsOfWhatMayBeReadAsSomethingElse) {
  const auto warns = [](std::string_view condition, std::string_view of) {
    return findings_in(condition).find(fmt::format("the {}: it may be read as another", of)) != std::string::npos;
  };
  EXPECT_EQ(findings_in("principal.name == \"\u65e5\u672c\u30ab\u30ca\" && principal.name like \"\u00e9t\u00e9*\""),
            "");
  EXPECT_EQ(findings_in("principal.name == \"adm\u0430n\""),
            "warning: line 2, column 19: the text `adm\u0430n` mixes scripts: it may be read as another\n");
  EXPECT_TRUE(warns("principal.name == \"a\u202eb\"", "text `a\\u{202e}b` turns the direction of reading"));
  EXPECT_TRUE(warns("principal.name like \"a\u2066*\"", "text `a\\u{2066}*` turns the direction of reading"));
  EXPECT_TRUE(warns("principal in Group::\"adm\u0430n\"", "name `adm\u0430n` mixes scripts"));
  EXPECT_TRUE(warns("principal has \"adm\u0430n\"", "name `adm\u0430n` mixes scripts"));
  EXPECT_TRUE(warns("{\"\u2603\": 1} == {\"\u2603\": 2}",
                    "name `\u2603` has characters that Unicode advises to keep out of names"));
  EXPECT_NE(findings("permit(principal in Group::\"adm\u0430n\", action, resource);").find("mixes scripts"),
            std::string::npos);
}

TEST(CedarValidator, AcceptsWhatCannotErr) {
  EXPECT_EQ(findings("permit(principal, action, resource);"), "");
  EXPECT_EQ(findings_in("principal.name == \"alice\" && resource.owner == principal"), "");
  EXPECT_EQ(findings_in("principal has age && principal.age > 18"), "");
  EXPECT_EQ(findings_in("principal has home.street && principal.home.street like \"a*\""), "");
  EXPECT_EQ(findings_in("principal has manager.manager.age && principal.manager.manager.age > 1"), "");
  EXPECT_EQ(findings_in("if principal has age then principal.age > 18 else false"), "");
  EXPECT_EQ(findings_in("!(principal has age) || principal.age > 18"),
            "line 2, column 35: attribute `age` on entity type `User` is optional; ask `… has age &&` first\n");
  EXPECT_EQ(
      findings_in(
          "(principal has age && principal.age > 1) || (context has at && context.at < datetime(\"2030-01-01\"))"),
      "");
  EXPECT_EQ(findings_in("principal.hasTag(\"a\") && principal.getTag(\"a\").contains(\"b\")"), "");
  EXPECT_EQ(findings_in("principal.from.isInRange(ip(\"10.0.0.0/8\"))"), "");
  EXPECT_EQ(findings("permit(principal in ?principal, action == Action::\"edit\", resource == ?resource);"), "");
  EXPECT_EQ(
      findings("permit(principal is User, action, resource) when { principal has age } when { principal.age > 1 };"),
      "")
      << "what one condition proves holds in the next";
}

TEST(CedarValidator, NamesTheMistakeItsPlaceAndWhatWasMeant) {
  EXPECT_EQ(findings_in("principal.nam == \"x\""),
            "line 2, column 11: there is no attribute `nam` on entity type `User`; did you mean `name`?\n");
  EXPECT_EQ(findings_in("principal.manager.name == \"x\""),
            "line 2, column 11: attribute `manager` on entity type `User` is optional; ask `… has manager &&` first\n");
  EXPECT_EQ(findings_in("context.att == 1"),
            "line 2, column 9: there is no attribute `att` on the context of Action::\"view\"; did you mean `at`?\n");
  EXPECT_EQ(findings_in("principal in Grup::\"x\""),
            "line 2, column 14: there is no entity type `Grup`; did you mean `Group`?\n");
  EXPECT_EQ(findings_in("principal.name + 1 == 2"),
            "line 2, column 11: expected Long, got `String`; Cedar adds, subtracts and multiplies numbers alone\n");
  EXPECT_EQ(findings_in("principal.name == 1"),
            "line 2, column 16: `String` and `Long` are different types: they are never equal\n");
  EXPECT_EQ(findings_in("principal.getTag(\"x\").contains(\"y\")"),
            "line 2, column 11: this tag of entity type `User` may be missing; ask `… .hasTag(…) &&` with the same "
            "expressions first\n");
  EXPECT_EQ(findings_in("resource.labels == []"),
            "line 2, column 20: an empty set has no type; ask `.isEmpty()` instead of comparing with `[]`\n");
  EXPECT_EQ(findings_in("context.color == Color::\"blue\""),
            "line 2, column 18: Color::\"blue\" is none of the entities that the schema lists for `Color`\n");
  EXPECT_EQ(findings_in("ip(principal.name).isIpv4()"),
            "line 2, column 1: `ip` takes a literal alone; let the schema give the attribute this type instead of "
            "String\n");
  EXPECT_NE(findings_in("ip(\"10.0.0\").isIpv4()"), "");
  EXPECT_EQ(findings("permit(principal, action == Action::\"veiw\", resource);"),
            "line 1, column 1: no action of this policy's scope takes such a principal and such a resource\n"
            "line 1, column 29: there is no action Action::\"veiw\"; did you mean `Action::\"view\"`?\n"
            "warning: line 1, column 1: this policy can never apply: its scope or its conditions are always false\n");
  EXPECT_EQ(findings("permit(principal == Group::\"g\", action == Action::\"edit\", resource);"),
            "line 1, column 1: no action of this policy's scope takes such a principal and such a resource; write "
            "`principal in Group::\"g\"` for what is in it\n"
            "warning: line 1, column 1: this policy can never apply: its scope or its conditions are always false\n");
}

TEST(CedarValidator, TellsEveryMistakeOfAPolicy) {
  EXPECT_EQ(findings_in("principal.nam == \"x\" &&\nresource.ownr == principal &&\n1 == \"x\".foo"),
            "line 2, column 11: there is no attribute `nam` on entity type `User`; did you mean `name`?\n"
            "line 3, column 10: there is no attribute `ownr` on entity type `Photo`; did you mean `owner`?\n"
            "line 4, column 6: expected a record or an entity, got `String`\n");
}

TEST(CedarValidator, WarnsOfPoliciesThatNeverApply) {
  constexpr std::string_view never = ": this policy can never apply: its scope or its conditions are always false\n";
  EXPECT_EQ(findings_in("false"), fmt::format("warning: line 1, column 1{}", never));
  EXPECT_EQ(findings_in("principal has nothing"), fmt::format("warning: line 1, column 1{}", never));
  EXPECT_EQ(findings_in("resource is Album"), fmt::format("warning: line 1, column 1{}", never));
  EXPECT_EQ(findings("permit(principal, action in [Action::\"edit\"], resource) unless { true };"),
            fmt::format("warning: line 1, column 1{}", never));
}

TEST(CedarValidator, PermissiveModeLetsTypesDiffer) {
  EXPECT_NE(findings_in("principal.name == 1"), "");
  EXPECT_EQ(findings_in("principal.name == 1", permissive), "");
  EXPECT_NE(findings_in("[1, \"x\"].contains(1)", permissive).find("different types"), std::string::npos);
  EXPECT_EQ(findings_in("[principal, resource].contains(principal)", permissive), "");
  EXPECT_NE(findings_in("[principal, resource].contains(principal)"), "");
  EXPECT_NE(findings_in("(if context.color == Color::\"red\" then resource.owner else resource).owner == principal",
                        permissive)
                .find("not every value of this type has it"),
            std::string::npos);
  EXPECT_EQ(findings_in("ip(principal.name).isIpv4()", permissive), "");
  EXPECT_NE(findings_in("principal.nam == 1", permissive), "");
}

TEST(CedarValidator, BoundsHowFarAPolicyReaches) {
  const auto level = [](unsigned max) { return ValidationOptions{.level_max = max}; };
  EXPECT_EQ(findings_in("principal.name == \"x\"", level(1)), "");
  EXPECT_EQ(findings_in("principal.name == \"x\"", level(0)),
            "line 2, column 11: this is 1 step from the request; at most 0 are allowed\n");
  EXPECT_EQ(findings_in("resource.owner.name == \"x\"", level(2)), "");
  EXPECT_EQ(findings_in("resource.owner.name == \"x\"", level(1)),
            "line 2, column 16: this is 2 steps from the request; at most 1 is allowed\n");
  EXPECT_EQ(findings_in("principal has manager.manager.age", level(3)), "");
  EXPECT_EQ(findings_in("principal has manager.manager.age", level(2)),
            "line 2, column 11: this is 3 steps from the request; at most 2 are allowed\n");
  EXPECT_EQ(findings_in("principal has home && principal.home.number > 1", level(1)), "");
  EXPECT_EQ(findings_in("{a: principal, b: resource}.a.name == \"x\"", level(1)), "");
  EXPECT_NE(findings_in("User::\"alice\".name == \"x\"", level(9)), "");
  EXPECT_EQ(findings_in("principal in Group::\"g\"", level(1)), "");
  EXPECT_NE(findings_in("resource.owner in Group::\"g\"", level(1)), "");
  EXPECT_EQ(findings_in("resource is Album && resource.owner.name == \"x\"", level(0)).find("step"), std::string::npos);
}

// --- entities and requests

std::string entity_problem(std::string_view json) {
  const auto entity = entity_from_json(schema(), Json::parse(json));
  return entity ? "" : entity.error().message();
}

TEST(CedarConformance, ReadsEntitiesWithTheTypesOfTheSchema) {
  const auto entity = entity_from_json(schema(), Json::parse(R"({"uid": {"type": "User", "id": "a"},
        "attrs": {"name": "x", "from": "10.0.0.1", "manager": {"type": "User", "id": "b"}},
        "tags": {"t": ["u"]}, "parents": [{"type": "Group", "id": "g"}]})"));
  ASSERT_TRUE(entity) << entity.error().message();
  EXPECT_TRUE(Value::record(entity->attributes).attribute("from")->as<IpValue>());
  EXPECT_TRUE(Value::record(entity->attributes).attribute("manager")->as<EntityUid>());
}

TEST(CedarConformance, RefusesEntitiesThatDoNotFit) {
  EXPECT_EQ(
      entity_problem(R"({"uid": {"type": "User", "id": "a"}, "attrs": {"name": 1, "from": "::1"}, "parents": []})"),
      "User::\"a\".name: expected String, got a long");
  EXPECT_EQ(entity_problem(R"({"uid": {"type": "User", "id": "a"}, "attrs": {"name": "x"}, "parents": []})"),
            "User::\"a\".from: this attribute is required");
  EXPECT_EQ(entity_problem(R"({"uid": {"type": "User", "id": "a"}, "attrs": {"nam": "x"}, "parents": []})"),
            "User::\"a\".nam: there is no such attribute; did you mean `name`?");
  EXPECT_EQ(entity_problem(R"({"uid": {"type": "Usr", "id": "a"}, "attrs": {}, "parents": []})"),
            "there is no entity type `Usr`; did you mean `User`?");
  EXPECT_EQ(entity_problem(R"({"uid": {"type": "Group", "id": "a"}, "attrs": {},
                               "parents": [{"type": "User", "id": "b"}]})"),
            "Group::\"a\": entities of type `Group` cannot be in User::\"b\"");
  EXPECT_EQ(entity_problem(R"({"uid": {"type": "Group", "id": "a"}, "attrs": {}, "tags": {"x": 1}, "parents": []})"),
            "Group::\"a\": entities of this type have no tags");
  EXPECT_EQ(entity_problem(R"({"uid": {"type": "Color", "id": "blue"}, "attrs": {}, "parents": []})"),
            "Color::\"blue\" is none of the entities that the schema lists for `Color`");
  EXPECT_EQ(entity_problem(R"({"uid": {"type": "Action", "id": "view"}, "attrs": {}, "parents": []})"),
            "Action::\"view\": its groups are not those that the schema declares");
  const auto cyclic = entities_from_json(schema(), Json::parse(R"([
      {"uid": {"type": "Album", "id": "a"}, "attrs": {"owner": {"type": "User", "id": "u"}},
       "parents": [{"type": "Album", "id": "b"}]},
      {"uid": {"type": "Album", "id": "b"}, "attrs": {"owner": {"type": "User", "id": "u"}},
       "parents": [{"type": "Album", "id": "a"}]}])"));
  EXPECT_FALSE(cyclic);
}

TEST(CedarConformance, AnEntityMayStandTwiceWhereItIsTheSame) {
  const auto read = [](const std::string& second) {
    return entities_from_json(
        schema(), Json::parse(R"([{"uid": {"type": "User", "id": "u"}, "attrs": {"name": "U", "from": "10.0.0.1"},
      "parents": [{"type": "Group", "id": "a"}, {"type": "Group", "id": "b"}]}, )" +
                              second + "]"));
  };
  const auto once = read(R"({"uid": {"type": "Group", "id": "a"}, "attrs": {}, "parents": []})");
  ASSERT_TRUE(once) << once.error().message();
  const auto twice = read(R"({"uid": {"type": "User", "id": "u"}, "attrs": {"name": "U", "from": "10.0.0.1"},
                              "parents": [{"type": "Group", "id": "b"}, {"type": "Group", "id": "a"}]})");
  ASSERT_TRUE(twice) << twice.error().message();
  EXPECT_EQ(twice->size() + 1, once->size());
  EXPECT_EQ(read(R"({"uid": {"type": "User", "id": "u"}, "attrs": {"name": "U", "from": "10.0.0.1"}, "parents": []})")
                .error()
                .message(),
            "entity 2: User::\"u\" stands twice, each time otherwise");
}

std::string request_problem(EntityUid principal, EntityUid action, EntityUid resource, Attributes context) {
  const auto checked = check_request(
      schema(), {std::move(principal), std::move(action), std::move(resource), Value::record(std::move(context))});
  return checked ? "" : checked.error().message();
}

TEST(CedarConformance, RefusesRequestsThatDoNotFit) {
  const Attributes red = {{"color", Value(EntityUid{"Color", "red"})}};
  EXPECT_EQ(request_problem({"User", "u"}, {"Action", "view"}, {"Photo", "p"}, red), "");
  EXPECT_EQ(request_problem({"User", "u"}, {"Action", "view"}, {"Photo", "p"}, {}),
            "context.color: this attribute is required");
  EXPECT_EQ(request_problem({"Group", "u"}, {"Action", "view"}, {"Photo", "p"}, red),
            "action Action::\"view\" takes no principal of type `Group`");
  EXPECT_EQ(request_problem({"User", "u"}, {"Action", "edit"}, {"Album", "p"}, {}),
            "action Action::\"edit\" takes no resource of type `Album`");
  EXPECT_EQ(request_problem({"User", "u"}, {"Action", "vew"}, {"Photo", "p"}, red),
            "there is no action Action::\"vew\"; did you mean `Action::\"view\"`?");
  EXPECT_EQ(request_problem({"User", "u"}, {"Action", "view"}, {"Photo", "p"},
                            {{"color", Value(EntityUid{"Color", "blue"})}}),
            "context.color: Color::\"blue\" is none of the entities that the schema lists for `Color`");
  const auto context = context_from_json(
      schema(), {"Action", "view"}, Json::parse(R"({"at": "2030-01-01", "color": {"type": "Color", "id": "red"}})"));
  ASSERT_TRUE(context) << context.error().message();
}

}  // namespace
}  // namespace creto::authz::cedar
