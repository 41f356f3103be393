#pragma once

#include <string>
#include <string_view>

namespace CLI {
class App;
}

namespace creto::app::cli {

/// A script for `shell` ("bash" or "zsh") that completes the verbs and options of `app`.
std::string completion_script(std::string_view shell, const CLI::App& app);

}  // namespace creto::app::cli
