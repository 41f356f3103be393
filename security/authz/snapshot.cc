#include "snapshot.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "cedar/conform.h"
#include "cedar/lexer.h"
#include "cedar/parser.h"
#include "cedar/text.h"
#include "creto/common/assert.h"
#include "creto/crypto/hash.h"

namespace creto::authz {
namespace {

Error bad(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

std::string_view trim(std::string_view text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  return text;
}

/// Where the value of an annotation stands, for what is wrong with it.
cedar::Position place_of(std::string_view text, std::string_view annotation) {
  const auto lexed = cedar::lex(text);
  if (!lexed) return {};
  const auto& tokens = lexed->tokens;
  for (std::size_t i = 0; i + 3 < tokens.size(); ++i) {
    const bool names_it = tokens[i].text == "@" && tokens[i + 1].text == annotation;
    if (names_it) return tokens[i + 2].text == "(" ? tokens[i + 3].where : tokens[i].where;
  }
  return {};
}

/// The annotations of one policy, with their places.
class Annotations {
 public:
  Annotations(const cedar::PolicyAst& ast, std::string_view text) : ast_(ast), text_(text) {}
  const std::string* find(std::string_view name) const {
    const auto at = ast_.annotations.find(name);
    return at == ast_.annotations.end() ? nullptr : &at->second;
  }
  Error bad(std::string_view name, std::string what) const {
    return cedar::error_at(place_of(text_, name), fmt::format("`@{}`: {}", name, what));
  }
  cedar::Effect effect() const { return ast_.effect; }

 private:
  const cedar::PolicyAst& ast_;
  std::string_view text_;
};

Result<std::optional<OversightTerms>> read_terms(const Annotations& annotations) {
  const std::string* oversight = annotations.find("oversight");
  const std::string* timeout = annotations.find("timeout");
  const std::string* approvers = annotations.find("approvers");
  if (!oversight) {
    if (timeout) return annotations.bad("timeout", "belongs to an `@oversight`");
    if (approvers) return annotations.bad("approvers", "belongs to an `@oversight`");
    return std::nullopt;
  }
  if (annotations.effect() != cedar::Effect::forbid)
    return annotations.bad("oversight", "belongs to a forbid: denied unless approved");
  if (oversight->empty() || oversight->size() > 256)
    return annotations.bad("oversight", "names a policy with 1 to 256 bytes");
  OversightTerms terms{.oversight_policy = *oversight, .timeout = {}, .approvers = {}};
  if (timeout) {
    auto duration = parse_duration(*timeout);
    if (!duration || *duration <= Nanos(0))
      return annotations.bad("timeout", cedar::quote(*timeout) + " is no duration such as \"2h\"");
    terms.timeout = *duration;
  }
  if (approvers) {
    std::string_view rest = *approvers;
    while (true) {
      const auto comma = rest.find(',');
      const auto approver = trim(rest.substr(0, comma));
      if (approver.empty()) return annotations.bad("approvers", "names joined by commas");
      terms.approvers.emplace_back(approver);
      if (comma == std::string_view::npos) break;
      rest.remove_prefix(comma + 1);
    }
  }
  return std::optional(std::move(terms));
}

Result<std::optional<Rate>> read_rate(const Annotations& annotations) {
  const std::string* text = annotations.find("rate");
  const std::string* by = annotations.find("rate_by");
  if (!text) {
    if (by) return annotations.bad("rate_by", "belongs to a `@rate`");
    return std::nullopt;
  }
  if (annotations.effect() != cedar::Effect::permit)
    return annotations.bad("rate", "belongs to a permit: so often does it permit");
  Rate rate;
  const auto slash = text->find('/');
  const auto* end = text->data() + std::min(slash, text->size());
  const auto [at, failed] = std::from_chars(text->data(), end, rate.limit);
  if (slash == std::string::npos || failed != std::errc() || at != end || rate.limit == 0 ||
      rate.limit > Rate::limit_max)
    return annotations.bad("rate", fmt::format("{} is not a number from 1 to {}, a slash and a duration, as \"100/1m\"",
                                               cedar::quote(text->substr(0, 100)), Rate::limit_max));
  const auto window = parse_duration(text->substr(slash + 1));
  if (!window || *window < std::chrono::milliseconds(1) || *window > std::chrono::days(31))
    return annotations.bad("rate", cedar::quote(text->substr(slash + 1, 100)) + " is no duration from 1ms to 31d");
  rate.window = *window;
  if (by) {
    if (*by != "principal" && *by != "root") return annotations.bad("rate_by", "is \"principal\" or \"root\"");
    rate.by_root = *by == "root";
  }
  return std::optional(rate);
}

bool printable(std::string_view text) {
  return !text.empty() && text.size() <= 256 && is_valid_utf8(text) &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f; });
}

/// Fewer are not worth forgetting.
constexpr std::size_t names_kept = 10'000;

bool by_id(const PolicyTable::Entry& a, const PolicyTable::Entry& b) { return a->stored.id < b->stored.id; }

/// A leaf of "Policy set" in docs/formats.md.
Hash256 hash_of(const Policy& policy) {
  const auto length = static_cast<std::uint16_t>(policy.id.size());
  const ByteArray<2> prefix{static_cast<std::uint8_t>(length >> 8), static_cast<std::uint8_t>(length)};
  return crypto::sha3_256({prefix, as_bytes(policy.id), as_bytes(policy.text)});
}

std::uint64_t next_holder() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

struct ThreadReference {
  std::uint64_t holder = 0;
  std::uint64_t generation = 0;
  std::size_t pins = 0;
  std::shared_ptr<const Snapshot> snapshot;
};
thread_local ThreadReference reference;

}  // namespace

