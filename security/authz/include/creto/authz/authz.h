#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "creto/authz/value.h"
#include "creto/common/bytes.h"
#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/secret.h"
#include "creto/common/telemetry.h"

namespace creto::sql {
class Database;
class Tx;
}  // namespace creto::sql

namespace creto::authz {

/// May `principal` do `action` to `resource`?
///
/// Policies see `Agent::"<identity>"`, `Human::"<identity>"` or `Service::"<identity>"` as principal,
/// `Action::"<action>"`, and the resource as given; further `context.delegation`, a record
/// `{root: entity, depth: long, chain: set of entities}` that the service adds itself.
struct CheckRequest {
  Identity principal;
  DelegationChain chain;  ///< empty: the principal acts for itself
  std::string action;     ///< "sandbox.spawn", "network.egress", "payments.pay", …
  EntityUid resource;     ///< Image::"name", Host::"api.example:443", …; Org::"default" where there is none
  Attributes context;     ///< `delegation` is reserved
  /// SHA3-256 of the canonical JSON of the exact arguments; what an approval is bound to. Zero where there are none.
  Hash256 arguments_hash{};
  std::string override_token;  ///< from an approval; empty otherwise
};

struct Allow {
  friend bool operator==(const Allow&, const Allow&) = default;
};
struct Deny {
  std::string reason;
  PolicyId policy;         ///< the forbid that decided; empty where a permit was missing
  bool transient = false;  ///< not policy but trouble decided; asking again later may differ
  friend bool operator==(const Deny&, const Deny&) = default;
};
struct RequiresOversight {
  struct Requirement {
    PolicyId forbid;                     ///< the Cedar policy that an approval would lift
    PolicyId oversight_policy;           ///< the text of its @oversight: who approves and how
    std::optional<Nanos> timeout;        ///< @timeout: narrows the oversight policy, never widens it
    std::vector<std::string> approvers;  ///< @approvers, split at commas: narrows likewise
    friend bool operator==(const Requirement&, const Requirement&) = default;
  };
  std::vector<Requirement> requirements;  ///< at least one; all must be met
  friend bool operator==(const RequiresOversight&, const RequiresOversight&) = default;
};
struct QuotaExceeded {
  std::string quota_id;
  std::int64_t limit = 0;
  std::int64_t used = 0;
  std::optional<Instant> reset_at;
  std::string message;  ///< "monthly quota of `sandbox_allocated` exceeded (3/3)"
  friend bool operator==(const QuotaExceeded&, const QuotaExceeded&) = default;
};
struct RateLimited {
  Nanos retry_after{};
  std::int32_t requests_remaining = 0;
  friend bool operator==(const RateLimited&, const RateLimited&) = default;
};

using Decision = std::variant<Allow, Deny, RequiresOversight, QuotaExceeded, RateLimited>;

inline bool allowed(const Decision& decision) { return std::holds_alternative<Allow>(decision); }
/// "allow", "deny", "requires_oversight", "quota_exceeded", "rate_limited".
std::string_view to_string(const Decision& decision);
/// What the caller of a refused operation is told: permission_denied, oversight_required (number 202), quota_exceeded
/// caused by MT-429, rate_limited with its delay; unavailable for a transient Deny. None for Allow.
std::optional<Error> refusal(Product product, const Decision& decision);

/// What one policy had to do with a request that is in its scope.
struct PolicyVerdict {
  enum class Outcome : std::uint8_t {
    applies,
    failed,     ///< it erred
    condition,  ///< a condition was not met
  };
  PolicyId policy;
  bool forbids = false;
  Outcome outcome = Outcome::applies;
  std::string because;               ///< the smallest part of the conditions that decided, as Cedar text; how it failed
  std::size_t line = 0, column = 0;  ///< of that, in the policy's text, counted from 1
  /// What stands in `because`, and its value: {"context.amount", "500"}. At most 10.
  std::vector<std::pair<std::string, std::string>> saw;
  friend bool operator==(const PolicyVerdict&, const PolicyVerdict&) = default;
};

/// The decision with what led to it.
struct Explanation {
  Decision decision = Deny{};
  std::vector<PolicyId> reasons{};                         ///< policies that determined Cedar's own answer
  std::vector<std::pair<PolicyId, std::string>> errors{};  ///< policies that were skipped because they erred
  std::vector<PolicyId> lifted{};                          ///< forbids that the override token lifted
  std::int64_t snapshot = 0;
  /// Who had the last word: "policies", "rate", "extension", "token", "request" (it is malformed) or "trouble".
  std::string decided_by{};
  std::string decided_by_name{};  ///< of the extension; of the permits that had no room
  /// Those whose scope the request is in: at most 100, those first that apply, then those that failed.
  std::vector<PolicyVerdict> policies{};
  std::size_t policies_left_out = 0;  ///< further ones that do not apply
};

/// Which resources of a type somebody may do something to.
struct FilterQuestion {
  /// Of the resource the type alone counts; an override token and the hash of arguments do not.
  CheckRequest request;
  std::size_t limit = 100;             ///< of `ResourceFilter::resources`; 0 to 1 000
  std::optional<std::string> after{};  ///< those whose id is greater; none: from the first, whose id may be empty
  /// Where resources of the type lie in a database (docs/formats.md, "Columns"): asks for a condition in SQL.
  std::string columns{};
  bool sqlite = false;  ///< SQL for SQLite, else for PostgreSQL
};
struct ResourceFilter {
  enum class Kind : std::uint8_t {
    none,  ///< whatever the resource
    all,   ///< whatever the resource
    some,  ///< it depends on the resource
  };
  Kind kind = Kind::none;
  std::vector<std::string> resources;  ///< ids of stored entities of the type that it is permitted to; sorted
  bool more = false;                   ///< there are others behind the last one
  std::string residual;                ///< policies over the resource alone, as Cedar text; empty unless `some`
  std::string residual_json;           ///< the same as Cedar's JSON
  std::string where;                   ///< true for exactly the rows whose resource is permitted
  std::vector<std::variant<std::int64_t, std::string>> parameters;  ///< `$1`, … of `where`
  std::int64_t snapshot = 0;
};

struct Policy {
  PolicyId id;
  /// Exactly one Cedar policy or template, whose @id, if any, equals `id`, or `id` without its folder; or a
  /// `PolicyLink` as JSON ("Links" in docs/formats.md).
  std::string text;
  std::int64_t version = 0;  ///< 1 at creation, +1 with each update
  Instant updated_at{};
  std::string updated_by;
  /// Of what changes it: that a human will never be asked, or that it can never apply, say. Empty where it is only
  /// read.
  std::vector<std::string> warnings = {};
};

/// A policy that a template becomes where these entities stand in its slots. With the template it changes, and has its
/// annotations but for `@id`.
struct PolicyLink {
  PolicyId id;
  PolicyId template_id;
  std::optional<EntityUid> principal = {}, resource = {};  ///< for `?principal` and `?resource`, each where it is there
};

/// A version of an organization's policies: what was in force from one change to the next. Versions are numbers of
/// snapshots, of which changes to entities use up some too, so they grow but not by one.
struct PolicyVersion {
  std::int64_t version = 0;
  Instant made_at{};
  std::string made_by = {};
  std::string what = {};      ///< "policy_created", "policies_applied", "policies_rolled_back", "schema_set", …
  std::int64_t policies = 0;  ///< how many are in force
  std::int64_t added = 0, changed = 0, removed = 0;
  Hash256 hash{};  ///< of all ids and texts, and the schema: "Policy set" in docs/formats.md
};

/// Cedar's schema, for one organization.
struct PolicySchema {
  std::string text;  ///< empty: there is none
  Instant updated_at{};
  std::string updated_by;
};

struct VersionedPolicies {
  PolicyVersion version;
  std::vector<Policy> policies;  ///< by id
  std::string schema;            ///< empty: none
};

/// What differs between two versions; ids are sorted.
struct PolicyDifference {
  PolicyId id;
  std::string before;  ///< its text; empty: it was not there
  std::string after;   ///< empty: it is no longer there
};

struct PolicyText {
  PolicyId id;
  std::string text;
};

/// Policies that take the place of others in one step.
struct PolicyApplication {
  std::vector<PolicyText> policies;
  std::string folder;  ///< only what begins with "<folder>/" is replaced, and all of `policies` do; empty: everything
  std::int64_t expected_version = 0;  ///< refused unless this is the newest `PolicyVersion`; 0: whatever is there
  bool dry_run = false;               ///< everything is checked, nothing is changed
};
struct AppliedPolicies {
  PolicyVersion version;  ///< the one in force now; with `dry_run` what it would be, its number and hash aside
  std::vector<PolicyId> added, changed, removed;
  std::vector<std::string> warnings;
};

/// An extension and how it did since the start of this process.
struct ExtensionStatus {
  std::string name;
  int priority = 0;
  Nanos budget{};
  bool denies_on_failure = false;
  std::uint64_t calls = 0;
  std::uint64_t failures = 0;  ///< errors
  std::uint64_t late = 0;      ///< answers after `budget`
};

/// Inline check that runs after the policies, on cache hits too. It may restrict, never permit: an Allow it returns
/// counts as no opinion.
class Extension {
 public:
  virtual ~Extension() = default;
  virtual std::string_view name() const = 0;  ///< unique; "quota_enforcer"
  virtual int priority() const = 0;           ///< lower runs first
  /// Whether a failure denies; otherwise it is logged, counted and passed over.
  virtual bool denies_on_failure() const { return false; }
  /// How long `evaluate` may take. No objection that comes later counts as a failure; an objection counts in any case.
  virtual Nanos budget() const { return std::chrono::milliseconds(10); }
  /// Memory only, thread-safe. None: no objection.
  virtual Result<std::optional<Decision>> evaluate(const Context& ctx, const CheckRequest& request) = 0;
};

/// Where entities come from that others own (agents, humans, sandboxes). Thread-safe.
class EntitySource {
 public:
  virtual ~EntitySource() = default;
  /// Grows whenever any entity may have changed; memory only. Cached decisions of an older version are dropped.
  virtual std::uint64_t version() const = 0;
  /// Whether it has to be asked about entities of this type at all; always the same answer.
  virtual bool may_know(std::string_view type) const = 0;
  /// None: this source does not know it. An error denies the check that asked.
  virtual Result<std::optional<Entity>> find(const std::string& org, const EntityUid& uid) const = 0;
};

/// What a product says of its own resources, as policies see them: a sandbox with its owner, a secret, …
/// (`EntitySource` is for what changes seldom and is asked for often.) Thread-safe.
class ResourceSource {
 public:
  virtual ~ResourceSource() = default;
  /// The entity types that it alone answers for; always the same.
  virtual std::vector<std::string> types() const = 0;
  /// How long `find` may take. What comes later is a failure.
  virtual Nanos budget() const { return std::chrono::seconds(1); }
  /// What it is now, as last committed; none where there is none. Asked once in each check whose policies want to know,
  /// and an Allow that rests on the answer is not remembered. Of `ctx` the organization and the deadline count. Must
  /// not ask authz. An error denies the check that asked.
  virtual Result<std::optional<Entity>> find(const Context& ctx, const EntityUid& uid) const = 0;
};

/// Who acts or owns, as policies see it: `Agent::"…"`, `Human::"…"` or `Service::"…"`.
EntityUid entity_of(const Identity& identity);
/// To the millisecond below, as Cedar counts.
DatetimeValue datetime_of(Instant when);

/// An entity with all above it, sorted.
struct PlacedEntity {
  Entity entity;
  std::vector<EntityUid> ancestors;
};

/// What storing entities does to those that are there.
struct EntityChanges {
  std::size_t added = 0, changed = 0, same = 0;
};

/// What a human's approval permits.
struct OverrideGrant {
  struct Lift {
    PolicyId forbid;
    PolicyId oversight_policy;
    friend bool operator==(const Lift&, const Lift&) = default;
  };
  RequestId request;  ///< the oversight request; one grant per request
  Identity agent;
  std::string action;
  EntityUid resource;
  Hash256 arguments_hash{};
  std::vector<Lift> lifts;  ///< 1 to 16
  Instant expires_at{};     ///< at most 30 days ahead
};

/// What a token that was issued for a request says of itself.
struct VerifiedOverride {
  RequestId request;  ///< the approval that it comes from
  Instant expires_at{};
  std::vector<OverrideGrant::Lift> lifts;
};

/// Who may do what. Thread-safe.
///
/// Invariant 1: no failure allows. Invariant 2: a check sees one snapshot of policies and stored entities. Invariant 3:
/// a policy set that does not parse is never stored, and what is in force stays in force.
class Authz {
 public:
  virtual ~Authz() = default;

