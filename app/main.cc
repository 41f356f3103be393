#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "billing_commands.h"
#include "cli/call.h"
#include "cli/completion.h"
#include "cli/verbs.h"
#include "cli/yaml.h"
#include "commands.h"
#include "creto/common/bytes.h"
#include "creto/common/json.h"
#include "creto/io/http_server.h"
#include "message_commands.h"
#include "metering_commands.h"
#include "people_commands.h"
#include "policy_commands.h"
#include "usage_command.h"
#include "usage_export.h"

namespace creto::app {
namespace {

using cli::Parameter;
using cli::Verb;

/// Distinct exit codes, so that a script can tell what to do: 2 wrong arguments, 3 refused, 4 not found, 5 try again.
int exit_code_of(const Error& error) {
  switch (error.category()) {
    case ErrorCategory::authorization:
    case ErrorCategory::oversight:
    case ErrorCategory::security:
      return 3;
    case ErrorCategory::transient:
      return 5;
    case ErrorCategory::permanent:
      break;
  }
  if (error.kind() == ErrorKind::invalid_input) return 2;
  if (error.kind() == ErrorKind::not_found) return 4;
  return 1;
}

struct GlobalFlags {
  bool json = false;
  std::string endpoint;
  std::string idempotency_key;
  std::string timeout = "30s";
};

Result<cli::CallOptions> options_of(const GlobalFlags& flags) {
  const Nanos timeout = CRETO_TRY(parse_duration(flags.timeout));
  return cli::CallOptions{timeout, flags.endpoint, flags.idempotency_key};
}

int finish(const Result<Output>& result, const GlobalFlags& flags) {
  if (!result) {
    fmt::print(stderr, "{}\n",
               flags.json ? http::error_to_json(result.error()) : "creto: " + result.error().to_string());
    return exit_code_of(result.error());
  }
  fmt::print("{}", flags.json && !result->json.empty() ? result->json + "\n" : result->text);
  return result->exit_code;
}

/// What the user gave for one parameter; empty where it was left out.
using Given = std::vector<std::string>;

Result<Json> to_json(const Parameter& parameter, const Given& given, const Home& home) {
  const std::string& text = given.empty() ? std::string() : given.front();
  switch (parameter.kind) {
    case Parameter::Kind::text:
    case Parameter::Kind::number:
    case Parameter::Kind::instant:
      return Json(text);
    case Parameter::Kind::flag:
      return Json(true);
    case Parameter::Kind::duration: {
      const Nanos duration = CRETO_TRY(parse_duration(text));
      return Json(fmt::format("{}.{:09}s", duration.count() / 1'000'000'000, duration.count() % 1'000'000'000));
    }
    case Parameter::Kind::json: {
      if (!text.starts_with('@')) return parse_json(text, {.bytes_max = 16 << 20});
      const std::string file = text.substr(1);
      const std::string content = CRETO_TRY(read_input(file));
      if (file.ends_with(".yaml") || file.ends_with(".yml")) return cli::json_from_yaml(content);
      return parse_json(content, {.bytes_max = 16 << 20});
    }
    case Parameter::Kind::reference: {
      const auto slash = parameter.field == "object" ? text.find('/') : text.rfind('/');
      if (slash == std::string::npos || slash == 0 || slash + 1 == text.size())
        return Error(Product::platform, ErrorKind::invalid_input,
                     fmt::format("{} `{}`: must be PATH/NAME", parameter.name, text));
      const std::string first = text.substr(0, slash), second = text.substr(slash + 1);
      return parameter.field == "object" ? Json{{"bucket", first}, {"key", second}}
                                         : Json{{"path", first}, {"name", second}};
    }
    case Parameter::Kind::file: {
      std::string content = CRETO_TRY(read_input(text));
      return Json(std::move(content));
    }
    case Parameter::Kind::secret: {
      std::string content = CRETO_TRY(read_input(text));
      if (content.ends_with('\n')) content.pop_back();
      Json encoded = base64(as_bytes(content));
      wipe(content.data(), content.size());
      return encoded;
    }
    case Parameter::Kind::pair: {
      Json map = Json::object();
      for (const std::string& pair : given) {
        const auto equals = pair.find('=');
        if (equals == std::string::npos || equals == 0)
          return Error(Product::platform, ErrorKind::invalid_input,
                       fmt::format("{} `{}`: must be KEY=VALUE", parameter.name, pair));
        map[pair.substr(0, equals)] = pair.substr(equals + 1);
      }
      return map;
    }
    case Parameter::Kind::list:
      return Json(given);
    case Parameter::Kind::self: {
      const Identity human = CRETO_TRY(human_of(home));
      return Json(human.text());
    }
  }
  return Json();
}

Result<Output> run_verb(const Verb& verb, const std::vector<Given>& given, const GlobalFlags& flags) {
  const Home home = CRETO_TRY(Home::locate());
  Json request = Json::object();
  for (std::size_t i = 0; i < verb.parameters.size(); ++i) {
    const Parameter& parameter = verb.parameters[i];
    if (given[i].empty() && parameter.kind != Parameter::Kind::self) continue;
    Json value = CRETO_TRY(to_json(parameter, given[i], home));
    // "" is the whole request, which the other parameters then add to; a storage reference is named `reference` too.
    if (parameter.field.empty()) {
      if (!value.is_object())
        return Error(Product::platform, ErrorKind::invalid_input,
                     fmt::format("{}: must be a JSON object", parameter.name));
      request.update(value);
      continue;
    }
    std::string pointer = "/" + std::string(parameter.field == "object" ? "reference" : parameter.field);
    std::ranges::replace(pointer, '.', '/');
    request[Json::json_pointer(pointer)] = std::move(value);
  }
  const cli::CallOptions options = CRETO_TRY(options_of(flags));
  const auto server = CRETO_TRY(cli::Server::connect(home, options));
  const Json response = CRETO_TRY(server->call(verb.method, request));
  return Output{cli::render(response, verb.columns), response.dump(2), 0};
}

/// The subcommand for "agents list", with "agents" above it made when first met.
CLI::App* subcommand(CLI::App& app, std::string_view path, std::string_view help) {
  CLI::App* parent = &app;
  for (auto space = path.find(' '); space != std::string_view::npos; space = path.find(' ')) {
    const std::string group(path.substr(0, space));
    const auto known = parent->get_subcommands([&](const CLI::App* sub) { return sub->get_name() == group; });
    if (known.empty()) {
      parent = parent->add_subcommand(group, "");
      parent->require_subcommand(1);
    } else {
      parent = known.front();
    }
    path.remove_prefix(space + 1);
  }
  return parent->add_subcommand(std::string(path), std::string(help));
}

/// What is wrong where a word stands in the place of a subcommand and is none; empty: nothing.
std::string unknown_command(const CLI::App& app, int argc, char** argv) {
  const CLI::App* at = &app;
  std::string path;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto commands = at->get_subcommands([](const CLI::App*) { return true; });
    if (commands.empty()) return "";
    if (word.starts_with('-')) {
      const CLI::Option* option = app.get_option_no_throw(word);
      if (option != nullptr && option->get_items_expected_max() > 0) ++i;
      continue;
    }
    const auto found = std::ranges::find(commands, word, [](const CLI::App* command) { return command->get_name(); });
    if (found == commands.end()) {
      std::string names;
      for (const CLI::App* command : commands) names += (names.empty() ? "" : ", ") + command->get_name();
      return fmt::format("there is no command `{}{}`; there is: {}", path, word, names);
    }
    at = *found;
    path += word + " ";
  }
  return "";
}

int run(int argc, char** argv) {
  CLI::App app("Creto: identity, permission, sandboxes, messages, metering and proof for AI agents", "creto");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("creto ") + CRETO_VERSION);
  app.fallthrough();
  GlobalFlags flags;
  app.add_flag("--json", flags.json, "JSON for programs");
  app.add_option("--endpoint", flags.endpoint,
                 "host:port of the server's gRPC; default: the setting `server`, else this home's");
  app.add_option("--idempotency-key", flags.idempotency_key,
                 "repeating a change with the same key changes nothing more");
  app.add_option("--timeout", flags.timeout, "how long to wait for the server")->capture_default_str();

