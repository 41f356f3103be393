// What a sandbox sends is read the same however much of it has arrived; a name that is found stays found.
#include <cstdint>

#include "creto/common/assert.h"
#include "net/egress_proxy.h"

using namespace creto;           // NOLINT: a program of its own
using namespace creto::runtime;  // NOLINT: likewise
using egress::Peek;

namespace {

void check_peek(Peek (*peek)(std::string_view), std::string_view bytes, std::size_t cut) {
  const Peek whole = peek(bytes);
  CRETO_ASSERT((whole.state == Peek::State::found) == !whole.host.empty());
  for (const char c : whole.host) CRETO_ASSERT(c < 'A' || c > 'Z');
  const Peek part = peek(bytes.substr(0, cut));
  if (part.state == Peek::State::need_more || cut > 16 << 10) return;
  CRETO_ASSERT(part.state == whole.state && part.host == whole.host);
}

void check_dns(std::string_view packet) {
  const auto question = egress::dns_question(packet);
  if (!question) return;
  CRETO_ASSERT(question->end <= packet.size());
  CRETO_ASSERT(egress::is_host_name(question->name));
  for (const auto& answer : {egress::dns_answer(packet, *question, 0x0100007F, false),
                             egress::dns_answer(packet, *question, std::nullopt, true)}) {
    CRETO_ASSERT(answer.size() >= question->end && answer.substr(0, 2) == packet.substr(0, 2));
    // An answer is no question, or two name servers could talk for ever.
    CRETO_ASSERT(!egress::dns_question(answer));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  const std::size_t cut = std::size_t{data[1]} % (bytes.size() + 1);
  switch (data[0] % 3) {
    case 0:
      check_peek(egress::tls_server_name, bytes, cut);
      break;
    case 1:
      check_peek(egress::http_host, bytes, cut);
      break;
    default:
      check_dns(bytes);
  }
  return 0;
}