  /// Precedence: Deny, QuotaExceeded, RateLimited, RequiresOversight, Allow. Consumes nothing. No lock and no I/O on a
  /// cache hit; otherwise as much as the entity sources do. Trouble is a Deny that says so.
  ///
  /// RateLimited: all permits that permit it have a `@rate`, and none has room; how long until one has.
  virtual Decision check(const Context& ctx, const CheckRequest& request) = 0;
  /// As `check`, for whoever does what was asked as soon as this allows it: an Allow takes its place in the rate of the
  /// permit that gave it, the first by id that has room. Not to be repeated without need.
  virtual Decision admit(const Context& ctx, const CheckRequest& request) = 0;
  /// One decision per request, in order, all by one snapshot. At most 1 000; more are all denied.
  virtual std::vector<Decision> check_batch(const Context& ctx, std::span<const CheckRequest> requests) = 0;
  /// As `check`, or where it `counts` as `admit`, and which policies determined Cedar's own answer, by id. Never from
  /// the cache.
  virtual Decision check_naming(const Context& ctx, const CheckRequest& request, bool counts,
                                std::vector<PolicyId>& matched) = 0;
  /// As `check`, never from the cache. Answers a question and permits nothing: it is not in the decision log. Over the
  /// wire it takes permission for `authz.explain` on the principal asked about, and is audited.
  virtual Explanation explain(const Context& ctx, const CheckRequest& request) = 0;
  /// What policies permit without anybody's approval. Rates, quotas and extensions are not asked: `check` each resource
  /// before it is used. Over the wire it takes permission for `authz.filter_resources` on the principal asked about,
  /// and is audited. Errors: invalid_input, also for what SQL cannot say with these columns, naming policy and
  /// expression; too_large where what is left of the policies is; unavailable where entities or policies cannot be
  /// read; timeout at the deadline of `ctx`.
  virtual Result<ResourceFilter> filter_resources(const Context& ctx, const FilterQuestion& question) = 0;

