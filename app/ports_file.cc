#include "ports_file.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "creto/io/files.h"

namespace creto::app {
namespace {

std::filesystem::path file_of(const Home& home) { return home.root / "ports.json"; }

}  // namespace

Result<RunningPorts> running_server(const Home& home) {
  if (!std::filesystem::exists(file_of(home)))
    return Error(Product::platform, ErrorKind::unavailable,
                 fmt::format("no server runs on `{}`: start it with `creto serve`", home.root.string()));
  const std::string text = CRETO_TRY(read_text(file_of(home)));
  const Json json = CRETO_TRY(parse_json(text));
  JsonReader reader(json, "ports");
  RunningPorts ports{reader.text("grpc"), reader.text("rest"), reader.text("metrics"), reader.text("health")};
  CRETO_TRY(reader.finish());
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