namespace {

Result<LoadedPolicy> load_parsed(Policy stored, std::vector<cedar::PolicyAst> parsed, const LoadedPolicy* before,
                                 const std::shared_ptr<RateMemory>& memory) {
  if (parsed.size() != 1) return bad("the text holds more or less than one policy");
  const Annotations annotations(parsed[0], stored.text);
  const std::string* id = annotations.find("id");
  if (id && *id != stored.id && !stored.id.ends_with("/" + *id))
    return annotations.bad("id", fmt::format("the policy calls itself {}, not `{}`", cedar::quote(*id), stored.id));
  return load_policy(std::move(stored), std::move(parsed[0]), before, memory);
}

constexpr std::string_view unprintable_id = "the id of a policy has 1 to 256 printable characters";

Result<LoadedPolicy> load_link(Policy stored, std::size_t bytes_max, const LoadedPolicy* before,
                               const std::shared_ptr<RateMemory>& memory, const FindPolicy& find) {
  const Json json = CRETO_TRY(parse_json(stored.text, {.bytes_max = bytes_max}));
  cedar::TemplateLink link = CRETO_TRY(cedar::link_from_json(json));
  if (link.id != stored.id)
    return bad(fmt::format("newId: the link calls itself {}, not `{}`", cedar::quote(link.id), stored.id));
  const auto from = find(link.template_id);
  if (!from) return bad(fmt::format("templateId: there is no template {}", cedar::quote(link.template_id)));
  if (from->decides()) return bad(fmt::format("templateId: {} is no template", cedar::quote(link.template_id)));
  cedar::PolicyAst ast = CRETO_TRY(cedar::link(from->planned->ast, link.values));
  ast.annotations.erase("id");  // the template's own
  LoadedPolicy loaded = CRETO_TRY(load_policy(std::move(stored), std::move(ast), before, memory));
  loaded.link = std::move(link);
  return loaded;
}

}  // namespace

Result<LoadedPolicy> load_policy(Policy stored, std::size_t bytes_max, const LoadedPolicy* before,
                                 const std::shared_ptr<RateMemory>& memory) {
  if (!printable(stored.id)) return bad(std::string(unprintable_id));
  auto parsed = CRETO_TRY(cedar::parse_policies(stored.text, {.bytes_max = bytes_max, .policies_max = 2}));
  return load_parsed(std::move(stored), std::move(parsed), before, memory);
}