  /// Errors: invalid_input with line, column and what was expected, every problem a line; already_exists;
  /// resource_exhausted over 10 000 policies.
  virtual Result<Policy> create_policy(const Context& ctx, const PolicyId& id, std::string text) = 0;
  /// `expected_version` 0 replaces whatever is there. The links of a template change with it. Errors: as above, naming
  /// the link where one no longer fits; not_found; conflict on another version.
  virtual Result<Policy> update_policy(const Context& ctx, const PolicyId& id, std::string text,
                                       std::int64_t expected_version) = 0;
  /// Errors: not_found; conflict for a template with links.
  virtual Result<> delete_policy(const Context& ctx, const PolicyId& id) = 0;
  /// Those behind `after`, by id; templates and links too. Copies what it gives alone.
  virtual Result<std::vector<Policy>> list_policies(const Context& ctx, const PolicyId& after, std::size_t limit) = 0;

  /// A policy whose text is `link`. Errors: as create_policy; invalid_input too where the template is none, lacks a
  /// slot, or has one that is not filled.
  virtual Result<Policy> link_policy(const Context& ctx, const PolicyLink& link) = 0;
  /// Those of a template, of all where it is empty; by id.
  virtual Result<std::vector<PolicyLink>> list_policy_links(const Context& ctx, const PolicyId& template_id) = 0;
  /// Errors: not_found, also for a policy that is no link.
  virtual Result<> unlink_policy(const Context& ctx, const PolicyId& id) = 0;

