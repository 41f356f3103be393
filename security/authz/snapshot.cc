#include "snapshot.h"

#include <fmt/format.h>

#include <algorithm>

#include "cedar/parser.h"
#include "cedar/text.h"

namespace creto::authz {
namespace {

Error bad(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

std::string_view trim(std::string_view text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  return text;
}

Result<std::optional<OversightTerms>> read_terms(const cedar::PolicyAst& ast) {
  const auto annotation = [&](std::string_view name) -> const std::string* {
    const auto at = ast.annotations.find(name);
    return at == ast.annotations.end() ? nullptr : &at->second;
  };
  const std::string* oversight = annotation("oversight");
  const std::string* timeout = annotation("timeout");
  const std::string* approvers = annotation("approvers");
  if (!oversight) {
    if (timeout || approvers) return bad("`@timeout` and `@approvers` belong to `@oversight`");
    return std::nullopt;
  }
  if (ast.effect != cedar::Effect::forbid) return bad("`@oversight` belongs to a forbid: denied unless approved");
  if (oversight->empty() || oversight->size() > 256) return bad("`@oversight` names a policy with 1 to 256 bytes");
  OversightTerms terms{.oversight_policy = *oversight, .timeout = {}, .approvers = {}};
  if (timeout) {
    auto duration = parse_duration(*timeout);
    if (!duration || *duration <= Nanos(0)) {
      return bad(fmt::format("`@timeout`: {} is no duration such as \"2h\"", cedar::quote(*timeout)));
    }
    terms.timeout = *duration;
  }
  if (approvers) {
    std::string_view rest = *approvers;
    while (true) {
      const auto comma = rest.find(',');
      const auto approver = trim(rest.substr(0, comma));
      if (approver.empty()) return bad("`@approvers`: names joined by commas");
      terms.approvers.emplace_back(approver);
      if (comma == std::string_view::npos) break;
      rest.remove_prefix(comma + 1);
    }
  }
  return std::optional(std::move(terms));
}

bool printable(std::string_view text) {
  return !text.empty() && text.size() <= 256 && is_valid_utf8(text) &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f; });
}

/// Fewer are not worth forgetting.
constexpr std::size_t names_kept = 10'000;

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

Result<LoadedPolicy> load_policy(Policy stored, std::size_t bytes_max) {
  if (!printable(stored.id)) return bad("the id of a policy has 1 to 256 printable characters");
  auto parsed = CRETO_TRY(cedar::parse_policies(stored.text, {.bytes_max = bytes_max, .policies_max = 2}));
  if (parsed.size() != 1) return bad("the text holds more or less than one policy");
  const auto id = parsed[0].annotations.find("id");
  if (id != parsed[0].annotations.end() && id->second != stored.id) {
    return bad(fmt::format("the policy calls itself {}, not `{}`", cedar::quote(id->second), stored.id));
  }
  LoadedPolicy loaded;
  loaded.oversight = CRETO_TRY(read_terms(parsed[0]));
  loaded.planned = std::make_shared<const cedar::PlannedPolicy>(stored.id, std::move(parsed[0]));
  loaded.stored = std::move(stored);
  return loaded;
}

void OrgState::plan() {
  std::vector<std::shared_ptr<const cedar::PlannedPolicy>> planned;
  planned.reserve(policies.size());
  for (const auto& [id, policy] : policies) planned.push_back(policy->planned);
  engine = cedar::Engine(cedar::PolicySet(std::move(planned)), entities);
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

PolicyDecision decide(const cedar::Evaluation& evaluation, const OrgState& state,
                      std::span<const OverrideGrant::Lift> lifts) {
  PolicyDecision result{Allow{}, {}};
  RequiresOversight oversight;
  for (const cedar::PlannedPolicy* forbid : evaluation.forbids) {
    const auto& terms = state.policies.at(forbid->id)->oversight;
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
  for (const auto& [policy, error] : evaluation.errors) {
    if (policy->ast.effect != cedar::Effect::forbid) continue;
    result.decision =
        Deny{.reason = fmt::format("the forbid `{}` failed: {}", policy->id, error.message()), .policy = policy->id};
    return result;
  }
  if (evaluation.permits.empty()) {
    result.decision = Deny{.reason = "no policy permits this", .policy = {}};
  } else if (!oversight.requirements.empty()) {
    result.decision = std::move(oversight);
  }
  return result;
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
