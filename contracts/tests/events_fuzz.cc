// An event that is taken is written as an event that says the same.
#include <cstddef>
#include <cstdint>

#include "creto/common/assert.h"
#include "creto/contracts/events.h"

namespace {

using namespace creto;
using namespace creto::contracts;

template <class Event>
void round_trip(std::string_view text) {
  const auto event = Event::from_json(text);
  if (!event) return;
  const auto written = event->to_json();
  CRETO_ASSERT(written.has_value());
  const auto again = Event::from_json(*written);
  CRETO_ASSERT(again.has_value());
  CRETO_ASSERT(again->to_json().value() == *written);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  round_trip<RuntimeUsageEvent>(text);
  round_trip<CostThresholdExceededEvent>(text);
  round_trip<OversightDecisionEvent>(text);
  round_trip<SandboxLifecycleEvent>(text);
  round_trip<DeliveryReceiptEvent>(text);
  round_trip<OversightNotificationEvent>(text);
  return 0;
}
