// What a converter takes from a message it writes as a message that says the same.
#include "creto/testing/message_fuzz.h"
#include "rpc/convert.h"

namespace {

using namespace creto;
namespace v1 = memory::v1;

struct Convert {
  static constexpr std::array words = {std::string_view("thought")};

  template <class M>
  static auto from(const M& message) {
    if constexpr (requires { memory::from_proto(message); }) {
      return memory::from_proto(message);
    } else {
      return memory::from_proto(creto::testing::some_caller(), message);
    }
  }
  template <class T, class M>
  static void to(const T& value, M& out) {
    memory::to_proto(value, out);
  }
};

}  // namespace

CRETO_FUZZ_MESSAGES(Convert, v1::Memory, v1::StoreMemoryRequest, v1::QueryRequest, v1::MemoryWithScore,
                    v1::ReasoningResponse)
