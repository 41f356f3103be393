#include "policy_commands.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "creto/authz/decision_tools.h"
#include "creto/authz/policy_tools.h"
#include "creto/common/clock.h"
#include "creto/common/lines.h"
#include "home.h"

namespace creto::app {
namespace {

/// What the user gave; lives as long as the commands that refer to it.
struct Given {
  authz::PolicyFiles files;
  authz::ValidateOptions validate;
  authz::FormatFilesOptions format;
  authz::PolicyQuestion question;
  authz::PartialQuestion partial;
  authz::ResourceQuestion resources;
  std::vector<std::filesystem::path> paths;
  std::filesystem::path table, root, extra;
  bool workloads = false;
  std::size_t decisions = 1'000'000;
  std::string form = "cedar", dialect = "postgres";
};

/// Likewise, for the decision log.
struct GivenLog {
  authz::PolicyFiles changed;
  authz::PolicyQuestion question;
  std::filesystem::path log, tiles, key;
  std::vector<std::filesystem::path> current;
  std::string org, since, until;
  std::size_t limit = 100;

  /// The log of this home unless another is named.
  Result<std::filesystem::path> folder() const {
    if (!log.empty()) return log;
    const Home home = CRETO_TRY(Home::locate());
    return home.decisions();
  }
  Result<authz::DecisionFilter> filter() const {
    authz::DecisionFilter filter;
    filter.log = CRETO_TRY(folder());
    filter.org = org;
    if (!since.empty()) filter.since = CRETO_TRY(instant("since", since));
    if (!until.empty()) filter.until = CRETO_TRY(instant("until", until));
    return filter;
  }

