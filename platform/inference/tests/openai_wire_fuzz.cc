#include <cstddef>
#include <cstdint>

#include "creto/common/assert.h"
#include "openai_wire.h"

using namespace creto;
using namespace creto::inference;

// What a provider may answer, as a whole and as a stream cut in two; and the injection check over the same bytes.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  static_cast<void>(openai::parse_completion(text));
  static_cast<void>(openai::parse_embeddings(text, 2));
  static_cast<void>(openai::parse_error(400, text.substr(0, 8), text));
  const ChunkSink sink = [](std::string_view piece) { return piece != "stop"; };
  openai::EventReader reader;
  openai::Assembler assembler(sink);
  const auto event = [&](std::string_view one) { return assembler.event(one); };
  const auto cut = size / 2;
  if (reader.feed(text.substr(0, cut), event) && reader.feed(text.substr(cut), event)) {
    static_cast<void>(assembler.finish());
  }
  const auto finding = check_injection(text);
  CRETO_ASSERT(finding.score >= 0 && finding.score <= 1 && (finding.score > 0) == !finding.rules.empty());
  return 0;
}
