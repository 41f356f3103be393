#include "decisions/decision_replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>
#include <tuple>

#include "decisions/decision_files.h"
#include "source_overlay.h"

namespace creto::authz {
namespace {

constexpr std::size_t policy_bytes_max = 16 << 20;
/// A view remembers what it was asked; one for ever would remember every resource.
constexpr std::size_t view_uses_max = 10'000;

Error bad(std::string message) {
  return Error(Product::platform, ErrorKind::invalid_input, "decision log: " + std::move(message));
}

/// Nothing is counted in a replay.
const std::shared_ptr<RateMemory>& no_rates() {
  static const auto memory = std::make_shared<RateMemory>(std::int64_t{0});
  return memory;
}

/// Entities of the sources as they were logged, over the stored ones.
class LoggedEntities final : public cedar::EntityView {
 public:
  LoggedEntities(const cedar::EntityStore& store, const SegmentReader& reader, const std::vector<std::uint32_t>& set)
      : store_(store) {
    for (const std::uint32_t number : set)
      loaded_.emplace(reader.entities()[number]->uid, reader.entities()[number].get());
  }

 protected:
  Result<const Entity*> load(const EntityUid& uid) override {
    if (const auto known = loaded_.find(uid); known != loaded_.end()) return known->second;
    const cedar::EntityId id = store_.find(uid);
    return id == cedar::no_entity ? nullptr : store_.node(id).entity.get();
  }

 private:
  const cedar::EntityStore& store_;
  std::unordered_map<EntityUid, const Entity*> loaded_;
};

/// What was in force when a decision was made, with the policies of the replay.
struct ReplayState {
  std::shared_ptr<const OrgState> plan;  ///< policies and engine; its entities are older ones
  cedar::EntityStore entities;
  std::shared_ptr<const std::set<std::uint32_t>> policies;  ///< the logged ones
  bool unknown = false;
};

struct Answer {
  Outcome outcome = Outcome::allow;
  const cedar::PlannedPolicy* policy = nullptr;  ///< the first that determined it
  std::string oversight;                         ///< policies that are asked for
};

Outcome stricter(Outcome a, Outcome b) {
  const auto rank = [](Outcome outcome) {
    switch (outcome) {
      case Outcome::deny:
        return 4;
      case Outcome::quota_exceeded:
        return 3;
      case Outcome::rate_limited:
        return 2;
      case Outcome::requires_oversight:
        return 1;
      case Outcome::allow:
        break;
    }
    return 0;
  };
  return rank(a) > rank(b) ? a : b;
}

std::string label(Outcome outcome, std::string_view oversight) {
  if (outcome != Outcome::requires_oversight) return std::string(to_string(outcome));
  return fmt::format("{}({})", to_string(outcome), oversight);
}

using GroupKey = std::tuple<std::string, std::string, std::string, std::string, std::string, std::string>;

struct Tally {
  ReplayReport report;
  std::map<GroupKey, ReplayGroup> groups;

  void add(Tally&& other) {
    report.segments += other.report.segments;
    report.read += other.report.read;
    report.replayed += other.report.replayed;
    report.by_others += other.report.by_others;
    report.not_logged += other.report.not_logged;
    report.differ += other.report.differ;
    report.otherwise_determined += other.report.otherwise_determined;
    for (auto& [key, group] : other.groups) {
      const auto [known, fresh] = groups.try_emplace(key, std::move(group));
      if (fresh) continue;
      known->second.count += group.count;
      if (group.example.at("at") < known->second.example.at("at")) known->second.example = std::move(group.example);
    }
  }
};

/// Replays one segment. One thread.
class SegmentReplay {
 public:
  SegmentReplay(const ReplayQuery& query, Tally& tally) : query_(query), tally_(tally) {}

  Result<> run(const SegmentFile& file) {
    ++tally_.report.segments;
    return file.each(reader_, [this](const SegmentReader::Decided& decided) { return replay(decided); });
  }

 private:
  struct Memo {
    std::uint32_t state = UINT32_MAX, set = 0;
    const Answer* answer = nullptr;
  };

