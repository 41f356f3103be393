#include <cstddef>
#include <cstdint>

#include "creto/common/assert.h"
#include "creto/metering/plan.h"
#include "creto/metering/quota.h"
#include "usage_event.h"

/// What is accepted survives its own form; nothing crashes.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto event = metering::parse_usage_event(text)) CRETO_ASSERT(event->envelope.to_json().value() == text);
  if (const auto plan = metering::plan_from_json(text)) {
    const std::string again = metering::to_json(*plan).value();
    CRETO_ASSERT(metering::to_json(metering::plan_from_json(again).value()).value() == again);
  }
  if (const auto quota = metering::quota_from_json(text)) {
    const std::string again = metering::to_json(*quota).value();
    CRETO_ASSERT(metering::to_json(metering::quota_from_json(again).value()).value() == again);
  }
  return 0;
}
