#include "cli/completion.h"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

namespace creto::app::cli {
namespace {

/// One `case` arm for each verb path: the words that may follow it.
void arms(const CLI::App& app, const std::string& path, std::string& out) {
  std::string words;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) words += sub->get_name() + " ";
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) words += "--" + name + " ";
  out += fmt::format("    '{}') words='{}' ;;\n", path, words);
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
    arms(*sub, path.empty() ? sub->get_name() : path + " " + sub->get_name(), out);
}

}  // namespace

std::string completion_script(std::string_view shell, const CLI::App& app) {
  std::string cases;
  arms(app, "", cases);
  const std::string prelude = shell == "zsh" ? "autoload -U +X bashcompinit && bashcompinit\n" : "";
  return prelude + fmt::format(R"(_creto() {{
  local path='' word words=''
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    [[ $word == -* ]] || path="${{path:+$path }}$word"
  done
  case "$path" in
{}  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -F _creto creto
)",
                               cases);
}

}  // namespace creto::app::cli