  Result<> replay(const SegmentReader::Decided& decided) {
    if (decided.at < query_.since || decided.at > query_.until) return {};
    if (!query_.org.empty() && reader_.states()[decided.state].org != query_.org) return {};
    ++tally_.report.read;
    if (decided.by != DecidedBy::policies && !extended(decided)) {
      ++tally_.report.by_others;
      return {};
    }
    while (states_.size() <= decided.state) CRETO_TRY(add_state());
    const ReplayState& state = states_[decided.state];
    if (memos_.size() <= decided.request) memos_.resize(std::max<std::size_t>(decided.request + 1, memos_.size() * 2));
    Memo& memo = memos_[decided.request];
    const bool remembered =
        decided.lifts.empty() && memo.answer && memo.state == decided.state && memo.set == decided.set;
    if (!remembered) {
      CRETO_TRY(reader_.request(decided.request, request_));
      if (state.unknown || request_.context_left_out) {
        ++tally_.report.not_logged;
        return {};
      }
      const Answer* answer = decide(decided, state);
      memo = decided.lifts.empty() ? Memo{decided.state, decided.set, answer} : Memo{};
      return compare(decided, state, *answer);
    }
    return compare(decided, state, *memo.answer);
  }

  Result<> add_state() {
    const SegmentReader::State& logged = reader_.states()[states_.size()];
    ReplayState state;
    state.unknown = logged.unknown;
    if (!logged.unknown) {
      const ReplayState* base = logged.base ? &states_[*logged.base] : nullptr;
      if (base) {
        state.plan = base->plan;
        state.entities = cedar::EntityStore(base->entities);
        state.policies = base->policies;
      } else {
        put(state.entities, query_.entities);
      }
      std::vector<EntityUid> removed;
      for (const std::uint32_t number : logged.entities_removed) removed.push_back(reader_.entities()[number]->uid);
      state.entities.erase(removed);
      std::vector<std::shared_ptr<const Entity>> added;
      for (const std::uint32_t number : logged.entities_added) {
        Entity entity = *reader_.entities()[number];
        added.push_back(std::make_shared<const Entity>(std::move(entity)));
      }
      state.entities.put(std::move(added));
      if (!state.policies || !logged.policies_added.empty() || !logged.policies_removed.empty()) {
        auto numbers = std::make_shared<std::set<std::uint32_t>>();
        if (state.policies) *numbers = *state.policies;
        for (const std::uint32_t number : logged.policies_removed) numbers->erase(number);
        numbers->insert(logged.policies_added.begin(), logged.policies_added.end());
        state.policies = std::move(numbers);
        if (!query_.policies || !query_.folder.empty()) state.plan = nullptr;
      }
      if (!state.plan) {
        auto plan = std::make_shared<OrgState>();
        std::vector<PolicyTable::Entry> policies;
        if (query_.policies) policies = *query_.policies;
        if (!query_.policies || !query_.folder.empty()) {
          for (const std::uint32_t number : *state.policies) {
            if (query_.policies && reader_.policies()[number].id.starts_with(query_.folder + "/")) continue;
            auto policy = CRETO_TRY(logged_policy(number));
            policies.push_back(std::move(policy));
          }
        }
        plan->policies = PolicyTable(std::move(policies));
        plan->entities = std::move(state.entities);
        plan->plan();
        state.entities = cedar::EntityStore(plan->entities);
        state.plan = std::move(plan);
      }
    }
    states_.push_back(std::move(state));
    return {};
  }

  /// Whether somebody besides the policies was asked and was stricter.
  static bool extended(const SegmentReader::Decided& decided) {
    return decided.by == DecidedBy::extension || decided.by == DecidedBy::rate;
  }

  static void put(cedar::EntityStore& store, const std::vector<Entity>& entities) {
    std::vector<std::shared_ptr<const Entity>> shared;
    for (Entity entity : entities) {
      cedar::normalise(entity);
      shared.push_back(std::make_shared<const Entity>(std::move(entity)));
    }
    store.put(std::move(shared));
  }

  Result<std::shared_ptr<const LoadedPolicy>> logged_policy(std::uint32_t number) {
    auto& known = parsed_[number];
    if (known) return known;
    const SegmentReader::LoggedPolicy& policy = reader_.policies()[number];
    auto loaded = load_policy(Policy{.id = std::string(policy.id),
                                     .text = std::string(policy.text),
                                     .version = 0,
                                     .updated_at = {},
                                     .updated_by = {}},
                              policy_bytes_max, nullptr, no_rates());
    if (!loaded) return bad(fmt::format("policy `{}`: {}", policy.id, loaded.error().message()));
    known = std::make_shared<const LoadedPolicy>(*std::move(loaded));
    return known;
  }

