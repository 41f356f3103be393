#include <cstddef>
#include <cstdint>

#include "creto/audit/tlog.h"
#include "creto/testing/fuzz_seeds.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (auto note = tlog::parse_note(text)) (void)tlog::Checkpoint::parse(note->text);
  if (auto checkpoint = tlog::Checkpoint::parse(text); checkpoint && checkpoint->text() != text) __builtin_trap();
  if (auto key = tlog::VerifierKey::parse(text); key && key->text().size() > text.size()) __builtin_trap();
  (void)tlog::parse_key_file(text);
  return 0;
}

CRETO_FUZZ_SEEDS(
    "creto.local/audit/default\n3\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n\u2014 creto.local/audit/default "
    "AQIDBAUG\n",
    "creto.local+8e1b2c3d+AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n")
