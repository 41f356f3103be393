// What a converter takes from a message it writes as a message that says the same.
#include "creto/testing/message_fuzz.h"
#include "rpc/convert.h"

namespace {

using namespace creto;
namespace v1 = audit::v1;

struct Convert {
  static constexpr std::array words = {std::string_view("success"), std::string_view("denied")};

  template <class M>
  static auto from(const M& message) {
    return audit::from_proto(message);
  }
  template <class T, class M>
  static void to(const T& value, M& out) {
    audit::to_proto(value, out);
  }
};

}  // namespace

CRETO_FUZZ_MESSAGES(Convert, v1::AuditRecord, v1::AuditEntry, v1::QueryRequest, v1::MerkleProof)
