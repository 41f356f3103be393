#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>
#include <set>

#include "cedar/parser.h"
#include "cedar/workbench.h"

namespace creto::authz::cedar {
namespace {

/// Policies, entities and requests over a small vocabulary, so that they often have to do with each other; most of the
/// expressions are well typed, some are not.
class Generator {
 public:
  explicit Generator(std::uint64_t seed) : random_(seed) {}

  std::uint64_t below(std::uint64_t limit) { return random_() % limit; }
  bool chance(unsigned percent) { return below(100) < percent; }
  template <class T>
  const T& one_of(const std::vector<T>& all) {
    return all[below(all.size())];
  }

  EntityUid uid() {
    static const std::vector<std::string> types = {"U", "G", "D", "N::T"};
    return {one_of(types), std::string(1, static_cast<char>('a' + below(4)))};
  }
  EntityUid action() { return {"Action", std::string(1, static_cast<char>('p' + below(4)))}; }

  Value value(int depth = 2) {
    switch (below(depth > 0 ? 8 : 5)) {
      case 0:
        return chance(50);
      case 1:
        return static_cast<std::int64_t>(below(4)) - 1;
      case 2:
        return word();
      case 3:
        return uid();
      case 4:
        return DatetimeValue{static_cast<std::int64_t>(below(3))};
      case 5: {
        std::vector<Value> elements;
        const bool entities = chance(60);
        for (auto n = below(4); n > 0; --n) elements.push_back(entities ? Value(uid()) : value(depth - 1));
        return Value::set(std::move(elements));
      }
      default:
        return Value::record(attributes(depth - 1));
    }
  }
  Attributes attributes(int depth) {
    Attributes all;
    for (auto n = below(4); n > 0; --n) all.emplace_back(name(), value(depth));
    return all;
  }
  Entity entity(EntityUid uid) {
    Entity entity{std::move(uid), attributes(2), attributes(1), {}};
    for (auto n = below(3); n > 0; --n) entity.parents.push_back(this->uid());
    return entity;
  }
  Request request() { return {uid(), chance(90) ? action() : uid(), uid(), Value::record(attributes(2))}; }

  std::string policy() {
    std::string text = chance(70) ? "permit(" : "forbid(";
    text += scope("principal", uid().to_string(), chance(30));
    switch (below(4)) {
      case 0:
        text += ", action, ";
        break;
      case 1:
        text += fmt::format(", action == {}, ", action().to_string());
        break;
      case 2:
        text += fmt::format(", action in {}, ", action().to_string());
        break;
      default:
        text += fmt::format(", action in [{}, {}], ", action().to_string(), action().to_string());
    }
    text += scope("resource", uid().to_string(), chance(30)) + ")";
    for (auto n = below(3); n > 0; --n) text += fmt::format(" {} {{ {} }}", chance(70) ? "when" : "unless", boolean(3));
    return text + ";";
  }

 private:
  std::string name() { return one_of<std::string>({"a", "b", "c", "name with space"}); }
  std::string word() { return one_of<std::string>({"", "x", "xy", "a*b"}); }
  std::string access(const std::string& name) {
    return name.find(' ') == std::string::npos ? "." + name : fmt::format("[\"{}\"]", name);
  }

  std::string scope(const std::string& variable, const std::string& uid, bool typed) {
    if (typed) return fmt::format("{} is {}{}", variable, this->uid().type, chance(40) ? " in " + uid : "");
    switch (below(4)) {
      case 0:
        return fmt::format("{} == {}", variable, uid);
      case 1:
        return fmt::format("{} in {}", variable, uid);
      default:
        return variable;
    }
  }

