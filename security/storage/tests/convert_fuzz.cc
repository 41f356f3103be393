// What a converter takes from a message it writes as a message that says the same.
#include "creto/testing/message_fuzz.h"
#include "rpc/convert.h"

namespace {

using namespace creto;
namespace v1 = storage::v1;

struct Convert {
  static constexpr std::array words = {std::string_view("default"), std::string_view("text/plain")};

  template <class M>
  static auto from(const M& message) {
    if constexpr (requires { storage::from_proto(message); }) {
      return storage::from_proto(message);
    } else {
      return storage::from_proto(creto::testing::some_caller(), message);
    }
  }
  template <class T, class M>
  static void to(const T& value, M& out) {
    storage::to_proto(value, out);
  }
};

}  // namespace

CRETO_FUZZ_MESSAGES(Convert, v1::StorageRef, v1::ObjectMetadata, v1::ObjectSpec, v1::ListRequest, v1::ListResponse)
