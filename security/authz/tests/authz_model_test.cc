// A service with a cache and one without, held against a model while policies, stored entities and a source's entities
// change; runs under ThreadSanitizer too.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <random>
#include <thread>

#include "creto/authz/authz.h"
#include "creto/testing/databases.h"
#include "creto/testing/soak.h"

namespace creto::authz {
namespace {

constexpr std::size_t agents = 8;
constexpr std::size_t things = 4;
constexpr std::size_t base_policies = 5;

bool bit(unsigned bits, std::size_t at) { return (bits >> at & 1) != 0; }

/// What a service has stored.
struct Stored {
  std::size_t base = 0;           ///< which permit there is
  std::size_t guard = 0;          ///< the thing that is kept from all but staff, counted from 1; 0: none
  unsigned staff = 0;             ///< a bit for each agent
  unsigned open = 0, shared = 0;  ///< a bit for each thing

  std::string base_text() const {
    static constexpr std::array<std::string_view, base_policies> texts = {
        "permit(principal, action, resource) when { principal.active };",
        "permit(principal in Group::\"staff\", action, resource) when { principal.active };",
        "permit(principal, action, resource) when { principal.active && resource.open };",
        "permit(principal in Group::\"staff\", action, resource in Folder::\"shared\");",
        "permit(principal, action, resource) when { resource.owner == principal };"};
    return std::string(texts[base]);
  }
  std::string guard_text() const {
    return fmt::format(
        "forbid(principal, action, resource == Thing::\"{}\") unless {{ principal in Group::\"staff\" }};", guard - 1);
  }
  /// What the policies say of it, in our own words.
  bool allows(std::size_t agent, std::size_t thing, bool active, std::size_t owner) const {
    const bool is_staff = bit(staff, agent);
    if (guard == thing + 1 && !is_staff) return false;
    switch (base) {
      case 0:
        return active;
      case 1:
        return is_staff && active;
      case 2:
        return active && bit(open, thing);
      case 3:
        return is_staff && bit(shared, thing);
      default:
        return owner == agent;
    }
  }
};

const Identity& agent_number(std::size_t n) {
  static const auto all = [] {
    std::vector<Identity> some;
    for (std::uint8_t i = 0; i < agents; ++i) some.push_back(Identity::agent(ByteArray<32>{i}));
    return some;
  }();
  return all[n];
}

EntityUid agent_uid(std::size_t n) { return {"Agent", agent_number(n).text()}; }

Entity stored_agent(const Stored& stored, std::size_t n) {
  Entity entity{agent_uid(n), {}, {}, {}};
  if (bit(stored.staff, n)) entity.parents.push_back({"Group", "staff"});
  return entity;
}

Entity stored_thing(const Stored& stored, std::size_t n) {
  Entity entity{{"Thing", std::to_string(n)}, {{"open", bit(stored.open, n)}}, {}, {}};
  if (bit(stored.shared, n)) entity.parents.push_back({"Folder", "shared"});
  return entity;
}

/// Says of each agent whether it is active.
class ActiveAgents final : public EntitySource {
 public:
  std::uint64_t version() const override { return version_; }
  bool may_know(std::string_view type) const override { return type == "Agent"; }
  Result<std::optional<Entity>> find(const std::string&, const EntityUid& uid) const override {
    for (std::size_t n = 0; n < agents; ++n)
      if (uid.type == "Agent" && uid.id == agent_number(n).text())
        return std::optional(Entity{uid, {{"active", bit(active_, n)}}, {}, {}});
    return std::optional<Entity>();
  }
  void set(unsigned active) {
    active_ = active;
    ++version_;
  }

 private:
  std::atomic<unsigned> active_{0};
  std::atomic<std::uint64_t> version_{1};
};

using Owners = std::array<std::size_t, things>;

/// Says of each thing who owns it.
class OwnedThings final : public ResourceSource {
 public:
  std::vector<std::string> types() const override { return {"Thing"}; }
  Result<std::optional<Entity>> find(const Context&, const EntityUid& uid) const override {
    const std::size_t owner = owners_[std::stoul(uid.id)];
    return std::optional(Entity{uid, {{"owner", agent_uid(owner)}}, {}, {}});
  }
  void set(const Owners& owners) {
    for (std::size_t n = 0; n < things; ++n) owners_[n] = owners[n];
  }