  std::function<Result<Output>()> chosen;
  const auto command = [&](std::string_view path, std::string_view help,
                           std::function<Result<Output>(const Home&)> action) {
    CLI::App* sub = subcommand(app, path, help);
    sub->callback([&chosen, action = std::move(action)] {
      chosen = [action]() -> Result<Output> {
        const Home home = CRETO_TRY(Home::locate());
        return action(home);
      };
    });
    return sub;
  };

  InitOptions init_options;
  CLI::App* init_command = command("init", "make an installation in $CRETO_HOME: keys, certificates, first human",
                                   [&](const Home& home) { return init(home, init_options); });
  init_command->add_option("--email", init_options.email, "of the first human, who may do everything")->required();
  init_command->add_option("--org", init_options.org, "name of the organization")->capture_default_str();
  init_command->add_flag("--seal-root-key", init_options.seal_root_key,
                         "keep the root key under a passphrase, which each start of the server then asks for");
  std::vector<std::string> services;
  command("serve", "run the server until it is told to stop", [&](const Home& home) { return serve(home, services); })
      ->add_option("--services", services,
                   "the products to run here: metering,oversight,messaging,runtime; default: all")
      ->delimiter(',');
  command("health", "ask the running server how it is", [](const Home& home) { return health(home); });
  command("openapi", "print the running server's OpenAPI document", [](const Home& home) { return openapi(home); });
  command("config show", "every setting with where it came from", [](const Home& home) { return show_config(home); });

