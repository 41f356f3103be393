#include <cstddef>
#include <cstdint>

#include "billing/invoicing.h"
#include "creto/common/assert.h"
#include "creto/metering/plan.h"
#include "creto/metering/quota.h"
#include "creto/testing/fuzz_seeds.h"
#include "usage/usage_event.h"

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
  if (const auto threshold = metering::threshold_from_json(text)) {
    const std::string again = metering::to_json(*threshold).value();
    CRETO_ASSERT(metering::to_json(metering::threshold_from_json(again).value()).value() == again);
  }
  if (const auto invoice = metering::invoice_from_document(std::string(text))) CRETO_ASSERT(invoice->document == text);
  return 0;
}

CRETO_FUZZ_SEEDS(R"({"agent_nhi":"agent:nhi:ed25519:11111111111111111111111111111111","delegation_chain":["human:ada@example.com","agent:nhi:ed25519:11111111111111111111111111111111"],"event_id":"evt-01890a5d-ac96-774b-bcce-b302099a8057","event_type":"runtime_usage","payload":{"cost":{"amount":"0.25","currency":"USD"},"idempotency_key":"k","properties":{"input_tokens":"100","model_id":"m","output_tokens":"200","provider":"p","reservation_id":"res-01890a5d-ac96-774b-bcce-b302099a8057"},"schema_version":1,"units":"300","usage_type":"inference_tokens"},"schema_version":1,"signature":{"algorithm":"ml-dsa-65","value":"AQID"},"timestamp":{"degraded":false,"logical":"1","node":"n","physical_ns":"1800000000000000000"}})",
                 R"({"base_fee":"19","charges":[{"description":"d","id":"c","metric":{"aggregation":"sum","event_type":"inference_tokens","property":"input_tokens","rounding":"ceil","places":2,"group_by":"model_id","match":{"provider":["p"]},"ignore":[{"model_id":["x"]}],"multiply_by":"2","divide_by":"1000"},"minimum":"1","model":"graduated","price":{"tiers":[{"up_to":"10","per_unit":"0.1","flat":"0"},{"per_unit":"0.05","flat":"1"}]}},{"id":"q","model":"package","metric":{"event_type":"action"},"price":{"amount":"5","size":"100","free_units":"10"}},{"id":"r","model":"percentage","metric":{"event_type":"action","aggregation":"sum","property":"cost"},"price":{"rate":"1.5","fixed":"0.1","free_events":3,"free_value":"10","event_min":"0.1","event_max":"5"}}],"currency":"USD","id":"p","name":"P","schema_version":1,"version":1})",
                 R"({"approvers":["human:ada@example.com"],"event_type":"action","id":"q","limit":"10","overflow":"block","rolling_length":"1h","schema_version":1,"soft_percent":95,"subject":"agent:nhi:ed25519:11111111111111111111111111111111","window":"rolling"})", R"({"approvers":[],"event_type":"","id":"r","limit":"10.5","match":{"model_id":["a","b"],"project":["p"]},"measure":"cost","overflow":"oversight","schema_version":1,"soft_percent":80,"subject":"agent:*","time_zone":"Europe/Berlin","window":"day"})", R"({"action":"block","approvers":["human:ada@example.com"],"currency":"USD","id":"t","limit":"10.5","period":"day","schema_version":1,"subject":"agent:nhi:ed25519:11111111111111111111111111111111"})",
                 R"({"agent":"agent:nhi:ed25519:11111111111111111111111111111111","currency":"USD","id":"inv-01890a5d-ac96-774b-bcce-b302099a8057","issued_at":"2026-12-01T00:00:00Z","lines":[{"amount":"1.25","charge":"c","description":"d","events":"3","exact":"1.2512","group":"","model":"standard","units":"3"}],"number":"1","period":{"begin":"2026-11-01T00:00:00Z","end":"2026-12-01T00:00:00Z"},"plan":{"id":"p","name":"P","version":"1"},"schema_version":1,"subscription":"sub-01890a5d-ac96-774b-bcce-b302099a8057","total":"1.25"})")
