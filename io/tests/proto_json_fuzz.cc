// JSON from outside into a message, and back: no input may crash, and what is accepted prints as something that is
// accepted again.

#include <cstddef>
#include <cstdint>

#include "creto/common/assert.h"
#include "creto/io/proto_json.h"
#include "creto/nhi/v1/nhi.pb.h"
#include "creto/testing/fuzz_seeds.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  nhi::v1::PublishKeyBundleRequest bundle;
  (void)proto::message_from_json(text, bundle, 32);
  nhi::v1::DelegationChain chain;
  if (proto::message_from_json(text, chain, 32)) {
    auto json = proto::message_to_json(chain);
    if (json) {
      nhi::v1::DelegationChain again;
      CRETO_ASSERT(proto::message_from_json(*json, again, 64).has_value());
    }
  }
  nhi::v1::ListAgentsRequest request;
  std::size_t equals = text.find('=');
  if (equals != text.npos) (void)proto::set_field(request, text.substr(0, equals), text.substr(equals + 1));
  return 0;
}

CRETO_FUZZ_SEEDS(
    R"({"root":{"identity":"human:ada@example.com","type":"AGENT_TYPE_HUMAN","created_at":"2026-11-29T20:35:04.5Z","attributes":{"a":"b"}},"delegations":[{"permissions":["a.b"],"signature":{"algorithm":"x","value":"AQID"},"revoked":true}]})",
    "page.size=10", "type=AGENT_TYPE_HUMAN")