Result<LoadedPolicy> load_any_policy(Policy stored, std::size_t bytes_max, const LoadedPolicy* before,
                                     const std::shared_ptr<RateMemory>& memory, const FindPolicy& find) {
  if (!printable(stored.id)) return bad(std::string(unprintable_id));
  if (is_link_text(stored.text)) return load_link(std::move(stored), bytes_max, before, memory, find);
  auto parsed =
      CRETO_TRY(cedar::parse_policies_and_templates(stored.text, {.bytes_max = bytes_max, .policies_max = 2}).result());
  return load_parsed(std::move(stored), std::move(parsed), before, memory);
}

bool is_link_text(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && text[first] == '{';
}

std::string text_of(const PolicyLink& link) {
  return cedar::to_json(cedar::TemplateLink{link.template_id, link.id, {link.principal, link.resource}}).dump();
}

Result<LoadedPolicy> load_policy(Policy stored, cedar::PolicyAst ast, const LoadedPolicy* before,
                                 const std::shared_ptr<RateMemory>& memory) {
  const Annotations annotations(ast, stored.text);
  auto terms = CRETO_TRY(read_terms(annotations));
  const auto rate = CRETO_TRY(read_rate(annotations));
  std::shared_ptr<RateWindows> windows;
  if (rate && !ast.is_template()) {
    if (before && before->planned->rate && before->planned->rate->rate() == *rate) windows = before->planned->rate;
    if (!windows) windows = std::make_shared<RateWindows>(*rate, memory);
  }
  LoadedPolicy loaded;
  loaded.planned = std::make_shared<const RuledPolicy>(stored.id, std::move(ast), std::move(terms), std::move(windows));
  loaded.hash = hash_of(stored);
  loaded.stored = std::move(stored);
  return loaded;
}

Result<> check_annotations(const cedar::PolicyAst& policy, std::string_view text) {
  const Annotations annotations(policy, text);
  CRETO_TRY(read_terms(annotations));
  CRETO_TRY(read_rate(annotations));
  return {};
}

// --- schema
// -----------------------------------------------------------------------------------------------------------

Result<std::shared_ptr<const LoadedSchema>> load_schema(PolicySchema stored) {
  // No schema in Cedar's syntax begins with a brace.
  const auto first = stored.text.find_first_not_of(" \t\r\n");
  const bool json = first != std::string::npos && stored.text[first] == '{';
  auto read = json ? cedar::parse_schema_json(stored.text) : cedar::parse_schema(stored.text);
  return load_schema(std::move(stored), std::move(read)).result();
}

namespace {

/// Adds what needs no declaration. A name that the schema gives to something itself is its own; where they `give_way`,
/// also one that it gives in a namespace, where it would hide what is added.
void add_known_types(cedar::SchemaDecl& decl, const std::map<std::string, cedar::EntityTypeDecl>& known,
                     bool give_way) {
  std::set<std::string> taken;
  for (const auto& [name, space] : decl.namespaces) {
    if (!name.empty() && !give_way) continue;
    for (const auto& [type, def] : space.types) taken.insert(type);
    for (const auto& [type, def] : space.entities) taken.insert(type);
  }
  auto& root = decl.namespaces[""];
  for (const auto& [type, def] : known)
    if (!taken.contains(type)) root.entities.emplace(type, def);
  for (const auto& [type, def] : known) {
    const auto added = root.entities.find(type);
    if (taken.contains(type) || added == root.entities.end()) continue;
    std::erase_if(added->second.member_of,
                  [&](const cedar::PlacedName& parent) { return !root.entities.contains(parent.name); });
  }
}

}  // namespace