 private:
  std::array<std::atomic<std::size_t>, things> owners_{};
};

/// How far somebody is who brings about one state after another: that of number `done` was there, none after `begun`.
struct Progress {
  std::atomic<std::size_t> begun{0}, done{0};
};

class Model {
 public:
  Model(std::uint64_t seed, std::uint64_t checks) : checks_(checks) {
    std::mt19937_64 random(seed);  // tidy(random-engine): seeded, so that a failure can be repeated
    stored_.emplace_back();
    while (stored_.size() < checks / 100 + 2) {
      Stored next = stored_.back();
      const unsigned thing = 1u << random() % things;
      switch (random() % 6) {
        case 0:
          next.base = random() % base_policies;
          break;
        case 1:
          next.guard = random() % (things + 1);
          break;
        case 2:
          next.base = random() % base_policies;
          next.guard = random() % (things + 1);
          break;
        case 3:
          next.staff ^= 1u << random() % agents;
          break;
        case 4:
          next.open ^= thing;
          break;
        default:
          next.shared ^= thing;
      }
      stored_.push_back(next);
    }
    active_.push_back(0);
    while (active_.size() < checks / 20 + 2) active_.push_back(active_.back() ^ (1u << random() % agents));

    owners_.emplace_back();
    while (owners_.size() < checks / 20 + 2) {
      Owners next = owners_.back();
      next[random() % things] = random() % agents;
      owners_.push_back(next);
    }

    AuthzOptions uncached;
    uncached.cache_entries = 0;
    for (const AuthzOptions& options : {AuthzOptions(), uncached}) add_service(options);
    std::vector<Entity> entities;
    for (std::size_t n = 0; n < agents; ++n) entities.push_back(stored_agent(stored_[0], n));
    for (std::size_t n = 0; n < things; ++n) entities.push_back(stored_thing(stored_[0], n));
    must(services_[0]->put_entities(ctx_, std::move(entities), false));
    must(services_[0]->apply_policies(ctx_, policies_of(stored_[0])));
    must(services_[1]->refresh(ctx_));
  }

  void run(std::uint64_t seed) {
    std::vector<std::jthread> all;
    for (unsigned thread = 0; thread < 2; ++thread) all.emplace_back([this, seed, thread] { ask(seed * 2 + thread); });
    all.emplace_back([this] { change_stored(); });
    all.emplace_back([this] { change_active(); });
    all.emplace_back([this] { change_owners(); });
  }

  /// That both, and one which begins now, are where the model is once nobody changes anything any more.
  void expect_agreement() {
    add_service({});
    const Stored& stored = stored_[changes_of_stored_.done];
    for (std::size_t agent = 0; agent < agents; ++agent)
      for (std::size_t thing = 0; thing < things; ++thing)
        for (const auto& service : services_)
          EXPECT_EQ(allowed(service->check(ctx_, request(agent, thing))),
                    stored.allows(agent, thing, bit(active_[changes_of_active_.done], agent),
                                  owners_[changes_of_owners_.done][thing]));
  }

  std::uint64_t judged() const { return judged_; }
  std::uint64_t amid_a_change() const { return amid_a_change_; }
  std::uint64_t allows() const { return allows_; }
  std::size_t changes() const { return changes_of_stored_.done + changes_of_active_.done + changes_of_owners_.done; }

 private:
  template <class T>
  static void must(const Result<T>& done) {
    if (!done) ADD_FAILURE() << done.error().to_string();
  }

  void add_service(const AuthzOptions& options) {
    services_.push_back(
        create_authz(*db_, system_clock(), no_telemetry(), {&source_}, Secret(Bytes(32, 7)), options).value());
    must(services_.back()->register_source(things_));
  }

  static PolicyApplication policies_of(const Stored& stored) {
    PolicyApplication application;
    application.policies.push_back({"base", stored.base_text()});
    if (stored.guard != 0) application.policies.push_back({"guard", stored.guard_text()});
    return application;
  }

  static CheckRequest request(std::size_t agent, std::size_t thing) {
    return {.principal = agent_number(agent),
            .chain = {},
            .action = "act",
            .resource = {"Thing", std::to_string(thing)},
            .context = {},
            .arguments_hash = {},
            .override_token = {}};
  }

