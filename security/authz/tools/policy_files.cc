#include "tools/policy_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cedar/conform.h"
#include "cedar/format.h"
#include "cedar/lexer.h"
#include "cedar/parser.h"
#include "creto/io/files.h"

namespace creto::authz {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t file_max = 64 << 20;

class Loader {
 public:
  explicit Loader(const PolicyFiles& files) : prefix_(files.folder.empty() ? "" : files.folder + "/") {
    workspace.plain_cedar = files.plain_cedar;
  }

  Workspace workspace;

  Result<> policies(const PolicyFiles& files) {
    for (const fs::path& path : files.policies) {
      const auto below = CRETO_TRY(files_below(path));
      for (const fs::path& file : below) {
        const bool other = file == files.schema || file == files.entities;
        const std::string name = file.filename().string();
        const bool json = name.ends_with(".json") && !name.ends_with(".cedarschema.json");
        if (other || (!json && !name.ends_with(".cedar"))) {
          if (file == path) return unknown_kind(file);
          continue;
        }
        const std::string text = CRETO_TRY(read_text(file));
        if (json) {
          from_json(file, text);
        } else {
          from_text(file, text);
        }
      }
    }
    link_all();
    if (!workspace.plain_cedar) load_all();
    return {};
  }

  Result<> schema(const fs::path& path) {
    const std::string text = CRETO_TRY(read_text(path));
    auto read = parse_schema_file(path, text);
    if (!workspace.plain_cedar) {
      auto loaded = load_schema({.text = text, .updated_at = {}, .updated_by = {}}, std::move(read));
      for (const auto& problem : loaded.problems) report(path, problem);
      if (!loaded.ok()) return {};
      workspace.service_schema = std::move(loaded.value);
      workspace.schema = workspace.service_schema->schema;
      return {};
    }
    auto resolved = cedar::Schema::resolve(read);
    for (const auto& problem : resolved.problems) report(path, problem);
    if (resolved.ok()) workspace.schema = std::move(resolved.value);
    return {};
  }

  Result<> entities(const fs::path& path) {
    const std::string text = CRETO_TRY(read_text(path));
    std::function<bool(const EntityUid&)> declared;
    if (workspace.service_schema)
      declared = [this](const EntityUid& uid) { return workspace.service_schema->speaks_of(uid); };
    auto entities = cedar::read_entities_json(workspace.schema ? &*workspace.schema : nullptr, text,
                                              {.bytes_max = file_max, .depth_max = 256}, declared);
    for (const auto& problem : entities.problems) report(path, problem);
    workspace.entities = std::move(entities.value);
    return {};
  }

 private:
  static Error unknown_kind(const fs::path& file) {
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("{}: policies are `.cedar` or `.json` files", file.string()));
  }

  void report(const fs::path& file, const cedar::Problem& problem, const std::string& policy = {}) {
    workspace.problems.push_back({file.string(), problem, policy});
  }

  static std::string id_of(const cedar::PolicyAst& policy, const std::string& otherwise) {
    const auto given = policy.annotations.find("id");
    return given == policy.annotations.end() || given->second.empty() ? otherwise : given->second;
  }

  /// As it is called in the folder.
  std::string placed(std::string id) const { return id.starts_with(prefix_) ? id : prefix_ + id; }

  void add(const fs::path& file, std::string id, cedar::PolicyAst ast, std::string text = {},
           std::optional<cedar::TemplateLink> link = {}) {
    if (text.empty()) text = cedar::to_text(ast);
    id = placed(std::move(id));
    const auto [first, fresh] = ids_.emplace(id, file.string());
    if (!fresh) {
      report(file, {ast.where, fmt::format("there is another policy `{}`, in {}", id, first->second)}, id);
      return;
    }
    auto& group = ast.is_template() ? workspace.templates : workspace.policies;
    group.push_back({std::move(id), file.string(), std::move(ast), std::move(text), std::move(link)});
  }

  /// The text of each policy: what ends with its semicolon.
  static std::vector<std::string> pieces_of(std::string_view text) {
    std::vector<std::string> pieces;
    const auto lexed = cedar::lex(text);
    if (!lexed) return pieces;
    std::size_t begin = 0;
    for (const cedar::Token& token : lexed->tokens) {
      if (token.kind != cedar::TokenKind::symbol || token.text != ";") continue;
      const auto end = static_cast<std::size_t>(token.text.data() + 1 - text.data());
      const auto first = text.find_first_not_of(" \t\r\n", begin);
      pieces.push_back(std::string(text.substr(first, end - first)) + "\n");
      begin = end;
    }
    return pieces;
  }

  void from_text(const fs::path& file, const std::string& text) {
    auto parsed = cedar::parse_policies_and_templates(text, {.bytes_max = file_max, .policies_max = 1'000'000});
    for (const auto& problem : parsed.problems) report(file, problem);
    const std::string stem = file.stem().string();
    const std::size_t count = parsed.value.size();
    const auto pieces = pieces_of(text);
    for (std::size_t i = 0; i < count; ++i) {
      std::string id = id_of(parsed.value[i], count == 1 ? stem : fmt::format("{}.{}", stem, i + 1));
      // With problems in the file the two need not go together, and the set is not used.
      add(file, std::move(id), std::move(parsed.value[i]), pieces.size() == count ? pieces[i] : std::string());
    }
  }

