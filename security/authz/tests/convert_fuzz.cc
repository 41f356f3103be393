// What a converter takes from a message it writes as a message that says the same.
#include "creto/testing/message_fuzz.h"
#include "rpc/convert.h"

namespace {

using namespace creto;
namespace v1 = authz::v1;

struct Convert {
  static constexpr std::array words = {std::string_view("{\"__extn\":{\"fn\":\"ip\",\"arg\":\"1.2.3.4\"}}"),
                                       std::string_view("{\"a\":{\"__entity\":{\"type\":\"T\",\"id\":\"i\"}}}")};

  template <class M>
  static auto from(const M& message) {
    return authz::from_proto(message);
  }
  template <class T, class M>
  static void to(const T& value, M& out) {
    authz::to_proto(value, out);
  }
};

}  // namespace

CRETO_FUZZ_MESSAGES(Convert, v1::EntityUid, v1::CheckRequest, v1::Decision, v1::ExplainResponse,
                    v1::FilterResourcesRequest, v1::FilterResourcesResponse, v1::Policy, v1::PolicyLink,
                    v1::IssueOverrideRequest)
