#include "creto/authz/policy_tools.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <utility>

#include "cedar/conform.h"
#include "cedar/explain.h"
#include "cedar/format.h"
#include "cedar/partial.h"
#include "cedar/sql_filter.h"
#include "cedar/text.h"
#include "cedar/validate.h"
#include "cedar/workbench.h"
#include "creto/common/bytes.h"
#include "creto/common/clock.h"
#include "creto/io/files.h"
#include "reach.h"
#include "snapshot.h"
#include "tools/conformance.h"
#include "tools/policy_files.h"
#include "tools/service_bench.h"

namespace creto::authz {
namespace {

namespace fs = std::filesystem;

constexpr int exit_wrong = 1;
constexpr int exit_denied = 3;
constexpr std::size_t file_max = 64 << 20;

Error bad(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

std::string count(std::size_t n, std::string_view one, std::string_view more) {
  return fmt::format("{} {}", n, n == 1 ? one : more);
}

Json problems_json(const std::vector<FileProblem>& problems) {
  Json array = Json::array();
  for (const FileProblem& problem : problems) {
    Json json{
        {"file", problem.file}, {"severity", problem.warning ? "warning" : "error"}, {"message", problem.problem.what}};
    if (problem.problem.where.line > 0) {
      json["line"] = problem.problem.where.line;
      json["column"] = problem.problem.where.column;
    }
    if (!problem.policy.empty()) json["policy"] = problem.policy;
    if (!problem.problem.hint.empty()) json["hint"] = problem.problem.hint;
    array.push_back(std::move(json));
  }
  return array;
}

}  // namespace

ToolResult report(const Workspace& workspace) {
  ToolResult result;
  std::size_t errors = 0;
  for (const FileProblem& problem : workspace.problems) {
    result.text += problem.to_string() + "\n";
    errors += problem.warning ? 0 : 1;
  }
  const std::string seen = fmt::format("{}, {}, {}", count(workspace.policies.size(), "policy", "policies"),
                                       count(workspace.templates.size(), "template", "templates"),
                                       count(workspace.entities.size(), "entity", "entities"));
  result.text += fmt::format("{}: {}\n", seen, errors == 0 ? "no errors" : count(errors, "error", "errors"));
  result.json = Json{{"problems", problems_json(workspace.problems)},
                     {"policies", workspace.policies.size()},
                     {"templates", workspace.templates.size()},
                     {"entities", workspace.entities.size()}}
                    .dump(2);
  if (errors > 0) result.exit_code = exit_wrong;
  return result;
}

namespace {

// --- questions
// --------------------------------------------------------------------------------------------------------

}  // namespace

Result<EntityUid> parse_entity(std::string_view text, std::string_view what) {
  const auto parsed = cedar::parse_expression(text);
  const bool one = parsed.ok() && parsed.value.size() == 1 && parsed.value[0].op == cedar::Op::literal;
  const EntityUid* uid = one ? parsed.value[0].value->as<EntityUid>() : nullptr;
  if (!uid) return bad(fmt::format("{}: `{}` is no entity such as User::\"alice\"", what, text.substr(0, 200)));
  return *uid;
}

namespace {

Result<EntityUid> entity_member(const Json& json, const char* what) {
  const auto at = json.find(what);
  if (at == json.end()) return bad(fmt::format("{}: is missing", what));
  if (at->is_string()) return parse_entity(at->get<std::string>(), what);
  auto value = value_from_json(at->is_object() && at->contains("__entity") ? *at : Json{{"__entity", *at}});
  if (!value) return bad(fmt::format("{}: {}", what, value.error().message()));
  return *value->as<EntityUid>();
}

/// Takes `delegation` out of a context. Whoever tries a chain gives it as the service would add it; the schema need not
/// declare it.
Result<std::optional<Value>> take_delegation(const Workspace& workspace, Json& context) {
  std::optional<Value> delegation;
  if (workspace.plain_cedar || !context.is_object() || !context.contains("delegation")) return delegation;
  delegation = CRETO_TRY(value_from_json(context.at("delegation")));
  context.erase("delegation");
  return delegation;
}

/// Whether the schema has a say in a request for this action: as the service has it, not where it does not declare it.
bool is_typed(const Workspace& workspace, const EntityUid& action) {
  return workspace.schema && (workspace.service_schema == nullptr || workspace.schema->action(action) != nullptr);
}

/// Without a schema's help: what is wrong is told as it would be with it.
Result<Attributes> untyped_context(const Json& context) {
  if (!context.is_object()) return bad("context: must be a JSON object");
  auto attributes = attributes_from_json(context);
  if (!attributes) return bad("context." + attributes.error().message());
  return attributes;
}

/// Conforms to the schema where there is one. For the service with what it adds.
Result<cedar::Request> request_of(const Workspace& workspace, EntityUid principal, EntityUid action, EntityUid resource,
                                  Json context) {
  auto delegation = CRETO_TRY(take_delegation(workspace, context));
  auto attributes = is_typed(workspace, action) ? cedar::context_from_json(*workspace.schema, action, context)
                                                : untyped_context(context);
  if (!attributes) return bad(attributes.error().message());
  if (delegation) attributes->emplace_back("delegation", *std::move(delegation));
  cedar::Request request{std::move(principal), std::move(action), std::move(resource),
                         Value::record(*std::move(attributes))};
  if (workspace.plain_cedar) {
    if (workspace.schema) CRETO_TRY(cedar::check_request(*workspace.schema, request));
    return request;
  }
  request = with_delegation(std::move(request));
  if (workspace.service_schema) CRETO_TRY(workspace.service_schema->check(request));
  return request;
}

Result<cedar::Request> request_of(const Workspace& workspace, const Json& json) {
  EntityUid principal = CRETO_TRY(entity_member(json, "principal"));
  EntityUid action = CRETO_TRY(entity_member(json, "action"));
  EntityUid resource = CRETO_TRY(entity_member(json, "resource"));
  return request_of(workspace, std::move(principal), std::move(action), std::move(resource),
                    json.value("context", Json::object()));
}

}  // namespace

Result<cedar::Request> request_of(const Workspace& workspace, const PolicyQuestion& question) {
  if (!question.file.empty()) {
    const std::string text = CRETO_TRY(read_text(question.file));
    const auto request = parse_json(text, {.bytes_max = file_max, .depth_max = 256});
    if (!request) return bad(fmt::format("{}: {}", question.file.string(), request.error().message()));
    if (!request->is_object()) return bad(fmt::format("{}: must be an object", question.file.string()));
    for (const auto& [name, member] : request->items())
      if (name != "principal" && name != "action" && name != "resource" && name != "context")
        return bad(fmt::format("{}: {}: unknown member", question.file.string(), name));
    return request_of(workspace, *request);
  }
  for (const auto& [what, text] :
       {std::pair{"principal", &question.principal}, {"action", &question.action}, {"resource", &question.resource}})
    if (text->empty()) return bad(fmt::format("{}: is missing", what));
  EntityUid principal = CRETO_TRY(parse_entity(question.principal, "principal"));
  EntityUid action = CRETO_TRY(parse_entity(question.action, "action"));
  EntityUid resource = CRETO_TRY(parse_entity(question.resource, "resource"));
  auto context = parse_json(question.context);
  if (!context) return bad(fmt::format("context: {}", context.error().message()));
  return request_of(workspace, std::move(principal), std::move(action), std::move(resource), *std::move(context));
}

namespace {

cedar::PolicySet policies_of(const Workspace& workspace) {
  std::vector<std::shared_ptr<const cedar::PlannedPolicy>> planned;
  for (const FilePolicy& policy : workspace.policies)
    planned.push_back(std::make_shared<cedar::PlannedPolicy>(policy.id, policy.ast));
  return cedar::PolicySet(std::move(planned));
}

/// Decides over a workspace without errors, as the service does or as plain Cedar.
class Decider {
 public:
  explicit Decider(const Workspace& workspace) {
    if (workspace.plain_cedar) {
      cedar_.emplace(policies_of(workspace), workspace.entities);
    } else {
      service_.emplace(workspace.loaded, workspace.entities);
    }
  }

