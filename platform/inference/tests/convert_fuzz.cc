// What a converter takes from a message it writes as a message that says the same.
#include "creto/testing/message_fuzz.h"
#include "rpc/convert.h"

namespace {

using namespace creto;
namespace v1 = inference::v1;

struct Convert {
  static constexpr std::array words = {std::string_view("system"), std::string_view("user"),
                                       std::string_view("assistant"), std::string_view("stop"),
                                       std::string_view("length")};

  template <class M>
  static auto from(const M& message) {
    return inference::from_proto(message);
  }
  template <class T, class M>
  static void to(const T& value, M& out) {
    inference::to_proto(value, out);
  }
};

}  // namespace

CRETO_FUZZ_MESSAGES(Convert, v1::CompleteRequest, v1::CompleteResponse, v1::EmbedResponse, v1::Capabilities)
