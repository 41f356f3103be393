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
#include "creto/testing/soak.h"
#include "service_entities.h"
#include "source_overlay.h"
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

std::uint64_t rounds() { return creto::testing::number_from("CRETO_ENGINE_ROUNDS", 400); }

/// As `said`, quicker: the policies of each outcome.
std::array<std::vector<const PlannedPolicy*>, 3> outcomes(const Evaluation& evaluation) {
  std::array<std::vector<const PlannedPolicy*>, 3> all{evaluation.permits, evaluation.forbids, {}};
  for (const auto& [policy, error] : evaluation.errors) all[2].push_back(policy);
  for (auto& policies : all) std::sort(policies.begin(), policies.end());
  return all;
}

TEST(CedarEngine, AnswersAsTheInterpreterDoes) {
  const std::uint64_t first = creto::testing::number_from("CRETO_SEED", 1);
  std::size_t satisfied = 0, erred = 0, requests = 0;
  creto::testing::Progress progress("seed", rounds());
  for (std::uint64_t seed = first; seed < first + rounds(); ++seed) {
    progress.at(seed - first);
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

TEST(CedarEngine, LooksOnlyAtPoliciesThatMatterToTheRequest) {
  const auto looked_at = [](const std::string& before, const std::string& after) {
    std::vector<std::shared_ptr<const PlannedPolicy>> policies;
    for (int i = 0; i < 100; ++i) {
      const std::string text = fmt::format("{}{}{}", before, i, after);
      auto parsed = parse_policies(text);
      EXPECT_TRUE(parsed) << text;
      policies.push_back(std::make_shared<PlannedPolicy>(fmt::format("p{}", i), std::move((*parsed)[0])));
    }
    EntityStore store;
    const Engine engine(PolicySet(policies), store);
    Engine::Scratch scratch;
    const EntityUid user{"U7", "7"}, action{"Action", "7"}, thing{"R7", "7"};
    const Attributes context = {{"on", true}};
    EXPECT_TRUE(engine.evaluate(
        scratch, store, nullptr, {user, action, thing, context}, Detail::all,
        [](const PlannedPolicy& policy) { return Error(Product::platform, ErrorKind::internal, policy.id); }));
    EXPECT_EQ(scratch.result.permits.size(), 1u) << before;
    return scratch.candidates.size();
  };
  EXPECT_EQ(looked_at("permit(principal is U", ", action, resource);"), 1u);
  EXPECT_EQ(looked_at("permit(principal, action, resource) when { principal is U", " && context.on };"), 1u);
  EXPECT_EQ(looked_at("permit(principal, action, resource) when { principal is U7 && resource is R", " };"), 1u);
  EXPECT_EQ(looked_at("permit(principal, action, resource) when { principal is U7 } when { resource is R", " };"), 1u);
  EXPECT_EQ(
      looked_at("permit(principal, action, resource) when { U7::\"7\" == principal && action == Action::\"", "\" };"),
      1u);
  EXPECT_EQ(looked_at("permit(principal, action, resource) when { action in [Action::\"", "\"] };"), 1u);
  EXPECT_EQ(looked_at("permit(principal, action, resource) when { resource == R7::\"", "\" && context.on };"), 1u);
  EXPECT_EQ(looked_at("permit(principal, action, resource) when { context.on && principal is U", " };"), 100u)
      << "where the context lacks `on`, all of them err";
  EXPECT_EQ(looked_at("permit(principal, action, resource) when { true || context.on } when { principal is U", " };"),
            100u);
}

/// Owns entities of some types.
class OwnedEntities final : public EntitySource {
 public:
  explicit OwnedEntities(std::set<std::string, std::less<>> types) : types_(std::move(types)) {}
  std::uint64_t version() const override { return 1; }
  bool may_know(std::string_view type) const override { return types_.contains(type); }
  Result<std::optional<Entity>> find(const std::string&, const EntityUid& uid) const override {
    const auto at = entities_.find(uid);
    return at == entities_.end() ? std::optional<Entity>() : std::optional(at->second);
  }
  void add(Entity entity) { entities_.emplace(entity.uid, std::move(entity)); }

 private:
  std::set<std::string, std::less<>> types_;
  std::map<EntityUid, Entity> entities_;
};

/// The entities as a service has them, some stored, some with a source, some with both, and as one: what the source
/// says of attributes before what is stored, and the parents of both.
struct DividedEntities {
  OwnedEntities source;
  OrgState state;
  std::vector<Entity> whole;

  DividedEntities(const std::vector<Entity>& entities, Generator& random) : source(types_of(entities, random)) {
    std::vector<std::shared_ptr<const Entity>> stored;
    const auto store = [&](Entity entity) {
      normalise(entity);
      stored.push_back(std::make_shared<const Entity>(std::move(entity)));
    };
    for (const Entity& entity : entities) {
      if (!source.may_know(entity.uid.type) || random.chance(20)) {
        store(entity);
        whole.push_back(entity);
        continue;
      }
      if (random.chance(50)) {
        source.add(entity);
        whole.push_back(entity);
        continue;
      }
      Entity other = random.entity(entity.uid), both = other;
      store(other);
      source.add(entity);
      both.attributes.insert(both.attributes.end(), entity.attributes.begin(), entity.attributes.end());
      both.tags.insert(both.tags.end(), entity.tags.begin(), entity.tags.end());
      both.parents.insert(both.parents.end(), entity.parents.begin(), entity.parents.end());
      whole.push_back(std::move(both));
    }
    state.entities.put(std::move(stored));
  }

 private:
  static std::set<std::string, std::less<>> types_of(const std::vector<Entity>& entities, Generator& random) {
    std::set<std::string, std::less<>> types;
    for (const Entity& entity : entities)
      if (random.chance(30)) types.insert(entity.uid.type);
    return types;
  }
};

TEST(CedarEngine, AnswersAsTheInterpreterDoesWhereSourcesOwnSomeOfTheEntities) {
  const std::uint64_t first = creto::testing::number_from("CRETO_SEED", 1);
  const std::string org = "default";
  std::size_t fetched = 0, satisfied = 0, requests = 0;
  for (std::uint64_t seed = first; seed < first + rounds(); ++seed) {
    const Generated generated = generate(seed);
    Generator random(seed);
    DividedEntities divided(generated.entities, random);
    const PolicySet policies = compile(generated);
    const Engine engine(policies, divided.state.entities);
    // Every other time as what may know everything: then the store alone is never enough.
    const std::vector<const EntitySource*> sources = {&divided.source};
    const bool all = seed % 2 == 0;
    for (const Request& request : generated.requests) {
      EntityTable table(divided.whole);
      const Evaluation reference = policies.evaluate(request, table);
      ServiceEntities entities(org, divided.state, sources);
      Engine::Scratch scratch;
      SourceOverlay overlay(entities, divided.state.entities, all ? nullptr : &sources, scratch.frame);
      const RequestView view{request.principal, request.action, request.resource, *request.context.as_record()};
      const auto failed = [](const PlannedPolicy& policy) {
        return Error(Product::platform, ErrorKind::internal, policy.id);
      };
      ASSERT_TRUE(engine.evaluate(scratch, divided.state.entities, &overlay, view, Detail::all, failed));
      ASSERT_TRUE(outcomes(scratch.result) == outcomes(reference)) << "seed " << seed << "\nthe engine:\n"
                                                                   << said(scratch.result) << "the interpreter:\n"
                                                                   << said(reference) << to_text(generated, request);
      satisfied += reference.permits.size() + reference.forbids.size();
      fetched += entities.take_loaded().size();
      ++requests;
    }
  }
  EXPECT_GT(satisfied, requests / 2);
  EXPECT_GT(fetched, requests / 2) << "the sources are hardly asked";
}

TEST(CedarEngine, SetsOfAllKindsOfValuesAreComparedAsTheInterpreterDoes) {
  const EntityUid known{"D", "known"}, unknown{"D", "unknown"};
  const std::vector<Value> values = {true,
                                     1,
                                     2,
                                     "1",
                                     "2",
                                     known,
                                     unknown,
                                     Value::set({1}),
                                     Value::set({1, 2}),
                                     Value::record({{"a", 1}}),
                                     Value(DecimalValue{1}),
                                     Value(DatetimeValue{1}),
                                     Value(DurationValue{1}),
                                     Value(IpValue{})};
  std::vector<std::shared_ptr<const PlannedPolicy>> policies;
  for (const char* text : {"context.a.containsAll(context.b)", "context.a.containsAny(context.b)",
                           "context.a.contains(context.one)", "context.a.containsAll(resource.numbered)",
                           "resource.numbered.containsAny(context.b)", "resource.numbered.contains(context.one)"}) {
    auto parsed = parse_policies(fmt::format("permit(principal, action, resource) when {{ {} }};", text));
    policies.push_back(std::make_shared<PlannedPolicy>(text, std::move((*parsed)[0])));
  }
  Workbench bench(PolicySet(policies), {{known, {{"numbered", Value::set({known, EntityUid{"D", "other"}})}}, {}, {}}});
  Generator random(1);
  std::size_t satisfied = 0;
  for (int round = 0; round < 2'000; ++round) {
    const auto some = [&] {
      std::vector<Value> elements;
      for (const Value& value : values)
        if (random.chance(40)) elements.push_back(value);
      return Value::set(std::move(elements));
    };
    const Value one = values[random.below(values.size())];
    const Request request{known, {"Action", "p"}, known, Value::record({{"a", some()}, {"b", some()}, {"one", one}})};
    const auto reference = outcomes(bench.interpret(request));
    ASSERT_TRUE(outcomes(bench.evaluate(request)) == reference) << request.context.to_string();
    satisfied += reference[0].size();
  }
  EXPECT_GT(satisfied, 2'000u);
}

TEST(CedarEngine, LargeSetsAreNotComparedEachWithEach) {
  std::vector<Value> numbers, others;
  for (std::int64_t n = 0; n < 100'000; ++n) {
    numbers.emplace_back(2 * n);
    others.emplace_back(2 * n + 1);
  }
  std::vector<std::shared_ptr<const PlannedPolicy>> policies;
  for (const char* text : {"context.a.containsAll(context.a)", "context.a.containsAny(context.b)"}) {
    auto parsed = parse_policies(fmt::format("permit(principal, action, resource) when {{ {} }};", text));
    policies.push_back(std::make_shared<PlannedPolicy>(text, std::move((*parsed)[0])));
  }
  Workbench bench(PolicySet(policies), {});
  const EntityUid uid{"D", "a"};
  const Evaluation& got = bench.evaluate(
      {uid, {"Action", "p"}, uid, Value::record({{"a", Value::set(numbers)}, {"b", Value::set(others)}})});
  // 10^10 comparisons would take minutes.
  ASSERT_EQ(got.permits.size(), 1u);
  EXPECT_EQ(got.permits[0]->id, "context.a.containsAll(context.a)");
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