  std::string tiles, key, records;
  CLI::App* verify = subcommand(app, "audit verify", "check a whole log with nothing but its files and public key");
  verify->add_option("--tiles", tiles, "directory of the log")->required();
  verify->add_option("--key", key, "file of verifier keys (audit.vkey)")->required();
  verify->add_option("--records", records, "file for the proven records, one JSON object a line");
  verify->callback([&] { chosen = [&] { return verify_audit(tiles, key, records); }; });

  const MakeCommand plain_command = [&](std::string_view path, std::string_view help,
                                        std::function<Result<Output>()> action) {
    CLI::App* sub = subcommand(app, path, help);
    sub->callback([&chosen, action = std::move(action)] { chosen = action; });
    return sub;
  };
  add_policy_commands(plain_command);
  add_message_commands(plain_command, [&flags] { return options_of(flags); });
  add_metering_commands(plain_command, [&flags] { return options_of(flags); });
  add_billing_commands(plain_command, [&flags] { return options_of(flags); });
  add_policy_set_commands(plain_command, [&flags] { return options_of(flags); });
  add_people_commands(plain_command, [&flags] { return options_of(flags); });

  std::string name;
  std::vector<std::string> permissions;
  std::string valid_for = "30d";
  const auto delegation_options = [&](CLI::App* sub) {
    sub->add_option("--permit", permissions,
                    "what it may do for you: \"payments.pay\", \"sandbox.*\", \"*\"; repeatable")
        ->required();
    sub->add_option("--valid-for", valid_for, "how long")->capture_default_str();
  };
  CLI::App* register_command =
      command("agents register", "a new agent that acts for you; signs the delegation with your key",
              [&](const Home& home) -> Result<Output> {
                const Nanos duration = CRETO_TRY(parse_duration(valid_for));
                const cli::CallOptions options = CRETO_TRY(options_of(flags));
                return register_agent(home, options, name, permissions, duration);
              });
  register_command->add_option("NAME", name, "unique in the organization")->required();
  delegation_options(register_command);
  CLI::App* delegate_command = command("agents delegate", "a further delegation to an agent, signed with your key",
                                       [&](const Home& home) -> Result<Output> {
                                         const Nanos duration = CRETO_TRY(parse_duration(valid_for));
                                         const cli::CallOptions options = CRETO_TRY(options_of(flags));
                                         return delegate(home, options, name, permissions, duration);
                                       });
  delegate_command->add_option("AGENT", name, "identity or name")->required();
  delegation_options(delegate_command);

