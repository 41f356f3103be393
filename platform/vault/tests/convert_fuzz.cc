// What a converter takes from a message it writes as a message that says the same.
#include "creto/testing/message_fuzz.h"
#include "rpc/convert.h"

namespace {

using namespace creto;
namespace v1 = vault::v1;

struct Convert {
  static constexpr std::array words = {std::string_view("a/b"), std::string_view("key")};

  template <class M>
  static auto from(const M& message) {
    return vault::from_proto(message);
  }
  template <class T, class M>
  static void to(const T& value, M& out) {
    vault::to_proto(value, out);
  }
};

}  // namespace

CRETO_FUZZ_MESSAGES(Convert, v1::SecretRef, v1::SecretMetadata, v1::SecretInfo, v1::Secret, v1::DelegationRestrictions,
                    v1::Delegation, v1::DelegatedSecrets, v1::AccessLogEntry)
