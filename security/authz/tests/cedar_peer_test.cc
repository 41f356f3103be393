#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "cedar/conform.h"
#include "cedar/confusable.h"
#include "cedar/lexer.h"
#include "cedar/parser.h"
#include "cedar/policy_json.h"
#include "cedar/schema.h"
#include "cedar/text.h"
#include "cedar/validate.h"
#include "cedar/workbench.h"
#include "creto/common/json.h"
#include "creto/testing/soak.h"
#include "creto/testing/temp_dir.h"
#include "tests/cedar_generator.h"

// Our engine beside Cedar's own, the npm package @cedar-policy/cedar-wasm run by Node, on generated texts.
namespace creto::authz::cedar {
namespace {

using Ids = std::set<std::string>;

std::string join(const Ids& ids) { return fmt::format("{}", fmt::join(ids, " ")); }

std::uint64_t rounds() { return creto::testing::number_from("CRETO_PEER_ROUNDS", 1'000); }
std::uint64_t first_seed() { return creto::testing::number_from("CRETO_SEED", 1); }

/// Calls that Cedar answers all at once.
class Peer {
 public:
  struct Call {
    std::string what;  ///< to show where the answer is another
    std::string ours;
  };

  static const char* folder() { return std::getenv("CRETO_CEDAR_WASM"); }

  void ask(std::string_view function, const Json& argument, std::string ours, std::string what) {
    lines_ += fmt::format("{} {}\n", function, argument.dump());
    calls_.push_back({std::move(what), std::move(ours)});
  }

  /// `said` puts an answer of Cedar's in our words.
  template <class F>
  void expect_agreement(F&& said) {
    const testing::TempDir dir("cedar-peer");
    std::ofstream(dir / "calls") << lines_;
    const auto command = fmt::format("node '{}' '{}' < '{}' > '{}'", CRETO_CEDAR_PEER, folder(),
                                     (dir / "calls").string(), (dir / "answers").string());
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
    std::ifstream answers(dir / "answers");
    std::string line;
    std::size_t at = 0, different = 0;
    for (; std::getline(answers, line); ++at) {
      ASSERT_LT(at, calls_.size());
      const auto answer = parse_json(line, {.bytes_max = 16 << 20});
      ASSERT_TRUE(answer) << line;
      const std::string theirs = said(*answer);
      if (theirs == calls_[at].ours) continue;
      if (++different <= 10)
        ADD_FAILURE() << "Cedar: " << theirs << "\nwe:    " << calls_[at].ours << "\n" << calls_[at].what;
    }
    EXPECT_EQ(at, calls_.size()) << "Cedar left calls without an answer";
    EXPECT_EQ(different, 0u) << "of " << calls_.size();
  }

 private:
  std::string lines_;
  std::vector<Call> calls_;
};

#define NEEDS_CEDAR() \
  if (!Peer::folder()) GTEST_SKIP() << "no Cedar to compare with: ./dev deps fetches it where there are node and npm"

Json uid_json(const EntityUid& uid) { return Json{{"type", uid.type}, {"id", uid.id}}; }

/// Without those that we refuse.
Json policies_json(const Generated& generated, const Ids& refused) {
  Json policies = Json::object(), templates = Json::object(), links = Json::array();
  for (const auto& policy : generated.policies)
    if (!refused.contains(policy.id)) policies[policy.id] = policy.text;
  for (const auto& policy : generated.templates)
    if (!refused.contains(policy.id)) templates[policy.id] = policy.text;
  for (const TemplateLink& link : generated.links) {
    Json values = Json::object();
    if (link.values.principal) values["?principal"] = uid_json(*link.values.principal);
    if (link.values.resource) values["?resource"] = uid_json(*link.values.resource);
    links.push_back(Json{{"templateId", link.template_id}, {"newId", link.id}, {"values", std::move(values)}});
  }
  return Json{{"staticPolicies", std::move(policies)},
              {"templates", std::move(templates)},
              {"templateLinks", std::move(links)}};
}

std::string to_text(std::uint64_t seed, const Generated& generated) {
  std::string text = fmt::format("seed {}\n", seed);
  for (const auto* group : {&generated.policies, &generated.templates})
    for (const GeneratedPolicy& policy : *group) text += fmt::format("{}: {}\n", policy.id, policy.text);
  for (const Entity& entity : generated.entities) text += entity_to_json(entity).dump() + "\n";
  for (const Request& request : generated.requests)
    text += fmt::format("{} {} {} {}\n", request.principal.to_string(), request.action.to_string(),
                        request.resource.to_string(), request.context.to_string());
  return text;
}

std::string failure(const Json& answer) {
  std::string text = answer.at("type").get<std::string>();
  for (const Json& error : answer.at("errors")) text += ": " + error.at("message").get<std::string>();
  return text;
}

TEST(CedarPeer, DecidesAsCedarDoes) {
  NEEDS_CEDAR();
  Peer peer;
  std::size_t allowed = 0, erred = 0, satisfied = 0;
  for (std::uint64_t seed = first_seed(); seed < first_seed() + rounds(); ++seed) {
    const Generated generated = generate(seed, {.requests = 1, .cycles = false});
    std::vector<std::string> refused;
    Workbench bench(compile(generated, &refused), generated.entities);
    Json entities = Json::array();
    for (const Entity& entity : generated.entities) entities.push_back(entity_to_json(entity));
    const Request& request = generated.requests[0];
    const Evaluation& ours = bench.evaluate(request);
    ASSERT_TRUE(bench.decided());
    Ids reasons, errors;
    for (const PlannedPolicy* policy : ours.reasons()) reasons.insert(policy->id);
    for (const auto& [policy, error] : ours.errors) errors.insert(policy->id);
    allowed += ours.allows();
    erred += errors.size();
    satisfied += reasons.size();
    peer.ask(
        "isAuthorized",
        Json{{"principal", uid_json(request.principal)},
             {"action", uid_json(request.action)},
             {"resource", uid_json(request.resource)},
             {"context", value_to_json(request.context)},
             {"policies", policies_json(generated, {refused.begin(), refused.end()})},
             {"entities", std::move(entities)}},
        fmt::format("{} because of {}; errors in {}", ours.allows() ? "allow" : "deny", join(reasons), join(errors)),
        to_text(seed, generated));
  }
  EXPECT_GE(allowed, rounds() / 20) << "the generated requests have nothing to do with the policies";
  EXPECT_GE(satisfied, rounds() / 2);
  EXPECT_GE(erred, rounds() / 2);
  peer.expect_agreement([](const Json& answer) {
    if (answer.at("type") != "success") return failure(answer);
    const Json& response = answer.at("response");
    Ids reasons, errors;
    for (const Json& id : response.at("diagnostics").at("reason")) reasons.insert(id.get<std::string>());
    for (const Json& error : response.at("diagnostics").at("errors")) errors.insert(error.at("policyId"));
    return fmt::format("{} because of {}; errors in {}", response.at("decision").get<std::string>(), join(reasons),
                       join(errors));
  });
}

TEST(CedarPeer, RefusesTheTextsThatCedarRefuses) {
  NEEDS_CEDAR();
  Peer peer;
  for (std::uint64_t seed = first_seed(); seed < first_seed() + rounds(); ++seed) {
    const Generated generated = generate(seed, {.requests = 0, .cycles = false});
    std::vector<std::string> refused;
    compile(generated, &refused);
    for (const std::string& id : refused) {
      const bool is_template = id.starts_with('t');
      for (const auto& policy : is_template ? generated.templates : generated.policies) {
        if (policy.id != id) continue;
        Json one = Json::object();
        one[id] = policy.text;
        peer.ask("checkParsePolicySet", Json{{is_template ? "templates" : "staticPolicies", std::move(one)}}, "failure",
                 policy.text);
      }
    }
  }
  peer.expect_agreement([](const Json& answer) { return answer.at("type").get<std::string>(); });
}

TEST(CedarPeer, ValidatesAsCedarDoes) {
  NEEDS_CEDAR();
  const auto decl = parse_schema(generated_schema());
  ASSERT_TRUE(decl.ok()) << to_string(decl.problems[0]);
  const auto schema = Schema::resolve(decl);
  ASSERT_TRUE(schema.ok()) << to_string(schema.problems[0]);
  Peer peer;
  const std::uint64_t rounds_here = (rounds() + 4) / 5;  // Cedar reads the schema anew for each
  std::size_t passed = 0, failed = 0;
  for (std::uint64_t seed = first_seed(); seed < first_seed() + rounds_here; ++seed) {
    Generated generated = generate(seed, {.requests = 0, .cycles = false, .tame = seed % 2 == 0});
    generated.links.clear();
    generated.entities.clear();
    Ids refused, wrong;
    for (const auto* group : {&generated.policies, &generated.templates}) {
      for (const GeneratedPolicy& policy : *group) {
        const auto parsed = parse_policies_and_templates(policy.text);
        if (!parsed.ok() || parsed.value[0].is_template() != (group == &generated.templates)) {
          refused.insert(policy.id);
        } else if (!validate(schema.value, parsed.value[0]).passed()) {
          wrong.insert(policy.id);
          ++failed;
        } else {
          ++passed;
        }
      }
    }
    peer.ask("validate",
             Json{{"schema", generated_schema()},
                  {"validationSettings", {{"mode", "strict"}}},
                  {"policies", policies_json(generated, refused)}},
             "refuses " + join(wrong), to_text(seed, generated));
  }
  EXPECT_GE(passed, rounds_here) << "hardly any generated policy fits the schema";
  EXPECT_GE(failed, rounds_here);
  peer.expect_agreement([](const Json& answer) {
    if (answer.at("type") != "success") return failure(answer);
    Ids wrong;
    for (const Json& error : answer.at("validationErrors")) wrong.insert(error.at("policyId").get<std::string>());
    return "refuses " + join(wrong);
  });
}

/// A text of up to three characters from all over Unicode 14 (of later ones our tables know nothing).
std::string some_text(Generator& generator) {
  static constexpr std::array<std::array<char32_t, 2>, 12> blocks = {{{0x20, 0x7e},
                                                                      {0xa0, 0x24f},
                                                                      {0x370, 0x58f},
                                                                      {0x600, 0x6ff},
                                                                      {0x900, 0xdff},
                                                                      {0x1000, 0x167f},
                                                                      {0x2000, 0x203f},
                                                                      {0x3041, 0x31bf},
                                                                      {0x4e00, 0x9fff},
                                                                      {0xac00, 0xd7a3},
                                                                      {0xff01, 0xffee},
                                                                      {0x1f300, 0x1f64f}}};
  std::string text;
  for (auto n = 1 + generator.below(3); n > 0; --n) {
    const auto& [first, last] = blocks[generator.below(blocks.size())];
    append_utf8(text, first + static_cast<char32_t>(generator.below(last - first + 1)));
  }
  return text;
}

TEST(CedarPeer, WarnsOfTheTextsThatCedarWarnsOf) {
  NEEDS_CEDAR();
  Peer peer;
  std::size_t warned = 0;
  for (std::uint64_t seed = first_seed(); seed < first_seed() + rounds() / 10; ++seed) {
    Generator generator(seed);
    Json policies = Json::object();
    Ids ours;
    std::string texts;
    for (int i = 0; i < 40; ++i) {
      const std::string id = fmt::format("p{}", i);
      const std::string text = some_text(generator);
      const bool name = generator.chance(50);
      policies[id] = fmt::format("permit(principal, action, resource) when {{ {} == {}{} }};",
                                 name ? "principal" : "context.s", name ? "E::" : "", quote(text));
      if (!(name ? confusable_name(text) : confusable_text(text)).empty()) ours.insert(id);
      texts += fmt::format("{}: {}\n", id, policies[id].get<std::string>());
    }
    warned += ours.size();
    peer.ask("validate",
             Json{{"schema", "entity E; action a appliesTo { principal: E, resource: E, context: { s: String } };"},
                  {"validationSettings", {{"mode", "strict"}}},
                  {"policies", {{"staticPolicies", std::move(policies)}}}},
             "warns of " + join(ours), texts);
  }
  EXPECT_GE(warned, rounds() / 10);
  peer.expect_agreement([](const Json& answer) {
    if (answer.at("type") != "success") return failure(answer);
    Ids theirs;
    for (const Json& warning : answer.at("validationWarnings"))
      theirs.insert(warning.at("policyId").get<std::string>());
    return "warns of " + join(theirs);
  });
}

// --- texts that are nearly right

/// One or two tokens are lost, stand twice, change places, or are others of the same text.
std::string with_other_tokens(Generator& generator, std::string_view text) {
  const auto lexed = lex(text).value();
  std::vector<std::string> tokens;
  for (const Token& token : lexed.tokens)
    tokens.push_back(token.kind == TokenKind::string ? fmt::format("\"{}\"", token.text) : std::string(token.text));
  tokens.pop_back();
  for (auto n = 1 + generator.below(2); n > 0 && tokens.size() > 1; --n) {
    const auto at = tokens.begin() + static_cast<std::ptrdiff_t>(generator.below(tokens.size()));
    const std::string other = tokens[generator.below(tokens.size())];
    switch (generator.below(5)) {
      case 0:
        tokens.erase(at);
        break;
      case 1:
        tokens.insert(at, std::string(*at));
        break;
      case 2:
        if (at + 1 != tokens.end()) std::iter_swap(at, at + 1);
        break;
      case 3:
        *at = other;
        break;
      default:
        tokens.insert(at, other);
    }
  }
  return fmt::format("{}", fmt::join(tokens, " "));
}

void collect(Json& json, std::vector<Json*>& all) {
  all.push_back(&json);
  if (json.is_structured())
    for (Json& part : json) collect(part, all);
}

/// One or two values are lost, of another kind, elsewhere too, or under another name. No object becomes an array: as
/// Cedar reads JSON, an array of an object's values in their order is as good.
Json with_other_values(Generator& generator, Json json) {
  for (auto n = 1 + generator.below(2); n > 0; --n) {
    std::vector<Json*> all;
    collect(json, all);
    Json& at = *all[generator.below(all.size())];
    const Json other = *all[generator.below(all.size())];
    if (at.is_object() && !at.empty() && generator.chance(70)) {
      const auto member = std::next(at.begin(), static_cast<std::ptrdiff_t>(generator.below(at.size())));
      const std::string name = member.key();
      const Json value = member.value();
      if (generator.chance(70)) at.erase(name);
      if (generator.chance(30)) at[other.is_string() ? other.get<std::string>() : "annotations"] = value;
    } else if (at.is_array() && !at.empty() && generator.chance(50)) {
      const auto index = generator.below(at.size());
      const Json element = at[index];
      if (generator.chance(50)) at.push_back(element);
      if (generator.chance(50)) at.erase(index);
    } else {
      static const std::vector<Json> simple = {nullptr, Json::object(), "", "x", 1, -1, true, false};
      const Json& into = generator.chance(30) ? other : simple[generator.below(simple.size())];
      if (!into.is_array() || at.is_array()) at = Json(into);
    }
  }
  return json;
}

/// A schema with something of everything.
constexpr std::string_view whole_schema = R"(
@doc("people") namespace N {
  @a type T = { @b("c") a?: Long, b: Set<String>, "c d": ipaddr };
  type C = U;
  entity U, V in [G, N::W] = { t: T, u?: C, d: datetime } tags Set<Long>;
  entity G; entity W in G;
  entity E enum ["x", "y"];
  @k("l") action a, "b c" in [g, N::Action::"h"] appliesTo { principal: [U, V], resource: G, context: { e: E } };
  action g in h; action h;
  action i appliesTo { resource: [W], principal: U, context: T };
}
entity O; type L = __cedar::Long; action z appliesTo { principal: N::U, resource: O, context: { l: L } };)";

std::string verdict(bool taken) { return taken ? "success" : "failure"; }
std::string their_verdict(const Json& answer) { return verdict(answer.at("type") == "success"); }

TEST(CedarPeer, TakesTheSchemasThatCedarTakes) {
  NEEDS_CEDAR();
  const auto base = parse_schema(whole_schema);
  ASSERT_TRUE(Schema::resolve(base).ok());
  Peer peer;
  for (std::uint64_t seed = first_seed(); seed < first_seed() + (rounds() + 3) / 4; ++seed) {
    Generator generator(seed);
    const std::string text = with_other_tokens(generator, whole_schema);
    peer.ask("checkParseSchema", text, verdict(Schema::resolve(parse_schema(text)).ok()), text);
    const Json json = with_other_values(generator, schema_to_json(base.value));
    if (json.is_object())  // a text would be one in Cedar's syntax
      peer.ask("checkParseSchema", json, verdict(Schema::resolve(schema_from_json(json)).ok()), json.dump());
  }
  peer.expect_agreement(their_verdict);
}

TEST(CedarPeer, TakesThePoliciesThatCedarTakes) {
  NEEDS_CEDAR();
  Peer peer;
  std::size_t taken = 0;
  for (std::uint64_t seed = first_seed(); seed < first_seed() + (rounds() + 3) / 4; ++seed) {
    Generator generator(seed);
    const std::string whole = generator.policy();
    if (!parse_policies(whole)) continue;
    const std::string text = with_other_tokens(generator, whole);
    const auto policies = parse_policies(text);
    peer.ask("checkParsePolicySet", Json{{"staticPolicies", text}}, verdict(policies.has_value()), text);
    // What is half an escape, or has too few arguments, is refused here, and by Cedar when it is evaluated, or never.
    const Json json = with_other_values(generator, to_json(parse_policies(whole).value()[0]).value());
    if (!policy_from_json(json)) continue;
    peer.ask("checkParsePolicySet", Json{{"staticPolicies", {{"p", json}}}}, "success", json.dump());
    ++taken;
  }
  EXPECT_GE(taken, rounds() / 40);
  peer.expect_agreement(their_verdict);
}

TEST(CedarPeer, TakesNoEntitiesThatCedarRefuses) {
  NEEDS_CEDAR();
  Peer peer;
  std::size_t taken = 0;
  for (std::uint64_t seed = first_seed(); seed < first_seed() + (rounds() + 3) / 4; ++seed) {
    Generator generator(seed);
    const Generated generated = generate(seed, {.policies = 0, .entities = 3, .requests = 0, .cycles = false});
    Json all = Json::array();
    for (const Entity& entity : generated.entities) all.push_back(entity_to_json(entity));
    Json json = with_other_values(generator, all);
    if (json.is_array()) {
      // Here an entity without attributes or parents need not say so.
      for (Json& entity : json) {
        if (!entity.is_object()) continue;
        entity.emplace("attrs", Json::object());
        entity.emplace("parents", Json::array());
      }
    }
    if (!read_entities_json(nullptr, json.dump(), {}).ok()) continue;
    peer.ask("checkParseEntities", Json{{"entities", json}}, "success", json.dump());
    ++taken;
  }
  EXPECT_GE(taken, rounds() / 40);
  peer.expect_agreement(their_verdict);
}

}  // namespace
}  // namespace creto::authz::cedar