  ProvisionOptions provision;
  std::vector<std::string> policy_files;
  CLI::App* provision_command =
      command("agents provision", "a new agent with everything it needs to work, or nothing of it",
              [&](const Home& home) -> Result<Output> {
                provision.name = name;
                provision.permissions = permissions;
                provision.valid_for = CRETO_TRY(parse_duration(valid_for));
                for (const std::string& file : policy_files) {
                  std::string text = CRETO_TRY(read_input(file));
                  provision.policies.emplace_back(std::filesystem::path(file).stem().string(), std::move(text));
                }
                const cli::CallOptions options = CRETO_TRY(options_of(flags));
                return provision_agent(home, options, provision);
              });
  provision_command->add_option("NAME", name, "unique in the organization")->required();
  delegation_options(provision_command);
  provision_command->add_option("--plan", provision.plan, "to bill it by");
  const auto one_each = [](CLI::Option* option) {
    option->expected(1)->allow_extra_args(false)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  };
  one_each(provision_command->add_option("--policy", policy_files, "file with a Cedar policy ID.cedar; repeatable"));
  provision_command->add_option("--image", provision.image, "of a first sandbox");
  one_each(provision_command->add_option("--command", provision.command, "what runs in it, word by word; repeatable"));

  UsageOptions usage;
  ExportOptions exported;
  CLI::App* export_command = command("usage export", "usage as CSV or Apache Arrow, for other programs",
                                     [&](const Home& home) -> Result<Output> {
                                       const cli::CallOptions options = CRETO_TRY(options_of(flags));
                                       return export_usage(home, options, usage, exported);
                                     });
  export_command->add_option("FILE", exported.file, "to write: NAME.csv or NAME.arrow")->required();
  export_command->add_flag("--events", exported.events, "each event by itself");
  export_command->add_option("--log", exported.log, "of that: read this directory of log files, without a server");
  export_command->add_option("--org", exported.org, "of that: whose events");
  CLI::App* usage_command =
      command("usage show", "what was used: a table, CSV, bars or a picture", [&](const Home& home) -> Result<Output> {
        const cli::CallOptions options = CRETO_TRY(options_of(flags));
        winsize terminal{};
        if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &terminal) == 0 && terminal.ws_col > 0) usage.columns = terminal.ws_col;
        return show_usage(home, options, usage);
      });
  for (CLI::App* query : {usage_command, export_command}) {
    query->add_option("SUBJECT", usage.subject, "an identity: its own use and all below it; or a subscription");
    query->add_option("--type", usage.type, "of the event");
    query
        ->add_option("--by", usage.by,
                     "type, agent, owner, ancestor, subscription, property:NAME, hour, day, week, month; comma between")
        ->delimiter(',')
        ->capture_default_str();
    one_each(query->add_option("--where", usage.where, "PROPERTY=VALUE; repeatable"));
    query->add_option("--from", usage.from, "RFC 3339, or how long ago: 30d");
    query->add_option("--until", usage.until, "likewise");
    query->add_option("--zone", usage.zone, "in which days are meant: Europe/Berlin; default: UTC");
    query->add_option("--order", usage.order, "keys, events, units or cost");
    query->add_option("--top", usage.top, "only so many, the largest first");
  }
  usage_command->add_option(
      "--measure", usage.measure,
      "what is drawn and ranked: events, units or cost; default: cost where there is any, else units");
  usage_command->add_flag("--csv", usage.csv, "CSV (RFC 4180)");
  usage_command->add_flag("--plot", usage.plot, "bars");
  usage_command->add_option("--svg", usage.svg, "also draw a picture into this file");
  usage_command->add_option("--png", usage.png, "likewise, in pixels");

  std::string request_id, notes, response;
  for (const bool approve : {true, false}) {
    CLI::App* sub = command(approve ? "requests approve" : "requests deny", "answer a request, signed with your key",
                            [&, approve](const Home& home) -> Result<Output> {
                              const cli::CallOptions options = CRETO_TRY(options_of(flags));
                              return respond(home, options, request_id, approve, notes, response);
                            });
    sub->add_option("ID", request_id)->required();
    sub->add_option("--notes", notes, "shown to the agent");
    if (approve) sub->add_option("--response", response, "a JSON object for whoever acts on the decision");
  }

  std::string shell;
  CLI::App* completion = subcommand(app, "completion", "print a completion script: eval \"$(creto completion bash)\"");
  completion->add_option("SHELL", shell, "bash or zsh")->required()->check(CLI::IsMember({"bash", "zsh"}));
  completion->callback(
      [&] { chosen = [&]() -> Result<Output> { return Output{cli::completion_script(shell, app), "", 0}; }; });

  std::vector<std::vector<Given>> given(cli::verbs().size());
  for (std::size_t v = 0; v < cli::verbs().size(); ++v) {
    const Verb& verb = cli::verbs()[v];
    given[v].resize(verb.parameters.size());
    CLI::App* sub = subcommand(app, verb.path, verb.help);
    for (std::size_t p = 0; p < verb.parameters.size(); ++p) {
      const Parameter& parameter = verb.parameters[p];
      Given& target = given[v][p];
      if (parameter.kind == Parameter::Kind::self) continue;
      if (parameter.kind == Parameter::Kind::flag) {
        sub->add_flag_callback(
            std::string(parameter.name), [&target] { target = {"true"}; }, std::string(parameter.help));
        continue;
      }
      const bool repeatable = parameter.kind == Parameter::Kind::pair || parameter.kind == Parameter::Kind::list;
      CLI::Option* option =
          repeatable ? sub->add_option(std::string(parameter.name), target, std::string(parameter.help))
                     : sub->add_option_function<std::string>(
                           std::string(parameter.name), [&target](const std::string& value) { target = {value}; },
                           std::string(parameter.help));
      option->required(parameter.required);
      // One value each time, so that what follows is not taken for another.
      if (repeatable)
        option->expected(1)->allow_extra_args(false)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    }
    sub->callback([&chosen, &verb, &target = given[v], &flags] {
      chosen = [&verb, &target, &flags] { return run_verb(verb, target, flags); };
    });
  }

  // Where the words are wrong the flags may not have been read.
  const bool json = std::any_of(argv, argv + argc, [](const char* word) { return std::string_view(word) == "--json"; });
  const auto misused = [&](std::string_view how) {
    const Error error(Product::platform, ErrorKind::invalid_input, std::string(how));
    fmt::print(stderr, "{}\n", json ? http::error_to_json(error) : fmt::format("creto: {}", how));
    return 2;
  };
  if (const std::string mistake = unknown_command(app, argc, argv); !mistake.empty()) return misused(mistake);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {
    return app.exit(asked);
  } catch (const CLI::ParseError& problem) {
    return misused(json ? problem.what() : fmt::format("{}\nRun with --help for more information.", problem.what()));
  }
  return finish(chosen(), flags);
}

}  // namespace
}  // namespace creto::app

int main(int argc, char** argv) {
  // Keys live in this process: no core dump, no debugger of another user.
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);
  prctl(PR_SET_DUMPABLE, 0);
  return creto::app::run(argc, argv);
}
