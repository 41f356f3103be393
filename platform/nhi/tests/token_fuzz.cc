#include <cstddef>
#include <cstdint>

#include "creto/testing/fuzz_seeds.h"
#include "delegation.h"
#include "token.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  if (auto token = nhi::parse_token(text))
    (void)nhi::check_token_time(*token, from_unix_ns(1'767'268'800'000'000'000), Nanos(1));
  // The payload alone, as if its base64 had been right.
  (void)nhi::parse_token("creto1." + base64url(as_bytes(text)) + ".AAAA");
  (void)nhi::check_permissions({std::string(text)});
  return 0;
}

CRETO_FUZZ_SEEDS(
    R"({"exp":"1767355200000000000","iat":"1767268800000000000","iss":"agent:nhi:ed25519:11111111111111111111111111111111","jti":"000102030405060708090a0b0c0d0e0f","org":"default"})",
    "creto1.e30.AAAA")