 private:
  static Result<Instant> instant(std::string_view option, const std::string& text) {
    if (const auto ago = parse_duration(text)) return system_clock().now() - *ago;
    if (const auto at = from_rfc3339(text)) return *at;
    return Error(
        Product::platform, ErrorKind::invalid_input,
        fmt::format("--{} `{}`: must be a duration such as 30d, or a time such as 2026-11-30T00:00:00Z", option, text));
  }
};

Result<Output> output(Result<authz::ToolResult> result) {
  const authz::ToolResult done = CRETO_TRY(std::move(result));
  return Output{done.text, done.json, done.exit_code};
}

void add_files(CLI::App* sub, Given& given, bool entities) {
  sub->add_option("--policies", given.files.policies, "files .cedar and .json, or folders of them")->required();
  sub->add_option("--schema", given.files.schema, ".cedarschema, or .json");
  if (entities) sub->add_option("--entities", given.files.entities, "a JSON array of entities");
  sub->add_flag("--cedar", given.files.plain_cedar, "plain Cedar, as other tools for it; otherwise as Creto's server");
}

void add_request(CLI::App* sub, authz::PolicyQuestion& question) {
  CLI::Option* const file =
      sub->add_option("--request-json", question.file,
                      "a file with principal, action, resource and context as a JSON object, instead of these");
  sub->add_option("--principal", question.principal, "such as 'User::\"alice\"'")->excludes(file);
  sub->add_option("--action", question.action, "such as 'Action::\"view\"'")->excludes(file);
  sub->add_option("--resource", question.resource, "such as 'Photo::\"vacation.jpg\"'")->excludes(file);
  sub->add_option("--context", question.context, "a JSON object")->capture_default_str()->excludes(file);
}

void add_question(CLI::App* sub, Given& given) {
  add_files(sub, given, true);
  add_request(sub, given.question);
}

void add_log(CLI::App* sub, GivenLog& given) {
  sub->add_option("--log", given.log, "folder of the decision log; default: this home's");
  sub->add_option("--org", given.org, "decisions of one organization; default: all");
}

void add_times(CLI::App* sub, GivenLog& given) {
  sub->add_option("--since", given.since, "a duration back from now such as 30d, or a time");
  sub->add_option("--until", given.until, "likewise");
}

void add_log_commands(const MakeCommand& command) {
  const auto given = std::make_shared<GivenLog>();

  CLI::App* replay =
      command("authz replay",
              "run logged decisions against other policies; exit code 0 none differs, 1 some do, 2 bad policies",
              [given]() -> Result<Output> {
                const authz::DecisionFilter filter = CRETO_TRY(given->filter());
                return output(authz::replay_decisions(filter, given->changed));
              });
  add_log(replay, *given);
  add_times(replay, *given);
  replay->add_option("--policies", given->changed.policies,
                     "files .cedar and .json, or folders of them; default: those that were in force");
  replay->add_option("--folder", given->changed.folder,
                     "they stand for the policies whose ids begin with FOLDER/, which is put before new ids");
  replay->add_option("--schema", given->changed.schema, ".cedarschema, or .json: what does not fit it is denied");
  replay->add_option("--entities", given->changed.entities, "a JSON array of entities that the log does not know");

  CLI::App* what_if =
      command("authz what-if",
              "decide one request as it is and with other policies; exit code 0 the same, 1 not, 2 bad policies",
              [given]() -> Result<Output> {
                authz::DecisionFilter filter;
                filter.org = given->org;
                if (given->current.empty()) filter.log = CRETO_TRY(given->folder());
                return output(authz::what_if(filter, given->current, given->changed, given->question));
              });
  add_log(what_if, *given);
  what_if->add_option("--current", given->current, "the policies as they are; default: what the log says last");
  what_if->add_option("--policies", given->changed.policies, "files .cedar and .json, or folders of them")->required();
  what_if->add_option("--folder", given->changed.folder,
                      "they stand for the policies whose ids begin with FOLDER/, which is put before new ids");
  what_if->add_option("--schema", given->changed.schema, ".cedarschema, or .json");
  what_if->add_option("--entities", given->changed.entities, "a JSON array; counts where the log knows one too");
  add_request(what_if, given->question);

  CLI::App* decisions = command("authz decisions", "show the newest logged decisions", [given]() -> Result<Output> {
    const authz::DecisionFilter filter = CRETO_TRY(given->filter());
    return output(authz::list_decisions(filter, given->limit));
  });
  add_log(decisions, *given);
  add_times(decisions, *given);
  decisions->add_option("--limit", given->limit, "how many")->capture_default_str()->check(CLI::Range(1, 1'000'000));

  CLI::App* verify = command("authz verify-log", "check the decision log against the audit log; exit code 1 where not",
                             [given]() -> Result<Output> {
                               const std::filesystem::path log = CRETO_TRY(given->folder());
                               const std::string keys = CRETO_TRY(read_text(given->key));
                               return output(authz::verify_decisions(log, given->tiles, keys));
                             });
  verify->add_option("--log", given->log, "folder of the decision log; default: this home's");
  verify->add_option("--tiles", given->tiles, "directory of the audit log")->required();
  verify->add_option("--key", given->key, "file of verifier keys (audit.vkey)")->required();
}

void add_partial(CLI::App* sub, Given& given) {
  authz::PartialQuestion& partial = given.partial;
  add_files(sub, given, true);
  sub->add_option("--principal", partial.principal, "such as 'User::\"alice\"'; left out: unknown");
  sub->add_option("--action", partial.action, "such as 'Action::\"view\"'; left out: unknown");
  sub->add_option("--resource", partial.resource, "such as 'Photo::\"vacation.jpg\"'; left out: unknown");
  sub->add_option("--principal-type", partial.principal_type, "of an unknown principal");
  sub->add_option("--resource-type", partial.resource_type, "of an unknown resource");
  sub->add_option("--context", partial.context, "a JSON object: what is known of it")->capture_default_str();
  sub->add_option("--unknown", partial.unknown, "\"context\", or an attribute of it: \"context.mfa\"; repeatable")
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  sub->add_option("--output", given.form, "sql: the condition that finds the allowed rows")
      ->capture_default_str()
      ->check(CLI::IsMember({"cedar", "json", "sql"}));
  sub->add_option("--columns", partial.columns, "for sql: where the resources lie (docs/formats.md, \"Columns\")");
  sub->add_option("--dialect", given.dialect, "for sql")
      ->capture_default_str()
      ->check(CLI::IsMember({"postgres", "sqlite"}));
}

Result<Output> run_partial(const Given& given) {
  using Form = authz::PartialQuestion::Form;
  authz::PartialQuestion question = given.partial;
  question.form = given.form == "json" ? Form::json : given.form == "sql" ? Form::sql : Form::cedar;
  question.sqlite = given.dialect == "sqlite";
  return output(authz::decide_partially(given.files, question));
}

/// What the user gave to the commands below.
struct GivenSet {
  std::function<Result<cli::CallOptions>()> options;
  std::vector<std::filesystem::path> paths;
  std::string folder;
  std::int64_t expected = 0, from = 0, to = 0;
  bool dry_run = false;
  /// A request to ask about.
  struct Asked {
    std::string principal, action, type;
    std::vector<std::string> chain;
    std::string context = "{}";