  cedar::EntityTable& entities() { return service_ ? service_->entities() : cedar_->entities(); }

  struct Answer {
    Decision decision;
    std::set<std::string> reasons;
    std::vector<std::pair<std::string, std::string>> errors;  ///< policy and what failed
  };
  /// `given` is for the service alone.
  Result<Answer> answer(const cedar::Request& request, const Assumptions& given = {}) {
    if (service_) {
      ServiceBench::Verdict verdict = CRETO_TRY(service_->decide(request, given));
      return Answer{
          std::move(verdict.decision), {verdict.reasons.begin(), verdict.reasons.end()}, std::move(verdict.errors)};
    }
    const cedar::Evaluation& evaluation = cedar_->evaluate(request);
    if (!cedar_->decided()) return bad("an entity has too many ancestors");
    Answer answer{evaluation.allows() ? Decision(Allow{}) : Decision(Deny{}), {}, {}};
    for (const auto* policy : evaluation.reasons()) answer.reasons.insert(policy->id);
    for (const auto& [policy, error] : evaluation.errors) answer.errors.emplace_back(policy->id, error.message());
    return answer;
  }

 private:
  std::optional<ServiceBench> service_;
  std::optional<cedar::Workbench> cedar_;
};

Json answer_json(const Decider::Answer& answer) {
  Json errors = Json::array();
  for (const auto& [policy, error] : answer.errors) errors.push_back(Json{{"policy", policy}, {"message", error}});
  Json json{{"decision", to_string(answer.decision)}, {"reason", answer.reasons}, {"errors", std::move(errors)}};
  if (const auto* oversight = std::get_if<RequiresOversight>(&answer.decision))
    json["oversight"] = oversight_names(*oversight);
  return json;
}

std::string answer_text(const Decider::Answer& answer) {
  std::string text = fmt::format("{}\n", to_string(answer.decision));
  for (const std::string& policy : answer.reasons) text += fmt::format("  decided by policy `{}`\n", policy);
  if (const auto* oversight = std::get_if<RequiresOversight>(&answer.decision))
    text += fmt::format("  a human has to approve: {}\n", oversight_names(*oversight));
  const auto* denied = std::get_if<Deny>(&answer.decision);
  if (denied && answer.reasons.empty()) text += "  no policy permits it\n";
  for (const auto& [policy, error] : answer.errors) text += fmt::format("  policy `{}` failed: {}\n", policy, error);
  // Where a forbid that failed denies, what decided is not among Cedar's reasons.
  if (denied && !denied->policy.empty() && !answer.reasons.contains(denied->policy))
    text += fmt::format("  {}\n", denied->reason);
  return text;
}

// --- explanations
// -----------------------------------------------------------------------------------------------------

}  // namespace

std::string explanation_text(const FilePolicy& policy, const cedar::PolicyExplanation& why) {
  using Outcome = cedar::PolicyExplanation::Outcome;
  const std::string_view effect = policy.ast.effect == cedar::Effect::permit ? "permit" : "forbid";
  std::string text = fmt::format("{} `{}`", effect, policy.id);
  const std::string at = why.where.line > 0 ? fmt::format(" ({}:{})", policy.file, why.where.line) : "";
  switch (why.outcome) {
    case Outcome::satisfied:
      return text + " applies\n";
    case Outcome::scope:
      return text + fmt::format(" does not apply: not in its scope `{}`\n", why.because);
    case Outcome::condition:
      text += fmt::format(" does not apply: `{}` decided{}\n", why.because, at);
      break;
    case Outcome::error:
      text += fmt::format(" failed: {}{}\n", why.because, at);
      break;
  }
  for (const auto& [expression, value] : why.saw) text += fmt::format("    {} = {}\n", expression, value);
  return text;
}

Json explanation_json(const FilePolicy& policy, const cedar::PolicyExplanation& why) {
  static constexpr std::string_view outcomes[] = {"satisfied", "scope", "condition", "error"};
  Json json{{"policy", policy.id},
            {"file", policy.file},
            {"effect", policy.ast.effect == cedar::Effect::permit ? "permit" : "forbid"},
            {"outcome", outcomes[static_cast<std::size_t>(why.outcome)]}};
  if (!why.because.empty()) json["because"] = why.because;
  if (why.where.line > 0) json["line"] = why.where.line;
  for (const auto& [expression, value] : why.saw) json["saw"][expression] = value;
  return json;
}

namespace {

// --- unknown parts
// ----------------------------------------------------------------------------------------------------

Result<cedar::PartialEntity> partial_entity(const std::string& text, const std::string& type, std::string_view what) {
  if (!type.empty() && !cedar::is_path(type)) return bad(fmt::format("{} type: `{}` is no entity type", what, type));
  cedar::PartialEntity entity{std::nullopt, type};
  if (text.empty()) return entity;
  if (!type.empty()) return bad(fmt::format("{}: it is either known or of a type", what));
  entity.uid = CRETO_TRY(parse_entity(text, what));
  return entity;
}

/// What the service adds to the context, as far as it is known who asks.
void add_delegation(cedar::PartialRequest& request) {
  if (request.principal.uid) {
    request.context = with_delegation({*request.principal.uid, {}, {}, request.context}).context;
    return;
  }
  const std::string& type = request.principal.type;
  if (type.empty() || type == "Agent" || type == "Human" || type == "Service")
    request.unknown_context.insert("delegation");
}

/// Conforms to the schema where there is one. For the service with what it adds.
Result<cedar::PartialRequest> request_of(const Workspace& workspace, const PartialQuestion& question) {
  cedar::PartialRequest request;
  request.principal = CRETO_TRY(partial_entity(question.principal, question.principal_type, "principal"));
  request.action = CRETO_TRY(partial_entity(question.action, {}, "action"));
  request.resource = CRETO_TRY(partial_entity(question.resource, question.resource_type, "resource"));
  for (const std::string& name : question.unknown) {
    const std::string prefix = "context.";
    if (name == "context") {
      request.context_unknown = true;
    } else if (name.starts_with(prefix) && name.size() > prefix.size()) {
      request.unknown_context.insert(name.substr(prefix.size()));
    } else {
      return bad(fmt::format("unknown: `{}` is neither `context` nor an attribute such as `context.mfa`", name));
    }
  }
  Json context = CRETO_TRY(parse_json(question.context));
  auto delegation = CRETO_TRY(take_delegation(workspace, context));
  // Of an unknown action the service does not know either whether the schema declares it.
  const bool typed = request.action.uid ? is_typed(workspace, *request.action.uid)
                                        : workspace.schema && workspace.service_schema == nullptr;
  auto attributes =
      typed && request.action.uid && !request.context_unknown
          ? cedar::context_from_json(*workspace.schema, *request.action.uid, context, request.unknown_context)
          : untyped_context(context);
  if (!attributes) return bad(attributes.error().message());
  const bool given = delegation.has_value();
  if (given) attributes->emplace_back("delegation", *std::move(delegation));
  request.context = Value::record(*std::move(attributes));
  if (!workspace.plain_cedar && !given && !request.unknown_context.contains("delegation")) add_delegation(request);
  if (!typed) return request;
  CRETO_TRY(cedar::check_request(*workspace.schema, request));
  const auto* action = request.action.uid ? workspace.schema->action(*request.action.uid) : nullptr;
  const bool open = !request.resource.uid && request.resource.type.empty();
  if (action && open && action->resources.size() == 1) request.resource.type = action->resources[0];
  return request;
}

std::string_view effect_of(const cedar::PartialPolicy& policy) {
  return policy.policy->ast.effect == cedar::Effect::permit ? "permit" : "forbid";
}

std::string_view decision_text(cedar::PartialDecision decision) {
  static constexpr std::string_view names[] = {"allow", "deny", "undecided"};
  return names[static_cast<std::size_t>(decision)];
}

/// As a text of policies: what is no policy any more stands in comments.
std::string partial_text(const cedar::PartialEvaluation& evaluation, cedar::PartialDecision decision) {
  using Outcome = cedar::PartialPolicy::Outcome;
  std::string comments = fmt::format("// {}\n", decision_text(decision));
  std::string policies;
  for (const cedar::PartialPolicy& policy : evaluation.policies) {
    const std::string id = cedar::quote(policy.policy->id);
    if (policy.outcome == Outcome::yes) comments += fmt::format("// {} {} applies\n", effect_of(policy), id);
    if (policy.outcome == Outcome::error)
      comments += fmt::format("// {} {} fails: {}\n", effect_of(policy), id, policy.error->message());
    if (!policy.residual) continue;
    cedar::PolicyAst named = *policy.residual;
    named.annotations.emplace("id", policy.policy->id);
    policies += "\n" + cedar::to_text(named);
  }
  return comments + policies;
}

Result<Json> partial_json(const cedar::PartialEvaluation& evaluation, cedar::PartialDecision decision) {
  using Outcome = cedar::PartialPolicy::Outcome;
  Json applies = Json::array(), errors = Json::array();
  cedar::PolicySetDecl residuals;
  for (const cedar::PartialPolicy& policy : evaluation.policies) {
    if (policy.outcome == Outcome::yes) applies.push_back(policy.policy->id);
    if (policy.outcome == Outcome::error)
      errors.push_back(Json{{"policy", policy.policy->id}, {"message", policy.error->message()}});
    if (policy.residual) residuals.policies.emplace(policy.policy->id, *policy.residual);
  }
  Json json{{"decision", decision_text(decision)}, {"applies", std::move(applies)}, {"errors", std::move(errors)}};
  json["residuals"] = CRETO_TRY(cedar::to_json(residuals));
  return json;
}

Result<cedar::SqlMapping> mapping_of(const Workspace& workspace, const fs::path& file) {
  const std::string text = CRETO_TRY(read_text(file));
  auto mapping = cedar::parse_sql_mapping(text);
  if (!mapping) return bad(fmt::format("{}: {}", file.string(), mapping.error().message()));
  if (workspace.schema) cedar::exclude_ancestors(*mapping, *workspace.schema);
  return mapping;
}

ToolResult filter_result(const cedar::SqlFilter& filter) {
  ToolResult result;
  result.text = filter.where + "\n";
  Json parameters = Json::array();
  for (const cedar::SqlParameter& parameter : filter.parameters) {
    parameters.push_back(std::visit([](const auto& value) { return Json(value); }, parameter));
    result.text += fmt::format("-- ${}: {}\n", parameters.size(), parameters.back().dump());
  }
  result.json = Json{{"where", filter.where}, {"parameters", std::move(parameters)}}.dump(2);
  return result;
}

cedar::ErringForbid erring(bool denies) { return denies ? cedar::ErringForbid::denies : cedar::ErringForbid::skipped; }

// --- formatting
// -------------------------------------------------------------------------------------------------------

bool is_schema(const fs::path& file) {
  const std::string name = file.filename().string();
  return name.ends_with(".cedarschema") || name.ends_with(".cedarschema.json");
}

/// Whether a JSON text is a schema whatever its file is called: an object of namespaces.
bool holds_schema(const std::string& text) {
  const auto json = parse_json(text, {.bytes_max = file_max, .depth_max = 256});
  return json && json->is_object() && !json->empty() && std::all_of(json->begin(), json->end(), [](const Json& space) {
           return space.is_object() && space.contains("entityTypes");
         });
}

Result<std::string> formatted(const fs::path& file, const std::string& text, std::size_t width) {
  auto result =
      is_schema(file) ? cedar::format_schema(text, {.width = width}) : cedar::format_policies(text, {.width = width});
  if (!result) return bad(fmt::format("{}: {}", file.string(), result.error().message()));
  return result;
}

Result<std::string> json_of(const fs::path& file, const std::string& text) {
  if (is_schema(file)) {
    const cedar::SchemaDecl schema = CRETO_TRY(cedar::parse_schema(text).result());
    return cedar::schema_to_json(schema).dump(2) + "\n";
  }
  auto policies = CRETO_TRY(cedar::parse_policies_and_templates(text).result());
  using Ordered = nlohmann::ordered_json;
  Ordered set{
      {"staticPolicies", Ordered::object()}, {"templates", Ordered::object()}, {"templateLinks", Ordered::array()}};
  std::set<std::string> names;
  for (std::size_t i = 0; i < policies.size(); ++i) {
    const auto id = policies[i].annotations.find("id");
    const std::string name = id == policies[i].annotations.end() ? fmt::format("policy{}", i) : id->second;
    if (!names.insert(name).second) return bad(fmt::format("two policies `{}`", name));
    const Json json = CRETO_TRY(cedar::to_json(policies[i]));
    set[policies[i].is_template() ? "templates" : "staticPolicies"][name] = json;
  }
  return set.dump(2) + "\n";
}

Result<std::string> cedar_of(const fs::path& file, const std::string& text, std::size_t width) {
  if (is_schema(file) || holds_schema(text)) {
    const cedar::SchemaDecl schema = CRETO_TRY(cedar::parse_schema_json(text).result());
    const std::string printed = CRETO_TRY(cedar::schema_to_text(schema));
    return cedar::format_schema(printed, {.width = width});
  }
  cedar::PolicySetDecl set = CRETO_TRY(cedar::read_policies_json(text).result());
  if (!set.links.empty())
    return bad(
        fmt::format("{}: links of templates cannot be written as Cedar text: keep this file as JSON", file.string()));
  const bool named = text.find("\"staticPolicies\"") != std::string::npos;
  std::vector<cedar::PolicyAst> policies;
  for (auto* group : {&set.policies, &set.templates}) {
    for (auto& [id, policy] : *group) {
      if (named) policy.annotations.emplace("id", id);
      policies.push_back(std::move(policy));
    }
  }
  // As they stand in the file.
  std::sort(policies.begin(), policies.end(), [](const auto& a, const auto& b) { return a.where < b.where; });
  std::string printed;
  for (const cedar::PolicyAst& policy : policies) printed += cedar::to_text(policy);
  return cedar::format_policies(printed, {.width = width});
}

/// A table of requests: an array with at least one row.
Result<Json> read_table(const fs::path& table) {
  const std::string text = CRETO_TRY(read_text(table));
  Json rows = CRETO_TRY(parse_json(text, {.bytes_max = 64 << 20, .depth_max = 256}));
  if (!rows.is_array() || rows.empty()) return bad(fmt::format("{}: must be an array of requests", table.string()));
  return rows;
}

const std::vector<std::string_view> cedar_decisions = {"allow", "deny"};
const std::vector<std::string_view> service_decisions = {"allow", "deny", "requires_oversight", "rate_limited",
                                                         "quota_exceeded"};

/// What a row of a table may say. A mistyped expectation must not pass for one that is met.
const std::vector<std::string> row_members = {"name",     "description", "request",       "principal", "action",
                                              "resource", "context",     "decision",      "reason",    "errors",
                                              "approved", "admitted",    "quota_exceeded"};

Result<> check_members(const Json& row) {
  for (const auto& [name, member] : row.items()) {
    if (std::find(row_members.begin(), row_members.end(), name) != row_members.end()) continue;
    const std::string hint = cedar::did_you_mean(name, row_members);
    return bad(fmt::format("{}: unknown member{}{}", name, hint.empty() ? "" : "; ", hint));
  }
  for (const char* name : {"reason", "errors", "approved"})
    if (const auto ids = row.find(name); ids != row.end() && !ids->is_array())
      return bad(fmt::format("{}: must be an array of policy ids", name));
  return {};
}

/// What a row of a table takes as given.
Result<Assumptions> assumptions_of(const Workspace& workspace, const Json& row) {
  Assumptions given;
  for (const char* member : {"approved", "admitted", "quota_exceeded"})
    if (workspace.plain_cedar && row.contains(member)) return bad(fmt::format("{}: is not for plain Cedar", member));
  if (const auto approved = row.find("approved"); approved != row.end()) {
    for (const Json& id : *approved) {
      if (!id.is_string()) return bad("approved: must be an array of policy ids");
      given.approved.push_back(id.get<std::string>());
    }
  }
  if (const auto admitted = row.find("admitted"); admitted != row.end()) {
    if (!admitted->is_number_unsigned()) return bad("admitted: must be a number that is not negative");
    given.admitted = admitted->get<std::uint64_t>();
  }
  if (const auto quota = row.find("quota_exceeded"); quota != row.end()) {
    if (!quota->is_boolean()) return bad("quota_exceeded: must be true or false");
    given.quota_exceeded = quota->get<bool>();
  }
  return given;
}

/// One request of a table. Empty where it came out as expected, else what did not.
Result<std::string> run_row(const Workspace& workspace, Decider& decider, const Json& row) {
  if (!row.is_object()) return bad("must be an object");
  CRETO_TRY(check_members(row));
  const Json& body = row.contains("request") ? row.at("request") : row;
  if (!body.is_object()) return bad("request: must be an object");
  const auto decision = row.find("decision");
  if (decision == row.end() || !decision->is_string()) return bad("decision: is missing");
  std::string wanted = decision->get<std::string>();
  if (wanted == "Allow") wanted = "allow";  // as other tools for Cedar write it
  if (wanted == "Deny") wanted = "deny";
  const auto& known = workspace.plain_cedar ? cedar_decisions : service_decisions;
  if (std::find(known.begin(), known.end(), wanted) == known.end())
    return bad(fmt::format("decision: must be one of {}", fmt::join(known, ", ")));
  const Assumptions given = CRETO_TRY(assumptions_of(workspace, row));
  const cedar::Request request = CRETO_TRY(request_of(workspace, body));
  const Decider::Answer got = CRETO_TRY(decider.answer(request, given));

  std::string wrong;
  if (to_string(got.decision) != wanted) wrong = fmt::format("expected {}, got {}", wanted, answer_text(got));
  std::set<std::string> failed;
  for (const auto& [policy, error] : got.errors) failed.insert(policy);
  for (const auto& [key, have] :
       {std::pair{"reason", &std::as_const(got.reasons)}, std::pair{"errors", &std::as_const(failed)}}) {
    const auto expected = row.find(key);
    if (expected == row.end()) continue;
    std::set<std::string> names;
    for (const Json& name : *expected) {
      if (!name.is_string()) return bad(fmt::format("{}: must be an array of policy ids", key));
      names.insert(name.get<std::string>());
    }
    if (names == *have) continue;
    wrong += fmt::format("{}expected {} [{}], got [{}]\n", wrong.empty() ? "" : "  ", key, fmt::join(names, ", "),
                         fmt::join(*have, ", "));
  }
  return wrong;
}

void add_tally(std::string& text, Json& json, const char* key, std::string_view what, const Tally& tally) {
  if (tally.passed + tally.failed == 0) return;
  text += fmt::format("  {:<26}{:>7} passed {:>6} failed\n", what, tally.passed, tally.failed);
  json[key] = Json{{"passed", tally.passed}, {"failed", tally.failed}};
}

void add_group(std::string& text, Json& json, std::string_view what, const ConformanceTally& group) {
  std::string lines;
  add_tally(lines, json, "requests", "requests", group.requests);
  add_tally(lines, json, "strict", "strict validation", group.verdicts);
  add_tally(lines, json, "permissive", "permissive validation", group.permissive);
  add_tally(lines, json, "entities", "entity validation", group.entities);
  add_tally(lines, json, "requestChecks", "request validation", group.request_checks);
  add_tally(lines, json, "schemas", "schema in both syntaxes", group.schemas);
  if (!lines.empty()) text += fmt::format("{}\n{}", what, lines);
}

}  // namespace

Result<ToolResult> validate_policies(const PolicyFiles& files, const ValidateOptions& options) {
  if (options.permissive && !files.plain_cedar)
    return bad("permissive: is for plain Cedar; the service validates strictly");
  Workspace workspace = CRETO_TRY(load_workspace(files));
  if (workspace.schema) {
    const cedar::ValidationOptions how{
        .mode = options.permissive ? cedar::ValidationMode::permissive : cedar::ValidationMode::strict,
        .level_max = options.level_max,
        .other_actions = !files.plain_cedar};
    for (const auto* group : {&workspace.templates, &workspace.policies}) {
      for (const FilePolicy& policy : *group) {
        const cedar::PolicyFindings findings = cedar::validate(*workspace.schema, policy.ast, how);
        const auto add = [&](cedar::Problem problem, bool warning) {
          if (problem.where.line == 0) problem.where = policy.ast.where;  // its JSON has no places of its own
          workspace.problems.push_back({policy.file, std::move(problem), policy.id, warning});
        };
        for (const auto& error : findings.errors) add(error, false);
        for (const auto& warning : findings.warnings) add(warning, true);
      }
    }
  }
  std::vector<PolicyView> views;
  for (const FilePolicy& policy : workspace.policies) {
    views.push_back({policy.id, policy.ast});
    const auto sound = files.plain_cedar ? check_annotations(policy.ast, policy.text) : Result<>();
    if (sound) continue;
    const std::string what = cedar::problem_of(sound.error()).what;
    workspace.problems.push_back({policy.file, {policy.ast.where, what}, policy.id, true});
  }
  for (const Unreachable& one : unreachable_oversight(views, {}, true)) {
    const auto policy = std::find_if(workspace.policies.begin(), workspace.policies.end(),
                                     [&](const FilePolicy& known) { return known.id == one.oversight; });
    workspace.problems.push_back({policy->file, {policy->ast.where, one.to_string()}, one.oversight, true});
  }
  return report(workspace);
}

Result<PolicyTexts> read_policy_texts(const PolicyFiles& files) {
  const Workspace workspace = CRETO_TRY(load_workspace(files));
  if (workspace.has_errors()) {
    std::string all;
    for (const FileProblem& problem : workspace.problems) all += (all.empty() ? "" : "\n") + problem.to_string();
    return bad(std::move(all));
  }
  PolicyTexts texts;
  for (const FilePolicy& policy : workspace.templates) texts.policies.push_back({policy.id, policy.text});
  for (const FilePolicy& policy : workspace.policies)
    texts.policies.push_back({policy.id, policy.link ? cedar::to_json(*policy.link).dump() : policy.text});
  for (const FileProblem& problem : workspace.problems) texts.warnings.push_back(problem.to_string());
  return texts;
}

Result<std::vector<std::string>> read_entity_texts(const std::string& file, std::string_view text) {
  const bool one = text.find_first_not_of(" \t\r\n") == text.find('{');
  const auto read = cedar::read_entities_json(nullptr, one ? fmt::format("[{}]", text) : std::string(text),
                                              {.bytes_max = file_max, .depth_max = 256});
  std::string problems;
  for (cedar::Problem problem : read.problems) {
    if (one && problem.where.line == 1) --problem.where.column;
    problems += (problems.empty() ? "" : "\n") + FileProblem{file, problem}.to_string();
  }
  if (!problems.empty()) return bad(std::move(problems));
  std::vector<std::string> texts;
  for (const Entity& entity : read.value) texts.push_back(entity_to_json(entity).dump());
  return texts;
}

Result<ToolResult> format_policy_files(const std::vector<fs::path>& paths, const FormatFilesOptions& options) {
  std::vector<fs::path> files;
  for (const fs::path& path : paths) {
    const auto below = CRETO_TRY(files_below(path));
    for (const fs::path& file : below) {
      const bool known = options.to_cedar ? file.extension() == ".json"
                                          : file.extension() == ".cedar" || file.extension() == ".cedarschema";
      if (known) files.push_back(file);
      if (!known && file == path) return bad(fmt::format("{}: its name does not say what it is", file.string()));
    }
  }
  const bool one = !options.write && !options.check;
  if (one && files.size() != 1)
    return bad(fmt::format("{} files: rewrite them in place, check them, or name one", files.size()));

  ToolResult result;
  Json changed = Json::array();
  for (const fs::path& file : files) {
    const std::string text = CRETO_TRY(read_text(file));
    if (options.to_json || options.to_cedar) {
      result.text = CRETO_TRY(options.to_json ? json_of(file, text) : cedar_of(file, text, options.width));
      return result;
    }
    const std::string laid_out = CRETO_TRY(formatted(file, text, options.width));
    if (one) {
      result.text = laid_out;
      return result;
    }
    if (laid_out == text) continue;
    changed.push_back(file.string());
    result.text += file.string() + "\n";
    if (options.check) {
      result.exit_code = exit_wrong;
    } else {
      CRETO_TRY(io::write_durably(io::real_files(), file, as_bytes(laid_out), 0644));
    }
  }
  result.json = Json{{"changed", std::move(changed)}}.dump(2);
  return result;
}

Result<ToolResult> check_policies(const PolicyFiles& files, const PolicyQuestion& question) {
  const Workspace workspace = CRETO_TRY(load_workspace(files));
  if (workspace.has_errors()) return report(workspace);
  const cedar::Request request = CRETO_TRY(request_of(workspace, question));
  Decider decider(workspace);
  const Decider::Answer answer = CRETO_TRY(decider.answer(request));
  return ToolResult{answer_text(answer), answer_json(answer).dump(2), allowed(answer.decision) ? 0 : exit_denied};
}

Result<ToolResult> explain_policies(const PolicyFiles& files, const PolicyQuestion& question) {
  const Workspace workspace = CRETO_TRY(load_workspace(files));
  if (workspace.has_errors()) return report(workspace);
  const cedar::Request request = CRETO_TRY(request_of(workspace, question));
  Decider decider(workspace);
  const Decider::Answer answer = CRETO_TRY(decider.answer(request));
  std::string text = answer_text(answer);
  Json json = answer_json(answer);
  json["policies"] = Json::array();
  for (const FilePolicy& policy : workspace.policies) {
    const auto why = cedar::explain(policy.ast, request, decider.entities());
    text += explanation_text(policy, why);
    json["policies"].push_back(explanation_json(policy, why));
  }
  if (decider.entities().trouble()) return *decider.entities().trouble();
  return ToolResult{std::move(text), json.dump(2), 0};
}

Result<ToolResult> decide_partially(const PolicyFiles& files, const PartialQuestion& question) {
  using Form = PartialQuestion::Form;
  if ((question.form == Form::sql) == question.columns.empty())
    return bad("columns: the file is for SQL, which cannot be without it");
  const Workspace workspace = CRETO_TRY(load_workspace(files));
  if (workspace.has_errors()) return report(workspace);
  cedar::PartialRequest request = CRETO_TRY(request_of(workspace, question));
  const cedar::PolicySet policies = policies_of(workspace);
  cedar::EntityTable entities(workspace.entities);
  const auto evaluation = CRETO_TRY(cedar::evaluate_partially(policies, std::move(request), entities));
  const cedar::ErringForbid forbid = erring(!files.plain_cedar);
  if (question.form == Form::sql) {
    const cedar::SqlMapping mapping = CRETO_TRY(mapping_of(workspace, question.columns));
    const auto dialect = question.sqlite ? cedar::SqlDialect::sqlite : cedar::SqlDialect::postgres;
    const auto filter = CRETO_TRY(cedar::to_sql(evaluation, mapping, entities, {.dialect = dialect, .erring = forbid}));
    return filter_result(filter);
  }
  const cedar::PartialDecision decision = evaluation.decision(forbid);
  const Json json = CRETO_TRY(partial_json(evaluation, decision));
  ToolResult result{partial_text(evaluation, decision), json.dump(2), 0};
  if (question.form == Form::json) result.text = result.json + "\n";
  return result;
}

Result<ToolResult> list_resources(const PolicyFiles& files, const ResourceQuestion& question) {
  const Workspace workspace = CRETO_TRY(load_workspace(files));
  if (workspace.has_errors()) return report(workspace);
  PartialQuestion partial;
  partial.principal = question.principal;
  partial.action = question.action;
  partial.resource_type = question.resource_type;
  partial.context = question.context;
  if (partial.principal.empty() || partial.action.empty()) return bad("principal and action: must be known");
  cedar::PartialRequest request = CRETO_TRY(request_of(workspace, partial));
  if (request.resource.type.empty()) return bad("resource type: is required");
  std::vector<EntityUid> candidates;
  for (const Entity& entity : workspace.entities) {
    if (entity.uid.type == request.resource.type) candidates.push_back(entity.uid);
  }
  std::sort(candidates.begin(), candidates.end());
  candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
  const cedar::PolicySet policies = policies_of(workspace);
  cedar::EntityTable entities(workspace.entities);
  const auto evaluation = CRETO_TRY(cedar::evaluate_partially(policies, std::move(request), entities));
  const auto allowed = CRETO_TRY(cedar::query_resources(evaluation, erring(!files.plain_cedar), candidates, entities));
  ToolResult result;
  Json json = Json::array();
  for (const EntityUid& uid : allowed) {
    result.text += uid.to_string() + "\n";
    json.push_back(Json{{"type", uid.type}, {"id", uid.id}});
  }
  result.json = Json{{"resources", std::move(json)}, {"asked", candidates.size()}}.dump(2);
  return result;
}

Result<ToolResult> bench_policies(const PolicyFiles& files, const fs::path& table, std::size_t decisions) {
  if (files.plain_cedar) return bad("the service's decisions are timed, not plain Cedar's");
  if (decisions < 100 || decisions > 100'000'000) return bad("decisions: must be 100 to 100000000");
  const Workspace workspace = CRETO_TRY(load_workspace(files));
  if (workspace.has_errors()) return report(workspace);
  const Json rows = CRETO_TRY(read_table(table));
  std::vector<cedar::Request> requests;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const bool object = rows[i].is_object();
    const Json& body = object && rows[i].contains("request") ? rows[i].at("request") : rows[i];
    if (!object || !body.is_object()) return bad(fmt::format("request {}: must be an object", i + 1));
    auto request = request_of(workspace, body);
    if (!request) return bad(fmt::format("request {}: {}", i + 1, request.error().message()));
    requests.push_back(*std::move(request));
  }
  ServiceBench bench(workspace.loaded, workspace.entities);
  const Clock& clock = system_clock();
  const auto timed = [&](std::size_t times, auto&& work) {
    std::vector<std::int64_t> took;
    took.reserve(times);
    for (std::size_t i = 0; i < times; ++i) {
      const Monotonic begin = clock.monotonic();
      work(i);
      took.push_back((clock.monotonic() - begin).count());
    }
    std::sort(took.begin(), took.end());
    return took;
  };
  std::mt19937_64 random(1);  // tidy(random-engine): the same order each time
  std::vector<std::size_t> order(std::min(decisions, std::size_t{1} << 20));
  for (std::size_t& one : order) one = random() % requests.size();
  std::size_t allows = 0;
  const auto decide = [&](std::size_t i) {
    allows += allowed(bench.decide_alone(requests[order[i % order.size()]]).decision) ? 1 : 0;
  };
  for (std::size_t i = 0; i < std::min<std::size_t>(decisions, 10'000); ++i) decide(i);
  allows = 0;
  const std::vector<std::int64_t> empty = timed(std::min<std::size_t>(decisions, 100'000), [](std::size_t) {});
  const std::int64_t timer = empty[empty.size() / 2];
  const std::vector<std::int64_t> took = timed(decisions, decide);

  ToolResult result;
  result.text =
      fmt::format("{} decisions of {} by {}: {} allowed\n", decisions, count(requests.size(), "request", "requests"),
                  count(workspace.policies.size(), "policy", "policies"), allows);
  Json json{{"decisions", decisions},
            {"requests", requests.size()},
            {"policies", workspace.policies.size()},
            {"allowed", allows},
            {"timer_ns", timer}};
  const std::pair<const char*, double> points[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}};
  for (const auto& [name, share] : points) {
    const auto at = static_cast<std::size_t>(share * static_cast<double>(took.size()));
    const std::int64_t ns = std::max<std::int64_t>(0, took[std::min(at, took.size() - 1)] - timer);
    result.text += fmt::format("{:>6} {:>9} ns\n", name, ns);
    json[std::string(name) + "_ns"] = ns;
  }
  json["max_ns"] = std::max<std::int64_t>(0, took.back() - timer);
  result.text += fmt::format("   max {:>9} ns\n{} ns for reading the clock are taken off each\n",
                             json["max_ns"].get<std::int64_t>(), timer);
  result.json = json.dump(2);
  return result;
}

Result<ToolResult> test_policies(const PolicyFiles& files, const fs::path& table) {
  const Workspace workspace = CRETO_TRY(load_workspace(files));
  if (workspace.has_errors()) return report(workspace);
  const Json rows = CRETO_TRY(read_table(table));
  Decider decider(workspace);
  ToolResult result;
  Json failures = Json::array();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::string number = fmt::format("request {}", i + 1);
    const bool named = rows[i].is_object() && rows[i].contains("name") && rows[i].at("name").is_string();
    const std::string name = named ? fmt::format("{} ({})", number, rows[i].at("name").get<std::string>()) : number;
    const auto wrong = run_row(workspace, decider, rows[i]);
    const std::string why = wrong ? *wrong : wrong.error().message() + "\n";
    if (why.empty()) continue;
    result.text += fmt::format("{}: {}", name, why);
    failures.push_back(Json{{"request", i + 1}, {"why", why}});
  }
  const std::size_t failed = failures.size();
  result.text += fmt::format("{} passed, {} failed\n", rows.size() - failed, failed);
  result.json = Json{{"passed", rows.size() - failed}, {"failed", failed}, {"failures", std::move(failures)}}.dump(2);
  if (failed > 0) result.exit_code = exit_wrong;
  return result;
}

Result<ToolResult> run_conformance(const fs::path& root, const fs::path& extra, bool workloads) {
  const auto verdicts = extra.empty() ? std::optional<fs::path>() : extra;
  const ConformanceReport report = CRETO_TRY(workloads ? run_workloads(root) : run_corpus(root, verdicts));
  ToolResult result;
  Json json{{"own", Json::object()}, {"trivial", Json::object()}, {"failures", report.failures}};
  for (const std::string& failure : report.failures) result.text += failure + "\n";
  add_group(result.text, json["own"], workloads ? "workloads" : "tests with a policy of their own", report.own);
  add_group(result.text, json["trivial"], "tests with the trivial policy", report.trivial);
  result.text += report.all_passed() ? "all passed\n" : "some failed\n";
  result.json = json.dump(2);
  if (!report.all_passed()) result.exit_code = exit_wrong;
  return result;
}

}  // namespace creto::authz
