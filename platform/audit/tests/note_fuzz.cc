#include <cstddef>
#include <cstdint>

#include "creto/audit/tlog.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (auto note = tlog::parse_note(text)) (void)tlog::Checkpoint::parse(note->text);
  if (auto checkpoint = tlog::Checkpoint::parse(text); checkpoint && checkpoint->text() != text) __builtin_trap();
  if (auto key = tlog::VerifierKey::parse(text); key && key->text().size() > text.size()) __builtin_trap();
  (void)tlog::parse_key_file(text);
  return 0;
}
