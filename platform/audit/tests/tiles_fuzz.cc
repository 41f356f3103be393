#include <cstddef>
#include <cstdint>

#include "creto/audit/tlog.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  if (size == 0) return 0;
  const BytesView bytes(data + 1, size - 1);
  const std::uint32_t count = data[0];
  // What reads, writes back the same.
  if (auto entries = tlog::decode_bundle(bytes, count); entries && tlog::encode_bundle(*entries) != to_bytes(bytes)) {
    __builtin_trap();
  }
  // Any file as tile and bundle of a log that grows.
  const tlog::FileReader files = [&](const std::string&) -> Result<std::optional<Bytes>> {
    return std::optional<Bytes>(to_bytes(bytes));
  };
  (void)tlog::grow(count, files, {Bytes{1}});
  return 0;
}
