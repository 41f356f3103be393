#include <cstddef>
#include <cstdint>

#include "creto/common/assert.h"
#include "creto/testing/fuzz_seeds.h"
#include "creto/vault/vault.h"
#include "sealer.h"
#include "secret_codec.h"

using namespace creto;
using namespace creto::vault;

// Names, stored documents and sealed values, none of which may be opened without having been sealed.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const BytesView bytes(data, size);
  if (const auto ref = SecretRef::parse(as_text(bytes))) CRETO_ASSERT(ref->text() == as_text(bytes));
  if (const auto info = info_from_json(as_text(bytes))) CRETO_ASSERT(to_json(*info).has_value());
  static const auto sealer = std::move(*make_sealer(Secret(32)));
  CRETO_ASSERT(!sealer->unseal("a", bytes));
  return 0;
}

CRETO_FUZZ_SEEDS(
    "a/b/key",
    R"({"created_at":"1","expires_at":"2","metadata":{"description":"d","labels":{"a":"b"},"type":"api_key"},"name":"key","owner":"service:billing","path":"a/b","version":"1"})")
