// A document that is read is written as the same: those that are stored, and what an approver signs.
#include <cstddef>
#include <cstdint>

#include "codec.h"
#include "creto/common/assert.h"
#include "creto/oversight/oversight.h"
#include "creto/testing/fuzz_seeds.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto::oversight;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto policy = decode_policy(text)) {
    const auto written = encode(*policy).value();
    CRETO_ASSERT(encode(decode_policy(written).value()).value() == written);
    (void)validate(*policy);
  }
  if (const auto request = decode_request(text)) {
    const auto written = encode(*request).value();
    CRETO_ASSERT(encode(decode_request(written).value()).value() == written);
  }
  if (const auto document = ResponseDocument::from_signed_bytes(text)) {
    const auto written = document->signed_bytes().value();
    CRETO_ASSERT(ResponseDocument::from_signed_bytes(written).value().signed_bytes().value() == written);
  }
  return 0;
}

CRETO_FUZZ_SEEDS(
    "creto.oversight.response.v1\n"
    R"({"approver":"human:ada@example.com","arguments_sha3_256":")"
    "0000000000000000000000000000000000000000000000000000000000000000"
    R"(","decision":"approve","notes":"n","request_id":"req-01890a5d-ac96-774b-bcce-b302099a8057","response":{"a":1},"schema_version":1})",

    R"({"allow_self_approval":false,"channels":["cli"],"description":"d","final_action":"deny","id":"p","tiers":[{"approvers":["human:ada@example.com","human:b@example.com"],"quorum":2,"timeout_ns":"60000000000"}],"triggers":["action"]})",
    R"({"action":"payments.pay","agent":"agent:nhi:ed25519:11111111111111111111111111111111","arguments":"{}","confidence":0.5,"context_problem":"","created_ns":"1","decided_ns":"0","decision_response":"","delegation_chain":["human:ada@example.com"],"description":"d","id":"req-01890a5d-ac96-774b-bcce-b302099a8057","reasoning":"r","related_memories":["m"],"requirements":[{"forbid":"f","met":false,"met_by_timeout":false,"policy":{"allow_self_approval":false,"channels":["cli"],"description":"d","final_action":"deny","id":"p","tiers":[{"approvers":["human:ada@example.com","human:b@example.com"],"quorum":2,"timeout_ns":"60000000000"}],"triggers":["action"]},"tier":0,"tier_ends_ns":"5"}],"resource_id":"i","resource_type":"T","responses":[{"approve":true,"approver":"human:ada@example.com","document":"x","notes":"n","received_ns":"3","signature":{"algorithm":"ed25519","value":"AQID"}}],"risk_factors":["r"],"sandbox":"sb-01890a5d-ac96-774b-bcce-b302099a8057","schema_version":1,"state":"pending","version":"1"})")
