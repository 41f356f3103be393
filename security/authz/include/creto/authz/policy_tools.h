#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/authz/authz.h"
#include "creto/common/result.h"

/// Work on Cedar policies, schemas and entities as files, without a server: what `creto authz` does locally.
///
/// Each call reads its files and returns what to print. What is wrong in a file is in the result, with file, line and
/// column, and makes `exit_code` 1; an Error means that a file could not be read or the question itself is malformed.
namespace creto::authz {

/// `text` is an entity in Cedar's spelling, such as `User::"alice"`; `what` names it in the error. Errors:
/// invalid_input.
Result<EntityUid> parse_entity(std::string_view text, std::string_view what);

struct ToolResult {
  std::string text;  ///< for people
  std::string json;  ///< for programs
  int exit_code = 0;
};

/// Where the policies of one set lie.
///
/// `policies` are files (`.cedar` text, or `.json`: a policy or a policy set) and folders of such files. A policy's id
/// is its `@id`, else the name of its file, with a number behind it where the file has several. Templates decide
/// through the links of a policy set beside them.
struct PolicyFiles {
  std::vector<std::filesystem::path> policies;
  std::filesystem::path schema;    ///< `.cedarschema`, or `.json`; empty: none
  std::filesystem::path entities;  ///< a JSON array; empty: none
  /// Cedar alone, as other tools for Cedar would have it. Otherwise all is as in Creto's service: Agent, Human, Service
  /// and Org need no declaration, actions that the schema does not declare may be named and asked for, a forbid that
  /// errs denies, `@oversight`, `@rate` and their neighbours count, and `context.delegation` is added for who acts.
  bool plain_cedar = false;
  /// Every id begins with "<folder>/"; where a file's does not, that is put before it. Empty: ids are the files'.
  std::string folder{};
};

struct ValidateOptions {
  bool permissive = false;            ///< for plain Cedar: the service is strict
  std::optional<unsigned> level_max;  ///< steps from the request's entities
};
/// Parses everything there is; with a schema also validates policies and entities. What the service would refuse is an
/// error, for plain Cedar a warning; it warns of oversight that is never reached, and of templates that nothing links.
Result<ToolResult> validate_policies(const PolicyFiles& files, const ValidateOptions& options = {});

/// Each template, policy and link as text of its own, for `Authz::apply_policies`, and what to warn of: templates that
/// nothing links. Errors: invalid_input with everything wrong in the files.
struct PolicyTexts {
  std::vector<PolicyText> policies;
  std::vector<std::string> warnings;
};
Result<PolicyTexts> read_policy_texts(const PolicyFiles& files);

/// A JSON array of entities, or one entity, each then as text of its own. `file` is what messages call it. Errors:
/// invalid_input with everything wrong in it: "groups.json:3:5: error: …".
Result<std::vector<std::string>> read_entity_texts(const std::string& file, std::string_view text);

struct FormatFilesOptions {
  bool write = false;  ///< files are rewritten; else the formatted text is the result
  bool check = false;  ///< nothing is rewritten; exit_code is 1 where a file would be
  /// Policies and schemas in the JSON syntax instead. Policies and templates each stay in their order, and so do the
  /// conditions of one; annotations come by name, a policy without `@id` is called `policy3` by its place, and comments
  /// are lost.
  bool to_json = false;
  bool to_cedar = false;    ///< those in JSON as Cedar text instead, in the order of the file
  std::size_t width = 100;  ///< of a line
};
/// Files `.cedar` and `.cedarschema`, and folders of them. To convert, exactly one file.
Result<ToolResult> format_policy_files(const std::vector<std::filesystem::path>& paths,
                                       const FormatFilesOptions& options);

/// One request. Entities are written as in Cedar: `User::"alice"`.
struct PolicyQuestion {
  std::string principal, action, resource;
  std::string context = "{}";  ///< a JSON object
  /// Instead of all of these: a JSON object with `principal`, `action`, `resource` and `context`.
  std::filesystem::path file{};
};
/// The decision: exit_code 0 for Allow, 3 for any other. What the service asks besides is not known here: quotas, other
/// extensions, and how often something was done.
Result<ToolResult> check_policies(const PolicyFiles& files, const PolicyQuestion& question);
/// And why: for each policy whether it applied, else what failed first and the values it saw. `exit_code` 0 either way.
Result<ToolResult> explain_policies(const PolicyFiles& files, const PolicyQuestion& question);

/// A request of which parts are unknown: an entity that is left out, perhaps of a known type; the context, or some of
/// it.
struct PartialQuestion {
  enum class Form : std::uint8_t {
    cedar,  ///< text
    json,
    sql,  ///< the condition of a statement, true for the rows whose resource is allowed; needs `columns`
  };
  std::string principal, action, resource;    ///< as in a PolicyQuestion; empty: unknown
  std::string principal_type, resource_type;  ///< of an unknown one, such as `Photo`
  std::string context = "{}";                 ///< a JSON object: what is known of it
  std::vector<std::string> unknown;           ///< "context", or attributes such as "context.mfa"
  Form form = Form::cedar;
  std::filesystem::path columns;  ///< where the resources lie: `docs/formats.md`, "Columns"
  bool sqlite = false;            ///< SQL for SQLite, else for PostgreSQL
};
/// What is certain whatever the unknown parts are, and what is left of the other policies. With a schema, a resource's
/// type is that which the action takes where it takes one alone. `exit_code` 0 whatever the decision.
Result<ToolResult> decide_partially(const PolicyFiles& files, const PartialQuestion& question);

struct ResourceQuestion {
  std::string principal, action;
  std::string resource_type;
  std::string context = "{}";
};
/// The entities of that type, among those of the files, that the principal may act on; one a line.
Result<ToolResult> list_resources(const PolicyFiles& files, const ResourceQuestion& question);

/// Runs a table of requests: a JSON array of objects with `principal`, `action`, `resource`, `decision` ("allow",
/// "deny", "requires_oversight", "rate_limited", "quota_exceeded") and optionally `name`, `context`, `reason` (ids of
/// the policies that decided), `errors` (of those that failed). The request may also stand in a member `request`, and
/// entities as `{"type", "id"}`. Not for plain Cedar, what is to be taken as given: `approved` (ids of forbids with
/// `@oversight`), `admitted` (how often the same was just admitted, for `@rate`), `quota_exceeded` (true or false).
Result<ToolResult> test_policies(const PolicyFiles& files, const std::filesystem::path& table);

/// How long a decision takes without a cache: `decisions` of them, of the requests of a table as `test_policies` reads
/// it (what they should get is not looked at), in a random order, each timed, with what reading the clock costs taken
/// off. Not for plain Cedar.
Result<ToolResult> bench_policies(const PolicyFiles& files, const std::filesystem::path& table, std::size_t decisions);

/// Cedar's conformance data: a tree in the format of its integration tests, or with `workloads` of the Cedar paper's.
/// `extra`, unless empty, holds further verdicts for the former.
Result<ToolResult> run_conformance(const std::filesystem::path& root, const std::filesystem::path& extra,
                                   bool workloads);

}  // namespace creto::authz
