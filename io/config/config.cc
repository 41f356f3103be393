#include "creto/io/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <toml++/toml.h>
#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>

#include "creto/common/assert.h"

namespace creto {

struct ConfigSchema::Entry {
  enum class Kind { text, boolean, integer, real, duration, list, table };
  std::string key;
  std::string help;
  Kind kind;
  void* target;
  Range range = {};
  bool secret = false;
  std::string source = "default";
};

namespace {

constexpr std::size_t file_bytes_max = 1 << 20;

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

/// One value of a file or of the environment, before it is known what it should be.
struct Setting {
  enum class Kind { text, boolean, integer, real, list };
  std::string key;
  Kind kind;
  std::string text;
  std::vector<std::string> list;
};

Result<> flatten(const toml::table& table, const std::string& prefix, std::vector<Setting>& out) {
  for (const auto& [name, node] : table) {
    std::string key = prefix + std::string(name.str());
    if (const auto* inner = node.as_table()) {
      CRETO_TRY(flatten(*inner, key + ".", out));
    } else if (const auto* array = node.as_array()) {
      Setting setting{key, Setting::Kind::list, "", {}};
      for (const auto& element : *array) {
        auto text = element.value<std::string>();
        if (!text || !element.is_string()) return invalid(fmt::format("`{}` must be a list of texts", key));
        setting.list.push_back(*std::move(text));
      }
      out.push_back(std::move(setting));
    } else if (auto text = node.as_string()) {
      out.push_back({key, Setting::Kind::text, text->get(), {}});
    } else if (auto boolean = node.as_boolean()) {
      out.push_back({key, Setting::Kind::boolean, boolean->get() ? "true" : "false", {}});
    } else if (auto integer = node.as_integer()) {
      out.push_back({key, Setting::Kind::integer, std::to_string(integer->get()), {}});
    } else if (auto real = node.as_floating_point()) {
      out.push_back({key, Setting::Kind::real, fmt::format("{}", real->get()), {}});
    } else {
      return invalid(fmt::format("`{}` has a type that no setting has", key));
    }
  }
  return {};
}

Result<> flatten(const YAML::Node& node, const std::string& key, std::vector<Setting>& out, int depth) {
  if (depth > 16) return invalid(fmt::format("`{}` is nested too deeply", key));
  switch (node.Type()) {
    case YAML::NodeType::Map:
      for (const auto& pair : node) {
        auto name = pair.first.as<std::string>();
        CRETO_TRY(flatten(pair.second, key.empty() ? name : key + "." + name, out, depth + 1));
      }
      return {};
    case YAML::NodeType::Sequence: {
      Setting setting{key, Setting::Kind::list, "", {}};
      for (const auto& element : node) {
        if (!element.IsScalar()) return invalid(fmt::format("`{}` must be a list of texts", key));
        setting.list.push_back(element.Scalar());
      }
      out.push_back(std::move(setting));
      return {};
    }
    case YAML::NodeType::Scalar: {
      // YAML's plain scalars have no type of their own; quoted ones are tagged "!".
      const std::string& text = node.Scalar();
      auto kind = Setting::Kind::text;
      std::int64_t integer;
      if (node.Tag() != "!") {
        if (text == "true" || text == "false") kind = Setting::Kind::boolean;
        if (auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), integer);
            code == std::errc() && end == text.data() + text.size())
          kind = Setting::Kind::integer;
      }
      out.push_back({key, kind, text, {}});
      return {};
    }
    default:
      return invalid(fmt::format("`{}` has no value", key.empty() ? "the file" : key));
  }
}

std::string env_name(std::string_view key) {
  std::string name = "CRETO_";
  for (char c : key) {
    if (c == '.') {
      name += "__";
    } else {
      name += c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c == '-' ? '_' : c;
    }
  }
  return name;
}

std::optional<std::string> look_up(const std::vector<std::string>& environment, std::string_view name) {
  for (const std::string& entry : environment)
    if (entry.size() > name.size() && entry[name.size()] == '=' && entry.starts_with(name))
      return entry.substr(name.size() + 1);
  return std::nullopt;
}

Result<std::string> expand(const std::string& key, const std::string& text,
                           const std::vector<std::string>& environment) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    if (text.compare(i, 3, "$${") == 0) {
      out += "${";
      i += 3;
      continue;
    }
    if (text.compare(i, 2, "${") != 0) {
      out += text[i++];
      continue;
    }
    std::size_t end = text.find('}', i);
    if (end == std::string::npos) return invalid(fmt::format("`{}`: `${{` without `}}`", key));
    std::string inner = text.substr(i + 2, end - i - 2);
    std::optional<std::string> otherwise;
    if (std::size_t mark = inner.find(":-"); mark != std::string::npos) {
      otherwise = inner.substr(mark + 2);
      inner.resize(mark);
    }
    auto value = look_up(environment, inner);
    if (!value && !otherwise) return invalid(fmt::format("`{}`: the environment variable `{}` is not set", key, inner));
    out += value ? *value : *otherwise;
    i = end + 1;
  }
  return out;
}

}  // namespace

