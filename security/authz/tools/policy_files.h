#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cedar/explain.h"
#include "cedar/policy_json.h"
#include "cedar/problem.h"
#include "cedar/schema.h"
#include "creto/authz/policy_tools.h"
#include "snapshot.h"

namespace creto::authz {

/// Something wrong in one of the files.
struct FileProblem {
  std::string file;
  cedar::Problem problem;
  std::string policy = {};  ///< its id, where the problem is one policy's
  bool warning = false;

  /// "pay.cedar:3:14: error: policy `pay`: …"
  std::string to_string() const;
};

struct FilePolicy {
  std::string id;
  std::string file;
  cedar::PolicyAst ast;
  std::string text;  ///< it alone, as its file has it, with the comments before it; from JSON, as Cedar writes it
  std::optional<cedar::TemplateLink> link = {};  ///< that made it, with the ids of this workspace
};

/// Everything that `PolicyFiles` names, as far as it could be read.
struct Workspace {
  bool plain_cedar = false;
  std::vector<FilePolicy> policies;  ///< with those that links make
  std::vector<FilePolicy> templates;
  std::vector<std::shared_ptr<const LoadedPolicy>>
      loaded;  ///< `policies` as the service runs them; not for plain Cedar
  std::optional<cedar::Schema> schema;
  std::shared_ptr<const LoadedSchema> service_schema;  ///< the same as the service has it; null for plain Cedar
  std::vector<Entity> entities;
  std::vector<FileProblem> problems;

  bool has_errors() const;
};

/// Errors: a file that cannot be read, or is of no known kind; what is wrong in one is among the problems.
Result<Workspace> load_workspace(const PolicyFiles& files);

/// Errors: not_found, too_large, unavailable, with the path.
Result<std::string> read_text(const std::filesystem::path& path);
/// The files in a folder and the folders in it, sorted; a file is itself. Errors: not_found, unavailable.
Result<std::vector<std::filesystem::path>> files_below(const std::filesystem::path& path);
/// What is in the workspace and what is wrong with it; exit_code 1 where something is.
ToolResult report(const Workspace& workspace);
/// The request that is asked about, for the service with `context.delegation`; conforms to the schema where there is
/// one. Errors: invalid_input.
Result<cedar::Request> request_of(const Workspace& workspace, const PolicyQuestion& question);
/// Whether one policy applied, and why not.
std::string explanation_text(const FilePolicy& policy, const cedar::PolicyExplanation& why);
Json explanation_json(const FilePolicy& policy, const cedar::PolicyExplanation& why);

/// A schema file by its name: `.json` is the JSON syntax, all else Cedar's.
cedar::Parsed<cedar::SchemaDecl> parse_schema_file(const std::filesystem::path& path, std::string_view text);

}  // namespace creto::authz
