#include "tools/conformance.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "cedar/conform.h"
#include "cedar/parser.h"
#include "cedar/policy_json.h"
#include "cedar/validate.h"
#include "cedar/workbench.h"
#include "creto/io/files.h"
#include "tools/policy_files.h"

namespace creto::authz {
namespace {

using namespace cedar;  // NOLINT: this file speaks of nothing else

namespace fs = std::filesystem;

constexpr std::size_t file_max = 64 << 20;
constexpr std::size_t failures_max = 100;

Error bad(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

Result<Json> read_json(const fs::path& path) {
  const std::string text = CRETO_TRY(read_text(path));
  auto json = parse_json(text, {.bytes_max = file_max, .depth_max = 1'000});
  if (!json) return bad(fmt::format("{}: {}", path.string(), json.error().message()));
  return json;
}

Result<EntityUid> uid_of(const Json& json) {
  const Json& body = json.is_object() && json.contains("__entity") ? json.at("__entity") : json;
  if (!body.is_object() || !body.contains("type") || !body.contains("id")) return bad("a request names no entity");
  return EntityUid{body.at("type").get<std::string>(), body.at("id").get<std::string>()};
}

std::set<std::string> names(const Json& array) {
  std::set<std::string> all;
  for (const Json& name : array) all.insert(name.get<std::string>());
  return all;
}

/// `as_json`: in the JSON syntax, where a policy's id is its member's name.
Result<PolicySet> policies_of(const fs::path& path, bool as_json = false) {
  const std::string text = CRETO_TRY(read_text(path));
  if (as_json) {
    const PolicySetDecl set = CRETO_TRY(parse_policies_json(text));
    const auto linked = CRETO_TRY(set.linked());
    std::vector<std::shared_ptr<const PlannedPolicy>> policies;
    for (const auto& [id, ast] : linked) policies.push_back(std::make_shared<PlannedPolicy>(id, ast));
    return PolicySet(std::move(policies));
  }
  auto parsed = CRETO_TRY(parse_policies(text));
  std::vector<std::shared_ptr<const PlannedPolicy>> policies;
  for (PolicyAst& ast : parsed) {
    policies.push_back(std::make_shared<PlannedPolicy>(fmt::format("policy{}", policies.size()), std::move(ast)));
  }
  return PolicySet(std::move(policies));
}

bool is_trivial(std::string text) {
  std::erase_if(text, [](char c) { return c == ' ' || c == '\n'; });
  return text == "permit(principal,action,resource)when{true};";
}

Result<Schema> schema_of(const Parsed<SchemaDecl>& read) { return Schema::resolve(read).result(); }

Result<Request> request_of(const Schema& schema, const Json& json) {
  Request request{{}, {}, {}, Value::record({})};
  request.principal = CRETO_TRY(uid_of(json.at("principal")));
  request.action = CRETO_TRY(uid_of(json.at("action")));
  request.resource = CRETO_TRY(uid_of(json.at("resource")));
  Attributes context = CRETO_TRY(context_from_json(schema, request.action, json.at("context")));
  request.context = Value::record(std::move(context));
  return request;
}

/// One run over a tree.
class Runner {
 public:
  explicit Runner(fs::path root) : root_(std::move(root)) {}

  ConformanceReport report;

  /// Of a test: the policies, the schema, the entities, the requests, each only where those before could be read.
  Result<> test(const fs::path& file, const std::optional<fs::path>& extra) {
    const Json test = CRETO_TRY(read_json(file));
    const auto path = [&](const char* key) { return root_ / test.at(key).get<std::string>(); };
    const std::string policy_text = CRETO_TRY(read_text(path("policies")));
    ConformanceTally& tally = is_trivial(policy_text) ? report.trivial : report.own;
    where_ = file.string();

    auto policies = policies_of(path("policies"), test.value("policyFormat", "cedar") == "json");
    if (!policies) return fail(tally.requests, policies.error(), test.at("requests").size());
    const std::string schema_text = CRETO_TRY(read_text(path("schema")));
    const bool json_schema = test.value("schemaFormat", "cedar") == "json";
    const auto schema = schema_of(json_schema ? parse_schema_json(schema_text) : parse_schema(schema_text));
    if (!schema) return fail(tally.requests, schema.error(), test.at("requests").size());

    const std::string name = file.stem().string();
    const bool strict = validates(*policies, *schema, ValidationMode::strict);
    expect(tally.verdicts, strict == test.at("shouldValidate").get<bool>(), "the strict verdict");
    if (extra) CRETO_TRY(compare(*extra, name, *policies, *schema, tally));

    const Json entities_json = CRETO_TRY(read_json(path("entities")));
    auto entities = entities_from_json(*schema, entities_json);
    expect(tally.entities, entities.has_value(), entities ? "" : entities.error().message());
    if (!entities) return fail(tally.requests, entities.error(), test.at("requests").size());
    Workbench bench(*std::move(policies), *std::move(entities));
    for (const Json& request : test.at("requests")) {
      const auto ran = this->request(bench, *schema, request, tally);
      if (!ran) CRETO_TRY(fail(tally.requests, ran.error(), 1));
    }
    return {};
  }

  /// A file that is no test.
  void malformed(const fs::path& file, std::string_view what) {
    where_ = file.string();
    expect(report.own.requests, false, what);
  }

  Result<> workload(Workload workload) {
    where_ = workload.name;
    expect(report.own.verdicts, validates(workload.policies, workload.schema, ValidationMode::strict),
           "the strict verdict");
    Workbench bench(std::move(workload.policies), std::move(workload.entities));
    for (std::size_t i = 0; i < workload.requests.size(); ++i) {
      const bool allows = evaluate(bench, workload.requests[i], report.own).allows();
      const bool same = i < workload.decisions.size() && allows == (workload.decisions[i] == '1');
      expect(report.own.requests, same, fmt::format("request {}", i));
    }
    return {};
  }

 private:
  void expect(Tally& tally, bool good, std::string_view what) {
    tally.count(good);
    if (!good && report.failures.size() < failures_max) {
      report.failures.push_back(fmt::format("{}: {}", where_, what));
    }
  }
  Result<> fail(Tally& tally, const Error& error, std::size_t times) {
    for (std::size_t i = 0; i < times; ++i) expect(tally, false, error.message());
    return {};
  }

  static bool validates(const PolicySet& policies, const Schema& schema, ValidationMode mode) {
    return std::all_of(policies.policies().begin(), policies.policies().end(),
                       [&](const auto& policy) { return validate(schema, policy->ast, {.mode = mode}).passed(); });
  }

  /// The engine's answer, which must be the interpreter's.
  const Evaluation& evaluate(Workbench& bench, const Request& request, ConformanceTally& tally) {
    const Evaluation& got = bench.evaluate(request);
    const Evaluation reference = bench.interpret(request);
    const auto said = [](const Evaluation& evaluation) {
      std::set<std::string> all;
      for (const PlannedPolicy* policy : evaluation.permits) all.insert(policy->id);
      for (const PlannedPolicy* policy : evaluation.forbids) all.insert(policy->id);
      for (const auto& [policy, error] : evaluation.errors) all.insert(policy->id + ": " + error.message());
      return all;
    };
    const bool same = bench.entities().trouble() ? !bench.decided() : bench.decided() && said(got) == said(reference);
    expect(tally.engine, same, "engine and interpreter disagree");
    return got;
  }

  Result<> request(Workbench& bench, const Schema& schema, const Json& json, ConformanceTally& tally) {
    const Request request = CRETO_TRY(request_of(schema, json));
    if (json.value("validateRequest", true)) {
      const auto checked = check_request(schema, request);
      expect(tally.request_checks, checked.has_value(), checked ? "" : checked.error().message());
    }
    const Evaluation& got = evaluate(bench, request, tally);
    std::set<std::string> reasons;
    std::set<std::string> errors;
    for (const PlannedPolicy* policy : got.reasons()) reasons.insert(policy->id);
    for (const auto& [policy, error] : got.errors) errors.insert(policy->id);
    const bool same = got.allows() == (json.at("decision") == "allow") && reasons == names(json.at("reason")) &&
                      errors == names(json.at("errors"));
    expect(tally.requests, same,
           fmt::format("{}: {}, {} reasons, {} errors", json.value("description", "a request"),
                       got.allows() ? "allow" : "deny", reasons.size(), errors.size()));
    return {};
  }

  /// With the verdicts and the JSON schema that another implementation gave.
  Result<> compare(const fs::path& extra, const std::string& name, const PolicySet& policies, const Schema& schema,
                   ConformanceTally& tally) {
    const fs::path verdicts = extra / "validation" / (name + ".validation.json");
    const bool has_verdicts = CRETO_TRY(io::real_files().exists(verdicts));
    if (has_verdicts) {
      const Json json = CRETO_TRY(read_json(verdicts));
      const bool permissive = json.at("policyValidation").at("permissive").get<bool>();
      expect(tally.permissive, validates(policies, schema, ValidationMode::permissive) == permissive,
             "the permissive verdict");
    }
    const fs::path json_schema = extra / "json-schemas" / (name + ".cedarschema.json");
    const bool has_schema = CRETO_TRY(io::real_files().exists(json_schema));
    if (has_schema) {
      const std::string text = CRETO_TRY(read_text(json_schema));
      const auto other = schema_of(parse_schema_json(text));
      expect(tally.schemas, other && *other == schema, other ? "the two schemas differ" : other.error().message());
    }
    return {};
  }

  const fs::path root_;
  std::string where_;
};

Result<Workload> read_workload(const fs::path& root, const std::string& stem) {
  const std::string app = stem.substr(0, stem.find('-'));
  PolicySet policies = CRETO_TRY(policies_of(root / (app + ".cedar")));
  const std::string schema_text = CRETO_TRY(read_text(root / (app + ".cedarschema.json")));
  Schema schema = CRETO_TRY(schema_of(parse_schema_json(schema_text)));
  std::string decisions = CRETO_TRY(read_text(root / "data" / (stem + ".decisions")));
  const Json entities_json = CRETO_TRY(read_json(root / "data" / (stem + ".entities.json")));
  const Json requests_json = CRETO_TRY(read_json(root / "data" / (stem + ".requests.json")));
  auto entities = CRETO_TRY(entities_from_json(schema, entities_json));
  std::vector<Request> requests;
  for (const Json& json : requests_json) {
    Request request = CRETO_TRY(request_of(schema, json));
    requests.push_back(std::move(request));
  }
  return Workload{
      stem, std::move(policies), std::move(schema), std::move(entities), std::move(requests), std::move(decisions)};
}

Error no_tests(const fs::path& root) {
  return Error(Product::platform, ErrorKind::not_found, fmt::format("no conformance tests in {}", root.string()));
}

}  // namespace

Result<ConformanceReport> run_corpus(const fs::path& root, const std::optional<fs::path>& extra) {
  Runner runner(root);
  std::size_t tests = 0;
  for (const char* folder : {"tests", "corpus-tests"}) {
    const bool there = CRETO_TRY(io::real_files().exists(root / folder));
    if (!there) continue;
    const auto files = CRETO_TRY(files_below(root / folder));
    for (const fs::path& file : files) {
      const std::string name = file.filename().string();
      if (!name.ends_with(".json") || name.ends_with(".entities.json")) continue;
      ++tests;
      try {
        const auto ran = runner.test(file, extra);
        if (!ran) runner.malformed(file, ran.error().message());
      } catch (const Json::exception& wrong) {
        runner.malformed(file, wrong.what());
      }
    }
  }
  if (tests == 0) return no_tests(root);
  return std::move(runner.report);
}

Result<std::vector<Workload>> read_workloads(const fs::path& root) {
  const auto files = CRETO_TRY(files_below(root / "data"));
  std::vector<Workload> workloads;
  for (const fs::path& file : files) {
    if (file.extension() != ".decisions") continue;
    const std::string stem = file.stem().string();
    try {
      Workload workload = CRETO_TRY(read_workload(root, stem));
      workloads.push_back(std::move(workload));
    } catch (const Json::exception& wrong) {
      return bad(fmt::format("{}: {}", file.string(), wrong.what()));
    }
  }
  if (workloads.empty()) return no_tests(root);
  return workloads;
}

Result<ConformanceReport> run_workloads(const fs::path& root) {
  auto workloads = CRETO_TRY(read_workloads(root));
  Runner runner(root);
  for (Workload& workload : workloads) CRETO_TRY(runner.workload(std::move(workload)));
  return std::move(runner.report);
}

}  // namespace creto::authz
