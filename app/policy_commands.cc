#include "policy_commands.h"

#include <memory>

#include "creto/authz/policy_tools.h"

namespace creto::app {
namespace {

/// What the user gave; lives as long as the commands that refer to it.
struct Given {
  authz::PolicyFiles files;
  authz::ValidateOptions validate;
  authz::FormatFilesOptions format;
  authz::PolicyQuestion question;
  std::vector<std::filesystem::path> paths;
  std::filesystem::path table, root, extra;
  bool workloads = false;
};

Result<Output> output(Result<authz::ToolResult> result) {
  const authz::ToolResult done = CRETO_TRY(std::move(result));
  return Output{done.text, done.json, done.exit_code};
}

void add_files(CLI::App* sub, Given& given, bool entities) {
  sub->add_option("--policies", given.files.policies, "files .cedar and .json, or folders of them")->required();
  sub->add_option("--schema", given.files.schema, ".cedarschema, or .json");
  if (entities) sub->add_option("--entities", given.files.entities, "a JSON array of entities");
}

void add_question(CLI::App* sub, Given& given) {
  add_files(sub, given, true);
  sub->add_option("--principal", given.question.principal, "such as 'User::\"alice\"'")->required();
  sub->add_option("--action", given.question.action, "such as 'Action::\"view\"'")->required();
  sub->add_option("--resource", given.question.resource, "such as 'Photo::\"vacation.jpg\"'")->required();
  sub->add_option("--context", given.question.context, "a JSON object")->capture_default_str();
}

}  // namespace

void add_policy_commands(const MakeCommand& command) {
  const auto given = std::make_shared<Given>();

  CLI::App* validate = command("authz validate", "check policies, and entities, against a schema",
                               [given] { return output(authz::validate_policies(given->files, given->validate)); });
  add_files(validate, *given, true);
  validate->add_flag("--permissive", given->validate.permissive, "let different types be compared");
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

  CLI::App* test = command("authz test", "run a table of requests with the decisions they should get",
                           [given] { return output(authz::test_policies(given->files, given->table)); });
  add_files(test, *given, true);
  test->add_option("TABLE", given->table, "a JSON array of requests with their `decision`")->required();

  CLI::App* conformance = command("authz conformance", "run Cedar's conformance data against this engine", [given] {
    return output(authz::run_conformance(given->root, given->extra, given->workloads));
  });
  conformance->add_option("DIR", given->root, "a tree in the format of Cedar's integration tests")->required();
  conformance->add_option("--extra", given->extra, "a tree with further verdicts for the same tests");
  conformance->add_flag("--oopsla", given->workloads, "DIR holds the workloads of the Cedar paper instead");
}

}  // namespace creto::app