  void ask(std::uint64_t seed) {
    std::mt19937_64 random(seed);  // tidy(random-engine): seeded, so that a failure can be repeated
    while (asked_++ < checks_) {
      const std::size_t agent = random() % agents, thing = random() % things;
      Authz& service = *services_[random() % 8 == 0 ? 1 : 0];
      const CheckRequest asked = request(agent, thing);
      const std::size_t stored_first = changes_of_stored_.done, active_first = changes_of_active_.done;
      const std::size_t owners_first = changes_of_owners_.done;
      const bool allow = allowed(service.check(ctx_, asked));
      const std::size_t stored_last = changes_of_stored_.begun, active_last = changes_of_active_.begun;
      const std::size_t owners_last = changes_of_owners_.begun;
      bool possible = false;
      for (std::size_t i = stored_first; i <= stored_last && !possible; ++i)
        for (std::size_t j = active_first; j <= active_last && !possible; ++j)
          for (std::size_t k = owners_first; k <= owners_last && !possible; ++k)
            possible = stored_[i].allows(agent, thing, bit(active_[j], agent), owners_[k][thing]) == allow;
      if (!possible)
        ADD_FAILURE() << (allow ? "allowed" : "denied") << " what no state between stored " << stored_first << " and "
                      << stored_last << ", active " << active_first << " and " << active_last << ", owners "
                      << owners_first << " and " << owners_last << " does: agent " << agent << ", thing " << thing;
      if (stored_first != stored_last || active_first != active_last || owners_first != owners_last) ++amid_a_change_;
      if (allow) ++allows_;
      ++judged_;
    }
  }

  /// Until so many more were asked; false where all were.
  bool wait_for(std::uint64_t more) {
    const std::uint64_t until = judged_ + more;
    while (judged_ < until && asked_ < checks_) std::this_thread::yield();
    return asked_ < checks_;
  }

  void change_stored() {
    creto::testing::Progress progress("check", checks_);
    for (std::size_t at = 1; at < stored_.size() && wait_for(at % 150); ++at) {
      progress.at(judged_);
      const Stored &before = stored_[at - 1], &after = stored_[at];
      changes_of_stored_.begun = at;
      if (before.staff != after.staff) {
        for (std::size_t n = 0; n < agents; ++n)
          if (bit(before.staff ^ after.staff, n))
            must(services_[0]->put_entities(ctx_, {stored_agent(after, n)}, false));
      } else if (before.open != after.open || before.shared != after.shared) {
        const unsigned changed = (before.open ^ after.open) | (before.shared ^ after.shared);
        for (std::size_t n = 0; n < things; ++n)
          if (bit(changed, n)) must(services_[0]->put_entities(ctx_, {stored_thing(after, n)}, false));
      } else {
        must(services_[0]->apply_policies(ctx_, policies_of(after)));
      }
      must(services_[1]->refresh(ctx_));
      changes_of_stored_.done = at;
    }
  }

  void change_active() {
    for (std::size_t at = 1; at < active_.size() && wait_for(at % 40); ++at) {
      changes_of_active_.begun = at;
      source_.set(active_[at]);
      changes_of_active_.done = at;
    }
  }

  void change_owners() {
    for (std::size_t at = 1; at < owners_.size() && wait_for(at % 40); ++at) {
      changes_of_owners_.begun = at;
      things_.set(owners_[at]);
      changes_of_owners_.done = at;
    }
  }

  const std::uint64_t checks_;
  const Context ctx_ = Context::of_service(Identity::service("test").value());
  creto::testing::TestDatabase database_{creto::testing::DatabaseKind::sqlite};
  std::unique_ptr<sql::Database> db_ = database_.open();
  ActiveAgents source_;
  OwnedThings things_;
  std::vector<std::unique_ptr<Authz>> services_;  ///< with a cache, and without
  std::vector<Stored> stored_;                    ///< one state after the other
  std::vector<unsigned> active_;                  ///< likewise, a bit for each agent
  std::vector<Owners> owners_;                    ///< likewise, of each thing
  Progress changes_of_stored_, changes_of_active_, changes_of_owners_;
  std::atomic<std::uint64_t> asked_{0}, judged_{0}, amid_a_change_{0}, allows_{0};
};

TEST(AuthzModel, EveryDecisionIsThatOfAStateBetweenTheChecksBeginAndItsEnd) {
  const std::uint64_t seed = creto::testing::number_from("CRETO_SEED", 1);
  const std::uint64_t checks = creto::testing::number_from("CRETO_INTERLEAVINGS", 20'000);
  Model model(seed, checks);
  model.run(seed);
  model.expect_agreement();
  EXPECT_EQ(model.judged(), checks);
  EXPECT_GT(model.allows(), checks / 10) << "hardly anything is ever allowed";
  EXPECT_GT(model.amid_a_change(), checks / 100) << "hardly any check meets a change";
  fmt::print("seed {}: {} checks, {} of them amid one of {} changes, {} allowed\n", seed, model.judged(),
             model.amid_a_change(), model.changes(), model.allows());
}

}  // namespace
}  // namespace creto::authz
