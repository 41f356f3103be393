#include "ports_file.h"

#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "creto/io/files.h"

namespace creto::app {
namespace {

std::filesystem::path file_of(const Home& home) { return home.root / "ports.json"; }

}  // namespace

std::optional<RunningPorts> read_ports(const Home& home) {
  const Result<std::string> text = read_text(file_of(home));
  if (!text) return std::nullopt;
  const Result<Json> json = parse_json(*text);
  if (!json) return std::nullopt;
  JsonReader reader(*json, "ports");
  RunningPorts ports{reader.text("grpc"), reader.text("rest"), reader.text("metrics"), reader.text("health")};
  if (!reader.finish()) return std::nullopt;
  return ports;
}

Result<> write_ports(const Home& home, const RunningPorts& ports) {
  const Json json = {{"grpc", ports.grpc}, {"rest", ports.rest}, {"metrics", ports.metrics}, {"health", ports.health}};
  return io::write_durably(io::real_files(), file_of(home), as_bytes(json.dump(2) + "\n"), 0600);
}

void remove_ports(const Home& home) {
  std::error_code ignored;
  std::filesystem::remove(file_of(home), ignored);
}

}  // namespace creto::app
