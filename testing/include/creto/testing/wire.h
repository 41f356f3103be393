#pragma once

#include <memory>

#include "creto/common/clock.h"
#include "creto/io/rpc.h"
#include "creto/io/rpc_channel.h"
#include "creto/testing/temp_dir.h"

namespace creto::testing {

/// A real gRPC connection over a unix socket, for contract suites that run "over the wire" too: register services,
/// `serve`, and give the channel to a client. The service sees the client's `ctx.caller`, as from another service of
/// ours; it authorizes everything, because what is tested is the service itself.
class Wire {
 public:
  /// `clock` is the service's own: deadlines are told by it.
  explicit Wire(const Clock& clock);
  ~Wire();

  rpc::Dispatcher& dispatcher() { return *dispatcher_; }
  /// Register everything before.
  std::shared_ptr<rpc::Channel> serve();

 private:
  struct Ports;
  TempDir directory_;
  std::unique_ptr<Ports> ports_;
  std::unique_ptr<rpc::Dispatcher> dispatcher_;
  std::unique_ptr<rpc::GrpcServer> server_;
};

}  // namespace creto::testing
