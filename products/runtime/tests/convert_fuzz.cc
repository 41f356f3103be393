// What a converter takes from a message it writes as a message that says the same.
#include "creto/testing/message_fuzz.h"
#include "rpc/convert.h"

namespace {

using namespace creto;
namespace v1 = runtime::v1;

struct Convert {
  static constexpr std::array words = {std::string_view("running"),   std::string_view("terminated"),
                                       std::string_view("completed"), std::string_view("approved"),
                                       std::string_view("allow"),     std::string_view("deny")};

  template <class M>
  static auto from(const M& message) {
    return runtime::from_proto(message);
  }
  template <class T, class M>
  static void to(const T& value, M& out) {
    runtime::to_proto(value, out);
  }
};

}  // namespace

CRETO_FUZZ_MESSAGES(Convert, v1::SpawnSandboxRequest, v1::SpawnSandboxResponse, v1::Sandbox, v1::ExecSandboxRequest,
                    v1::Attestation)