  /// Puts policies in the place of others, all or none, in one snapshot. A policy whose text stays keeps its version.
  /// Errors: as create_policy, with the problems of all policies (up to 100), naming the policy; conflict on another
  /// version.
  virtual Result<AppliedPolicies> apply_policies(const Context& ctx, const PolicyApplication& application) = 0;
  /// Newest first, those before version `before` (0: from the newest). `limit` 1 to 1 000.
  virtual Result<std::vector<PolicyVersion>> list_policy_versions(const Context& ctx, std::int64_t before,
                                                                  std::size_t limit) = 0;
  /// What was in force in snapshot `version`, whether or not that one changed policies; 0: now. Errors: not_found where
  /// it is yet to come or no longer kept.
  virtual Result<VersionedPolicies> get_policy_version(const Context& ctx, std::int64_t version) = 0;
  /// Both as for get_policy_version.
  virtual Result<std::vector<PolicyDifference>> diff_policy_versions(const Context& ctx, std::int64_t from,
                                                                     std::int64_t to) = 0;
  /// A new version with the policies and the schema of an old one. Errors: not_found; conflict on another
  /// `expected_version`; invalid_input where the old ones are none any more, under smaller limits say.
  virtual Result<PolicyVersion> roll_back_policies(const Context& ctx, std::int64_t version,
                                                   std::int64_t expected_version) = 0;