cedar::Parsed<std::shared_ptr<const LoadedSchema>> load_schema(PolicySchema stored,
                                                               cedar::Parsed<cedar::SchemaDecl> read) {
  auto loaded = std::make_shared<LoadedSchema>();
  cedar::SchemaDecl& decl = read.value;
  for (const auto& [name, space] : decl.namespaces)
    for (const auto& [type, def] : space.entities) loaded->declared.insert(name.empty() ? type : name + "::" + type);
  const auto parsed = [](std::string_view text) {
    auto known = cedar::parse_schema(text);
    CRETO_ASSERT(known.ok());
    return std::move(known.value.namespaces.at("").entities);
  };
  static const auto principals = parsed(
      "entity Human { name?: String, type?: String, status?: String };"
      "entity Service { name?: String, type?: String, status?: String };"
      "entity Agent in [Human, Service, Agent] { name?: String, type?: String, status?: String };"
      "entity Org;");
  static const auto resources = parsed(
      // What products say of their resources. Who owns one may be of three types, which no attribute can say: it is
      // the parent.
      "entity Sandbox in [Human, Service, Agent, Sandbox] { state: String, image: String, image_digest: String,"
      "  runtime_class: String, isolation: String, created_at: datetime };"
      "entity Topic in [Human, Service, Agent] { created_at: datetime };"
      "entity Bucket;"
      "entity Object in [Human, Service, Agent, Bucket] { classification: String, content_type: String,"
      "  size_bytes: Long, created_at: datetime, expires_at?: datetime } tags String;"
      "entity Secret in [Human, Service, Agent] { path: String, name: String, type: String, version: Long,"
      "  expires_at?: datetime } tags String;"
      "entity OversightRequest in [Human, Service, Agent] { action: String, state: String, created_at: datetime };"
      "entity Subscription in [Human, Service, Agent] { plan: String, active: Bool, started_at: datetime };");
  add_known_types(decl, principals, false);
  add_known_types(decl, resources, true);
  auto resolved = cedar::Schema::resolve(read);
  loaded->schema = std::move(resolved.value);
  loaded->stored = std::move(stored);
  return {std::move(loaded), std::move(resolved.problems)};
}

cedar::PolicyFindings LoadedSchema::validate(const cedar::PolicyAst& policy) const {
  // What the platform itself asks for is in nobody's schema.
  return cedar::validate(schema, policy,
                         {.mode = cedar::ValidationMode::strict, .level_max = {}, .other_actions = true});
}

Result<> LoadedSchema::check(const cedar::Request& request) const {
  const cedar::ActionDef* action = schema.action(request.action);
  if (!action) return {};
  if (action->context->attributes.contains("delegation")) return cedar::check_request(schema, request);
  // The service adds it, so it need not be declared by who does not use it.
  cedar::Request given = request;
  Attributes context = *request.context.as_record();
  std::erase_if(context, [](const auto& attribute) { return attribute.first == "delegation"; });
  given.context = Value::record(std::move(context));
  return cedar::check_request(schema, given);
}

Result<> LoadedSchema::check(const Entity& entity) const {
  if (!speaks_of(entity.uid)) return {};
  return cedar::check_entity(schema, entity);
}

// --- tables
// -----------------------------------------------------------------------------------------------------------

PolicyTable::PolicyTable(std::vector<Entry> policies) : size_(policies.size()) {
  std::array<Shelf, 256> shelves;
  for (Entry& policy : policies) {
    Shelf& shelf = shelves[shelf_of(policy->stored.id)];
    shelf.policies.push_back(std::move(policy));
  }
  for (std::size_t i = 0; i < shelves.size(); ++i) {
    if (shelves[i].policies.empty()) continue;
    std::sort(shelves[i].policies.begin(), shelves[i].policies.end(), by_id);
    seal(shelves[i]);
    shelves_[i] = std::make_shared<const Shelf>(std::move(shelves[i]));
  }
}

std::size_t PolicyTable::shelf_of(const PolicyId& id) { return crypto::sha3_256(as_bytes(id))[0]; }

