// What is kept in the table of memories, and texts that are embedded: any bytes are read or refused.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "creto/common/assert.h"
#include "creto/testing/fuzz_seeds.h"
#include "vectors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  using namespace creto::memory;
  const BytesView bytes(data, size);
  if (const auto vector = decode_vector(bytes, size / 4)) {
    CRETO_ASSERT(encode_vector(*vector) == to_bytes(bytes));
    auto unit = *vector;
    normalize(unit);
    const float length = dot(unit, unit);
    CRETO_ASSERT(length == 0 || std::abs(length - 1) < 1e-3);
  }
  const auto embedding = hash_embedding(as_text(bytes));
  CRETO_ASSERT(embedding.size() == hash_dimension);
  for (const float value : embedding) CRETO_ASSERT(std::isfinite(value));
  return 0;
}

CRETO_FUZZ_SEEDS(R"({"a":"b","c":"d"})", "The quick brown fox pays the invoice of 12.50 EUR.")
