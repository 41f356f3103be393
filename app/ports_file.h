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

/// Errors: unavailable, with the advice to start one, where no server runs on this home.
Result<RunningPorts> running_server(const Home& home);
Result<> write_ports(const Home& home, const RunningPorts& ports);
void remove_ports(const Home& home);

}  // namespace creto::app