  std::string entity_expression(int depth) {
    switch (below(depth > 0 ? 6 : 4)) {
      case 0:
        return "principal";
      case 1:
        return "resource";
      case 2:
        return uid().to_string();
      case 3:
        return "action";
      default:
        return any(depth - 1) + access(name());
    }
  }
  std::string integer(int depth) {
    switch (below(depth > 0 ? 5 : 1)) {
      case 0:
        return chance(5) ? "9223372036854775807" : std::to_string(below(3));
      case 1:
        return fmt::format("({} {} {})", integer(depth - 1), one_of<std::string>({"+", "-", "*"}), integer(depth - 1));
      case 2:
        return fmt::format("(-{})", integer(depth - 1));
      default:
        return any(depth - 1) + access(name());
    }
  }
  std::string set(int depth) {
    if (depth <= 0 || chance(30)) return fmt::format("[{}, {}]", uid().to_string(), uid().to_string());
    if (chance(40)) return any(depth - 1) + access(name());
    return fmt::format("[{}, {}]", any(depth - 1), any(depth - 1));
  }
  std::string any(int depth) {
    switch (below(depth > 0 ? 10 : 4)) {
      case 0:
        return "context";
      case 1:
        return fmt::format("\"{}\"", word());
      case 2:
        return integer(depth);
      case 3:
        return entity_expression(depth);
      case 4:
        return set(depth);
      case 5:
        return fmt::format("{{a: {}, \"b\": {}}}", any(depth - 1), any(depth - 1));
      case 6:
        return one_of<std::string>({"ip(\"10.0.0.0/8\")", "decimal(\"1.5\")", "datetime(\"1970-01-01\")",
                                    "duration(\"1ms\")", "decimal(\"x\")"});
      case 7:
        return fmt::format("(if {} then {} else {})", boolean(depth - 1), any(depth - 1), any(depth - 1));
      case 8:
        return fmt::format("{}.getTag({})", entity_expression(depth - 1), any(depth - 1));
      default:
        return any(depth - 1) + access(name());
    }
  }
  std::string boolean(int depth) {
    if (depth <= 0) return chance(50) ? "true" : fmt::format("principal == {}", entity_expression(0));
    const auto sub = [&] { return boolean(depth - 1); };
    switch (below(16)) {
      case 0:
        return fmt::format("({} && {})", sub(), sub());
      case 1:
        return fmt::format("({} || {})", sub(), sub());
      case 2:
        return fmt::format("!({})", sub());
      case 3:
        return fmt::format("({} {} {})", any(depth - 1), chance(70) ? "==" : "!=", any(depth - 1));
      case 4:
        return fmt::format("({} {} {})", integer(depth - 1), one_of<std::string>({"<", "<=", ">", ">="}),
                           integer(depth - 1));
      case 5:
        return fmt::format("({} in {})", entity_expression(depth), entity_expression(depth - 1));
      case 6:
        return fmt::format("({} in {})", entity_expression(depth), set(depth - 1));
      case 7:
        return fmt::format("({} is {})", entity_expression(depth), uid().type);
      case 8:
        return fmt::format("({} is {} in {})", entity_expression(depth), uid().type, set(depth - 1));
      case 9:
        return fmt::format("({} like \"{}\")", any(depth - 1), one_of<std::string>({"x*", "*", "*y", "x"}));
      case 10:
        return fmt::format("({} has {})", any(depth - 1), one_of<std::string>({"a", "a.b", "\"name with space\""}));
      case 11:
        return fmt::format("{}.contains({})", set(depth - 1), any(depth - 1));
      case 12:
        return fmt::format("{}.{}({})", set(depth - 1), chance(50) ? "containsAll" : "containsAny", set(depth - 1));
      case 13:
        return fmt::format("{}.isEmpty()", set(depth - 1));
      case 14:
        return fmt::format("{}.hasTag(\"{}\")", entity_expression(depth - 1), name());
      default:
        return any(depth - 1) + access(name());
    }
  }

  std::mt19937_64 random_;  // tidy(random-engine): seeded, so that a failure can be repeated
};

std::string said(const Evaluation& evaluation) {
  std::map<std::string, std::string> all;
  for (const PlannedPolicy* policy : evaluation.permits) all[policy->id] = "permits";
  for (const PlannedPolicy* policy : evaluation.forbids) all[policy->id] = "forbids";
  for (const auto& [policy, error] : evaluation.errors) all[policy->id] = error.message();
  std::string text;
  for (const auto& [id, what] : all) text += fmt::format("{}: {}\n", id, what);
  return text;
}

std::uint64_t rounds() {
  const char* given = std::getenv("CRETO_ENGINE_ROUNDS");
  return given ? std::strtoull(given, nullptr, 10) : 400;
}

TEST(CedarEngine, AnswersAsTheInterpreterDoes) {
  std::size_t decided = 0, erred = 0;
  for (std::uint64_t seed = 1; seed <= rounds(); ++seed) {
    Generator generator(seed);
    std::string text;
    std::vector<std::shared_ptr<const PlannedPolicy>> policies;
    for (int i = 0; i < 12; ++i) {
      const std::string policy = generator.policy();
      auto parsed = parse_policies(policy);
      if (!parsed) continue;  // a literal out of range, a call that Cedar refuses at once
      text += fmt::format("p{}: {}\n", policies.size(), policy);
      policies.push_back(std::make_shared<PlannedPolicy>(fmt::format("p{}", policies.size()), std::move((*parsed)[0])));
    }
    std::map<EntityUid, Entity> entities;
    for (int i = 0; i < 8; ++i) {
      Entity entity = generator.entity(generator.uid());
      entities.insert_or_assign(entity.uid, entity);
    }
    Entity action{generator.action(), {}, {}, {generator.action()}};
    entities.insert_or_assign(action.uid, action);
    std::vector<Entity> all;
    for (auto& [uid, entity] : entities) all.push_back(entity);
    Workbench bench(PolicySet(policies), std::move(all));
    for (int i = 0; i < 10; ++i) {
      const Request request = generator.request();
      const Evaluation reference = bench.interpret(request);
      const Evaluation& got = bench.evaluate(request);
      ASSERT_TRUE(bench.decided());
      ASSERT_EQ(said(got), said(reference))
          << "seed " << seed << ": " << request.principal.to_string() << " " << request.action.to_string() << " "
          << request.resource.to_string() << " " << request.context.to_string() << "\n"
          << text;
      decided += got.permits.size() + got.forbids.size();
      erred += got.errors.size();
    }
  }
  EXPECT_GT(decided, rounds()) << "the generated requests have nothing to do with the policies";
  EXPECT_GT(erred, rounds());
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
