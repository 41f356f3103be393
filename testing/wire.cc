#include "creto/testing/wire.h"

namespace creto::testing {
namespace {

/// The bearer is the organization: who calls, a service of ours may say.
class ByName final : public rpc::Authenticator {
 public:
  explicit ByName(Wire::ChainOf chain_of) : chain_of_(std::move(chain_of)) {}
  Result<rpc::Caller> authenticate(const Context&, const rpc::Credentials& credentials) override {
    const auto identity =
        CRETO_TRY(Identity::parse(credentials.on_behalf_of.empty() ? "service:test" : credentials.on_behalf_of));
    return rpc::Caller{identity, chain_of_ ? chain_of_(identity) : DelegationChain{identity}, credentials.bearer};
  }

 private:
  Wire::ChainOf chain_of_;
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
  Everything authorizer = {};
  Nothing auditor = {};
};

Wire::Wire(const Clock& clock, ChainOf chain_of)
    : clock_(clock),
      ports_(new Ports{ByName(std::move(chain_of))}),
      dispatcher_(rpc::Dispatcher::create(
          rpc::Ports{ports_->authenticator, ports_->authorizer, ports_->auditor, no_telemetry(), clock})) {}

Wire::~Wire() {
  if (server_) server_->stop(Nanos(0));
  dispatcher_->stop();
}

std::string Wire::endpoint() {
  const std::string socket = (directory_ / "rpc.sock").string();
  if (!server_) server_ = rpc::GrpcServer::start(*dispatcher_, {.unix_path = socket}).value();
  return "unix:" + socket;
}

std::shared_ptr<rpc::Channel> Wire::connect(std::string org) {
  rpc::ChannelOptions options;
  options.endpoint = endpoint();
  options.bearer = [org = std::move(org)] { return org; };
  options.forward_caller = true;
  options.timeout = std::chrono::minutes(1);  // sandboxes start slowly under a sanitizer
  return rpc::Channel::connect(std::move(options), clock_).value();
}

std::ostream& operator<<(std::ostream& out, Where where) {
  return out << (where == Where::sqlite ? "sqlite" : where == Where::postgres ? "postgres" : "grpc");
}

DatabaseKind database_of(Where where) {
  return where == Where::postgres ? DatabaseKind::postgres : DatabaseKind::sqlite;
}

}  // namespace creto::testing