  /// Null where the sources gave nothing.
  cedar::EntityOverlay* overlay_for(const SegmentReader::Decided& decided, const ReplayState& state) {
    if (decided.set == 0) return nullptr;
    if (view_state_ != decided.state || view_set_ != decided.set || view_uses_ >= view_uses_max) {
      overlay_.reset();
      view_.emplace(state.entities, reader_, reader_.sets()[decided.set - 1]);
      overlay_.emplace(*view_, state.entities, nullptr, scratch_.frame);
      view_state_ = decided.state;
      view_set_ = decided.set;
      view_uses_ = 0;
    }
    ++view_uses_;
    return &*overlay_;
  }

  /// Requires: `request_` is the decision's.
  const Answer* decide(const SegmentReader::Decided& decided, const ReplayState& state) {
    if (query_.schema && !conforms()) return remember(Outcome::deny, nullptr, "");
    cedar::EntityOverlay* const overlay = overlay_for(decided, state);
    if (!evaluate(state, overlay, cedar::Detail::decision)) return remember(Outcome::deny, nullptr, "");
    lifts_.clear();
    for (const auto& lift : decided.lifts)
      lifts_.push_back({std::string(lift.forbid), std::string(lift.oversight_policy)});
    const PolicyDecision result = authz::decide(scratch_.result, lifts_);
    const auto named = [&state](const PolicyId& id) -> const cedar::PlannedPolicy* {
      const auto policy = state.plan->policies.find(id);
      return policy ? policy->planned.get() : nullptr;
    };
    if (const auto* deny = std::get_if<Deny>(&result.decision))
      return remember(Outcome::deny, deny->policy.empty() ? nullptr : named(deny->policy), "");
    if (const auto* oversight = std::get_if<RequiresOversight>(&result.decision))
      return remember(Outcome::requires_oversight, named(oversight->requirements.front().forbid),
                      oversight_names(*oversight));
    return remember(Outcome::allow, determining_permit(scratch_.result), "");
  }

  bool conforms() const {
    const cedar::Request request{request_.chain->principal, request_.action, request_.resource,
                                 Value::record(request_.context)};
    return query_.schema->check(request).has_value();
  }

  bool evaluate(const ReplayState& state, cedar::EntityOverlay* overlay, cedar::Detail detail) {
    const cedar::RequestView view{request_.chain->principal, request_.action, request_.resource, request_.context};
    return state.plan->engine.evaluate(scratch_, state.entities, overlay, view, detail, failed);
  }

  /// Which of several permits is found first depends on the order in which they were made: whether `permit` holds too.
  Result<bool> also_permits(const SegmentReader::Decided& decided, const ReplayState& state, std::string_view permit) {
    if (permit.empty() || decided.outcome != Outcome::allow) return false;
    CRETO_TRY(reader_.request(decided.request, request_));
    if (!evaluate(state, overlay_for(decided, state), cedar::Detail::all)) return false;
    const auto& permits = scratch_.result.permits;
    return std::any_of(permits.begin(), permits.end(), [&](const auto* one) { return one->id == permit; });
  }

  static Error failed(const cedar::PlannedPolicy&) {
    return Error(Product::platform, ErrorKind::invalid_input, "it failed");
  }

  const Answer* remember(Outcome outcome, const cedar::PlannedPolicy* policy, std::string oversight) {
    const auto key = std::tuple(outcome, policy, std::move(oversight));
    const auto known = answers_.find(key);
    if (known != answers_.end()) return &known->second;
    return &answers_.emplace(key, Answer{outcome, policy, std::get<2>(key)}).first->second;
  }

