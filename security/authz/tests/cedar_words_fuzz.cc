// Small texts that Cedar and its callers read: extension values, which are written as they are read, and override
// tokens, of which none that was not issued is believed.
#include <cstddef>
#include <cstdint>
#include <string>

#include "cedar/extension_values.h"
#include "creto/common/assert.h"
#include "creto/testing/fuzz_seeds.h"
#include "override_token.h"

namespace {

using namespace creto;
using namespace creto::authz;

void token(std::string_view text) {
  static const OverrideTokens tokens(Secret::copy_of(as_bytes("0123456789abcdef0123456789abcdef")));
  (void)read_override_token(text);
  const Identity agent = Identity::service("agent").value();
  const CheckRequest request{.principal = agent,
                             .chain = {agent},
                             .action = "pay",
                             .resource = {"Account", "a"},
                             .context = {},
                             .override_token = std::string(text)};
  CRETO_ASSERT(!tokens.verify("default", request));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 8) {
    case 0:
      if (const auto value = cedar::parse_decimal(text))
        CRETO_ASSERT(cedar::parse_decimal(cedar::format(*value)).value() == *value);
      break;
    case 1:
      if (const auto value = cedar::parse_ip(text))
        CRETO_ASSERT(cedar::parse_ip(cedar::format(*value)).value() == *value);
      break;
    case 2:
      if (const auto value = cedar::parse_datetime(text))
        CRETO_ASSERT(cedar::parse_datetime(cedar::format(*value)).value() == *value);
      break;
    case 3:
      if (const auto value = cedar::parse_duration_value(text))
        CRETO_ASSERT(cedar::parse_duration_value(cedar::format(*value)).value() == *value);
      break;
    default:
      token(text);
      break;
  }
  return 0;
}

CRETO_FUZZ_SEEDS("0-1234567.8901", "1192.168.0.1/24", "1fe80::1:2/64", "22024-10-15T11:35:00.123-0230", "3-1d2h3m4s5ms")
