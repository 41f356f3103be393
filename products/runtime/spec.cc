#include "spec.h"

#include <fmt/format.h>

#include <algorithm>

#include "errors.h"
#include "net/egress_proxy.h"

namespace creto::runtime {
namespace {

bool is_variable_name(std::string_view name) {
  return !name.empty() && name.size() <= 128 && !(name.front() >= '0' && name.front() <= '9') &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
         });
}

Json egress_json(const std::vector<EgressRule>& rules) {
  Json list = Json::array();
  for (const auto& rule : rules)
    list.push_back({{"host", rule.host}, {"port", rule.port}, {"verdict", to_string(rule.verdict)}});
  return list;
}

}  // namespace

Result<> check_strings(std::string_view field, const std::vector<std::string>& values) {
  std::size_t size = 0;
  for (const auto& value : values) {
    if (value.find('\0') != std::string::npos || !is_valid_utf8(value))
      return invalid(fmt::format("{}: must be text without zero bytes", field));
    size += value.size();
  }
  if (values.size() > 1024 || size > 256 << 10)
    return Error(Product::runtime, ErrorKind::too_large, fmt::format("{}: is larger than 256 KiB", field));
  return {};
}

Result<> check_environment(const std::map<std::string, std::string>& environment) {
  std::vector<std::string> values;
  for (const auto& [name, value] : environment) {
    if (!is_variable_name(name)) return invalid("environment: names must be [A-Za-z_][A-Za-z0-9_]{0,127}");
    values.push_back(value);
  }
  return check_strings("environment", values);
}

Result<> check_spec(const SandboxSpec& spec) {
  CRETO_TRY(check_strings("command", spec.command));
  CRETO_TRY(check_environment(spec.environment));
  if (!spec.working_directory.empty() && spec.working_directory.front() != '/')
    return invalid("working_directory: must be absolute");
  CRETO_TRY(check_strings("working_directory", {spec.working_directory}));
  const auto& l = spec.limits;
  if (l.cpu_millicores < 10 || l.cpu_millicores > 1'000'000)
    return invalid("limits.cpu_millicores: must be 10 to 1000000");
  if (l.memory_bytes < 32ull << 20 || l.memory_bytes > 1ull << 40)
    return invalid("limits.memory_bytes: must be 32 MiB to 1 TiB");
  if (l.pids < 8 || l.pids > 32768) return invalid("limits.pids: must be 8 to 32768");
  if (l.time < Nanos(0)) return invalid("limits.time: must not be negative");
  if (spec.secrets.size() > 64) return invalid("secrets: 64 at most");
  if (spec.egress.size() > 256) return invalid("egress: 256 rules at most");
  for (const auto& rule : spec.egress) {
    const auto name = rule.host.starts_with("*.") ? rule.host.substr(2) : rule.host;
    if (rule.host != "*" && !egress::is_host_name(name))
      return invalid(fmt::format("egress: `{}` is no host", rule.host.substr(0, 64)));
  }
  if (spec.reasoning.size() > 16 << 10)
    return Error(Product::runtime, ErrorKind::too_large, "reasoning: is longer than 16 KiB");
  return {};
}

authz::Value egress_value(const std::vector<EgressRule>& rules) {
  std::vector<authz::Value> list;
  for (const auto& rule : rules)
    list.push_back(authz::Value::record(
        {{"host", rule.host}, {"port", static_cast<std::int64_t>(rule.port)}, {"verdict", to_string(rule.verdict)}}));
  return authz::Value::set(std::move(list));
}

Json config_json(const SandboxSpec& spec) {
  return {{"command", spec.command},
          {"environment", spec.environment},
          {"working_directory", spec.working_directory},
          {"egress", egress_json(spec.egress)},
          {"cpu_millicores", spec.limits.cpu_millicores},
          {"memory_bytes", spec.limits.memory_bytes},
          {"pids", spec.limits.pids},
          {"time_ns", std::to_string(spec.limits.time.count())}};
}

}  // namespace creto::runtime