void PolicyTable::seal(Shelf& shelf) {
  Bytes leaves;
  leaves.reserve(shelf.policies.size() * sizeof(Hash256));
  for (const Entry& policy : shelf.policies) leaves.insert(leaves.end(), policy->hash.begin(), policy->hash.end());
  shelf.hash = crypto::sha3_256(leaves);
}

PolicyTable::Entry PolicyTable::find(const PolicyId& id) const {
  const auto& shelf = shelves_[shelf_of(id)];
  if (!shelf) return nullptr;
  const auto at = std::lower_bound(shelf->policies.begin(), shelf->policies.end(), id,
                                   [](const Entry& entry, const PolicyId& name) { return entry->stored.id < name; });
  return at == shelf->policies.end() || (*at)->stored.id != id ? nullptr : *at;
}

void PolicyTable::put(Entry policy) {
  auto& shelf = shelves_[shelf_of(policy->stored.id)];
  auto next = shelf ? std::make_shared<Shelf>(*shelf) : std::make_shared<Shelf>();
  const auto at = std::lower_bound(next->policies.begin(), next->policies.end(), policy, by_id);
  if (at != next->policies.end() && (*at)->stored.id == policy->stored.id) {
    *at = std::move(policy);
  } else {
    next->policies.insert(at, std::move(policy));
    ++size_;
  }
  seal(*next);
  shelf = std::move(next);
}

void PolicyTable::erase(const PolicyId& id) {
  auto& shelf = shelves_[shelf_of(id)];
  if (!shelf) return;
  auto next = std::make_shared<Shelf>(*shelf);
  const auto gone = std::erase_if(next->policies, [&](const Entry& entry) { return entry->stored.id == id; });
  size_ -= gone;
  seal(*next);
  shelf = next->policies.empty() ? nullptr : std::shared_ptr<const Shelf>(std::move(next));
}

std::vector<PolicyTable::Entry> PolicyTable::sorted() const {
  std::vector<Entry> all;
  all.reserve(size_);
  for_each([&](const Entry& entry) { all.push_back(entry); });
  std::sort(all.begin(), all.end(), by_id);
  return all;
}

std::vector<PolicyTable::Entry> PolicyTable::page(const PolicyId& after, std::size_t limit) const {
  std::vector<const Entry*> behind;
  for_each([&](const Entry& entry) {
    if (entry->stored.id > after) behind.push_back(&entry);
  });
  const auto end = behind.begin() + static_cast<std::ptrdiff_t>(std::min(limit, behind.size()));
  std::partial_sort(behind.begin(), end, behind.end(), [](const Entry* a, const Entry* b) { return by_id(*a, *b); });
  std::vector<Entry> page;
  std::transform(behind.begin(), end, std::back_inserter(page), [](const Entry* entry) { return *entry; });
  return page;
}

Hash256 PolicyTable::hash(const std::string* schema) const {
  static const Hash256 empty = crypto::sha3_256({});
  Bytes all;
  all.reserve(shelves_.size() * sizeof(Hash256));
  for (const auto& shelf : shelves_) {
    const Hash256& hash = shelf ? shelf->hash : empty;
    all.insert(all.end(), hash.begin(), hash.end());
  }
  if (schema) {
    const Hash256 hash = crypto::sha3_256(as_bytes(*schema));
    all.insert(all.end(), hash.begin(), hash.end());
  }
  return crypto::sha3_256({as_bytes("creto policy set v1\n"), all});
}

