#include "creto/authz/decision_tools.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cedar/entity_table.h"
#include "creto/audit/tlog.h"
#include "creto/crypto/hash.h"
#include "creto/io/files.h"
#include "decisions/decision_files.h"
#include "decisions/decision_replay.h"
#include "tools/policy_files.h"
#include "tools/service_bench.h"

namespace creto::authz {
namespace {

namespace fs = std::filesystem;

constexpr int exit_differs = 1;
constexpr int exit_wrong_policies = 2;

Error bad(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

ToolResult wrong_policies(const Workspace& workspace) {
  ToolResult result = report(workspace);
  result.exit_code = exit_wrong_policies;
  return result;
}

std::string by_policy(std::string_view policy) {
  return policy.empty() ? "no policy permits it" : fmt::format("`{}`", policy);
}

std::string label(const Decision& decision) {
  const auto* oversight = std::get_if<RequiresOversight>(&decision);
  return oversight ? fmt::format("{}({})", to_string(decision), oversight_names(*oversight))
                   : std::string(to_string(decision));
}

using Policies = std::vector<std::shared_ptr<const LoadedPolicy>>;

bool is_in_folder(const PolicyId& id, const std::string& folder) { return id.starts_with(folder + "/"); }

/// `before` with `changed` in the place of the policies of `folder`, or of all.
Policies with_folder(const Policies& before, const Policies& changed, const std::string& folder) {
  Policies all = changed;
  for (const auto& policy : before)
    if (!folder.empty() && !is_in_folder(policy->stored.id, folder)) all.push_back(policy);
  return all;
}

Json verdict_json(const ServiceBench::Verdict& verdict) {
  Json json{{"decision", to_string(verdict.decision)}, {"policies", verdict.determining()}};
  if (const auto* deny = std::get_if<Deny>(&verdict.decision)) json["reason"] = deny->reason;
  if (const auto* oversight = std::get_if<RequiresOversight>(&verdict.decision))
    json["oversight"] = oversight_names(*oversight);
  return json;
}

std::string verdict_text(std::string_view what, const ServiceBench::Verdict& verdict) {
  std::string text = fmt::format("{:<9}{}", what, label(verdict.decision));
  const std::vector<PolicyId> policies = verdict.determining();
  if (policies.empty()) return text + ": no policy permits it\n";
  return text + fmt::format(": `{}`\n", fmt::join(policies, "`, `"));
}

}  // namespace

Result<ToolResult> replay_decisions(const DecisionFilter& filter, const PolicyFiles& changed) {
  ReplayQuery query{.log = filter.log,
                    .policies = {},
                    .folder = changed.folder,
                    .schema = {},
                    .entities = {},
                    .since = filter.since,
                    .until = filter.until,
                    .org = filter.org};
  if (!changed.folder.empty() && changed.policies.empty()) return bad("folder: says which policies change: name them");
  if (!changed.policies.empty() || !changed.entities.empty() || !changed.schema.empty()) {
    Workspace workspace = CRETO_TRY(load_workspace(changed));
    if (workspace.has_errors()) return wrong_policies(workspace);
    if (!changed.policies.empty()) query.policies = std::move(workspace.loaded);
    query.schema = std::move(workspace.service_schema);
    query.entities = std::move(workspace.entities);
  }
  const ReplayReport report = CRETO_TRY(replay(io::real_files(), query));

  ToolResult result;
  Json groups = Json::array();
  for (const ReplayGroup& group : report.groups) {
    result.text += fmt::format("{:>10}  {} -> {}  Action::\"{}\" by {}\n", group.count, group.was, group.becomes,
                               group.action, group.principal_type);
    result.text +=
        fmt::format("            was: {}; now: {}\n", by_policy(group.policy_was), by_policy(group.policy_becomes));
    result.text += fmt::format("            such as: {} {} {} at {}\n", group.example.value("principal", ""),
                               group.example.value("resource", ""), group.example.value("context", Json()).dump(),
                               group.example.value("at", ""));
    groups.push_back(Json{{"count", group.count},
                          {"was", group.was},
                          {"becomes", group.becomes},
                          {"action", group.action},
                          {"principal_type", group.principal_type},
                          {"policy_was", group.policy_was},
                          {"policy_becomes", group.policy_becomes},
                          {"example", group.example}});
  }
  result.text += fmt::format("{} of {} decisions differ", report.differ, report.replayed);
  if (report.otherwise_determined > 0)
    result.text += fmt::format("; {} more are determined by another policy", report.otherwise_determined);
  result.text += "\n";
  if (report.by_others > 0)
    result.text += fmt::format("{} not replayed: refused for their token, their form or trouble\n", report.by_others);
  if (report.not_logged > 0)
    result.text += fmt::format("{} not replayed: the log does not hold all they need\n", report.not_logged);
  result.json = Json{{"differ", report.differ},
                     {"replayed", report.replayed},
                     {"read", report.read},
                     {"otherwise_determined", report.otherwise_determined},
                     {"not_by_policies", report.by_others},
                     {"not_logged", report.not_logged},
                     {"segments", report.segments},
                     {"groups", std::move(groups)}}
                    .dump(2);
  if (!report.same()) result.exit_code = exit_differs;
  return result;
}

Result<ToolResult> what_if(const DecisionFilter& filter, const std::vector<fs::path>& current,
                           const PolicyFiles& changed, const PolicyQuestion& question) {
  Workspace after = CRETO_TRY(load_workspace(changed));
  if (after.has_errors()) return wrong_policies(after);
  Policies in_force;
  std::vector<Entity> entities;
  std::vector<FilePolicy> before;
  if (!current.empty()) {
    Workspace workspace = CRETO_TRY(
        load_workspace({.policies = current, .schema = changed.schema, .entities = {}, .folder = changed.folder}));
    if (workspace.has_errors()) return wrong_policies(workspace);
    in_force = std::move(workspace.loaded);
    before = std::move(workspace.policies);
  } else {
    LoggedState logged = CRETO_TRY(latest_state(io::real_files(), filter.log, filter.org));
    in_force = std::move(logged.policies);
    entities = std::move(logged.entities);
    for (const auto& policy : in_force)
      before.push_back({policy->planned->id, "in force", policy->planned->ast, policy->stored.text});
  }
  // Those of the file count where both know one.
  std::set<EntityUid> given;
  for (const Entity& entity : after.entities) given.insert(entity.uid);
  std::erase_if(entities, [&given](const Entity& entity) { return given.contains(entity.uid); });
  entities.insert(entities.end(), after.entities.begin(), after.entities.end());

  const cedar::Request request = CRETO_TRY(request_of(after, question));
  ServiceBench now(in_force, entities), then(with_folder(in_force, after.loaded, changed.folder), entities);
  const auto was = CRETO_TRY(now.decide(request));
  const auto is = CRETO_TRY(then.decide(request));
  for (const FilePolicy& policy : before)
    if (!changed.folder.empty() && !is_in_folder(policy.id, changed.folder)) after.policies.push_back(policy);

  // What the outcome hangs on: whatever determined either decision, under both sets.
  std::set<PolicyId> involved;
  for (const auto* verdict : {&was, &is})
    for (const PolicyId& id : verdict->determining()) involved.insert(id);
  cedar::EntityTable table(entities);
  ToolResult result;
  result.text = verdict_text("in force", was) + verdict_text("changed", is);
  Json json{{"in_force", verdict_json(was)}, {"changed", verdict_json(is)}};
  for (const auto& [name, set] : {std::pair{"in_force", &before}, std::pair{"changed", &after.policies}}) {
    json[name]["why"] = Json::array();
    for (const FilePolicy& policy : *set) {
      if (!involved.contains(policy.id)) continue;
      const auto why = cedar::explain(policy.ast, request, table);
      result.text += fmt::format("{}: {}", name == std::string_view("in_force") ? "in force" : name,
                                 explanation_text(policy, why));
      json[name]["why"].push_back(explanation_json(policy, why));
    }
    for (const PolicyId& id : involved) {
      const bool there = std::any_of(set->begin(), set->end(), [&id](const FilePolicy& one) { return one.id == id; });
      if (!there)
        result.text +=
            fmt::format("{}: there is no `{}`\n", name == std::string_view("in_force") ? "in force" : name, id);
    }
  }
  const bool same = label(was.decision) == label(is.decision);
  json["same"] = same;
  result.json = json.dump(2);
  if (!same) result.exit_code = exit_differs;
  return result;
}

Result<ToolResult> list_decisions(const DecisionFilter& filter, std::size_t limit) {
  io::FileSystem& files = io::real_files();
  const auto paths = CRETO_TRY(segments_since(files, filter.log, filter.since));
  std::deque<Json> found;
  // Backwards, so that no more is read than is shown.
  for (auto path = paths.rbegin(); path != paths.rend() && found.size() < limit; ++path) {
    const SegmentFile file = CRETO_TRY(SegmentFile::read(files, *path));
    SegmentReader reader;
    std::deque<std::pair<std::int64_t, Json>> here;
    CRETO_TRY(file.each(reader, [&](const SegmentReader::Decided& decided) -> Result<> {
      if (decided.at < filter.since || decided.at > filter.until) return {};
      if (!filter.org.empty() && reader.states()[decided.state].org != filter.org) return {};
      SegmentReader::Request request;
      CRETO_TRY(reader.request(decided.request, request));
      here.emplace_back(unix_ns(decided.at), decision_json(reader, decided, request));
      if (here.size() > limit) here.pop_front();
      return {};
    }));
    std::stable_sort(here.begin(), here.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (auto one = here.rbegin(); one != here.rend() && found.size() < limit; ++one)
      found.push_front(std::move(one->second));
  }
  ToolResult result;
  for (const Json& json : found) {
    std::string by = json.value("decided_by", "");
    if (const auto policies = json.at("policies"); !policies.empty()) by = policies.dump();
    result.text += fmt::format("{}  {:<18}  {}  {}  {}  {}\n", json.value("at", ""), json.value("outcome", ""),
                               json.value("principal", ""), json.value("action", ""), json.value("resource", ""), by);
  }
  result.json = Json(found).dump(2);
  return result;
}

Result<ToolResult> verify_decisions(const fs::path& log, const fs::path& tiles, const std::string& key_file) {
  io::FileSystem& files = io::real_files();
  const auto log_name = CRETO_TRY(read_log_name(files, log));
  const auto segments = CRETO_TRY(list_segments(files, log));
  const std::string prefix = segment_resource(log_name, 0);
  const std::string_view own = std::string_view(prefix).substr(0, prefix.size() - 1);
  struct Entered {
    std::string hash;
    bool purged = false;
  };
  std::map<std::uint64_t, Entered> entered;
  std::set<std::uint64_t> damaged;
  const auto keys = CRETO_TRY(tlog::parse_key_file(key_file));
  const auto verified = CRETO_TRY(
      tlog::verify_log(tlog::files_below(files, tiles), keys, [&](std::uint64_t, BytesView entry) -> Result<> {
        const Json record = CRETO_TRY(parse_json(as_text(entry), {.bytes_max = 1 << 20}));
        const std::string resource = record.value("resource", "");
        if (!resource.starts_with(own)) return {};
        const std::string what = record.value("what", "");
        const std::uint64_t sequence = std::strtoull(resource.c_str() + own.size(), nullptr, 10);
        if (what == segment_damaged_event) damaged.insert(sequence);
        if (what != segment_sealed_event && what != segment_purged_event) return {};
        Entered& segment = entered[sequence];
        segment.hash = record.value("metadata", Json::object()).value("sha3_256", "");
        segment.purged = segment.purged || what == segment_purged_event;
        return {};
      }));

  std::vector<std::string> wrong;
  std::set<std::uint64_t> present, waiting;
  std::size_t good = 0;
  for (const SegmentName& segment : segments) {
    present.insert(segment.sequence);
    const auto known = entered.find(segment.sequence);
    const std::string name = segment_name(segment.sequence, segment.open);
    if (known == entered.end()) {
      waiting.insert(segment.sequence);
      continue;
    }
    const Bytes content = CRETO_TRY(files.read(log / name, SegmentFile::bytes_max));
    if (hex(crypto::sha3_256(content)) == known->second.hash) {
      ++good;
    } else {
      wrong.push_back(fmt::format("{} is not what was entered in the audit log", name));
    }
  }
  // Sequences have no gaps, and only the newest may still wait to be entered.
  std::uint64_t newest = entered.empty() ? 0 : entered.rbegin()->first;
  if (!present.empty()) newest = std::max(newest, *present.rbegin());
  for (std::uint64_t sequence = 1; sequence <= newest; ++sequence) {
    const auto known = entered.find(sequence);
    if (damaged.contains(sequence)) {
      wrong.push_back(fmt::format("{} was found damaged", segment_name(sequence, false)));
    } else if (known == entered.end() && !present.contains(sequence)) {
      wrong.push_back(fmt::format("{} is in neither log", segment_name(sequence, false)));
    } else if (known != entered.end() && !known->second.purged && !present.contains(sequence)) {
      wrong.push_back(fmt::format("{} is missing", segment_name(sequence, false)));
    } else if (waiting.contains(sequence) && !entered.empty() && sequence < entered.rbegin()->first) {
      wrong.push_back(fmt::format("{} was never entered in the audit log", segment_name(sequence, false)));
      waiting.erase(sequence);
    }
  }
  ToolResult result;
  for (const std::string& line : wrong) result.text += line + "\n";
  result.text += fmt::format("{} segments verified against {} entries of {}", good, verified.size, verified.origin);
  if (!waiting.empty()) result.text += fmt::format("; {} not yet entered", waiting.size());
  result.text += "\n";
  result.json = Json{{"verified", wrong.empty()},
                     {"segments", good},
                     {"waiting", waiting.size()},
                     {"wrong", wrong},
                     {"audit_entries", verified.size}}
                    .dump(2);
  if (!wrong.empty()) result.exit_code = exit_differs;
  return result;
}

}  // namespace creto::authz
