// However the bytes of a control channel are cut, the same frames come out, and none is larger than allowed.
#include <cstdint>

#include "creto/common/assert.h"
#include "driver/control_hub.h"
#include "driver/control_protocol.h"

using namespace creto;           // NOLINT: a program of its own
using namespace creto::runtime;  // NOLINT: likewise

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::size_t step = std::size_t{data[0]} + 1;
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  control::FrameParser at_once;
  std::vector<control::FrameParser::Frame> expected;
  const bool good = at_once.feed(input, expected);

  control::FrameParser cut;
  std::vector<control::FrameParser::Frame> frames;
  bool still_good = true;
  for (std::size_t at = 0; at < input.size() && still_good; at += step)
    still_good = cut.feed(input.substr(at, step), frames);
  CRETO_ASSERT(still_good == good);
  CRETO_ASSERT(frames.size() == expected.size());
  for (std::size_t i = 0; i < frames.size(); ++i) {
    CRETO_ASSERT(frames[i].type == expected[i].type && frames[i].stream == expected[i].stream);
    CRETO_ASSERT(frames[i].payload == expected[i].payload);
    CRETO_ASSERT(frames[i].payload.size() <= control::frame_payload_max);
  }
  return 0;
}