void OrgState::replace(const PolicyTable::Entry& removed, const PolicyTable::Entry& added) {
  const bool decided = removed && removed->decides(), decides = added && added->decides();
  if (decided || decides)
    engine.replace(decided ? removed->planned.get() : nullptr, decides ? added->planned : nullptr, entities);
  if ((removed && removed->link) || (added && added->link)) {
    auto next = links ? *links : std::map<PolicyId, PolicyId>();
    if (removed) next.erase(removed->stored.id);
    if (added && added->link) next[added->stored.id] = added->link->template_id;
    links = next.empty() ? nullptr : std::make_shared<const std::map<PolicyId, PolicyId>>(std::move(next));
  }
  if ((removed && removed->planned->rate) || (added && added->planned->rate)) {
    auto next = rates ? *rates : std::map<std::uint64_t, std::shared_ptr<RateWindows>>();
    if (removed && removed->planned->rate) next.erase(removed->planned->rate->number());
    if (added && added->planned->rate) next[added->planned->rate->number()] = added->planned->rate;
    rates = std::make_shared<const std::map<std::uint64_t, std::shared_ptr<RateWindows>>>(std::move(next));
  }
  if (removed && (!added || added->stored.id != removed->stored.id)) policies.erase(removed->stored.id);
  if (added) policies.put(added);
  deciding_ = std::make_shared<Deciding>();
}

const cedar::PolicySet& OrgState::deciding() const {
  std::call_once(deciding_->made, [this] {
    std::vector<std::shared_ptr<const cedar::PlannedPolicy>> planned;
    planned.reserve(policies.size());
    for (const auto& policy : policies.sorted())
      if (policy->decides()) planned.push_back(policy->planned);
    deciding_->policies = cedar::PolicySet(std::move(planned));
  });
  return deciding_->policies;
}

void OrgState::put_entities(std::vector<std::shared_ptr<const Entity>> added) {
  for (const auto& entity : added) ids[entity->uid.type].insert(entity->uid.id);
  entities.put(std::move(added));
}

void OrgState::erase_entities(std::span<const EntityUid> uids) {
  for (const EntityUid& uid : uids) {
    const auto of_type = ids.find(uid.type);
    if (of_type == ids.end()) continue;
    of_type->second.erase(uid.id);
    if (of_type->second.size() == 0) ids.erase(of_type);
  }
  entities.erase(uids);
}

void OrgState::clear_entities() {
  ids.clear();
  entities = cedar::EntityStore();
}

void OrgState::plan() {
  std::vector<std::shared_ptr<const cedar::PlannedPolicy>> planned;
  planned.reserve(policies.size());
  std::map<std::uint64_t, std::shared_ptr<RateWindows>> rated;
  std::map<PolicyId, PolicyId> linked;
  for (const auto& policy : policies.sorted()) {
    if (policy->link) linked[policy->stored.id] = policy->link->template_id;
    if (!policy->decides()) continue;
    planned.push_back(policy->planned);
    if (policy->planned->rate) rated[policy->planned->rate->number()] = policy->planned->rate;
  }
  engine = cedar::Engine(cedar::PolicySet(std::move(planned)), entities);
  rates = std::make_shared<const std::map<std::uint64_t, std::shared_ptr<RateWindows>>>(std::move(rated));
  links = linked.empty() ? nullptr : std::make_shared<const std::map<PolicyId, PolicyId>>(std::move(linked));
  deciding_ = std::make_shared<Deciding>();
}

void OrgState::compact() {
  if (entities.names() < names_kept || entities.names() < 4 * entities.entities()) return;
  std::vector<std::shared_ptr<const Entity>> known;
  known.reserve(entities.entities());
  for (cedar::EntityId id = 0; id < entities.names(); ++id)
    if (const auto& entity = entities.node(id).entity) known.push_back(entity);
  entities = cedar::EntityStore();
  entities.put(std::move(known));
  plan();
}

SnapshotHolder::SnapshotHolder() : id_(next_holder()), current_(std::make_shared<const Snapshot>()) {}

SnapshotHolder::Pin SnapshotHolder::pin() const {
  const std::uint64_t generation = generation_.load(std::memory_order_acquire);
  if (reference.holder != id_ || reference.generation != generation) {
    std::shared_ptr<const Snapshot> fresh = current();
    if (reference.pins > 0) {
      const Snapshot* snapshot = fresh.get();
      return {snapshot, std::move(fresh)};
    }
    // The generation was read first: a publication in between only makes the next pin look again.
    reference.holder = id_;
    reference.generation = generation;
    reference.snapshot = std::move(fresh);
  }
  ++reference.pins;
  return {reference.snapshot.get(), nullptr};
}

