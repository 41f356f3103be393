#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cedar/parser.h"
#include "cedar/workbench.h"
#include "tests/cedar_generator.h"

namespace creto::authz::cedar {
namespace {

std::string said(const Evaluation& evaluation) {
  std::map<std::string, std::string> all;
  for (const PlannedPolicy* policy : evaluation.permits) all[policy->id] = "permits";
  for (const PlannedPolicy* policy : evaluation.forbids) all[policy->id] = "forbids";
  for (const auto& [policy, error] : evaluation.errors) all[policy->id] = error.message();
  std::string text;
  for (const auto& [id, what] : all) text += fmt::format("{}: {}\n", id, what);
  return text;
}

/// What a request was decided by, to look at.
std::string to_text(const Generated& generated, const Request& request) {
  std::string text = fmt::format("{} {} {} {}\n", request.principal.to_string(), request.action.to_string(),
                                 request.resource.to_string(), request.context.to_string());
  for (const GeneratedPolicy& policy : generated.policies) text += fmt::format("{}: {}\n", policy.id, policy.text);
  for (const GeneratedPolicy& policy : generated.templates) text += fmt::format("{}: {}\n", policy.id, policy.text);
  for (const Entity& entity : generated.entities) text += entity_to_json(entity).dump() + "\n";
  return text;
}

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* given = std::getenv(variable);
  return given ? std::strtoull(given, nullptr, 10) : otherwise;
}

std::uint64_t rounds() { return number_from("CRETO_ENGINE_ROUNDS", 400); }

/// As `said`, quicker: the policies of each outcome.
std::array<std::vector<const PlannedPolicy*>, 3> outcomes(const Evaluation& evaluation) {
  std::array<std::vector<const PlannedPolicy*>, 3> all{evaluation.permits, evaluation.forbids, {}};
  for (const auto& [policy, error] : evaluation.errors) all[2].push_back(policy);
  for (auto& policies : all) std::sort(policies.begin(), policies.end());
  return all;
}

TEST(CedarEngine, AnswersAsTheInterpreterDoes) {
  const std::uint64_t first = number_from("CRETO_SEED", 1);
  std::size_t satisfied = 0, erred = 0, requests = 0;
  for (std::uint64_t seed = first; seed < first + rounds(); ++seed) {
    const Generated generated = generate(seed);
    Workbench bench(compile(generated), generated.entities);
    for (const Request& request : generated.requests) {
      const Evaluation reference = bench.interpret(request);
      const Evaluation& got = bench.evaluate(request);
      ASSERT_TRUE(bench.decided());
      ASSERT_TRUE(outcomes(got) == outcomes(reference)) << "seed " << seed << "\nthe engine:\n"
                                                        << said(got) << "the interpreter:\n"
                                                        << said(reference) << to_text(generated, request);
      satisfied += got.permits.size() + got.forbids.size();
      erred += got.errors.size();
      ++requests;
    }
  }
  EXPECT_GT(satisfied, requests / 2) << "the generated requests have nothing to do with the policies";
  EXPECT_GT(erred, requests / 2);
  RecordProperty("requests", static_cast<int>(requests));
}

TEST(CedarEngine, IsAfterEveryChangeAsIfMadeAtOnce) {
  for (std::uint64_t seed = 1; seed <= rounds() / 10 + 1; ++seed) {
    Generator generator(seed);
    std::vector<std::shared_ptr<const Entity>> entities;
    std::map<EntityUid, bool> known;
    for (int i = 0; i < 8; ++i) {
      Entity entity = generator.entity(i < 6 ? generator.uid() : generator.action());
      normalise(entity);
      if (known.emplace(entity.uid, true).second) entities.push_back(std::make_shared<const Entity>(entity));
    }
    EntityStore store;
    store.put(std::move(entities));
    Engine engine;
    std::vector<std::shared_ptr<const PlannedPolicy>> policies;
    const auto error = [](const PlannedPolicy& policy) {
      return Error(Product::platform, ErrorKind::internal, policy.id);
    };
    // Up to some hundred policies, so that the index grows several times, and down again.
    const std::size_t steps = 300;
    for (std::size_t step = 0; step < steps; ++step) {
      auto parsed = parse_policies(generator.policy());
      if (!parsed) continue;
      const bool grows = step < steps / 2;
      std::shared_ptr<const PlannedPolicy> removed, added;
      if (!policies.empty() && generator.chance(grows ? 30 : 90)) {
        const std::size_t at = generator.below(policies.size());
        removed = policies[at];
        policies.erase(policies.begin() + static_cast<std::ptrdiff_t>(at));
      }
      if (generator.chance(grows ? 95 : 20)) {
        added = std::make_shared<PlannedPolicy>(fmt::format("p{}", step), std::move((*parsed)[0]));
        policies.push_back(added);
      }
      const Engine before = engine;
      EntityStore next = store;
      engine.replace(removed.get(), added, next);
      store = std::move(next);
      if (step % 10 != 0) continue;
      EntityStore copy = store;
      const Engine at_once(PolicySet(policies), copy);
      for (int i = 0; i < 5; ++i) {
        const Request request = generator.request();
        const RequestView view{request.principal, request.action, request.resource, *request.context.as_record()};
        Engine::Scratch one, other, earlier;
        ASSERT_TRUE(engine.evaluate(one, store, nullptr, view, Detail::all, error));
        ASSERT_TRUE(at_once.evaluate(other, copy, nullptr, view, Detail::all, error));
        ASSERT_EQ(said(one.result), said(other.result)) << "seed " << seed << ", step " << step;
        ASSERT_TRUE(before.evaluate(earlier, store, nullptr, view, Detail::all, error));
        if (added) ASSERT_EQ(said(earlier.result).find(added->id + ":"), std::string::npos);
      }
    }
  }
}

/// What a store says of every name it has.
std::string content(const EntityStore& store) {
  std::map<std::string, std::string> all;
  for (EntityId id = 0; id < store.names(); ++id) {
    const EntityNode& node = store.node(id);
    std::set<std::string> ancestors;
    for (const EntityId ancestor : node.ancestors.to_vector()) ancestors.insert(store.node(ancestor).uid.to_string());
    std::string text = node.entity ? "known" : "mentioned";
    for (const Field& field : node.attributes) text += fmt::format(" {}", *field.name);
    for (const std::string& ancestor : ancestors) text += " in " + ancestor;
    if (node.entity || !ancestors.empty()) all[node.uid.to_string()] = text;
  }
  std::string text;
  for (const auto& [uid, what] : all) text += uid + " " + what + "\n";
  return text;
}

TEST(CedarEntityStore, IsAfterEveryChangeAsIfMadeAtOnceAndLeavesEarlierCopiesAlone) {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    Generator generator(seed);
    EntityStore store;
    std::map<EntityUid, Entity> entities;
    std::vector<std::pair<EntityStore, std::string>> earlier;
    for (int step = 0; step < 12; ++step) {
      EntityStore next = store;
      if (generator.chance(70)) {
        std::vector<std::shared_ptr<const Entity>> changed;
        for (auto n = 1 + generator.below(3); n > 0; --n) {
          Entity entity = generator.entity(generator.uid());
          normalise(entity);
          entities.insert_or_assign(entity.uid, entity);
          changed.push_back(std::make_shared<const Entity>(entity));
        }
        next.put(std::move(changed));
      } else {
        const std::vector<EntityUid> gone = {generator.uid(), generator.uid()};
        for (const EntityUid& uid : gone) entities.erase(uid);
        next.erase(gone);
      }
      earlier.emplace_back(std::move(store), "");
      earlier.back().second = content(earlier.back().first);
      store = std::move(next);
      EntityStore at_once;
      std::vector<std::shared_ptr<const Entity>> all;
      for (const auto& [uid, entity] : entities) all.push_back(std::make_shared<const Entity>(entity));
      at_once.put(std::move(all));
      ASSERT_EQ(content(store), content(at_once)) << "seed " << seed << ", step " << step;
    }
    for (const auto& [copy, before] : earlier) ASSERT_EQ(content(copy), before) << "seed " << seed;
  }
}