    Json request(const std::string& id) const {
      return {{"principal", principal},
              {"delegation_chain", chain},
              {"action", action},
              {"resource", {{"type", type}, {"id", id}}},
              {"context_json", context}};
    }
  };
  struct Permitted : Asked {
    int limit = 100;
    std::optional<std::string> after;
    std::filesystem::path columns;
    bool sqlite = false;
  } permitted;
  struct Explained : Asked {
    std::string id = "default";
  } explained;
  struct Link {
    std::string id, from, principal, resource;
  } link;
  struct Entities {
    std::string file, after_type, after_id;
    std::vector<std::string> texts;
    std::size_t limit = 0;
  } entities;
};

Result<std::unique_ptr<cli::Server>> connect(const GivenSet& given) {
  const Home home = CRETO_TRY(Home::locate());
  const cli::CallOptions options = CRETO_TRY(given.options());
  return cli::Server::connect(home, options);
}

Result<Json> ask(const GivenSet& given, std::string_view method, const Json& request) {
  const auto server = CRETO_TRY(connect(given));
  return server->call(method, request);
}

Result<Output> apply(const GivenSet& given) {
  const authz::PolicyFiles files{.policies = given.paths, .schema = {}, .entities = {}, .folder = given.folder};
  const authz::PolicyTexts texts = CRETO_TRY(authz::read_policy_texts(files));
  Json request{{"folder", given.folder},
               {"expected_version", std::to_string(given.expected)},
               {"dry_run", given.dry_run},
               {"policies", Json::array()}};
  for (const authz::PolicyText& policy : texts.policies)
    request["policies"].push_back({{"id", policy.id}, {"text", policy.text}});
  const Json response = CRETO_TRY(ask(given, "creto.authz.v1.AuthzService/ApplyPolicies", request));
  std::string text;
  for (const auto& [member, sign] : {std::pair{"added", '+'}, {"changed", '~'}, {"removed", '-'}}) {
    for (const Json& id : response.value(member, Json::array()))
      text += fmt::format("{} {}\n", sign, id.get<std::string>());
  }
  const bool same = text.empty();
  for (const std::string& warning : texts.warnings) text += warning + "\n";
  for (const Json& warning : response.value("warnings", Json::array()))
    text += fmt::format("warning: {}\n", warning.get<std::string>());
  const std::string version = response.at("version").value("version", "0");
  text += same            ? fmt::format("nothing to change: version {} is in force\n", version)
          : given.dry_run ? "nothing was changed: this was a dry run\n"
                          : fmt::format("version {} is in force\n", version);
  return Output{std::move(text), response.dump(2), 0};
}

/// Every line of both, with what they have in common once.
std::string line_diff(std::string_view before, std::string_view after) {
  const auto a = lines_of(before), b = lines_of(after);
  // The longest common rest of each pair of places; a policy has few lines.
  std::vector<std::vector<std::uint32_t>> common(a.size() + 1, std::vector<std::uint32_t>(b.size() + 1));
  for (std::size_t i = a.size(); i-- > 0;)
    for (std::size_t j = b.size(); j-- > 0;)
      common[i][j] = a[i] == b[j] ? common[i + 1][j + 1] + 1 : std::max(common[i + 1][j], common[i][j + 1]);
  std::string text;
  std::size_t i = 0, j = 0;
  while (i < a.size() || j < b.size()) {
    if (i < a.size() && j < b.size() && a[i] == b[j]) {
      text += fmt::format("  {}\n", a[i++]);
      ++j;
    } else if (i < a.size() && (j == b.size() || common[i + 1][j] >= common[i][j + 1])) {
      text += fmt::format("- {}\n", a[i++]);
    } else {
      text += fmt::format("+ {}\n", b[j++]);
    }
  }
  return text;
}

Result<Output> diff(const GivenSet& given) {
  const Json request{{"from", std::to_string(given.from)}, {"to", std::to_string(given.to)}};
  const Json response = CRETO_TRY(ask(given, "creto.authz.v1.AuthzService/DiffPolicyVersions", request));
  constexpr std::size_t lines_max = 2'000;
  std::string text;
  for (const Json& one : response.value("differences", Json::array())) {
    const std::string before = one.value("before", ""), after = one.value("after", "");
    text += fmt::format("{} {}\n",
                        before.empty()  ? "added"
                        : after.empty() ? "removed"
                                        : "changed",
                        one.value("id", ""));
    const auto lines = [](const std::string& all) { return std::ranges::count(all, '\n'); };
    if (static_cast<std::size_t>(std::max(lines(before), lines(after))) > lines_max) {
      text += "  too long to compare here: see --json\n";
    } else {
      text += line_diff(before, after);
    }
  }
  if (text.empty()) text = "no difference\n";
  return Output{std::move(text), response.dump(2), 0};
}

Result<Output> permitted(const GivenSet& given) {
  const GivenSet::Permitted& asked = given.permitted;
  Json request{{"request", asked.request("")}, {"limit", asked.limit}, {"sqlite", asked.sqlite}};
  if (asked.after) request["after"] = *asked.after;
  if (!asked.columns.empty()) request["columns_json"] = CRETO_TRY(read_text(asked.columns));
  const Json response = CRETO_TRY(ask(given, "creto.authz.v1.AuthzService/FilterResources", request));
  const std::string kind = response.value("kind", "");
  std::string text = kind == "KIND_ALL"    ? "every resource of this type\n"
                     : kind == "KIND_NONE" ? "no resource of this type\n"
                                           : "";
  for (const Json& id : response.value("resources", Json::array())) text += id.get<std::string>() + "\n";
  if (response.value("more", false)) text += "and more: see --after and --limit\n";
  if (const std::string residual = response.value("residual", ""); !residual.empty())
    text += "\nfor any other, these decide:\n" + residual;
  if (const std::string where = response.value("where", ""); !where.empty()) {
    text += "\n" + where + "\n";
    std::size_t number = 0;
    for (const Json& parameter : response.value("parameters", Json::array()))
      text += fmt::format("-- ${}: {}\n", ++number, parameter.begin().value().dump());
  }
  return Output{std::move(text), response.dump(2), 0};
}

Result<Output> link(const GivenSet& given) {
  Json request{{"id", given.link.id}, {"template_id", given.link.from}};
  for (const auto& [slot, text] : {std::pair{"principal", &given.link.principal}, {"resource", &given.link.resource}}) {
    if (text->empty()) continue;
    const authz::EntityUid uid = CRETO_TRY(authz::parse_entity(*text, slot));
    request[slot] = {{"type", uid.type}, {"id", uid.id}};
  }
  const Json response = CRETO_TRY(ask(given, "creto.authz.v1.AuthzService/LinkPolicy", request));
  std::string text = fmt::format("policy `{}` is a link of `{}`\n", given.link.id, given.link.from);
  for (const Json& warning : response.value("warnings", Json::array()))
    text += fmt::format("warning: {}\n", warning.get<std::string>());
  return Output{std::move(text), response.dump(2), 0};
}

Result<Output> put_entities(const GivenSet& given) {
  Json request{{"entities", Json::array()}, {"dry_run", given.dry_run}};
  const auto add = [&](const std::string& name, const std::string& text) -> Result<> {
    auto entities = CRETO_TRY(authz::read_entity_texts(name, text));
    for (std::string& entity : entities) request["entities"].push_back(std::move(entity));
    return {};
  };
  for (const std::string& text : given.entities.texts) CRETO_TRY(add("--entity", text));
  if (!given.entities.file.empty()) {
    const std::string text = CRETO_TRY(read_input(given.entities.file));
    CRETO_TRY(add(given.entities.file, text));
  }
  if (request["entities"].empty())
    return Error(Product::platform, ErrorKind::invalid_input, "no entities: name a file, or give --entity");
  const Json response = CRETO_TRY(ask(given, "creto.authz.v1.AuthzService/PutEntities", request));
  const auto count = [&](const char* member) { return response.value(member, std::string("0")); };
  return Output{fmt::format("{} added, {} changed, {} as they were{}\n", count("added"), count("changed"),
                            count("same"), given.dry_run ? ": nothing was changed, this was a dry run" : ""),
                response.dump(2), 0};
}

/// As `entities put` takes them: a JSON array, an entity a line.
Result<Output> list_entities(const GivenSet& given) {
  constexpr std::size_t page_max = 1'000;
  const std::size_t limit = given.entities.limit == 0 ? SIZE_MAX : given.entities.limit;
  const auto server = CRETO_TRY(connect(given));
  Json after{{"type", given.entities.after_type}, {"id", given.entities.after_id}};
  Json all{{"entities", Json::array()}, {"more", true}};
  while (all["more"].get<bool>() && all["entities"].size() < limit) {
    const std::size_t page = std::min(page_max, limit - all["entities"].size());
    const Json response =
        CRETO_TRY(server->call("creto.authz.v1.AuthzService/ListEntities", {{"after", after}, {"limit", page}}));
    const Json entities = response.value("entities", Json::array());
    all["more"] = response.value("more", false) && !entities.empty();
    for (const Json& entity : entities) all["entities"].push_back(entity);
    if (entities.empty()) break;
    const Json last = CRETO_TRY(parse_json(entities.back().get<std::string>()));
    after = last.at("uid");
  }
  std::string text;
  for (const Json& entity : all["entities"]) text += (text.empty() ? "[" : ",\n ") + entity.get<std::string>();
  text += text.empty() ? "[]\n" : "]\n";
  return Output{std::move(text), all.dump(2), 0};
}

/// "deny: forbidden by policy `large`", and who decided.
std::string decision_text(const Json& response) {
  const Json decision = response.value("decision", Json::object());
  const std::string kind = decision.empty() ? "deny" : decision.begin().key();
  const Json detail = decision.empty() ? Json::object() : decision.begin().value();
  std::string text = kind;
  if (const std::string reason = detail.value("reason", detail.value("message", "")); !reason.empty())
    text += ": " + reason;
  if (const auto asked = detail.find("requirements"); asked != detail.end()) {
    for (const Json& one : *asked)
      text += fmt::format("\n  a human has to approve: {}, for `{}`", one.value("oversight_policy", ""),
                          one.value("forbid", ""));
  }
  const std::string by = response.value("decided_by", ""), name = response.value("decided_by_name", "");
  if (by != "policies") text += fmt::format("\n  decided by: {}{}", by, name.empty() ? "" : " `" + name + "`");
  for (const Json& id : response.value("lifted", Json::array()))
    text += fmt::format("\n  lifted by an approval: `{}`", id.get<std::string>());
  return text + "\n";
}

Result<Output> explain(const GivenSet& given) {
  const Json response =
      CRETO_TRY(ask(given, "creto.authz.v1.AuthzService/Explain", given.explained.request(given.explained.id)));
  std::string text = decision_text(response);
  for (const Json& policy : response.value("policies", Json::array())) {
    const std::string outcome = policy.value("outcome", ""), because = policy.value("because", "");
    text += fmt::format("{} `{}`", policy.value("forbids", false) ? "forbid" : "permit", policy.value("policy_id", ""));
    if (outcome == "OUTCOME_APPLIES") text += " applies\n";
    if (outcome == "OUTCOME_CONDITION")
      text += fmt::format(" does not apply: `{}` decided (line {})\n", because, policy.value("line", 0));
    if (outcome == "OUTCOME_FAILED") text += fmt::format(" failed: {} (line {})\n", because, policy.value("line", 0));
    for (const Json& seen : policy.value("saw", Json::array()))
      text += fmt::format("    {} = {}\n", seen.value("expression", ""), seen.value("value", ""));
  }
  if (const int left = response.value("policies_left_out", 0); left > 0)
    text += fmt::format("and {} more that do not apply\n", left);
  return Output{std::move(text), response.dump(2), 0};
}

}  // namespace

void add_policy_set_commands(const MakeCommand& command, std::function<Result<cli::CallOptions>()> options) {
  const auto given = std::make_shared<GivenSet>();
  given->options = std::move(options);
  CLI::App* apply_command =
      command("policies apply", "put the policies of files in the place of those in force, all or none",
              [given] { return apply(*given); });
  apply_command->add_option("PATH", given->paths, "files .cedar and .json, or folders of them")->required();
  apply_command->add_option("--folder", given->folder,
                            "replace only the policies whose ids begin with FOLDER/, and put that before new ids");
  apply_command->add_option("--expected", given->expected, "refuse unless this is the newest version");
  apply_command->add_flag("--dry-run", given->dry_run, "check everything and say what would change");

  CLI::App* put = command("entities put", "store groups, action groups and resources nobody else owns, all or none",
                          [given] { return put_entities(*given); });
  put->add_option("FILE", given->entities.file, "Cedar's JSON of one, or an array of them; - for standard input");
  put->add_option("--entity", given->entities.texts, "the JSON itself; repeatable")
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  put->add_flag("--dry-run", given->dry_run, "check everything and say what would change");

  CLI::App* list = command("entities list", "the stored entities, as a JSON array that `entities put` takes",
                           [given] { return list_entities(*given); });
  list->add_option("--after-type", given->entities.after_type, "with --after-id: those behind this one");
  list->add_option("--after-id", given->entities.after_id, "");
  list->add_option("--limit", given->entities.limit, "at most so many; default: all");

  CLI::App* link_command =
      command("policies link", "make a policy of a template, which changes with it", [given] { return link(*given); });
  link_command->add_option("ID", given->link.id, "of the policy")->required();
  link_command->add_option("TEMPLATE", given->link.from, "its id")->required();
  link_command->add_option("--principal", given->link.principal, "for ?principal, such as Agent::\"agent:nhi:…\"");
  link_command->add_option("--resource", given->link.resource, "for ?resource, such as Ledger::\"main\"");

  CLI::App* diff_command =
      command("policies diff", "what differs between two versions of the policies", [given] { return diff(*given); });
  diff_command->add_option("FROM", given->from, "a version")->required();
  diff_command->add_option("TO", given->to, "another; default: what is in force");

  CLI::App* explain_command =
      command("policies explain", "why somebody may or may not do something, policy by policy: a question, no decision",
              [given] { return explain(*given); });
  GivenSet::Explained& explained = given->explained;
  explain_command->add_option("PRINCIPAL", explained.principal, "agent:…, human:…, service:…")->required();
  explain_command->add_option("ACTION", explained.action, "such as payments.pay")->required();
  explain_command->add_option("TYPE", explained.type, "of the resource, such as Ledger")->required();
  explain_command->add_option("ID", explained.id, "of the resource")->capture_default_str();
  explain_command->add_option("--chain", explained.chain, "its delegation chain, root first, the principal last");
  explain_command->add_option("--context", explained.context, "a JSON object")->capture_default_str();

  CLI::App* permitted_command =
      command("policies permitted", "which resources of a type somebody may do something to: stored ones, and the rule",
              [given] { return permitted(*given); });
  GivenSet::Permitted& asked = given->permitted;
  permitted_command->add_option("PRINCIPAL", asked.principal, "agent:…, human:…, service:…")->required();
  permitted_command->add_option("ACTION", asked.action, "such as documents.read")->required();
  permitted_command->add_option("TYPE", asked.type, "of the resources, such as Document")->required();
  permitted_command->add_option("--chain", asked.chain, "its delegation chain, root first, the principal last");
  permitted_command->add_option("--context", asked.context, "a JSON object")->capture_default_str();
  permitted_command->add_option("--limit", asked.limit, "of the stored ones")->capture_default_str();
  permitted_command->add_option("--after", asked.after, "stored ones behind this id");
  permitted_command->add_option("--columns", asked.columns, "a file that says where they lie: prints SQL's condition")
      ->check(CLI::ExistingFile);
  permitted_command->add_flag("--sqlite", asked.sqlite, "SQL for SQLite; else for PostgreSQL");
}

void add_policy_commands(const MakeCommand& command) {
  const auto given = std::make_shared<Given>();

  CLI::App* validate = command("authz validate", "check policies, and entities, against a schema",
                               [given] { return output(authz::validate_policies(given->files, given->validate)); });
  add_files(validate, *given, true);
  validate->add_flag("--permissive", given->validate.permissive, "let different types be compared; with --cedar");
  validate->add_option("--level", given->validate.level_max,
                       "how many steps from the request's entities a policy may take");

  CLI::App* format = command("authz format", "lay policies and schemas out, or convert them",
                             [given] { return output(authz::format_policy_files(given->paths, given->format)); });
  format->add_option("PATH", given->paths, "files .cedar and .cedarschema, or folders of them")->required();
  auto* write = format->add_flag("--write", given->format.write, "rewrite the files in place");
  auto* check = format->add_flag("--check", given->format.check, "name the files that would change; exit code 1");
  auto* to_json = format->add_flag("--to-json", given->format.to_json, "print one file in the JSON syntax");
  auto* to_cedar = format->add_flag("--to-cedar", given->format.to_cedar, "print one JSON file as Cedar text");
  for (CLI::Option* a : {write, check, to_json, to_cedar}) {
    for (CLI::Option* b : {write, check, to_json, to_cedar}) {
      if (a != b) a->excludes(b);
    }
  }
  format->add_option("--width", given->format.width, "of a line")->capture_default_str();

  add_question(command("authz check", "decide one request; exit code 0 allow, 3 deny",
                       [given] { return output(authz::check_policies(given->files, given->question)); }),
               *given);
  add_question(command("authz explain", "decide one request and say why, policy by policy",
                       [given] { return output(authz::explain_policies(given->files, given->question)); }),
               *given);

  add_partial(
      command("authz partial", "decide a request of which parts are unknown, as far as can be; print what is left",
              [given] { return run_partial(*given); }),
      *given);

  CLI::App* query = command("authz query", "list the entities of a type that a principal may act on",
                            [given] { return output(authz::list_resources(given->files, given->resources)); });
  add_files(query, *given, true);
  query->add_option("--principal", given->resources.principal, "such as 'User::\"alice\"'")->required();
  query->add_option("--action", given->resources.action, "such as 'Action::\"view\"'")->required();
  query->add_option("--resource-type", given->resources.resource_type, "such as 'Photo'");
  query->add_option("--context", given->resources.context, "a JSON object")->capture_default_str();

  CLI::App* test = command("authz test", "run a table of requests with the decisions they should get",
                           [given] { return output(authz::test_policies(given->files, given->table)); });
  add_files(test, *given, true);
  test->add_option("TABLE", given->table, "a JSON array of requests with their `decision`")->required();

  CLI::App* bench = command("authz bench", "time decisions without a cache over a table of requests", [given] {
    return output(authz::bench_policies(given->files, given->table, given->decisions));
  });
  bench->add_option("--policies", given->files.policies, "files .cedar and .json, or folders of them")->required();
  bench->add_option("--schema", given->files.schema, ".cedarschema, or .json");
  bench->add_option("--entities", given->files.entities, "a JSON array of entities");
  bench->add_option("TABLE", given->table, "a JSON array of requests, as for `authz test`")->required();
  bench->add_option("--decisions", given->decisions, "how many")->capture_default_str();

  CLI::App* conformance = command("authz conformance", "run Cedar's conformance data against this engine", [given] {
    return output(authz::run_conformance(given->root, given->extra, given->workloads));
  });
  conformance->add_option("DIR", given->root, "a tree in the format of Cedar's integration tests")->required();
  conformance->add_option("--extra", given->extra, "a tree with further verdicts for the same tests");
  conformance->add_flag("--oopsla", given->workloads, "DIR holds the workloads of the Cedar paper instead");

  add_log_commands(command);
}

}  // namespace creto::app
