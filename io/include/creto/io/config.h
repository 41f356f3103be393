#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "creto/common/result.h"
#include "creto/common/time.h"

namespace creto {

/// Declares the settings there are, with their defaults, by binding each to a variable; then reads them (C5).
///
///   ConfigSchema schema;
///   schema.add("grpc.port", options.port, "gRPC port", {.min = 0, .max = 65535});
///   schema.add("grpc.tls", options.tls, "TLS for gRPC and REST");
///   CRETO_TRY(schema.load(files, environment));
///
/// Later wins: default, files in order (TOML; YAML by `.yaml` or `.yml`), environment `CRETO_<KEY>` with dots as `__`
/// (`CRETO_GRPC__PORT`). `${VAR}` and `${VAR:-default}` in a file's strings are expanded from the environment; `$${` is
/// a literal `${`.
class ConfigSchema {
 public:
  struct Range {
    std::int64_t min = INT64_MIN;
    std::int64_t max = INT64_MAX;
  };

  /// Bound variables must outlive `load`. A key is dotted lower-case words. Registering one twice is our bug.
  void add(std::string key, std::string& value, std::string help);
  void add(std::string key, bool& value, std::string help);
  void add(std::string key, std::int64_t& value, std::string help, Range range);
  void add(std::string key, std::int64_t& value, std::string help) {
    add(std::move(key), value, std::move(help), Range());
  }
  void add(std::string key, double& value, std::string help);
  void add(std::string key, Nanos& value, std::string help);  ///< "250ms", "15m"
  void add(std::string key, std::vector<std::string>& value, std::string help);
  /// A table with free names, such as `[integrations.<name>]`: every scalar under `key.` lands in `value` by its rest.
  void add_table(std::string key, std::map<std::string, std::string>& value, std::string help);
  /// Shown as "(set)" by `show`.
  void add_secret(std::string key, std::string& value, std::string help);

  /// All or nothing: on an error no variable has changed. Errors: invalid_input naming file and exact key (unknown key,
  /// wrong type, out of range, unset variable); not_found for a missing file.
  Result<> load(const std::vector<std::string>& files, const std::vector<std::string>& environment);
  /// `text` as the one file, for tests and tools; `name` decides TOML or YAML.
  Result<> load_text(std::string_view text, std::string_view name, const std::vector<std::string>& environment);

  /// The effective settings as TOML, each with its help and where it came from.
  std::string show() const;

 private:
  struct Entry;
  struct Loader;
  std::vector<std::shared_ptr<Entry>> entries_;
  void put(Entry entry);
};

/// The process's environment as "NAME=value".
std::vector<std::string> process_environment();

}  // namespace creto