struct ConfigSchema::Loader {
  ConfigSchema& schema;
  const std::vector<std::string>& environment;
  /// What to do once everything was read: nothing changes before that.
  std::vector<std::function<void()>> changes;

  Result<> apply(const std::string& source, Setting setting, bool from_environment) {
    for (const auto& entry : schema.entries_) {
      if (entry->kind == Entry::Kind::table && setting.key.starts_with(entry->key + ".")) {
        std::string value = CRETO_TRY(expand(setting.key, setting.text, environment));
        std::string name = setting.key.substr(entry->key.size() + 1);
        changes.push_back([entry, name, value, source] {
          (*static_cast<std::map<std::string, std::string>*>(entry->target))[name] = value;
          entry->source = source;
        });
        return {};
      }
      if (entry->key != setting.key) continue;
      auto result = convert(entry, source, setting, from_environment);
      if (!result) return invalid(fmt::format("{}: {}", source, result.error().message()));
      return {};
    }
    return invalid(fmt::format("{}: unknown setting `{}`", source, setting.key));
  }

  Result<> convert(const std::shared_ptr<Entry>& entry, const std::string& source, Setting& setting,
                   bool from_environment) {
    const std::string& key = entry->key;
    std::string text = setting.text;
    if (setting.kind == Setting::Kind::text && !from_environment) text = CRETO_TRY(expand(key, text, environment));
    // Text may stand for anything where it comes from outside: from the environment, or through ${VAR}.
    bool loose = from_environment || text != setting.text;
    auto set = [&]<class T>(T value) {
      changes.push_back([entry, value = std::move(value), source] {
        *static_cast<T*>(entry->target) = value;
        entry->source = source;
      });
    };
    auto must = [&](std::string_view rule) { return invalid(fmt::format("`{}` must be {}", key, rule)); };
    switch (entry->kind) {
      case Entry::Kind::text:
        if (setting.kind != Setting::Kind::text && !loose) return must("a text");
        set(std::move(text));
        return {};
      case Entry::Kind::boolean:
        if ((setting.kind != Setting::Kind::boolean && !loose) || (text != "true" && text != "false"))
          return must("true or false");
        set(text == "true");
        return {};
      case Entry::Kind::integer: {
        std::int64_t value = 0;
        auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
        if ((setting.kind != Setting::Kind::integer && !loose) || code != std::errc() ||
            end != text.data() + text.size())
          return must("a whole number");
        if (value < entry->range.min || value > entry->range.max)
          return must(fmt::format("from {} to {}", entry->range.min, entry->range.max));
        set(value);
        return {};
      }
      case Entry::Kind::real: {
        double value = 0;
        auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (code != std::errc() || end != text.data() + text.size()) return must("a number");
        set(value);
        return {};
      }
      case Entry::Kind::duration: {
        auto value = parse_duration(text);
        if (!value) return must("a duration such as `250ms` or `15m`");
        set(*value);
        return {};
      }
      case Entry::Kind::list: {
        std::vector<std::string> list = setting.list;
        if (loose) {
          list.clear();
          std::stringstream parts(text);
          for (std::string part; std::getline(parts, part, ',');) list.push_back(part);
        } else if (setting.kind != Setting::Kind::list) {
          return must("a list of texts");
        }
        for (std::string& item : list) item = CRETO_TRY(expand(key, item, environment));
        set(std::move(list));
        return {};
      }
      case Entry::Kind::table:
        return must("a table");
    }
    std::unreachable();
  }

  Result<> file(std::string_view text, const std::string& name) {
    if (text.size() > file_bytes_max)
      return Error(Product::platform, ErrorKind::too_large, fmt::format("`{}` is over 1 MiB", name));
    std::vector<Setting> settings;
    try {
      if (name.ends_with(".yaml") || name.ends_with(".yml")) {
        YAML::Node root = YAML::Load(std::string(text));
        if (!root.IsNull()) CRETO_TRY(flatten(root, "", settings, 0));
      } else {
        toml::table table = toml::parse(text, name);
        CRETO_TRY(flatten(table, "", settings));
      }
    } catch (const toml::parse_error& error) {
      return invalid(fmt::format("{}:{}: {}", name, error.source().begin.line, error.description()));
    } catch (const YAML::Exception& error) {
      return invalid(fmt::format("{}:{}: {}", name, error.mark.line + 1, error.msg));
    }
    for (Setting& setting : settings) CRETO_TRY(apply(name, std::move(setting), false));
    return {};
  }

  Result<> from_environment() {
    for (const auto& entry : schema.entries_) {
      if (entry->kind == Entry::Kind::table) continue;
      std::string name = env_name(entry->key);
      CRETO_TRY(refuse_misspelt(name));
      auto value = look_up(environment, name);
      if (!value) continue;
      CRETO_TRY(apply("environment " + name, Setting{entry->key, Setting::Kind::text, *value, {}}, true));
    }
    return {};
  }

