#include <cstddef>
#include <cstdint>

#include "creto/testing/fuzz_seeds.h"
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

CRETO_FUZZ_SEEDS(
    R"({"delegation_chain":["human:ada@example.com"],"id":"aud-01890a5d-ac96-774b-bcce-b302099a8057","metadata":{"a":1},"org":"default","outcome":"denied","outcome_detail":"d","resource":"r","schema_version":1,"signature":{"algorithm":"ed25519","value":"AQID"},"timestamp":{"degraded":false,"logical":"1","node":"n","physical_ns":"2"},"trace_id":"","type":"creto.audit.record","what":"w","who":"human:ada@example.com","why":"y"})")