TEST(CedarEntityStore, FindsEveryNameAmongThousands) {
  EntityStore store;
  const auto name = [](int i) { return EntityUid{"T", std::to_string(i)}; };
  for (int i = 0; i < 5'000; ++i) ASSERT_EQ(store.intern(name(i)), static_cast<EntityId>(i));
  const EntityStore earlier = store;
  EntityStore later = store;
  EXPECT_EQ(later.intern({"T", "new"}), 5'000u);
  EntityStore fork = earlier;
  EXPECT_EQ(fork.intern({"T", "other"}), 5'000u);
  for (int i = 0; i < 5'000; ++i) ASSERT_EQ(fork.find(name(i)), static_cast<EntityId>(i));
  EXPECT_EQ(earlier.find({"T", "new"}), no_entity);
  EXPECT_EQ(later.find({"T", "new"}), 5'000u);
  EXPECT_EQ(later.find({"T", "other"}), no_entity);
  EXPECT_EQ(fork.find({"T", "new"}), no_entity);
}

TEST(CedarEntityStore, DecidesNothingByAHierarchyThatIsTooLarge) {
  Entity wide{{"G", "0"}, {}, {}, {}};
  for (std::size_t i = 0; i <= ancestors_max; ++i) wide.parents.push_back({"G", std::to_string(i + 1)});
  auto parsed = parse_policies("permit(principal in G::\"none\", action, resource);");
  std::vector<std::shared_ptr<const PlannedPolicy>> policies = {
      std::make_shared<PlannedPolicy>("p", std::move((*parsed)[0]))};
  Workbench bench(PolicySet(policies), {wide});
  const Request request{{"G", "0"}, {"Action", "p"}, {"D", "a"}, Value::record({})};
  bench.evaluate(request);
  EXPECT_FALSE(bench.decided());
  bench.interpret(request);
  EXPECT_TRUE(bench.entities().trouble());
}

}  // namespace
}  // namespace creto::authz::cedar
