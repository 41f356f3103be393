// What parses reads the same when it is taken apart again; stored sessions and usage survive any bytes.
#include <cstdint>

#include "creto/common/assert.h"
#include "ratchet.h"
#include "usage.h"
#include "wire.h"

using namespace creto;             // NOLINT: a program of its own
using namespace creto::messaging;  // NOLINT: likewise

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const BytesView input(data + 1, size - 1);
  if (data[0] % 4 == 0) {
    if (const auto ratchet = Ratchet::deserialize(input)) {
      CRETO_ASSERT(Ratchet::deserialize(ratchet->serialize().reveal()));
    }
    return 0;
  }
  if (data[0] % 4 == 1) {
    if (const auto usage = decode_usage(as_text(input))) {
      const auto written = encode_usage(*usage);
      CRETO_ASSERT(encode_usage(decode_usage(written).value()) == written);
    }
    return 0;
  }
  const auto envelope = parse_envelope(input);
  if (!envelope) return 0;
  Writer out;
  envelope->header.write(out);
  if (envelope->one_shot) write_one_shot(out, *envelope->one_shot);
  if (envelope->start) envelope->start->write(out);
  if (envelope->ratchet) {
    envelope->ratchet->header.write(out);
    out.bytes32(envelope->ratchet->ciphertext);
  }
  if (envelope->signature) write_signature(out, *envelope->signature);
  CRETO_ASSERT(out.bytes() == to_bytes(input));
  CRETO_ASSERT(check_fields(to_sealed_message(envelope->header, to_bytes(input)), envelope->header));
  return 0;
}
