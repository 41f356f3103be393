#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "creto/common/clock.h"
#include "creto/io/rpc.h"
#include "creto/io/rpc_channel.h"
#include "creto/testing/databases.h"
#include "creto/testing/temp_dir.h"

namespace creto::testing {

/// A real gRPC connection over a unix socket, for contract suites that run "over the wire" too: register services,
/// `connect`, and give the channel to a client. The service sees the client's `ctx.caller`, as from another service of
/// ours; it authorizes everything, because what is tested is the service itself. Ends with this object: calls of the
/// channels that are left are `unavailable`.
class Wire {
 public:
  using ChainOf = std::function<DelegationChain(const Identity& caller)>;

  /// `clock` is that of the service and of its clients. Without `chain_of` a caller acts for himself.
  explicit Wire(const Clock& clock, ChainOf chain_of = {});
  ~Wire();

  rpc::Dispatcher& dispatcher() { return *dispatcher_; }
  /// A connection of that organization. Register everything before the first.
  std::shared_ptr<rpc::Channel> connect(std::string org = "default");
  /// Serves, and says where: "unix:/path"; for clients in other processes. Register everything before.
  std::string endpoint();

 private:
  struct Ports;
  const Clock& clock_;
  TempDir directory_;
  std::unique_ptr<Ports> ports_;
  std::unique_ptr<rpc::Dispatcher> dispatcher_;
  std::unique_ptr<rpc::GrpcServer> server_;
};

/// Where a contract suite finds what it tests: here, over either database, or at the other end of a Wire.
/// `INSTANTIATE_TEST_SUITE_P(, ServiceContract, everywhere(), database_name)`.
enum class Where { sqlite, postgres, grpc };
std::ostream& operator<<(std::ostream& out, Where where);
DatabaseKind database_of(Where where);

#define everywhere() \
  ::testing::Values(::creto::testing::Where::sqlite, ::creto::testing::Where::postgres, ::creto::testing::Where::grpc)

}  // namespace creto::testing
