#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "cedar/engine.h"
#include "cedar/policy_json.h"
#include "cedar/policy_set.h"
#include "cedar/schema.h"
#include "cedar/validate.h"
#include "creto/authz/authz.h"
#include "rate.h"
#include "sorted_names.h"

namespace creto::authz {

/// The annotations `@oversight`, `@timeout` and `@approvers` of a forbid.
struct OversightTerms {
  PolicyId oversight_policy;
  std::optional<Nanos> timeout;
  std::vector<std::string> approvers;
};

/// A policy ready to run, with what the service reads from its annotations. Every policy in a service's engine is one.
struct RuledPolicy : cedar::PlannedPolicy {
  RuledPolicy(PolicyId id_, cedar::PolicyAst ast_, std::optional<OversightTerms> oversight_,
              std::shared_ptr<RateWindows> rate_)
      : PlannedPolicy(std::move(id_), std::move(ast_), rate_ == nullptr),
        oversight(std::move(oversight_)),
        rate(std::move(rate_)) {}

  const std::optional<OversightTerms> oversight;
  const std::shared_ptr<RateWindows> rate;  ///< of a permit with `@rate`; goes on where a new text keeps it
};

/// A policy as stored and as it runs.
struct LoadedPolicy {
  Policy stored;
  Hash256 hash{};  ///< of id and text; see "Policy set" in docs/formats.md
  std::shared_ptr<const RuledPolicy> planned;
  std::optional<cedar::TemplateLink> link = {};  ///< that `planned` was made of

  /// A template decides nothing itself.
  bool decides() const { return !planned->ast.is_template(); }
};

/// Whether the text of a policy is that of a link: no policy in Cedar's syntax begins so.
bool is_link_text(std::string_view text);
std::string text_of(const PolicyLink& link);

/// `before`, unless null, is what had this id: where `@rate` stays the same, so does what was counted.
/// Errors: invalid_input with position; `id` and `text` are what a user gave.
Result<LoadedPolicy> load_policy(Policy stored, std::size_t bytes_max, const LoadedPolicy* before,
                                 const std::shared_ptr<RateMemory>& memory);

/// The same where `stored` may be a template too, or a link to one that `find` knows: null where there is none of that
/// id.
using FindPolicy = std::function<std::shared_ptr<const LoadedPolicy>(const PolicyId&)>;
Result<LoadedPolicy> load_any_policy(Policy stored, std::size_t bytes_max, const LoadedPolicy* before,
                                     const std::shared_ptr<RateMemory>& memory, const FindPolicy& find);

/// The same for a policy that is parsed already.
Result<LoadedPolicy> load_policy(Policy stored, cedar::PolicyAst ast, const LoadedPolicy* before,
                                 const std::shared_ptr<RateMemory>& memory);

/// What `load_policy` asks of annotations, but for `@id`. `text` is the policy's.
Result<> check_annotations(const cedar::PolicyAst& policy, std::string_view text);

/// Policies by id. A value: a copy shares everything with its original, and a change costs what it changes.
class PolicyTable {
 public:
  using Entry = std::shared_ptr<const LoadedPolicy>;

  PolicyTable() = default;
  /// Each id once.
  explicit PolicyTable(std::vector<Entry> policies);

  Entry find(const PolicyId& id) const;  ///< null where there is none
  void put(Entry policy);
  void erase(const PolicyId& id);
  std::size_t size() const { return size_; }
  std::vector<Entry> sorted() const;  ///< by id
  /// The first `limit` of those whose id is greater than `after`.
  std::vector<Entry> page(const PolicyId& after, std::size_t limit) const;
  template <class F>
  void for_each(F&& use) const {
    for (const auto& shelf : shelves_)
      if (shelf) std::for_each(shelf->policies.begin(), shelf->policies.end(), use);
  }
  /// What "Policy set" in docs/formats.md says of the policies; `schema` is the text of the schema, if any.
  Hash256 hash(const std::string* schema) const;

 private:
  struct Shelf {
    std::vector<Entry> policies;  ///< by id
    Hash256 hash{};
  };
  static std::size_t shelf_of(const PolicyId& id);
  static void seal(Shelf& shelf);

  std::array<std::shared_ptr<const Shelf>, 256> shelves_;
  std::size_t size_ = 0;
};

/// The schema of an organization, with the types that need no declaration: Agent, Human, Service, Org.
struct LoadedSchema {
  PolicySchema stored;
  cedar::Schema schema;
  std::set<std::string, std::less<>> declared;  ///< the entity types of `stored` alone