  Result<> compare(const SegmentReader::Decided& decided, const ReplayState& state, const Answer& answer) {
    ++tally_.report.replayed;
    const bool extended = SegmentReplay::extended(decided);
    // What an extension or a rate said then it would say again; where the policies had refused before it, nobody knows.
    const Outcome becomes = extended ? stricter(decided.outcome, answer.outcome) : answer.outcome;
    const bool oversight = becomes == Outcome::requires_oversight;
    // An extension's own oversight has no name of a policy here.
    const std::string_view asked =
        extended && becomes == decided.outcome ? decided.reason : std::string_view(answer.oversight);
    const std::string_view was =
        decided.policies.empty() ? std::string_view() : reader_.policies()[decided.policies.front()].id;
    const std::string_view is = answer.policy ? std::string_view(answer.policy->id) : std::string_view();
    if (becomes == decided.outcome && (!oversight || asked.substr(0, reason_bytes_max) == decided.reason)) {
      if (was == is) return {};
      const bool also = CRETO_TRY(also_permits(decided, state, was));
      tally_.report.otherwise_determined += also ? 0 : 1;
      return {};
    }
    ++tally_.report.differ;
    CRETO_TRY(reader_.request(decided.request, request_));
    GroupKey key{label(decided.outcome, decided.reason),
                 label(becomes, asked),
                 request_.action.id,
                 request_.chain->principal.type,
                 was,
                 is};
    const auto [group, fresh] = tally_.groups.try_emplace(key);
    ++group->second.count;
    if (!fresh) return {};
    std::tie(group->second.was, group->second.becomes, group->second.action, group->second.principal_type,
             group->second.policy_was, group->second.policy_becomes) = key;
    group->second.example = decision_json(reader_, decided, request_);
    return {};
  }

  const ReplayQuery& query_;
  Tally& tally_;
  SegmentReader reader_;
  SegmentReader::Request request_;
  cedar::Engine::Scratch scratch_;
  std::deque<ReplayState> states_;
  std::map<std::uint32_t, std::shared_ptr<const LoadedPolicy>> parsed_;
  std::vector<Memo> memos_;
  std::map<std::tuple<Outcome, const cedar::PlannedPolicy*, std::string>, Answer> answers_;
  std::vector<OverrideGrant::Lift> lifts_;
  std::optional<LoggedEntities> view_;
  std::optional<SourceOverlay> overlay_;
  std::uint32_t view_state_ = UINT32_MAX, view_set_ = 0;
  std::size_t view_uses_ = 0;
};

}  // namespace

Json decision_json(const SegmentReader& reader, const SegmentReader::Decided& decided,
                   const SegmentReader::Request& request) {
  Json json{{"at", to_rfc3339(decided.at)},
            {"org", request.org},
            {"outcome", to_string(decided.outcome)},
            {"decided_by", to_string(decided.by)},
            {"cached", decided.cached},
            {"principal", request.chain->principal.to_string()},
            {"action", request.action.to_string()},
            {"resource", request.resource.to_string()},
            {"snapshot", reader.states()[decided.state].version}};
  json["policies"] = Json::array();
  for (const std::uint32_t policy : decided.policies) json["policies"].push_back(reader.policies()[policy].id);
  if (request.context_left_out) {
    json["context_left_out"] = true;
  } else {
    json["context"] = attributes_to_json(request.context);
  }
  if (decided.said != decided.outcome) json["policies_said"] = to_string(decided.said);
  if (!decided.reason.empty()) json["reason"] = decided.reason;
  if (decided.arguments_hash) json["arguments_hash"] = hex(*decided.arguments_hash);
  for (const auto& lift : decided.lifts) json["lifts"].push_back(lift.forbid);
  return json;
}

Result<std::vector<std::filesystem::path>> segments_since(io::FileSystem& files, const std::filesystem::path& log,
                                                          Instant since) {
  const auto segments = CRETO_TRY(list_segments(files, log));
  std::vector<std::filesystem::path> paths;
  // Backwards: what was written before a segment that began before then is older still.
  for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment) {
    paths.push_back(log / segment_name(segment->sequence, segment->open));
    const auto header = read_header(files, paths.back());
    if (!header) {
      // Closed or purged between the two looks.
      if (header.error().kind() != ErrorKind::not_found) return std::move(header).error();
      paths.pop_back();
      const auto renamed = log / segment_name(segment->sequence, false);
      if (CRETO_TRY(files.exists(renamed))) paths.push_back(renamed);
      continue;
    }
    if (*header && (*header)->created < since) break;
  }
  std::reverse(paths.begin(), paths.end());
  return paths;
}