  /// A variable that differs from `name` in its underscores alone was meant for it, and would have no effect.
  Result<> refuse_misspelt(const std::string& name) const {
    const auto letters = [](std::string_view text) {
      std::string out;
      std::copy_if(text.begin(), text.end(), std::back_inserter(out), [](char c) { return c != '_'; });
      return out;
    };
    const std::string wanted = letters(name);
    for (const std::string& variable : environment) {
      const std::string given = variable.substr(0, variable.find('='));
      if (given.starts_with("CRETO_") && given != name && letters(given) == wanted)
        return invalid(fmt::format("environment {}: is no setting; did you mean {}?", given, name));
    }
    return {};
  }

  void commit() {
    for (auto& change : changes) change();
  }
};

void ConfigSchema::put(Entry entry) {
  for (const auto& other : entries_) CRETO_ASSERT(other->key != entry.key);
  entries_.push_back(std::make_shared<Entry>(std::move(entry)));
}

void ConfigSchema::add(std::string key, std::string& value, std::string help) {
  put({std::move(key), std::move(help), Entry::Kind::text, &value});
}
void ConfigSchema::add(std::string key, bool& value, std::string help) {
  put({std::move(key), std::move(help), Entry::Kind::boolean, &value});
}
void ConfigSchema::add(std::string key, std::int64_t& value, std::string help, Range range) {
  put({std::move(key), std::move(help), Entry::Kind::integer, &value, range});
}
void ConfigSchema::add(std::string key, double& value, std::string help) {
  put({std::move(key), std::move(help), Entry::Kind::real, &value});
}
void ConfigSchema::add(std::string key, Nanos& value, std::string help) {
  put({std::move(key), std::move(help), Entry::Kind::duration, &value});
}
void ConfigSchema::add(std::string key, std::vector<std::string>& value, std::string help) {
  put({std::move(key), std::move(help), Entry::Kind::list, &value});
}
void ConfigSchema::add_table(std::string key, std::map<std::string, std::string>& value, std::string help) {
  put({std::move(key), std::move(help), Entry::Kind::table, &value});
}
void ConfigSchema::add_secret(std::string key, std::string& value, std::string help) {
  put({std::move(key), std::move(help), Entry::Kind::text, &value, {}, true});
}

Result<> ConfigSchema::load(const std::vector<std::string>& files, const std::vector<std::string>& environment) {
  Loader loader{*this, environment, {}};
  for (const std::string& name : files) {
    std::ifstream in(name, std::ios::binary);
    if (!in)
      return Error(Product::platform, ErrorKind::not_found, fmt::format("cannot read the configuration `{}`", name));
    std::string text(file_bytes_max + 1, '\0');
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(in.gcount()));
    CRETO_TRY(loader.file(text, name));
  }
  CRETO_TRY(loader.from_environment());
  loader.commit();
  return {};
}

Result<> ConfigSchema::load_text(std::string_view text, std::string_view name,
                                 const std::vector<std::string>& environment) {
  Loader loader{*this, environment, {}};
  CRETO_TRY(loader.file(text, std::string(name)));
  CRETO_TRY(loader.from_environment());
  loader.commit();
  return {};
}

std::string ConfigSchema::show() const {
  auto quote = [](const std::string& text) {
    std::string out = "\"";
    for (char c : text) {
      if (c == '"' || c == '\\') out += '\\';
      if (c == '\n') {
        out += "\\n";
      } else {
        out += c;
      }
    }
    return out + "\"";
  };
  std::string out;
  for (const auto& entry : entries_) {
    std::string value;
    switch (entry->kind) {
      case Entry::Kind::text: {
        const auto& text = *static_cast<std::string*>(entry->target);
        value = quote(entry->secret && !text.empty() ? "(set)" : text);
        break;
      }
      case Entry::Kind::boolean:
        value = *static_cast<bool*>(entry->target) ? "true" : "false";
        break;
      case Entry::Kind::integer:
        value = std::to_string(*static_cast<std::int64_t*>(entry->target));
        break;
      case Entry::Kind::real:
        value = fmt::format("{}", *static_cast<double*>(entry->target));
        break;
      case Entry::Kind::duration:
        value = quote(to_string(*static_cast<Nanos*>(entry->target)));
        break;
      case Entry::Kind::list: {
        value = "[";
        for (const std::string& item : *static_cast<std::vector<std::string>*>(entry->target))
          value += (value.size() > 1 ? ", " : "") + quote(item);
        value += "]";
        break;
      }
      case Entry::Kind::table: {
        out += fmt::format("# {} ({})\n", entry->help, entry->source);
        for (const auto& [name, text] : *static_cast<std::map<std::string, std::string>*>(entry->target))
          out += fmt::format("{}.{} = {}\n", entry->key, name, quote(text));
        continue;
      }
    }
    out += fmt::format("# {} ({})\n{} = {}\n", entry->help, entry->source, entry->key, value);
  }
  return out;
}

std::vector<std::string> process_environment() {
  std::vector<std::string> entries;
  for (char** entry = ::environ; entry != nullptr && *entry != nullptr; ++entry) entries.emplace_back(*entry);
  return entries;
}

}  // namespace creto
