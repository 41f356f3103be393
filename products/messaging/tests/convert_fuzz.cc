// What a converter takes from a message it writes as a message that says the same.
#include "creto/testing/message_fuzz.h"
#include "rpc/convert.h"

namespace {

using namespace creto;
namespace v1 = messaging::v1;

struct Convert {
  static constexpr std::array words = {std::string_view("orders")};

  template <class M>
  static auto from(const M& message) {
    return messaging::from_proto(message);
  }
  template <class T, class M>
  static void to(const T& value, M& out) {
    out = messaging::to_proto(value);
  }
};

}  // namespace

CRETO_FUZZ_MESSAGES(Convert, v1::SealedMessage, v1::ReceivedMessage, v1::MessageStatus, v1::Topic, v1::Subscription)