  /// From here on every change of policies is validated against it (strict), and so are requests for the actions it
  /// declares and stored entities of the types it declares. An empty text: no schema. Agent, Human, Service and Org
  /// need no declaration. A new version of the policies. Errors: invalid_input with every problem of the schema, or of
  /// a policy or entity that does not fit it.
  virtual Result<PolicySchema> set_schema(const Context& ctx, std::string text) = 0;
  virtual Result<PolicySchema> get_schema(const Context& ctx) = 0;

  /// The stored entity set: groups, action groups, resources nobody else owns. All or none; at most 1 000 a call. Where
  /// all are as they were nothing happens. `dry_run`: everything is checked, nothing is changed. Errors: invalid_input
  /// with the problems of all entities (up to 100), also where parents would form a cycle; resource_exhausted;
  /// too_large.
  virtual Result<EntityChanges> put_entities(const Context& ctx, std::vector<Entity> entities, bool dry_run) = 0;
  virtual Result<> delete_entities(const Context& ctx, std::vector<EntityUid> uids) = 0;  ///< absent ones are fine
  /// Those behind `after`, by type, then id. Costs what it gives.
  virtual Result<std::vector<Entity>> list_entities(const Context& ctx, const EntityUid& after, std::size_t limit) = 0;
  /// As policies see it: stored, of a source, or both. Errors: not_found; unavailable where it cannot be read.
  virtual Result<PlacedEntity> get_entity(const Context& ctx, const EntityUid& uid) = 0;

  /// The token of a grant; the same grant gives the same token. Errors: invalid_input.
  virtual Result<std::string> issue_override(const Context& ctx, const OverrideGrant& grant) = 0;
  /// Withdraws the token of `request`, used or not yet issued. Remembered for 60 days, which no token outlasts that was
  /// issued within 30. Errors: conflict where it was consumed already.
  virtual Result<> revoke_override(const Context& ctx, const RequestId& request) = 0;

  /// Whether the token of `request` is neither used nor withdrawn.
  virtual Result<bool> is_override_open(const Context& ctx, const RequestId& request) = 0;

  /// That `request.override_token` was issued for exactly this request; what it says. Memory only, and no word on
  /// whether it was used or withdrawn, nor is its time looked at. Errors: permission_denied.
  virtual Result<VerifiedOverride> verify_override(const Context& ctx, const CheckRequest& request) = 0;

