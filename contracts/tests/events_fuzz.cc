// An event that is taken is written as an event that says the same.
#include <cstddef>
#include <cstdint>

#include "creto/common/assert.h"
#include "creto/contracts/events.h"
#include "creto/testing/fuzz_seeds.h"

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

CRETO_FUZZ_SEEDS(
    R"({"cost":{"amount":"0.25","currency":"USD"},"idempotency_key":"k","properties":{"input_tokens":"100","model_id":"m","output_tokens":"200","provider":"p","reservation_id":"res-01890a5d-ac96-774b-bcce-b302099a8057"},"schema_version":1,"units":"300","usage_type":"inference_tokens"})",
    R"({"action":"require_approval","approvers":["human:ada@example.com"],"current":"12.5","kind":"cost_threshold","limit":"10","period":"month","schema_version":1,"threshold_id":"t","triggering_event":"e","unit":"USD"})",
    R"({"action":"payments.pay","approver":"human:ada@example.com","arguments":{"to":"x"},"decision":"approved","notes":"n","request_id":"req-01890a5d-ac96-774b-bcce-b302099a8057","response":{},"sandbox_id":"sb-01890a5d-ac96-774b-bcce-b302099a8057","schema_version":1})",
    R"({"change":"created","detail":"d","sandbox_id":"sb-01890a5d-ac96-774b-bcce-b302099a8057","schema_version":1})",
    R"({"failure_reason":"","message_id":"msg-01890a5d-ac96-774b-bcce-b302099a8057","receipt_type":"delivered","recipient_nhi":"agent:nhi:ed25519:11111111111111111111111111111111","schema_version":1})",
    R"({"action_description":"d","approver_identity":"human:ada@example.com","channel_type":"cli","reasoning_context":"r","request_id":"req-01890a5d-ac96-774b-bcce-b302099a8057","schema_version":1})")