  cedar::PolicyFindings validate(const cedar::PolicyAst& policy) const;
  /// What does not conform in a request for an action that is declared; other actions are none of its business.
  Result<> check(const cedar::Request& request) const;
  /// Likewise an entity that it speaks of.
  Result<> check(const Entity& entity) const;
  /// Whether it is of a declared type, or an action that is declared.
  bool speaks_of(const EntityUid& uid) const { return declared.contains(uid.type) || schema.action(uid) != nullptr; }
};

/// Errors: invalid_input with every problem.
Result<std::shared_ptr<const LoadedSchema>> load_schema(PolicySchema stored);
/// The same for a schema that is read already, with what was wrong in that.
cedar::Parsed<std::shared_ptr<const LoadedSchema>> load_schema(PolicySchema stored,
                                                               cedar::Parsed<cedar::SchemaDecl> read);

/// What is in force in one organization. Immutable once published.
struct OrgState {
  std::int64_t version = 0;
  std::int64_t policies_version = 0;  ///< the newest that changed policies or schema
  PolicyTable policies;
  std::shared_ptr<const LoadedSchema> schema;  ///< null: none
  cedar::EntityStore entities;
  std::map<std::string, SortedNames, std::less<>> ids;  ///< of `entities`, by type
  cedar::Engine engine;
  std::shared_ptr<const std::map<RequestId, Instant>> revoked;  ///< whose override token was withdrawn when; null: none
  /// Those of policies with `@rate`, by their number; null: none.
  std::shared_ptr<const std::map<std::uint64_t, std::shared_ptr<RateWindows>>> rates;
  std::shared_ptr<const std::map<PolicyId, PolicyId>> links;  ///< the template of each link; null: there is none

  /// `added` in the place of `removed`; either may be null.
  void replace(const PolicyTable::Entry& removed, const PolicyTable::Entry& added);
  /// `entities` and `ids` together.
  void put_entities(std::vector<std::shared_ptr<const Entity>> added);
  void erase_entities(std::span<const EntityUid> uids);
  void clear_entities();
  /// All of `policies` anew.
  void plan();
  /// Forgets the names of what is long gone.
  void compact();

  /// All that decide, for questions that no index answers. Made when it is first asked for, and kept until a policy
  /// changes. Thread-safe.
  const cedar::PolicySet& deciding() const;

  RateWindows* rate(std::uint64_t number) const {
    if (!rates) return nullptr;
    const auto at = rates->find(number);
    return at == rates->end() ? nullptr : at->second.get();
  }

 private:
  struct Deciding {
    std::once_flag made;
    cedar::PolicySet policies;
  };
  std::shared_ptr<Deciding> deciding_ = std::make_shared<Deciding>();  ///< of `policies`; copies share it
};

class SourceAsker;

/// An extension, and how it did since it was registered.
struct RegisteredExtension {
  RegisteredExtension(Extension& extension_, Counter& failures_total_, Counter& late_total_)
      : extension(extension_), failures_total(failures_total_), late_total(late_total_) {}

  Extension& extension;
  Counter& failures_total;
  Counter& late_total;
  std::atomic<std::uint64_t> calls{0}, failures{0}, late{0};
};

/// Who answers for the resources of a type.
struct RegisteredSource {
  std::string type;
  SourceAsker* asker = nullptr;
};

/// What one check sees. Immutable.
struct Snapshot {
  std::map<std::string, std::shared_ptr<const OrgState>, std::less<>> orgs;
  std::vector<std::shared_ptr<RegisteredExtension>> extensions;  ///< by priority
  std::vector<RegisteredSource> sources;                         ///< each type once
  bool stale = false;  ///< a change may have been lost: nothing may be allowed

  const OrgState* org(std::string_view name) const {
    const auto at = orgs.find(name);
    return at == orgs.end() ? nullptr : at->second.get();
  }
};

/// The current snapshot, read without a lock: each thread keeps its own reference and renews it when the generation
/// has moved.
class SnapshotHolder {
 public:
  SnapshotHolder();

  class Pin {
   public:
    ~Pin();
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;
    const Snapshot& operator*() const { return *snapshot_; }
    const Snapshot* operator->() const { return snapshot_; }

   private:
    friend class SnapshotHolder;
    Pin(const Snapshot* borrowed, std::shared_ptr<const Snapshot> own) : snapshot_(borrowed), own_(std::move(own)) {}
    const Snapshot* snapshot_;
    std::shared_ptr<const Snapshot> own_;  ///< where the thread's own reference is in use by somebody else
  };
  /// Keeps the current snapshot alive on this thread.
  Pin pin() const;

  std::shared_ptr<const Snapshot> current() const;
  void publish(std::shared_ptr<const Snapshot> next);

 private:
  const std::uint64_t id_;
  std::atomic<std::uint64_t> generation_{1};
  mutable std::mutex mutex_;
  std::shared_ptr<const Snapshot> current_;
};

/// The service's answer to Cedar's: see "Decisions" in the architecture. Forbids in `lifts` count as lifted where they
/// still ask for the same oversight.
struct PolicyDecision {
  Decision decision;
  std::vector<PolicyId> lifted;
  /// Where nothing but permits with `@rate` permits it: theirs, by policy id. One with room is enough.
  RateWindows* rate = nullptr;
  std::vector<RateWindows*> further_rates = {};
  bool fleeting = false;  ///< it rests on what a product said of a resource just now
};
/// Requires: every policy of `evaluation` is a RuledPolicy.
PolicyDecision decide(const cedar::Evaluation& evaluation, std::span<const OverrideGrant::Lift> lifts);

/// The permit that an Allow rests on: the sufficient one, else the first by id. Requires: there is one.
const cedar::PlannedPolicy* determining_permit(const cedar::Evaluation& evaluation);

/// The oversight policies that are asked for, joined by commas.
std::string oversight_names(const RequiresOversight& oversight);

/// Which of two refusals counts: Deny, QuotaExceeded, RateLimited, RequiresOversight, Allow.
bool outranks(const Decision& a, const Decision& b);

}  // namespace creto::authz