  /// Uses up `request.override_token` for `operation_id` in the operation's own transaction. The same operation may
  /// repeat. Errors: permission_denied where the token is forged, for something else, revoked or used by another
  /// operation; expired.
  virtual Result<> consume_override(sql::Tx& tx, const Context& ctx, const CheckRequest& request,
                                    std::string_view operation_id) = 0;

  /// In process only. The extension must outlive this object. Errors: already_exists on a repeated name.
  virtual Result<> register_extension(Extension& extension) = 0;
  /// In process only, before the first check that may ask it. Asked after the sources that `create_authz` was given. It
  /// must outlive this object, or at least its checks. Errors: already_exists on a type that another answers for.
  virtual Result<> register_source(const ResourceSource& source) = 0;
  virtual Result<std::vector<ExtensionStatus>> list_extensions(const Context& ctx) = 0;  ///< in the order they run

  /// Takes over what another process stored. Errors: unavailable; checks deny until it succeeds where a change of our
  /// own may have been lost, or `AuthzOptions::fresh_for` is over.
  virtual Result<> refresh(const Context& ctx) = 0;
};

/// Where every decision of `check` and `admit` is kept, with what it was decided by: for `creto authz replay`.
///
/// The log is a folder of segments; see docs/formats.md, "Decision log". A decision that cannot be logged is not given:
/// the check denies, and says that this is trouble. A crash of the process loses at most `write_interval` of decisions,
/// one of the machine `sync_interval`, and either what a stalled disk has not taken; the audit log then says that the
/// segment was recovered.
struct DecisionLogOptions {
  std::filesystem::path directory{};
  std::string org = "default";             ///< whose audit log names the segments
  std::uint64_t segment_bytes = 64 << 20;  ///< then a new one begins; up to 1 GiB
  Nanos segment_age = std::chrono::hours(1);
  std::uint64_t bytes_max = 1 << 30;         ///< of sealed segments; the oldest are removed first
  Nanos age_max = std::chrono::days(30);     ///< of a segment's last decision
  std::size_t request_bytes_max = 64 << 10;  ///< of one request; its context is left out where it is longer
  std::size_t ring_bytes = 1 << 20;          ///< for each thread that checks
  std::size_t behind_bytes_max = 64 << 20;   ///< what may wait in memory while the disk or the database stalls
  Nanos write_interval = std::chrono::milliseconds(10);
  Nanos sync_interval = std::chrono::seconds(1);
  Nanos wait_max = std::chrono::milliseconds(500);  ///< how long a check waits for room before it denies
  bool write_in_background = true;                  ///< false: only where a test asks
};

struct AuthzOptions {
  Nanos cache_ttl = std::chrono::seconds(60);
  std::size_t cache_entries = 10'000;  ///< 0: no cache
  std::size_t policies_max = 10'000;   ///< per organization
  std::size_t policy_bytes_max = 64 << 10;
  std::size_t entities_max = 100'000;      ///< stored ones, per organization
  std::size_t ancestors_max = 20'000'000;  ///< of all of these together
  std::size_t versions_kept = 1'000;       ///< of the policies, per organization; at least 1
  /// How long after a `refresh` checks go by what it found; then they deny, as trouble, until one succeeds. Zero: for
  /// ever, for who shares the database with nobody.
  Nanos fresh_for{};
  std::size_t rate_bytes_max = 256 << 20;  ///< what counting for `@rate` may take; beyond it newcomers are denied
  std::optional<DecisionLogOptions> decision_log{};  ///< none: decisions are not logged
};

/// The service over its tables in `database`; migrates them. `sources` are asked in order, after the stored set.
/// `override_key` is 32 bytes that every process of this installation shares. All references must outlive it.
Result<std::unique_ptr<Authz>> create_authz(sql::Database& database, const Clock& clock, Telemetry& telemetry,
                                            std::vector<const EntitySource*> sources, Secret override_key,
                                            AuthzOptions options = {});

}  // namespace creto::authz
