#include <cstddef>
#include <cstdint>

#include "record_json.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  auto parsed = audit::parse_entry(text);
  if (!parsed) return 0;
  // What was accepted can be written again, and reads as the same.
  auto entry = audit::to_entry(parsed->org, parsed->record);
  if (!entry || !audit::parse_entry(*entry)) __builtin_trap();
  return 0;
}
