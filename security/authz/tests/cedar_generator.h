#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "cedar/policy_json.h"
#include "cedar/policy_set.h"

namespace creto::authz::cedar {

/// A policy or template as text.
struct GeneratedPolicy {
  std::string id;
  std::string text;
};

/// What one seed makes: policies, templates with links to them, entities and requests that often have to do with each
/// other, because all use one small vocabulary, whose schema is `generated_schema`. Most of the texts are policies, and
/// most of their expressions well typed; some are not, on purpose.
struct Generated {
  std::vector<GeneratedPolicy> policies;
  std::vector<GeneratedPolicy> templates;
  std::vector<TemplateLink> links;  ///< each to a template above, with the values that its slots ask for
  std::vector<Entity> entities;     ///< of different names
  std::vector<Request> requests;
};

struct GeneratorLimits {
  std::size_t policies = 8;
  std::size_t entities = 12;  ///< at least one
  std::size_t requests = 12;
  bool cycles = true;  ///< entities may be below themselves, which Cedar's own entities may not
  bool tame = false;   ///< no expression is ill typed on purpose: for a validator, which stops at the first that is
};

/// The same for the same seed.
Generated generate(std::uint64_t seed, const GeneratorLimits& limits = {});

/// The schema that the vocabulary follows, in Cedar's syntax.
std::string generated_schema();

/// Those of the texts that parse, linked, in the order in which they were made; `refused`: the ids of those that do
/// not.
PolicySet compile(const Generated& generated, std::vector<std::string>* refused = nullptr);

/// Policies, entities and requests one at a time.
class Generator {
 public:
  explicit Generator(std::uint64_t seed, const GeneratorLimits& limits = {}) : limits_(limits), random_(seed) {}

  std::uint64_t below(std::uint64_t limit) { return random_() % limit; }
  bool chance(unsigned percent) { return below(100) < percent; }

  EntityUid uid();
  EntityUid action();
  Entity entity(EntityUid uid);
  Request request();
  /// `slots`: a template, with at least one.
  std::string policy(bool slots = false);

 private:
  enum class Kind : std::uint8_t { boolean, integer, text, entity, set, record, decimal, ip, datetime, duration };
  static constexpr std::size_t kinds = 10;

  template <std::size_t n>
  std::string_view one_of(const std::string_view (&all)[n]) {
    return all[below(n)];
  }

  bool wild(unsigned percent) { return !limits_.tame && chance(percent); }
  Kind any_kind() { return static_cast<Kind>(below(kinds)); }
  std::string_view name(Kind kind);
  Value value(Kind kind, int depth);
  Attributes attributes(int depth);
  std::string tag();

  std::string scope(std::string_view variable, std::string_view slot);
  /// What policies say of whom they are for in their conditions.
  std::string about_the_request();
  std::string expression(Kind kind, int depth);
  std::string boolean(int depth);
  std::string comparison(int depth);
  std::string about_entities(int depth);
  std::string about_sets(int depth);
  std::string guarded(int depth);
  std::string method(int depth);
  std::string broken(int depth);
  std::string integer(int depth);
  std::string text(int depth);
  std::string entity(int depth);
  std::string set(int depth);
  std::string record(int depth);
  std::string extension(Kind kind, int depth);
  /// What may have attributes.
  std::string holder(int depth);
  std::string access(std::string_view name);

  const GeneratorLimits limits_;
  std::mt19937_64 random_;  // tidy(random-engine): seeded, so that a failure can be repeated
};

}  // namespace creto::authz::cedar
