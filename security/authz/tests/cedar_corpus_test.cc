#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "cedar/parser.h"
#include "cedar/policy_set.h"
#include "tests/cedar_testing.h"

namespace creto::authz::cedar {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

/// The unpacked tree `name`: from the environment, or from the archive in the shared folder. Empty: neither is there.
fs::path tree(const char* variable, const std::string& archive, const std::string& folder) {
  if (const char* given = std::getenv(variable)) return given;
  const char* shared = std::getenv("CRETO_SHARED");
  const fs::path packed = fs::path(shared ? shared : CRETO_SHARED_DIR) / "cedar" / (archive + ".tar.zst");
  if (!fs::exists(packed)) return {};
  const fs::path target = CRETO_CORPUS_DIR;
  if (!fs::exists(target / folder / "README.txt")) {
    fs::create_directories(target);
    const auto command = fmt::format("zstd --long=27 -dcq '{}' | tar -x -C '{}'", packed.string(), target.string());
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
  }
  return target / folder;
}

EntityUid uid_of(const Json& json) {
  const Json& body = json.contains("__entity") ? json.at("__entity") : json;
  return {body.at("type").get<std::string>(), body.at("id").get<std::string>()};
}

std::vector<Entity> entities_of(const fs::path& path) {
  std::vector<Entity> entities;
  for (const Json& json : Json::parse(read_file(path))) {
    auto entity = entity_from_json(json);
    EXPECT_TRUE(entity) << path << ": " << (entity ? "" : entity.error().message());
    if (entity) entities.push_back(*std::move(entity));
  }
  return entities;
}

PolicySet policies_of(const fs::path& path) {
  auto parsed = parse_policies(read_file(path));
  EXPECT_TRUE(parsed) << path << ": " << (parsed ? "" : parsed.error().message());
  std::vector<std::shared_ptr<const PlannedPolicy>> policies;
  if (parsed) {
    for (PolicyAst& ast : *parsed) {
      policies.push_back(std::make_shared<PlannedPolicy>(fmt::format("policy{}", policies.size()), std::move(ast)));
    }
  }
  return PolicySet(std::move(policies));
}

/// Actions are entities of the schema, with its groups as parents.
void add_actions(const fs::path& schema, std::vector<Entity>& entities) {
  const Json parts = Json::parse(read_file(schema));
  for (const auto& [name_space, part] : parts.items()) {
    const std::string type = name_space.empty() ? "Action" : name_space + "::Action";
    for (const auto& [id, action] : part.at("actions").items()) {
      Entity entity{{type, id}, {}, {}, {}};
      for (const Json& group : action.value("memberOf", Json::array())) {
        entity.parents.push_back({type, group.at("id").get<std::string>()});
      }
      entities.push_back(std::move(entity));
    }
  }
}

std::set<std::string> names(const Json& array) {
  std::set<std::string> all;
  for (const Json& name : array) all.insert(name.get<std::string>());
  return all;
}

struct Tally {
  int passed = 0;
  int failed = 0;
};

/// Decision, reasons and errors of each request of one test file. Where the test `needs_schema`, a difference is
/// counted and no failure.
void run(const fs::path& root, const fs::path& file, Tally& tally, bool needs_schema = false) {
  const Json test = Json::parse(read_file(file));
  const PolicySet policies = policies_of(root / test.at("policies").get<std::string>());
  const auto entities = entities_of(root / test.at("entities").get<std::string>());
  for (const Json& request : test.at("requests")) {
    EntityTable table(entities);
    auto context = attributes_from_json(request.at("context"));
    ASSERT_TRUE(context) << file << ": " << context.error().message();
    const Evaluation got = policies.evaluate({uid_of(request.at("principal")), uid_of(request.at("action")),
                                              uid_of(request.at("resource")), Value::record(*context)},
                                             table);
    std::set<std::string> reasons;
    std::set<std::string> errors;
    for (const PlannedPolicy* policy : got.reasons()) reasons.insert(policy->id);
    for (const auto& [policy, error] : got.errors) errors.insert(policy->id);
    const bool same = got.allows() == (request.at("decision") == "allow") && reasons == names(request.at("reason")) &&
                      errors == names(request.at("errors"));
    (same ? tally.passed : tally.failed) += 1;
    EXPECT_TRUE(same || needs_schema) << file << " (" << request.value("description", "") << "): allows "
                                      << got.allows() << ", " << reasons.size() << " reasons, " << errors.size()
                                      << " errors" << (got.errors.empty() ? "" : ": " + got.errors[0].second.message());
  }
}

TEST(CedarCorpus, AnswersAsCedarDoes) {
  const fs::path root = tree("CRETO_CEDAR_CORPUS", "cedar-public", "cedar-public");
  if (root.empty()) GTEST_SKIP() << "no Cedar corpus: set CRETO_CEDAR_CORPUS or CRETO_SHARED";
  Tally trivial;
  Tally others;
  for (const auto& entry : fs::directory_iterator(root / "corpus-tests")) {
    const std::string name = entry.path().filename().string();
    if (!name.ends_with(".json") || name.ends_with(".entities.json")) continue;
    std::string text = read_file(root / "corpus-tests" / (entry.path().stem().string() + ".cedar"));
    std::erase_if(text, [](char c) { return c == ' ' || c == '\n'; });
    run(root, entry.path(), text == "permit(principal,action,resource)when{true};" ? trivial : others);
  }
  fmt::print(
      "corpus: {} requests of tests with their own policy pass, {} fail; with the trivial policy {} pass, {} fail\n",
      others.passed, others.failed, trivial.passed, trivial.failed);
  EXPECT_GT(others.passed, 0);
}

TEST(CedarCorpus, AnswersTheHandwrittenTests) {
  const fs::path root = tree("CRETO_CEDAR_CORPUS", "cedar-public", "cedar-public");
  if (root.empty()) GTEST_SKIP() << "no Cedar corpus: set CRETO_CEDAR_CORPUS or CRETO_SHARED";
  // Their entities leave out the __entity escape that the schema's types imply; this engine reads no schema.
  const std::set<std::string> schema_needed = {"example_use_cases/4d.json", "example_use_cases/4e.json",
                                               "example_use_cases/4f.json", "multi/3.json", "multi/4.json"};
  Tally tally;
  Tally with_schema;
  for (const auto& entry : fs::recursive_directory_iterator(root / "tests")) {
    if (entry.path().extension() != ".json") continue;
    const bool needs_schema = schema_needed.contains(fs::relative(entry.path(), root / "tests").string());
    run(root, entry.path(), needs_schema ? with_schema : tally, needs_schema);
  }
  fmt::print("handwritten: {} requests pass, {} fail; of the 5 tests that need the schema {} pass, {} do not\n",
             tally.passed, tally.failed, with_schema.passed, with_schema.failed);
  EXPECT_EQ(with_schema.failed, 13);
}

TEST(CedarCorpus, DecidesTheWorkloadsOfTheCedarPaper) {
  const fs::path root = tree("CRETO_CEDAR_OOPSLA", "oopsla", "oopsla");
  if (root.empty()) GTEST_SKIP() << "no Cedar workloads: set CRETO_CEDAR_OOPSLA or CRETO_SHARED";
  int decided = 0;
  for (const auto& entry : fs::directory_iterator(root / "data")) {
    if (entry.path().extension() != ".decisions") continue;
    const std::string stem = entry.path().stem().string();
    const PolicySet policies = policies_of(root / (stem.substr(0, stem.find('-')) + ".cedar"));
    const std::string expected = read_file(entry.path());
    auto entities = entities_of(root / "data" / (stem + ".entities.json"));
    add_actions(root / (stem.substr(0, stem.find('-')) + ".cedarschema.json"), entities);
    EntityTable table(entities);
    std::size_t at = 0;
    for (const Json& request : Json::parse(read_file(root / "data" / (stem + ".requests.json")))) {
      auto context = attributes_from_json(request.at("context"));
      ASSERT_TRUE(context) << stem;
      const auto uid = [&](const char* name) { return uid_of(request.at(name)); };
      const Evaluation got =
          policies.evaluate({uid("principal"), uid("action"), uid("resource"), Value::record(*context)}, table);
      ASSERT_EQ(got.allows(), expected.at(at) == '1') << stem << " request " << at;
      ++at;
      ++decided;
    }
  }
  fmt::print("workloads: {} requests decided as Cedar does\n", decided);
}

}  // namespace
}  // namespace creto::authz::cedar
