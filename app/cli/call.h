#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/json.h"
#include "creto/common/result.h"
#include "home.h"

namespace creto::rpc {
class Channel;
}

/// Calls a method by its name with JSON in and out, through what the linked protos say of it.
namespace creto::app::cli {

struct CallOptions {
  Nanos timeout = std::chrono::seconds(30);
  std::string endpoint;         ///< empty: the one in this home's settings
  std::string idempotency_key;  ///< empty: a fresh one for calls that change something
};

/// To the server that `options` name, with this home's client certificate.
Result<std::shared_ptr<rpc::Channel>> channel_to_server(const Home& home, const CallOptions& options);

class Server {
 public:
  static Result<std::unique_ptr<Server>> connect(const Home& home, CallOptions options);
  virtual ~Server() = default;
  /// `method` without the leading slash; field names as in the proto. Errors: those of the server, and invalid_input
  /// where `request` does not fit the method.
  virtual Result<Json> call(std::string_view method, const Json& request) = 0;
};

/// For people: a list as a table of `columns`, anything else as `name: value` lines.
std::string render(const Json& response, const std::vector<std::string_view>& columns);

}  // namespace creto::app::cli