Result<ReplayReport> replay(io::FileSystem& files, const ReplayQuery& query) {
  const auto paths = CRETO_TRY(segments_since(files, query.log, query.since));
  const std::size_t wanted = query.threads > 0 ? query.threads : std::max(1u, std::thread::hardware_concurrency());
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  Tally tally;
  std::optional<Error> failure;
  const auto work = [&] {
    for (std::size_t at = next++; at < paths.size(); at = next++) {
      Tally own;
      const auto done = [&]() -> Result<> {
        const SegmentFile file = CRETO_TRY(SegmentFile::read(files, paths[at]));
        return SegmentReplay(query, own).run(file);
      }();
      const std::lock_guard lock(mutex);
      if (!done && !failure) failure = Error(done.error()).with_context(paths[at].string());
      if (failure) return;
      tally.add(std::move(own));
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < std::min(wanted, paths.size()); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (failure) return *std::move(failure);
  for (auto& [key, group] : tally.groups) tally.report.groups.push_back(std::move(group));
  std::stable_sort(tally.report.groups.begin(), tally.report.groups.end(),
                   [](const ReplayGroup& a, const ReplayGroup& b) { return a.count > b.count; });
  return std::move(tally.report);
}

Result<LoggedState> latest_state(io::FileSystem& files, const std::filesystem::path& log, const std::string& org) {
  const auto segments = CRETO_TRY(list_segments(files, log));
  for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment) {
    const SegmentFile file = CRETO_TRY(SegmentFile::read(files, log / segment_name(segment->sequence, segment->open)));
    SegmentReader reader;
    std::map<EntityUid, std::uint32_t> from_sources;
    std::optional<std::uint32_t> latest;
    std::set<std::string_view> orgs;
    CRETO_TRY(file.each(reader, [&](const SegmentReader::Decided& decided) -> Result<> {
      const SegmentReader::State& state = reader.states()[decided.state];
      if (state.unknown || state.version == 0) return {};
      orgs.insert(state.org);
      if (!org.empty() && state.org != org) return {};
      latest = latest ? std::max(*latest, decided.state) : decided.state;
      if (decided.set > 0)
        for (const std::uint32_t number : reader.sets()[decided.set - 1])
          from_sources[reader.entities()[number]->uid] = number;
      return {};
    }));
    if (!latest) continue;
    if (org.empty() && orgs.size() > 1) return bad(fmt::format("organizations {}: name one", fmt::join(orgs, ", ")));
    LoggedState result;
    result.org = reader.states()[*latest].org;
    result.version = reader.states()[*latest].version;
    std::vector<std::uint32_t> steps;
    for (std::optional<std::uint32_t> at = latest; at; at = reader.states()[*at].base) steps.push_back(*at);
    std::set<std::uint32_t> policies, entities;
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
      const SegmentReader::State& state = reader.states()[*step];
      for (const std::uint32_t number : state.policies_removed) policies.erase(number);
      for (const std::uint32_t number : state.entities_removed) entities.erase(number);
      policies.insert(state.policies_added.begin(), state.policies_added.end());
      entities.insert(state.entities_added.begin(), state.entities_added.end());
    }
    for (const std::uint32_t number : policies) {
      const auto& policy = reader.policies()[number];
      LoadedPolicy loaded = CRETO_TRY(load_policy(Policy{.id = std::string(policy.id),
                                                         .text = std::string(policy.text),
                                                         .version = 0,
                                                         .updated_at = {},
                                                         .updated_by = {}},
                                                  policy_bytes_max, nullptr, no_rates()));
      result.policies.push_back(std::make_shared<const LoadedPolicy>(std::move(loaded)));
    }
    for (const std::uint32_t number : entities)
      if (!from_sources.contains(reader.entities()[number]->uid)) result.entities.push_back(*reader.entities()[number]);
    for (const auto& [uid, number] : from_sources) result.entities.push_back(*reader.entities()[number]);
    return result;
  }
  return Error(Product::platform, ErrorKind::not_found,
               fmt::format("`{}` holds no decision{}", log.string(), org.empty() ? "" : " of `" + org + "`"));
}

}  // namespace creto::authz
