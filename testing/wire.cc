#include "creto/testing/wire.h"

#include "creto/common/assert.h"
#include "creto/common/clock.h"

namespace creto::testing {
namespace {

class ByName final : public rpc::Authenticator {
 public:
  Result<rpc::Caller> authenticate(const Context&, const rpc::Credentials& credentials) override {
    auto identity =
        CRETO_TRY(Identity::parse(credentials.on_behalf_of.empty() ? credentials.bearer : credentials.on_behalf_of));
    return rpc::Caller{identity, {identity}, "default"};
  }
};

class Everything final : public rpc::Authorizer {
 public:
  Result<> authorize(const Context&, std::string_view, const rpc::Resource&) override { return {}; }
};

class Nothing final : public rpc::Auditor {
 public:
  Result<> record(const Context&, const rpc::CallRecord&) override { return {}; }
};

}  // namespace

struct Wire::Ports {
  ByName authenticator;
  Everything authorizer;
  Nothing auditor;
};

Wire::Wire(const Clock& clock)
    : ports_(std::make_unique<Ports>()),
      dispatcher_(rpc::Dispatcher::create(
          rpc::Ports{ports_->authenticator, ports_->authorizer, ports_->auditor, no_telemetry(), clock})) {}

Wire::~Wire() {
  if (server_) server_->stop(Nanos(0));
  dispatcher_->stop();
}

std::shared_ptr<rpc::Channel> Wire::serve() {
  rpc::GrpcServerOptions options;
  options.unix_path = (directory_ / "rpc.sock").string();
  auto started = rpc::GrpcServer::start(*dispatcher_, std::move(options));
  CRETO_ASSERT(started.has_value());
  server_ = std::move(*started);
  rpc::ChannelOptions to;
  to.endpoint = "unix:" + (directory_ / "rpc.sock").string();
  to.bearer = [] { return std::string("service:test"); };
  to.forward_caller = true;
  auto channel = rpc::Channel::connect(std::move(to), system_clock());
  CRETO_ASSERT(channel.has_value());
  return std::move(*channel);
}

}  // namespace creto::testing
