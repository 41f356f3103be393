// What the parser takes can be evaluated: to a number or to an error, in bounded time.
#include "billing/expression.h"

#include "creto/common/assert.h"
#include "creto/testing/fuzz_seeds.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  const auto expression = metering::Expression::parse(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!expression) return 0;
  for (const std::string value : {"0", "-1.5", "12345678901234567890.000001"}) {
    const auto first = expression->evaluate([&](std::string_view) { return &value; });
    const auto again = expression->evaluate([&](std::string_view) { return &value; });
    CRETO_ASSERT(first.has_value() == again.has_value());
    if (first) CRETO_ASSERT(*first == *again);
  }
  return 0;
}

CRETO_FUZZ_SEEDS("ceil(duration_ms / 1000) * memory_gb", "-(a + 1.5) * max(b, 2) - round(c, 2)", "\"x-y\"/abs(-3)")