SnapshotHolder::Pin::~Pin() {
  if (!own_) --reference.pins;
}

std::shared_ptr<const Snapshot> SnapshotHolder::current() const {
  const std::lock_guard lock(mutex_);
  return current_;
}

void SnapshotHolder::publish(std::shared_ptr<const Snapshot> next) {
  const std::lock_guard lock(mutex_);
  current_ = std::move(next);
  generation_.fetch_add(1, std::memory_order_release);
}

PolicyDecision decide(const cedar::Evaluation& evaluation, std::span<const OverrideGrant::Lift> lifts) {
  const auto ruled = [](const cedar::PlannedPolicy* policy) { return static_cast<const RuledPolicy*>(policy); };
  // By id, so that what is answered does not depend on the order of past changes.
  std::vector<const RuledPolicy*> forbids;
  for (const auto* forbid : evaluation.forbids) forbids.push_back(ruled(forbid));
  const auto before = [](const RuledPolicy* a, const RuledPolicy* b) { return a->id < b->id; };
  std::sort(forbids.begin(), forbids.end(), before);

  PolicyDecision result{Allow{}, {}};
  RequiresOversight oversight;
  for (const RuledPolicy* forbid : forbids) {
    const auto& terms = forbid->oversight;
    if (!terms) {
      result.decision = Deny{.reason = fmt::format("forbidden by policy `{}`", forbid->id), .policy = forbid->id};
      return result;
    }
    const OverrideGrant::Lift lift{forbid->id, terms->oversight_policy};
    if (std::find(lifts.begin(), lifts.end(), lift) != lifts.end()) {
      result.lifted.push_back(forbid->id);
    } else {
      oversight.requirements.push_back({forbid->id, terms->oversight_policy, terms->timeout, terms->approvers});
    }
  }
  const std::pair<const cedar::PlannedPolicy*, Error>* failed = nullptr;
  for (const auto& one : evaluation.errors) {
    if (one.first->ast.effect != cedar::Effect::forbid) continue;
    if (!failed || one.first->id < failed->first->id) failed = &one;
  }
  if (failed) {
    result.decision =
        Deny{.reason = fmt::format("the forbid `{}` failed: {}", failed->first->id, failed->second.message()),
             .policy = failed->first->id};
    return result;
  }
  if (evaluation.permits.empty()) {
    result.decision = Deny{.reason = "no policy permits this", .policy = {}};
    return result;
  }
  if (!oversight.requirements.empty()) result.decision = std::move(oversight);
  std::vector<const RuledPolicy*> permits;
  for (const auto* permit : evaluation.permits) {
    if (permit->sufficient) return result;
    permits.push_back(ruled(permit));
  }
  std::sort(permits.begin(), permits.end(), before);
  result.rate = permits[0]->rate.get();
  for (std::size_t i = 1; i < permits.size(); ++i) result.further_rates.push_back(permits[i]->rate.get());
  return result;
}

const cedar::PlannedPolicy* determining_permit(const cedar::Evaluation& evaluation) {
  return *std::min_element(evaluation.permits.begin(), evaluation.permits.end(), [](const auto* a, const auto* b) {
    return a->sufficient != b->sufficient ? a->sufficient : a->id < b->id;
  });
}

std::string oversight_names(const RequiresOversight& oversight) {
  std::string names;
  for (const auto& requirement : oversight.requirements)
    names += (names.empty() ? "" : ", ") + requirement.oversight_policy;
  return names;
}

bool outranks(const Decision& a, const Decision& b) {
  const auto rank = [](const Decision& decision) {
    if (std::holds_alternative<Deny>(decision)) return 4;
    if (std::holds_alternative<QuotaExceeded>(decision)) return 3;
    if (std::holds_alternative<RateLimited>(decision)) return 2;
    if (std::holds_alternative<RequiresOversight>(decision)) return 1;
    return 0;
  };
  return rank(a) > rank(b);
}

}  // namespace creto::authz
