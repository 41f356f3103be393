#pragma once

#include <string>
#include <vector>

#include "cli/call.h"
#include "creto/common/result.h"
#include "creto/common/signature.h"
#include "home.h"

/// The verbs that are more than one call. Each returns what to print; main prints it, or the error and its exit code.
namespace creto::app {

struct Output {
  std::string text;  ///< for people
  std::string json;  ///< for --json
  int exit_code = 0;
};

/// As requests have it.
Json signature_json(const Signature& signature);

Result<Output> init(const Home& home, const InitOptions& options);
/// Serves until SIGINT or SIGTERM; `services`, unless empty, takes the place of the setting of that name.
Result<Output> serve(const Home& home, const std::vector<std::string>& services);
Result<Output> show_config(const Home& home);
Result<Output> health(const Home& home);
/// The OpenAPI document of the running server.
Result<Output> openapi(const Home& home);
/// Needs only the directory and the key file: no home, no server.
Result<Output> verify_audit(const std::filesystem::path& tiles, const std::filesystem::path& key,
                            const std::filesystem::path& records);

/// Registers an agent and delegates to it, signed here with the human's key. With an idempotency key of the caller's,
/// this and `delegate` may be repeated until they succeed: there will be one agent and one delegation.
Result<Output> register_agent(const Home& home, const cli::CallOptions& options, const std::string& name,
                              const std::vector<std::string>& permissions, Nanos valid_for);
Result<Output> delegate(const Home& home, const cli::CallOptions& options, const std::string& agent,
                        const std::vector<std::string>& permissions, Nanos valid_for);
struct ProvisionOptions {
  std::string name;
  std::vector<std::string> permissions;
  Nanos valid_for{};
  std::string plan;                                           ///< empty: no subscription
  std::vector<std::pair<std::string, std::string>> policies;  ///< id and Cedar text
  std::string image;                                          ///< of a first sandbox; empty: none
  std::vector<std::string> command;
};
/// Registers an agent and makes it ready to work, all of it or nothing; the delegation is signed here. Repeat with the
/// same idempotency key until it is done.
Result<Output> provision_agent(const Home& home, const cli::CallOptions& options, const ProvisionOptions& provision);

/// Answers an oversight request, signed here with the human's key. `response` is a JSON object, or empty.
Result<Output> respond(const Home& home, const cli::CallOptions& options, const std::string& request, bool approve,
                       const std::string& notes, const std::string& response);

}  // namespace creto::app
