// Any request to REST is answered: method and target from the first line of the input, then headers, then the body.
#include <cstddef>
#include <cstdint>

#include "creto/common/assert.h"
#include "creto/io/rpc.h"
#include "creto/nhi/v1/nhi.pb.h"
#include "creto/testing/fuzz_seeds.h"

namespace {

using namespace creto;
namespace v1 = nhi::v1;

/// Everybody is who he says he is, and may.
class Open final : public rpc::Authenticator, public rpc::Authorizer, public rpc::Auditor {
 public:
  Result<rpc::Caller> authenticate(const Context&, const rpc::Credentials& credentials) override {
    Identity identity = CRETO_TRY(Identity::parse(credentials.bearer));
    return rpc::Caller{identity, {identity}, "default"};
  }
  Result<> authorize(const Context&, std::string_view, const rpc::Resource&) override { return {}; }
  Result<> record(const Context&, const rpc::CallRecord&) override { return {}; }
};

rpc::Dispatcher& dispatcher() {
  static Open open;
  static const auto made = [&] {
    auto dispatcher = rpc::Dispatcher::create({open, open, open, no_telemetry(), system_clock()}, {.workers = 1});
    auto service = dispatcher->service("creto.nhi.v1.NhiService");
    const auto answer = [](const Context&, const auto& request) -> Result<v1::Agent> {
      v1::Agent agent;
      agent.set_name(request.ShortDebugString());
      return agent;
    };
    service.unary<v1::GetAgentRequest, v1::Agent>("GetAgent", {.inline_call = true}, answer);
    service.unary<v1::RegisterAgentRequest, v1::Agent>("RegisterAgent", {.inline_call = true}, answer);
    service.unary<v1::UpdateAgentRequest, v1::Agent>("UpdateAgent", {.inline_call = true}, answer);
    service.unary<v1::RevokeAgentRequest, v1::Agent>("RevokeAgent",
                                                     {.access = rpc::Access::anonymous, .inline_call = true}, answer);
    service.unary<v1::ListAgentsRequest, v1::ListAgentsResponse>(
        "ListAgents", {.access = rpc::Access::anonymous, .inline_call = true},
        [](const Context&, const v1::ListAgentsRequest&) -> Result<v1::ListAgentsResponse> {
          return v1::ListAgentsResponse();
        });
    return dispatcher;
  }();
  return *made;
}

std::string_view take_line(std::string_view& text) {
  const auto line = text.substr(0, text.find('\n'));
  text.remove_prefix(std::min(text.size(), line.size() + 1));
  return line;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto rest = dispatcher().rest();
  std::string_view text(reinterpret_cast<const char*>(data), size);
  http::Request request;
  const auto first = take_line(text);
  request.method = first.substr(0, first.find(' '));
  request.target = first.substr(std::min(first.size(), request.method.size() + 1));
  for (auto line = take_line(text); !line.empty(); line = take_line(text)) {
    const auto name = line.substr(0, line.find(':'));
    request.headers.emplace_back(name, line.substr(std::min(line.size(), name.size() + 1)));
  }
  request.body = text;
  int answers = 0;
  rest(std::move(request), [&](const http::Response& response) {
    ++answers;
    CRETO_ASSERT(response.status >= 200 && response.status < 600);
    CRETO_ASSERT(is_valid_utf8(response.body));
    if (response.status >= 400) CRETO_ASSERT(http::error_from_json(response.body).has_value());
  });
  CRETO_ASSERT(answers == 1);
  return 0;
}

CRETO_FUZZ_SEEDS(
    "GET /v1/agents/human:ada%40example.com\nauthorization:Bearer human:ada@example.com\n\n",
    "GET /v1/agents?page.size=3&type=AGENT_TYPE_HUMAN&page.token=a+b\n\n",
    "POST /v1/agents\nauthorization:Bearer service:a\ncreto-idempotency-key:k\ncreto-timeout:2s\n"
    "content-type:application/json\ntraceparent:00-01890a5d01890a5d01890a5d01890a5d-01890a5d01890a5d-01\n\n"
    R"({"name":"clerk","type":"AGENT_TYPE_TOOL","attributes":{"a":"b"},"valid_for":"3.5s"})",
    "POST /v1/agents/human:ada@example.com:revoke\n\n{\"reason\":\"r\"}")
