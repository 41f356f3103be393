// What a converter takes from a message it writes as a message that says the same.
#include "creto/testing/message_fuzz.h"
#include "rpc/convert.h"

namespace {

using namespace creto;
namespace v1 = nhi::v1;

struct Convert {
  static constexpr std::array words = {std::string_view("invoices.read"), std::string_view("invoices.*"),
                                       std::string_view("*")};

  template <class M>
  static auto from(const M& message) {
    return nhi::from_proto(message);
  }
  static auto from(const v1::CreateDelegationRequest& message) {
    Context ctx;
    ctx.caller = Identity::service("billing").value();
    return nhi::from_proto(message, ctx);
  }
  template <class T, class M>
  static void to(const T& value, M& out) {
    nhi::to_proto(value, out);
  }
};

}  // namespace

CRETO_FUZZ_MESSAGES(Convert, v1::Agent, v1::RegisterAgentRequest, v1::UpdateAgentRequest, v1::ListAgentsRequest,
                    v1::Delegation, v1::CreateDelegationRequest, v1::DelegationChain, v1::PastDelegationChain,
                    v1::AgentPublicKeys, v1::RotateKeysRequest, v1::PublishKeyBundleRequest, v1::KeyBundle)