  void from_json(const fs::path& file, const std::string& text) {
    auto set = cedar::read_policies_json(text, {.bytes_max = file_max, .policies_max = 1'000'000});
    for (const auto& problem : set.problems) report(file, problem);
    // The one policy of a file that is no set has no id of its own.
    const bool alone = set.value.policies.size() + set.value.templates.size() == 1 &&
                       text.find("\"staticPolicies\"") == std::string::npos;
    for (auto* group : {&set.value.policies, &set.value.templates}) {
      for (auto& [id, ast] : *group) {
        std::string name = alone ? id_of(ast, file.stem().string()) : id;
        add(file, std::move(name), std::move(ast));
      }
    }
    for (auto& link : set.value.links) links_.emplace_back(file, std::move(link));
  }

  void link_all() {
    std::set<std::string> linked;
    for (auto& [file, link] : links_) {
      link.id = placed(std::move(link.id));
      link.template_id = placed(std::move(link.template_id));
      linked.insert(link.template_id);
      const auto from =
          std::find_if(workspace.templates.begin(), workspace.templates.end(),
                       [&link = link](const FilePolicy& policy) { return policy.id == link.template_id; });
      if (from == workspace.templates.end()) {
        report(file, {{0, 0}, fmt::format("there is no template `{}`", link.template_id)}, link.id);
        continue;
      }
      auto policy = cedar::link(from->ast, link.values);
      if (policy) {
        policy->annotations.erase("id");  // the template's own
        add(file, link.id, *std::move(policy), {}, link);
      } else {
        report(file, cedar::problem_of(policy.error()), link.id);
      }
    }
    if (workspace.plain_cedar) return;
    for (const FilePolicy& policy : workspace.templates) {
      if (linked.contains(policy.id)) continue;
      const std::string what = "no link makes a policy of this template, so it decides nothing";
      workspace.problems.push_back({policy.file, {policy.ast.where, what}, policy.id, true});
    }
  }

  /// What the service would refuse is an error. Of files with problems nothing is loaded: these would be told again.
  void load_all() {
    const auto memory = std::make_shared<RateMemory>(std::int64_t{0});
    std::set<std::string> wrong;
    for (const FileProblem& problem : workspace.problems)
      if (!problem.warning) wrong.insert(problem.file);
    for (const FilePolicy& policy : workspace.templates) {
      if (wrong.contains(policy.file)) continue;
      const auto loaded = load_any_policy(
          Policy{.id = policy.id, .text = policy.text, .version = 0, .updated_at = {}, .updated_by = {}},
          AuthzOptions().policy_bytes_max, nullptr, memory, [](const PolicyId&) { return nullptr; });
      if (!loaded) report(policy.file, {policy.ast.where, cedar::problem_of(loaded.error()).what}, policy.id);
    }
    for (const FilePolicy& policy : workspace.policies) {
      if (wrong.contains(policy.file)) continue;
      auto loaded =
          load_policy(Policy{.id = policy.id, .text = policy.text, .version = 0, .updated_at = {}, .updated_by = {}},
                      AuthzOptions().policy_bytes_max, nullptr, memory);
      if (loaded) {
        workspace.loaded.push_back(std::make_shared<const LoadedPolicy>(*std::move(loaded)));
      } else {
        report(policy.file, {policy.ast.where, cedar::problem_of(loaded.error()).what}, policy.id);
      }
    }
  }

  const std::string prefix_;                ///< of every policy's id
  std::map<std::string, std::string> ids_;  ///< and the file of each
  std::vector<std::pair<fs::path, cedar::TemplateLink>> links_;
};

}  // namespace

std::string FileProblem::to_string() const {
  std::string text = file;
  if (problem.where.line > 0) text += fmt::format(":{}:{}", problem.where.line, problem.where.column);
  text += warning ? ": warning: " : ": error: ";
  if (!policy.empty()) text += fmt::format("policy `{}`: ", policy);
  text += problem.what;
  if (!problem.hint.empty()) text += "; " + problem.hint;
  return text;
}

bool Workspace::has_errors() const {
  return std::any_of(problems.begin(), problems.end(), [](const FileProblem& problem) { return !problem.warning; });
}

Result<Workspace> load_workspace(const PolicyFiles& files) {
  Loader loader(files);
  CRETO_TRY(loader.policies(files));
  if (!files.schema.empty()) CRETO_TRY(loader.schema(files.schema));
  if (!files.entities.empty()) {
    CRETO_TRY(loader.entities(files.entities));
  } else if (loader.workspace.service_schema) {
    loader.workspace.entities = loader.workspace.service_schema->schema.action_entities();
  }
  return std::move(loader.workspace);
}

Result<std::string> read_text(const fs::path& path) {
  const Bytes bytes = CRETO_TRY(io::real_files().read(path, file_max));
  return std::string(bytes.begin(), bytes.end());
}

Result<std::vector<fs::path>> files_below(const fs::path& path) {
  std::error_code failed;
  const auto error = [&] {
    const bool missing = failed == std::errc::no_such_file_or_directory;
    return Error(Product::platform, missing ? ErrorKind::not_found : ErrorKind::unavailable,
                 fmt::format("{}: {}", path.string(), failed.message()));
  };
  const fs::file_status status = fs::status(path, failed);
  if (failed) return error();
  if (!fs::is_directory(status)) return std::vector<fs::path>{path};
  std::vector<fs::path> files;
  fs::recursive_directory_iterator at(path, failed);
  for (const fs::recursive_directory_iterator end; !failed && at != end; at.increment(failed)) {
    if (at->is_regular_file(failed)) files.push_back(at->path());
  }
  if (failed) return error();
  std::sort(files.begin(), files.end());
  return files;
}

cedar::Parsed<cedar::SchemaDecl> parse_schema_file(const fs::path& path, std::string_view text) {
  return path.extension() == ".json" ? cedar::parse_schema_json(text) : cedar::parse_schema(text);
}

}  // namespace creto::authz
