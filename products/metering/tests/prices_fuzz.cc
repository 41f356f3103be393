#include <cstdlib>

#include "billing/price_table.h"

/// A table that is taken holds prices that come back from their documents as they were.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  using namespace creto::metering;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Instant effective = from_unix_ns(1'767'225'600'000'000'000);
  if (const auto imported = import_model_prices(text, effective)) {
    for (const ModelPrice& price : imported->prices) {
      const auto document = to_json(price);
      if (!document) std::abort();
      const auto again = model_price_from_json(*document);
      if (!again || *again != price) std::abort();
    }
  }
  if (const auto price = model_price_from_json(text)) {
    if (model_price_from_json(to_json(*price).value()).value() != *price) std::abort();
  }
  return 0;
}
