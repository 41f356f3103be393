// What a converter takes from a message it writes as a message that says the same.
#include "creto/testing/message_fuzz.h"
#include "rpc/convert.h"

namespace {

using namespace creto;
namespace v1 = oversight::v1;

struct Convert {
  static constexpr std::array words = {std::string_view("pending"), std::string_view("approved"),
                                       std::string_view("deny"), std::string_view("quota_breach"),
                                       std::string_view("cli")};

  template <class M>
  static auto from(const M& message) {
    return oversight::from_proto(message);
  }
  template <class T, class M>
  static void to(const T& value, M& out) {
    oversight::to_proto(value, out);
  }
};

}  // namespace

CRETO_FUZZ_MESSAGES(Convert, v1::Policy, v1::Request, v1::LostNotification, v1::GatedAction, v1::ApprovalNeed,
                    v1::ApprovalCheck, v1::RequestApprovalRequest, v1::ApprovalStatus, v1::ListRequestsRequest)
