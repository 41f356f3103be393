#pragma once

#include <optional>
#include <string>

#include "home.h"

namespace creto::app {

/// Where a running server listens, as it writes into `<home>/ports.json` once it is ready: with port 0 nobody else
/// knows.
struct RunningPorts {
  std::string grpc;  ///< "127.0.0.1:8080"
  std::string rest;
  std::string metrics;
  std::string health;
};

/// None where no server runs or the file cannot be read.
std::optional<RunningPorts> read_ports(const Home& home);
Result<> write_ports(const Home& home, const RunningPorts& ports);
void remove_ports(const Home& home);

}  // namespace creto::app
