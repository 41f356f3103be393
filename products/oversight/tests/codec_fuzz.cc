// A stored document that is read is written as the same document.
#include <cstddef>
#include <cstdint>

#include "codec.h"
#include "creto/common/assert.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto::oversight;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto policy = decode_policy(text)) {
    const auto written = encode(*policy).value();
    CRETO_ASSERT(encode(decode_policy(written).value()).value() == written);
    (void)validate(*policy);
  }
  if (const auto request = decode_request(text)) {
    const auto written = encode(*request).value();
    CRETO_ASSERT(encode(decode_request(written).value()).value() == written);
  }
  return 0;
}
