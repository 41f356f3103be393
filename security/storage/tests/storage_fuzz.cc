#include <cstddef>
#include <cstdint>

#include "creto/common/assert.h"
#include "sealed_object.h"
#include "storage_codec.h"

using namespace creto;
using namespace creto::storage;

// Headers of object files, and targets of presigned URLs: as they come, and signed, so that what is
// behind the signature is reached.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const BytesView bytes(data, size);
  std::size_t used = 0;
  if (const auto header = ObjectHeader::parse(bytes, used)) {
    CRETO_ASSERT(used <= size);
    const auto encoded = header->encode();
    CRETO_ASSERT(equal_constant_time(encoded, bytes.first(used)));
  }
  static const Bytes key(32, 7);
  CRETO_ASSERT(!verify_target(as_text(bytes), key));
  if (size > 2 && size < 600 && is_valid_utf8(as_text(bytes))) {
    const std::string text(as_text(bytes));
    const auto middle = size / 2;
    const Grant grant{text.substr(0, middle), *Identity::service("a"), StorageRef{"b", text.substr(middle), "v"},
                      PresignedGet{}, 5};
    if (const auto again = verify_target(sign_target(grant, key), key)) {
      CRETO_ASSERT(again->org == grant.org && again->ref.key == grant.ref.key);
    }
  }
  return 0;
}
